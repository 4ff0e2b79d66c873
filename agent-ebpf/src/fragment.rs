//! Fragments: the later ones follow the first one's ports, or drop.

use agent_common::{Direction, FragmentKey, FragmentValue, Reason};

use crate::{
    address::port,
    maps::FRAGMENTS,
    packet::{self, Fragmented, Icmp, Packet, protocol},
    verdict::Case,
};

/// What the fragments of one packet have in common.
#[inline(always)]
fn key(packet: &Packet, way: Direction) -> FragmentKey {
    FragmentKey::new(
        packet.source.bytes(),
        packet.destination.bytes(),
        packet.fragment_id,
        packet.protocol,
        way,
    )
}

/// Whether the protocol has a port for each end.
#[inline(always)]
fn has_both_ports(packet: &Packet) -> bool {
    packet.protocol == protocol::TCP || packet.protocol == protocol::UDP
}

/// Gives a later fragment the ports of the first one.
#[inline(always)]
pub fn follow(case: &mut Case, way: Direction) -> Result<(), Reason> {
    let table = case.flows;
    let packet = &mut case.packet;
    // Without ports a later fragment says as much as the first.
    if packet.fragmented == Fragmented::No || !packet::has_ports(packet.protocol) {
        return Ok(());
    }
    let notes = FRAGMENTS.get(table).ok_or(Reason::FragmentTable)?;
    if packet.fragmented == Fragmented::First {
        // A fragmented error is rare and a known evasion.
        return match packet.icmp {
            Icmp::Error => Err(Reason::Fragment),
            _ => Ok(()),
        };
    }
    // SAFETY: the value is copied at once; a slot that is reused meanwhile gives the ports of another packet of the pod
    // that was judged too, and the flow lookup that follows decides with them.
    let note = unsafe { notes.get(&key(packet, way)) }
        .copied()
        .ok_or(Reason::Fragment)?;
    packet.source_port = port(note.source_port());
    if has_both_ports(packet) {
        packet.destination_port = port(note.destination_port());
        return Ok(());
    }
    packet.icmp_type = note.destination_port()[0];
    packet.icmp = match packet.v4 {
        true => packet::icmp_v4(packet.icmp_type),
        false => packet::icmp_v6(packet.icmp_type),
    };
    Ok(())
}

/// Notes the ports of a first fragment that may pass, for the later ones. Those of one that may not find no note: whoever is
/// denied pushes out nobody's.
#[inline(always)]
pub fn note(case: &Case, way: Direction) -> Result<(), Reason> {
    let packet = &case.packet;
    if !packet::has_ports(packet.protocol) {
        return Ok(());
    }
    let ports = if has_both_ports(packet) {
        FragmentValue::new(
            packet.source_port.to_ne_bytes(),
            packet.destination_port.to_ne_bytes(),
        )
    } else {
        // The later ones carry the identifier and kind of the first.
        FragmentValue::new(packet.source_port.to_ne_bytes(), [packet.icmp_type, 0])
    };
    FRAGMENTS
        .get(case.flows)
        .ok_or(Reason::FragmentTable)?
        .insert(&key(packet, way), &ports, 0)
        .map_err(|_| Reason::FragmentTable)
}
