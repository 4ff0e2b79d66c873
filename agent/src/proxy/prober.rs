//! Active health: one thread asks every endpoint of routing tables, and those of backends whose policy says so,
//! how it is.
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
use http::HeaderValue;
use snapshot::model::Question;
use tokio::runtime::{Builder, LocalOptions};
use tokio::sync::mpsc;
use tokio::task::{AbortHandle, spawn_local};
use tokio::time::MissedTickBehavior;

use super::placed;
use crate::resilience::{Health, Thresholds};
use crate::route::backend::Endpoint;
use crate::route::{Placement, PlacementEndpoint, RouteTable, TlsPeer};
use crate::upstream::{Destination, Place, Settings, Timeouts};

mod ask;

use ask::Asker;

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
    owner: Owner,
    /// For people.
    endpoint: String,
    place: Place,
    tls: Option<TlsPeer>,
    host: HeaderValue,
    timeout: Duration,
    interval: Duration,
    thresholds: Thresholds,
    question: Question,
}

/// Whose endpoint it is, for the log.
#[derive(PartialEq)]
enum Owner {
    Placement { table: String, placement: Arc<str> },
    Backend { backend: Arc<str>, policy: String },
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
            for (target, health) in of_placements(&present).chain(of_backends(&present)) {
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

fn of_placements(table: &RouteTable) -> impl Iterator<Item = (Target, &Arc<Health>)> {
    let placements = table.placements().flat_map(|one| one.all());
    placements.flat_map(|placement| {
        let endpoints = placement.endpoints.iter();
        endpoints.filter_map(|one| Some((target(placement, one)?, one.health())))
    })
}

fn target(placement: &Placement, endpoint: &PlacementEndpoint) -> Option<Target> {
    // A host that is no name for TLS is refused to requests too, which say so.
    let (place, tls) = placed::address(&endpoint.url).ok()?;
    let check = &placement.settings.health_check;
    Some(Target {
        owner: Owner::Placement {
            table: placement.table.to_string(),
            placement: Arc::clone(&placement.name),
        },
        endpoint: endpoint.name().to_owned(),
        place,
        tls,
        host: endpoint.host.field().clone(),
        timeout: check.timeout,
        interval: check.interval,
        thresholds: Thresholds::ONE,
        question: Question::Http {
            host: None,
            method: "GET".to_owned(),
            path: check.path.clone(),
            statuses: (200..=299).collect(),
            body: None,
        },
    })
}

fn of_backends(table: &RouteTable) -> impl Iterator<Item = (Target, &Arc<Health>)> {
    table.managed().flat_map(|managed| {
        managed.probes().map(|(check, endpoint, health)| {
            let target = Target {
                owner: Owner::Backend {
                    backend: Arc::clone(&managed.backend.name),
                    policy: managed.policy.id().to_string(),
                },
                endpoint: endpoint.name.to_string(),
                place: endpoint.place.clone(),
                tls: endpoint.tls.clone().map(|tls| TlsPeer {
                    http: !matches!(check.question, Question::Tcp { .. }),
                    identity: managed.identity.clone(),
                    ..tls
                }),
                host: host(&check.question, endpoint),
                timeout: check.timeout,
                interval: check.interval,
                thresholds: Thresholds {
                    unhealthy: check.unhealthy_threshold.get(),
                    healthy: check.healthy_threshold.get(),
                },
                question: check.question.clone(),
            };
            (target, health)
        })
    })
}

/// The host that is asked for: what the policy says, or the endpoint's own.
fn host(question: &Question, endpoint: &Endpoint) -> HeaderValue {
    let own = match (question, &endpoint.place) {
        (
            Question::Http {
                host: Some(host), ..
            },
            _,
        ) => HeaderValue::from_str(host.as_str()),
        (_, Place::Unix(_)) => Ok(HeaderValue::from_static("localhost")),
        _ => HeaderValue::from_str(&endpoint.name),
    };
    // Hosts, addresses and ports are header text.
    own.unwrap_or(HeaderValue::from_static("localhost"))
}

fn start(
    target: Target,
    health: &Arc<Health>,
    settings: &Settings,
    (mark, table): (Option<u32>, &Arc<ArcSwap<RouteTable>>),
) -> Probe {
    let target = Rc::new(target);
    let limit = target.timeout;
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
    let asker = Asker::new(settings);
    let http2 = matches!(target.question, Question::Grpc { .. });
    let destination = Destination {
        place: target.place.clone(),
        tls: target.tls.clone(),
        http2,
        mark,
        host: None,
        outside: false,
        owner: None,
        terms: None,
    };
    let mut turns = tokio::time::interval(target.interval);
    turns.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        turns.tick().await;
        let limit = target.timeout;
        let present = table.load_full();
        let asked = asker.ask(&target.question, &destination, &target.host, &present);
        let asked = tokio::time::timeout(limit, asked).await;
        let late = |_| Err(format!("request_failed: no answer within {limit:?}"));
        let (good, reason) = match asked.unwrap_or_else(late) {
            Ok(reason) => (true, reason),
            Err(reason) => (false, reason),
        };
        if let Some(healthy) = health.observe(good, target.thresholds) {
            changed(&target, healthy, &reason);
        }
    }
}

fn changed(target: &Target, healthy: bool, reason: &str) {
    let (old, new) = (word(!healthy), word(healthy));
    let endpoint = target.endpoint.as_str();
    match &target.owner {
        Owner::Placement { table, placement } => tracing::warn!(
            table,
            placement = &**placement,
            endpoint,
            old,
            new,
            reason,
            "health changed"
        ),
        Owner::Backend { backend, policy } => tracing::warn!(
            backend = &**backend,
            policy,
            endpoint,
            old,
            new,
            reason,
            "health changed"
        ),
    }
}

fn word(healthy: bool) -> &'static str {
    if healthy { "healthy" } else { "unhealthy" }
}
