//! The verdict on one packet at one pod's gate.
//!
//! Every way to end is a [`Reason`], and every `Err` below is a drop:
//!
//! | step | drops with |
//! | --- | --- |
//! | which generation, whose interface | `no_generation`, `no_endpoint` |
//! | parse | `truncated`, `malformed`, `ethertype`, `vlan`, `extension_header`, `protocol`, `source_route`, `tcp_flags` |
//! | the pod's own hardware address | `mac_spoofed` |
//! | ARP, neighbour discovery | `arp_spoofed`, `neighbour_spoofed`, `router_claim` |
//! | group addresses | `multicast` |
//! | fragments | `fragment`, `fragment_table` |
//! | the pod's own address | `source_spoofed`, `wrong_destination` |
//! | ICMP | `icmp_untracked`, `icmp_type` |
//! | a connection that nobody opened | `tcp_state` |
//! | who is the peer, what is declared | `unknown_peer`, `no_policy`, `not_declared`, `protocol`, `tunnel`, `denied` |
//! | remember | `flow_table` |
//! | steer | `steer_protocol`, `listener_missing`, `steer_failed` |
//!
//! A packet of a flow that this generation has judged already skips everything between the fragments and the steering:
//! the flow's making went through it.

mod case;
mod connection;
mod rules;

use core::hint::cold_path;

use agent_common::{Action, Direction, FlowValue, Identity, Mark, Reason, Verdict};
use aya_ebpf::programs::TcContext;

pub use case::{Case, DRY, Dry, Key, WET};

use crate::{
    fragment, neighbour,
    packet::{self, Fragmented, Icmp, Layer},
    steer,
};
use connection::connection;

/// Judges a packet that comes in at this program's interface. `Err` is a drop. `flow` becomes the packet's, if this generation
/// knew it.
#[inline(always)]
pub fn judge<const MODE: Dry>(
    ctx: &TcContext,
    case: &mut Case,
    way: Direction,
    flow: &mut Option<&'static mut FlowValue>,
) -> Result<(Action, Reason), Reason> {
    if case.generation == 0 {
        cold_path();
        case.unknown();
        return Err(Reason::NoGeneration);
    }
    if !case.settle(case.ifindex) {
        cold_path();
        case.unknown();
        return Err(Reason::NoEndpoint);
    }
    case.ordinary = case.frame.glance(ctx, &mut case.packet);
    if !case.ordinary {
        cold_path();
        case.packet.clear();
        case.frame.ethernet(ctx)?;
    }
    // A pod sends from its own interface only: another source address on the wire is somebody else's.
    if way == Direction::Egress && case.frame.from() != case.hardware {
        return Err(Reason::MacSpoofed);
    }
    if !case.ordinary {
        cold_path();
        if packet::parse(ctx, &mut case.packet)? == Layer::Arp {
            return neighbour::arp(ctx, case, way).map(|reason| (Action::Pass, reason));
        }
        match case.packet.icmp {
            Icmp::Neighbour => {
                return neighbour::discovery(ctx, case, way).map(|reason| (Action::Pass, reason));
            }
            Icmp::RouterClaim => return Err(Reason::RouterClaim),
            _ => {}
        }
    }
    if case.packet.destination.is_group(case.packet.v4) {
        return Err(Reason::Multicast);
    }
    fragment::follow(case, way)?;
    let gate = gate_mark(ctx, way);
    let judged = match case.packet.icmp {
        Icmp::Error => {
            cold_path();
            owns(case, way)?;
            let judged = connection::icmp_error(ctx, case, way);
            // The connection that it is about is not its own: whether that had to be judged again is not to be seen.
            case.forget(way);
            judged.map(|()| (Action::Pass, Reason::IcmpError))
        }
        Icmp::Other => owns(case, way).and(Err(Reason::IcmpType)),
        _ => connection::<MODE, false>(ctx, case, way, gate, flow),
    };
    if MODE == WET && case.packet.fragmented == Fragmented::First && judged.is_ok() {
        cold_path();
        fragment::note(case, way)?;
    }
    judged
}

/// What an action means to a packet that goes `way`.
#[inline(always)]
pub fn enact<const MODE: Dry>(
    ctx: &TcContext,
    case: &Case,
    way: Direction,
    judged: Result<(Action, Reason), Reason>,
) -> (Verdict, Reason) {
    // No closure: the compiler would make it a function, and each return from one costs as much as a lookup.
    let (action, reason) = match judged {
        Ok(judged) => judged,
        Err(reason) => {
            cold_path();
            return (Verdict::Drop, reason);
        }
    };
    match (action, way) {
        (Action::Deny, _) => (Verdict::Drop, Reason::Denied),
        (Action::Pass, _) | (Action::Steer, Direction::Ingress) => (Verdict::Pass, reason),
        (Action::Steer, Direction::Egress) => match steer::assign::<MODE>(ctx, &case.packet) {
            Ok(()) => (Verdict::Steer, reason),
            Err(refused) => (Verdict::Drop, refused),
        },
    }
}

/// The pod's own address must be the pod's.
#[inline(always)]
fn owns(case: &Case, way: Direction) -> Result<(), Reason> {
    let own = match way {
        Direction::Egress => case.packet.source,
        Direction::Ingress => case.packet.destination,
    };
    if neighbour::owns(case, own) {
        return Ok(());
    }
    Err(foreign(way))
}

/// Why a packet drops whose end at the pod is not the pod's.
#[inline(always)]
const fn foreign(way: Direction) -> Reason {
    match way {
        Direction::Egress => Reason::Spoofed,
        Direction::Ingress => Reason::WrongDestination,
    }
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

/// Judges at the gate of the local pod that a packet goes to, in the program of the pod that sends it.
#[inline(always)]
pub fn judge_receiver(
    ctx: &TcContext,
    case: &mut Case,
    flow: &mut Option<&'static mut FlowValue>,
) -> Result<(Action, Reason), Reason> {
    connection::<WET, true>(ctx, case, Direction::Ingress, None, flow)
}

/// Notes in the sender's flow that the receiver's gate, which has just been asked, passes it as a flow of its own.
#[inline(always)]
pub fn agree(case: &Case, senders: &mut FlowValue, receivers: &FlowValue) {
    let about = case.about(case.ifindex);
    senders.agree(about, receivers.state(), case.path, case.now);
}
