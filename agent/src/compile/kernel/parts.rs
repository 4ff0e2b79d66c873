//! Identities that network policies split: addresses of one identity that policies tell apart have parts of it.
//!
//! Flows in: who owns which network as far as cells and the platform are concerned, and the classes of addresses. Flows out:
//! the same with parts, each with a number of its own, and what tells it from others. An identity that no policy splits stays
//! what it was.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv6Addr};

use agent_common::Identity;
use snapshot::model::{
    AddressClass, BlockId, Cidr, ClassId, Classes, Gate, METADATA, NetworkPolicies,
};

use super::numbers::{Numbered, Numbers};
use crate::datapath::{Network, Owner, Table};

/// What tells addresses of an identity from the others.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Told {
    /// A class: pods, and addresses of components.
    Class(ClassId),
    /// The networks of rules that hold them.
    Blocks(BTreeSet<BlockId>),
}

/// The parts of all identities.
#[derive(Clone, Default, PartialEq, Eq)]
pub(super) struct Parts {
    /// By the identity that is split.
    of: BTreeMap<Identity, BTreeMap<Told, Identity>>,
    /// The part of each address that has a class.
    pub(super) members: BTreeMap<IpAddr, Identity>,
    /// What rules know a gate by: selectors, and networks that hold all of its addresses. Gates are not split: the router's mark
    /// names one as a whole.
    gates: BTreeMap<Identity, AddressClass>,
    /// Who owns networks, as others are to know it: those that are split, and those that split them.
    networks: BTreeMap<Network, Identity>,
}

/// What a part is called, for its number.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
struct PartName {
    whole: Identity,
    words: String,
}

impl Numbered for PartName {
    fn parts(&self, part: &mut dyn FnMut(&str)) {
        part(&self.whole.raw().to_string());
        part(&self.words);
    }
}

/// Who somebody is to network policies.
pub(super) struct Peer<'a> {
    /// The identity that cells' rules are about.
    pub(super) whole: Identity,
    pub(super) class: Option<&'a AddressClass>,
    pub(super) blocks: Option<&'a BTreeSet<BlockId>>,
}

impl Parts {
    /// Splits the owners of networks, and those of addresses with a class. `component` gives the identity of a component's
    /// address.
    pub(super) fn of(
        policies: &NetworkPolicies,
        owners: &Table<Network, Owner>,
        component: impl Fn(&IpAddr) -> Option<Identity>,
    ) -> Self {
        let classes = &*policies.classes;
        if classes.of.is_empty() && classes.blocks.is_empty() {
            return Self::default();
        }
        let around = Around::new(owners);
        let mut networks: BTreeMap<Network, (Identity, BTreeSet<BlockId>)> = BTreeMap::new();
        let named = classes.blocks.iter();
        let named = named.flat_map(|block| [&block.cidr].into_iter().chain(&block.except));
        let named = named.map(|cidr| Network::new(cidr.address(), cidr.length()));
        let mut around_gates: BTreeMap<Identity, BTreeSet<BlockId>> = BTreeMap::new();
        for network in owners.keys().copied().chain(named) {
            let whole = around.owner(network);
            // A name server that is a metadata service too is no pod.
            let metadata = METADATA.map(Network::host).contains(&network);
            let inside = is_inside(whole) && !metadata;
            let blocks = holding(classes, &cidr(&network), inside);
            if is_gate(whole) {
                let all = around_gates.entry(whole).or_insert_with(|| blocks.clone());
                all.retain(|block| blocks.contains(block));
                continue;
            }
            networks.insert(network, (whole, blocks));
        }
        let gates = [Gate::External, Gate::Internal].map(|gate| {
            let whole = super::gate(gate);
            let class = AddressClass {
                peers: classes.gates.get(&gate).cloned().unwrap_or_default(),
                blocks: around_gates.remove(&whole).unwrap_or_default(),
                ..AddressClass::default()
            };
            (whole, class)
        });
        let mut names: BTreeMap<PartName, (Identity, Told)> = BTreeMap::new();
        let mut name = |whole: Identity, told: Told| -> PartName {
            let words = words(classes, &told);
            let name = PartName { whole, words };
            names.entry(name.clone()).or_insert((whole, told));
            name
        };
        let networks: Vec<(Network, Result<PartName, Identity>)> = networks
            .into_iter()
            .map(|(network, (whole, blocks))| match blocks.is_empty() {
                true => (network, Err(whole)),
                false => (network, Ok(name(whole, Told::Blocks(blocks)))),
            })
            .collect();
        let members: Vec<(IpAddr, PartName)> = policies
            .members
            .iter()
            .map(|(address, class)| {
                let whole = component(address);
                let whole = whole.unwrap_or_else(|| around.owner(Network::host(*address)));
                (*address, name(whole, Told::Class(class.clone())))
            })
            .collect();
        let mut numbers = Numbers::below(Identity::MAX_NUMBER);
        numbers.update([], names.keys().cloned());
        let part = |name: &PartName| {
            let number = numbers.get(name);
            number.map_or(Identity::NONE, |number| name.whole.part(number))
        };
        let mut of: BTreeMap<Identity, BTreeMap<Told, Identity>> = BTreeMap::new();
        for (name, (whole, told)) in &names {
            let parts = of.entry(*whole).or_default();
            parts.insert(told.clone(), part(name));
        }
        Self {
            of,
            gates: gates.into(),
            members: members
                .iter()
                .map(|(address, name)| (*address, part(name)))
                .collect(),
            networks: networks
                .into_iter()
                .map(|(network, owner)| match owner {
                    Ok(name) => (network, part(&name)),
                    Err(whole) => (network, whole),
                })
                .collect(),
        }
    }

    /// The owners of networks with the parts in the places of the identities that are split.
    pub(super) fn owners(&self, owners: &Table<Network, Owner>) -> Table<Network, Owner> {
        let mut split = owners.clone();
        for (network, identity) in &self.networks {
            let known = owners.get(network);
            let owner = Owner {
                identity: *identity,
                ifindex: known.map_or(0, |owner| owner.ifindex),
                cell: known.map_or(0, |owner| owner.cell),
            };
            if known != Some(&owner) {
                split.insert(*network, owner);
            }
        }
        split
    }

    /// Everybody that a rule about `whole` is about: itself, and its parts.
    pub(super) fn within<'a>(
        &'a self,
        classes: &'a Classes,
        whole: Identity,
    ) -> impl Iterator<Item = (Identity, Peer<'a>)> {
        let class = self.gates.get(&whole);
        let itself = Peer {
            whole,
            class,
            blocks: class.map(|class| &class.blocks),
        };
        let parts = self.of.get(&whole).into_iter().flatten();
        std::iter::once((whole, itself))
            .chain(parts.map(move |(told, identity)| (*identity, peer(classes, whole, told))))
    }

    /// Every part of every identity.
    pub(super) fn all<'a>(
        &'a self,
        classes: &'a Classes,
    ) -> impl Iterator<Item = (Identity, Peer<'a>)> {
        let all = self.of.iter();
        all.flat_map(move |(whole, parts)| {
            let parts = parts.iter();
            parts.map(move |(told, identity)| (*identity, peer(classes, *whole, told)))
        })
    }

    /// Whether rules about others are the same with both.
    pub(super) fn same_identities(&self, other: &Self) -> bool {
        self.of == other.of && self.gates == other.gates
    }
}

fn peer<'a>(classes: &'a Classes, whole: Identity, told: &'a Told) -> Peer<'a> {
    match told {
        Told::Class(id) => {
            let class = classes.of.get(id);
            Peer {
                whole,
                class,
                blocks: class.map(|class| &class.blocks),
            }
        }
        Told::Blocks(blocks) => Peer {
            whole,
            class: None,
            blocks: Some(blocks),
        },
    }
}

/// Whether an identity is one of nodes or of the platform's own pods.
pub(super) fn is_inside(whole: Identity) -> bool {
    whole.is_component() || is_node(whole) || whole == Identity::DNS
}

/// Whether an identity is one of nodes; gates are programs of theirs.
pub(super) fn is_node(whole: Identity) -> bool {
    matches!(whole, Identity::NODE | Identity::OTHER_NODE) || is_gate(whole)
}

fn is_gate(whole: Identity) -> bool {
    matches!(whole, Identity::NORTH_GATE | Identity::WEST_GATE)
}

fn holding(classes: &Classes, network: &Cidr, inside: bool) -> BTreeSet<BlockId> {
    classes
        .blocks()
        .filter(|(_, block)| block.holds(network, inside))
        .map(|(id, _)| id)
        .collect()
}

/// What a part is told by, in words that do not depend on other policies.
fn words(classes: &Classes, told: &Told) -> String {
    match told {
        Told::Class(class) => format!("class {class}"),
        Told::Blocks(blocks) => {
            let held = classes.blocks().filter(|(id, _)| blocks.contains(id));
            held.map(|(_, block)| format!("{block}\n")).collect()
        }
    }
}

fn cidr(network: &Network) -> Cidr {
    let address = Ipv6Addr::from_octets(network.address());
    let bits = network.bits();
    let (address, length) = match address.to_ipv4_mapped() {
        Some(v4) if bits >= 96 => (IpAddr::V4(v4), bits - 96),
        _ => (IpAddr::V6(address), bits),
    };
    let length = u8::try_from(length).expect("at most 128 bits");
    Cidr::new(address, length).expect("a network of the tables has no bits behind its prefix")
}

/// Finds who owns what a network lies in.
struct Around<'a> {
    owners: &'a Table<Network, Owner>,
    /// Lengths of prefixes, the longest first.
    lengths: Vec<u32>,
}

impl<'a> Around<'a> {
    fn new(owners: &'a Table<Network, Owner>) -> Self {
        let lengths: BTreeSet<u32> = owners.keys().map(Network::bits).collect();
        Self {
            owners,
            lengths: lengths.into_iter().rev().collect(),
        }
    }

    fn owner(&self, network: Network) -> Identity {
        let lengths = self.lengths.iter().filter(|bits| **bits <= network.bits());
        let mut around = lengths.map(|bits| network.around(*bits));
        let owner = around.find_map(|around| self.owners.get(&around));
        owner.map_or(Identity::NONE, |owner| owner.identity)
    }
}
