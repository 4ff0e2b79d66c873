//! Targets by their labels (Envoy Gateway, `TargetSelector`; Kubernetes, label selectors).

use super::super::Meta;
use super::super::labels::Labels;
use super::super::selector;
use super::{Kinds, PolicyTarget};
use crate::model::L7Kind;
use crate::reader::Field;
use crate::report::Source;

/// Selects objects of one kind and namespace.
#[derive(Clone)]
pub(crate) struct Selector {
    pub(crate) source: Source,
    namespace: String,
    /// The kind of route; none: gateways.
    pub(crate) kind: Option<L7Kind>,
    wanted: selector::Selector,
}

impl Selector {
    /// Whether a target has the kind, the namespace and the labels.
    pub(crate) fn selects(&self, target: &PolicyTarget, labels: &Labels) -> bool {
        let (kind, name) = match target {
            PolicyTarget::Route(route) => (Some(route.kind), &route.name),
            PolicyTarget::Gateway(name) => (None, name),
            PolicyTarget::Rule(..) | PolicyTarget::Listener(..) => return false,
        };
        kind == self.kind && name.namespace() == self.namespace && self.wanted.selects(labels)
    }
}

/// One item of `targetSelectors`.
pub(super) fn read(field: &Field<'_>, meta: &Meta, kinds: &Kinds) -> Option<Selector> {
    let mut object = field.object()?;
    if let Some(field) = object.optional("group") {
        field.choice(&[("gateway.networking.k8s.io", ())]);
    }
    let kind = object
        .required("kind")
        .and_then(|field| field.choice(kinds));
    if let Some(field) = object.optional("namespaces") {
        same(&field);
    }
    let wanted = selector::requirements(&mut object);
    object.finish();
    Some(Selector {
        source: field.source().clone(),
        namespace: meta.name.namespace().to_owned(),
        kind: kind?,
        // Labels that cannot be read are those of every object: the policy is refused, and closes.
        wanted: wanted.unwrap_or_default(),
    })
}

/// `namespaces`: of others only what a `ReferenceGrant` lets be selected.
fn same(field: &Field<'_>) {
    let Some(mut object) = field.object() else {
        return;
    };
    object.unsupported(&["selector"]);
    if let Some(field) = object.optional("from") {
        field.choice(&[("Same", ())]);
    }
    object.finish();
}
