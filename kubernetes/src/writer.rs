//! Writes status, for as long as this agent holds the lease.
//!
//! Flows in: what became of the objects, and the objects as they are now. Flows out: a patch for each status that says something else
//! than it should, and an event for each refusal. It compares wanted with found at every change, so that what somebody else overwrote
//! comes back; a patch names the version that it was made from, so that nobody's words get lost.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{BuildHasher as _, RandomState};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use k8s_openapi::jiff::Timestamp;
use kube::api::{Patch, PatchParams};
use kube::core::{ApiResource, DynamicObject, GroupVersionKind};
use kube::{Api, Client};
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::timeout;

use crate::cluster::Seen;
use crate::error::explain;
use crate::events::Events;
use crate::failures::Failures;
use crate::kinds::Kind;
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
pub(crate) const SETTLES: Duration = Duration::from_millis(50);
/// How long what was found last is written although there is news: with news all the time nothing would get written else.
const ROUND: Duration = Duration::from_millis(500);
/// When a patch is tried again whose effect was not seen.
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

/// Writes status.
pub(crate) struct Writer {
    client: Client,
    written: BTreeMap<ObjectId, Written>,
    /// What was told of whom when a round began last, and who is left of it.
    before: Option<(Outcome, Seen)>,
    left: BTreeSet<ObjectId>,
    /// When nodes were counted anew for all objects.
    turn: u64,
    seed: RandomState,
    bucket: Arc<Bucket>,
    /// Objects whose status could not be written, and kinds of which one's was not written in time: others of such a kind would hang
    /// one after the other while the rest waits.
    failures: Failures<ObjectId>,
    hanging: Failures<Kind>,
    events: Events,
    tally: Arc<Tally>,
}

/// Writes until it is not polled any more.
pub(crate) async fn write(
    mut writer: Writer,
    mut seen: watch::Receiver<Option<Seen>>,
    mut outcomes: watch::Receiver<Option<Outcome>>,
    mut nodes: watch::Receiver<Nodes>,
    mut leads: watch::Receiver<bool>,
) {
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
                writer.failures = Failures::default();
                writer.hanging = Failures::default();
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
    pub(crate) fn new(client: Client, node: &str, bucket: Arc<Bucket>, tally: Arc<Tally>) -> Self {
        Self {
            events: Events::new(client.clone(), node),
            client,
            written: BTreeMap::new(),
            before: None,
            left: BTreeSet::new(),
            turn: 0,
            seed: RandomState::new(),
            bucket,
            failures: Failures::default(),
            hanging: Failures::default(),
            tally,
        }
    }

    /// Writes what differs; how long nothing is to be done then. Ends after [`ROUND`] when there is news.
    async fn round(
        &mut self,
        outcome: &Outcome,
        now: &Seen,
        nodes: &Nodes,
        leads: &watch::Receiver<bool>,
        outcomes: &watch::Receiver<Option<Outcome>>,
    ) -> Duration {
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
        let mut again = Duration::MAX;
        for id in left {
            let left = match now.objects.get(&id) {
                Some(object) => {
                    let bundle = now.bundle.as_deref();
                    self.bring(object, outcome, bundle, nodes, leads).await
                }
                None => {
                    self.written.remove(&id);
                    self.failures.forget(&id);
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
            self.failures.forget(id);
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
        let waits = [
            self.failures.wait(id, hash, now),
            self.hanging.wait(&id.kind, 0, now),
        ];
        if let Some(pause) = waits.into_iter().flatten().max() {
            return Some(pause);
        }
        tokio::time::sleep(self.bucket.take(now)).await;
        match *leads.borrow() {
            true => {}
            false => return Some(AGAIN),
        }
        match self.patch(object, &word, &time).await {
            None => behind,
            Some(pause) => Some(pause),
        }
    }

    fn hash(&self, status: Option<&[u8]>) -> u64 {
        self.seed.hash_one(status)
    }

    /// Brings one status up to date; if that fails, until it is tried again.
    async fn patch(&mut self, object: &Arc<Object>, word: &Word, time: &str) -> Option<Duration> {
        use std::sync::atomic::Ordering::Relaxed;
        let (id, hash) = (&object.id, self.seed.hash_one(word));
        let answer = timeout(ANSWER, self.attempt(object, &word.said, time)).await;
        let now = Instant::now();
        if answer.is_ok() {
            self.hanging.forget(&id.kind);
        }
        let error = match answer {
            Ok(Ok(stored)) => {
                self.tally.patched.fetch_add(1, Relaxed);
                let written = Written {
                    uid: object.uid.clone(),
                    word: hash,
                    over: self.hash(object.status.as_ref().map(Packed::text).as_deref()),
                    stored: stored.map(|stored| self.hash(Some(stored.to_string().as_bytes()))),
                    at: now,
                };
                self.written.insert(id.clone(), written);
                self.failures.forget(id);
                return None;
            }
            // Somebody was faster, or it is gone: a watch tells.
            Ok(Err(kube::Error::Api(status))) if matches!(status.code, 404 | 409) => {
                let (_, pause) = self.failures.failed(id, hash, &status.message, now);
                return Some(pause);
            }
            Ok(Err(error)) => explain(&error),
            Err(_) => {
                self.hanging.failed(&id.kind, 0, "", now);
                "no answer in time".to_owned()
            }
        };
        self.tally.failed.fetch_add(1, Relaxed);
        let (news, pause) = self.failures.failed(id, hash, &error, now);
        if news {
            let object = id.to_string();
            tracing::warn!(object, error, "the status could not be written");
        }
        Some(pause)
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
#[derive(Debug, Default)]
pub(crate) struct Bucket {
    /// When the bucket is full again.
    full: Mutex<Option<Instant>>,
}

impl Bucket {
    /// Takes one; how long to wait before it may be used.
    pub(crate) fn take(&self, now: Instant) -> Duration {
        let one = Duration::from_secs(1) / RATE;
        let mut full = self.full.lock().unwrap_or_else(PoisonError::into_inner);
        let after = full.map_or(now, |full| full.max(now)) + one;
        *full = Some(after);
        (after - now).saturating_sub(one * BURST)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::{Duration, Instant};

    use serde_json::json;
    use snapshot::status::{ClassStatus, Report};
    use tokio::sync::watch;

    use super::{BURST, Bucket, RATE, Writer};
    use crate::cluster::Seen;
    use crate::fake::{Answer, server};
    use crate::kinds::Kind;
    use crate::nodes::Nodes;
    use crate::object::{Object, ObjectId};
    use crate::status::Outcome;
    use crate::store::Objects;

    #[tokio::test]
    async fn a_status_that_is_refused_is_not_written_at_every_change() {
        let (client, asked) = server(|_| Answer::Json(500, json!({
            "kind": "Status", "apiVersion": "v1", "status": "Failure", "code": 500, "message": "a webhook", "reason": "InternalError"
        })))
        .await;
        let class = |name: &str, generation| Object {
            id: ObjectId {
                kind: Kind::GatewayClass,
                namespace: "".into(),
                name: name.into(),
            },
            api_version: "gateway.networking.k8s.io/v1".into(),
            uid: "u".into(),
            generation,
            document: b"{}".as_slice().into(),
            status: None,
        };
        let outcome = |generation| {
            let classes = [class("a", generation), class("b", 1)];
            let objects = classes.map(|class| (class.id.clone(), Arc::new(class)));
            let status = ClassStatus {
                generation: None,
                conditions: Vec::new(),
            };
            Outcome {
                seen: Seen {
                    objects: Objects::from_iter(objects),
                    documents: 1,
                    changes: 1,
                    bundle: None,
                    kept: false,
                    astray: false,
                },
                report: Arc::new(Report {
                    classes: ["a", "b"]
                        .map(|name| (name.to_owned(), status.clone()))
                        .into(),
                    ..Report::default()
                }),
                active: Ok(1),
            }
        };
        let tally = Arc::default();
        let mut writer = Writer::new(client, "node-1", Arc::new(Bucket::default()), tally);
        let (_lead, leads) = watch::channel(true);
        let (_outcomes, outcomes) = watch::channel(None);
        let nodes = Nodes::new();
        // Whatever else changes, each is tried once for a while.
        let first = outcome(1);
        for _ in 0..10 {
            let again = writer
                .round(&first, &first.seen, &nodes, &leads, &outcomes)
                .await;
            assert!(again < Duration::from_secs(1));
        }
        assert_eq!(asked.all().len(), 2, "{:?}", asked.all());
        // What is to be said now may go well: it is tried soon.
        let next = outcome(2);
        writer
            .round(&next, &next.seen, &nodes, &leads, &outcomes)
            .await;
        tokio::time::sleep(Duration::from_millis(300)).await;
        writer
            .round(&next, &next.seen, &nodes, &leads, &outcomes)
            .await;
        assert!(asked.all().len() > 2);
    }

    #[test]
    fn a_burst_goes_at_once_and_the_rest_at_the_rate() {
        let start = Instant::now();
        let bucket = Bucket::default();
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
