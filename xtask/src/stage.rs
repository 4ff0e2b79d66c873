//! `demo` and `quickstart`: builds what they need, then hands over to the `stage` program of the `tests` crate.

use std::{
    env,
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
};

use anyhow::{Context as _, Result, bail};
use clap::Args;

use crate::{ebpf, setup, shell};

/// What `cargo xtask demo` can be told.
#[derive(Args, Debug)]
pub(crate) struct DemoOptions {
    /// Print one JSON document instead of the table.
    #[arg(long)]
    json: bool,
    /// Leave the world up afterwards and print commands to poke at it; Ctrl-C removes it.
    #[arg(long)]
    keep: bool,
    /// Play only the rows whose scenario contains this text.
    #[arg(long, value_name = "TEXT")]
    only: Option<String>,
    /// Build the agent with optimisations, as it is shipped.
    #[arg(long)]
    release: bool,
}

/// What `cargo xtask quickstart` can be told.
#[derive(Args, Debug)]
pub(crate) struct QuickstartOptions {
    /// Run the printed commands, compare their answers, and exit.
    #[arg(long)]
    check: bool,
}

/// Builds everything as whoever calls, and plays the scenarios as root. Does not return if the stage program could be started.
pub(crate) fn demo(options: &DemoOptions) -> Result<ExitCode> {
    setup::host_build()?;
    setup::world()?;
    setup::ebpf()?;
    let object = ebpf::build(&ebpf::Options::default())?;
    let programs = build(Some(&object), options.release)?;
    let mut stage = shell::elevated(&programs.stage(), &programs.variables())?;
    stage.arg("demo");
    if options.json {
        stage.arg("--json");
    }
    if options.keep {
        stage.arg("--keep");
    }
    if let Some(only) = &options.only {
        stage.args(["--only", only]);
    }
    Err(stage.exec()).context("failed to start the stage program")
}

/// Builds the router and its backends, without the eBPF toolchain, and runs them.
pub(crate) fn quickstart(options: &QuickstartOptions) -> Result<ExitCode> {
    if shell::find("curl").is_none() {
        if options.check {
            bail!("--check runs curl, which is not installed: apt-get install curl");
        }
        eprintln!("curl is not installed here; the commands that are printed need it");
    }
    let programs = build(None, false)?;
    let mut stage = shell::command(programs.stage());
    stage.arg("quickstart").envs(programs.variables());
    if options.check {
        stage.arg("--check");
    }
    Err(stage.exec()).context("failed to start the stage program")
}

/// Programs that cargo built.
#[derive(Debug)]
pub(crate) struct Programs {
    dir: PathBuf,
}

impl Programs {
    /// What tells the tests and the stage program where the others are.
    pub(crate) fn variables(&self) -> [(&'static str, PathBuf); 3] {
        [
            ("CARDINAL_AGENT", self.dir.join("cardinal-agent")),
            ("CARDINAL_PEER", self.dir.join("peer")),
            ("CARDINAL_POLICIES", shell::root().join("policies")),
        ]
    }

    /// The first process of a machine.
    pub(crate) fn init(&self) -> PathBuf {
        self.dir.join("vm_init")
    }

    pub(crate) fn stage(&self) -> PathBuf {
        self.dir.join("stage")
    }
}

/// Builds the agent, with the kernel object inside if there is one, and the programs that play with it.
pub(crate) fn build(object: Option<&Path>, release: bool) -> Result<Programs> {
    let mut cargo = shell::cargo();
    cargo.args([
        "build",
        "--locked",
        "--package",
        "cardinal-agent",
        "--package",
        "tests",
        "--bins",
    ]);
    if release {
        cargo.arg("--release");
    }
    embed(&mut cargo, object);
    shell::run(&mut cargo)?;
    Ok(Programs {
        dir: shell::target_dir().join(if release { "release" } else { "debug" }),
    })
}

/// Tells the agent's build which kernel object to embed. Without one it keeps what the caller's environment says.
pub(crate) fn embed(cargo: &mut Command, object: Option<&Path>) {
    if let Some(object) = object {
        cargo.env("CARDINAL_EBPF_OBJECT", object);
    } else if env::var_os("CARDINAL_EBPF_OBJECT").is_none() {
        // An object of an earlier `build-ebpf` is welcome: the agent then needs no second build when the two take turns.
        let earlier = shell::target_dir().join("bpf/cardinal.bpf.o");
        if earlier.is_file() {
            cargo.env("CARDINAL_EBPF_OBJECT", earlier);
        }
    }
}
