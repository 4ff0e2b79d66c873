//! Documents put together as last time, but for those that differ.
//!
//! Flows in: what was read, in the order of its paths. Flows out: drafts by kind and name, the digest of all, and what is to be said
//! of each object. Nearly always a few documents differ of thousands: they take the places of those before them. Where that would
//! not be right, such as with two documents of one name, all are put together anew.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use imbl::OrdMap;

use super::collect::{Collected, Placed, Taking, collect, refused};
use crate::document::{Document, Drafts, Kind, Read, content};
use crate::reader::Sink;
use crate::report::{Mistake, Source, Warning};
use crate::status::{ObjectKey, Verdict};

/// When more documents than these differ, digests are sorted anew.
const FEW: usize = 64;

/// What was put together last.
#[derive(Default)]
pub(crate) struct Assembly {
    /// By path.
    reads: Vec<Arc<Read>>,
    /// Of `reads`, if each of them had room and is only refused for mistakes of its own.
    drafts: Option<Drafts>,
    /// Of all documents, sorted.
    digests: Vec<content::Digest>,
    /// What was said of each object.
    verdicts: OrdMap<ObjectKey, Arc<Verdict>>,
    /// What was said of an object last that had nothing wrong: it is what is said of most.
    usual: Option<Arc<Verdict>>,
    /// Documents of which more was said than that they are there.
    told: BTreeSet<Place>,
}

/// What differs from one time to the next.
#[derive(Default)]
pub(super) struct Changes {
    /// What is not there any more.
    pub(super) gone: Vec<Arc<Read>>,
    /// What was not there before.
    pub(super) come: Vec<Arc<Read>>,
    /// Whether everything else is as it was put together before.
    few: bool,
}

/// Where a document is: its file, and which one of it.
type Place = (Arc<str>, usize);

fn place(source: &Source) -> Place {
    (Arc::clone(&source.file), source.document)
}

impl Assembly {
    /// Puts together what was read.
    pub(super) fn collect<'a>(
        &mut self,
        reads: &'a [Arc<Read>],
        taking: Taking,
        sink: &Sink,
    ) -> (Collected<'a>, Changes) {
        let mut changes = Changes::default();
        differing(&self.reads, reads, &mut changes);
        self.reads = reads.to_vec();
        self.digest(&changes);
        let drafts = self.drafts.take();
        let drafts = drafts.and_then(|drafts| replaced(drafts, &changes, reads, taking));
        changes.few = drafts.is_some();
        let collected = match drafts {
            Some(drafts) => Collected::again(drafts, reads, taking, sink),
            None => collect(reads, taking, sink),
        };
        (collected, changes)
    }

    /// Takes back drafts that are as they were put together.
    pub(super) fn keep(&mut self, drafts: Drafts) {
        self.drafts = Some(drafts);
    }

    /// Digest of all documents.
    pub(super) fn together(&self) -> String {
        content::together(&self.digests)
    }

    fn digest(&mut self, changes: &Changes) {
        let (gone, come) = (digests(&changes.gone), digests(&changes.come));
        if gone.len() + come.len() > FEW {
            self.digests = digests(&self.reads);
            self.digests.sort_unstable();
            return;
        }
        for digest in gone {
            if let Ok(at) = self.digests.binary_search(&digest) {
                self.digests.remove(at);
            }
        }
        for digest in come {
            let (Ok(at) | Err(at)) = self.digests.binary_search(&digest);
            self.digests.insert(at, digest);
        }
    }

    /// What is to be said of every object, and what is wrong with documents that have no name.
    pub(super) fn verdicts(
        &mut self,
        documents: &[Placed<'_>],
        changes: &Changes,
        mistakes: &[Mistake],
        warnings: &[Warning],
    ) -> (OrdMap<ObjectKey, Arc<Verdict>>, Vec<Mistake>) {
        // Of nearly all there is nothing to say.
        let mut said: BTreeMap<Place, (Vec<Mistake>, Vec<Warning>)> = BTreeMap::new();
        for mistake in mistakes {
            let of = said.entry(place(&mistake.source)).or_default();
            of.0.push(mistake.clone());
        }
        for warning in warnings {
            let of = said.entry(place(&warning.source)).or_default();
            of.1.push(warning.clone());
        }
        let told: BTreeSet<Place> = said.keys().cloned().collect();
        let before = std::mem::replace(&mut self.told, told);
        let mut verdicts: Vec<(ObjectKey, Arc<Verdict>)> = Vec::new();
        let usual = &mut self.usual;
        let mut tell = |placed: &Placed<'_>| {
            let meta = &placed.document.meta;
            let own = (!said.is_empty()).then(|| said.remove(&place(&meta.declared)));
            let (mistakes, warnings) = own.flatten().unwrap_or_default();
            let mut verdict = Arc::new(Verdict {
                generation: meta.generation,
                accepted: !placed.refused,
                mistakes,
                warnings,
            });
            if verdict.mistakes.is_empty() && verdict.warnings.is_empty() {
                match usual {
                    Some(usual) if *usual == verdict => verdict = Arc::clone(usual),
                    _ => *usual = Some(Arc::clone(&verdict)),
                }
            }
            verdicts.push((key(placed.document), verdict));
        };
        if changes.few {
            let gone = changes.gone.iter().flat_map(|read| &read.documents);
            for document in gone {
                self.verdicts.remove(&key(document));
            }
            let come = changes.come.iter().flat_map(|read| &read.documents);
            let come = come.map(|document| place(&document.meta.declared));
            let mut anew = before;
            anew.extend(come.chain(self.told.iter().cloned()));
            let anew = anew.iter().filter_map(|place| at(documents, place));
            anew.for_each(&mut tell);
        } else {
            self.verdicts = OrdMap::new();
            documents.iter().for_each(&mut tell);
            // Of two documents with one name the first was taken, and the second has said so.
            verdicts.sort_by(|(a, _), (b, _)| a.cmp(b));
            verdicts.dedup_by(|(key, second), (known, first)| {
                let same = key == known;
                if same {
                    let more = second.mistakes.iter().cloned();
                    Arc::make_mut(first).mistakes.extend(more);
                }
                same
            });
        }
        self.verdicts.extend(verdicts);
        let nameless = said.into_values().flat_map(|(mistakes, _)| mistakes);
        (self.verdicts.clone(), nameless.collect())
    }
}

fn key(document: &Document) -> ObjectKey {
    ObjectKey {
        kind: document.draft.kind(),
        name: document.meta.name.clone(),
    }
}

fn digests(reads: &[Arc<Read>]) -> Vec<content::Digest> {
    let documents = reads.iter().flat_map(|read| &read.documents);
    documents.map(|document| document.digest).collect()
}

/// The document at a place.
fn at<'d, 'a>(documents: &'d [Placed<'a>], (file, number): &Place) -> Option<&'d Placed<'a>> {
    let found = documents.binary_search_by(|placed| {
        let declared = &placed.document.meta.declared;
        (&*declared.file, declared.document).cmp(&(&**file, *number))
    });
    found.ok().map(|at| &documents[at])
}

/// Drafts with some documents in the place of others; none if that is not all that there is to it.
fn replaced(
    mut drafts: Drafts,
    changes: &Changes,
    reads: &[Arc<Read>],
    taking: Taking,
) -> Option<Drafts> {
    for document in changes.gone.iter().flat_map(|read| &read.documents) {
        drafts.take_out(document);
    }
    for read in &changes.come {
        // Documents are found by their paths.
        let first = reads.partition_point(|one| one.path() < read.path());
        let next = reads.get(first + 1);
        if next.is_some_and(|next| next.path() == read.path()) {
            return None;
        }
        for document in &read.documents {
            // Of which there is to be one.
            let fits = document.draft.kind() != Kind::Platform
                && drafts.place(document, refused(read, document, taking));
            if !fits {
                return None;
            }
        }
    }
    Some(drafts)
}

/// Finds everything that only one of two lists has, both of which are in the order of their paths.
fn differing(before: &[Arc<Read>], now: &[Arc<Read>], changes: &mut Changes) {
    let (mut before, mut now) = (before.iter().peekable(), now.iter().peekable());
    loop {
        match (before.peek(), now.peek()) {
            (None, None) => return,
            (Some(old), Some(new)) if Arc::ptr_eq(old, new) => {
                before.next();
                now.next();
            }
            (Some(old), new) if new.is_none_or(|new| old.path() <= new.path()) => {
                changes.gone.extend(before.next().cloned());
            }
            _ => changes.come.extend(now.next().cloned()),
        }
    }
}
