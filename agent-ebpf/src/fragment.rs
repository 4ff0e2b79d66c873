//! Fragments: the later ones follow the first one's ports, or drop.

use agent_common::{Direction, FragmentKey, FragmentValue, Reason};

use crate::{
    address::port,
    maps::FRAGMENTS,
    packet::{self, Fragmented, Icmp, protocol},
    verdict::{Case, Dry, WET},
};

/// Notes the ports of a first fragment and gives them to the later ones.
#[inline(always)]
pub fn follow<const MODE: Dry>(case: &mut Case, way: Direction) -> Result<(), Reason> {
    let table = case.flows;
    let packet = &mut case.packet;
    // Without ports a later fragment says as much as the first.
    if packet.fragmented == Fragmented::No || !packet::has_ports(packet.protocol) {
        return Ok(());
    }
    let key = FragmentKey::new(
        packet.source.bytes(),
        packet.destination.bytes(),
        packet.fragment_id,
        packet.protocol,
        way,
    );
    let notes = FRAGMENTS.get(table).ok_or(Reason::FragmentTable)?;
    let has_ports = packet.protocol == protocol::TCP || packet.protocol == protocol::UDP;
    if packet.fragmented == Fragmented::First {
        // A fragmented error is rare and a known evasion.
        if packet.icmp == Icmp::Error {
            return Err(Reason::Fragment);
        }
        let note = if has_ports {
            FragmentValue::new(
                packet.source_port.to_ne_bytes(),
                packet.destination_port.to_ne_bytes(),
            )
        } else {
            // The later ones carry the identifier and kind of the first.
            FragmentValue::new(packet.source_port.to_ne_bytes(), [packet.icmp_type, 0])
        };
        return if MODE == WET {
            notes
                .insert(&key, &note, 0)
                .map_err(|_| Reason::FragmentTable)
        } else {
            Ok(())
        };
    }
    // SAFETY: the value is copied at once; a slot that is reused meanwhile gives the ports of another packet of the pod
    // that was judged too, and the flow lookup that follows decides with them.
    let note = unsafe { notes.get(&key) }
        .copied()
        .ok_or(Reason::Fragment)?;
    packet.source_port = port(note.source_port());
    if has_ports {
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
