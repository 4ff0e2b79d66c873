//! Connections at a gate: known, known by an older generation, or new.

use agent_common::{Action, Direction, Identity, Path, Reason, Rule, RuleKey};

use super::flow::{Flow, flow_id, numbers, remote};
use super::{Asked, Case, Judged, Model, SECOND, THIS_NODE};
use crate::parse::{self, ACK, FIN, Icmp, Packet, RST, SYN, TCP, UDP};
use crate::tables::Owner;

/// Ports of tunnels: VXLAN (RFC 7348), its older number, Geneve (RFC 8926).
pub(crate) const TUNNELS: [u16; 3] = [4789, 8472, 6081];

/// How wide a rule is that is about this port: rules about any protocol are wider than others, and of these those about more
/// ports.
fn width(key: &RuleKey, port: u16, protocol: u8) -> Option<(bool, u32)> {
    let first = u32::from(key.port());
    let ports = match (key.width(), first) {
        (0, 0) => 1 << 16,
        (0, _) => 1,
        (1, _) => 16,
        (2, _) => 256,
        _ => 4096,
    };
    let about = key.protocol() == 0 || key.protocol() == protocol;
    let holds = (first..first + ports).contains(&port.into());
    (about && holds).then_some((key.protocol() == 0, ports))
}

/// Notes the ends of a known connection's halves. Whether the packet is the last one: an acknowledgement and nothing else, of
/// the second half's end, which acknowledged the first one's.
fn ended(flow: &mut Flow, frame: &[u8], packet: &Packet, way: Direction) -> bool {
    let (other_ended, flags) = match way == flow.direction {
        true => (flow.fin_answerer, packet.tcp_flags),
        false => (flow.fin_opener, packet.tcp_flags),
    };
    let Some((acknowledges, answer)) = numbers(frame, packet).filter(|_| packet.protocol == TCP)
    else {
        return false;
    };
    if flags & FIN == 0 {
        let only = flags & (ACK | SYN | RST) == ACK;
        return flow.last && only && acknowledges == flow.due;
    }
    if !other_ended {
        flow.due = answer;
    } else if !flow.last && acknowledges == flow.due {
        flow.last = true;
        flow.due = answer;
    }
    false
}

impl Model {
    /// Whether a flow is known still. Notes a decision that hangs on an instant.
    fn alive(&mut self, flow: &Flow, protocol: u8, now: u64) -> bool {
        let (idle, timeout) = (now.saturating_sub(flow.seen), flow.timeout(protocol));
        if idle.abs_diff(timeout) < SECOND / 2 {
            self.doubtful = true;
        }
        idle < timeout
    }

    pub(super) fn icmp_error(
        &mut self,
        case: &mut Case<'_>,
        packet: &Packet,
    ) -> Result<(), Reason> {
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
    pub(super) fn connection(
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
            let assured = flow.assured;
            flow.note(packet, way, now);
            let over = ended(&mut flow, &case.asked.frame, packet, way);
            // The pod that opened it may be told of the end once more.
            flow.assured &= !over;
            if over && (way, flow.direction) != (Direction::Egress, Direction::Egress) {
                self.flows.remove(&key);
            } else {
                self.flows.insert(key, flow);
                case.judged.current = flow.assured == assured;
            }
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
                // Who called is not forgotten while the other side may be taken for the caller.
                if known.is_some() && !self.picks_up {
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
            assured: packet.protocol == TCP && case.judged.direction == Direction::Egress,
            last: false,
            due: 0,
            agreement: None,
        });
        flow.due = 0;
        flow.agreement = None;
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
        let find = |peer: Identity, port: u16, protocol: u8| {
            rules.get(&RuleKey::new(peer, port, protocol, direction))
        };
        // Those about the peer go before those about anybody.
        let mut sides = [peer, RuleKey::ANYBODY].into_iter();
        let (found, otherwise) = if protocol == UDP && TUNNELS.contains(&port) {
            let named = sides.find_map(|side| find(side, port, protocol));
            (named, Reason::Tunnel)
        } else if packet.is_other() {
            // 0 is a protocol of IPv4's, but in a rule it means any.
            let named = find(peer, 0, protocol).filter(|_| protocol != 0);
            (named, Reason::Protocol)
        } else {
            let all = rules
                .iter()
                .filter(|(key, _)| key.direction() == Some(direction));
            let found = sides.find_map(|side| {
                let of = all.clone().filter(|(key, _)| key.peer() == side);
                let about = of.filter_map(|(key, rule)| Some((width(key, port, protocol)?, rule)));
                about.min_by_key(|(width, _)| *width).map(|(_, rule)| rule)
            });
            (found, Reason::NotDeclared)
        };
        // What is not restricted is not so in any protocol.
        let anything = || find(RuleKey::ANYBODY, 0, 0);
        found.or_else(anything).copied().ok_or(otherwise)
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
