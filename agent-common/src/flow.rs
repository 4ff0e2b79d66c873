//! Connections that were judged, and the ports of fragmented packets.

use crate::{Action, Direction, Identity};

/// One connection as one pod's gate sees it.
///
/// Oriented by the pod, not by the packet, so that both directions find the same entry; the pod's interface is part
/// of it, so that the two gates of a connection between two local pods never share one.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlowKey {
    ifindex: u32,
    local: [u8; 16],
    remote: [u8; 16],
    local_port: [u8; 2],
    remote_port: [u8; 2],
    protocol: u8,
    pad: [u8; 3],
}
crate::wire!(FlowKey = 44);

impl FlowKey {
    /// Ports are bytes in network order. For an ICMP echo, `local_port` is the echo's identifier and `remote_port`
    /// one plus the [`Direction`] of the request: two pods that ping each other with the same identifier are two flows.
    #[must_use]
    #[inline(always)]
    pub const fn new(
        ifindex: u32,
        local: [u8; 16],
        remote: [u8; 16],
        local_port: [u8; 2],
        remote_port: [u8; 2],
        protocol: u8,
    ) -> Self {
        Self {
            ifindex,
            local,
            remote,
            local_port,
            remote_port,
            protocol,
            pad: [0; 3],
        }
    }

    /// The pod's host-side interface.
    #[must_use]
    pub const fn ifindex(&self) -> u32 {
        self.ifindex
    }
    /// The pod's address.
    #[must_use]
    pub const fn local(&self) -> [u8; 16] {
        self.local
    }
    /// The peer's address.
    #[must_use]
    pub const fn remote(&self) -> [u8; 16] {
        self.remote
    }
    /// The pod's port, host order.
    #[must_use]
    pub const fn local_port(&self) -> u16 {
        u16::from_be_bytes(self.local_port)
    }
    /// The peer's port, host order.
    #[must_use]
    pub const fn remote_port(&self) -> u16 {
        u16::from_be_bytes(self.remote_port)
    }
    /// The IP protocol number.
    #[must_use]
    pub const fn protocol(&self) -> u8 {
        self.protocol
    }
}

/// The verdict of a connection.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlowValue {
    seen: u64,
    generation: u32,
    peer: u32,
    rule: u32,
    direction: u8,
    action: u8,
    marked: u8,
    pad: u8,
}
crate::wire!(FlowValue = 24);

impl FlowValue {
    /// `seen` is `CLOCK_MONOTONIC` in nanoseconds; `direction` is who opened the connection; `marked` tells that the
    /// peer's identity came from the router's mark, not from its address, and so must be kept when judging again.
    #[must_use]
    #[inline(always)]
    pub const fn new(
        generation: u32,
        direction: Direction,
        action: Action,
        rule: u32,
        peer: Identity,
        marked: bool,
        seen: u64,
    ) -> Self {
        Self {
            seen,
            generation,
            peer: peer.raw(),
            rule,
            direction: direction as u8,
            action: action as u8,
            marked: marked as u8,
            pad: 0,
        }
    }

    /// When the last packet passed, in nanoseconds of `CLOCK_MONOTONIC`.
    #[must_use]
    #[inline(always)]
    pub const fn seen(&self) -> u64 {
        self.seen
    }
    /// Notes a packet. Nothing else of the value is written.
    #[inline(always)]
    pub const fn touch(&mut self, now: u64) {
        self.seen = now;
    }
    /// The generation that gave the verdict.
    #[must_use]
    #[inline(always)]
    pub const fn generation(&self) -> u32 {
        self.generation
    }
    /// Who the peer was when judged.
    #[must_use]
    #[inline(always)]
    pub const fn peer(&self) -> Identity {
        Identity::from_raw(self.peer)
    }
    /// The rule that allowed the connection.
    #[must_use]
    #[inline(always)]
    pub const fn rule(&self) -> u32 {
        self.rule
    }
    /// Who opened the connection.
    #[must_use]
    #[inline(always)]
    pub const fn direction(&self) -> Direction {
        match self.direction {
            0 => Direction::Egress,
            _ => Direction::Ingress,
        }
    }
    /// Pass or steer; denied connections have no entry.
    #[must_use]
    #[inline(always)]
    pub const fn action(&self) -> Action {
        Action::from_raw(self.action)
    }
    /// Whether the peer's identity came from the router's mark.
    #[must_use]
    #[inline(always)]
    pub const fn marked(&self) -> bool {
        self.marked != 0
    }
}

/// A packet that came in fragments.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FragmentKey {
    ifindex: u32,
    source: [u8; 16],
    destination: [u8; 16],
    id: u32,
    protocol: u8,
    direction: u8,
    pad: [u8; 2],
}
crate::wire!(FragmentKey = 44);

impl FragmentKey {
    /// `id` is the IPv4 identification or the IPv6 fragment header's, as it stands in the packet.
    #[must_use]
    #[inline(always)]
    pub const fn new(
        ifindex: u32,
        source: [u8; 16],
        destination: [u8; 16],
        id: u32,
        protocol: u8,
        direction: Direction,
    ) -> Self {
        Self {
            ifindex,
            source,
            destination,
            id,
            protocol,
            direction: direction as u8,
            pad: [0; 2],
        }
    }
}

/// The ports of the first fragment, so that the others find its flow.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FragmentValue {
    source_port: [u8; 2],
    destination_port: [u8; 2],
}
crate::wire!(FragmentValue = 4);

impl FragmentValue {
    /// Ports in network order.
    #[must_use]
    #[inline(always)]
    pub const fn new(source_port: [u8; 2], destination_port: [u8; 2]) -> Self {
        Self {
            source_port,
            destination_port,
        }
    }
    /// The first fragment's source port, network order.
    #[must_use]
    #[inline(always)]
    pub const fn source_port(&self) -> [u8; 2] {
        self.source_port
    }
    /// The first fragment's destination port, network order.
    #[must_use]
    #[inline(always)]
    pub const fn destination_port(&self) -> [u8; 2] {
        self.destination_port
    }
}
