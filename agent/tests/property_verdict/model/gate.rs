//! One gate, up to where connections begin: parsing, the link's own protocols, fragments.

use agent_common::{Action, Direction, Reason};

use super::flow::{Note, Split};
use super::{Asked, Case, Model, THIS_NODE};
use crate::parse::{self, Icmp, Packet, Parsed, Place};

impl Model {
    pub(super) fn examine(
        &mut self,
        case: &mut Case<'_>,
        kept: &mut Option<Packet>,
    ) -> Result<(Action, Reason), Reason> {
        if self.active == 0 {
            return Err(Reason::NoGeneration);
        }
        let Asked {
            gate, way, frame, ..
        } = case.asked;
        let pod = *self.tables().pods.get(gate).ok_or(Reason::NoEndpoint)?;
        case.judged.cell = pod.cell;
        case.judged.local = pod.identity;
        let hardware = parse::bytes(frame, 0, 14)?;
        if *way == Direction::Egress && hardware[6..12] != pod.mac {
            return Err(Reason::MacSpoofed);
        }
        let mut packet = match parse::parse(frame)? {
            Parsed::Arp(body) => return self.arp(&body, *gate, *way, pod.mac),
            Parsed::Ip(packet) => packet,
        };
        match packet.icmp {
            Some((Icmp::Neighbour, kind)) => {
                return self.discovery(frame, &packet, kind, (*gate, pod.mac), *way);
            }
            Some((Icmp::RouterClaim, _)) => return Err(Reason::RouterClaim),
            _ => {}
        }
        if parse::is_group(packet.destination, packet.v4) {
            return Err(Reason::Multicast);
        }
        self.fragments(&mut packet, *gate, *way)?;
        *kept = Some(packet.clone());
        let judged = match packet.icmp {
            Some((Icmp::Error, _)) => {
                self.own_address(&packet, *gate, *way)?;
                self.icmp_error(case, &packet)
                    .map(|()| (Action::Pass, Reason::IcmpError))
            }
            Some((Icmp::Other, _)) => {
                self.own_address(&packet, *gate, *way)?;
                Err(Reason::IcmpType)
            }
            _ => self.connection(case, &packet),
        };
        if packet.place == Place::First
            && matches!(judged, Ok((action, _)) if action != Action::Deny)
        {
            self.note(&packet, *gate, *way);
        }
        judged
    }

    /// The pod's end of the packet must be an address that the generation places behind the interface.
    pub(super) fn own_address(
        &self,
        packet: &Packet,
        gate: u32,
        way: Direction,
    ) -> Result<(), Reason> {
        let (own, otherwise) = match way {
            Direction::Egress => (packet.source, Reason::Spoofed),
            Direction::Ingress => (packet.destination, Reason::WrongDestination),
        };
        if self.owns(own, gate) {
            Ok(())
        } else {
            Err(otherwise)
        }
    }

    fn owns(&self, address: u128, gate: u32) -> bool {
        self.tables()
            .owner(address)
            .is_some_and(|owner| owner.ifindex == gate)
    }

    fn arp(
        &self,
        body: &[u8; 28],
        gate: u32,
        way: Direction,
        mac: [u8; 6],
    ) -> Result<(Action, Reason), Reason> {
        if body[..6] != [0, 1, 8, 0, 6, 4] {
            return Err(Reason::Malformed);
        }
        let sender = [body[14], body[15], body[16], body[17]];
        let target = [body[24], body[25], body[26], body[27]];
        let claimed = if way == Direction::Ingress || sender == [0; 4] {
            target
        } else {
            sender
        };
        let hardware = way == Direction::Ingress || body[8..14] == mac;
        if hardware && self.owns(parse::mapped(claimed), gate) {
            Ok((Action::Pass, Reason::Neighbour))
        } else {
            Err(Reason::ArpSpoofed)
        }
    }

    fn discovery(
        &self,
        frame: &[u8],
        packet: &Packet,
        kind: u8,
        (gate, mac): (u32, [u8; 6]),
        way: Direction,
    ) -> Result<(Action, Reason), Reason> {
        let target = u128::from_be_bytes(parse::array(frame, packet.transport + 8)?);
        if packet.hops != 255 {
            return Err(Reason::Malformed);
        }
        let advertises = kind == 136;
        let mine = |address: u128| parse::is_link_local(address) || self.owns(address, gate);
        let fine = match way {
            Direction::Egress => {
                let nobody = packet.source == 0;
                self.stays_on_link(packet.destination)
                    && (nobody || mine(packet.source))
                    && (!(advertises || nobody) || mine(target))
            }
            Direction::Ingress if advertises => {
                parse::is_group(packet.destination, false) || mine(packet.destination)
            }
            Direction::Ingress => mine(target),
        };
        if !fine {
            return Err(Reason::NeighbourSpoofed);
        }
        if way == Direction::Egress {
            link_layer(frame, packet, mac)?;
        }
        Ok((Action::Pass, Reason::Neighbour))
    }

    fn stays_on_link(&self, address: u128) -> bool {
        if parse::is_group(address, false) {
            return (address >> 112) & 15 == 2;
        }
        parse::is_link_local(address)
            || self
                .tables()
                .owner(address)
                .is_some_and(|owner| owner.ifindex == THIS_NODE)
    }

    fn fragments(&self, packet: &mut Packet, gate: u32, way: Direction) -> Result<(), Reason> {
        match (packet.place, packet.icmp) {
            _ if packet.is_other() => return Ok(()),
            (Place::First, Some((Icmp::Error, _))) => return Err(Reason::Fragment),
            (Place::Whole | Place::First, _) => return Ok(()),
            (Place::Later, _) => {}
        }
        match self.notes.get(&Split::of(packet, gate, way)) {
            None => return Err(Reason::Fragment),
            Some(Note::Ports(source, destination)) => {
                packet.source_port = *source;
                packet.destination_port = *destination;
            }
            Some(Note::Icmp { id, kind }) => {
                packet.icmp = Some((parse::icmp(*kind, packet.v4), *kind));
                packet.icmp_id = *id;
            }
        }
        Ok(())
    }

    /// What the later fragments of a packet that may pass will need.
    fn note(&mut self, packet: &Packet, gate: u32, way: Direction) {
        if packet.is_other() {
            return;
        }
        let note = match packet.icmp {
            Some((_, kind)) => Note::Icmp {
                id: packet.icmp_id,
                kind,
            },
            None => Note::Ports(packet.source_port, packet.destination_port),
        };
        self.notes.insert(Split::of(packet, gate, way), note);
    }
}

/// At most eight options (RFC 4861, section 4.6), which fill the packet to its end, and a source or target link-layer address
/// among them is the pod's, as Ethernet has it (RFC 2464, section 6).
fn link_layer(frame: &[u8], packet: &Packet, mac: [u8; 6]) -> Result<(), Reason> {
    const IPV6: usize = 14 + 40;
    let length = u16::from_be_bytes(parse::array(frame, 18)?);
    let payload = parse::bytes(frame, IPV6, length.into())?;
    let mut options = payload
        .get(packet.transport - IPV6 + 24..)
        .ok_or(Reason::Malformed)?;
    for seen in 0.. {
        if options.is_empty() {
            break;
        }
        if seen == 8 {
            return Err(Reason::ExtensionHeader);
        }
        let [kind, units, ..] = *options else {
            return Err(Reason::Malformed);
        };
        let size = 8 * usize::from(units);
        if size == 0 || size > options.len() {
            return Err(Reason::Malformed);
        }
        let (option, rest) = options.split_at(size);
        if (kind == 1 || kind == 2) && option[2..] != mac {
            return Err(Reason::NeighbourSpoofed);
        }
        options = rest;
    }
    Ok(())
}
