//! Accounting: a counter for every packet, an event for every new flow and every drop; in debug builds (feature `logs`)
//! a line for every verdict.

use agent_common::{Counter, CounterKey, Direction, Event, Hook, Lost, Reason, Verdict};
use aya_ebpf::{helpers::bpf_ktime_get_ns, programs::TcContext};

use crate::{
    maps::{COUNTERS, EVENTS, count_lost},
    verdict::Case,
};

/// `BPF_NOEXIST`: another CPU may have made the entry since the lookup; then the packet is added to it next time.
const NO_EXIST: u64 = 1;

/// Adds the packet to the counter of its cell, direction, verdict and reason.
#[inline(always)]
pub fn count(ctx: &TcContext, cell: u32, way: Direction, verdict: Verdict, reason: Reason) {
    let key = CounterKey::new(cell, way, verdict, reason);
    let bytes = u64::from(ctx.len());
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

/// Tells the agent about a new flow or a drop.
#[inline(always)]
pub fn tell(case: &Case, way: Direction, verdict: Verdict, reason: Reason) {
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
        source: packet.source,
        destination: packet.destination,
        ifindex: case.ifindex,
        cell: case.cell,
        local: case.local.raw(),
        peer: case.peer.raw(),
        rule: case.rule,
        generation: case.generation,
        source_port: packet.source_port,
        destination_port: packet.destination_port,
        protocol: packet.protocol,
        direction: case.direction as u8,
        verdict: verdict as u8,
        reason: reason as u8,
        hook: match way {
            Direction::Egress => Hook::CellEgress,
            Direction::Ingress => Hook::CellIngress,
        } as u8,
        pad: [0; 7],
    });
    entry.submit(0);
}

/// Logs what was found in a packet and what became of it. Verdict and reason are the numbers of their enums: a table of
/// names would be pointers, which an object's data cannot hold.
#[cfg(feature = "logs")]
#[inline(always)]
pub fn log(ctx: &TcContext, case: &Case, way: Direction, verdict: Verdict, reason: Reason) {
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
        packet.source,
        u16::from_be_bytes(packet.source_port),
        packet.destination,
        u16::from_be_bytes(packet.destination_port),
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
pub fn log(_: &TcContext, _: &Case, _: Direction, _: Verdict, _: Reason) {}
