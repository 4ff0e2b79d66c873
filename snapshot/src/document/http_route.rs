//! `HTTPRoute` (Gateway API), and what a `GRPCRoute` has in common with it.

use std::collections::BTreeSet;
use std::num::NonZeroU32;
use std::sync::Arc;

use super::{CARDINAL, ENVOY_GATEWAY, Meta, group, grpc_route, reference};
use crate::lasting::exact;
use crate::model::{
    DocumentPath, Filter, HostPattern, L7Kind, ObjectName, PathMatch, Port, RequestMatch, Retry,
    RuleTimeouts, SectionName, SessionPersistence, Timestamp,
};
use crate::reader::{Field, Object, quoted};
use crate::report::Source;
use crate::status::ParentKind;
mod cors;
mod filters;
pub(crate) mod headers;
mod matches;
pub(crate) mod remains;
mod resilience;
mod session;

pub(crate) use cors::{cors, of_policy as cors_of_policy};
pub(crate) use filters::{EditLists, edits};
use filters::{Place, filters};
pub(crate) use headers::{header_name, header_value};
pub(crate) use matches::canonical;
pub(super) use matches::header_matches;
use matches::request_match;

pub(crate) const MAX_PARENTS: usize = 32;
const MAX_HOSTNAMES: usize = 16;
const MAX_RULES: usize = 16;
const MAX_MATCHES: usize = 64;
const MAX_MATCHES_OF_ROUTE: usize = 128;
pub(crate) const MAX_ITEMS: usize = 16;
pub(crate) const MAX_WEIGHT: i64 = 1_000_000;

/// A route whose references are not resolved.
pub(crate) struct RouteDraft {
    pub(crate) parents: Vec<ParentDraft>,
    pub(crate) hostnames: Arc<[HostPattern]>,
    pub(crate) created: Option<Timestamp>,
    pub(crate) generation: Option<i64>,
    pub(crate) rules: Vec<RuleDraft>,
}

/// A parent reference.
#[derive(Clone)]
pub(crate) struct ParentDraft {
    pub(crate) source: Source,
    pub(crate) to: ParentTarget,
    pub(crate) section: Option<SectionName>,
    pub(crate) port: Option<Port>,
}

/// What a route wants to attach to.
#[derive(Clone)]
pub(crate) enum ParentTarget {
    /// Listeners.
    Listeners {
        kind: ParentKind,
        name: ObjectName,
        /// The namespace is written.
        namespaced: bool,
    },
    /// What other controllers know, and what was expected instead.
    Foreign(String),
}

/// A rule.
#[derive(Clone)]
pub(crate) struct RuleDraft {
    pub(crate) source: Source,
    pub(crate) name: Option<SectionName>,
    pub(crate) matches: Arc<[RequestMatch]>,
    pub(crate) filters: Box<[FilterDraft]>,
    pub(crate) timeouts: Option<Arc<RuleTimeouts>>,
    pub(crate) retry: Option<Arc<Retry>>,
    pub(crate) session: Option<Arc<SessionPersistence>>,
    pub(crate) backends: Box<[BackendDraft]>,
}

/// A filter, or a reference to one.
#[derive(Clone)]
pub(crate) enum FilterDraft {
    Here(Filter),
    Extension {
        source: Box<Source>,
        name: ObjectName,
    },
    Mirror {
        backend: Box<BackendDraft>,
        share: u32,
        of: NonZeroU32,
    },
}

/// A reference to where requests go.
#[derive(Clone)]
pub(crate) struct BackendDraft {
    pub(crate) source: Source,
    pub(crate) kind: BackendKind,
    pub(crate) name: ObjectName,
    pub(crate) weight: u32,
    pub(crate) filters: Box<[FilterDraft]>,
}

/// What a backend is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum BackendKind {
    Backend,
    RoutingTable,
    Service(Port),
    /// Anything else, and what was expected instead.
    Foreign(String),
}

/// Reads the `spec`.
pub(crate) fn read(spec: &mut Object<'_>, meta: &Meta) -> Option<RouteDraft> {
    route(spec, meta, L7Kind::Http)
}

/// Reads the `spec` of a route.
pub(super) fn route(spec: &mut Object<'_>, meta: &Meta, kind: L7Kind) -> Option<RouteDraft> {
    spec.unsupported(&["useDefaultGateways"]);
    let parents = parents(spec, meta);
    let mut hostnames: Vec<HostPattern> = Vec::new();
    if let Some(field) = spec.optional("hostnames") {
        for item in field.limited_list(MAX_HOSTNAMES) {
            let Some(pattern) = super::gateway::pattern(&item) else {
                continue;
            };
            if hostnames.contains(&pattern) {
                item.mistake(format_args!("`{pattern}` is in the list already"));
            } else {
                hostnames.push(pattern);
            }
        }
    }
    let rules_field = spec.required("rules");
    let mut names = BTreeSet::new();
    let mut rules = Vec::new();
    if let Some(field) = &rules_field {
        for item in field.some_limited_list(MAX_RULES) {
            let Some(mut object) = item.object() else {
                continue;
            };
            let rule = rule(&mut object, meta, kind, &mut names);
            object.finish();
            rules.extend(rule);
        }
        let matches: usize = rules.iter().map(|rule| rule.matches.len()).sum();
        if matches > MAX_MATCHES_OF_ROUTE {
            field.mistake(format_args!(
                "expected at most {MAX_MATCHES_OF_ROUTE} matches in all rules together, got {matches}"
            ));
        }
    }
    Some(RouteDraft {
        parents,
        hostnames: hostnames.into(),
        created: meta.created,
        generation: meta.generation,
        rules: exact(rules),
    })
}

/// Group of what routes attach to.
const GATEWAY_GROUP: &str = "gateway.networking.k8s.io";

/// What a route attaches to.
pub(super) fn parents(spec: &mut Object<'_>, meta: &Meta) -> Vec<ParentDraft> {
    let listed = spec
        .required("parentRefs")
        .map(|field| field.some_limited_list(MAX_PARENTS));
    let listed = listed.unwrap_or_default();
    let parents = listed.iter().filter_map(|field| parent(field, meta));
    exact(parents.collect())
}

fn parent(field: &Field<'_>, meta: &Meta) -> Option<ParentDraft> {
    let mut object = field.object()?;
    let to = parent_target(&mut object, meta);
    let section = object
        .optional("sectionName")
        .map(|field| field.parse(SectionName::new));
    let port = object.optional("port").map(|field| field.port());
    object.finish();
    let section = match section {
        Some(section) => Some(section?),
        None => None,
    };
    let port = match port {
        Some(port) => Some(port?),
        None => None,
    };
    Some(ParentDraft {
        source: field.source().lasting(),
        to: to?,
        section,
        port,
    })
}

/// What a parent reference names, but for section and port.
fn parent_target(object: &mut Object<'_>, meta: &Meta) -> Option<ParentTarget> {
    let group = object.optional("group").map(|field| field.string());
    let kind = object.optional("kind").map(|field| field.string());
    let namespaced = object.optional("namespace").is_some();
    let name = reference(object, meta);
    let group = group.map_or(Some(GATEWAY_GROUP), |given| given)?;
    let kind = kind.map_or(Some(ParentKind::Gateway.as_str()), |given| given)?;
    let name = name?;
    let known = [ParentKind::Gateway, ParentKind::ListenerSet]
        .into_iter()
        .find(|known| group == GATEWAY_GROUP && kind == known.as_str());
    Some(match known {
        Some(kind) => ParentTarget::Listeners {
            kind,
            name,
            namespaced,
        },
        None => ParentTarget::Foreign(format!(
            "expected kind `Gateway` or `ListenerSet` of group `{GATEWAY_GROUP}`, got {} of {}",
            quoted(kind),
            quoted(group)
        )),
    })
}

fn rule(
    object: &mut Object<'_>,
    meta: &Meta,
    kind: L7Kind,
    names: &mut BTreeSet<SectionName>,
) -> Option<RuleDraft> {
    let source = object.field().source().lasting();
    let name = object.optional("name").and_then(|field| {
        let name = field.parse(SectionName::new)?;
        if !names.insert(name.clone()) {
            field.mistake(format_args!("rule `{name}` is in the list already"));
        }
        Some(name)
    });
    let one_match = match kind {
        L7Kind::Http => request_match,
        L7Kind::Grpc => grpc_route::call_match,
    };
    let mut matches = Vec::new();
    if let Some(field) = object.optional("matches") {
        matches = field
            .limited_list(MAX_MATCHES)
            .iter()
            .filter_map(one_match)
            .collect();
    }
    if matches.is_empty() {
        // Gateway API: a rule without matches takes every request.
        matches.push(match kind {
            L7Kind::Http => RequestMatch::new(PathMatch::Prefix(DocumentPath::root())),
            L7Kind::Grpc => grpc_route::any_call(),
        });
    }
    let prefixes = matches
        .iter()
        .all(|given| matches!(given.path, PathMatch::Prefix(_)));
    let place = |backend| Place {
        kind,
        backend,
        prefixes,
    };
    let filters = filters(object, meta, place(false));
    let backends: Vec<BackendDraft> = object
        .optional("backendRefs")
        .map(|field| field.limited_list(MAX_ITEMS))
        .unwrap_or_default()
        .iter()
        .filter_map(|field| backend(field, meta, place(true)))
        .collect();
    // A call brings its own time, and a `GRPCRoute` has neither field.
    let mut http_only = |name| match kind {
        L7Kind::Http => object.optional(name),
        L7Kind::Grpc => None,
    };
    let timeouts = http_only("timeouts").map(|field| resilience::timeouts(&field));
    let retry = http_only("retry").map(|field| resilience::retry(&field));
    let session = object.optional("sessionPersistence").and_then(|field| {
        let session = session::session(&field, &usual_session(meta, kind, &source))?;
        for backend in &backends {
            if backend.kind == BackendKind::RoutingTable {
                field.mistake("a `RoutingTable` places requests by their key; expected backends of kind `Backend`");
            }
        }
        Some(Arc::new(session))
    });
    Some(RuleDraft {
        session,
        timeouts: timeouts.flatten().map(Arc::new),
        retry: retry.flatten().map(Arc::new),
        source,
        name,
        matches: match &*matches {
            [one] if one.is_every() => RequestMatch::every(),
            _ => matches.into(),
        },
        filters: filters.into(),
        backends: exact(backends).into(),
    })
}

/// A session's name that no other rule has: two cookies of one name would push each other out.
fn usual_session(meta: &Meta, kind: L7Kind, rule: &Source) -> String {
    let position: String = rule.field.chars().filter(char::is_ascii_digit).collect();
    let kind = match kind {
        L7Kind::Http => "",
        L7Kind::Grpc => "grpc-",
    };
    format!(
        "cardinal-{kind}{}-{}-{position}",
        meta.name.namespace(),
        meta.name.name()
    )
}

fn backend(field: &Field<'_>, meta: &Meta, place: Place) -> Option<BackendDraft> {
    let mut object = field.object()?;
    let weight = match object.optional("weight") {
        Some(field) => field.integer(0..=MAX_WEIGHT),
        None => Some(1),
    };
    let filters = filters(&mut object, meta, place);
    let draft = backend_reference(field, object, meta)?;
    Some(BackendDraft {
        weight: u32::try_from(weight?).ok()?,
        filters: filters.into(),
        ..draft
    })
}

/// Group, kind, namespace, name and port, and nothing else that was not read before.
pub(crate) fn backend_reference(
    field: &Field<'_>,
    mut object: Object<'_>,
    meta: &Meta,
) -> Option<BackendDraft> {
    let group_field = object.optional("group");
    let kind_field = object.optional("kind");
    let reference = reference(&mut object, meta);
    let port = object.optional("port");
    object.finish();
    let given_kind = match &kind_field {
        Some(field) => field.string()?,
        None => "Service",
    };
    let given_group = match &group_field {
        Some(field) => field.string()?,
        None => "",
    };
    let kind = match (given_group, given_kind) {
        (given, "Backend") if given == group(ENVOY_GATEWAY) => BackendKind::Backend,
        (given, "RoutingTable") if given == group(CARDINAL) => BackendKind::RoutingTable,
        ("", "Service") => match &port {
            Some(port) => BackendKind::Service(port.port()?),
            None => {
                field.mistake("expected `port`: a `Service` has several");
                return None;
            }
        },
        (given_group, given_kind) => BackendKind::Foreign(format!(
            "expected kind `Service`, `Backend` of group `gateway.envoyproxy.io` or `RoutingTable` of `cardinal.dev`, got {} of {}",
            quoted(given_kind),
            quoted(given_group)
        )),
    };
    if let (BackendKind::Backend | BackendKind::RoutingTable, Some(port)) = (&kind, port) {
        port.mistake("the endpoints of the target have ports of their own; expected no port");
    }
    Some(BackendDraft {
        source: field.source().lasting(),
        kind,
        name: reference?,
        weight: 1,
        filters: Box::default(),
    })
}
