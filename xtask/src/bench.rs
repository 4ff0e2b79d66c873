//! `bench`: builds the agent's library and the benchmark with optimisations, installs the peers that it is compared
//! with, and hands over to the benchmark program of the `tests` crate as root.

use std::{env, os::unix::process::CommandExt as _, path::PathBuf, process::ExitCode};

use anyhow::{Context as _, Result};
use clap::{Args, Subcommand};

use crate::{ebpf, setup, shell, stage};

/// What `cargo xtask bench` can be told.
#[derive(Args, Debug)]
pub(crate) struct Options {
    #[command(subcommand)]
    layer: Layer,
}

#[derive(Debug, Subcommand)]
enum Layer {
    /// Packets and connections in the kernel. Exits with 0 when everything ran, also if bars are missed: the table says.
    L4(L4),
}

#[derive(Args, Debug)]
struct L4 {
    /// Write the rows to this file as well, as one JSON document.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Measure only the rows whose scenario contains this text.
    #[arg(long, value_name = "TEXT")]
    only: Option<String>,
    /// Rounds of every comparison; else 11, and 31 where the bar is 1.01 or 1.02.
    #[arg(long, value_name = "N")]
    rounds: Option<u16>,
    /// Three short rounds, to see that everything runs. The figures say little.
    #[arg(long)]
    quick: bool,
}

/// Builds everything as whoever calls, and measures as root. Does not return if the benchmark could be started.
pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    let Layer::L4(l4) = &options.layer;
    setup::host_build()?;
    setup::world()?;
    setup::peers()?;
    setup::ebpf()?;
    let object = ebpf::build(&ebpf::Options::default())?;
    let mut cargo = shell::cargo();
    cargo.args([
        "build",
        "--locked",
        "--release",
        "--package",
        "tests",
        "--bin",
        "bench",
    ]);
    stage::embed(&mut cargo, Some(&object));
    shell::run(&mut cargo)?;
    let mut bench = shell::elevated(&shell::target_dir().join("release/bench"), &[])?;
    bench.arg("l4");
    if let Some(file) = &l4.json {
        // The program starts in the workspace's folder, which need not be the caller's.
        let here = env::current_dir().context("the current folder is gone")?;
        bench.arg("--json").arg(here.join(file));
    }
    if let Some(only) = &l4.only {
        bench.args(["--only", only]);
    }
    if let Some(rounds) = l4.rounds {
        bench.args(["--rounds", &rounds.to_string()]);
    }
    if l4.quick {
        bench.arg("--quick");
    }
    Err(bench.exec()).context("failed to start the benchmark")
}
