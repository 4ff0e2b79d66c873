//! The stage program: `cargo xtask demo`, `quickstart`, `kube` and `conformance` build it and become it.

mod cluster;
mod table;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};
use tests::{
    demo::{self, Demo, Spot},
    interrupt,
    programs::Programs,
    quickstart::Quickstart,
};

#[derive(Parser)]
#[command(
    name = "stage",
    about = "Plays Cardinal's demo and quickstart, and runs it in Kubernetes"
)]
struct Cli {
    #[command(subcommand)]
    play: Play,
}

#[derive(Subcommand)]
enum Play {
    /// Every scenario in a world of network namespaces.
    Demo {
        /// Print one JSON document instead of the table.
        #[arg(long)]
        json: bool,
        /// Leave the world up until Ctrl-C, and print commands to poke at it.
        #[arg(long)]
        keep: bool,
        /// Play only the rows whose scenario contains this text.
        #[arg(long)]
        only: Option<String>,
    },
    /// The router alone in front of two backends on loopback.
    Quickstart {
        /// Run the printed lines, compare, and exit.
        #[arg(long)]
        check: bool,
    },
    /// A throw-away Kubernetes with the agent on every node, until Ctrl-C.
    Kube(cluster::KubeOptions),
    /// The conformance suite of the Gateway API.
    Conformance(cluster::ConformanceOptions),
}

fn main() -> ExitCode {
    let played = interrupt::watch().and_then(|()| match Cli::parse().play {
        Play::Demo { json, keep, only } => play_demo(json, keep, only.as_deref()),
        Play::Quickstart { check } => play_quickstart(check),
        Play::Kube(options) => cluster::kube(&options),
        Play::Conformance(options) => cluster::conformance(&options),
    });
    match played {
        Ok(code) => code,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn play_demo(json: bool, keep: bool, only: Option<&str>) -> Result<ExitCode> {
    let programs = Programs::locate()?;
    eprintln!("making a world of network namespaces, and starting the agent in it");
    let mut demo = Demo::set_up(&programs)?;
    if !json {
        table::head();
    }
    let report = demo::play(&mut demo, only, &mut |row| {
        if !json {
            table::row(row);
        }
    })?;
    if json {
        println!("{}", serde_json::to_string(&report)?);
    } else {
        println!("{} passed, {} failed", report.passed, report.failed);
    }
    if let (true, Some(only)) = (report.rows.is_empty(), only) {
        eprintln!("no scenario contains `{only}`");
    }
    if keep {
        poke(&demo, &programs);
        interrupt::wait();
    }
    drop(demo);
    Ok(if report.failed == 0 && !report.rows.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn play_quickstart(check: bool) -> Result<ExitCode> {
    let quickstart = Quickstart::start(&Programs::locate()?)?;
    println!(
        "The router runs in front of two backends. Nothing is enforced: this is the router alone."
    );
    println!(
        "Documents: {}\nLog:       {}\n",
        quickstart.config().display(),
        quickstart.log().display()
    );
    for step in quickstart.steps() {
        println!("# {}\n{}", step.title, step.line);
        if check {
            let output = Quickstart::check(&step)?;
            println!("{}", output.trim_end());
            println!("# ok");
        }
        println!();
    }
    if check {
        println!("every line answers as it should");
    } else {
        println!("Ctrl-C ends it.");
        interrupt::wait();
    }
    drop(quickstart);
    Ok(ExitCode::SUCCESS)
}

/// Commands for a person who wants to look around.
fn poke(demo: &Demo, programs: &Programs) {
    let (client, orders, node) = (
        demo.place(Spot::Client).enter(),
        demo.place(Spot::Orders).enter(),
        demo.world().node().enter(),
    );
    let (ca, bpffs, agent) = (
        demo.ca().display().to_string(),
        demo.world().bpffs().display().to_string(),
        programs.agent.display(),
    );
    // Somebody who looks around may well do without a token.
    let token = demo
        .token("read:books")
        .unwrap_or_else(|error| format!("(no token: {error:#})"));
    eprintln!(
        "\nThe world stays until Ctrl-C. Try, in another terminal:\n
# from the internet, through the external gateway
{client} curl -sS --cacert {ca} --resolve web-prod.apps.example.test:443:198.18.0.80 https://web-prod.apps.example.test/
{client} curl -sS --cacert {ca} --resolve prod.apis.example.test:443:198.18.0.80 -H 'Authorization: Bearer {token}' https://prod.apis.example.test/shop/orders/api/v1/books/7
# from a pod: declared, and not declared
{orders} curl -sS http://10.80.2.10:8080/v1/accounts
{orders} curl -sS --max-time 3 http://198.51.100.20:7000/
# what the kernel holds
ls {bpffs}
bpftool map dump pinned {bpffs}/maps_{layout}/endpoints
# what the agent says
{agent} status --admin {admin}
curl -sS --unix-socket {admin} http://admin/debug/events
# its documents: change one and watch
ls {config}
# a shell on the node
{node} bash\n",
        admin = demo.agent.admin().display(),
        config = demo.config().display(),
        layout = agent_common::Control::SCHEMA,
    );
}
