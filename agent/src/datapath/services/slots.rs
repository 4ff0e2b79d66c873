//! The slots of services in the arrays `choices` and `backends`.

use std::ops::Range;

use super::ranges::Ranges;

/// What is free.
#[derive(Debug)]
pub(super) struct Free {
    pub(super) choices: Ranges,
    pub(super) backends: Ranges,
}

/// What was taken, or is given back.
#[derive(Debug, Default)]
pub(super) struct Slots {
    pub(super) choices: Vec<Range<u32>>,
    pub(super) backends: Vec<Range<u32>>,
}

impl Free {
    /// Takes slots back.
    pub(super) fn put(&mut self, slots: Slots) {
        for (free, ranges) in [
            (&mut self.choices, slots.choices),
            (&mut self.backends, slots.backends),
        ] {
            for range in ranges {
                free.put(range);
            }
        }
    }
}

impl Slots {
    /// These and those.
    pub(super) fn add(&mut self, others: Self) {
        self.choices.extend(others.choices);
        self.backends.extend(others.backends);
    }
}
