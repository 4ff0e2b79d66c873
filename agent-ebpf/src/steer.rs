//! Governed connections to the router's transparent listener.
//!
//! Every packet of the flow gets the steering mark, which a policy route answers with local delivery; the original
//! destination stays the socket's local address. A packet that already has a socket (established, or a request that is
//! being opened) finds it by its addresses; one that has none is assigned the listener here.

use agent_common::{Mark, Reason, SocketKey};
use aya_ebpf::{
    EbpfContext as _,
    bindings::{BPF_F_CURRENT_NETNS, bpf_sock, bpf_sock_tuple},
    cty::c_void,
    helpers::{bpf_map_lookup_elem, bpf_sk_assign, bpf_sk_release, bpf_skc_lookup_tcp},
    programs::TcContext,
};

use crate::{
    maps::SOCKETS,
    packet::{Packet, protocol},
    verdict::{DRY, Dry},
};

/// `TCP_LISTEN` of the kernel's `net/tcp_states.h`.
const LISTEN: u32 = 10;

/// Marks the packet and, if it has no socket yet, gives it the listener.
#[inline(always)]
pub fn assign<const MODE: Dry>(ctx: &TcContext, packet: &Packet) -> Result<(), Reason> {
    if packet.protocol != protocol::TCP {
        return Err(Reason::SteerProtocol);
    }
    if MODE == DRY {
        return listener(packet).map(release);
    }
    let skb = ctx.skb.skb;
    // SAFETY: the context's `skb` pointer is the program's argument; tc programs may read and write `mark`, four bytes
    // at a time, which volatile keeps whole.
    unsafe {
        let others = core::ptr::read_volatile(&raw const (*skb).mark) & !Mark::MASK;
        core::ptr::write_volatile(&raw mut (*skb).mark, others | Mark::Steer.raw());
    }
    if has_socket(ctx, packet) {
        return Ok(());
    }
    let socket = listener(packet)?;
    // SAFETY: `listener` gave a referenced socket, which is released below on this only path.
    let refused = unsafe { bpf_sk_assign(ctx.as_ptr(), socket, 0) };
    release(socket);
    if refused == 0 {
        Ok(())
    } else {
        Err(Reason::SteerFailed)
    }
}

/// The router's transparent listener of the packet's family, with a reference that the caller gives back.
#[inline(always)]
fn listener(packet: &Packet) -> Result<*mut c_void, Reason> {
    let key = if packet.v4 {
        SocketKey::TRANSPARENT_V4
    } else {
        SocketKey::TRANSPARENT_V6
    };
    // SAFETY: `SOCKETS` is the map that the loader put in place of the static; the key outlives the call.
    let socket = unsafe {
        bpf_map_lookup_elem(
            core::ptr::from_ref(&SOCKETS).cast_mut().cast(),
            core::ptr::from_ref(&key).cast(),
        )
    };
    if socket.is_null() {
        Err(Reason::ListenerMissing)
    } else {
        Ok(socket)
    }
}

#[inline(always)]
fn release(socket: *mut c_void) {
    // SAFETY: a lookup took the reference, and each caller releases it once.
    unsafe { bpf_sk_release(socket) };
}

/// Whether the stack will find a socket of this very connection.
#[inline(always)]
fn has_socket(ctx: &TcContext, packet: &Packet) -> bool {
    let (s, d) = (packet.source.bytes(), packet.destination.bytes());
    let (from, to) = (
        packet.source_port.to_ne_bytes(),
        packet.destination_port.to_ne_bytes(),
    );
    // The kernel tells the families apart by the size of the tuple.
    let mut tuple = [0u8; 36];
    let size = if packet.v4 {
        tuple[0..4].copy_from_slice(&s[12..16]);
        tuple[4..8].copy_from_slice(&d[12..16]);
        tuple[8..10].copy_from_slice(&from);
        tuple[10..12].copy_from_slice(&to);
        12
    } else {
        tuple[0..16].copy_from_slice(&s);
        tuple[16..32].copy_from_slice(&d);
        tuple[32..34].copy_from_slice(&from);
        tuple[34..36].copy_from_slice(&to);
        36
    };
    // SAFETY: the tuple has `size` readable bytes; the helper reads no more.
    let socket: *mut bpf_sock = unsafe {
        bpf_skc_lookup_tcp(
            ctx.as_ptr(),
            tuple.as_mut_ptr().cast::<bpf_sock_tuple>(),
            size,
            BPF_F_CURRENT_NETNS as i64 as u64,
            0,
        )
    };
    if socket.is_null() {
        return false;
    }
    // SAFETY: the pointer is not null and referenced until the release below.
    let state = unsafe { (*socket).state };
    release(socket.cast::<c_void>());
    // Somebody's listener on the same port is not this connection. A connection that is over may be opened again: the stack
    // then puts the new one in its remainder's place, and asks `listen` for the listener.
    state != LISTEN
}
