//! Cardinal's documents.
//!
//! Flows in: files of YAML or JSON documents. Flows out: a [`model::Snapshot`], which is always
//! valid, or [`report::Rejections`], which name every mistake with file, document and field path.
//! Or objects of a cluster flow in, and a snapshot of those without mistakes flows out, with a
//! [`status::Report`] of what became of each.
//! What it deliberately does not do: no I/O, no clock, no network, no kernel; nothing after this
//! crate knows which source a document came from.

mod derive;
mod document;
mod lasting;
mod link;
pub mod model;
pub mod naming;
mod parse;
pub mod path;
mod reader;
pub mod report;
mod shared;
pub mod status;
mod tree;

pub use document::gateway_class::CONTROLLER;
pub use document::jwks::{KeySetError, fetched as fetched_keys};
pub use document::{Kind, Read};
pub use lasting::{common, exact};
pub use model::Snapshot;
pub use parse::{Linker, MAX_MISTAKES, SourceFile, Taken, link, parse, read, refused, take};
pub use report::{Mistake, Place, Rejections, Source, Warning};
pub use shared::Shared;
