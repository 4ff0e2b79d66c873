//! Maps of maps by slot: endpoints name a slot, so that an unchanged component's rules and a living pod's flows stay where
//! they are from one generation to the next.
//!
//! A slot that no generation names any more keeps its old inner map until the next write, since each write to a map of maps
//! waits for all readers: many slots at once cost as much as one. Before kernel 6.8 each slot costs a wait of its own, some 20 ms,
//! reading one too, so that no slot is touched there without need.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::sync::Arc;

use aya::maps::{ArrayOfMaps, MapData};

use super::{error::Error, sys};

/// One map of maps.
pub(super) struct Slots {
    name: &'static str,
    map: ArrayOfMaps<MapData>,
    /// The same map, for calls that aya does not offer.
    data: MapData,
    /// What a free slot holds.
    empty: MapData,
    taken: BTreeSet<u32>,
    /// The kernel's number of the map that was put into each taken slot; of an earlier agent's, once it was looked at.
    own: BTreeMap<u32, u32>,
    /// Whether the slots of one look cost one wait at most.
    waits_once: bool,
    /// The one slot that is looked at this time, where each costs a wait.
    turn: u32,
    /// Free slots whose old inner maps are still there.
    stale: BTreeSet<u32>,
    size: u32,
}

impl Slots {
    /// `taken` are the slots that the active generation names; all others are free, whatever they hold. `waits_once` tells
    /// whether many slots can be written for the price of one.
    pub(super) fn new(
        name: &'static str,
        map: ArrayOfMaps<MapData>,
        data: MapData,
        empty: MapData,
        taken: BTreeSet<u32>,
        waits_once: bool,
    ) -> Result<Self, Error> {
        let size = map.len();
        // The lowest free slots are taken first, so that few above the highest taken one hold anything. What an earlier
        // agent had in these stays until the slot is taken again.
        let end = if waits_once {
            size
        } else {
            taken.last().copied().unwrap_or(1)
        };
        // Slot 0 is the one that is written when there is nothing else to write.
        let stale = (1..end).filter(|slot| !taken.contains(slot)).collect();
        let mut slots = Self {
            name,
            map,
            data,
            empty,
            taken,
            own: BTreeMap::new(),
            waits_once,
            turn: 0,
            stale,
            size,
        };
        if waits_once {
            for slot in slots.taken.clone() {
                slots.holds_its_own(slot)?;
            }
        }
        Ok(slots)
    }

    /// The kernel's number of the map in a slot; `None` if there is none.
    fn found(&self, slot: u32) -> Result<Option<u32>, Error> {
        sys::map_lookup(self.data.fd().as_fd(), &slot)
            .map_err(Error::kernel(format!("read {}", self.name)))
    }

    /// A look at all slots begins. Before kernel 6.8 only one of them has its turn.
    pub(super) fn look(&mut self) {
        let next = self.taken.range(self.turn.saturating_add(1)..).next();
        self.turn = next.or(self.taken.first()).copied().unwrap_or(0);
    }

    /// Whether a slot still holds the map that was put there; also if it is not the slot's turn to be looked at.
    pub(super) fn holds_its_own(&mut self, slot: u32) -> Result<bool, Error> {
        if !self.waits_once && slot != self.turn {
            return Ok(true);
        }
        let found = self.found(slot)?;
        match (self.own.get(&slot), found) {
            (Some(own), found) => Ok(found == Some(*own)),
            (None, Some(found)) => {
                self.own.insert(slot, found);
                Ok(true)
            }
            (None, None) => Ok(false),
        }
    }

    /// The map that was put into a slot, wherever it is now; `None` if it is nowhere any more, or not known.
    pub(super) fn own(&self, slot: u32) -> Option<MapData> {
        self.own
            .get(&slot)
            .and_then(|id| MapData::from_id(*id).ok())
    }

    /// Puts another map into a taken slot, in one step.
    pub(super) fn replace(&mut self, slot: u32, map: &MapData) -> Result<(), Error> {
        self.write(&[slot], &[descriptor(map)])?;
        self.own.insert(slot, number(map, self.name)?);
        Ok(())
    }

    /// Slots that are in use.
    pub(super) fn used(&self) -> usize {
        self.taken.len()
    }

    /// Slots that there are to use.
    pub(super) fn size(&self) -> usize {
        // Without slot 0.
        self.size.saturating_sub(1) as usize
    }

    /// The inner map in a slot.
    pub(super) fn get(&self, slot: u32) -> Result<MapData, Error> {
        self.map
            .get(&slot, 0)
            .map_err(Error::map("read", self.name))
    }

    /// Puts maps into free slots, and gives their numbers in the same order. What earlier maps leave behind goes now.
    pub(super) fn insert(&mut self, maps: &[Arc<MapData>]) -> Result<Vec<u32>, Error> {
        if maps.is_empty() {
            return Ok(Vec::new());
        }
        let free: Vec<u32> = (1..self.size)
            .filter(|slot| !self.taken.contains(slot))
            .take(maps.len())
            .collect();
        if free.len() < maps.len() {
            return Err(Error::Capacity {
                map: self.name,
                generation: 0,
                needed: self.taken.len() + maps.len(),
                limit: self.size(),
            });
        }
        self.put(&free, maps)?;
        Ok(free)
    }

    /// Puts maps into these free slots, in the same order. What earlier maps leave behind goes now.
    pub(super) fn put(&mut self, free: &[u32], maps: &[Arc<MapData>]) -> Result<(), Error> {
        if free.is_empty() {
            return Ok(());
        }
        let mut slots = free.to_vec();
        let mut values: Vec<u32> = maps.iter().map(|map| descriptor(map)).collect();
        for slot in self.stale.iter().filter(|slot| !free.contains(slot)) {
            slots.push(*slot);
            values.push(descriptor(&self.empty));
        }
        self.write(&slots, &values)?;
        self.stale.clear();
        self.taken.extend(free);
        for (slot, map) in free.iter().zip(maps) {
            self.own.insert(*slot, number(map, self.name)?);
        }
        Ok(())
    }

    /// Waits until every program that runs now has ended: one that read the generation before a flip must find all of it. A
    /// write into a map of maps returns only then (kernel 4.20, `maybe_wait_bpf_programs`).
    pub(super) fn settle(&mut self) -> Result<(), Error> {
        self.map
            .set(0, &self.empty, 0)
            .map_err(Error::map("write", self.name))
    }

    /// Gives slots back that no generation names any more. Only when nobody reads a generation that named them.
    pub(super) fn free(&mut self, slots: impl IntoIterator<Item = u32>) {
        for slot in slots {
            if self.taken.remove(&slot) {
                self.own.remove(&slot);
                self.stale.insert(slot);
            }
        }
    }

    fn write(&mut self, slots: &[u32], values: &[u32]) -> Result<(), Error> {
        let batch = sys::map_update_batch(self.data.fd().as_fd(), slots, values)
            .map_err(Error::kernel(format!("write {}", self.name)))?;
        if batch.is_none() {
            // One call and one wait for each: an old kernel's price, for what is new only.
            for (slot, value) in slots.iter().zip(values) {
                sys::map_update(self.data.fd().as_fd(), slot, value)
                    .map_err(Error::kernel(format!("write {}", self.name)))?;
            }
        }
        Ok(())
    }
}

/// What a map of maps takes for a value.
fn descriptor(map: &MapData) -> u32 {
    map.fd().as_fd().as_raw_fd() as u32
}

fn number(map: &MapData, name: &'static str) -> Result<u32, Error> {
    let info = map.info().map_err(Error::map("ask about inner", name))?;
    Ok(info.id())
}
