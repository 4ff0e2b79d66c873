//! Turns: every side of a comparison sends for a slice of time, forwards and backwards through the list, and a round's
//! cost of a side is the median of its slices. What slows the machine for a while slows all of them, and what slows it for
//! a moment spoils one slice.

use std::{
    collections::BTreeMap,
    io::{IsTerminal as _, Write as _, stderr},
    net::IpAddr,
    time::Duration,
};

use anyhow::{Context as _, Result};
use tests::interrupt;

use crate::{
    load::{Done, Kind},
    rows::{Bar, Row, Spread},
    side::{From, Setup, Side},
};

/// Sent before anything counts.
const WARM_UP: Duration = Duration::from_millis(150);
/// How long programs are counted for the notes.
const PROFILE: Duration = Duration::from_millis(200);
/// Less CPU than this part of the time says that somebody else was on the core.
const ALONE: f64 = 0.9;

/// What one side of a comparison does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Probe {
    /// What the node does.
    pub(crate) setup: Setup,
    /// Who sends.
    pub(crate) from: From,
    /// What.
    pub(crate) kind: Kind,
    /// Whereto.
    pub(crate) to: (IpAddr, u16),
}

/// A row to be: the cost of one probe over that of another.
#[derive(Clone, Debug)]
pub(crate) struct Spec {
    /// Its name.
    pub(crate) scenario: String,
    /// What is judged.
    pub(crate) of: Probe,
    /// What it is compared with.
    pub(crate) base: Probe,
    /// What is asked of it.
    pub(crate) bar: Bar,
}

/// How long and how often.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plan {
    /// Rounds; else what the bars need.
    pub(crate) rounds: Option<usize>,
    /// Slices of a round.
    pub(crate) slices: usize,
    /// Time of a slice.
    pub(crate) slice: Duration,
}

/// The sides that exist.
pub(crate) type Sides = BTreeMap<Setup, Side>;

/// Plays specs that share their rounds; gives a row for each.
pub(crate) fn play(sides: &mut Sides, specs: &[Spec], plan: &Plan) -> Result<Vec<Row>> {
    let mut probes: Vec<Probe> = specs.iter().flat_map(|spec| [spec.base, spec.of]).collect();
    probes.sort();
    probes.dedup();
    let rounds = plan
        .rounds
        .or_else(|| specs.iter().map(|spec| spec.bar.rounds()).max())
        .unwrap_or(1);
    for probe in &probes {
        send(sides, probe, WARM_UP)?;
    }
    let mut costs: BTreeMap<Probe, Vec<f64>> = BTreeMap::new();
    let mut watch = Watch::default();
    for round in 0..rounds {
        progress(&specs[0].scenario, round, rounds)?;
        let mut slices: BTreeMap<Probe, Vec<f64>> = BTreeMap::new();
        for slice in 0..plan.slices {
            let mut order = probes.clone();
            if (round + slice) % 2 == 1 {
                order.reverse();
            }
            for probe in order {
                let done = send(sides, &probe, plan.slice)?;
                watch.note(&probe, &done);
                let cost = done.nanos as f64 / done.count as f64;
                slices.entry(probe).or_default().push(cost);
            }
        }
        for (probe, slices) in slices {
            let cost = Spread::of(&slices).median;
            costs.entry(probe).or_default().push(cost);
        }
    }
    progress(&specs[0].scenario, rounds, rounds)?;
    specs
        .iter()
        .map(|spec| row(sides, spec, &costs, &watch))
        .collect()
}

fn send(sides: &mut Sides, probe: &Probe, time: Duration) -> Result<Done> {
    interrupt::check()?;
    sides
        .get_mut(&probe.setup)
        .with_context(|| format!("{:?} was not made", probe.setup))?
        .send(probe.from, probe.kind, probe.to, time)
        .with_context(|| format!("with {:?}", probe.setup))
}

fn row(
    sides: &mut Sides,
    spec: &Spec,
    costs: &BTreeMap<Probe, Vec<f64>>,
    watch: &Watch,
) -> Result<Row> {
    let of = costs.get(&spec.of).context("a probe was not measured")?;
    let base = costs.get(&spec.base).context("a probe was not measured")?;
    let ratios: Vec<f64> = of
        .iter()
        .zip(base)
        .map(|(of, base)| match spec.of.kind {
            // Of throughputs, not of the time that a byte takes.
            Kind::Bulk => base / of,
            _ => of / base,
        })
        .collect();
    let mut notes = format!(
        "{} against {}",
        figure(spec.of.kind, Spread::of(of).median),
        figure(spec.base.kind, Spread::of(base).median)
    );
    let profile = match sides.get(&spec.of.setup).and_then(Side::profiler) {
        Some(profiler) => {
            let profiler = profiler.clone();
            profiler.during(|| Ok(send(sides, &spec.of, PROFILE)?.count))?
        }
        None => String::new(),
    };
    // Per byte nothing can be said of programs that run per packet.
    if !profile.is_empty() && spec.of.kind != Kind::Bulk {
        notes += &format!("; {profile}");
    }
    if let Some(side) = sides.get(&spec.of.setup)
        && let Some(remark) = side.remark()?
    {
        notes += &format!("; {remark}");
    }
    notes += &watch.words();
    Ok(Row::new(&spec.scenario, &ratios, spec.bar, notes))
}

/// A cost in words: time for each, or throughput of a stream.
fn figure(kind: Kind, nanos: f64) -> String {
    match kind {
        Kind::Bulk => format!("{:.1} Gbit/s", 8.0 / nanos),
        _ => format!("{:.2} µs", nanos / 1000.0),
    }
}

/// Says on standard error how far a comparison is.
pub(crate) fn progress(scenario: &str, round: usize, rounds: usize) -> Result<()> {
    let mut out = stderr().lock();
    if out.is_terminal() {
        let end = if round == rounds { "\r\x1b[K" } else { "" };
        write!(out, "\r\x1b[K{scenario}: round {round} of {rounds}{end}")?;
        out.flush()?;
    } else if round == 0 {
        writeln!(out, "{scenario}: {rounds} rounds")?;
    }
    Ok(())
}

/// What makes figures doubtful.
#[derive(Debug, Default)]
struct Watch {
    shares: Vec<f64>,
    sent: u64,
    lost: u64,
}

impl Watch {
    fn note(&mut self, probe: &Probe, done: &Done) {
        // The router's part is another process'.
        if !matches!(probe.setup, Setup::Router(_)) {
            self.shares.push(done.cpu_nanos as f64 / done.nanos as f64);
        }
        self.lost += done.lost;
        self.sent += done.lost + done.count;
    }

    fn words(&self) -> String {
        let mut words = String::new();
        let share = Spread::of(&self.shares).median;
        if share < ALONE {
            words += &format!("; only {:.0} % of the core", share * 100.0);
        }
        if self.lost * 1000 > self.sent {
            words += &format!("; {} of {} datagrams lost", self.lost, self.sent);
        }
        words
    }
}
