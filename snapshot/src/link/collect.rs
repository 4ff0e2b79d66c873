//! What was read, file by file, put together: kind by kind, and each name once.

use std::sync::Arc;

use crate::document::{Document, Drafts, Kind, Read};
use crate::reader::Sink;

/// What becomes of documents when one of them has mistakes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Taking {
    /// None is taken: what is left of those with mistakes is linked to find more of them.
    Whole,
    /// Those with mistakes are not, and close what depends on them. The others are.
    Each,
}

/// Everything that was read, and the documents that it was read from.
pub(super) struct Collected<'a> {
    pub(super) drafts: Drafts,
    pub(super) documents: Vec<Placed<'a>>,
}

/// A document, and whether it has a part in what comes out.
pub(super) struct Placed<'a> {
    pub(super) document: &'a Document,
    pub(super) refused: bool,
}

/// Puts documents together. In this order the first of two with one name counts.
pub(super) fn collect<'a>(
    reads: impl Iterator<Item = &'a Arc<Read>>,
    taking: Taking,
    sink: &Sink,
) -> Collected<'a> {
    let mut drafts = Drafts::default();
    let mut documents = Vec::new();
    for read in reads {
        sink.known(&read.mistakes, &read.warnings);
        for document in &read.documents {
            let refused = taking == Taking::Each && sink.tainted(&document.meta.declared);
            let kind = document.draft.kind();
            let placed = match drafts.platforms.values().next() {
                Some((first, _)) if kind == Kind::Platform => {
                    sink.mistake(
                        document.meta.declared.clone(),
                        format_args!("expected one `Platform`; the first one is in {first}"),
                    );
                    false
                }
                _ => drafts.place(document, refused, sink),
            };
            documents.push(Placed {
                document,
                refused: refused || !placed,
            });
        }
    }
    Collected { drafts, documents }
}

impl Collected<'_> {
    /// Refuses documents that were found to have mistakes since they were placed.
    pub(super) fn refuse(&mut self, sink: &Sink) {
        self.drafts.refuse(|source| sink.tainted(source));
        for placed in &mut self.documents {
            placed.refused |= sink.tainted(&placed.document.meta.declared);
        }
    }
}
