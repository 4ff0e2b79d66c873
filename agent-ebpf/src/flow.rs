//! Where a pod's flows are, and when they move.
//!
//! | flows of | are in |
//! | --- | --- |
//! | TCP that the pod opened, or whose opener answered the pod's answer (assured), until it is over | `flows` |
//! | all others: half-open and aborted TCP, UDP, ICMP, protocols without ports | `unassured` |
//!
//! Tables are named where they are used, not chosen before: the verifier calls what it knows, and anything else through a pointer,
//! which takes as long as the lookup itself (`bpf_map_ptr_poison`).

use core::{arch::asm, hint::cold_path};

use agent_common::{Direction, FlowState, FlowValue};
use aya_ebpf::programs::TcContext;

use crate::{
    maps::{FLOWS, UNASSURED},
    packet::Segment,
    verdict::{Case, Key},
};

/// Keeps two calls that differ by their table from being made one. `N` is the place's own.
#[inline(always)]
fn apart<const N: i32>() {
    // An instruction, since the kernel takes no line information without one.
    // SAFETY: it writes a register that nobody reads.
    unsafe {
        asm!("{} = {}", lateout(reg) _, const N, options(nomem, nostack, preserves_flags));
    }
}

/// The flow of a key in a pod's slot, and whether it is an assured one.
#[inline(always)]
pub fn find(slot: u32, key: &Key, tcp: bool, opens: bool) -> (Option<*mut FlowValue>, bool) {
    if tcp {
        let found = FLOWS
            .get(slot)
            .and_then(|flows| flows.get_ptr_mut(key.wire()));
        apart::<0>();
        if found.is_some() {
            return (found, true);
        }
    }
    let found = UNASSURED
        .get(slot)
        .and_then(|flows| flows.get_ptr_mut(key.wire()));
    apart::<1>();
    if found.is_none() && tcp && !opens {
        cold_path();
        // Another CPU may have moved it from the second table to the first between the two looks.
        let moved = FLOWS
            .get(slot)
            .and_then(|flows| flows.get_ptr_mut(key.wire()));
        return (moved, moved.is_some());
    }
    (found, false)
}

/// Puts a flow into a table; `false` if the pod has none, or the kernel refuses.
#[inline(always)]
pub fn insert(slot: u32, key: &Key, assured: bool, flow: &FlowValue) -> bool {
    if assured {
        let done = FLOWS
            .get(slot)
            .is_some_and(|flows| flows.insert(key.wire(), flow, 0).is_ok());
        apart::<2>();
        done
    } else {
        let done = UNASSURED
            .get(slot)
            .is_some_and(|flows| flows.insert(key.wire(), flow, 0).is_ok());
        apart::<3>();
        done
    }
}

/// Removes a flow from a table. One that is gone already is as good as removed; if the kernel refuses because somebody else works
/// on the bucket, the flow goes when its time is up.
#[inline(always)]
pub fn forget(slot: u32, key: &Key, assured: bool) {
    if assured {
        if let Some(flows) = FLOWS.get(slot) {
            let _ = flows.remove(key.wire());
        }
        apart::<4>();
    } else {
        if let Some(flows) = UNASSURED.get(slot) {
            let _ = flows.remove(key.wire());
        }
        apart::<5>();
    }
}

/// Whether a known TCP flow is assured: its opener has answered the answer, which whoever floods does not do, and nobody has
/// aborted it.
#[inline(always)]
pub const fn is_assured(was: bool, from_opener: bool, before: FlowState, now: FlowState) -> bool {
    !now.has(FlowState::RESET) && (was || from_opener && before.has(FlowState::REPLIED))
}

/// Whether a known TCP flow leaves the place where it was found: with the last packet of its connection, or when it becomes assured
/// or is so no more (aborted, or over and kept for a while).
#[inline(always)]
pub fn moves(
    ctx: &TcContext,
    case: &Case,
    way: Direction,
    flow: &mut FlowValue,
    assured: bool,
    from_opener: bool,
    before: FlowState,
) -> bool {
    let packet = &case.packet;
    let mut over = false;
    if packet.ends_tcp() {
        cold_path();
        let other = match from_opener {
            true => FlowState::FIN_ANSWERER,
            false => FlowState::FIN_OPENER,
        };
        if let Some(segment) = Segment::of(ctx, packet) {
            let second = before.has(other);
            flow.end(second, segment.acknowledges, segment.answer);
        }
    } else if before.has(FlowState::LAST) && packet.acknowledges_tcp() {
        cold_path();
        over = match Segment::of(ctx, packet) {
            Some(segment) => flow.ends_with(segment.acknowledges),
            None => false,
        };
        // Should this packet be lost behind the gate, the other side ends once more. Where the pod has opened the connection that
        // end has to find the flow; where another did, it is judged as new and finds the same rule.
        if over && !(from_opener && way == Direction::Egress) {
            forget(case.flows, &case.key, assured);
            return true;
        }
    }
    let assures = !over && is_assured(assured, from_opener, before, flow.state());
    if assures == assured {
        return false;
    }
    cold_path();
    // Where there is no room for it, it stays.
    let moved = insert(case.flows, &case.key, assures, flow);
    if moved {
        forget(case.flows, &case.key, assured);
    }
    moved
}
