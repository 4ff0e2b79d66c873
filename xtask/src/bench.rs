//! `bench`: builds the agent and the benchmark with optimisations, installs the peers that it is compared with, and
//! hands over to the benchmark program of the `tests` crate: as root for packets, as whoever calls for requests.

use std::{
    env,
    os::unix::process::CommandExt as _,
    path::PathBuf,
    process::{Command, ExitCode},
};

use anyhow::{Context as _, Result};
use clap::{Args, Subcommand};

use crate::{ebpf, image, kube, setup, shell, stage};

/// What `cargo xtask bench` can be told.
#[derive(Args, Debug)]
pub(crate) struct Options {
    #[command(subcommand)]
    layer: Layer,
}

#[derive(Debug, Subcommand)]
enum Layer {
    /// Packets and connections in the kernel. Exits with 0 when everything ran, also if bars are missed: the table says.
    L4(Measuring),
    /// Requests in the router. Exits with 0 when everything ran, also if bars are missed: the table says. No root needed.
    L7(L7),
    /// Changes in a throw-away Kubernetes (see tests/kube), and what a big cluster costs. Exits with 0 when everything ran, also if
    /// bars are missed: the table says.
    Kube(Kube),
}

#[derive(Args, Debug)]
struct Kube {
    /// Write the rows to this file as well, as one JSON document.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Few routes and changes, to see that everything runs. The figures say little.
    #[arg(long)]
    quick: bool,
    /// Play Envoy Gateway too; the first time it is built and downloaded.
    #[arg(long)]
    envoy_gateway: bool,
    /// Only what a change costs inside of the agent, step by step. No root needed.
    #[arg(long)]
    steps: bool,
}

impl Kube {
    /// The script of tests/kube that builds everything for the worlds.
    fn script(&self) -> &'static str {
        match self.envoy_gateway {
            true => "peers/envoy-gateway/start",
            false => "up",
        }
    }
}

#[derive(Args, Debug)]
struct L7 {
    #[command(flatten)]
    measuring: Measuring,
    /// Envoy's program, which is then a peer too; no package of Debian has it.
    #[arg(long, value_name = "FILE")]
    envoy: Option<PathBuf>,
}

#[derive(Args, Debug)]
struct Measuring {
    /// Write the rows to this file as well, as one JSON document.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Measure only the rows whose scenario contains this text.
    #[arg(long, value_name = "TEXT")]
    only: Option<String>,
    /// Rounds of every comparison; else 11 (12 for requests), and 31 where a bar of packets is 1.01 or 1.02.
    #[arg(long, value_name = "N")]
    rounds: Option<u16>,
    /// Three short rounds, to see that everything runs. The figures say little.
    #[arg(long)]
    quick: bool,
}

impl Measuring {
    fn tell(&self, bench: &mut Command) -> Result<()> {
        if let Some(file) = &self.json {
            // The program starts in the workspace's folder, which need not be the caller's.
            let here = env::current_dir().context("the current folder is gone")?;
            bench.arg("--json").arg(here.join(file));
        }
        if let Some(only) = &self.only {
            bench.args(["--only", only]);
        }
        if let Some(rounds) = self.rounds {
            bench.args(["--rounds", &rounds.to_string()]);
        }
        if self.quick {
            bench.arg("--quick");
        }
        Ok(())
    }
}

/// Builds everything as whoever calls, and measures. Does not return if the benchmark could be started.
pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    // What a Kubernetes lacks is told before anything is built.
    let world = match &options.layer {
        Layer::Kube(kube) if !kube.steps => Some(kube::prepare(kube.script())?),
        _ => None,
    };
    setup::host_build()?;
    let mut bench = match &options.layer {
        Layer::L4(measuring) => {
            setup::world()?;
            setup::peers()?;
            setup::ebpf()?;
            let object = ebpf::build(&ebpf::Options::default())?;
            let mut cargo = release(&["--package", "tests", "--bin", "bench"]);
            stage::embed(&mut cargo, Some(&object));
            shell::run(&mut cargo)?;
            let mut bench = shell::elevated(&program("bench"), &[])?;
            bench.arg("l4");
            measuring.tell(&mut bench)?;
            bench
        }
        Layer::L7(l7) => {
            setup::proxies()?;
            let mut cargo = release(WITH_AGENT);
            stage::embed(&mut cargo, None);
            shell::run(&mut cargo)?;
            let mut bench = shell::command(program("bench"));
            bench
                .arg("l7")
                .arg("--agent")
                .arg(program("cardinal-agent"));
            if let Some(envoy) = &l7.envoy {
                let here = env::current_dir().context("the current folder is gone")?;
                bench.arg("--envoy").arg(here.join(envoy));
            }
            l7.measuring.tell(&mut bench)?;
            bench
        }
        Layer::Kube(kube) => {
            let mut cargo = release(&["--package", "tests", "--bin", "bench"]);
            let mut bench = match &world {
                None => {
                    stage::embed(&mut cargo, None);
                    shell::run(&mut cargo)?;
                    shell::command(program("bench"))
                }
                Some(variables) => {
                    setup::ebpf()?;
                    let object = ebpf::build(&ebpf::Options::default())?;
                    // Nodes run what images hold: how much of a program is resident depends on how it is linked.
                    let agent = image::program(&object)?;
                    // The nodes' images name it.
                    cargo.args(["--bin", "peer"]);
                    stage::embed(&mut cargo, Some(&object));
                    shell::run(&mut cargo)?;
                    let mut variables = variables.to_vec();
                    variables.push(("CARDINAL_AGENT", agent));
                    shell::elevated(&program("bench"), &variables)?
                }
            };
            bench.arg("kube");
            if let Some(file) = &kube.json {
                let here = env::current_dir().context("the current folder is gone")?;
                bench.arg("--json").arg(here.join(file));
            }
            let flags = [
                (kube.quick, "--quick"),
                (kube.envoy_gateway, "--envoy-gateway"),
                (kube.steps, "--steps"),
            ];
            bench.args(flags.iter().filter(|(set, _)| *set).map(|(_, flag)| flag));
            bench
        }
    };
    Err(bench.exec()).context("failed to start the benchmark")
}

/// The benchmark, and the agent as it is shipped.
const WITH_AGENT: &[&str] = &[
    "--package",
    "tests",
    "--package",
    "cardinal-agent",
    "--bin",
    "bench",
    "--bin",
    "cardinal-agent",
];

fn release(what: &[&str]) -> Command {
    let mut cargo = shell::cargo();
    cargo.args(["build", "--locked", "--release"]).args(what);
    cargo
}

fn program(name: &str) -> PathBuf {
    shell::target_dir().join("release").join(name)
}
