//! A service that changes: what it needs, and what of that it has.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use agent_common::address_bytes;

use super::super::tables::{Backend, Service, ServiceAddress};
use super::placed::Slot;

/// A service that changes.
pub(super) struct Draft {
    pub(super) address: ServiceAddress,
    /// What was asked for, and the seconds of affinity; none for a service that is to be removed.
    pub(super) wish: Option<(Vec<Backend>, u32)>,
    /// Its backends, with the slots of those that it has already.
    pub(super) backends: Vec<(Backend, Option<Slot>)>,
}

impl Draft {
    pub(super) fn new(address: ServiceAddress, service: &Service, slots: &[Slot]) -> Self {
        let slots: BTreeMap<_, _> = slots
            .iter()
            .map(|slot| ((slot.wire.address(), slot.wire.port()), *slot))
            .collect();
        let backends = whole(&service.backends)
            .into_iter()
            .map(|backend| {
                let known = (address_bytes(backend.address), backend.port.to_be_bytes());
                (backend, slots.get(&known).copied())
            })
            .collect();
        Self {
            address,
            wish: Some((service.backends.clone(), seconds(service.affinity))),
            backends,
        }
    }

    pub(super) fn removed(address: ServiceAddress) -> Self {
        Self {
            address,
            wish: None,
            backends: Vec::new(),
        }
    }

    /// How many slots it needs that it does not have.
    pub(super) fn fresh(&self) -> usize {
        let new = self.backends.iter().filter(|(_, slot)| slot.is_none());
        new.count()
    }
}

/// Backends that get connections, each once.
pub(super) fn whole(backends: &[Backend]) -> Vec<Backend> {
    let place = |backend: &Backend| (backend.address, backend.port);
    if backends.is_sorted_by(|a, b| place(a) < place(b))
        && backends.iter().all(|backend| backend.weight > 0)
    {
        return backends.to_vec();
    }
    let mut whole: Vec<Backend> = Vec::new();
    let mut known: BTreeMap<(IpAddr, u16), usize> = BTreeMap::new();
    for backend in backends.iter().filter(|backend| backend.weight > 0) {
        match known.get(&place(backend)) {
            Some(n) => whole[*n].weight = whole[*n].weight.saturating_add(backend.weight),
            None => {
                known.insert(place(backend), whole.len());
                whole.push(*backend);
            }
        }
    }
    whole
}

/// Whole seconds, at least one if there is affinity at all.
pub(super) fn seconds(affinity: Option<Duration>) -> u32 {
    affinity.map_or(0, |time| {
        let started = u64::from(time.subsec_nanos() > 0);
        u32::try_from(time.as_secs().saturating_add(started))
            .unwrap_or(u32::MAX)
            .max(1)
    })
}
