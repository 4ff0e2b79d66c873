//! Generations: prepared beside the active one, switched to by one write, retired when nothing reads them.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::AsRawFd;
use std::sync::{Arc, MutexGuard};

use agent_common::{Action, Control, Endpoint, EndpointKey, Identity, ListenerKey, SocketKey};

use super::{
    Datapath, Inner,
    error::Error,
    maps::Maps,
    routes,
    tables::{KernelTables, Network, Owner, Pod, Rules, Table},
    wire::Raw,
};

/// A generation that the kernel holds: its tables, and the slots that its endpoints name.
#[derive(Default)]
pub(super) struct Live {
    tables: KernelTables,
    policies: BTreeMap<Identity, u32>,
    flows: BTreeMap<u32, u32>,
    /// Components with a rule that steers to the router.
    steering: BTreeSet<Identity>,
    /// Whether rules may steer that are not known: those of an earlier agent.
    unknown: bool,
}

impl Live {
    /// Where the pods' flows and fragments are.
    pub(super) fn flow_slots(&self) -> Vec<u32> {
        self.flows.values().copied().collect()
    }

    /// What was written.
    pub(super) fn tables(&self) -> &KernelTables {
        &self.tables
    }

    /// Where the rules of each component are.
    pub(super) fn policy_slots(&self) -> impl Iterator<Item = (&Identity, &u32)> {
        self.policies.iter()
    }

    /// The entries of `endpoints`, as the kernel holds them.
    pub(super) fn endpoints(
        &self,
        generation: u32,
    ) -> impl Iterator<Item = (EndpointKey, Endpoint)> {
        let slot = |slot: Option<&u32>| slot.copied().unwrap_or(Endpoint::NO_SLOT);
        self.tables.endpoints.iter().map(move |(ifindex, pod)| {
            let endpoint = pod.endpoint(
                slot(self.policies.get(&pod.identity)),
                slot(self.flows.get(ifindex)),
            );
            (EndpointKey::new(generation, *ifindex), endpoint)
        })
    }

    /// Whether a rule steers to the router.
    fn steers(&self) -> bool {
        self.unknown || !self.steering.is_empty()
    }

    /// Every slot of (policies, flows) that the generation names.
    fn slots(&self) -> (BTreeSet<u32>, BTreeSet<u32>) {
        let policies = self.policies.values().copied().collect();
        (policies, self.flows.values().copied().collect())
    }
}

/// What preparing a generation cost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cost {
    /// Inner maps made: rules of components, flows of pods.
    pub made: usize,
    /// Inner maps shared with an earlier generation: unchanged rules, flows of pods that live on.
    pub shared: usize,
    /// Identities written.
    pub identities: usize,
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
                if matches!(
                    error,
                    Error::Capacity { .. } | Error::Generation { .. } | Error::Staged { .. }
                ) {
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
    pub(super) fn check(&mut self, tables: &KernelTables) -> Result<(), Error> {
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
        let policies = tables
            .policies
            .iter()
            .filter(|(identity, rules)| self.slot_of_rules(identity, rules).is_none())
            .count();
        let flows = tables
            .endpoints
            .iter()
            .filter(|(ifindex, pod)| {
                pod.identity != Identity::NONE && self.slot_of_flows(**ifindex, pod).is_none()
            })
            .count();
        let maps = &self.maps;
        let needs: [(&'static str, usize); 5] = [
            ("identities", maps.identities.needed(&tables.identities)),
            ("policies", 1 + maps.policies.used() + policies),
            ("flows", 1 + maps.flows.used() + flows),
            ("endpoints", live(|tables| tables.endpoints.len())),
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
        self.services.plan(tables.generation, &tables.services)
    }

    /// The generation that has these very rules already.
    fn generation_with(&self, identity: &Identity, rules: &Rules) -> Option<&Live> {
        let mut live = self.live.values();
        live.find(|live| live.tables.policies.get(identity) == Some(rules))
    }

    /// Where rules like these are already.
    fn slot_of_rules(&self, identity: &Identity, rules: &Rules) -> Option<u32> {
        let live = self.generation_with(identity, rules)?;
        live.policies.get(identity).copied()
    }

    /// Components with a rule that steers to the router. Rules that a generation has already are not looked through again.
    fn steering(&self, tables: &KernelTables) -> BTreeSet<Identity> {
        let steers =
            |(identity, rules): &(&Identity, &Rules)| match self.generation_with(identity, rules) {
                Some(live) => live.steering.contains(identity),
                None => rules.values().any(|rule| rule.action() == Action::Steer),
            };
        let steering = tables.policies.iter().filter(steers);
        steering.map(|(identity, _)| *identity).collect()
    }

    /// Where the flows of this very pod are: another one behind the same interface starts with none.
    fn slot_of_flows(&self, ifindex: u32, pod: &Pod) -> Option<u32> {
        self.live.values().find_map(|live| {
            let known = live.tables.endpoints.get(&ifindex)?;
            let same = known.identity == pod.identity
                || (known.whole.is_some() && known.whole == pod.whole);
            (same && known.mac == pod.mac)
                .then(|| live.flows.get(&ifindex).copied())
                .flatten()
        })
    }

    pub(super) fn write(&mut self, tables: &KernelTables) -> Result<Cost, Error> {
        self.gates.writing(tables.generation);
        if !self.settled {
            self.settle()?;
        }
        self.maps.identities.sweep()?;
        let mut live = Live {
            tables: KernelTables {
                generation: tables.generation,
                policies: tables.policies.clone(),
                endpoints: tables.endpoints.clone(),
                listeners: tables.listeners.clone(),
                cells: tables.cells.clone(),
                rules: tables.rules.clone(),
                // `Identities` and `Services` know theirs.
                ..KernelTables::default()
            },
            steering: self.steering(tables),
            ..Live::default()
        };
        if live.steers() {
            routes::ensure()?;
        }
        let written = self.fill(&mut live, &tables.identities);
        // Whatever was written before a failure is undone by `retire`, which looks here.
        self.live.insert(tables.generation, live);
        written
    }

    fn fill(&mut self, live: &mut Live, identities: &Table<Network, Owner>) -> Result<Cost, Error> {
        self.services.stage()?;
        let tables = &live.tables;
        let mut cost = Cost {
            identities: self.maps.identities.stage(tables.generation, identities)?,
            ..Cost::default()
        };
        let (mut made, mut owners) = (Vec::new(), Vec::new());
        for (identity, rules) in &tables.policies {
            match self.slot_of_rules(identity, rules) {
                Some(slot) => drop(live.policies.insert(*identity, slot)),
                None => {
                    made.push(Arc::new(self.inner_maps.rules(rules)?));
                    owners.push(*identity);
                }
            }
        }
        cost.shared += live.policies.len();
        cost.made += made.len();
        let slots = self.maps.policies.insert(&made)?;
        live.policies.extend(owners.into_iter().zip(slots));

        let (mut made, mut owners) = (Vec::new(), Vec::new());
        let (mut unassured, mut fragments) = (Vec::new(), Vec::new());
        for (ifindex, pod) in &tables.endpoints {
            if pod.identity == Identity::NONE {
                continue;
            }
            match self.slot_of_flows(*ifindex, pod) {
                Some(slot) => drop(live.flows.insert(*ifindex, slot)),
                None => {
                    let maker = &self.inner_maps;
                    made.push(Arc::new(maker.flows(maker.flows_per_pod())?));
                    unassured.push(Arc::new(maker.unassured(maker.unassured_per_pod())?));
                    fragments.push(Arc::new(maker.fragments(maker.fragments_per_pod())?));
                    owners.push(*ifindex);
                }
            }
        }
        cost.shared += live.flows.len();
        cost.made += made.len();
        let slots = self.maps.flows.insert(&made)?;
        // Whatever becomes of the others: what is named is given back by `retire`.
        live.flows.extend(owners.into_iter().zip(slots.clone()));
        self.maps.unassured.put(&slots, &unassured)?;
        self.maps.fragments.put(&slots, &fragments)?;

        write_flat(&mut self.maps, live)?;
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
        let control = Control::new(generation, self.ticks_per_second)
            .picking_up_until(self.maps.control()?.pick_up_until());
        self.maps.set_control(control)?;
        self.active = generation;
        self.settled = false;
        self.maps.identities.commit();
        self.services.commit();
        self.adopt();
        self.gates.activated(&pods);
        Ok(flipped)
    }

    /// Whether a generation that lives steers connections to the router, which takes the policy route.
    pub(super) fn steers(&self) -> bool {
        self.live.values().any(Live::steers)
    }

    /// A program that read the generation before a flip must find all of it: nothing of it is taken away before.
    pub(super) fn settle(&mut self) -> Result<(), Error> {
        self.maps.policies.settle()?;
        self.services.settled();
        self.settled = true;
        Ok(())
    }

    pub(super) fn retire(&mut self, generation: u32) -> Result<(), Error> {
        if generation == self.active {
            return Err(Error::Generation {
                given: generation,
                newest: self.active,
            });
        }
        self.settle()?;
        if generation > self.active {
            self.maps.identities.abandon()?;
            self.services.abandon(generation)?;
        } else {
            self.services.retire()?;
        }
        self.maps.identities.sweep()?;
        self.maps.remove_generation(generation)?;
        self.gates.retired(generation);
        let Some(retired) = self.live.remove(&generation) else {
            return Ok(());
        };
        let (mut policies, mut flows) = retired.slots();
        for live in self.live.values() {
            let (named, kept) = live.slots();
            policies = &policies - &named;
            flows = &flows - &kept;
        }
        self.maps.policies.free(policies);
        self.maps.unassured.free(flows.iter().copied());
        self.maps.fragments.free(flows.iter().copied());
        self.maps.flows.free(flows);
        if retired.steers() && !self.steers() {
            // Any policy rule makes the kernel look longer for every route of the node.
            routes::remove()?;
        }
        let Self { live, maps, .. } = self;
        let names = |rule: &u32| {
            let mut generations = live.values();
            generations.any(|live| live.tables.rules.contains_key(rule))
        };
        maps.keep_hits(names)
    }

    /// Where pods that an earlier agent left have their flows: this one's first generation goes on with them. Rules are
    /// written anew, since what they mean is not to be read back.
    pub(super) fn remember(&mut self) -> Result<(), Error> {
        let mut live = Live {
            // Not known any more: the policy route stays as long as it may be needed.
            unknown: true,
            ..Live::default()
        };
        for entry in self.maps.endpoints.iter() {
            let (Raw(key), Raw(endpoint)) = entry.map_err(Error::map("read", "endpoints"))?;
            if endpoint.flows() == Endpoint::NO_SLOT {
                continue;
            }
            live.flows.insert(key.ifindex(), endpoint.flows());
            if endpoint.policy() != Endpoint::NO_SLOT {
                live.policies.insert(endpoint.identity(), endpoint.policy());
            }
            let pod = Pod {
                ifname: String::new(),
                identity: endpoint.identity(),
                whole: None,
                cell: endpoint.cell(),
                lookups: endpoint.lookups(),
                mac: endpoint.mac(),
            };
            live.tables.endpoints.insert(key.ifindex(), pod);
        }
        if self.active > 0 {
            self.live.insert(self.active, live);
        }
        Ok(())
    }
}

fn write_flat(maps: &mut Maps, live: &Live) -> Result<(), Error> {
    let tables = &live.tables;
    for (key, endpoint) in live.endpoints(tables.generation) {
        maps.endpoints
            .insert(Raw(key), Raw(endpoint), 0)
            .map_err(Error::map("write", "endpoints"))?;
    }
    for (key, listener) in listeners(tables) {
        maps.listeners
            .insert(Raw(key), Raw(listener), 0)
            .map_err(Error::map("write", "listeners"))?;
    }
    Ok(())
}

/// The entries of `listeners`, as the kernel holds them.
pub(super) fn listeners(
    tables: &KernelTables,
) -> impl Iterator<Item = (ListenerKey, agent_common::Listener)> {
    tables.listeners.iter().map(|(address, gate)| {
        (
            ListenerKey::new(tables.generation, address.socket_key()),
            KernelTables::listener(*gate),
        )
    })
}

/// The lock of the one writer.
pub(super) type Guard<'a> = MutexGuard<'a, Inner>;
