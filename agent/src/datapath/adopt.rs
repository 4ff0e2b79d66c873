//! Where the pins are, and how one agent's give way to another's.
//!
//! ```text
//! <bpffs>/maps_<layout>/   the maps; an agent with other types in them has a folder of its own
//! <bpffs>/links/           gates and hooks, whatever the layout of their programs' maps
//! <bpffs>/programs/        the programs, for `bpftool` and for explanations
//! ```
//!
//! An agent of the same layout goes on with the maps, and its programs take the links over at once. One of another layout fills
//! maps of its own while the links still run the earlier programs on the earlier maps; after its first flip its programs
//! take each link over, in one step each, and the earlier maps go. At no moment is a gate without a program, or a
//! program without a generation.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use agent_common::Control;
use aya::maps::{Array, Map, MapData};

use super::{Inner, error::Error, links, maps, sys, wire};

const MAPS: &str = "maps_";
pub(super) const LINKS: &str = "links";
pub(super) const PROGRAMS: &str = "programs";
/// Maps that the first layout pinned beside the folders, and no later one has.
const FIRST_LAYOUT: &[&str] = &maps::NAMES;

/// The folder of this layout's maps.
pub(super) fn own_maps(root: &Path) -> PathBuf {
    root.join(format!("{MAPS}{}", Control::SCHEMA))
}

/// The folder of this layout's maps; made if it is not there.
pub(super) fn maps_folder(root: &Path) -> Result<PathBuf, Error> {
    let folder = own_maps(root);
    match fs::create_dir(&folder) {
        Ok(()) => return Ok(folder),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        Err(error) => return Err(Error::file("create", folder)(error)),
    }
    let path = folder.join("control");
    if !path.exists() {
        return Ok(folder);
    }
    let map = MapData::from_pin(&path).map_err(Error::map("open pinned", "control"))?;
    let control: Array<_, wire::Raw<Control>> =
        Array::try_from(Map::Array(map)).map_err(Error::map("use", "control"))?;
    let wire::Raw(control) = control.get(&0, 0).map_err(Error::map("read", "control"))?;
    // Zero: made by an agent that was interrupted before it wrote anything.
    match control.schema() {
        0 | Control::SCHEMA => Ok(folder),
        found => Err(Error::Schema {
            path: folder,
            found,
            expected: Control::SCHEMA,
        }),
    }
}

/// Folders and pins of maps of other layouts.
fn other_layouts(root: &Path) -> Result<Vec<PathBuf>, Error> {
    let own = format!("{MAPS}{}", Control::SCHEMA);
    let entries: Vec<_> = fs::read_dir(root)
        .and_then(Iterator::collect::<io::Result<_>>)
        .map_err(Error::file("list", root))?;
    Ok(entries
        .into_iter()
        .filter(|entry| {
            entry.file_name().to_str().is_some_and(|name| {
                FIRST_LAYOUT.contains(&name) || name.starts_with(MAPS) && name != own
            })
        })
        .map(|entry| entry.path())
        .collect())
}

/// Where an agent of any layout has its maps: folders, and pins of the first layout.
pub(super) fn all_maps(root: &Path) -> Result<Vec<PathBuf>, Error> {
    let mut all = other_layouts(root)?;
    all.extend(Some(own_maps(root)).filter(|folder| folder.exists()));
    all.sort();
    Ok(all)
}

/// Removes a folder of pins, or one pin. What is gone already is as good.
pub(super) fn remove(path: &Path) -> Result<(), Error> {
    let gone = |error: &io::Error| error.kind() == io::ErrorKind::NotFound;
    if path.is_dir() {
        for entry in fs::read_dir(path).map_err(Error::file("list", path))? {
            remove(&entry.map_err(Error::file("list", path))?.path())?;
        }
        return match fs::remove_dir(path) {
            Err(error) if !gone(&error) => Err(Error::file("remove", path)(error)),
            _ => Ok(()),
        };
    }
    match fs::remove_file(path) {
        Err(error) if !gone(&error) => Err(Error::file("unpin", path)(error)),
        _ => Ok(()),
    }
}

/// Removes every pin that an agent of any layout made, and nothing else that may be in the folder.
pub(super) fn remove_pins(root: &Path) -> Result<(), Error> {
    for path in other_layouts(root)?.into_iter().chain([
        own_maps(root),
        root.join(LINKS),
        root.join(PROGRAMS),
    ]) {
        remove(&path)?;
    }
    match fs::remove_dir(root) {
        // The root of a mount, or a folder that others use too, is not ours to remove.
        Err(error)
            if !matches!(
                error.raw_os_error(),
                Some(libc::EBUSY | libc::ENOTEMPTY | libc::EPERM)
            ) =>
        {
            Err(Error::file("remove", root)(error))
        }
        _ => Ok(()),
    }
}

impl Inner {
    /// Writes what the programs need besides tables, and says whether they have to wait for the first generation.
    pub(super) fn begin(&mut self, pick_up: Duration) -> Result<(), Error> {
        let before = self.maps.control()?;
        let mut control = Control::new(self.active, self.ticks_per_second)
            .picking_up_until(before.pick_up_until());
        if self.active == 0 && !pick_up.is_zero() {
            let ticks = pick_up.as_secs() * u64::from(self.ticks_per_second);
            control = control.picking_up_until(self.now()? + ticks);
        }
        self.maps.set_control(control)?;
        self.adopting = self.active == 0 && !other_layouts(&self.root)?.is_empty();
        Ok(())
    }

    /// The kernel's jiffies.
    pub(super) fn now(&mut self) -> Result<u64, Error> {
        let program = links::tc_program(&mut self.ebpf, "clock")?;
        let frame = [0; 64];
        let run = sys::test_run(program, &frame, sys::SkBuff::default())
            .map_err(Error::kernel("ask the kernel for its jiffies"))?;
        let [low, high, ..] = run.context.cb;
        Ok(u64::from(low) | u64::from(high) << 32)
    }

    /// Puts this agent's programs into every gate and hook, and takes away what other layouts left.
    pub(super) fn install(&mut self) -> Result<(), Error> {
        self.gates.links().node(&mut self.ebpf, &self.cgroup)?;
        if self.adopting {
            self.gates.take_over(true)?;
        }
        self.pin_programs()?;
        for path in other_layouts(&self.root)? {
            remove(&path)?;
        }
        self.adopting = false;
        Ok(())
    }

    /// After a flip: the programs of another layout have done their work. The flip stands whatever becomes of this.
    pub(super) fn adopt(&mut self) {
        if self.adopting
            && let Err(error) = self.install()
        {
            tracing::error!(
                error = &error as &dyn std::error::Error,
                "gates or hooks still run the programs of an earlier agent; this is tried again"
            );
        }
    }

    pub(super) fn pin_programs(&mut self) -> Result<(), Error> {
        let folder = self.root.join(PROGRAMS);
        fs::create_dir_all(&folder).map_err(Error::file("create", &folder))?;
        for (name, program) in self.ebpf.programs() {
            let fd = program.fd().map_err(Error::program(name))?;
            let path = folder.join(name);
            remove(&path)?;
            sys::pin(std::os::fd::AsFd::as_fd(fd), &path).map_err(Error::file("pin", path))?;
        }
        Ok(())
    }
}
