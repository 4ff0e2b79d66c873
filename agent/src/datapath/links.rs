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
use std::time::Duration;

use agent_common::Direction;
use aya::Ebpf;
use aya::programs::{CgroupSockAddr, Program, ProgramError, SchedClassifier, SkLookup};
use aya_obj::generated::bpf_attach_type as At;

use super::{clsact, error::Error, filters, netlink::Netlink, sys};

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
pub(super) const GATES: [(&str, Direction); 2] = [
    ("cell_egress", Direction::Egress),
    ("cell_ingress", Direction::Ingress),
];

/// Every program that an agent pins.
pub(super) const PROGRAMS: [&str; 14] = [
    "cell_egress",
    "cell_ingress",
    "explain_egress",
    "explain_ingress",
    "clock",
    "listen",
    "steer_connect4",
    "steer_connect6",
    "steer_sendmsg4",
    "steer_sendmsg6",
    "steer_recvmsg4",
    "steer_recvmsg6",
    "steer_getpeer4",
    "steer_getpeer6",
];

/// What a name in the folder of links means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// A gate of an interface.
    Gate(u32),
    /// A hook of processes or of listening sockets.
    Hook,
    /// That an interface has filters, and whether the agent made the qdisc that they are in.
    Note {
        /// The interface.
        ifindex: u32,
        /// Whether the agent made the qdisc.
        made: bool,
    },
}

/// What a name in the folder of links means; `None` for one that no agent gives.
pub(super) fn kind(name: &str) -> Option<Kind> {
    if let Some(rest) = name.strip_prefix("clsact_") {
        let (number, made) = match rest.strip_suffix("_made") {
            Some(number) => (number, true),
            None => (rest, false),
        };
        let ifindex = number.parse().ok()?;
        return Some(Kind::Note { ifindex, made });
    }
    let (program, number) = name.rsplit_once('_')?;
    let number: u64 = number.parse().ok()?;
    if GATES.iter().any(|(gate, _)| *gate == program) {
        return u32::try_from(number).ok().map(Kind::Gate);
    }
    let hook = program == LOOKUP || CGROUP.iter().any(|(hook, _)| *hook == program);
    hook.then_some(Kind::Hook)
}

/// How often, and after which pause, a program is attached again that a dying link still holds there.
const LAST_BREATHS: u32 = 50;
const BREATH: Duration = Duration::from_millis(20);

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

/// The kernel's number of a program.
fn number(program: BorrowedFd<'_>) -> Result<u32, Error> {
    sys::object_id(program).map_err(Error::kernel("ask the kernel for its number of a program"))
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
        if self.is_left_behind(root)? {
            self.remove_all()
        } else {
            Ok(())
        }
    }

    /// Whether the pins are those of a network namespace that is gone. Those of another one that lives are an error.
    pub(super) fn is_left_behind(&self, root: &Path) -> Result<bool, Error> {
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
        Ok(left_behind)
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

    pub(super) fn names(&self) -> Result<Vec<String>, Error> {
        let entries: Vec<_> = fs::read_dir(&self.folder)
            .and_then(Iterator::collect::<io::Result<_>>)
            .map_err(Error::file("list", &self.folder))?;
        Ok(entries
            .into_iter()
            // A name that is not text is none of ours.
            .filter_map(|entry| entry.file_name().into_string().ok())
            .collect())
    }

    /// Detaches a link and removes its pin. Removing alone would detach too, but only some time later.
    pub(super) fn unpin(&self, name: &str) -> Result<(), Error> {
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
        let mut attempts = LAST_BREATHS;
        let link = loop {
            match sys::link_create(program, target, hook) {
                // A link whose pin was removed keeps its program at the hook until the kernel gets to free it.
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists && attempts > 0 => {
                    attempts -= 1;
                    std::thread::sleep(BREATH);
                }
                made => break made.map_err(Error::kernel(format!("attach {name}")))?,
            }
        };
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
        // The qdisc goes with the gates: an interface's first moments are no time to wait for that.
        remove_note(&self.note(ifindex))
    }

    fn attach_filters(&self, programs: &GatePrograms, ifindex: u32) -> Result<(), Error> {
        self.note_clsact(ifindex)?;
        let made = clsact::attach(ifindex, &programs.gates()).map_err(Error::kernel(format!(
            "add the filters of interface {ifindex}"
        )))?;
        if made {
            self.note_made(ifindex)?;
        }
        // What an agent left that used the other hook.
        self.unpin_gates(ifindex)
    }

    /// Takes both gates of an interface away.
    pub(super) fn detach(&self, ifindex: u32) -> Result<(), Error> {
        self.unpin_gates(ifindex)?;
        if self.note(ifindex).exists() {
            detach_filters(ifindex, &[Direction::Egress, Direction::Ingress])?;
        }
        self.leave_clsact(ifindex)?;
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

    /// How many of an interface's gates run these programs now.
    pub(super) fn standing(
        &self,
        programs: &GatePrograms,
        ifindex: u32,
        by: By,
    ) -> Result<usize, Error> {
        let mut standing = 0;
        for (program, name, direction) in programs.gates() {
            let stands = match by {
                By::Link => self.holds_program(program, &format!("{name}_{ifindex}"))?,
                By::Filter => {
                    let wanted = number(program)?;
                    let failed =
                        || Error::kernel(format!("list the filters of interface {ifindex}"));
                    let mut netlink = Netlink::open().map_err(failed())?;
                    filters::list(&mut netlink, ifindex, direction)
                        .map_err(failed())?
                        .iter()
                        .any(|filter| filter.ours && filter.program == Some(wanted))
                }
            };
            standing += usize::from(stands);
        }
        Ok(standing)
    }

    /// Whether the pinned link of a hook holds this agent's program there.
    pub(super) fn holds(&self, ebpf: &Ebpf, name: &str, pin: &str) -> Result<bool, Error> {
        let program = ebpf.program(name).ok_or_else(|| Error::Missing {
            kind: "program",
            name: name.to_owned(),
        })?;
        let fd = program.fd().map_err(Error::program(name))?;
        self.holds_program(fd.as_fd(), pin)
    }

    /// Whether a pinned link holds this agent's program at its hook.
    fn holds_program(&self, program: BorrowedFd<'_>, pin: &str) -> Result<bool, Error> {
        let wanted = number(program)?;
        match sys::pinned(&self.folder.join(pin)).and_then(|link| sys::link_state(link.as_fd())) {
            Ok(state) => Ok(state.attached && state.program == wanted),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(Error::kernel(format!("read link {pin}"))(error)),
        }
    }

    /// The hooks of processes and of listening sockets: each program with the name of its pin.
    pub(super) fn hooks(&self, cgroup: &Path) -> Result<Vec<(&'static str, String)>, Error> {
        let inode = fs::metadata(cgroup)
            .map_err(Error::file("read", cgroup))?
            .ino();
        let (_, netns) = own_netns()?;
        let hooks = CGROUP.iter().map(|(name, _)| (*name, inode));
        Ok(hooks
            .chain([(LOOKUP, netns)])
            .map(|(name, number)| (name, format!("{name}_{number}")))
            .collect())
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

    /// Remembers that the qdisc is the agent's own, which the kernel does not tell.
    fn note_made(&self, ifindex: u32) -> Result<(), Error> {
        let path = self.made(ifindex);
        match fs::create_dir(&path) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                Err(Error::file("create", path)(error))
            }
            _ => Ok(()),
        }
    }

    fn made(&self, ifindex: u32) -> PathBuf {
        self.folder.join(format!("clsact_{ifindex}_made"))
    }

    /// The qdisc goes if the agent made it and nobody put anything into it meanwhile.
    fn leave_clsact(&self, ifindex: u32) -> Result<(), Error> {
        if !self.made(ifindex).exists() {
            return Ok(());
        }
        let failed = || Error::kernel(format!("remove the qdisc of interface {ifindex}"));
        let mut netlink = Netlink::open().map_err(failed())?;
        if filters::is_empty(&mut netlink, ifindex).map_err(failed())? {
            filters::remove_qdisc(&mut netlink, ifindex).map_err(failed())?;
        }
        Ok(())
    }

    fn forget_clsact(&self, ifindex: u32) -> Result<(), Error> {
        remove_note(&self.note(ifindex))?;
        remove_note(&self.made(ifindex))
    }

    /// Takes every attachment away.
    pub(super) fn remove_all(&self) -> Result<(), Error> {
        for ifindex in self.attached()? {
            self.detach(ifindex)?;
        }
        for name in self.names()? {
            if matches!(kind(&name), Some(Kind::Gate(_) | Kind::Hook)) {
                self.unpin(&name)?;
            }
        }
        Ok(())
    }
}

fn remove_note(path: &Path) -> Result<(), Error> {
    match fs::remove_dir(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(Error::file("remove", path)(error))
        }
        _ => Ok(()),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_links_are_told_from_others() {
        for (name, expected) in [
            ("cell_egress_12", Some(Kind::Gate(12))),
            ("cell_ingress_7", Some(Kind::Gate(7))),
            ("listen_4026531840", Some(Kind::Hook)),
            ("steer_connect4_1", Some(Kind::Hook)),
            (
                "clsact_3",
                Some(Kind::Note {
                    ifindex: 3,
                    made: false,
                }),
            ),
            (
                "clsact_3_made",
                Some(Kind::Note {
                    ifindex: 3,
                    made: true,
                }),
            ),
            ("cell_egress_", None),
            ("cell_egress_x", None),
            ("cell_egress_99999999999", None),
            ("clsact_", None),
            ("other_12", None),
            ("listen", None),
        ] {
            assert_eq!(kind(name), expected, "{name}");
        }
    }
}
