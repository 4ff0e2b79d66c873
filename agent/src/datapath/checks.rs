//! What must be true before anything is loaded. Each failure names what is missing and what to do.

use std::fs;
use std::path::{Path, PathBuf};

use nix::mount::{MsFlags, mount};
use nix::sys::statfs::{FsType, statfs};

use super::error::Error;

/// `BPF_FS_MAGIC` and `CGROUP2_SUPER_MAGIC` of the kernel's `linux/magic.h`.
const BPFFS: FsType = FsType(0xcafe_4a11);
const CGROUP2: FsType = FsType(0x6367_7270);

/// Where a bpffs usually is.
const DEFAULT_BPFFS: &str = "/sys/fs/bpf";
const BTF: &str = "/sys/kernel/btf/vmlinux";

/// Capabilities (`linux/capability.h`), each with the older one that includes it.
const NEEDED: [(u32, u32, &str); 2] = [(39, 21, "CAP_BPF"), (12, 12, "CAP_NET_ADMIN")];

/// Checks privileges and the kernel; returns the kernel's release.
pub(super) fn kernel() -> Result<String, Error> {
    let status = read("/proc/thread-self/status")?;
    let effective = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok())
        .unwrap_or(0);
    for (bit, wider, capability) in NEEDED {
        if effective & (1 << bit | 1 << wider) == 0 {
            return Err(Error::Privilege { capability });
        }
    }
    let release = read("/proc/sys/kernel/osrelease")?.trim().to_owned();
    if version(&release).is_some_and(|version| version < (5, 10)) {
        return Err(Error::KernelTooOld {
            found: release,
            lacks: "lookups of sockets in maps from tc",
        });
    }
    if !Path::new(BTF).exists() {
        return Err(Error::NoBtf { path: BTF.into() });
    }
    Ok(release)
}

fn read(path: &'static str) -> Result<String, Error> {
    fs::read_to_string(path).map_err(Error::file("read", path))
}

/// Whether a batch of writes to a map of maps waits for the running programs once, and a read does not wait at all. Before
/// Linux 6.8 each entry waits (`maybe_wait_bpf_programs` in `kernel/bpf/syscall.c`).
pub(super) fn waits_once(release: &str) -> bool {
    version(release).is_some_and(|version| version >= (6, 8))
}

/// Major and minor version of a release such as `6.18.44-fc`.
pub(super) fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

/// Makes sure that `root` is a folder of a bpffs, mounting one if there is none.
pub(super) fn bpffs(root: &Path) -> Result<(), Error> {
    let existing = root
        .ancestors()
        .find(|path| path.exists())
        .unwrap_or(Path::new("/"));
    if file_system(existing)? != BPFFS {
        let place = if root.starts_with(DEFAULT_BPFFS) {
            Path::new(DEFAULT_BPFFS)
        } else {
            root
        };
        fs::create_dir_all(place).map_err(Error::file("create", place))?;
        mount(
            Some("bpf"),
            place,
            Some("bpf"),
            MsFlags::empty(),
            Some("mode=0700"),
        )
        .map_err(|errno| Error::file("mount a bpffs on", place)(errno.into()))?;
    }
    let links = root.join("links");
    fs::create_dir_all(&links).map_err(Error::file("create", links))
}

/// The cgroup whose processes are steered: the given one, or the root of the cgroup2 hierarchy.
pub(super) fn cgroup(given: Option<&Path>) -> Result<PathBuf, Error> {
    if let Some(path) = given {
        return match file_system(path)? {
            CGROUP2 => Ok(path.to_owned()),
            _ => Err(Error::NotCgroup {
                path: path.to_owned(),
            }),
        };
    }
    let mounts = read("/proc/self/mounts")?;
    mounts
        .lines()
        .map(|line| line.split(' ').collect::<Vec<_>>())
        .find(|fields| fields.get(2) == Some(&"cgroup2"))
        .and_then(|fields| fields.get(1).map(PathBuf::from))
        .ok_or(Error::NoCgroup)
}

fn file_system(path: &Path) -> Result<FsType, Error> {
    statfs(path)
        .map(|stat| stat.filesystem_type())
        .map_err(|errno| Error::file("find the file system of", path)(errno.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_are_read_whatever_distributions_append() {
        for (release, expected) in [
            ("6.18.44-fc-v657", Some((6, 18))),
            ("5.10.0-28-amd64", Some((5, 10))),
            ("4.19", Some((4, 19))),
            ("6.1-rc3", Some((6, 1))),
            ("linux", None),
        ] {
            assert_eq!(version(release), expected, "{release}");
        }
    }

    #[test]
    fn a_folder_that_is_no_cgroup_is_named() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let error = cgroup(Some(folder.path())).expect_err("a temporary folder is no cgroup");
        assert!(
            error.to_string().contains("not a folder of a cgroup2"),
            "{error}"
        );
    }
}
