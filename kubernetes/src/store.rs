//! What is known of the cluster, and how much of it is to be believed.
//!
//! Flows in: lists and events of each kind, failures, and the time. Flows out: all objects at one moment, and since when which kind
//! has not been heard of. No I/O and no clock.
//!
//! An API server that has lost its data, or that answers for another cluster, tells an empty list without a word of excuse.
//! To take that at its word would end all traffic at once. So a list that lacks more than half of what is known is asked for
//! a second time, [`SECOND_LOOK`] later, before what it lacks is forgotten. What it has is taken at once, and what a watch
//! says was deleted is believed: it is one object at a time, and somebody deleted it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::ops::Bound;
use std::sync::Arc;
use std::time::{Duration, Instant};

use imbl::OrdMap;
use serde_json::Value;

use crate::error::Unheard;
use crate::kinds::Kind;
use crate::object::{Object, ObjectId};
use crate::uid::Uid;

/// Until a list that lacks more than half of what is known is believed.
pub const SECOND_LOOK: Duration = Duration::from_secs(5);

/// How long the second list may take before nobody waits for it any more.
const ANSWERS: Duration = Duration::from_secs(5);

/// When the endpoints of the API server may be others than those that were heard of last.
const LOST: Duration = Duration::from_secs(60);

/// All objects.
pub type Objects = OrdMap<ObjectId, Arc<Object>>;

/// Whether a list was taken as it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Belief {
    /// What it lacks is forgotten.
    Whole,
    /// What it has is taken; what it lacks stays until it has been listed again, this much later.
    AskAgain(Duration),
}

/// What is known of one kind.
#[derive(Debug, Default)]
struct Watched {
    /// It was listed since the start.
    listed: bool,
    /// When it was first listed without much of what is known.
    doubted: Option<Instant>,
    /// Nothing can be heard.
    silent: Option<Silent>,
}

/// Since when nothing could be heard, and why.
#[derive(Debug)]
struct Silent {
    since: Instant,
    error: String,
    /// Since when there was not even a refusal.
    mute: Option<Instant>,
}

impl Silent {
    /// After one more failure; whether it is the first one.
    fn goes_on(silent: &mut Option<Self>, unheard: Unheard, now: Instant) -> bool {
        let before = silent.as_ref();
        let fresh = before.is_none();
        let mute = before.and_then(|before| before.mute).unwrap_or(now);
        *silent = Some(Self {
            since: before.map_or(now, |before| before.since),
            error: unheard.error,
            mute: (!unheard.answered).then_some(mute),
        });
        fresh
    }
}

/// A kind that nothing can be heard of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Silence {
    /// Which.
    pub kind: Kind,
    /// For how long.
    pub lasts: Duration,
    /// What was answered last.
    pub error: String,
}

/// What is known.
#[derive(Debug, Default)]
pub(crate) struct Store {
    objects: Objects,
    kinds: BTreeMap<Kind, Watched>,
    /// What the API server serves was asked once at least.
    served: bool,
    /// It cannot be asked.
    silent: Option<Silent>,
    /// By which address it is reached.
    server: Option<IpAddr>,
    /// Its own `Service` is left out.
    astray: bool,
    /// The version of the Gateway API's kinds that are installed.
    bundle: Option<Arc<str>>,
    /// Counts changes of documents.
    documents: u64,
    /// Counts changes of anything.
    changes: u64,
}

impl Store {
    /// Starts with what was known at another time.
    pub(crate) fn kept(objects: Vec<Object>) -> Self {
        // They were kept in their order.
        let mut last: Option<Arc<Object>> = None;
        let objects = objects.into_iter().map(|object| {
            let object = Arc::new(match &last {
                Some(neighbour) => object.beside(neighbour),
                None => object,
            });
            last = Some(Arc::clone(&object));
            (object.id.clone(), object)
        });
        Self {
            objects: objects.collect(),
            ..Self::default()
        }
    }

    /// The address by which the API server is reached.
    pub(crate) fn reached_at(&mut self, server: Option<IpAddr>) {
        self.server = server;
    }

    /// All objects to go by. Cheap: the copy shares its memory.
    pub(crate) fn objects(&self) -> Objects {
        let mut objects = self.objects.clone();
        if let Some(own) = self.astray.then(|| self.own_service()).flatten() {
            objects.remove(&own);
        }
        objects
    }

    /// Leaves the API server's own `Service` out while its endpoints may be others by now, if it is reached by that: connections to it,
    /// those that would hear of others too, would be led to where it was. It is left out every other [`LOST`] only, as there may be
    /// nobody else who leads them. Whether it is left out, if that changed.
    pub(crate) fn beware(&mut self, now: Instant) -> Option<bool> {
        let astray = self.is_lost(now) && self.own_service().is_some();
        if astray == self.astray {
            return None;
        }
        self.astray = astray;
        self.documents += 1;
        self.changes += 1;
        Some(astray)
    }

    /// Whether the API server's own `Service` is left out.
    pub(crate) fn is_astray(&self) -> bool {
        self.astray
    }

    /// Whether nobody could be asked where endpoints are, since the start or for long. One that refuses to tell is where it was.
    fn is_lost(&self, now: Instant) -> bool {
        let kinds = [Kind::Service, Kind::EndpointSlice].map(|kind| self.kinds.get(&kind));
        let listed = |watched: &Option<&Watched>| watched.is_some_and(|watched| watched.listed);
        let listed = kinds.iter().all(listed);
        let silent = kinds.iter().flatten();
        let silent = silent.filter_map(|watched| watched.silent.as_ref());
        let whole = self.silent.as_ref().filter(|_| !listed);
        let silent: Vec<&Silent> = silent.chain(whole).collect();
        let mute = silent.iter().filter_map(|silent| silent.mute).min();
        mute.is_some_and(|since| {
            let turns = now.saturating_duration_since(since).as_secs() / LOST.as_secs();
            turns % 2 == u64::from(listed)
        })
    }

    /// The API server's own `Service`, if it is reached by that.
    fn own_service(&self) -> Option<ObjectId> {
        let id = ObjectId {
            kind: Kind::Service,
            namespace: "default".into(),
            name: "kubernetes".into(),
        };
        let service = self.objects.get(&id)?;
        let service: Value = serde_json::from_slice(&service.document.text()).ok()?;
        let spec = &service["spec"];
        let addresses = spec["clusterIPs"].as_array().into_iter().flatten();
        let mut addresses = addresses.chain([&spec["clusterIP"]]);
        let server = self.server?;
        let is_server =
            |address: &Value| address.as_str().and_then(|text| text.parse().ok()) == Some(server);
        addresses.any(is_server).then_some(id)
    }

    /// How often documents, and how often anything changed.
    pub(crate) fn counts(&self) -> (u64, u64) {
        (self.documents, self.changes)
    }

    /// Whether every kind that the API server serves was listed.
    pub(crate) fn complete(&self) -> bool {
        self.served && self.kinds.values().all(|watched| watched.listed)
    }

    /// Until when a first list may be asked for once more before what it lacks is forgotten; none if every kind is believed, or is
    /// silent. What was kept and what is there now are not of one moment meanwhile.
    pub(crate) fn doubts_until(&self, now: Instant) -> Option<Instant> {
        let kinds = self.kinds.values();
        let doubted = kinds.filter(|watched| !watched.listed && watched.silent.is_none());
        let until = doubted.filter_map(|watched| Some(watched.doubted? + SECOND_LOOK + ANSWERS));
        until.filter(|until| *until > now).max()
    }

    /// The API server said which kinds it serves; those in `fresh` are watched from now on.
    pub(crate) fn serves(&mut self, fresh: &BTreeSet<Kind>) {
        for kind in fresh {
            self.kinds.entry(*kind).or_default();
        }
        self.silent = None;
        self.served = true;
    }

    /// A kind that is not served any more has no objects, if it stays so.
    pub(crate) fn gone(&mut self, kind: Kind, now: Instant) -> Belief {
        let belief = self.listed(kind, Vec::new(), now);
        if belief == Belief::Whole {
            self.kinds.remove(&kind);
        }
        belief
    }

    /// A kind has objects perhaps, and is served in versions only that nobody here reads. What is known of them stays; whether
    /// that is news.
    pub(crate) fn unreadable(&mut self, kind: Kind, versions: &str, now: Instant) -> bool {
        let known = self.of(kind).next().is_some();
        if !known && !kind.restricts() {
            return false;
        }
        let read = kind.versions().join(", ");
        let why = format!("it is served as {versions}, and read as {read} only");
        let why = Unheard::refusal(why);
        let news = self.failed(kind, why, now);
        if let Some(watched) = self.kinds.get_mut(&kind) {
            watched.listed |= known;
        }
        news
    }

    /// Kinds that are not in `served` have no objects, if it stays so: some may be left of what was kept, or of another cluster.
    /// Gives when to look again.
    pub(crate) fn unserved(&mut self, served: &BTreeSet<Kind>, now: Instant) -> Option<Duration> {
        let kinds = Kind::ALL.iter().filter(|kind| !served.contains(kind));
        let left: Vec<Kind> = kinds
            .copied()
            .filter(|kind| self.kinds.contains_key(kind) || self.of(*kind).next().is_some())
            .collect();
        let doubts = left
            .into_iter()
            .filter_map(|kind| match self.gone(kind, now) {
                Belief::Whole => None,
                Belief::AskAgain(pause) => Some(pause),
            });
        doubts.max()
    }

    /// All objects of a kind.
    pub(crate) fn listed(&mut self, kind: Kind, objects: Vec<Object>, now: Instant) -> Belief {
        let names: BTreeSet<ObjectId> = objects.iter().map(|object| object.id.clone()).collect();
        let mut known = 0;
        let mut lacking = Vec::new();
        for id in self.of(kind) {
            known += 1;
            if !names.contains(id) {
                lacking.push(id.clone());
            }
        }
        for object in objects {
            self.applied(object);
        }
        let watched = self.kinds.entry(kind).or_default();
        watched.silent = None;
        if lacking.len() * 2 > known {
            let since = *watched.doubted.get_or_insert(now);
            let waited = now.saturating_duration_since(since);
            if waited < SECOND_LOOK {
                tracing::warn!(
                    %kind,
                    known,
                    lacking = lacking.len(),
                    "a list lacks more than half of what is known; it is asked for once more before that is forgotten"
                );
                return Belief::AskAgain(SECOND_LOOK - waited);
            }
        }
        watched.doubted = None;
        watched.listed = true;
        for id in lacking {
            self.forget(&id);
        }
        Belief::Whole
    }

    /// An object is new or has changed.
    pub(crate) fn applied(&mut self, object: Object) {
        self.heard(object.id.kind);
        let before: (Bound<&ObjectId>, _) = (Bound::Unbounded, Bound::Excluded(&object.id));
        let object = match self.objects.range::<_, ObjectId>(before).next_back() {
            Some((_, neighbour)) => object.beside(neighbour),
            None => object,
        };
        let object = match self.objects.get(&object.id) {
            Some(before) => {
                let object = object.sharing(before);
                if object == **before {
                    return;
                }
                if !object.same_document(before) {
                    self.documents += 1;
                }
                object
            }
            None => {
                self.documents += 1;
                object
            }
        };
        self.changes += 1;
        self.objects.insert(object.id.clone(), Arc::new(object));
    }

    /// The object with this identity was deleted. Another one may have its name by now.
    pub(crate) fn deleted(&mut self, id: &ObjectId, uid: &Uid) {
        self.heard(id.kind);
        let known = self.objects.get(id);
        if known.is_some_and(|known| known.uid == *uid) {
            self.forget(id);
        }
    }

    fn forget(&mut self, id: &ObjectId) {
        if self.objects.remove(id).is_some() {
            self.documents += 1;
            self.changes += 1;
        }
    }

    /// A kind is watched without trouble.
    pub(crate) fn heard(&mut self, kind: Kind) {
        if let Some(watched) = self.kinds.get_mut(&kind) {
            watched.silent = None;
        }
    }

    /// A kind could not be listed or watched; whether that is news.
    pub(crate) fn failed(&mut self, kind: Kind, unheard: Unheard, now: Instant) -> bool {
        let watched = self.kinds.entry(kind).or_default();
        Silent::goes_on(&mut watched.silent, unheard, now)
    }

    /// What the API server serves could not be asked; whether that is news.
    pub(crate) fn unreachable(&mut self, unheard: Unheard, now: Instant) -> bool {
        Silent::goes_on(&mut self.silent, unheard, now)
    }

    /// The version of the Gateway API's kinds that are installed.
    pub(crate) fn installed(&mut self, bundle: Option<Arc<str>>) {
        if self.bundle != bundle {
            self.bundle = bundle;
            self.changes += 1;
        }
    }

    /// As it was last told.
    pub(crate) fn bundle(&self) -> Option<Arc<str>> {
        self.bundle.clone()
    }

    /// Kinds that nothing can be heard of.
    pub(crate) fn silences(&self, now: Instant) -> Vec<Silence> {
        let kinds = self.kinds.iter();
        kinds
            .filter_map(|(kind, watched)| {
                let silent = watched.silent.as_ref()?;
                Some(Silence {
                    kind: *kind,
                    lasts: now.saturating_duration_since(silent.since),
                    error: silent.error.clone(),
                })
            })
            .collect()
    }

    /// For how long the API server as a whole could not be asked, and why.
    pub(crate) fn unreachable_for(&self, now: Instant) -> Option<(Duration, String)> {
        let silent = self.silent.as_ref()?;
        let lasts = now.saturating_duration_since(silent.since);
        Some((lasts, silent.error.clone()))
    }

    /// Kinds that are watched, and how many objects of each are known.
    pub(crate) fn tally(&self) -> BTreeMap<Kind, usize> {
        let mut tally: BTreeMap<Kind, usize> = self.kinds.keys().map(|kind| (*kind, 0)).collect();
        for id in self.objects.keys() {
            *tally.entry(id.kind).or_default() += 1;
        }
        tally
    }

    fn of(&self, kind: Kind) -> impl Iterator<Item = &ObjectId> {
        let first = ObjectId {
            kind,
            namespace: "".into(),
            name: "".into(),
        };
        let rest = self.objects.range(first..);
        rest.map(|(id, _)| id).take_while(move |id| id.kind == kind)
    }
}

#[cfg(test)]
mod tests;
