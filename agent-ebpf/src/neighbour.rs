//! ARP and IPv6 neighbour discovery: a pod may claim its own addresses and ask for others; it never routes.

use agent_common::{Direction, IdentityValue, Reason};
use aya_ebpf::programs::TcContext;

use crate::{address::Address, maps, packet, verdict::Case};

/// Options of a discovery message that are read before it is given up. A host sends one or two; secured discovery (RFC 3971)
/// five.
const MAX_OPTIONS: u32 = 8;

/// Judges an ARP packet (RFC 826).
#[inline(always)]
pub fn arp(ctx: &TcContext, case: &Case, way: Direction) -> Result<Reason, Reason> {
    let h: [u8; 28] = packet::load(ctx, packet::ETHERNET)?;
    // Ethernet, IPv4, six and four bytes.
    if [h[0], h[1], h[2], h[3], h[4], h[5]] != [0, 1, 8, 0, 6, 4] {
        return Err(Reason::Malformed);
    }
    let sender = u64::from_ne_bytes([h[8], h[9], h[10], h[11], h[12], h[13], 0, 0]);
    if way == Direction::Egress && sender != case.hardware {
        return Err(Reason::ArpSpoofed);
    }
    let target = v4([h[24], h[25], h[26], h[27]]);
    let claimed = match way {
        // The sender's address is what the receiver learns. A probe (RFC 5227) claims none yet and asks for its own.
        Direction::Egress if [h[14], h[15], h[16], h[17]] == [0; 4] => target,
        Direction::Egress => v4([h[14], h[15], h[16], h[17]]),
        Direction::Ingress => target,
    };
    if owns(case, claimed) {
        Ok(Reason::Neighbour)
    } else {
        Err(Reason::ArpSpoofed)
    }
}

/// Judges a neighbour solicitation or advertisement (RFC 4861 sections 4.3, 4.4 and 7.1).
#[inline(always)]
pub fn discovery(ctx: &TcContext, case: &Case, way: Direction) -> Result<Reason, Reason> {
    const ADVERTISEMENT: u8 = 136;
    let packet = &case.packet;
    let target = Address::of(packet::load(ctx, packet.transport + 8)?);
    if packet.hops != 255 {
        return Err(Reason::Malformed);
    }
    let advertises = packet.icmp_type == ADVERTISEMENT;
    let fine = match way {
        Direction::Egress => {
            // Duplicate address detection asks from the unspecified address for the pod's own.
            let nobody = packet.source.is_none();
            let claims_target = advertises || nobody;
            stays_on_link(case, packet.destination)
                && (nobody || mine(case, packet.source))
                && (!claims_target || mine(case, target))
        }
        // The node may ask for the pod's addresses, and answer what the pod asked.
        Direction::Ingress if advertises => {
            packet.destination.is_group(false) || mine(case, packet.destination)
        }
        Direction::Ingress => mine(case, target),
    };
    if !fine {
        return Err(Reason::NeighbourSpoofed);
    }
    if way == Direction::Egress {
        options(ctx, case)?;
    }
    Ok(Reason::Neighbour)
}

/// Refuses a link-layer address that is not the pod's: what the receiver notes for the addresses of the message (RFC 4861
/// section 4.6.1; on Ethernet eight bytes long, RFC 2464 section 6).
#[inline(always)]
fn options(ctx: &TcContext, case: &Case) -> Result<(), Reason> {
    const SOURCE_LINK_LAYER: u8 = 1;
    const TARGET_LINK_LAYER: u8 = 2;
    /// Type, code, checksum, reserved bits and the target, in both messages.
    const MESSAGE: u32 = 24;
    // The receiver reads what the IPv6 header says is there, whatever follows it in the frame.
    let payload = u16::from_be_bytes(packet::load(ctx, packet::ETHERNET + 4)?);
    let end = packet::ETHERNET + 40 + u32::from(payload);
    if end > ctx.len() {
        return Err(Reason::Truncated);
    }
    let mut offset = case.packet.transport + MESSAGE;
    for _ in 0..MAX_OPTIONS {
        if offset == end {
            return Ok(());
        }
        // Lengths are in units of eight bytes.
        if offset + 8 > end {
            return Err(Reason::Malformed);
        }
        let x: [u8; 8] = packet::load(ctx, offset)?;
        let next = offset + u32::from(x[1]) * 8;
        if x[1] == 0 || next > end {
            return Err(Reason::Malformed);
        }
        let address = u64::from_ne_bytes([x[2], x[3], x[4], x[5], x[6], x[7], 0, 0]);
        if matches!(x[0], SOURCE_LINK_LAYER | TARGET_LINK_LAYER)
            && (x[1] != 1 || address != case.hardware)
        {
            return Err(Reason::NeighbourSpoofed);
        }
        offset = next;
    }
    if offset == end {
        Ok(())
    } else {
        Err(Reason::ExtensionHeader)
    }
}

/// Whether a message of the pod ends at the node: a group of the link (RFC 4291 section 2.7), a link-local address or one
/// of the node's own. The node would forward any other, past every policy.
#[inline(always)]
fn stays_on_link(case: &Case, address: Address) -> bool {
    const LINK_SCOPE: u8 = 2;
    if address.is_group(false) {
        return address.group_scope() == LINK_SCOPE;
    }
    address.is_link_local()
        || maps::identity(case.generation, address)
            .is_some_and(|value| value.ifindex() == IdentityValue::THIS_NODE)
}

/// Whether the pod may use an address on its link: its own, or any link-local one, since the link has two ends only.
#[inline(always)]
fn mine(case: &Case, address: Address) -> bool {
    address.is_link_local() || owns(case, address)
}

/// Whether the address belongs to the pod behind the interface.
#[inline(always)]
pub fn owns(case: &Case, address: Address) -> bool {
    match maps::identity(case.generation, address) {
        Some(value) => value.ifindex() == case.ifindex,
        None => false,
    }
}

#[inline(always)]
fn v4(bytes: [u8; 4]) -> Address {
    Address::v4(u32::from_ne_bytes(bytes))
}
