//! Frames that are no connection's packets: ARP, neighbour discovery, groups, other families, noise.

use super::parts::{discovery_options, extensions};
use super::{Asked, Frames};
use crate::build::{Datagram, arp, icmp};
use crate::parse::{ICMP, ICMPV6, is_mapped};
use crate::random::Random;

impl Frames<'_> {
    pub(super) fn arp(&self, random: &mut Random) -> Asked {
        let (ifindex, way) = self.any_gate(random);
        let home = self.home_of(ifindex);
        let own = random.pick(&home.addresses);
        let other = self.universe.address(random);
        let sender = random.pick(&[own, own, other, 0]);
        let target = random.pick(&[own, own, other]);
        let hardware = if random.percent(85) {
            home.mac
        } else {
            [2, 9, 9, 9, 9, 9]
        };
        let mut body = arp(random.pick(&[1, 2, 3]), hardware, sender, target);
        if random.percent(8) {
            let at = random.below(6);
            body[at] ^= random.byte();
        }
        self.frame((ifindex, way), 0x0806, &body, random)
    }

    /// Neighbour discovery, and claims to route.
    pub(super) fn neighbour(&self, random: &mut Random) -> Asked {
        let (ifindex, way) = self.any_gate(random);
        let home = self.home_of(ifindex);
        let link_local = 0xfe80_u128 << 112 | 7;
        let group = 0xff02_u128 << 112 | 0x1_ff00_0001;
        let some = |random: &mut Random| {
            let own = random.pick(&home.addresses);
            let other = self.universe.address(random);
            let wide = 0xff05_u128 << 112 | 2;
            random.pick(&[own, own, other, link_local, link_local, group, wide, 0])
        };
        let (source, destination, target) = (some(random), some(random), some(random));
        let kind = random.pick(&[135, 135, 136, 136, 133, 134, 137]);
        let mut rest = vec![0; 4];
        rest.extend(target.to_be_bytes());
        rest.extend(discovery_options(home.mac, random));
        let mut datagram = Datagram::new(source, destination, ICMPV6, icmp(kind, &rest));
        datagram.hops = random.pick(&[255, 255, 255, 64]);
        if random.percent(10) {
            datagram.extensions = extensions(random);
        }
        if random.percent(5) {
            datagram.fragment = Some((9, 0, random.percent(50)));
        }
        let mut body = datagram.bytes();
        if random.percent(6) {
            // The length of the payload.
            let at = random.pick(&[4, 5, 5]);
            body[at] = random.pick(&[0, body[at] ^ 8, body[at] ^ 4, 24]);
        }
        self.frame((ifindex, way), datagram.ether_type(), &body, random)
    }

    /// Messages that are neither echo, error nor discovery, and ICMP of the other family.
    pub(super) fn other_icmp(&mut self, random: &mut Random) -> Asked {
        let mut datagram = self.said(random);
        datagram.protocol = random.pick(&[ICMP, ICMPV6]);
        let kind = random.pick(&[0, 5, 8, 9, 10, 13, 17, 130, 133, 134, 137, 143, 255]);
        let id = random.pick(&[40000_u16, 40001]).to_be_bytes();
        datagram.payload = icmp(kind, &[id[0], id[1], 0, 1]);
        self.datagram(&datagram, random)
    }

    pub(super) fn group(&mut self, random: &mut Random) -> Asked {
        let mut datagram = self.said(random);
        datagram.destination = if is_mapped(datagram.source) {
            0xffff_0000_0000 | u128::from(random.pick(&[0xe000_0001_u32, !0, 0xf000_0001, 0]))
        } else {
            random.pick(&[0xff02 << 112 | 1, 0xff0e << 112 | 5, 0, 0xfe80 << 112 | 9])
        };
        self.datagram(&datagram, random)
    }

    /// Tags, and what is neither IP nor ARP.
    pub(super) fn ether_type(&mut self, random: &mut Random) -> Asked {
        let datagram = self.said(random);
        let gate = self.gate(datagram.source, datagram.destination, random);
        let kind = random.pick(&[0x8100, 0x88a8, 0x8847, 0x88b5, 0x8863, 0x0800, 0x86dd, 46]);
        let mut body = datagram.bytes();
        if kind == 0x8100 || kind == 0x88a8 {
            let inner = datagram.ether_type().to_be_bytes();
            body.splice(0..0, [0, 5, inner[0], inner[1]]);
        }
        self.frame(gate, kind, &body, random)
    }

    /// Source and destination of two families, or mapped addresses on the wire.
    pub(super) fn mixed_families(&mut self, random: &mut Random) -> Asked {
        let mut datagram = self.said(random);
        datagram.destination = self.universe.address(random);
        let gate = self.gate(datagram.source, datagram.destination, random);
        let kind = random.pick(&[0x0800, 0x86dd]);
        self.frame(gate, kind, &datagram.bytes(), random)
    }

    pub(super) fn noise(&self, random: &mut Random) -> Asked {
        let gate = self.any_gate(random);
        let length = random.within(2, 120);
        let kind = random.pick(&[0x0800, 0x86dd, 0x0806]);
        let mut body = random.bytes(length);
        body[0] = random.pick(&[0x45, 0x46, 0x60, 0]);
        self.frame(gate, kind, &body, random)
    }
}
