//! Which slots of an array are free.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

/// Free slots of an array, as ranges that neither touch nor overlap.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Ranges {
    /// Length by start.
    free: BTreeMap<u32, u32>,
    /// Length and start, for the smallest range that is long enough.
    lengths: BTreeSet<(u32, u32)>,
    /// Slots in `free`.
    left: u32,
    /// All slots.
    size: u32,
}

impl Ranges {
    /// All of `slots` free.
    pub(super) fn new(slots: Range<u32>) -> Self {
        let mut ranges = Self {
            free: BTreeMap::new(),
            lengths: BTreeSet::new(),
            left: 0,
            size: slots.end - slots.start,
        };
        ranges.put(slots);
        ranges
    }

    /// How many slots there are.
    pub(super) fn size(&self) -> u32 {
        self.size
    }

    /// How many of them are taken.
    pub(super) fn taken(&self) -> u32 {
        self.size - self.left
    }

    /// The longest range that [`Ranges::take`] can give.
    pub(super) fn longest(&self) -> u32 {
        self.lengths.last().map_or(0, |(length, _)| *length)
    }

    /// Takes `count` slots in a row: the smallest range that has them, so that long ones stay long.
    pub(super) fn take(&mut self, count: u32) -> Option<Range<u32>> {
        if count == 0 {
            return Some(0..0);
        }
        let (_, start) = *self.lengths.range((count, 0)..).next()?;
        let taken = start..start + count;
        self.reserve(taken.clone()).then_some(taken)
    }

    /// Takes `count` slots, in a row if there is such a row; `None` if that many are not free.
    pub(super) fn take_any(&mut self, mut count: u32) -> Option<Vec<Range<u32>>> {
        if count > self.left {
            return None;
        }
        let mut pieces = Vec::new();
        while count > 0 {
            let piece = self.take(count.min(self.longest()))?;
            count -= piece.end - piece.start;
            pieces.push(piece);
        }
        Some(pieces)
    }

    /// Takes these very slots; `false`, and nothing taken, if one of them is not free.
    pub(super) fn reserve(&mut self, slots: Range<u32>) -> bool {
        if slots.is_empty() {
            return true;
        }
        let Some((start, length)) = self
            .free
            .range(..=slots.start)
            .next_back()
            .map(|(start, length)| (*start, *length))
            .filter(|(start, length)| start + length >= slots.end)
        else {
            return false;
        };
        self.remove(start, length);
        self.insert(start, slots.start - start);
        self.insert(slots.end, start + length - slots.end);
        true
    }

    /// Gives slots back that were taken.
    pub(super) fn put(&mut self, slots: Range<u32>) {
        if slots.is_empty() {
            return;
        }
        let (mut start, mut end) = (slots.start, slots.end);
        let before = self.free.range(..start).next_back();
        if let Some((before, length)) = before.map(|(start, length)| (*start, *length)) {
            debug_assert!(before + length <= start, "slots are given back once");
            if before + length == start {
                self.remove(before, length);
                start = before;
            }
        }
        if let Some(length) = self.free.get(&end).copied() {
            self.remove(end, length);
            end += length;
        }
        self.insert(start, end - start);
    }

    fn insert(&mut self, start: u32, length: u32) {
        if length > 0 {
            self.free.insert(start, length);
            self.lengths.insert((length, start));
            self.left += length;
        }
    }

    fn remove(&mut self, start: u32, length: u32) {
        self.free.remove(&start);
        self.lengths.remove(&(length, start));
        self.left -= length;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_become_one_range_again() {
        let mut ranges = Ranges::new(0..100);
        let taken: Vec<_> = (0..10)
            .map(|_| ranges.take(10).expect("there is room"))
            .collect();
        assert_eq!(
            (ranges.taken(), ranges.longest(), ranges.take(1)),
            (100, 0, None)
        );
        for odd in taken.iter().skip(1).step_by(2) {
            ranges.put(odd.clone());
        }
        assert_eq!((ranges.taken(), ranges.longest()), (50, 10));
        assert_eq!(
            ranges.take(11),
            None,
            "there are 50, and never 11 in one row"
        );
        let pieces = ranges.take_any(25).expect("50 are free");
        assert_eq!(pieces.iter().map(|piece| piece.len()).sum::<usize>(), 25);
        assert_eq!(ranges.take_any(26), None);
        for piece in pieces {
            ranges.put(piece);
        }
        for even in taken.iter().step_by(2) {
            ranges.put(even.clone());
        }
        assert_eq!(ranges, Ranges::new(0..100));
    }

    #[test]
    fn the_smallest_fitting_range_is_taken_and_no_slot_twice() {
        let mut ranges = Ranges::new(0..30);
        assert!(ranges.reserve(5..10) && ranges.reserve(12..30));
        assert_eq!(ranges.take(2), Some(10..12));
        assert_eq!(ranges.take(2), Some(0..2));
        assert!(!ranges.reserve(4..6), "5 is taken");
        assert!(!ranges.reserve(1..3), "1 is taken");
        assert!(ranges.reserve(2..5));
        assert_eq!(ranges.taken(), 30);
    }
}
