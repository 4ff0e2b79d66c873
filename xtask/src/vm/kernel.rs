//! Kernels as Debian publishes them: fetched into `target/vm/<series>`, where they stay; nothing is installed.
//!
//! Each series has lists of packages of its own, so that apt's own state knows nothing of other suites. To fetch newer
//! packages, remove `target/vm`.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};
use clap::ValueEnum;

use crate::shell;

/// Modules that the tests need, each after those that it depends on. What else a kernel needs is built in.
const MODULES: [&str; 3] = ["veth", "sch_ingress", "cls_bpf"];

/// The package that always depends on the newest kernel of its suite.
const META: &str = "linux-image-cloud-amd64";
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// A series of kernels that Debian maintains.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub(crate) enum Series {
    /// Debian 11, bullseye.
    #[value(name = "5.10")]
    V5_10,
    /// Debian 12, bookworm.
    #[value(name = "6.1")]
    V6_1,
    /// Debian 12 with backports, and the kernel of Debian 13.
    #[value(name = "6.12")]
    V6_12,
}

impl Series {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::V5_10 => "5.10",
            Self::V6_1 => "6.1",
            Self::V6_12 => "6.12",
        }
    }

    pub(super) fn version(self) -> (u32, u32) {
        match self {
            Self::V5_10 => (5, 10),
            Self::V6_1 => (6, 1),
            Self::V6_12 => (6, 12),
        }
    }

    /// Suites of the archive proper, and of the security archive.
    fn suites(self) -> (&'static str, Option<&'static str>) {
        match self {
            Self::V5_10 => ("bullseye", Some("bullseye-security")),
            Self::V6_1 => ("bookworm", Some("bookworm-security")),
            Self::V6_12 => ("bookworm-backports", None),
        }
    }
}

/// A kernel that can be booted.
#[derive(Debug)]
pub(crate) struct Kernel {
    pub(super) series: Series,
    /// Name and version of its package.
    pub(super) package: String,
    pub(super) image: PathBuf,
    /// In the order in which they can be loaded.
    pub(super) modules: Vec<PathBuf>,
    pub(super) folder: PathBuf,
}

/// Gives the kernel of a series, fetched now unless it is there.
pub(super) fn fetch(series: Series) -> Result<Kernel> {
    let folder = shell::target_dir().join("vm").join(series.name());
    // Written last, so that it says that the rest is complete.
    let stamp = folder.join("package");
    let kernel = |package| Kernel {
        series,
        package,
        image: folder.join("vmlinuz"),
        modules: MODULES
            .iter()
            .map(|module| folder.join(format!("{module}.ko")))
            .collect(),
        folder: folder.clone(),
    };
    if let Ok(package) = fs::read_to_string(&stamp) {
        let kernel = kernel(package);
        if kernel.modules.iter().all(|module| module.is_file()) {
            return Ok(kernel);
        }
    }

    if folder.exists() {
        // What an attempt that was cut short has left.
        fs::remove_dir_all(&folder)?;
    }
    let apt = Apt::new(&folder.join("apt"), series)?;
    let (package, version) = apt.newest(series)?;
    let label = format!("{package} {version}");
    eprintln!("vm: fetching Debian's {label} into {}", folder.display());
    let archive = apt.download(&package)?;
    let unpacked = folder.join("unpacked");
    shell::run(
        shell::command("dpkg-deb")
            .arg("-x")
            .arg(&archive)
            .arg(&unpacked),
    )?;
    let kernel = kernel(label);
    let image = one_of(&unpacked.join("boot"), &|name| name.starts_with("vmlinuz-"))?;
    fs::copy(image, &kernel.image)?;
    for (name, to) in MODULES.iter().zip(&kernel.modules) {
        let from = one_of(&unpacked.join("lib/modules"), &|file| {
            file.strip_prefix(name)
                .is_some_and(|rest| rest == ".ko" || rest == ".ko.xz")
        })?;
        fs::write(to, module(&from, name)?)?;
    }
    // The lists and what is not needed of the package are ten times as much as what is.
    fs::remove_dir_all(&unpacked)?;
    fs::remove_dir_all(folder.join("apt"))?;
    fs::write(stamp, &kernel.package)?;
    Ok(kernel)
}

/// Reads a module, which newer packages compress. Its dependencies must be in the list before it.
fn module(path: &Path, name: &str) -> Result<Vec<u8>> {
    let content = if path.extension().is_some_and(|extension| extension == "xz") {
        let output = Command::new("xz")
            .args(["--decompress", "--stdout"])
            .arg(path)
            .output()
            .context("failed to start xz")?;
        if !output.status.success() {
            bail!(
                "xz failed: {}",
                String::from_utf8_lossy(&output.stderr).trim()
            );
        }
        output.stdout
    } else {
        fs::read(path)?
    };
    let needed = dependencies(&content)
        .with_context(|| format!("{} does not say what it depends on", path.display()))?;
    let before = MODULES.iter().take_while(|module| **module != name);
    for dependency in needed {
        if !before.clone().any(|module| *module == dependency) {
            bail!("module {name} depends on {dependency}, which is not loaded before it");
        }
    }
    Ok(content)
}

/// What a module says it depends on: a string `depends=a,b` among those of its `.modinfo` section.
fn dependencies(module: &[u8]) -> Option<Vec<String>> {
    const KEY: &[u8] = b"\0depends=";
    let start = module.windows(KEY.len()).position(|bytes| bytes == KEY)? + KEY.len();
    let value = module[start..].split(|byte| *byte == 0).next()?;
    let names = String::from_utf8_lossy(value);
    Some(
        names
            .split(',')
            .filter(|name| !name.is_empty())
            .map(|name| name.replace('-', "_"))
            .collect(),
    )
}

/// The only file under a folder whose name fits.
fn one_of(folder: &Path, fits: &dyn Fn(&str) -> bool) -> Result<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(next) = folders.pop() {
        for entry in
            fs::read_dir(&next).with_context(|| format!("failed to read {}", next.display()))?
        {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                folders.push(entry.path());
            } else if entry.file_name().to_str().is_some_and(fits) {
                found.push(entry.path());
            }
        }
    }
    match <[PathBuf; 1]>::try_from(found) {
        Ok([one]) => Ok(one),
        Err(found) => bail!(
            "expected one file of this kind under {}, found {found:?}",
            folder.display()
        ),
    }
}

/// apt with sources and state of its own, and the machine's other settings, such as a proxy.
struct Apt {
    folder: PathBuf,
    settings: PathBuf,
}

impl Apt {
    fn new(folder: &Path, series: Series) -> Result<Self> {
        for sub in ["lists/partial", "cache/archives/partial"] {
            fs::create_dir_all(folder.join(sub))?;
        }
        fs::write(folder.join("status"), "")?;
        let sources = folder.join("debian.sources");
        let (suite, security) = series.suites();
        let (main, updates) = mirrors();
        let mut text = source(&main, suite);
        if let Some(suite) = security {
            text.push_str(&source(&updates, suite));
        }
        fs::write(&sources, text)?;
        let settings = folder.join("apt.conf");
        let path = folder.display();
        fs::write(
            &settings,
            format!(
                "Dir::State \"{path}\";\nDir::State::lists \"{path}/lists\";\nDir::State::status \"{path}/status\";\n\
                 Dir::Cache \"{path}/cache\";\nDir::Etc::SourceList \"{path}/debian.sources\";\nDir::Etc::SourceParts \"/dev/null\";\n\
                 Acquire::Languages \"none\";\nAPT::Architecture \"amd64\";\nAPT::Architectures \"amd64\";\nAPT::Sandbox::User \"root\";\n\
                 // Suites that are no longer renewed keep their signature, but not its date.\n\
                 Acquire::Check-Valid-Until \"false\";\n\
                 // Otherwise a list that cannot be fetched is no error.\n\
                 APT::Update::Error-Mode \"any\";\n\
                 // What the machine does after an update of its own lists.\n\
                 #clear APT::Update::Post-Invoke;\n#clear APT::Update::Post-Invoke-Success;\n#clear Acquire::IndexTargets::deb::DEP-11;\n\
                 #clear Acquire::IndexTargets::deb::DEP-11-icons;\n#clear Acquire::IndexTargets::deb::DEP-11-icons-small;\n"
            ),
        )?;
        let apt = Self {
            folder: folder.to_owned(),
            settings,
        };
        shell::run(apt.command("apt-get").args(["update", "-qq"]))
            .with_context(|| format!("failed to fetch Debian's list of packages from {main}"))?;
        Ok(apt)
    }

    fn command(&self, program: &str) -> Command {
        let mut command = shell::command(program);
        command
            .arg("-c")
            .arg(&self.settings)
            .current_dir(&self.folder);
        command
    }

    /// Package and version of the newest kernel of a series.
    fn newest(&self, series: Series) -> Result<(String, String)> {
        let shown = shell::output(self.command("apt-cache").args(["show", META]))?;
        newest(&shown, series.name())
            .with_context(|| format!("Debian's archive has no kernel {}", series.name()))
    }

    fn download(&self, package: &str) -> Result<PathBuf> {
        shell::run(self.command("apt-get").args(["download", "-qq", package]))?;
        one_of(&self.folder, &|name| {
            name.starts_with(package) && name.ends_with(".deb")
        })
    }
}

/// The kernel package that the first fitting version of the meta package depends on; apt shows the highest first.
fn newest(shown: &str, series: &str) -> Option<(String, String)> {
    shown.split("\n\n").find_map(|stanza| {
        let field = |name| stanza.lines().find_map(|line| line.strip_prefix(name));
        let version = field("Version: ")?;
        version
            .strip_prefix(series)
            .filter(|rest| rest.starts_with('.'))?;
        let package = field("Depends: ")?.split_whitespace().next()?;
        Some((package.to_owned(), version.to_owned()))
    })
}

fn source(mirror: &str, suite: &str) -> String {
    format!(
        "Types: deb\nURIs: {mirror}\nSuites: {suite}\nComponents: main\nArchitectures: amd64\nSigned-By: {KEYRING}\n\n"
    )
}

/// Where the machine itself gets Debian from, or where everybody can.
fn mirrors() -> (String, String) {
    let known = shell::output(shell::command("apt-get").args([
        "indextargets",
        "--format",
        "$(LABEL) $(REPO_URI)",
        "Created-By: Packages",
    ]))
    .unwrap_or_default();
    let of = |label: &str| {
        known
            .lines()
            .filter_map(|line| line.split_once(' '))
            .find(|(name, _)| *name == label)
            .map(|(_, uri)| uri.to_owned())
    };
    let main = of("Debian").unwrap_or_else(|| "http://deb.debian.org/debian".to_owned());
    let security =
        of("Debian-Security").unwrap_or_else(|| "http://deb.debian.org/debian-security".to_owned());
    (main, security)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_kernel_of_a_series_is_found_among_others() {
        let shown = "Package: linux-image-cloud-amd64\nVersion: 6.12.95-1\nDepends: linux-image-6.12.95-cloud-amd64 (= 6.12.95-1)\n\n\
                     Package: linux-image-cloud-amd64\nVersion: 6.1.176-1\nDepends: linux-image-6.1.0-50-cloud-amd64 (= 6.1.176-1)\n\n\
                     Package: linux-image-cloud-amd64\nVersion: 6.1.170-1\nDepends: linux-image-6.1.0-49-cloud-amd64 (= 6.1.170-1)\n";
        let found = |series| newest(shown, series).map(|(package, _)| package);
        assert_eq!(
            found("6.1").as_deref(),
            Some("linux-image-6.1.0-50-cloud-amd64")
        );
        assert_eq!(
            found("6.12").as_deref(),
            Some("linux-image-6.12.95-cloud-amd64")
        );
        assert_eq!(found("5.10"), None);
    }

    #[test]
    fn a_module_names_what_it_depends_on() {
        let module = b"\x7fELF\0license=GPL\0depends=llc,nf-tables\0name=x\0";
        assert_eq!(
            dependencies(module),
            Some(vec!["llc".into(), "nf_tables".into()])
        );
        assert_eq!(dependencies(b"\x7fELF\0depends=\0"), Some(vec![]));
        assert_eq!(dependencies(b"\x7fELF"), None);
    }
}
