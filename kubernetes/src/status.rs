//! What became of objects, in the words of their status.
//!
//! Flows in: the report of what was made of the objects, and whether the node took it. Flows out: for each object what is to be said, at
//! which generation. Writing it is for `writer`; other controllers' part is for `merge`.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use imbl::OrdMap;
use imbl::ordmap::DiffItem;
use serde_json::{Map, Value, json};
use snapshot::model::{ObjectName, RouteKind};
use snapshot::status::{
    Condition, ConditionKind, GatewayAddress, GatewayStatus, ListenerStatus, ParentRef, Report,
    Verdict,
};

use crate::cluster::Seen;
use crate::kinds::Kind;
use crate::nodes::{Spread, counted};
use crate::object::{Object, ObjectId};
use crate::store::Objects;

mod features;
mod merge;

pub(crate) use merge::Said;

/// The controller's name: classes that have it are ours.
pub use snapshot::CONTROLLER;
/// Group of the Gateway API.
const GATEWAY_API: &str = "gateway.networking.k8s.io";
/// Longest message of a condition. The API takes 32,768; nobody reads as much.
const LONGEST: usize = 2_048;

/// What became of a set of objects.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// The objects.
    pub seen: Seen,
    /// What was found of them.
    pub report: Arc<Report>,
    /// The generation that they are on this node, or why they are none.
    pub active: Result<u32, String>,
}

/// What is to be said of an object.
#[derive(Clone, Debug, PartialEq, Hash)]
pub(crate) struct Word {
    /// The generation that it is about.
    pub(crate) generation: i64,
    pub(crate) said: Said,
}

/// What is to be said of an object, if it is answered. `spread` is given where nodes are counted; `bundle` is what is installed now,
/// which no outcome waits for.
pub(crate) fn word(
    object: &Object,
    outcome: &Outcome,
    bundle: Option<&str>,
    spread: Option<&Spread>,
) -> Option<Word> {
    Some(Word {
        generation: object.generation,
        said: said(object, outcome, bundle, spread)?,
    })
}

/// Whether it has to be known which nodes go by an object before something is said of it: it was taken, and this node goes by it.
pub(crate) fn is_counted(object: &Object, outcome: &Outcome) -> bool {
    let key = object.id.key().filter(|_| counted(object.id.kind));
    let verdict = key.and_then(|key| outcome.report.objects.get(&key));
    verdict.is_some_and(|verdict| verdict.accepted) && failure(outcome).is_none()
}

/// Objects of which something else may be to be said than after an outcome before, with those that are not the same.
pub(crate) fn news(before: &Outcome, now: &Outcome) -> BTreeSet<ObjectId> {
    let objects = &now.seen.objects;
    if failure(before) != failure(now) {
        return objects.keys().cloned().collect();
    }
    let mut news = changed(&before.seen.objects, objects);
    let (old, new) = (&*before.report, &*now.report);
    let mut add = |kind: Option<Kind>, name: &ObjectName| {
        news.extend(kind.and_then(|kind| find(objects, kind, name)));
    };
    let document = |kind: snapshot::Kind| Kind::find(kind.group(), kind.as_str());
    let route = |kind: RouteKind| Kind::find(GATEWAY_API, kind.as_str());
    for key in differing_keys(&old.objects, &new.objects) {
        add(document(key.kind), &key.name);
    }
    for (kind, name) in differing_keys(&old.routes, &new.routes) {
        add(route(*kind), name);
    }
    differing(&old.policies, &new.policies, |(kind, name)| {
        add(document(*kind), name)
    });
    differing(&old.gateways, &new.gateways, |name| {
        add(Some(Kind::Gateway), name)
    });
    differing(&old.listener_sets, &new.listener_sets, |name| {
        add(Some(Kind::ListenerSet), name)
    });
    if old.classes != new.classes {
        let classes = objects.keys().filter(|id| id.kind == Kind::GatewayClass);
        news.extend(classes.cloned());
    }
    news
}

/// The object that a report calls so: one without a namespace is in `default` there.
pub(crate) fn find(objects: &Objects, kind: Kind, name: &ObjectName) -> Option<ObjectId> {
    let namespaces = [name.namespace(), ""];
    let mut ids = namespaces.into_iter().map(|namespace| ObjectId {
        kind,
        namespace: namespace.into(),
        name: name.name().into(),
    });
    ids.find(|id| objects.contains_key(id))
}

/// Objects that only one of two sets has as they are there.
fn changed(before: &Objects, now: &Objects) -> BTreeSet<ObjectId> {
    differing_keys(before, now).cloned().collect()
}

/// Objects of which something else may be to be said because of what else is there.
pub(crate) fn stirred(before: &Seen, now: &Seen) -> BTreeSet<ObjectId> {
    let mut stirred = changed(&before.objects, &now.objects);
    if before.bundle != now.bundle {
        let classes = now.objects.keys();
        let classes = classes.filter(|id| id.kind == Kind::GatewayClass);
        stirred.extend(classes.cloned());
    }
    stirred
}

/// Keys under which two maps have not the same, in the time that what they do not share takes.
fn differing_keys<'a, K: Ord + Clone, V: PartialEq + Clone>(
    before: &'a OrdMap<K, V>,
    now: &'a OrdMap<K, V>,
) -> impl Iterator<Item = &'a K> {
    before.diff(now).map(|change| match change {
        DiffItem::Add(key, _)
        | DiffItem::Update { new: (key, _), .. }
        | DiffItem::Remove(key, _) => key,
    })
}

/// Calls `each` with the keys under which two maps have not the same.
fn differing<K: Ord, V: PartialEq>(
    before: &BTreeMap<K, V>,
    now: &BTreeMap<K, V>,
    mut each: impl FnMut(&K),
) {
    let (mut before, mut now) = (before.iter().peekable(), now.iter().peekable());
    loop {
        let order = match (before.peek(), now.peek()) {
            (None, None) => return,
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (Some((old, _)), Some((new, _))) => old.cmp(new),
        };
        let old = before.next_if(|_| order.is_le());
        let new = now.next_if(|_| order.is_ge());
        if old.map(|(_, value)| value) != new.map(|(_, value)| value)
            && let Some((key, _)) = old.or(new)
        {
            each(key);
        }
    }
}

fn said(
    object: &Object,
    outcome: &Outcome,
    bundle: Option<&str>,
    spread: Option<&Spread>,
) -> Option<Said> {
    let report = &*outcome.report;
    let generation = object.generation;
    let name = object.id.object_name();
    match object.id.kind {
        Kind::GatewayClass => {
            let class = report.classes.get(&*object.id.name)?;
            let mut conditions = conditions(&class.conditions, generation, None);
            conditions.push(version(bundle, generation));
            Some(whole(json!({
                "conditions": conditions,
                "supportedFeatures": features::FEATURES
                    .iter()
                    .map(|name| json!({ "name": name }))
                    .collect::<Vec<_>>(),
            })))
        }
        Kind::Gateway => {
            let status = report.gateways.get(&name?)?;
            Some(gateway(status, generation, failure(outcome)))
        }
        Kind::ListenerSet => {
            let status = report.listener_sets.get(&name?)?;
            Some(whole(json!({
                "conditions": conditions(&status.conditions, generation, failure(outcome)),
                "listeners": listeners(&status.listeners, generation, failure(outcome)),
            })))
        }
        Kind::HttpRoute | Kind::GrpcRoute | Kind::TlsRoute | Kind::TcpRoute | Kind::UdpRoute => {
            let route = report
                .routes
                .get(&(object.id.kind.route()?, name?))
                .map_or(&[][..], |route| &route.parents);
            let entries = route.iter().map(|parent| {
                fields(json!({
                    "parentRef": reference(&parent.parent),
                    "conditions": conditions(&parent.conditions, generation, None),
                }))
            });
            Some(Said::Shared {
                list: "parents",
                reference: "parentRef",
                entries: entries.collect(),
            })
        }
        Kind::BackendTlsPolicy
        | Kind::SecurityPolicy
        | Kind::ClientTrafficPolicy
        | Kind::BackendTrafficPolicy => {
            let policy = report
                .policies
                .get(&(object.id.kind.document()?, name?))
                .map_or(&[][..], |policy| &policy.ancestors);
            let entries = policy.iter().map(|ancestor| {
                fields(json!({
                    "ancestorRef": reference(&ancestor.ancestor),
                    "conditions": conditions(&ancestor.conditions, generation, None),
                }))
            });
            Some(Said::Shared {
                list: "ancestors",
                reference: "ancestorRef",
                entries: entries.collect(),
            })
        }
        Kind::Cell | Kind::RoutingTable | Kind::Platform => {
            let verdict = report.objects.get(&object.id.key()?)?;
            Some(own(verdict, generation, failure(outcome), spread))
        }
        Kind::CiliumNetworkPolicy | Kind::CiliumClusterwideNetworkPolicy => {
            let verdict = report.objects.get(&object.id.key()?)?;
            Some(valid(verdict))
        }
        _ => None,
    }
}

/// Why the node did not take what the report is about.
fn failure(outcome: &Outcome) -> Option<&str> {
    outcome.active.as_ref().err().map(String::as_str)
}

fn gateway(status: &GatewayStatus, generation: i64, failure: Option<&str>) -> Said {
    let addresses: Vec<_> = status
        .addresses
        .iter()
        .map(|address| match address {
            GatewayAddress::Ip(ip) => json!({ "type": "IPAddress", "value": ip.to_string() }),
            GatewayAddress::Hostname(name) => json!({ "type": "Hostname", "value": name }),
        })
        .collect();
    Said::Whole {
        fields: fields(json!({
            "addresses": addresses,
            "conditions": conditions(&status.conditions, generation, failure),
            "listeners": listeners(&status.listeners, generation, failure),
            "attachedListenerSets": status.attached_listener_sets,
        })),
        passing: PASSING,
    }
}

/// Conditions that a gateway has only as long as it has what they are about.
const PASSING: &[ConditionKind] = &[
    ConditionKind::ResolvedRefs,
    ConditionKind::InsecureFrontendValidationMode,
];

/// A status whose conditions are always the same ones.
fn whole(said: Value) -> Said {
    Said::Whole {
        fields: fields(said),
        passing: &[],
    }
}

fn listeners(listeners: &[ListenerStatus], generation: i64, failure: Option<&str>) -> Vec<Value> {
    let listeners = listeners.iter();
    listeners
        .map(|listener| {
            let kinds: Vec<_> = listener
                .supported_kinds
                .iter()
                .map(|kind| json!({ "group": GATEWAY_API, "kind": kind.as_str() }))
                .collect();
            json!({
                "name": listener.name,
                "supportedKinds": kinds,
                "attachedRoutes": listener.attached_routes,
                "conditions": conditions(&listener.conditions, generation, failure),
            })
        })
        .collect()
}

/// Reasons of conditions that say whether an object was taken.
const TAKEN: &str = "Accepted";
const REFUSED: &str = "Invalid";

fn reason(verdict: &Verdict) -> &'static str {
    match verdict.accepted {
        true => TAKEN,
        false => REFUSED,
    }
}

/// What is wrong with an object, each mistake with its field.
fn mistakes(verdict: &Verdict) -> String {
    let mistakes = verdict.mistakes.iter().map(|mistake| {
        let field = &mistake.source.field;
        match &**field {
            "" => mistake.message.clone(),
            field => format!("{field}: {}", mistake.message),
        }
    });
    mistakes.collect::<Vec<_>>().join("; ")
}

/// A policy of Cilium's kinds, whose conditions have no generation. Cilium gives no reasons.
fn valid(verdict: &Verdict) -> Said {
    Said::Yielding {
        condition: fields(json!({
            "type": "Valid",
            "status": if verdict.accepted { "True" } else { "False" },
            "reason": reason(verdict),
            "message": shortened(&mistakes(verdict)),
        })),
        reasons: [TAKEN, REFUSED],
    }
}

/// An object of our own group: taken or not, what is wrong with it, and which nodes go by it.
fn own(verdict: &Verdict, generation: i64, failure: Option<&str>, spread: Option<&Spread>) -> Said {
    let accepted = condition(
        "Accepted",
        verdict.accepted,
        reason(verdict),
        &mistakes(verdict),
        generation,
    );
    let missing = spread.and_then(Spread::missing);
    let programmed = match failure.or(missing.as_deref()) {
        _ if !verdict.accepted => condition("Programmed", false, REFUSED, "", generation),
        Some(failure) => condition("Programmed", false, "Pending", failure, generation),
        None => condition("Programmed", true, "Programmed", "", generation),
    };
    let nodes =
        spread.map(|spread| json!({ "activated": spread.activated, "known": spread.known }));
    whole(json!({
        "observedGeneration": generation,
        "nodes": nodes,
        "conditions": [accepted, programmed],
    }))
}

/// Whether the installed kinds of the Gateway API are of a version that is known here.
fn version(bundle: Option<&str>, generation: i64) -> Value {
    let known = bundle.is_some_and(|bundle| {
        let mut parts = bundle.trim_start_matches('v').split('.');
        let major = parts.next().and_then(|part| part.parse::<u32>().ok());
        let minor = parts.next().and_then(|part| part.parse::<u32>().ok());
        major == Some(1) && minor.is_some_and(|minor| (1..=6).contains(&minor))
    });
    let message = match bundle {
        Some(_) if known => String::new(),
        Some(other) => {
            format!("kinds of version {other} are installed; known are those of 1.1 to 1.6")
        }
        None => "the installed kinds do not say which version they are of".to_owned(),
    };
    let reason = match known {
        true => "SupportedVersion",
        false => "UnsupportedVersion",
    };
    condition("SupportedVersion", known, reason, &message, generation)
}

/// Conditions as they are reported; with a failure, nothing is programmed.
fn conditions(conditions: &[Condition], generation: i64, failure: Option<&str>) -> Vec<Value> {
    let conditions = conditions.iter();
    conditions
        .map(|one| match failure {
            Some(failure) if one.kind == ConditionKind::Programmed && one.holds => {
                condition(one.kind.as_str(), false, "Pending", failure, generation)
            }
            _ => condition(
                one.kind.as_str(),
                one.holds,
                one.reason.as_str(),
                &one.message,
                generation,
            ),
        })
        .collect()
}

fn condition(kind: &str, holds: bool, reason: &str, message: &str, generation: i64) -> Value {
    json!({
        "type": kind,
        "status": if holds { "True" } else { "False" },
        "reason": reason,
        "message": shortened(message),
        "observedGeneration": generation,
    })
}

fn shortened(message: &str) -> String {
    if message.len() <= LONGEST {
        return message.to_owned();
    }
    let end = message.floor_char_boundary(LONGEST);
    format!("{}…", &message[..end])
}

fn reference(parent: &ParentRef) -> Value {
    let mut said = fields(json!({
        "group": GATEWAY_API,
        "kind": parent.kind.as_str(),
        "name": &*parent.name,
    }));
    if let Some(namespace) = &parent.namespace {
        said.insert("namespace".into(), namespace.to_string().into());
    }
    if let Some(section) = &parent.section {
        said.insert("sectionName".into(), section.to_string().into());
    }
    if let Some(port) = parent.port {
        said.insert("port".into(), port.get().into());
    }
    Value::Object(said)
}

fn fields(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(fields) => fields,
        _ => Map::new(),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::Value;
    use snapshot::status::{ClassStatus, Report};

    use super::{Outcome, Said, stirred, word};
    use crate::cluster::Seen;
    use crate::kinds::Kind;
    use crate::object::{Object, ObjectId};
    use crate::store::Objects;

    #[test]
    fn a_class_says_which_kinds_are_installed_now() {
        let id = ObjectId {
            kind: Kind::GatewayClass,
            namespace: "".into(),
            name: "cardinal".into(),
        };
        let class = Object {
            id: id.clone(),
            api_version: "gateway.networking.k8s.io/v1".into(),
            uid: "u".into(),
            generation: 1,
            document: b"{}".as_slice().into(),
            status: None,
        };
        let seen = |bundle: &str| Seen {
            objects: Objects::unit(id.clone(), Arc::new(class.clone())),
            documents: 1,
            changes: 1,
            bundle: Some(bundle.into()),
            kept: false,
            astray: false,
        };
        let status = ClassStatus {
            generation: None,
            conditions: Vec::new(),
        };
        let outcome = Outcome {
            seen: seen("v1.9.0"),
            report: Arc::new(Report {
                classes: [("cardinal".to_owned(), status)].into(),
                ..Report::default()
            }),
            active: Ok(1),
        };
        // No document has changed since, so that no other outcome follows.
        let now = seen("v1.4.0");
        assert_eq!(stirred(&outcome.seen, &now), [id].into());
        assert!(stirred(&now, &now).is_empty());
        let word = word(&class, &outcome, now.bundle.as_deref(), None).expect("a word");
        let Said::Whole { fields, .. } = word.said else {
            panic!("a class is ours alone");
        };
        let version = &fields["conditions"][0];
        assert_eq!(version["type"], "SupportedVersion");
        assert_eq!(version["status"], Value::from("True"));
    }
}
