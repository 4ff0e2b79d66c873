//! Cardinal's programs in the kernel.
//!
//! Packets of pods flow in at tc, connections of processes at the cgroup hooks, lookups of listening sockets at
//! sk_lookup; a verdict flows out. This file only translates: each entry point calls one function and turns its answer
//! into the hook's return code. All policy is in maps that the agent writes (`maps.rs` says who writes and reads each);
//! nothing here decides who may talk to whom.
#![no_std]
#![no_main]

mod connect;
mod listen;
mod maps;
mod neighbour;
mod packet;
mod record;
mod steer;
mod verdict;

use agent_common::{Direction, Verdict};
use aya_ebpf::{
    bindings::{TC_ACT_SHOT, TC_ACT_UNSPEC},
    macros::{cgroup_sock_addr, classifier, sk_lookup},
    programs::{SkLookupContext, SockAddrContext, TcContext},
};

/// The pod's gate for packets that it sends. Host side of the pod's veth, tc ingress.
#[classifier]
pub fn cell_egress(ctx: TcContext) -> i32 {
    act(verdict::judge(&ctx, Direction::Egress))
}

/// The pod's gate for packets that it receives. Host side of the pod's veth, tc egress.
#[classifier]
pub fn cell_ingress(ctx: TcContext) -> i32 {
    act(verdict::judge(&ctx, Direction::Ingress))
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
    connect::forward::<connect::V4>(&ctx).into()
}

/// Service address to backend, IPv6 sockets (also when they speak IPv4).
#[cgroup_sock_addr(connect6)]
pub fn steer_connect6(ctx: SockAddrContext) -> i32 {
    connect::forward::<connect::V6>(&ctx).into()
}

/// Service address to backend for each datagram of an unconnected IPv4 socket.
#[cgroup_sock_addr(sendmsg4)]
pub fn steer_sendmsg4(ctx: SockAddrContext) -> i32 {
    connect::forward::<connect::V4>(&ctx).into()
}

/// Service address to backend for each datagram of an unconnected IPv6 socket.
#[cgroup_sock_addr(sendmsg6)]
pub fn steer_sendmsg6(ctx: SockAddrContext) -> i32 {
    connect::forward::<connect::V6>(&ctx).into()
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
