//! Files to a snapshot, or to everything that is wrong with them; objects of a cluster to a snapshot of all that is right.

use std::fmt;
use std::sync::Arc;

use crate::document::{self, Origin, Read};
use crate::link::{self, Memory, Taking};
use crate::model::Snapshot;
use crate::report::{Mistake, Rejections};
use crate::status::Report;

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

impl SourceFile {
    /// A file with this content.
    pub fn new(path: impl Into<String>, bytes: impl Into<Vec<u8>>) -> Self {
        Self {
            path: path.into(),
            bytes: bytes.into(),
        }
    }
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
    let reads: Vec<Arc<Read>> = files
        .into_iter()
        .map(|file| Arc::new(document::read(&file.path, &file.bytes, Origin::File)))
        .collect();
    let outcome = link::link(reads, Taking::Whole, &mut Memory::default());
    if outcome.mistakes.is_empty() {
        return Ok(outcome.snapshot);
    }
    Err(rejections(outcome.mistakes))
}

/// What comes of the objects of a cluster.
#[derive(Clone, Debug)]
pub struct Taken {
    /// Everything that could be taken. It is always valid.
    pub snapshot: Snapshot,
    /// What became of every object.
    pub report: Report,
}

/// Takes the objects of a cluster, each of which is one `SourceFile`: [`read`] and [`link()`] in one.
pub fn take(objects: impl IntoIterator<Item = SourceFile>) -> Taken {
    let reads = objects.into_iter().map(|object| Arc::new(read(&object)));
    link(&reads.collect::<Vec<_>>())
}

/// Reads one object of a cluster on its own: what it says is the same until the object changes. JSON or YAML; the path
/// is for messages, such as `HTTPRoute/shop/orders`. Fields of `metadata` that nobody here knows are no mistake.
pub fn read(object: &SourceFile) -> Read {
    document::read(&object.path, &object.bytes, Origin::Server)
}

/// Reads an object that is refused, beside mistakes of its own for these: they show only where something is made of all objects
/// together. What it would have closed is closed, as with every object that is refused.
pub fn refused(object: &SourceFile, mistakes: &[Mistake]) -> Read {
    document::refused(&object.path, &object.bytes, Origin::Server, mistakes)
}

/// Links what was read of all objects together; their order says nothing.
///
/// Unlike [`parse`] it refuses objects one by one. One with mistakes is as if it were not there, with four exceptions
/// that keep closed what it would have closed: what a policy is for answers 500, so do the requests of a route, a reference to it
/// leads nowhere, and its name is taken.
pub fn link(objects: &[Arc<Read>]) -> Taken {
    Linker::default().link(objects)
}

/// Links again and again: what comes out is as of [`link()`], and costs less where little changed.
#[derive(Default)]
pub struct Linker {
    memory: Memory,
}

impl Linker {
    /// As [`link()`]. Objects that are the same `Read` as last time are taken to be unchanged.
    pub fn link(&mut self, objects: &[Arc<Read>]) -> Taken {
        let mut objects = objects.to_vec();
        objects.sort_by(|a, b| a.path().cmp(b.path()));
        let outcome = link::link(objects, Taking::Each, &mut self.memory);
        Taken {
            snapshot: outcome.snapshot,
            report: outcome.report,
        }
    }
}

impl fmt::Debug for Linker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // It remembers what may be secret.
        f.debug_struct("Linker").finish_non_exhaustive()
    }
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
