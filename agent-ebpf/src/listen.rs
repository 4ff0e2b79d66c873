//! Any gateway address and port to the router's socket for it.

use agent_common::{IdentityValue, ListenerKey, SocketKey, address::mapped};
use aya_ebpf::programs::SkLookupContext;

use crate::{
    address::Address,
    maps::{self, LISTENERS, SOCKETS, active_generation},
};

/// `SK_DROP` and `SK_PASS` of the kernel's `enum sk_action`.
const DROP: u32 = 0;
const PASS: u32 = 1;

const AF_INET: u32 = 2;
/// IP protocol number.
const TCP: u32 = 6;

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
    let mut socket = SocketKey::new(address, (port as u16).to_be_bytes(), protocol as u8);
    let generation = active_generation();
    // SAFETY: entries of an active generation are neither changed nor removed by the agent; only presence is read.
    let known = unsafe { LISTENERS.get(ListenerKey::new(generation, socket)) }.is_some();
    if !known {
        if protocol != TCP || !steered(ctx, generation, Address::of(address)) {
            return PASS;
        }
        socket = if family == AF_INET {
            SocketKey::TRANSPARENT_V4
        } else {
            SocketKey::TRANSPARENT_V6
        };
    }
    match SOCKETS.redirect_sk_lookup(ctx, socket, 0) {
        Ok(()) => PASS,
        Err(_) => DROP,
    }
}

/// Whether a connection comes from a pod here and goes to an address that is not this node's: the stack looks for such a
/// listener only if the packet was steered. A new one brings its listener; one that reopens a connection whose remainder the
/// stack still holds (TIME-WAIT, RFC 9293 section 3.6.1) does not.
#[inline(always)]
fn steered(ctx: &SkLookupContext, generation: u32, local: Address) -> bool {
    let pod = maps::identity(generation, remote(ctx)).and_then(|owner| owner.local_pod());
    let here = maps::identity(generation, local)
        .is_some_and(|owner| owner.ifindex() == IdentityValue::THIS_NODE);
    pod.is_some() && !here
}

#[inline(always)]
fn remote(ctx: &SkLookupContext) -> Address {
    let lookup = ctx.lookup;
    // SAFETY: as in `choose`.
    unsafe {
        if (*lookup).family == AF_INET {
            return Address::v4((*lookup).remote_ip4);
        }
        let word = |index: usize| {
            u64::from(core::ptr::read_volatile(
                &raw const (*lookup).remote_ip6[index],
            ))
        };
        Address::v6(word(0) | word(1) << 32, word(2) | word(3) << 32)
    }
}
