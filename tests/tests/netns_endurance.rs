//! A crash and a change, many times over: `CARDINAL_KILLS` and `CARDINAL_CHANGES` say how often, and `cargo xtask test --long`
//! has a thousand of each.

use anyhow::Result;
use tests::{
    demo::{Demo, endurance},
    programs::Programs,
};

/// Rounds of an ordinary run.
const ROUNDS: u32 = 3;

#[test]
fn netns_a_killed_agent_leaks_nothing_and_cuts_nothing_each_time() -> Result<()> {
    let rounds = endurance::rounds("CARDINAL_KILLS", ROUNDS)?;
    endurance::kills(&mut Demo::set_up(&Programs::locate()?)?, rounds)
}

#[test]
fn netns_a_changed_document_fails_no_request_each_time() -> Result<()> {
    let rounds = endurance::rounds("CARDINAL_CHANGES", ROUNDS)?;
    endurance::changes(&mut Demo::set_up(&Programs::locate()?)?, rounds)
}
