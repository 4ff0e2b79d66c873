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
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use agent_common::{Control, Direction, Lost, Reason, Verdict};
use aya::{Ebpf, EbpfLoader, programs::ProgramInfo};

mod checks;
mod clsact;
mod discovery;
mod error;
mod events;
mod gates;
mod instance;
mod links;
mod logs;
mod maps;
mod netlink;
mod quarantine;
mod routes;
mod sys;
mod tables;
mod wire;
mod write;

pub use discovery::{Discovery, Pod as DiscoveredPod, scan};
pub use error::Error;
pub use events::{EventReader, EventStream};
pub use links::GateHook;
pub use quarantine::{Held, PodWatch};
pub use tables::{Backend, KernelTables, Network, Owner, Pod, Rules, ServiceAddress};
pub use write::{Cost, Flipped, Prepared};

use gates::Gates;
use instance::Instance;
use links::{GatePrograms, Links};
use logs::Logs;
use maps::{InnerMaker, Maps};
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
    pub direction: Direction,
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
    inner_maps: InnerMaker,
    live: BTreeMap<u32, Live>,
    active: u32,
    gates: Arc<Gates>,
    root: PathBuf,
    _logs: Option<Logs>,
    _instance: Instance,
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

fn object(config: &DatapathConfig) -> Result<Cow<'static, [u8]>, Error> {
    match &config.object {
        Some(path) => fs::read(path)
            .map(Cow::Owned)
            .map_err(Error::file("read", path)),
        None => BUILT_IN.map(Cow::Borrowed).ok_or(Error::NoObject),
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
        let object = object(config)?;
        let kernel = checks::kernel()?;
        let instance = Instance::claim()?;
        let cgroup = checks::cgroup(config.cgroup.as_deref())?;
        checks::bpffs(&config.bpffs)?;
        let links = Links::new(&config.bpffs, config.gate_hook, has_tcx(&kernel));
        links.check_owner(&config.bpffs)?;
        check_schema(&config.bpffs)?;

        let mut loader = EbpfLoader::new();
        for name in maps::NAMES {
            loader.map_pin_path(name, config.bpffs.join(name));
        }
        let mut ebpf = loader.load(&object)?;
        links::load(&mut ebpf)?;
        let programs = program_facts(&ebpf)?;
        let inner_maps = InnerMaker::new(&object, object_btf(&ebpf)?)?;
        let mut maps = Maps::take(&mut ebpf, &config.bpffs)?;
        let logs = Logs::start(&mut ebpf)?;
        let active = maps
            .control
            .get(&0, 0)
            .map_err(Error::map("read", "control"))?
            .0
            .generation();
        maps.control
            .set(0, wire::Raw(Control::new(active)), 0)
            .map_err(Error::map("write", "control"))?;
        // What an interrupted agent prepared or had not yet retired.
        for generation in maps
            .generations()?
            .into_iter()
            .filter(|generation| *generation != active)
        {
            maps.remove_generation(generation)?;
        }
        routes::ensure()?;
        links.node(&mut ebpf, &cgroup)?;
        let facts = Facts {
            kernel,
            hook: links.hook(),
            bpffs: config.bpffs.clone(),
            cgroup,
            programs,
        };
        let gates = Gates::new(links, GatePrograms::of(&mut ebpf)?, &config.bpffs, active)?;
        gates.take_over()?;
        let gates = Arc::new(gates);
        let inner = Inner {
            ebpf,
            maps,
            gates: Arc::clone(&gates),
            inner_maps,
            live: BTreeMap::new(),
            active,
            root: config.bpffs.clone(),
            _logs: logs,
            _instance: instance,
        };
        Ok(Self {
            inner: Arc::new(Mutex::new(inner)),
            gates,
            facts: Arc::new(facts),
        })
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

    /// Repairs what others may have removed: gates, hooks, and the policy route of steered packets. What is in place is
    /// replaced by itself, without a gap. Blocking, some system calls per pod.
    ///
    /// # Errors
    ///
    /// The first thing that the kernel refuses; the rest is looked at all the same.
    pub fn repair(&self) -> Result<(), Error> {
        let mut inner = self.lock();
        let Inner { gates, ebpf, .. } = &mut *inner;
        gates
            .repair()
            .and(gates.links().node(ebpf, &self.facts.cgroup))
            .and(routes::ensure())
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
        let mut rows = Vec::new();
        for entry in inner.maps.counters.iter() {
            let (key, values) = entry.map_err(Error::map("read", "counters"))?;
            let (Some(direction), Some(verdict), Some(reason)) =
                (key.0.direction(), key.0.verdict(), key.0.reason())
            else {
                continue;
            };
            rows.push(CounterRow {
                cell: key.0.cell(),
                direction,
                verdict,
                reason,
                packets: values.iter().map(|value| value.0.packets()).sum(),
                bytes: values.iter().map(|value| value.0.bytes()).sum(),
            });
        }
        rows.sort_by_key(|row| (row.cell, row.direction, row.verdict, row.reason));
        Ok(rows)
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
        let used = [
            ("policies", maps.policies.keys().count()),
            ("endpoints", maps.endpoints.keys().count()),
            ("flows", maps.flows.keys().count()),
            ("services", maps.services.keys().count()),
            ("backends", maps.backends.keys().count()),
            ("listeners", maps.listeners.keys().count()),
            ("counters", maps.counters.keys().count()),
        ];
        Ok(used
            .into_iter()
            .map(|(name, used)| MapFacts {
                name,
                used,
                size: maps.sizes.get(name).copied().unwrap_or(0),
            })
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
        for name in maps::NAMES {
            let path = inner.root.join(name);
            fs::remove_file(&path).map_err(Error::file("unpin", path))?;
        }
        for folder in [inner.root.join("links"), inner.root.clone()] {
            match fs::remove_dir(&folder) {
                // The root of a mount is not ours to remove.
                Err(error) if error.raw_os_error() != Some(libc::EBUSY) => {
                    return Err(Error::file("remove", folder)(error));
                }
                _ => {}
            }
        }
        Ok(())
    }
}

/// tcx links came with 6.6.
fn has_tcx(release: &str) -> bool {
    checks::version(release).is_none_or(|version| version >= (6, 6))
}

/// Maps of another layout are not touched.
fn check_schema(root: &Path) -> Result<(), Error> {
    let path = root.join("control");
    if !path.exists() {
        return Ok(());
    }
    let map = aya::maps::MapData::from_pin(&path).map_err(Error::map("open pinned", "control"))?;
    let control: aya::maps::Array<_, wire::Raw<Control>> =
        aya::maps::Array::try_from(aya::maps::Map::Array(map))
            .map_err(Error::map("use", "control"))?;
    let found = control
        .get(&0, 0)
        .map_err(Error::map("read", "control"))?
        .0
        .schema();
    // Zero: made by an agent that was interrupted before it wrote anything.
    if found != 0 && found != Control::SCHEMA {
        return Err(Error::Schema {
            path: root.to_owned(),
            found,
            expected: Control::SCHEMA,
        });
    }
    Ok(())
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
fn object_btf(ebpf: &Ebpf) -> Result<std::os::fd::OwnedFd, Error> {
    let missing = || Error::Missing {
        kind: "type information of",
        name: "its programs".to_owned(),
    };
    let (name, program) = ebpf.programs().next().ok_or_else(missing)?;
    let info = program.info().map_err(Error::program(name))?;
    let id = info.btf_id().ok_or_else(missing)?;
    sys::btf_by_id(id).map_err(Error::kernel("open the programs' type information"))
}
