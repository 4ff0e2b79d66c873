//! Routes of documents: attached to listeners, references resolved.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use crate::document::Table;
use crate::document::gateway::{GatewayDraft, ListenerDraft};
use crate::document::http_route::{
    BackendDraft, BackendKind, FilterDraft, ParentDraft, RouteDraft, RuleDraft,
};
use crate::model::{
    Filter, HostPattern, L7Kind, Listener, Mirror, Name, ObjectName, Origin, Parent, Route,
    RouteKind, RouteName, RoutingTable, Rule, Target, Upstream, WeightedTarget, effective_hosts,
};
use crate::reader::Sink;
use crate::report::Source;

/// A route and the names of its rules, which policies aim at.
pub(super) struct Linked {
    pub(super) route: Route,
    pub(super) rule_names: Vec<Option<Name>>,
}

/// Routes of documents. One without draft has mistakes of its own and leaves its name.
pub(super) type Documents = BTreeMap<RouteName, Option<Linked>>;

pub(super) type Gateways = BTreeMap<ObjectName, Option<Arc<GatewayDraft>>>;

/// Endpoints of `Backend`s, or why requests to one are answered with 500.
pub(super) type Backends = BTreeMap<ObjectName, Result<Vec<Upstream>, String>>;

/// What routes refer to.
pub(super) struct References<'a> {
    pub(super) gateways: &'a Gateways,
    pub(super) tables: &'a Table<RoutingTable>,
    pub(super) backends: &'a Backends,
    pub(super) filters: &'a Table<Filter>,
    pub(super) sink: &'a Sink,
}

/// Links every route, from the one that wins where two cannot both be: the oldest, then the first by name
/// (Gateway API, `GRPCRoute`: an `HTTPRoute` and a `GRPCRoute` that share a host of a listener).
pub(super) fn routes(drafts: [(L7Kind, Table<RouteDraft>); 2], to: &References<'_>) -> Documents {
    let mut documents = Documents::new();
    let mut found: Vec<(RouteName, Source, Arc<RouteDraft>)> = Vec::new();
    for (kind, drafts) in drafts {
        for (name, (declared, draft)) in drafts {
            let name = RouteName { kind, name };
            match draft {
                Some(draft) => found.push((name, declared, draft)),
                None => {
                    documents.insert(name, None);
                }
            }
        }
    }
    found.sort_by_cached_key(|(name, _, draft)| {
        let age = (draft.created.is_none(), draft.created);
        (age, name.name.clone(), name.kind)
    });
    let mut taken = Taken::default();
    for (name, declared, draft) in found {
        let mut parents: Vec<Parent> = Vec::new();
        for parent in &draft.parents {
            for (listener, attached) in attached(
                parent,
                RouteKind::L7(name.kind),
                &name.name,
                &draft.hostnames,
                to,
            ) {
                if parents.contains(&attached) {
                    continue;
                }
                match taken.take(&attached, listener, &name, &draft.hostnames) {
                    None => parents.push(attached),
                    Some(winner) => to.sink.warning(
                        parent.source.clone(),
                        format_args!(
                            "has no effect at listener `{}`: {winner} serves hosts of this route there, and is older or comes first by name",
                            listener.name
                        ),
                    ),
                }
            }
        }
        let linked = Linked {
            rule_names: draft.rules.iter().map(|rule| rule.name.clone()).collect(),
            route: Route {
                kind: name.kind,
                name: name.name.clone(),
                origin: Origin::Document,
                declared,
                parents,
                hostnames: draft.hostnames.clone(),
                created: draft.created,
                rules: draft.rules.iter().map(|rule| to.rule(rule)).collect(),
            },
        };
        documents.insert(name, Some(linked));
    }
    documents
}

/// Which hosts of a listener routes of which kind have.
#[derive(Default)]
struct Taken(BTreeMap<(ObjectName, Name), Vec<(RouteName, Hosts)>>);

/// Hosts under which a route serves on a listener; none: every host.
type Hosts = Vec<Option<HostPattern>>;

impl Taken {
    /// Takes a route's hosts of a listener, or names the route of another kind that has one of them.
    fn take(
        &mut self,
        parent: &Parent,
        listener: &Listener,
        route: &RouteName,
        hostnames: &[HostPattern],
    ) -> Option<RouteName> {
        let hosts = effective_hosts(listener.hostname.as_ref(), hostnames);
        let overlap = |own: &Option<HostPattern>, other: &Option<HostPattern>| match (own, other) {
            (Some(own), Some(other)) => own.intersect(other).is_some(),
            _ => true,
        };
        let taken = self
            .0
            .entry((parent.gateway.clone(), listener.name.clone()));
        let taken = taken.or_default();
        let winner = taken.iter().find(|(name, others)| {
            name.kind != route.kind
                && hosts
                    .iter()
                    .any(|own| others.iter().any(|other| overlap(own, other)))
        });
        if let Some((winner, _)) = winner {
            return Some(winner.clone());
        }
        taken.push((route.clone(), hosts));
        None
    }
}

/// The listeners that take a route by one of its parent references; reasons are those of the Gateway
/// API, in its order.
pub(super) fn attached<'a>(
    parent: &ParentDraft,
    kind: RouteKind,
    route: &ObjectName,
    hostnames: &[HostPattern],
    to: &References<'a>,
) -> Vec<(&'a Listener, Parent)> {
    let refuse = |message: fmt::Arguments<'_>| {
        to.sink.mistake(parent.source.clone(), message);
        Vec::new()
    };
    let gateway = match to.gateways.get(&parent.gateway) {
        None => return refuse(format_args!("no `Gateway` {}", parent.gateway)),
        Some(None) => return Vec::new(),
        Some(Some(gateway)) => gateway,
    };
    let wanted: Vec<&'a ListenerDraft> = gateway
        .listeners
        .iter()
        .filter(|draft| {
            let listener = &draft.listener;
            parent
                .section
                .as_ref()
                .is_none_or(|name| *name == listener.name)
                && parent.port.is_none_or(|port| port == listener.port)
        })
        .collect();
    if wanted.is_empty() {
        // A listener with mistakes is not in the draft; its document has said so.
        let declared = gateway
            .listeners
            .first()
            .map(|draft| &draft.listener.declared);
        if declared.is_none_or(|declared| to.sink.tainted(declared)) {
            return Vec::new();
        }
        let names: Vec<&str> = gateway
            .listeners
            .iter()
            .map(|draft| draft.listener.name.as_str())
            .collect();
        return refuse(format_args!(
            "gateway {} has no such listener (NoMatchingParent); it has `{}`",
            parent.gateway,
            names.join("`, `")
        ));
    }
    let allowed: Vec<&'a ListenerDraft> = wanted
        .into_iter()
        .filter(|draft| {
            draft.kinds.contains(&kind)
                && (draft.all_namespaces || route.namespace() == parent.gateway.namespace())
        })
        .collect();
    if allowed.is_empty() {
        return refuse(format_args!(
            "the listeners of gateway {} take no `{}` of namespace `{}` (NotAllowedByListeners); one whose `allowedRoutes` have this kind and `namespaces.from: All` would",
            parent.gateway,
            kind,
            route.namespace()
        ));
    }
    let taken: Vec<(&Listener, Parent)> = allowed
        .into_iter()
        .filter(|draft| match &draft.listener.hostname {
            None => true,
            Some(own) => {
                hostnames.is_empty() || hostnames.iter().any(|host| own.intersect(host).is_some())
            }
        })
        .map(|draft| {
            let attached = Parent {
                gateway: parent.gateway.clone(),
                listener: Some(draft.listener.name.clone()),
                port: None,
            };
            (&draft.listener, attached)
        })
        .collect();
    if taken.is_empty() {
        return refuse(format_args!(
            "no listener of gateway {} takes one of the route's hostnames (NoMatchingListenerHostname)",
            parent.gateway
        ));
    }
    taken
}

impl References<'_> {
    fn rule(&self, draft: &RuleDraft) -> Rule {
        let at = |field: &str| draft.source.at(format!("{}.{field}", draft.source.field));
        let filters = self.filters(&draft.filters, at("filters"));
        let answered = filters.iter().find_map(|filter| match filter {
            Filter::Redirect(_) => Some(true),
            Filter::Respond(_) => Some(false),
            _ => None,
        });
        match (answered, draft.backends.is_empty()) {
            (None, true) => self.sink.warning(
                draft.source.clone(),
                "has no `backendRefs`: every request that it matches is answered with 500",
            ),
            (Some(true), false) => self.sink.mistake(
                at("backendRefs"),
                "`RequestRedirect` answers every request of the rule; expected no backends",
            ),
            (Some(false), false) => self.sink.warning(
                at("backendRefs"),
                "the rule's `directResponse` answers every request; its backends get none",
            ),
            _ => {}
        }
        let targets = draft
            .backends
            .iter()
            .filter_map(|backend| {
                let at = backend
                    .source
                    .at(format!("{}.filters", backend.source.field));
                let filters = self.filters(&backend.filters, at);
                Some(WeightedTarget {
                    filters,
                    ..self.target(backend)?
                })
            })
            .collect();
        Rule {
            filters,
            timeouts: draft.timeouts,
            retry: draft.retry.clone(),
            session: draft.session.clone(),
            targets,
            ..Rule::new(draft.source.clone(), draft.matches.clone())
        }
    }

    /// The filters of one list, which must not contradict each other.
    fn filters(&self, drafts: &[FilterDraft], source: Source) -> Vec<Filter> {
        let filters: Vec<Filter> = drafts
            .iter()
            .filter_map(|filter| match filter {
                FilterDraft::Here(filter) => Some(filter.clone()),
                FilterDraft::Extension { source, name } => self.filter(source, name),
                FilterDraft::Mirror { backend, share, of } => {
                    let target = self.target(backend)?.target;
                    Some(Filter::Mirror(Mirror {
                        target,
                        share: *share,
                        of: *of,
                    }))
                }
            })
            .collect();
        let count = |fits: fn(&Filter) -> bool| filters.iter().filter(|one| fits(one)).count();
        let paths = count(|one| matches!(one, Filter::Rewrite { path: Some(_), .. }));
        let hosts = count(|one| {
            matches!(
                one,
                Filter::Rewrite {
                    hostname: Some(_),
                    ..
                }
            )
        });
        let answers = count(|one| matches!(one, Filter::Redirect(_) | Filter::Respond(_)));
        let complaint = if paths > 1 {
            "expected at most one filter that rewrites the path, got more"
        } else if hosts > 1 {
            "expected at most one filter that rewrites the host, got more"
        } else if answers > 1 {
            "expected at most one filter that answers, got more"
        } else if answers > 0 && paths + hosts > 0 {
            "a request that is answered here is sent nowhere; expected no filter that rewrites it"
        } else {
            return filters;
        };
        self.sink.mistake(source, complaint);
        filters
    }

    fn filter(&self, source: &Source, name: &ObjectName) -> Option<Filter> {
        match self.filters.get(name) {
            None => {
                self.sink
                    .mistake(source.clone(), format_args!("no `HTTPRouteFilter` {name}"));
                None
            }
            Some((_, filter)) => filter.as_deref().cloned(),
        }
    }

    fn target(&self, backend: &BackendDraft) -> Option<WeightedTarget> {
        let missing = |kind: &str| {
            self.sink.mistake(
                backend.source.clone(),
                format_args!("no `{kind}` {}", backend.name),
            );
        };
        let target = match backend.kind {
            BackendKind::Backend => match self.backends.get(&backend.name) {
                None => {
                    missing("Backend");
                    return None;
                }
                Some(Ok(upstreams)) => Target::Upstreams(upstreams.clone()),
                Some(Err(why)) => Target::Unresolved(why.clone()),
            },
            BackendKind::RoutingTable => {
                if !self.tables.contains_key(&backend.name) {
                    missing("RoutingTable");
                    return None;
                }
                Target::RoutingTable(backend.name.clone())
            }
        };
        Some(WeightedTarget {
            backend: (backend.kind == BackendKind::Backend).then(|| backend.name.clone()),
            ..WeightedTarget::new(backend.weight, target)
        })
    }
}
