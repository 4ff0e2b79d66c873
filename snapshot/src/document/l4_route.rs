//! `TLSRoute`, `TCPRoute` and `UDPRoute` (Gateway API): one rule, and where it leads.

use super::Meta;
use super::http_route::{
    BackendDraft, BackendKind, MAX_ITEMS, MAX_WEIGHT, ParentDraft, backend_reference, parents,
    remains,
};
use crate::model::{HostPattern, L4Kind, SectionName, Timestamp};
use crate::reader::{Field, Object};

/// Gateway API, `TLSRoute.hostnames`.
const MAX_HOSTNAMES: usize = 1024;
/// Gateway API: a rule has nothing to tell connections apart by, so there is one.
const MAX_RULES: usize = 1;

/// A route whose references are not resolved.
pub(crate) struct L4RouteDraft {
    pub(crate) parents: Vec<ParentDraft>,
    /// Server names; never empty in a `TLSRoute`, always in the others.
    pub(crate) hostnames: Vec<HostPattern>,
    pub(crate) created: Option<Timestamp>,
    pub(crate) generation: Option<i64>,
    pub(crate) backends: Vec<BackendDraft>,
}

/// Reads the `spec` of a `TLSRoute`.
pub(crate) fn tls(spec: &mut Object<'_>, meta: &Meta) -> Option<L4RouteDraft> {
    let mut hostnames: Vec<HostPattern> = Vec::new();
    let field = spec.required("hostnames");
    let items = field.map(|field| field.some_limited_list(MAX_HOSTNAMES));
    for item in items.unwrap_or_default() {
        let Some(pattern) = super::gateway::pattern(&item) else {
            continue;
        };
        if hostnames.contains(&pattern) {
            item.mistake(format_args!("`{pattern}` is in the list already"));
        } else {
            hostnames.push(pattern);
        }
    }
    // Without a name that can be read the route would take every one.
    let read = read(spec, meta);
    if hostnames.is_empty() {
        return None;
    }
    Some(L4RouteDraft { hostnames, ..read? })
}

/// Reads the `spec` of a `TCPRoute`.
pub(crate) fn tcp(spec: &mut Object<'_>, meta: &Meta) -> Option<L4RouteDraft> {
    read(spec, meta)
}

/// Reads the `spec` of a `UDPRoute`.
pub(crate) fn udp(spec: &mut Object<'_>, meta: &Meta) -> Option<L4RouteDraft> {
    read(spec, meta)
}

/// What a refused route is about, as far as that can be read; none: nothing. It leads nowhere.
pub(super) fn closed(spec: &mut Object<'_>, meta: &Meta, kind: L4Kind) -> Option<L4RouteDraft> {
    let hostnames = match kind {
        L4Kind::Tls => remains::hostnames(spec).filter(|hostnames| !hostnames.is_empty())?,
        L4Kind::Tcp | L4Kind::Udp => Vec::new(),
    };
    Some(L4RouteDraft {
        parents: remains::parents(spec, meta),
        hostnames,
        created: meta.created,
        generation: meta.generation,
        backends: Vec::new(),
    })
}

fn read(spec: &mut Object<'_>, meta: &Meta) -> Option<L4RouteDraft> {
    spec.unsupported(&["useDefaultGateways"]);
    let parents = parents(spec, meta);
    let rules = spec
        .required("rules")
        .map(|field| field.some_limited_list(MAX_RULES))
        .unwrap_or_default();
    let backends = rules.first().and_then(|rule| {
        let mut object = rule.object()?;
        if let Some(field) = object.optional("name") {
            field.parse(SectionName::new);
        }
        let backends = object
            .required("backendRefs")
            .map(|field| field.some_limited_list(MAX_ITEMS));
        object.finish();
        let backends = backends?;
        Some(
            backends
                .iter()
                .filter_map(|field| backend(field, meta))
                .collect(),
        )
    });
    Some(L4RouteDraft {
        parents,
        hostnames: Vec::new(),
        created: meta.created,
        generation: meta.generation,
        backends: backends?,
    })
}

fn backend(field: &Field<'_>, meta: &Meta) -> Option<BackendDraft> {
    let mut object = field.object()?;
    let weight = match object.optional("weight") {
        Some(field) => field.integer(0..=MAX_WEIGHT),
        None => Some(1),
    };
    let draft = backend_reference(field, object, meta)?;
    if draft.kind == BackendKind::RoutingTable {
        field.mistake("a `RoutingTable` places requests of HTTP; expected kind `Service`, or `Backend` of group `gateway.envoyproxy.io`");
        return None;
    }
    Some(BackendDraft {
        weight: u32::try_from(weight?).ok()?,
        ..draft
    })
}
