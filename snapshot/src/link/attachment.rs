//! Which policy a rule has, alike for all kinds of policies (Gateway API, policy attachment).
//!
//! The most specific one wins whole: that of a rule over that of its route, that over the one of a
//! listener, and that over the one of the gateway.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::collect::Placed;
use super::http_route::{Documents, Gateways};
use crate::document::Kind;
use crate::document::backend_tls::TlsTarget;
use crate::document::policy::{PolicyTarget, Targets};
use crate::model::{Auth, Name, ObjectName, Parent, Route, Rule, Timestamp};
use crate::reader::Sink;
use crate::report::Source;

/// A policy that was read.
pub(super) struct Policy<T> {
    pub(super) name: ObjectName,
    pub(super) declared: Source,
    pub(super) created: Option<Timestamp>,
    pub(super) targets: Targets,
    pub(super) what: Effect<T>,
}

/// What a policy does to a rule.
pub(super) enum Effect<T> {
    /// What it says.
    Applies(Arc<T>),
    /// It has mistakes: nobody passes.
    Closes(Arc<Auth>),
}

impl<T> Clone for Effect<T> {
    fn clone(&self) -> Self {
        match self {
            Self::Applies(what) => Self::Applies(Arc::clone(what)),
            Self::Closes(auth) => Self::Closes(Arc::clone(auth)),
        }
    }
}

impl<T> Effect<T> {
    fn is(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Applies(a), Self::Applies(b)) => Arc::ptr_eq(a, b),
            (Self::Closes(a), Self::Closes(b)) => Arc::ptr_eq(a, b),
            _ => false,
        }
    }
}

/// Policies whose documents were refused: what each of them is for is closed, as nobody knows what it would have asked.
#[derive(Default)]
pub(super) struct Closing {
    pub(super) security: Vec<Refused>,
    pub(super) traffic: Vec<Refused>,
    pub(super) client: Vec<Refused>,
    pub(super) tls: Vec<(Source, Vec<(Source, TlsTarget)>)>,
}

/// Such a policy, and where its document is.
pub(super) struct Refused {
    name: ObjectName,
    declared: Source,
    created: Option<Timestamp>,
    targets: Targets,
}

impl Closing {
    /// Finds them.
    pub(super) fn of(documents: &[Placed<'_>]) -> Self {
        let mut closing = Self::default();
        for placed in documents.iter().filter(|placed| placed.refused) {
            let document = placed.document;
            let refused = || Refused {
                name: document.meta.name.clone(),
                declared: document.meta.declared.clone(),
                created: document.meta.created,
                targets: document.closes.targets.clone(),
            };
            match document.draft.kind() {
                Kind::SecurityPolicy => closing.security.push(refused()),
                Kind::BackendTrafficPolicy => closing.traffic.push(refused()),
                Kind::ClientTrafficPolicy => closing.client.push(refused()),
                Kind::BackendTLSPolicy => {
                    let backends = document.closes.backends.clone();
                    closing.tls.push((document.meta.declared.clone(), backends));
                }
                _ => {}
            }
        }
        closing
    }
}

impl Refused {
    /// The policy as one that closes.
    pub(super) fn policy<T>(&self) -> Policy<T> {
        let why = format!("{} has mistakes", self.declared.object);
        Policy {
            name: self.name.clone(),
            declared: self.declared.clone(),
            created: self.created,
            targets: self.targets.clone(),
            what: Effect::Closes(Arc::new(Auth::closed(self.declared.clone(), why))),
        }
    }
}

/// Where a rule keeps its policy of one kind.
pub(super) type Slot<T> = fn(&mut Rule) -> &mut Option<Arc<T>>;

/// Policies by target, each with its document.
pub(super) type ByTarget<T> = BTreeMap<PolicyTarget, (Source, Effect<T>)>;

/// Policies of one kind for rules.
pub(super) struct Policies<T> {
    by_target: ByTarget<T>,
    /// None: what they say is not about rules, except that they may close them.
    slot: Option<Slot<T>>,
}

/// Of two policies for one target the older wins, then the one whose name comes first (Gateway API,
/// policy attachment, conflict resolution).
pub(super) fn by_target<T>(
    mut policies: Vec<Policy<T>>,
    documents: &Documents,
    gateways: &Gateways,
    sink: &Sink,
) -> ByTarget<T> {
    policies.sort_by(|a, b| {
        let age = |policy: &Policy<T>| (policy.created.is_none(), policy.created);
        (age(a), &a.name).cmp(&(age(b), &b.name))
    });
    let mut by_target = ByTarget::new();
    for policy in policies {
        for (source, target) in policy.targets {
            if let Some(missing) = missing(&target, documents, gateways, sink) {
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
                    let what = (policy.declared.clone(), policy.what.clone());
                    by_target.insert(target, what);
                }
            }
        }
    }
    by_target
}

impl<T> Policies<T> {
    /// Those that are for listeners and gateways, and close what is attached there if they have mistakes.
    pub(super) fn of_listeners(by_target: ByTarget<T>) -> Self {
        Self {
            by_target,
            slot: None,
        }
    }

    /// Policies of listeners and gateways.
    pub(super) fn on_listener(&self, gateway: &ObjectName, listener: &Name) -> Option<&Effect<T>> {
        let own = PolicyTarget::Listener(gateway.clone(), listener.clone());
        self.of(own)
            .or_else(|| self.of(PolicyTarget::Gateway(gateway.clone())))
    }

    /// Those that are for rules, routes and what these are attached to.
    pub(super) fn new(
        policies: Vec<Policy<T>>,
        slot: Slot<T>,
        documents: &Documents,
        gateways: &Gateways,
        sink: &Sink,
    ) -> Self {
        Self {
            by_target: by_target(policies, documents, gateways, sink),
            slot: Some(slot),
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
                match policy {
                    Some(Effect::Applies(what)) => {
                        if let Some(slot) = self.slot {
                            *slot(rule) = Some(Arc::clone(what));
                        }
                    }
                    Some(Effect::Closes(auth)) => rule.auth = Some(Arc::clone(auth)),
                    None => {}
                }
            }
        }
    }

    /// Puts policies of listeners and gateways on rules that have none. One route becomes one for each
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

    fn of(&self, target: PolicyTarget) -> Option<&Effect<T>> {
        self.by_target.get(&target).map(|(_, what)| what)
    }

    fn by_parent(&self, route: Route, gateways: &Gateways) -> Vec<Route> {
        let mut groups: Vec<(Option<&Effect<T>>, Route)> = Vec::new();
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
            let same = |other: &Option<&Effect<T>>| match (other, policy) {
                (Some(a), Some(b)) => a.is(b),
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
                        self.usual(rule, policy);
                    }
                    groups.push((policy, group));
                }
            }
        }
        groups.into_iter().map(|(_, group)| group).collect()
    }

    /// Gives a rule a policy of its listener, if it has none of its own.
    fn usual(&self, rule: &mut Rule, policy: Option<&Effect<T>>) {
        let own = self.slot.is_some_and(|slot| slot(rule).is_some());
        match (policy, self.slot) {
            (Some(Effect::Applies(what)), Some(slot)) if !own => {
                *slot(rule) = Some(Arc::clone(what));
            }
            (Some(Effect::Closes(auth)), _) if !own => rule.auth = Some(Arc::clone(auth)),
            _ => {}
        }
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

fn missing(
    target: &PolicyTarget,
    documents: &Documents,
    gateways: &Gateways,
    sink: &Sink,
) -> Option<String> {
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
