//! Targets by their labels (Envoy Gateway, `TargetSelector`; Kubernetes, label selectors).

use std::collections::{BTreeMap, BTreeSet};

use super::super::Meta;
use super::{Kinds, PolicyTarget};
use crate::model::L7Kind;
use crate::reader::{Field, Object};
use crate::report::Source;

/// Requirements of a selector, values of a requirement.
const MAX_ITEMS: usize = 64;

/// Labels of an object.
pub(crate) type Labels = BTreeMap<String, String>;

/// Selects objects of one kind and namespace.
pub(crate) struct Selector {
    pub(crate) source: Source,
    namespace: String,
    /// The kind of route; none: gateways.
    pub(crate) kind: Option<L7Kind>,
    wanted: Vec<Requirement>,
}

/// What is asked of the labels of an object.
enum Requirement {
    In(String, BTreeSet<String>),
    NotIn(String, BTreeSet<String>),
    Exists(String),
    DoesNotExist(String),
}

#[derive(Clone, Copy)]
enum Operator {
    In,
    NotIn,
    Exists,
    DoesNotExist,
}

impl Selector {
    /// Whether a target has the kind, the namespace and the labels.
    pub(crate) fn selects(&self, target: &PolicyTarget, labels: &Labels) -> bool {
        let (kind, name) = match target {
            PolicyTarget::Route(route) => (Some(route.kind), &route.name),
            PolicyTarget::Gateway(name) => (None, name),
            PolicyTarget::Rule(..) | PolicyTarget::Listener(..) => return false,
        };
        kind == self.kind
            && name.namespace() == self.namespace
            && self.wanted.iter().all(|one| one.holds(labels))
    }
}

impl Requirement {
    fn holds(&self, labels: &Labels) -> bool {
        let is_in = |key: &String, values: &BTreeSet<String>| {
            labels.get(key).is_some_and(|value| values.contains(value))
        };
        match self {
            Self::In(key, values) => is_in(key, values),
            // An object without the label too.
            Self::NotIn(key, values) => !is_in(key, values),
            Self::Exists(key) => labels.contains_key(key),
            Self::DoesNotExist(key) => !labels.contains_key(key),
        }
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
    let same = object.optional("namespaces").map(|field| same(&field));
    let mut wanted = Vec::new();
    if let Some(field) = object.optional("matchLabels") {
        for (key, value) in field.entries() {
            let value = value.string().map(str::to_owned);
            wanted.extend(value.map(|value| Requirement::In(key.to_owned(), [value].into())));
        }
    }
    if let Some(field) = object.optional("matchExpressions") {
        let items = field.limited_list(MAX_ITEMS);
        wanted.extend(items.iter().filter_map(expression));
    }
    object.finish();
    same.unwrap_or(Some(()))?;
    Some(Selector {
        source: field.source().clone(),
        namespace: meta.name.namespace().to_owned(),
        kind: kind?,
        wanted,
    })
}

/// `namespaces`: of others only what a `ReferenceGrant` lets be selected.
fn same(field: &Field<'_>) -> Option<()> {
    let mut object = field.object()?;
    object.unsupported(&["selector"]);
    let same = match object.optional("from") {
        Some(field) => field.choice(&[("Same", ())]),
        None => Some(()),
    };
    object.finish();
    same
}

fn expression(field: &Field<'_>) -> Option<Requirement> {
    let mut object = field.object()?;
    let key = object
        .required("key")
        .and_then(|field| Some(field.some_string()?.to_owned()));
    let operator = object.required("operator").and_then(|field| {
        field.choice(&[
            ("In", Operator::In),
            ("NotIn", Operator::NotIn),
            ("Exists", Operator::Exists),
            ("DoesNotExist", Operator::DoesNotExist),
        ])
    });
    let (key, operator) = (key?, operator?);
    let requirement = match operator {
        Operator::In => Requirement::In(key, values(&mut object)?),
        Operator::NotIn => Requirement::NotIn(key, values(&mut object)?),
        Operator::Exists => Requirement::Exists(key),
        Operator::DoesNotExist => Requirement::DoesNotExist(key),
    };
    object.finish();
    Some(requirement)
}

fn values(object: &mut Object<'_>) -> Option<BTreeSet<String>> {
    let items = object.required("values")?.some_limited_list(MAX_ITEMS);
    let values: BTreeSet<_> = items
        .iter()
        .filter_map(|item| Some(item.string()?.to_owned()))
        .collect();
    (!values.is_empty()).then_some(values)
}
