//! Local pods: which interface is whose.

use crate::{Identity, Lookups};

/// The key of the map `endpoints`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct EndpointKey {
    generation: u32,
    ifindex: u32,
}
crate::wire!(EndpointKey = 8);

impl EndpointKey {
    /// The pod behind host-side interface `ifindex` in `generation`.
    #[must_use]
    #[inline(always)]
    pub const fn new(generation: u32, ifindex: u32) -> Self {
        Self {
            generation,
            ifindex,
        }
    }

    /// The generation that the entry belongs to.
    #[must_use]
    pub const fn generation(&self) -> u32 {
        self.generation
    }

    /// The host-side interface.
    #[must_use]
    pub const fn ifindex(&self) -> u32 {
        self.ifindex
    }
}

/// A local pod.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Endpoint {
    identity: u32,
    cell: u32,
    policy: u32,
    flows: u32,
    lookups: u32,
    mac: [u8; 6],
    pad: [u8; 2],
}
crate::wire!(Endpoint = 28);

impl Endpoint {
    /// In the place of a slot: there is no such table. Every lookup in it fails, which denies.
    pub const NO_SLOT: u32 = u32::MAX;

    /// `cell` is the number under which packets are counted; `policy` and `flows` are slots of the maps of these names;
    /// `lookups` is what the rules in `policy` need; `mac` is the pod's own hardware address.
    #[must_use]
    pub const fn new(
        identity: Identity,
        cell: u32,
        policy: u32,
        flows: u32,
        lookups: Lookups,
        mac: [u8; 6],
    ) -> Self {
        Self {
            identity: identity.raw(),
            cell,
            policy,
            flows,
            lookups: lookups.raw(),
            mac,
            pad: [0; 2],
        }
    }

    /// Nobody's: what a packet is counted for before its pod is known.
    #[must_use]
    #[inline(always)]
    pub const fn nobody() -> Self {
        Self::new(
            Identity::NONE,
            0,
            Self::NO_SLOT,
            Self::NO_SLOT,
            Lookups::from_raw(0),
            [0; 6],
        )
    }

    /// The component that runs in the pod.
    #[must_use]
    #[inline(always)]
    pub const fn identity(&self) -> Identity {
        Identity::from_raw(self.identity)
    }

    /// The number of the pod's cell, as counters and events carry it.
    #[must_use]
    #[inline(always)]
    pub const fn cell(&self) -> u32 {
        self.cell
    }

    /// Where the component's rules are.
    #[must_use]
    #[inline(always)]
    pub const fn policy(&self) -> u32 {
        self.policy
    }

    /// Where the pod's flows are, and the notes of its fragmented packets.
    #[must_use]
    #[inline(always)]
    pub const fn flows(&self) -> u32 {
        self.flows
    }

    /// What its rules need to be found.
    #[must_use]
    #[inline(always)]
    pub const fn lookups(&self) -> Lookups {
        Lookups::from_raw(self.lookups)
    }

    /// The pod's hardware address.
    #[must_use]
    #[inline(always)]
    pub const fn mac(&self) -> [u8; 6] {
        self.mac
    }
}
