//! Requests at a time.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

/// Counts what is under way.
#[derive(Debug, Default)]
pub struct Slots(Arc<AtomicU32>);

/// A place that is taken as long as this lives.
#[derive(Debug)]
pub struct Slot(Arc<AtomicU32>);

impl Slots {
    /// Takes a place without waiting; none: all are taken. Without a limit there is always one.
    pub fn take(&self, limit: Option<NonZeroU32>) -> Option<Slot> {
        self.take_below(limit.map_or(u32::MAX, NonZeroU32::get))
    }

    /// The same with a limit that may be zero: nobody.
    pub fn take_below(&self, limit: u32) -> Option<Slot> {
        let more = |taken: u32| (taken < limit).then(|| taken + 1);
        self.0
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, more)
            .ok()?;
        Some(Slot(Arc::clone(&self.0)))
    }

    /// Places that are taken.
    pub fn taken(&self) -> u32 {
        self.0.load(Ordering::Acquire)
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;

    use super::Slots;

    #[test]
    fn a_lower_limit_waits_for_those_that_are_under_way() {
        let slots = Slots::default();
        let two: Vec<_> = (0..2).map(|_| slots.take(NonZeroU32::new(2))).collect();
        assert!(two.iter().all(Option::is_some));
        assert!(slots.take(NonZeroU32::new(1)).is_none());
        drop(two);
        assert_eq!(slots.taken(), 0);
        assert!(slots.take(NonZeroU32::new(1)).is_some());
    }
}
