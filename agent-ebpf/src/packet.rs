//! The reader of all packets but the ordinary ones, of which `frame.rs` has read what there is.
//!
//! Everything here goes through `bpf_skb_load_bytes`, which copies and checks bounds, also for packets whose bytes are not
//! linear. What is parsed is what the rest of the stack would parse: no header is skipped that a receiver would read.

use agent_common::{FlowState, Reason};
use aya_ebpf::programs::TcContext;

use crate::address::{Address, port};

/// IP protocol numbers (IANA).
pub mod protocol {
    /// ICMP for IPv4.
    pub const ICMP: u8 = 1;
    /// TCP.
    pub const TCP: u8 = 6;
    /// UDP.
    pub const UDP: u8 = 17;
    /// ICMP for IPv6.
    pub const ICMPV6: u8 = 58;
}

/// TCP flags (RFC 9293 section 3.1).
mod tcp {
    pub(super) const FIN: u8 = 0x01;
    pub(super) const SYN: u8 = 0x02;
    pub(super) const RST: u8 = 0x04;
    pub(super) const ACK: u8 = 0x10;
}

/// Bytes of an Ethernet header.
pub const ETHERNET: u32 = 14;
/// Bytes of an IPv6 header.
const IPV6: u32 = 40;
/// EtherTypes (IANA).
pub const ETHER_IPV4: u16 = 0x0800;
const ETHER_ARP: u16 = 0x0806;
/// IPv6.
pub const ETHER_IPV6: u16 = 0x86dd;
const ETHER_VLAN: u16 = 0x8100;
const ETHER_QINQ: u16 = 0x88a8;

/// Extension headers that are read before a packet is given up (RFC 8200 section 4.1 recommends at most seven).
const MAX_EXTENSION_HEADERS: u32 = 6;
/// IPv4 options that are read before a packet is given up, padding included. A host sends one or two.
const MAX_OPTIONS: u32 = 8;
const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const DESTINATION_OPTIONS: u8 = 60;

/// What came after the Ethernet header.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Layer {
    /// An ARP packet, not parsed further here.
    Arp,
    /// An IP packet; [`Packet`] is filled.
    Ip,
}

/// Where a packet stands among its fragments.
#[repr(u8)]
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Fragmented {
    /// It is whole.
    No = 0,
    /// It is the first fragment and has the ports.
    First,
    /// It is a later one and has none.
    Later,
}

/// What ICMP message it is.
#[repr(u8)]
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Icmp {
    /// Not ICMP.
    None = 0,
    /// Echo request.
    Request,
    /// Echo reply.
    Reply,
    /// An error about another packet, whose header it quotes.
    Error,
    /// Neighbour solicitation or advertisement.
    Neighbour,
    /// Router advertisement, redirect: a claim to route.
    RouterClaim,
    /// Any other.
    Other,
}

/// The headers of an IP packet.
#[repr(C)]
pub struct Packet {
    /// Where it comes from.
    pub source: Address,
    /// Where it goes.
    pub destination: Address,
    /// As it lies in memory, in network order; an echo's identifier.
    pub source_port: u16,
    /// The same; zero for an echo.
    pub destination_port: u16,
    /// IP protocol number.
    pub protocol: u8,
    /// TCP flags, 0 otherwise.
    pub tcp_flags: u8,
    /// Kind of ICMP message.
    pub icmp: Icmp,
    /// Raw ICMP type.
    pub icmp_type: u8,
    /// Whether the IP version is 4.
    pub v4: bool,
    /// Hop limit or time to live.
    pub hops: u8,
    /// Place among fragments.
    pub fragmented: Fragmented,
    /// Offset of the transport header.
    pub transport: u32,
    /// Identification of the fragmented packet.
    pub fragment_id: u32,
}

impl Packet {
    /// Forgets what was read before: what an event shows of a packet that could not be parsed.
    #[inline(always)]
    pub const fn clear(&mut self) {
        self.source = Address::NONE;
        self.destination = Address::NONE;
        self.source_port = 0;
        self.destination_port = 0;
        self.protocol = 0;
        self.tcp_flags = 0;
        self.icmp = Icmp::None;
        self.icmp_type = 0;
        self.v4 = false;
        self.hops = 0;
        self.fragmented = Fragmented::No;
        self.transport = 0;
        self.fragment_id = 0;
    }

    /// Both ports in one word.
    #[inline(always)]
    pub const fn ports(&self) -> u32 {
        self.source_port as u32 | (self.destination_port as u32) << 16
    }

    /// Whether the packet asks for a new TCP connection.
    #[inline(always)]
    pub const fn opens_tcp(&self) -> bool {
        self.protocol == protocol::TCP && self.tcp_flags & (tcp::SYN | tcp::ACK) == tcp::SYN
    }

    /// Whether the packet answers a request for a new TCP connection.
    #[inline(always)]
    pub const fn accepts_tcp(&self) -> bool {
        const BOTH: u8 = tcp::SYN | tcp::ACK;
        self.protocol == protocol::TCP && self.tcp_flags & BOTH == BOTH
    }

    /// Whether the packet aborts a TCP connection.
    #[inline(always)]
    pub const fn resets_tcp(&self) -> bool {
        self.protocol == protocol::TCP && self.tcp_flags & tcp::RST != 0
    }

    /// Whether the packet ends its sender's half of a TCP connection.
    #[inline(always)]
    pub const fn ends_tcp(&self) -> bool {
        self.protocol == protocol::TCP && self.tcp_flags & tcp::FIN != 0
    }

    /// Whether the packet does nothing but acknowledge, as far as its flags tell.
    #[inline(always)]
    pub const fn acknowledges_tcp(&self) -> bool {
        const ALL: u8 = tcp::FIN | tcp::SYN | tcp::RST | tcp::ACK;
        self.protocol == protocol::TCP && self.tcp_flags & ALL == tcp::ACK
    }

    /// What the packet tells about its connection, from the side that opened it or the other one.
    #[inline(always)]
    pub const fn state(&self, from_opener: bool) -> FlowState {
        let mut state = if from_opener {
            FlowState::OPENING
        } else {
            FlowState::REPLIED
        };
        // A later fragment has no flags.
        if self.ends_tcp() {
            state = state.with(if from_opener {
                FlowState::FIN_OPENER
            } else {
                FlowState::FIN_ANSWERER
            });
        }
        if self.resets_tcp() {
            state = state.with(FlowState::RESET);
        }
        state
    }
}

/// Numbers of a TCP segment (RFC 9293 section 3.1).
pub struct Segment {
    /// What it acknowledges.
    pub acknowledges: u32,
    /// What acknowledges it, if it ends its sender's half.
    pub answer: u32,
}

impl Segment {
    /// Of a packet that was read; `None` for a fragment, which does not tell where the segment ends.
    #[inline(always)]
    pub fn of(ctx: &TcContext, packet: &Packet) -> Option<Self> {
        if packet.fragmented != Fragmented::No {
            return None;
        }
        let (length, beside) = if packet.v4 { (2, 0) } else { (4, IPV6) };
        let length = u16::from_be_bytes(load(ctx, ETHERNET + length).ok()?);
        let h: [u8; 14] = load(ctx, packet.transport).ok()?;
        let end = ETHERNET + beside + u32::from(length);
        let payload = end
            .wrapping_sub(packet.transport)
            .wrapping_sub(u32::from(h[12] >> 4) * 4);
        let sequence = u32::from_be_bytes([h[4], h[5], h[6], h[7]]);
        Some(Self {
            acknowledges: u32::from_be_bytes([h[8], h[9], h[10], h[11]]),
            answer: sequence.wrapping_add(payload).wrapping_add(1),
        })
    }
}

/// Whether a port is that of a tunnel: VXLAN (RFC 7348; 8472 is Linux' own) or Geneve (RFC 8926).
#[inline(always)]
pub const fn is_tunnel(protocol: u8, port: u16) -> bool {
    protocol == protocol::UDP && matches!(port, 4789 | 8472 | 6081)
}

/// Whether the protocol has ports, or an echo's identifier in the place of one.
#[inline(always)]
pub const fn has_ports(protocol: u8) -> bool {
    matches!(
        protocol,
        protocol::TCP | protocol::UDP | protocol::ICMP | protocol::ICMPV6
    )
}

/// Bytes of the packet, or `Truncated`.
#[inline(always)]
pub fn load<const N: usize>(ctx: &TcContext, offset: u32) -> Result<[u8; N], Reason> {
    ctx.load::<[u8; N]>(offset as usize)
        .map_err(|_| Reason::Truncated)
}

/// Parses Ethernet and what is in it.
#[inline(always)]
pub fn parse(ctx: &TcContext, packet: &mut Packet) -> Result<Layer, Reason> {
    // A tag may sit in the packet or, taken out by the device, beside it.
    // SAFETY: the context's `skb` pointer is the program's argument; the field is readable by every tc program.
    if unsafe { (*ctx.skb.skb).vlan_present } != 0 {
        return Err(Reason::Vlan);
    }
    match u16::from_be_bytes(load(ctx, 12)?) {
        ETHER_IPV4 => ipv4(ctx, packet)?,
        ETHER_IPV6 => ipv6(ctx, packet)?,
        ETHER_ARP => return Ok(Layer::Arp),
        ETHER_VLAN | ETHER_QINQ => return Err(Reason::Vlan),
        _ => return Err(Reason::EtherType),
    }
    if packet.fragmented != Fragmented::Later {
        transport(ctx, packet)?;
    }
    Ok(Layer::Ip)
}

/// The address at byte `at` of an IPv4 header.
#[inline(always)]
fn v4(header: &[u8; 20], at: usize) -> Address {
    let [a, b, c, d] = [header[at], header[at + 1], header[at + 2], header[at + 3]];
    Address::v4(u32::from_ne_bytes([a, b, c, d]))
}

#[inline(always)]
fn ipv4(ctx: &TcContext, packet: &mut Packet) -> Result<(), Reason> {
    const MORE_FRAGMENTS: u16 = 0x2000;
    const OFFSET: u16 = 0x1fff;
    let h: [u8; 20] = load(ctx, ETHERNET)?;
    let length = u32::from(h[0] & 0x0f) * 4;
    if h[0] >> 4 != 4 || length < 20 {
        return Err(Reason::Malformed);
    }
    if length > 20 {
        options(ctx, ETHERNET + length)?;
    }
    packet.v4 = true;
    packet.source = v4(&h, 12);
    packet.destination = v4(&h, 16);
    packet.protocol = h[9];
    packet.hops = h[8];
    packet.transport = ETHERNET + length;
    let fragment = u16::from_be_bytes([h[6], h[7]]);
    if fragment & (MORE_FRAGMENTS | OFFSET) != 0 {
        packet.fragment_id = u32::from(u16::from_be_bytes([h[4], h[5]]));
        return placed(packet, fragment & OFFSET);
    }
    Ok(())
}

/// Refuses source routes among the options of an IPv4 header that ends at `end` (RFC 791 section 3.1): a packet with one
/// goes on to where its destination field does not tell.
#[inline(always)]
fn options(ctx: &TcContext, end: u32) -> Result<(), Reason> {
    const END: u8 = 0;
    const NO_OPERATION: u8 = 1;
    const LOOSE_SOURCE_ROUTE: u8 = 131;
    const STRICT_SOURCE_ROUTE: u8 = 137;
    let mut offset = ETHERNET + 20;
    for _ in 0..MAX_OPTIONS {
        if offset >= end {
            return Ok(());
        }
        let x: [u8; 2] = load(ctx, offset)?;
        match x[0] {
            END => return Ok(()),
            LOOSE_SOURCE_ROUTE | STRICT_SOURCE_ROUTE => return Err(Reason::SourceRoute),
            NO_OPERATION => offset += 1,
            _ if x[1] < 2 => return Err(Reason::Malformed),
            _ => offset += u32::from(x[1]),
        }
    }
    Err(Reason::ExtensionHeader)
}

#[inline(always)]
fn ipv6(ctx: &TcContext, packet: &mut Packet) -> Result<(), Reason> {
    let h: [u8; 8] = load(ctx, ETHERNET)?;
    if h[0] >> 4 != 6 {
        return Err(Reason::Malformed);
    }
    packet.source = Address::of(load(ctx, ETHERNET + 8)?);
    packet.destination = Address::of(load(ctx, ETHERNET + 24)?);
    packet.hops = h[7];
    // A v4-mapped address on the wire would be taken for IPv4 by every table (RFC 4942 section 2.2).
    if packet.source.is_v4() || packet.destination.is_v4() {
        return Err(Reason::Malformed);
    }
    let mut next = h[6];
    let mut offset = ETHERNET + 40;
    for _ in 0..MAX_EXTENSION_HEADERS {
        match next {
            HOP_BY_HOP | DESTINATION_OPTIONS => {
                let x: [u8; 2] = load(ctx, offset)?;
                next = x[0];
                offset += (u32::from(x[1]) + 1) * 8;
            }
            ROUTING => return Err(Reason::SourceRoute),
            FRAGMENT => {
                let x: [u8; 8] = load(ctx, offset)?;
                let place = u16::from_be_bytes([x[2], x[3]]);
                // A chain that goes on is not followed; a later fragment of it is no other protocol's.
                if matches!(x[0], HOP_BY_HOP | ROUTING | FRAGMENT | DESTINATION_OPTIONS) {
                    return Err(Reason::ExtensionHeader);
                }
                packet.protocol = x[0];
                packet.transport = offset + 8;
                packet.fragment_id = u32::from_be_bytes([x[4], x[5], x[6], x[7]]);
                // The whole chain must be in the first fragment (RFC 7112); one that goes on behind the fragment
                // header is not followed, so that first and later fragments carry the same protocol number.
                if place & 0xfff9 == 0 {
                    return Ok(()); // an atomic fragment (RFC 6946) is whole
                }
                return placed(packet, place >> 3);
            }
            _ => {
                packet.protocol = next;
                packet.transport = offset;
                return Ok(());
            }
        }
    }
    Err(Reason::ExtensionHeader)
}

/// Records the place among fragments; `offset` in units of eight bytes.
#[inline(always)]
fn placed(packet: &mut Packet, offset: u16) -> Result<(), Reason> {
    packet.fragmented = if offset == 0 {
        Fragmented::First
    } else {
        Fragmented::Later
    };
    // A second fragment that starts inside the TCP header rewrites flags that were judged (RFC 3128).
    if packet.protocol == protocol::TCP && offset == 1 {
        return Err(Reason::Malformed);
    }
    Ok(())
}

#[inline(always)]
fn transport(ctx: &TcContext, packet: &mut Packet) -> Result<(), Reason> {
    match packet.protocol {
        protocol::TCP => {
            let h: [u8; 14] = load(ctx, packet.transport)?;
            packet.source_port = port([h[0], h[1]]);
            packet.destination_port = port([h[2], h[3]]);
            packet.tcp_flags = h[13];
            plausible(h[13])
        }
        protocol::UDP => {
            let h: [u8; 8] = load(ctx, packet.transport)?;
            packet.source_port = port([h[0], h[1]]);
            packet.destination_port = port([h[2], h[3]]);
            Ok(())
        }
        protocol::ICMP if packet.v4 => {
            let h: [u8; 8] = load(ctx, packet.transport)?;
            packet.icmp_type = h[0];
            packet.icmp = icmp_v4(h[0]);
            packet.source_port = port([h[4], h[5]]);
            Ok(())
        }
        protocol::ICMPV6 if !packet.v4 => {
            let h: [u8; 8] = load(ctx, packet.transport)?;
            packet.icmp_type = h[0];
            packet.icmp = icmp_v6(h[0]);
            packet.source_port = port([h[4], h[5]]);
            Ok(())
        }
        // Either family's ICMP in the other one means nothing.
        protocol::ICMP | protocol::ICMPV6 => Err(Reason::Protocol),
        _ => Ok(()),
    }
}

/// Refuses flags that no connection sends (RFC 9293 section 3.5): scans, and packets by which stacks are told apart.
#[inline(always)]
pub fn plausible(flags: u8) -> Result<(), Reason> {
    let has = |flag: u8| flags & flag != 0;
    let nothing = flags & (tcp::SYN | tcp::ACK | tcp::RST | tcp::FIN) == 0;
    let contradicts = has(tcp::SYN) && flags & (tcp::FIN | tcp::RST) != 0;
    let ends_unanswered = flags & (tcp::FIN | tcp::ACK | tcp::RST) == tcp::FIN;
    if nothing || contradicts || ends_unanswered {
        return Err(Reason::TcpFlags);
    }
    Ok(())
}

/// RFC 792, RFC 1256.
#[inline(always)]
pub fn icmp_v4(kind: u8) -> Icmp {
    match kind {
        8 => Icmp::Request,
        0 => Icmp::Reply,
        3 | 11 | 12 => Icmp::Error,
        5 | 9 => Icmp::RouterClaim,
        _ => Icmp::Other,
    }
}

/// RFC 4443, RFC 4861.
#[inline(always)]
pub fn icmp_v6(kind: u8) -> Icmp {
    match kind {
        128 => Icmp::Request,
        129 => Icmp::Reply,
        1..=4 => Icmp::Error,
        135 | 136 => Icmp::Neighbour,
        134 | 137 => Icmp::RouterClaim,
        _ => Icmp::Other,
    }
}

/// The connection that an ICMP error quotes, as it was sent: addresses, protocol, ports.
#[inline(always)]
pub fn quoted(ctx: &TcContext, outer: &Packet, inner: &mut Packet) -> Result<(), Reason> {
    inner.clear();
    let offset = outer.transport + 8;
    if outer.v4 {
        let h: [u8; 20] = load(ctx, offset)?;
        let length = u32::from(h[0] & 0x0f) * 4;
        if h[0] >> 4 != 4 || length < 20 {
            return Err(Reason::Malformed);
        }
        inner.v4 = true;
        inner.source = v4(&h, 12);
        inner.destination = v4(&h, 16);
        inner.protocol = h[9];
        inner.transport = offset + length;
        // Of a later fragment nobody knows the ports.
        if h[6] & 0x1f != 0 || h[7] != 0 {
            return Err(Reason::IcmpUntracked);
        }
    } else {
        let h: [u8; 8] = load(ctx, offset)?;
        if h[0] >> 4 != 6 {
            return Err(Reason::Malformed);
        }
        inner.source = Address::of(load(ctx, offset + 8)?);
        inner.destination = Address::of(load(ctx, offset + 24)?);
        inner.protocol = h[6];
        inner.transport = offset + 40;
        // Packet Too Big is most often about what was sent in fragments.
        if inner.protocol == FRAGMENT {
            let x: [u8; 8] = load(ctx, inner.transport)?;
            if u16::from_be_bytes([x[2], x[3]]) >> 3 != 0 {
                return Err(Reason::IcmpUntracked);
            }
            inner.protocol = x[0];
            inner.transport += 8;
        }
    }
    // An error quotes at least eight bytes of the transport header (RFC 792; RFC 4443 quotes more).
    let h: [u8; 8] = load(ctx, inner.transport)?;
    match inner.protocol {
        protocol::TCP | protocol::UDP => {
            inner.source_port = port([h[0], h[1]]);
            inner.destination_port = port([h[2], h[3]]);
        }
        protocol::ICMP if inner.v4 => {
            inner.icmp = icmp_v4(h[0]);
            inner.source_port = port([h[4], h[5]]);
        }
        protocol::ICMPV6 if !inner.v4 => {
            inner.icmp = icmp_v6(h[0]);
            inner.source_port = port([h[4], h[5]]);
        }
        _ => return Err(Reason::IcmpUntracked),
    }
    match inner.icmp {
        Icmp::None | Icmp::Request | Icmp::Reply => Ok(()),
        _ => Err(Reason::IcmpUntracked),
    }
}
