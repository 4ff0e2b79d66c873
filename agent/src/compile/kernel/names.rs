//! Numbers for cells, components and networks: what the kernel's tables say instead of names.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use agent_common::Identity;
use snapshot::Snapshot;
use snapshot::model::{Cell, CellId, Cidr, ComponentId, SouthDestination};

use super::changes::Changes;
use super::numbers::{Numbered, Numbers};

/// Numbers of everything that has one.
#[derive(Clone)]
pub(super) struct Names {
    pub(super) cells: Numbers<CellId>,
    components: Numbers<ComponentId>,
    pub(super) networks: Arc<Networks>,
}

/// Networks outside of the cells.
#[derive(Default, PartialEq, Eq)]
pub(super) struct Networks {
    /// Those of south calls.
    pub(super) external: BTreeMap<Cidr, Identity>,
    /// Those of platform services.
    pub(super) platform: BTreeMap<Cidr, Identity>,
}

/// What else has another number than before, now that names came or went.
pub(super) struct Renumbered {
    /// A cell or component that was there before.
    pub(super) names: bool,
    /// Any network, or the networks are others.
    pub(super) networks: bool,
}

impl Numbered for CellId {
    fn parts(&self, part: &mut dyn FnMut(&str)) {
        for name in [&self.organization, &self.project, &self.environment] {
            part(name.as_str());
        }
    }
}

impl Numbered for ComponentId {
    fn parts(&self, part: &mut dyn FnMut(&str)) {
        self.cell.parts(part);
        part(self.component.as_str());
    }
}

impl Numbered for Cidr {
    fn parts(&self, part: &mut dyn FnMut(&str)) {
        part(&self.to_string());
    }
}

impl Default for Names {
    fn default() -> Self {
        Self {
            cells: Numbers::below(Identity::MAX_NUMBER),
            components: Numbers::below(Identity::MAX_NUMBER),
            networks: Arc::default(),
        }
    }
}

impl Names {
    /// Makes them the names of `snapshot`.
    pub(super) fn follow(&mut self, snapshot: &Snapshot, changes: &Changes<'_>) -> Renumbered {
        let cells = self.cells.update(
            changes.cells.iter().filter_map(|cell| cell.gone()).cloned(),
            changes.cells.iter().filter_map(|cell| cell.came()).cloned(),
        );
        let components = &changes.components;
        let components = self.components.update(
            components.iter().filter_map(|one| one.gone()).cloned(),
            components.iter().filter_map(|one| one.came()).cloned(),
        );
        let mut networks = false;
        if changes.platform || changes.cells.iter().any(|cell| cell.differs(souths)) {
            let now = Networks::of(snapshot);
            networks = *self.networks != now;
            self.networks = Arc::new(now);
        }
        Renumbered {
            names: cells || components,
            networks,
        }
    }

    pub(super) fn cell(&self, id: &CellId) -> u32 {
        // Only cells of the snapshot are asked for; one that were not would be counted as nobody's.
        self.cells.get(id).unwrap_or(0)
    }

    pub(super) fn component(&self, id: &ComponentId) -> Identity {
        // Only components of the snapshot are asked for; one that were not would be nobody, and denied.
        self.components
            .get(id)
            .map_or(Identity::NONE, Identity::component)
    }
}

fn souths(cell: &Cell) -> BTreeSet<Cidr> {
    let souths = cell.south.iter();
    souths
        .flat_map(|south| match &south.destination {
            SouthDestination::Networks { cidrs, .. } => cidrs.as_slice(),
            SouthDestination::Hosts { .. } => &[],
        })
        .copied()
        .collect()
}

impl Networks {
    fn of(snapshot: &Snapshot) -> Self {
        let platform: BTreeSet<Cidr> = snapshot
            .platform
            .services
            .iter()
            .flat_map(|service| &service.addresses)
            .copied()
            .collect();
        let external: BTreeSet<Cidr> = snapshot
            .cells
            .values()
            .flat_map(|cell| souths(cell))
            .filter(|cidr| !platform.contains(cidr))
            .collect();
        let number = |networks: BTreeSet<Cidr>, identity: fn(u32) -> Identity| {
            let mut numbers = Numbers::below(Identity::MAX_NUMBER);
            numbers.update([], networks);
            let numbered = numbers.iter();
            numbered
                .map(|(cidr, number)| (*cidr, identity(number)))
                .collect()
        };
        Self {
            external: number(external, Identity::external),
            platform: number(platform, Identity::platform),
        }
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
