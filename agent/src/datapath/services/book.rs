//! Which slot belongs to which service, and what must be written to get from one generation's services to the next.
//!
//! Flows in: the services of a generation. Flows out: [`Writes`], which the caller carries out. No kernel in it, so that
//! tests can play the kernel.
//!
//! A step writes each key of `services` at most once. Before a step the caller lets a grace period pass, if anything
//! was written or switched since the last one: a reader then meets at most one change of a key, which is what it can
//! notice (`agent-ebpf/src/connect.rs`), and what the generation before the active one had is nobody's any more.

use std::collections::{BTreeMap, BTreeSet};

use agent_common::{
    Backend as WireBackend, Choice, Service as WireService, ServiceKey, Versioned, address_bytes,
    address_ip,
};
use imbl::ordmap::DiffItem;

use super::super::error::Error;
use super::super::tables::{Service, ServiceAddress, Table};
use super::draft::Draft;
use super::fill::Fill;
use super::placed::{Placed, Slot, Wish};
use super::ranges::Ranges;
use super::slots::{Free, Slots};

/// What a step writes, in this order.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Writes {
    pub(super) backends: Vec<(u32, WireBackend)>,
    pub(super) choices: Vec<(u32, Choice)>,
    /// Entries to remove; one that is not there is as good as removed.
    pub(super) removed: Vec<ServiceKey>,
    pub(super) entries: Vec<(ServiceKey, Versioned<WireService>)>,
}

impl Writes {
    pub(super) fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// A generation that is written and not active.
#[derive(Debug)]
struct Staged {
    generation: u32,
    told: Table<ServiceAddress, Service>,
    after: BTreeMap<ServiceAddress, Option<Placed>>,
    /// Free again if it never comes.
    taken: Slots,
    /// Free when the one before it is gone.
    given: Slots,
    /// Backends that end with it, as the active generation has them.
    ended: BTreeMap<u32, WireBackend>,
}

/// What the kernel's maps hold beside the active generation's services. The next step that writes makes it good.
#[derive(Debug, Default)]
struct Remains {
    /// Keys that say nothing to the active generation.
    keys: BTreeSet<ServiceAddress>,
    /// Services whose entry speaks of a generation that never came.
    entries: BTreeSet<ServiceAddress>,
    /// Backends whose end was written for such a generation, as they should be.
    ended: BTreeMap<u32, WireBackend>,
}

/// Everything about the services in the kernel.
#[derive(Debug)]
pub(super) struct Book {
    /// Entries that the map `services` can hold.
    limit: usize,
    free: Free,
    /// The active generation's services.
    placed: BTreeMap<ServiceAddress, Placed>,
    /// What they were made of, so that what the next generation changes is found without looking at the rest; none if they
    /// were read back from the kernel.
    told: Option<Table<ServiceAddress, Service>>,
    remains: Remains,
    staged: Option<Staged>,
    /// Slots of the generation before the active one.
    given: Slots,
}

impl Book {
    /// Nothing in the maps, which have these sizes.
    pub(super) fn new(services: usize, choices: u32, backends: u32) -> Self {
        Self {
            limit: services,
            free: Free {
                choices: Ranges::new(0..choices),
                backends: Ranges::new(0..backends),
            },
            placed: BTreeMap::new(),
            told: None,
            remains: Remains::default(),
            staged: None,
            given: Slots::default(),
        }
    }

    /// What the maps should hold for the active generation; `None` while they hold more, of a step that is under way or failed.
    pub(super) fn wanted(&self) -> Option<Writes> {
        let remains = &self.remains;
        if self.staged.is_some()
            || !(remains.keys.is_empty() && remains.entries.is_empty() && remains.ended.is_empty())
        {
            return None;
        }
        let mut wanted = Writes::default();
        for (address, placed) in &self.placed {
            let entry = Versioned::new(placed.since, Some(placed.wire), None);
            wanted.entries.push((key(address), entry));
            let slots = placed.backends.iter().map(|slot| (slot.index, slot.wire));
            wanted.backends.extend(slots);
            wanted
                .choices
                .extend((placed.wire.first()..).zip(placed.choices()));
        }
        Some(wanted)
    }

    /// Entries that the map `services` can hold.
    pub(super) fn limit(&self) -> usize {
        self.limit
    }

    /// Entries, choices and backends in use, also by what is not retired yet.
    pub(super) fn used(&self) -> [usize; 3] {
        let staged = self.staged.iter().flat_map(|staged| &staged.after);
        let new = staged.filter(|(address, _)| {
            !self.placed.contains_key(address) && !self.remains.keys.contains(address)
        });
        [
            self.placed.len() + self.remains.keys.len() + new.count(),
            self.free.choices.taken() as usize,
            self.free.backends.taken() as usize,
        ]
    }

    /// Takes over an entry of an earlier agent, whose active generation is `active`. `choices` are those that the entry
    /// names to that generation, each with its own backend. `None` if the maps contradict each other.
    pub(super) fn adopt(
        &mut self,
        active: u32,
        key: ServiceKey,
        entry: &Versioned<WireService>,
        choices: Vec<(Choice, WireBackend)>,
    ) -> Option<()> {
        let address = ServiceAddress {
            address: address_ip(key.address()),
            port: u16::from_be_bytes(key.port()),
            protocol: key.protocol(),
        };
        let Some(wire) = entry.at(active).copied() else {
            self.remains.keys.insert(address);
            return Some(());
        };
        let range = wire.first()..wire.first().checked_add(wire.count())?;
        let free = &mut self.free;
        if !free.choices.reserve(range) {
            return None;
        }
        let mut backends = Vec::new();
        for (choice, backend) in &choices {
            let index = choice.own();
            if !free.backends.reserve(index..index.checked_add(1)?) {
                return None;
            }
            let whole = backend.until(u32::MAX);
            if backend.ends() {
                self.remains.ended.insert(index, whole);
            }
            backends.push(Slot { index, wire: whole });
        }
        if entry.since() > active {
            self.remains.entries.insert(address);
        }
        let placed = Placed {
            wire,
            since: entry.since().min(active),
            backends,
            wish: Wish::Read(choices.into_iter().map(|(choice, _)| choice).collect()),
        };
        self.placed.insert(address, placed);
        Some(())
    }

    /// What to write so that `generation` has the wanted services and the active one keeps its own.
    ///
    /// # Errors
    ///
    /// When they do not fit, and when another generation is staged. Nothing is changed then.
    pub(super) fn stage(
        &mut self,
        generation: u32,
        wanted: &Table<ServiceAddress, Service>,
    ) -> Result<Writes, Error> {
        if self.staged.is_some() {
            return Err(Error::Staged { generation });
        }
        self.free.put(std::mem::take(&mut self.given));
        let drafts = self.drafts(wanted);
        self.check(generation, &drafts)?;
        let mut writes = Writes {
            removed: (self.remains.keys.iter())
                .filter(|address| !wanted.contains_key(*address))
                .map(key)
                .collect(),
            backends: (self.remains.ended.iter())
                .map(|(index, wire)| (*index, *wire))
                .collect(),
            ..Writes::default()
        };
        let mut staged = Staged {
            generation,
            told: wanted.clone(),
            after: BTreeMap::new(),
            taken: Slots::default(),
            given: Slots::default(),
            ended: BTreeMap::new(),
        };
        for draft in drafts {
            if let Err(error) = self.place(generation, draft, &mut staged, &mut writes) {
                self.free.put(staged.taken);
                return Err(error);
            }
        }
        for address in &self.remains.entries {
            if !staged.after.contains_key(address)
                && let Some(placed) = self.placed.get(address)
            {
                let same = Versioned::new(generation, Some(placed.wire), Some(placed.wire));
                writes.entries.push((key(address), same));
            }
        }
        self.staged = Some(staged);
        Ok(writes)
    }

    /// The staged generation is active. Tells whether it has changed anything.
    pub(super) fn commit(&mut self) -> bool {
        let Some(staged) = self.staged.take() else {
            return false;
        };
        let changed = !staged.after.is_empty();
        self.told = Some(staged.told);
        self.remains = Remains::default();
        for (address, after) in staged.after {
            match after {
                Some(placed) => drop(self.placed.insert(address, placed)),
                None => {
                    self.placed.remove(&address);
                    self.remains.keys.insert(address);
                }
            }
        }
        self.given.add(staged.given);
        changed
    }

    /// Whether this generation is staged.
    pub(super) fn is_staged(&self, generation: u32) -> bool {
        matches!(&self.staged, Some(staged) if staged.generation == generation)
    }

    /// Forgets a staged generation of which nothing was written.
    pub(super) fn unplan(&mut self) {
        if let Some(staged) = self.staged.take() {
            self.free.put(staged.taken);
        }
    }

    /// What to write so that the staged generation leaves nothing. If that fails, the next step that writes makes it good.
    pub(super) fn abandon(&mut self) -> Writes {
        let Some(staged) = self.staged.take() else {
            return Writes::default();
        };
        let Remains {
            keys,
            entries,
            ended,
        } = &mut self.remains;
        for address in staged.after.into_keys() {
            match self.placed.contains_key(&address) {
                true => entries.insert(address),
                false => keys.insert(address),
            };
        }
        ended.extend(staged.ended);
        self.free.put(staged.taken);
        Writes {
            backends: ended.iter().map(|(index, wire)| (*index, *wire)).collect(),
            choices: Vec::new(),
            removed: keys.iter().map(key).collect(),
            entries: entries
                .iter()
                .filter_map(|address| {
                    let placed = self.placed.get(address)?;
                    let entry = Versioned::new(placed.since, Some(placed.wire), None);
                    Some((key(address), entry))
                })
                .collect(),
        }
    }

    /// What to write so that the generation before the active one leaves nothing. [`Book::cleaned`] tells that it is done.
    pub(super) fn retire(&self) -> Writes {
        Writes {
            removed: match self.staged {
                // The staged generation may have entries of its own there.
                Some(_) => Vec::new(),
                None => self.remains.keys.iter().map(key).collect(),
            },
            ..Writes::default()
        }
    }

    /// What [`Book::abandon`] asked for is written.
    pub(super) fn undone(&mut self) {
        self.remains = Remains::default();
    }

    /// What [`Book::retire`] asked for is written.
    pub(super) fn cleaned(&mut self) {
        if self.staged.is_none() {
            self.remains.keys.clear();
        }
        self.free.put(std::mem::take(&mut self.given));
    }

    /// The services that change, with what they need.
    fn drafts(&mut self, wanted: &Table<ServiceAddress, Service>) -> Vec<Draft> {
        let Some(told) = &self.told else {
            return self.read_back(wanted);
        };
        let mut drafts = Vec::new();
        for change in told.diff(wanted) {
            let (address, service) = match change {
                DiffItem::Add(address, service)
                | DiffItem::Update {
                    new: (address, service),
                    ..
                } => (*address, service),
                DiffItem::Remove(gone, _) => {
                    drafts.push(Draft::removed(*gone));
                    continue;
                }
            };
            drafts.push(match self.placed.get_mut(&address) {
                Some(placed) => {
                    // Affinities that differ by less than the kernel counts.
                    if placed.means(service) {
                        continue;
                    }
                    Draft::new(address, service, &placed.backends)
                }
                None => Draft::new(address, service, &[]),
            });
        }
        drafts
    }

    /// The same for services that were read back. Both sides are in the order of their keys, so they are walked through once.
    fn read_back(&mut self, wanted: &Table<ServiceAddress, Service>) -> Vec<Draft> {
        let mut drafts = Vec::new();
        let mut before = self.placed.iter_mut().peekable();
        for (address, service) in wanted {
            while let Some((gone, _)) = before.next_if(|(known, _)| *known < address) {
                drafts.push(Draft::removed(*gone));
            }
            let placed = before.next_if(|(known, _)| *known == address);
            if let Some((_, placed)) = placed {
                if placed.means(service) {
                    continue;
                }
                drafts.push(Draft::new(*address, service, &placed.backends));
            } else {
                drafts.push(Draft::new(*address, service, &[]));
            }
        }
        drafts.extend(before.map(|(gone, _)| Draft::removed(*gone)));
        drafts
    }

    fn check(&self, generation: u32, drafts: &[Draft]) -> Result<(), Error> {
        let fits = |map, needed: usize, limit: usize| match needed > limit {
            true => Err(Error::Capacity {
                map,
                generation,
                needed,
                limit,
            }),
            false => Ok(()),
        };
        let new = drafts
            .iter()
            .filter(|draft| !self.placed.contains_key(&draft.address))
            .count();
        let choices: usize = drafts.iter().map(|draft| draft.backends.len()).sum();
        let fresh: usize = drafts.iter().map(Draft::fresh).sum();
        let [all, own] = [&self.free.choices, &self.free.backends]
            .map(|slots| (slots.taken() as usize, slots.size() as usize));
        fits("services", self.placed.len() + new, self.limit)?;
        fits("backends", own.0 + fresh, own.1)?;
        fits("choices", all.0 + choices, all.1)
    }

    /// Plans one service.
    fn place(
        &mut self,
        generation: u32,
        draft: Draft,
        staged: &mut Staged,
        writes: &mut Writes,
    ) -> Result<(), Error> {
        let address = draft.address;
        let placed = match draft.wish {
            Some(wish) => {
                let fill = Fill {
                    generation,
                    free: &mut self.free,
                    taken: &mut staged.taken,
                    writes,
                };
                Some(fill.place(draft.backends, wish)?)
            }
            None => None,
        };
        let before = self.placed.get(&address);
        if let Some(before) = before {
            staged.end(generation, before, placed.as_ref(), writes);
        }
        let current = placed.as_ref().map(|placed| placed.wire);
        let previous = before.map(|before| before.wire);
        let entry = Versioned::new(generation, current, previous);
        writes.entries.push((key(&address), entry));
        staged.after.insert(address, placed);
        Ok(())
    }
}

impl Staged {
    /// Notes what a service has no more when `after` takes the place of `before`.
    fn end(
        &mut self,
        generation: u32,
        before: &Placed,
        after: Option<&Placed>,
        writes: &mut Writes,
    ) {
        let kept: BTreeSet<u32> = (after.iter().flat_map(|placed| &placed.backends))
            .map(|slot| slot.index)
            .collect();
        for slot in &before.backends {
            if kept.contains(&slot.index) {
                continue;
            }
            // Its choices do not name it any more, but a client may remember it.
            let ending = slot.wire.until(generation);
            writes.backends.push((slot.index, ending));
            self.ended.insert(slot.index, slot.wire);
            self.given.backends.push(slot.index..slot.index + 1);
        }
        let first = before.wire.first();
        self.given.choices.push(first..first + before.wire.count());
    }
}

fn key(address: &ServiceAddress) -> ServiceKey {
    ServiceKey::new(
        address_bytes(address.address),
        address.port.to_be_bytes(),
        address.protocol,
    )
}

#[cfg(test)]
mod tests;
