//! ARP and IPv6 neighbour discovery: a pod may claim its own addresses and ask for others; it never routes.

use agent_common::{Direction, IdentityValue, Reason};
use aya_ebpf::programs::TcContext;

use crate::{address::Address, maps, packet, verdict::Case};

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
    if fine {
        Ok(Reason::Neighbour)
    } else {
        Err(Reason::NeighbourSpoofed)
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
