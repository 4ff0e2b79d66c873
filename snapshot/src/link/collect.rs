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
    /// In the order of their files.
    pub(super) documents: Vec<Placed<'a>>,
    /// Whether each document has a place of its own and is only refused for mistakes of its own.
    pub(super) plain: bool,
}

/// A document, and whether it has a part in what comes out.
pub(super) struct Placed<'a> {
    pub(super) document: &'a Document,
    pub(super) refused: bool,
}

/// Puts documents together. In this order the first of two with one name counts.
pub(super) fn collect<'a>(reads: &'a [Arc<Read>], taking: Taking, sink: &Sink) -> Collected<'a> {
    let mut collected = Collected {
        drafts: Drafts::default(),
        documents: Vec::new(),
        plain: reads.windows(2).all(|two| two[0].path() != two[1].path()),
    };
    for read in reads {
        sink.known(&read.mistakes, &read.warnings);
        for document in &read.documents {
            let refused = refused(read, document, taking);
            let placed = collected.place(document, refused, sink);
            collected.plain &= placed;
            collected.documents.push(Placed {
                document,
                refused: refused || !placed,
            });
        }
    }
    collected
}

/// Whether a document is refused for mistakes of its own.
pub(super) fn refused(read: &Read, document: &Document, taking: Taking) -> bool {
    let declared = &document.meta.declared;
    let own = |source: &crate::report::Source| source.document == declared.document;
    taking == Taking::Each && read.mistakes.iter().any(|one| own(&one.source))
}

impl<'a> Collected<'a> {
    /// Documents whose drafts are put together.
    pub(super) fn again(
        drafts: Drafts,
        reads: &'a [Arc<Read>],
        taking: Taking,
        sink: &Sink,
    ) -> Self {
        let mut documents = Vec::with_capacity(reads.len());
        for read in reads {
            sink.known(&read.mistakes, &read.warnings);
            documents.extend(read.documents.iter().map(|document| Placed {
                document,
                refused: refused(read, document, taking),
            }));
        }
        Self {
            drafts,
            documents,
            plain: true,
        }
    }

    /// Puts a document where it belongs; whether there was room for it.
    fn place(&mut self, document: &Document, refused: bool, sink: &Sink) -> bool {
        let meta = &document.meta;
        let kind = document.draft.kind();
        if let Some((first, _)) = self.drafts.platforms.values().next()
            && kind == Kind::Platform
        {
            sink.mistake(
                meta.declared.clone(),
                format_args!("expected one `Platform`; the first one is in {first}"),
            );
            return false;
        }
        let placed = self.drafts.place(document, refused);
        if !placed && let Some(first) = self.drafts.declared(kind, &meta.name) {
            sink.mistake(
                meta.declared.at("metadata.name"),
                format_args!("{} is declared before, in {first}", meta.declared.object),
            );
        }
        placed
    }

    /// Refuses documents that were found to have mistakes since they were placed.
    pub(super) fn refuse(&mut self, sink: &Sink) {
        self.drafts.refuse(|source| sink.tainted(source));
        for placed in &mut self.documents {
            placed.refused |= sink.tainted(&placed.document.meta.declared);
        }
    }
}
