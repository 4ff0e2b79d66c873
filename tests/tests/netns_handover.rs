//! Agents that take each other's place while clients ask the router: `CARDINAL_HANDOVERS` says how often, and
//! `cargo xtask test --long` has fifty.

use anyhow::Result;
use tests::{
    demo::{Demo, endurance, handover},
    programs::Programs,
};

/// Rounds of an ordinary run.
const ROUNDS: u32 = 5;

#[test]
fn netns_no_request_fails_while_agents_take_each_others_place() -> Result<()> {
    let rounds = endurance::rounds("CARDINAL_HANDOVERS", ROUNDS)?;
    handover::handovers(&mut Demo::set_up(&Programs::locate()?)?, rounds)
}

#[test]
fn netns_an_agent_goes_on_when_the_next_one_deserts() -> Result<()> {
    handover::deserted(&mut Demo::set_up(&Programs::locate()?)?)
}

#[test]
fn netns_a_node_is_served_whichever_agent_is_killed_while_one_takes_over() -> Result<()> {
    let rounds = endurance::rounds("CARDINAL_HANDOVERS", ROUNDS)?;
    handover::killed_half_way(
        &mut Demo::set_up(&Programs::locate()?)?,
        rounds.div_ceil(ROUNDS),
    )
}
