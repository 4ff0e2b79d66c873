//! The kernel side of a node: loads the programs, writes generations, reads what they tell. The only module that
//! knows aya.
//!
//! Flows in: [`KernelTables`], made by `compile`, and the router's sockets. Flows out: verdicts in the kernel;
//! [`Discovery`] of pods, [`CounterRow`]s and events for the rest of the agent. It decides nothing: what a rule means
//! is written in the tables.
//!
//! Maps, programs and links are pinned under one folder of a bpffs. When the agent ends, nothing is detached: verdicts
//! stay as they are until the next agent takes the pins over. [`Datapath::cleanup`] is the only way to remove them.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use agent_common::{CounterKey, Direction, Lost, Path as Border, Reason, Verdict};
use aya::{Ebpf, EbpfLoader, programs::ProgramInfo};

mod adopt;
mod checks;
mod cleanup;
mod clsact;
mod discovery;
mod drift;
mod error;
mod events;
mod explain;
mod filters;
mod gates;
mod grace;
mod identities;
mod instance;
mod links;
mod logs;
mod mapped;
mod maps;
mod netlink;
mod preflight;
mod quarantine;
mod routes;
mod services;
mod slots;
mod sys;
mod tables;
mod wire;
mod write;

pub(crate) use cleanup::remove_empty;
pub use cleanup::{Leftovers, Thing};
pub use discovery::{Discovery, Pod as DiscoveredPod, scan};
pub use drift::{Care, TableState};
pub use error::Error;
pub use events::{EventReader, EventStream};
pub use explain::{Answer, Asked, Explainer, KnownPod};
pub use instance::Instance;
pub use links::GateHook;
pub use preflight::{Finding, Standing, preflight};
pub use quarantine::{Held, Hold, Met, PodWatch};
pub use tables::{
    Backend, KernelTables, Network, Owner, Pod, RuleSource, Rules, Service, ServiceAddress, Table,
};
pub use write::{Cost, Flipped, Prepared};

use gates::Gates;
use links::{GatePrograms, Links};
use logs::Logs;
use maps::{InnerMaker, Maps};
use services::Services;
use write::Live;

/// Where the datapath keeps its things.
#[derive(Clone, Debug)]
pub struct DatapathConfig {
    /// Folder of this node's pins, in a bpffs (mounted if missing).
    pub bpffs: PathBuf,
    /// cgroup2 folder whose processes are steered; the root of the hierarchy if absent.
    pub cgroup: Option<PathBuf>,
    /// How gates are attached.
    pub gate_hook: GateHook,
    /// Another object than the one that was built in, for debugging the programs.
    pub object: Option<PathBuf>,
    /// How long TCP connections that are older than the gates may be picked up in their middle, from either side. Only
    /// where no generation was active before: on a node without an agent, or with one of another layout of maps.
    pub pick_up: Duration,
}

/// A loaded datapath. Cheap to clone; all clones are the same one.
#[derive(Clone)]
pub struct Datapath {
    inner: Arc<Mutex<Inner>>,
    /// The same as in `inner`: a new interface must not wait until a generation is written.
    gates: Arc<Gates>,
    facts: Arc<Facts>,
}

/// What does not change while the datapath is open.
#[derive(Clone, Debug)]
pub struct Facts {
    /// The kernel's release.
    pub kernel: String,
    /// `tcx` or `clsact`.
    pub hook: &'static str,
    /// Folder of the pins.
    pub bpffs: PathBuf,
    /// The cgroup whose processes are steered.
    pub cgroup: PathBuf,
    /// The programs and what the verifier made of them.
    pub programs: Vec<ProgramFacts>,
}

impl Facts {
    /// Whether a program at tc may assign a listener of a `SO_REUSEPORT` group, which came with 6.6 (`bpf_sk_assign`
    /// answers `ESOCKTNOSUPPORT` before). A kernel whose release says no version is taken for an older one.
    #[must_use]
    pub fn assigns_groups(&self) -> bool {
        checks::version(&self.kernel).is_some_and(|version| version >= (6, 6))
    }
}

/// A loaded program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProgramFacts {
    /// Its name.
    pub name: String,
    /// Instructions that the verifier walked through (kernel 5.16).
    pub verified_instructions: Option<u32>,
    /// Bytes of machine code.
    pub jited_bytes: u32,
}

/// How full a map is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MapFacts {
    /// Its name.
    pub name: &'static str,
    /// Entries in it, of all generations.
    pub used: usize,
    /// Entries that it can hold.
    pub size: usize,
}

/// Packets and bytes, all CPUs together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CounterRow {
    /// Number of the cell in [`KernelTables::cells`]; 0 for interfaces that are nobody's.
    pub cell: u32,
    /// Which way, seen from the pod.
    pub way: Direction,
    /// Which border of the cell the connection crosses.
    pub path: Border,
    /// What became of the packets.
    pub verdict: Verdict,
    /// Why.
    pub reason: Reason,
    /// Packets since the maps were made.
    pub packets: u64,
    /// Bytes with link-layer header.
    pub bytes: u64,
}

struct Inner {
    ebpf: Ebpf,
    maps: Maps,
    services: Services,
    inner_maps: InnerMaker,
    live: BTreeMap<u32, Live>,
    active: u32,
    gates: Arc<Gates>,
    root: PathBuf,
    cgroup: PathBuf,
    ticks_per_second: u32,
    /// Whether every program that may have read a generation before the active one has ended.
    settled: bool,
    /// Whether gates and hooks still run programs of another layout, until this one's first generation is active.
    adopting: bool,
    _logs: Option<Logs>,
    /// None once another agent has the node.
    instance: Option<Instance>,
}

impl std::fmt::Debug for Loaded {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Loaded")
            .field("facts", &self.facts)
            .finish_non_exhaustive()
    }
}

impl std::fmt::Debug for Datapath {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Datapath")
            .field("facts", &self.facts)
            .finish_non_exhaustive()
    }
}

/// The programs that were built into this agent.
#[cfg(ebpf_object)]
const BUILT_IN: Option<&[u8]> = Some(aya::include_bytes_aligned!(concat!(
    env!("OUT_DIR"),
    "/cardinal.bpf.o"
)));

/// This agent was built without programs.
#[cfg(not(ebpf_object))]
const BUILT_IN: Option<&[u8]> = None;

/// The programs that this agent was built with.
fn built_in() -> Result<&'static [u8], Error> {
    BUILT_IN.ok_or(Error::NoObject)
}

fn object(config: &DatapathConfig) -> Result<Cow<'static, [u8]>, Error> {
    match &config.object {
        Some(path) => fs::read(path)
            .map(Cow::Owned)
            .map_err(Error::file("read", path)),
        None => built_in().map(Cow::Borrowed),
    }
}

impl Datapath {
    /// Checks the node, loads the programs, takes over what an earlier agent left, and attaches what the node needs.
    ///
    /// The node is the network namespace of the calling thread. Verdicts of an earlier agent's active generation stay
    /// in force until the first [`Prepared::flip`]; its gates run this agent's programs from here on.
    ///
    /// # Errors
    ///
    /// Whatever is missing, by name.
    pub fn open(config: &DatapathConfig) -> Result<Self, Error> {
        checks::kernel()?;
        let instance = Instance::claim()?;
        Self::load(config)?.take(instance)
    }

    /// Checks the node and loads the programs. Nothing runs them yet, and no table is written: another agent may have the node.
    ///
    /// # Errors
    ///
    /// Whatever is missing, by name.
    pub fn load(config: &DatapathConfig) -> Result<Loaded, Error> {
        let object = object(config)?;
        let kernel = checks::kernel()?;
        let cgroup = checks::cgroup(config.cgroup.as_deref())?;
        checks::bpffs(&config.bpffs)?;
        let links = Links::new(&config.bpffs, config.gate_hook, has_tcx(&kernel));
        links.check_owner(&config.bpffs)?;
        let folder = adopt::maps_folder(&config.bpffs)?;

        let refusal = u8::from(names_refusal(&kernel));
        let mut loader = EbpfLoader::new();
        for name in maps::NAMES {
            loader.map_pin_path(name, folder.join(name));
        }
        loader.override_global("NAMES_REFUSAL", &refusal, true);
        let mut ebpf = loader.load(&object)?;
        links::load(&mut ebpf)?;
        let programs = program_facts(&ebpf)?;
        let inner_maps = InnerMaker::new(&object, object_btf(&ebpf)?)?;
        let facts = Facts {
            kernel,
            hook: links.hook(),
            bpffs: config.bpffs.clone(),
            cgroup,
            programs,
        };
        Ok(Loaded {
            ebpf,
            links,
            folder,
            inner_maps,
            facts,
            pick_up: config.pick_up,
        })
    }

    /// Puts this agent's programs into the gates and hooks that an earlier one left, and attaches what the node needs. Nobody else
    /// attaches gates any more. Those that run programs on maps of another layout go on until the first flip.
    ///
    /// # Errors
    ///
    /// When the kernel refuses.
    pub fn take_gates(&self) -> Result<(), Error> {
        let mut inner = self.lock();
        inner.gates.take_over(!inner.adopting)?;
        match inner.adopting {
            true => Ok(()),
            false => inner.install(),
        }
    }

    /// The claim to the node once more, for the agent that takes this one's place; none if that has happened.
    ///
    /// # Errors
    ///
    /// When there are no descriptors left.
    pub fn share_claim(&self) -> std::io::Result<Option<OwnedFd>> {
        self.lock()
            .instance
            .as_ref()
            .map(Instance::share)
            .transpose()
    }

    /// Gives up the claim to the node: another process has it too, and is its agent. This one must have stopped writing.
    pub fn give_up_claim(&self) {
        self.lock().instance = None;
    }

    fn lock(&self) -> write::Guard<'_> {
        // A panic while the lock was held left maps that the next generation writes anew anyway.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The generation that the kernel judges by; 0 if none. The next one to prepare must be higher.
    #[must_use]
    pub fn active_generation(&self) -> u32 {
        self.lock().active
    }

    /// What does not change while the datapath is open.
    #[must_use]
    pub fn facts(&self) -> &Facts {
        &self.facts
    }

    /// Interfaces with gates.
    #[must_use]
    pub fn guarded(&self) -> BTreeSet<u32> {
        self.gates.interfaces()
    }

    /// The reader of events; `None` if it was taken before.
    #[must_use]
    pub fn take_events(&self) -> Option<EventReader> {
        self.lock().maps.events.take().map(EventReader::new)
    }

    /// All counters. Rows of values that this agent does not know are left out.
    ///
    /// # Errors
    ///
    /// When the kernel refuses.
    pub fn counters(&self) -> Result<Vec<CounterRow>, Error> {
        let inner = self.lock();
        let mut sums: BTreeMap<CounterKey, (u64, u64)> = BTreeMap::new();
        for (key, counter) in inner.maps.counted()? {
            let (packets, bytes) = sums.entry(key).or_default();
            *packets += counter.packets();
            *bytes += counter.bytes();
        }
        let mut rows = Vec::new();
        for (key, (packets, bytes)) in sums {
            let (Some(way), Some(path), Some(verdict), Some(reason)) =
                (key.way(), key.path(), key.verdict(), key.reason())
            else {
                continue;
            };
            rows.push(CounterRow {
                cell: key.cell(),
                way,
                path,
                verdict,
                reason,
                packets,
                bytes,
            });
        }
        rows.sort_by_key(|row| (row.cell, row.way, row.path, row.verdict, row.reason));
        Ok(rows)
    }

    /// How many connections each rule has decided, by its number in [`KernelTables::rules`].
    ///
    /// # Errors
    ///
    /// When the kernel refuses.
    pub fn hits(&self) -> Result<BTreeMap<u32, u64>, Error> {
        let inner = self.lock();
        let mut hits = BTreeMap::new();
        for entry in inner.maps.hits.iter() {
            let (rule, values) = entry.map_err(Error::map("read", "hits"))?;
            hits.insert(rule, values.iter().sum());
        }
        Ok(hits)
    }

    /// How often something could not be recorded.
    ///
    /// # Errors
    ///
    /// When the kernel refuses.
    pub fn lost(&self, kind: Lost) -> Result<u64, Error> {
        let values = self
            .lock()
            .maps
            .lost
            .get(&(kind as u32), 0)
            .map_err(Error::map("read", "lost"))?;
        Ok(values.iter().sum())
    }

    /// How full the maps are. Walks through them: not for every second.
    ///
    /// # Errors
    ///
    /// When the kernel refuses.
    pub fn map_facts(&self) -> Result<Vec<MapFacts>, Error> {
        let inner = self.lock();
        let maps = &inner.maps;
        let (mut flows, mut unassured) = (0, 0);
        let pods = inner.flow_slots();
        for slot in &pods {
            flows += maps::count_flows(maps.flows.get(*slot)?)?;
            unassured += maps::count_flows(maps.unassured.get(*slot)?)?;
        }
        let size = |name| maps.sizes.get(name).copied().unwrap_or(0);
        let rows = [
            ("identities", maps.identities.len(), size("identities")),
            ("policies", maps.policies.used(), maps.policies.size()),
            (
                "endpoints",
                maps.endpoints.keys().count(),
                size("endpoints"),
            ),
            (
                "flows",
                flows,
                pods.len() * inner.inner_maps.flows_per_pod(),
            ),
            (
                "unassured",
                unassured,
                pods.len() * inner.inner_maps.unassured_per_pod(),
            ),
            (
                "listeners",
                maps.listeners.keys().count(),
                size("listeners"),
            ),
            ("counters", maps.counters.keys().count(), size("counters")),
            ("hits", maps.hits.keys().count(), size("hits")),
        ];
        Ok(rows
            .into_iter()
            .chain(
                inner
                    .services
                    .used()
                    .map(|(name, used)| (name, used, size(name))),
            )
            .map(|(name, used, size)| MapFacts { name, used, size })
            .collect())
    }

    /// Removes everything from the kernel: gates, hooks, maps, the policy route. Afterwards nothing is enforced.
    ///
    /// # Errors
    ///
    /// When something cannot be removed; what comes after it is then still there.
    pub fn cleanup(self) -> Result<(), Error> {
        let inner = self.lock();
        inner.gates.remove_all()?;
        routes::remove()?;
        adopt::remove_pins(&inner.root)
    }
}

/// Programs that are in the kernel and not at work.
pub struct Loaded {
    ebpf: Ebpf,
    links: Links,
    folder: PathBuf,
    inner_maps: InnerMaker,
    facts: Facts,
    pick_up: Duration,
}

impl Loaded {
    /// Takes over what an earlier agent left, and attaches what the node needs.
    ///
    /// # Errors
    ///
    /// When the kernel refuses.
    pub fn take(self, instance: Instance) -> Result<Datapath, Error> {
        let datapath = self.open(instance)?;
        datapath.take_gates()?;
        Ok(datapath)
    }

    /// Takes over the tables that an earlier agent left. From here on this process writes them, and nobody else may. Gates and hooks
    /// run the earlier agent's programs until [`Datapath::take_gates`]: it may still be holding new interfaces.
    ///
    /// # Errors
    ///
    /// When the kernel refuses.
    pub fn open(self, instance: Instance) -> Result<Datapath, Error> {
        let Self {
            mut ebpf,
            links,
            folder,
            inner_maps,
            facts,
            pick_up,
        } = self;
        let maps = Maps::take(&mut ebpf, &folder, &inner_maps, &facts.kernel)?;
        let logs = Logs::start(&mut ebpf)?;
        let active = maps.control()?.generation();
        let services = Services::take(&mut ebpf, &folder, active)?;
        let programs = GatePrograms::of(&mut ebpf)?;
        let gates = Arc::new(Gates::new(links, programs, &folder, active)?);
        let mut inner = Inner {
            ebpf,
            maps,
            services,
            gates: Arc::clone(&gates),
            inner_maps,
            live: BTreeMap::new(),
            active,
            root: facts.bpffs.clone(),
            cgroup: facts.cgroup.clone(),
            ticks_per_second: sys::ticks_per_second()
                .map_err(Error::kernel("read the rate of the kernel's clock"))?,
            settled: true,
            adopting: false,
            _logs: logs,
            instance: Some(instance),
        };
        inner.begin(pick_up)?;
        inner.remember()?;
        Ok(Datapath {
            inner: Arc::new(Mutex::new(inner)),
            gates,
            facts: Arc::new(facts),
        })
    }
}

impl Inner {
    /// The slots of `flows` that the active generation names.
    fn flow_slots(&self) -> Vec<u32> {
        self.live
            .get(&self.active)
            .map(write::Live::flow_slots)
            .unwrap_or_default()
    }
}

/// tcx links came with 6.6.
fn has_tcx(release: &str) -> bool {
    checks::version(release).is_none_or(|version| version >= (6, 6))
}

/// `bpf_set_retval`, by which a program says why a call fails, came with 5.18. A kernel whose release says no version is
/// taken for an older one.
fn names_refusal(release: &str) -> bool {
    checks::version(release).is_some_and(|version| version >= (5, 18))
}

fn program_facts(ebpf: &Ebpf) -> Result<Vec<ProgramFacts>, Error> {
    let mut facts = Vec::new();
    for (name, program) in ebpf.programs() {
        let info: ProgramInfo = program.info().map_err(Error::program(name))?;
        facts.push(ProgramFacts {
            name: name.to_owned(),
            verified_instructions: info.verified_instruction_count(),
            jited_bytes: info.size_jitted(),
        });
    }
    facts.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(facts)
}

/// The type information that came into the kernel with the programs.
fn object_btf(ebpf: &Ebpf) -> Result<OwnedFd, Error> {
    let missing = || Error::Missing {
        kind: "type information of",
        name: "its programs".to_owned(),
    };
    let (name, program) = ebpf.programs().next().ok_or_else(missing)?;
    let info = program.info().map_err(Error::program(name))?;
    let id = info.btf_id().ok_or_else(missing)?;
    sys::btf_by_id(id).map_err(Error::kernel("open the programs' type information"))
}
