//! Slots for a service, and what is written into them.

use agent_common::{Backend as WireBackend, Service as WireService, address_bytes};

use super::super::error::Error;
use super::super::tables::Backend;
use super::alias::columns;
use super::book::Writes;
use super::placed::{Placed, Slot, Wish};
use super::ranges::Ranges;
use super::slots::{Free, Slots};

/// Gives a service its slots.
pub(super) struct Fill<'a> {
    pub(super) generation: u32,
    pub(super) free: &'a mut Free,
    pub(super) taken: &'a mut Slots,
    pub(super) writes: &'a mut Writes,
}

impl Fill<'_> {
    /// Takes slots for what is new and fills them. What was taken is in `taken`, also if it fails.
    ///
    /// # Errors
    ///
    /// When the choices find no room in one row.
    pub(super) fn place(
        self,
        drafted: Vec<(Backend, Option<Slot>)>,
        (asked, affinity): (Vec<Backend>, u32),
    ) -> Result<Placed, Error> {
        // A map of backends has fewer than 2^32 slots, and this many were found to be free (`Book::check`).
        let count = drafted.len() as u32;
        let fresh = drafted.iter().filter(|(_, slot)| slot.is_none()).count() as u32;
        let Some(choices) = self.free.choices.take(count) else {
            return Err(self.full("choices", &self.free.choices, count));
        };
        self.taken.choices.push(choices.clone());
        let Some(pieces) = self.free.backends.take_any(fresh) else {
            return Err(self.full("backends", &self.free.backends, fresh));
        };
        self.taken.backends.extend(pieces.iter().cloned());
        let mut indexes = pieces.into_iter().flatten();
        let mut backends = Vec::with_capacity(drafted.len());
        let mut weights = Vec::with_capacity(drafted.len());
        for (backend, slot) in drafted {
            let slot = slot.unwrap_or_else(|| {
                let index = indexes.next().expect("as many were taken as are new");
                let port = backend.port.to_be_bytes();
                let wire = WireBackend::new(address_bytes(backend.address), port, self.generation);
                self.writes.backends.push((index, wire));
                Slot { index, wire }
            });
            weights.push((slot.index, backend.weight));
            backends.push(slot);
        }
        let columns = (choices.start..).zip(columns(&weights));
        self.writes.choices.extend(columns);
        Ok(Placed {
            wire: WireService::new(choices.start, count, affinity),
            since: self.generation,
            backends,
            wish: Wish::Told(asked),
        })
    }

    /// There is room, but not in one row: the map would have to be longer by what is missing.
    fn full(&self, map: &'static str, slots: &Ranges, count: u32) -> Error {
        Error::Capacity {
            map,
            generation: self.generation,
            needed: (slots.size() + count.saturating_sub(slots.longest())) as usize,
            limit: slots.size() as usize,
        }
    }
}
