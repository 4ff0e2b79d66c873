//! A packet between two pods of this node, past the node's stack: from the sender's gate to the receiver's interface.
//!
//! It looks to the receiver as if the node had routed it: one hop fewer, the node's hardware address as the source.

use aya_ebpf::{
    bindings::{TC_ACT_REDIRECT, TC_ACT_SHOT},
    helpers::bpf_redirect_peer,
    programs::TcContext,
};

use crate::{
    packet::{Fragmented, Icmp},
    verdict::Case,
};

/// `PACKET_HOST` and `PACKET_OTHERHOST` of the kernel's `linux/if_packet.h`.
const PACKET_HOST: u32 = 0;
const PACKET_OTHERHOST: u32 = 3;

/// Whether a packet that may pass can go straight. The stack does what is left: it tells a sender that its packet is too
/// old, puts fragments together where a firewall of the node's wants them whole, and does not forward what was sent to a
/// group of the link.
#[inline(always)]
pub fn possible(case: &Case) -> bool {
    case.receiver != 0
        && case.receiver != case.ifindex
        && case.packet.hops > 1
        && case.packet.fragmented == Fragmented::No
        && case.packet.icmp != Icmp::Error
        && !case.frame.is_for_a_group()
}

/// Sends the packet to the pod behind the case's interface, and gives the program's return code.
#[inline(always)]
pub fn redirect(ctx: &TcContext, case: &mut Case) -> i32 {
    // SAFETY: the context's `skb` pointer is the program's argument; the field is readable by every tc program.
    let kind = unsafe { (*ctx.skb.skb).pkt_type };
    // On a bridge the sender addresses the receiver itself, and nothing routes.
    let ready = if kind == PACKET_OTHERHOST {
        ctx.change_type(PACKET_HOST).is_ok()
    } else {
        let (read, v4, to) = (case.ordinary, case.packet.v4, case.hardware);
        case.frame.route(ctx, read, v4, to)
    };
    if !ready {
        return TC_ACT_SHOT;
    }
    // SAFETY: the helper takes an interface number and no flags; nothing is done before the program returns.
    match unsafe { bpf_redirect_peer(case.ifindex, 0) } as i32 {
        TC_ACT_REDIRECT => TC_ACT_REDIRECT,
        _ => TC_ACT_SHOT,
    }
}
