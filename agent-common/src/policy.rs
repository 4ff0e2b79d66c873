//! What a component may do: one inner map of rules in a slot of the map `policies`.

use crate::{Direction, Identity};

/// The key of a rule: the peer, and the port of whoever is the server of the connection.
///
/// A TCP, UDP or echo packet is looked up as (peer, port, protocol), then (peer, any port, protocol), then (peer, any,
/// any); UDP to the port of a tunnel only by the first of these, a protocol without ports only by the second. What none of
/// these is about is looked up as ([`Identity::ANYONE`], any, any).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct RuleKey {
    peer: u32,
    port: [u8; 2],
    protocol: u8,
    direction: u8,
}
crate::wire!(RuleKey = 8);

impl RuleKey {
    /// `port` in host order, 0 for any; `protocol` is the IP protocol number, 0 for any (then `port` is 0 too).
    #[must_use]
    #[inline(always)]
    pub const fn new(peer: Identity, port: u16, protocol: u8, direction: Direction) -> Self {
        Self {
            peer: peer.raw(),
            port: port.to_be_bytes(),
            protocol,
            direction: direction as u8,
        }
    }

    /// The other side.
    #[must_use]
    pub const fn peer(&self) -> Identity {
        Identity::from_raw(self.peer)
    }

    /// The server's port in host order, 0 for any.
    #[must_use]
    pub const fn port(&self) -> u16 {
        u16::from_be_bytes(self.port)
    }

    /// The IP protocol number, 0 for any.
    #[must_use]
    pub const fn protocol(&self) -> u8 {
        self.protocol
    }

    /// Which side opens the connection, seen from the pod.
    #[must_use]
    pub const fn direction(&self) -> Option<Direction> {
        Direction::from_raw(self.direction)
    }
}

/// What a rule does.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Action {
    /// Drop, even if a wider rule would pass.
    Deny = 0,
    /// Let the packet go its way.
    Pass = 1,
    /// Hand the connection to the router's transparent listener (TCP only).
    Steer = 2,
}

impl Action {
    /// The action with this raw value; an unknown one is a denial.
    #[must_use]
    #[inline(always)]
    pub const fn from_raw(raw: u8) -> Self {
        match raw {
            1 => Self::Pass,
            2 => Self::Steer,
            _ => Self::Deny,
        }
    }
}

/// The value of a rule.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rule {
    action: u8,
    pad: [u8; 3],
    id: u32,
}
crate::wire!(Rule = 8);

impl Rule {
    /// `id` names the declaration behind the rule in events; it means nothing to the kernel.
    #[must_use]
    pub const fn new(action: Action, id: u32) -> Self {
        Self {
            action: action as u8,
            pad: [0; 3],
            id,
        }
    }

    /// What the rule does.
    #[must_use]
    #[inline(always)]
    pub const fn action(&self) -> Action {
        Action::from_raw(self.action)
    }

    /// The number of the declaration behind the rule.
    #[must_use]
    #[inline(always)]
    pub const fn id(&self) -> u32 {
        self.id
    }
}
