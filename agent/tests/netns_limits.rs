//! Tables filled to the brim: what is new is denied or refused with the numbers, never let through. Needs root; fails without it.

#[path = "netns/rules.rs"]
#[allow(dead_code, reason = "each test binary uses its part of the rules")]
mod rules;
#[path = "netns/world.rs"]
#[allow(dead_code, reason = "each test binary uses its part of the world")]
mod world;

#[path = "netns/frames.rs"]
#[allow(dead_code, reason = "each test binary makes its own frames")]
mod frames;

use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use agent_common::{Action, Direction, Identity, Reason, Rule, RuleKey};
use cardinal_agent::datapath::{Datapath, Error, Network, Owner, Pod, ServiceAddress};
use frames::{ipv4, udp_header};
use rules::{UDP, allow};
use world::{POD_MAC, TestPod, World, echo_udp, inside, udp};

fn used(datapath: &Datapath) -> Vec<(&'static str, usize)> {
    datapath
        .map_facts()
        .expect("maps can be read")
        .into_iter()
        // Packets that the kernel sends on its own are counted at any time.
        .filter(|map| !["counters", "flows", "unassured", "hits"].contains(&map.name))
        .map(|map| (map.name, map.used))
        .collect()
}

#[test]
fn netns_what_does_not_fit_is_refused_with_the_numbers_before_the_kernel_is_touched() {
    let world = World::new(2);
    let [a, b] = [0, 1].map(|n: usize| world.pods[n].clone());
    let datapath = world.open();
    let base = |generation| {
        let mut tables = world.tables(generation, &[1, 1]);
        allow(&mut tables, 1, 2, 5353, UDP);
        tables
    };
    world.activate(&datapath, base(1));
    echo_udp(&b.netns, SocketAddr::new(b.v4, 5353));
    let before = used(&datapath);
    let size = |name: &str| {
        let maps = datapath.map_facts().expect("maps can be read");
        let map = maps.into_iter().find(|map| map.name == name);
        map.unwrap_or_else(|| panic!("no map {name}")).size
    };

    let mut identities = base(2);
    for n in 0..=size("identities") as u32 {
        let network = Network::host(Ipv4Addr::from_bits(0x0b00_0000 + n).into());
        let owner = Owner {
            identity: Identity::external(1),
            ifindex: 0,
            cell: 0,
        };
        identities.identities.insert(network, owner);
    }
    let mut policies = base(2);
    for n in 0..=size("policies") as u32 {
        let rules = [(
            RuleKey::new(Identity::NODE, 80, 6, Direction::Ingress),
            Rule::new(Action::Pass, n),
        )];
        let identity = Identity::component(1000 + n);
        policies
            .policies
            .insert(identity, rules.into_iter().collect());
    }
    let mut endpoints = base(2);
    for n in 0..=size("endpoints") as u32 {
        let pod = Pod {
            ifname: format!("none{n}"),
            // Without a component it has no flows of its own.
            identity: Identity::NONE,
            cell: 0,
            whole: None,
            lookups: agent_common::Lookups::default(),
            mac: POD_MAC,
        };
        endpoints.endpoints.insert(1_000_000 + n, pod);
    }
    let mut flows = base(2);
    for n in 0..9000 {
        let pod = Pod {
            ifname: format!("none{n}"),
            identity: Identity::component(1),
            cell: 1,
            whole: None,
            lookups: agent_common::Lookups::default(),
            mac: POD_MAC,
        };
        flows.endpoints.insert(1_000_000 + n, pod);
    }
    let mut listeners = base(2);
    for n in 0..=size("listeners") as u32 {
        let address = ServiceAddress {
            address: Ipv4Addr::from_bits(0x0c00_0000 + n).into(),
            port: 443,
            protocol: 6,
        };
        listeners.listeners.insert(address, Identity::NORTH_GATE);
    }
    for (name, tables) in [
        ("identities", identities),
        ("policies", policies),
        ("endpoints", endpoints),
        ("flows", flows),
        ("listeners", listeners),
    ] {
        let tried = {
            let datapath = datapath.clone();
            inside(&world.node, move || datapath.prepare(&tables))
        };
        let error = tried.expect_err("more than the map holds");
        let text = error.to_string();
        match error {
            Error::Capacity {
                map, needed, limit, ..
            } => {
                assert_eq!(map, name, "{text}");
                assert!(needed > limit && limit > 0, "{text}");
                assert!(
                    text.contains(&needed.to_string()) && text.contains(&limit.to_string()),
                    "{text}"
                );
            }
            other => panic!("{name}: {other}"),
        }
        assert_eq!(used(&datapath), before, "{name}");
        assert_eq!(datapath.active_generation(), 1);
        assert!(udp(&a.netns, SocketAddr::new(b.v4, 5353), 8), "{name}");
    }
}

#[test]
fn netns_notes_of_fragments_are_pushed_out_by_the_same_pods_that_may_pass_only() {
    const FIRSTS: u16 = 20_000;
    let world = World::new(4);
    let [a, b, c, d] = [0, 1, 2, 3].map(|n: usize| world.pods[n].clone());
    let datapath = world.open();
    // Cells of their own, by which the drops of each are counted.
    let mut tables = world.tables(1, &[1, 1, 2, 2]);
    allow(&mut tables, 1, 2, 5353, UDP);
    allow(&mut tables, 3, 4, 5353, UDP);
    world.activate(&datapath, tables);
    let fragment = |from: &TestPod, to: &TestPod, id: u16, place: u16, payload: &[u8]| {
        let mut frame = ipv4(from.v4, to.v4, UDP, place, payload);
        frame[18..20].copy_from_slice(&id.to_be_bytes());
        frame
    };
    let count = |cell: u32, way: Direction, reason: Reason| {
        let rows = datapath.counters().expect("counters can be read");
        rows.iter()
            .filter(|row| (row.cell, row.way, row.reason) == (cell, way, reason))
            .map(|row| row.packets)
            .sum::<u64>()
    };
    let wait = |cell, way, reason, at_least: u64| {
        let end = Instant::now() + Duration::from_secs(60);
        while count(cell, way, reason) < at_least {
            assert!(
                Instant::now() < end,
                "{way} {reason}: {} < {at_least}",
                count(cell, way, reason)
            );
            std::thread::sleep(Duration::from_millis(5));
        }
    };
    let mut payload = udp_header(5353);
    payload.extend([0; 16]);
    // c begins a packet of two fragments: c's gate notes it, and d's.
    let at_both = |frame: Vec<u8>| {
        frames::send(&c.netns, "eth0", frame.clone());
        frames::send(&world.node, &d.ifname, frame);
    };
    at_both(fragment(&c, &d, 7, 0x2000, &payload));
    for way in [Direction::Egress, Direction::Ingress] {
        wait(2, way, Reason::Policy, 1);
    }

    // The first of many fragmented packets: each is noted, the oldest of the same pod are forgotten.
    frames::send_all(
        &a.netns,
        "eth0",
        (0..FIRSTS)
            .map(|id| fragment(&a, &b, id, 0x2000, &payload))
            .collect(),
    );
    wait(
        1,
        Direction::Egress,
        Reason::Established,
        u64::from(FIRSTS) / 2,
    );
    let forgotten = count(1, Direction::Egress, Reason::Fragment);
    frames::send(&a.netns, "eth0", fragment(&a, &b, 0, 3, &[0; 16]));
    wait(1, Direction::Egress, Reason::Fragment, forgotten + 1);
    // The last one is remembered, and its rest follows it.
    let before = count(1, Direction::Egress, Reason::Established);
    frames::send(&a.netns, "eth0", fragment(&a, &b, FIRSTS - 1, 3, &[0; 16]));
    wait(1, Direction::Egress, Reason::Established, before + 1);

    // Whom d does not let in is noted nowhere.
    frames::send_all(
        &world.node,
        &d.ifname,
        (0..FIRSTS)
            .map(|id| fragment(&a, &d, id, 0x2000, &payload))
            .collect(),
    );
    wait(
        2,
        Direction::Ingress,
        Reason::NotDeclared,
        u64::from(FIRSTS) / 2,
    );

    // What c began before all that can still end, at both gates.
    at_both(fragment(&c, &d, 7, 3, &[0; 16]));
    for way in [Direction::Egress, Direction::Ingress] {
        wait(2, way, Reason::Established, 1);
        assert_eq!(count(2, way, Reason::Fragment), 0, "{way}");
    }
    frames::send(
        &world.node,
        &d.ifname,
        fragment(&a, &d, FIRSTS - 1, 3, &[0; 16]),
    );
    wait(2, Direction::Ingress, Reason::Fragment, 1);
}
