//! Connections that the kernel leads to the router: governed ones, and those to a gateway's address. Needs root; fails
//! without it.

#[path = "netns/rules.rs"]
#[allow(dead_code, reason = "each test binary uses its part of the rules")]
mod rules;
#[path = "netns/world.rs"]
#[allow(dead_code, reason = "each test binary uses its part of the world")]
mod world;

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use agent_common::{Action, Direction, Identity, Mark, Reason, RuleKey, SocketKey};
use cardinal_agent::datapath::{Network, Owner, ServiceAddress};
use cardinal_agent::proxy::{Ingress, Proxy, ProxyConfig, Sharing, SocketKind};
use rules::{TCP, at, packets, rule};
use socket2::{Domain, Protocol, Socket, Type};
use world::{SOON, SURELY, World, chain, connect, echo_tcp, inside, talks, tcp};

/// A listener that takes connections to any address, as the router's.
fn transparent(v6: bool) -> TcpListener {
    let (domain, any): (_, SocketAddr) = if v6 {
        (Domain::IPV6, at(Ipv6Addr::UNSPECIFIED.into(), 15001))
    } else {
        (Domain::IPV4, at(Ipv4Addr::UNSPECIFIED.into(), 15001))
    };
    let socket = Socket::new(domain, Type::STREAM, Some(Protocol::TCP)).expect("a socket");
    if v6 {
        socket.set_only_v6(true).expect("a v6 socket");
        socket.set_ip_transparent_v6(true).expect("root may");
    } else {
        socket.set_ip_transparent_v4(true).expect("root may");
    }
    socket
        .bind(&any.into())
        .expect("the port is free in this namespace");
    socket.listen(16).expect("a bound socket");
    socket.into()
}

#[test]
fn netns_governed_connections_reach_the_router_with_their_destination() {
    let world = World::new(1);
    let a = world.pods[0].clone();
    let datapath = world.open();
    let mut tables = world.tables(1, &[1]);
    let key = RuleKey::new(Identity::WORLD, 443, TCP, Direction::Egress);
    rule(&mut tables, Identity::component(1), key, Action::Steer);
    world.activate(&datapath, tables);
    for (v6, to) in [(false, "203.0.113.5:443"), (true, "[2001:db8::5]:443")] {
        let to: SocketAddr = to.parse().expect("an address");
        assert!(connect(&a.netns, to).is_err(), "no listener yet");
        assert!(packets(&datapath, 1, Direction::Egress, Reason::ListenerMissing) > 0);

        let (listener, handle) = (
            inside(&world.node, move || transparent(v6)),
            datapath.clone(),
        );
        let key = if v6 {
            SocketKey::TRANSPARENT_V6
        } else {
            SocketKey::TRANSPARENT_V4
        };
        handle
            .set_socket(key, &listener)
            .unwrap_or_else(|error| panic!("{}", chain(&error)));
        let router = std::thread::spawn(move || {
            let (mut stream, client) = listener.accept().expect("a connection");
            let local = stream.local_addr().expect("a connected socket");
            let mut buffer = [0; 5];
            stream.read_exact(&mut buffer).expect("the client speaks");
            stream.write_all(&buffer).expect("the client listens");
            (client.ip(), local, listener)
        });
        let mut stream = connect(&a.netns, to).expect("the router answers");
        assert!(talks(&mut stream), "{to}: bytes both ways");
        let (client, local, listener) = router.join().expect("the router ends");
        assert_eq!(
            client,
            if v6 { a.v6 } else { a.v4 },
            "the caller's own address"
        );
        assert_eq!(local, to, "the original destination");
        assert!(packets(&datapath, 1, Direction::Egress, Reason::Established) > 0);
        drop(listener);
        assert!(connect(&a.netns, to).is_err(), "the listener is gone again");
    }
}

#[test]
fn netns_a_governed_connection_that_the_router_ended_can_be_opened_again_at_once() {
    let world = World::new(1);
    let a = world.pods[0].clone();
    let datapath = world.open();
    let rules = |world: &World, generation, action| {
        let mut tables = world.tables(generation, &[1]);
        let key = RuleKey::new(Identity::WORLD, 443, TCP, Direction::Egress);
        rule(&mut tables, Identity::component(1), key, action);
        tables
    };
    let policy_route = || {
        world.on_node("ip rule").contains("0xca51")
            && world.on_node("ip -6 rule").contains("0xca51")
    };
    world.activate(&datapath, rules(&world, 1, Action::Pass));
    assert!(!policy_route(), "nothing is steered");
    world.activate(&datapath, rules(&world, 2, Action::Steer));
    assert!(policy_route());
    for (v6, to, key) in [
        (false, "203.0.113.5:443", SocketKey::TRANSPARENT_V4),
        (true, "[2001:db8::5]:443", SocketKey::TRANSPARENT_V6),
    ] {
        let to: SocketAddr = to.parse().expect("an address");
        let listener = inside(&world.node, move || transparent(v6));
        datapath
            .set_socket(key, &listener)
            .unwrap_or_else(|error| panic!("{}", chain(&error)));
        let (pod, netns) = (if v6 { a.v6 } else { a.v4 }, a.netns.clone());
        for time in 1..=3 {
            let netns = netns.clone();
            let client = std::thread::spawn(move || {
                inside(&netns, move || {
                    let socket = Socket::new(Domain::for_address(to), Type::STREAM, None)?;
                    socket.set_reuse_address(true)?;
                    socket.bind(&at(pod, 40_000).into())?;
                    socket.connect_timeout(&to.into(), SOON)?;
                    let mut stream = TcpStream::from(socket);
                    stream.set_read_timeout(Some(SURELY))?;
                    // The end that the router makes first; what it remembers of the connection is in the way of the next.
                    stream.read(&mut [0; 1])
                })
            });
            let accepted = {
                let listener = listener.try_clone().expect("a listener");
                listener.set_nonblocking(true).expect("a socket");
                let end = Instant::now() + SURELY;
                loop {
                    match listener.accept() {
                        Ok((stream, _)) => break Some(stream),
                        Err(_) if Instant::now() < end => {
                            std::thread::sleep(Duration::from_millis(2));
                        }
                        Err(_) => break None,
                    }
                }
            };
            assert!(accepted.is_some(), "{to}: connection {time}");
            drop(accepted);
            let end = client.join().expect("the client does not panic");
            assert_eq!(
                end.expect("a connection that ends"),
                0,
                "{to}: connection {time}"
            );
        }
    }
    world.activate(&datapath, rules(&world, 3, Action::Pass));
    let handle = datapath.clone();
    inside(&world.node, move || {
        handle.retire(2).expect("not the active one");
        handle.retire(1).expect("not the active one");
    });
    assert!(!policy_route(), "nothing is steered any more");
}

#[test]
fn netns_the_routers_transparent_sockets_are_assigned_however_cores_share_them() {
    let world = World::new(1);
    let a = world.pods[0].clone();
    let datapath = world.open();
    let mut tables = world.tables(1, &[1]);
    let key = RuleKey::new(Identity::WORLD, 80, TCP, Direction::Egress);
    rule(&mut tables, Identity::component(1), key, Action::Steer);
    world.activate(&datapath, tables);
    let groups = datapath
        .facts()
        .assigns_groups()
        .then_some(Sharing::ReusePort);
    for transparent in groups.into_iter().chain([Sharing::OneSocket]) {
        let config = ProxyConfig {
            cores: 3,
            ingress: Ingress::Lookup,
            transparent,
            ..ProxyConfig::default()
        };
        let proxy = inside(&world.node, move || Proxy::start(config, Arc::default()))
            .unwrap_or_else(|error| panic!("{}", chain(&error)));
        for (kind, socket) in proxy.sockets() {
            let key = match kind {
                SocketKind::SteeredV4 => SocketKey::TRANSPARENT_V4,
                SocketKind::SteeredV6 => SocketKey::TRANSPARENT_V6,
                _ => continue,
            };
            // SAFETY: the proxy keeps its sockets open until it is dropped below.
            let socket = unsafe { BorrowedFd::borrow_raw(socket) };
            datapath
                .set_socket(key, &socket)
                .unwrap_or_else(|error| panic!("{}", chain(&error)));
        }
        proxy.published();
        // More connections than cores, so that each core's queue is met. The router knows no callers here; its record
        // of each refusal tells the address that was asked for.
        let asked = ["203.0.113.5:80", "[2001:db8::5]:80"].repeat(6);
        for to in &asked {
            let to = to.parse().expect("an address");
            connect(&a.netns, to).unwrap_or_else(|error| panic!("{transparent:?} {to}: {error}"));
        }
        let end = Instant::now() + SURELY;
        let records = loop {
            let records = proxy.log().since(0);
            if records.len() >= asked.len() || Instant::now() > end {
                break records;
            }
            std::thread::sleep(Duration::from_millis(5));
        };
        let mut details: Vec<_> = records
            .iter()
            .map(|record| record.detail.clone().unwrap_or_default())
            .collect();
        details.sort();
        let mut expected: Vec<_> = asked
            .iter()
            .map(|to| format!("source of a connection to {to} is no component"))
            .collect();
        expected.sort();
        assert_eq!(details, expected, "{transparent:?}");
    }
    assert_eq!(
        packets(&datapath, 1, Direction::Egress, Reason::SteerFailed),
        0
    );
}

#[test]
fn netns_gateway_addresses_lead_to_the_routers_sockets() {
    let world = World::new(2);
    let [a, b] = [0, 1].map(|n: usize| world.pods[n].clone());
    world.node_address("192.0.2.10/32");
    world.node_address("2001:db8:a::10/128");
    let datapath = world.open();
    let gateways =
        ["192.0.2.10", "2001:db8:a::10"].map(|text| text.parse::<IpAddr>().expect("an address"));
    let mut tables = world.tables(1, &[1, 2]);
    for gateway in gateways {
        tables.identities.insert(
            Network::host(gateway),
            Owner {
                identity: Identity::WEST_GATE,
                ifindex: 0,
                cell: 0,
            },
        );
        tables.listeners.insert(
            ServiceAddress {
                address: gateway,
                port: 443,
                protocol: TCP,
            },
            Identity::WEST_GATE,
        );
    }
    let key = RuleKey::new(Identity::WEST_GATE, 443, TCP, Direction::Egress);
    rule(&mut tables, Identity::component(1), key, Action::Pass);
    let key = RuleKey::new(Identity::WEST_GATE, 8080, TCP, Direction::Ingress);
    rule(&mut tables, Identity::component(2), key, Action::Pass);
    world.activate(&datapath, tables);
    for gateway in gateways {
        let to = at(gateway, 443);
        assert!(
            connect(&a.netns, to).is_err(),
            "a listener without socket refuses"
        );
        let any: SocketAddr = if gateway.is_ipv4() {
            "127.0.0.1:0"
        } else {
            "[::1]:0"
        }
        .parse()
        .expect("an address");
        let listener = inside(&world.node, move || TcpListener::bind(any)).expect("loopback");
        let key = ServiceAddress {
            address: gateway,
            port: 443,
            protocol: TCP,
        }
        .socket_key();
        datapath
            .set_socket(key, &listener)
            .unwrap_or_else(|error| panic!("{}", chain(&error)));
        let router =
            std::thread::spawn(move || listener.accept().expect("a connection").0.local_addr());
        connect(&a.netns, to).expect("the router answers");
        assert_eq!(
            router
                .join()
                .expect("the router ends")
                .expect("a connected socket"),
            to
        );
    }
    // Toward a pod, the router's mark makes it the gate; without it the node is only the node.
    echo_tcp(&b.netns, at(b.v4, 8080));
    assert!(
        !tcp(&world.node, at(b.v4, 8080)),
        "the node is not declared"
    );
    let marked = inside(&world.node, move || {
        let socket =
            Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP)).expect("a socket");
        socket.set_mark(Mark::WestGate.raw()).expect("root may");
        socket
            .connect_timeout(&at(b.v4, 8080).into(), SOON)
            .map(|()| TcpStream::from(socket))
    });
    assert!(talks(&mut marked.expect("the west gate is declared")));
}
