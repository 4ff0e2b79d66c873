//! What a gate must do with a frame, in the words of the specification: no eBPF, no code of the programs, and nothing
//! done for speed.

use std::collections::BTreeMap;

use agent_common::{Action, Direction, Identity, Path, Reason, Rule, RuleKey, Verdict};

use crate::parse::{self, ACK, FIN, Icmp, Packet, Parsed, Place, RST, SYN, TCP, UDP};
use crate::tables::{Owner, Tables};

/// Seconds in the kernel's unit.
pub(crate) const SECOND: u64 = 1_000_000_000;

/// Interface number of an owner that means this node itself.
const THIS_NODE: u32 = 1;

/// Ports of tunnels: VXLAN (RFC 7348), its older number, Geneve (RFC 8926).
pub(crate) const TUNNELS: [u16; 3] = [4789, 8472, 6081];

/// A connection, seen from the pod at whose gate it is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct FlowId {
    pub(crate) local: u128,
    pub(crate) remote: u128,
    pub(crate) local_port: u16,
    pub(crate) remote_port: u16,
    pub(crate) protocol: u8,
}

/// What is remembered of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Flow {
    /// Time of the last packet that kept it alive, nanoseconds.
    pub(crate) seen: u64,
    pub(crate) generation: u32,
    /// Who opened it.
    pub(crate) direction: Direction,
    pub(crate) action: Action,
    pub(crate) rule: u32,
    pub(crate) peer: Identity,
    pub(crate) marked: bool,
    pub(crate) path: Path,
    pub(crate) replied: bool,
    pub(crate) fin_opener: bool,
    pub(crate) fin_answerer: bool,
    pub(crate) reset: bool,
}

impl Flow {
    /// How long it may be idle, nanoseconds.
    pub(crate) fn timeout(&self, protocol: u8) -> u64 {
        SECOND
            * match protocol {
                TCP if self.reset => 10,
                TCP if self.fin_opener && self.fin_answerer => 120,
                TCP if !self.replied => 120,
                TCP => 7440,
                UDP if !self.replied => 30,
                UDP => 180,
                parse::ICMP | parse::ICMPV6 => 30,
                _ => 600,
            }
    }

    /// A packet of the connection came by at `now`, on its way `way`.
    fn note(&mut self, packet: &Packet, way: Direction, now: u64) {
        let closed = self.reset || self.fin_opener && self.fin_answerer;
        if !closed {
            self.seen = now;
        }
        let from_opener = way == self.direction;
        self.replied |= !from_opener;
        if packet.protocol == TCP {
            let fin = packet.tcp_flags & FIN != 0;
            self.fin_opener |= fin && from_opener;
            self.fin_answerer |= fin && !from_opener;
            self.reset |= packet.tcp_flags & RST != 0;
        }
    }
}

/// The fragments of one packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Split {
    gate: u32,
    source: u128,
    destination: u128,
    id: u32,
    protocol: u8,
    way: Direction,
}

/// What the first fragment told.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Note {
    Ports(u16, u16),
    Icmp { id: u16, kind: u8 },
}

/// A frame at a gate.
#[derive(Clone, Debug)]
pub(crate) struct Asked {
    /// Host-side interface of the pod.
    pub(crate) gate: u32,
    pub(crate) way: Direction,
    pub(crate) mark: u32,
    pub(crate) frame: Vec<u8>,
}

/// What one gate says of a frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Judged {
    pub(crate) gate: u32,
    pub(crate) cell: u32,
    pub(crate) way: Direction,
    pub(crate) path: Path,
    pub(crate) verdict: Verdict,
    pub(crate) reason: Reason,
    /// Who opened the connection; the way of the frame while nobody did.
    pub(crate) direction: Direction,
    pub(crate) local: Identity,
    pub(crate) peer: Identity,
    pub(crate) rule: u32,
    pub(crate) generation: u32,
    /// Whether the peer is known by the router's mark.
    pub(crate) marked: bool,
    /// The reason before the packet was steered.
    pub(crate) found: Reason,
}

/// The two ends of a connection that the router has accepted in the remote's place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ends {
    pub(crate) pod: u128,
    pub(crate) pod_port: u16,
    pub(crate) remote: u128,
    pub(crate) remote_port: u16,
}

/// What becomes of a frame, both gates together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Outcome {
    pub(crate) code: i32,
    /// The packet's mark afterwards.
    pub(crate) mark: u32,
    pub(crate) frame: Vec<u8>,
    pub(crate) judged: Vec<Judged>,
}

pub(crate) const UNSPEC: i32 = -1;
pub(crate) const SHOT: i32 = 2;
pub(crate) const REDIRECT: i32 = 7;

/// The node: its generations, and what its programs remember.
#[derive(Clone, Debug, Default)]
pub(crate) struct Model {
    pub(crate) generations: BTreeMap<u32, Tables>,
    /// 0 while none is active.
    pub(crate) active: u32,
    pub(crate) flows: BTreeMap<(u32, FlowId), Flow>,
    pub(crate) notes: BTreeMap<Split, Note>,
    /// Whether the router's transparent listeners are there, for IPv4 and IPv6.
    pub(crate) listeners: (bool, bool),
    /// The node's hardware address on each interface.
    pub(crate) hardware: BTreeMap<u32, [u8; 6]>,
    /// How many connections each rule decided.
    pub(crate) hits: BTreeMap<u32, u64>,
    /// Connections that the router has.
    pub(crate) connections: Vec<Ends>,
    /// Whether TCP connections that are older than the gates may be picked up from either side.
    pub(crate) picks_up: bool,
    /// A decision that an instant later could have been another.
    pub(crate) doubtful: bool,
}

/// What is found out about a frame while it is judged.
struct Case<'a> {
    asked: &'a Asked,
    now: u64,
    judged: Judged,
}

impl Model {
    /// Forgets what packets left behind.
    pub(crate) fn forget(&mut self) {
        self.flows.clear();
        self.notes.clear();
    }

    /// A generation is written; one that was before and is not active is not there any more.
    pub(crate) fn prepare(&mut self, generation: u32, tables: Tables) {
        self.abandon();
        self.generations.insert(generation, tables);
    }

    /// The generation that is written and not active.
    pub(crate) fn waiting(&self) -> Option<u32> {
        let mut numbers = self.generations.keys().copied();
        numbers.find(|number| *number > self.active)
    }

    /// What an explanation says of a judgement: it gives no socket anything, and does not look for any but the listener.
    pub(crate) fn explained(&self, asked: &Asked, judged: &Judged) -> (Verdict, Reason) {
        let governed = [Reason::ListenerMissing, Reason::SteerFailed];
        if judged.verdict != Verdict::Steer && !governed.contains(&judged.reason) {
            return (judged.verdict, judged.reason);
        }
        let (v4, v6) = self.listeners;
        if asked.frame[12..14] == [8, 0] && v4 || asked.frame[12..14] != [8, 0] && v6 {
            (Verdict::Steer, judged.found)
        } else {
            (Verdict::Drop, Reason::ListenerMissing)
        }
    }

    /// What was prepared is undone.
    pub(crate) fn abandon(&mut self) {
        let active = self.active;
        self.generations.retain(|number, _| *number == active);
    }

    /// What was prepared is active, and what was active is gone. A pod that lives on keeps its flows, a rule its count.
    pub(crate) fn flip(&mut self) {
        let before = self
            .generations
            .get(&self.active)
            .cloned()
            .unwrap_or_default();
        self.active = *self.generations.keys().max().expect("one is prepared");
        self.abandon();
        let now = self.generations[&self.active].clone();
        self.flows.retain(|(gate, _), _| {
            let who = |tables: &Tables| tables.pods.get(gate).map(|pod| (pod.identity, pod.mac));
            who(&before).is_some() && who(&before) == who(&now)
        });
        let rules = now.rules.values().flat_map(BTreeMap::values);
        let named: Vec<u32> = rules.map(Rule::id).collect();
        self.hits.retain(|rule, _| named.contains(rule));
    }

    fn tables(&self) -> &Tables {
        &self.generations[&self.active]
    }

    /// What becomes of a frame at `now`, and what is remembered of it.
    pub(crate) fn run(&mut self, asked: &Asked, now: u64) -> Outcome {
        let (judged, _) = self.gate(asked, now);
        let mut outcome = Outcome {
            code: if judged.verdict == Verdict::Drop {
                SHOT
            } else {
                UNSPEC
            },
            mark: asked.mark,
            frame: asked.frame.clone(),
            judged: vec![judged],
        };
        let governed = [Reason::ListenerMissing, Reason::SteerFailed];
        let judged = &outcome.judged[0];
        if judged.verdict == Verdict::Steer || governed.contains(&judged.reason) {
            outcome.mark = 0xca51_0000 | asked.mark & 0xffff;
        }
        if let Some(receiver) = self.receiver(asked, &outcome.judged[0]) {
            let (judged, _) = self.gate(&receiver, now);
            outcome.code = SHOT;
            if judged.verdict == Verdict::Pass {
                outcome.code = REDIRECT;
                self.forward(asked.gate, receiver.gate, &mut outcome.frame);
            }
            outcome.judged.push(judged);
        }
        outcome
    }

    /// What routing changes, unless the frame is addressed to somebody else on the link.
    fn forward(&self, from: u32, to: u32, frame: &mut [u8]) {
        let node = self.hardware[&from];
        if frame[..6] != node && frame[0] & 1 == 0 {
            return;
        }
        frame.copy_within(0..6, 6);
        frame[..6].copy_from_slice(&self.tables().pods[&to].mac);
        if frame[12..14] == [0x86, 0xdd] {
            frame[21] -= 1;
            return;
        }
        frame[22] -= 1;
        // RFC 1624, equation 3, for a word that is 0x0100 less.
        let sum = u32::from(!u16::from_be_bytes([frame[24], frame[25]])) + 0xfeff;
        let sum = !((sum & 0xffff) + (sum >> 16)) as u16;
        frame[24..26].copy_from_slice(&sum.to_be_bytes());
    }

    /// The second gate, if the first one judges it too.
    pub(crate) fn receiver(&self, asked: &Asked, sender: &Judged) -> Option<Asked> {
        let Ok(Parsed::Ip(packet)) = parse::parse(&asked.frame) else {
            return None;
        };
        if asked.way == Direction::Ingress
            || sender.verdict != Verdict::Pass
            // The router answers for the address, whosever it is.
            || sender.marked
            || matches!(sender.reason, Reason::Neighbour | Reason::IcmpError)
            || packet.place != Place::Whole
            || packet.hops <= 1
        {
            return None;
        }
        let tables = self.generations.get(&sender.generation)?;
        let owner = tables.owner(packet.destination)?;
        let local = owner.ifindex > THIS_NODE && owner.ifindex != asked.gate;
        (local && tables.pods.contains_key(&owner.ifindex)).then(|| Asked {
            gate: owner.ifindex,
            way: Direction::Ingress,
            mark: 0,
            frame: asked.frame.clone(),
        })
    }

    /// One gate.
    pub(crate) fn gate(&mut self, asked: &Asked, now: u64) -> (Judged, Option<Packet>) {
        let mut case = Case {
            asked,
            now,
            judged: Judged {
                gate: asked.gate,
                cell: 0,
                way: asked.way,
                path: Path::None,
                verdict: Verdict::Drop,
                reason: Reason::NoGeneration,
                direction: asked.way,
                local: Identity::NONE,
                peer: Identity::NONE,
                rule: 0,
                generation: self.active,
                marked: false,
                found: Reason::NoGeneration,
            },
        };
        let mut packet = None;
        let outcome = self.examine(&mut case, &mut packet);
        let mut judged = case.judged;
        judged.found = match outcome {
            Ok((_, reason)) | Err(reason) => reason,
        };
        (judged.verdict, judged.reason) = match outcome {
            Ok((Action::Deny, _)) => (Verdict::Drop, Reason::Denied),
            Ok((Action::Steer, reason)) if asked.way == Direction::Egress => {
                let packet = packet.as_ref().expect("what is governed was parsed");
                match self.steered(packet) {
                    Ok(()) => (Verdict::Steer, reason),
                    Err(reason) => (Verdict::Drop, reason),
                }
            }
            Ok((_, reason)) => (Verdict::Pass, reason),
            Err(reason) => (Verdict::Drop, reason),
        };
        (judged, packet)
    }

    /// What happens to a governed packet. A connection that the router has finds its socket by itself. A new one is given
    /// to the transparent listener, which the kernel refuses in a test run: only tc's own ingress may give sockets.
    fn steered(&self, packet: &Packet) -> Result<(), Reason> {
        let ends = Ends {
            pod: packet.source,
            pod_port: packet.source_port,
            remote: packet.destination,
            remote_port: packet.destination_port,
        };
        let (v4, v6) = self.listeners;
        match packet.protocol {
            TCP if self.connections.contains(&ends) => Ok(()),
            TCP if packet.v4 && v4 || !packet.v4 && v6 => Err(Reason::SteerFailed),
            TCP => Err(Reason::ListenerMissing),
            _ => Err(Reason::SteerProtocol),
        }
    }

    fn examine(
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
                return self.discovery(frame, &packet, kind, *gate, *way);
            }
            Some((Icmp::RouterClaim, _)) => return Err(Reason::RouterClaim),
            _ => {}
        }
        if parse::is_group(packet.destination, packet.v4) {
            return Err(Reason::Multicast);
        }
        self.fragments(&mut packet, *gate, *way)?;
        *kept = Some(packet.clone());
        match packet.icmp {
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
        }
    }

    /// The pod's end of the packet must be an address that the generation places behind the interface.
    fn own_address(&self, packet: &Packet, gate: u32, way: Direction) -> Result<(), Reason> {
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
        gate: u32,
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
        if fine {
            Ok((Action::Pass, Reason::Neighbour))
        } else {
            Err(Reason::NeighbourSpoofed)
        }
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

    fn fragments(&mut self, packet: &mut Packet, gate: u32, way: Direction) -> Result<(), Reason> {
        if packet.place == Place::Whole || packet.is_other() {
            return Ok(());
        }
        let split = Split {
            gate,
            source: packet.source,
            destination: packet.destination,
            id: packet.fragment_id,
            protocol: packet.protocol,
            way,
        };
        if packet.place == Place::First {
            let note = match packet.icmp {
                Some((Icmp::Error, _)) => return Err(Reason::Fragment),
                Some((_, kind)) => Note::Icmp {
                    id: packet.icmp_id,
                    kind,
                },
                None => Note::Ports(packet.source_port, packet.destination_port),
            };
            self.notes.insert(split, note);
            return Ok(());
        }
        match self.notes.get(&split) {
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

    /// Whether a flow is known still. Notes a decision that hangs on an instant.
    fn alive(&mut self, flow: &Flow, protocol: u8, now: u64) -> bool {
        let (idle, timeout) = (now.saturating_sub(flow.seen), flow.timeout(protocol));
        if idle.abs_diff(timeout) < SECOND / 2 {
            self.doubtful = true;
        }
        idle < timeout
    }

    fn icmp_error(&mut self, case: &mut Case<'_>, packet: &Packet) -> Result<(), Reason> {
        let inner = parse::quoted(&case.asked.frame, packet)?;
        let way = case.asked.way;
        let (own, claimed, back) = match way {
            Direction::Egress => (packet.source, inner.destination, Direction::Ingress),
            Direction::Ingress => (packet.destination, inner.source, Direction::Egress),
        };
        let elsewhere = way == Direction::Egress && packet.destination != inner.source;
        if own != claimed || elsewhere {
            return Err(Reason::IcmpUntracked);
        }
        let id = flow_id(&inner, back);
        let flow = *self
            .flows
            .get(&(case.asked.gate, id))
            .ok_or(Reason::IcmpUntracked)?;
        if !self.alive(&flow, id.protocol, case.now) {
            return Err(Reason::IcmpUntracked);
        }
        if flow.generation != self.active {
            // The connection would be judged again by its next packet.
            let mut judged = case.judged.clone();
            judged.direction = flow.direction;
            (_, judged.peer) = self
                .peer(Some(&flow), remote(&inner, back), 0, flow.direction)
                .map_err(|_| Reason::IcmpUntracked)?;
            let rule = self.rule(&judged, &inner, flow.direction == back);
            if rule.is_ok_and(|rule| rule.action() != Action::Deny) {
                return Ok(());
            }
            return Err(Reason::IcmpUntracked);
        }
        Ok(())
    }

    /// Known, known by an older generation, or new.
    fn connection(
        &mut self,
        case: &mut Case<'_>,
        packet: &Packet,
    ) -> Result<(Action, Reason), Reason> {
        let Asked { gate, way, .. } = *case.asked;
        let (now, active) = (case.now, self.active);
        let key = (gate, flow_id(packet, way));
        let known = match self.flows.get(&key).copied() {
            Some(flow) if self.known(&flow, packet, way, now) => Some(flow),
            _ => None,
        };
        if let Some(mut flow) = known.filter(|flow| flow.generation == active) {
            case.judged.direction = flow.direction;
            case.judged.peer = flow.peer;
            case.judged.rule = flow.rule;
            case.judged.path = flow.path;
            case.judged.marked = flow.marked;
            flow.note(packet, way, now);
            self.flows.insert(key, flow);
            return Ok((flow.action, Reason::Established));
        }
        self.own_address(packet, gate, way)?;
        let direction = known.map_or(way, |flow| flow.direction);
        if known.is_none() {
            if matches!(packet.icmp, Some((Icmp::Reply, _))) {
                return Err(Reason::IcmpUntracked);
            }
            let answers = packet.tcp_flags & (SYN | ACK) == SYN | ACK;
            if packet.protocol == TCP && answers {
                return Err(Reason::TcpState);
            }
        }
        case.judged.direction = direction;
        let judged = self.declared(case, known.as_ref(), packet);
        let rule = match judged {
            Ok(rule) => rule,
            Err(reason) => {
                if known.is_some() {
                    self.flows.remove(&key);
                }
                return Err(reason);
            }
        };
        let mut flow = known.unwrap_or(Flow {
            seen: now,
            generation: active,
            direction: case.judged.direction,
            action: rule.action(),
            rule: rule.id(),
            peer: case.judged.peer,
            marked: case.judged.marked,
            path: Path::None,
            replied: false,
            fin_opener: false,
            fin_answerer: false,
            reset: false,
        });
        flow.generation = active;
        flow.action = rule.action();
        flow.rule = rule.id();
        flow.peer = case.judged.peer;
        flow.path = case.judged.path;
        flow.note(packet, way, now);
        let resets = packet.protocol == TCP && packet.tcp_flags & RST != 0;
        if known.is_some() || !resets {
            self.flows.insert(key, flow);
        }
        let reason = match known {
            Some(_) => Reason::Established,
            None => Reason::Policy,
        };
        Ok((rule.action(), reason))
    }

    /// Who the peer is, and what is declared about it. While connections are picked up, a packet of none may be that of the
    /// side that was called.
    fn declared(
        &mut self,
        case: &mut Case<'_>,
        known: Option<&Flow>,
        packet: &Packet,
    ) -> Result<Rule, Reason> {
        let way = case.asked.way;
        self.meet(case, known, packet)?;
        let mut found = self.rule(&case.judged, packet, case.judged.direction == way);
        let unknown = known.is_none() && packet.protocol == TCP && !packet.opens_tcp();
        if self.picks_up && unknown && !case.judged.marked && found.is_err() {
            case.judged.direction = match way {
                Direction::Egress => Direction::Ingress,
                Direction::Ingress => Direction::Egress,
            };
            self.meet(case, known, packet)?;
            found = self.rule(&case.judged, packet, false);
        }
        let rule = found?;
        *self.hits.entry(rule.id()).or_default() += 1;
        case.judged.rule = rule.id();
        match rule.action() {
            Action::Deny => Err(Reason::Denied),
            Action::Steer if way == Direction::Egress && packet.protocol != TCP => {
                Err(Reason::SteerProtocol)
            }
            _ => Ok(rule),
        }
    }

    /// Notes who the peer is, and how the connection is counted.
    fn meet(
        &self,
        case: &mut Case<'_>,
        known: Option<&Flow>,
        packet: &Packet,
    ) -> Result<(), Reason> {
        let (way, direction) = (case.asked.way, case.judged.direction);
        let address = remote(packet, way);
        let mark = match way {
            Direction::Egress => 0,
            Direction::Ingress => case.asked.mark,
        };
        let (marked, peer) = self.peer(known, address, mark, direction)?;
        case.judged.marked = marked;
        case.judged.peer = peer;
        case.judged.path = self.path(direction, peer, address, case.judged.cell);
        Ok(())
    }

    fn known(&mut self, flow: &Flow, packet: &Packet, way: Direction, now: u64) -> bool {
        let after_reset = flow.reset && way == flow.direction;
        !packet.opens_tcp() && !after_reset && self.alive(flow, packet.protocol, now)
    }

    /// Whether the peer is known by a mark, and who it is.
    fn peer(
        &self,
        known: Option<&Flow>,
        address: u128,
        mark: u32,
        direction: Direction,
    ) -> Result<(bool, Identity), Reason> {
        match (known, mark >> 16) {
            (Some(flow), _) if flow.marked => return Ok((true, flow.peer)),
            (None, 0xca52) => return Ok((true, Identity::NORTH_GATE)),
            (None, 0xca53) => return Ok((true, Identity::WEST_GATE)),
            _ => {}
        }
        let owner = self.tables().owner(address).ok_or(Reason::UnknownPeer)?;
        let identity = if direction == Direction::Ingress && owner.ifindex == THIS_NODE {
            Identity::NODE
        } else {
            owner.identity
        };
        if identity == Identity::NONE {
            return Err(Reason::UnknownPeer);
        }
        Ok((false, identity))
    }

    /// What the pod's component declares about the connection of a packet, which its opener sent or the other side.
    fn rule(&self, judged: &Judged, packet: &Packet, from_opener: bool) -> Result<Rule, Reason> {
        let rules = self.tables().rules.get(&judged.local);
        let rules = rules.ok_or(Reason::NoPolicy)?;
        let (peer, direction) = (judged.peer, judged.direction);
        let protocol = packet.protocol;
        let port = match packet.icmp {
            Some((Icmp::Request | Icmp::Reply, _)) => 0,
            _ if from_opener => packet.destination_port,
            _ => packet.source_port,
        };
        let find =
            |port: u16, protocol: u8| rules.get(&RuleKey::new(peer, port, protocol, direction));
        let (found, otherwise) = if protocol == UDP && TUNNELS.contains(&port) {
            (Some(find(port, protocol)), Reason::Tunnel)
        } else if packet.is_other() {
            // 0 is a protocol of IPv4's, but in a rule it means any.
            let named = find(0, protocol).filter(|_| protocol != 0);
            (Some(named), Reason::Protocol)
        } else {
            (None, Reason::NotDeclared)
        };
        let found = found.unwrap_or_else(|| {
            find(port, protocol)
                .or_else(|| find(0, protocol))
                .or_else(|| find(0, 0))
        });
        found.copied().ok_or(otherwise)
    }

    fn path(&self, direction: Direction, peer: Identity, address: u128, cell: u32) -> Path {
        let platform = [Identity::NODE, Identity::OTHER_NODE, Identity::DNS].contains(&peer)
            || peer.raw() >> 24 == 3;
        let same_cell = self
            .tables()
            .owner(address)
            .is_some_and(|owner: Owner| owner.cell == cell);
        match direction {
            _ if platform => Path::Platform,
            _ if peer.is_component() && same_cell => Path::Intra,
            Direction::Ingress if peer == Identity::WEST_GATE || peer.is_component() => Path::West,
            Direction::Ingress => Path::North,
            Direction::Egress if peer == Identity::WEST_GATE || peer.is_component() => Path::East,
            Direction::Egress => Path::South,
        }
    }
}

fn remote(packet: &Packet, way: Direction) -> u128 {
    match way {
        Direction::Egress => packet.destination,
        Direction::Ingress => packet.source,
    }
}

/// The connection of a packet that goes `way`. An echo's ports are its identifier, and one more than the way of its
/// request (0 from the pod, 1 to it).
pub(crate) fn flow_id(packet: &Packet, way: Direction) -> FlowId {
    let (mut local_port, mut remote_port) = (packet.source_port, packet.destination_port);
    if way == Direction::Ingress {
        (local_port, remote_port) = (remote_port, local_port);
    }
    if let Some((kind, _)) = packet.icmp {
        local_port = packet.icmp_id;
        let from_pod = (kind == Icmp::Request) == (way == Direction::Egress);
        remote_port = if from_pod { 1 } else { 2 };
    }
    let (local, remote) = match way {
        Direction::Egress => (packet.source, packet.destination),
        Direction::Ingress => (packet.destination, packet.source),
    };
    FlowId {
        local,
        remote,
        local_port,
        remote_port,
        protocol: packet.protocol,
    }
}
