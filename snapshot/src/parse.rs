//! Files to a snapshot, or to everything that is wrong with them.

use std::fmt;

use sha2::{Digest, Sha256};

use crate::document::{self, Drafts};
use crate::link;
use crate::model::Snapshot;
use crate::reader::Sink;
use crate::report::{Mistake, Rejections};

/// Mistakes that are listed; more are counted.
pub const MAX_MISTAKES: usize = 200;

/// One file of a configuration.
#[derive(Clone, PartialEq, Eq)]
pub struct SourceFile {
    /// Path relative to the configuration folder; shown in messages. A name that ends in `.json` is
    /// read as JSON, every other as YAML.
    pub path: String,
    /// Its content.
    pub bytes: Vec<u8>,
}

impl fmt::Debug for SourceFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // A file may hold secrets.
        f.debug_struct("SourceFile")
            .field("path", &self.path)
            .field("length", &self.bytes.len())
            .finish_non_exhaustive()
    }
}

/// Reads a configuration as a whole. The order of `files` says nothing: they are taken by path.
///
/// # Errors
///
/// Every mistake of every document, in the order of files and lines; at most [`MAX_MISTAKES`], then
/// one that counts the rest.
pub fn parse(files: &[SourceFile]) -> Result<Snapshot, Rejections> {
    let mut files: Vec<&SourceFile> = files.iter().collect();
    files.sort_by(|a, b| a.path.cmp(&b.path).then_with(|| a.bytes.cmp(&b.bytes)));
    let sink = Sink::default();
    let mut drafts = Drafts::default();
    let mut digest = Sha256::new();
    for file in files {
        // With lengths, so that no two sets of files have the same input.
        for part in [file.path.as_bytes(), &file.bytes] {
            digest.update((part.len() as u64).to_be_bytes());
            digest.update(part);
        }
        document::read(&file.path, &file.bytes, &mut drafts, &sink);
    }
    let digest: String = digest
        .finalize()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    let snapshot = link::link(drafts, &sink);
    let (mistakes, warnings) = sink.finish();
    if mistakes.is_empty() {
        return Ok(Snapshot {
            digest: digest.into(),
            warnings,
            ..snapshot
        });
    }
    Err(rejections(mistakes))
}

fn rejections(mut mistakes: Vec<Mistake>) -> Rejections {
    if mistakes.len() > MAX_MISTAKES {
        let more = mistakes.len() - MAX_MISTAKES;
        let next = mistakes[MAX_MISTAKES].source.clone();
        mistakes.truncate(MAX_MISTAKES);
        mistakes.push(Mistake {
            source: next.at(""),
            message: format!("and {more} more mistakes from here on"),
        });
    }
    Rejections { mistakes }
}
