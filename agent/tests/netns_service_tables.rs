//! The tables of services: what a change costs, what is refused, and what the next agent finds. Needs root; fails
//! without it.

#[path = "netns/rules.rs"]
#[allow(dead_code, reason = "each test binary uses its part of the rules")]
mod rules;
#[path = "netns/services.rs"]
#[allow(dead_code, reason = "each test binary uses its part of the services")]
mod services;
#[path = "netns/world.rs"]
#[allow(dead_code, reason = "each test binary uses its part of the world")]
mod world;

use std::io::Read as _;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use cardinal_agent::datapath::{Error, KernelTables, Service, ServiceAddress};
use rules::{TCP, UDP};
use services::{
    answers, ask, backends, entries, name_udp, one, open_both, service, service_at, slots, switch,
    used, worked,
};
use world::{SOON, SURELY, World, chain, in_cgroup, inside, report};

#[test]
fn netns_one_changed_service_leaves_the_slots_of_the_others_alone() {
    let world = World::new(2);
    let [a, b] = [0, 1].map(|n: usize| world.pods[n].clone());
    let datapath = world.open();
    name_udp(&b, b.v4, 9000..=9009);
    let ports: Vec<u16> = (9000..9005).collect();
    let mut tables = world.tables(1, &[1, 1]);
    open_both(&mut tables);
    for n in 0..20u16 {
        tables.services.insert(
            service_at("10.96.0.1", 1000 + n, UDP),
            service(b.v4, &ports),
        );
    }
    switch(&world, &datapath, tables.clone());
    let (before, entries_before) = (slots(&world, 200), entries(&world));
    let sizes = used(&datapath);
    assert_eq!(
        sizes,
        [("services", 20), ("choices", 100), ("backends", 100)].into()
    );
    let changed = service_at("10.96.0.1", 1007, UDP);
    // Four backends stay, one goes, one comes.
    tables.generation = 2;
    tables
        .services
        .insert(changed, service(b.v4, &[9001, 9002, 9003, 9004, 9009]));
    switch(&world, &datapath, tables.clone());
    let (after, entries_after) = (slots(&world, 200), entries(&world));
    let differ = |n: &usize, same: &dyn Fn(usize) -> bool| !same(*n);
    let choices: Vec<usize> = (0..200)
        .filter(|n| differ(n, &|n| before.0[n] == after.0[n]))
        .collect();
    let backends: Vec<usize> = (0..200)
        .filter(|n| differ(n, &|n| before.1[n] == after.1[n]))
        .collect();
    assert_eq!(choices, [100, 101, 102, 103, 104], "a new range");
    assert_eq!(backends.len(), 2, "the one that went and the one that came");
    let changes = entries_before
        .iter()
        .filter(|(key, value)| entries_after[*key] != **value)
        .count();
    assert_eq!((changes, entries_after.len()), (1, 20));
    assert_eq!(used(&datapath), sizes, "what the old one had is free");
    let to = SocketAddr::new(Ipv4Addr::new(10, 96, 0, 1).into(), 1007);
    let heard = answers(&world, &a, to, 200);
    assert!(
        heard.contains_key(&9009) && !heard.contains_key(&9000),
        "{heard:?}"
    );

    // The same again is nothing at all.
    tables.generation = 3;
    let before = (slots(&world, 200), entries(&world));
    switch(&world, &datapath, tables.clone());
    assert!((slots(&world, 200), entries(&world)) == before);
    // A service that is removed is nobody's address again.
    tables.generation = 4;
    tables.services.remove(&changed);
    switch(&world, &datapath, tables);
    assert_eq!(
        used(&datapath),
        [("services", 19), ("choices", 95), ("backends", 95)].into()
    );
    assert_eq!(entries(&world).len(), 19);
    let answer = in_cgroup(&world, &a.netns, || {
        report(ask(to, SOON).map(|_| "answered".into()))
    });
    assert_eq!(answer, "WouldBlock", "a datagram to nobody has no answer");
}

#[test]
fn netns_an_abandoned_generation_leaves_no_trace_and_its_number_can_be_used_again() {
    let world = World::new(2);
    let [a, b] = [0, 1].map(|n: usize| world.pods[n].clone());
    let datapath = world.open();
    name_udp(&b, b.v4, 9001..=9003);
    let [one_, two, three] = [1001, 1002, 1003].map(|port| service_at("10.96.0.1", port, UDP));
    let mut tables = world.tables(1, &[1, 1]);
    open_both(&mut tables);
    tables.services.insert(one_, service(b.v4, &[9001]));
    tables.services.insert(two, service(b.v4, &[9002]));
    switch(&world, &datapath, tables.clone());
    let at = |port| SocketAddr::new(Ipv4Addr::new(10, 96, 0, 1).into(), port);
    let before = (entries(&world).len(), used(&datapath));
    let mut other = tables.clone();
    other.generation = 2;
    other.services.insert(one_, service(b.v4, &[9003]));
    other.services.remove(&two);
    other.services.insert(three, service(b.v4, &[9001, 9002]));
    for _ in 0..3 {
        let prepared = datapath.prepare(&other).expect("it fits");
        assert!(
            matches!(
                datapath.prepare(&KernelTables {
                    generation: 3,
                    ..other.clone()
                }),
                Err(Error::Staged { generation: 3 })
            ),
            "one at a time"
        );
        // The active generation's view while another one is there.
        assert_eq!(one(&world, &a, at(1001), 5), 9001);
        assert_eq!(one(&world, &a, at(1002), 5), 9002);
        drop(prepared);
        assert_eq!((entries(&world).len(), used(&datapath)), before);
        assert_eq!(one(&world, &a, at(1001), 5), 9001);
        assert_eq!(one(&world, &a, at(1002), 5), 9002);
    }
    switch(&world, &datapath, other.clone());
    assert_eq!(one(&world, &a, at(1001), 5), 9003);
    assert_eq!(answers(&world, &a, at(1003), 60).len(), 2);
    other.generation = 3;
    other.services = tables.services;
    switch(&world, &datapath, other);
    assert_eq!(one(&world, &a, at(1001), 5), 9001);
    assert_eq!(one(&world, &a, at(1002), 5), 9002);
    assert_eq!((entries(&world).len(), used(&datapath)), before);
}

#[test]
fn netns_services_that_do_not_fit_are_refused_with_the_numbers() {
    let world = World::new(1);
    let datapath = world.open();
    let tables = |generation| world.tables(generation, &[1]);
    let mut first = tables(1);
    let address: IpAddr = Ipv4Addr::new(10, 77, 0, 9).into();
    first
        .services
        .insert(service_at("10.96.0.1", 1, TCP), service(address, &[1, 2]));
    switch(&world, &datapath, first.clone());
    let before = (entries(&world), used(&datapath));
    let many = |count: u32, ports: u16| {
        let mut tables = tables(2);
        let ports: Vec<u16> = (0..ports).collect();
        for n in 0..count {
            let at = ServiceAddress {
                address: Ipv4Addr::from_bits(0x0b00_0000 + n).into(),
                port: 80,
                protocol: TCP,
            };
            tables.services.insert(at, service(address, &ports));
        }
        tables
    };
    for (tables, map_, needed_, limit_) in [
        (many(65536, 0), "services", 65537, 65536),
        (many(5, 60_000), "backends", 300_002, 262_144),
    ] {
        match datapath.prepare(&tables) {
            Err(Error::Capacity {
                map,
                generation,
                needed,
                limit,
            }) => {
                assert_eq!((map, generation), (map_, 2));
                // The active generation's service is gone in the new one, and there until it is retired.
                assert_eq!((needed, limit), (needed_, limit_));
            }
            other => panic!("{other:?}"),
        }
        assert_eq!((entries(&world), used(&datapath)), before);
    }
    // What fits beside the active one does.
    let prepared = datapath.prepare(&many(4, 60_000)).expect("it fits");
    drop(prepared);
    assert_eq!((entries(&world).len(), used(&datapath)), (1, before.1));
}

#[test]
fn netns_the_next_agent_goes_on_with_the_services_of_the_one_before() {
    let world = World::new(2);
    let [a, b] = [0, 1].map(|n: usize| world.pods[n].clone());
    name_udp(&b, b.v4, 9001..=9006);
    let at = |port| SocketAddr::new(Ipv4Addr::new(10, 96, 0, 1).into(), port);
    let mut tables = world.tables(1, &[1, 1]);
    open_both(&mut tables);
    let weighted = Service {
        backends: backends(b.v4, &[(9001, 3), (9002, 0), (9003, 7)]),
        affinity: Some(Duration::from_secs(300)),
    };
    tables
        .services
        .insert(service_at("10.96.0.1", 1001, UDP), weighted);
    tables.services.insert(
        service_at("10.96.0.1", 1002, UDP),
        service(b.v4, &[9001, 9002]),
    );
    tables
        .services
        .insert(service_at("10.96.0.1", 1003, UDP), service(b.v4, &[9005]));
    let mut second = tables.clone();
    second.generation = 2;
    second
        .services
        .insert(service_at("10.96.0.1", 1002, UDP), service(b.v4, &[9004]));
    second.services.remove(&service_at("10.96.0.1", 1003, UDP));
    second
        .services
        .insert(service_at("10.96.0.1", 1004, UDP), service(b.v4, &[9006]));
    // An agent that ends between writing a generation and switching to it.
    let (first_tables, second_tables) = (tables.clone(), second.clone());
    let answer = in_cgroup(&world, &world.node, || {
        let datapath = world.open();
        world.activate(&datapath, first_tables);
        match datapath.prepare(&second_tables) {
            Ok(prepared) => {
                std::mem::forget(prepared);
                "prepared".into()
            }
            Err(error) => chain(&error),
        }
    });
    assert_eq!(answer, "prepared");
    let kept = one(&world, &a, at(1001), 10);
    assert!([9001, 9003].contains(&kept));
    assert_eq!(one(&world, &a, at(1003), 5), 9005, "without an agent");

    let datapath = world.open();
    assert_eq!(datapath.active_generation(), 1);
    assert_eq!(answers(&world, &a, at(1002), 60).len(), 2);
    assert_eq!(one(&world, &a, at(1001), 5), kept);
    // The number of the generation that never came, with other content.
    let mut third = tables.clone();
    third.generation = 2;
    let slots_before = slots(&world, 20);
    switch(&world, &datapath, third);
    assert_eq!(
        used(&datapath),
        [("services", 3), ("choices", 5), ("backends", 5)].into()
    );
    assert_eq!(entries(&world).len(), 3);
    assert_eq!(
        slots(&world, 20).0,
        slots_before.0,
        "known again by its choices, so no slot moved"
    );
    assert_eq!(
        one(&world, &a, at(1001), 10),
        kept,
        "affinity outlives the agent"
    );
    assert_eq!(answers(&world, &a, at(1002), 60).len(), 2);
    assert_eq!(one(&world, &a, at(1003), 5), 9005);
    drop(datapath);
    let datapath = world.open();
    second.generation = 3;
    switch(&world, &datapath, second);
    assert_eq!(one(&world, &a, at(1001), 10), kept);
    assert_eq!(one(&world, &a, at(1002), 5), 9004);
    assert_eq!(one(&world, &a, at(1004), 5), 9006);
    assert_eq!(
        used(&datapath),
        [("services", 3), ("choices", 4), ("backends", 4)].into()
    );
}

#[test]
fn netns_ten_thousand_services_with_a_hundred_thousand_backends() {
    let world = World::new(2);
    let [a, b] = [0, 1].map(|n: usize| world.pods[n].clone());
    let datapath = world.open();
    name_udp(&b, b.v4, 9000..9050);
    let mut tables = world.tables(1, &[1, 1]);
    open_both(&mut tables);
    let ports_of = |n: u32| (0..10).map(move |i| 9000 + ((n * 10 + i) % 50) as u16);
    let address_of = |n: u32| IpAddr::from(Ipv4Addr::from_bits(0x0a60_0000 + n));
    for n in 0..10_000 {
        let at = ServiceAddress {
            address: address_of(n),
            port: 53,
            protocol: UDP,
        };
        let mut ports: Vec<u16> = ports_of(n).collect();
        ports.sort_unstable();
        tables.services.insert(at, service(b.v4, &ports));
    }
    let timed = |what: &str, tables: &KernelTables| {
        let before = datapath.active_generation();
        let (datapath, node) = (datapath.clone(), world.node.clone());
        let tables = tables.clone();
        let (prepared, work, flipped, retired) = inside(&node, move || {
            let (start, idle) = (Instant::now(), worked());
            let written = datapath
                .prepare(&tables)
                .unwrap_or_else(|error| panic!("{}", chain(&error)));
            let (prepared, work) = (start.elapsed(), worked() - idle);
            written
                .flip()
                .unwrap_or_else(|error| panic!("{}", chain(&error)));
            let flipped = start.elapsed();
            if before > 0 {
                datapath
                    .retire(before)
                    .unwrap_or_else(|error| panic!("{}", chain(&error)));
            }
            (prepared, work, flipped, start.elapsed())
        });
        eprintln!(
            "{what}: prepared {prepared:?} (work {work:?}), flipped {flipped:?}, retired {retired:?}"
        );
    };
    timed("10,000 services, 100,000 backends", &tables);
    assert_eq!(
        used(&datapath),
        [
            ("services", 10_000),
            ("choices", 100_000),
            ("backends", 100_000)
        ]
        .into()
    );
    let check = |n: u32| {
        let heard = answers(&world, &a, SocketAddr::new(address_of(n), 53), 10);
        let expected: Vec<u16> = ports_of(n).collect();
        assert!(
            heard.keys().all(|port| expected.contains(port)),
            "{n}: {heard:?}"
        );
    };
    for n in (0..10_000).step_by(997).chain([9_999]) {
        check(n);
    }
    for (generation, what) in [(2, "one changed"), (3, "one changed"), (4, "one changed")] {
        tables.generation = generation;
        let at = ServiceAddress {
            address: address_of(5_000),
            port: 53,
            protocol: UDP,
        };
        let one = [9000 + generation as u16];
        tables.services.insert(at, service(b.v4, &one));
        timed(what, &tables);
    }
    tables.generation = 5;
    timed("none changed", &tables);
    check(4_999);
    assert_eq!(
        one(&world, &a, SocketAddr::new(address_of(5_000), 53), 5),
        9004
    );
    // Twice as many fit while both generations live: all of them change at once.
    tables.generation = 6;
    let known: Vec<ServiceAddress> = tables.services.keys().copied().collect();
    for (n, at) in (0u32..).zip(known) {
        let service = tables.services.get_mut(&at).expect("it is known");
        for backend in &mut service.backends {
            backend.port = 9000 + (u32::from(backend.port) + n) as u16 % 50;
        }
        service.backends.sort_unstable();
    }
    timed("all changed", &tables);
    drop(datapath);
    let start = Instant::now();
    let datapath = world.open();
    eprintln!("opened again in {:?}", start.elapsed());
    assert_eq!(used(&datapath)["services"], 10_000);
}

/// Each connection goes where one of the two generations says, whatever is written meanwhile.
#[test]
fn netns_connections_during_flips_go_where_one_generation_says() {
    let world = World::new(2);
    let [a, b] = [0, 1].map(|n: usize| world.pods[n].clone());
    let datapath = world.open();
    // A server says which service it belongs to by its port.
    let listen = |ports: std::ops::Range<u16>| {
        for port in ports {
            let at = SocketAddr::new(b.v4, port);
            let listener = inside(&b.netns, move || TcpListener::bind(at)).expect("its own");
            thread::spawn(move || {
                for stream in listener.incoming().flatten() {
                    // The client hangs up; what it is told is in which port answered.
                    let _ = std::io::Write::write_all(&mut &stream, &port.to_be_bytes());
                }
            });
        }
    };
    listen(9100..9104);
    listen(9200..9204);
    let [left, right] = ["10.96.0.1", "10.96.0.2"].map(|at| service_at(at, 80, TCP));
    let tables = |generation: u32| {
        let mut tables = world.tables(generation, &[1, 1]);
        open_both(&mut tables);
        // Slots are freed and taken by turns, so that they go from one service to the other.
        let count = 1 + generation as u16 % 4;
        let lefts: Vec<u16> = (9100..9100 + count).collect();
        let rights: Vec<u16> = (9200..9205 - count).collect();
        tables.services.insert(left, service(b.v4, &lefts));
        tables.services.insert(right, service(b.v4, &rights));
        tables
    };
    switch(&world, &datapath, tables(1));
    // Tells the child, which shares no memory with this process, that the flips are over.
    let over = world.folder.join("over");
    let name = over.clone();
    let flips = {
        let datapath = datapath.clone();
        let all: Vec<_> = (2..120).map(tables).collect();
        let node = world.node.clone();
        thread::spawn(move || {
            inside(&node, move || {
                for tables in all {
                    let before = datapath.active_generation();
                    let prepared = datapath.prepare(&tables).expect("it fits");
                    prepared.flip().expect("the kernel takes it");
                    datapath.retire(before).expect("not the active one");
                }
            });
            std::fs::write(name, "").expect("the folder is ours");
        })
    };
    let answer = in_cgroup(&world, &a.netns, || {
        let mut count = 0u32;
        loop {
            for (at, ports) in [(left, 9100..9104), (right, 9200..9204)] {
                let to = SocketAddr::new(at.address, at.port);
                let mut port = [0; 2];
                match TcpStream::connect_timeout(&to, SURELY)
                    .and_then(|mut stream| stream.read_exact(&mut port))
                {
                    Ok(()) if ports.contains(&u16::from_be_bytes(port)) => count += 1,
                    Ok(()) => return format!("{to} led to {}", u16::from_be_bytes(port)),
                    Err(error) => return format!("{to} after {count}: {error}"),
                }
            }
            if over.exists() {
                return format!("all of {}", count.min(100));
            }
        }
    });
    flips.join().expect("all flips succeed");
    assert_eq!(answer, "all of 100");
}
