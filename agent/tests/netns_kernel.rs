//! What a kernel must be able to do before any verdict counts: accept the programs, and run them at an interface. Needs
//! root; fails without it. `cargo xtask test vm` runs this on the oldest kernels that are supported.

#[path = "netns/world.rs"]
#[allow(dead_code, reason = "each test binary uses its part of the world")]
mod world;

use std::net::SocketAddr;

use cardinal_agent::datapath::GateHook;
use world::{World, chain, echo_tcp, tcp};

/// The first kernel with tcx.
const TCX: (u32, u32) = (6, 6);

/// Major and minor version of the running kernel.
fn version() -> (u32, u32) {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").expect("/proc is mounted");
    let mut numbers = release.split(['.', '-']).map(|number| {
        number
            .trim()
            .parse()
            .unwrap_or_else(|_| panic!("a release starts with numbers: {release}"))
    });
    let mut next = || numbers.next().expect("a release has two numbers");
    (next(), next())
}

/// Gates close with the first generation, whichever hook holds them: nothing is declared in it.
#[track_caller]
fn gates_close(hook: GateHook, expected: &str) {
    let world = World::new(2);
    let [a, b] = [0, 1].map(|n: usize| world.pods[n].clone());
    let places = [b.v4, b.v6].map(|ip| SocketAddr::new(ip, 8080));
    for place in places {
        echo_tcp(&b.netns, place);
        assert!(tcp(&a.netns, place), "{place} before there are gates");
    }
    let datapath = world
        .try_open(hook)
        .unwrap_or_else(|error| panic!("{}", chain(&error)));
    let facts = datapath.facts();
    assert_eq!(facts.hook, expected, "on kernel {}", facts.kernel);
    for program in &facts.programs {
        println!("{program:?}");
        assert!(
            program.jited_bytes > 0,
            "{} runs as machine code",
            program.name
        );
    }
    for name in ["cell_egress", "cell_ingress", "listen", "steer_connect4"] {
        assert!(
            facts.programs.iter().any(|program| program.name == name),
            "{name} is loaded"
        );
    }
    world.activate(&datapath, world.tables(1, &[1, 2]));
    for place in places {
        assert!(
            !tcp(&a.netns, place),
            "{place} once there are gates at {expected}"
        );
    }
}

#[test]
fn netns_the_kernel_takes_every_program_and_gates_close_at_the_newest_hook() {
    let newest = if version() >= TCX { "tcx" } else { "clsact" };
    gates_close(GateHook::Auto, newest);
}

#[test]
fn netns_the_kernel_takes_every_program_and_gates_close_at_clsact() {
    gates_close(GateHook::Clsact, "clsact");
}
