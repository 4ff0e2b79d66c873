//! Numbers for cells, components and networks: what the kernel's tables say instead of names.

use std::collections::{BTreeMap, BTreeSet};

use agent_common::Identity;
use sha2::{Digest as _, Sha256};
use snapshot::model::{CellId, Cidr, ComponentId, Snapshot, SouthDestination};

/// Numbers of everything that has one: from a hash of the name, so that one more cell renumbers no other, and then the
/// next free one in the order of names.
pub(super) struct Names<'a> {
    pub(super) cells: BTreeMap<&'a CellId, u32>,
    pub(super) components: BTreeMap<&'a ComponentId, u32>,
    pub(super) external: BTreeMap<Cidr, Identity>,
    pub(super) platform: BTreeMap<Cidr, Identity>,
}

pub(super) fn numbers<K: Ord>(
    names: impl Iterator<Item = (K, Vec<String>)>,
    limit: u32,
) -> BTreeMap<K, u32> {
    let mut taken = BTreeSet::new();
    let mut numbered = BTreeMap::new();
    for (key, parts) in names {
        let mut hash = Sha256::new();
        for part in &parts {
            // The length keeps ("ab", "c") apart from ("a", "bc").
            hash.update((part.len() as u64).to_be_bytes());
            hash.update(part);
        }
        let digest = hash.finalize();
        let mut number = u32::from_be_bytes([digest[0], digest[1], digest[2], digest[3]]) % limit;
        // Zero is nobody, and there are fewer names than numbers.
        while number == 0 || !taken.insert(number) {
            number = number.wrapping_add(1) % limit;
        }
        numbered.insert(key, number);
    }
    numbered
}

fn parts(cell: &CellId) -> Vec<String> {
    [&cell.organization, &cell.project, &cell.environment]
        .map(ToString::to_string)
        .to_vec()
}

impl<'a> Names<'a> {
    pub(super) fn of(snapshot: &'a Snapshot) -> Self {
        let limit = Identity::MAX_NUMBER;
        let components = snapshot
            .cells
            .values()
            .flat_map(|cell| cell.components.values())
            .map(|component| {
                let mut parts = parts(&component.id.cell);
                parts.push(component.id.component.to_string());
                (&component.id, parts)
            });
        let networks = |all: BTreeSet<Cidr>| {
            numbers(
                all.into_iter().map(|cidr| (cidr, vec![cidr.to_string()])),
                limit,
            )
        };
        let south = snapshot
            .cells
            .values()
            .flat_map(|cell| &cell.south)
            .flat_map(|south| match &south.destination {
                SouthDestination::Networks { cidrs, .. } => cidrs.as_slice(),
                SouthDestination::Hosts { .. } => &[],
            });
        let platform: BTreeSet<Cidr> = snapshot
            .platform
            .services
            .iter()
            .flat_map(|service| &service.addresses)
            .copied()
            .collect();
        let external = south
            .copied()
            .filter(|cidr| !platform.contains(cidr))
            .collect();
        Self {
            cells: numbers(snapshot.cells.keys().map(|id| (id, parts(id))), limit),
            components: numbers(components, limit),
            external: networks(external)
                .into_iter()
                .map(|(cidr, number)| (cidr, Identity::external(number)))
                .collect(),
            platform: networks(platform)
                .into_iter()
                .map(|(cidr, number)| (cidr, Identity::platform(number)))
                .collect(),
        }
    }

    pub(super) fn component(&self, id: &ComponentId) -> Identity {
        // Only components of the snapshot are asked for; one that were not would be nobody, and denied.
        self.components
            .get(id)
            .map_or(Identity::NONE, |number| Identity::component(*number))
    }

    /// Everybody that a south call to `cidr` may meet: longest prefixes inside it are identities of their own.
    pub(super) fn within_south(&self, cidr: &Cidr) -> impl Iterator<Item = Identity> {
        let external = self
            .external
            .iter()
            .filter(|(inner, _)| cidr.contains(inner))
            .map(|(_, identity)| *identity);
        external.chain(self.platform.get(cidr).copied())
    }

    /// Everybody that a platform service with `cidr` may call from.
    pub(super) fn within_platform(&self, cidr: &Cidr) -> impl Iterator<Item = Identity> {
        self.external
            .iter()
            .chain(&self.platform)
            .filter(|(inner, _)| cidr.contains(inner))
            .map(|(_, identity)| *identity)
    }
}
