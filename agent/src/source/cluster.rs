//! The objects of a cluster as documents, each read once for as long as it does not change.
//!
//! Flows in: all objects at one moment. Flows out: a snapshot of all that is right, and what became of each object.

use std::borrow::Borrow;
use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use kubernetes::{Cluster, Kind, Object, ObjectId, Objects, Outcome, Seen};
use snapshot::status::Report;
use snapshot::{Linker, Mistake, Read, Snapshot, SourceFile};
use tokio::sync::watch;

use crate::compile;

mod metrics;

pub use metrics::ClusterMetrics;

/// What was made of the objects.
#[derive(Clone, Debug)]
pub struct Taken {
    /// Everything that could be taken.
    pub snapshot: Snapshot,
    /// Where it came from.
    pub found: Arc<Found>,
    /// Documents that were read for it; the others are as they were.
    pub read: usize,
}

/// What a snapshot was made of, and what became of that.
#[derive(Debug)]
pub struct Found {
    seen: Seen,
    /// What became of every object.
    pub report: Arc<Report>,
}

impl Found {
    /// What to tell those who wrote the objects.
    #[must_use]
    pub fn outcome(&self, active: Result<u32, String>) -> Outcome {
        Outcome {
            seen: self.seen.clone(),
            report: Arc::clone(&self.report),
            active,
        }
    }
}

/// Reads what changed.
#[derive(Default)]
pub struct Reader {
    objects: Objects,
    reads: BTreeSet<ByPath>,
    /// What is wrong with objects as they are that nobody finds who reads them.
    refused: BTreeMap<ObjectId, Vec<Mistake>>,
    /// Something changed since on which it may depend whether these are wrong.
    doubtful: bool,
    linker: Linker,
}

impl Reader {
    /// Takes the objects of a moment; those that are as they were last time are not read again.
    pub fn take(&mut self, seen: Seen) -> Taken {
        let mut read = 0_usize;
        let mut decisive = false;
        for change in self.objects.diff(&seen.objects) {
            match change {
                imbl::ordmap::DiffItem::Update {
                    old: (_, old),
                    new: (_, new),
                } if old.same_document(new) => {}
                imbl::ordmap::DiffItem::Add(id, object)
                | imbl::ordmap::DiffItem::Update {
                    new: (id, object), ..
                } => {
                    self.refused.remove(id);
                    decisive |= decides(id.kind);
                    if id.kind.is_document() {
                        read += 1;
                        self.reads.replace(ByPath(document(object, &[])));
                    }
                }
                imbl::ordmap::DiffItem::Remove(id, _) => {
                    self.refused.remove(id);
                    decisive |= decides(id.kind);
                    self.reads.remove(path(id).as_str());
                }
            }
        }
        self.objects = seen.objects.clone();
        self.doubtful = !self.refused.is_empty() && (self.doubtful || decisive);
        self.link(seen, read)
    }

    /// Takes the objects of the same moment with those again that were refused, and without those that are still wrong. What is
    /// said of one may be a matter of another: a route whose key is out of a token is right as soon as its policy is there.
    pub fn reconsider(&mut self, taken: Taken) -> Taken {
        self.doubtful = false;
        let refused = std::mem::take(&mut self.refused);
        for id in refused.keys() {
            if let Some(object) = self.objects.get(id) {
                self.reads.replace(ByPath(document(object, &[])));
            }
        }
        let seen = taken.found.seen.clone();
        let mut taken = self.link(seen.clone(), taken.read + refused.len());
        // Nobody is told of a snapshot that is refused anyway.
        while let Err(mistakes) = compile::route::compile(&taken.snapshot, 0) {
            match self.without(seen.clone(), &mistakes) {
                Some(others) => taken = others,
                None => break,
            }
        }
        taken
    }

    /// Takes the objects of the same moment without those of which no tables could be made, and closes what these would have closed.
    /// None: none of the mistakes is news.
    pub fn without(&mut self, seen: Seen, mistakes: &[Mistake]) -> Option<Taken> {
        let mut news: BTreeSet<ObjectId> = BTreeSet::new();
        let named: HashSet<&str> = mistakes.iter().map(|one| &*one.source.file).collect();
        let ids = self.objects.keys().map(|id| (path(id), id));
        let ids: HashMap<String, &ObjectId> = ids
            .filter(|(path, _)| named.contains(path.as_str()))
            .collect();
        for mistake in mistakes {
            let Some(id) = ids.get(&*mistake.source.file).copied() else {
                continue;
            };
            let known = self.refused.entry(id.clone()).or_default();
            if !known.contains(mistake) {
                known.push(mistake.clone());
                news.insert(id.clone());
            }
        }
        for id in &news {
            if let (Some(object), Some(refused)) = (self.objects.get(id), self.refused.get(id)) {
                self.reads.replace(ByPath(document(object, refused)));
            }
        }
        (!news.is_empty()).then(|| self.link(seen, news.len()))
    }

    fn link(&mut self, seen: Seen, read: usize) -> Taken {
        let reads = self.reads.iter().map(|ByPath(read)| Arc::clone(read));
        let reads: Vec<_> = reads.collect();
        let taken = self.linker.link(&reads);
        tracing::debug!(objects = reads.len(), read, "objects were taken");
        Taken {
            snapshot: taken.snapshot,
            found: Arc::new(Found {
                seen,
                report: Arc::new(taken.report),
            }),
            read,
        }
    }
}

/// Whether it may depend on objects of this kind what can be made of others. Pods and their addresses change all the time, and
/// nothing that is compiled for the router is wrong because of them.
fn decides(kind: Kind) -> bool {
    !matches!(kind, Kind::Pod | Kind::EndpointSlice)
}

/// What an object says, in the order and by the name of its path.
struct ByPath(Arc<Read>);

impl Borrow<str> for ByPath {
    fn borrow(&self) -> &str {
        self.0.path()
    }
}

impl PartialEq for ByPath {
    fn eq(&self, other: &Self) -> bool {
        self.0.path() == other.0.path()
    }
}

impl Eq for ByPath {}

impl PartialOrd for ByPath {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for ByPath {
    fn cmp(&self, other: &Self) -> Ordering {
        self.0.path().cmp(other.0.path())
    }
}

/// Where an object would be if it were a file.
fn path(id: &ObjectId) -> String {
    let ObjectId {
        kind,
        namespace,
        name,
    } = id;
    match &**namespace {
        "" => format!("{kind}/{name}"),
        namespace => format!("{kind}/{namespace}/{name}"),
    }
}

/// Reads an object, which is refused if there are mistakes.
fn document(object: &Object, refused: &[Mistake]) -> Arc<Read> {
    let file = SourceFile {
        path: path(&object.id),
        bytes: object.document.text().into_owned(),
    };
    Arc::new(match refused {
        [] => snapshot::read(&file),
        some => snapshot::refused(&file, some),
    })
}

/// From looking at refused objects once more to the next time, if that took little: there may be thousands of changes, and one of the
/// refused may stay wrong.
const REST: Duration = Duration::from_secs(1);
/// The share of the time that goes into that is no more than one of so many.
const SHARE: u32 = 10;

/// Changes of a cluster's documents, one after the other.
pub struct ClusterWatch {
    seen: watch::Receiver<Option<Seen>>,
    reader: Reader,
    documents: Option<u64>,
    /// When refused objects may be looked at once more.
    rested: Instant,
}

impl ClusterWatch {
    /// Nothing is read yet.
    #[must_use]
    pub fn new(cluster: &Cluster) -> Self {
        Self {
            seen: cluster.seen(),
            reader: Reader::default(),
            documents: None,
            rested: Instant::now(),
        }
    }

    /// How many changes of objects were seen, of documents or not.
    #[must_use]
    pub fn changes(&self) -> u64 {
        self.seen.borrow().as_ref().map_or(0, |seen| seen.changes)
    }

    /// What was taken last without the objects of which no tables could be made; none: that would make no difference.
    pub fn without(&mut self, taken: &Found, mistakes: &[Mistake]) -> Option<Taken> {
        let seen = taken.seen.clone();
        tokio::task::block_in_place(|| self.reader.without(seen, mistakes))
    }

    /// Waits until a document differs, and reads what does. None when nobody follows the cluster any more. A dropped future
    /// loses nothing.
    pub async fn changed(&mut self) -> Option<Taken> {
        loop {
            let news = self.seen.wait_for(|seen| {
                seen.as_ref()
                    .is_some_and(|seen| Some(seen.documents) != self.documents)
            });
            let rests = match self.reader.doubtful {
                true => self.rested.saturating_duration_since(Instant::now()),
                false => Duration::MAX,
            };
            let seen = match tokio::time::timeout(rests, news).await {
                Ok(news) => Some(news.ok()?.clone()),
                Err(_) => None,
            };
            let seen = seen.unwrap_or_else(|| self.seen.borrow().clone());
            let Some(seen) = seen else {
                continue;
            };
            let differs = self.documents != Some(seen.documents);
            self.documents = Some(seen.documents);
            let (taken, mended) = tokio::task::block_in_place(|| self.take(seen));
            if differs || mended {
                return Some(taken);
            }
        }
    }

    /// What there is, and whether other objects are refused than before.
    fn take(&mut self, seen: Seen) -> (Taken, bool) {
        let taken = self.reader.take(seen);
        let begun = Instant::now();
        if !self.reader.doubtful || begun < self.rested {
            return (taken, false);
        }
        let before = self.reader.refused.clone();
        let taken = self.reader.reconsider(taken);
        self.rested = Instant::now() + REST.max(begun.elapsed() * SHARE);
        (taken, self.reader.refused != before)
    }
}

#[cfg(test)]
mod tests;
