//! The objects of a cluster as documents, each read once for as long as it does not change.
//!
//! Flows in: all objects at one moment. Flows out: a snapshot of all that is right, and what became of each object.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use kubernetes::{Cluster, Object, ObjectId, Objects, Outcome, Seen};
use snapshot::status::Report;
use snapshot::{Linker, Mistake, Read, Snapshot, SourceFile};
use tokio::sync::watch;

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
    reads: BTreeMap<ObjectId, Arc<Read>>,
    /// What is wrong with objects as they are that nobody finds who reads them.
    refused: BTreeMap<ObjectId, Vec<Mistake>>,
    linker: Linker,
}

impl Reader {
    /// Takes the objects of a moment; those that are as they were last time are not read again.
    pub fn take(&mut self, seen: Seen) -> Taken {
        let mut read = 0_usize;
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
                    if id.kind.is_document() {
                        read += 1;
                        self.reads.insert(id.clone(), document(object, &[]));
                    }
                }
                imbl::ordmap::DiffItem::Remove(id, _) => {
                    self.refused.remove(id);
                    self.reads.remove(id);
                }
            }
        }
        self.objects = seen.objects.clone();
        self.link(seen, read)
    }

    /// Takes the objects of the same moment without those of which no tables could be made, and closes what these would have closed.
    /// None: none of the mistakes is news.
    pub fn without(&mut self, seen: Seen, mistakes: &[Mistake]) -> Option<Taken> {
        let mut news: BTreeSet<ObjectId> = BTreeSet::new();
        for mistake in mistakes {
            let mut reads = self.reads.iter();
            let Some((id, _)) = reads.find(|(_, read)| *read.path() == *mistake.source.file) else {
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
                self.reads.insert(id.clone(), document(object, refused));
            }
        }
        (!news.is_empty()).then(|| self.link(seen, news.len()))
    }

    fn link(&mut self, seen: Seen, read: usize) -> Taken {
        let reads: Vec<_> = self.reads.values().cloned().collect();
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

/// Reads an object, which is refused if there are mistakes.
fn document(object: &Object, refused: &[Mistake]) -> Arc<Read> {
    let ObjectId {
        kind,
        namespace,
        name,
    } = &object.id;
    let path = match &**namespace {
        "" => format!("{kind}/{name}"),
        namespace => format!("{kind}/{namespace}/{name}"),
    };
    let file = SourceFile {
        path,
        bytes: object.document.to_vec(),
    };
    Arc::new(match refused {
        [] => snapshot::read(&file),
        some => snapshot::refused(&file, some),
    })
}

/// Changes of a cluster's documents, one after the other.
pub struct ClusterWatch {
    seen: watch::Receiver<Option<Seen>>,
    reader: Reader,
    documents: Option<u64>,
}

impl ClusterWatch {
    /// Nothing is read yet.
    #[must_use]
    pub fn new(cluster: &Cluster) -> Self {
        Self {
            seen: cluster.seen(),
            reader: Reader::default(),
            documents: None,
        }
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
            let news = self
                .seen
                .wait_for(|seen| {
                    seen.as_ref()
                        .is_some_and(|seen| Some(seen.documents) != self.documents)
                })
                .await;
            let Some(seen) = news.ok()?.clone() else {
                continue;
            };
            self.documents = Some(seen.documents);
            return Some(tokio::task::block_in_place(|| self.reader.take(seen)));
        }
    }
}

#[cfg(test)]
mod tests;
