//! Where programs are attached, and how they are replaced without a gap.
//!
//! Every attachment is a link pinned under `<bpffs>/links`, so that it outlives the agent. An agent that starts again
//! finds the pin and puts its own program into the same link: at no moment is the hook without a program. Below kernel
//! 6.6, which has no tcx, gates are filters of a clsact qdisc; the filter's handle plays the pin's part.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use agent_common::Direction;
use aya::Ebpf;
use aya::programs::tc::{
    self, NlOptions, SchedClassifierLink, TcAttachOptions, TcAttachType, TcError, TcHandle,
};
use aya::programs::{CgroupSockAddr, Program, ProgramError, SchedClassifier, SkLookup};
use aya_obj::generated::bpf_attach_type as At;

use super::{error::Error, filters, netlink::Netlink, sys};

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

const CLSACT_HANDLE: TcHandle = TcHandle::new(0, filters::HANDLE);

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
pub enum Attached {
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
fn program_id(ebpf: &mut Ebpf, name: &str) -> Result<u32, Error> {
    let program = ebpf.program(name).ok_or_else(|| Error::Missing {
        kind: "program",
        name: name.to_owned(),
    })?;
    Ok(program.info().map_err(Error::program(name))?.id())
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
        let entries = fs::read_dir(&self.folder).map_err(Error::file("list", &self.folder))?;
        Ok(entries
            .flatten()
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
        let link = sys::link_create(program, target, hook)
            .map_err(Error::kernel(format!("attach {name}")))?;
        sys::pin(link.as_fd(), &path).map_err(Error::file("pin", path))
    }

    /// Attaches both gates of a pod's interface, or replaces their programs.
    pub(super) fn attach(
        &self,
        ebpf: &mut Ebpf,
        ifindex: u32,
        ifname: &str,
    ) -> Result<Attached, Error> {
        for (name, direction) in GATES {
            let placed = if self.tcx {
                let program: &mut SchedClassifier = program(ebpf, name)?;
                let fd = program.fd().map_err(Error::program(name))?;
                let hook = match direction {
                    Direction::Egress => At::BPF_TCX_INGRESS,
                    Direction::Ingress => At::BPF_TCX_EGRESS,
                };
                self.place(
                    fd.as_fd(),
                    &sys::Target::Interface(ifindex),
                    hook,
                    &format!("{name}_{ifindex}"),
                )
            } else {
                self.note_clsact(ifindex)
                    .and_then(|()| clsact(program(ebpf, name)?, name, ifindex, ifname, direction))
                    .and_then(|made| {
                        if made {
                            self.note_made(ifindex)
                        } else {
                            Ok(())
                        }
                    })
            };
            match placed {
                Ok(()) => {}
                Err(error) if interface_gone(&error) => {
                    self.detach(ifindex)?;
                    return Ok(Attached::InterfaceGone);
                }
                Err(error) => return Err(error),
            }
        }
        Ok(Attached::Yes)
    }

    /// Takes both gates of an interface away.
    pub(super) fn detach(&self, ifindex: u32) -> Result<(), Error> {
        // Also what an agent left that used the other hook.
        let noted = self.note(ifindex).exists();
        for (name, direction) in GATES {
            self.unpin(&format!("{name}_{ifindex}"))?;
            if noted && let Some(ifname) = interface_name(ifindex) {
                match tc::qdisc_detach_program(&ifname, tc_type(direction), name) {
                    Ok(()) => {}
                    Err(TcError::IoError(error)) if error.kind() == io::ErrorKind::NotFound => {}
                    // The qdisc went away with our filter in it, or with the interface.
                    Err(TcError::NetlinkError(error)) => {
                        tracing::debug!(
                            ifname,
                            error = &error as &dyn std::error::Error,
                            "no filter to detach"
                        );
                    }
                    Err(error) => return Err(Error::program(name)(error)),
                }
            }
        }
        self.forget_clsact(ifindex)
    }

    /// How many of an interface's gates run this agent's programs now.
    pub(super) fn standing(&self, ebpf: &mut Ebpf, ifindex: u32) -> Result<usize, Error> {
        let mut standing = 0;
        for (name, direction) in GATES {
            let stands = if self.tcx {
                self.holds(ebpf, name, &format!("{name}_{ifindex}"))?
            } else {
                let wanted = program_id(ebpf, name)?;
                let failed = || Error::kernel(format!("list the filters of interface {ifindex}"));
                let mut netlink = Netlink::open().map_err(failed())?;
                filters::list(&mut netlink, ifindex, direction)
                    .map_err(failed())?
                    .iter()
                    .any(|filter| filter.ours && filter.program == Some(wanted))
            };
            standing += usize::from(stands);
        }
        Ok(standing)
    }

    /// Whether a pinned link holds this agent's program at its hook.
    pub(super) fn holds(&self, ebpf: &mut Ebpf, program: &str, pin: &str) -> Result<bool, Error> {
        let wanted = program_id(ebpf, program)?;
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
    fn forget_clsact(&self, ifindex: u32) -> Result<(), Error> {
        if self.made(ifindex).exists() {
            let failed = || Error::kernel(format!("remove the qdisc of interface {ifindex}"));
            let mut netlink = Netlink::open().map_err(failed())?;
            if filters::is_empty(&mut netlink, ifindex).map_err(failed())? {
                filters::remove_qdisc(&mut netlink, ifindex).map_err(failed())?;
            }
        }
        for path in [self.note(ifindex), self.made(ifindex)] {
            match fs::remove_dir(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(Error::file("remove", path)(error));
                }
                _ => {}
            }
        }
        Ok(())
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

fn tc_type(direction: Direction) -> TcAttachType {
    // What a pod sends comes in at the host side of its pair.
    match direction {
        Direction::Egress => TcAttachType::Ingress,
        Direction::Ingress => TcAttachType::Egress,
    }
}

/// Replaces our filter of an interface, or adds it. Tells whether the qdisc had to be made.
fn clsact(
    program: &mut SchedClassifier,
    name: &str,
    ifindex: u32,
    ifname: &str,
    direction: Direction,
) -> Result<bool, Error> {
    // Filters are addressed by name, and a name may have gone to another interface.
    if nix::net::if_::if_nametoindex(ifname) != Ok(ifindex) {
        return Err(Error::kernel(format!("find interface {ifname}"))(
            io::Error::from_raw_os_error(libc::ENODEV),
        ));
    }
    let made = match tc::qdisc_add_clsact(ifname) {
        Ok(()) => true,
        // The qdisc is there already: ours or another's. If it is not, the filter below says so.
        Err(TcError::NetlinkError(_) | TcError::AlreadyAttached) => false,
        Err(error) => return Err(Error::program(name)(error)),
    };
    let hook = tc_type(direction);
    let known = SchedClassifierLink::attached(ifname, hook, filters::PRIORITY, CLSACT_HANDLE, None)
        .map_err(Error::kernel(format!("find interface {ifname}")))?;
    let id = match program.attach_to_link(known) {
        Ok(id) => id,
        Err(_) => {
            let options = NlOptions {
                priority: filters::PRIORITY,
                handle: CLSACT_HANDLE,
                classid: None,
            };
            program
                .attach_with_options(ifname, hook, TcAttachOptions::Netlink(options))
                .map_err(Error::program(name))?
        }
    };
    // The filter belongs to the node, not to this process: a dropped link would detach it.
    std::mem::forget(program.take_link(id).map_err(Error::program(name))?);
    Ok(made)
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
