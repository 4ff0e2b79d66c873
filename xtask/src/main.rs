//! Cardinal's own build program: `cargo xtask <command>`.
//!
//! It flows from nothing to a running world: `setup` installs what a machine lacks, `build-ebpf` makes the
//! kernel object, `demo` and `quickstart` show the product, `bench` measures it, `kube` and
//! `conformance` run it in Kubernetes, `test` and `tidy` judge it. Nothing in here knows
//! how a cell works; the scenarios are the `tests` crate's.

mod bench;
mod crds;
mod ebpf;
mod image;
mod kube;
mod setup;
mod shell;
mod stage;
mod suite;
mod tidy;
mod vm;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(
    name = "xtask",
    bin_name = "cargo xtask",
    about = "Builds, shows and tests Cardinal",
    version
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Install what this machine lacks to build, show and test, after saying what and why; other commands do so themselves.
    Setup(setup::Options),
    /// Build the eBPF programs into target/bpf/cardinal.bpf.o, or with --logs into target/bpf/cardinal-logs.bpf.o.
    BuildEbpf(ebpf::Options),
    /// Play every scenario against the real agent in a world of network namespaces (root).
    Demo(stage::DemoOptions),
    /// Run the router alone in front of two small backends on loopback (no root).
    Quickstart(stage::QuickstartOptions),
    /// Measure what the datapath costs beside a node without it and beside its peers (root), and the router beside other proxies.
    Bench(bench::Options),
    /// Write the definitions of Cardinal's kinds into deploy/crds.
    Crds(crds::Options),
    /// Build the agent's image, as an OCI layout, with a bill of materials.
    Image(image::Options),
    /// Bring up a throw-away Kubernetes with the agent on every node, until Ctrl-C (root).
    Kube(kube::KubeOptions),
    /// Run the conformance suite of the Gateway API in a throw-away Kubernetes (root), or against a cluster.
    Conformance(kube::ConformanceOptions),
    /// Build and run all tests: unit, property, proxy, namespace (root) and, in machines, those of older kernels; with --kube those
    /// in Kubernetes instead.
    Test(suite::Options),
    /// Run what a change has to pass: formatting, lints, docs, dependencies, tests.
    Tidy(tidy::Options),
}

fn main() -> std::process::ExitCode {
    let outcome = match Cli::parse().command {
        Command::Setup(options) => setup::run(&options),
        Command::BuildEbpf(options) => ebpf::run(&options),
        Command::Demo(options) => stage::demo(&options),
        Command::Quickstart(options) => stage::quickstart(&options),
        Command::Bench(options) => bench::run(&options),
        Command::Crds(options) => crds::run(&options),
        Command::Image(options) => image::run(&options),
        Command::Kube(options) => kube::kube(&options),
        Command::Conformance(options) => kube::conformance(&options),
        Command::Test(options) => suite::run(&options),
        Command::Tidy(options) => tidy::run(&options),
    };
    match outcome {
        Ok(code) => code,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            std::process::ExitCode::FAILURE
        }
    }
}
