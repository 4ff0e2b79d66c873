//! A value with the one that it replaces, so that one entry of a map serves the generation before a flip and the one
//! after it.
//!
//! An entry is written once when its generation is prepared, and again only for a change: what two generations have in
//! common costs nothing. Two generations live at a time, so two values are enough; the writer lets a grace period pass
//! after a flip before it replaces a `previous` that a program of the older generation may still read.

use crate::Wire;

/// What an entry says from generation `since` on, and what it says before. Either may be nothing.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Versioned<T> {
    since: u32,
    flags: u32,
    current: T,
    previous: T,
}

// SAFETY: the header is 8 bytes and a wire type's alignment at most 8, so `current` follows it without padding; a size
// is a multiple of the alignment, so `previous` follows that one and the end has none. `GAPLESS` checks it for each
// type that is built. The header has no invalid bit pattern, and the parts are wire types.
unsafe impl<T: Wire> Wire for Versioned<T> {}

/// `current` is there.
const CURRENT: u32 = 1;
/// `previous` is there.
const PREVIOUS: u32 = 2;

impl<T: Wire> Versioned<T> {
    const GAPLESS: () = assert!(
        size_of::<Self>() == 8 + 2 * size_of::<T>() && align_of::<T>() <= 8,
        "a versioned value has no padding"
    );

    /// `current` from generation `since` on, `previous` before it.
    #[must_use]
    pub const fn new(since: u32, current: Option<T>, previous: Option<T>) -> Self {
        const { Self::GAPLESS };
        let mut flags = 0;
        let current = match current {
            Some(value) => {
                flags |= CURRENT;
                value
            }
            None => nothing(),
        };
        let previous = match previous {
            Some(value) => {
                flags |= PREVIOUS;
                value
            }
            None => nothing(),
        };
        Self {
            since,
            flags,
            current,
            previous,
        }
    }

    /// The first generation for which `current` holds.
    #[must_use]
    #[inline(always)]
    pub const fn since(&self) -> u32 {
        self.since
    }

    /// What the entry says to a generation; `None` is the same as no entry.
    #[must_use]
    #[inline(always)]
    pub const fn at(&self, generation: u32) -> Option<&T> {
        if generation >= self.since {
            self.current()
        } else {
            self.previous()
        }
    }

    /// What the entry says from `since` on.
    #[must_use]
    #[inline(always)]
    pub const fn current(&self) -> Option<&T> {
        if self.flags & CURRENT == 0 {
            return None;
        }
        Some(&self.current)
    }

    /// What the entry says before `since`.
    #[must_use]
    #[inline(always)]
    pub const fn previous(&self) -> Option<&T> {
        if self.flags & PREVIOUS == 0 {
            return None;
        }
        Some(&self.previous)
    }

    /// The entry that says `next` from `generation` on, and to `active`, the generation before, what it says now.
    #[must_use]
    pub fn then(&self, active: u32, generation: u32, next: Option<T>) -> Self {
        Self::new(generation, next, self.at(active).copied())
    }
}

const fn nothing<T: Wire>() -> T {
    // SAFETY: every bit pattern is a value of a wire type.
    unsafe { core::mem::zeroed() }
}
