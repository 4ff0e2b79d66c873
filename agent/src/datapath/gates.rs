//! Which interfaces have gates, since when, and which of them nobody has classified yet.
//!
//! Two sides change this: the one writer, which guards the pods of a generation, and the watcher, which holds new
//! interfaces and forgets those that went. Each interface is one side's at a time; what the kernel is asked to do happens
//! outside of the lock.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::BorrowedFd;
use std::path::Path;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use agent_common::{Endpoint, EndpointKey};
use aya::maps::{Map, MapData};

use super::{
    drift::{self, Digest, Looked, TableState},
    error::Error,
    links::{self, Attached, By, GatePrograms, Links},
    maps::Hash,
    tables::Pod,
    wire::Raw,
};

/// Links of so many interfaces at once are made before a generation is active; more begin with filters. A link holds the
/// kernel's lock of network configuration for 6 to 30 ms, so those of 500 pods would keep everybody for many seconds.
const FEW: usize = 8;
mod settle;

/// The gates of one node.
pub(super) struct Gates {
    links: Links,
    programs: GatePrograms,
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    gates: BTreeMap<u32, Gate>,
    /// Interfaces that somebody works on.
    busy: BTreeSet<u32>,
    /// Pairs that lead out of this namespace or could, each with a number that no interface before it had.
    known: BTreeMap<u32, u64>,
    last_number: u64,
    /// The pods of these generations are written, or being written.
    generations: BTreeSet<u32>,
    /// Interfaces whose pod in the generation that is being prepared is not the one that is there now.
    withdrawn: BTreeSet<u32>,
    /// Pods that were removed from a generation that is in the kernel, because their interface went: nobody puts them back.
    gone: BTreeSet<(u32, u32)>,
    endpoints: Hash<EndpointKey, Endpoint>,
    last_event: Instant,
    expired: u64,
    ended: bool,
}

impl State {
    /// Whether a generation in the kernel has a pod behind an interface.
    fn has_pod(&self, ifindex: u32) -> Result<bool, Error> {
        for generation in &self.generations {
            match self
                .endpoints
                .get(&Raw(EndpointKey::new(*generation, ifindex)), 0)
            {
                Ok(_) => return Ok(true),
                Err(aya::maps::MapError::KeyNotFound) => {}
                Err(error) => return Err(Error::map("read", "endpoints")(error)),
            }
        }
        Ok(false)
    }
}

struct Gate {
    by: By,
    /// Of the interface, when the gate was made; none if nobody had met it.
    number: Option<u64>,
    /// Since when it waits for its classification; none once it is a pod's of a cell.
    held: Option<Instant>,
}

/// An interface in quarantine: nobody knows yet whose pod is behind it, and all its packets are dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Waiting {
    pub(super) ifindex: u32,
    pub(super) number: u64,
    pub(super) since: Instant,
}

impl Gates {
    /// `root` is the folder of the pinned maps, `active` the generation that they hold.
    pub(super) fn new(
        links: Links,
        programs: GatePrograms,
        root: &Path,
        active: u32,
    ) -> Result<Self, Error> {
        // A handle of its own: the writer's is in its hands for as long as it takes to write a generation.
        let endpoints = MapData::from_pin(root.join("endpoints"))
            .map_err(Error::map("open pinned", "endpoints"))?;
        let state = State {
            gates: BTreeMap::new(),
            busy: BTreeSet::new(),
            known: BTreeMap::new(),
            last_number: 0,
            generations: BTreeSet::from([active]),
            withdrawn: BTreeSet::new(),
            gone: BTreeSet::new(),
            endpoints: Hash::try_from(Map::HashMap(endpoints))
                .map_err(Error::map("use", "endpoints"))?,
            last_event: Instant::now(),
            expired: 0,
            ended: false,
        };
        Ok(Self {
            links,
            programs,
            state: Mutex::new(state),
            changed: Condvar::new(),
        })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Each change is one insertion or removal: a panic leaves nothing half done.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until nobody works on an interface.
    fn idle(&self, ifindex: u32) -> MutexGuard<'_, State> {
        let state = self.lock();
        self.changed
            .wait_while(state, |state| state.busy.contains(&ifindex))
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Does something to an interface outside of the lock, and then to what is known of it. If the interface went
    /// meanwhile, what was done may have met another one with its index, and is undone.
    fn work<T>(
        &self,
        mut state: MutexGuard<'_, State>,
        ifindex: u32,
        what: impl FnOnce() -> Result<T, Error>,
        then: impl FnOnce(&mut State, &T),
    ) -> Result<T, Error> {
        state.busy.insert(ifindex);
        let number = state.known.get(&ifindex).copied();
        drop(state);
        let mut outcome = what();
        let mut state = self.lock();
        if state.known.get(&ifindex).copied() == number {
            if let Ok(done) = &outcome {
                then(&mut state, done);
            }
        } else {
            drop(state);
            let undone = self.links.detach(ifindex);
            outcome = outcome.and_then(|done| undone.map(|()| done));
            state = self.lock();
        }
        state.busy.remove(&ifindex);
        drop(state);
        self.changed.notify_all();
        outcome
    }

    pub(super) fn links(&self) -> &Links {
        &self.links
    }

    /// Interfaces with gates.
    pub(super) fn interfaces(&self) -> BTreeSet<u32> {
        self.lock().gates.keys().copied().collect()
    }

    /// Puts this agent's programs into the gates that an earlier one left; unless `attach`, only notes these gates. One that
    /// no generation in the kernel has a pod behind is in quarantine, whoever put it there.
    pub(super) fn take_over(&self, attach: bool) -> Result<(), Error> {
        for ifindex in self.links.attached()? {
            let state = self.idle(ifindex);
            if links::interface_name(ifindex).is_none() {
                // The pod ended while no agent ran.
                self.work(
                    state,
                    ifindex,
                    || self.links.detach(ifindex),
                    |state, ()| {
                        state.gates.remove(&ifindex);
                    },
                )?;
                continue;
            }
            let by = match state.gates.get(&ifindex) {
                Some(gate) => gate.by,
                None => self.links.found(ifindex),
            };
            let held = (!state.has_pod(ifindex)?).then(Instant::now);
            self.work(
                state,
                ifindex,
                || match attach {
                    true => self.links.attach(&self.programs, ifindex, by),
                    false => Ok(Attached::Yes),
                },
                |state, attached| {
                    if *attached == Attached::Yes {
                        let number = state.known.get(&ifindex).copied();
                        let gates = state.gates.entry(ifindex);
                        gates.or_insert(Gate { by, number, held });
                    }
                },
            )?;
        }
        Ok(())
    }

    /// Attaches the gates of pods that have none; gives the interfaces that are gone. One that cannot be guarded does not
    /// keep the others from it; the first error is returned.
    pub(super) fn guard(&self, pods: &BTreeMap<u32, Pod>) -> Result<Vec<u32>, Error> {
        let state = self.lock();
        let new: Vec<_> = pods
            .iter()
            .filter(|(ifindex, _)| {
                // What has the index of a pod that went is nobody's yet, and the watcher's to hold.
                !state.gates.contains_key(ifindex) && !state.withdrawn.contains(ifindex)
            })
            .collect();
        drop(state);
        let by = match new.len() {
            0..=FEW => self.links.preferred(),
            _ => By::Filter,
        };
        let mut gone = Vec::new();
        let mut failed = None;
        for (ifindex, pod) in new {
            match self.attach(*ifindex, by, None) {
                Ok(Some(Attached::InterfaceGone)) => gone.push(*ifindex),
                Ok(_) => {}
                Err(error) => {
                    tracing::error!(
                        interface = pod.ifname,
                        error = &error as &dyn std::error::Error,
                        "a pod has no gates and is not held back"
                    );
                    failed.get_or_insert(error);
                }
            }
        }
        failed.map_or(Ok(gone), Err)
    }

    /// Attaches gates to an interface that has none; nothing is done to one that has.
    fn attach(
        &self,
        ifindex: u32,
        by: By,
        held: Option<Instant>,
    ) -> Result<Option<Attached>, Error> {
        let mut state = self.idle(ifindex);
        let number = state.known.get(&ifindex).copied();
        if let Some(gate) = state.gates.get_mut(&ifindex) {
            if held.is_some() && gate.number != number {
                // Made before anybody met the interface, for a pod that it may not be.
                (gate.held, gate.number) = (held, number);
            }
            return Ok(None);
        }
        self.work(
            state,
            ifindex,
            || self.links.attach(&self.programs, ifindex, by),
            |state, attached| {
                if *attached == Attached::Yes {
                    state.gates.insert(ifindex, Gate { by, number, held });
                }
            },
        )
        .map(Some)
    }

    /// Looks whether each gate stands, and attaches what somebody took away.
    pub(super) fn restore(&self) -> Looked {
        let mut table = TableState::sound("gates", Digest::default());
        let mut repaired = Ok(());
        for ifindex in self.interfaces() {
            let state = self.idle(ifindex);
            let Some(by) = state.gates.get(&ifindex).map(|gate| gate.by) else {
                continue;
            };
            let missing = self.work(
                state,
                ifindex,
                || {
                    let standing = self.links.standing(&self.programs, ifindex, by)?;
                    let missing = links::GATES.len() - standing;
                    // An interface that is gone is a pod that is gone, which the kernel tells or discovery does.
                    if missing > 0
                        && self.links.attach(&self.programs, ifindex, by)?
                            == Attached::InterfaceGone
                    {
                        return Ok(0);
                    }
                    Ok(missing)
                },
                |_, _| {},
            );
            table.entries += links::GATES.len();
            match missing {
                Ok(missing) => table.drifted += missing,
                Err(error) => {
                    table.drifted += 1;
                    repaired = repaired.and(Err(error));
                }
            }
        }
        Ok((table, repaired))
    }

    /// Compares the pods of the active generation with those that it was written with, and puts right what differs; pods whose
    /// interface went stay away. Nobody comes or goes meanwhile.
    pub(super) fn restore_pods(
        &self,
        map: BorrowedFd<'_>,
        size: usize,
        mut wanted: BTreeMap<EndpointKey, Endpoint>,
    ) -> Looked {
        let state = self.lock();
        wanted.retain(|key, _| !state.gone.contains(&(key.generation(), key.ifindex())));
        drift::restore("endpoints", map, size, &wanted)
    }

    /// A generation is about to be written.
    pub(super) fn writing(&self, generation: u32) {
        self.lock().generations.insert(generation);
    }

    /// A generation is no longer in the kernel.
    pub(super) fn retired(&self, generation: u32) {
        let mut state = self.lock();
        state.generations.remove(&generation);
        state.gone.retain(|(of, _)| *of != generation);
    }

    /// A generation is active: its pods leave quarantine, and the gates go that are neither in it nor in quarantine.
    pub(super) fn activated(&self, pods: &BTreeMap<u32, Pod>) {
        let mut state = self.lock();
        let State {
            gates, withdrawn, ..
        } = &mut *state;
        let mut nobodys = Vec::new();
        for (ifindex, gate) in gates {
            if !pods.contains_key(ifindex) {
                if gate.held.is_none() {
                    nobodys.push(*ifindex);
                }
            } else if !withdrawn.contains(ifindex) {
                gate.held = None;
            }
        }
        drop(state);
        for ifindex in nobodys {
            // The generation is active; a failure now must not look as if it were not. The next one tries again.
            if let Err(error) = self.detach(ifindex, |gate| gate.held.is_none()) {
                tracing::warn!(
                    ifindex,
                    error = &error as &dyn std::error::Error,
                    "gates of an interface that is no pod's any more stay; it is denied"
                );
            }
        }
        self.changed.notify_all();
    }

    fn detach(&self, ifindex: u32, still: impl FnOnce(&Gate) -> bool) -> Result<bool, Error> {
        let state = self.idle(ifindex);
        if !state.gates.get(&ifindex).is_some_and(still) {
            return Ok(false);
        }
        self.work(
            state,
            ifindex,
            || self.links.detach(ifindex),
            |state, ()| {
                state.gates.remove(&ifindex);
            },
        )
        .map(|()| true)
    }

    /// Takes every gate away.
    pub(super) fn remove_all(&self) -> Result<(), Error> {
        self.lock().gates.clear();
        self.links.remove_all()
    }

    /// Notes an interface that is there; gives its number, and whether it is new.
    pub(super) fn met(&self, ifindex: u32) -> (u64, bool) {
        let mut state = self.lock();
        if let Some(number) = state.known.get(&ifindex) {
            return (*number, false);
        }
        state.last_number += 1;
        let number = state.last_number;
        state.known.insert(ifindex, number);
        state.last_event = Instant::now();
        (number, true)
    }

    /// The interfaces that were met and are there, with their numbers.
    pub(super) fn numbers(&self) -> BTreeMap<u32, u64> {
        self.lock().known.clone()
    }

    /// Puts an interface into quarantine, if it has no gates: both gates, and no pod behind them.
    pub(super) fn hold(&self, ifindex: u32) -> Result<bool, Error> {
        let attached = self.attach(ifindex, By::Filter, Some(Instant::now()))?;
        Ok(attached == Some(Attached::Yes))
    }

    /// An interface is gone, and its index may be another's at once: what the kernel knows of its pod goes before that
    /// one has gates. Waits for nobody: the next message may be about a pod that is about to send. Gives whether it had a
    /// pod or gates.
    pub(super) fn departed(&self, ifindex: u32) -> Result<bool, Error> {
        let mut state = self.lock();
        state.known.remove(&ifindex);
        state.withdrawn.insert(ifindex);
        state.last_event = Instant::now();
        let had = state.gates.remove(&ifindex).is_some();
        let mut outcome = Ok(false);
        for generation in state.generations.clone() {
            state.gone.insert((generation, ifindex));
            let removed = remove(&mut state.endpoints, generation, ifindex);
            outcome = outcome.and_then(|any| Ok(any | removed?));
        }
        if had {
            outcome = outcome.and(self.links.forget(ifindex)).map(|()| true);
        }
        outcome
    }

    /// Removes pods from a generation that is prepared and not active: those whose interface is another one now than when
    /// they were found. Gives how many.
    pub(super) fn withdraw(
        &self,
        generation: u32,
        pods: impl Iterator<Item = (u32, u64)>,
    ) -> Result<usize, Error> {
        let mut state = self.lock();
        state.withdrawn.clear();
        let mut count = 0;
        for (ifindex, number) in pods {
            if state.known.get(&ifindex).copied().unwrap_or(0) != number {
                state.withdrawn.insert(ifindex);
                state.gone.insert((generation, ifindex));
                count += usize::from(remove(&mut state.endpoints, generation, ifindex)?);
            }
        }
        Ok(count)
    }

    /// Interfaces in quarantine.
    pub(super) fn waiting(&self) -> Vec<Waiting> {
        let state = self.lock();
        let number = |ifindex| state.known.get(ifindex).copied().unwrap_or(0);
        state
            .gates
            .iter()
            .filter_map(|(ifindex, gate)| {
                gate.held.map(|since| Waiting {
                    ifindex: *ifindex,
                    number: number(ifindex),
                    since,
                })
            })
            .collect()
    }

    /// Lets an interface go that is nobody's. False if it left quarantine otherwise.
    pub(super) fn release(&self, waiting: Waiting) -> Result<bool, Error> {
        self.detach(waiting.ifindex, |gate| gate.held == Some(waiting.since))
    }

    /// An interface was released because nothing became known of it in time.
    pub(super) fn count_expired(&self) {
        self.lock().expired += 1;
    }

    /// How often that happened.
    pub(super) fn expired(&self) -> u64 {
        self.lock().expired
    }
}

/// Removes a pod from a generation; gives whether it was there.
fn remove(
    endpoints: &mut Hash<EndpointKey, Endpoint>,
    generation: u32,
    ifindex: u32,
) -> Result<bool, Error> {
    match endpoints.remove(&Raw(EndpointKey::new(generation, ifindex))) {
        Ok(()) => Ok(true),
        Err(aya::maps::MapError::KeyNotFound) => Ok(false),
        Err(aya::maps::MapError::SyscallError(error))
            if error.io_error.raw_os_error() == Some(libc::ENOENT) =>
        {
            Ok(false)
        }
        Err(error) => Err(Error::map("remove an entry of", "endpoints")(error)),
    }
}
