//! Random frames: mostly the packets of conversations between addresses of the universe, and everything that a pod could
//! send instead.

use std::collections::BTreeMap;

use agent_common::Direction;

use crate::build::{Datagram, echo, ethernet, icmp_of, transport};
use crate::model::{Asked, TUNNELS};
use crate::parse::{ICMP, ICMPV6, TCP, UDP, is_mapped};
use crate::random::Random;
use crate::tables::Tables;
use crate::universe::{Home, OTHER_PROTOCOLS, PORTS, Universe};

mod others;
mod parts;

use parts::{extensions, flags, options, quote, spoil};

/// Two ends that have something to say to each other. `a` begins.
#[derive(Clone, Copy, Debug)]
struct Talk {
    a: (u128, u16),
    b: (u128, u16),
    protocol: u8,
}

/// A fragmented packet whose first fragment was sent.
#[derive(Clone, Debug)]
struct Split {
    gate: u32,
    way: Direction,
    datagram: Datagram,
}

/// Where frames come from, and what was said so far.
pub(crate) struct Frames<'a> {
    pub(crate) universe: &'a Universe,
    /// The hardware address of each pod's host-side interface.
    host_mac: &'a BTreeMap<u32, [u8; 6]>,
    /// The generation that is active.
    pub(crate) tables: Tables,
    talks: Vec<Talk>,
    splits: Vec<Split>,
}

/// Numbers of a TCP segment: each side sends the same bytes again and again, and acknowledges the other's end mostly.
fn number(header: &mut [u8], first: bool, random: &mut Random) {
    const STARTS: [u32; 2] = [1_000_000, 0xffff_ffff];
    let (own, other) = (STARTS[usize::from(first)], STARTS[usize::from(!first)]);
    let acknowledged = random.pick(&[1, 1, 1, 0, 9, 101]);
    header[4..8].copy_from_slice(&own.to_be_bytes());
    header[8..12].copy_from_slice(&other.wrapping_add(acknowledged).to_be_bytes());
}

const HOPS: [u8; 6] = [64, 64, 255, 2, 1, 0];

impl<'a> Frames<'a> {
    pub(crate) fn new(universe: &'a Universe, host_mac: &'a BTreeMap<u32, [u8; 6]>) -> Self {
        Self {
            universe,
            host_mac,
            tables: Tables::default(),
            talks: Vec::new(),
            splits: Vec::new(),
        }
    }

    /// The next frame, and the gate where it is seen.
    pub(crate) fn next(&mut self, random: &mut Random) -> Asked {
        let mut asked = match random.below(100) {
            0..62 => self.conversation(random),
            62..70 => self.fragment(random),
            70..80 => self.error(random),
            80..84 => self.arp(random),
            84..88 => self.neighbour(random),
            88..92 => self.other_icmp(random),
            92..95 => self.group(random),
            95..97 => self.ether_type(random),
            97..99 => self.mixed_families(random),
            _ => self.noise(random),
        };
        if random.percent(9) {
            spoil(&mut asked.frame, random);
        }
        asked
    }

    /// The gate that an end's packet passes: the sender's, or the receiver's.
    fn gate(&self, source: u128, destination: u128, random: &mut Random) -> (u32, Direction) {
        let sender = self.universe.home(source);
        let receiver = self.universe.home(destination);
        match (sender, receiver) {
            (Some(home), None) => (home.ifindex, Direction::Egress),
            (None, Some(home)) => (home.ifindex, Direction::Ingress),
            (Some(sender), Some(_)) if random.percent(60) => (sender.ifindex, Direction::Egress),
            (Some(_), Some(receiver)) => (receiver.ifindex, Direction::Ingress),
            (None, None) => self.any_gate(random),
        }
    }

    fn any_gate(&self, random: &mut Random) -> (u32, Direction) {
        let home = &self.universe.homes[random.below(self.universe.homes.len())];
        let way = random.pick(&[Direction::Egress, Direction::Ingress]);
        (home.ifindex, way)
    }

    fn home_of(&self, gate: u32) -> &'a Home {
        let mut homes = self.universe.homes.iter();
        homes
            .find(|home| home.ifindex == gate)
            .expect("gates are those of the universe's pods")
    }

    /// Puts a packet into a frame at a gate; now and then at another one, from another hardware address, with a mark.
    fn frame(&self, gate: (u32, Direction), kind: u16, body: &[u8], random: &mut Random) -> Asked {
        let (mut ifindex, mut way) = gate;
        if random.percent(2) {
            (ifindex, way) = self.any_gate(random);
        }
        let (pod, host) = (self.home_of(ifindex).mac, self.host_mac[&ifindex]);
        let other = [2, 9, 9, 9, 9, random.byte()];
        let (mut source, mut destination) = match way {
            Direction::Egress => (pod, host),
            Direction::Ingress => (host, pod),
        };
        if random.percent(2) {
            source = random.pick(&[other, host, pod]);
        }
        if random.percent(8) {
            destination = random.pick(&[other, [0xff; 6], pod, host]);
        }
        let mark = match random.below(20) {
            0 | 1 => 0xca52_0000,
            2 | 3 => 0xca53_0000 | u32::from(random.byte()),
            4 => random.pick(&[0xca51_0000, 0xca54_0000, 0xca52, 7, 0xca53_0000 ^ 1 << 31]),
            _ => 0,
        };
        Asked {
            gate: ifindex,
            way,
            mark,
            frame: ethernet(destination, source, kind, body),
        }
    }

    fn datagram(&self, datagram: &Datagram, random: &mut Random) -> Asked {
        let gate = self.gate(datagram.source, datagram.destination, random);
        self.frame(gate, datagram.ether_type(), &datagram.bytes(), random)
    }

    /// Another address of the same family.
    fn companion(&self, of: u128, random: &mut Random) -> u128 {
        loop {
            let address = self.universe.address(random);
            if is_mapped(address) == is_mapped(of) {
                return address;
            }
        }
    }

    fn talk(&mut self, random: &mut Random) -> Talk {
        if !self.talks.is_empty() && random.percent(88) {
            // The latest ones are in the middle of something.
            let from = self.talks.len().saturating_sub(12);
            let from = if random.percent(70) { from } else { 0 };
            return self.talks[random.within(from, self.talks.len() - 1)];
        }
        let declared = self.universe.declared(&self.tables, random);
        let (a, b, port, protocol) = match declared {
            Some(declared) if random.percent(75) => declared,
            _ => {
                let a = self.universe.address(random);
                let b = self.companion(a, random);
                let protocol = match random.below(20) {
                    0..11 => TCP,
                    11..16 => UDP,
                    16..19 => icmp_of(a),
                    _ => random.pick(&OTHER_PROTOCOLS),
                };
                (a, b, random.pick(&PORTS), protocol)
            }
        };
        let talk = Talk {
            a: (a, random.pick(&[40000, 40001, 53, TUNNELS[0]])),
            b: (b, port),
            protocol,
        };
        self.talks.push(talk);
        talk
    }

    /// The next packet of some conversation.
    fn said(&mut self, random: &mut Random) -> Datagram {
        let talk = self.talk(random);
        let first = random.percent(60);
        let (from, to) = if first {
            (talk.a, talk.b)
        } else {
            (talk.b, talk.a)
        };
        let payload = if talk.protocol == icmp_of(from.0) {
            let request = first != random.percent(10);
            echo(is_mapped(from.0), request, talk.a.1)
        } else {
            let flags = flags(first, random);
            let mut payload = transport(talk.protocol, from.1, to.1, flags);
            if talk.protocol == TCP {
                number(&mut payload, first, random);
            }
            let more = random.pick(&[0, 0, 0, 8, 100, 1200]);
            payload.extend(random.bytes(more));
            payload
        };
        let mut datagram = Datagram::new(from.0, to.0, talk.protocol, payload);
        datagram.hops = random.pick(&HOPS);
        datagram
    }

    fn conversation(&mut self, random: &mut Random) -> Asked {
        let mut datagram = self.said(random);
        match random.below(20) {
            0 if is_mapped(datagram.source) => datagram.options = options(random),
            0 | 1 if !is_mapped(datagram.source) => datagram.extensions = extensions(random),
            // An atomic fragment, which is whole.
            2 => datagram.fragment = Some((random.bits() as u32, 0, false)),
            // A source that is not the pod's.
            3 if random.percent(40) => {
                let gate = self.gate(datagram.source, datagram.destination, random);
                datagram.source = self.companion(datagram.source, random);
                return self.frame(gate, datagram.ether_type(), &datagram.bytes(), random);
            }
            _ => {}
        }
        self.datagram(&datagram, random)
    }

    /// First fragments, those that follow them, and those that follow none.
    fn fragment(&mut self, random: &mut Random) -> Asked {
        if !self.splits.is_empty() && random.percent(60) {
            let from = self.splits.len().saturating_sub(5);
            let mut split = self.splits[random.within(from, self.splits.len() - 1)].clone();
            let (id, _, _) = split.datagram.fragment.unwrap_or_default();
            let id = if random.percent(90) { id } else { id ^ 1 };
            let offset = random.pick(&[1, 2, 3, 100, 0x1fff, 0]);
            split.datagram.fragment = Some((id, offset, random.percent(50)));
            let length = random.below(40);
            split.datagram.payload = random.bytes(length);
            let body = split.datagram.bytes();
            let kind = split.datagram.ether_type();
            return self.frame((split.gate, split.way), kind, &body, random);
        }
        let mut datagram = self.said(random);
        if random.percent(10) {
            datagram.protocol = random.pick(&[ICMP, ICMPV6, 132, 60, 44, 0]);
        }
        if random.percent(10) {
            datagram.payload = quote(&datagram, random).payload;
            datagram.protocol = icmp_of(datagram.source);
        }
        if random.percent(15) && !is_mapped(datagram.source) {
            datagram.extensions = extensions(random);
        }
        datagram.fragment = Some((random.bits() as u32, 0, true));
        let (gate, way) = self.gate(datagram.source, datagram.destination, random);
        let split = Split {
            gate,
            way,
            datagram: datagram.clone(),
        };
        self.splits.push(split);
        self.frame(
            (gate, way),
            datagram.ether_type(),
            &datagram.bytes(),
            random,
        )
    }

    /// An ICMP error about something that was said, to its sender, by whom it was said to or by anybody.
    fn error(&mut self, random: &mut Random) -> Asked {
        let mut quoted = self.said(random);
        if random.percent(8) {
            quoted.options = vec![1; 4];
        }
        if random.percent(8) {
            let place = if random.percent(70) { 0 } else { 2 };
            quoted.fragment = Some((7, place, true));
        }
        if random.percent(5) {
            quoted = quote(&quoted, random);
        }
        let mut error = quote(&quoted, random);
        match random.below(12) {
            0 | 1 => error.source = self.companion(error.source, random),
            2 => error.destination = self.companion(error.source, random),
            _ => {}
        }
        // A router on the way complains: only the sender of what is quoted sees that.
        let gate = match self.universe.home(error.destination) {
            Some(home) if random.percent(60) => (home.ifindex, Direction::Ingress),
            _ => self.gate(error.source, error.destination, random),
        };
        self.frame(gate, error.ether_type(), &error.bytes(), random)
    }
}
