//! What must be true before anything is loaded. Each failure names what is missing and what to do.

use std::fs;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use aya_obj::generated::bpf_map_type::BPF_MAP_TYPE_ARRAY;
use nix::mount::{MsFlags, mount};
use nix::sys::statfs::{FsType, statfs};

use super::error::Error;
use super::sys;

/// `BPF_FS_MAGIC` and `CGROUP2_SUPER_MAGIC` of the kernel's `linux/magic.h`.
const BPFFS: FsType = FsType(0xcafe_4a11);
const CGROUP2: FsType = FsType(0x6367_7270);

/// Where a bpffs usually is.
const DEFAULT_BPFFS: &str = "/sys/fs/bpf";
const BTF: &str = "/sys/kernel/btf/vmlinux";

/// A capability that the agent uses.
pub(super) struct Capability {
    pub(super) name: &'static str,
    /// Its number (`linux/capability.h`), and that of an older one that includes it.
    bit: u32,
    wider: u32,
    pub(super) purpose: &'static str,
    /// What is worse without it; nothing if no agent starts.
    pub(super) without: Option<&'static str>,
}

impl Capability {
    /// Whether a set has it.
    pub(super) fn is_in(&self, set: u64) -> bool {
        set & (1 << self.bit | 1 << self.wider) != 0
    }
}

/// All of them.
pub(super) const CAPABILITIES: [Capability; 7] = [
    Capability {
        name: "CAP_BPF",
        bit: 39,
        wider: 21,
        purpose: "loads programs and makes maps",
        without: None,
    },
    Capability {
        name: "CAP_PERFMON",
        bit: 38,
        wider: 21,
        purpose: "lets programs compare pointers into packets",
        without: None,
    },
    Capability {
        name: "CAP_NET_ADMIN",
        bit: 12,
        wider: 12,
        purpose: "attaches programs, sets the policy route, opens transparent sockets",
        without: None,
    },
    Capability {
        name: "CAP_NET_BROADCAST",
        bit: 11,
        wider: 11,
        purpose: "hears of changes in pods' network namespaces",
        without: None,
    },
    Capability {
        name: "CAP_SYS_ADMIN",
        bit: 21,
        wider: 21,
        purpose: "opens type information, maps and links by their number",
        without: None,
    },
    Capability {
        name: "CAP_SYS_NICE",
        bit: 23,
        wider: 23,
        purpose: "lets threads that guard new pods come before others",
        without: Some("under load a pod may send before it is held"),
    },
    Capability {
        name: "CAP_NET_BIND_SERVICE",
        bit: 10,
        wider: 10,
        purpose: "opens sockets for datagrams at ports below 1024",
        without: Some(
            "a listener of UDP or with HTTP/3 at such a port keeps its generation from being active",
        ),
    },
];

/// Capabilities without which opening the datapath is not even tried.
const FIRST: [&str; 2] = ["CAP_BPF", "CAP_NET_ADMIN"];

/// Checks privileges and the kernel; returns the kernel's release.
pub(super) fn kernel() -> Result<String, Error> {
    if let Some(capability) = missing(effective()?) {
        return Err(Error::Privilege { capability });
    }
    let release = recent(release()?)?;
    btf()?;
    Ok(release)
}

/// A capability that a set lacks of those without which nothing is even tried.
pub(super) fn missing(effective: u64) -> Option<&'static str> {
    let first = CAPABILITIES.iter();
    let mut first = first.filter(|capability| FIRST.contains(&capability.name));
    let missing = first.find(|capability| !capability.is_in(effective));
    missing.map(|capability| capability.name)
}

/// The effective capabilities of the calling thread.
pub(super) fn effective() -> Result<u64, Error> {
    let status = read("/proc/thread-self/status")?;
    Ok(status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok())
        .unwrap_or(0))
}

/// The kernel's release.
pub(super) fn release() -> Result<String, Error> {
    Ok(read("/proc/sys/kernel/osrelease")?.trim().to_owned())
}

/// A release that is new enough.
pub(super) fn recent(release: String) -> Result<String, Error> {
    if version(&release).is_some_and(|version| version < (5, 10)) {
        return Err(Error::KernelTooOld {
            found: release,
            lacks: "lookups of sockets in maps from tc",
        });
    }
    Ok(release)
}

/// Where the kernel tells its types.
pub(super) fn btf() -> Result<&'static Path, Error> {
    let path = Path::new(BTF);
    if path.exists() {
        Ok(path)
    } else {
        Err(Error::NoBtf { path: path.into() })
    }
}

fn read(path: &'static str) -> Result<String, Error> {
    fs::read_to_string(path).map_err(Error::file("read", path))
}

/// Whether a batch of writes to a map of maps waits for the running programs once, and a read does not wait at all. Before
/// Linux 6.8 each entry waits (`maybe_wait_bpf_programs` in `kernel/bpf/syscall.c`).
pub(super) fn waits_once(release: &str) -> bool {
    version(release).is_some_and(|version| version >= (6, 8))
}

/// Whether maps and programs count as locked memory of the user who made them (`RLIMIT_MEMLOCK`). Since Linux 5.11 they count as memory of
/// his cgroup.
pub(super) fn locks_memory(release: &str) -> bool {
    version(release).is_none_or(|version| version < (5, 11))
}

/// Whether a set of capabilities lets a process raise its limits (`CAP_SYS_RESOURCE`).
pub(super) fn raises_limits(effective: u64) -> bool {
    effective & 1 << 24 != 0
}

/// Bytes that this process may lock at most, as high as it may set the limit without that capability; none if there is no limit.
pub(super) fn lockable() -> Result<Option<u64>, Error> {
    Ok(hard_limit(&read("/proc/self/limits")?))
}

/// The second number of the line: the first is the limit that holds now. What cannot be read is no memory.
fn hard_limit(limits: &str) -> Option<u64> {
    let mut lines = limits.lines();
    let hard = lines
        .find_map(|line| line.strip_prefix("Max locked memory"))
        .and_then(|numbers| numbers.split_whitespace().nth(1));
    match hard {
        Some("unlimited") => None,
        Some(bytes) => Some(bytes.parse().unwrap_or(0)),
        None => Some(0),
    }
}

/// Major and minor version of a release such as `6.18.44-fc`.
pub(super) fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

/// Whether a folder, which need not exist, is on a bpffs.
pub(super) fn is_on_bpffs(root: &Path) -> Result<bool, Error> {
    Ok(file_system(existing(root))? == BPFFS)
}

/// The folder itself, or the nearest one above it that exists.
fn existing(folder: &Path) -> &Path {
    let mut above = folder.ancestors();
    above.find(|path| path.exists()).unwrap_or(Path::new("/"))
}

/// Tries what the agent does on a bpffs: makes a folder there, and pins a map in it. Both are gone again when this returns.
pub(super) fn can_pin(root: &Path) -> Result<(), Error> {
    // Another one that tries at the same time has another name. No dot: the kernel keeps names with one for itself.
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let name = format!("preflight_{}", now.unwrap_or_default().as_nanos());
    let folder = existing(root).join(name);
    fs::create_dir(&folder).map_err(Error::file("create", &folder))?;
    let pinned = pin_in(&folder);
    let removed = fs::remove_dir(&folder).map_err(Error::file("remove", &folder));
    pinned.and(removed)
}

fn pin_in(folder: &Path) -> Result<(), Error> {
    let map = sys::map_create(BPF_MAP_TYPE_ARRAY, None)
        .map_err(Error::kernel("make a map that could be pinned"))?;
    let path = folder.join("map");
    sys::pin(map.as_fd(), &path).map_err(Error::file("pin a map at", &path))?;
    fs::remove_file(&path).map_err(Error::file("unpin", &path))
}

/// Makes sure that `root` is a folder of a bpffs, mounting one if there is none.
pub(super) fn bpffs(root: &Path) -> Result<(), Error> {
    if !is_on_bpffs(root)? {
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
    fn the_limit_on_locked_memory_is_the_hard_one() {
        let limits = |soft: &str, hard: &str| {
            format!(
                "Limit                     Soft Limit           Hard Limit           Units     \n\
                 Max processes             95962                95962                processes \n\
                 Max locked memory         {soft:<20} {hard:<20} bytes     \n"
            )
        };
        assert_eq!(hard_limit(&limits("65536", "8388608")), Some(8_388_608));
        assert_eq!(hard_limit(&limits("65536", "unlimited")), None);
        assert_eq!(hard_limit("Max processes 1 1 processes\n"), Some(0));
        assert!(lockable().is_ok());
    }

    #[test]
    fn a_wider_capability_includes_the_newer_ones() {
        let names = |set: u64| -> Vec<_> {
            CAPABILITIES
                .iter()
                .filter(|capability| capability.is_in(set))
                .map(|capability| capability.name)
                .collect()
        };
        assert_eq!(names(1 << 21), ["CAP_BPF", "CAP_PERFMON", "CAP_SYS_ADMIN"]);
        assert_eq!(names(1 << 39 | 1 << 12), ["CAP_BPF", "CAP_NET_ADMIN"]);
        assert!(FIRST.iter().all(|first| names(u64::MAX).contains(first)));
        assert_eq!(missing(1 << 12), Some("CAP_BPF"));
        assert_eq!(missing(1 << 21), Some("CAP_NET_ADMIN"));
        assert_eq!(missing(1 << 21 | 1 << 12), None);
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
