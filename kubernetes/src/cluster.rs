//! A cluster that is followed: what is known now, and a word whenever that changes.
//!
//! Flows in: the changes that watches make. Flows out: all objects at one moment, as soon as they change. The
//! first ones come when every kind that is served was listed; until the API server can be heard, those kept on disk take their place.

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use kube::{Client, Config};
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;

use crate::error::{ClusterError, explain};
use crate::keep::Keep;
use crate::nodes::{self, Nodes};
use crate::object::Object;
use crate::status::Outcome;
use crate::store::{Objects, Silence, Store};
use crate::writer::{self, Bucket, Tally, Writer};
use crate::{balancers, lease, served};

/// From one hand-over to the next. What changes after a quiet moment is handed over at once, and a burst in few pieces.
const PAUSE: Duration = Duration::from_millis(5);
/// How long a start waits for the API server before it takes what was kept.
const PATIENCE: Duration = Duration::from_secs(5);
/// How often what is known is written to disk, if it changed.
const KEEP: Duration = Duration::from_secs(10);

/// Until the lease must be given back at the end.
const FAREWELL: Duration = Duration::from_secs(2);

/// How a cluster is followed.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Name of the node that we are on.
    pub node: String,
    /// Folder where the last objects are kept; nothing is kept without one.
    pub keep: Option<PathBuf>,
}

/// All objects at one moment.
#[derive(Clone, Debug)]
pub struct Seen {
    /// The objects.
    pub objects: Objects,
    /// Differs when a document differs.
    pub documents: u64,
    /// Counts changes of anything.
    pub changes: u64,
    /// The version of the Gateway API's kinds that are installed, if that is known.
    pub bundle: Option<Arc<str>>,
    /// They are those that were kept on disk: the API server has not been heard since the start.
    pub kept: bool,
    /// The API server's own `Service` is left out of them.
    pub astray: bool,
}

/// How well the cluster is heard.
#[derive(Clone, Debug, Default)]
pub struct Health {
    /// All kinds were listed since the start.
    pub complete: bool,
    /// For how long the API server as a whole could not be asked, and why.
    pub unreachable: Option<(Duration, String)>,
    /// Kinds that nothing is heard of.
    pub silences: Vec<Silence>,
    /// Kinds that are watched, with the number of their objects.
    pub kinds: Vec<(&'static str, usize)>,
    /// This agent writes status.
    pub writes: bool,
    /// Statuses that it has written since the start.
    pub written: u64,
    /// Attempts to write one that failed.
    pub unwritten: u64,
}

impl Health {
    /// For how long the oldest part of what is known has not been confirmed.
    #[must_use]
    pub fn staleness(&self) -> Duration {
        let kinds = self.silences.iter().map(|silence| silence.lasts);
        let whole = self.unreachable.iter().map(|(lasts, _)| *lasts);
        kinds.chain(whole).max().unwrap_or_default()
    }
}

/// What is known, and who waits for changes of it.
#[derive(Default)]
pub(crate) struct Known {
    store: Mutex<Store>,
    changed: Notify,
}

impl Known {
    /// Changes what is known, and tells.
    pub(crate) fn change<T>(&self, change: impl FnOnce(&mut Store) -> T) -> T {
        let mut store = self.store.lock().unwrap_or_else(PoisonError::into_inner);
        let outcome = change(&mut store);
        drop(store);
        self.changed.notify_one();
        outcome
    }

    /// Changes what is known, for who looks at it anyway.
    fn settle<T>(&self, change: impl FnOnce(&mut Store) -> T) -> T {
        change(&mut self.store.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn read<T>(&self, read: impl FnOnce(&Store) -> T) -> T {
        read(&self.store.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// A followed cluster. Dropping it ends every task.
pub struct Cluster {
    client: Client,
    node: String,
    known: Arc<Known>,
    seen: watch::Receiver<Option<Seen>>,
    outcomes: watch::Sender<Option<Outcome>>,
    leads: watch::Receiver<bool>,
    tally: Arc<Tally>,
    server: String,
    tasks: Mutex<JoinSet<()>>,
    /// What is needed to write, until that begins.
    pen: Mutex<Option<Pen>>,
    keep: Option<Arc<Mutex<Keep>>>,
}

/// The ends of channels whose other ends tell of writing.
struct Pen {
    answers: watch::Receiver<Option<Outcome>>,
    lead: watch::Sender<bool>,
}

impl Cluster {
    /// Begins to follow the cluster that `KUBECONFIG` or the pod's service account names. The API server need not be there.
    /// Nothing is written, neither there nor to disk, before [`Cluster::begin_writing`]: another agent of the node may still do that.
    ///
    /// # Errors
    /// Nobody names one, or its configuration is no good.
    pub async fn follow(settings: &Settings) -> Result<Self, ClusterError> {
        let config = Config::infer().await.map_err(ClusterError::Config)?;
        let server = config.cluster_url.to_string();
        let server = server.trim_end_matches('/').to_owned();
        let host = config.cluster_url.host().unwrap_or_default();
        let address = host.trim_matches(['[', ']']).parse().ok();
        let client =
            Client::try_from(config).map_err(|error| ClusterError::Client(error.into()))?;
        Ok(Self::with(client, server, address, settings))
    }

    fn with(client: Client, server: String, address: Option<IpAddr>, settings: &Settings) -> Self {
        let keep = settings.keep.as_deref().map(Keep::new);
        let kept = keep.as_ref().and_then(kept);
        let has_kept = kept.is_some();
        let mut store = Store::kept(kept.unwrap_or_default());
        store.reached_at(address);
        let known = Arc::new(Known {
            store: Mutex::new(store),
            changed: Notify::new(),
        });
        let (sender, seen) = watch::channel(None);
        let mut tasks = JoinSet::new();
        tasks.spawn(served::follow(client.clone(), Arc::clone(&known)));
        tasks.spawn(hand_over(Arc::clone(&known), has_kept, sender));
        let (outcomes, answers) = watch::channel(None);
        let (lead, leads) = watch::channel(false);
        Self {
            client,
            node: settings.node.clone(),
            known,
            seen,
            outcomes,
            leads,
            tally: Arc::default(),
            server,
            tasks: Mutex::new(tasks),
            pen: Mutex::new(Some(Pen { answers, lead })),
            keep: keep.map(|keep| Arc::new(Mutex::new(keep))),
        }
    }

    /// Keeps what is known on disk from here on, and competes for writing status. No other agent of this node may do so.
    pub fn begin_writing(&self) {
        let mut pen = self.pen.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(Pen { answers, lead }) = pen.take() else {
            return;
        };
        let mut tasks = self.tasks.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(keep) = &self.keep {
            tasks.spawn(remember(Arc::clone(keep), self.seen.clone()));
        }
        tasks.spawn(lease::compete(self.client.clone(), self.node.clone(), lead));
        let (spread, spreads) = watch::channel(Nodes::new());
        let spread = Arc::new(spread);
        tasks.spawn(nodes::report(
            self.client.clone(),
            self.node.clone(),
            answers.clone(),
            Arc::clone(&spread),
        ));
        tasks.spawn(nodes::hear(
            self.client.clone(),
            self.node.clone(),
            self.leads.clone(),
            spread,
        ));
        let bucket = Arc::new(Bucket::default());
        tasks.spawn(balancers::keep(
            self.client.clone(),
            Arc::clone(&bucket),
            self.seen.clone(),
            answers.clone(),
            self.leads.clone(),
        ));
        let tally = Arc::clone(&self.tally);
        tasks.spawn(writer::write(
            Writer::new(self.client.clone(), &self.node, bucket, tally),
            self.seen.clone(),
            answers,
            spreads,
            self.leads.clone(),
        ));
    }

    /// Stops following and writing, for another agent of this node, which goes on with the lease if there is one here.
    pub async fn leave(&self) {
        let mut tasks =
            std::mem::take(&mut *self.tasks.lock().unwrap_or_else(PoisonError::into_inner));
        tasks.shutdown().await;
        if let Some(keep) = self.keep.clone() {
            // A thread may be writing the file, and ends by itself.
            let written = tokio::task::spawn_blocking(move || drop(locked(&keep))).await;
            if let Err(error) = written {
                tracing::error!(%error, "failed to wait until the objects are on disk");
            }
        }
    }

    /// Says what became of objects. The agent that writes status writes it.
    pub fn answer(&self, outcome: Outcome) {
        self.outcomes.send_replace(Some(outcome));
    }

    /// Stops following, and lets another agent write status.
    pub async fn end(&self) {
        self.leave().await;
        if !*self.leads.borrow() {
            return;
        }
        let given = lease::give_back(self.client.clone(), &self.node);
        match tokio::time::timeout(FAREWELL, given).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(
                error = explain(&error),
                "the lease for writing status was not given back; it ends by itself"
            ),
            Err(_) => tracing::warn!(
                "the lease for writing status was not given back in time; it ends by itself"
            ),
        }
    }

    /// What is known, once enough is; the receiver has the newest, and is told of each change.
    #[must_use]
    pub fn seen(&self) -> watch::Receiver<Option<Seen>> {
        self.seen.clone()
    }

    /// Name of the node that we are on.
    #[must_use]
    pub fn node(&self) -> &str {
        &self.node
    }

    /// Where the API server is.
    #[must_use]
    pub fn server(&self) -> &str {
        &self.server
    }

    /// How well the cluster is heard now.
    #[must_use]
    pub fn health(&self) -> Health {
        let now = Instant::now();
        self.known.read(|store| Health {
            complete: store.complete(),
            unreachable: store.unreachable_for(now),
            silences: store.silences(now),
            kinds: store
                .tally()
                .into_iter()
                .map(|(kind, count)| (kind.name(), count))
                .collect(),
            writes: *self.leads.borrow(),
            written: self.tally.patched.load(Ordering::Relaxed),
            unwritten: self.tally.failed.load(Ordering::Relaxed),
        })
    }
}

/// What was kept. A copy that cannot be read is as good as none: the API server has what it is a copy of.
fn kept(keep: &Keep) -> Option<Vec<Object>> {
    match keep.load() {
        Ok(kept) => kept,
        Err(error) => {
            tracing::error!(
                error = &error as &dyn std::error::Error,
                "the objects on disk cannot be read; nothing is served until the API server is heard"
            );
            None
        }
    }
}

/// Hands over what is known: first when it is complete, or after [`PATIENCE`] what was kept, then whenever it changed. What was kept
/// waits for lists in doubt too: some kinds as they are and others as they were would be no state that the cluster ever had.
async fn hand_over(known: Arc<Known>, has_kept: bool, sender: watch::Sender<Option<Seen>>) {
    let patience = Instant::now() + PATIENCE;
    let (mut complete, mut kept) = (false, false);
    let mut last = None;
    let mut next = tokio::time::Instant::now();
    loop {
        complete |= known.read(Store::complete);
        let doubts = known.read(|store| store.doubts_until(Instant::now()));
        let patience = doubts.map_or(patience, |until| until.max(patience));
        kept |= has_kept && Instant::now() >= patience;
        if complete || kept {
            match known.settle(|store| store.beware(Instant::now())) {
                Some(true) => tracing::warn!(
                    "the API server may be elsewhere by now: connections to its `Service` are not led by this agent for a while"
                ),
                Some(false) => {
                    tracing::info!(
                        "connections to the API server's `Service` are led by this agent again"
                    );
                }
                None => {}
            }
            let seen = known.read(|store| {
                let (documents, changes) = store.counts();
                Seen {
                    objects: store.objects(),
                    documents,
                    changes,
                    bundle: store.bundle(),
                    kept: !complete,
                    astray: store.is_astray(),
                }
            });
            if last != Some((seen.changes, complete)) {
                last = Some((seen.changes, complete));
                next = tokio::time::Instant::now() + PAUSE;
                if sender.send(Some(seen)).is_err() {
                    return;
                }
            }
        }
        let waits = if has_kept && !complete && !kept {
            patience.saturating_duration_since(Instant::now())
        } else {
            Duration::MAX
        };
        // Either way there is something to look at.
        let _changed = tokio::time::timeout(waits, known.changed.notified()).await;
        tokio::time::sleep_until(next).await;
    }
}

fn locked(keep: &Mutex<Keep>) -> MutexGuard<'_, Keep> {
    keep.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Writes what is known to disk, now and then.
async fn remember(keep: Arc<Mutex<Keep>>, mut seen: watch::Receiver<Option<Seen>>) {
    let mut failing = false;
    while seen.changed().await.is_ok() {
        let latest = seen.borrow_and_update().clone();
        // What was kept is on disk already, and what is left out for a while is not gone.
        let Some(latest) = latest.filter(|latest| !latest.kept && !latest.astray) else {
            continue;
        };
        let to = Arc::clone(&keep);
        let stored = tokio::task::spawn_blocking(move || locked(&to).store(&latest.objects)).await;
        match stored
            .map_err(std::io::Error::other)
            .and_then(|stored| stored)
        {
            Ok(()) => failing = false,
            Err(error) => {
                if !failing {
                    tracing::error!(
                        error = &error as &dyn std::error::Error,
                        "failed to keep the objects on disk; a start without an API server would serve older ones"
                    );
                }
                failing = true;
            }
        }
        tokio::time::sleep(KEEP).await;
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use kube::{Client, Config};

    use super::{Cluster, Settings};
    use crate::keep::kept_files;

    #[tokio::test]
    async fn a_copy_that_cannot_be_read_stops_nobody() {
        let folder = tempfile::tempdir().expect("folder");
        let [file, _] = kept_files(folder.path());
        fs::write(file, "{\"kind\":").expect("written");
        let nowhere = "http://127.0.0.1:9".parse().expect("a URL");
        let client = Client::try_from(Config::new(nowhere)).expect("a client");
        let settings = Settings {
            node: "node-1".to_owned(),
            keep: Some(folder.path().to_owned()),
        };
        let cluster = Cluster::with(client, "nowhere".to_owned(), None, &settings);
        // What is not there is not served: the API server is waited for.
        assert!(cluster.seen().borrow().is_none());
        assert!(!cluster.health().complete);
        cluster.leave().await;
    }
}
