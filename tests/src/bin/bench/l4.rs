//! `bench l4`: plays the scenarios of the kernel datapath and shows their ratios.

use std::{collections::BTreeSet, fs, path::PathBuf, process::Command, time::Duration};

use anyhow::{Context as _, Result, bail};
use clap::Args;
use nix::{
    sched::{CpuSet, sched_getaffinity},
    unistd::{Pid, gettid},
};
use tests::interrupt;

use crate::{
    loading,
    measure::{self, Plan, Sides},
    rows::{self, Report, Row},
    scenarios,
    side::{Setup, Side},
    traffic::hurry,
};

/// What to measure and how long.
#[derive(Args, Debug)]
pub(crate) struct Options {
    /// Write the rows to this file as well, as one JSON document.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Measure only the rows whose scenario contains this text.
    #[arg(long, value_name = "TEXT")]
    only: Option<String>,
    /// Rounds of every comparison; else 11, and 31 where the bar is 1.01 or 1.02.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    rounds: Option<u16>,
    /// Three short rounds, to see that everything runs. The figures say little.
    #[arg(long)]
    quick: bool,
}

impl Options {
    fn plan(&self) -> Plan {
        let (rounds, slices, slice) = if self.quick {
            (Some(3), 3, 30)
        } else {
            (None, 8, 40)
        };
        Plan {
            rounds: self.rounds.map(usize::from).or(rounds),
            slices,
            slice: Duration::from_millis(slice),
        }
    }

    fn wants(&self, scenario: &str) -> bool {
        self.only
            .as_ref()
            .is_none_or(|only| scenario.contains(only))
    }
}

/// Measures, shows each row when it is known, and writes the file at the end.
pub(crate) fn run(options: &Options) -> Result<()> {
    let (plan, core) = (options.plan(), last_core()?);
    let mut report = Report {
        machine: machine()?,
        rows: Vec::new(),
    };
    println!("{}", report.machine);
    rows::head();
    let mut add = |row: Row| {
        rows::show(&row);
        report.rows.push(row);
    };
    let mut batches: Vec<scenarios::Batch> = scenarios::all();
    for batch in &mut batches {
        batch.retain(|spec| options.wants(&spec.scenario));
    }
    batches.retain(|batch| !batch.is_empty());
    let mut sides = Sides::new();
    for (index, batch) in batches.iter().enumerate() {
        // A side that nobody needs any more makes room; what is needed again at once is kept.
        let later: BTreeSet<Setup> = batches[index..]
            .iter()
            .take(KEEP)
            .flat_map(setups)
            .collect();
        sides.retain(|setup, _| later.contains(setup));
        for setup in setups(batch) {
            if let std::collections::btree_map::Entry::Vacant(place) = sides.entry(setup) {
                interrupt::check()?;
                let side = Side::make(setup, core);
                place.insert(side.with_context(|| format!("failed to make {setup:?}"))?);
            }
        }
        for row in measure::play(&mut sides, batch, &plan)? {
            add(row);
        }
    }
    sides.clear();
    // From here on it is this process that works, and its peers, which inherit the priority.
    hurry(gettid())?;
    for row in loading::play(&|scenario| options.wants(scenario), &plan, core)? {
        add(row);
    }
    if report.rows.is_empty() {
        bail!(
            "no scenario contains `{}`",
            options.only.as_deref().unwrap_or_default()
        );
    }
    if let Some(file) = &options.json {
        report.write(file)?;
    }
    let missed = report.rows.iter().filter(|row| !row.ok).count();
    let held = report
        .rows
        .iter()
        .filter(|row| row.target.is_some())
        .count()
        - missed;
    println!("{held} bars held, {missed} missed");
    Ok(())
}

/// Batches that a side outlives without being used.
const KEEP: usize = 8;

fn setups(batch: &scenarios::Batch) -> BTreeSet<Setup> {
    batch
        .iter()
        .flat_map(|spec| [spec.of.setup, spec.base.setup])
        .collect()
}

/// The last core that this process may use: the first one has the machine's own work.
fn last_core() -> Result<usize> {
    let set = sched_getaffinity(Pid::from_raw(0)).context("failed to ask for the cores")?;
    (0..CpuSet::count())
        .rev()
        .find(|core| set.is_set(*core).unwrap_or(false))
        .context("this process may use no core")
}

/// Processor, cores, kernel and peers.
fn machine() -> Result<String> {
    let nft = version("nft")?;
    let iptables = version("iptables-nft")?;
    Ok(format!("{}, {nft}, {iptables}", processor()?))
}

/// Processor, cores and kernel.
pub(crate) fn processor() -> Result<String> {
    let cpus = fs::read_to_string("/proc/cpuinfo").context("failed to read /proc/cpuinfo")?;
    let model = cpus
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(':'))
        .map_or("unknown processor", |(_, model)| model.trim());
    let cores = std::thread::available_parallelism()?;
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease")?;
    Ok(format!("{model}, {cores} cores, Linux {}", kernel.trim()))
}

/// What a peer says of itself.
fn version(program: &str) -> Result<String> {
    let output = Command::new(program)
        .arg("--version")
        .output()
        .with_context(|| format!("failed to start {program}: is its package installed?"))?;
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}
