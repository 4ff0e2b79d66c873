//! Who is at the other side, and what is declared about it.

use core::hint::cold_path;

use agent_common::{Direction, FlowValue, Identity, IdentityValue, Lookups, Reason, RuleKey};

use super::case::Case;
use crate::{
    address::Address,
    maps::{self, POLICIES, Rules},
    packet::{self, Icmp, Packet},
};

/// Notes who is at the other side: `met` tells that it is the one whom the gate before this one has noted as the owner.
#[inline(always)]
pub(super) fn meet(
    case: &mut Case,
    address: Address,
    opener: Direction,
    mark: Option<Identity>,
    met: bool,
) -> Result<(), Reason> {
    case.direction = opener;
    case.receiver = 0;
    let mut cell = 0;
    if let Some(gate) = mark {
        // The router answers for the address, whosever it is.
        case.peer = gate;
    } else {
        let owner = if met {
            case.owner
        } else {
            maps::identity(case.generation, address).ok_or(Reason::UnknownPeer)?
        };
        if opener == Direction::Ingress && owner.ifindex() == IdentityValue::THIS_NODE {
            // A gate's address is the gate to whoever calls it. Who calls from it without the router's mark is the node.
            case.peer = Identity::NODE;
        } else {
            if owner.identity() == Identity::NONE {
                return Err(Reason::UnknownPeer);
            }
            case.peer = owner.identity();
            case.receiver = owner.local_pod().unwrap_or(0);
            cell = owner.cell();
        }
    }
    case.path = case.peer.path(opener, cell == case.cell);
    Ok(())
}

/// What a rule is looked up by, besides the peer.
pub(super) struct Asked {
    protocol: u8,
    port: u16,
    opener: Direction,
}

impl Asked {
    #[inline(always)]
    pub(super) fn by(packet: &Packet, from_opener: bool, opener: Direction) -> Self {
        Self {
            protocol: packet.protocol,
            port: opened_port(packet, from_opener),
            opener,
        }
    }
}

/// Notes the rule for a connection: the exact port, else a range of ports, else any port of the protocol, else anything; those
/// about the peer before those about anybody.
#[inline(always)]
pub(super) fn declared(case: &mut Case, asked: &Asked) -> Result<(), Reason> {
    let Some(rules) = POLICIES.get(case.policy) else {
        return Err(Reason::NoPolicy);
    };
    let (peer, opener, protocol) = (case.peer, asked.opener, asked.protocol);
    let anybody = case.lookups.has(Lookups::ANYBODY);
    // What is not restricted is not so in any protocol, and in a tunnel too.
    let anything = RuleKey::new(RuleKey::ANYBODY, 0, 0, opener);
    if !packet::has_ports(protocol) {
        // 0 is a protocol of IPv4's too, but in a rule it means any.
        return match protocol != 0 && rule(case, rules, RuleKey::new(peer, 0, protocol, opener))
            || anybody && rule(case, rules, anything)
        {
            true => Ok(()),
            false => Err(Reason::Protocol),
        };
    }
    if rule(
        case,
        rules,
        RuleKey::new(peer, asked.port, protocol, opener),
    ) {
        return Ok(());
    }
    if packet::is_tunnel(protocol, asked.port) {
        let named = RuleKey::new(RuleKey::ANYBODY, asked.port, protocol, opener);
        return match anybody && (rule(case, rules, named) || rule(case, rules, anything)) {
            true => Ok(()),
            false => Err(Reason::Tunnel),
        };
    }
    if wider(case, rules, peer, asked) {
        return Ok(());
    }
    if anybody {
        cold_path();
        let exact = RuleKey::new(RuleKey::ANYBODY, asked.port, protocol, opener);
        if rule(case, rules, exact) || wider(case, rules, RuleKey::ANYBODY, asked) {
            return Ok(());
        }
    }
    Err(Reason::NotDeclared)
}

/// Notes the rule about a peer for more than one port.
#[inline(always)]
fn wider(case: &mut Case, rules: &Rules, peer: Identity, asked: &Asked) -> bool {
    let &Asked {
        protocol,
        port,
        opener,
    } = asked;
    if case.lookups.has(Lookups::RANGES) {
        cold_path();
        if rule(case, rules, RuleKey::range(peer, port, 1, protocol, opener))
            || rule(case, rules, RuleKey::range(peer, port, 2, protocol, opener))
            || rule(case, rules, RuleKey::range(peer, port, 3, protocol, opener))
        {
            return true;
        }
    }
    rule(case, rules, RuleKey::new(peer, 0, protocol, opener))
        || rule(case, rules, RuleKey::new(peer, 0, 0, opener))
}

#[inline(always)]
fn rule(case: &mut Case, rules: &Rules, key: RuleKey) -> bool {
    // SAFETY: a table of rules is not written any more once a generation names it, and lives at least as long as the
    // program runs (RCU).
    match unsafe { rules.get(&key) } {
        Some(rule) => {
            case.rule = rule.id();
            case.action = rule.action();
            true
        }
        None => false,
    }
}

/// The identity of a flow's peer that came from the router's mark.
#[inline(always)]
pub(super) fn kept(flow: &FlowValue) -> Option<Identity> {
    if flow.marked() {
        Some(flow.peer())
    } else {
        None
    }
}

/// The port that a connection was opened to: what its opener sends goes there, what it gets comes from there.
#[inline(always)]
fn opened_port(packet: &Packet, from_opener: bool) -> u16 {
    u16::from_be(match (from_opener, packet.icmp) {
        (_, Icmp::Request | Icmp::Reply) => 0,
        (true, _) => packet.destination_port,
        (false, _) => packet.source_port,
    })
}
