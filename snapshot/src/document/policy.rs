//! What a policy is for (Gateway API, policy attachment), alike in all kinds of policies.

use super::{Meta, name};
use crate::model::{L7Kind, Name, ObjectName, RouteName};
use crate::reader::{Field, Object};
use crate::report::Source;

/// Gateway API, policy attachment: at most 16 targets.
const MAX_TARGETS: usize = 16;

/// Targets of a policy, each with its field.
pub(crate) type Targets = Vec<(Source, PolicyTarget)>;

/// What a policy is for, from the most specific on.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum PolicyTarget {
    Rule(RouteName, Name),
    Route(RouteName),
    Listener(ObjectName, Name),
    Gateway(ObjectName),
}

/// `targetRef` or `targetRefs` of a `spec`.
pub(crate) fn targets(spec: &mut Object<'_>, meta: &Meta) -> Targets {
    let single = spec.optional("targetRef");
    let several = spec.optional("targetRefs");
    let items = match (single, several) {
        (Some(field), None) => vec![field],
        (None, Some(field)) => field.some_limited_list(MAX_TARGETS),
        (Some(_), Some(field)) => {
            field.mistake("expected either `targetRef` or `targetRefs`, got both");
            Vec::new()
        }
        (None, None) => {
            spec.field().sink().mistake(
                spec.at("targetRefs"),
                "is missing, and required: a policy without target has no effect",
            );
            Vec::new()
        }
    };
    let mut targets = Targets::new();
    for item in items {
        let Some(target) = target(&item, meta) else {
            continue;
        };
        if targets.iter().any(|(_, other)| *other == target) {
            item.mistake("this target is in the list already");
        } else {
            targets.push((item.source().clone(), target));
        }
    }
    targets
}

fn target(field: &Field<'_>, meta: &Meta) -> Option<PolicyTarget> {
    let mut object = field.object()?;
    if let Some(field) = object.required("group") {
        field.choice(&[("gateway.networking.k8s.io", ())]);
    }
    let kind = object.required("kind").and_then(|field| {
        let route = |kind: L7Kind| (kind.as_str(), Some(kind));
        field.choice(&[route(L7Kind::Http), route(L7Kind::Grpc), ("Gateway", None)])
    });
    let target = object
        .required("name")
        .and_then(|field| field.parse(|text| ObjectName::new(meta.name.namespace(), text)));
    let section = object.optional("sectionName");
    object.finish();
    let (kind, target) = (kind?, target?);
    let section = match section {
        Some(field) => Some(name(&field)?),
        None => None,
    };
    let route = |kind, name| RouteName { kind, name };
    Some(match (kind, section) {
        (None, Some(listener)) => PolicyTarget::Listener(target, listener),
        (None, None) => PolicyTarget::Gateway(target),
        (Some(kind), Some(rule)) => PolicyTarget::Rule(route(kind, target), rule),
        (Some(kind), None) => PolicyTarget::Route(route(kind, target)),
    })
}
