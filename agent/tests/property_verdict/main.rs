//! The gates against a model of their specification: a million random frames, over many random generations of tables, run
//! through the real programs on a real kernel. Needs root; fails without it.
//!
//! `CARDINAL_FRAMES` says how many frames (1000000 if absent), `CARDINAL_SEED` where to begin: the seed that a failure
//! names plays its round first.

mod answer;
mod build;
mod cable;
mod frames;
mod kernel;
mod model;
mod parse;
mod random;
mod sockets;
mod story;
mod switching;
mod tables;
mod universe;
#[path = "../netns/world.rs"]
#[allow(dead_code, reason = "each test binary uses its part of the world")]
mod world;

use std::time::Instant;

use story::{Stage, Tally};
use world::{World, inside};

fn number(name: &str, default: u64) -> u64 {
    match std::env::var(name) {
        Ok(text) => text
            .parse()
            .unwrap_or_else(|error| panic!("{name}={text}: {error}")),
        Err(_) => default,
    }
}

/// Rounds until so many frames were judged.
fn play(frames: u64, picks_up: bool) -> Tally {
    let first = number("CARDINAL_SEED", 20_260_101);
    let world = World::new(4);
    // The router's connections have addresses of the universe, to which the node needs some route.
    world.on_node("ip route add default dev lo");
    world.on_node("ip -6 route add default dev lo");
    let mut stage = Stage::new(&world, picks_up);
    let start = Instant::now();
    let tally = inside(&world.node, move || {
        let mut tally = Tally::default();
        for seed in first.. {
            if tally.frames >= frames {
                break;
            }
            stage.round(seed, &mut tally);
        }
        tally
    });
    println!("{tally}took {} s", start.elapsed().as_secs());
    tally
}

#[test]
fn property_gates_do_what_the_specification_says() {
    play(number("CARDINAL_FRAMES", 1_000_000), false).assert_meaningful();
}

#[test]
fn property_gates_pick_up_connections_that_are_older() {
    play(number("CARDINAL_FRAMES", 1_000_000) / 10, true).assert_meaningful();
}

#[test]
fn property_a_packet_sees_one_generation() {
    switching::play(number("CARDINAL_SEED", 20_260_101));
}
