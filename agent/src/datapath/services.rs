//! Services in the kernel: a change costs what changed, whatever the number of the others.
//!
//! `services` says what an address is to the active generation and to the one that is prepared; `choices` and `backends`
//! hold what it names, and are memory of this process; so is `ports`, which tells the hooks what they need not look for. A step is planned (`book`), which also finds out whether it fits,
//! and then written with one or two system calls. The maps are their own record: an agent that starts again reads them and goes on.

use std::collections::BTreeMap;
use std::os::fd::AsFd as _;
use std::path::Path;

use agent_common::{Backend, Choice, Ports, Service as WireService, ServiceKey, Versioned, Wire};
use aya::Ebpf;
use aya::maps::{HashMap, MapData, MapError};

use super::drift::{self, Digest, Looked, TableState};
use super::error::Error;
use super::grace::Grace;
use super::mapped::Mapped;
use super::maps::{gone, take};
use super::sys;
use super::tables::{Service, ServiceAddress, Table};
use super::wire::{Raw, bytes};

mod alias;
mod book;
mod draft;
mod fill;
mod placed;
mod ports;
mod ranges;
mod slots;

use book::{Book, Writes};

/// The maps, and what is in them.
pub(super) struct Services {
    entries: HashMap<MapData, Raw<ServiceKey>, Raw<Versioned<WireService>>>,
    /// The same map, for calls that aya does not offer.
    entries_data: MapData,
    choices: Mapped<Choice>,
    backends: Mapped<Backend>,
    ports: Mapped<Ports>,
    book: Book,
    /// What a planned generation has to write.
    planned: Option<Writes>,
    grace: Grace,
    /// Whether a program may still run that began before the last step or flip.
    unsettled: bool,
}

const NAMES: [&str; 3] = ["services", "choices", "backends"];
const PORTS: &str = "ports";

impl Services {
    /// Takes the maps out of a loaded object whose maps are pinned in `root`, and reads what `active` has in them.
    ///
    /// # Errors
    ///
    /// When the kernel refuses, and when the maps contradict each other.
    pub(super) fn take(ebpf: &mut Ebpf, root: &Path, active: u32) -> Result<Self, Error> {
        let open =
            |name| MapData::from_pin(root.join(name)).map_err(Error::map("open pinned", name));
        let [entries, choices, backends] = NAMES;
        let entries_data = open(entries)?;
        let limit = entries_data
            .info()
            .map_err(Error::map("read", entries))?
            .max_entries();
        let choices = Mapped::new(open(choices)?, choices)?;
        let backends = Mapped::new(open(backends)?, backends)?;
        let ports = Mapped::new(open(PORTS)?, PORTS)?;
        let mut services = Self {
            entries: take(ebpf, entries)?,
            entries_data,
            book: Book::new(limit as usize, choices.count(), backends.count()),
            choices,
            backends,
            ports,
            planned: None,
            grace: Grace::new()?,
            // The agent before may have ended right after a step of its own.
            unsettled: true,
        };
        services.adopt(active)?;
        Ok(services)
    }

    fn adopt(&mut self, active: u32) -> Result<(), Error> {
        let contradiction = || Error::Contradiction { map: "services" };
        for entry in self.entries.iter() {
            let (Raw(key), Raw(entry)) = entry.map_err(Error::map("read", "services"))?;
            let mut choices = Vec::new();
            if let Some(service) = entry.at(active) {
                let first = service.first();
                for index in first..first.saturating_add(service.count()) {
                    let choice = self.choices.get(index)?.ok_or_else(contradiction)?;
                    let backend = self.backends.get(choice.own())?;
                    choices.push((choice, backend.ok_or_else(contradiction)?));
                }
            }
            self.book
                .adopt(active, key, &entry, choices)
                .ok_or_else(contradiction)?;
        }
        Ok(())
    }

    /// A grace period has passed since the last step and flip. Without this word a step waits for one itself.
    pub(super) fn settled(&mut self) {
        self.unsettled = false;
    }

    /// Plans the wanted services of `generation`. Nothing is written before [`Services::stage`].
    ///
    /// # Errors
    ///
    /// [`Error::Capacity`] and [`Error::Staged`]. Nothing is planned then.
    pub(super) fn plan(
        &mut self,
        generation: u32,
        wanted: &Table<ServiceAddress, Service>,
    ) -> Result<(), Error> {
        self.planned = Some(self.book.stage(generation, wanted)?);
        Ok(())
    }

    /// Writes what was planned; the active generation keeps its own services.
    ///
    /// # Errors
    ///
    /// When the kernel refuses. The generation is then to be abandoned.
    pub(super) fn stage(&mut self) -> Result<(), Error> {
        match self.planned.take() {
            Some(writes) => self.carry_out(&writes),
            None => Ok(()),
        }
    }

    /// The staged generation is the active one from here on.
    pub(super) fn commit(&mut self) {
        self.unsettled |= self.book.commit();
    }

    /// Takes back what was planned or staged for `generation`, if anything was.
    ///
    /// # Errors
    ///
    /// When the kernel refuses. What is left then decides nothing, and goes with the next step that succeeds.
    pub(super) fn abandon(&mut self, generation: u32) -> Result<(), Error> {
        if !self.book.is_staged(generation) {
            return Ok(());
        }
        if self.planned.take().is_some() {
            self.book.unplan();
            return Ok(());
        }
        let writes = self.book.abandon();
        self.carry_out(&writes)?;
        self.book.undone();
        Ok(())
    }

    /// Removes what only the generation before the active one had.
    ///
    /// # Errors
    ///
    /// When the kernel refuses. What is left then decides nothing, and goes with the next step that succeeds.
    pub(super) fn retire(&mut self) -> Result<(), Error> {
        let writes = self.book.retire();
        self.carry_out(&writes)?;
        self.book.cleaned();
        Ok(())
    }

    /// Compares what the maps hold for `active`, the active generation, with what they should, and puts it right. Only while no
    /// other generation is prepared. Nothing is looked at while something is left of a step that failed: the next one that
    /// succeeds makes it good.
    pub(super) fn restore(&mut self, active: u32) -> Vec<Looked> {
        let Some(wanted) = self.book.wanted() else {
            return Vec::new();
        };
        // What an entry needs is right before the entry is.
        vec![
            self.restore_ports(&wanted),
            restore_array("backends", &mut self.backends, &wanted.backends),
            restore_array("choices", &mut self.choices, &wanted.choices),
            self.restore_entries(active, &wanted.entries.into_iter().collect()),
        ]
    }

    /// A port that is noted beside the wanted ones may be an earlier generation's.
    fn restore_ports(&mut self, wanted: &Writes) -> Looked {
        let wanted = ports::of(wanted);
        let mut state = TableState::sound(PORTS, Digest::of(wanted.iter()));
        state.drifted = ports::note(&mut self.ports, &wanted)?;
        Ok((state, Ok(())))
    }

    fn restore_entries(
        &mut self,
        active: u32,
        wanted: &BTreeMap<ServiceKey, Versioned<WireService>>,
    ) -> Looked {
        let says = |value: &Versioned<WireService>| {
            // What only a later generation would be told is as wrong as what this one is told.
            let since = if value.since() > active {
                value.since()
            } else {
                0
            };
            Versioned::new(since, value.at(active).copied(), None)
        };
        let canonical: BTreeMap<_, _> = wanted
            .iter()
            .map(|(key, entry)| (*key, says(entry)))
            .collect();
        let digest = Digest::of(canonical.iter());
        let mut state = TableState::sound("services", digest);
        let map = self.entries_data.fd().as_fd();
        let difference = drift::compare(map, self.book.limit(), &canonical, digest, says)
            .map_err(Error::kernel("read map `services`"))?;
        let Some(difference) = difference else {
            return Ok((state, Ok(())));
        };
        state.drifted = difference.len();
        let removed = difference
            .remove
            .iter()
            .try_for_each(|key| sys::map_delete(map, key));
        let written = difference.write.iter().try_for_each(|(key, _)| {
            let entry = wanted.get(key).copied();
            entry.map_or(Ok(()), |entry| sys::map_update(map, key, &entry))
        });
        Ok((
            state,
            removed
                .and(written)
                .map_err(Error::kernel("put map `services` right")),
        ))
    }

    /// Slots in use, by map; those of a generation that is not retired count.
    pub(super) fn used(&self) -> impl Iterator<Item = (&'static str, usize)> {
        NAMES.into_iter().zip(self.book.used())
    }

    fn carry_out(&mut self, writes: &Writes) -> Result<(), Error> {
        if writes.is_empty() {
            return Ok(());
        }
        if self.unsettled {
            self.grace.wait()?;
        }
        self.unsettled = true;
        // What an entry needs is there before the entry: the kernel publishes an entry after what this thread wrote.
        ports::note(&mut self.ports, &ports::of(writes))?;
        for (index, value) in &writes.backends {
            self.backends.set(*index, *value)?;
        }
        for (index, value) in &writes.choices {
            self.choices.set(*index, *value)?;
        }
        let Self {
            entries,
            entries_data,
            ..
        } = self;
        remove_many(entries_data, "services", &writes.removed, |key| {
            entries.remove(&Raw(key))
        })?;
        write_many(entries_data, "services", &writes.entries, |key, value| {
            entries.insert(Raw(key), Raw(value), 0)
        })
    }
}

/// Writes the entries of an array that are not as wanted. Others are nobody's, whatever is in them.
fn restore_array<T: Wire>(
    name: &'static str,
    array: &mut Mapped<T>,
    wanted: &[(u32, T)],
) -> Looked {
    let digest = Digest::of(wanted.iter().map(|(index, value)| (index, value)));
    let mut state = TableState::sound(name, digest);
    let mut repaired = Ok(());
    for (index, value) in wanted {
        let found = array.get(*index)?;
        if found.is_none_or(|found| bytes(&found) != bytes(value)) {
            state.drifted += 1;
            repaired = repaired.and(array.set(*index, *value));
        }
    }
    Ok((state, repaired))
}

/// Writes entries with one call, or one by one where the kernel has no such call.
fn write_many<K: Wire, V: Wire>(
    map: &MapData,
    name: &'static str,
    entries: &[(K, V)],
    mut one: impl FnMut(K, V) -> Result<(), MapError>,
) -> Result<(), Error> {
    if entries.is_empty() {
        return Ok(());
    }
    let (keys, values): (Vec<K>, Vec<V>) = entries.iter().copied().unzip();
    let batch = sys::map_update_batch(map.fd().as_fd(), &keys, &values)
        .map_err(Error::kernel(format!("write many entries of map `{name}`")))?;
    if batch.is_none() {
        for (key, value) in entries {
            one(*key, *value).map_err(Error::map("write", name))?;
        }
    }
    Ok(())
}

/// Removes entries with one call; one by one if one of them is missing, at which that call stops.
fn remove_many<K: Wire>(
    map: &MapData,
    name: &'static str,
    keys: &[K],
    mut one: impl FnMut(K) -> Result<(), MapError>,
) -> Result<(), Error> {
    if keys.is_empty() {
        return Ok(());
    }
    match sys::map_delete_batch(map.fd().as_fd(), keys) {
        Ok(Some(())) => return Ok(()),
        Ok(None) => {}
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {}
        Err(error) => {
            return Err(Error::kernel(format!(
                "remove many entries of map `{name}`"
            ))(error));
        }
    }
    for key in keys {
        gone(one(*key), name)?;
    }
    Ok(())
}
