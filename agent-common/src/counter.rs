//! What was counted.

use crate::{Direction, Reason, Verdict};

/// The key of the per-CPU map `counters`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct CounterKey {
    cell: u32,
    direction: u8,
    verdict: u8,
    reason: u8,
    pad: u8,
}
crate::wire!(CounterKey = 8);

impl CounterKey {
    /// `cell` is the number of the pod's cell, 0 when the interface is nobody's.
    #[must_use]
    #[inline(always)]
    pub const fn new(cell: u32, direction: Direction, verdict: Verdict, reason: Reason) -> Self {
        Self {
            cell,
            direction: direction as u8,
            verdict: verdict as u8,
            reason: reason as u8,
            pad: 0,
        }
    }
    /// The number of the cell.
    #[must_use]
    pub const fn cell(&self) -> u32 {
        self.cell
    }
    /// Which way the packets went, seen from the pod.
    #[must_use]
    pub const fn direction(&self) -> Option<Direction> {
        Direction::from_raw(self.direction)
    }
    /// What became of them.
    #[must_use]
    pub const fn verdict(&self) -> Option<Verdict> {
        Verdict::from_raw(self.verdict)
    }
    /// Why.
    #[must_use]
    pub const fn reason(&self) -> Option<Reason> {
        Reason::from_raw(self.reason)
    }
}

/// Packets and bytes of one key, on one CPU.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counter {
    packets: u64,
    bytes: u64,
}
crate::wire!(Counter = 16);

impl Counter {
    /// A counter with these values.
    #[must_use]
    #[inline(always)]
    pub const fn new(packets: u64, bytes: u64) -> Self {
        Self { packets, bytes }
    }
    /// How many packets.
    #[must_use]
    #[inline(always)]
    pub const fn packets(&self) -> u64 {
        self.packets
    }
    /// How many bytes, link-layer header included.
    #[must_use]
    #[inline(always)]
    pub const fn bytes(&self) -> u64 {
        self.bytes
    }
    /// Adds one packet of `bytes` bytes.
    #[inline(always)]
    pub const fn add(&mut self, bytes: u64) {
        self.packets = self.packets.wrapping_add(1);
        self.bytes = self.bytes.wrapping_add(bytes);
    }
}

/// What could not be recorded. Indices of the per-CPU array `lost`; none of them changes a verdict.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lost {
    /// The ring buffer `events` was full.
    Event = 0,
    /// The map `counters` was full.
    Counter = 1,
    /// The map `translations` refused an entry: an answer will show the backend's address.
    Translation = 2,
    /// The map `affinities` refused an entry: the client's next connection may go to another backend.
    Affinity = 3,
}

impl Lost {
    /// How many kinds there are.
    pub const COUNT: u32 = 4;
}
