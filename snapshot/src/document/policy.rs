//! What a policy is for (Gateway API, policy attachment), alike in all kinds of policies.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::backend_tls::{self, TlsTarget};
use super::cell::remains::Remains;
use super::http_route::{RouteDraft, remains};
use super::l4_route::{self, L4RouteDraft};
use super::labels::Labels;
use super::listener_set::{self, ListenerSetDraft};
use super::network_policy::{self, PolicyDraft, cilium};
use super::{Kind, Meta};
use crate::model::{L4Kind, L7Kind, ObjectName, RouteName, SectionName};
use crate::reader::{Field, Object, Sink};
use crate::report::Source;

pub(crate) mod merge;
mod selector;

use selector::Selector;

/// Gateway API, policy attachment: at most 16 targets.
const MAX_TARGETS: usize = 16;

/// Targets of a policy.
#[derive(Clone, Default)]
pub(crate) struct Targets {
    /// By name, each with its field.
    named: Vec<(Source, PolicyTarget)>,
    /// By labels.
    selectors: Vec<Selector>,
    /// Sets of listeners that a refused policy is for; there are none of others.
    pub(crate) sets: Vec<SetTarget>,
}

/// Sets of listeners, of one namespace.
#[derive(Clone)]
pub(crate) enum SetTarget {
    /// With one of its listeners, or all.
    Named(ObjectName, Option<SectionName>),
    /// Some are selected by labels. All are closed then.
    All(Arc<str>),
}

/// Labels of what policies may be for.
pub(crate) type Labelled<'a> = BTreeMap<PolicyTarget, &'a Labels>;

impl Targets {
    /// All of them, each once and with its field. Says which selector selects nothing.
    pub(crate) fn resolve(
        &self,
        labelled: &Labelled<'_>,
        sink: &Sink,
    ) -> Vec<(Source, PolicyTarget)> {
        let mut targets = self.named.clone();
        for selector in &self.selectors {
            let selected = labelled
                .iter()
                .filter(|(target, labels)| selector.selects(target, labels));
            let before = targets.len();
            let mut known = false;
            for (target, _) in selected {
                match targets.iter().any(|(_, other)| other == target) {
                    true => known = true,
                    false => targets.push((selector.source.clone(), target.clone())),
                }
            }
            if targets.len() == before && !known {
                let message =
                    "selects nothing: no object of its kind and namespace has such labels";
                sink.warning(selector.source.clone(), message);
            }
        }
        targets
    }

    /// Whether all of them are routes, or rules of routes.
    pub(crate) fn are_routes(&self) -> bool {
        let named = self.named.iter();
        let mut named = named
            .map(|(_, target)| matches!(target, PolicyTarget::Rule(..) | PolicyTarget::Route(_)));
        named.all(|is_route| is_route) && self.selectors.iter().all(|one| one.kind.is_some())
    }
}

/// What a policy is for, from the most specific on.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum PolicyTarget {
    Rule(RouteName, SectionName),
    Route(RouteName),
    Listener(ObjectName, SectionName),
    Gateway(ObjectName),
}

/// What documents that could not be read are about. It is closed: nobody knows what they would have refused.
#[derive(Default)]
pub(crate) struct Closed {
    pub(crate) targets: Targets,
    pub(crate) backends: Vec<(Source, TlsTarget)>,
    /// What is left of a network policy.
    pub(crate) isolates: Option<Arc<PolicyDraft>>,
    /// What is left of a cell.
    pub(crate) cell: Option<Remains>,
    /// Routes of layer 4 that a policy is for, to which no policy can say anything.
    pub(crate) l4_routes: Vec<L4Target>,
    /// What is left of a route.
    pub(crate) route: Option<ClosedRoute>,
    /// What is left of a set of listeners.
    pub(crate) set: Option<Arc<ListenerSetDraft>>,
}

/// A route that is refused: no other one serves what it is about.
#[derive(Clone)]
pub(crate) enum ClosedRoute {
    L7(L7Kind, Arc<RouteDraft>),
    L4(L4Kind, Arc<L4RouteDraft>),
}

impl ClosedRoute {
    fn read(kind: Kind, spec: &mut Object<'_>, meta: &Meta) -> Option<Self> {
        let l7 = |kind, spec| Some(Self::L7(kind, remains::closed(spec, meta, kind)?.into()));
        let l4 = |kind, spec| Some(Self::L4(kind, l4_route::closed(spec, meta, kind)?.into()));
        match kind {
            Kind::HTTPRoute => l7(L7Kind::Http, spec),
            Kind::GRPCRoute => l7(L7Kind::Grpc, spec),
            Kind::TLSRoute => l4(L4Kind::Tls, spec),
            Kind::TCPRoute => l4(L4Kind::Tcp, spec),
            Kind::UDPRoute => l4(L4Kind::Udp, spec),
            _ => None,
        }
    }
}

/// Routes of layer 4, of one namespace.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum L4Target {
    Named(L4Kind, ObjectName),
    /// Some are selected by labels. All are closed then.
    All(L4Kind, Arc<str>),
}

/// Reads what a document is about, whatever else is in it. Its mistakes are known.
pub(super) fn closed(kind: Kind, meta: &Meta, root: &Field<'_>) -> Closed {
    let known = Sink::default();
    let root = root.told(&known);
    let object = root.object();
    let (spec, specs) = object.map_or((None, None), |mut root| {
        (root.optional("spec"), root.optional("specs"))
    });
    let mut spec = spec.and_then(|spec| spec.object());
    // Cilium has policies of several specs, of which each may be about other pods.
    let of_cilium = |own: Option<&Arc<str>>, spec| match specs {
        Some(_) => cilium::closed(None, own),
        None => cilium::closed(spec, own),
    };
    let isolates = match kind {
        Kind::NetworkPolicy => Some(network_policy::closed(spec.as_mut(), meta)),
        Kind::CiliumNetworkPolicy => {
            let own = meta.name.namespace().into();
            Some(of_cilium(Some(&own), spec.as_mut()))
        }
        Kind::CiliumClusterwideNetworkPolicy => Some(of_cilium(None, spec.as_mut())),
        _ => None,
    };
    let cell = (kind == Kind::Cell).then(|| Remains::read(spec.as_mut(), meta));
    let (mut to, mut backends, mut l4) = (Targets::default(), Vec::new(), Vec::new());
    let isolates = isolates.map(Arc::new);
    let Some(mut spec) = spec else {
        return Closed {
            isolates,
            cell,
            ..Closed::default()
        };
    };
    let route = ClosedRoute::read(kind, &mut spec, meta);
    let set = (kind == Kind::ListenerSet).then(|| listener_set::read(&mut spec, meta));
    let others = Others::of(&mut spec);
    match kind {
        Kind::SecurityPolicy | Kind::BackendTrafficPolicy => {
            to = targets(&mut spec, meta);
            to.sets = others.sets(meta);
            l4 = others.l4_routes(meta);
        }
        Kind::ClientTrafficPolicy => {
            to = gateways(&mut spec, meta);
            to.sets = others.sets(meta);
        }
        Kind::BackendTLSPolicy => backends = backend_tls::targets(&mut spec, meta),
        _ => {}
    }
    Closed {
        targets: to,
        backends,
        isolates,
        cell,
        l4_routes: l4,
        route,
        set: set.flatten().map(Arc::new),
    }
}

/// Targets of a refused policy that no policy can be for here: by name, and those of which some are selected by labels.
struct Others<'a> {
    named: Vec<Field<'a>>,
    selected: Vec<Field<'a>>,
}

impl<'a> Others<'a> {
    fn of(spec: &mut Object<'a>) -> Self {
        let single = spec.optional("targetRef").into_iter();
        let mut list = |name| spec.optional(name).map(|field| field.list());
        let (several, selectors) = (list("targetRefs"), list("targetSelectors"));
        Self {
            named: single.chain(several.into_iter().flatten()).collect(),
            selected: selectors.into_iter().flatten().collect(),
        }
    }

    /// Routes of layer 4.
    fn l4_routes(&self, meta: &Meta) -> Vec<L4Target> {
        let kind = |item: &Field<'_>| {
            let mut kinds = [L4Kind::Tls, L4Kind::Tcp, L4Kind::Udp].into_iter();
            kinds.find(|kind| text(item, "kind") == Some(kind.as_str()))
        };
        let namespace = meta.name.namespace();
        let named = self.named.iter().filter_map(|item| {
            let name = ObjectName::new(namespace, text(item, "name")?).ok()?;
            Some(L4Target::Named(kind(item)?, name))
        });
        let selected = self.selected.iter();
        let selected =
            selected.filter_map(|item| Some(L4Target::All(kind(item)?, namespace.into())));
        named.chain(selected).collect()
    }

    /// Sets of listeners. A section that cannot be read is the whole set.
    fn sets(&self, meta: &Meta) -> Vec<SetTarget> {
        let is_set = |item: &&Field<'_>| text(item, "kind") == Some("ListenerSet");
        let namespace = meta.name.namespace();
        let named = self.named.iter().filter(is_set).filter_map(|item| {
            let name = ObjectName::new(namespace, text(item, "name")?).ok()?;
            let section = text(item, "sectionName").and_then(|name| SectionName::new(name).ok());
            Some(SetTarget::Named(name, section))
        });
        let selected = self.selected.iter().filter(is_set);
        let selected = selected.map(|_| SetTarget::All(namespace.into()));
        named.chain(selected).collect()
    }
}

fn text<'a>(item: &Field<'a>, name: &str) -> Option<&'a str> {
    item.value().get(name).and_then(|node| node.value.text())
}

/// `targetRef`, `targetRefs` and `targetSelectors` of a `spec`: routes, gateways, and parts of both.
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
    let by_labels = spec.optional("targetSelectors");
    let selectors = by_labels.as_ref().map_or_else(Vec::new, |field| {
        let items = some_list(field);
        let read = items.iter();
        read.filter_map(|item| selector::read(item, meta, kinds))
            .collect()
    });
    let items = match (single, several) {
        (Some(field), None) => vec![field],
        (None, Some(field)) => some_list(&field),
        (Some(single), Some(field)) => {
            field.mistake("expected either `targetRef` or `targetRefs`, got both");
            let several = some_list(&field);
            several.into_iter().chain([single]).collect()
        }
        (None, None) if by_labels.is_some() => Vec::new(),
        (None, None) => {
            spec.field().sink().mistake(
                spec.at("targetRefs"),
                "is missing, and required: a policy without target has no effect",
            );
            Vec::new()
        }
    };
    let mut named: Vec<(Source, PolicyTarget)> = Vec::new();
    for item in items {
        let Some(target) = target(&item, meta, kinds) else {
            continue;
        };
        if named.iter().any(|(_, other)| *other == target) {
            item.mistake("this target is in the list already");
        } else {
            named.push((item.source().clone(), target));
        }
    }
    Targets {
        named,
        selectors,
        sets: Vec::new(),
    }
}

/// All items of a list, also where there are too many: a policy closes what it is for if it is refused.
pub(super) fn some_list<'a>(field: &Field<'a>) -> Vec<Field<'a>> {
    let items = field.some_list();
    if items.len() > MAX_TARGETS {
        field.mistake(format_args!(
            "expected at most {MAX_TARGETS} items, got {}",
            items.len()
        ));
    }
    items
}

/// A target; one whose section cannot be read is all of it, as the policy is refused and closes.
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
    let section = section.and_then(|field| field.parse(SectionName::new));
    let route = |kind, name| RouteName { kind, name };
    Some(match (kind, section) {
        (None, Some(listener)) => PolicyTarget::Listener(target, listener),
        (None, None) => PolicyTarget::Gateway(target),
        (Some(kind), Some(rule)) => PolicyTarget::Rule(route(kind, target), rule),
        (Some(kind), None) => PolicyTarget::Route(route(kind, target)),
    })
}
