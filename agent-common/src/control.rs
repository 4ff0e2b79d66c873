//! The one value that switches the node from one generation to the next.

/// The value of the one-entry array `control`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Control {
    generation: u32,
    schema: u32,
}
crate::wire!(Control = 8);

impl Control {
    /// The layout version of all pinned maps. A change of any type in this crate that an older program would
    /// misread raises it, and the agent then refuses to reuse pins of another schema.
    pub const SCHEMA: u32 = 2;

    /// The control value that makes `generation` the active one; 0 means that none is.
    #[must_use]
    pub const fn new(generation: u32) -> Self {
        Self {
            generation,
            schema: Self::SCHEMA,
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
}
