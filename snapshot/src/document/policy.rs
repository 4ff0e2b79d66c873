//! What a policy is for (Gateway API, policy attachment), alike in all kinds of policies.

use super::backend_tls::{self, TlsTarget};
use super::{Kind, Meta, name};
use crate::model::{L7Kind, Name, ObjectName, RouteName};
use crate::reader::{Field, Object, Sink};
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

/// What policies that could not be read are for. It is closed: nobody knows what they would have refused.
#[derive(Default)]
pub(crate) struct Closed {
    pub(crate) targets: Targets,
    pub(crate) backends: Vec<(Source, TlsTarget)>,
}

/// Reads what a policy is for, whatever else is in it. Its mistakes are known.
pub(super) fn closed(kind: Kind, meta: &Meta, root: &Field<'_>) -> Closed {
    let known = Sink::default();
    let root = root.told(&known);
    let spec = root.object().and_then(|mut root| root.optional("spec"));
    let Some(mut spec) = spec.and_then(|spec| spec.object()) else {
        return Closed::default();
    };
    let (mut to, mut backends) = (Targets::new(), Vec::new());
    match kind {
        Kind::SecurityPolicy | Kind::BackendTrafficPolicy => to = targets(&mut spec, meta),
        Kind::ClientTrafficPolicy => to = gateways(&mut spec, meta),
        Kind::BackendTLSPolicy => backends = backend_tls::targets(&mut spec, meta),
        _ => {}
    }
    Closed {
        targets: to,
        backends,
    }
}

/// `targetRef` or `targetRefs` of a `spec`: routes, gateways, and parts of both.
pub(crate) fn targets(spec: &mut Object<'_>, meta: &Meta) -> Targets {
    let route = |kind: L7Kind| (kind.as_str(), Some(kind));
    let kinds = [route(L7Kind::Http), route(L7Kind::Grpc), ("Gateway", None)];
    of(spec, meta, &kinds)
}

/// The same of a policy that is for gateways and listeners only.
pub(crate) fn gateways(spec: &mut Object<'_>, meta: &Meta) -> Targets {
    of(spec, meta, &[("Gateway", None)])
}

/// Kinds by name; what is no route is a gateway.
type Kinds = [(&'static str, Option<L7Kind>)];

fn of(spec: &mut Object<'_>, meta: &Meta, kinds: &Kinds) -> Targets {
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
        let Some(target) = target(&item, meta, kinds) else {
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

fn target(field: &Field<'_>, meta: &Meta, kinds: &Kinds) -> Option<PolicyTarget> {
    let mut object = field.object()?;
    if let Some(field) = object.required("group") {
        field.choice(&[("gateway.networking.k8s.io", ())]);
    }
    let kind = object
        .required("kind")
        .and_then(|field| field.choice(kinds));
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
