//! What an agent left on this node, found and removed without one.
//!
//! Flows in: the node as it is. Flows out: a list of what is the agent's, by marks that only an agent makes (names of pins,
//! handles of filters, the whole policy rule), and, once wanted, its removal. What is somebody else's is named and stays.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use agent_common::Direction;

use super::{
    GateHook, adopt, checks,
    error::Error,
    filters,
    instance::Instance,
    links::{self, Links},
    maps,
    netlink::Netlink,
    routes::{self, Piece},
};

/// Everything of an agent's that was found. No agent can start on the node while this lives.
#[derive(Debug)]
pub struct Leftovers {
    things: Vec<Thing>,
    kept: Vec<String>,
    links: Links,
    _instance: Instance,
}

/// One thing of an agent's.
#[derive(Debug)]
pub struct Thing {
    /// What it is, for people.
    pub what: String,
    how: How,
}

impl Thing {
    /// Whether it is a folder, which goes only if it is empty.
    #[must_use]
    pub fn is_folder(&self) -> bool {
        matches!(self.how, How::Folder(_))
    }
}

/// What has to be done to remove it.
#[derive(Debug)]
enum How {
    Link(String),
    Filter(u32, Direction),
    Qdisc(u32),
    Note(PathBuf),
    Policy(Piece),
    Pin(PathBuf),
    /// Only if it is empty.
    Folder(PathBuf),
}

impl Leftovers {
    /// Looks for what an agent left. Nothing is changed.
    ///
    /// # Errors
    ///
    /// [`Error::AlreadyRunning`] while an agent runs here, [`Error::ForeignPins`] if the folder is that of another node that
    /// lives, [`Error::Privilege`], or when something cannot be read.
    pub fn find(bpffs: &Path) -> Result<Self, Error> {
        checks::kernel()?;
        let instance = Instance::claim()?;
        let mut found = Self {
            things: Vec::new(),
            kept: Vec::new(),
            links: Links::new(bpffs, GateHook::Auto, true),
            _instance: instance,
        };
        let mut netlink = Netlink::open().map_err(Error::kernel("open a netlink socket"))?;
        if bpffs.join(adopt::LINKS).exists() {
            found.links.is_left_behind(bpffs)?;
            found.attachments(bpffs)?;
        }
        found
            .filters(&mut netlink)
            .map_err(Error::kernel("list the filters of this node"))?;
        for piece in routes::find()? {
            found.add(piece.to_string(), How::Policy(piece));
        }
        found.pins(bpffs)?;
        Ok(found)
    }

    /// What is the agent's, in the order in which it is removed: what judges packets first, so that nothing is judged by half.
    #[must_use]
    pub fn things(&self) -> &[Thing] {
        &self.things
    }

    /// What was found beside it and stays.
    #[must_use]
    pub fn kept(&self) -> &[String] {
        &self.kept
    }

    /// Removes everything, and tells of each thing how it went. One that cannot be removed does not keep the others.
    pub fn remove(self, mut tell: impl FnMut(&str, Result<(), Error>)) {
        for thing in &self.things {
            match self.remove_one(&thing.how) {
                Ok(true) => tell(&thing.what, Ok(())),
                Ok(false) => {}
                Err(error) => tell(&thing.what, Err(error)),
            }
        }
    }

    fn add(&mut self, what: impl Into<String>, how: How) {
        self.things.push(Thing {
            what: what.into(),
            how,
        });
    }

    fn attachments(&mut self, bpffs: &Path) -> Result<(), Error> {
        let folder = bpffs.join(adopt::LINKS);
        for name in self.links.names()? {
            let path = folder.join(&name);
            match links::kind(&name) {
                Some(links::Kind::Gate(ifindex)) => {
                    let at = links::interface_name(ifindex)
                        .unwrap_or_else(|| format!("interface {ifindex}, which is gone"));
                    self.add(format!("gate {name} at {at}"), How::Link(name));
                }
                Some(links::Kind::Hook) => {
                    self.add(format!("hook {name}"), How::Link(name));
                }
                Some(links::Kind::Note { ifindex, made }) => {
                    if made {
                        self.add(
                            format!("qdisc clsact of interface {ifindex}"),
                            How::Qdisc(ifindex),
                        );
                    }
                    self.add(format!("note {}", path.display()), How::Note(path));
                }
                None => self.kept.push(format!("{} is no agent's", path.display())),
            }
        }
        Ok(())
    }

    fn filters(&mut self, netlink: &mut Netlink) -> io::Result<()> {
        let mut filters = Vec::new();
        for (ifindex, name) in filters::interfaces(netlink)? {
            for direction in [Direction::Egress, Direction::Ingress] {
                for filter in filters::list(netlink, ifindex, direction)? {
                    if filter.ours {
                        filters.push(Thing {
                            what: format!("filter of {name}, {direction} of its pod"),
                            how: How::Filter(ifindex, direction),
                        });
                    } else {
                        self.kept.push(format!("a filter of {name} is no agent's"));
                    }
                }
            }
        }
        // Before the qdiscs, which go only when nothing is in them.
        self.things.splice(0..0, filters);
        Ok(())
    }

    fn pins(&mut self, bpffs: &Path) -> Result<(), Error> {
        if !bpffs.exists() {
            return Ok(());
        }
        for path in adopt::all_maps(bpffs)? {
            if path.is_dir() {
                self.folder(&path, |name| maps::KNOWN.contains(&name))?;
            } else {
                self.add(format!("pin {}", path.display()), How::Pin(path));
            }
        }
        let programs = bpffs.join(adopt::PROGRAMS);
        if programs.exists() {
            self.folder(&programs, |name| links::PROGRAMS.contains(&name))?;
        }
        let links = bpffs.join(adopt::LINKS);
        if links.exists() {
            self.add(format!("folder {}", links.display()), How::Folder(links));
        }
        // What is left in it is told by name; the folder goes with the agent's last thing, if nothing is left.
        for entry in fs::read_dir(bpffs).map_err(Error::file("list", bpffs))? {
            let entry = entry.map_err(Error::file("list", bpffs))?;
            let path = entry.path();
            let ours = self.things.iter().any(|thing| match &thing.how {
                How::Pin(known) | How::Folder(known) => *known == path,
                _ => false,
            });
            // The file system's own files, at its root.
            let debug = path.extension().is_some_and(|end| end == "debug");
            if !ours && !debug {
                self.kept.push(format!("{} is no agent's", path.display()));
            }
        }
        if !self.things.is_empty() {
            self.add(
                format!("folder {}", bpffs.display()),
                How::Folder(bpffs.to_owned()),
            );
        }
        Ok(())
    }

    /// The pins of a folder, and the folder.
    fn folder(&mut self, folder: &Path, known: impl Fn(&str) -> bool) -> Result<(), Error> {
        for entry in fs::read_dir(folder).map_err(Error::file("list", folder))? {
            let entry = entry.map_err(Error::file("list", folder))?;
            let path = entry.path();
            if entry.file_name().to_str().is_some_and(&known) && !path.is_dir() {
                self.add(format!("pin {}", path.display()), How::Pin(path));
            } else {
                self.kept.push(format!("{} is no agent's", path.display()));
            }
        }
        self.add(
            format!("folder {}", folder.display()),
            How::Folder(folder.to_owned()),
        );
        Ok(())
    }

    /// Whether there was something to remove, and it is gone.
    fn remove_one(&self, how: &How) -> Result<bool, Error> {
        let netlink = || Netlink::open().map_err(Error::kernel("open a netlink socket"));
        match how {
            How::Link(name) => self.links.unpin(name).map(|()| true),
            How::Filter(ifindex, direction) => {
                filters::remove(&mut netlink()?, *ifindex, *direction)
                    .map_err(Error::kernel("remove a filter"))
                    .map(|()| true)
            }
            How::Qdisc(ifindex) => {
                let mut netlink = netlink()?;
                let failed = || Error::kernel("remove a qdisc");
                if !filters::is_empty(&mut netlink, *ifindex).map_err(failed())? {
                    return Ok(false);
                }
                filters::remove_qdisc(&mut netlink, *ifindex).map_err(failed())?;
                Ok(true)
            }
            How::Policy(piece) => piece.remove().map(|()| true),
            How::Note(path) => folder_gone(path),
            How::Folder(path) => folder_gone(path),
            How::Pin(path) => match fs::remove_file(path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    Err(Error::file("unpin", path)(error))
                }
                _ => Ok(true),
            },
        }
    }
}

fn folder_gone(path: &Path) -> Result<bool, Error> {
    remove_empty(path).map_err(Error::file("remove", path))
}

/// Removes a folder if nothing is left in it; whether it is gone. The root of a mount stays, too.
pub(crate) fn remove_empty(path: &Path) -> io::Result<bool> {
    match fs::remove_dir(path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(true),
        Err(error)
            if matches!(
                error.raw_os_error(),
                Some(libc::EBUSY | libc::ENOTEMPTY | libc::EPERM)
            ) =>
        {
            Ok(false)
        }
        Err(error) => Err(error),
    }
}
