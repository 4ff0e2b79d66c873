//! Where programs are attached, and how they are replaced without a gap.
//!
//! Every attachment is a link pinned under `<bpffs>/links`, so that it outlives the agent. An agent that starts again
//! finds the pin and puts its own program into the same link: at no moment is the hook without a program. Below kernel
//! 6.6, which has no tcx, gates are filters of a clsact qdisc; the filter's handle plays the pin's part.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use agent_common::Direction;
use aya::Ebpf;
use aya::programs::{CgroupSockAddr, Program, ProgramError, SchedClassifier, SkLookup};
use aya_obj::generated::bpf_attach_type as At;

use super::{clsact, error::Error, sys};

/// The hooks of processes, by program.
const CGROUP: [(&str, At); 8] = [
    ("steer_connect4", At::BPF_CGROUP_INET4_CONNECT),
    ("steer_connect6", At::BPF_CGROUP_INET6_CONNECT),
    ("steer_sendmsg4", At::BPF_CGROUP_UDP4_SENDMSG),
    ("steer_sendmsg6", At::BPF_CGROUP_UDP6_SENDMSG),
    ("steer_recvmsg4", At::BPF_CGROUP_UDP4_RECVMSG),
    ("steer_recvmsg6", At::BPF_CGROUP_UDP6_RECVMSG),
    ("steer_getpeer4", At::BPF_CGROUP_INET4_GETPEERNAME),
    ("steer_getpeer6", At::BPF_CGROUP_INET6_GETPEERNAME),
];
const LOOKUP: &str = "listen";
const GATES: [(&str, Direction); 2] = [
    ("cell_egress", Direction::Egress),
    ("cell_ingress", Direction::Ingress),
];

/// By what a gate stands at its interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum By {
    /// A pinned tcx link: before every program of others, and replaced without a gap.
    Link,
    /// A filter of clsact: quick to make. Where tcx exists it is a beginning only.
    Filter,
}

/// The programs of a pod's two gates, loaded.
#[derive(Debug)]
pub(super) struct GatePrograms([OwnedFd; 2]);

impl GatePrograms {
    pub(super) fn of(ebpf: &mut Ebpf) -> Result<Self, Error> {
        let mut open = |name: &str| {
            let program: &mut SchedClassifier = program(ebpf, name)?;
            let fd = program.fd().map_err(Error::program(name))?;
            fd.as_fd()
                .try_clone_to_owned()
                .map_err(Error::kernel(format!("keep program {name}")))
        };
        Ok(Self([open(GATES[0].0)?, open(GATES[1].0)?]))
    }

    fn gates(&self) -> [clsact::Gate<'_>; 2] {
        [0, 1].map(|gate: usize| (self.0[gate].as_fd(), GATES[gate].0, GATES[gate].1))
    }
}

/// How gates are attached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum GateHook {
    /// tcx where the kernel has it (6.6), else clsact.
    #[default]
    Auto,
    /// clsact everywhere.
    Clsact,
}

/// What became of a gate that was to be attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Attached {
    /// It stands.
    Yes,
    /// The interface went away meanwhile.
    InterfaceGone,
}

/// The links of one node.
#[derive(Debug)]
pub(super) struct Links {
    folder: PathBuf,
    tcx: bool,
}

/// Loads every program of the object into the kernel.
pub(super) fn load(ebpf: &mut Ebpf) -> Result<(), Error> {
    for (name, program) in ebpf.programs_mut() {
        let loaded = match program {
            Program::SchedClassifier(program) => program.load(),
            Program::CgroupSockAddr(program) => program.load(),
            Program::SkLookup(program) => program.load(),
            _ => {
                return Err(Error::Missing {
                    kind: "use for program",
                    name: name.to_owned(),
                });
            }
        };
        loaded.map_err(Error::program(name))?;
    }
    Ok(())
}

fn program<'a, P>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut P, Error>
where
    &'a mut P: TryFrom<&'a mut Program, Error = ProgramError>,
{
    let program = ebpf.program_mut(name).ok_or_else(|| Error::Missing {
        kind: "program",
        name: name.to_owned(),
    })?;
    program.try_into().map_err(Error::program(name))
}

/// The descriptor of a program of tc.
pub(super) fn tc_program<'a>(ebpf: &'a mut Ebpf, name: &str) -> Result<BorrowedFd<'a>, Error> {
    let program: &mut SchedClassifier = program(ebpf, name)?;
    program.fd().map(AsFd::as_fd).map_err(Error::program(name))
}

impl Links {
    /// `root` is the folder of this node's pins.
    pub(super) fn new(root: &Path, hook: GateHook, tcx_exists: bool) -> Self {
        Self {
            folder: root.join("links"),
            tcx: hook == GateHook::Auto && tcx_exists,
        }
    }

    /// `tcx` or `clsact`.
    pub(super) fn hook(&self) -> &'static str {
        if self.tcx { "tcx" } else { "clsact" }
    }

    /// Attaches the programs of processes and of listening sockets, or replaces them.
    pub(super) fn node(&self, ebpf: &mut Ebpf, cgroup: &Path) -> Result<(), Error> {
        let folder = File::open(cgroup).map_err(Error::file("open", cgroup))?;
        let inode = folder
            .metadata()
            .map_err(Error::file("read", cgroup))?
            .ino();
        for (name, hook) in CGROUP {
            let program: &mut CgroupSockAddr = program(ebpf, name)?;
            let fd = program.fd().map_err(Error::program(name))?;
            let target = sys::Target::File(folder.as_fd());
            self.place(fd.as_fd(), &target, hook, &format!("{name}_{inode}"))?;
            self.drop_others(name, inode)?;
        }
        let (netns, inode) = own_netns()?;
        let program: &mut SkLookup = program(ebpf, LOOKUP)?;
        let fd = program.fd().map_err(Error::program(LOOKUP))?;
        let target = sys::Target::File(netns.as_fd());
        self.place(
            fd.as_fd(),
            &target,
            At::BPF_SK_LOOKUP,
            &format!("{LOOKUP}_{inode}"),
        )
    }

    /// Refuses pins of another node, that is of another network namespace that lives. Links of one that is gone hold
    /// nothing any more and are removed, all of them: their interface numbers mean other interfaces here.
    pub(super) fn check_owner(&self, root: &Path) -> Result<(), Error> {
        let (_, inode) = own_netns()?;
        let own = format!("{LOOKUP}_{inode}");
        let mut left_behind = false;
        for name in self.names()? {
            if name == own || !name.starts_with(&format!("{LOOKUP}_")) {
                continue;
            }
            let link = sys::pinned(&self.folder.join(&name))
                .map_err(Error::kernel(format!("open link {name}")))?;
            let netns = sys::link_netns(link.as_fd())
                .map_err(Error::kernel(format!("read link {name}")))?;
            if netns != 0 {
                return Err(Error::ForeignPins {
                    path: root.to_owned(),
                });
            }
            left_behind = true;
        }
        if left_behind {
            self.remove_all()
        } else {
            Ok(())
        }
    }

    /// The steering of a cgroup that is no longer asked for ends.
    fn drop_others(&self, program: &str, inode: u64) -> Result<(), Error> {
        let keep = format!("{program}_{inode}");
        for name in self.names()? {
            if name
                .strip_prefix(program)
                .is_some_and(|rest| rest.starts_with('_'))
                && name != keep
            {
                self.unpin(&name)?;
            }
        }
        Ok(())
    }

    fn names(&self) -> Result<Vec<String>, Error> {
        let entries = fs::read_dir(&self.folder).map_err(Error::file("list", &self.folder))?;
        Ok(entries
            .flatten()
            .filter_map(|entry| entry.file_name().into_string().ok())
            .collect())
    }

    /// Detaches a link and removes its pin. Removing alone would detach too, but only some time later.
    fn unpin(&self, name: &str) -> Result<(), Error> {
        let path = self.folder.join(name);
        match sys::pinned(&path).and_then(|link| sys::link_detach(link.as_fd())) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            // The interface, cgroup or namespace is gone, and the attachment with it.
            Err(error) if error.raw_os_error() == Some(libc::ENOLINK) => {}
            Err(error) => return Err(Error::kernel(format!("detach link {name}"))(error)),
        }
        fs::remove_file(&path).map_err(Error::file("unpin", path))
    }

    /// Puts a program into the pinned link of this name, or makes the link.
    fn place(
        &self,
        program: BorrowedFd<'_>,
        target: &sys::Target<'_>,
        hook: At,
        name: &str,
    ) -> Result<(), Error> {
        let path = self.folder.join(name);
        match sys::pinned(&path).and_then(|link| sys::link_update(link.as_fd(), program)) {
            Ok(()) => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            // The link lost its interface, and the number went to another one.
            Err(error) if error.raw_os_error() == Some(libc::ENOLINK) => self.unpin(name)?,
            Err(error) => {
                return Err(Error::kernel(format!("replace the program of link {name}"))(error));
            }
        }
        let link = sys::link_create(program, target, hook)
            .map_err(Error::kernel(format!("attach {name}")))?;
        sys::pin(link.as_fd(), &path).map_err(Error::file("pin", path))
    }

    /// By what gates stand in the end.
    pub(super) fn preferred(&self) -> By {
        if self.tcx { By::Link } else { By::Filter }
    }

    /// By what the gates of an interface stand that an earlier agent left.
    pub(super) fn found(&self, ifindex: u32) -> By {
        let pinned = GATES
            .iter()
            .any(|(name, _)| self.folder.join(format!("{name}_{ifindex}")).exists());
        if self.tcx && pinned {
            By::Link
        } else {
            By::Filter
        }
    }

    /// Attaches both gates of a pod's interface, what it sends first, or replaces their programs. Where links take the
    /// place of filters, each direction has the one or the other at every moment.
    pub(super) fn attach(
        &self,
        programs: &GatePrograms,
        ifindex: u32,
        by: By,
    ) -> Result<Attached, Error> {
        let placed = match by {
            By::Link => self.attach_links(programs, ifindex),
            By::Filter => self.attach_filters(programs, ifindex),
        };
        match placed {
            Ok(()) => Ok(Attached::Yes),
            Err(error) if interface_gone(&error) => {
                self.detach(ifindex)?;
                Ok(Attached::InterfaceGone)
            }
            Err(error) => Err(error),
        }
    }

    fn attach_links(&self, programs: &GatePrograms, ifindex: u32) -> Result<(), Error> {
        let filters = self.note(ifindex).exists();
        for (program, name, direction) in programs.gates() {
            let hook = match direction {
                Direction::Egress => At::BPF_TCX_INGRESS,
                Direction::Ingress => At::BPF_TCX_EGRESS,
            };
            let target = sys::Target::Interface(ifindex);
            self.place(program, &target, hook, &format!("{name}_{ifindex}"))?;
            if filters {
                // Both would judge, and count, each packet twice.
                detach_filters(ifindex, &[direction])?;
            }
        }
        self.forget_clsact(ifindex)
    }

    fn attach_filters(&self, programs: &GatePrograms, ifindex: u32) -> Result<(), Error> {
        self.note_clsact(ifindex)?;
        clsact::attach(ifindex, &programs.gates()).map_err(Error::kernel(format!(
            "add the filters of interface {ifindex}"
        )))?;
        // What an agent left that used the other hook.
        self.unpin_gates(ifindex)
    }

    /// Takes both gates of an interface away.
    pub(super) fn detach(&self, ifindex: u32) -> Result<(), Error> {
        self.unpin_gates(ifindex)?;
        if self.note(ifindex).exists() {
            detach_filters(ifindex, &[Direction::Egress, Direction::Ingress])?;
        }
        self.forget_clsact(ifindex)
    }

    /// Removes the pins of an interface that is gone from here. Where it lives on, in another namespace, the kernel
    /// detaches the programs some time later; filters do not survive the way there.
    pub(super) fn forget(&self, ifindex: u32) -> Result<(), Error> {
        for (name, _) in GATES {
            let path = self.folder.join(format!("{name}_{ifindex}"));
            match fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(Error::file("unpin", path)(error));
                }
                _ => {}
            }
        }
        self.forget_clsact(ifindex)
    }

    fn unpin_gates(&self, ifindex: u32) -> Result<(), Error> {
        for (name, _) in GATES {
            self.unpin(&format!("{name}_{ifindex}"))?;
        }
        Ok(())
    }

    /// The interfaces that have gates.
    pub(super) fn attached(&self) -> Result<std::collections::BTreeSet<u32>, Error> {
        let number = |name: String| {
            let rest = name
                .strip_prefix("cell_egress_")
                .or_else(|| name.strip_prefix("cell_ingress_"))
                .or_else(|| name.strip_prefix("clsact_"))?;
            rest.split('_').next()?.parse().ok()
        };
        Ok(self.names()?.into_iter().filter_map(number).collect())
    }

    /// clsact filters have no link to pin; an empty folder of the bpffs remembers the interface.
    fn note(&self, ifindex: u32) -> PathBuf {
        self.folder.join(format!("clsact_{ifindex}"))
    }

    fn note_clsact(&self, ifindex: u32) -> Result<(), Error> {
        let path = self.note(ifindex);
        match fs::create_dir(&path) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                Err(Error::file("create", path)(error))
            }
            _ => Ok(()),
        }
    }

    fn forget_clsact(&self, ifindex: u32) -> Result<(), Error> {
        let path = self.note(ifindex);
        match fs::remove_dir(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(Error::file("remove", path)(error))
            }
            _ => Ok(()),
        }
    }

    /// Takes every attachment away.
    pub(super) fn remove_all(&self) -> Result<(), Error> {
        for ifindex in self.attached()? {
            self.detach(ifindex)?;
        }
        for name in self.names()? {
            self.unpin(&name)?;
        }
        Ok(())
    }
}

fn detach_filters(ifindex: u32, directions: &[Direction]) -> Result<(), Error> {
    clsact::detach(ifindex, directions).map_err(Error::kernel(format!(
        "remove the filters of interface {ifindex}"
    )))
}

/// The name of an interface, if it exists.
pub(super) fn interface_name(ifindex: u32) -> Option<String> {
    let name = nix::net::if_::if_indextoname(ifindex)
        .ok()?
        .into_string()
        .ok()?;
    // For an index that nobody has, nix gives an empty name instead of an error (0.31).
    (!name.is_empty()).then_some(name)
}

/// Whether the interface disappeared between discovery and attachment.
fn interface_gone(error: &Error) -> bool {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(current) = cause {
        if let Some(io) = current.downcast_ref::<io::Error>()
            && matches!(io.raw_os_error(), Some(libc::ENODEV | libc::ENXIO))
        {
            return true;
        }
        cause = current.source();
    }
    false
}

fn own_netns() -> Result<(File, u64), Error> {
    const PATH: &str = "/proc/thread-self/ns/net";
    let file = File::open(PATH).map_err(Error::file("open", PATH))?;
    let inode = file.metadata().map_err(Error::file("read", PATH))?.ino();
    Ok((file, inode))
}
