//! `kube` and `conformance`: build the agent and a Kubernetes for it, then hand over to the `stage` program of the `tests`
//! crate. The Kubernetes is that of `tests/kube`, whose binaries are kept in a cache outside of the repository.

mod needs;

use std::{
    env,
    os::unix::process::CommandExt as _,
    path::PathBuf,
    process::{Command, ExitCode},
};

use anyhow::{Context as _, Result, bail};
use clap::{Args, builder::PossibleValuesParser};

use crate::{ebpf, setup, shell, stage};

/// What `cargo xtask kube` can be told.
#[derive(Args, Debug)]
pub(crate) struct KubeOptions {
    /// Simulated nodes, each with an agent.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=16))]
    nodes: u8,
    /// Run this implementation instead of the agent.
    #[arg(long, value_parser = PossibleValuesParser::new(PEERS))]
    peer: Option<String>,
    /// Build the agent with optimisations, as it is shipped.
    #[arg(long)]
    release: bool,
}

/// What `cargo xtask conformance` can be told.
#[derive(Args, Debug)]
pub(crate) struct ConformanceOptions {
    /// Run the tests of this profile; may be given several times [default: all of them].
    #[arg(long = "profile", value_name = "PROFILE", ignore_case = true, value_parser = PossibleValuesParser::new(PROFILES))]
    profiles: Vec<String>,
    /// Run only this test, whether its features are declared or not.
    #[arg(long, value_name = "TEST")]
    run_test: Option<String>,
    /// Folder for report.yaml, results.tsv, suite.log and the logs of the agents [default: target/conformance].
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// The GatewayClass to test [default: cardinal, or the peer's].
    #[arg(long, value_name = "CLASS")]
    gateway_class: Option<String>,
    /// Run against the cluster of this file, where the implementation runs already, instead of a world. The suite makes and
    /// deletes namespaces there [default: $KUBECONFIG if that is set].
    #[arg(long, value_name = "FILE", conflicts_with_all = ["peer", "nodes", "release"])]
    kubeconfig: Option<PathBuf>,
    /// Run all profiles on one node and on three, and keep the reports and their table in docs/conformance if all passed.
    #[arg(long, conflicts_with_all = ["kubeconfig", "profiles", "run_test", "gateway_class", "peer", "nodes"])]
    record: bool,
    #[command(flatten)]
    world: KubeOptions,
}

const PROFILES: [&str; 5] = [
    "GATEWAY-HTTP",
    "GATEWAY-GRPC",
    "GATEWAY-TLS",
    "GATEWAY-TCP",
    "GATEWAY-UDP",
];
const PEERS: [&str; 1] = ["envoy-gateway"];

/// A world to look around in. Does not return if the stage program could be started.
pub(crate) fn kube(options: &KubeOptions) -> Result<ExitCode> {
    let mut stage = world(options)?;
    stage.arg("kube");
    options.tell(&mut stage);
    Err(stage.exec()).context("failed to start the stage program")
}

/// The suite, in a world or against a cluster. Does not return if the stage program could be started.
pub(crate) fn conformance(options: &ConformanceOptions) -> Result<ExitCode> {
    let here = env::current_dir().context("the current folder is gone")?;
    let default = || shell::target_dir().join("conformance");
    let out = options
        .out
        .as_ref()
        .map_or_else(default, |out| here.join(out));
    let cluster = options.kubeconfig.clone().or_else(|| {
        // A world that was asked for is wanted, wherever the shell's kubectl leads.
        let asked = options.world.peer.is_some() || options.record;
        env::var_os("KUBECONFIG")
            .filter(|value| !value.is_empty() && !asked)
            .map(PathBuf::from)
    });
    let mut stage = match &cluster {
        Some(_) => outside()?,
        None => world(&options.world)?,
    };
    stage.arg("conformance").arg("--out").arg(&out);
    match &cluster {
        Some(kubeconfig) => {
            stage.arg("--kubeconfig").arg(here.join(kubeconfig));
        }
        None if options.record => {
            let kept = shell::root().join("docs/conformance");
            stage.arg("--record").arg(kept);
        }
        None => options.world.tell(&mut stage),
    }
    let peer = options.world.peer.as_deref();
    let class = options.gateway_class.as_deref().or(peer);
    stage.args(["--gateway-class", class.unwrap_or("cardinal")]);
    for profile in &options.profiles {
        stage.args(["--profile", &profile.to_uppercase()]);
    }
    if let Some(test) = &options.run_test {
        stage.args(["--run-test", test]);
    }
    Err(stage.exec()).context("failed to start the stage program")
}

impl KubeOptions {
    fn tell(&self, stage: &mut Command) {
        stage.args(["--nodes", &self.nodes.to_string()]);
        if let Some(peer) = &self.peer {
            stage.args(["--peer", peer]);
        }
    }
}

/// The stage program for a world, after everything that it needs was built.
fn world(options: &KubeOptions) -> Result<Command> {
    let script = match &options.peer {
        Some(peer) => format!("peers/{peer}/start"),
        None => "up".to_owned(),
    };
    let variables = prepare(&script)?;
    setup::host_build()?;
    let programs = if options.peer.is_some() {
        stage::build(None, options.release)?
    } else {
        setup::ebpf()?;
        let object = ebpf::build(&ebpf::Options::default())?;
        stage::build(Some(&object), options.release)?
    };
    let variables = [&programs.variables()[..], &variables].concat();
    shell::elevated(&programs.stage(), &variables)
}

/// The stage program for a cluster, which needs no root and no agent of ours.
fn outside() -> Result<Command> {
    if shell::find("kubectl").is_none() {
        bail!("kubectl is not here, which a cluster outside of a world is asked with");
    }
    needs::go()?;
    setup::host_build()?;
    let programs = stage::build(None, false)?;
    let mut stage = shell::command(programs.stage());
    stage.envs(programs.variables());
    Ok(stage)
}

/// Builds the control plane, the nodes and the suite as whoever calls, unless they are in the cache (about seven minutes of two
/// cores the first time). Gives what tells the root of a world where they are.
pub(crate) fn prepare(script: &str) -> Result<[(&'static str, PathBuf); 2]> {
    needs::all()?;
    let cache = cache()?;
    setup::kube()?;
    shell::run(
        shell::command(shell::root().join("tests/kube").join(script))
            .arg("--build-only")
            .env("CARDINAL_KUBE_CACHE", &cache),
    )?;
    let path = env::var_os("PATH").unwrap_or_default();
    Ok([("CARDINAL_KUBE_CACHE", cache), ("PATH", path.into())])
}

/// As `tests/kube/lib.sh` has it, for whoever calls.
fn cache() -> Result<PathBuf> {
    if let Some(cache) = env::var_os("CARDINAL_KUBE_CACHE") {
        return Ok(cache.into());
    }
    let caches = env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let home = || env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache"));
    match caches.or_else(home) {
        Some(caches) => Ok(caches.join("cardinal-kube")),
        None => bail!(
            "HOME is not set, so CARDINAL_KUBE_CACHE has to name a folder for Kubernetes' binaries"
        ),
    }
}
