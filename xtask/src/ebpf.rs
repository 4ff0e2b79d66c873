//! The kernel object: `agent-ebpf/` compiled for `bpfel-unknown-none` into `target/bpf/cardinal.bpf.o`, or with their log
//! into `target/bpf/cardinal-logs.bpf.o`.
//!
//! The target has no prebuilt core library in rustup's distribution. Two compilers can do without: a nightly one with
//! the library's source (`-Z build-std=core`), and a distribution's that ships the BPF core library.
//! Whichever is there is taken, if the installed bpf-linker can read what it writes.
//!
//! The distribution's compiler is what the programs are tested with. The nightly one was not run to its end: where this was
//! written there is no rust-src.

use std::{
    ffi::{OsStr, OsString},
    fmt, fs,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
};

use anyhow::{Context as _, Result, bail};
use clap::{Args, ValueEnum};

use crate::{setup, shell};

mod forwards;

pub(crate) const TARGET: &str = "bpfel-unknown-none";
/// `--btf` keeps the type information, which needs the compiler's debug information to be there.
const FLAGS: [&str; 6] = [
    "-C",
    "linker=bpf-linker",
    "-C",
    "link-arg=--btf",
    "-C",
    "debuginfo=2",
];

/// The compiler's flags, as cargo takes them. The line information of the programs, which goes into the kernel with them, names
/// their sources by the same paths whatever folder they are in.
fn flags(more: &[&str]) -> OsString {
    let fixed = FLAGS.iter().chain(more).map(OsString::from);
    let all: Vec<_> = fixed.chain(shell::remapped()).collect();
    all.join(OsStr::new("\u{1f}"))
}

/// What `cargo xtask build-ebpf` can be told.
#[derive(Args, Clone, Debug, Default)]
pub(crate) struct Options {
    /// Build with this compiler instead of the first that is there.
    #[arg(long, value_enum)]
    toolchain: Option<Kind>,
    /// Build programs that log every verdict, for debugging, into target/bpf/cardinal-logs.bpf.o.
    #[arg(long)]
    logs: bool,
}

impl Options {
    /// The programs with their log.
    pub(crate) fn with_logs() -> Self {
        Self {
            logs: true,
            ..Self::default()
        }
    }
}

/// Where a compiler for the target comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Kind {
    /// rustup's nightly with rust-src: builds the core library itself.
    Nightly,
    /// A distribution's compiler with the BPF core library: Debian's rustc-web and libstd-rust-web-dev-bpf.
    Distribution,
}

/// A compiler that was found, with what it says of itself.
#[derive(Clone, Debug)]
pub(crate) struct Toolchain {
    kind: Kind,
    version: String,
}

impl fmt::Display for Toolchain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.kind {
            Kind::Nightly => write!(f, "rustup nightly with rust-src ({})", self.version),
            Kind::Distribution => write!(
                f,
                "the distribution's compiler with the BPF core library ({})",
                self.version
            ),
        }
    }
}

/// The distribution's compiler, which rustup's proxies hide on `PATH`.
const DISTRIBUTION_RUSTC: &str = "/usr/bin/rustc";
/// Its linter: Debian's rust-web-clippy.
const DISTRIBUTION_CLIPPY: &str = "/usr/bin/clippy-driver";

impl Toolchain {
    /// The first compiler whose bitcode the installed linker can read, or the one that was asked for; none is no error.
    pub(crate) fn find(wanted: Option<Kind>) -> Option<Self> {
        let kinds = match wanted {
            Some(kind) => vec![kind],
            None => vec![Kind::Nightly, Kind::Distribution],
        };
        kinds
            .into_iter()
            .filter(|kind| wanted.is_some() || linker_reads(*kind))
            .find_map(Self::detect)
    }

    fn detect(kind: Kind) -> Option<Self> {
        let ask = |question: &[&str]| shell::output(kind.rustc().args(question)).ok();
        let sysroot = PathBuf::from(ask(&["--print", "sysroot"])?);
        let usable = match kind {
            Kind::Nightly => sysroot
                .join("lib/rustlib/src/rust/library/core/Cargo.toml")
                .is_file(),
            Kind::Distribution => has_core(&sysroot.join("lib/rustlib").join(TARGET).join("lib")),
        };
        let version = ask(&["--version"])?;
        usable.then_some(Self { kind, version })
    }

    pub(crate) fn kind(&self) -> Kind {
        self.kind
    }

    fn cargo(&self) -> Command {
        let mut cargo = shell::command("cargo");
        if self.kind == Kind::Nightly {
            cargo.arg("+nightly");
        }
        cargo
    }

    /// `cargo <verb>` for the crate of the programs, with the compiler's own flags and environment.
    fn cargo_for_programs(&self, verb: &str) -> Command {
        let mut cargo = self.cargo();
        // Flags by environment reach the target's crates only, and win over every config file.
        cargo
            .current_dir(programs())
            .args([
                verb,
                "--release",
                "--locked",
                "--target",
                TARGET,
                "--target-dir",
            ])
            .arg(shell::target_dir().join("bpf/build"))
            .env("CARGO_ENCODED_RUSTFLAGS", flags(&[]));
        match self.kind {
            Kind::Nightly => {
                cargo.args(["-Z", "build-std=core"]);
            }
            Kind::Distribution => {
                cargo
                    .env("RUSTC", DISTRIBUTION_RUSTC)
                    .env("RUSTC_BOOTSTRAP", "1");
            }
        }
        cargo
    }
}

impl Kind {
    fn rustc(self) -> Command {
        match self {
            Self::Nightly => {
                let mut rustc = shell::command("rustc");
                rustc.arg("+nightly");
                rustc
            }
            Self::Distribution => shell::command(DISTRIBUTION_RUSTC),
        }
    }

    /// The major version of the compiler's LLVM; the linker must be built with the same.
    pub(crate) fn llvm_major(self) -> Option<u32> {
        let facts = shell::output(self.rustc().arg("-vV")).ok()?;
        let version = facts
            .lines()
            .find_map(|line| line.strip_prefix("LLVM version: "))?;
        version.split('.').next()?.parse().ok()
    }
}

/// Whether bpf-linker is built with an LLVM that is not older than the compiler's. Without a linker any compiler will do, as the
/// linker is built for it then.
fn linker_reads(kind: Kind) -> bool {
    let linked = || {
        let libraries =
            shell::output(shell::command("ldd").arg(shell::find("bpf-linker")?)).ok()?;
        let major = libraries.split("libLLVM.so.").nth(1)?;
        major.split(['.', ' ']).next()?.parse::<u32>().ok()
    };
    match (linked(), kind.llvm_major()) {
        (Some(linker), Some(compiler)) => linker >= compiler,
        // Linked statically, or not there: the build itself will tell.
        _ => true,
    }
}

fn has_core(lib: &Path) -> bool {
    fs::read_dir(lib).is_ok_and(|files| {
        files.flatten().any(|file| {
            file.file_name()
                .to_str()
                .is_some_and(|name| name.starts_with("libcore-") && name.ends_with(".rlib"))
        })
    })
}

/// The crate of the programs, a workspace of its own.
pub(crate) fn programs() -> PathBuf {
    shell::root().join("agent-ebpf")
}

/// Builds, and says what was built.
pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    let object = build(options)?;
    println!("{}", object.display());
    Ok(ExitCode::SUCCESS)
}

/// Builds the object and gives its path. Cargo decides whether there is anything to do; the object's time changes only
/// with its bytes, so that the agent is not rebuilt for nothing.
pub(crate) fn build(options: &Options) -> Result<PathBuf> {
    let Some(toolchain) = Toolchain::find(options.toolchain) else {
        bail!(
            "no compiler for {TARGET}: neither rustup's nightly with rust-src nor a distribution's compiler with the BPF core library is here; \
             `cargo xtask setup` installs one"
        );
    };
    if shell::find("bpf-linker").is_none() {
        bail!(
            "bpf-linker {} is not installed; `cargo xtask setup` installs it",
            setup::BPF_LINKER
        );
    }
    eprintln!("eBPF toolchain: {toolchain}");

    let mut cargo = toolchain.cargo_for_programs("build");
    if options.logs {
        cargo.args(["--features", "logs"]);
    }
    let messages = shell::messages(&mut cargo)?;
    let built = messages
        .iter()
        .filter_map(|message| message["executable"].as_str())
        .next_back()
        .map(PathBuf::from);
    let built = built.context("agent-ebpf has no binary target")?;

    let object = shell::target_dir().join(if options.logs {
        "bpf/cardinal-logs.bpf.o"
    } else {
        "bpf/cardinal.bpf.o"
    });
    let mut bytes =
        fs::read(&built).with_context(|| format!("failed to read {}", built.display()))?;
    forwards::order(&mut bytes)
        .with_context(|| format!("failed to order the types of {}", built.display()))?;
    if fs::read(&object).ok().as_deref() != Some(&bytes) {
        fs::write(&object, &bytes)
            .with_context(|| format!("failed to write {}", object.display()))?;
    }
    eprintln!("eBPF object: {} ({} bytes)", object.display(), bytes.len());
    Ok(object)
}

/// Formatting and lints of the programs.
pub(crate) fn tidy() -> Result<()> {
    shell::run(
        shell::command("cargo")
            .current_dir(programs())
            .args(["fmt", "--check"]),
    )?;
    let toolchain = Toolchain::find(None)
        .context("no compiler for the eBPF programs; `cargo xtask setup` installs one")?;
    let driver = match toolchain.kind {
        Kind::Nightly => "clippy-driver".into(),
        Kind::Distribution => PathBuf::from(DISTRIBUTION_CLIPPY),
    };
    let mut check = toolchain.cargo_for_programs("check");
    check
        // What `cargo clippy` does, with the driver of this very compiler: another's cannot read its core library.
        .env("RUSTC_WORKSPACE_WRAPPER", driver)
        .env("CARGO_ENCODED_RUSTFLAGS", flags(&["-D", "warnings"]));
    shell::run(&mut check)?;
    Ok(())
}
