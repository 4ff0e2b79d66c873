//! Who an address is.

use crate::{Direction, Path};

/// A numeric identity: what policy is written in terms of.
///
/// The top byte is the kind, the rest the number within the kind, so that a new cell never renumbers another.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Identity(u32);

impl Identity {
    /// Nobody: an address that no table knows. Never allowed anything.
    pub const NONE: Self = Self(0);
    /// Any address outside the platform that no narrower identity claims.
    pub const WORLD: Self = Self(1);
    /// This node itself (health probes come from it).
    pub const NODE: Self = Self(2);
    /// Another node of the platform.
    pub const OTHER_NODE: Self = Self(3);
    /// A resolver of the platform.
    pub const DNS: Self = Self(4);
    /// The external gateway.
    pub const NORTH_GATE: Self = Self(5);
    /// The internal gateway.
    pub const WEST_GATE: Self = Self(6);
    /// The cloud's metadata service (169.254.169.254, fd00:ec2::254).
    pub const METADATA: Self = Self(7);

    /// Highest number within a kind.
    pub const MAX_NUMBER: u32 = 0x00ff_ffff;

    /// The component of a cell with number `number` (at most [`Self::MAX_NUMBER`]; higher bits are cut).
    #[must_use]
    pub const fn component(number: u32) -> Self {
        Self(1 << 24 | (number & Self::MAX_NUMBER))
    }

    /// The declared external CIDR with number `number`.
    #[must_use]
    pub const fn external(number: u32) -> Self {
        Self(2 << 24 | (number & Self::MAX_NUMBER))
    }

    /// The platform service (monitoring and the like) with number `number`.
    #[must_use]
    pub const fn platform(number: u32) -> Self {
        Self(3 << 24 | (number & Self::MAX_NUMBER))
    }

    /// Addresses that network policies tell from others of whom `self` stands for, by number. Each has the rules of `self`, as far
    /// as policies leave them. Gates have no parts.
    #[must_use]
    pub const fn part(self, number: u32) -> Self {
        let kind = match (self.0 >> 24, self) {
            (1, _) => 4,
            (3, _) | (_, Self::NODE | Self::OTHER_NODE | Self::DNS) => 6,
            _ => 5,
        };
        Self(kind << 24 | (number & Self::MAX_NUMBER))
    }

    /// The identity with this raw value.
    #[must_use]
    #[inline(always)]
    pub const fn from_raw(raw: u32) -> Self {
        Self(raw)
    }

    /// The raw value, as maps and events hold it.
    #[must_use]
    #[inline(always)]
    pub const fn raw(self) -> u32 {
        self.0
    }

    /// Whether this is a component of a cell, or a part of one.
    #[must_use]
    #[inline(always)]
    pub const fn is_component(self) -> bool {
        matches!(self.0 >> 24, 1 | 4)
    }

    /// The border that a connection with this peer crosses, seen from a pod: `opener` is who opened it, `same_cell`
    /// whether the peer is of the pod's cell.
    #[must_use]
    #[inline(always)]
    pub const fn path(self, opener: Direction, same_cell: bool) -> Path {
        let incoming = matches!(opener, Direction::Ingress);
        match (self.0 >> 24, self) {
            (1 | 4, _) if same_cell => Path::Intra,
            (1 | 4, _) | (_, Self::WEST_GATE) if incoming => Path::West,
            (1 | 4, _) | (_, Self::WEST_GATE) => Path::East,
            (3 | 6, _) | (_, Self::NODE | Self::OTHER_NODE | Self::DNS) => Path::Platform,
            _ if incoming => Path::North,
            _ => Path::South,
        }
    }
}

impl core::fmt::Display for Identity {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        let number = self.0 & Self::MAX_NUMBER;
        match (self.0 >> 24, *self) {
            (_, Self::NONE) => f.write_str("none"),
            (_, Self::WORLD) => f.write_str("world"),
            (_, Self::NODE) => f.write_str("node"),
            (_, Self::OTHER_NODE) => f.write_str("other-node"),
            (_, Self::DNS) => f.write_str("dns"),
            (_, Self::NORTH_GATE) => f.write_str("north-gate"),
            (_, Self::WEST_GATE) => f.write_str("west-gate"),
            (_, Self::METADATA) => f.write_str("metadata"),
            (1, _) => write!(f, "component:{number}"),
            (2, _) => write!(f, "external:{number}"),
            (3, _) => write!(f, "platform:{number}"),
            (4, _) => write!(f, "component-part:{number}"),
            (5, _) => write!(f, "outside-part:{number}"),
            (6, _) => write!(f, "platform-part:{number}"),
            _ => write!(f, "reserved:{}", self.0),
        }
    }
}

/// The key of the map `identities`: a prefix of an address in map form.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct IdentityKey {
    bits: u32,
    address: [u8; 16],
}
crate::wire!(IdentityKey = 20);

impl IdentityKey {
    /// The first `bits` bits of `address`.
    #[must_use]
    pub const fn new(bits: u32, address: [u8; 16]) -> Self {
        Self { bits, address }
    }
    /// The length of the prefix.
    #[must_use]
    pub const fn bits(&self) -> u32 {
        self.bits
    }
    /// The address; bits behind the prefix mean nothing.
    #[must_use]
    pub const fn address(&self) -> [u8; 16] {
        self.address
    }
}

/// What the longest matching prefix of an address says.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct IdentityValue {
    identity: u32,
    ifindex: u32,
    cell: u32,
}
crate::wire!(IdentityValue = 12);

impl IdentityValue {
    /// In the place of an interface: the address is this node's own (the loopback interface has this number). A gate's
    /// identity then counts as a destination only; as a source the router proves it by its mark.
    pub const THIS_NODE: u32 = 1;

    /// `ifindex` is the host-side interface of a local pod that owns the address, [`Self::THIS_NODE`] for addresses of
    /// this node, 0 for every other address; `cell` is the number of a component's cell, 0 for everything else.
    #[must_use]
    pub const fn new(identity: Identity, ifindex: u32, cell: u32) -> Self {
        Self {
            identity: identity.0,
            ifindex,
            cell,
        }
    }

    /// The identity of the address.
    #[must_use]
    #[inline(always)]
    pub const fn identity(&self) -> Identity {
        Identity(self.identity)
    }

    /// The host-side interface from which alone the address may be a source; 0 if it belongs to no local pod.
    #[must_use]
    #[inline(always)]
    pub const fn ifindex(&self) -> u32 {
        self.ifindex
    }

    /// The number of the cell that the address' component belongs to; 0 for none.
    #[must_use]
    #[inline(always)]
    pub const fn cell(&self) -> u32 {
        self.cell
    }

    /// The host-side interface of a local pod that owns the address.
    #[must_use]
    #[inline(always)]
    pub const fn local_pod(&self) -> Option<u32> {
        if self.ifindex > Self::THIS_NODE {
            Some(self.ifindex)
        } else {
            None
        }
    }
}
