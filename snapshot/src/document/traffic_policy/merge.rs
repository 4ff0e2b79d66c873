//! `mergeType`: what a policy leaves out is as the policy of the gateway or listener above has it.
//!
//! Both types of merge (JSON merge patch, RFC 7386; Kubernetes, strategic merge patch) do the same to everything that is
//! read of this kind: mappings are merged, and all else is replaced. The lists that a strategic merge would merge by a key
//! (`compression`, `compressor`, `httpUpgrade`) are not supported. What a section's fields have as defaults in the API
//! (Envoy Gateway 1.9, `BackendTrafficPolicy`) stands in every policy that has the section, and wins with it.

use crate::model::{ObjectName, Timestamp, TrafficPolicy};
use crate::reader::{Field, Sink};
use crate::report::Source;
use crate::tree::{Entry, Node, Value};

use super::super::Meta;

/// A policy as it is written.
pub(crate) struct Spec {
    pub(super) name: ObjectName,
    pub(super) declared: Source,
    pub(super) created: Option<Timestamp>,
    pub(super) node: Node,
    /// Where it asks to be merged, if it does.
    pub(crate) merge: Option<Source>,
}

/// A default of the API.
enum Usual {
    Number(i64),
    Text(&'static str),
    No,
}

/// The path of a section, and the defaults of its fields.
type Section = (&'static [&'static str], &'static [(&'static str, Usual)]);

/// Sections, and the defaults of their fields.
const DEFAULTS: [Section; 7] = [
    (
        &["circuitBreaker"],
        &[
            ("maxConnections", Usual::Number(1024)),
            ("maxParallelRequests", Usual::Number(1024)),
            ("maxParallelRetries", Usual::Number(1024)),
            ("maxPendingRequests", Usual::Number(1024)),
        ],
    ),
    (
        &["circuitBreaker", "perEndpoint"],
        &[("maxConnections", Usual::Number(1024))],
    ),
    (
        &["circuitBreaker", "retryBudget", "percent"],
        &[("denominator", Usual::Number(100))],
    ),
    (
        &["healthCheck", "active"],
        &[
            ("healthyThreshold", Usual::Number(1)),
            ("interval", Usual::Text("3s")),
            ("timeout", Usual::Text("1s")),
            ("unhealthyThreshold", Usual::Number(3)),
        ],
    ),
    (
        &["healthCheck", "passive"],
        &[
            ("alwaysEjectOneEndpoint", Usual::No),
            ("baseEjectionTime", Usual::Text("30s")),
            ("consecutive5XxErrors", Usual::Number(5)),
            ("consecutiveLocalOriginFailures", Usual::Number(5)),
            ("interval", Usual::Text("3s")),
            ("maxEjectionPercent", Usual::Number(10)),
            ("splitExternalLocalOriginErrors", Usual::No),
        ],
    ),
    (
        &["loadBalancer", "consistentHash"],
        &[("tableSize", Usual::Number(65_537))],
    ),
    (&["retry"], &[("numRetries", Usual::Number(2))]),
];

/// The policy that comes of one and the one above it; none: it has mistakes, of which `sink` is told.
pub(crate) fn merged(patch: &Spec, original: &Spec, sink: &Sink) -> Option<TrafficPolicy> {
    let mut node = patch.node.clone();
    for (section, defaults) in &DEFAULTS {
        complete(&mut node, section, defaults);
    }
    let rates = |node: &Node| node.value.get("rateLimit").is_some();
    let inherited = rates(&original.node) && !rates(&node);
    let node = merge(&original.node, node);
    let meta = Meta {
        name: patch.name.clone(),
        declared: patch.declared.clone(),
        created: patch.created,
        generation: None,
        labels: super::super::selector::Labels::new(),
    };
    let field = Field::root(&node, patch.declared.at("spec"), sink);
    let mut object = field.object()?;
    let draft = super::read(&mut object, &meta);
    object.finish();
    Some(TrafficPolicy {
        parent: Some(original.name.clone()),
        rates_of_parent: inherited,
        ..draft?.policy
    })
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
            let line = node.line;
            entries.push(Entry {
                line,
                key: (*key).to_owned(),
                value: Node { line, value },
            });
        }
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
