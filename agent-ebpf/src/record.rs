//! Accounting: a counter for every packet, an event for every new flow and every drop; in debug builds (feature `logs`)
//! a line for every verdict.

use core::hint::cold_path;

use agent_common::{
    Counter, CounterKey, Direction, Event, Hook, Limit, LimitKey, Lost, Reason, Tally, Verdict,
};
use aya_ebpf::{helpers::bpf_ktime_get_ns, programs::TcContext};

use crate::{
    maps::{COUNTERS, EVENTS, HITS, LIMITS, TALLIES, count_lost},
    verdict::Case,
};

/// `BPF_NOEXIST`: another CPU may have made the entry since the lookup; then the packet is added to it next time.
const NO_EXIST: u64 = 1;

/// Counts a judged packet, and tells the agent about it if it opened a flow or was dropped.
#[inline(always)]
pub fn judged(ctx: &TcContext, case: &Case, way: Direction, verdict: Verdict, reason: Reason) {
    count(ctx, case, way, verdict, reason);
    if case.fresh || verdict == Verdict::Drop {
        cold_path();
        tell(case, way, verdict, reason);
    }
    log(ctx, case, way, verdict, reason);
}

/// Adds the packet to the counter of its cell, way, border, verdict and reason.
#[inline(always)]
fn count(ctx: &TcContext, case: &Case, way: Direction, verdict: Verdict, reason: Reason) {
    let key = CounterKey::new(case.cell, way, case.path, verdict, reason);
    let bytes = u64::from(ctx.len());
    if let Some(tally) = TALLIES.get_ptr_mut(Tally::place(&key)) {
        // SAFETY: the pointer is this CPU's element of a per-CPU map, which the agent only reads.
        if unsafe { (*tally).add(&key, bytes) } {
            return;
        }
    }
    cold_path();
    if let Some(counter) = COUNTERS.get_ptr_mut(&key) {
        // SAFETY: the pointer is this CPU's slot of a per-CPU map; entries are never removed while programs run.
        unsafe { (*counter).add(bytes) };
    } else if COUNTERS
        .insert(&key, &Counter::new(1, bytes), NO_EXIST)
        .is_err()
    {
        count_lost(Lost::Counter);
    }
}

/// Counts a connection that a rule decided.
#[inline(always)]
pub fn hit(rule: u32) {
    if let Some(hits) = HITS.get_ptr_mut(rule) {
        // SAFETY: the pointer is this CPU's slot of a per-CPU map. The agent removes rules that no generation has any more;
        // a count that another rule's slot gets is one of a diagnostic.
        unsafe { *hits = (*hits).wrapping_add(1) };
    } else if HITS.insert(rule, 1u64, NO_EXIST).is_err() {
        count_lost(Lost::Hit);
    }
}

/// How many events of the cell were not told since the last one; `None` if this one is not to be told either.
#[inline(always)]
fn admitted(case: &Case, verdict: Verdict) -> Option<u32> {
    let key = LimitKey::new(case.cell, verdict == Verdict::Drop);
    let Some(limit) = LIMITS.get_ptr_mut(&key) else {
        // A table that refuses limits nobody: it holds back events only, and the ring has an end of its own.
        let _ = LIMITS.insert(&key, &Limit::starting(case.now), 0);
        return Some(0);
    };
    // SAFETY: the slot is memory of the map. Two CPUs at once may lose one of the other's counts.
    unsafe { (*limit).admit(case.now, case.ticks_per_second) }
}

/// Tells the agent about a new flow or a drop.
#[inline(always)]
fn tell(case: &Case, way: Direction, verdict: Verdict, reason: Reason) {
    let Some(suppressed) = admitted(case, verdict) else {
        count_lost(Lost::Suppressed);
        return;
    };
    // Before the reservation: 5.10 cannot keep its pointer on the stack across a call (5.11 can, `PTR_TO_MEM`).
    // SAFETY: the helper takes no argument and cannot fail.
    let time = unsafe { bpf_ktime_get_ns() };
    let Some(mut entry) = EVENTS.reserve(0) else {
        count_lost(Lost::Event);
        return;
    };
    let packet = &case.packet;
    entry.write(Event {
        time,
        source: packet.source.bytes(),
        destination: packet.destination.bytes(),
        ifindex: case.ifindex,
        cell: case.cell,
        local: case.local.raw(),
        peer: case.peer.raw(),
        rule: case.rule,
        generation: case.generation,
        source_port: packet.source_port.to_ne_bytes(),
        destination_port: packet.destination_port.to_ne_bytes(),
        protocol: packet.protocol,
        direction: case.direction as u8,
        verdict: verdict as u8,
        reason: reason as u8,
        hook: match way {
            Direction::Egress => Hook::CellEgress,
            Direction::Ingress => Hook::CellIngress,
        } as u8,
        path: case.path as u8,
        pad: [0; 2],
        suppressed,
    });
    entry.submit(0);
}

/// Logs what was found in a packet and what became of it. Verdict and reason are the numbers of their enums: a table of
/// names would be pointers, which an object's data cannot hold.
#[cfg(feature = "logs")]
#[inline(always)]
fn log(ctx: &TcContext, case: &Case, way: Direction, verdict: Verdict, reason: Reason) {
    let packet = &case.packet;
    aya_log_ebpf::debug!(
        ctx,
        "hook={} ifindex={} generation={} cell={} verdict={} reason={} rule={}",
        way as u8,
        case.ifindex,
        case.generation,
        case.cell,
        verdict as u8,
        reason as u8,
        case.rule
    );
    aya_log_ebpf::debug!(
        ctx,
        "  {:i} port {} -> {:i} port {} protocol={} flags={:x} icmp={} local={:x} peer={:x} bytes={}",
        packet.source.bytes(),
        u16::from_be(packet.source_port),
        packet.destination.bytes(),
        u16::from_be(packet.destination_port),
        packet.protocol,
        packet.tcp_flags,
        packet.icmp_type,
        case.local.raw(),
        case.peer.raw(),
        ctx.len()
    );
}

/// Without the feature nothing is logged.
#[cfg(not(feature = "logs"))]
#[inline(always)]
fn log(_: &TcContext, _: &Case, _: Direction, _: Verdict, _: Reason) {}
