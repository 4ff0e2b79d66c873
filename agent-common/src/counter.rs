//! What was counted.

use crate::{Direction, Path, Reason, Verdict};

/// The key of the per-CPU map `counters`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct CounterKey {
    cell: u32,
    way: u8,
    path: u8,
    verdict: u8,
    reason: u8,
}
crate::wire!(CounterKey = 8);

impl CounterKey {
    /// `cell` is the number of the pod's cell, 0 when the interface is nobody's; `way` is the packet's, seen from the pod.
    #[must_use]
    #[inline(always)]
    pub const fn new(
        cell: u32,
        way: Direction,
        path: Path,
        verdict: Verdict,
        reason: Reason,
    ) -> Self {
        Self {
            cell,
            way: way as u8,
            path: path as u8,
            verdict: verdict as u8,
            reason: reason as u8,
        }
    }
    /// The key as one number, which is never 0: no reason is.
    #[must_use]
    #[inline(always)]
    pub const fn packed(&self) -> u64 {
        self.cell as u64
            | (self.way as u64) << 32
            | (self.path as u64) << 40
            | (self.verdict as u64) << 48
            | (self.reason as u64) << 56
    }
    /// The key of a number that [`Self::packed`] gave.
    #[must_use]
    pub const fn unpacked(packed: u64) -> Self {
        let [way, path, verdict, reason] = ((packed >> 32) as u32).to_le_bytes();
        Self {
            cell: packed as u32,
            way,
            path,
            verdict,
            reason,
        }
    }
    /// The number of the cell.
    #[must_use]
    pub const fn cell(&self) -> u32 {
        self.cell
    }
    /// Which way the packets went, seen from the pod.
    #[must_use]
    pub const fn way(&self) -> Option<Direction> {
        Direction::from_raw(self.way)
    }
    /// Which border their connection crosses.
    #[must_use]
    pub const fn path(&self) -> Option<Path> {
        Path::from_raw(self.path)
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

/// An element of the per-CPU array `tallies`: the counter of the first key that this CPU counted in it.
///
/// Once there, the key stays. What other keys count that have the same place is in the map `counters`, so that the sum of
/// both is right whoever came first.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    key: u64,
    counter: Counter,
}
crate::wire!(Tally = 24);

impl Tally {
    /// How many elements the array has, a power of two.
    pub const PLACES: u32 = 1 << Self::BITS;
    const BITS: u32 = 11;

    /// The element for a key: the high bits of a product that every bit of the key has its part in (Fibonacci hashing).
    #[must_use]
    #[inline(always)]
    pub const fn place(key: &CounterKey) -> u32 {
        (key.packed().wrapping_mul(0x9e37_79b9_7f4a_7c15) >> (64 - Self::BITS)) as u32
    }

    /// Adds one packet of `bytes` bytes; `false` if the element is another key's.
    #[must_use]
    #[inline(always)]
    pub const fn add(&mut self, key: &CounterKey, bytes: u64) -> bool {
        let key = key.packed();
        if self.key != key {
            if self.key != 0 {
                return false;
            }
            self.key = key;
        }
        self.counter.add(bytes);
        true
    }

    /// What was counted, and for whom; `None` if nothing was.
    #[must_use]
    pub const fn read(&self) -> Option<(CounterKey, Counter)> {
        match self.key {
            0 => None,
            key => Some((CounterKey::unpacked(key), self.counter)),
        }
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
    /// The map `hits` was full.
    Hit = 3,
    /// More events than a cell may cause in a second.
    Suppressed = 4,
    /// The map `affinities` refused an entry: the client's next connection may go to another backend.
    Affinity = 5,
}

impl Lost {
    /// How many kinds there are.
    pub const COUNT: u32 = 6;
}

/// The key of the map `limits`: whose events are limited together.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LimitKey {
    cell: u32,
    drops: u32,
}
crate::wire!(LimitKey = 8);

impl LimitKey {
    /// Drops and new flows of a cell are limited apart, so that one cannot hide the other.
    #[must_use]
    #[inline(always)]
    pub const fn new(cell: u32, drops: bool) -> Self {
        Self {
            cell,
            drops: drops as u32,
        }
    }
}

/// How many events of a [`LimitKey`] were told in the running second.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limit {
    since: u64,
    told: u32,
    suppressed: u32,
}
crate::wire!(Limit = 16);

impl Limit {
    /// Events of one key per second. More are counted, not told.
    pub const PER_SECOND: u32 = 256;

    /// The first event of a second that starts at jiffy `now`.
    #[must_use]
    #[inline(always)]
    pub const fn starting(now: u64) -> Self {
        Self {
            since: now,
            told: 1,
            suppressed: 0,
        }
    }

    /// Whether one more event may be told at jiffy `now`; if so, how many were not told since the last one that was.
    #[inline(always)]
    pub const fn admit(&mut self, now: u64, ticks_per_second: u32) -> Option<u32> {
        if now.wrapping_sub(self.since) >= ticks_per_second as u64 {
            self.since = now;
            self.told = 0;
        }
        if self.told >= Self::PER_SECOND {
            self.suppressed = self.suppressed.wrapping_add(1);
            return None;
        }
        self.told += 1;
        let suppressed = self.suppressed;
        self.suppressed = 0;
        Some(suppressed)
    }
}
