//! Which policy a rule has, alike for all kinds of policies (Gateway API, policy attachment).
//!
//! The most specific one wins whole: that of a rule over that of its route, that over the one of a
//! listener, and that over the one of the gateway.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::Served;
use super::collect::Placed;
use super::context::Fault;
use super::gateway::{Gateways, Place};
use super::http_route::Documents;
use crate::document::Kind;
use crate::document::backend_tls::TlsTarget;
use crate::document::listener_set::ListenerSetDraft;
use crate::document::policy::{ClosedRoute, L4Target, Labelled, PolicyTarget, Targets};
use crate::model::{Auth, L4Kind, ObjectName, Parent, Route, Rule, SectionName, Timestamp};
use crate::reader::Sink;
use crate::report::Source;
use crate::shared::Shared;
use crate::status::{ParentKind, Reason};

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

/// Policies and routes whose documents were refused: what each of them is for is closed, as nobody knows what it would have asked.
#[derive(Default)]
pub(super) struct Closing {
    pub(super) security: Vec<Refused>,
    pub(super) traffic: Vec<Refused>,
    pub(super) client: Vec<Refused>,
    pub(super) tls: Vec<RefusedTls>,
    /// Routes that such policies are for, and that have no rules to be closed.
    l4_routes: BTreeSet<L4Target>,
    /// Routes whose own documents were refused.
    pub(super) routes: Vec<RefusedRoute>,
    /// Sets of listeners whose own documents were refused.
    pub(super) sets: Vec<(ObjectName, Arc<ListenerSetDraft>)>,
}

/// A refused `BackendTLSPolicy`.
pub(super) struct RefusedTls {
    pub(super) name: ObjectName,
    pub(super) declared: Source,
    pub(super) created: Option<Timestamp>,
    pub(super) targets: Vec<(Source, TlsTarget)>,
}

/// What is left of a refused route, and where its document is.
pub(super) struct RefusedRoute {
    pub(super) name: ObjectName,
    pub(super) declared: Source,
    pub(super) route: ClosedRoute,
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
            let closes = document.closes.as_deref();
            let l4_routes = closes.into_iter().flat_map(|one| &one.l4_routes);
            closing.l4_routes.extend(l4_routes.cloned());
            let route = closes.and_then(|one| one.route.clone());
            closing.routes.extend(route.map(|route| RefusedRoute {
                name: document.meta.name.clone(),
                declared: document.meta.declared.clone(),
                route,
            }));
            let set = closes.and_then(|one| one.set.clone());
            let set = set.map(|set| (document.meta.name.clone(), set));
            closing.sets.extend(set);
            let refused = || Refused {
                name: document.meta.name.clone(),
                declared: document.meta.declared.clone(),
                created: document.meta.created,
                targets: closes.map_or_else(Targets::default, |one| one.targets.clone()),
            };
            match document.draft.kind() {
                Kind::SecurityPolicy => closing.security.push(refused()),
                Kind::BackendTrafficPolicy => closing.traffic.push(refused()),
                Kind::ClientTrafficPolicy => closing.client.push(refused()),
                Kind::BackendTLSPolicy => closing.tls.push(RefusedTls {
                    name: document.meta.name.clone(),
                    declared: document.meta.declared.clone(),
                    created: document.meta.created,
                    targets: closes.map_or_else(Vec::new, |one| one.backends.clone()),
                }),
                _ => {}
            }
        }
        closing
    }

    /// Whether a route of layer 4 is a target of one.
    pub(super) fn closes(&self, kind: L4Kind, name: &ObjectName) -> bool {
        let all = L4Target::All(kind, name.namespace().into());
        let named = L4Target::Named(kind, name.clone());
        self.l4_routes.contains(&named) || self.l4_routes.contains(&all)
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

/// What there is that policies may be for.
#[derive(Clone, Copy)]
pub(super) struct Known<'a, 's> {
    pub(super) documents: &'a Documents,
    pub(super) gateways: &'a Gateways,
    pub(super) labelled: &'a Labelled<'a>,
    pub(super) sink: &'s Sink,
}

/// What becomes of the policy of a rule where its listener or gateway has one as well, or had one that was refused.
pub(super) type Merge<'a, T> = Box<dyn Fn(&Arc<T>, &Effect<T>) -> Effect<T> + 'a>;

/// What became of a policy.
pub(super) struct PolicyVerdict {
    /// Why it has no effect, or not its own.
    pub(super) accepted: Option<Fault>,
    /// What it is for, as far as that is Cardinal's.
    pub(super) targets: Vec<PolicyTarget>,
}

/// Policies of one kind.
pub(super) struct Policies<'m, T> {
    by_target: BTreeMap<PolicyTarget, (Source, Effect<T>)>,
    /// None: what they say is not about rules, except that they may close them.
    slot: Option<Slot<T>>,
    merge: Merge<'m, T>,
    pub(super) verdicts: BTreeMap<ObjectName, PolicyVerdict>,
}

impl<'m, T> Policies<'m, T> {
    /// Those that are for rules, routes and what these are attached to; without slot only for the latter. Of two policies
    /// for one target the older wins, then the one whose name comes first (Gateway API, policy attachment, conflict
    /// resolution).
    pub(super) fn new(
        mut policies: Vec<Policy<T>>,
        slot: Option<Slot<T>>,
        merge: Merge<'m, T>,
        known: Known<'_, '_>,
    ) -> Self {
        policies.sort_by(|a, b| {
            let age = |policy: &Policy<T>| (policy.created.is_none(), policy.created);
            (age(a), &a.name).cmp(&(age(b), &b.name))
        });
        let mut all = Self {
            by_target: BTreeMap::new(),
            slot,
            merge,
            verdicts: BTreeMap::new(),
        };
        for policy in policies {
            let verdict = all.add(&policy, known);
            all.verdicts.insert(policy.name, verdict);
        }
        all
    }

    fn add(&mut self, policy: &Policy<T>, known: Known<'_, '_>) -> PolicyVerdict {
        let sink = known.sink;
        let mut verdict = PolicyVerdict {
            accepted: match &policy.what {
                Effect::Applies(_) => None,
                Effect::Closes(auth) => {
                    let why = auth.closed.as_deref().unwrap_or_default();
                    Some(Fault::new(Reason::Invalid, why))
                }
            },
            targets: Vec::new(),
        };
        for (source, target) in policy.targets.resolve(known.labelled, sink) {
            match found(&target, known) {
                Ok(true) => {}
                Ok(false) => continue,
                Err(missing) => {
                    sink.mistake(source, &missing);
                    verdict.targets.push(target);
                    verdict
                        .accepted
                        .get_or_insert(Fault::new(Reason::TargetNotFound, missing));
                    continue;
                }
            }
            verdict.targets.push(target.clone());
            match self.by_target.get(&target) {
                Some((first, _)) => {
                    let why = format!(
                        "has no effect here: {first} is for this target as well, and is older or comes first by name"
                    );
                    sink.warning(source, &why);
                    verdict
                        .accepted
                        .get_or_insert(Fault::new(Reason::Conflicted, why));
                }
                None => {
                    let what = (policy.declared.clone(), policy.what.clone());
                    self.by_target.insert(target, what);
                }
            }
        }
        if let Effect::Closes(auth) = &policy.what {
            for (gateway, listener) in known.gateways.of_sets(&policy.targets.sets) {
                self.close(gateway, listener, auth);
            }
        }
        verdict
    }

    /// Lets nobody pass a listener's routes.
    pub(super) fn close(&mut self, gateway: &ObjectName, listener: &SectionName, auth: &Arc<Auth>) {
        let target = PolicyTarget::Listener(gateway.clone(), listener.clone());
        let what = (auth.declared.clone(), Effect::Closes(Arc::clone(auth)));
        self.by_target.insert(target, what);
    }

    /// Whether nobody passes a listener.
    pub(super) fn closes(&self, gateway: &ObjectName, listener: &SectionName) -> bool {
        matches!(self.on_listener(gateway, listener), Some(Effect::Closes(_)))
    }

    /// Policies of listeners and gateways.
    pub(super) fn on_listener(
        &self,
        gateway: &ObjectName,
        listener: &SectionName,
    ) -> Option<&Effect<T>> {
        let own = PolicyTarget::Listener(gateway.clone(), listener.clone());
        self.of(own)
            .or_else(|| self.of(PolicyTarget::Gateway(gateway.clone())))
    }

    /// Puts policies of rules and routes on rules.
    pub(super) fn on_documents(&self, documents: &mut Documents) {
        if self.by_target.is_empty() {
            return;
        }
        for (name, linked) in documents {
            let Some(linked) = linked else { continue };
            for (at, rule_name) in linked.rule_names.iter().enumerate() {
                let own = rule_name
                    .as_ref()
                    .and_then(|rule| self.of(PolicyTarget::Rule(name.clone(), rule.clone())));
                let policy = own.or_else(|| self.of(PolicyTarget::Route(name.clone())));
                // A route without policies stays the one that was linked.
                let Some(policy) = policy else { continue };
                let rule = &mut linked.route.rules[at];
                match policy {
                    Effect::Applies(what) => {
                        if let Some(slot) = self.slot {
                            *slot(rule) = Some(Arc::clone(what));
                        }
                    }
                    Effect::Closes(auth) => rule.auth = Some(Arc::clone(auth)),
                }
            }
        }
    }

    /// Puts policies of listeners and gateways on rules that have none, or one that is merged into them. One route becomes one for each
    /// policy of the listeners that it is attached to: a rule has one answer, and two listeners may
    /// give two.
    pub(super) fn on_listeners(
        &self,
        routes: Vec<Shared<Route>>,
        gateways: &Served,
    ) -> Vec<Shared<Route>> {
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

    fn by_parent(&self, route: Shared<Route>, gateways: &Served) -> Vec<Shared<Route>> {
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
                        ..Route::clone(&route)
                    };
                    for rule in &mut group.rules {
                        self.usual(rule, policy);
                    }
                    groups.push((policy, group));
                }
            }
        }
        let groups = groups.into_iter();
        groups.map(|(_, group)| group.into()).collect()
    }

    /// Gives a rule a policy of its listener, if it has none of its own or one that is merged.
    fn usual(&self, rule: &mut Rule, policy: Option<&Effect<T>>) {
        let own = self.slot.and_then(|slot| slot(rule).clone());
        let Some(policy) = policy else {
            return;
        };
        let effect = match own {
            Some(own) => (self.merge)(&own, policy),
            None => policy.clone(),
        };
        match (effect, self.slot) {
            (Effect::Applies(what), Some(slot)) => *slot(rule) = Some(what),
            (Effect::Applies(_), None) => {}
            (Effect::Closes(auth), _) => rule.auth = Some(auth),
        }
    }

    /// A parent as it is, or, if listeners of its gateway have policies of their own, one for each
    /// listener.
    fn by_listener(&self, parent: &Parent, gateways: &Served) -> Vec<Parent> {
        let differ = self.by_target.keys().any(
            |target| matches!(target, PolicyTarget::Listener(gateway, _) if *gateway == parent.gateway),
        );
        match gateways.get(&parent.gateway) {
            Some(gateway) if differ && parent.listener.is_none() => gateway
                .listeners
                .iter()
                .map(|one| Parent {
                    listener: Some(one.name.clone()),
                    ..parent.clone()
                })
                .collect(),
            _ => vec![parent.clone()],
        }
    }
}

/// Whether a target is there, and Cardinal's; or why it is not there.
fn found(target: &PolicyTarget, known: Known<'_, '_>) -> Result<bool, String> {
    let Known {
        documents,
        gateways,
        ..
    } = known;
    let gateway = |name| match gateways.place(ParentKind::Gateway, name) {
        Place::Absent => Err(format!("no `Gateway` {name}")),
        Place::Foreign => Ok(false),
        Place::Unread | Place::Ours => Ok(true),
    };
    match target {
        PolicyTarget::Gateway(name) => gateway(name),
        PolicyTarget::Listener(name, listener) => {
            let found = gateway(name)?;
            match gateways.listeners(ParentKind::Gateway, name) {
                Some((_, entries)) if !entries.iter().any(|one| one.name == *listener) => {
                    Err(format!("`Gateway` {name} has no listener `{listener}`"))
                }
                _ => Ok(found),
            }
        }
        PolicyTarget::Route(name) => match documents.get(name) {
            None => Err(format!("no {name}")),
            Some(_) => Ok(true),
        },
        PolicyTarget::Rule(name, rule) => match documents.get(name) {
            None => Err(format!("no {name}")),
            Some(Some(linked))
                if !linked
                    .rule_names
                    .iter()
                    .flatten()
                    .any(|known| known == rule) =>
            {
                Err(format!("{name} has no rule `{rule}`"))
            }
            Some(_) => Ok(true),
        },
    }
}
