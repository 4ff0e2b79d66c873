//! Cells whose documents are refused: their pods stay theirs, reach each other and name servers, and nobody else.
//!
//! A refused cell that was as if it were not there would set its pods free, as pods of no cell are let alone. It takes no pod and
//! no address from anybody whose document is right.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use data_encoding::HEXLOWER;
use sha2::{Digest as _, Sha256};

use super::addresses::{Foreign, Others};
use super::openchoreo::Labelled;
use crate::document::Table;
use crate::document::cell::remains::Remains;
use crate::document::pod::PodDraft;
use crate::model::{
    Borders, Cell, CellId, Component, ComponentId, ComponentKind, Name, ObjectName,
    TrafficDistribution, Workloads,
};
use crate::report::Source;
use crate::shared::Shared;

/// A refused document.
pub(super) struct Refused<'a> {
    pub(super) name: &'a ObjectName,
    pub(super) declared: &'a Source,
    pub(super) remains: Remains,
}

/// The organization of cells whose own tuple cannot be read, or is another one's.
const REFUSED: &str = "refused";

/// Adds what is left of refused cells to those that are right. Namespaces that labels of OpenChoreo speak for are left to these.
pub(super) fn add(
    cells: &mut BTreeMap<CellId, Shared<Cell>>,
    refused: &[Refused<'_>],
    labelled: &Labelled<'_>,
    pods: &Table<PodDraft>,
    (others, foreign): (&Others, &Foreign),
) {
    let mut taken: BTreeSet<IpAddr> = cells
        .values()
        .flat_map(|cell| cell.components.values())
        .flat_map(|one| one.addresses())
        .copied()
        .collect();
    // Who names labels goes before who takes everything that is left.
    let mut order: Vec<(usize, &Refused<'_>)> = (0..).zip(refused).collect();
    order.sort_by_key(|(at, one)| (one.remains.workloads.iter().any(|(_, of)| is_all(of)), *at));
    for (_, one) in order {
        if labelled.speaks_for(one.name.namespace()) {
            continue;
        }
        let free = |id: &CellId| !cells.contains_key(id) && !labelled.has(id);
        let Some(id) = ids(one).into_iter().find(free) else {
            continue;
        };
        let mut components = BTreeMap::new();
        for (at, (name, workloads)) in one.remains.workloads.iter().enumerate() {
            let names = [name.clone(), Name::new(&format!("unnamed-{at}")).ok()];
            let mut names = names.into_iter().flatten();
            let Some(name) = names.find(|name| !components.contains_key(name)) else {
                continue;
            };
            let mut own = found(workloads, pods, others);
            own.retain(|address| {
                let foreign = foreign.what(*address, one.name.namespace());
                foreign.is_none() && taken.insert(*address)
            });
            // What is nobody's place needs no gate.
            if own.is_empty() {
                continue;
            }
            let component = component(&id, name.clone(), one, with(workloads, own));
            components.insert(name, component.into());
        }
        if components.is_empty() {
            continue;
        }
        let cell = Cell {
            id: id.clone(),
            declared: one.declared.clone(),
            intra: one.remains.intra,
            intra_declared: one.declared.at("spec.intra"),
            components,
            borders: Borders::default(),
            east: Vec::new(),
            south: Vec::new(),
        };
        cells.insert(id, cell.into());
    }
}

/// Its own tuple, then others that name its document.
fn ids(refused: &Refused<'_>) -> Vec<CellId> {
    let name = refused.name;
    let digest = HEXLOWER.encode(&Sha256::digest(name.to_string())[..16]);
    let stand_in = |environment: &str| {
        Some(CellId {
            organization: Name::new(REFUSED).ok()?,
            project: Name::new(name.namespace()).ok()?,
            environment: Name::new(environment).ok()?,
        })
    };
    let ids = [
        refused.remains.id.clone(),
        stand_in(name.name()),
        stand_in(&digest),
    ];
    ids.into_iter().flatten().collect()
}

fn is_all(workloads: &Workloads) -> bool {
    matches!(workloads, Workloads::Selector { match_labels, .. } if match_labels.is_empty())
}

/// Addresses that workloads have, in ascending order.
fn found(workloads: &Workloads, pods: &Table<PodDraft>, others: &Others) -> Vec<IpAddr> {
    let mut addresses: Vec<IpAddr> = match workloads {
        Workloads::Addresses(addresses) => addresses.clone(),
        Workloads::Selector {
            namespace,
            match_labels,
            ..
        } => {
            let own = pods
                .iter()
                .filter(|(name, _)| name.namespace() == namespace);
            let own = own
                .filter_map(|(_, (_, pod))| pod.as_deref())
                .filter(|pod| {
                    let mut labels = match_labels.iter();
                    labels.all(|(key, value)| pod.labels.get(key) == Some(value.as_str()))
                });
            let addresses = own.flat_map(|pod| &pod.addresses);
            addresses.map(|placed| placed.address).collect()
        }
    };
    addresses.retain(|address| !others.have(*address));
    addresses.sort_unstable();
    addresses.dedup();
    addresses
}

fn with(workloads: &Workloads, own: Vec<IpAddr>) -> Workloads {
    match workloads {
        Workloads::Addresses(_) => Workloads::Addresses(own),
        Workloads::Selector {
            namespace,
            match_labels,
            ..
        } => Workloads::Selector {
            namespace: namespace.clone(),
            match_labels: match_labels.clone(),
            addresses: own,
        },
    }
}

fn component(id: &CellId, name: Name, of: &Refused<'_>, workloads: Workloads) -> Component {
    Component {
        id: ComponentId {
            cell: id.clone(),
            component: name,
        },
        declared: of.declared.clone(),
        kind: ComponentKind::Service,
        workloads,
        service_addresses: Vec::new(),
        session_affinity: None,
        traffic_distribution: TrafficDistribution::default(),
        endpoints: BTreeMap::new(),
        connections: Vec::new(),
    }
}
