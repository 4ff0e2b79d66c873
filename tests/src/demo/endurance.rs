//! The same crash and the same change, many times: what must hold once must hold each time.

use std::{fs, net::SocketAddr};

use anyhow::{Context as _, Result, bail, ensure};

use super::{
    lifecycle::{CHANGE, end, hold, load, still_answers},
    scene::{Demo, LEDGER, Spot},
};
use crate::world::Family;

/// Memory that an agent may have after many changes, in kilobytes resident.
const MEMORY_KB: u64 = 256 << 10;

/// Kills the agent, over and over. Each time, without an agent and with the next one: a connection that was never declared is
/// dropped, and the same declared connections, opened before the first kill, answer.
///
/// # Errors
/// The first round in which that did not hold.
pub fn kills(demo: &mut Demo, rounds: u32) -> Result<()> {
    let mut held = Vec::new();
    for family in Family::BOTH {
        held.push((family, Ok(hold(demo, family)?)));
    }
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
            for (family, connection) in &mut held {
                let answer = still_answers(connection)?;
                ensure!(
                    answer.actual == "passed",
                    "round {round}, {when}: the open connection says {}",
                    answer.actual
                );
                let to = SocketAddr::new(LEDGER.of(*family), 7000).to_string();
                let denied = demo.probe(Spot::Web, &["tcp", "--to", &to, "--timeout-ms", "200"])?;
                ensure!(
                    denied.outcome == "timeout",
                    "round {round}, {when}: what nobody declared is {}",
                    denied.outcome
                );
            }
        }
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
