//! What the programs tell: every new flow, every drop.

use crate::{Direction, Identity, Path, Reason, Verdict};

/// Which program spoke.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hook {
    /// tc, packets from the pod.
    CellEgress = 0,
    /// tc, packets to the pod.
    CellIngress = 1,
}

impl Hook {
    /// The name of the program.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::CellEgress => "cell_egress",
            Self::CellIngress => "cell_ingress",
        }
    }
}

/// One record of the ring buffer `events`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event {
    /// Nanoseconds of `CLOCK_MONOTONIC`.
    pub time: u64,
    /// The packet's source address, map form; zero for a packet that is not IP.
    pub source: [u8; 16],
    /// The packet's destination address, map form.
    pub destination: [u8; 16],
    /// The pod's host-side interface.
    pub ifindex: u32,
    /// The number of the pod's cell, 0 if the interface is nobody's.
    pub cell: u32,
    /// Raw [`Identity`] of the pod.
    pub local: u32,
    /// Raw [`Identity`] of the other side.
    pub peer: u32,
    /// The rule that decided, 0 if none.
    pub rule: u32,
    /// The generation that decided.
    pub generation: u32,
    /// Source port, network order.
    pub source_port: [u8; 2],
    /// Destination port, network order.
    pub destination_port: [u8; 2],
    /// IP protocol number.
    pub protocol: u8,
    /// Raw [`Direction`]: who opened the flow, or which way the dropped packet went.
    pub direction: u8,
    /// Raw [`Verdict`].
    pub verdict: u8,
    /// Raw [`Reason`].
    pub reason: u8,
    /// Raw [`Hook`].
    pub hook: u8,
    /// Raw [`Path`].
    pub path: u8,
    /// Zero.
    pub pad: [u8; 2],
    /// Events of this cell and kind that were not told since the one before.
    pub suppressed: u32,
}
crate::wire!(Event = 80);

impl Event {
    /// Reads a record as the ring buffer holds it; `None` if the length is not that of a record.
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        if bytes.len() != core::mem::size_of::<Self>() {
            return None;
        }
        // SAFETY: the length was checked, `Event` is `Wire` (any bit pattern is valid), and the read is unaligned.
        Some(unsafe { core::ptr::read_unaligned(bytes.as_ptr().cast::<Self>()) })
    }
    /// The verdict, if the record holds a known one.
    #[must_use]
    pub const fn verdict(&self) -> Option<Verdict> {
        Verdict::from_raw(self.verdict)
    }
    /// The reason, if the record holds a known one.
    #[must_use]
    pub const fn reason(&self) -> Option<Reason> {
        Reason::from_raw(self.reason)
    }
    /// The direction, if the record holds a known one.
    #[must_use]
    pub const fn direction(&self) -> Option<Direction> {
        Direction::from_raw(self.direction)
    }
    /// The border that the connection crosses, if the record holds a known one.
    #[must_use]
    pub const fn path(&self) -> Option<Path> {
        Path::from_raw(self.path)
    }
    /// The pod's identity.
    #[must_use]
    pub const fn local(&self) -> Identity {
        Identity::from_raw(self.local)
    }
    /// The other side's identity.
    #[must_use]
    pub const fn peer(&self) -> Identity {
        Identity::from_raw(self.peer)
    }
    /// The program that spoke.
    #[must_use]
    pub const fn hook(&self) -> Hook {
        match self.hook {
            0 => Hook::CellEgress,
            _ => Hook::CellIngress,
        }
    }
}
