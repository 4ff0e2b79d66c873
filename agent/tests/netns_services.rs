//! Service addresses on a real kernel: who answers, who keeps a backend, and what a change costs. Needs root; fails
//! without it.

#[path = "netns/world.rs"]
#[allow(dead_code, reason = "each test binary uses its part of the world")]
mod world;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::{Duration, Instant};

use agent_common::{Action, Direction, Identity, Rule, RuleKey};
use aya::maps::{Array, HashMap, Map, MapData};
use cardinal_agent::datapath::{
    Backend, Datapath, Error, KernelTables, MapFacts, Service, ServiceAddress,
};
use socket2::{Domain, Socket, Type};
use world::{SOON, SURELY, TestPod, World, chain, echo_udp, in_cgroup, inside, report, talks, tcp};

const TCP: u8 = 6;
const UDP: u8 = 17;

/// Lets pod 1 call pod 2 on every port.
fn open_both(tables: &mut KernelTables) {
    for (own, peer, direction) in [(1, 2, Direction::Egress), (2, 1, Direction::Ingress)] {
        let rules = tables
            .policies
            .get_mut(&Identity::component(own))
            .expect("the component has a pod");
        for protocol in [TCP, UDP] {
            let key = RuleKey::new(Identity::component(peer), 0, protocol, direction);
            rules.insert(key, Rule::new(Action::Pass, 1));
        }
    }
}

fn service_at(address: &str, port: u16, protocol: u8) -> ServiceAddress {
    ServiceAddress {
        address: address.parse().expect("an address"),
        port,
        protocol,
    }
}

fn backends(address: IpAddr, shares: &[(u16, u32)]) -> Vec<Backend> {
    let backend = |(port, weight)| Backend {
        address,
        port,
        weight,
    };
    shares.iter().copied().map(backend).collect()
}

fn service(address: IpAddr, ports: &[u16]) -> Service {
    let shares: Vec<(u16, u32)> = ports.iter().map(|port| (*port, 1)).collect();
    Service {
        backends: backends(address, &shares),
        affinity: None,
    }
}

/// UDP servers that answer every datagram with their own port.
fn name_udp(pod: &TestPod, address: IpAddr, ports: impl IntoIterator<Item = u16>) {
    for port in ports {
        let at = SocketAddr::new(address, port);
        let socket =
            inside(&pod.netns, move || UdpSocket::bind(at)).expect("the address is the pod's own");
        thread::spawn(move || {
            let mut buffer = [0; 64];
            while let Ok((_, from)) = socket.recv_from(&mut buffer) {
                if socket.send_to(port.to_string().as_bytes(), from).is_err() {
                    return;
                }
            }
        });
    }
}

/// The port of the backend that a new socket's connection leads to, if it answers in time.
fn ask(to: SocketAddr, within: Duration) -> std::io::Result<u16> {
    let any = match to {
        SocketAddr::V4(_) => "0.0.0.0:0",
        SocketAddr::V6(_) => "[::]:0",
    };
    let socket = UdpSocket::bind(any)?;
    socket.set_read_timeout(Some(within))?;
    socket.connect(to)?;
    socket.send(b"who")?;
    let mut buffer = [0; 16];
    let length = socket.recv(&mut buffer)?;
    std::str::from_utf8(&buffer[..length])
        .ok()
        .and_then(|text| text.parse().ok())
        .ok_or_else(|| std::io::Error::other("no number"))
}

/// Who answers `count` new connections of a pod, with how many each.
fn answers(world: &World, pod: &TestPod, to: SocketAddr, count: usize) -> BTreeMap<u16, usize> {
    let text = in_cgroup(world, &pod.netns, || {
        let mut text = String::new();
        for _ in 0..count {
            match ask(to, SURELY) {
                Ok(port) => writeln!(text, "{port}").expect("a string takes all"),
                Err(error) => return format!("{to}: {error}"),
            }
        }
        text
    });
    let mut answers = BTreeMap::new();
    for line in text.lines() {
        let port = line.parse().unwrap_or_else(|_| panic!("{text}"));
        *answers.entry(port).or_default() += 1;
    }
    answers
}

/// Who answers all of `count` new connections.
fn one(world: &World, pod: &TestPod, to: SocketAddr, count: usize) -> u16 {
    let answers = answers(world, pod, to, count);
    assert_eq!(answers.len(), 1, "{answers:?}");
    *answers.keys().next().expect("one answer")
}

fn pinned(world: &World, name: &str) -> MapData {
    MapData::from_pin(
        world
            .folder
            .join(format!("bpf/maps_{}", agent_common::Control::SCHEMA))
            .join(name),
    )
    .expect("the map is pinned")
}

/// The first slots of both arrays, as the kernel has them.
fn slots(world: &World, count: u32) -> (Vec<[u8; 12]>, Vec<[u8; 28]>) {
    let choices: Array<_, [u8; 12]> =
        Array::try_from(Map::Array(pinned(world, "choices"))).expect("an array");
    let backends: Array<_, [u8; 28]> =
        Array::try_from(Map::Array(pinned(world, "backends"))).expect("an array");
    (
        (0..count)
            .map(|index| choices.get(&index, 0).expect("below its size"))
            .collect(),
        (0..count)
            .map(|index| backends.get(&index, 0).expect("below its size"))
            .collect(),
    )
}

/// The entries of `services`, as the kernel has them.
fn entries(world: &World) -> BTreeMap<[u8; 20], [u8; 32]> {
    let map: HashMap<_, [u8; 20], [u8; 32]> =
        HashMap::try_from(Map::HashMap(pinned(world, "services"))).expect("a hash");
    map.iter()
        .map(|entry| entry.expect("nobody writes"))
        .collect()
}

fn used(datapath: &Datapath) -> BTreeMap<&'static str, usize> {
    let ours = ["services", "choices", "backends"];
    let facts = datapath.map_facts().expect("maps can be read");
    let count = |map: MapFacts| (map.name, map.used);
    let facts: BTreeMap<_, _> = facts.into_iter().map(count).collect();
    ours.map(|name| (name, facts[name])).into()
}

/// Activates, and retires the generation before.
fn switch(world: &World, datapath: &Datapath, tables: KernelTables) {
    let before = datapath.active_generation();
    world.activate(datapath, tables);
    if before > 0 {
        datapath
            .retire(before)
            .unwrap_or_else(|error| panic!("{}", chain(&error)));
    }
}

#[test]
fn netns_service_addresses_become_backends_where_a_connection_starts() {
    let world = World::new(2);
    let [a, b] = [0, 1].map(|n: usize| world.pods[n].clone());
    let datapath = world.open();
    let mut tables = world.tables(1, &[1, 1]);
    open_both(&mut tables);
    let services = ["10.96.0.1", "fd96::1"];
    for (address, backend) in services.into_iter().zip([b.v4, b.v6]) {
        for (port, protocol, to) in [(80, TCP, &[8080][..]), (53, UDP, &[5353])] {
            let at = service_at(address, port, protocol);
            tables.services.insert(at, service(backend, to));
        }
        for protocol in [TCP, UDP] {
            let nobody = service_at(address, 81, protocol);
            tables.services.insert(nobody, Service::default());
        }
    }
    world.activate(&datapath, tables);
    for program in &datapath.facts().programs {
        eprintln!("{program:?}");
    }
    for (address, backend) in services.into_iter().zip([b.v4, b.v6]) {
        let address: IpAddr = address.parse().expect("an address");
        let at = |port| SocketAddr::new(address, port);
        world::echo_tcp(&b.netns, SocketAddr::new(backend, 8080));
        echo_udp(&b.netns, SocketAddr::new(backend, 5353));
        let answer = in_cgroup(&world, &a.netns, || {
            report((|| {
                let mut stream = TcpStream::connect_timeout(&at(80), SOON)?;
                Ok(format!("{} {}", talks(&mut stream), stream.peer_addr()?))
            })())
        });
        let expected = format!("true {}", at(80));
        assert_eq!(answer, expected, "TCP, and getpeername shows the service");
        let any = if address.is_ipv4() {
            "0.0.0.0:0"
        } else {
            "[::]:0"
        };
        let answer = in_cgroup(&world, &a.netns, || {
            let tcp = TcpStream::connect_timeout(&at(81), SOON).map(|_| "connected".into());
            let udp = UdpSocket::bind(any).map(|socket| {
                let sent = socket.send_to(b"hello", at(81)).map(|_| "sent".to_owned());
                let connected = socket.connect(at(81)).map(|()| "connected".to_owned());
                format!("{} {}", report(sent), report(connected))
            });
            format!("{} {}", report(tcp), report(udp))
        });
        // A program says why a call fails since 5.18.
        let mut release = datapath.facts().kernel.split(['.', '-']);
        let mut number = || release.next().and_then(|number| number.parse().ok());
        let why = match (number(), number()) {
            (Some(major), Some(minor)) if (major, minor) >= (5u32, 18u32) => "ConnectionRefused",
            _ => "PermissionDenied",
        };
        assert_eq!(
            answer,
            format!("{why} {why} {why}"),
            "a service without backends refuses"
        );
        for connected in [false, true] {
            let answer = in_cgroup(&world, &a.netns, || {
                report((|| {
                    let socket = UdpSocket::bind(any)?;
                    socket.set_read_timeout(Some(SURELY))?;
                    if connected {
                        socket.connect(at(53))?;
                        socket.send(b"hello")?;
                    } else {
                        socket.send_to(b"hello", at(53))?;
                    }
                    let (length, from) = socket.recv_from(&mut [0; 16])?;
                    Ok(format!("{length} {from}"))
                })())
            });
            let expected = format!("5 {}", at(53));
            assert_eq!(answer, expected, "UDP, connected: {connected}");
        }
    }
    // IPv6 sockets that speak IPv4.
    let mapped = |port| SocketAddr::new(Ipv4Addr::new(10, 96, 0, 1).to_ipv6_mapped().into(), port);
    let answer = in_cgroup(&world, &a.netns, || {
        report((|| {
            let socket = Socket::new(Domain::IPV6, Type::STREAM, None)?;
            socket.connect_timeout(&mapped(80).into(), SOON)?;
            let mut stream = TcpStream::from(socket);
            Ok(format!("{} {}", talks(&mut stream), stream.peer_addr()?))
        })())
    });
    assert_eq!(answer, format!("true {}", mapped(80)));
    let answer = in_cgroup(&world, &a.netns, || {
        report((|| {
            let socket = UdpSocket::bind("[::]:0")?;
            socket.set_read_timeout(Some(SURELY))?;
            socket.send_to(b"hello", mapped(53))?;
            let (length, from) = socket.recv_from(&mut [0; 16])?;
            Ok(format!("{length} {from}"))
        })())
    });
    assert_eq!(answer, format!("5 {}", mapped(53)));
    assert!(
        !tcp(
            &a.netns,
            SocketAddr::new(mapped(80).ip().to_canonical(), 80)
        ),
        "a process outside the cgroup is left alone"
    );
}

/// The peers that sockets of a pod name which were connected to `to` before `meanwhile`.
fn peers_after(
    world: &World,
    pod: &TestPod,
    to: &[SocketAddr],
    meanwhile: impl FnOnce(),
) -> Vec<String> {
    let (mut ours, theirs) = UnixStream::pair().expect("a pair of sockets");
    for end in [&ours, &theirs] {
        end.set_read_timeout(Some(Duration::from_secs(60)))
            .expect("a duration");
    }
    thread::scope(|scope| {
        let asking = scope.spawn(|| {
            in_cgroup(world, &pod.netns, || {
                report((|| {
                    let streams: Result<Vec<_>, _> = to
                        .iter()
                        .map(|to| TcpStream::connect_timeout(to, SOON))
                        .collect();
                    (&theirs).write_all(b"c")?;
                    (&theirs).read_exact(&mut [0])?;
                    let peers: Result<Vec<_>, _> =
                        streams?.iter().map(TcpStream::peer_addr).collect();
                    let peers: Vec<_> = peers?.iter().map(SocketAddr::to_string).collect();
                    Ok(peers.join(" "))
                })())
            })
        });
        ours.read_exact(&mut [0]).expect("the child says a word");
        meanwhile();
        ours.write_all(b"g").expect("the child listens");
        let answer = asking.join().expect("the thread waits for the child");
        answer.split(' ').map(str::to_owned).collect()
    })
}

#[test]
fn netns_a_socket_names_the_service_whatever_has_become_of_its_backends_port() {
    let world = World::new(2);
    let [a, b] = [0, 1].map(|n: usize| world.pods[n].clone());
    let datapath = world.open();
    let mut tables = world.tables(1, &[1, 1]);
    open_both(&mut tables);
    let families = [("10.96.0.1", b.v4), ("fd96::1", b.v6)];
    let lead = |tables: &mut KernelTables, port: u16, to: u16| {
        for (address, backend) in families {
            let at = service_at(address, port, TCP);
            tables.services.insert(at, service(backend, &[to]));
        }
    };
    for (_, backend) in families {
        for port in [80, 8080, 8081, 9090] {
            world::echo_tcp(&b.netns, SocketAddr::new(backend, port));
        }
    }
    lead(&mut tables, 80, 8080);
    world.activate(&datapath, tables.clone());
    let at = |port| {
        families.map(|(address, _)| SocketAddr::new(address.parse().expect("an address"), port))
    };
    let direct = |port| families.map(|(_, backend)| SocketAddr::new(backend, port));
    let texts = |all: &[SocketAddr]| all.iter().map(SocketAddr::to_string).collect::<Vec<_>>();
    // 8080 ceases to be a backend's port and 8081 becomes one; so does 9090, of a service whose port is new too.
    let asked = [at(80), direct(8081), direct(8080)].concat();
    let peers = peers_after(&world, &a, &asked, || {
        let mut second = tables.clone();
        second.generation = 2;
        lead(&mut second, 80, 8081);
        lead(&mut second, 1234, 9090);
        switch(&world, &datapath, second);
        let asked = [at(80), at(1234), direct(8081), direct(9090), direct(80)].concat();
        assert_eq!(peers_after(&world, &a, &asked, || {}), texts(&asked));
    });
    assert_eq!(peers, texts(&asked));
    // Nothing has a backend any more.
    let asked = [at(80), at(1234)].concat();
    let peers = peers_after(&world, &a, &asked, || {
        let mut third = tables.clone();
        third.generation = 3;
        third.services.clear();
        switch(&world, &datapath, third);
    });
    assert_eq!(peers, texts(&asked));
}

#[test]
fn netns_backends_get_connections_by_their_weight() {
    let world = World::new(2);
    let [a, b] = [0, 1].map(|n: usize| world.pods[n].clone());
    let datapath = world.open();
    name_udp(&b, b.v4, 9001..=9004);
    let mut tables = world.tables(1, &[1, 1]);
    open_both(&mut tables);
    let shares = [(9001, 1), (9002, 4), (9003, 15), (9004, 0)];
    let weighted = Service {
        backends: backends(b.v4, &shares),
        affinity: None,
    };
    tables
        .services
        .insert(service_at("10.96.0.1", 53, UDP), weighted);
    world.activate(&datapath, tables);
    let to = SocketAddr::new(Ipv4Addr::new(10, 96, 0, 1).into(), 53);
    let answers = answers(&world, &a, to, 2000);
    // Five standard deviations around 5 %, 20 % and 75 % of 2000.
    for (port, range) in [(9001, 51..=149), (9002, 310..=490), (9003, 1403..=1597)] {
        let got = answers.get(&port).copied().unwrap_or(0);
        assert!(range.contains(&got), "{port}: {got} of {answers:?}");
    }
    assert_eq!(answers.get(&9004), None, "a weight of 0 gets nothing");
}

fn clock(id: nix::time::ClockId) -> Duration {
    Duration::from(nix::time::clock_gettime(id).expect("every kernel has this clock"))
}

/// The monotonic clock, which `seen` is read from.
fn monotonic() -> Duration {
    clock(nix::time::ClockId::CLOCK_MONOTONIC)
}

/// What this thread has worked.
fn worked() -> Duration {
    clock(nix::time::ClockId::CLOCK_THREAD_CPUTIME_ID)
}

/// Makes every remembered backend older.
fn age(world: &World, by: Duration) -> usize {
    let mut map: HashMap<_, [u8; 32], [u8; 16]> =
        HashMap::try_from(Map::LruHashMap(pinned(world, "affinities"))).expect("a hash");
    let all: Vec<_> = map.iter().map(|entry| entry.expect("readable")).collect();
    for (key, mut value) in all.iter().copied() {
        let seen = u64::from_ne_bytes(value[..8].try_into().expect("eight bytes"));
        let older = seen.saturating_sub(by.as_nanos() as u64);
        value[..8].copy_from_slice(&older.to_ne_bytes());
        map.insert(key, value, 0).expect("the entry is there");
    }
    all.len()
}

#[test]
fn netns_a_client_keeps_its_backend_as_long_as_the_service_says() {
    const KEPT: Duration = Duration::from_secs(60);
    let world = World::new(3);
    let [a, b, c] = [0, 1, 2].map(|n: usize| world.pods[n].clone());
    let datapath = world.open();
    name_udp(&b, b.v4, 9001..=9020);
    let to = SocketAddr::new(Ipv4Addr::new(10, 96, 0, 1).into(), 53);
    let tables = |generation, ports: &[u16], affinity| {
        let mut tables = world.tables(generation, &[1, 1, 1]);
        open_both(&mut tables);
        let any = RuleKey::new(Identity::component(3), 0, UDP, Direction::Ingress);
        let own = RuleKey::new(Identity::component(2), 0, UDP, Direction::Egress);
        for (of, key) in [(2, any), (3, own)] {
            let rules = tables.policies.get_mut(&Identity::component(of));
            let rule = Rule::new(Action::Pass, 1);
            rules.expect("the component has a pod").insert(key, rule);
        }
        let kept = Service {
            affinity,
            ..service(b.v4, ports)
        };
        tables
            .services
            .insert(service_at("10.96.0.1", 53, UDP), kept);
        tables
    };
    let all: Vec<u16> = (9001..=9020).collect();
    switch(&world, &datapath, tables(1, &all, Some(KEPT)));
    let first = one(&world, &a, to, 20);
    assert_eq!(one(&world, &a, to, 5), first, "another process of the pod");
    // Another pod is another client: by chance it has the same backend once in 20, and not again and again.
    let mut others = std::collections::BTreeSet::new();
    for _ in 0..12 {
        others.insert(one(&world, &c, to, 3));
        while monotonic() <= KEPT {
            thread::sleep(Duration::from_millis(100));
        }
        assert_eq!(age(&world, KEPT), 2, "two clients are remembered");
    }
    assert!(others.len() > 1, "forgotten after its time: {others:?}");
    let mut kept = one(&world, &a, to, 5);

    // What is left of the service keeps its clients; who had what is gone gets another one.
    let others: Vec<u16> = all.iter().copied().filter(|port| *port != kept).collect();
    switch(&world, &datapath, tables(2, &others, Some(KEPT)));
    let moved = one(&world, &a, to, 20);
    assert_ne!(moved, kept);
    kept = moved;
    for generation in 3..9 {
        let ports: &[u16] = if generation % 2 == 1 { &all } else { &others };
        switch(&world, &datapath, tables(generation, ports, Some(KEPT)));
        assert_eq!(one(&world, &a, to, 5), kept, "generation {generation}");
    }
    switch(&world, &datapath, tables(9, &all, None));
    assert!(
        answers(&world, &a, to, 60).len() > 1,
        "no affinity any more"
    );
}

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
        (many(32768, 0), "services", 32769, 32768),
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
