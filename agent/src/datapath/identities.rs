//! The map of identities, changed in place: a generation writes the prefixes that it changes, and no others.
//!
//! An entry that differs between the active generation and the next one holds both values ([`Versioned`]). Longest-prefix match
//! makes two cases special: a prefix that only the next generation has says to the active one what the prefix around it
//! says, and so does one that only the active generation has to the next one. Such left-over entries say what the lookup without
//! them would, and are removed once nobody reads the older generation.

use std::collections::BTreeMap;
use std::os::fd::AsFd as _;

use agent_common::{IdentityKey, IdentityValue, Versioned};
use aya::maps::{LpmTrie, MapData, lpm_trie::Key as Prefix};
use imbl::ordmap::DiffItem;

use super::{
    drift::{self, Digest, Looked, TableState},
    error::Error,
    sys,
    tables::{Network, Owner, Table},
    wire::{Raw, bytes},
};

type Owners = Table<Network, Owner>;
type Value = Versioned<IdentityValue>;
/// The pinned map.
pub(super) type Trie = LpmTrie<MapData, [u8; 16], Raw<Value>>;

const MAP: &str = "identities";

/// What the kernel's map says, as this agent knows it.
pub(super) struct Identities {
    trie: Trie,
    /// The same map, for calls that aya does not offer.
    data: MapData,
    /// In common with the tables that it was told, so that what the next ones change is found without looking at the rest.
    active: Owners,
    /// What the generation that is being prepared says.
    next: Option<Next>,
    /// Of the active entries, once it was asked for.
    digest: Option<Digest>,
    /// Entries that say nothing any more, once the generation before is read by nobody.
    left_over: Vec<Network>,
}

struct Next {
    generation: u32,
    table: Owners,
    /// What it says of each network where the active generation says something else.
    changes: Vec<(Network, Option<Owner>)>,
}

impl std::fmt::Debug for Identities {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Identities").finish_non_exhaustive()
    }
}

/// What the longest prefix around `network`, itself included, says.
fn resolve(table: &Owners, network: &Network) -> Option<Owner> {
    (0..=network.bits())
        .rev()
        .find_map(|bits| table.get(&network.around(bits)).copied())
}

impl Identities {
    /// Takes the map over: what an interrupted agent prepared is undone, what generation `active` says is learnt.
    pub(super) fn take_over(trie: Trie, data: MapData, active: u32) -> Result<Self, Error> {
        let mut identities = Self {
            trie,
            data,
            active: Owners::new(),
            next: None,
            digest: None,
            left_over: Vec::new(),
        };
        let mut found = Vec::new();
        for entry in identities.trie.iter() {
            let (key, Raw(value)) = entry.map_err(Error::map("read", MAP))?;
            let network = Network::from(IdentityKey::new(key.prefix_len(), key.data()));
            found.push((network, value));
        }
        // Entries of two generations at once are made single; without an active generation nothing holds.
        let mut rewritten = Vec::new();
        for (network, value) in found {
            match value.at(active).copied().filter(|_| active > 0) {
                Some(owner) => {
                    identities.active.insert(network, Owner::from(owner));
                    if value.since() > active || value.previous().is_some() {
                        rewritten.push((network, Versioned::new(active, Some(owner), None)));
                    }
                }
                None => identities.remove(&network)?,
            }
        }
        identities.write(&rewritten)?;
        // Entries that repeat the prefix around them may be left over, or may be meant; they decide nothing either way.
        Ok(identities)
    }

    /// Entries that the map would hold while `wanted` is prepared.
    pub(super) fn needed(&self, wanted: &Owners) -> usize {
        let added = self.active.diff(wanted);
        let added = added.filter(|change| matches!(change, DiffItem::Add(..)));
        self.active.len() + self.left_over.len() + added.count()
    }

    /// Entries in the map.
    pub(super) fn len(&self) -> usize {
        self.active.len() + self.left_over.len()
    }

    /// Writes what `generation` changes beside what is active. Gives the number of entries written.
    pub(super) fn stage(&mut self, generation: u32, wanted: &Owners) -> Result<usize, Error> {
        let (mut changes, mut writes) = (Vec::new(), Vec::new());
        for change in self.active.diff(wanted) {
            let (network, before, after) = match change {
                DiffItem::Add(network, owner) => {
                    let around = resolve(&self.active, network);
                    changes.push((*network, Some(*owner)));
                    (network, around, Some(*owner))
                }
                DiffItem::Update { old, new } => {
                    changes.push((*new.0, Some(*new.1)));
                    (new.0, Some(*old.1), Some(*new.1))
                }
                DiffItem::Remove(network, owner) => {
                    changes.push((*network, None));
                    (network, Some(*owner), resolve(wanted, network))
                }
            };
            writes.push((*network, version(generation, after, before)));
        }
        // Known before the first write, so that an interrupted one can be undone.
        self.next = Some(Next {
            generation,
            table: wanted.clone(),
            changes,
        });
        self.write(&writes)?;
        Ok(writes.len())
    }

    /// The staged generation is the active one now.
    pub(super) fn commit(&mut self) {
        let Some(next) = self.next.take() else {
            return;
        };
        let gone = next.changes.iter().filter(|(_, owner)| owner.is_none());
        self.left_over.extend(gone.map(|(network, _)| *network));
        if !next.changes.is_empty() {
            self.digest = None;
        }
        // Also if nothing differs: the generation after it has its nodes in common with this one.
        self.active = next.table;
    }

    /// Takes the staged generation back.
    pub(super) fn abandon(&mut self) -> Result<(), Error> {
        let Some(Next {
            generation,
            changes,
            ..
        }) = self.next.take()
        else {
            return Ok(());
        };
        // Of a generation before the staged one, so that it can be any active one's.
        let since = generation.saturating_sub(1);
        let mut back = Vec::new();
        for (network, _) in &changes {
            match self.active.get(network).copied() {
                Some(owner) => back.push((*network, version(since, Some(owner), Some(owner)))),
                None => self.remove(network)?,
            }
        }
        self.write(&back)
    }

    /// Removes what is left over. Only when no program reads the generation before the active one any more.
    pub(super) fn sweep(&mut self) -> Result<(), Error> {
        while let Some(network) = self.left_over.pop() {
            if !self.active.contains_key(&network) {
                self.remove(&network)?;
            }
        }
        Ok(())
    }

    /// Compares what the map says to `active`, the active generation, with what it should, and puts it right. Only while no
    /// other generation is prepared, and after a sweep. `size` is the map's.
    pub(super) fn restore(&mut self, active: u32, size: usize) -> Looked {
        let wanted = |owner: &Owner| Versioned::new(0, Some(IdentityValue::from(*owner)), None);
        let digest = *self.digest.get_or_insert_with(|| {
            let mut digest = Digest::default();
            for (network, owner) in &self.active {
                digest.add(bytes(&network.key()), bytes(&wanted(owner)));
            }
            digest
        });
        let says = |value: &Value| -> Value {
            // What only a later generation would be told is as wrong as what this one is told.
            let since = if value.since() > active {
                value.since()
            } else {
                0
            };
            Versioned::new(since, value.at(active).copied(), None)
        };
        let mut state = TableState::sound(MAP, digest);
        let map = self.data.fd().as_fd();
        let failed = || Error::kernel("read map `identities`");
        let mut found = Digest::default();
        sys::map_read(map, size, |key: &IdentityKey, value: &Value| {
            found.add(bytes(key), bytes(&says(value)));
        })
        .map_err(failed())?;
        if found == digest {
            return Ok((state, Ok(())));
        }
        let all: BTreeMap<IdentityKey, Value> = self
            .active
            .iter()
            .map(|(network, owner)| (network.key(), wanted(owner)))
            .collect();
        let difference = drift::compare(map, size, &all, digest, says).map_err(failed())?;
        let Some(difference) = difference else {
            return Ok((state, Ok(())));
        };
        state.drifted = difference.len();
        let entries: Vec<_> = difference
            .write
            .into_iter()
            .map(|(key, value)| {
                let holds = Versioned::new(active, value.current().copied(), None);
                (Network::from(key), holds)
            })
            .collect();
        // What is too many first: the map may be full of it.
        let removed = difference
            .remove
            .iter()
            .try_for_each(|key| sys::map_delete(map, key))
            .map_err(Error::kernel("remove an entry of map `identities`"));
        let written = self.write(&entries);
        Ok((state, removed.and(written)))
    }

    fn remove(&mut self, network: &Network) -> Result<(), Error> {
        let key = Prefix::new(network.bits(), network.address());
        super::maps::gone(self.trie.remove(&key), MAP)
    }

    fn write(&mut self, entries: &[(Network, Value)]) -> Result<(), Error> {
        if entries.is_empty() {
            return Ok(());
        }
        let keys: Vec<_> = entries.iter().map(|(network, _)| network.key()).collect();
        let values: Vec<_> = entries.iter().map(|(_, value)| *value).collect();
        let batch = sys::map_update_batch(self.data.fd().as_fd(), &keys, &values)
            .map_err(Error::kernel("write identities"))?;
        if batch.is_none() {
            for (network, value) in entries {
                let key = Prefix::new(network.bits(), network.address());
                self.trie
                    .insert(&key, Raw(*value), 0)
                    .map_err(Error::map("write", MAP))?;
            }
        }
        Ok(())
    }
}

fn version(generation: u32, current: Option<Owner>, previous: Option<Owner>) -> Value {
    Versioned::new(
        generation,
        current.map(IdentityValue::from),
        previous.map(IdentityValue::from),
    )
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use agent_common::Identity;

    use super::*;

    fn network(text: &str, length: u8) -> Network {
        Network::new(text.parse::<IpAddr>().expect("an address"), length)
    }

    #[test]
    fn the_longest_prefix_around_a_network_speaks_for_it() {
        let owner = |number| Owner {
            identity: Identity::external(number),
            ifindex: 0,
            cell: 0,
        };
        let table: Owners = [
            (network("0.0.0.0", 0), owner(1)),
            (network("10.0.0.0", 8), owner(2)),
            (network("10.1.0.0", 16), owner(3)),
            (network("::", 0), owner(4)),
        ]
        .into_iter()
        .collect();
        for (text, length, expected) in [
            ("10.1.2.3", 32, 3),
            ("10.1.0.0", 16, 3),
            ("10.1.0.0", 15, 2),
            ("10.2.0.0", 16, 2),
            ("11.0.0.0", 8, 1),
            ("fd00::1", 128, 4),
        ] {
            assert_eq!(
                resolve(&table, &network(text, length)),
                Some(owner(expected)),
                "{text}/{length}"
            );
        }
        assert_eq!(resolve(&Owners::new(), &network("10.0.0.1", 32)), None);
    }
}
