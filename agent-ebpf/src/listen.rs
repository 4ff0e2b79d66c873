//! Any gateway address and port to the router's socket for it.

use agent_common::{ListenerKey, SocketKey, address::mapped};
use aya_ebpf::programs::SkLookupContext;

use crate::maps::{LISTENERS, SOCKETS, active_generation};

/// `SK_DROP` and `SK_PASS` of the kernel's `enum sk_action`.
const DROP: u32 = 0;
const PASS: u32 = 1;

const AF_INET: u32 = 2;

/// A known listener's socket; drop when the router has not opened it; everything else is left to the stack.
#[inline(always)]
pub fn choose(ctx: &SkLookupContext) -> u32 {
    let lookup = ctx.lookup;
    // SAFETY: the context is valid for the program's run, and all these fields are readable, four bytes at a time.
    let (family, protocol, port) =
        unsafe { ((*lookup).family, (*lookup).protocol, (*lookup).local_port) };
    let address = if family == AF_INET {
        // SAFETY: as above.
        let [a, b, c, d] = unsafe { (*lookup).local_ip4 }.to_ne_bytes();
        mapped(a, b, c, d)
    } else {
        let mut bytes = [0; 16];
        for word in 0..4 {
            // SAFETY: as above; volatile keeps the reads at four bytes.
            let value = unsafe { core::ptr::read_volatile(&raw const (*lookup).local_ip6[word]) };
            bytes[word * 4..word * 4 + 4].copy_from_slice(&value.to_ne_bytes());
        }
        bytes
    };
    let socket = SocketKey::new(address, (port as u16).to_be_bytes(), protocol as u8);
    // SAFETY: entries of an active generation are neither changed nor removed by the agent; only presence is read.
    if unsafe { LISTENERS.get(ListenerKey::new(active_generation(), socket)) }.is_none() {
        return PASS;
    }
    match SOCKETS.redirect_sk_lookup(ctx, socket, 0) {
        Ok(()) => PASS,
        Err(_) => DROP,
    }
}
