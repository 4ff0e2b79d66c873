//! Parts of packets, and what goes wrong with them.

use crate::build::{Datagram, icmp, icmp_of};
use crate::parse::{ACK, FIN, RST, SYN, is_mapped};
use crate::random::Random;

/// Flags as a connection has them, and any others.
pub(super) fn flags(first: bool, random: &mut Random) -> u8 {
    const PSH: u8 = 8;
    if random.percent(8) {
        return random.byte();
    }
    let usual = [
        (if first { 30 } else { 2 }, SYN),
        (if first { 2 } else { 25 }, SYN | ACK),
        (40, ACK),
        (15, ACK | PSH),
        (8, FIN | ACK),
        (2, RST),
        (2, RST | ACK),
    ];
    random.weighted(&usual)
}

/// Some error about a packet, from its receiver to its sender.
pub(super) fn quote(quoted: &Datagram, random: &mut Random) -> Datagram {
    let kind = if is_mapped(quoted.source) {
        random.pick(&[3, 11, 12])
    } else {
        random.pick(&[1, 2, 3, 4])
    };
    let mut rest = vec![0; 4];
    rest.extend(quoted.bytes());
    let keep = random.pick(&[60, 100, 1000]);
    rest.truncate(keep);
    Datagram::new(
        quoted.destination,
        quoted.source,
        icmp_of(quoted.source),
        icmp(kind, &rest),
    )
}

/// IPv4 options, padded to four bytes.
pub(super) fn options(random: &mut Random) -> Vec<u8> {
    let mut options = Vec::new();
    for _ in 0..random.within(1, 8) {
        match random.below(16) {
            0 => options.push(0),
            1 => options.extend([131, 7, 4, 10, 77, 0, 9]),
            2 => options.extend([137, 7, 4, 10, 77, 0, 9]),
            3 => options.extend([7, random.byte() & 3]),
            4..8 => options.extend([148, 4, 0, 0]),
            _ => options.push(1),
        }
    }
    options.truncate(40);
    let padded = options.len().next_multiple_of(4);
    options.resize(padded, 0);
    options
}

/// IPv6 extension headers, each without its first byte, which names the next.
pub(super) fn extensions(random: &mut Random) -> Vec<(u8, Vec<u8>)> {
    (0..random.within(1, 7))
        .map(|_| {
            let number = random.weighted(&[(12, 60), (4, 0), (1, 43), (1, 44), (1, 51)]);
            let units = random.pick(&[0, 0, 0, 1, 3]);
            let mut bytes = vec![units];
            bytes.extend([1, 4, 0, 0, 0, 0]);
            bytes.extend(vec![0; usize::from(units) * 8]);
            (number, bytes)
        })
        .collect()
}

/// Options of neighbour discovery: mostly what a host sends, and what is wrong with lengths and addresses.
pub(super) fn discovery_options(mac: [u8; 6], random: &mut Random) -> Vec<u8> {
    let count = random.weighted(&[(10, 0), (20, 1), (6, 2), (2, 7), (2, 8), (1, 9), (1, 12)]);
    let mut options = Vec::new();
    for _ in 0..count {
        let kind = random.weighted(&[(8, 1), (8, 2), (6, 14), (1, 0), (1, 3), (1, 255)]);
        let units = match count {
            0..=2 => random.weighted(&[(30, 1), (2, 2), (1, 4), (1, 0)]),
            _ => 1,
        };
        let mut address = mac;
        if random.percent(if count < 3 { 15 } else { 2 }) {
            address[random.below(6)] ^= 1 << random.below(8);
        }
        options.extend([kind, units]);
        options.extend(address);
        let more = usize::from(units).saturating_sub(1) * 8;
        options.extend(random.bytes(more));
    }
    if random.percent(8) {
        // What is cut, or left over.
        let length = (options.len() + random.below(8)).saturating_sub(random.below(8));
        options.resize(length, 0);
    }
    options
}

/// Cuts a frame, or changes some of its bits or bytes. What is left can be told to a program: an Ethernet header and more.
pub(super) fn spoil(frame: &mut Vec<u8>, random: &mut Random) {
    match random.below(4) {
        0 => {
            let length = random.within(SHORTEST, frame.len().max(SHORTEST));
            frame.truncate(length);
        }
        1 | 2 => {
            for _ in 0..random.within(1, 3) {
                let at = random.below(frame.len().min(80));
                frame[at] ^= 1 << random.below(8);
            }
        }
        _ => {
            let at = random.below(frame.len().min(80));
            frame[at] = random.byte();
        }
    }
}

/// The kernel runs no program on a frame that ends with its Ethernet header.
const SHORTEST: usize = 15;
