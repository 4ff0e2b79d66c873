//! What the model sees in a frame. Written from the RFCs and the specification of the gates, on a plain slice, and
//! shares nothing with the programs' parser.

use agent_common::Reason;

/// Which ICMP message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Icmp {
    Request,
    Reply,
    Error,
    Neighbour,
    RouterClaim,
    Other,
}

/// Where a packet stands among its fragments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    Whole,
    First,
    Later,
}

/// An IP packet. What a later fragment does not carry is zero.
#[derive(Clone, Debug)]
pub(crate) struct Packet {
    pub(crate) v4: bool,
    pub(crate) source: u128,
    pub(crate) destination: u128,
    pub(crate) protocol: u8,
    pub(crate) hops: u8,
    pub(crate) place: Place,
    pub(crate) fragment_id: u32,
    /// Where the transport header starts in the frame.
    pub(crate) transport: usize,
    pub(crate) source_port: u16,
    pub(crate) destination_port: u16,
    pub(crate) tcp_flags: u8,
    /// Kind and raw type.
    pub(crate) icmp: Option<(Icmp, u8)>,
    /// Identifier of an echo; the same two bytes of other messages.
    pub(crate) icmp_id: u16,
}

/// What follows the Ethernet header.
#[derive(Clone, Debug)]
pub(crate) enum Parsed {
    /// The body of an ARP packet.
    Arp([u8; 28]),
    Ip(Packet),
}

pub(crate) const TCP: u8 = 6;
pub(crate) const UDP: u8 = 17;
pub(crate) const ICMP: u8 = 1;
pub(crate) const ICMPV6: u8 = 58;
pub(crate) const FIN: u8 = 1;
pub(crate) const SYN: u8 = 2;
pub(crate) const RST: u8 = 4;
pub(crate) const ACK: u8 = 16;

/// `length` bytes at `at`.
pub(crate) fn bytes(frame: &[u8], at: usize, length: usize) -> Result<&[u8], Reason> {
    frame.get(at..at + length).ok_or(Reason::Truncated)
}

pub(crate) fn array<const N: usize>(frame: &[u8], at: usize) -> Result<[u8; N], Reason> {
    Ok(bytes(frame, at, N)?
        .try_into()
        .expect("the slice has this length"))
}

fn be16(frame: &[u8], at: usize) -> Result<u16, Reason> {
    array(frame, at).map(u16::from_be_bytes)
}

/// An IPv4 address as the tables hold it.
pub(crate) fn mapped(v4: [u8; 4]) -> u128 {
    0xffff_0000_0000 | u128::from(u32::from_be_bytes(v4))
}

pub(crate) fn is_mapped(address: u128) -> bool {
    address >> 32 == 0xffff
}

/// A group or the broadcast address: no single host's.
pub(crate) fn is_group(address: u128, v4: bool) -> bool {
    if v4 {
        let first = (address as u32) >> 24;
        (224..=239).contains(&first) || first == 255
    } else {
        address >> 120 == 0xff
    }
}

pub(crate) fn is_link_local(address: u128) -> bool {
    address >> 118 == 0xfe80 >> 6
}

impl Packet {
    /// A SYN that answers nothing.
    pub(crate) fn opens_tcp(&self) -> bool {
        self.protocol == TCP && self.tcp_flags & SYN != 0 && self.tcp_flags & ACK == 0
    }

    /// Neither TCP, UDP nor the ICMP of its family.
    pub(crate) fn is_other(&self) -> bool {
        !matches!(self.protocol, TCP | UDP | ICMP | ICMPV6)
    }
}

pub(crate) fn parse(frame: &[u8]) -> Result<Parsed, Reason> {
    let mut packet = match be16(frame, 12)? {
        0x0800 => ipv4(frame)?,
        0x86dd => ipv6(frame)?,
        0x0806 => return Ok(Parsed::Arp(array(frame, 14)?)),
        0x8100 | 0x88a8 => return Err(Reason::Vlan),
        _ => return Err(Reason::EtherType),
    };
    if packet.place != Place::Later {
        transport(frame, &mut packet)?;
    }
    Ok(Parsed::Ip(packet))
}

fn empty(v4: bool, source: u128, destination: u128) -> Packet {
    Packet {
        v4,
        source,
        destination,
        protocol: 0,
        hops: 0,
        place: Place::Whole,
        fragment_id: 0,
        transport: 0,
        source_port: 0,
        destination_port: 0,
        tcp_flags: 0,
        icmp: None,
        icmp_id: 0,
    }
}

fn ipv4(frame: &[u8]) -> Result<Packet, Reason> {
    let header: [u8; 20] = array(frame, 14)?;
    let length = usize::from(header[0] & 15) * 4;
    if header[0] >> 4 != 4 || length < 20 {
        return Err(Reason::Malformed);
    }
    options(frame, 34, 14 + length)?;
    let mut packet = empty(true, mapped(array(frame, 26)?), mapped(array(frame, 30)?));
    packet.hops = header[8];
    packet.protocol = header[9];
    packet.transport = 14 + length;
    let fragment = be16(frame, 20)?;
    let (more, offset) = (fragment & 0x2000 != 0, fragment & 0x1fff);
    if more || offset != 0 {
        packet.fragment_id = u32::from(be16(frame, 18)?);
        packet.place = place(packet.protocol, offset)?;
    }
    Ok(packet)
}

/// At most eight options, no source route among them.
fn options(frame: &[u8], mut at: usize, end: usize) -> Result<(), Reason> {
    let mut seen = 0;
    while at < end {
        if seen == 8 {
            return Err(Reason::ExtensionHeader);
        }
        seen += 1;
        let option = bytes(frame, at, 2)?;
        match option[0] {
            0 => return Ok(()),
            1 => at += 1,
            131 | 137 => return Err(Reason::SourceRoute),
            _ if option[1] < 2 => return Err(Reason::Malformed),
            _ => at += usize::from(option[1]),
        }
    }
    // The last option is counted where it ends: eight are too many even if nothing follows.
    if seen == 8 {
        Err(Reason::ExtensionHeader)
    } else {
        Ok(())
    }
}

fn ipv6(frame: &[u8]) -> Result<Packet, Reason> {
    let header: [u8; 8] = array(frame, 14)?;
    if header[0] >> 4 != 6 {
        return Err(Reason::Malformed);
    }
    let source = u128::from_be_bytes(array(frame, 22)?);
    let destination = u128::from_be_bytes(array(frame, 38)?);
    if is_mapped(source) || is_mapped(destination) {
        return Err(Reason::Malformed);
    }
    let mut packet = empty(false, source, destination);
    packet.hops = header[7];
    let (mut next, mut at, mut headers) = (header[6], 54, 0);
    loop {
        if headers == 6 {
            return Err(Reason::ExtensionHeader);
        }
        headers += 1;
        match next {
            0 | 60 => {
                let extension = bytes(frame, at, 2)?;
                next = extension[0];
                at += (usize::from(extension[1]) + 1) * 8;
            }
            43 => return Err(Reason::SourceRoute),
            44 => {
                let extension: [u8; 8] = array(frame, at)?;
                if matches!(extension[0], 0 | 43 | 44 | 60) {
                    return Err(Reason::ExtensionHeader);
                }
                packet.protocol = extension[0];
                packet.transport = at + 8;
                let (more, offset) = (extension[3] & 1 != 0, be16(frame, at + 2)? >> 3);
                packet.fragment_id = u32::from_be_bytes(array(frame, at + 4)?);
                if more || offset != 0 {
                    packet.place = place(packet.protocol, offset)?;
                }
                return Ok(packet);
            }
            _ => {
                packet.protocol = next;
                packet.transport = at;
                return Ok(packet);
            }
        }
    }
}

/// `offset` in units of eight bytes.
fn place(protocol: u8, offset: u16) -> Result<Place, Reason> {
    match offset {
        0 => Ok(Place::First),
        // The rest of a TCP header that was cut (RFC 3128).
        1 if protocol == TCP => Err(Reason::Malformed),
        _ => Ok(Place::Later),
    }
}

fn transport(frame: &[u8], packet: &mut Packet) -> Result<(), Reason> {
    let at = packet.transport;
    match (packet.protocol, packet.v4) {
        (TCP, _) => {
            let header: [u8; 14] = array(frame, at)?;
            packet.source_port = be16(frame, at)?;
            packet.destination_port = be16(frame, at + 2)?;
            packet.tcp_flags = header[13];
            sensible(packet.tcp_flags)
        }
        (UDP, _) => {
            bytes(frame, at, 8)?;
            packet.source_port = be16(frame, at)?;
            packet.destination_port = be16(frame, at + 2)?;
            Ok(())
        }
        (ICMP, true) | (ICMPV6, false) => {
            let header: [u8; 8] = array(frame, at)?;
            packet.icmp = Some((icmp(header[0], packet.v4), header[0]));
            packet.icmp_id = be16(frame, at + 4)?;
            Ok(())
        }
        (ICMP, false) | (ICMPV6, true) => Err(Reason::Protocol),
        _ => Ok(()),
    }
}

/// Flags that some state of RFC 9293 sends.
fn sensible(flags: u8) -> Result<(), Reason> {
    let has = |flag: u8| flags & flag != 0;
    let never = has(SYN) && (has(FIN) || has(RST))
        || !(has(SYN) || has(ACK) || has(RST) || has(FIN))
        || has(FIN) && !has(ACK) && !has(RST);
    if never {
        return Err(Reason::TcpFlags);
    }
    Ok(())
}

/// What an ICMP type means (RFC 792, 1256, 4443, 4861).
pub(crate) fn icmp(kind: u8, v4: bool) -> Icmp {
    match (v4, kind) {
        (true, 8) | (false, 128) => Icmp::Request,
        (true, 0) | (false, 129) => Icmp::Reply,
        (true, 3 | 11 | 12) | (false, 1..=4) => Icmp::Error,
        (false, 135 | 136) => Icmp::Neighbour,
        (true, 5 | 9) | (false, 134 | 137) => Icmp::RouterClaim,
        _ => Icmp::Other,
    }
}

/// The packet that an ICMP error quotes, as far as a flow is known by it.
pub(crate) fn quoted(frame: &[u8], outer: &Packet) -> Result<Packet, Reason> {
    let at = outer.transport + 8;
    let mut inner = if outer.v4 {
        let header: [u8; 20] = array(frame, at)?;
        let length = usize::from(header[0] & 15) * 4;
        if header[0] >> 4 != 4 || length < 20 {
            return Err(Reason::Malformed);
        }
        let mut inner = empty(
            true,
            mapped(array(frame, at + 12)?),
            mapped(array(frame, at + 16)?),
        );
        inner.protocol = header[9];
        inner.transport = at + length;
        if be16(frame, at + 6)? & 0x1fff != 0 {
            return Err(Reason::IcmpUntracked);
        }
        inner
    } else {
        let header: [u8; 8] = array(frame, at)?;
        if header[0] >> 4 != 6 {
            return Err(Reason::Malformed);
        }
        let mut inner = empty(
            false,
            u128::from_be_bytes(array(frame, at + 8)?),
            u128::from_be_bytes(array(frame, at + 24)?),
        );
        inner.protocol = header[6];
        inner.transport = at + 40;
        if inner.protocol == 44 {
            let header: [u8; 8] = array(frame, inner.transport)?;
            if u16::from_be_bytes([header[2], header[3]]) / 8 != 0 {
                return Err(Reason::IcmpUntracked);
            }
            inner.protocol = header[0];
            inner.transport += 8;
        }
        inner
    };
    let at = inner.transport;
    let header: [u8; 8] = array(frame, at)?;
    match (inner.protocol, inner.v4) {
        (TCP | UDP, _) => {
            inner.source_port = be16(frame, at)?;
            inner.destination_port = be16(frame, at + 2)?;
        }
        (ICMP, true) | (ICMPV6, false) => {
            inner.icmp = Some((icmp(header[0], inner.v4), header[0]));
            inner.icmp_id = be16(frame, at + 4)?;
        }
        _ => return Err(Reason::IcmpUntracked),
    }
    match inner.icmp {
        None | Some((Icmp::Request | Icmp::Reply, _)) => Ok(inner),
        Some(_) => Err(Reason::IcmpUntracked),
    }
}
