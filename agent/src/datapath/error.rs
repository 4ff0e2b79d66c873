//! What can go wrong between the agent and the kernel, in words for whoever runs the node.

use std::io;
use std::path::PathBuf;

/// Why the datapath cannot do what was asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The agent was built without the programs.
    #[error(
        "this agent was built without its eBPF object; build it with `cargo xtask build-ebpf` and CARDINAL_EBPF_OBJECT, or run with --datapath none"
    )]
    NoObject,
    /// A capability is missing.
    #[error(
        "missing {capability}: run as root, or give the agent the capabilities that `cardinal-agent preflight` names"
    )]
    Privilege {
        /// Name of the capability.
        capability: &'static str,
    },
    /// The kernel is older than what the programs need.
    #[error("kernel {found} is too old: 5.10 or newer is needed (it lacks {lacks})")]
    KernelTooOld {
        /// The running kernel's release.
        found: String,
        /// The first thing that it lacks.
        lacks: &'static str,
    },
    /// The kernel tells no type information.
    #[error("{path} is missing: the kernel was built without CONFIG_DEBUG_INFO_BTF")]
    NoBtf {
        /// Where it should be.
        path: PathBuf,
    },
    /// No cgroup2 hierarchy.
    #[error("no cgroup2 file system is mounted: mount one, or name a folder of one with --cgroup")]
    NoCgroup,
    /// The named folder is not of cgroup2.
    #[error("{path} is not a folder of a cgroup2 file system")]
    NotCgroup {
        /// The folder.
        path: PathBuf,
    },
    /// Another agent runs in this network namespace.
    #[error("another agent ({}) runs on this node", holder.map_or_else(|| "process unknown".to_owned(), |pid| format!("process {pid}")))]
    AlreadyRunning {
        /// Its process id.
        holder: Option<i32>,
    },
    /// Pins of an agent whose maps have another layout.
    #[error(
        "the maps pinned in {path} have layout {found}, this agent needs {expected}: drain the node, remove the folder and start again"
    )]
    Schema {
        /// The folder of pins.
        path: PathBuf,
        /// Layout of the pinned maps.
        found: u32,
        /// Layout that this agent writes.
        expected: u32,
    },
    /// Pins of another network namespace.
    #[error(
        "the pins in {path} belong to another network namespace: give each node its own --bpffs"
    )]
    ForeignPins {
        /// The folder of pins.
        path: PathBuf,
    },
    /// A generation has more entries than a map.
    #[error("map `{map}` holds {limit} entries, generation {generation} needs {needed}")]
    Capacity {
        /// Name of the map.
        map: &'static str,
        /// The generation.
        generation: u32,
        /// Entries that it and the active generation need.
        needed: usize,
        /// Size of the map.
        limit: usize,
    },
    /// One generation at a time is prepared.
    #[error(
        "generation {generation} cannot be prepared: another one is, and neither active nor dropped"
    )]
    Staged {
        /// The generation that was to be prepared.
        generation: u32,
    },
    /// Pinned maps that do not fit together.
    #[error(
        "pinned map `{map}` contradicts the others: drain the node, run `cardinal-agent cleanup` and start again"
    )]
    Contradiction {
        /// Name of the map.
        map: &'static str,
    },
    /// Generations only go up.
    #[error("generation {given} is not newer than {newest}")]
    Generation {
        /// The generation that was to be prepared.
        given: u32,
        /// The newest known one.
        newest: u32,
    },
    /// A file or folder.
    #[error("failed to {action} {path}")]
    File {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// A call into the kernel.
    #[error("failed to {action}")]
    Kernel {
        /// What was tried.
        action: String,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The object could not be loaded.
    #[error("failed to load the eBPF object")]
    Load(#[from] aya::EbpfError),
    /// The object could not be read.
    #[error("failed to parse the eBPF object")]
    Parse(#[from] aya_obj::ParseError),
    /// A program was refused.
    #[error("the kernel refused program `{program}`")]
    Program {
        /// Its name.
        program: String,
        /// The cause; the verifier's log is in it.
        #[source]
        source: Box<aya::programs::ProgramError>,
    },
    /// A map.
    #[error("failed to {action} map `{map}`")]
    Map {
        /// What was tried.
        action: &'static str,
        /// Its name.
        map: String,
        /// The cause.
        #[source]
        source: Box<aya::maps::MapError>,
    },
    /// The object lacks something that the agent relies on.
    #[error("the eBPF object has no {kind} `{name}`: it belongs to another version of the agent")]
    Missing {
        /// Program or map.
        kind: &'static str,
        /// Its name.
        name: String,
    },
}

impl Error {
    pub(super) fn file(
        action: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::File {
            action,
            path,
            source,
        }
    }

    pub(super) fn kernel(action: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let action = action.into();
        move |source| Self::Kernel { action, source }
    }

    pub(super) fn map<E: Into<aya::maps::MapError>>(
        action: &'static str,
        map: impl Into<String>,
    ) -> impl FnOnce(E) -> Self {
        let map = map.into();
        move |source| Self::Map {
            action,
            map,
            source: Box::new(source.into()),
        }
    }

    pub(super) fn program<E: Into<aya::programs::ProgramError>>(
        program: impl Into<String>,
    ) -> impl FnOnce(E) -> Self {
        let program = program.into();
        move |source| Self::Program {
            program,
            source: Box::new(source.into()),
        }
    }
}
