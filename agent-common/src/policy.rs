//! What a pod may do: one inner map of rules in a slot of the map `policies`.

use crate::{Direction, Identity};

/// The key of a rule: the peer, and the port of whoever is the server of the connection.
///
/// A TCP, UDP or echo packet is looked up as (peer, port, protocol), then (peer, any port, protocol), then (peer, any,
/// any); UDP to the port of a tunnel only by the first of these, a protocol without ports only by the second. Where the pod's
/// endpoint says so ([`Lookups`]), ranges of ports that hold the port come after the port, the narrow before the wide, and
/// what is about anybody ([`Self::ANYBODY`]) comes last, in the same order; (anybody, any, any) is about tunnels and protocols
/// without ports too.
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
    /// In the place of a peer: whoever it is. No peer has this identity.
    pub const ANYBODY: Identity = Identity::NONE;
    /// How many ports a range has, by its width from 1 on: powers of 16. A range begins at a multiple of that.
    pub const WIDTHS: [u32; 3] = [1 << 4, 1 << 8, 1 << 12];

    /// A range of ports: the one of this `width` (1 to 3) that holds `port`, which is in host order.
    #[must_use]
    #[inline(always)]
    pub const fn range(
        peer: Identity,
        port: u16,
        width: u8,
        protocol: u8,
        direction: Direction,
    ) -> Self {
        let first = port >> (4 * width as u32) << (4 * width as u32);
        Self {
            peer: peer.raw(),
            port: first.to_be_bytes(),
            protocol,
            direction: direction as u8 | width << 1,
        }
    }

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
        Direction::from_raw(self.direction & 1)
    }

    /// The width of a range of ports; 0 for one port, or any.
    #[must_use]
    pub const fn width(&self) -> u8 {
        self.direction >> 1
    }
}

/// Which look-ups a pod's rules need beside those by the peer and one port, which nearly all do with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Lookups(u32);

impl Lookups {
    /// There are ranges of ports.
    pub const RANGES: Self = Self(1);
    /// There are rules about anybody.
    pub const ANYBODY: Self = Self(2);

    /// As the endpoint holds it.
    #[must_use]
    #[inline(always)]
    pub const fn from_raw(raw: u32) -> Self {
        Self(raw)
    }

    /// The raw value.
    #[must_use]
    #[inline(always)]
    pub const fn raw(self) -> u32 {
        self.0
    }

    /// These and others.
    #[must_use]
    pub const fn and(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Whether others are among these.
    #[must_use]
    #[inline(always)]
    pub const fn has(self, other: Self) -> bool {
        self.0 & other.0 != 0
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
