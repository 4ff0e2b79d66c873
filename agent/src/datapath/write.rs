//! Generations: prepared beside the active one, switched to by one write, retired when nothing reads them.

use std::collections::BTreeMap;
use std::os::fd::AsRawFd;
use std::sync::{Arc, MutexGuard};

use agent_common::{
    Backend, BackendKey, Control, Endpoint, EndpointKey, Identity, ListenerKey, PolicyKey, Service,
    ServiceKey, SocketKey, address_bytes,
};
use aya::maps::MapData;

use super::{
    Datapath, Inner, error::Error, maps::Maps, tables::KernelTables, tables::Pod, wire::Raw,
};

/// A generation whose maps exist: its tables, and the inner maps that later ones may share.
pub(super) struct Live {
    tables: KernelTables,
    identities: Arc<MapData>,
    policies: BTreeMap<Identity, Arc<MapData>>,
}

/// What preparing a generation cost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cost {
    /// Inner maps made.
    pub made: usize,
    /// Inner maps shared with an earlier generation, because their content is the same.
    pub shared: usize,
}

/// A generation that is written and not yet active. Dropped, it is undone.
#[derive(Debug)]
pub struct Prepared {
    datapath: Datapath,
    generation: u32,
    cost: Cost,
    armed: bool,
}

/// What a flip found on the way.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Flipped {
    /// Interfaces that were gone before their gates could be attached; discovery will drop their pods.
    pub interfaces_gone: Vec<u32>,
}

impl Prepared {
    /// The generation's number.
    #[must_use]
    pub fn generation(&self) -> u32 {
        self.generation
    }

    /// What preparing it cost.
    #[must_use]
    pub fn cost(&self) -> Cost {
        self.cost
    }

    /// Attaches the gates of new pods, makes the generation the active one, and takes the gates away of interfaces
    /// that are no cell's any more and not in quarantine. Gates come first: a pod without a verdict is denied, never let through.
    ///
    /// # Errors
    ///
    /// When a gate cannot be attached or the switch cannot be written; then the generation is undone.
    pub fn flip(mut self) -> Result<Flipped, Error> {
        let datapath = self.datapath.clone();
        let mut inner = datapath.lock();
        let flipped = inner.flip(self.generation)?;
        self.armed = false;
        Ok(flipped)
    }
}

impl Drop for Prepared {
    fn drop(&mut self) {
        if self.armed {
            let datapath = self.datapath.clone();
            let mut inner = datapath.lock();
            // As in `prepare`: its pods are there, whatever became of the generation.
            if let Some(live) = inner.live.get(&self.generation) {
                let pods = live.tables.endpoints.clone();
                inner.guard_or_warn(&pods);
            }
            if let Err(error) = inner.retire(self.generation) {
                tracing::warn!(
                    generation = self.generation,
                    error = &error as &dyn std::error::Error,
                    "a prepared generation could not be undone; its entries stay until the next start"
                );
            }
        }
    }
}

impl Datapath {
    /// Writes a generation beside the active one.
    ///
    /// # Errors
    ///
    /// [`Error::Capacity`] before anything is written, [`Error::Generation`] if it is not newer than all before;
    /// otherwise when the kernel refuses, and then what was written is removed again. The gates of new pods are attached
    /// all the same: a pod that no generation knows is denied.
    pub fn prepare(&self, tables: &KernelTables) -> Result<Prepared, Error> {
        let mut inner = self.lock();
        match inner.check(tables).and_then(|()| inner.write(tables)) {
            Ok(cost) => Ok(Prepared {
                datapath: self.clone(),
                generation: tables.generation,
                cost,
                armed: true,
            }),
            Err(error) => {
                inner.guard_or_warn(&tables.endpoints);
                if matches!(error, Error::Capacity { .. } | Error::Generation { .. }) {
                    // Nothing was written, and the number may be another's.
                    return Err(error);
                }
                // The first error tells more than a second one about the same kernel would.
                if let Err(undo) = inner.retire(tables.generation) {
                    tracing::warn!(
                        error = &undo as &dyn std::error::Error,
                        "a refused generation could not be undone"
                    );
                }
                Err(error)
            }
        }
    }

    /// Removes a generation that is not the active one.
    ///
    /// # Errors
    ///
    /// When it is active, or the kernel refuses.
    pub fn retire(&self, generation: u32) -> Result<(), Error> {
        self.lock().retire(generation)
    }

    /// Gives the kernel one of the router's sockets: the one that answers `key`, from the next lookup on. A socket that
    /// closes leaves by itself; of a `SO_REUSEPORT` group one member is enough.
    ///
    /// # Errors
    ///
    /// When the kernel takes no such socket (only bound TCP listeners and UDP sockets) or the map is full.
    pub fn set_socket(&self, key: SocketKey, socket: &impl AsRawFd) -> Result<(), Error> {
        self.lock()
            .maps
            .sockets
            .insert(Raw(key), socket.as_raw_fd(), 0)
            .map_err(Error::map("write", "sockets"))
    }

    /// Takes a socket out of the kernel's hands; its listener then refuses.
    ///
    /// # Errors
    ///
    /// When the kernel refuses. A socket that is gone already is no error.
    pub fn clear_socket(&self, key: SocketKey) -> Result<(), Error> {
        match self.lock().maps.sockets.remove(&Raw(key)) {
            Err(aya::maps::MapError::SyscallError(error))
                if error.io_error.raw_os_error() == Some(libc::ENOENT) =>
            {
                Ok(())
            }
            result => result.map_err(Error::map("remove an entry of", "sockets")),
        }
    }
}

impl Inner {
    /// Whether the generation fits beside those that live. Nothing is written before.
    fn check(&self, tables: &KernelTables) -> Result<(), Error> {
        let newest = self
            .live
            .keys()
            .next_back()
            .copied()
            .unwrap_or(0)
            .max(self.active);
        if tables.generation <= newest {
            return Err(Error::Generation {
                given: tables.generation,
                newest,
            });
        }
        let live = |count: fn(&KernelTables) -> usize| {
            self.live
                .values()
                .map(|live| count(&live.tables))
                .sum::<usize>()
                + count(tables)
        };
        let needs: [(&'static str, usize); 6] = [
            ("identities", live(|_| 1)),
            ("policies", live(|tables| tables.policies.len())),
            ("endpoints", live(|tables| tables.endpoints.len())),
            ("services", live(|tables| tables.services.len())),
            (
                "backends",
                live(|tables| tables.services.values().map(Vec::len).sum()),
            ),
            ("listeners", live(|tables| tables.listeners.len())),
        ];
        for (map, needed) in needs {
            let limit = self.maps.sizes.get(map).copied().unwrap_or(0);
            if needed > limit {
                return Err(Error::Capacity {
                    map,
                    generation: tables.generation,
                    needed,
                    limit,
                });
            }
        }
        Ok(())
    }

    fn write(&mut self, tables: &KernelTables) -> Result<Cost, Error> {
        let generation = tables.generation;
        self.gates.writing(generation);
        let mut cost = Cost::default();
        let identities = match self
            .live
            .values()
            .find(|live| live.tables.identities == tables.identities)
        {
            Some(live) => shared(&mut cost, &live.identities),
            None => made(&mut cost, self.inner_maps.identities(&tables.identities)?),
        };
        self.maps
            .identities
            .insert(generation, &*identities, 0)
            .map_err(Error::map("write", "identities"))?;

        let mut policies = BTreeMap::new();
        let mut entries = Vec::new();
        for (identity, rules) in &tables.policies {
            let same = self.live.values().find_map(|live| {
                (live.tables.policies.get(identity) == Some(rules))
                    .then(|| live.policies.get(identity))
                    .flatten()
            });
            let map = match same {
                Some(map) => shared(&mut cost, map),
                None => made(&mut cost, self.inner_maps.rules(rules)?),
            };
            entries.push((PolicyKey::new(generation, *identity), Arc::clone(&map)));
            policies.insert(*identity, map);
        }
        self.maps.insert_policies(&entries)?;
        write_flat(&mut self.maps, tables)?;
        self.live.insert(
            generation,
            Live {
                tables: tables.clone(),
                identities,
                policies,
            },
        );
        Ok(cost)
    }

    fn guard_or_warn(&mut self, pods: &BTreeMap<u32, Pod>) {
        // `guard` has told each failure; the generation failed for its own reason, which the caller returns.
        if let Ok(gone) = self.gates.guard(pods)
            && !gone.is_empty()
        {
            tracing::debug!(?gone, "interfaces went away before they were guarded");
        }
    }

    fn flip(&mut self, generation: u32) -> Result<Flipped, Error> {
        let pods = match self.live.get(&generation) {
            Some(live) => live.tables.endpoints.clone(),
            None => BTreeMap::new(),
        };
        let flipped = Flipped {
            interfaces_gone: self.gates.guard(&pods)?,
        };
        self.maps
            .control
            .set(0, Raw(Control::new(generation)), 0)
            .map_err(Error::map("write", "control"))?;
        self.active = generation;
        self.gates.activated(&pods);
        Ok(flipped)
    }

    /// Waits until every program that runs now has ended: one that read the generation before the flip must find all of
    /// it. A write into a map of maps returns only then (kernel 4.20, `maybe_wait_bpf_programs`), so the active
    /// generation's identities are written once more, as they are.
    fn settle(&mut self) -> Result<(), Error> {
        match self.live.get(&self.active) {
            Some(live) => self
                .maps
                .identities
                .insert(self.active, &*live.identities, 0)
                .map_err(Error::map("write", "identities")),
            // Before the first flip of this agent nothing that could be retired was ever read.
            None => Ok(()),
        }
    }

    fn retire(&mut self, generation: u32) -> Result<(), Error> {
        if generation == self.active {
            return Err(Error::Generation {
                given: generation,
                newest: self.active,
            });
        }
        self.settle()?;
        self.maps.remove_generation(generation)?;
        self.gates.retired(generation);
        self.live.remove(&generation);
        Ok(())
    }
}

fn shared(cost: &mut Cost, map: &Arc<MapData>) -> Arc<MapData> {
    cost.shared += 1;
    Arc::clone(map)
}

fn made(cost: &mut Cost, map: MapData) -> Arc<MapData> {
    cost.made += 1;
    Arc::new(map)
}

fn write_flat(maps: &mut Maps, tables: &KernelTables) -> Result<(), Error> {
    let generation = tables.generation;
    for (ifindex, pod) in &tables.endpoints {
        maps.endpoints
            .insert(
                Raw(EndpointKey::new(generation, *ifindex)),
                Raw(Endpoint::from(pod)),
                0,
            )
            .map_err(Error::map("write", "endpoints"))?;
    }
    let mut first = 0;
    for (service, backends) in &tables.services {
        for (index, backend) in (first..).zip(backends) {
            maps.backends
                .insert(
                    Raw(BackendKey::new(generation, index)),
                    Raw(Backend::from(*backend)),
                    0,
                )
                .map_err(Error::map("write", "backends"))?;
        }
        // The map of backends holds fewer than 2^32 (see `check`).
        let count = u32::try_from(backends.len()).unwrap_or(u32::MAX);
        let key = ServiceKey::new(
            generation,
            address_bytes(service.address),
            service.port.to_be_bytes(),
            service.protocol,
        );
        maps.services
            .insert(Raw(key), Raw(Service::new(first, count)), 0)
            .map_err(Error::map("write", "services"))?;
        first += count;
    }
    for (address, gate) in &tables.listeners {
        maps.listeners
            .insert(
                Raw(ListenerKey::new(generation, address.socket_key())),
                Raw(KernelTables::listener(*gate)),
                0,
            )
            .map_err(Error::map("write", "listeners"))?;
    }
    Ok(())
}

/// The lock of the one writer.
pub(super) type Guard<'a> = MutexGuard<'a, Inner>;
