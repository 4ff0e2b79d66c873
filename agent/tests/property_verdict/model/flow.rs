//! Connections as they are remembered, and how long.

use agent_common::{Action, Direction, Identity, Path};

use super::SECOND;
use crate::parse::{self, FIN, Icmp, Packet, Place, RST, TCP, UDP};

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
    /// Of TCP: opened by the pod, or answered by its opener after the pod's answer, and not aborted. These have room of their own.
    pub(crate) assured: bool,
    /// Both halves have ended, the second in knowledge of the first.
    pub(crate) last: bool,
    /// What acknowledges the last half that ended.
    pub(crate) due: u32,
    /// What the gate at the other side said.
    pub(crate) agreement: Option<Agreement>,
}

/// The gate of the local pod at the other side has passed a flow as one of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Agreement {
    pub(super) path: Path,
    /// What it knows of the connection: that the sender's half has ended, and that either side has aborted.
    pub(super) ended: bool,
    pub(super) reset: bool,
    pub(super) replied: bool,
    /// Between which instants it was asked, nanoseconds.
    pub(super) asked: (u64, u64),
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
    pub(super) fn note(&mut self, packet: &Packet, way: Direction, now: u64) {
        let closed = self.reset || self.fin_opener && self.fin_answerer;
        if !closed {
            self.seen = now;
        }
        let from_opener = way == self.direction;
        let answered = self.replied && from_opener;
        self.replied |= !from_opener;
        if packet.protocol == TCP {
            let fin = packet.tcp_flags & FIN != 0;
            self.fin_opener |= fin && from_opener;
            self.fin_answerer |= fin && !from_opener;
            self.reset |= packet.tcp_flags & RST != 0;
            self.assured = (self.assured || answered) && !self.reset;
        }
    }
}

/// A TCP segment's acknowledgement, and the one that answers the end of its sender's half (RFC 9293 section 3.4).
pub(super) fn numbers(frame: &[u8], packet: &Packet) -> Option<(u32, u32)> {
    if packet.place != Place::Whole {
        return None;
    }
    let word = |at: usize| Some(u32::from_be_bytes(frame.get(at..at + 4)?.try_into().ok()?));
    let half = |at: usize| Some(u16::from_be_bytes(frame.get(at..at + 2)?.try_into().ok()?));
    let end = match packet.v4 {
        true => 14 + i64::from(half(16)?),
        false => 14 + 40 + i64::from(half(18)?),
    };
    let header = i64::from(frame.get(packet.transport + 12)? >> 4) * 4;
    let payload = end - packet.transport as i64 - header;
    let answer = i64::from(word(packet.transport + 4)?) + payload + 1;
    Some((word(packet.transport + 8)?, answer as u32))
}

/// The fragments of one packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Split {
    pub(super) gate: u32,
    pub(super) source: u128,
    pub(super) destination: u128,
    pub(super) id: u32,
    pub(super) protocol: u8,
    pub(super) way: Direction,
}

impl Split {
    pub(super) fn of(packet: &Packet, gate: u32, way: Direction) -> Self {
        Self {
            gate,
            source: packet.source,
            destination: packet.destination,
            id: packet.fragment_id,
            protocol: packet.protocol,
            way,
        }
    }
}

/// What the first fragment told.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Note {
    Ports(u16, u16),
    Icmp { id: u16, kind: u8 },
}

pub(super) fn remote(packet: &Packet, way: Direction) -> u128 {
    match way {
        Direction::Egress => packet.destination,
        Direction::Ingress => packet.source,
    }
}

/// The connection of a packet that goes `way`. An echo's ports are its identifier, and one more than the way of its
/// request (0 from the pod, 1 to it).
pub(super) fn flow_id(packet: &Packet, way: Direction) -> FlowId {
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
