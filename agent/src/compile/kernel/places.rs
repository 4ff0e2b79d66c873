//! Which components have pods on this node, and where.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use snapshot::model::ComponentId;

use super::claims::Claims;
use crate::datapath::Discovery;

/// Whose pod is behind an interface.
#[derive(Clone, PartialEq, Eq)]
pub(super) enum Place {
    Of(ComponentId),
    /// Its addresses belong to more than one component: it claims what is not its own.
    Contradiction,
}

/// The pods of this node that are somebody's.
#[derive(Clone, Default)]
pub(super) struct Places {
    pub(super) by_interface: BTreeMap<u32, Place>,
    /// Declared addresses that a pod here has, and its interface.
    pub(super) owned: BTreeMap<IpAddr, u32>,
}

impl Places {
    pub(super) fn of(discovery: &Discovery, workloads: &Claims) -> Self {
        let mut places = Self::default();
        for pod in &discovery.pods {
            let claims: BTreeSet<&ComponentId> = pod
                .addresses
                .iter()
                .filter_map(|address| workloads.owner(address))
                .collect();
            let mut claims = claims.into_iter();
            let place = match (claims.next(), claims.next()) {
                (None, _) => continue,
                (Some(id), None) => Place::Of(id.clone()),
                (Some(_), Some(_)) => Place::Contradiction,
            };
            if let Place::Of(_) = place {
                // Of two pods with one address the older interface has it; the other one cannot send from it.
                for address in &pod.addresses {
                    if workloads.owner(address).is_some() {
                        places.owned.entry(*address).or_insert(pod.ifindex);
                    }
                }
            }
            places.by_interface.insert(pod.ifindex, place);
        }
        places
    }

    /// Components with a pod here.
    pub(super) fn components(&self) -> BTreeSet<&ComponentId> {
        let places = self.by_interface.values();
        places
            .filter_map(|place| match place {
                Place::Of(id) => Some(id),
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
