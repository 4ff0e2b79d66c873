//! Which policy a rule has, alike for all kinds of policies (Gateway API, policy attachment).
//!
//! The most specific one wins whole: that of a rule over that of its route, that over the one of a
//! listener, and that over the one of the gateway.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::http_route::{Documents, Gateways};
use crate::document::policy::{Labelled, PolicyTarget, Targets};
use crate::model::{ObjectName, Parent, Route, Rule, Timestamp};
use crate::reader::Sink;
use crate::report::Source;

/// A policy that was read.
pub(super) struct Policy<T> {
    pub(super) name: ObjectName,
    pub(super) declared: Source,
    pub(super) created: Option<Timestamp>,
    pub(super) targets: Targets,
    pub(super) what: Arc<T>,
}

/// Where a rule keeps its policy of one kind.
pub(super) type Slot<T> = fn(&mut Rule) -> &mut Option<Arc<T>>;

/// Policies by target, each with its document.
pub(super) type ByTarget<T> = BTreeMap<PolicyTarget, (Source, Arc<T>)>;

/// What there is that policies may be for.
#[derive(Clone, Copy)]
pub(super) struct Known<'a, 's> {
    pub(super) documents: &'a Documents,
    pub(super) gateways: &'a Gateways,
    pub(super) labelled: &'a Labelled,
    pub(super) sink: &'s Sink,
}

/// What becomes of the policy of a rule where its listener or gateway has one as well.
pub(super) type Merge<'a, T> = Box<dyn Fn(Arc<T>, &Arc<T>) -> Arc<T> + 'a>;

/// Policies of one kind for rules.
pub(super) struct Policies<'a, T> {
    by_target: ByTarget<T>,
    slot: Slot<T>,
    merge: Merge<'a, T>,
}

/// Of two policies for one target the older wins, then the one whose name comes first (Gateway API,
/// policy attachment, conflict resolution).
pub(super) fn by_target<T>(mut policies: Vec<Policy<T>>, known: Known<'_, '_>) -> ByTarget<T> {
    let sink = known.sink;
    policies.sort_by(|a, b| {
        let age = |policy: &Policy<T>| (policy.created.is_none(), policy.created);
        (age(a), &a.name).cmp(&(age(b), &b.name))
    });
    let mut by_target = ByTarget::new();
    for policy in policies {
        for (source, target) in policy.targets.resolve(known.labelled, sink) {
            if let Some(missing) = missing(&target, known) {
                sink.mistake(source, missing);
                continue;
            }
            match by_target.get(&target) {
                Some((first, _)) => sink.warning(
                    source,
                    format_args!(
                        "has no effect here: {first} is for this target as well, and is older or comes first by name"
                    ),
                ),
                None => {
                    let what = (policy.declared.clone(), Arc::clone(&policy.what));
                    by_target.insert(target, what);
                }
            }
        }
    }
    by_target
}

impl<'a, T> Policies<'a, T> {
    /// Those that are for rules, routes and what these are attached to.
    pub(super) fn new(
        policies: Vec<Policy<T>>,
        slot: Slot<T>,
        merge: Merge<'a, T>,
        known: Known<'_, '_>,
    ) -> Self {
        Self {
            by_target: by_target(policies, known),
            slot,
            merge,
        }
    }

    /// Puts policies of rules and routes on rules.
    pub(super) fn on_documents(&self, documents: &mut Documents) {
        for (name, linked) in documents {
            let Some(linked) = linked else { continue };
            for (rule, rule_name) in linked.route.rules.iter_mut().zip(&linked.rule_names) {
                let own = rule_name
                    .as_ref()
                    .and_then(|rule| self.of(PolicyTarget::Rule(name.clone(), rule.clone())));
                let policy = own.or_else(|| self.of(PolicyTarget::Route(name.clone())));
                *(self.slot)(rule) = policy.cloned();
            }
        }
    }

    /// Puts policies of listeners and gateways on rules that have none, or one that is merged into them. One route becomes one for each
    /// policy of the listeners that it is attached to: a rule has one answer, and two listeners may
    /// give two.
    pub(super) fn on_listeners(&self, routes: Vec<Route>, gateways: &Gateways) -> Vec<Route> {
        if self.by_target.is_empty() {
            return routes;
        }
        routes
            .into_iter()
            .flat_map(|route| self.by_parent(route, gateways))
            .collect()
    }

    fn of(&self, target: PolicyTarget) -> Option<&Arc<T>> {
        self.by_target.get(&target).map(|(_, what)| what)
    }

    fn by_parent(&self, route: Route, gateways: &Gateways) -> Vec<Route> {
        let mut groups: Vec<(Option<&Arc<T>>, Route)> = Vec::new();
        let parents = route
            .parents
            .iter()
            .flat_map(|parent| self.by_listener(parent, gateways));
        for parent in parents {
            let own = parent.listener.as_ref().and_then(|listener| {
                self.of(PolicyTarget::Listener(
                    parent.gateway.clone(),
                    listener.clone(),
                ))
            });
            let policy = own.or_else(|| self.of(PolicyTarget::Gateway(parent.gateway.clone())));
            let same = |other: &Option<&Arc<T>>| match (other, policy) {
                (Some(a), Some(b)) => Arc::ptr_eq(a, b),
                (None, None) => true,
                _ => false,
            };
            match groups.iter_mut().find(|(other, _)| same(other)) {
                Some((_, group)) => group.parents.push(parent),
                None => {
                    let mut group = Route {
                        parents: vec![parent],
                        ..route.clone()
                    };
                    for rule in &mut group.rules {
                        let slot = (self.slot)(rule);
                        *slot = match (slot.take(), policy) {
                            (Some(own), Some(parent)) => Some((self.merge)(own, parent)),
                            (own, parent) => own.or_else(|| parent.cloned()),
                        };
                    }
                    groups.push((policy, group));
                }
            }
        }
        groups.into_iter().map(|(_, group)| group).collect()
    }

    /// A parent as it is, or, if listeners of its gateway have policies of their own, one for each
    /// listener.
    fn by_listener(&self, parent: &Parent, gateways: &Gateways) -> Vec<Parent> {
        let differ = self.by_target.keys().any(
            |target| matches!(target, PolicyTarget::Listener(gateway, _) if *gateway == parent.gateway),
        );
        let gateway = gateways.get(&parent.gateway).and_then(Option::as_ref);
        match gateway {
            Some(gateway) if differ && parent.listener.is_none() => gateway
                .listeners
                .iter()
                .map(|one| Parent {
                    listener: Some(one.listener.name.clone()),
                    ..parent.clone()
                })
                .collect(),
            _ => vec![parent.clone()],
        }
    }
}

fn missing(target: &PolicyTarget, known: Known<'_, '_>) -> Option<String> {
    let Known {
        documents,
        gateways,
        sink,
        ..
    } = known;
    match target {
        PolicyTarget::Gateway(name) => {
            (!gateways.contains_key(name)).then(|| format!("no `Gateway` {name}"))
        }
        PolicyTarget::Listener(name, listener) => match gateways.get(name) {
            None => Some(format!("no `Gateway` {name}")),
            Some(Some(gateway))
                if !gateway
                    .listeners
                    .iter()
                    .any(|one| one.listener.name == *listener)
                    && !gateway
                        .listeners
                        .iter()
                        .any(|one| sink.tainted(&one.listener.declared)) =>
            {
                Some(format!("`Gateway` {name} has no listener `{listener}`"))
            }
            Some(_) => None,
        },
        PolicyTarget::Route(name) => (!documents.contains_key(name)).then(|| format!("no {name}")),
        PolicyTarget::Rule(name, rule) => match documents.get(name) {
            None => Some(format!("no {name}")),
            Some(Some(linked))
                if !linked
                    .rule_names
                    .iter()
                    .flatten()
                    .any(|known| known == rule)
                    && !sink.tainted(&linked.route.declared) =>
            {
                Some(format!("{name} has no rule `{rule}`"))
            }
            Some(_) => None,
        },
    }
}
