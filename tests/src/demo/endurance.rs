//! The same crash and the same change, many times: what must hold once must hold each time.

use std::{
    env, fs,
    net::SocketAddr,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};

use super::{
    lifecycle::{CHANGE, end, hold, load, still_answers},
    scene::{Demo, LEDGER, Spot},
};
use crate::{
    peer::{KnockReport, Outcome, Running, SteadyReport},
    world::Family,
};

/// Memory that an agent may have after many changes, in kilobytes resident.
const MEMORY_KB: u64 = 256 << 10;

/// How long a witness may take to begin, and an agent to end.
const START: Duration = Duration::from_secs(60);
/// How long a witness may take to end: longer than it waits for a lost connection.
const LOST: Duration = Duration::from_secs(40);

/// How often, by the variable that says so.
///
/// # Errors
/// The variable is not a number.
pub fn rounds(variable: &str, ordinary: u32) -> Result<u32> {
    match env::var(variable) {
        Ok(text) => text
            .parse()
            .with_context(|| format!("{variable} is `{text}`, expected a number")),
        Err(_) => Ok(ordinary),
    }
}

/// Kills the agent, over and over. Each time, without an agent and with the next one: a connection that was never declared is
/// dropped, and the same declared connections, opened before the first kill, answer.
///
/// # Errors
/// The first round in which that did not hold.
pub fn kills(demo: &mut Demo, rounds: u32) -> Result<()> {
    let mut held = Vec::new();
    for family in Family::BOTH {
        held.push(Ok(hold(demo, family)?));
    }
    let begun = Instant::now();
    for round in 1..=rounds {
        demo.agent.kill()?;
        for alive in [false, true] {
            if alive {
                demo.restart_agent()?;
            }
            let when = if alive {
                "with the next agent"
            } else {
                "without an agent"
            };
            let mut denied = Vec::new();
            for family in Family::BOTH {
                let to = SocketAddr::new(LEDGER.of(family), 7000).to_string();
                let arguments = ["tcp", "--to", &to, "--timeout-ms", "200"];
                denied.push(Running::start(
                    "peer tcp",
                    demo.peer(Spot::Web, &arguments),
                )?);
            }
            for connection in &mut held {
                let answer = still_answers(connection)?;
                ensure!(
                    answer.actual == "passed",
                    "round {round}, {when}: the open connection says {}",
                    answer.actual
                );
            }
            for denied in &mut denied {
                let denied: Outcome = denied.next(START)?;
                ensure!(
                    denied.outcome == "timeout",
                    "round {round}, {when}: what nobody declared is {}",
                    denied.outcome
                );
            }
        }
    }
    println!(
        "{rounds} kills in {} s: {} attempts of what nobody declared, 0 leaks; {} open connections answered each time",
        begun.elapsed().as_secs(),
        4 * rounds,
        held.len()
    );
    Ok(())
}

/// Kills the agent and ends it in turn, each time with another one in its place, while many declared connections talk without a
/// pause and somebody undeclared calls without a pause. No connection may be lost, and nothing may come back to the caller. How
/// long they had to wait is printed, and no error: it is the machine's as much as the agent's.
///
/// # Errors
/// What did not hold.
pub fn takeovers(demo: &mut Demo, rounds: u32) -> Result<()> {
    let mut talks = Vec::new();
    for family in Family::BOTH {
        let to = SocketAddr::new(LEDGER.of(family), 7000).to_string();
        let arguments = ["steady", "--to", &to, "--connections", "50"];
        let mut steady = Running::start("peer steady", demo.peer(Spot::Orders, &arguments))?;
        steady.wait_for(START, |line| line["event"] == "ready")?;
        let arguments = ["knock", "--to", &to, "--callers", "10"];
        let mut knock = Running::start("peer knock", demo.peer(Spot::Web, &arguments))?;
        knock.wait_for(START, |line| line["event"] == "ready")?;
        talks.push((family, steady, knock));
    }
    let begun = Instant::now();
    for _ in 0..rounds {
        demo.agent.kill()?;
        demo.restart_agent()?;
        demo.agent.end(START)?;
        demo.restart_agent()?;
    }
    println!(
        "{rounds} kills and {rounds} ends in {} s",
        begun.elapsed().as_secs()
    );
    let mut reports = Vec::new();
    for (family, mut steady, mut knock) in talks {
        steady.finish();
        let talked: SteadyReport = steady.next(LOST)?;
        knock.finish();
        let knocked: KnockReport = knock.next(LOST)?;
        println!(
            "{}: {} of {} connections lost, {} exchanges, longest gap {} us; {} probes, longest gap {} us, {} leaks",
            family.name(),
            talked.lost.len(),
            talked.connections,
            talked.exchanges,
            talked.longest_us,
            knocked.probes,
            knocked.longest_gap_us,
            knocked.leaks.len()
        );
        reports.push((talked, knocked));
    }
    for (talked, knocked) in reports {
        ensure!(talked.lost.is_empty(), "{:?}", talked.lost);
        ensure!(talked.exchanges > 0, "nothing was said");
        ensure!(knocked.leaks.is_empty(), "{:?}", knocked.leaks);
        ensure!(knocked.probes > 0, "nothing was probed");
    }
    Ok(())
}

/// Changes a document, over and over, under requests of a client. No request may fail, each change must be taken over, and the agent
/// must not grow.
///
/// # Errors
/// What did not hold.
pub fn changes(demo: &mut Demo, rounds: u32) -> Result<()> {
    let file = demo.config().join("routing.yaml");
    let text = fs::read_to_string(&file)?;
    let other = text.replace("defaultPlacement: tier3", "defaultPlacement: tier1");
    if other == text {
        bail!("routing.yaml has no default placement tier3");
    }
    let load = load(demo)?;
    for round in 1..=rounds {
        let before = generation(demo)?;
        let new = demo.config().join(".routing.yaml.new");
        fs::write(&new, if round % 2 == 1 { &other } else { &text })?;
        fs::rename(&new, &file)?;
        demo.agent
            .wait_status(CHANGE, "taking over a change", |status| {
                status["config"]["generation"]
                    .as_u64()
                    .is_some_and(|now| now > before)
            })
            .with_context(|| format!("round {round}"))?;
    }
    let report = end(load)?;
    ensure!(
        report.failed == 0,
        "{} of {} requests failed: {:?}",
        report.failed,
        report.requests,
        report.failures
    );
    let memory = demo.agent.resident_kb()?;
    ensure!(
        memory < MEMORY_KB,
        "the agent has {memory} kB after {rounds} changes"
    );
    println!(
        "{rounds} changes, {} requests, {memory} kB resident",
        report.requests
    );
    Ok(())
}

fn generation(demo: &Demo) -> Result<u64> {
    demo.agent.status()?["config"]["generation"]
        .as_u64()
        .context("the status has no generation")
}
