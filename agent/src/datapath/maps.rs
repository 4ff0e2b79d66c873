//! The pinned maps, typed, and the inner maps that the agent makes.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;

use agent_common::{
    Control, Counter, CounterKey, Endpoint, EndpointKey, FlowKey, FlowValue, Listener, ListenerKey,
    Rule, RuleKey, SocketKey, Tally, Wire,
};
use aya::Ebpf;
use aya::maps::{Array, HashMap, Map, MapData, PerCpuArray, PerCpuHashMap, RingBuf, SockHash};
use aya::util::nr_cpus;

use super::{
    checks,
    error::Error,
    identities::Identities,
    slots::Slots,
    sys,
    tables::Rules,
    wire::{OfGeneration, Raw},
};

/// Every map of the object but `cases`, which lasts for one packet. All are pinned under these names, which fit the kernel's 15 characters.
pub(super) const NAMES: [&str; 21] = [
    "control",
    "identities",
    "policies",
    "endpoints",
    "flows",
    "unassured",
    "fragments",
    "services",
    "choices",
    "backends",
    "ports",
    "affinities",
    "translations",
    "listeners",
    "sockets",
    "tallies",
    "counters",
    "hits",
    "limits",
    "lost",
    "events",
];

/// Maps of this and every earlier layout, by the names of their pins.
pub(super) const KNOWN: &[&str] = &NAMES;

/// A hash keyed by generation and something else.
pub(super) type Hash<K, V> = HashMap<MapData, Raw<K>, Raw<V>>;

/// The maps that the agent reads and writes. `services` and what they name are in
/// [`super::services::Services`]; the others (`affinities`, `translations`, `limits`) are the programs' own.
pub(super) struct Maps {
    pub(super) control: Array<MapData, Raw<Control>>,
    pub(super) identities: Identities,
    pub(super) policies: Slots,
    pub(super) endpoints: Hash<EndpointKey, Endpoint>,
    pub(super) flows: Slots,
    /// A pod's is in the slot of its flows.
    pub(super) unassured: Slots,
    /// The same.
    pub(super) fragments: Slots,
    pub(super) listeners: Hash<ListenerKey, Listener>,
    pub(super) sockets: SockHash<MapData, Raw<SocketKey>>,
    pub(super) tallies: PerCpuArray<MapData, Raw<Tally>>,
    pub(super) counters: PerCpuHashMap<MapData, Raw<CounterKey>, Raw<Counter>>,
    pub(super) hits: PerCpuHashMap<MapData, u32, u64>,
    pub(super) lost: PerCpuArray<MapData, u64>,
    /// Taken by the one reader of events.
    pub(super) events: Option<RingBuf<MapData>>,
    /// All of them, whoever uses them: a pin that somebody removes is made again from here.
    pub(super) held: BTreeMap<&'static str, OwnedFd>,
    /// Sizes, as the kernel tells them.
    pub(super) sizes: BTreeMap<&'static str, usize>,
}

pub(super) fn take<T>(ebpf: &mut Ebpf, name: &'static str) -> Result<T, Error>
where
    T: TryFrom<Map>,
    T::Error: Into<aya::maps::MapError>,
{
    let map = ebpf.take_map(name).ok_or_else(|| Error::Missing {
        kind: "map",
        name: name.to_owned(),
    })?;
    T::try_from(map).map_err(Error::map("use", name))
}

impl Maps {
    /// Takes the maps out of a loaded object whose maps are pinned in `root`, with what an earlier agent left in them: of that
    /// only the active generation stays.
    pub(super) fn take(
        ebpf: &mut Ebpf,
        root: &Path,
        inner: &InnerMaker,
        kernel: &str,
    ) -> Result<Self, Error> {
        let waits_once = checks::waits_once(kernel);
        let (mut sizes, mut held) = (BTreeMap::new(), BTreeMap::new());
        for name in NAMES {
            let map = sys::pinned(&root.join(name))
                .map_err(Error::file("open pinned", root.join(name)))?;
            held.insert(name, map);
            let info = pinned(root, name)?
                .info()
                .map_err(Error::map("open pinned", name))?;
            sizes.insert(name, info.max_entries() as usize);
        }
        let control: Array<MapData, Raw<Control>> = take(ebpf, "control")?;
        let active = control
            .get(&0, 0)
            .map_err(Error::map("read", "control"))?
            .0
            .generation();
        let mut endpoints: Hash<EndpointKey, Endpoint> = take(ebpf, "endpoints")?;
        keep(&mut endpoints, active, "endpoints")?;
        let mut slots = [BTreeSet::new(), BTreeSet::new()];
        for entry in endpoints.iter() {
            let (_, Raw(endpoint)) = entry.map_err(Error::map("read", "endpoints"))?;
            slots[0].insert(endpoint.policy());
            slots[1].insert(endpoint.flows());
        }
        let [mut policies, mut flows] = slots;
        policies.remove(&Endpoint::NO_SLOT);
        flows.remove(&Endpoint::NO_SLOT);
        let mut listeners = take(ebpf, "listeners")?;
        keep(&mut listeners, active, "listeners")?;
        Ok(Self {
            control,
            identities: Identities::take_over(
                take(ebpf, "identities")?,
                pinned(root, "identities")?,
                active,
            )?,
            policies: Slots::new(
                "policies",
                take(ebpf, "policies")?,
                pinned(root, "policies")?,
                inner.rules(&Rules::new())?,
                policies,
                waits_once,
            )?,
            endpoints,
            flows: Slots::new(
                "flows",
                take(ebpf, "flows")?,
                pinned(root, "flows")?,
                inner.flows(1)?,
                flows.clone(),
                waits_once,
            )?,
            unassured: Slots::new(
                "unassured",
                take(ebpf, "unassured")?,
                pinned(root, "unassured")?,
                inner.unassured(1)?,
                flows.clone(),
                waits_once,
            )?,
            fragments: Slots::new(
                "fragments",
                take(ebpf, "fragments")?,
                pinned(root, "fragments")?,
                inner.fragments(1)?,
                flows,
                waits_once,
            )?,
            listeners,
            sockets: take(ebpf, "sockets")?,
            tallies: take(ebpf, "tallies")?,
            counters: take(ebpf, "counters")?,
            hits: take(ebpf, "hits")?,
            lost: take(ebpf, "lost")?,
            events: Some(take(ebpf, "events")?),
            held,
            sizes,
        })
    }

    /// The value of `control`.
    pub(super) fn control(&self) -> Result<Control, Error> {
        let Raw(control) = self
            .control
            .get(&0, 0)
            .map_err(Error::map("read", "control"))?;
        Ok(control)
    }

    /// Switches everything to the generation that `control` names.
    pub(super) fn set_control(&mut self, control: Control) -> Result<(), Error> {
        self.control
            .set(0, Raw(control), 0)
            .map_err(Error::map("write", "control"))
    }

    /// Removes the entries of `generation` from the maps that are keyed by it. Readers of the active one see no change.
    pub(super) fn remove_generation(&mut self, generation: u32) -> Result<(), Error> {
        clear(&mut self.endpoints, "endpoints", |of| of == generation)?;
        clear(&mut self.listeners, "listeners", |of| of == generation)
    }

    /// What was counted under each key, on each CPU: several values of a key, which add up.
    pub(super) fn counted(&self) -> Result<Vec<(CounterKey, Counter)>, Error> {
        let mut all = Vec::new();
        for entry in self.counters.iter() {
            let (Raw(key), values) = entry.map_err(Error::map("read", "counters"))?;
            all.extend(values.iter().map(|value| (key, value.0)));
        }
        for entry in self.tallies.iter() {
            let values = entry.map_err(Error::map("read", "tallies"))?;
            all.extend(values.iter().filter_map(|value| value.0.read()));
        }
        Ok(all)
    }

    /// Forgets the hits of rules that are in no generation any more.
    pub(super) fn keep_hits(&mut self, names: impl Fn(&u32) -> bool) -> Result<(), Error> {
        for rule in keys(self.hits.keys(), "hits")? {
            if !names(&rule) {
                gone(self.hits.remove(&rule), "hits")?;
            }
        }
        Ok(())
    }
}

fn pinned(root: &Path, name: &'static str) -> Result<MapData, Error> {
    MapData::from_pin(root.join(name)).map_err(Error::map("open pinned", name))
}

type Keys<'a, K> = aya::maps::MapKeys<'a, K>;

fn keys<K: aya::Pod>(keys: Keys<'_, K>, map: &'static str) -> Result<Vec<K>, Error> {
    keys.collect::<Result<_, _>>()
        .map_err(Error::map("list", map))
}

/// A key that is gone already was removed by an earlier, interrupted attempt.
pub(super) fn gone(
    result: Result<(), aya::maps::MapError>,
    map: &'static str,
) -> Result<(), Error> {
    match result {
        Err(aya::maps::MapError::KeyNotFound) => Ok(()),
        Err(aya::maps::MapError::SyscallError(error))
            if error.io_error.raw_os_error() == Some(libc::ENOENT) =>
        {
            Ok(())
        }
        result => result.map_err(Error::map("remove an entry of", map)),
    }
}

fn clear<K: OfGeneration, V: Wire>(
    map: &mut Hash<K, V>,
    name: &'static str,
    stale: impl Fn(u32) -> bool,
) -> Result<(), Error> {
    for key in keys(map.keys(), name)? {
        if stale(key.0.generation()) {
            gone(map.remove(&key), name)?;
        }
    }
    Ok(())
}

/// Removes what an interrupted agent prepared or had not yet retired.
fn keep<K: OfGeneration, V: Wire>(
    map: &mut Hash<K, V>,
    active: u32,
    name: &'static str,
) -> Result<(), Error> {
    clear(map, name, |of| of != active)
}

/// Makes inner maps that carry the object's type information, so that `bpftool map dump` names their fields.
pub(super) struct InnerMaker {
    policies: aya_obj::Map,
    flows: aya_obj::Map,
    unassured: aya_obj::Map,
    fragments: aya_obj::Map,
    cpus: usize,
    btf: OwnedFd,
}

impl InnerMaker {
    /// `btf` is the loaded type information of the object.
    pub(super) fn new(object: &[u8], btf: OwnedFd) -> Result<Self, Error> {
        let object = aya_obj::Object::parse(object)?;
        let inner = |name: &str| {
            object
                .maps
                .get(name)
                .and_then(aya_obj::Map::inner)
                .ok_or_else(|| Error::Missing {
                    kind: "inner map of",
                    name: name.to_owned(),
                })
        };
        Ok(Self {
            policies: inner("policies")?,
            flows: inner("flows")?,
            unassured: inner("unassured")?,
            fragments: inner("fragments")?,
            cpus: nr_cpus().map_err(|(file, error)| Error::file("read", file)(error))?,
            btf,
        })
    }

    fn create(
        &self,
        template: &aya_obj::Map,
        name: &str,
        entries: usize,
    ) -> Result<MapData, Error> {
        let mut template = template.clone();
        template.set_max_entries(u32::try_from(entries.max(1)).unwrap_or(u32::MAX));
        MapData::create(template, name, Some(self.btf.as_fd()))
            .map_err(Error::map("create inner", name))
    }

    /// An empty table of assured flows for a pod.
    pub(super) fn flows(&self, entries: usize) -> Result<MapData, Error> {
        self.create(&self.flows, "flows_of", entries)
    }

    /// How many assured flows a pod has room for.
    pub(super) fn flows_per_pod(&self) -> usize {
        self.room(self.flows.max_entries() as usize)
    }

    /// The kernel hands free entries of an LRU table to CPUs 128 at a time (`LOCAL_FREE_TARGET`); a table with fewer than that for
    /// each would leave some of them room for one.
    fn room(&self, entries: usize) -> usize {
        const BATCH: usize = 128;
        entries.max(BATCH * (self.cpus + 1))
    }

    /// An empty table of flows that are not assured for a pod.
    pub(super) fn unassured(&self, entries: usize) -> Result<MapData, Error> {
        self.create(&self.unassured, "unassured_of", entries)
    }

    /// How many flows that are not assured a pod has room for: half as many, most of which do not last.
    pub(super) fn unassured_per_pod(&self) -> usize {
        self.room(self.unassured.max_entries() as usize / 2)
    }

    /// An empty table of fragments for a pod.
    pub(super) fn fragments(&self, entries: usize) -> Result<MapData, Error> {
        self.create(&self.fragments, "fragments_of", entries)
    }

    /// How many fragmented packets are remembered for a pod.
    pub(super) fn fragments_per_pod(&self) -> usize {
        self.room(self.fragments.max_entries() as usize)
    }

    /// A hash that holds exactly these rules.
    pub(super) fn rules(&self, content: &Rules) -> Result<MapData, Error> {
        let mut map = Map::HashMap(self.create(&self.policies, "rules_of", content.len())?);
        let mut hash: HashMap<&mut MapData, Raw<RuleKey>, Raw<Rule>> =
            HashMap::try_from(&mut map).map_err(Error::map("use inner", "policies"))?;
        for (key, rule) in content {
            hash.insert(Raw(*key), Raw(*rule), 0)
                .map_err(Error::map("write inner", "policies"))?;
        }
        match map {
            Map::HashMap(data) => Ok(data),
            _ => Err(Error::Missing {
                kind: "inner map of",
                name: "policies".to_owned(),
            }),
        }
    }
}

/// The flows in a pod's table.
pub(super) fn count_flows(map: MapData) -> Result<usize, Error> {
    let map = Map::LruHashMap(map);
    let flows: HashMap<&MapData, Raw<FlowKey>, Raw<FlowValue>> =
        HashMap::try_from(&map).map_err(Error::map("use inner", "flows"))?;
    Ok(keys(flows.keys(), "flows")?.len())
}
