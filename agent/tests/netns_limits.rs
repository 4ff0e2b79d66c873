//! Tables filled to the brim: what is new is denied or refused with the numbers, never let through. Needs root; fails without it.

#[path = "netns/world.rs"]
#[allow(dead_code, reason = "each test binary uses its part of the world")]
mod world;

#[path = "netns/frames.rs"]
#[allow(dead_code, reason = "each test binary makes its own frames")]
mod frames;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use agent_common::{Action, Direction, Identity, Reason, Rule, RuleKey};
use cardinal_agent::datapath::{
    Datapath, Error, KernelTables, Network, Owner, Pod, ServiceAddress,
};
use frames::{ipv4, udp_header};
use world::{POD_MAC, World, echo_udp, inside, udp};

const UDP: u8 = 17;

fn allow(tables: &mut KernelTables, from: u32, to: u32, port: u16) {
    let sides = [
        (from, to, Direction::Egress),
        (to, from, Direction::Ingress),
    ];
    for (of, peer, direction) in sides {
        let key = RuleKey::new(Identity::component(peer), port, UDP, direction);
        let rules = tables.policies.get_mut(&Identity::component(of));
        rules
            .expect("it has a pod")
            .insert(key, Rule::new(Action::Pass, 7));
    }
}

fn used(datapath: &Datapath) -> Vec<(&'static str, usize)> {
    datapath
        .map_facts()
        .expect("maps can be read")
        .into_iter()
        // Packets that the kernel sends on its own are counted at any time.
        .filter(|map| !["counters", "flows", "hits"].contains(&map.name))
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
        allow(&mut tables, 1, 2, 5353);
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
fn netns_a_full_table_of_fragments_drops_what_it_forgot() {
    const FIRSTS: u16 = 20_000;
    let world = World::new(2);
    let [a, b] = [0, 1].map(|n: usize| world.pods[n].clone());
    let datapath = world.open();
    let mut tables = world.tables(1, &[1, 1]);
    allow(&mut tables, 1, 2, 5353);
    world.activate(&datapath, tables);
    let (from, to) = (a.v4, b.v4);
    let fragment = move |from: IpAddr, to, id: u16, place: u16, payload: &[u8]| {
        let mut frame = ipv4(from, to, UDP, place, payload);
        frame[18..20].copy_from_slice(&id.to_be_bytes());
        frame
    };
    let count = |reason: Reason| {
        let rows = datapath.counters().expect("counters can be read");
        rows.iter()
            .filter(|row| (row.way, row.reason) == (Direction::Egress, reason))
            .map(|row| row.packets)
            .sum::<u64>()
    };
    let wait = |reason, at_least: u64| {
        let end = Instant::now() + Duration::from_secs(10);
        while count(reason) < at_least {
            assert!(
                Instant::now() < end,
                "{reason}: {} < {at_least}",
                count(reason)
            );
            std::thread::sleep(Duration::from_millis(5));
        }
    };
    // The first of many fragmented packets: each is noted, the oldest are forgotten.
    let netns = a.netns.clone();
    let mut payload = udp_header(5353);
    payload.extend([0; 16]);
    frames::send_all(
        &netns,
        "eth0",
        (0..FIRSTS)
            .map(|id| fragment(from, to, id, 0x2000, &payload))
            .collect(),
    );
    wait(Reason::Established, u64::from(FIRSTS) / 2);
    let forgotten = count(Reason::Fragment);
    frames::send(&netns, "eth0", fragment(from, to, 0, 3, &[0; 16]));
    wait(Reason::Fragment, forgotten + 1);
    // The last one is remembered, and its rest follows it.
    let before = count(Reason::Established);
    frames::send(&netns, "eth0", fragment(from, to, FIRSTS - 1, 3, &[0; 16]));
    wait(Reason::Established, before + 1);
}
