//! A crash and a change, many times over. `cargo xtask test --long` sets the number of rounds to a thousand.

use anyhow::{Context as _, Result};
use tests::{
    demo::{Demo, endurance},
    programs::Programs,
};

/// Rounds of an ordinary run.
const ROUNDS: u32 = 3;

fn rounds() -> Result<u32> {
    match std::env::var("CARDINAL_ROUNDS") {
        Ok(text) => text
            .parse()
            .with_context(|| format!("CARDINAL_ROUNDS is `{text}`, expected a number")),
        Err(_) => Ok(ROUNDS),
    }
}

#[test]
fn netns_a_killed_agent_leaks_nothing_and_cuts_nothing_each_time() -> Result<()> {
    endurance::kills(&mut Demo::set_up(&Programs::locate()?)?, rounds()?)
}

#[test]
fn netns_a_changed_document_fails_no_request_each_time() -> Result<()> {
    endurance::changes(&mut Demo::set_up(&Programs::locate()?)?, rounds()?)
}

#[test]
fn netns_a_hundred_connections_talk_on_while_agents_come_and_go() -> Result<()> {
    endurance::takeovers(&mut Demo::set_up(&Programs::locate()?)?, rounds()?.min(20))
}
