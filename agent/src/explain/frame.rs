//! Frames to ask about: the first packet of a connection, and what is known of a frame that somebody else made.

use std::net::{IpAddr, Ipv6Addr};

use super::target::Protocol;

const ETHERNET: usize = 14;
const IPV4: [u8; 2] = [0x08, 0x00];
const IPV6: [u8; 2] = [0x86, 0xdd];
const ICMPV6: u8 = 58;
/// More than one hop is left, as on every packet that a host sends (RFC 1700).
const HOPS: u8 = 64;

/// What the first packet of a connection says.
#[derive(Clone, Copy, Debug)]
pub(super) struct Opening {
    pub(super) hardware_source: [u8; 6],
    pub(super) hardware_destination: [u8; 6],
    pub(super) source: IpAddr,
    pub(super) destination: IpAddr,
    pub(super) protocol: Protocol,
    /// Source port; the identifier of an echo.
    pub(super) sport: u16,
    pub(super) dport: u16,
}

/// The protocol number on the wire.
fn number(protocol: Protocol, v4: bool) -> u8 {
    if protocol == Protocol::ICMP && !v4 {
        ICMPV6
    } else {
        protocol.0
    }
}

impl Opening {
    /// The frame; `None` if the addresses are of two families. Checksums above IP are left out: no gate reads them.
    pub(super) fn frame(&self) -> Option<Vec<u8>> {
        let transport = self.transport();
        let mut frame = Vec::with_capacity(ETHERNET + 40 + transport.len());
        frame.extend(self.hardware_destination);
        frame.extend(self.hardware_source);
        match (self.source, self.destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                frame.extend(IPV4);
                // RFC 791 section 3.1: no options, no fragment.
                let mut header = [0; 20];
                header[0] = 0x45;
                // Twenty bytes and a transport header of at most twenty more.
                header[2..4].copy_from_slice(&(20 + transport.len() as u16).to_be_bytes());
                header[8] = HOPS;
                header[9] = number(self.protocol, true);
                header[12..16].copy_from_slice(&source.octets());
                header[16..20].copy_from_slice(&destination.octets());
                let sum = checksum(&header);
                header[10..12].copy_from_slice(&sum);
                frame.extend(header);
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                frame.extend(IPV6);
                // RFC 8200 section 3.
                frame.extend([0x60, 0, 0, 0]);
                frame.extend((transport.len() as u16).to_be_bytes());
                frame.extend([number(self.protocol, false), HOPS]);
                frame.extend(source.octets());
                frame.extend(destination.octets());
            }
            _ => return None,
        }
        frame.extend(transport);
        Some(frame)
    }

    fn transport(&self) -> Vec<u8> {
        let ports = [self.sport.to_be_bytes(), self.dport.to_be_bytes()].concat();
        match self.protocol {
            // RFC 9293 section 3.1: SYN, five words of header, a window.
            Protocol::TCP => {
                [&ports[..], &[0; 8], &[5 << 4, 0x02, 0xff, 0xff, 0, 0, 0, 0]].concat()
            }
            Protocol::UDP => [&ports[..], &8u16.to_be_bytes(), &[0; 2]].concat(),
            Protocol::ICMP => {
                // Echo request (RFC 792, RFC 4443 section 4.1).
                let kind = if self.source.is_ipv4() { 8 } else { 128 };
                [&[kind, 0, 0, 0][..], &self.sport.to_be_bytes(), &[0, 1]].concat()
            }
            _ => vec![0; 8],
        }
    }
}

/// RFC 1071.
fn checksum(header: &[u8; 20]) -> [u8; 2] {
    let mut sum: u32 = header
        .chunks_exact(2)
        .map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])))
        .sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    (!(sum as u16)).to_be_bytes()
}

/// Source and destination of a frame, as far as it is plain IP; gates say more about what is not.
pub(super) fn ends(frame: &[u8]) -> Option<(IpAddr, IpAddr)> {
    let (header, packet) = frame.split_at_checked(ETHERNET)?;
    let v4 = |bytes: &[u8]| <[u8; 4]>::try_from(bytes).ok().map(IpAddr::from);
    let v6 = |bytes: &[u8]| {
        let octets = <[u8; 16]>::try_from(bytes).ok()?;
        Some(Ipv6Addr::from(octets).to_canonical())
    };
    match [header[12], header[13]] {
        IPV4 => Some((v4(packet.get(12..16)?)?, v4(packet.get(16..20)?)?)),
        IPV6 => Some((v6(packet.get(8..24)?)?, v6(packet.get(24..40)?)?)),
        _ => None,
    }
}

/// Reads the hexadecimal digits of a frame; spaces, colons and line ends between them mean nothing.
///
/// # Errors
///
/// What is no digit, half a byte, or no frame.
pub fn from_hex(text: &str) -> Result<Vec<u8>, String> {
    let digits: Vec<u8> = text
        .trim()
        .trim_start_matches("0x")
        .chars()
        .filter(|c| !c.is_whitespace() && *c != ':')
        .map(|c| {
            c.to_digit(16)
                .and_then(|digit| u8::try_from(digit).ok())
                .ok_or_else(|| format!("`{c}` is no hexadecimal digit"))
        })
        .collect::<Result<_, _>>()?;
    if !digits.len().is_multiple_of(2) {
        return Err("an odd number of digits is no whole number of bytes".to_owned());
    }
    if digits.len() < 2 * ETHERNET {
        return Err(format!(
            "a frame begins with an Ethernet header of {ETHERNET} bytes, and this has {}",
            digits.len() / 2
        ));
    }
    Ok(digits
        .chunks_exact(2)
        .map(|pair| pair[0] << 4 | pair[1])
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn opening(source: &str, destination: &str, protocol: Protocol) -> Opening {
        Opening {
            hardware_source: [2, 0, 0, 0, 0, 2],
            hardware_destination: [2, 0, 0, 0, 0, 1],
            source: source.parse().expect("an address"),
            destination: destination.parse().expect("an address"),
            protocol,
            sport: 40000,
            dport: 443,
        }
    }

    #[test]
    fn frames_are_what_a_host_would_send() {
        let syn = opening("10.0.0.1", "10.0.0.7", Protocol::TCP)
            .frame()
            .expect("one family");
        // The checksum of the header was worked out apart from this code (RFC 1071).
        assert_eq!(
            syn,
            from_hex(
                "020000000001 020000000002 0800 45000028 00000000 400666c9 0a000001 0a000007 \
                 9c40 01bb 00000000 00000000 5002ffff 00000000"
            )
            .expect("digits")
        );
        let udp = opening("fd00::1", "fd00::7", Protocol::UDP)
            .frame()
            .expect("one family");
        assert_eq!(udp.len(), 14 + 40 + 8);
        assert_eq!((udp[20], udp[21]), (17, HOPS));
        let echo = opening("fd00::1", "fd00::7", Protocol::ICMP)
            .frame()
            .expect("one family");
        assert_eq!((echo[20], echo[54]), (ICMPV6, 128));
        for (source, destination) in [("10.0.0.1", "fd00::7"), ("fd00::1", "10.0.0.7")] {
            assert_eq!(
                opening(source, destination, Protocol::TCP).frame(),
                None,
                "two families"
            );
        }
    }

    #[test]
    fn the_ends_of_a_frame_are_found_again() {
        for (source, destination) in [("10.0.0.1", "10.0.0.7"), ("fd00::1", "fd00::7")] {
            let frame = opening(source, destination, Protocol::TCP)
                .frame()
                .expect("one family");
            assert_eq!(
                ends(&frame),
                Some((
                    source.parse().expect("an address"),
                    destination.parse().expect("an address")
                ))
            );
            assert_eq!(ends(&frame[..30]), None, "cut off");
        }
        assert_eq!(ends(&[0; 60]), None, "no IP");
    }

    #[test]
    fn hexadecimal_is_read_as_tools_print_it() {
        let bytes = from_hex("0x02:00:00:00:00:01 020000000002\n0800 FF").expect("a frame");
        assert_eq!(bytes.len(), 15);
        assert_eq!((bytes[0], bytes[14]), (2, 0xff));
        for (text, part) in [
            ("0g", "`g` is no hexadecimal digit"),
            ("020000000001 020000000002 0800 f", "an odd number"),
            ("0200", "Ethernet header of 14 bytes, and this has 2"),
        ] {
            let error = from_hex(text).expect_err(text);
            assert!(error.contains(part), "{text}: {error}");
        }
    }
}
