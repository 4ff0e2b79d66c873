//! What the Gateway API wants to be said of classes, gateways, sets, routes and policies.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::attachment::{Policies, PolicyVerdict};
use super::backend_tls::TlsPolicies;
use super::collect::Placed;
use super::context::{Fault, condition};
use super::gateway::{Built, Gateways, Place, Set};
use crate::document::backend_tls::TlsTarget;
use crate::document::gateway::ValidationDraft;
use crate::document::gateway_class::ClassDraft;
use crate::document::http_route::{BackendDraft, BackendKind, ParentDraft, ParentTarget};
use crate::document::platform::PlatformDraft;
use crate::document::policy::PolicyTarget;
use crate::document::{Draft, Drafts, Kind, Table};
use crate::lasting::common;
use crate::model::{ClientDemand, L4Kind, L7Kind, ObjectName, RouteKind, SectionName};
use crate::reader::Sink;
use crate::status::{
    AncestorStatus, ClassStatus, Condition, ConditionKind, GatewayStatus, ListenerSetStatus,
    ObjectKey, ParentKind, ParentRef, ParentStatus, PolicyStatus, Reason, Report, RouteStatus,
};

/// Gateway API, `PolicyStatus`: at most 16 ancestors.
const MAX_ANCESTORS: usize = 16;

/// Classes that are ours.
pub(super) fn classes(
    drafts: &Table<ClassDraft>,
    platforms: &Table<PlatformDraft>,
    report: &mut Report,
) {
    for (name, (_, draft)) in drafts {
        let Some(draft) = draft.as_ref().filter(|draft| draft.is_ours()) else {
            continue;
        };
        let read = |named: &String| {
            let mut platforms = platforms.iter();
            platforms.any(|(name, (_, draft))| name.name() == named && draft.is_some())
        };
        let fault = draft.parameters.as_ref().and_then(|parameters| {
            let why = match &parameters.platform {
                None => "expected the `Platform` (group `cardinal.dev`) as parameters".to_owned(),
                Some(named) if read(named) => return None,
                Some(named) => format!("no `Platform` `{named}`, or it has mistakes"),
            };
            Some(Fault::new(Reason::InvalidParameters, why))
        });
        let status = ClassStatus {
            generation: None,
            conditions: vec![condition(
                ConditionKind::Accepted,
                Reason::Accepted,
                fault.as_ref(),
            )],
        };
        report.classes.insert(name.name().to_owned(), status);
    }
}

/// Gateways and sets. Routes are attached by now.
pub(super) fn gateways(gateways: &Gateways, report: &mut Report) {
    for (name, built) in &gateways.built {
        let attached = gateways
            .sets
            .iter()
            .filter(|(set, _)| set_is_accepted(gateways, set))
            .filter(|(_, set)| set.draft.gateway == *name)
            .count();
        let status = gateway(built, attached);
        report.gateways.insert(name.clone(), status);
    }
    for (name, set) in &gateways.sets {
        let status = listener_set(name, set, gateways);
        report.listener_sets.insert(name.clone(), status);
    }
}

fn gateway(built: &Built, attached_listener_sets: usize) -> GatewayStatus {
    let own = || built.entries.iter().filter(|entry| entry.set.is_none());
    let valid = own().filter(|entry| entry.is_accepted()).count();
    let all = own().count();
    let accepted = match &built.accepted {
        Some(fault) => Condition::fails(ConditionKind::Accepted, fault.reason, &fault.message),
        None if valid == all => Condition::holds(ConditionKind::Accepted, Reason::Accepted, ""),
        None => Condition {
            kind: ConditionKind::Accepted,
            holds: valid > 0,
            reason: Reason::ListenersNotValid,
            message: format!("{} of {all} listeners are not valid", all - valid),
        },
    };
    let invalid = (!accepted.holds).then(|| Fault::new(Reason::Invalid, &accepted.message));
    let programmed = invalid.or_else(|| built.programmed.clone());
    let mut conditions = vec![
        accepted,
        condition(
            ConditionKind::Programmed,
            Reason::Programmed,
            programmed.as_ref(),
        ),
    ];
    let tls = &built.draft.tls;
    if tls.identity.is_some() {
        conditions.push(condition(
            ConditionKind::ResolvedRefs,
            Reason::ResolvedRefs,
            built.resolved.as_ref(),
        ));
    }
    let ports = tls.ports.values().filter_map(|(_, own)| own.as_ref());
    let insecure = |one: &ValidationDraft| one.demand == ClientDemand::Fallback;
    if tls.default.iter().chain(ports).any(insecure) {
        conditions.push(Condition::holds(
            ConditionKind::InsecureFrontendValidationMode,
            Reason::ConfigurationChanged,
            "clients without a good certificate are served (AllowInsecureFallback)",
        ));
    }
    GatewayStatus {
        generation: None,
        conditions,
        addresses: match programmed {
            None => built.listed(),
            Some(_) => Vec::new(),
        },
        listeners: own()
            .map(|entry| entry.status(programmed.as_ref()))
            .collect(),
        attached_listener_sets,
    }
}

/// Whether at least one listener of a set is part of its gateway.
fn set_is_accepted(gateways: &Gateways, name: &ObjectName) -> bool {
    let refused = |set: &Set| set.refused.is_some();
    let entries = gateways.listeners(ParentKind::ListenerSet, name);
    !gateways.sets.get(name).is_none_or(refused)
        && entries.is_some_and(|(_, entries)| entries.iter().any(|entry| entry.works()))
}

fn listener_set(name: &ObjectName, set: &Set, gateways: &Gateways) -> ListenerSetStatus {
    let found = gateways.listeners(ParentKind::ListenerSet, name);
    let entries = found.as_ref().map_or(&[][..], |(_, entries)| entries);
    let gateway = found
        .as_ref()
        .and_then(|(built, _)| built.programmed.as_ref());
    let outside = gateway.map(|fault| Fault::new(Reason::ParentNotProgrammed, &fault.message));
    let valid = entries.iter().filter(|entry| entry.works()).count();
    let invalid = format!(
        "{} of {} listeners are not valid",
        entries.len() - valid,
        entries.len()
    );
    let fault = set
        .refused
        .clone()
        .or_else(|| (valid == 0).then(|| Fault::new(Reason::ListenersNotValid, &invalid)));
    let accepted = match &fault {
        None if valid < entries.len() => {
            Condition::holds(ConditionKind::Accepted, Reason::ListenersNotValid, invalid)
        }
        fault => condition(ConditionKind::Accepted, Reason::Accepted, fault.as_ref()),
    };
    let programmed = fault.as_ref().or(outside.as_ref());
    ListenerSetStatus {
        generation: None,
        conditions: vec![
            accepted,
            condition(ConditionKind::Programmed, Reason::Programmed, programmed),
        ],
        listeners: entries
            .iter()
            .map(|entry| entry.status(outside.as_ref()))
            .collect(),
    }
}

/// Routes whose documents were refused: to each of their parents that is ours it is said why.
pub(super) fn refused_routes(
    documents: &[Placed<'_>],
    gateways: &Gateways,
    report: &mut Report,
    sink: &Sink,
) {
    for placed in documents.iter().filter(|placed| placed.refused) {
        let document = placed.document;
        let (kind, parents): (RouteKind, &[ParentDraft]) = match &document.draft {
            Draft::HTTPRoute(Some(draft)) => (RouteKind::L7(L7Kind::Http), &draft.parents),
            Draft::GRPCRoute(Some(draft)) => (RouteKind::L7(L7Kind::Grpc), &draft.parents),
            Draft::TLSRoute(Some(draft)) => (RouteKind::L4(L4Kind::Tls), &draft.parents),
            Draft::TCPRoute(Some(draft)) => (RouteKind::L4(L4Kind::Tcp), &draft.parents),
            Draft::UDPRoute(Some(draft)) => (RouteKind::L4(L4Kind::Udp), &draft.parents),
            _ => continue,
        };
        let why = sink.first(&document.meta.declared).unwrap_or_default();
        let fault = Fault::new(Reason::UnsupportedValue, why);
        let conditions = vec![condition(
            ConditionKind::Accepted,
            Reason::Accepted,
            Some(&fault),
        )];
        let parents = parents.iter().filter_map(|parent| {
            let parent = reference(parent, gateways)?;
            let conditions = conditions.clone();
            Some(ParentStatus { parent, conditions })
        });
        let parents: Arc<[_]> = parents.collect();
        if !parents.is_empty() {
            let status = RouteStatus {
                generation: document.meta.generation,
                parents,
            };
            report
                .routes
                .insert((kind, document.meta.name.clone()), Arc::new(status));
        }
    }
}

/// A reference to what is ours, as status has it.
pub(super) fn reference(parent: &ParentDraft, gateways: &Gateways) -> Option<ParentRef> {
    let ParentTarget::Listeners {
        kind,
        name,
        namespaced,
    } = &parent.to
    else {
        return None;
    };
    (gateways.place(*kind, name) == Place::Ours).then(|| ParentRef {
        kind: *kind,
        namespace: namespaced.then(|| common(name.namespace())),
        name: common(name.name()),
        section: parent.section.clone(),
        port: parent.port,
    })
}

/// Policies of one kind. Those of routes are judged for the gateways of these.
pub(super) fn policies<T>(kind: Kind, policies: &Policies<'_, T>, report: &mut Report) {
    for (name, verdict) in &policies.verdicts {
        let ancestors = ancestors(verdict, report);
        if ancestors.is_empty() {
            continue;
        }
        let condition = condition(
            ConditionKind::Accepted,
            Reason::Accepted,
            verdict.accepted.as_ref(),
        );
        let status = status_of(ancestors, &[condition]);
        report.policies.insert((kind, name.clone()), status);
    }
}

fn ancestors(verdict: &PolicyVerdict, report: &Report) -> BTreeSet<ParentRef> {
    let mut ancestors = BTreeSet::new();
    for target in &verdict.targets {
        match target {
            PolicyTarget::Gateway(name) => {
                ancestors.insert(ancestor(ParentKind::Gateway, name, None));
            }
            PolicyTarget::Listener(name, listener) => {
                ancestors.insert(ancestor(ParentKind::Gateway, name, Some(listener)));
            }
            PolicyTarget::Route(route) | PolicyTarget::Rule(route, _) => {
                let key = (RouteKind::L7(route.kind), route.name.clone());
                let parents = report.routes.get(&key).map(|status| &status.parents);
                ancestors.extend(parents.into_iter().flat_map(|all| &**all).map(|status| {
                    let parent = &status.parent;
                    let own = || route.name.namespace().into();
                    ParentRef {
                        namespace: Some(parent.namespace.clone().unwrap_or_else(own)),
                        port: None,
                        ..parent.clone()
                    }
                }));
            }
        }
    }
    ancestors
}

/// Policies of backends: each is judged for the gateways whose routes lead to its targets.
pub(super) fn tls_policies(policies: &TlsPolicies, routes: &Leads, report: &mut Report) {
    for (name, verdict) in &policies.verdicts {
        let gateways = verdict.targets.iter().flat_map(|target| routes.of(target));
        let ancestors: BTreeSet<_> = gateways
            .map(|gateway| ancestor(ParentKind::Gateway, gateway, None))
            .collect();
        if ancestors.is_empty() {
            continue;
        }
        let conditions = [
            condition(
                ConditionKind::Accepted,
                Reason::Accepted,
                verdict.accepted.as_ref(),
            ),
            condition(
                ConditionKind::ResolvedRefs,
                Reason::ResolvedRefs,
                verdict.resolved.as_ref(),
            ),
        ];
        let status = status_of(ancestors, &conditions);
        report
            .policies
            .insert((Kind::BackendTLSPolicy, name.clone()), status);
    }
}

/// Gateways by the backends that their routes lead to.
#[derive(Default)]
pub(super) struct Leads(BTreeMap<(bool, ObjectName), BTreeSet<ObjectName>>);

impl Leads {
    /// Follows every reference of a route to a backend, also one that leads nowhere.
    pub(super) fn new(drafts: &Drafts, gateways: &Gateways) -> Self {
        let mut leads = Self::default();
        let l7 = drafts
            .http_routes
            .values()
            .chain(drafts.grpc_routes.values());
        for draft in l7.filter_map(|(_, draft)| draft.as_deref()) {
            let backends = draft.rules.iter().flat_map(|rule| &rule.backends);
            leads.add(&draft.parents, backends, gateways);
        }
        let l4 = [&drafts.tls_routes, &drafts.tcp_routes, &drafts.udp_routes];
        let l4 = l4.into_iter().flat_map(|table| table.values());
        for draft in l4.filter_map(|(_, draft)| draft.as_deref()) {
            leads.add(&draft.parents, draft.backends.iter(), gateways);
        }
        leads
    }

    fn add<'a>(
        &mut self,
        parents: &[ParentDraft],
        backends: impl Iterator<Item = &'a BackendDraft>,
        gateways: &Gateways,
    ) {
        let parents: Vec<&ObjectName> = parents
            .iter()
            .filter_map(|parent| match &parent.to {
                ParentTarget::Listeners { kind, name, .. } => gateways.listeners(*kind, name),
                ParentTarget::Foreign(_) => None,
            })
            .map(|(built, _)| &built.name)
            .collect();
        for backend in backends {
            let service = match backend.kind {
                BackendKind::Service(_) => true,
                BackendKind::Backend => false,
                BackendKind::RoutingTable | BackendKind::Foreign(_) => continue,
            };
            let known = self.0.entry((service, backend.name.clone())).or_default();
            known.extend(parents.iter().map(|name| (*name).clone()));
        }
    }

    fn of(&self, target: &TlsTarget) -> impl Iterator<Item = &ObjectName> {
        let key = match target {
            TlsTarget::Backend(name, _) => (false, name.clone()),
            TlsTarget::Service(name, _) => (true, name.clone()),
        };
        self.0.get(&key).into_iter().flatten()
    }
}

fn ancestor(kind: ParentKind, name: &ObjectName, section: Option<&SectionName>) -> ParentRef {
    ParentRef {
        kind,
        namespace: Some(name.namespace().into()),
        name: name.name().into(),
        section: section.cloned(),
        port: None,
    }
}

fn status_of(ancestors: BTreeSet<ParentRef>, conditions: &[Condition]) -> PolicyStatus {
    let ancestors = ancestors.into_iter().take(MAX_ANCESTORS);
    PolicyStatus {
        generation: None,
        ancestors: ancestors
            .map(|ancestor| AncestorStatus {
                ancestor,
                conditions: conditions.to_vec(),
            })
            .collect(),
    }
}

/// Notes in each status which state of its object was read, but for routes, whose own is noted with it.
pub(super) fn observe(report: &mut Report) {
    let objects = &report.objects;
    let of = |kind: Kind, name: &ObjectName| {
        let key = ObjectKey {
            kind,
            name: name.clone(),
        };
        objects.get(&key).and_then(|verdict| verdict.generation)
    };
    for (name, status) in &mut report.classes {
        status.generation = ObjectName::new("default", name)
            .ok()
            .and_then(|name| of(Kind::GatewayClass, &name));
    }
    for (name, status) in &mut report.gateways {
        status.generation = of(Kind::Gateway, name);
    }
    for (name, status) in &mut report.listener_sets {
        status.generation = of(Kind::ListenerSet, name);
    }
    for ((kind, name), status) in &mut report.policies {
        status.generation = of(*kind, name);
    }
}
