//! Turns, as for the datapath: every probe of a scenario sends for a slice of time, forwards and backwards through the
//! list; a round's cost of a probe is its CPU time over the requests of all its slices in the round.

use std::{collections::BTreeMap, process::Command, time::Duration};

use anyhow::{Context as _, Result, bail, ensure};
use tests::interrupt;

use super::{
    client::{Client, Done},
    scenarios::{Ask, Base, Claim, Figure, Probe, Scenario},
    side::{Setup, Side},
};
use crate::{
    measure::progress,
    rows::{Row, Spread},
};

/// Sent before anything counts.
const WARM_UP: Duration = Duration::from_millis(300);
/// HTTP/2 connections, and streams of each.
const H2: [&str; 4] = ["--clients", "8", "--max-concurrent-streams", "32"];
/// Bytes that `h2load` asks for at a time; as many requests as that makes, within limits.
const H2_BYTES: usize = 256 << 20;

/// How long and how often.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plan {
    pub(crate) rounds: usize,
    pub(crate) slices: usize,
    pub(crate) slice: Duration,
}

/// The sides that run.
pub(crate) type Sides = BTreeMap<Setup, Side>;

/// One probe's figures, a round each.
#[derive(Default)]
struct Series {
    /// Microseconds of CPU per request.
    cpu: Vec<f64>,
    /// Microseconds.
    p50: Vec<f64>,
    p99: Vec<f64>,
    /// Requests per second.
    rate: Vec<f64>,
}

impl Series {
    fn of(&self, figure: Figure) -> &[f64] {
        match figure {
            Figure::Cpu => &self.cpu,
            Figure::P50 => &self.p50,
            Figure::P99 => &self.p99,
        }
    }
}

/// Plays a scenario; gives a row for each claim. `verify` gives the microseconds of one bare verification of a token.
pub(crate) fn play(
    sides: &Sides,
    scenario: &Scenario,
    plan: &Plan,
    verify: &dyn Fn() -> Result<f64>,
) -> Result<Vec<Row>> {
    let mut generators = Vec::new();
    for probe in &scenario.probes {
        let side = sides.get(&probe.setup).context("a side was not started")?;
        let mut generator = Generator::new(probe, side)?;
        generator
            .send(WARM_UP)
            .with_context(|| probe.setup.name())?;
        generators.push((side, generator));
    }
    let mut series: Vec<Series> = Vec::new();
    series.resize_with(scenario.probes.len(), Series::default);
    let mut verified = Vec::new();
    for round in 0..plan.rounds {
        progress(&scenario.name, round, plan.rounds)?;
        let mut sums: Vec<(Duration, Duration, Done)> = Vec::new();
        sums.resize_with(scenario.probes.len(), Default::default);
        for slice in 0..plan.slices {
            let mut order: Vec<usize> = (0..generators.len()).collect();
            if (round + slice) % 2 == 1 {
                order.reverse();
            }
            for at in order {
                interrupt::check()?;
                let (side, generator) = &mut generators[at];
                let (cpu, start) = (side.cpu()?, std::time::Instant::now());
                let done = generator.send(plan.slice);
                let done = done.with_context(|| scenario.probes[at].setup.name())?;
                let sum = &mut sums[at];
                sum.0 += side.cpu()? - cpu;
                sum.1 += start.elapsed();
                sum.2.count += done.count;
                sum.2.times.extend(done.times);
            }
        }
        if scenario
            .claims
            .iter()
            .any(|claim| matches!(claim.base, Base::Verify(_)))
        {
            verified.push(verify()?);
        }
        for (series, (cpu, time, mut done)) in series.iter_mut().zip(sums) {
            ensure!(done.count > 0, "no request was answered");
            let count = done.count as f64;
            series.cpu.push(cpu.as_secs_f64() * 1e6 / count);
            series.rate.push(count / time.as_secs_f64());
            done.times.sort_unstable();
            let at = |part: f64| {
                let place = (done.times.len().saturating_sub(1)) as f64 * part;
                done.times
                    .get(place as usize)
                    .map_or(f64::NAN, |nanos| f64::from(*nanos) / 1000.0)
            };
            series.p50.push(at(0.5));
            series.p99.push(at(0.99));
        }
    }
    progress(&scenario.name, plan.rounds, plan.rounds)?;
    let best = best_peer(scenario, &series);
    scenario
        .claims
        .iter()
        .map(|claim| row(scenario, claim, &series, best, &verified))
        .collect()
}

/// The peer that needs the least CPU.
fn best_peer(scenario: &Scenario, series: &[Series]) -> Option<usize> {
    let peer = |at: &usize| {
        matches!(
            scenario.probes[*at].setup,
            Setup::Nginx | Setup::Haproxy | Setup::Envoy
        )
    };
    let cost = |at: &usize| Spread::of(&series[*at].cpu).median;
    (0..series.len())
        .filter(peer)
        .min_by(|a, b| cost(a).total_cmp(&cost(b)))
}

fn row(
    scenario: &Scenario,
    claim: &Claim,
    series: &[Series],
    best: Option<usize>,
    verified: &[f64],
) -> Result<Row> {
    let of = series[claim.of].of(claim.figure);
    let ratios: Vec<f64> = match claim.base {
        Base::Verify(without) => {
            let without = series[without].of(claim.figure);
            let more = of.iter().zip(without).map(|(of, without)| of - without);
            more.zip(verified)
                .map(|(more, verify)| more / verify)
                .collect()
        }
        Base::Probe(at) => ratios(of, series[at].of(claim.figure)),
        Base::BestPeer => {
            let at = best.context("no peer was measured")?;
            ratios(of, series[at].of(claim.figure))
        }
    };
    let first = scenario
        .claims
        .first()
        .is_some_and(|one| one.name == claim.name);
    let mut notes: Vec<String> = scenario
        .probes
        .iter()
        .zip(series)
        // Once per scenario is enough.
        .filter(|_| first)
        .map(|(probe, series)| {
            let median = |figure| Spread::of(series.of(figure)).median;
            let mut note = format!("{} {:.2} µs CPU", probe.setup.name(), median(Figure::Cpu));
            if matches!(probe.ask, Ask::Http1(_)) {
                note += &format!(
                    ", p50 {:.0}, p99 {:.0} µs",
                    median(Figure::P50),
                    median(Figure::P99)
                );
            }
            note + &format!(", {:.0}/s", Spread::of(&series.rate).median)
        })
        .collect();
    if let Base::Verify(_) = claim.base {
        notes.push(format!("verify {:.2} µs", Spread::of(verified).median));
    }
    let name = format!("{}: {}", scenario.name, claim.name);
    Ok(Row::new(&name, &ratios, claim.bar, notes.join("; ")))
}

fn ratios(of: &[f64], base: &[f64]) -> Vec<f64> {
    of.iter().zip(base).map(|(of, base)| of / base).collect()
}

enum Generator {
    Http1(Box<Client>),
    Http2 { url: String, size: usize },
}

impl Generator {
    fn new(probe: &Probe, side: &Side) -> Result<Self> {
        Ok(match &probe.ask {
            Ask::Http1(load) => {
                let to = match load.tls {
                    Some(_) => side.ports.tls,
                    None => side.ports.plain,
                };
                Self::Http1(Box::new(Client::new(load.clone(), to)?))
            }
            Ask::Http2 { tls, path, size } => {
                let (scheme, to) = match tls {
                    true => ("https", side.ports.tls),
                    false => ("http", side.ports.h2c),
                };
                Self::Http2 {
                    url: format!("{scheme}://{to}{path}"),
                    size: *size,
                }
            }
        })
    }

    fn send(&mut self, time: Duration) -> Result<Done> {
        match self {
            Self::Http1(client) => client.run(time),
            Self::Http2 { url, size } => h2load(url, *size, time),
        }
    }
}

/// Sends by `h2load`, and compares what it counted with what was asked for. The time of a slice says how many requests;
/// that its connections are new is a small part of them.
fn h2load(url: &str, size: usize, time: Duration) -> Result<Done> {
    let millis = usize::try_from(time.as_millis())?;
    let count = (H2_BYTES / size).clamp(20, 100) * millis;
    // It inherits this process's core.
    let output = Command::new("h2load")
        .args(H2)
        .args(["--requests", &count.to_string()])
        .args(["--header", &format!(":authority: {}", super::HOST)])
        .args(["--header", &format!("{}: key-7", super::wire::KEY)])
        .arg(url)
        .output()
        .context("failed to start h2load: is nghttp2-client installed?")?;
    let text = String::from_utf8_lossy(&output.stdout);
    let says = |words: &[String]| {
        text.lines()
            .any(|line| words.iter().all(|word| line.contains(word)))
    };
    let all = says(&[format!("{count} succeeded"), "0 failed, 0 errored".into()])
        && says(&["status codes".into(), format!("{count} 2xx")])
        && says(&["traffic:".into(), format!("({}) data", count * size)]);
    if !all {
        bail!(
            "h2load did not get {count} answers of {size} bytes:\n{text}{}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
    Ok(Done {
        count: count as u64,
        times: Vec::new(),
    })
}
