//! The one value that switches the node from one generation to the next.

/// The value of the one-entry array `control`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Control {
    generation: u32,
    schema: u32,
    ticks_per_second: u32,
    pad: u32,
    pick_up_until: u64,
}
crate::wire!(Control = 24);

impl Control {
    /// The layout version of all pinned maps, part of the path of their pins. A change of any type in this crate that an
    /// older program would misread raises it.
    pub const SCHEMA: u32 = 7;

    /// The control value that makes `generation` the active one; 0 means that none is. `ticks_per_second` is the rate of
    /// the kernel's jiffies.
    #[must_use]
    pub const fn new(generation: u32, ticks_per_second: u32) -> Self {
        Self {
            generation,
            schema: Self::SCHEMA,
            ticks_per_second,
            pad: 0,
            pick_up_until: 0,
        }
    }

    /// The same, and until `tick` (jiffies) TCP connections that no flow is known of may be picked up in their middle.
    #[must_use]
    pub const fn picking_up_until(self, tick: u64) -> Self {
        Self {
            pick_up_until: tick,
            ..self
        }
    }

    /// The active generation, 0 for none.
    #[must_use]
    #[inline(always)]
    pub const fn generation(&self) -> u32 {
        self.generation
    }

    /// The layout version with which the pinned maps were written; 0 when nothing was ever written.
    #[must_use]
    pub const fn schema(&self) -> u32 {
        self.schema
    }

    /// How many jiffies a second has.
    #[must_use]
    #[inline(always)]
    pub const fn ticks_per_second(&self) -> u32 {
        self.ticks_per_second
    }

    /// Until which jiffy a connection may be picked up from its answering side too.
    #[must_use]
    #[inline(always)]
    pub const fn pick_up_until(&self) -> u64 {
        self.pick_up_until
    }
}
