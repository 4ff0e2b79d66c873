//! `mergeType`: what a policy leaves out is as the policy of the gateway or listener above has it, alike in all kinds of
//! policies that have the field (Envoy Gateway 1.9, `MergeType`).
//!
//! Both types of merge (JSON merge patch, RFC 7386; Kubernetes, strategic merge patch) do the same to everything that is
//! read of these kinds: mappings are merged, and all else is replaced. The lists that a strategic merge would merge by a key
//! (`compression`, `compressor`, `httpUpgrade`) are not supported. What a section's fields have as defaults in the API stands
//! in every policy that has the section, and wins with it.

use super::Targets;
use crate::document::Meta;
use crate::document::labels::Labels;
use crate::model::{ObjectName, Timestamp};
use crate::reader::{Field, Object, Sink};
use crate::report::Source;
use crate::tree::{Entry, Node, Value};

/// A policy as it is written.
pub(crate) struct Spec {
    pub(crate) name: ObjectName,
    pub(crate) declared: Source,
    created: Option<Timestamp>,
    pub(crate) node: Node,
    /// Where it asks to be merged, if it does.
    pub(crate) merge: Option<Source>,
}

impl Spec {
    /// The `spec` of a document. `merge`: what [`merge_type`] found.
    pub(crate) fn new(spec: &Object<'_>, meta: &Meta, merge: Option<Source>) -> Self {
        Self {
            name: meta.name.clone(),
            declared: meta.declared.clone(),
            created: meta.created,
            node: spec.field().node().clone(),
            merge,
        }
    }
}

/// A default of the API.
pub(crate) enum Usual {
    Number(i64),
    Text(&'static str),
    No,
}

/// The path of a section, and the defaults of its fields.
pub(crate) type Section = (&'static [&'static str], &'static [(&'static str, Usual)]);

/// Reads the field, if a policy has it: where it stands.
#[expect(
    clippy::option_option,
    reason = "absent and unreadable are two things, and both end at `read` of the kind"
)]
pub(crate) fn merge_type(spec: &mut Object<'_>, targets: &Targets) -> Option<Option<Source>> {
    let Some(field) = spec.optional("mergeType") else {
        return Some(None);
    };
    field.choice(&[("StrategicMerge", ()), ("JSONMerge", ())])?;
    if !targets.are_routes() {
        field.mistake(
            "is for policies of routes, which are merged into those of gateways and listeners",
        );
        return None;
    }
    Some(Some(field.source().clone()))
}

/// Fields that say what a policy is for.
const TARGETS: [&str; 3] = ["targetRef", "targetRefs", "targetSelectors"];

/// What `read` makes of one policy merged into another, as a document of the first one's name. It tells `sink` of mistakes.
pub(crate) fn merged<T>(
    patch: &Spec,
    original: &Node,
    defaults: &[Section],
    sink: &Sink,
    read: impl FnOnce(&mut Object<'_>, &Meta) -> Option<T>,
) -> Option<T> {
    let mut node = patch.node.clone();
    for (section, defaults) in defaults {
        complete(&mut node, section, defaults);
    }
    let node = merge(&without_targets(original), node);
    let meta = Meta {
        name: patch.name.clone(),
        declared: patch.declared.clone(),
        created: patch.created,
        generation: None,
        labels: Labels::default(),
    };
    let field = Field::root(&node, patch.declared.at("spec"), sink);
    let mut object = field.object()?;
    let draft = read(&mut object, &meta);
    object.finish();
    draft
}

/// What a policy says, without what it is for.
fn without_targets(spec: &Node) -> Node {
    let mut spec = spec.clone();
    if let Value::Mapping(entries) = &mut spec.value {
        entries.retain(|entry| !TARGETS.contains(&entry.key.as_str()));
    }
    spec
}

/// Puts defaults into a section that is there.
fn complete(node: &mut Node, section: &[&str], defaults: &[(&str, Usual)]) {
    let Value::Mapping(entries) = &mut node.value else {
        return;
    };
    if let Some((first, rest)) = section.split_first() {
        if let Some(entry) = entries.iter_mut().find(|entry| entry.key == *first) {
            complete(&mut entry.value, rest, defaults);
        }
        return;
    }
    for (key, usual) in defaults {
        if entries.iter().all(|entry| entry.key != *key) {
            let value = match usual {
                Usual::Number(number) => Value::Integer(*number),
                Usual::Text(text) => Value::String((*text).to_owned()),
                Usual::No => Value::Bool(false),
            };
            entries.push(entry(node.line, key, value));
        }
    }
}

/// An entry that no document has, at the line of its mapping.
pub(crate) fn entry(line: usize, key: &str, value: Value) -> Entry {
    Entry {
        line,
        key: key.to_owned(),
        value: Node { line, value },
    }
}

/// RFC 7386, section 2. Documents have no null that would take something away.
fn merge(original: &Node, patch: Node) -> Node {
    let (Value::Mapping(before), Value::Mapping(_)) = (&original.value, &patch.value) else {
        return patch;
    };
    let Node {
        line,
        value: Value::Mapping(entries),
    } = patch
    else {
        return patch;
    };
    let mut all = before.clone();
    for entry in entries {
        match all.iter_mut().find(|one| one.key == entry.key) {
            Some(known) => known.value = merge(&known.value, entry.value),
            None => all.push(entry),
        }
    }
    Node {
        line,
        value: Value::Mapping(all),
    }
}
