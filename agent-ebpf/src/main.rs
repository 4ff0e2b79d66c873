//! Cardinal's programs in the kernel.
//!
//! Packets of pods flow in at tc, connections of processes at the cgroup hooks, lookups of listening sockets at
//! sk_lookup; a verdict flows out. This file only translates: each entry point calls one function and turns its answer
//! into the hook's return code. All policy is in maps that the agent writes (`maps.rs` says who writes and reads each);
//! nothing here decides who may talk to whom.
#![no_std]
#![no_main]
#![feature(asm_experimental_arch)]

mod address;
mod connect;
mod deliver;
mod explain;
mod flow;
mod fragment;
mod frame;
mod listen;
mod maps;
mod neighbour;
mod packet;
mod record;
mod steer;
mod verdict;

use agent_common::{Direction, FlowValue, Path, Reason, Verdict};
use aya_ebpf::{
    bindings::{TC_ACT_SHOT, TC_ACT_UNSPEC},
    macros::{cgroup_sock_addr, classifier, sk_lookup},
    programs::{SkLookupContext, SockAddrContext, TcContext},
};
use connect::Call;
use verdict::{Case, WET};

/// The pod's gate for packets that it sends. Host side of the pod's veth, tc ingress.
///
/// A packet to another pod of this node meets that pod's gate here too, and goes to it past the node's stack.
#[classifier]
#[inline(always)]
pub fn cell_egress(ctx: TcContext) -> i32 {
    let Some(case) = Case::at::<WET>(&ctx, Direction::Egress) else {
        return TC_ACT_SHOT;
    };
    let mut senders = None;
    let verdict = gate(&ctx, case, Direction::Egress, &mut senders);
    if verdict != Verdict::Pass || !deliver::possible(case) || !case.at_receiver() {
        return act(verdict);
    }
    if case.agreed == Path::None {
        let mut receivers = None;
        let judged = verdict::judge_receiver(&ctx, case, &mut receivers);
        let (verdict, reason) = verdict::enact::<WET>(&ctx, case, Direction::Ingress, judged);
        record::judged(&ctx, case, Direction::Ingress, verdict, reason);
        if verdict == Verdict::Drop {
            return TC_ACT_SHOT;
        }
        if let (Some(senders), Some(receivers)) = (senders, receivers) {
            verdict::agree(case, senders, receivers);
        }
    } else {
        // It said so a moment ago.
        case.path = case.agreed;
        let (verdict, reason) = (Verdict::Pass, Reason::Established);
        record::judged(&ctx, case, Direction::Ingress, verdict, reason);
    }
    deliver::redirect(&ctx, case)
}

/// The pod's gate for packets that it receives. Host side of the pod's veth, tc egress.
#[classifier]
#[inline(always)]
pub fn cell_ingress(ctx: TcContext) -> i32 {
    match Case::at::<WET>(&ctx, Direction::Ingress) {
        Some(case) => act(gate(&ctx, case, Direction::Ingress, &mut None)),
        None => TC_ACT_SHOT,
    }
}

/// What `cell_egress` would say of a packet. Never attached: for `BPF_PROG_TEST_RUN`.
#[classifier]
pub fn explain_egress(ctx: TcContext) -> i32 {
    explain::gate(&ctx, Direction::Egress)
}

/// What `cell_ingress` would say of a packet. Never attached: for `BPF_PROG_TEST_RUN`.
#[classifier]
pub fn explain_ingress(ctx: TcContext) -> i32 {
    explain::gate(&ctx, Direction::Ingress)
}

/// The kernel's jiffies, in the first two words of the control block. Never attached: for `BPF_PROG_TEST_RUN`.
#[classifier]
pub fn clock(ctx: TcContext) -> i32 {
    explain::clock(&ctx)
}

/// Judges a packet at one gate, and records what was found.
#[inline(always)]
fn gate(
    ctx: &TcContext,
    case: &mut Case,
    way: Direction,
    flow: &mut Option<&'static mut FlowValue>,
) -> Verdict {
    let judged = verdict::judge::<WET>(ctx, case, way, flow);
    let (verdict, reason) = verdict::enact::<WET>(ctx, case, way, judged);
    record::judged(ctx, case, way, verdict, reason);
    verdict
}

/// `TC_ACT_UNSPEC` (`TCX_NEXT`) lets programs of others that are attached behind ours have their say.
#[inline(always)]
fn act(verdict: Verdict) -> i32 {
    match verdict {
        Verdict::Drop => TC_ACT_SHOT,
        Verdict::Pass | Verdict::Steer => TC_ACT_UNSPEC,
    }
}

/// Service address to backend, IPv4 sockets.
#[cgroup_sock_addr(connect4)]
pub fn steer_connect4(ctx: SockAddrContext) -> i32 {
    connect::forward::<connect::V4>(&ctx, Call::Connect).into()
}

/// Service address to backend, IPv6 sockets (also when they speak IPv4).
#[cgroup_sock_addr(connect6)]
pub fn steer_connect6(ctx: SockAddrContext) -> i32 {
    connect::forward::<connect::V6>(&ctx, Call::Connect).into()
}

/// Service address to backend for each datagram of an unconnected IPv4 socket.
#[cgroup_sock_addr(sendmsg4)]
pub fn steer_sendmsg4(ctx: SockAddrContext) -> i32 {
    connect::forward::<connect::V4>(&ctx, Call::Send).into()
}

/// Service address to backend for each datagram of an unconnected IPv6 socket.
#[cgroup_sock_addr(sendmsg6)]
pub fn steer_sendmsg6(ctx: SockAddrContext) -> i32 {
    connect::forward::<connect::V6>(&ctx, Call::Send).into()
}

/// Backend to service address in what `recvmsg` tells an IPv4 socket.
#[cgroup_sock_addr(recvmsg4)]
pub fn steer_recvmsg4(ctx: SockAddrContext) -> i32 {
    connect::backward::<connect::V4>(&ctx);
    connect::ALLOW
}

/// Backend to service address in what `recvmsg` tells an IPv6 socket.
#[cgroup_sock_addr(recvmsg6)]
pub fn steer_recvmsg6(ctx: SockAddrContext) -> i32 {
    connect::backward::<connect::V6>(&ctx);
    connect::ALLOW
}

/// Backend to service address in what `getpeername` tells an IPv4 socket.
#[cgroup_sock_addr(getpeername4)]
pub fn steer_getpeer4(ctx: SockAddrContext) -> i32 {
    connect::backward::<connect::V4>(&ctx);
    connect::ALLOW
}

/// Backend to service address in what `getpeername` tells an IPv6 socket.
#[cgroup_sock_addr(getpeername6)]
pub fn steer_getpeer6(ctx: SockAddrContext) -> i32 {
    connect::backward::<connect::V6>(&ctx);
    connect::ALLOW
}

/// Gateway address and port to one of the router's sockets.
#[sk_lookup]
pub fn listen(ctx: SkLookupContext) -> u32 {
    listen::choose(&ctx)
}

/// The verifier refuses a program that could reach this: there is no panic to handle at run time.
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

/// No helper that these programs call is reserved for GPL programs (kernels 5.10 and newer).
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 11] = *b"Apache-2.0\0";
