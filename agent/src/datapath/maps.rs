//! The pinned maps, typed, and the inner maps that the agent makes.

use std::collections::BTreeMap;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::path::Path;
use std::sync::Arc;

use agent_common::{
    Control, Counter, CounterKey, Endpoint, EndpointKey, FlowKey, FlowValue, IdentityValue,
    Listener, ListenerKey, PolicyKey, Rule, RuleKey, SocketKey, Wire,
};
use aya::Ebpf;
use aya::maps::{
    Array, HashMap, HashOfMaps, LpmTrie, Map, MapData, PerCpuArray, PerCpuHashMap, RingBuf,
    SockHash, lpm_trie::Key as Prefix,
};

use super::{
    error::Error,
    sys,
    tables::{Network, Owner, Rules},
    wire::{OfGeneration, Raw},
};

/// Every map of the object. All are pinned under these names, which fit the kernel's 15 characters.
pub(super) const NAMES: [&str; 16] = [
    "control",
    "identities",
    "policies",
    "endpoints",
    "flows",
    "fragments",
    "services",
    "choices",
    "backends",
    "affinities",
    "translations",
    "listeners",
    "sockets",
    "counters",
    "lost",
    "events",
];

/// A hash keyed by generation and something else.
pub(super) type Hash<K, V> = HashMap<MapData, Raw<K>, Raw<V>>;

/// The maps that the agent reads and writes. `services` and what they name are in
/// [`super::services::Services`]; the others (`fragments`, `affinities`, `translations`) are the programs' own.
pub(super) struct Maps {
    pub(super) control: Array<MapData, Raw<Control>>,
    pub(super) identities: HashOfMaps<MapData, u32>,
    pub(super) policies: HashOfMaps<MapData, Raw<PolicyKey>>,
    /// The same map, for calls that aya does not offer.
    policies_data: MapData,
    pub(super) endpoints: Hash<EndpointKey, Endpoint>,
    pub(super) flows: Hash<FlowKey, FlowValue>,
    pub(super) listeners: Hash<ListenerKey, Listener>,
    pub(super) sockets: SockHash<MapData, Raw<SocketKey>>,
    pub(super) counters: PerCpuHashMap<MapData, Raw<CounterKey>, Raw<Counter>>,
    pub(super) lost: PerCpuArray<MapData, u64>,
    /// Taken by the one reader of events.
    pub(super) events: Option<RingBuf<MapData>>,
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
    /// Takes the maps out of a loaded object whose maps are pinned in `root`.
    pub(super) fn take(ebpf: &mut Ebpf, root: &Path) -> Result<Self, Error> {
        let mut sizes = BTreeMap::new();
        for name in NAMES {
            let info = MapData::from_pin(root.join(name))
                .and_then(|map| map.info())
                .map_err(Error::map("open pinned", name))?;
            sizes.insert(name, info.max_entries() as usize);
        }
        Ok(Self {
            control: take(ebpf, "control")?,
            identities: take(ebpf, "identities")?,
            policies: take(ebpf, "policies")?,
            policies_data: MapData::from_pin(root.join("policies"))
                .map_err(Error::map("open pinned", "policies"))?,
            endpoints: take(ebpf, "endpoints")?,
            flows: take(ebpf, "flows")?,
            listeners: take(ebpf, "listeners")?,
            sockets: take(ebpf, "sockets")?,
            counters: take(ebpf, "counters")?,
            lost: take(ebpf, "lost")?,
            events: Some(take(ebpf, "events")?),
            sizes,
        })
    }

    /// Writes the rules of many identities.
    pub(super) fn insert_policies(
        &mut self,
        policies: &[(PolicyKey, Arc<MapData>)],
    ) -> Result<(), Error> {
        if policies.is_empty() {
            return Ok(());
        }
        let keys: Vec<_> = policies.iter().map(|(key, _)| *key).collect();
        // A map of maps takes the inner map's descriptor for a value.
        let values: Vec<u32> = policies
            .iter()
            .map(|(_, map)| map.fd().as_fd().as_raw_fd() as u32)
            .collect();
        let batch = sys::map_update_batch(self.policies_data.fd().as_fd(), &keys, &values)
            .map_err(Error::kernel("write the policies of a generation"))?;
        if batch.is_none() {
            for (key, map) in policies {
                self.policies
                    .insert(Raw(*key), &**map, 0)
                    .map_err(Error::map("write", "policies"))?;
            }
        }
        Ok(())
    }

    /// Removes everything that belongs to `generation`. Readers of the active generation see no change.
    pub(super) fn remove_generation(&mut self, generation: u32) -> Result<(), Error> {
        let stale: Vec<_> = stale(self.policies.keys(), generation, "policies")?;
        let batch = sys::map_delete_batch(self.policies_data.fd().as_fd(), &stale)
            .map_err(Error::kernel("remove the policies of a generation"))?;
        if batch.is_none() {
            for key in stale {
                gone(self.policies.remove(&key), "policies")?;
            }
        }
        let stale: Vec<_> = keys(self.identities.keys(), "identities")?;
        for key in stale.into_iter().filter(|key| *key == generation) {
            gone(self.identities.remove(&key), "identities")?;
        }
        clear(&mut self.endpoints, generation, "endpoints")?;
        clear(&mut self.listeners, generation, "listeners")
    }

    /// All generations that any map still holds.
    pub(super) fn generations(&self) -> Result<std::collections::BTreeSet<u32>, Error> {
        let mut all: std::collections::BTreeSet<u32> = keys(self.identities.keys(), "identities")?
            .into_iter()
            .collect();
        all.extend(numbers(self.policies.keys(), "policies")?);
        all.extend(numbers(self.endpoints.keys(), "endpoints")?);
        all.extend(numbers(self.listeners.keys(), "listeners")?);
        Ok(all)
    }
}

type Keys<'a, K> = aya::maps::MapKeys<'a, K>;

fn keys<K: aya::Pod>(keys: Keys<'_, K>, map: &'static str) -> Result<Vec<K>, Error> {
    keys.collect::<Result<_, _>>()
        .map_err(Error::map("list", map))
}

fn numbers<K: OfGeneration>(all: Keys<'_, Raw<K>>, map: &'static str) -> Result<Vec<u32>, Error> {
    Ok(keys(all, map)?
        .into_iter()
        .map(|key| key.0.generation())
        .collect())
}

fn stale<K: OfGeneration>(
    all: Keys<'_, Raw<K>>,
    generation: u32,
    map: &'static str,
) -> Result<Vec<Raw<K>>, Error> {
    Ok(keys(all, map)?
        .into_iter()
        .filter(|key| key.0.generation() == generation)
        .collect())
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
    generation: u32,
    name: &'static str,
) -> Result<(), Error> {
    for key in stale(map.keys(), generation, name)? {
        gone(map.remove(&key), name)?;
    }
    Ok(())
}

/// Makes inner maps that carry the object's type information, so that `bpftool map dump` names their fields.
pub(super) struct InnerMaker {
    identities: aya_obj::Map,
    policies: aya_obj::Map,
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
            identities: inner("identities")?,
            policies: inner("policies")?,
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

    /// A trie that holds exactly these identities.
    pub(super) fn identities(&self, content: &BTreeMap<Network, Owner>) -> Result<MapData, Error> {
        let mut map =
            Map::LpmTrie(self.create(&self.identities, "identities_of", content.len())?);
        let mut trie: LpmTrie<&mut MapData, [u8; 16], Raw<IdentityValue>> =
            LpmTrie::try_from(&mut map).map_err(Error::map("use inner", "identities"))?;
        for (network, owner) in content {
            let key = Prefix::new(network.bits(), network.address());
            trie.insert(&key, Raw(IdentityValue::from(*owner)), 0)
                .map_err(Error::map("write inner", "identities"))?;
        }
        into_data(map)
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
        into_data(map)
    }
}

fn into_data(map: Map) -> Result<MapData, Error> {
    match map {
        Map::LpmTrie(data) | Map::HashMap(data) => Ok(data),
        _ => Err(Error::Missing {
            kind: "inner map of",
            name: "identities or policies".to_owned(),
        }),
    }
}
