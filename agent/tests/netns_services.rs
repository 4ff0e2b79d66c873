//! Service addresses on a real kernel: who answers, and who keeps a backend. Needs root; fails without it.

#[path = "netns/rules.rs"]
#[allow(dead_code, reason = "each test binary uses its part of the rules")]
mod rules;
#[path = "netns/services.rs"]
#[allow(dead_code, reason = "each test binary uses its part of the services")]
mod services;
#[path = "netns/world.rs"]
#[allow(dead_code, reason = "each test binary uses its part of the world")]
mod world;

use std::collections::BTreeSet;
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::Duration;

use agent_common::{Action, Direction, Identity, Rule, RuleKey};
use aya::maps::{HashMap, Map};
use cardinal_agent::datapath::{KernelTables, Service};
use rules::{TCP, UDP};
use services::{
    answers, backends, monotonic, name_udp, one, open_both, service, service_at, switch,
};
use socket2::{Domain, Socket, Type};
use world::{SOON, SURELY, TestPod, World, echo_udp, in_cgroup, report, talks, tcp};

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

/// A handshake of QUIC or DTLS is more than one datagram, and a socket that is not connected is asked about at each.
#[test]
fn netns_a_socket_that_is_not_connected_keeps_its_backend() {
    let world = World::new(2);
    let [a, b] = [0, 1].map(|n: usize| world.pods[n].clone());
    let datapath = world.open();
    let mut tables = world.tables(1, &[1, 1]);
    open_both(&mut tables);
    let ports = [5301, 5302, 5303, 5304];
    let at = service_at("10.96.0.1", 53, UDP);
    tables.services.insert(at, service(b.v4, &ports));
    world.activate(&datapath, tables);
    name_udp(&b, b.v4, ports);
    let to = SocketAddr::new(at.address, at.port);
    let text = in_cgroup(&world, &a.netns, || {
        report((|| {
            let mut lines = String::new();
            for _ in 0..32 {
                let socket = UdpSocket::bind("0.0.0.0:0")?;
                socket.set_read_timeout(Some(SURELY))?;
                let mut line = Vec::new();
                for _ in 0..8 {
                    socket.send_to(b"who", to)?;
                    let mut buffer = [0; 16];
                    let (length, _) = socket.recv_from(&mut buffer)?;
                    line.push(String::from_utf8_lossy(&buffer[..length]).into_owned());
                }
                lines += &line.join(" ");
                lines += "\n";
            }
            Ok(lines)
        })())
    });
    let mut chosen = BTreeSet::new();
    for line in text.lines() {
        let answers: BTreeSet<&str> = line.split(' ').collect();
        assert_eq!(answers.len(), 1, "one socket, several backends: {text}");
        chosen.extend(answers);
    }
    assert_eq!(chosen.len(), ports.len(), "32 sockets: {text}");
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

/// Makes every remembered backend older.
fn age(world: &World, by: Duration) -> usize {
    let mut map: HashMap<_, [u8; 32], [u8; 16]> =
        HashMap::try_from(Map::LruHashMap(world.pinned("affinities"))).expect("a hash");
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
