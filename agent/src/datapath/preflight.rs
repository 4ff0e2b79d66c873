//! What a node lacks for cells to be enforced, all of it at once: [`super::Datapath::open`] stops at the first.
//!
//! Kernel features are tried, not derived from a version: distributions take features back, and leave them out. What is tried is
//! gone again when this returns.

use std::fmt;
use std::path::Path;

use aya::maps::MapType;
use aya::programs::ProgramType;
use aya::sys::{is_map_supported, is_program_supported};

use super::checks::{self, Capability};
use super::error::Error;

/// Types of programs, with what they are for.
const PROGRAMS: [(ProgramType, &str, &str); 3] = [
    (
        ProgramType::SchedClassifier,
        "program type sched_cls",
        "gates of pods",
    ),
    (
        ProgramType::CgroupSockAddr,
        "program type cgroup_sock_addr",
        "services",
    ),
    (
        ProgramType::SkLookup,
        "program type sk_lookup",
        "listeners of gateways",
    ),
];

/// Types of maps.
const MAPS: [(MapType, &str); 9] = [
    (MapType::Hash, "map type hash"),
    (MapType::Array, "map type array"),
    (MapType::LpmTrie, "map type lpm_trie"),
    (MapType::LruHash, "map type lru_hash"),
    (MapType::PerCpuArray, "map type percpu_array"),
    (MapType::PerCpuHash, "map type percpu_hash"),
    (MapType::ArrayOfMaps, "map type array_of_maps"),
    (MapType::SockHash, "map type sockhash"),
    (MapType::RingBuf, "map type ringbuf"),
];

/// How it stands with one thing that is needed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Standing {
    /// It is there; what was found.
    There(String),
    /// It is not, and cells are enforced without it; what is worse then.
    Worse(String),
    /// It is not, and no agent starts; what to do.
    Lacking(String),
}

/// One thing that is needed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// Its name.
    pub what: String,
    /// How it stands.
    pub standing: Standing,
}

impl Finding {
    fn new(what: impl Into<String>, standing: Standing) -> Self {
        Self {
            what: what.into(),
            standing,
        }
    }
}

/// Looks at everything that the agent needs of a node.
#[must_use]
pub fn preflight(bpffs: &Path, cgroup: Option<&Path>) -> Vec<Finding> {
    let mut findings = vec![
        Finding::new("kernel", there(checks::release().and_then(checks::recent))),
        Finding::new(
            "type information",
            there(checks::btf().map(|path| path.display().to_string())),
        ),
        Finding::new(
            "eBPF object",
            there(super::built_in().map(|bytes| format!("{} bytes, built in", bytes.len()))),
        ),
    ];
    findings.extend(capabilities());
    findings.extend(locked_memory());
    findings.extend(types());
    findings.push(Finding::new(
        "cgroup2",
        there(checks::cgroup(cgroup).map(|path| path.display().to_string())),
    ));
    findings.push(Finding::new("bpffs", pins(bpffs)));
    findings
}

/// What the kernel refuses for want of a capability says nothing of what it can.
fn types() -> Vec<Finding> {
    let missing = checks::effective().ok().and_then(checks::missing);
    if let Some(capability) = missing {
        let standing = Standing::Lacking(format!("only with {capability} can they be tried"));
        return vec![Finding::new("types of programs and maps", standing)];
    }
    let programs = PROGRAMS.map(|(kind, name, purpose)| {
        let standing = tried(is_program_supported(kind), purpose);
        Finding::new(name, standing)
    });
    let maps = MAPS.map(|(kind, name)| Finding::new(name, tried(is_map_supported(kind), "tables")));
    programs.into_iter().chain(maps).collect()
}

fn there(found: Result<String, Error>) -> Standing {
    match found {
        Ok(found) => Standing::There(found),
        Err(error) => Standing::Lacking(crate::causes::chain(&error)),
    }
}

fn tried<E: std::error::Error + 'static>(supported: Result<bool, E>, purpose: &str) -> Standing {
    match supported {
        Ok(true) => Standing::There(purpose.to_owned()),
        Ok(false) => Standing::Lacking(format!(
            "the kernel was built without it; it is needed for {purpose}"
        )),
        Err(error) => Standing::Lacking(format!(
            "it cannot be tried: {}",
            crate::causes::chain(&error)
        )),
    }
}

fn capabilities() -> Vec<Finding> {
    let effective = match checks::effective() {
        Ok(effective) => effective,
        Err(error) => return vec![Finding::new("capabilities", there(Err(error)))],
    };
    checks::CAPABILITIES
        .iter()
        .map(|capability| {
            let Capability { name, purpose, .. } = capability;
            let standing = if capability.is_in(effective) {
                Standing::There((*purpose).to_owned())
            } else if let Some(worse) = capability.without {
                Standing::Worse(worse.to_owned())
            } else {
                Standing::Lacking(format!("run as root, or give the agent {name}: {purpose}"))
            };
            Finding::new(*name, standing)
        })
        .collect()
}

/// Of a kernel that counts maps and programs as locked memory. Where a map or program is refused for that, aya sets the limit to infinity.
fn locked_memory() -> Option<Finding> {
    let release = checks::release().ok()?;
    let effective = checks::effective().ok()?;
    let standing = match checks::lockable() {
        Ok(hard) => locked(&release, hard, effective)?,
        Err(error) => there(Err(error)),
    };
    Some(Finding::new("locked memory", standing))
}

/// None where the limit plays no part.
fn locked(release: &str, hard: Option<u64>, effective: u64) -> Option<Standing> {
    if !checks::locks_memory(release) {
        return None;
    }
    Some(match hard {
        None => Standing::There("no limit".to_owned()),
        Some(_) if checks::raises_limits(effective) => {
            Standing::There("CAP_SYS_RESOURCE raises the limit".to_owned())
        }
        Some(bytes) => Standing::Lacking(format!(
            "at most {bytes} bytes, and before Linux 5.11 maps and programs count: give the agent CAP_SYS_RESOURCE, or start it (the container \
             runtime, for one in a container) with LimitMEMLOCK=infinity"
        )),
    })
}

/// An agent mounts a bpffs where there is none, but in a container that would end with the container, and the gates with it.
fn pins(bpffs: &Path) -> Standing {
    match checks::is_on_bpffs(bpffs) {
        Ok(true) => match checks::can_pin(bpffs) {
            Ok(()) => Standing::There(bpffs.display().to_string()),
            Err(error) => Standing::Lacking(unpinned(&error)),
        },
        Ok(false) => Standing::Lacking(format!(
            "{} is on no bpffs: mount -t bpf bpf /sys/fs/bpf on the node, for what is pinned has to outlive the agent",
            bpffs.display()
        )),
        Err(error) => Standing::Lacking(crate::causes::chain(&error)),
    }
}

/// Why nothing can be pinned. The profile that container runtimes load for AppArmor denies writing there, and so does the type that
/// SELinux gives to containers, whatever capabilities they have.
fn unpinned(error: &Error) -> String {
    let mut text = crate::causes::chain(error);
    if let Error::File { source, .. } = error
        && matches!(source.raw_os_error(), Some(libc::EACCES | libc::EPERM))
    {
        text.push_str(
            "; if a container is kept from it by AppArmor or SELinux, give it appArmorProfile {type: Unconfined} and seLinuxOptions {type: spc_t}",
        );
    }
    text
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (word, text) = match &self.standing {
            Standing::There(text) => ("ok", text),
            Standing::Worse(text) => ("worse", text),
            Standing::Lacking(text) => ("LACKS", text),
        };
        write!(f, "{word:<7}{:<30}{text}", self.what)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_on_another_file_system_is_told_how_to_be_mended() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let Standing::Lacking(text) = pins(&folder.path().join("cardinal")) else {
            panic!("a temporary folder is no bpffs");
        };
        assert!(text.contains("mount -t bpf"), "{text}");
    }

    #[test]
    fn who_is_kept_from_pinning_is_told_what_may_do_that() {
        let failed = |number| {
            let error = std::io::Error::from_raw_os_error(number);
            unpinned(&Error::file("create", "/sys/fs/bpf/cardinal")(error))
        };
        for number in [libc::EACCES, libc::EPERM] {
            let text = failed(number);
            for part in ["/sys/fs/bpf/cardinal", "AppArmor", "SELinux", "spc_t"] {
                assert!(text.contains(part), "{part} is missing in {text}");
            }
        }
        let text = failed(libc::EROFS);
        assert!(text.contains("Read-only"), "{text}");
        assert!(!text.contains("AppArmor"), "{text}");
    }

    #[test]
    fn a_limit_on_locked_memory_is_told_where_maps_count() {
        let may_raise = 1 << 24;
        assert_eq!(locked("5.11.0", Some(65536), 0), None);
        for (hard, effective) in [(None, 0), (Some(65536), may_raise)] {
            let standing = locked("5.10.0-28-amd64", hard, effective);
            assert!(matches!(standing, Some(Standing::There(_))), "{standing:?}");
        }
        let Some(Standing::Lacking(text)) = locked("5.10.0-28-amd64", Some(65536), !may_raise)
        else {
            panic!("the agent's maps are larger");
        };
        for part in ["65536 bytes", "CAP_SYS_RESOURCE", "LimitMEMLOCK"] {
            assert!(text.contains(part), "{part} is missing in {text}");
        }
    }

    #[test]
    fn what_is_not_there_is_told_with_its_purpose() {
        type Tried = Result<bool, std::io::Error>;
        assert_eq!(
            tried(Tried::Ok(true), "gates"),
            Standing::There("gates".to_owned())
        );
        let Standing::Lacking(text) = tried(Tried::Ok(false), "gates") else {
            panic!("the kernel does not have it");
        };
        assert!(text.contains("gates"), "{text}");
        let denied = Err(std::io::Error::from_raw_os_error(1));
        let Standing::Lacking(text) = tried(denied, "gates") else {
            panic!("it could not be tried");
        };
        assert!(text.contains("not permitted"), "{text}");
    }
}
