//! Writes status, for as long as this agent holds the lease.
//!
//! Flows in: what became of the objects, and the objects as they are now. Flows out: a patch for each status that says something else
//! than it should, and an event for each refusal. It compares wanted with found at every change, so that what somebody else overwrote
//! comes back; a patch names the version that it was made from, so that nobody's words get lost.

use std::collections::BTreeMap;
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
use crate::object::{Object, ObjectId};
use crate::status::{Outcome, Said, Word, words};

/// Patches a second, on the average.
const RATE: u32 = 50;
/// Patches at once.
const BURST: u32 = 100;
/// Until the API server must answer.
const ANSWER: Duration = Duration::from_secs(10);
/// When a patch is tried again that failed, or whose effect was not seen.
const AGAIN: Duration = Duration::from_secs(5);

/// What was written of an object last.
struct Written {
    uid: Arc<str>,
    word: Word,
    /// The status that it was written over, and the one that the API server made of it: it leaves out what its kinds do not have.
    over: Option<Arc<Value>>,
    stored: Option<Value>,
    at: Instant,
}

impl Written {
    /// Whether there is nothing to write although the status differs from what is wanted.
    fn settles(&self, object: &Object, word: &Word, now: Instant) -> bool {
        if self.uid != object.uid || self.word != *word {
            return false;
        }
        let stored = self.stored.is_some() && object.status.as_deref() == self.stored.as_ref();
        let unseen = object.status == self.over && now.saturating_duration_since(self.at) < AGAIN;
        stored || unseen
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
    mut leads: watch::Receiver<bool>,
    tally: Arc<Tally>,
) {
    let mut writer = Writer {
        events: Events::new(client.clone(), &node),
        balancers: Balancers::new(client.clone()),
        client,
        written: BTreeMap::new(),
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
                let done = writer.round(&outcome, &now, &leads, &outcomes).await;
                if !done {
                    again = AGAIN;
                }
            }
            (false, ..) => {
                writer.written.clear();
                writer.balancers.forget();
            }
            _ => {}
        }
        let changed = async {
            tokio::select! {
                changed = leads.changed() => changed,
                changed = outcomes.changed() => changed,
                changed = seen.changed() => changed,
            }
        };
        if let Ok(Err(_)) = timeout(again, changed).await {
            return;
        }
    }
}

impl Writer {
    /// Writes what differs; whether nothing is left. Ends early when there is news.
    async fn round(
        &mut self,
        outcome: &Outcome,
        now: &Seen,
        leads: &watch::Receiver<bool>,
        outcomes: &watch::Receiver<Option<Outcome>>,
    ) -> bool {
        self.written.retain(|id, _| now.objects.contains_key(id));
        let mut done = self.balancers.keep(outcome, &now.objects).await;
        for (id, word) in words(outcome) {
            let Some(object) = now.objects.get(&id) else {
                continue;
            };
            let read = outcome.seen.objects.get(&id);
            // What was said of another one, or of another state, is said anew soon.
            if read.is_none_or(|read| !read.same_document(object)) {
                continue;
            }
            let time = timestamp();
            if word.said.merged(object.status.as_deref(), &time).is_none() {
                continue;
            }
            let settled = self
                .written
                .get(&id)
                .is_some_and(|written| written.settles(object, &word, Instant::now()));
            if settled {
                continue;
            }
            tokio::time::sleep(self.bucket.take(Instant::now())).await;
            if !*leads.borrow() {
                return true;
            }
            done &= self.patch(object, word, &time).await;
            if outcomes.has_changed().unwrap_or(false) {
                return true;
            }
        }
        self.events.refused(outcome).await;
        done
    }

    /// Brings one status up to date; whether it is.
    async fn patch(&mut self, object: &Arc<Object>, word: Word, time: &str) -> bool {
        use std::sync::atomic::Ordering::Relaxed;
        match timeout(ANSWER, self.attempt(object, &word.said, time)).await {
            Ok(Ok(stored)) => {
                self.tally.patched.fetch_add(1, Relaxed);
                let written = Written {
                    uid: Arc::clone(&object.uid),
                    word,
                    over: object.status.clone(),
                    stored,
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
        if live.metadata.uid.as_deref() != Some(&*object.uid)
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
