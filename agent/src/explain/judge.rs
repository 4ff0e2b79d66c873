//! From a question in people's words to the answers of the gates.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use agent_common::{Direction, Reason, Verdict};

use super::answer::{AskError, End, Explanation, Family, GateAnswer, Question};
use super::frame::{self, Opening};
use super::names::Names;
use super::target::{Gate, Place, Protocol, Target};
use crate::datapath::{Answer, Asked, Explainer};

/// Source ports that are tried until one has no connection yet.
const SOURCE_PORTS: std::ops::Range<u16> = 61_000..61_064;
/// The node's end of a pair, as far as gates care: they do not.
const NODE_MAC: [u8; 6] = [0x02, 0, 0, 0, 0, 1];

fn question<T>(message: impl Into<String>) -> Result<T, AskError> {
    Err(AskError::Question(message.into()))
}

/// An end as it was found.
struct Side {
    address: IpAddr,
    ifindex: Option<u32>,
}

/// Asks a generation; 0 stands for the active one.
///
/// # Errors
///
/// [`AskError::Question`] for names that mean nothing, [`AskError::Kernel`] when the pinned programs do not answer.
pub fn answer(
    explainer: &Explainer,
    names: &Names,
    generation: u32,
    question: &Question,
) -> Result<Explanation, AskError> {
    let active = explainer.active()?;
    let judge = Judge {
        explainer,
        names,
        generation: if generation == 0 { active } else { generation },
        active,
    };
    match question {
        Question::Connection {
            from,
            to,
            sport,
            family,
        } => judge.connection(from, to, *sport, *family),
        Question::Frame {
            bytes,
            at,
            sent,
            mark,
        } => judge.frame(bytes, at, *sent, *mark),
    }
}

struct Judge<'a> {
    explainer: &'a Explainer,
    names: &'a Names,
    generation: u32,
    active: u32,
}

impl Judge<'_> {
    fn connection(
        &self,
        from: &Place,
        to: &Target,
        sport: Option<u16>,
        family: Option<Family>,
    ) -> Result<Explanation, AskError> {
        let senders = self.sides(from)?;
        let receivers = self.sides(&to.place)?;
        let pair = [Family::V4, Family::V6]
            .into_iter()
            .filter(|wanted| family.is_none_or(|family| family == *wanted))
            .find_map(|family| {
                let of = |sides: &[Side]| {
                    sides
                        .iter()
                        .position(|side| Family::of(&side.address) == family)
                };
                Some((of(&senders)?, of(&receivers)?))
            });
        let Some((sender, receiver)) = pair else {
            return question(format!(
                "{from} and {} have no address of the same IP version{}",
                to.place,
                if family.is_some() {
                    " that was asked for"
                } else {
                    ""
                }
            ));
        };
        let (sender, receiver) = (&senders[sender], &receivers[receiver]);
        let router = match from {
            Place::Router(gate) => Some(*gate),
            _ => None,
        };
        let mac = match sender.ifindex {
            Some(ifindex) => self.explainer.pod(self.generation, ifindex)?,
            None => None,
        }
        .map_or(NODE_MAC, |pod| pod.mac);
        let tried = match sport {
            Some(port) => port..=port,
            None => SOURCE_PORTS.start..=SOURCE_PORTS.end - 1,
        };
        let mut explanation = self.blank(Some((sender, receiver)));
        for sport in tried {
            let opening = Opening {
                hardware_source: mac,
                hardware_destination: NODE_MAC,
                source: sender.address,
                destination: receiver.address,
                protocol: to.protocol,
                sport,
                dport: to.port,
            };
            let Some(frame) = opening.frame() else {
                return question("the two ends have addresses of two IP versions");
            };
            explanation.sport = Some(sport);
            explanation.gates = self.walk(&frame, sender.ifindex, receiver.ifindex, router)?;
            let open = |gate: &GateAnswer| gate.reason == Reason::Established.name();
            if !explanation.gates.iter().any(open) {
                break;
            }
        }
        if to.protocol.has_ports() {
            explanation.dport = Some(to.port);
        } else if to.protocol != Protocol::ICMP {
            explanation.sport = None;
        }
        explanation.protocol = Some(to.protocol.to_string());
        self.conclude(&mut explanation, &[sender.ifindex, receiver.ifindex]);
        Ok(explanation)
    }

    fn frame(
        &self,
        bytes: &[u8],
        at: &Place,
        sent: bool,
        mark: Option<Gate>,
    ) -> Result<Explanation, AskError> {
        let sides = self.sides(at)?;
        let Some(ifindex) = sides.first().and_then(|side| side.ifindex) else {
            return question(format!("{at} is no pod of this node"));
        };
        let ends = frame::ends(bytes);
        let mut explanation = match ends {
            Some((source, destination)) => {
                self.blank(Some((&self.side(source)?, &self.side(destination)?)))
            }
            None => self.blank(None),
        };
        let (sender, receiver) = match (sent, ends) {
            (true, Some((_, destination))) => (Some(ifindex), self.side(destination)?.ifindex),
            (true, None) => (Some(ifindex), None),
            (false, _) => (None, Some(ifindex)),
        };
        explanation.gates = self.walk(bytes, sender, receiver, mark)?;
        self.conclude(&mut explanation, &[sender, receiver]);
        Ok(explanation)
    }

    /// Both gates, as far as there are any.
    fn walk(
        &self,
        frame: &[u8],
        sender: Option<u32>,
        receiver: Option<u32>,
        router: Option<Gate>,
    ) -> Result<Vec<GateAnswer>, AskError> {
        let mut gates = Vec::new();
        let mut passes = true;
        let mut router = router;
        if let Some(ifindex) = sender
            && let Some(answer) = self.ask(frame, Direction::Egress, ifindex, 0)?
        {
            passes = answer.verdict != Verdict::Drop;
            if answer.verdict == Verdict::Steer {
                // The pod will hear from the router, if from anybody.
                router = Some(Gate::West);
            }
            gates.push(self.gate("sender", ifindex, &answer, None, true));
        }
        if let Some(ifindex) = receiver.filter(|receiver| Some(*receiver) != sender)
            && let Some(answer) = self.ask(
                frame,
                Direction::Ingress,
                ifindex,
                router.map_or(0, Gate::mark),
            )?
        {
            gates.push(self.gate("receiver", ifindex, &answer, router, passes));
        }
        Ok(gates)
    }

    /// What a gate says; `None` where there is none.
    fn ask(
        &self,
        frame: &[u8],
        way: Direction,
        ifindex: u32,
        mark: u32,
    ) -> Result<Option<Answer>, AskError> {
        let known = self.explainer.pod(self.generation, ifindex)?.is_some();
        if !known && !self.explainer.has_gates(ifindex) {
            return Ok(None);
        }
        Ok(Some(self.explainer.judge(&Asked {
            way,
            ifindex,
            mark,
            generation: self.generation,
            frame,
        })?))
    }

    fn gate(
        &self,
        gate: &str,
        ifindex: u32,
        answer: &Answer,
        router: Option<Gate>,
        reached: bool,
    ) -> GateAnswer {
        let rule = self.names.rules.get(&answer.rule);
        let rule = rule.cloned().unwrap_or_default();
        GateAnswer {
            gate: gate.to_owned(),
            interface: self.interface(ifindex),
            ifindex,
            component: self.names.identity(answer.local),
            reached,
            router_as: router.map(|gate| gate.to_string()),
            verdict: answer.verdict.to_string(),
            reason: answer.reason.to_string(),
            direction: answer.path.to_string(),
            opened: answer.direction.to_string(),
            peer: self.names.identity(answer.peer),
            rule: answer.rule,
            declared: rule.text,
            document: rule.document,
            field: rule.field,
            generation: answer.generation,
        }
    }

    /// Every address that a place means, those of this node's pods first.
    fn sides(&self, place: &Place) -> Result<Vec<Side>, AskError> {
        let mut sides = Vec::new();
        match place {
            Place::Address(address) => sides.push(self.side(*address)?),
            Place::Router(gate) => {
                let own = |family| {
                    self.names
                        .gates
                        .iter()
                        .find(|(of, address)| of == gate && Family::of(address) == family)
                        .map(|(_, address)| *address)
                };
                // The mark says who it is; an address is only needed to fill the packet (RFC 5737, RFC 3849).
                let filler = [
                    own(Family::V4).unwrap_or(Ipv4Addr::new(192, 0, 2, 1).into()),
                    own(Family::V6)
                        .unwrap_or(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1).into()),
                ];
                sides.extend(filler.map(|address| Side {
                    address,
                    ifindex: None,
                }));
            }
            Place::Name(name) => {
                if let Some(pod) = self.names.pod_at(place) {
                    sides.extend(pod.addresses.iter().map(|address| Side {
                        address: *address,
                        ifindex: Some(pod.ifindex),
                    }));
                } else {
                    let (_, addresses) = self.names.component(name).or_else(question)?;
                    for address in addresses {
                        sides.push(self.side(*address)?);
                    }
                }
                if sides.is_empty() {
                    return question(format!("{name} has no address"));
                }
            }
        }
        sides.sort_by_key(|side| side.ifindex.is_none());
        Ok(sides)
    }

    fn side(&self, address: IpAddr) -> Result<Side, AskError> {
        let owner = self.explainer.owner(self.generation, address)?;
        let ifindex = owner.and_then(|owner| owner.local_pod()).or_else(|| {
            // A pod that is no cell's is known by name only.
            let pod = self.names.pod_at(&Place::Address(address))?;
            Some(pod.ifindex)
        });
        Ok(Side { address, ifindex })
    }

    fn blank(&self, ends: Option<(&Side, &Side)>) -> Explanation {
        Explanation {
            generation: self.generation,
            active: self.generation == self.active,
            verdict: String::new(),
            from: ends.map(|(from, _)| self.end(from)),
            to: ends.map(|(_, to)| self.end(to)),
            protocol: None,
            sport: None,
            dport: None,
            gates: Vec::new(),
            notes: Vec::new(),
        }
    }

    fn end(&self, side: &Side) -> End {
        let who = match self.explainer.owner(self.generation, side.address) {
            Ok(Some(owner)) => self.names.identity(owner.identity()),
            // The gates' own answer is the one that counts.
            Ok(None) | Err(_) => "nobody".to_owned(),
        };
        End {
            address: side.address,
            who,
            interface: side.ifindex.map(|ifindex| self.interface(ifindex)),
        }
    }

    fn interface(&self, ifindex: u32) -> String {
        self.names
            .pods
            .iter()
            .find(|pod| pod.ifindex == ifindex && !pod.interface.is_empty())
            .map_or_else(
                || format!("interface {ifindex}"),
                |pod| pod.interface.clone(),
            )
    }

    /// The gates together, and what they leave open.
    fn conclude(&self, explanation: &mut Explanation, interfaces: &[Option<u32>]) {
        let gates = &explanation.gates;
        let decided = gates
            .iter()
            .find(|gate| gate.verdict != Verdict::Pass.name())
            .or(gates.last());
        explanation.verdict = decided
            .map_or("not_judged", |gate| &gate.verdict)
            .to_owned();
        let notes = &mut explanation.notes;
        if self.generation == 0 {
            notes.push("no generation is active: every packet of a guarded pod is dropped".into());
        }
        if gates.is_empty() {
            notes.push(
                "neither end is a pod of this node's cells, so no gate of this node judges it"
                    .into(),
            );
        }
        for ifindex in interfaces.iter().copied().flatten() {
            if !gates.iter().any(|gate| gate.ifindex == ifindex)
                && matches!(self.explainer.pod(self.generation, ifindex), Ok(None))
                && !self.explainer.has_gates(ifindex)
            {
                notes.push(format!(
                    "the pod behind {} is no cell's and has no gates",
                    self.interface(ifindex)
                ));
            }
        }
        if gates
            .iter()
            .any(|gate| gate.reason == Reason::Established.name())
        {
            notes.push(
                "a connection with these ports is open: the answer is what its next packet gets"
                    .into(),
            );
        }
        if gates
            .iter()
            .any(|gate| gate.verdict == Verdict::Steer.name())
        {
            notes.push(
                "the router answers the connection and decides by name, path and what the caller declared"
                    .into(),
            );
        }
    }
}
