//! Which components declare an address.
//!
//! Nearly always one: documents in which two do are refused, but for loopback, which is never on a wire. Of several the
//! last in the order of names has it.

use std::net::IpAddr;

use snapshot::model::{Component, ComponentId};

use super::changes::Changes;
use crate::datapath::Table;

/// Components by an address that they declare.
#[derive(Clone, Default)]
pub(super) struct Claims {
    owners: Table<IpAddr, ComponentId>,
    /// Who declares an address beside its owner, in the order of names.
    others: Table<IpAddr, Vec<ComponentId>>,
}

impl Claims {
    /// The component that has an address.
    pub(super) fn owner(&self, address: &IpAddr) -> Option<&ComponentId> {
        self.owners.get(address)
    }

    /// Everybody that declares an address, in the order of names.
    pub(super) fn all(&self, address: &IpAddr) -> impl Iterator<Item = &ComponentId> {
        let others = self.others.get(address).into_iter().flatten();
        others.chain(self.owners.get(address))
    }

    /// Takes over what components declare now; `declared` gives their addresses. Tells whether an address came or went.
    pub(super) fn follow(
        &mut self,
        changes: &Changes<'_>,
        declared: impl Fn(&Component) -> &[IpAddr],
    ) -> bool {
        let mut differs = false;
        for change in &changes.components {
            if !change.differs(&declared) {
                continue;
            }
            differs = true;
            if let Some(before) = change.before {
                for address in declared(before) {
                    self.remove(address, &before.id);
                }
            }
            if let Some(after) = change.after {
                for address in declared(after) {
                    self.add(address, &after.id);
                }
            }
        }
        differs
    }

    fn add(&mut self, address: &IpAddr, id: &ComponentId) {
        let Some(owner) = self.owners.insert(*address, id.clone()) else {
            return;
        };
        let others = self.others.entry(*address).or_default();
        others.extend([owner, id.clone()]);
        self.settle(address);
    }

    fn remove(&mut self, address: &IpAddr, id: &ComponentId) {
        if self.owners.get(address) == Some(id) {
            self.owners.remove(address);
        }
        if let Some(others) = self.others.get_mut(address) {
            others.retain(|known| known != id);
            others.extend(self.owners.remove(address));
            self.settle(address);
        }
    }

    /// Puts the last of `others`, where everybody is now, into the place of the owner.
    fn settle(&mut self, address: &IpAddr) {
        let Some(others) = self.others.get_mut(address) else {
            return;
        };
        others.sort_unstable();
        others.dedup();
        if let Some(owner) = others.pop() {
            self.owners.insert(*address, owner);
        }
        if others.is_empty() {
            self.others.remove(address);
        }
    }
}
