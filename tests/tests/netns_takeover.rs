//! Agents that come and go under a hundred connections: `CARDINAL_TAKEOVERS` says how often, and `cargo xtask test --long` has
//! twenty kills and twenty ends. Alone in its program, since it measures.

use anyhow::Result;
use tests::{
    demo::{Demo, endurance},
    programs::Programs,
};

/// Rounds of an ordinary run.
const ROUNDS: u32 = 3;

#[test]
fn netns_a_hundred_connections_talk_on_while_agents_come_and_go() -> Result<()> {
    let rounds = endurance::rounds("CARDINAL_TAKEOVERS", ROUNDS)?;
    endurance::takeovers(&mut Demo::set_up(&Programs::locate()?)?, rounds)
}
