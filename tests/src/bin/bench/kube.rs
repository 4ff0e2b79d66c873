//! `bench kube`: changes in a cluster, from a write to the API server until requests are served by it.
//!
//! The control plane is real (`tests/kube`), the agent runs as its manifests say, and clients are outside of the node. What
//! writes and asks is a process of its own inside of the world (`drive`); this one makes worlds and the table. `steps` says
//! where the time goes inside of the agent.

mod asking;
mod cells;
pub(crate) mod documents;
pub(crate) mod drive;
mod figures;
mod steps;

use std::{
    env, fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use clap::Args;
use tests::kube::{AGENT_NAMESPACE, Peer, Setup, World};

use crate::rows::{self, Bar, Report, Row, Spread};
use figures::Figures;

/// Until an agent that starts is ready.
const READY: Duration = Duration::from_secs(120);

/// What to measure and how long.
#[derive(Args, Debug)]
pub(crate) struct Options {
    /// Write the rows to this file as well, as one JSON document.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Numbers of routes at which changes are measured, from few to many.
    #[arg(long, value_delimiter = ',', default_value = "10,1000,5000")]
    routes: Vec<u32>,
    /// Changes that are measured at each number.
    #[arg(long, default_value_t = 200)]
    changes: u32,
    /// Cells whose memory is measured, alone and beside the routes.
    #[arg(long, default_value_t = 1000)]
    cells: u32,
    /// Pods of no node beside which the agent rests.
    #[arg(long, default_value_t = 10_000)]
    pods: u32,
    /// Few routes and changes, to see that everything runs. The figures say little.
    #[arg(long)]
    quick: bool,
    /// Envoy Gateway is played too; it is built first if need be.
    #[arg(long)]
    envoy_gateway: bool,
    /// Only what a change costs inside of the agent, step by step.
    #[arg(long)]
    steps: bool,
}

impl Options {
    fn routes(&self) -> Vec<u32> {
        match self.quick {
            true => vec![10, 100],
            false => self.routes.clone(),
        }
    }

    fn cells(&self) -> u32 {
        match self.quick {
            true => self.cells.min(cells::CHANGED),
            false => self.cells,
        }
    }

    /// A number of objects or changes, or a small one.
    fn count(&self, count: u32) -> u32 {
        if self.quick { count.min(20) } else { count }
    }
}

/// Measures everything and prints the table.
pub(crate) fn run(options: &Options) -> Result<()> {
    rows::head();
    let mut all = Vec::new();
    let mut add = |rows: Vec<Row>| {
        rows.iter().for_each(rows::show);
        all.extend(rows);
    };
    for routes in options.routes() {
        add(steps::play(routes, options.count(100))?);
    }
    if !options.steps {
        let figures = cardinal(options, "routes")?;
        add(changes("cardinal", &figures));
        add(costs(&figures));
        add(costs(&cardinal(options, "cells")?));
        if options.envoy_gateway {
            add(changes("Envoy Gateway", &envoy_gateway(options)?));
        }
    }
    if let Some(file) = &options.json {
        let report = Report {
            machine: crate::l4::processor()?,
            rows: all,
        };
        report.write(file)?;
    }
    Ok(())
}

/// Plays a part in a world of its own.
fn cardinal(options: &Options, part: &str) -> Result<Figures> {
    let world = World::up(&Setup::default())?;
    world.deploy_agent(READY)?;
    let agents = world.agents()?;
    let agent = agents.first().context("no agent runs")?;
    let pod = world.get(&["pod", agent, "--namespace", AGENT_NAMESPACE])?;
    let process = pod["status"]["containerStatuses"][0]["containerID"]
        .as_str()
        .and_then(|id| id.strip_prefix("process://"))
        .context("the agent has no process")?;
    let more = [
        ("--agent", process.to_owned()),
        ("--cells", options.cells().to_string()),
        ("--pods", options.count(options.pods).to_string()),
    ];
    drive(&world, options, (part, "cardinal"), &more)
}

fn envoy_gateway(options: &Options) -> Result<Figures> {
    let setup = Setup {
        // Its manifests bring no roles.
        roles: false,
        ..Setup::default()
    };
    let world = World::up_with(Peer::EnvoyGateway, &setup)?;
    drive(&world, options, ("routes", Peer::EnvoyGateway.name()), &[])
}

/// Plays inside of a world.
fn drive(
    world: &World,
    options: &Options,
    (part, class): (&str, &str),
    more: &[(&str, String)],
) -> Result<Figures> {
    let out = world.state().join("figures.json");
    let routes: Vec<String> = options.routes().iter().map(ToString::to_string).collect();
    let mut drive = world.outside(env::current_exe()?);
    drive
        .args(["drive", "--part", part, "--class", class])
        .args(["--routes", &routes.join(",")])
        .args(["--changes", &options.count(options.changes).to_string()])
        .arg("--out")
        .arg(&out);
    for (name, value) in more {
        drive.args([*name, value.as_str()]);
    }
    let status = drive
        .status()
        .context("failed to start a process in the world")?;
    ensure!(
        status.success(),
        "the process in the world failed ({status})"
    );
    read(&out)
}

fn read(file: &Path) -> Result<Figures> {
    let text = fs::read(file).with_context(|| format!("failed to read {}", file.display()))?;
    serde_json::from_slice(&text).context("the figures are no figures")
}

/// Rows of changes.
fn changes(who: &str, figures: &Figures) -> Vec<Row> {
    let mut rows = Vec::new();
    let ours = who == "cardinal";
    for (routes, changes) in &figures.changes {
        let bar = |most| match ours {
            true => Bar::AtMost(most),
            false => Bar::None,
        };
        let mut sorted = changes.from_answer.clone();
        sorted.sort_by(f64::total_cmp);
        let at = |part: f64| {
            let place = (sorted.len() as f64 * part).ceil() as usize;
            sorted
                .get(place.saturating_sub(1))
                .copied()
                .unwrap_or(f64::NAN)
        };
        let notes = format!(
            "{} changes; from the call {:.1} ms",
            sorted.len(),
            Spread::of(&changes.from_call).median
        );
        let name = |what: &str| format!("{who}, {routes} routes: {what}");
        rows.push(
            Row::new(&name("write to serving, p50"), &sorted, bar(15.0), notes).of("milliseconds"),
        );
        let notes = format!("longest {:.1} ms", at(1.0));
        rows.push(
            Row::new(
                &name("write to serving, p99"),
                &[at(0.99)],
                bar(40.0),
                notes,
            )
            .of("milliseconds"),
        );
        let wrong = f64::from(changes.wrong);
        rows.push(
            Row::new(&name("wrong answers"), &[wrong], bar(0.0), String::new()).of("answers"),
        );
    }
    if let Some((failed, all)) = figures.errors {
        let bar = if ours { Bar::AtMost(0.0) } else { Bar::None };
        let notes = format!("of {all} requests");
        let name = format!("{who}: errors in 20 rounds of weights and backends");
        rows.push(Row::new(&name, &[failed as f64], bar, notes).of("requests"));
    }
    if let Some((failed, all)) = figures.together {
        let notes = format!("of {all}, one of each route");
        let name = format!("{who}: errors beside all cells");
        rows.push(Row::new(&name, &[failed as f64], Bar::AtMost(0.0), notes).of("requests"));
    }
    if let Some(writes) = figures.status_writes {
        let bar = if ours { Bar::AtMost(1.0) } else { Bar::None };
        let name = format!("{who}: writes of a route's status per change");
        rows.push(Row::new(&name, &[writes], bar, String::new()).of("writes"));
    }
    rows
}

/// Rows of what the agent needs.
fn costs(figures: &Figures) -> Vec<Row> {
    let mut rows = Vec::new();
    for (with, resident) in &figures.memory {
        // The bar is for routes and for cells; what comes on top has none.
        let alone = !with.contains("and");
        let bar = match alone {
            true => Bar::AtMost(40.0),
            false => Bar::None,
        };
        let notes = format!(
            "{:.1} its own, {:.1} of files and tables; most {:.1}",
            resident.own, resident.files, resident.most
        );
        let name = format!("resident memory, {with}");
        rows.push(Row::new(&name, &[resident.all], bar, notes).of("MiB"));
    }
    if let Some(rest) = figures.rest {
        let name = "processor time at rest, with pods";
        let notes = "ms per second".to_owned();
        rows.push(Row::new(name, &[rest], Bar::AtMost(10.0), notes).of("milliseconds"));
    }
    if !figures.enforced.is_empty() {
        let longest = figures.enforced.iter().copied().fold(0.0, f64::max);
        let name = "250 changed cells: until the kernel goes by all of them, 100 pods";
        let notes = format!("longest {longest:.1} ms");
        rows.push(Row::new(name, &figures.enforced, Bar::AtMost(100.0), notes).of("milliseconds"));
    }
    rows
}
