//! What a document says, as a digest: the same for a file and for the object that a cluster makes of it.

use sha2::{Digest as _, Sha256};

use super::{Kind, Meta};
use crate::tree::{Node, Value};

/// SHA-256.
pub(crate) type Digest = [u8; 32];

/// Parts of `metadata` that say something; a cluster adds others, and changes them as it goes.
const METADATA: [&str; 1] = ["creationTimestamp"];

/// Digest of a document. How it is written, what a cluster keeps about it, and its `status` are no part of what it says.
pub(super) fn digest(kind: Kind, meta: &Meta, root: &Value) -> Digest {
    let mut hash = Sha256::new();
    text(&mut hash, kind.as_str());
    text(&mut hash, meta.name.namespace());
    text(&mut hash, meta.name.name());
    length(&mut hash, meta.labels.iter().len());
    for (key, label) in meta.labels.iter() {
        text(&mut hash, key);
        text(&mut hash, label);
    }
    let metadata = root.get("metadata").map(|node| &node.value);
    for name in METADATA {
        match metadata.and_then(|metadata| metadata.get(name)) {
            Some(node) => value(&mut hash, &node.value),
            None => value(&mut hash, &Value::Null),
        }
    }
    if let Value::Mapping(entries) = root {
        let said = entries.iter().filter(|entry| {
            !matches!(
                entry.key.as_str(),
                "apiVersion" | "kind" | "metadata" | "status"
            )
        });
        mapping(
            &mut hash,
            said.map(|entry| (entry.key.as_str(), &entry.value)),
        );
    }
    hash.finalize().into()
}

/// Digest of a set of documents, whose digests are sorted.
pub(crate) fn together(all: &[Digest]) -> String {
    let mut hash = Sha256::new();
    for one in all {
        hash.update(one);
    }
    let digest = hash.finalize();
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// With lengths and a mark for each type, so that no two values have the same input. Trees are no deeper than
/// `tree::MAX_DEPTH`.
fn value(hash: &mut Sha256, given: &Value) {
    match given {
        Value::Null => hash.update(b"0"),
        Value::Bool(value) => hash.update(if *value { b"t" } else { b"f" }),
        Value::Integer(value) => {
            hash.update(b"i");
            hash.update(value.to_be_bytes());
        }
        Value::Number(number) => {
            hash.update(b"n");
            text(hash, number);
        }
        Value::String(string) => {
            hash.update(b"s");
            text(hash, string);
        }
        Value::List(items) => {
            hash.update(b"l");
            length(hash, items.len());
            for item in items {
                value(hash, &item.value);
            }
        }
        Value::Mapping(entries) => mapping(
            hash,
            entries
                .iter()
                .map(|entry| (entry.key.as_str(), &entry.value)),
        ),
    }
}

fn mapping<'a>(hash: &mut Sha256, entries: impl Iterator<Item = (&'a str, &'a Node)>) {
    let mut entries: Vec<_> = entries.collect();
    entries.sort_unstable_by_key(|(key, _)| *key);
    hash.update(b"m");
    length(hash, entries.len());
    for (key, node) in entries {
        text(hash, key);
        value(hash, &node.value);
    }
}

fn text(hash: &mut Sha256, text: &str) {
    length(hash, text.len());
    hash.update(text);
}

fn length(hash: &mut Sha256, length: usize) {
    hash.update((length as u64).to_be_bytes());
}
