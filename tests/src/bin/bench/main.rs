//! The benchmark program: `cargo xtask bench` builds it with optimisations and becomes it.
//!
//! It flows from a table to a table: `scenarios` says what is compared with what, `side` makes each side of a comparison
//! (a world of namespaces, with Cardinal's datapath, with a peer's rules, or with nothing), `load` is the process inside
//! of it that sends and receives, `measure` lets the sides take turns, and `rows` shows the ratios. `l7` is the same for
//! the router: its sides are processes on one core, and its load generator and backend are this process on another.

mod kube;
mod l4;
mod l7;
mod load;
mod loading;
mod measure;
mod peers;
mod profile;
mod proxied;
mod proxy;
mod router;
mod rows;
mod scenarios;
mod side;
mod snapshots;
mod splice;
mod tables;
mod traffic;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};
use tests::interrupt;

#[derive(Parser)]
#[command(name = "bench", about = "Measures Cardinal's datapath and router")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Packets and connections: what the kernel datapath costs, in ratios to a node without it and to its peers.
    L4(l4::Options),
    /// Requests: what the router costs, in ratios to the least that a proxy can do and to its peers.
    L7(l7::Options),
    /// The least that a proxy can do, as a process.
    #[command(hide = true)]
    Floor(l7::floor::Options),
    /// Changes in a cluster: how long each takes from the API server to requests, and what a big cluster costs.
    Kube(kube::Options),
    /// Writes and asks inside of the world of a cluster.
    #[command(hide = true)]
    Drive(kube::drive::Options),
    /// Sends and receives for one side of a comparison, as it is told on standard input.
    #[command(hide = true)]
    Load(load::Options),
    /// Stands between clients and a server.
    #[command(hide = true)]
    Proxy(proxy::Options),
}

fn main() -> ExitCode {
    match run(Cli::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> Result<()> {
    match command {
        Command::L4(options) => {
            interrupt::watch()?;
            l4::run(&options)
        }
        Command::L7(options) => {
            interrupt::watch()?;
            l7::run(&options)
        }
        Command::Floor(options) => l7::floor::run(&options),
        Command::Kube(options) => {
            interrupt::watch()?;
            kube::run(&options)
        }
        Command::Drive(options) => kube::drive::run(&options),
        Command::Load(options) => load::run(&options),
        Command::Proxy(options) => proxy::run(&options),
    }
}
