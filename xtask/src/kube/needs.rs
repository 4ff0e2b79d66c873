//! What a throw-away Kubernetes needs and nothing here installs: root, Go, cgroups. All of it is told at once, before anything is
//! built.

use std::{fmt, path::Path};

use anyhow::{Result, bail};

use crate::shell;

/// Go's first release that fetches the one that a module asks for.
const MANAGES_ITSELF: u32 = 21;
/// Linux' first release with `cgroup.kill`.
const KILLS_CGROUPS: (u32, u32) = (5, 14);
/// Where Go's own archive is unpacked to.
const USUAL: &str = "/usr/local/go/bin";

/// Something that is missing, and what to do.
#[derive(Debug, PartialEq, Eq)]
enum Lack {
    Root,
    Go { elsewhere: bool },
    GoTooOld(String),
    Kernel(String),
    Cgroups,
}

impl fmt::Display for Lack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Root => f.write_str(
                "root, who may make network namespaces: run this as root, or install sudo",
            ),
            Self::Go { elsewhere: true } => {
                write!(f, "Go on PATH, which builds Kubernetes: it is in {USUAL}")
            }
            Self::Go { elsewhere: false } => f.write_str(
                "Go, which builds Kubernetes and the conformance suite: https://go.dev/dl (1.26)",
            ),
            Self::GoTooOld(found) => write!(
                f,
                "a Go that fetches the release which modules ask for (1.{MANAGES_ITSELF} or newer; here is {found}): https://go.dev/dl"
            ),
            Self::Kernel(found) => write!(
                f,
                "a kernel that ends all processes of a cgroup (5.14 or newer; this is {found})"
            ),
            Self::Cgroups => {
                f.write_str("the unified cgroup hierarchy: mount -t cgroup2 cgroup2 /sys/fs/cgroup")
            }
        }
    }
}

/// Fails with all that is missing to build and run a Kubernetes here.
pub(super) fn all() -> Result<()> {
    let mut lacks: Vec<_> = go_lacks().into_iter().collect();
    if !shell::is_root() && shell::find("sudo").is_none() {
        lacks.push(Lack::Root);
    }
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    if version(&release).is_some_and(|version| version < KILLS_CGROUPS) {
        lacks.push(Lack::Kernel(release.trim().to_owned()));
    }
    let is_unified = |folder: &str| Path::new(folder).join("cgroup.controllers").is_file();
    if !["/sys/fs/cgroup", "/sys/fs/cgroup/unified"]
        .into_iter()
        .any(is_unified)
    {
        lacks.push(Lack::Cgroups);
    }
    tell(
        "a Kubernetes in network namespaces cannot be run here",
        &lacks,
    )
}

/// Fails if Go is missing.
pub(super) fn go() -> Result<()> {
    let lacks: Vec<_> = go_lacks().into_iter().collect();
    tell("the conformance suite cannot be built here", &lacks)
}

fn go_lacks() -> Option<Lack> {
    if shell::find("go").is_none() {
        let elsewhere = Path::new(USUAL).join("go").is_file();
        return Some(Lack::Go { elsewhere });
    }
    let found = shell::output(shell::command("go").args(["env", "GOVERSION"])).unwrap_or_default();
    let (_, minor) = version(found.trim_start_matches("go"))?;
    (minor < MANAGES_ITSELF).then_some(Lack::GoTooOld(found))
}

fn tell(what: &str, lacks: &[Lack]) -> Result<()> {
    if lacks.is_empty() {
        return Ok(());
    }
    let lines: String = lacks.iter().map(|lack| format!("\n  {lack}")).collect();
    bail!("{what}; it lacks{lines}")
}

/// Major and minor number of a release.
fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

#[cfg(test)]
mod tests {
    use super::{Lack, tell, version};

    #[test]
    fn everything_that_is_missing_is_told_at_once() {
        let lacks = [Lack::Root, Lack::Go { elsewhere: false }];
        let told = tell("it cannot be run", &lacks).expect_err("it lacks two things");
        let told = told.to_string();
        assert!(
            told.starts_with("it cannot be run; it lacks\n  root, "),
            "{told}"
        );
        assert!(
            told.contains("\n  Go, ") && told.contains("https://go.dev/dl"),
            "{told}"
        );
        assert!(tell("nothing", &[]).is_ok());
    }

    #[test]
    fn releases_are_compared_as_numbers() {
        assert_eq!(version("1.19.8"), Some((1, 19)));
        assert_eq!(version("6.18.44-fc"), Some((6, 18)));
        assert_eq!(version("devel"), None);
        assert!(version("5.9.1") < Some(super::KILLS_CGROUPS));
    }
}
