//! Which pods on this node have rules, and where they are: those of components, and those that network policies restrict.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use agent_common::Identity;
use snapshot::model::{ClassId, ComponentId, NetworkPolicies};

use super::claims::Claims;
use super::names::Names;
use super::parts::Parts;
use crate::datapath::Discovery;

/// Whose pod is behind an interface.
#[derive(Clone, PartialEq, Eq)]
pub(super) enum Place {
    /// With the identity of its first address.
    Of(Subject, Identity),
    /// Its addresses belong to more than one component, or to pods that network policies tell apart: it claims what is not its
    /// own.
    Contradiction,
}

/// Whose rules a pod has.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Subject {
    /// The component that it runs; none: a pod of no cell, which network policies restrict.
    pub(super) component: Option<ComponentId>,
    /// What network policies take it for.
    pub(super) class: Option<ClassId>,
}

/// The pods of this node that are somebody's, or restricted.
#[derive(Clone, Default)]
pub(super) struct Places {
    pub(super) by_interface: BTreeMap<u32, Place>,
    /// Addresses of these pods, and the interface of each.
    pub(super) owned: BTreeMap<IpAddr, u32>,
}

/// What tells whose an address is.
pub(super) struct Whose<'a> {
    pub(super) workloads: &'a Claims,
    pub(super) policies: &'a NetworkPolicies,
    pub(super) names: &'a Names,
    pub(super) parts: &'a Parts,
}

impl Whose<'_> {
    /// None: nobody's, or of a pod that nothing restricts.
    fn subject(&self, address: &IpAddr) -> Option<(Subject, Identity)> {
        let component = self.workloads.owner(address);
        let class = self.policies.members.get(address);
        let isolated = || {
            let class = self.policies.classes.of.get(class?)?;
            class.is_isolated().then_some(())
        };
        if component.is_none() {
            isolated()?;
        }
        let part = self.parts.members.get(address).copied();
        let whole = component.map(|id| self.names.component(id));
        let subject = Subject {
            component: component.cloned(),
            class: class.cloned(),
        };
        Some((subject, part.or(whole)?))
    }

    /// Whether two addresses may be those of one pod: they differ in nothing but in the networks that hold them.
    fn alike(&self, one: &Subject, other: &Subject) -> bool {
        let class = |subject: &Subject| {
            let class = self.policies.classes.of.get(subject.class.as_ref()?)?;
            Some((&class.peers, &class.ports, &class.ingress, &class.egress))
        };
        one.component == other.component && class(one) == class(other)
    }
}

impl Places {
    pub(super) fn of(discovery: &Discovery, whose: &Whose<'_>) -> Self {
        let mut places = Self::default();
        for pod in &discovery.pods {
            let claims: Vec<(&IpAddr, (Subject, Identity))> = pod
                .addresses
                .iter()
                .filter_map(|address| Some((address, whose.subject(address)?)))
                .collect();
            let Some((_, (subject, identity))) = claims.first() else {
                continue;
            };
            let mut others = claims.iter();
            let place = match others.all(|(_, (other, _))| whose.alike(subject, other)) {
                true => Place::Of(subject.clone(), *identity),
                false => Place::Contradiction,
            };
            if let Place::Of(..) = place {
                // Of two pods with one address the older interface has it; the other one cannot send from it.
                for (address, _) in &claims {
                    places.owned.entry(**address).or_insert(pod.ifindex);
                }
            }
            places.by_interface.insert(pod.ifindex, place);
        }
        places
    }

    /// Who has a pod here, by identity.
    pub(super) fn subjects(&self) -> BTreeMap<Identity, &Subject> {
        let places = self.by_interface.values();
        places
            .filter_map(|place| match place {
                Place::Of(subject, identity) => Some((*identity, subject)),
                Place::Contradiction => None,
            })
            .collect()
    }

    /// Addresses that are not where they were.
    pub(super) fn moved(&self, before: &Self) -> BTreeSet<IpAddr> {
        let (now, then) = (&self.owned, &before.owned);
        let came = now
            .iter()
            .filter(|(address, at)| then.get(*address) != Some(*at));
        let went = then.keys().filter(|address| !now.contains_key(*address));
        came.map(|(address, _)| address)
            .chain(went)
            .copied()
            .collect()
    }
}
