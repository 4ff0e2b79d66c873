//! Routes of documents: attached to listeners, references resolved.

use std::collections::BTreeMap;

use super::backend::Backends;
use super::backend_tls::TlsPolicies;
use super::context::Context;
use super::gateway::{Built, Gateways};
use super::listener::Entry;
use super::parent::Attachment;
use super::rule::Rules;
use crate::document::Table;
use crate::document::http_route::RouteDraft;
use crate::model::{
    Filter, HostPattern, L7Kind, ObjectName, Origin, Parent, Route, RouteKind, RouteName, Rule,
    SectionName, effective_hosts,
};
use crate::report::Source;
use crate::status::{Report, RouteStatus};

/// A route and the names of its rules, which policies aim at.
pub(super) struct Linked {
    pub(super) route: Route,
    pub(super) rule_names: Vec<Option<SectionName>>,
}

/// Routes of documents. One without draft has mistakes of its own and leaves its name.
pub(super) type Documents = BTreeMap<RouteName, Option<Linked>>;

/// What routes refer to.
pub(super) struct References<'a> {
    pub(super) gateways: &'a Gateways,
    pub(super) backends: &'a Backends<'a>,
    pub(super) policies: &'a TlsPolicies,
    pub(super) filters: &'a Table<Filter>,
    pub(super) context: &'a Context<'a>,
}

/// Links every route, from the one that wins where two cannot both be: the oldest, then the first by name
/// (Gateway API, `GRPCRoute`: an `HTTPRoute` and a `GRPCRoute` that share a host of a listener).
pub(super) fn routes(
    drafts: [(L7Kind, &Table<RouteDraft>); 2],
    to: &References<'_>,
    report: &mut Report,
) -> Documents {
    let mut documents = Documents::new();
    let mut found: Vec<(RouteName, &Source, &RouteDraft)> = Vec::new();
    for (kind, drafts) in drafts {
        for (name, (declared, draft)) in drafts {
            let name = RouteName {
                kind,
                name: name.clone(),
            };
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
        let mut rules = Rules::new(&name, to);
        let route_rules: Vec<Rule> = draft.rules.iter().map(|rule| rules.rule(rule)).collect();
        let kind = RouteKind::L7(name.kind);
        let mut attachment = Attachment::new(kind, &name.name, &draft.hostnames, to);
        let mut parents: Vec<Parent> = Vec::new();
        for reference in &draft.parents {
            attachment.attach(reference, rules.refused.as_ref(), |built, entry| {
                match taken.take(built, entry, &name, &draft.hostnames) {
                    None => {
                        if let Some(parent) = built.parent(entry)
                            && !parents.contains(&parent)
                        {
                            parents.push(parent);
                        }
                        Ok(())
                    }
                    Some(winner) => Err(format!(
                        "has no effect at listener `{}`: {winner} serves hosts of this route there, and is older or comes first by name",
                        entry.name
                    )),
                }
            });
        }
        let statuses = attachment.finish(rules.resolved.as_ref(), rules.closed.as_ref());
        if !statuses.is_empty() {
            report.routes.insert(
                (kind, name.name.clone()),
                RouteStatus {
                    generation: None,
                    parents: statuses,
                },
            );
        }
        let linked = Linked {
            rule_names: draft.rules.iter().map(|rule| rule.name.clone()).collect(),
            route: Route {
                kind: name.kind,
                name: name.name.clone(),
                origin: Origin::Document,
                declared: declared.clone(),
                parents,
                hostnames: draft.hostnames.clone(),
                created: draft.created,
                rules: route_rules,
            },
        };
        documents.insert(name, Some(linked));
    }
    documents
}

/// Which hosts of a listener routes of which kind have.
#[derive(Default)]
struct Taken(BTreeMap<(ObjectName, SectionName), Vec<(RouteName, Hosts)>>);

/// Hosts under which a route serves on a listener; none: every host.
type Hosts = Vec<Option<HostPattern>>;

impl Taken {
    /// Takes a route's hosts of a listener, or names the route of another kind that has one of them.
    fn take(
        &mut self,
        built: &Built,
        entry: &Entry,
        route: &RouteName,
        hostnames: &[HostPattern],
    ) -> Option<RouteName> {
        let hosts = effective_hosts(entry.hostname.as_ref(), hostnames);
        let overlap = |own: &Option<HostPattern>, other: &Option<HostPattern>| match (own, other) {
            (Some(own), Some(other)) => own.intersect(other).is_some(),
            _ => true,
        };
        let taken = self.0.entry((built.name.clone(), entry.id.clone()));
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
        if !taken.iter().any(|(name, _)| name == route) {
            taken.push((route.clone(), hosts));
        }
        None
    }
}
