//! Numbers for names: from a hash of the name, so that one more name renumbers no other, and where two want the same number
//! the next free one in the order of names.
//!
//! Names come and go one at a time, and the numbers are those that all names would get from the beginning. A name takes the
//! first free number from its own on, so the numbers that are taken are the same in whatever order names come, and only
//! names in one unbroken row of taken numbers can be in each other's way. Such a row is seated anew when a name
//! joins or leaves it; it has one name, nearly always.

use std::collections::BTreeMap;

use sha2::{Digest as _, Sha256};

use crate::datapath::Table;

/// What gets a number.
pub(super) trait Numbered: Ord + Clone {
    /// Gives each part of the name to `part`, always in the same order.
    fn parts(&self, part: &mut dyn FnMut(&str));
}

/// Numbers of names, each above 0 and below a limit. There are fewer names than that.
#[derive(Clone)]
pub(super) struct Numbers<K> {
    limit: u32,
    by_name: Table<K, Seat>,
    by_number: Table<u32, K>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Seat {
    /// The number that the name wants.
    wanted: u32,
    /// The number that it has.
    number: u32,
}

impl<K: Numbered> Numbers<K> {
    /// No names, whose numbers will be below `limit`.
    pub(super) fn below(limit: u32) -> Self {
        Self {
            limit,
            by_name: Table::new(),
            by_number: Table::new(),
        }
    }

    /// The number of a name that has one.
    pub(super) fn get(&self, name: &K) -> Option<u32> {
        self.by_name.get(name).map(|seat| seat.number)
    }

    /// Names and their numbers, in the order of names.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&K, u32)> {
        self.by_name.iter().map(|(name, seat)| (name, seat.number))
    }

    /// Takes the names away that are `gone`, then gives the `new` ones numbers. Tells whether a name that stays has another
    /// number than before.
    pub(super) fn update(
        &mut self,
        gone: impl IntoIterator<Item = K>,
        new: impl IntoIterator<Item = K>,
    ) -> bool {
        let mut before = BTreeMap::new();
        for name in gone {
            self.remove(&name, &mut before);
        }
        for name in new {
            self.insert(name, &mut before);
        }
        let mut moved = before.into_iter();
        moved.any(|(name, number)| self.get(&name).is_some_and(|now| now != number))
    }

    fn insert(&mut self, name: K, before: &mut BTreeMap<K, u32>) {
        let wanted = self.wanted(&name);
        let seat = Seat {
            wanted,
            number: wanted,
        };
        let Some(first) = self.by_number.insert(wanted, name.clone()) else {
            self.by_name.insert(name, seat);
            return;
        };
        self.by_number.insert(wanted, first);
        let mut row = self.row(wanted, before);
        row.insert(name, wanted);
        self.seat(row);
    }

    fn remove(&mut self, name: &K, before: &mut BTreeMap<K, u32>) {
        let Some(Seat { number, .. }) = self.by_name.get(name).copied() else {
            return;
        };
        let mut row = self.row(number, before);
        row.remove(name);
        before.remove(name);
        self.by_name.remove(name);
        self.seat(row);
    }

    /// Unseats the row of taken numbers around `number`, which is taken. Gives its names and the numbers that they want, and notes
    /// in `before` what they had at first.
    fn row(&mut self, number: u32, before: &mut BTreeMap<K, u32>) -> BTreeMap<K, u32> {
        let mut row = BTreeMap::new();
        let mut unseat = |numbers: &mut Self, at: u32| {
            let Some(name) = numbers.by_number.remove(&at) else {
                return false;
            };
            if let Some(seat) = numbers.by_name.get(&name) {
                before.entry(name.clone()).or_insert(seat.number);
                row.insert(name, seat.wanted);
            }
            true
        };
        unseat(self, number);
        let mut at = self.after(number);
        while unseat(self, at) {
            at = self.after(at);
        }
        let mut at = self.before(number);
        while unseat(self, at) {
            at = self.before(at);
        }
        row
    }

    fn seat(&mut self, row: BTreeMap<K, u32>) {
        for (name, wanted) in row {
            let mut number = wanted;
            while self.by_number.contains_key(&number) {
                number = self.after(number);
            }
            self.by_number.insert(number, name.clone());
            self.by_name.insert(name, Seat { wanted, number });
        }
    }

    fn wanted(&self, name: &K) -> u32 {
        let mut hash = Sha256::new();
        name.parts(&mut |part| {
            // The length keeps ("ab", "c") apart from ("a", "bc").
            hash.update((part.len() as u64).to_be_bytes());
            hash.update(part);
        });
        let digest = hash.finalize();
        let number = u32::from_be_bytes([digest[0], digest[1], digest[2], digest[3]]) % self.limit;
        // Zero is nobody.
        number.max(1)
    }

    fn after(&self, number: u32) -> u32 {
        (number + 1) % self.limit + u32::from(number + 1 == self.limit)
    }

    fn before(&self, number: u32) -> u32 {
        if number == 1 {
            self.limit - 1
        } else {
            number - 1
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    impl Numbered for u8 {
        fn parts(&self, part: &mut dyn FnMut(&str)) {
            part(&self.to_string());
        }
    }

    /// As the words say it: in the order of names, each the first free number from its own on.
    fn from_the_beginning(names: &BTreeSet<u8>, limit: u32) -> BTreeMap<u8, u32> {
        let empty = Numbers::below(limit);
        let mut taken = BTreeSet::new();
        let number = |name: &u8| {
            let mut number = empty.wanted(name);
            while number == 0 || !taken.insert(number) {
                number = (number + 1) % limit;
            }
            (*name, number)
        };
        names.iter().map(number).collect()
    }

    proptest! {
        #[test]
        fn numbers_do_not_tell_in_which_order_names_came(
            steps in proptest::collection::vec(
                (proptest::collection::btree_set(0u8..40, 0..6), proptest::collection::btree_set(0u8..40, 0..6)),
                1..20,
            ),
            limit in 30u32..200,
        ) {
            let mut names = BTreeSet::new();
            let mut numbers = Numbers::below(limit);
            for (gone, new) in steps {
                let before = numbers.clone();
                let gone: BTreeSet<u8> = gone.intersection(&names).copied().collect();
                names = &names - &gone;
                let new: BTreeSet<u8> = new.difference(&names).copied().take(28usize.saturating_sub(names.len())).collect();
                names.extend(&new);
                let moved = numbers.update(gone.iter().copied(), new.iter().copied());
                let expected = from_the_beginning(&names, limit);
                let now: BTreeMap<u8, u32> = numbers.iter().map(|(name, number)| (*name, number)).collect();
                prop_assert_eq!(&now, &expected);
                let differs = now.iter().any(|(name, number)| {
                    !gone.contains(name) && !new.contains(name) && before.get(name) != Some(*number)
                });
                prop_assert_eq!(moved, differs);
            }
        }
    }
}
