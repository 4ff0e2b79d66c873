//! Active health: one thread asks every endpoint of the routing tables how it is.
//!
//! Flows in: the published table. Flows out: [`crate::resilience::Health`] of its endpoints, and a line
//! per change. Probes have a thread and connections of their own, so that no request waits for them and
//! none of theirs is taken for a request's. An endpoint that two generations have alike goes on being
//! probed as it was; a new or changed one is asked at once.

use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use arc_swap::ArcSwap;
use http::{HeaderValue, Method, Request, header};
use snapshot::model::{HealthCheck, PlacementUrl};
use tokio::runtime::{Builder, LocalOptions};
use tokio::sync::mpsc;
use tokio::task::{AbortHandle, spawn_local};
use tokio::time::MissedTickBehavior;

use super::outbound::Outbound;
use super::placed;
use super::respond::chain;
use crate::resilience::{Health, Thresholds};
use crate::route::{Placement, PlacementEndpoint, RouteTable};
use crate::upstream::{Client, Destination, Patience, Progress, RequestBody, Settings, Timeouts};

/// Between looks for a new table, if nobody tells of it.
const LOOK: Duration = Duration::from_secs(1);

/// The thread. Dropping it ends all probes.
#[derive(Debug)]
pub(super) struct Prober {
    wake: Option<mpsc::UnboundedSender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Prober {
    /// Starts probing what the present table has. `mark` is that of the probes' connections.
    pub(super) fn start(
        table: Arc<ArcSwap<RouteTable>>,
        settings: Settings,
        mark: Option<u32>,
    ) -> std::io::Result<Self> {
        let (wake, woken) = mpsc::unbounded_channel();
        let (started, start) = std::sync::mpsc::channel();
        let thread = std::thread::Builder::new()
            .name("router-health".to_owned())
            .spawn(move || {
                let mut builder = Builder::new_current_thread();
                match builder.enable_all().build_local(LocalOptions::default()) {
                    Ok(runtime) => {
                        // The other side waits for exactly one word.
                        let _ = started.send(Ok(()));
                        runtime.block_on(run(table, settings, mark, woken));
                    }
                    Err(error) => {
                        let _ = started.send(Err(error));
                    }
                }
            })?;
        start
            .recv()
            .unwrap_or_else(|_| Err(std::io::Error::other("it ended before it started")))?;
        Ok(Self {
            wake: Some(wake),
            thread: Some(thread),
        })
    }

    /// There is a new table.
    pub(super) fn wake(&self) {
        let told = self.wake.as_ref().is_some_and(|wake| wake.send(()).is_ok());
        if !told {
            tracing::error!("the thread that probes endpoints is gone");
        }
    }
}

impl Drop for Prober {
    fn drop(&mut self) {
        self.wake = None;
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the thread that probes endpoints panicked");
        }
    }
}

/// What is probed how; two generations that agree on it share the probe.
#[derive(PartialEq)]
struct Target {
    table: String,
    placement: Arc<str>,
    url: PlacementUrl,
    authority: HeaderValue,
    check: HealthCheck,
}

struct Probe {
    target: Rc<Target>,
    task: AbortHandle,
}

async fn run(
    table: Arc<ArcSwap<RouteTable>>,
    settings: Settings,
    mark: Option<u32>,
    mut woken: mpsc::UnboundedReceiver<()>,
) {
    // By the address of the health that they write, which lives as long as they do.
    let mut probes: HashMap<*const Health, Probe> = HashMap::new();
    let mut seen: Option<Arc<RouteTable>> = None;
    let mut look = tokio::time::interval(LOOK);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let present = table.load_full();
        if !seen
            .as_ref()
            .is_some_and(|seen| Arc::ptr_eq(seen, &present))
        {
            let mut next = HashMap::new();
            for (placement, endpoint) in endpoints(&present) {
                let health = endpoint.health();
                let target = target(placement, endpoint);
                let probe = match probes.remove(&Arc::as_ptr(health)) {
                    Some(probe) if *probe.target == target => probe,
                    other => {
                        if let Some(other) = other {
                            other.task.abort();
                        }
                        start(target, health, &settings, (mark, &table))
                    }
                };
                next.insert(Arc::as_ptr(health), probe);
            }
            probes.drain().for_each(|(_, probe)| probe.task.abort());
            probes = next;
            seen = Some(present);
        }
        tokio::select! {
            woken = woken.recv() => if woken.is_none() {
                return;
            },
            _ = look.tick() => {}
        }
    }
}

fn endpoints(table: &RouteTable) -> impl Iterator<Item = (&Placement, &PlacementEndpoint)> {
    let placements = table.placements().flat_map(|one| one.all());
    placements.flat_map(|placement| {
        placement
            .endpoints
            .iter()
            .map(move |one| (&**placement, one))
    })
}

fn target(placement: &Placement, endpoint: &PlacementEndpoint) -> Target {
    Target {
        table: placement.table.to_string(),
        placement: Arc::clone(&placement.name),
        url: endpoint.url.clone(),
        authority: endpoint.authority.clone(),
        check: placement.settings.health_check.clone(),
    }
}

fn start(
    target: Target,
    health: &Arc<Health>,
    settings: &Settings,
    (mark, table): (Option<u32>, &Arc<ArcSwap<RouteTable>>),
) -> Probe {
    let target = Rc::new(target);
    let limit = target.check.timeout;
    let settings = Settings {
        timeouts: Timeouts {
            connect: limit,
            head: limit,
            ..settings.timeouts
        },
        ..settings.clone()
    };
    let task = spawn_local(watch(
        Rc::clone(&target),
        Arc::clone(health),
        settings,
        (mark, Arc::clone(table)),
    ));
    Probe {
        target,
        task: task.abort_handle(),
    }
}

/// Asks at once, and then every interval.
async fn watch(
    target: Rc<Target>,
    health: Arc<Health>,
    settings: Settings,
    (mark, table): (Option<u32>, Arc<ArcSwap<RouteTable>>),
) {
    let client = Client::new(settings);
    let mut turns = tokio::time::interval(target.check.interval);
    turns.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        turns.tick().await;
        let limit = target.check.timeout;
        let present = table.load_full();
        let asked = tokio::time::timeout(limit, ask(&client, &target, mark, &present)).await;
        let result = asked.unwrap_or_else(|_| Err(format!("no answer within {limit:?}")));
        // Redirects are not followed: 3xx is not healthy.
        let (good, reason) = match result {
            Ok(status @ 200..=299) => (true, format!("status_code_{status}")),
            Ok(status) => (false, format!("status_code_{status}")),
            Err(error) => (false, format!("request_failed: {error}")),
        };
        if let Some(healthy) = health.observe(good, Thresholds::ONE) {
            tracing::warn!(
                table = target.table,
                placement = &*target.placement,
                endpoint = target.authority.to_str().unwrap_or_default(),
                old = word(!healthy),
                new = word(healthy),
                reason,
                "health changed"
            );
        }
    }
}

fn word(healthy: bool) -> &'static str {
    if healthy { "healthy" } else { "unhealthy" }
}

async fn ask(
    client: &Client,
    target: &Target,
    mark: Option<u32>,
    table: &RouteTable,
) -> Result<u16, String> {
    let (place, tls) = placed::address(&target.url).map_err(|refusal| refusal.detail)?;
    let progress = Rc::<Progress>::default();
    let mut head = Request::builder()
        .method(Method::GET)
        .body(())
        .map_err(|error| error.to_string())?;
    let agent = concat!("cardinal-agent/", env!("CARGO_PKG_VERSION"), " health");
    let agent = HeaderValue::from_static(agent);
    head.headers_mut().insert(header::USER_AGENT, agent);
    let outbound = Outbound {
        target: Some(&target.check.path),
        host: target.authority.clone(),
        tls: tls.is_some(),
        http2: false,
        trailers: false,
        websocket: false,
    };
    let (parts, ()) = head.into_parts();
    let request = outbound
        .request(parts, RequestBody::empty(Rc::clone(&progress)))
        .map_err(|refusal| refusal.detail)?;
    let destination = Destination {
        place,
        tls,
        http2: false,
        mark,
        host: None,
        outside: false,
        owner: None,
        terms: None,
    };
    let answer = client
        .send(&[destination], request, &progress, Patience::Usual, table)
        .await
        .map_err(|error| chain(&error))?;
    Ok(answer.response.status().as_u16())
}
