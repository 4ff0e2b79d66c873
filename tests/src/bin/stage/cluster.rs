//! The agent in Kubernetes: a world to look around in, and the conformance suite.

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use clap::Args;
use tests::{
    interrupt,
    kube::{
        Peer, Setup, World,
        conformance::{self, Profile, Run, Target, Wanted},
    },
};

/// How long the agents may take to be ready.
const READY_WAIT: Duration = Duration::from_secs(60);

#[derive(Args)]
pub(crate) struct KubeOptions {
    /// Nodes, 1 to 16.
    #[arg(long, default_value_t = 1)]
    nodes: u8,
    /// Another implementation instead of the agent.
    #[arg(long, value_enum)]
    peer: Option<Peer>,
}

#[derive(Args)]
pub(crate) struct ConformanceOptions {
    #[command(flatten)]
    kube: KubeOptions,
    /// Profiles; all if none is named.
    #[arg(long = "profile", value_enum)]
    profiles: Vec<Profile>,
    /// Only this test.
    #[arg(long)]
    run_test: Option<String>,
    /// The implementation's class.
    #[arg(long)]
    gateway_class: String,
    /// Folder of the report and the logs.
    #[arg(long)]
    out: PathBuf,
    /// Run against this cluster instead of a world.
    #[arg(long, conflicts_with = "peer")]
    kubeconfig: Option<PathBuf>,
    /// Run all of it in worlds of one and of three nodes, and keep what came of it in this folder.
    #[arg(long, value_name = "DIR", conflicts_with_all = ["nodes", "peer", "profiles", "run_test", "kubeconfig"])]
    record: Option<PathBuf>,
}

/// Worlds whose runs are kept: a Gateway on one node, and on several that have to agree.
const RECORDED_NODES: [u8; 2] = [1, 3];

pub(crate) fn kube(options: &KubeOptions) -> Result<ExitCode> {
    let world = bring_up(options)?;
    let command = |rest: &str| {
        format!(
            "CARDINAL_KUBE_WORLD={} tests/kube/enter {rest}",
            world.name()
        )
    };
    println!("The world stays until Ctrl-C. Try, in another terminal:\n");
    if options.peer.is_none() {
        println!(
            "{}",
            command("kubectl logs --namespace cardinal-system daemonset/cardinal-agent")
        );
    }
    println!("{}", command("kubectl get gatewayclasses"));
    println!("{}", command("kubectl get pods --all-namespaces"));
    println!("{}", command("--node node-1 ip route"));
    println!("{}\n", command("bash"));
    interrupt::wait();
    drop(world);
    Ok(ExitCode::SUCCESS)
}

pub(crate) fn conformance(options: &ConformanceOptions) -> Result<ExitCode> {
    let wanted = Wanted {
        profiles: match &options.profiles[..] {
            [] => Profile::ALL.to_vec(),
            named => named.to_vec(),
        },
        test: options.run_test.clone(),
        class: options.gateway_class.clone(),
        // Envoy Gateway's class has no features in its status.
        undeclared: options.kube.peer.is_some(),
        out: options.out.clone(),
        signed: options.record.is_some(),
    };
    // A mistake is told before anything is started.
    conformance::check(&wanted)?;
    if let Some(folder) = &options.record {
        return record(&wanted, folder);
    }
    let report = if let Some(kubeconfig) = &options.kubeconfig {
        eprintln!("against the cluster of {}", kubeconfig.display());
        conformance::run(Target::Cluster(kubeconfig), &wanted)?
    } else {
        let world = bring_up(&options.kube)?;
        conformance::run(Target::World(&world), &wanted)?
    };
    println!("\n{report}");
    println!("report, results and logs: {}", wanted.out.display());
    Ok(if report.passed() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn record(wanted: &Wanted, folder: &Path) -> Result<ExitCode> {
    let mut runs = Vec::new();
    for nodes in RECORDED_NODES {
        let world = bring_up(&KubeOptions { nodes, peer: None })?;
        let wanted = Wanted {
            out: wanted.out.join(format!("nodes-{nodes}")),
            ..wanted.clone()
        };
        let begun = Instant::now();
        let report = conformance::run(Target::World(&world), &wanted)?;
        println!("\n{report}");
        println!("report, results and logs: {}", wanted.out.display());
        runs.push((
            nodes,
            report,
            wanted.out.join("report.yaml"),
            begun.elapsed(),
        ));
    }
    let runs: Vec<_> = runs
        .iter()
        .map(|(nodes, report, file, took)| Run {
            nodes: *nodes,
            report,
            file,
            took: *took,
        })
        .collect();
    conformance::record(folder, &runs)?;
    println!("recorded in {}", folder.display());
    Ok(ExitCode::SUCCESS)
}

fn bring_up(options: &KubeOptions) -> Result<World> {
    ensure!(
        (1..=16).contains(&options.nodes),
        "a world has 1 to 16 nodes"
    );
    let setup = Setup {
        nodes: options.nodes,
        ..Setup::default()
    };
    eprintln!("bringing up a Kubernetes of {} node(s)", options.nodes);
    match options.peer {
        Some(peer) => World::up_with(
            peer,
            // The manifests of peers bring no roles.
            &Setup {
                roles: false,
                ..setup
            },
        ),
        None => {
            let world = World::up(&setup)?;
            world.deploy_agent(READY_WAIT)?;
            Ok(world)
        }
    }
}
