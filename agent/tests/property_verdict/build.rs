//! Frames, byte by byte.

use crate::parse::{ICMP, ICMPV6, TCP, UDP, is_mapped};

/// An IP packet to be built. Everything that is wrong with it on purpose is done to its bytes afterwards.
#[derive(Clone, Debug)]
pub(crate) struct Datagram {
    pub(crate) source: u128,
    pub(crate) destination: u128,
    pub(crate) protocol: u8,
    pub(crate) hops: u8,
    /// Identification, offset in units of eight bytes, whether more follow.
    pub(crate) fragment: Option<(u32, u16, bool)>,
    /// IPv4 options, a multiple of four bytes; or IPv6 extension headers as (number, bytes from the length on).
    pub(crate) options: Vec<u8>,
    pub(crate) extensions: Vec<(u8, Vec<u8>)>,
    pub(crate) payload: Vec<u8>,
}

impl Datagram {
    pub(crate) fn new(source: u128, destination: u128, protocol: u8, payload: Vec<u8>) -> Self {
        Self {
            source,
            destination,
            protocol,
            hops: 64,
            fragment: None,
            options: Vec::new(),
            extensions: Vec::new(),
            payload,
        }
    }

    /// The packet without its Ethernet header.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        if is_mapped(self.source) {
            self.v4()
        } else {
            self.v6()
        }
    }

    fn v4(&self) -> Vec<u8> {
        let length = 20 + self.options.len();
        let (id, offset, more) = self.fragment.unwrap_or((0x1234, 0, false));
        let mut packet = vec![0x40 | (length / 4) as u8, 0];
        packet.extend(((length + self.payload.len()) as u16).to_be_bytes());
        packet.extend((id as u16).to_be_bytes());
        packet.extend((offset | u16::from(more) << 13).to_be_bytes());
        packet.extend([self.hops, self.protocol, 0, 0]);
        packet.extend((self.source as u32).to_be_bytes());
        packet.extend((self.destination as u32).to_be_bytes());
        packet.extend(&self.options);
        let sum = checksum(&packet).to_be_bytes();
        packet[10..12].copy_from_slice(&sum);
        packet.extend(&self.payload);
        packet
    }

    fn v6(&self) -> Vec<u8> {
        let mut numbers: Vec<u8> = self.extensions.iter().map(|(number, _)| *number).collect();
        if self.fragment.is_some() {
            numbers.push(44);
        }
        numbers.push(self.protocol);
        let mut body = Vec::new();
        for (at, (_, bytes)) in self.extensions.iter().enumerate() {
            body.push(numbers[at + 1]);
            body.extend(bytes);
        }
        if let Some((id, offset, more)) = self.fragment {
            body.extend([self.protocol, 0]);
            body.extend((offset << 3 | u16::from(more)).to_be_bytes());
            body.extend(id.to_be_bytes());
        }
        body.extend(&self.payload);
        let mut packet = vec![0x60, 0, 0, 0];
        packet.extend((body.len() as u16).to_be_bytes());
        packet.extend([numbers[0], self.hops]);
        packet.extend(self.source.to_be_bytes());
        packet.extend(self.destination.to_be_bytes());
        packet.extend(body);
        packet
    }

    pub(crate) fn ether_type(&self) -> u16 {
        if is_mapped(self.source) {
            0x0800
        } else {
            0x86dd
        }
    }
}

/// The Internet checksum (RFC 1071) of an even number of bytes.
pub(crate) fn checksum(bytes: &[u8]) -> u16 {
    let mut sum: u32 = bytes
        .chunks_exact(2)
        .map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])))
        .sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

pub(crate) fn ethernet(destination: [u8; 6], source: [u8; 6], kind: u16, body: &[u8]) -> Vec<u8> {
    let mut frame = destination.to_vec();
    frame.extend(source);
    frame.extend(kind.to_be_bytes());
    frame.extend(body);
    frame
}

pub(crate) fn tcp(source: u16, destination: u16, flags: u8) -> Vec<u8> {
    let mut header = source.to_be_bytes().to_vec();
    header.extend(destination.to_be_bytes());
    header.extend([0, 0, 0, 1, 0, 0, 0, 2, 0x50, flags, 0xff, 0xff, 0, 0, 0, 0]);
    header
}

pub(crate) fn udp(source: u16, destination: u16) -> Vec<u8> {
    let mut header = source.to_be_bytes().to_vec();
    header.extend(destination.to_be_bytes());
    header.extend([0, 8, 0, 0]);
    header
}

/// `rest` is what follows the checksum.
pub(crate) fn icmp(kind: u8, rest: &[u8]) -> Vec<u8> {
    let mut message = vec![kind, 0, 0, 0];
    message.extend(rest);
    message
}

pub(crate) fn echo(v4: bool, request: bool, id: u16) -> Vec<u8> {
    let kind = match (v4, request) {
        (true, true) => 8,
        (true, false) => 0,
        (false, true) => 128,
        (false, false) => 129,
    };
    let mut rest = id.to_be_bytes().to_vec();
    rest.extend([0, 1, 0xab, 0xcd]);
    icmp(kind, &rest)
}

/// Protocol number of ICMP for the family of an address.
pub(crate) fn icmp_of(address: u128) -> u8 {
    if is_mapped(address) { ICMP } else { ICMPV6 }
}

/// An ARP packet for Ethernet and IPv4.
pub(crate) fn arp(operation: u8, hardware: [u8; 6], sender: u128, target: u128) -> Vec<u8> {
    let mut body = vec![0, 1, 8, 0, 6, 4, 0, operation];
    body.extend(hardware);
    body.extend((sender as u32).to_be_bytes());
    body.extend([0; 6]);
    body.extend((target as u32).to_be_bytes());
    body
}

/// A transport header of the protocol; others get some bytes.
pub(crate) fn transport(protocol: u8, source: u16, destination: u16, flags: u8) -> Vec<u8> {
    match protocol {
        TCP => tcp(source, destination, flags),
        UDP => udp(source, destination),
        _ => udp(source, destination).repeat(3),
    }
}
