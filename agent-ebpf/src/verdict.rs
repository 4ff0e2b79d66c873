//! The verdict on one packet at one pod's gate.
//!
//! Every way to end is a [`Reason`], and every `Err` below is a drop:
//!
//! | step | drops with |
//! | --- | --- |
//! | which generation, whose interface | `no_generation`, `no_endpoint`, `no_identities` |
//! | parse | `truncated`, `malformed`, `ethertype`, `vlan`, `extension_header`, `protocol`, `source_route` |
//! | ARP, neighbour discovery | `arp_spoofed`, `neighbour_spoofed`, `router_claim` |
//! | group addresses | `multicast` |
//! | the pod's own address | `source_spoofed`, `wrong_destination` |
//! | fragments | `fragment`, `fragment_table` |
//! | ICMP | `icmp_untracked`, `icmp_type` |
//! | who is the peer, what is declared | `unknown_peer`, `no_policy`, `not_declared`, `denied` |
//! | remember | `flow_table` |
//! | steer | `steer_protocol`, `listener_missing`, `steer_failed` |

use agent_common::{
    Action, Direction, EndpointKey, FlowKey, FlowValue, FragmentKey, FragmentValue, Identity,
    IdentityValue, Mark, PolicyKey, Reason, Rule, RuleKey, Verdict,
};
use aya_ebpf::{helpers::bpf_ktime_get_ns, programs::TcContext};

use crate::{
    maps::{self, ENDPOINTS, FLOWS, FRAGMENTS, IDENTITIES, Identities, POLICIES},
    neighbour,
    packet::{self, Fragmented, Icmp, Layer, Packet, is_group, protocol},
    record, steer,
};

/// How long a UDP or ICMP flow without packets stays one, in nanoseconds (RFC 4787 REQ-5: at least two minutes).
const DATAGRAM_IDLE: u64 = 180_000_000_000;

/// What became known about a packet while it was judged; events show it.
pub struct Case {
    /// Its headers.
    pub packet: Packet,
    /// The pod's host-side interface.
    pub ifindex: u32,
    /// The generation that judges.
    pub generation: u32,
    /// The pod's cell.
    pub cell: u32,
    /// The rule that decided.
    pub rule: u32,
    /// The pod's identity.
    pub local: Identity,
    /// The other side's.
    pub peer: Identity,
    /// Who opened the flow, or which way the packet goes while that is not known.
    pub direction: Direction,
    /// Whether the flow was not known before.
    pub fresh: bool,
}

/// Judges, counts and tells.
#[inline(always)]
pub fn judge(ctx: &TcContext, way: Direction) -> Verdict {
    let mut case = Case {
        packet: Packet::empty(),
        // SAFETY: the context's `skb` pointer is the program's argument; the field is readable by every tc program.
        ifindex: unsafe { (*ctx.skb.skb).ifindex },
        generation: 0,
        cell: 0,
        rule: 0,
        local: Identity::NONE,
        peer: Identity::NONE,
        direction: way,
        fresh: false,
    };
    let outcome = examine(ctx, way, &mut case).and_then(|(action, reason)| match (action, way) {
        (Action::Deny, _) => Err(Reason::Denied),
        (Action::Pass, _) | (Action::Steer, Direction::Ingress) => Ok((Verdict::Pass, reason)),
        (Action::Steer, Direction::Egress) => {
            steer::assign(ctx, &case.packet).map(|()| (Verdict::Steer, reason))
        }
    });
    let (verdict, reason) = match outcome {
        Ok(passed) => passed,
        Err(reason) => (Verdict::Drop, reason),
    };
    record::count(ctx, case.cell, way, verdict, reason);
    if case.fresh || verdict == Verdict::Drop {
        record::tell(&case, way, verdict, reason);
    }
    record::log(ctx, &case, way, verdict, reason);
    verdict
}

#[inline(always)]
fn examine(ctx: &TcContext, way: Direction, case: &mut Case) -> Result<(Action, Reason), Reason> {
    case.generation = maps::active_generation();
    if case.generation == 0 {
        return Err(Reason::NoGeneration);
    }
    // SAFETY: entries of an active generation are neither changed nor removed by the agent.
    let endpoint = unsafe { ENDPOINTS.get(EndpointKey::new(case.generation, case.ifindex)) };
    let endpoint = *endpoint.ok_or(Reason::NoEndpoint)?;
    case.cell = endpoint.cell();
    case.local = endpoint.identity();
    // SAFETY: as above; the inner map lives at least as long as the program runs (RCU).
    let identities = unsafe { IDENTITIES.get(&case.generation) }.ok_or(Reason::NoIdentities)?;

    if packet::parse(ctx, &mut case.packet)? == Layer::Arp {
        return neighbour::arp(ctx, identities, case.ifindex, way)
            .map(|reason| (Action::Pass, reason));
    }
    match case.packet.icmp {
        Icmp::Neighbour => {
            return neighbour::discovery(ctx, &case.packet, identities, case.ifindex, way)
                .map(|reason| (Action::Pass, reason));
        }
        Icmp::RouterClaim => return Err(Reason::RouterClaim),
        _ => {}
    }
    if is_group(&case.packet.destination, case.packet.v4) {
        return Err(Reason::Multicast);
    }
    let own = match way {
        Direction::Egress => &case.packet.source,
        Direction::Ingress => &case.packet.destination,
    };
    if !neighbour::owns(identities, own, case.ifindex) {
        return Err(match way {
            Direction::Egress => Reason::Spoofed,
            Direction::Ingress => Reason::WrongDestination,
        });
    }
    fragments(case, way)?;
    match case.packet.icmp {
        Icmp::Error => {
            icmp_error(ctx, identities, case, way).map(|()| (Action::Pass, Reason::IcmpError))
        }
        Icmp::Other => Err(Reason::IcmpType),
        _ => connection(ctx, identities, case, way),
    }
}

/// Notes the ports of a first fragment and gives them to the later ones.
#[inline(always)]
fn fragments(case: &mut Case, way: Direction) -> Result<(), Reason> {
    let packet = &mut case.packet;
    if packet.fragmented == Fragmented::No {
        return Ok(());
    }
    // A fragmented error or echo is rare and the former a known evasion; neither has ports to follow.
    if packet.protocol != protocol::TCP && packet.protocol != protocol::UDP {
        return echo_fragments(case, way);
    }
    let key = FragmentKey::new(
        case.ifindex,
        packet.source,
        packet.destination,
        packet.fragment_id,
        packet.protocol,
        way,
    );
    if packet.fragmented == Fragmented::First {
        let ports = FragmentValue::new(packet.source_port, packet.destination_port);
        return FRAGMENTS
            .insert(&key, &ports, 0)
            .map_err(|_| Reason::FragmentTable);
    }
    // SAFETY: the value is copied at once; a slot that is reused meanwhile gives the ports of another packet that was
    // judged too, and the flow lookup that follows decides with them.
    let ports = unsafe { FRAGMENTS.get(&key) }
        .copied()
        .ok_or(Reason::Fragment)?;
    packet.source_port = ports.source_port();
    packet.destination_port = ports.destination_port();
    Ok(())
}

/// Fragments of an echo: the later ones carry the identifier and kind of the first.
#[inline(always)]
fn echo_fragments(case: &mut Case, way: Direction) -> Result<(), Reason> {
    let packet = &mut case.packet;
    let key = FragmentKey::new(
        case.ifindex,
        packet.source,
        packet.destination,
        packet.fragment_id,
        packet.protocol,
        way,
    );
    if packet.fragmented == Fragmented::First {
        if packet.icmp == Icmp::Error {
            return Err(Reason::Fragment);
        }
        let note = FragmentValue::new(packet.source_port, [packet.icmp_type, 0]);
        return FRAGMENTS
            .insert(&key, &note, 0)
            .map_err(|_| Reason::FragmentTable);
    }
    // SAFETY: as in `fragments`.
    let note = unsafe { FRAGMENTS.get(&key) }
        .copied()
        .ok_or(Reason::Fragment)?;
    packet.source_port = note.source_port();
    packet.icmp_type = note.destination_port()[0];
    packet.icmp = match packet.v4 {
        true => packet::icmp_v4(packet.icmp_type),
        false => packet::icmp_v6(packet.icmp_type),
    };
    Ok(())
}

/// The flow that a packet going `way` belongs to.
#[inline(always)]
fn flow_key(packet: &Packet, ifindex: u32, way: Direction) -> FlowKey {
    let opener = match (packet.icmp, way) {
        (Icmp::Request, way) => way as u8,
        (_, Direction::Egress) => Direction::Ingress as u8,
        (_, Direction::Ingress) => Direction::Egress as u8,
    };
    let echo = packet.icmp != Icmp::None;
    match way {
        Direction::Egress => FlowKey::new(
            ifindex,
            packet.source,
            packet.destination,
            packet.source_port,
            if echo {
                [0, 1 + opener]
            } else {
                packet.destination_port
            },
            packet.protocol,
        ),
        Direction::Ingress => FlowKey::new(
            ifindex,
            packet.destination,
            packet.source,
            if echo {
                packet.source_port
            } else {
                packet.destination_port
            },
            if echo {
                [0, 1 + opener]
            } else {
                packet.source_port
            },
            packet.protocol,
        ),
    }
}

/// An ICMP error passes if the packet that it quotes belongs to a flow that this generation allows.
#[inline(always)]
fn icmp_error(
    ctx: &TcContext,
    identities: &Identities,
    case: &Case,
    way: Direction,
) -> Result<(), Reason> {
    let mut inner = Packet::empty();
    packet::quoted(ctx, &case.packet, &mut inner)?;
    // The quoted packet went the other way.
    let (own, back, claimed) = match way {
        Direction::Egress => (&case.packet.source, Direction::Ingress, &inner.destination),
        Direction::Ingress => (&case.packet.destination, Direction::Egress, &inner.source),
    };
    if own != claimed {
        return Err(Reason::IcmpUntracked);
    }
    // What the pod sends must go to whom it is about; what it receives may come from any router on the way.
    if way == Direction::Egress && case.packet.destination != inner.source {
        return Err(Reason::IcmpUntracked);
    }
    let key = flow_key(&inner, case.ifindex, back);
    // SAFETY: the value is copied at once; a reused slot would belong to a flow that was judged by some generation too.
    let flow = unsafe { FLOWS.get(&key) }
        .copied()
        .ok_or(Reason::IcmpUntracked)?;
    if flow.generation() == case.generation {
        return Ok(());
    }
    // The error came between a flip and the connection's next packet: what that packet would be told holds here too.
    rejudge(identities, case.generation, case.local, &inner, back, &flow)
        .map(|_| ())
        .map_err(|_| Reason::IcmpUntracked)
}

/// What a generation says of a known flow, of which `packet` goes `way`: the peer and the rule.
#[inline(always)]
fn rejudge(
    identities: &Identities,
    generation: u32,
    local: Identity,
    packet: &Packet,
    way: Direction,
    flow: &FlowValue,
) -> Result<(Identity, Rule), Reason> {
    let direction = flow.direction();
    let peer = match (flow.marked(), way) {
        (true, _) => flow.peer(),
        (false, Direction::Egress) => peer_of(identities, &packet.destination, direction)?,
        (false, Direction::Ingress) => peer_of(identities, &packet.source, direction)?,
    };
    let port = opened_port(packet, direction == way);
    declared(generation, local, peer, port, packet.protocol, direction).map(|rule| (peer, rule))
}

/// The port that a connection was opened to: what its opener sends goes there, what it gets comes from there.
#[inline(always)]
fn opened_port(packet: &Packet, from_opener: bool) -> u16 {
    u16::from_be_bytes(match (from_opener, packet.icmp) {
        (_, Icmp::Request | Icmp::Reply) => [0; 2],
        (true, _) => packet.destination_port,
        (false, _) => packet.source_port,
    })
}

/// Known flow, stale flow, or new one.
#[inline(always)]
fn connection(
    ctx: &TcContext,
    identities: &Identities,
    case: &mut Case,
    way: Direction,
) -> Result<(Action, Reason), Reason> {
    let key = flow_key(&case.packet, case.ifindex, way);
    // SAFETY: the helper takes no argument and cannot fail.
    let now = unsafe { bpf_ktime_get_ns() };
    let remote = match way {
        Direction::Egress => &case.packet.destination,
        Direction::Ingress => &case.packet.source,
    };
    // SAFETY: the value is copied at once. A slot that another CPU reuses during the copy can mix two values of
    // the same layout, each of which allowed its flow.
    let known = unsafe { FLOWS.get(&key) }.copied();
    let known = known.filter(|flow| {
        // A new TCP connection is judged for itself: the entry may be an older connection's, or of the other direction.
        !case.packet.opens_tcp()
            && (case.packet.protocol == protocol::TCP
                // Another CPU may have seen a packet since `now`; that is not idle for ages.
                || now.saturating_sub(flow.seen()) < DATAGRAM_IDLE)
    });
    let (direction, peer, marked) = match known {
        Some(flow) => {
            case.direction = flow.direction();
            case.peer = flow.peer();
            case.rule = flow.rule();
            if flow.generation() == case.generation {
                if let Some(slot) = FLOWS.get_ptr_mut(&key) {
                    // SAFETY: the slot is memory of the map. Another CPU may give it to another flow meanwhile (an LRU
                    // map reuses at once); that flow is then a little younger, and its verdict stays its own.
                    unsafe { (*slot).touch(now) };
                }
                return Ok((flow.action(), Reason::Established));
            }
            match flow.marked() {
                true => (flow.direction(), flow.peer(), true),
                false => (
                    flow.direction(),
                    peer_of(identities, remote, flow.direction())?,
                    false,
                ),
            }
        }
        None => {
            if case.packet.icmp == Icmp::Reply {
                return Err(Reason::IcmpUntracked);
            }
            case.fresh = true;
            match gate_mark(ctx, way) {
                Some(gate) => (way, gate, true),
                None => (way, peer_of(identities, remote, way)?, false),
            }
        }
    };
    case.peer = peer;
    let rule = match declared(
        case.generation,
        case.local,
        peer,
        opened_port(&case.packet, direction == way),
        case.packet.protocol,
        direction,
    ) {
        Ok(rule) => rule,
        Err(reason) => {
            if known.is_some() {
                // What was revoked must not look established to an ICMP error. A failure means it is gone already.
                let _ = FLOWS.remove(&key);
            }
            return Err(reason);
        }
    };
    case.rule = rule.id();
    let flow = FlowValue::new(
        case.generation,
        direction,
        rule.action(),
        rule.id(),
        peer,
        marked,
        now,
    );
    FLOWS
        .insert(&key, &flow, 0)
        .map_err(|_| Reason::FlowTable)?;
    Ok((
        rule.action(),
        if known.is_some() {
            Reason::Established
        } else {
            Reason::Policy
        },
    ))
}

/// Bytes that the router sends to a pod carry the gate that it is in the mark; a pod cannot set one, because a mark
/// does not survive the way out of a network namespace (`skb_scrub_packet`).
#[inline(always)]
fn gate_mark(ctx: &TcContext, way: Direction) -> Option<Identity> {
    if way == Direction::Egress {
        return None;
    }
    // SAFETY: the context's `skb` pointer is the program's argument; the field is readable by every tc program.
    match Mark::from_raw(unsafe { (*ctx.skb.skb).mark }) {
        Some(Mark::NorthGate) => Some(Identity::NORTH_GATE),
        Some(Mark::WestGate) => Some(Identity::WEST_GATE),
        _ => None,
    }
}

#[inline(always)]
fn peer_of(
    identities: &Identities,
    address: &[u8; 16],
    direction: Direction,
) -> Result<Identity, Reason> {
    match maps::identity(identities, address) {
        // A gate's address is the gate to whoever calls it. Who calls from it without the router's mark is the node.
        Some(value)
            if direction == Direction::Ingress && value.ifindex() == IdentityValue::THIS_NODE =>
        {
            Ok(Identity::NODE)
        }
        Some(value) if value.identity() != Identity::NONE => Ok(value.identity()),
        _ => Err(Reason::UnknownPeer),
    }
}

/// The rule for a connection: the exact port, else any port of the protocol, else anything.
#[inline(always)]
fn declared(
    generation: u32,
    local: Identity,
    peer: Identity,
    port: u16,
    protocol: u8,
    direction: Direction,
) -> Result<Rule, Reason> {
    // SAFETY: maps of an active generation are neither changed nor emptied by the agent; an inner map lives at least
    // as long as the program runs (RCU).
    let rule = unsafe {
        let rules = POLICIES
            .get(&PolicyKey::new(generation, local))
            .ok_or(Reason::NoPolicy)?;
        match rules.get(RuleKey::new(peer, port, protocol, direction)) {
            Some(rule) => Some(*rule),
            None => match rules.get(RuleKey::new(peer, 0, protocol, direction)) {
                Some(rule) => Some(*rule),
                None => rules.get(RuleKey::new(peer, 0, 0, direction)).copied(),
            },
        }
    };
    match rule {
        None => Err(Reason::NotDeclared),
        Some(rule) if rule.action() == Action::Deny => Err(Reason::Denied),
        Some(rule) => Ok(rule),
    }
}
