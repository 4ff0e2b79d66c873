//! Routes of documents: attached to listeners, references resolved.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::Taking;
use super::attachment::RefusedRoute;
use super::backend::Backends;
use super::backend_tls::TlsPolicies;
use super::context::Context;
use super::gateway::{Built, Gateways};
use super::listener::Entry;
use super::memory::{Memory, Remembered};
use super::parent::Attachment;
use super::rule::Rules;
use crate::document::Table;
use crate::document::http_route::RouteDraft;
use crate::document::policy::ClosedRoute;
use crate::lasting::exact;
use crate::model::{
    Filter, HostPattern, L7Kind, ObjectName, Origin, Parent, Route, RouteKind, RouteName, Rule,
    SectionName, effective_hosts,
};
use crate::reader::Sink;
use crate::report::Source;
use crate::shared::Shared;
use crate::status::{Report, RouteStatus};

/// A route and the names of its rules, which policies aim at.
#[derive(Clone)]
pub(super) struct Linked {
    pub(super) route: Shared<Route>,
    pub(super) rule_names: Arc<[Option<SectionName>]>,
}

/// Routes of documents. One without draft has mistakes of its own and leaves its name.
pub(super) type Documents = BTreeMap<RouteName, Option<Linked>>;

/// What routes refer to.
#[derive(Clone, Copy)]
pub(super) struct References<'a> {
    pub(super) gateways: &'a Gateways,
    pub(super) backends: &'a Backends<'a>,
    pub(super) policies: &'a TlsPolicies,
    pub(super) filters: &'a Table<Filter>,
    pub(super) context: &'a Context<'a>,
}

/// Links every route, from the one that wins where two cannot both be: the oldest, then the first by name
/// (Gateway API, `GRPCRoute`: an `HTTPRoute` and a `GRPCRoute` that share a host of a listener).
///
/// Beside them comes what closes the requests of those that are `refused`.
pub(super) fn routes(
    drafts: [(L7Kind, &Table<RouteDraft>); 2],
    refused: &[RefusedRoute],
    to: &References<'_>,
    memory: &mut Memory,
    report: &mut Report,
) -> (Documents, Vec<Shared<Route>>) {
    let mut unread: Vec<RouteName> = Vec::new();
    let mut found: Vec<Found<'_>> = Vec::new();
    for (kind, drafts) in drafts {
        for (name, (declared, draft)) in drafts {
            match draft {
                Some(draft) => found.push(Found {
                    kind,
                    name,
                    declared,
                    draft,
                    refused: false,
                }),
                None => unread.push(RouteName {
                    kind,
                    name: name.clone(),
                }),
            }
        }
    }
    let read = found.len();
    found.extend(refused.iter().filter_map(|one| match &one.route {
        ClosedRoute::L7(kind, draft) => Some(Found {
            kind: *kind,
            name: &one.name,
            declared: &one.declared,
            draft,
            refused: true,
        }),
        ClosedRoute::L4(..) => None,
    }));
    found.sort_by_key(|one| {
        let created = one.draft.created;
        (created.is_none(), created, one.name, one.kind)
    });
    let both = drafts.iter().all(|(_, drafts)| !drafts.is_empty());
    let mut taken = Taken::new(both);
    let mut closed: Vec<Shared<Route>> = Vec::new();
    let mut documents: Vec<(RouteName, Option<Linked>)> = Vec::with_capacity(found.len());
    documents.extend(unread.into_iter().map(|name| (name, None)));
    let mut last: Option<((ObjectName, SectionName), &Entry)> = None;
    for one in &found {
        let (declared, draft) = (one.declared, one.draft);
        let name = RouteName {
            kind: one.kind,
            name: one.name.clone(),
        };
        if one.refused {
            closed.extend(closing(&name, declared, draft, to, &mut taken));
            continue;
        }
        let known = memory.of(draft).is_some_and(|known| {
            let mut listeners = known.listeners(to.gateways);
            !both
                || listeners.all(|(built, entry)| {
                    let loses = taken.take(built, entry, &name, &draft.hostnames);
                    loses.is_none()
                })
        });
        if !known {
            let (route, status) = route(&name, declared, draft, to, &mut taken);
            memory.keep(route, status);
        }
        let Some(route) = memory.of(draft) else {
            continue;
        };
        if known {
            for listener in route.counted.iter() {
                // Many routes have the one before's listeners.
                if last.as_ref().is_none_or(|(other, _)| other != listener) {
                    let (gateway, id) = listener;
                    let found = to.gateways.listener(gateway, id);
                    last = found.map(|(_, entry)| (listener.clone(), entry));
                }
                if let Some((_, entry)) = &last {
                    entry.count();
                }
            }
        }
        if let Some(said) = &route.said {
            to.context.sink.known(&said.0, &said.1);
        }
        documents.push((name, Some(route.linked.clone())));
    }
    let others = std::mem::replace(&mut report.routes, memory.tidy(read));
    report.routes.extend(others);
    (documents.into_iter().collect(), closed)
}

/// A route whose document was read, or what is left of one that was refused.
struct Found<'a> {
    kind: L7Kind,
    name: &'a ObjectName,
    declared: &'a Source,
    draft: &'a Arc<RouteDraft>,
    refused: bool,
}

/// A route that answers 500 to whatever a refused one would have taken, where that would attach; none: nowhere.
fn closing(
    name: &RouteName,
    declared: &Source,
    draft: &RouteDraft,
    to: &References<'_>,
    taken: &mut Taken,
) -> Option<Shared<Route>> {
    let kind = RouteKind::L7(name.kind);
    let attachment = Attachment::new(kind, &name.name, &draft.hostnames, to);
    let mut parents: Vec<Parent> = Vec::new();
    let references = draft.parents.iter();
    for (built, entry) in references.flat_map(|one| attachment.would_take(one)) {
        // One without hosts would take all of a listener from younger routes of the other kind, for a mistake.
        let winner = match draft.hostnames.is_empty() {
            true => taken.winner(built, entry, name, &draft.hostnames),
            false => taken.take(built, entry, name, &draft.hostnames),
        };
        if winner.is_none()
            && let Some(parent) = built.parent(entry)
            && !parents.contains(&parent)
        {
            parents.push(parent);
        }
    }
    if parents.is_empty() {
        return None;
    }
    let why = format!("{} has mistakes", declared.object);
    let rules = draft.rules.iter();
    let rules = rules.map(|rule| Rules::closed(&rule.source, &rule.matches, &why));
    Some(Shared::from(Route {
        kind: name.kind,
        name: name.name.clone(),
        origin: Origin::Document,
        declared: declared.clone(),
        parents: exact(parents),
        hostnames: Arc::clone(&draft.hostnames),
        created: draft.created,
        rules: rules.collect(),
    }))
}

/// Links a route, and says what its status is if it has one.
fn route(
    name: &RouteName,
    declared: &Source,
    draft: &Arc<RouteDraft>,
    to: &References<'_>,
    taken: &mut Taken,
) -> (Remembered, Option<RouteStatus>) {
    // What is said of the route is part of what is remembered.
    let said = Sink::default();
    let context = Context {
        sink: &said,
        ..*to.context
    };
    let to = References {
        context: &context,
        ..*to
    };
    let mut rules = Rules::new(name, &to);
    let mut route_rules: Vec<Rule> = draft.rules.iter().map(|rule| rules.rule(rule)).collect();
    let kind = RouteKind::L7(name.kind);
    let mut attachment = Attachment::new(kind, &name.name, &draft.hostnames, &to);
    let mut parents: Vec<Parent> = Vec::new();
    let mut lasting = true;
    for reference in &draft.parents {
        attachment.attach(reference, rules.refused.as_ref(), |built, entry| {
            match taken.take(built, entry, name, &draft.hostnames) {
                None => {
                    if let Some(parent) = built.parent(entry)
                        && !parents.contains(&parent)
                    {
                        parents.push(parent);
                    }
                    Ok(())
                }
                Some(winner) => {
                    lasting = false;
                    Err(format!(
                        "has no effect at listener `{}`: {winner} serves hosts of this route there, and is older or comes first by name",
                        entry.name
                    ))
                }
            }
        });
    }
    if to.context.taking == Taking::Each
        && let Some(fault) = &rules.refused
    {
        // The hosts that it keeps from others are taken anew each time.
        lasting = false;
        for rule in &mut route_rules {
            *rule = Rules::closed(&rule.declared, &rule.matches, &fault.message);
        }
        let closed = closing(name, declared, draft, &to, taken);
        parents.extend(closed.into_iter().flat_map(|one| one.parents.clone()));
    }
    let (statuses, counted) = attachment.finish(rules.resolved.as_ref(), rules.closed.as_ref());
    let linked = Linked {
        rule_names: draft.rules.iter().map(|rule| rule.name.clone()).collect(),
        route: Shared::from(Route {
            kind: name.kind,
            name: name.name.clone(),
            origin: Origin::Document,
            declared: declared.clone(),
            parents: exact(parents),
            hostnames: Arc::clone(&draft.hostnames),
            created: draft.created,
            rules: route_rules,
        }),
    };
    let mut remembered = Remembered::new(draft, linked);
    let status = (!statuses.is_empty()).then(|| RouteStatus {
        generation: draft.generation,
        parents: statuses.into(),
    });
    remembered.counted = counted.into();
    remembered.lasting = lasting;
    let (mistakes, warnings) = said.told();
    if !mistakes.is_empty() || !warnings.is_empty() {
        remembered.said = Some(Box::new((mistakes, warnings)));
    }
    (remembered, status)
}

/// Which hosts of a listener routes of which kind have.
struct Taken {
    /// Routes of one kind share what they like.
    both: bool,
    by_listener: BTreeMap<(ObjectName, SectionName), [Vec<Holder>; 2]>,
}

/// A route and its hosts.
type Holder = (RouteName, Hosts);

/// Hosts under which a route serves on a listener; none: every host.
type Hosts = Vec<Option<HostPattern>>;

impl Taken {
    /// Nothing is taken. `both`: there are routes of both kinds.
    fn new(both: bool) -> Self {
        Self {
            both,
            by_listener: BTreeMap::new(),
        }
    }

    /// Takes a route's hosts of a listener, or names the route of another kind that has one of them.
    fn take(
        &mut self,
        built: &Built,
        entry: &Entry,
        route: &RouteName,
        hostnames: &[HostPattern],
    ) -> Option<RouteName> {
        let winner = self.winner(built, entry, route, hostnames);
        if self.both && winner.is_none() {
            let key = (built.name.clone(), entry.id.clone());
            let own = &mut self.by_listener.entry(key).or_default()[place(route.kind)];
            // Routes come one after the other.
            if own.last().is_none_or(|(name, _)| name != route) {
                let hosts = effective_hosts(entry.hostname.as_ref(), hostnames);
                own.push((route.clone(), hosts));
            }
        }
        winner
    }

    /// The route of another kind that has one of a route's hosts of a listener.
    fn winner(
        &self,
        built: &Built,
        entry: &Entry,
        route: &RouteName,
        hostnames: &[HostPattern],
    ) -> Option<RouteName> {
        if !self.both {
            return None;
        }
        let key = (built.name.clone(), entry.id.clone());
        let others = &self.by_listener.get(&key)?[1 - place(route.kind)];
        if others.is_empty() {
            return None;
        }
        let hosts = effective_hosts(entry.hostname.as_ref(), hostnames);
        let overlap = |own: &Option<HostPattern>, other: &Option<HostPattern>| match (own, other) {
            (Some(own), Some(other)) => own.intersect(other).is_some(),
            _ => true,
        };
        let winner = others.iter().find(|(_, others)| {
            let mut hosts = hosts.iter();
            hosts.any(|own| others.iter().any(|other| overlap(own, other)))
        });
        winner.map(|(winner, _)| winner.clone())
    }
}

/// Where the holders of a kind are.
fn place(kind: L7Kind) -> usize {
    match kind {
        L7Kind::Http => 0,
        L7Kind::Grpc => 1,
    }
}
