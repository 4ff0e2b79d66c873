//! A service as it stands in the kernel, and whether it is the one that is wanted.

use agent_common::{Backend as WireBackend, Choice, Service as WireService, address_bytes};

use super::super::tables::{Backend, Service};
use super::alias::columns;
use super::draft::{seconds, whole};

/// A service with its slots.
#[derive(Debug)]
pub(super) struct Placed {
    pub(super) wire: WireService,
    /// The generation that its entry is of.
    pub(super) since: u32,
    pub(super) backends: Vec<Slot>,
    pub(super) wish: Wish,
}

/// A backend and its place in the map `backends`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Slot {
    pub(super) index: u32,
    pub(super) wire: WireBackend,
}

/// How a placed service is compared with one that is wanted.
#[derive(Debug)]
pub(super) enum Wish {
    /// What was asked for.
    Told(Vec<Backend>),
    /// It was read back from the kernel, where the choices stand for the weights.
    Read(Vec<Choice>),
}

impl Placed {
    /// The choices that the kernel should have for it.
    pub(super) fn choices(&self) -> Vec<Choice> {
        match &self.wish {
            Wish::Told(backends) => {
                let weights: Vec<_> = (self.backends.iter().zip(whole(backends)))
                    .map(|(slot, backend)| (slot.index, backend.weight))
                    .collect();
                columns(&weights)
            }
            Wish::Read(choices) => choices.clone(),
        }
    }

    /// Whether this is the service that is wanted.
    pub(super) fn means(&mut self, wanted: &Service) -> bool {
        if self.wire.affinity_seconds() != seconds(wanted.affinity) {
            return false;
        }
        match &self.wish {
            Wish::Told(backends) => *backends == wanted.backends,
            Wish::Read(choices) => {
                let backends = whole(&wanted.backends);
                let same = backends.len() == self.backends.len()
                    && backends.iter().zip(&self.backends).all(|(backend, slot)| {
                        slot.wire.address() == address_bytes(backend.address)
                            && slot.wire.port() == backend.port.to_be_bytes()
                    });
                let weights: Vec<_> = (self.backends.iter().zip(&backends))
                    .map(|(slot, backend)| (slot.index, backend.weight))
                    .collect();
                if !same || columns(&weights) != *choices {
                    return false;
                }
                self.wish = Wish::Told(wanted.backends.clone());
                true
            }
        }
    }
}
