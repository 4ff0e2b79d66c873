//! Generations: who owns which address, which pods are there, what they declare. As plain data for the model, and as the
//! tables that the agent writes.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use agent_common::{Identity, Lookups, Rule, RuleKey};
use cardinal_agent::datapath::{KernelTables, Network, Owner as KernelOwner, Pod, RuleSource};

use crate::parse::is_mapped;

/// Who owns a network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Owner {
    pub(crate) identity: Identity,
    /// Host-side interface of a local pod, 1 for this node, 0 otherwise.
    pub(crate) ifindex: u32,
    /// Cell of a component, 0 otherwise.
    pub(crate) cell: u32,
}

/// A local pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Row {
    pub(crate) identity: Identity,
    pub(crate) cell: u32,
    pub(crate) mac: [u8; 6],
}

/// One generation.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tables {
    /// By network (host bits are zero) and length, 0 to 128.
    pub(crate) networks: BTreeMap<(u128, u32), Owner>,
    /// By host-side interface.
    pub(crate) pods: BTreeMap<u32, Row>,
    pub(crate) rules: BTreeMap<Identity, BTreeMap<RuleKey, Rule>>,
}

pub(crate) fn masked(address: u128, bits: u32) -> u128 {
    if bits == 0 {
        0
    } else {
        address & (u128::MAX << (128 - bits))
    }
}

impl Tables {
    /// The longest network that has the address.
    pub(crate) fn owner(&self, address: u128) -> Option<Owner> {
        self.networks
            .iter()
            .filter(|((network, bits), _)| masked(address, *bits) == *network)
            .max_by_key(|((_, bits), _)| *bits)
            .map(|(_, owner)| *owner)
    }

    /// The form that the agent writes.
    pub(crate) fn kernel(&self, generation: u32, names: &BTreeMap<u32, String>) -> KernelTables {
        let mut tables = KernelTables {
            generation,
            ..KernelTables::default()
        };
        for (of, rules) in &self.rules {
            let rules = rules.iter().map(|(key, rule)| (*key, *rule));
            tables.policies.insert(*of, rules.collect());
        }
        for ((address, bits), owner) in &self.networks {
            let network = if *bits >= 96 && is_mapped(*address) {
                let v4 = Ipv4Addr::from_bits(*address as u32);
                Network::new(IpAddr::V4(v4), (*bits - 96) as u8)
            } else {
                Network::new(IpAddr::V6(Ipv6Addr::from_bits(*address)), *bits as u8)
            };
            let owner = KernelOwner {
                identity: owner.identity,
                ifindex: owner.ifindex,
                cell: owner.cell,
            };
            tables.identities.insert(network, owner);
        }
        for (ifindex, row) in &self.pods {
            let pod = Pod {
                ifname: names[ifindex].clone(),
                identity: row.identity,
                cell: row.cell,
                whole: None,
                lookups: self.lookups(row.identity),
                mac: row.mac,
            };
            tables.endpoints.insert(*ifindex, pod);
            tables.cells.insert(row.cell, format!("cell-{}", row.cell));
        }
        for rule in self.rules.values().flat_map(BTreeMap::values) {
            tables.rules.insert(rule.id(), RuleSource::new([]));
        }
        tables
    }

    /// What it takes to find the rules of pods with an identity.
    fn lookups(&self, of: Identity) -> Lookups {
        let rules = self.rules.get(&of);
        let keys = rules.into_iter().flat_map(BTreeMap::keys);
        keys.fold(Lookups::default(), |lookups, key| {
            let anybody = (key.peer() == RuleKey::ANYBODY).then_some(Lookups::ANYBODY);
            let range = (key.width() > 0).then_some(Lookups::RANGES);
            let needed = anybody.into_iter().chain(range);
            needed.fold(lookups, Lookups::and)
        })
    }
}
