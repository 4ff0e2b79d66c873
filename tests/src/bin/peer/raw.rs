//! One packet through a raw socket: a source address of the sender's choice, and no connect hook on the way.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    time::Instant,
};

use ::tests::peer::Outcome;
use anyhow::{Context as _, Result, bail};
use clap::{Args, ValueEnum};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

#[derive(Clone, Copy, ValueEnum)]
enum Transport {
    /// A datagram with the text.
    Udp,
    /// A SYN; the text is not sent.
    Tcp,
}

/// The packet.
#[derive(Args)]
pub(crate) struct Options {
    /// The source that the packet claims.
    #[arg(long, value_name = "ADDR:PORT")]
    from: SocketAddr,
    /// The destination.
    #[arg(long, value_name = "ADDR:PORT")]
    to: SocketAddr,
    /// What the packet carries.
    #[arg(long, value_enum, default_value = "udp")]
    transport: Transport,
    /// The datagram's text.
    #[arg(long, default_value = "hello")]
    text: String,
}

const UDP: u8 = 17;
const TCP: u8 = 6;

/// Sends; `sent` says that the kernel took the packet, not that it went anywhere.
pub(crate) fn send(options: &Options) -> Result<()> {
    let start = Instant::now();
    let packet = packet(options)?;
    let domain = if options.to.is_ipv4() {
        Domain::IPV4
    } else {
        Domain::IPV6
    };
    // Protocol 255 is IPPROTO_RAW: the socket sends what it is given and receives nothing (raw(7)).
    let socket = Socket::new(domain, Type::RAW, Some(Protocol::from(255)))
        .context("failed to open a raw socket")?;
    match options.to {
        SocketAddr::V4(_) => socket.set_header_included_v4(true)?,
        SocketAddr::V6(_) => socket.set_header_included_v6(true)?,
    }
    // A raw socket of IPv6 takes a protocol where a port would be, and 0 for "as opened".
    let to = SockAddr::from(SocketAddr::new(options.to.ip(), 0));
    match socket.send_to(&packet, &to) {
        Ok(_) => Outcome::new("sent", start.elapsed()).print(),
        Err(error) => Outcome::of_error(&error.into(), start.elapsed()).print(),
    }
}

fn packet(options: &Options) -> Result<Vec<u8>> {
    let (protocol, mut segment) = match options.transport {
        Transport::Udp => (UDP, datagram(options)?),
        Transport::Tcp => (TCP, syn(options)),
    };
    let checksum_at = match options.transport {
        Transport::Udp => 6,
        Transport::Tcp => 16,
    };
    let length = u16::try_from(segment.len()).context("the text is too long for one packet")?;
    let mut pseudo = Vec::new();
    match (options.from.ip(), options.to.ip()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            pseudo.extend_from_slice(&from.octets());
            pseudo.extend_from_slice(&to.octets());
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            pseudo.extend_from_slice(&from.octets());
            pseudo.extend_from_slice(&to.octets());
        }
        _ => bail!("--from and --to are of different families"),
    }
    // The pseudo header's sum does not depend on where its words are, so one layout does for both families.
    pseudo.extend_from_slice(&u16::from(protocol).to_be_bytes());
    pseudo.extend_from_slice(&length.to_be_bytes());
    pseudo.extend_from_slice(&segment);
    let sum = checksum(&pseudo);
    segment[checksum_at..checksum_at + 2].copy_from_slice(&sum.to_be_bytes());

    let mut packet = match (options.from.ip(), options.to.ip()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => ipv4(from, to, protocol, length)?,
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            let mut header = vec![0x60, 0, 0, 0];
            header.extend_from_slice(&length.to_be_bytes());
            header.extend_from_slice(&[protocol, 64]);
            header.extend_from_slice(&from.octets());
            header.extend_from_slice(&to.octets());
            header
        }
        _ => bail!("--from and --to are of different families"),
    };
    packet.extend_from_slice(&segment);
    Ok(packet)
}

/// RFC 791, section 3.1, without options.
fn ipv4(from: Ipv4Addr, to: Ipv4Addr, protocol: u8, payload: u16) -> Result<Vec<u8>> {
    let total = payload
        .checked_add(20)
        .context("the text is too long for one packet")?;
    let mut header = vec![0x45, 0];
    header.extend_from_slice(&total.to_be_bytes());
    header.extend_from_slice(&[0, 1, 0, 0, 64, protocol, 0, 0]);
    header.extend_from_slice(&from.octets());
    header.extend_from_slice(&to.octets());
    let sum = checksum(&header);
    header[10..12].copy_from_slice(&sum.to_be_bytes());
    Ok(header)
}

/// RFC 768, with a checksum yet to be filled in.
fn datagram(options: &Options) -> Result<Vec<u8>> {
    let length =
        u16::try_from(8 + options.text.len()).context("the text is too long for one packet")?;
    let mut bytes = Vec::new();
    bytes.extend_from_slice(&options.from.port().to_be_bytes());
    bytes.extend_from_slice(&options.to.port().to_be_bytes());
    bytes.extend_from_slice(&length.to_be_bytes());
    bytes.extend_from_slice(&[0, 0]);
    bytes.extend_from_slice(options.text.as_bytes());
    Ok(bytes)
}

/// RFC 9293, section 3.1: a SYN without options, its checksum yet to be filled in.
fn syn(options: &Options) -> Vec<u8> {
    let mut bytes = Vec::new();
    bytes.extend_from_slice(&options.from.port().to_be_bytes());
    bytes.extend_from_slice(&options.to.port().to_be_bytes());
    bytes.extend_from_slice(&1_u32.to_be_bytes());
    bytes.extend_from_slice(&0_u32.to_be_bytes());
    bytes.extend_from_slice(&[0x50, 0x02, 0xff, 0xff, 0, 0, 0, 0]);
    bytes
}

/// RFC 1071.
fn checksum(bytes: &[u8]) -> u16 {
    let mut sum: u32 = bytes
        .chunks(2)
        .map(|pair| {
            u32::from(u16::from_be_bytes([
                pair[0],
                pair.get(1).copied().unwrap_or(0),
            ]))
        })
        .sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).unwrap_or(u16::MAX)
}

#[cfg(test)]
mod tests {
    use super::checksum;

    #[test]
    fn the_checksum_of_a_checked_header_is_zero() {
        // The example header of RFC 1071's companions: 45 00 00 73 .. c0 a8 00 c7, sum b861.
        let header = [
            0x45, 0, 0, 0x73, 0, 0, 0x40, 0, 0x40, 0x11, 0xb8, 0x61, 0xc0, 0xa8, 0, 1, 0xc0, 0xa8,
            0, 0xc7,
        ];
        assert_eq!(checksum(&header), 0);
    }
}
