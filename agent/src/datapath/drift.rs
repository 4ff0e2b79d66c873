//! What the kernel holds against what it was given: found, told and put right.
//!
//! Flows in: the active generation's tables, and the kernel's own word for every map, slot, link, pin and route. Flows out: for
//! each table how many entries are not as they were written, and the same table put right. Both sides of a table are hashed
//! first, entry by entry and in any order; only where the hashes differ is it looked at which entries do.
//!
//! Nobody writes these maps but the agent, so a difference is somebody's hand, a fault, or another agent's work: an alarm.
//! Flows, fragments, counters and the like are the programs' own and have no wanted side.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hasher as _};
use std::os::fd::{AsFd as _, BorrowedFd, RawFd};
use std::time::Duration;

use agent_common::{SocketKey, Wire};

use super::{Datapath, Inner, error::Error, sys, wire::bytes};

mod attachments;
mod tables;

/// How one table stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TableState {
    /// Its name: a map's, `control`, `gates`, `hooks`, `pins` or `policy_route`.
    pub table: &'static str,
    /// Entries that it should have.
    pub entries: usize,
    /// Entries that were not as written, were missing, or were too many, when it was looked at.
    pub drifted: usize,
    /// Whether all of them were put right.
    pub repaired: bool,
    /// Hash over the wanted entries.
    pub hash: u64,
}

/// How a table stands and what came of putting it right, or why it cannot be looked at.
pub(super) type Looked = Result<(TableState, Result<(), Error>), Error>;

impl TableState {
    pub(super) fn sound(table: &'static str, digest: Digest) -> Self {
        Self {
            table,
            entries: digest.count(),
            drifted: 0,
            repaired: true,
            hash: digest.hash(),
        }
    }
}

/// What came of looking after the kernel's side.
#[derive(Debug, Default)]
pub struct Care {
    /// Every table that could be looked at.
    pub tables: Vec<TableState>,
    /// What could not be read or put right.
    pub failed: Vec<Error>,
    /// How long the large tables took, if they were looked at: identities and services. A trie is read at 0.8 µs per entry
    /// (6.18), so 100,000 of them cost 80 ms; whoever has many more should not look as often.
    pub large_took: Option<Duration>,
}

impl Datapath {
    /// Compares everything that the kernel should hold with what it holds, and puts it right. `sockets` are the router's;
    /// `large` says whether identities and services are looked at too. Blocking: some system calls per pod, a few per thousand entries.
    #[must_use]
    pub fn look_after(&self, sockets: &[(SocketKey, RawFd)], large: bool) -> Care {
        let mut inner = self.lock();
        let mut care = Care::default();
        if inner.adopting {
            // The earlier programs judge until this agent's first generation is active, or as long as they cannot be replaced.
            if inner.active != 0 {
                care.failed.extend(inner.install().err());
            }
            return care;
        }
        // Pins first: links are pinned too, and need their folder.
        care.note(inner.check_pins());
        care.note(inner.check_control());
        // Of what an earlier agent wrote nothing is known but that it holds.
        if inner.is_own() {
            inner.check_tables(&mut care, large);
            care.note(inner.check_sockets(sockets));
        }
        care.note(inner.gates.restore());
        care.note(inner.check_hooks());
        care.note(inner.check_route());
        care
    }
}

impl Care {
    fn note(&mut self, looked: Looked) {
        match looked {
            Ok((table, repaired)) => {
                let repaired = repaired.map_err(|error| self.failed.push(error));
                self.tables.push(TableState {
                    repaired: repaired.is_ok(),
                    ..table
                });
            }
            Err(error) => self.failed.push(error),
        }
    }
}

impl Inner {
    /// Whether the active generation is one that this agent wrote.
    fn is_own(&self) -> bool {
        self.active > 0
            && self
                .live
                .get(&self.active)
                .is_some_and(|live| live.tables().generation == self.active)
    }
}

/// A hash of entries that does not depend on their order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Digest {
    sum: u64,
    count: usize,
}

impl Digest {
    pub(super) fn add(&mut self, key: &[u8], value: &[u8]) {
        let mut hash = DefaultHasher::new();
        hash.write(key);
        hash.write(value);
        self.sum = self.sum.wrapping_add(hash.finish());
        self.count += 1;
    }

    pub(super) fn of<'a, K: Wire, V: Wire>(entries: impl Iterator<Item = (&'a K, &'a V)>) -> Self {
        let mut digest = Self::default();
        for (key, value) in entries {
            digest.add(bytes(key), bytes(value));
        }
        digest
    }

    pub(super) fn count(self) -> usize {
        self.count
    }

    pub(super) fn hash(self) -> u64 {
        self.sum
    }
}

/// Where two sides differ.
#[derive(Debug)]
pub(super) struct Difference<K, V> {
    /// Entries that are missing or not as wanted.
    pub(super) write: Vec<(K, V)>,
    /// Entries that should not be there.
    pub(super) remove: Vec<K>,
}

impl<K, V> Difference<K, V> {
    pub(super) fn len(&self) -> usize {
        self.write.len() + self.remove.len()
    }
}

/// Reads a map and sums up what it says.
pub(super) fn digest<K: Wire, V: Wire>(
    map: BorrowedFd<'_>,
    size: usize,
    canonical: impl Fn(&V) -> V,
) -> std::io::Result<Digest> {
    let mut found = Digest::default();
    sys::map_read(map, size, |key: &K, value: &V| {
        found.add(bytes(key), bytes(&canonical(value)));
    })?;
    Ok(found)
}

/// Reads a map and tells how it differs; `None` if both sides are the same. `canonical` makes values comparable that say the
/// same in other words.
pub(super) fn compare<K: Wire + Ord, V: Wire>(
    map: BorrowedFd<'_>,
    size: usize,
    wanted: &BTreeMap<K, V>,
    hash: Digest,
    canonical: impl Fn(&V) -> V,
) -> std::io::Result<Option<Difference<K, V>>> {
    if digest::<K, V>(map, size, &canonical)? == hash {
        return Ok(None);
    }
    let mut missing: BTreeMap<&K, &V> = wanted.iter().collect();
    let mut remove = Vec::new();
    sys::map_read(map, size, |key: &K, value: &V| match wanted.get(key) {
        Some(wanted) if bytes(wanted) == bytes(&canonical(value)) => {
            missing.remove(key);
        }
        Some(_) => {}
        None => remove.push(*key),
    })?;
    let write = missing.into_iter().map(|(key, value)| (*key, *value));
    Ok(Some(Difference {
        write: write.collect(),
        remove,
    }))
}

/// Compares a hash, and writes and removes what differs.
pub(super) fn restore<K: Wire + Ord, V: Wire>(
    table: &'static str,
    map: BorrowedFd<'_>,
    size: usize,
    wanted: &BTreeMap<K, V>,
) -> Looked {
    let hash = Digest::of(wanted.iter());
    let mut state = TableState::sound(table, hash);
    let difference = compare(map, size, wanted, hash, |value| *value)
        .map_err(Error::kernel(format!("read map `{table}`")))?;
    let Some(difference) = difference else {
        return Ok((state, Ok(())));
    };
    state.drifted = difference.len();
    // What is too many first: the map may be full of it.
    let removed = difference
        .remove
        .iter()
        .try_for_each(|key| sys::map_delete(map, key))
        .map_err(Error::kernel(format!("remove an entry of map `{table}`")));
    let written = difference
        .write
        .iter()
        .try_for_each(|(key, value)| sys::map_update(map, key, value))
        .map_err(Error::kernel(format!("write map `{table}`")));
    Ok((state, removed.and(written)))
}

/// A map of the agent's, by the name of its pin.
impl Inner {
    fn map(&self, name: &'static str) -> Result<(BorrowedFd<'_>, usize), Error> {
        let size = self.maps.sizes.get(name).copied().unwrap_or(0);
        match self.maps.held.get(name) {
            Some(map) => Ok((map.as_fd(), size)),
            None => Err(Error::Missing {
                kind: "map",
                name: name.to_owned(),
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Digest;

    #[test]
    fn a_digest_is_of_the_entries_and_not_of_their_order() {
        let entries: [(u32, u64); 3] = [(1, 10), (2, 20), (3, 30)];
        let of =
            |entries: &[(u32, u64)]| Digest::of(entries.iter().map(|(key, value)| (key, value)));
        let all = of(&entries);
        assert_eq!(all, of(&[entries[2], entries[0], entries[1]]));
        assert_eq!(all.count(), 3);
        for other in [
            &entries[..2],
            &[(1, 10), (2, 20), (3, 31)],
            &[(1, 20), (2, 10), (3, 30)],
            &[(1, 10), (2, 20), (3, 30), (3, 30)],
        ] {
            assert_ne!(all, of(other), "{other:?}");
        }
        assert_eq!(of(&[]), Digest::default());
    }
}
