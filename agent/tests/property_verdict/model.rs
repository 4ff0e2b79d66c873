//! What a gate must do with a frame, in the words of the specification: no eBPF, no code of the programs, and nothing
//! done for speed.

use std::collections::BTreeMap;

use agent_common::{Action, Direction, Identity, Path, Reason, Rule, Verdict};

use crate::parse::{self, FIN, Packet, Parsed, Place, RST, TCP};
use crate::tables::Tables;

mod connection;
mod flow;
mod gate;

pub(crate) use connection::TUNNELS;
use flow::{Agreement, Note, Split, flow_id};
pub(crate) use flow::{Flow, FlowId};

/// Seconds in the kernel's unit.
pub(crate) const SECOND: u64 = 1_000_000_000;

/// The longest step of the kernel's clock of ticks.
const TICK: u64 = SECOND / 100;

/// Interface number of an owner that means this node itself.
const THIS_NODE: u32 = 1;

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
    /// Whether this generation knew the connection before, and still does.
    pub(crate) current: bool,
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
    /// What the receiver's gate would have said, if it was not asked.
    pub(crate) unasked: Option<Judged>,
}

impl Outcome {
    /// What each gate says to whoever asks it.
    pub(crate) fn said(&self) -> impl Iterator<Item = &Judged> {
        let sender = self.judged.iter().take(1);
        let receiver = self.unasked.as_ref().or(self.judged.get(1));
        sender.chain(receiver)
    }
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

    /// What was prepared is active, and what was active is gone. A pod that lives on keeps its flows and what is
    /// remembered of its fragments, a rule its count.
    pub(crate) fn flip(&mut self) {
        let before = self
            .generations
            .get(&self.active)
            .cloned()
            .unwrap_or_default();
        self.active = *self.generations.keys().max().expect("one is prepared");
        self.abandon();
        let now = self.generations[&self.active].clone();
        let lives_on = |gate: u32| {
            let who = |tables: &Tables| tables.pods.get(&gate).map(|pod| (pod.identity, pod.mac));
            who(&before).is_some() && who(&before) == who(&now)
        };
        self.flows.retain(|(gate, _), _| lives_on(*gate));
        self.notes.retain(|split, _| lives_on(split.gate));
        let rules = now.rules.values().flat_map(BTreeMap::values);
        let named: Vec<u32> = rules.map(Rule::id).collect();
        self.hits.retain(|rule, _| named.contains(rule));
    }

    fn tables(&self) -> &Tables {
        &self.generations[&self.active]
    }

    /// What becomes of a frame some time in `span`, and what is remembered of it.
    pub(crate) fn run(&mut self, asked: &Asked, span: (u64, u64)) -> Outcome {
        let (judged, packet) = self.gate(asked, span.0);
        let mut outcome = Outcome {
            code: if judged.verdict == Verdict::Drop {
                SHOT
            } else {
                UNSPEC
            },
            mark: asked.mark,
            frame: asked.frame.clone(),
            judged: vec![judged],
            unasked: None,
        };
        let governed = [Reason::ListenerMissing, Reason::SteerFailed];
        let judged = &outcome.judged[0];
        if judged.verdict == Verdict::Steer || governed.contains(&judged.reason) {
            outcome.mark = 0xca51_0000 | asked.mark & 0xffff;
        }
        if let Some(receiver) = self.receiver(asked, &outcome.judged[0]) {
            let packet = packet.expect("what goes to a pod was parsed");
            let (judged, unasked) = self.second(&outcome.judged[0], &packet, &receiver, span);
            outcome.code = SHOT;
            if judged.verdict == Verdict::Pass {
                outcome.code = REDIRECT;
                self.forward(asked.gate, receiver.gate, &mut outcome.frame);
            }
            outcome.judged.push(judged);
            outcome.unasked = unasked;
        }
        outcome
    }

    /// The receiver's gate in the sender's program: what it says or, if it has said so of the flow a moment ago and learns
    /// nothing new, what it said; and then what it would say.
    fn second(
        &mut self,
        sender: &Judged,
        packet: &Packet,
        receiver: &Asked,
        span: (u64, u64),
    ) -> (Judged, Option<Judged>) {
        let sent = (sender.gate, flow_id(packet, Direction::Egress));
        let got = (receiver.gate, flow_id(packet, Direction::Ingress));
        let flow = self.flows.get(&sent).copied().filter(|_| sender.current);
        let agreement = flow.and_then(|flow| {
            let agreement = flow.agreement?;
            let tcp = packet.protocol == TCP;
            let ends = tcp && packet.tcp_flags & FIN != 0;
            let resets = tcp && packet.tcp_flags & RST != 0;
            let replies = flow.direction == Direction::Ingress;
            let news = ends && !agreement.ended
                || resets && !agreement.reset
                || replies && !agreement.replied;
            (!news).then_some(agreement)
        });
        // The kernel counts ticks, of which the first and the last are not whole.
        let (oldest, newest) = agreement.map_or((0, 0), |agreement| {
            let (from, to) = agreement.asked;
            (span.1 - from, span.0.saturating_sub(to))
        });
        let surely = agreement.is_some() && oldest + 2 * TICK < SECOND / 8;
        let never = agreement.is_none() || newest > SECOND / 8 + 2 * TICK;

        let before = self.flows.get(&got).copied();
        let hits = self.hits.clone();
        let (judged, _) = self.gate(receiver, span.0);
        // Whoever was asked may have noted more than the time: another end of a half, or the last packet.
        let timeless = |flow: Option<Flow>| flow.map(|flow| Flow { seen: 0, ..flow });
        let unchanged = timeless(before) == timeless(self.flows.get(&got).copied());
        let same = agreement.is_some_and(|agreement| {
            let passed = judged.current && judged.verdict == Verdict::Pass;
            passed && judged.path == agreement.path && unchanged
        });
        if never || same && !surely {
            let other = self.flows.get(&got).copied().filter(|_| judged.current);
            if let Some(other) = other
                && let Some(flow) = self.flows.get_mut(&sent).filter(|_| sender.current)
            {
                let from = agreement.filter(|_| !never).map(|known| known.asked.0);
                flow.agreement = Some(Agreement {
                    path: judged.path,
                    ended: match flow.direction {
                        Direction::Egress => other.fin_opener,
                        Direction::Ingress => other.fin_answerer,
                    },
                    reset: other.reset,
                    replied: other.replied,
                    asked: (from.unwrap_or(span.0), span.1),
                });
            }
            return (judged, None);
        }
        if !surely {
            self.doubtful = true;
            return (judged, None);
        }
        // It was not asked, and knows nothing of the packet.
        self.hits = hits;
        match before {
            Some(flow) => drop(self.flows.insert(got, flow)),
            None => drop(self.flows.remove(&got)),
        }
        let agreed = Judged {
            path: agreement.map_or(Path::None, |agreement| agreement.path),
            verdict: Verdict::Pass,
            reason: Reason::Established,
            ..judged.clone()
        };
        (agreed, Some(judged))
    }

    /// What routing changes, unless the frame is addressed to somebody else on the link.
    fn forward(&self, from: u32, to: u32, frame: &mut [u8]) {
        let node = self.hardware[&from];
        if frame[..6] != node {
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
            // What was sent to a group of the link is not routed.
            || asked.frame[0] & 1 != 0
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
                current: false,
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
}
