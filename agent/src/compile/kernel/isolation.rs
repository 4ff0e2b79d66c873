//! What network policies leave of rules: connections are allowed that a cell and the policies both allow.
//!
//! Traffic of a pod's own node is never a policy's matter (Kubernetes, `NetworkPolicy`: probes), and gates are programs of the
//! node.

use std::collections::BTreeMap;
use std::sync::Arc;

use agent_common::{Direction, Identity, Lookups, RuleKey};
use snapshot::model::{
    AddressClass, Classes, Entity, OtherNodes, PolicyPeers, PolicyPort, PolicyRule, PortNumbers,
};

use super::parts::{Parts, Peer, is_inside, is_node};
use super::protocol;

/// Policies, and whom they tell apart.
#[derive(Clone, Copy)]
pub(super) struct Isolation<'a> {
    pub(super) classes: &'a Classes,
    pub(super) parts: &'a Parts,
    pub(super) other_nodes: OtherNodes,
}

impl Isolation<'_> {
    /// Whether policies say nothing about connections with a peer.
    pub(super) fn exempts(&self, whole: Identity, direction: Direction) -> bool {
        let own = matches!(
            whole,
            Identity::NODE | Identity::NORTH_GATE | Identity::WEST_GATE
        );
        let remote = whole == Identity::OTHER_NODE && self.other_nodes == OtherNodes::Gateways;
        direction == Direction::Ingress && (own || remote)
    }
}

/// Ports that policies allow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Ports {
    /// Everything, with or without ports.
    Everything,
    /// Ranges by protocol: in order, apart from each other.
    Some(BTreeMap<u8, Vec<(u16, u16)>>),
}

/// The rules that isolate a pod in a direction; none: it is not isolated.
pub(super) fn isolating(
    class: Option<&AddressClass>,
    direction: Direction,
) -> Option<&[Arc<PolicyRule>]> {
    let class = class?;
    let rules = match direction {
        Direction::Ingress => &class.ingress,
        Direction::Egress => &class.egress,
    };
    rules.as_deref()
}

/// The ports of the called side on which `rules` allow connections of a pod with a peer.
pub(super) fn allowed(
    rules: &[Arc<PolicyRule>],
    pod: &AddressClass,
    peer: &Peer<'_>,
    direction: Direction,
) -> Ports {
    let called = match direction {
        Direction::Ingress => Some(pod),
        Direction::Egress => peer.class,
    };
    let matching = rules.iter().filter(|rule| {
        let peers = rule.peers.as_ref();
        peers.is_none_or(|peers| names(peers, peer))
    });
    Ports::of(matching.map(|rule| rule.ports.as_deref()), called)
}

/// Whether a rule names somebody.
pub(super) fn names(peers: &PolicyPeers, peer: &Peer<'_>) -> bool {
    let pods = peer.class.is_some_and(|class| {
        let mut pods = peers.pods.iter();
        pods.any(|id| class.peers.contains(id))
    });
    let blocks = peer.blocks.is_some_and(|blocks| {
        let mut named = peers.blocks.iter();
        named.any(|id| blocks.contains(id))
    });
    let inside = peer.class.is_some() || is_inside(peer.whole);
    let mut entities = peers.entities.iter();
    pods || blocks
        || entities.any(|entity| match entity {
            Entity::Host => peer.whole == Identity::NODE,
            Entity::RemoteNode => is_node(peer.whole) && peer.whole != Identity::NODE,
            Entity::World => !inside,
            Entity::Cluster => inside,
        })
}

impl Ports {
    /// Those of all rules together. `called` has the ports' names.
    pub(super) fn of<'a>(
        rules: impl Iterator<Item = Option<&'a [PolicyPort]>>,
        called: Option<&AddressClass>,
    ) -> Self {
        let mut all: BTreeMap<u8, Vec<(u16, u16)>> = BTreeMap::new();
        for ports in rules {
            let Some(ports) = ports else {
                return Self::Everything;
            };
            for port in ports {
                let ranges = all.entry(protocol(port.transport)).or_default();
                match &port.numbers {
                    PortNumbers::All => ranges.push((1, u16::MAX)),
                    PortNumbers::Range { first, last } => ranges.push((first.get(), last.get())),
                    PortNumbers::Named(name) => {
                        let key = (Arc::clone(name), port.transport);
                        let known = called.and_then(|class| class.ports.get(&key));
                        let numbers = known.into_iter().flatten();
                        ranges.extend(numbers.map(|port| (port.get(), port.get())));
                    }
                }
            }
        }
        for ranges in all.values_mut() {
            ranges.sort_unstable();
            let mut merged: Vec<(u16, u16)> = Vec::with_capacity(ranges.len());
            for (first, last) in ranges.drain(..) {
                match merged.last_mut() {
                    Some((_, end)) if first <= end.saturating_add(1) => *end = last.max(*end),
                    _ => merged.push((first, last)),
                }
            }
            *ranges = merged;
        }
        all.retain(|_, ranges| !ranges.is_empty());
        Self::Some(all)
    }

    /// Calls `each` with every key that it takes to say what is in these ports and in a rule: `port` and `protocol` are the
    /// rule's, 0 for any.
    pub(super) fn keys(
        &self,
        peer: Identity,
        port: u16,
        protocol: u8,
        direction: Direction,
        mut each: impl FnMut(RuleKey),
    ) {
        let all = match self {
            Self::Everything => return each(RuleKey::new(peer, port, protocol, direction)),
            Self::Some(all) => all,
        };
        let protocols = all
            .iter()
            .filter(|(known, _)| protocol == 0 || protocol == **known);
        for (protocol, ranges) in protocols {
            for (first, last) in ranges {
                match port {
                    0 => cover(*first, *last, |port, width| {
                        each(match width {
                            0 => RuleKey::new(peer, port, *protocol, direction),
                            width => RuleKey::range(peer, port, width, *protocol, direction),
                        });
                    }),
                    port if (*first..=*last).contains(&port) => {
                        each(RuleKey::new(peer, port, *protocol, direction));
                    }
                    _ => {}
                }
            }
        }
    }
}

/// Covers a range of ports with as few of the ranges that rules have as it takes: the first port of each and its width. All
/// ports are any port, which is port 0.
fn cover(first: u16, last: u16, mut each: impl FnMut(u16, u8)) {
    if (first, last) == (1, u16::MAX) {
        return each(0, 0);
    }
    let (mut at, end) = (u32::from(first), u32::from(last) + 1);
    while at < end {
        let fits = |size: u32| at.is_multiple_of(size) && at + size <= end;
        let widths = RuleKey::WIDTHS.into_iter().zip([1, 2, 3]);
        let (size, width) = widths.rev().find(|(size, _)| fits(*size)).unwrap_or((1, 0));
        each(u16::try_from(at).expect("below the end"), width);
        at += size;
    }
}

/// What rules with these keys need to be found.
pub(super) fn lookups<'k>(keys: impl Iterator<Item = &'k RuleKey>) -> Lookups {
    keys.fold(Lookups::default(), |mut lookups, key| {
        if key.width() > 0 {
            lookups = lookups.and(Lookups::RANGES);
        }
        if key.peer() == RuleKey::ANYBODY {
            lookups = lookups.and(Lookups::ANYBODY);
        }
        lookups
    })
}
