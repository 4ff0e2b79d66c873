//! Switches of generations under load: each packet is judged by one of them, at both gates. Needs root; fails without it.
//! `CARDINAL_SWITCHES` sets how many; `cargo xtask test --long` has ten thousand.

#[path = "netns/world.rs"]
#[allow(dead_code, reason = "each test binary uses its part of the world")]
mod world;

use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use agent_common::{Action, Direction, Identity, Reason, Rule, RuleKey, Verdict};
use cardinal_agent::datapath::KernelTables;
use world::{TestPod, World, inside};

const UDP: u8 = 17;
/// Allowed in even generations, denied in odd ones.
const EVEN: u16 = 1000;
/// The other way round.
const ODD: u16 = 1001;
/// The sender's gate lets it out in even generations, the receiver's lets it in in odd ones: never both.
const NEVER: u16 = 1002;
/// The other way round.
const NEVER_EITHER: u16 = 1003;

/// Switches of an ordinary run.
const SWITCHES: u32 = 200;

fn switches() -> u32 {
    match std::env::var("CARDINAL_SWITCHES") {
        Ok(text) => text.parse().expect("CARDINAL_SWITCHES is a number"),
        Err(_) => SWITCHES,
    }
}

fn tables(world: &World, generation: u32) -> KernelTables {
    let mut tables = world.tables(generation, &[1, 2]);
    let even = generation.is_multiple_of(2);
    let mut rule = |of: u32, peer: u32, port, direction, passes: bool| {
        let key = RuleKey::new(Identity::component(peer), port, UDP, direction);
        let action = if passes { Action::Pass } else { Action::Deny };
        let rules = tables.policies.get_mut(&Identity::component(of));
        rules
            .expect("it has a pod")
            .insert(key, Rule::new(action, port.into()));
    };
    for (port, out, back) in [
        (EVEN, even, even),
        (ODD, !even, !even),
        (NEVER, even, !even),
        (NEVER_EITHER, !even, even),
    ] {
        rule(1, 2, port, Direction::Egress, out);
        rule(2, 1, port, Direction::Ingress, back);
    }
    tables
}

/// Sends to all four ports, from sockets that stay and from ones that come and go, until told to end.
fn flood(
    from: &TestPod,
    to: &TestPod,
    v6: bool,
    end: &Arc<AtomicBool>,
) -> std::thread::JoinHandle<u64> {
    let (netns, end) = (from.netns.clone(), Arc::clone(end));
    let to = if v6 { to.v6 } else { to.v4 };
    std::thread::spawn(move || {
        inside(&netns, move || {
            let any = if v6 { "[::]:0" } else { "0.0.0.0:0" };
            let kept = UdpSocket::bind(any).expect("any port");
            let mut sent = 0;
            while !end.load(Ordering::Relaxed) {
                let fresh = UdpSocket::bind(any).expect("any port");
                for port in [EVEN, ODD, NEVER, NEVER_EITHER] {
                    for socket in [&kept, &fresh] {
                        // A full queue of the socket is no drop of ours.
                        sent +=
                            u64::from(socket.send_to(&[0; 16], SocketAddr::new(to, port)).is_ok());
                    }
                }
            }
            sent
        })
    })
}

#[test]
fn netns_no_packet_is_judged_half_by_one_generation_and_half_by_the_next() {
    let world = World::new(2);
    let [a, b] = [0, 1].map(|n: usize| world.pods[n].clone());
    let datapath = world.open();
    let mut events = datapath.take_events().expect("the first reader");
    let sinks: Vec<(u16, UdpSocket)> = [b.v4, b.v6]
        .into_iter()
        .flat_map(|address| [EVEN, ODD, NEVER, NEVER_EITHER].map(|port| (address, port)))
        .map(|(address, port)| {
            let socket = inside(&b.netns, move || UdpSocket::bind((address, port)));
            let socket = socket.expect("the pod's own address");
            socket.set_nonblocking(true).expect("a socket");
            (port, socket)
        })
        .collect();
    world.activate(&datapath, tables(&world, 1));
    let end = Arc::new(AtomicBool::new(false));
    let floods = [false, true].map(|v6| flood(&a, &b, v6, &end));
    let (mut arrived, mut told) = ([0u64; 4], 0u64);
    let mut look = |events: &mut cardinal_agent::datapath::EventReader| {
        let mut buffer = [0; 64];
        for (port, socket) in &sinks {
            while socket.recv(&mut buffer).is_ok() {
                arrived[usize::from(port - EVEN)] += 1;
            }
        }
        while let Some(event) = events.try_next() {
            let port = u16::from_be_bytes(event.destination_port);
            let Some(verdict) = event.verdict().filter(|_| event.protocol == UDP) else {
                continue;
            };
            let even = event.generation.is_multiple_of(2);
            let out = event.hook().name() == "cell_egress";
            let passes = match (port, out) {
                (EVEN, _) | (NEVER, true) | (NEVER_EITHER, false) => even,
                (ODD, _) | (NEVER, false) | (NEVER_EITHER, true) => !even,
                _ => continue,
            };
            told += 1;
            assert_eq!(verdict == Verdict::Pass, passes, "{event:?}");
            assert!(
                passes || event.reason() == Some(Reason::Denied),
                "{event:?}"
            );
        }
    };
    let switches = switches();
    for generation in 2..2 + switches {
        world.activate(&datapath, tables(&world, generation));
        datapath.retire(generation - 1).expect("not the active one");
        look(&mut events);
    }
    end.store(true, Ordering::Relaxed);
    let sent: u64 = floods
        .into_iter()
        .map(|flood| flood.join().expect("the flood ends"))
        .sum();
    std::thread::sleep(Duration::from_millis(50));
    look(&mut events);
    println!("{switches} switches, {sent} packets sent, {arrived:?} arrived, {told} events");
    assert!(arrived[0] > 0 && arrived[1] > 0, "{arrived:?}");
    assert_eq!(arrived[2..], [0, 0], "judged by two generations");
    assert!(told > 0);
}
