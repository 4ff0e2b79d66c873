//! Writes status, for as long as this agent holds the lease.
//!
//! Flows in: what became of the objects, and the objects as they are now. Flows out: a patch for each status that says something else
//! than it should, and an event for each refusal. It compares wanted with found at every change, so that what somebody else overwrote
//! comes back; a patch names the version that it was made from, so that nobody's words get lost.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{BuildHasher as _, RandomState};
use std::sync::Arc;
use std::time::{Duration, Instant};

use k8s_openapi::jiff::Timestamp;
use kube::api::{Patch, PatchParams};
use kube::core::{ApiResource, DynamicObject, GroupVersionKind};
use kube::{Api, Client};
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::timeout;

use crate::balancers::Balancers;
use crate::cluster::Seen;
use crate::error::explain;
use crate::events::Events;
use crate::nodes::{Answer, Nodes, PATIENCE, Spread, counted};
use crate::object::{Object, ObjectId};
use crate::packed::Packed;
use crate::status::{Outcome, Said, Word, is_counted, news, stirred, word};
use crate::uid::Uid;

/// Patches a second, on the average.
const RATE: u32 = 50;
/// Patches at once.
const BURST: u32 = 100;
/// Until the API server must answer.
const ANSWER: Duration = Duration::from_secs(10);
/// From news until something is written of them.
const SETTLES: Duration = Duration::from_millis(50);
/// How long what was found last is written although there is news: with news all the time nothing would get written else.
const ROUND: Duration = Duration::from_millis(500);
/// When a patch is tried again that failed, or whose effect was not seen.
const AGAIN: Duration = Duration::from_secs(5);

/// What was written of an object last, until its status is seen to say it. Statuses are large and many, so that their hashes are
/// kept.
struct Written {
    uid: Uid,
    word: u64,
    /// The status that it was written over, and the one that the API server made of it: it leaves out what its kinds do not have.
    over: u64,
    stored: Option<u64>,
    at: Instant,
}

/// What is to be done although the status differs from what is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Due {
    /// Nothing.
    Never,
    /// It was written, and the effect is not seen yet.
    Later,
    /// It is to be written.
    Now,
}

impl Written {
    fn due(&self, object: &Object, word: u64, status: u64, now: Instant) -> Due {
        if self.uid != object.uid || self.word != word {
            return Due::Now;
        }
        let unseen = status == self.over && now.saturating_duration_since(self.at) < AGAIN;
        match self.stored == Some(status) {
            true => Due::Never,
            false if unseen => Due::Later,
            false => Due::Now,
        }
    }
}

/// Counts patches.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    pub(crate) patched: std::sync::atomic::AtomicU64,
    pub(crate) failed: std::sync::atomic::AtomicU64,
}

struct Writer {
    client: Client,
    written: BTreeMap<ObjectId, Written>,
    /// What was told of whom when a round began last, and who is left of it.
    before: Option<(Outcome, Seen)>,
    left: BTreeSet<ObjectId>,
    /// When nodes were counted anew for all objects.
    turn: u64,
    seed: RandomState,
    bucket: Bucket,
    events: Events,
    balancers: Balancers,
    tally: Arc<Tally>,
}

/// Writes until it is not polled any more.
pub(crate) async fn write(
    client: Client,
    node: String,
    mut seen: watch::Receiver<Option<Seen>>,
    mut outcomes: watch::Receiver<Option<Outcome>>,
    mut nodes: watch::Receiver<Nodes>,
    mut leads: watch::Receiver<bool>,
    tally: Arc<Tally>,
) {
    let mut writer = Writer {
        events: Events::new(client.clone(), &node),
        balancers: Balancers::new(client.clone()),
        client,
        written: BTreeMap::new(),
        before: None,
        left: BTreeSet::new(),
        turn: 0,
        seed: RandomState::new(),
        bucket: Bucket::new(Instant::now()),
        tally,
    };
    loop {
        let leading = *leads.borrow_and_update();
        let outcome = outcomes.borrow_and_update().clone();
        let now = seen.borrow_and_update().clone();
        let mut again = Duration::MAX;
        match (leading, outcome, now) {
            (true, Some(outcome), Some(now)) => {
                let spread = nodes.borrow_and_update().clone();
                again = writer
                    .round(&outcome, &now, &spread, &leads, &outcomes)
                    .await;
            }
            (false, ..) => {
                writer.written.clear();
                writer.before = None;
                writer.balancers.forget();
            }
            _ => {}
        }
        let changed = async {
            tokio::select! {
                changed = leads.changed() => changed,
                changed = outcomes.changed() => changed,
                changed = seen.changed() => changed,
                changed = nodes.changed() => changed,
            }
        };
        if let Ok(Err(_)) = timeout(again, changed).await {
            return;
        }
        // Objects come one by one, and what is missing often comes with the next one.
        tokio::time::sleep(SETTLES).await;
    }
}

impl Writer {
    /// Writes what differs; how long nothing is to be done then. Ends after [`ROUND`] when there is news.
    async fn round(
        &mut self,
        outcome: &Outcome,
        now: &Seen,
        nodes: &Nodes,
        leads: &watch::Receiver<bool>,
        outcomes: &watch::Receiver<Option<Outcome>>,
    ) -> Duration {
        let balanced = self.balancers.keep(outcome, &now.objects).await;
        match self.before.take() {
            Some((before, seen)) => {
                self.left.extend(news(&before, outcome));
                self.left.extend(stirred(&seen, now));
            }
            None => self.left = now.objects.keys().cloned().collect(),
        }
        if self.turn != nodes.turn() {
            self.turn = nodes.turn();
            let ids = now.objects.keys();
            self.left.extend(ids.filter(|id| counted(id.kind)).cloned());
        }
        self.before = Some((outcome.clone(), now.clone()));
        let begun = Instant::now();
        let left: Vec<ObjectId> = self.left.iter().cloned().collect();
        let mut again = if balanced { Duration::MAX } else { AGAIN };
        for id in left {
            let left = match now.objects.get(&id) {
                Some(object) => {
                    let bundle = now.bundle.as_deref();
                    self.bring(object, outcome, bundle, nodes, leads).await
                }
                None => {
                    self.written.remove(&id);
                    None
                }
            };
            match left {
                None => {
                    self.left.remove(&id);
                }
                Some(pause) => again = again.min(pause),
            }
            let news = begun.elapsed() > ROUND && outcomes.has_changed().unwrap_or(false);
            if news || !*leads.borrow() {
                return Duration::MAX;
            }
        }
        self.events.refused(outcome).await;
        again
    }

    /// Says of an object what is to be said of it; when something is left of that, until it is looked at again.
    async fn bring(
        &mut self,
        object: &Arc<Object>,
        outcome: &Outcome,
        bundle: Option<&str>,
        nodes: &Nodes,
        leads: &watch::Receiver<bool>,
    ) -> Option<Duration> {
        let id = &object.id;
        // What was said of another one, or of another state, is said anew soon.
        let read = outcome.seen.objects.get(id);
        if read.is_none_or(|read| !read.same_document(object)) {
            return None;
        }
        let now = Instant::now();
        let spread = match is_counted(object, outcome).then(|| nodes.of(object, now)) {
            None => None,
            Some(Answer::Known(spread)) => Some(spread),
            Some(Answer::Soon) => return Some(PATIENCE),
        };
        // Who is behind now will say so, or will not: both are looked at again.
        let behind = spread.as_ref().and_then(Spread::missing).map(|_| AGAIN);
        let word = word(object, outcome, bundle, spread.as_ref())?;
        let time = timestamp();
        if word.said.merged(object.status().as_ref(), &time).is_none() {
            // It was written and seen, or is there without us: nothing is to be remembered of it.
            self.written.remove(id);
            return behind;
        }
        let (hash, status) = (
            self.seed.hash_one(&word),
            self.hash(object.status.as_ref().map(Packed::text).as_deref()),
        );
        let written = self.written.get(id);
        match written.map_or(Due::Now, |written| written.due(object, hash, status, now)) {
            Due::Never => return behind,
            Due::Later => return Some(AGAIN),
            Due::Now => {}
        }
        tokio::time::sleep(self.bucket.take(now)).await;
        let leads = *leads.borrow();
        match leads && self.patch(object, &word, &time).await {
            true => behind,
            false => Some(AGAIN),
        }
    }

    fn hash(&self, status: Option<&[u8]>) -> u64 {
        self.seed.hash_one(status)
    }

    /// Brings one status up to date; whether it is.
    async fn patch(&mut self, object: &Arc<Object>, word: &Word, time: &str) -> bool {
        use std::sync::atomic::Ordering::Relaxed;
        match timeout(ANSWER, self.attempt(object, &word.said, time)).await {
            Ok(Ok(stored)) => {
                self.tally.patched.fetch_add(1, Relaxed);
                let written = Written {
                    uid: object.uid.clone(),
                    word: self.seed.hash_one(word),
                    over: self.hash(object.status.as_ref().map(Packed::text).as_deref()),
                    stored: stored.map(|stored| self.hash(Some(stored.to_string().as_bytes()))),
                    at: Instant::now(),
                };
                self.written.insert(object.id.clone(), written);
                true
            }
            // Somebody was faster, or it is gone: a watch tells.
            Ok(Err(kube::Error::Api(status))) if matches!(status.code, 404 | 409) => false,
            Ok(Err(error)) => {
                self.tally.failed.fetch_add(1, Relaxed);
                let object = object.id.to_string();
                tracing::warn!(
                    object,
                    error = explain(&error),
                    "the status could not be written"
                );
                false
            }
            Err(_) => {
                self.tally.failed.fetch_add(1, Relaxed);
                tracing::warn!(
                    object = object.id.to_string(),
                    "the status was not written in time"
                );
                false
            }
        }
    }

    /// Reads the object as it is and writes over that. Gives the status that the API server made of it; none if another object has
    /// the name by now.
    async fn attempt(
        &self,
        object: &Object,
        said: &Said,
        time: &str,
    ) -> Result<Option<Value>, kube::Error> {
        let api = api(&self.client, object);
        let live = api.get(&object.id.name).await?;
        if live.metadata.uid.as_deref() != Some(object.uid.to_string().as_str())
            || live.metadata.generation.unwrap_or_default() != object.generation
        {
            return Ok(None);
        }
        let Some(status) = said.merged(live.data.get("status"), time) else {
            return Ok(live.data.get("status").cloned());
        };
        let patch = json!({
            "apiVersion": &*object.api_version,
            "kind": object.id.kind.name(),
            "metadata": { "resourceVersion": live.metadata.resource_version },
            "status": status,
        });
        let params = PatchParams::default();
        let stored = api
            .patch_status(&object.id.name, &params, &Patch::Merge(patch))
            .await?;
        Ok(stored.data.get("status").cloned())
    }
}

/// Where an object is.
fn api(client: &Client, object: &Object) -> Api<DynamicObject> {
    let version = object
        .api_version
        .rsplit_once('/')
        .map_or(&*object.api_version, |(_, version)| version);
    let kind = object.id.kind;
    let kinds = GroupVersionKind::gvk(kind.group(), version, kind.name());
    // The names of all resources that are written to follow the usual rule.
    let resource = ApiResource::from_gvk(&kinds);
    match &*object.id.namespace {
        "" => Api::all_with(client.clone(), &resource),
        namespace => Api::namespaced_with(client.clone(), namespace, &resource),
    }
}

/// Now, as the API writes it.
fn timestamp() -> String {
    Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// Bounds how fast is written.
#[derive(Debug)]
pub(crate) struct Bucket {
    /// When the bucket is full again.
    full: Instant,
}

impl Bucket {
    pub(crate) fn new(now: Instant) -> Self {
        Self { full: now }
    }

    /// Takes one; how long to wait before it may be used.
    pub(crate) fn take(&mut self, now: Instant) -> Duration {
        let one = Duration::from_secs(1) / RATE;
        self.full = self.full.max(now) + one;
        let owed = self.full - now;
        owed.saturating_sub(one * BURST)
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::{BURST, Bucket, RATE};

    #[test]
    fn a_burst_goes_at_once_and_the_rest_at_the_rate() {
        let start = Instant::now();
        let mut bucket = Bucket::new(start);
        for _ in 0..BURST {
            assert_eq!(bucket.take(start), Duration::ZERO);
        }
        let one = Duration::from_secs(1) / RATE;
        assert_eq!(bucket.take(start), one);
        assert_eq!(bucket.take(start), one * 2);
        // Rested long enough, it is full, and no more than that.
        let later = start + Duration::from_secs(3600);
        for _ in 0..BURST {
            assert_eq!(bucket.take(later), Duration::ZERO);
        }
        assert_eq!(bucket.take(later), one);
    }
}
