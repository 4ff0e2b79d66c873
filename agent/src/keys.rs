//! Key sets of token providers that are fetched: in the background, never while a request waits.
//!
//! Flows in: what the route table wants ([`RouteTable::remote_keys`]), and requests for a refetch by those
//! who met a key that is not known. Flows out: a [`KeyStore`] that requests read without a lock. One thread
//! fetches, each set once at a time; sets live by what the document says of them, so a configuration that
//! says the same keeps what was fetched.
//! What it deliberately does not do: it checks no token, and it holds no request up.

use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use arc_swap::ArcSwap;
use prometheus_client::registry::Registry;
use serde::{Deserialize, Serialize};
use snapshot::model::{Key, RemoteKeys};
use tokio::runtime::{Builder, LocalOptions};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;

use crate::route::RouteTable;
use crate::route::token::{FetchedKeys, KeySet};
use crate::upstream::Settings;

mod fetch;
mod metrics;
mod schedule;

pub use schedule::{Limits, Schedule};

use fetch::{FetchError, Network};
use metrics::Metrics;

/// Between looks for sets that are due, and for tables that want others.
const TICK: Duration = Duration::from_millis(200);

/// Requests for a refetch that wait; more say nothing new.
const ASKS: usize = 64;

/// What requests read. One pointer holds all sets.
#[derive(Debug)]
pub struct KeyStore {
    sets: ArcSwap<HashMap<Arc<RemoteKeys>, Published>>,
    asks: mpsc::Sender<Arc<RemoteKeys>>,
    metrics: Metrics,
}

#[derive(Clone, Debug)]
struct Published {
    keys: Option<Arc<KeySet>>,
    status: ProviderStatus,
}

/// How it stands with one key set.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProviderStatus {
    /// Where it is fetched from, without query.
    pub uri: String,
    /// `fresh`, `stale` (it serves, and could not be fetched again), or `missing` (nobody's token is good).
    pub state: String,
    /// Keys in use.
    pub keys: usize,
    /// Seconds since 1970 of the last fetch that brought a set; 0: never.
    pub fetched_at: u64,
    /// Fetches that failed since then.
    pub failures: u32,
    /// Why the last one failed; empty if it did not.
    pub last_error: String,
}

impl KeyStore {
    /// Asks for a refetch: a token names a key that is not in the set. Never waits; too many at once are
    /// dropped, since one of them is enough.
    pub fn ask(&self, remote: &Arc<RemoteKeys>) {
        // A full queue holds requests that lead to the same fetch; a closed one belongs to a router that ends.
        let _ = self.asks.try_send(Arc::clone(remote));
    }

    /// All sets, by URI.
    pub fn status(&self) -> Vec<ProviderStatus> {
        let mut list: Vec<_> = self
            .sets
            .load()
            .values()
            .map(|one| one.status.clone())
            .collect();
        list.sort_by(|a, b| a.uri.cmp(&b.uri));
        list
    }

    /// Adds the series of key sets to a registry.
    pub fn register(&self, registry: &mut Registry) {
        self.metrics.register(registry);
    }
}

impl FetchedKeys for KeyStore {
    fn find(&self, remote: &RemoteKeys) -> Option<Arc<KeySet>> {
        self.sets.load().get(remote)?.keys.clone()
    }
}

/// The thread that fetches. Dropping it ends it.
#[derive(Debug)]
pub struct Fetcher {
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Drop for Fetcher {
    fn drop(&mut self) {
        self.stop.take();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the thread that fetches key sets panicked");
        }
    }
}

/// Starts the thread.
///
/// # Errors
/// The thread cannot be made.
pub fn start(
    table: Arc<ArcSwap<RouteTable>>,
    upstream: Settings,
    mark: Option<u32>,
    limits: Limits,
) -> std::io::Result<(Arc<KeyStore>, Fetcher)> {
    let (asks, asked) = mpsc::channel(ASKS);
    let store = Arc::new(KeyStore {
        sets: ArcSwap::default(),
        asks,
        metrics: Metrics::default(),
    });
    let (stop, stopped) = oneshot::channel();
    let keeper = Keeper {
        store: Arc::clone(&store),
        table,
        limits,
        sets: HashMap::new(),
        generation: None,
    };
    let thread = std::thread::Builder::new()
        .name("keys".into())
        .spawn(move || {
            match Builder::new_current_thread()
                .enable_all()
                .build_local(LocalOptions::default())
            {
                Ok(runtime) => runtime.block_on(async {
                    let network = Rc::new(Network::new(upstream, mark));
                    tokio::select! {
                        () = keeper.run(network, asked) => {}
                        _ = stopped => {}
                    }
                }),
                Err(error) => tracing::error!(%error, "no key set is fetched"),
            }
        })?;
    Ok((
        store,
        Fetcher {
            stop: Some(stop),
            thread: Some(thread),
        },
    ))
}

type Done = (Arc<RemoteKeys>, Result<Vec<Key>, FetchError>);

/// Everything that the thread knows.
struct Keeper {
    store: Arc<KeyStore>,
    table: Arc<ArcSwap<RouteTable>>,
    limits: Limits,
    sets: HashMap<Arc<RemoteKeys>, Kept>,
    generation: Option<u64>,
}

struct Kept {
    schedule: Schedule,
    fetched: Vec<Key>,
    keys: Option<Arc<KeySet>>,
    fetched_at: u64,
    last_error: String,
}

impl Keeper {
    async fn run(mut self, network: Rc<Network>, mut asked: mpsc::Receiver<Arc<RemoteKeys>>) {
        let mut running: JoinSet<Done> = JoinSet::new();
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = tick.tick() => {}
                Some(remote) = asked.recv() => {
                    self.wanted();
                    if let Some(kept) = self.sets.get_mut(&remote) {
                        kept.schedule.asked(Instant::now());
                    }
                }
                Some(done) = running.join_next(), if !running.is_empty() => match done {
                    Ok((remote, result)) => self.done(&remote, result),
                    Err(error) => tracing::error!(%error, "a fetch of a key set ended without a result"),
                },
            }
            self.wanted();
            let now = Instant::now();
            for (remote, kept) in &mut self.sets {
                if kept.schedule.due(now) {
                    kept.schedule.begin(now);
                    let (remote, network) = (Arc::clone(remote), Rc::clone(&network));
                    let table = self.table.load_full();
                    running.spawn_local(async move {
                        let result = network.fetch(&remote, &table).await;
                        (remote, result)
                    });
                }
            }
            self.publish(now);
        }
    }

    /// Takes over which sets the active table wants.
    fn wanted(&mut self) {
        let table = self.table.load();
        if self.generation == Some(table.generation) {
            return;
        }
        self.generation = Some(table.generation);
        let wanted = table.remote_keys();
        self.sets.retain(|remote, _| wanted.contains(remote));
        for remote in wanted {
            if !self.sets.contains_key(remote) {
                let schedule = Schedule::new(
                    Instant::now(),
                    Limits {
                        cache: remote.cache,
                        max_stale: remote.max_stale,
                        ..self.limits
                    },
                );
                let kept = Kept {
                    schedule,
                    fetched: Vec::new(),
                    keys: None,
                    fetched_at: 0,
                    last_error: String::new(),
                };
                self.sets.insert(Arc::clone(remote), kept);
            }
        }
    }

    fn done(&mut self, remote: &Arc<RemoteKeys>, result: Result<Vec<Key>, FetchError>) {
        // The configuration may have changed meanwhile.
        let Some(kept) = self.sets.get_mut(remote) else {
            return;
        };
        let (now, random) = (Instant::now(), random());
        let taken = result.and_then(|keys| {
            let ready = KeySet::usable(&keys);
            if ready.is_empty() {
                return Err(FetchError::Useless);
            }
            Ok((keys, ready))
        });
        match taken {
            Ok((keys, ready)) => {
                kept.schedule.succeeded(now, random);
                kept.last_error.clear();
                kept.fetched_at = unix_now();
                if kept.keys.is_none() || kept.fetched != keys {
                    tracing::info!(uri = %remote.uri, keys = ready.len(), "key set of a token provider is new");
                    kept.fetched = keys;
                    kept.keys = Some(Arc::new(ready));
                }
                self.store.metrics.fetched(&remote.uri, true);
            }
            Err(error) => {
                kept.schedule.failed(now, random);
                let error = format!("{:#}", anyhow::Error::new(error));
                tracing::warn!(
                    uri = %remote.uri,
                    error,
                    usable = kept.schedule.usable(now),
                    "failed to fetch the key set of a token provider"
                );
                kept.last_error = error;
                self.store.metrics.fetched(&remote.uri, false);
            }
        }
    }

    /// Shows what changed. Sets that are too old are no longer shown.
    fn publish(&self, now: Instant) {
        let mut next = HashMap::with_capacity(self.sets.len());
        for (remote, kept) in &self.sets {
            let keys = kept.keys.clone().filter(|_| kept.schedule.usable(now));
            let state = match (&keys, kept.schedule.failures()) {
                (None, _) => "missing",
                (Some(_), 0) => "fresh",
                (Some(_), _) => "stale",
            };
            let status = ProviderStatus {
                uri: remote.uri.to_string(),
                state: state.to_owned(),
                keys: keys.as_ref().map_or(0, |keys| keys.len()),
                fetched_at: kept.fetched_at,
                failures: kept.schedule.failures(),
                last_error: kept.last_error.clone(),
            };
            next.insert(Arc::clone(remote), Published { keys, status });
        }
        let current = self.store.sets.load();
        let same = current.len() == next.len()
            && next.iter().all(|(remote, one)| {
                current
                    .get(remote)
                    .is_some_and(|other| other.status == one.status && same_keys(other, one))
            });
        if !same {
            self.store
                .metrics
                .show(next.values().map(|one| &one.status));
            self.store.sets.store(Arc::new(next));
        }
    }
}

fn same_keys(a: &Published, b: &Published) -> bool {
    match (&a.keys, &b.keys) {
        (Some(a), Some(b)) => Arc::ptr_eq(a, b),
        (None, None) => true,
        _ => false,
    }
}

/// Spreads fetches of many nodes; no secret.
fn random() -> u64 {
    use std::hash::{BuildHasher, RandomState};
    RandomState::new().hash_one(0)
}

fn unix_now() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}
