//! The datapath on a real kernel, with real interfaces and real packets. Needs root; fails without it.

#[path = "netns/foreign.rs"]
#[allow(dead_code, reason = "each test binary uses its part of what others do")]
mod foreign;
#[path = "netns/rules.rs"]
#[allow(dead_code, reason = "each test binary uses its part of the rules")]
mod rules;
#[path = "netns/world.rs"]
#[allow(dead_code, reason = "each test binary uses its part of the world")]
mod world;

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use agent_common::{Action, Direction, Identity, Reason, RuleKey, Verdict, address_ip};
use aya::maps::{ArrayOfMaps, Map, MapData};
use cardinal_agent::datapath::{Error, GateHook, Hold, ServiceAddress, scan};
use rules::{TCP, UDP, allow, at, packets, rule};
use world::{
    SURELY, World, chain, connect, echo_tcp, echo_udp, inside, talks, tcp, udp, udp_is_lost, until,
    wait_event,
};

#[test]
fn netns_declared_passes_and_the_rest_is_dropped_by_name() {
    let world = World::new(3);
    let [a, b, c] = [0, 1, 2].map(|n: usize| world.pods[n].clone());
    let datapath = world.open();
    let mut events = datapath.take_events().expect("the first reader");
    let mut tables = world.tables(1, &[10, 10, 20]);
    allow(&mut tables, 1, 2, 8080, TCP);
    allow(&mut tables, 1, 2, 5353, UDP);
    world.activate(&datapath, tables);
    for program in &datapath.facts().programs {
        eprintln!("{program:?}");
    }

    for (to, other) in [(b.v4, c.v4), (b.v6, c.v6)] {
        echo_tcp(&b.netns, at(to, 8080));
        echo_tcp(&b.netns, at(to, 9090));
        echo_udp(&b.netns, at(to, 5353));
        echo_tcp(&c.netns, at(other, 8080));
        assert!(tcp(&a.netns, at(to, 8080)), "declared TCP to {to}");
        assert!(udp(&a.netns, at(to, 5353), 32), "declared UDP to {to}");
        assert!(
            udp(&a.netns, at(to, 5353), 4000),
            "declared UDP to {to} in fragments"
        );
        assert!(!tcp(&a.netns, at(to, 9090)), "undeclared port of {to}");
        assert!(!tcp(&a.netns, at(other, 8080)), "undeclared cell {other}");
        assert!(
            udp_is_lost(&c.netns, at(to, 5353), 32),
            "undeclared caller of {to}"
        );
    }

    let passed = wait_event(&mut events, "the first flow", |event| {
        event.verdict() == Some(Verdict::Pass)
    });
    assert_eq!(address_ip(passed.source), a.v4);
    assert_eq!(address_ip(passed.destination), b.v4);
    assert_eq!(passed.destination_port, 8080u16.to_be_bytes());
    assert_eq!(
        (passed.cell, passed.rule, passed.reason()),
        (10, 8081, Some(Reason::Policy))
    );
    assert_eq!(
        (passed.local(), passed.peer()),
        (Identity::component(1), Identity::component(2))
    );
    let dropped = wait_event(&mut events, "the drop toward the other cell", |event| {
        event.verdict() == Some(Verdict::Drop) && address_ip(event.destination) == c.v4
    });
    assert_eq!(dropped.reason(), Some(Reason::NotDeclared));
    assert_eq!(dropped.direction(), Some(Direction::Egress));
    assert!(packets(&datapath, 10, Direction::Egress, Reason::Policy) >= 4);
    assert!(packets(&datapath, 10, Direction::Ingress, Reason::Established) > 0);
    assert!(packets(&datapath, 20, Direction::Egress, Reason::NotDeclared) >= 2);
    assert_eq!(
        packets(&datapath, 10, Direction::Egress, Reason::Spoofed),
        0
    );
}

#[test]
fn netns_both_gates_must_agree() {
    let world = World::new(2);
    let [a, b] = [0, 1].map(|n: usize| world.pods[n].clone());
    let datapath = world.open();
    let mut events = datapath.take_events().expect("the first reader");
    let mut tables = world.tables(1, &[1, 2]);
    // Only the caller's side declares it.
    let key = RuleKey::new(Identity::component(2), 80, TCP, Direction::Egress);
    rule(&mut tables, Identity::component(1), key, Action::Pass);
    world.activate(&datapath, tables);
    echo_tcp(&b.netns, at(b.v4, 80));
    assert!(!tcp(&a.netns, at(b.v4, 80)));
    let dropped = wait_event(&mut events, "the receiver's drop", |event| {
        event.verdict() == Some(Verdict::Drop) && address_ip(event.destination) == b.v4
    });
    assert_eq!(
        (dropped.direction(), dropped.cell),
        (Some(Direction::Ingress), 2)
    );
    assert_eq!(
        (dropped.ifindex, dropped.reason()),
        (b.ifindex, Some(Reason::NotDeclared))
    );
}

#[test]
fn netns_a_pod_sends_only_from_its_own_addresses() {
    let world = World::new(2);
    let [a, b] = [0, 1].map(|n: usize| world.pods[n].clone());
    let datapath = world.open();
    let mut tables = world.tables(1, &[1, 1]);
    for protocol in [TCP, UDP] {
        allow(&mut tables, 1, 2, 0, protocol);
        // What the claimed address would be allowed to do.
        for key in [
            RuleKey::new(Identity::WORLD, 0, protocol, Direction::Ingress),
            RuleKey::new(Identity::WORLD, 0, protocol, Direction::Egress),
        ] {
            rule(&mut tables, Identity::component(2), key, Action::Pass);
        }
    }
    world.activate(&datapath, tables);
    world.claim(0, "198.51.100.7/32");
    world.claim(0, "2001:db8::7/128");
    for (claimed, to) in [("198.51.100.7:0", b.v4), ("[2001:db8::7]:0", b.v6)] {
        // The pod learns its gateway's hardware address while it is honest: it would ask in the claimed address' name.
        assert!(udp_is_lost(&a.netns, at(to, 99), 8), "no server there");
        let before = packets(&datapath, 1, Direction::Egress, Reason::Spoofed);
        let claimed: SocketAddr = claimed.parse().expect("an address");
        inside(&a.netns, move || {
            let socket = UdpSocket::bind(claimed).expect("the pod claimed the address");
            socket
                .send_to(b"spoof", at(to, 53))
                .expect("the pod has a route");
        });
        until(&format!("{claimed} is counted"), || {
            packets(&datapath, 1, Direction::Egress, Reason::Spoofed) == before + 1
        });
    }
    // Another pod's address is not its own either.
    world.claim(0, &format!("{}/32", b.v4));
    assert_eq!(
        packets(&datapath, 1, Direction::Ingress, Reason::Spoofed),
        0
    );
}

#[test]
fn netns_without_a_generation_everything_is_dropped() {
    let world = World::new(2);
    let [a, b] = [0, 1].map(|n: usize| world.pods[n].clone());
    let datapath = world.open();
    let mut tables = world.tables(1, &[1, 1]);
    allow(&mut tables, 1, 2, 80, TCP);
    echo_tcp(&b.netns, at(b.v4, 80));
    assert!(
        tcp(&a.netns, at(b.v4, 80)),
        "an interface without gates is left alone"
    );
    world.activate(&datapath, tables.clone());
    assert!(tcp(&a.netns, at(b.v4, 80)));
    // A generation that no longer knows pod a's rules: its interface stays guarded, its packets have no policy.
    tables.generation = 2;
    tables.policies.remove(&Identity::component(1));
    world.activate(&datapath, tables);
    assert!(!tcp(&a.netns, at(b.v4, 80)));
    assert!(packets(&datapath, 1, Direction::Egress, Reason::NoPolicy) > 0);
}

#[test]
fn netns_revocation_reaches_established_connections_and_the_rest_live_on() {
    let world = World::new(2);
    let [a, b] = [0, 1].map(|n: usize| world.pods[n].clone());
    let datapath = world.open();
    let mut tables = world.tables(1, &[1, 1]);
    allow(&mut tables, 1, 2, 80, TCP);
    allow(&mut tables, 1, 2, 81, TCP);
    world.activate(&datapath, tables);
    echo_tcp(&b.netns, at(b.v6, 80));
    echo_tcp(&b.netns, at(b.v6, 81));
    let mut kept = connect(&a.netns, at(b.v6, 80)).expect("declared");
    let mut revoked = connect(&a.netns, at(b.v6, 81)).expect("declared");
    assert!(talks(&mut kept) && talks(&mut revoked));

    let mut tables = world.tables(2, &[1, 1]);
    allow(&mut tables, 1, 2, 80, TCP);
    world.activate(&datapath, tables);
    assert!(!talks(&mut revoked), "revoked on the next packet");
    assert!(talks(&mut kept), "declared in both generations");
    datapath.retire(1).expect("not the active one");
    assert!(talks(&mut kept));
}

#[test]
fn netns_unchanged_tables_are_shared_and_an_abandoned_generation_leaves_nothing() {
    let world = World::new(2);
    let datapath = world.open();
    let mut tables = world.tables(1, &[1, 1]);
    allow(&mut tables, 1, 2, 80, TCP);
    world.activate(&datapath, tables.clone());
    let facts = || {
        let mut facts = datapath.map_facts().expect("maps can be read");
        // Packets that the kernel sends on its own are counted at any time.
        facts.retain(|map| map.name != "counters");
        facts
    };
    let before = facts();
    tables.generation = 2;
    allow(&mut tables, 1, 2, 81, TCP);
    tables
        .policies
        .insert(Identity::component(1), Default::default());
    let prepared = datapath.prepare(&tables).expect("it fits");
    // The rules of both components changed; identities and the pods' flows stay.
    let cost = prepared.cost();
    assert_eq!((cost.shared, cost.made, cost.identities), (2, 2, 0));
    drop(prepared);
    assert_eq!(facts(), before);
    assert_eq!(datapath.active_generation(), 1);
    tables.generation = 1;
    assert!(matches!(
        datapath.prepare(&tables),
        Err(Error::Generation {
            given: 1,
            newest: 1
        })
    ));
    tables.generation = 3;
    for n in 0..70_000u32 {
        let address = Ipv4Addr::from_bits(0x0a00_0000 + n).into();
        tables.services.insert(
            ServiceAddress {
                address,
                port: 80,
                protocol: TCP,
            },
            Default::default(),
        );
    }
    let error = datapath
        .prepare(&tables)
        .expect_err("more services than the map holds");
    assert!(
        matches!(
            error,
            Error::Capacity {
                map: "services",
                ..
            }
        ),
        "{error}"
    );
    assert_eq!(facts(), before);
}

#[test]
fn netns_verdicts_outlive_the_agent_and_the_next_one_takes_over() {
    for hook in [GateHook::Auto, GateHook::Clsact] {
        let world = World::new(2);
        let [a, b] = [0, 1].map(|n: usize| world.pods[n].clone());
        let datapath = world
            .try_open(hook)
            .unwrap_or_else(|error| panic!("{}", chain(&error)));
        if hook == GateHook::Clsact {
            assert_eq!(datapath.facts().hook, "clsact");
        }
        let mut tables = world.tables(5, &[1, 1]);
        allow(&mut tables, 1, 2, 80, TCP);
        world.activate(&datapath, tables);
        echo_tcp(&b.netns, at(b.v4, 80));
        echo_tcp(&b.netns, at(b.v4, 81));
        let mut open = connect(&a.netns, at(b.v4, 80)).expect("declared");

        let second = world.try_open(hook).expect_err("one agent per node");
        assert!(
            matches!(second, Error::AlreadyRunning { holder } if holder == Some(std::process::id() as i32)),
            "{second}"
        );
        drop(datapath);
        assert!(talks(&mut open), "{hook:?}: established without an agent");
        assert!(
            tcp(&a.netns, at(b.v4, 80)),
            "{hook:?}: declared without an agent"
        );
        assert!(
            !tcp(&a.netns, at(b.v4, 81)),
            "{hook:?}: denied without an agent"
        );

        let datapath = world
            .try_open(hook)
            .unwrap_or_else(|error| panic!("{}", chain(&error)));
        assert_eq!(datapath.active_generation(), 5);
        assert_eq!(datapath.guarded(), [a.ifindex, b.ifindex].into());
        assert!(
            talks(&mut open),
            "{hook:?}: established under the next agent"
        );
        assert!(
            !tcp(&a.netns, at(b.v4, 81)),
            "{hook:?}: denied under the next agent"
        );
        let mut tables = world.tables(6, &[1, 1]);
        allow(&mut tables, 1, 2, 81, TCP);
        world.activate(&datapath, tables);
        assert!(tcp(&a.netns, at(b.v4, 81)), "{hook:?}: declared now");
        assert!(!talks(&mut open), "{hook:?}: revoked now");

        inside(&world.node.clone(), move || datapath.cleanup())
            .unwrap_or_else(|error| panic!("{}", chain(&error)));
        assert!(
            tcp(&a.netns, at(b.v4, 80)),
            "{hook:?}: nothing is enforced after the cleanup"
        );
    }
}

#[test]
fn netns_discovery_finds_pods_and_their_addresses() {
    let mut world = World::new(2);
    let found = inside(&world.node, scan).expect("the node can be scanned");
    let expected = |world: &World| {
        let mut pods: Vec<_> = world
            .pods
            .iter()
            .map(|pod| (pod.ifindex, pod.ifname.clone(), vec![pod.v4, pod.v6]))
            .collect();
        pods.sort();
        pods
    };
    let seen = |discovery: cardinal_agent::datapath::Discovery| {
        discovery
            .pods
            .into_iter()
            .map(|pod| (pod.ifindex, pod.host_ifname, pod.addresses))
            .collect::<Vec<_>>()
    };
    assert_eq!(seen(found), expected(&world));

    let datapath = world.open();
    let mut pods = inside(&world.node, move || datapath.watch_pods(Hold::Nothing))
        .unwrap_or_else(|error| panic!("{}", chain(&error)));
    assert_eq!(
        seen(pods.look(true).expect("the node can be looked at")),
        expected(&world)
    );
    world.add_pod(3);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    let end = Instant::now() + SURELY;
    loop {
        // What changed is told, and looked at alone.
        let changed = async { tokio::time::timeout_at(end.into(), pods.changed()).await };
        runtime.block_on(changed).expect("a new pod is a change");
        if seen(pods.look(false).expect("the node can be looked at")) == expected(&world) {
            break;
        }
    }
    assert_eq!(
        seen(inside(&world.node, scan).expect("the node can be scanned")),
        expected(&world)
    );
}

#[test]
fn netns_pins_of_a_living_node_are_refused_and_of_a_gone_one_taken_over() {
    let first = World::new(1);
    let datapath = first.open();
    first.activate(&datapath, first.tables(1, &[1]));
    drop(datapath);
    let mut second = World::new(1);
    let own = std::mem::replace(&mut second.folder, first.folder.clone());
    let error = second
        .try_open(GateHook::Auto)
        .expect_err("another node's pins");
    assert!(matches!(error, Error::ForeignPins { .. }), "{error}");
    first.remove_namespaces();
    // The kernel takes a namespace apart some time after its last name is gone.
    let end = std::time::Instant::now() + SURELY;
    let datapath = loop {
        match second.try_open(GateHook::Auto) {
            Err(Error::ForeignPins { .. }) if std::time::Instant::now() < end => {
                std::thread::sleep(Duration::from_millis(10));
            }
            opened => break opened.unwrap_or_else(|error| panic!("{}", chain(&error))),
        }
    };
    assert_eq!(datapath.active_generation(), 1);
    assert!(
        datapath.guarded().is_empty(),
        "interface numbers of the other node mean nothing here"
    );
    second.activate(&datapath, second.tables(2, &[1]));
    drop(datapath);
    second.folder = own;
}

#[test]
fn netns_interfaces_that_go_away_stop_nobody() {
    for hook in [GateHook::Auto, GateHook::Clsact] {
        let world = World::new(3);
        let [a, b] = [0, 1].map(|n: usize| world.pods[n].clone());
        let datapath = world
            .try_open(hook)
            .unwrap_or_else(|error| panic!("{}", chain(&error)));
        let tables = |generation| {
            let mut tables = world.tables(generation, &[1, 1, 1]);
            allow(&mut tables, 1, 2, 80, TCP);
            tables
        };
        // Gone between discovery and attachment.
        let planned = tables(1);
        let gone = world.pods[2].ifindex;
        world.remove_interface(2);
        assert_eq!(
            world.activate(&datapath, planned).interfaces_gone,
            [gone],
            "{hook:?}"
        );
        assert_eq!(datapath.guarded(), [a.ifindex, b.ifindex].into());
        echo_tcp(&b.netns, at(b.v4, 80));
        assert!(tcp(&a.netns, at(b.v4, 80)));
        // Gone while guarded.
        let mut next = tables(2);
        next.endpoints.retain(|ifindex, _| *ifindex == a.ifindex);
        world.remove_interface(1);
        world.activate(&datapath, next);
        assert_eq!(datapath.guarded(), [a.ifindex].into(), "{hook:?}");
    }
}

#[test]
fn netns_a_program_of_somebody_else_does_not_get_in_front_of_the_gates() {
    let world = World::new(2);
    let [a, b] = [0, 1].map(|n: usize| world.pods[n].clone());
    echo_tcp(&b.netns, at(b.v4, 80));
    let ifindex = a.ifindex;
    let foreign = inside(&world.node, move || foreign::lets_all_pass(ifindex));
    let datapath = world.open();
    if datapath.facts().hook != "tcx" {
        // Filters of clsact have priorities instead of places; ours is before what others get by default.
        return;
    }
    world.activate(&datapath, world.tables(1, &[1, 1]));
    assert!(!tcp(&a.netns, at(b.v4, 80)), "undeclared");
    assert!(packets(&datapath, 1, Direction::Egress, Reason::NotDeclared) > 0);
    inside(&world.node.clone(), move || datapath.cleanup()).expect("everything of ours is removed");
    assert!(tcp(&a.netns, at(b.v4, 80)), "nobody enforces any more");
    assert_eq!(foreign::attached_to(&foreign), ifindex, "theirs stays");
}

#[test]
fn netns_a_switch_of_generations_drops_no_packet_that_both_allow() {
    let world = World::new(2);
    let [a, b] = [0, 1].map(|n: usize| world.pods[n].clone());
    let datapath = world.open();
    let tables = |generation| {
        let mut tables = world.tables(generation, &[1, 1]);
        allow(&mut tables, 1, 2, 5353, UDP);
        // Differs in each, so that no map is shared.
        allow(&mut tables, 1, 2, 10_000 + generation as u16, UDP);
        tables
    };
    world.activate(&datapath, tables(1));
    echo_udp(&b.netns, at(b.v4, 5353));
    let end = Arc::new(AtomicBool::new(false));
    let flood = {
        let (end, netns, to) = (Arc::clone(&end), a.netns.clone(), at(b.v4, 5353));
        std::thread::spawn(move || {
            inside(&netns, move || {
                let socket = UdpSocket::bind("0.0.0.0:0").expect("any port");
                let mut sent = 0u64;
                while !end.load(Ordering::Relaxed) {
                    // A full queue of the socket is no drop of ours.
                    sent += u64::from(socket.send_to(&[0; 16], to).is_ok());
                }
                sent
            })
        })
    };
    for generation in 2..60 {
        world.activate(&datapath, tables(generation));
        datapath.retire(generation - 1).expect("not the active one");
    }
    end.store(true, Ordering::Relaxed);
    let sent = flood.join().expect("the flood ends");
    let rows = datapath.counters().expect("counters can be read");
    let dropped: Vec<_> = rows
        .iter()
        .filter(|row| {
            // Gates stand before the first generation does: what the stack sent of itself in between has none.
            let before = [Reason::Multicast, Reason::NoGeneration];
            row.verdict == Verdict::Drop && !before.contains(&row.reason)
        })
        .collect();
    assert!(dropped.is_empty(), "of {sent} packets: {dropped:#?}");
    assert!(sent > 1000, "{sent}");
}

#[test]
fn netns_pods_of_a_generation_that_failed_are_denied() {
    let mut world = World::new(1);
    let datapath = world.open();
    world.activate(&datapath, world.tables(1, &[1]));
    let b = world.add_pod(2);
    let c = world.add_pod(3);
    for pod in [&b, &c] {
        echo_tcp(&pod.netns, at(pod.v4, 80));
    }
    assert!(tcp(&b.netns, at(c.v4, 80)), "nobody knows these pods yet");
    let mut tables = world.tables(2, &[1, 2, 2]);
    allow(&mut tables, 2, 3, 80, TCP);
    let fits = tables.clone();
    for n in 0..70_000u32 {
        let service = ServiceAddress {
            address: Ipv4Addr::from_bits(0x0a00_0000 + n).into(),
            port: 80,
            protocol: TCP,
        };
        tables.services.insert(service, Default::default());
    }
    let (refused, handle) = (tables, datapath.clone());
    inside(&world.node.clone(), move || {
        handle.prepare(&refused).map(drop)
    })
    .expect_err("more services than the map holds");
    assert!(!tcp(&b.netns, at(c.v4, 80)), "no generation knows them");
    assert!(packets(&datapath, 0, Direction::Egress, Reason::NoEndpoint) > 0);
    world.activate(&datapath, fits);
    assert!(tcp(&b.netns, at(c.v4, 80)), "declared now");
}

#[test]
fn netns_what_others_remove_is_put_back() {
    for hook in [GateHook::Auto, GateHook::Clsact] {
        let world = World::new(2);
        let [a, b] = [0, 1].map(|n: usize| world.pods[n].clone());
        let datapath = world
            .try_open(hook)
            .unwrap_or_else(|error| panic!("{}", chain(&error)));
        let mut tables = world.tables(1, &[1, 1]);
        // The policy route is there for those who steer.
        let key = RuleKey::new(Identity::WORLD, 443, TCP, Direction::Egress);
        rule(&mut tables, Identity::component(1), key, Action::Steer);
        world.activate(&datapath, tables);
        echo_tcp(&b.netns, at(b.v4, 80));
        assert!(!tcp(&a.netns, at(b.v4, 80)), "{hook:?}: undeclared");
        for pod in [&a, &b] {
            if datapath.facts().hook == "tcx" {
                for gate in ["cell_egress", "cell_ingress"] {
                    let link = format!("bpf/links/{gate}_{}", pod.ifindex);
                    foreign::detach_pinned(&world.folder.join(link));
                }
            } else {
                world.on_node(&format!("tc qdisc del dev {} clsact", pod.ifname));
            }
        }
        world.on_node("ip rule del pref 101");
        assert!(tcp(&a.netns, at(b.v4, 80)), "{hook:?}: the gates are gone");
        let (handle, node) = (datapath.clone(), world.node.clone());
        let care = inside(&node, move || handle.look_after(&[], true));
        assert!(care.failed.is_empty(), "{:?}", care.failed);
        assert!(!tcp(&a.netns, at(b.v4, 80)), "{hook:?}: put back");
        assert!(
            world.on_node("ip rule show pref 101").contains("0xca5"),
            "{hook:?}"
        );
    }
}

/// Type ids of a map's key and value in its BTF (`struct bpf_map_info`, `linux/bpf.h`); 0: none.
fn type_ids(map: &aya::maps::MapData) -> (u32, u32) {
    const OBJ_GET_INFO_BY_FD: libc::c_long = 15;
    /// Position of `btf_id` in words of four bytes; the ids of key and value follow it.
    const BTF: usize = 16;
    #[repr(C)]
    struct Attributes {
        fd: u32,
        length: u32,
        info: u64,
    }
    let mut info = [0u64; 11];
    let attributes = Attributes {
        fd: map.fd().as_fd().as_raw_fd().try_into().expect("open"),
        length: size_of_val(&info) as u32,
        info: info.as_mut_ptr() as u64,
    };
    // SAFETY: the attributes name a buffer of `length` writable bytes that outlives the call.
    let failed = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            OBJ_GET_INFO_BY_FD,
            &raw const attributes,
            size_of::<Attributes>(),
        )
    };
    assert_eq!(failed, 0, "{}", std::io::Error::last_os_error());
    let words: Vec<u32> = info
        .iter()
        .flat_map(|word| [*word as u32, (*word >> 32) as u32])
        .collect();
    assert_ne!(words[BTF], 0, "the map has no BTF");
    (words[BTF + 1], words[BTF + 2])
}

#[test]
fn netns_maps_have_types_by_which_they_can_be_read_the_inner_ones_too() {
    let world = World::new(1);
    let datapath = world.open();
    let mut tables = world.tables(1, &[1]);
    allow(&mut tables, 1, 1, 80, TCP);
    world.activate(&datapath, tables);
    for name in [
        "control",
        "identities",
        "endpoints",
        "services",
        "choices",
        "backends",
        "ports",
        "affinities",
        "listeners",
        "translations",
        "tallies",
        "counters",
        "lost",
    ] {
        let (key, value) = type_ids(&world.pinned(name));
        assert!(
            key != 0 && value != 0,
            "{name} has no types of key and value"
        );
    }
    for name in ["policies", "flows", "unassured", "fragments"] {
        let outer: ArrayOfMaps<_, MapData> =
            ArrayOfMaps::try_from(Map::ArrayOfMaps(world.pinned(name))).expect("a map of maps");
        // Slot 0 is nobody's; the first pod's things are in the first one after it.
        let inner = outer.get(&1, 0).expect("the first slot is taken");
        let (key, value) = type_ids(&inner);
        assert!(key != 0 && value != 0, "inner map of {name} has no types");
    }
}
