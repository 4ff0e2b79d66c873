//! Every way in which a gate can end a packet, walked with hand-made frames on a real kernel. Needs root; fails
//! without it.

#[path = "netns/world.rs"]
#[allow(dead_code, reason = "each test binary uses its part of the world")]
mod world;

#[path = "netns/frames.rs"]
#[allow(dead_code, reason = "each test binary makes its own frames")]
mod frames;

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr, TcpListener, UdpSocket};
use std::time::{Duration, Instant};

use agent_common::{
    Action, Control, Direction, Endpoint, Identity, Reason, Rule, RuleKey, SocketKey,
};
use aya::maps::{Array, HashMap, Map};
use cardinal_agent::datapath::{Datapath, KernelTables, Network, scan};
use frames::{
    arp, ethernet, icmp, ipv4, ipv6, octets, parse, send, syn, tcp, udp_header, with_options,
};
use socket2::{Domain, Protocol, Socket, Type};
use world::{SOON, SURELY, TestPod, World, inside, udp_is_lost};

const CELL: u32 = 7;
const TCP: u8 = 6;
const UDP: u8 = 17;

fn count(datapath: &Datapath, direction: Direction, reason: Reason) -> u64 {
    let rows = datapath.counters().expect("counters can be read");
    rows.iter()
        .filter(|row| (row.way, row.reason) == (direction, reason))
        .map(|row| row.packets)
        .sum()
}

/// Waits until one more packet was counted under the reason than before.
fn expect(
    datapath: &Datapath,
    direction: Direction,
    reason: Reason,
    what: &str,
    act: impl FnOnce(),
) {
    let before = count(datapath, direction, reason);
    act();
    let end = Instant::now() + SURELY;
    while count(datapath, direction, reason) == before {
        assert!(
            Instant::now() < end,
            "{what}: no {direction} {reason}; {:#?}",
            datapath.counters()
        );
        std::thread::sleep(Duration::from_millis(2));
    }
}

struct Stage {
    tables: KernelTables,
    world: World,
    datapath: Datapath,
    a: TestPod,
    b: TestPod,
}

/// Two pods of one cell; b serves UDP 53 and 7777 to a. Port 4444 is forbidden, 4445 and 4446 are governed.
fn stage() -> Stage {
    let world = World::new(2);
    let [a, b] = [0, 1].map(|n: usize| world.pods[n].clone());
    let datapath = world.open();
    let mut tables = world.tables(1, &[CELL, CELL]);
    tables
        .identities
        .remove(&Network::new(parse("::"), 0))
        .expect("the world's entry");
    let (one, two) = (Identity::component(1), Identity::component(2));
    let rules = [
        (one, two, 53, UDP, Direction::Egress, Action::Pass),
        (two, one, 53, UDP, Direction::Ingress, Action::Pass),
        (one, two, 7777, UDP, Direction::Egress, Action::Pass),
        (two, one, 7777, UDP, Direction::Ingress, Action::Pass),
        (one, two, 0, 1, Direction::Egress, Action::Pass),
        (two, one, 0, 1, Direction::Ingress, Action::Pass),
        (one, two, 0, 58, Direction::Egress, Action::Pass),
        (two, one, 0, 58, Direction::Ingress, Action::Pass),
        (one, two, 4444, UDP, Direction::Egress, Action::Deny),
        (one, two, 4445, UDP, Direction::Egress, Action::Steer),
        (one, two, 4446, TCP, Direction::Egress, Action::Steer),
    ];
    for (of, peer, port, protocol, direction, action) in rules {
        let key = RuleKey::new(peer, port, protocol, direction);
        tables
            .policies
            .get_mut(&of)
            .expect("it has a pod")
            .insert(key, Rule::new(action, 1));
    }
    world.activate(&datapath, tables.clone());
    Stage {
        tables,
        world,
        datapath,
        a,
        b,
    }
}

#[test]
fn netns_every_branch_drops_with_its_own_reason() {
    let Stage {
        world,
        datapath,
        a,
        b,
        ..
    } = stage();
    let stranger = (parse("198.51.100.9"), parse("2001:db8::9"));
    let mut options = Vec::new();
    for _ in 0..7 {
        options.extend([60, 0, 1, 4, 0, 0, 0, 0]);
    }
    let routing = [17, 0, 0, 0, 0, 0, 0, 0];
    let quote = {
        let frame = ipv4(b.v4, a.v4, UDP, 0, &udp_header(1));
        let mut rest = vec![0; 4];
        rest.extend(&frame[14..]);
        rest
    };
    let advertisement = |target: IpAddr| {
        let mut rest = vec![0; 4];
        rest.extend(octets(target));
        icmp(136, &rest)
    };
    // Of a pod that asks who has the other's address, or says that it has its own; the options follow.
    let asks = |options: &[u8]| {
        let rest = [&[0; 4], &octets(b.v6)[..], options].concat();
        ipv6(a.v6, parse("ff02::1"), 58, &icmp(135, &rest))
    };
    let tells = |options: &[u8]| {
        let rest = [&[0; 4], &octets(a.v6)[..], options].concat();
        ipv6(a.v6, parse("ff02::1"), 58, &icmp(136, &rest))
    };
    const OWN: [u8; 8] = [1, 1, 2, 0, 0, 0, 0, 2];
    const NONCE: [u8; 8] = [14, 1, 1, 2, 3, 4, 5, 6];
    let egress: Vec<(&str, Vec<u8>, Reason)> = vec![
        (
            "an unknown protocol over Ethernet",
            ethernet(0x88b5, &[0; 46]),
            Reason::EtherType,
        ),
        (
            "a VLAN tag",
            ethernet(0x8100, &[0, 5, 8, 0, 0x45, 0, 0, 0]),
            Reason::Vlan,
        ),
        (
            "half an IPv4 header",
            ethernet(0x0800, &[0x45, 0, 0, 20, 0, 0, 0, 0, 64, 17]),
            Reason::Truncated,
        ),
        (
            "half a UDP header",
            ipv4(a.v4, b.v4, UDP, 0, &[0; 5]),
            Reason::Truncated,
        ),
        (
            "half an IPv6 header",
            ethernet(0x86dd, &[0x60; 12]),
            Reason::Truncated,
        ),
        (
            "IPv4 that says it is IPv5",
            ethernet(0x0800, &[0x55; 40]),
            Reason::Malformed,
        ),
        (
            "IPv6 that says it is IPv4",
            ethernet(0x86dd, &[0x45; 60]),
            Reason::Malformed,
        ),
        (
            "a v4-mapped address on the wire",
            ipv6(parse("::ffff:10.77.0.1"), b.v6, UDP, &udp_header(53)),
            Reason::Malformed,
        ),
        (
            "a TCP header cut after eight bytes",
            ipv4(a.v4, b.v4, TCP, 1, &[0; 16]),
            Reason::Malformed,
        ),
        (
            "seven extension headers",
            ipv6(a.v6, b.v6, 60, &options),
            Reason::ExtensionHeader,
        ),
        (
            "a routing header",
            ipv6(a.v6, b.v6, 43, &routing),
            Reason::SourceRoute,
        ),
        (
            "a loose source route",
            with_options(
                ipv4(a.v4, b.v4, UDP, 0, &udp_header(53)),
                &[1, 131, 7, 4, 10, 77, 0, 9],
            ),
            Reason::SourceRoute,
        ),
        (
            "a strict source route",
            with_options(
                ipv4(a.v4, b.v4, UDP, 0, &udp_header(53)),
                &[137, 7, 4, 10, 77, 0, 9],
            ),
            Reason::SourceRoute,
        ),
        (
            "an option shorter than its header",
            with_options(ipv4(a.v4, b.v4, UDP, 0, &udp_header(53)), &[68, 1]),
            Reason::Malformed,
        ),
        (
            "a header of padding",
            with_options(ipv4(a.v4, b.v4, UDP, 0, &udp_header(53)), &[1; 12]),
            Reason::ExtensionHeader,
        ),
        ("SCTP", ipv4(a.v4, b.v4, 132, 0, &[0; 12]), Reason::Protocol),
        ("GRE", ipv4(a.v4, b.v4, 47, 0, &[0; 12]), Reason::Protocol),
        (
            "IPv6 in IPv4",
            ipv4(a.v4, b.v4, 41, 0, &[0x60; 40]),
            Reason::Protocol,
        ),
        ("ESP", ipv6(a.v6, b.v6, 50, &[0; 24]), Reason::Protocol),
        (
            "VXLAN",
            ipv4(a.v4, b.v4, UDP, 0, &udp_header(4789)),
            Reason::Tunnel,
        ),
        (
            "Geneve",
            ipv6(a.v6, b.v6, UDP, &udp_header(6081)),
            Reason::Tunnel,
        ),
        (
            "MPLS",
            ethernet(0x8847, &[0x00, 0x01, 0x01, 64, 0x45, 0, 0, 20]),
            Reason::EtherType,
        ),
        (
            "a priority tag (VLAN 0)",
            ethernet(0x8100, &[0, 0, 8, 0, 0x45, 0, 0, 0]),
            Reason::Vlan,
        ),
        (
            "another hardware address",
            {
                let mut frame = ipv4(a.v4, b.v4, UDP, 0, &udp_header(53));
                frame[11] ^= 1;
                frame
            },
            Reason::MacSpoofed,
        ),
        (
            "SYN and FIN",
            ipv4(a.v4, b.v4, TCP, 0, &tcp(4446, 0x03)),
            Reason::TcpFlags,
        ),
        (
            "SYN and RST",
            ipv6(a.v6, b.v6, TCP, &tcp(4446, 0x06)),
            Reason::TcpFlags,
        ),
        (
            "FIN alone",
            ipv4(a.v4, b.v4, TCP, 0, &tcp(4446, 0x01)),
            Reason::TcpFlags,
        ),
        (
            "no flags",
            ipv4(a.v4, b.v4, TCP, 0, &tcp(4446, 0x08)),
            Reason::TcpFlags,
        ),
        (
            "an answer to nobody's SYN",
            ipv4(a.v4, b.v4, TCP, 0, &tcp(4446, 0x12)),
            Reason::TcpState,
        ),
        (
            "ICMPv6 over IPv4",
            ipv4(a.v4, b.v4, 58, 0, &[0; 12]),
            Reason::Protocol,
        ),
        (
            "no next header",
            ipv6(a.v6, b.v6, 59, &[0; 12]),
            Reason::Protocol,
        ),
        (
            "a later fragment alone",
            ipv4(a.v4, b.v4, UDP, 100, &[0; 16]),
            Reason::Fragment,
        ),
        (
            "a group",
            ipv4(a.v4, parse("224.0.0.251"), UDP, 0, &udp_header(5353)),
            Reason::Multicast,
        ),
        (
            "everybody",
            ipv4(a.v4, parse("255.255.255.255"), UDP, 0, &udp_header(67)),
            Reason::Multicast,
        ),
        (
            "a group of IPv6",
            ipv6(a.v6, parse("ff02::fb"), UDP, &udp_header(5353)),
            Reason::Multicast,
        ),
        (
            "a stranger's address",
            ipv4(stranger.0, b.v4, UDP, 0, &udp_header(53)),
            Reason::Spoofed,
        ),
        (
            "a stranger's address of IPv6",
            ipv6(stranger.1, b.v6, UDP, &udp_header(53)),
            Reason::Spoofed,
        ),
        (
            "the other pod's address",
            ipv4(b.v4, a.v4, UDP, 0, &udp_header(53)),
            Reason::Spoofed,
        ),
        (
            "a link-local address",
            ipv6(parse("fe80::9"), b.v6, UDP, &udp_header(53)),
            Reason::Spoofed,
        ),
        (
            "ARP in another's name",
            arp(b.v4, parse("169.254.1.1")),
            Reason::ArpSpoofed,
        ),
        (
            "ARP for tokens",
            ethernet(0x0806, &[0; 28]),
            Reason::Malformed,
        ),
        (
            "an advertisement of another's address",
            ipv6(a.v6, parse("ff02::1"), 58, &advertisement(b.v6)),
            Reason::NeighbourSpoofed,
        ),
        (
            "an advertisement of its own address to the world",
            ipv6(a.v6, stranger.1, 58, &advertisement(a.v6)),
            Reason::NeighbourSpoofed,
        ),
        (
            "an advertisement of its own address beyond the link",
            ipv6(a.v6, parse("ff0e::1"), 58, &advertisement(a.v6)),
            Reason::NeighbourSpoofed,
        ),
        (
            "a question from another hardware address",
            asks(&[1, 1, 2, 0, 0, 0, 0, 9]),
            Reason::NeighbourSpoofed,
        ),
        (
            "an advertisement of another hardware address",
            tells(&[2, 1, 2, 0, 0, 0, 0, 9]),
            Reason::NeighbourSpoofed,
        ),
        (
            "another hardware address behind other options",
            asks(&[OWN, NONCE, [1, 1, 2, 0, 0, 0, 0, 9]].concat()),
            Reason::NeighbourSpoofed,
        ),
        (
            "a hardware address that is longer than Ethernet's",
            tells(&[2, 2, 2, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0]),
            Reason::NeighbourSpoofed,
        ),
        (
            "an option of no length",
            asks(&[14, 0, 0, 0, 0, 0, 0, 0]),
            Reason::Malformed,
        ),
        (
            "an option beyond the packet",
            tells(&[14, 2, 0, 0, 0, 0, 0, 0]),
            Reason::Malformed,
        ),
        ("half an option", asks(&OWN[..4]), Reason::Malformed),
        (
            "another hardware address beyond the payload",
            {
                let mut frame = asks(&[1, 1, 2, 0, 0, 0, 0, 9]);
                frame[18..20].fill(0);
                frame
            },
            Reason::Malformed,
        ),
        (
            "a payload beyond the packet",
            {
                let mut frame = asks(&OWN);
                frame[19] += 8;
                frame
            },
            Reason::Truncated,
        ),
        (
            "nine options",
            asks(&NONCE.repeat(9)),
            Reason::ExtensionHeader,
        ),
        (
            "a router advertisement",
            ipv6(parse("fe80::9"), parse("ff02::1"), 58, &icmp(134, &[0; 12])),
            Reason::RouterClaim,
        ),
        (
            "a redirect",
            ipv4(a.v4, b.v4, 1, 0, &icmp(5, &quote)),
            Reason::RouterClaim,
        ),
        (
            "an error about nothing",
            ipv4(a.v4, b.v4, 1, 0, &icmp(3, &quote)),
            Reason::IcmpUntracked,
        ),
        (
            "a reply to nothing",
            ipv4(a.v4, b.v4, 1, 0, &icmp(0, &[0, 9, 0, 1])),
            Reason::IcmpUntracked,
        ),
        (
            "a timestamp request",
            ipv4(a.v4, b.v4, 1, 0, &icmp(13, &[0; 16])),
            Reason::IcmpType,
        ),
        (
            "an address that nobody has",
            ipv6(a.v6, stranger.1, UDP, &udp_header(53)),
            Reason::UnknownPeer,
        ),
        (
            "an undeclared port",
            ipv4(a.v4, b.v4, UDP, 0, &udp_header(54)),
            Reason::NotDeclared,
        ),
        (
            "a forbidden port",
            ipv4(a.v4, b.v4, UDP, 0, &udp_header(4444)),
            Reason::Denied,
        ),
        (
            "governed UDP",
            ipv4(a.v4, b.v4, UDP, 0, &udp_header(4445)),
            Reason::SteerProtocol,
        ),
        (
            "governed TCP without router",
            ipv6(a.v6, b.v6, TCP, &syn(4446)),
            Reason::ListenerMissing,
        ),
    ];
    let mut walked = BTreeSet::new();
    for (what, frame, reason) in egress {
        walked.insert(reason);
        expect(&datapath, Direction::Egress, reason, what, || {
            send(&a.netns, "eth0", frame)
        });
    }
    let ingress: Vec<(&str, Vec<u8>, Reason)> = vec![
        (
            "a destination that the pod has not",
            ipv4(a.v4, stranger.0, UDP, 0, &udp_header(53)),
            Reason::WrongDestination,
        ),
        (
            "a question for another's address",
            arp(parse("169.254.1.1"), a.v4),
            Reason::ArpSpoofed,
        ),
        (
            "an undeclared caller",
            ipv4(parse("198.51.100.1"), b.v4, UDP, 0, &udp_header(53)),
            Reason::NotDeclared,
        ),
        (
            "a router advertisement",
            ipv6(parse("fe80::1"), parse("ff02::1"), 58, &icmp(134, &[0; 12])),
            Reason::RouterClaim,
        ),
        (
            "an error about nothing",
            ipv4(a.v4, b.v4, 1, 0, &icmp(3, &quote)),
            Reason::IcmpUntracked,
        ),
    ];
    for (what, frame, reason) in ingress {
        walked.insert(reason);
        expect(&datapath, Direction::Ingress, reason, what, || {
            send(&world.node, &b.ifname, frame)
        });
    }
    // A listener of another namespace cannot be assigned.
    let elsewhere = inside(&b.netns, || TcpListener::bind("127.0.0.1:0")).expect("loopback");
    datapath
        .set_socket(SocketKey::TRANSPARENT_V4, &elsewhere)
        .expect("the map has room");
    walked.insert(Reason::SteerFailed);
    expect(
        &datapath,
        Direction::Egress,
        Reason::SteerFailed,
        "a listener of another namespace",
        || {
            send(&a.netns, "eth0", ipv4(a.v4, b.v4, TCP, 0, &syn(4446)));
        },
    );

    // What only a damaged table can cause: take the generation apart behind the agent's back.
    let question = || send(&a.netns, "eth0", ipv4(a.v4, b.v4, UDP, 0, &udp_header(53)));
    let mut endpoints: HashMap<_, [u32; 2], [u32; 7]> =
        HashMap::try_from(Map::HashMap(world.pinned("endpoints"))).expect("a hash");
    let mut control: Array<_, [u32; 6]> =
        Array::try_from(Map::Array(world.pinned("control"))).expect("an array");
    let key = [1, a.ifindex];
    let whole = endpoints.get(&key, 0).expect("the pod is known");
    let [identity, cell, policy, _, lookups, mac, rest] = whole;
    let none = Endpoint::NO_SLOT;
    let mut endpoint = |value| endpoints.insert(key, value, 0).expect("writable for root");
    endpoint([identity, cell, none, none, lookups, mac, rest]);
    expect(
        &datapath,
        Direction::Egress,
        Reason::NoPolicy,
        "no rules",
        question,
    );
    endpoint([identity, cell, policy, none, lookups, mac, rest]);
    expect(
        &datapath,
        Direction::Egress,
        Reason::FlowTable,
        "no table of flows",
        question,
    );
    let first = ipv4(a.v4, b.v4, UDP, 0x2000, &udp_header(53));
    expect(
        &datapath,
        Direction::Egress,
        Reason::FragmentTable,
        "no table of fragments",
        || send(&a.netns, "eth0", first),
    );
    endpoint(whole);
    let schema = Control::SCHEMA;
    let mut switch = |generation| {
        control
            .set(0, [generation, schema, 250, 0, 0, 0], 0)
            .expect("writable for root");
    };
    switch(9);
    expect(
        &datapath,
        Direction::Egress,
        Reason::NoEndpoint,
        "an unknown generation",
        question,
    );
    switch(0);
    expect(
        &datapath,
        Direction::Egress,
        Reason::NoGeneration,
        "no generation",
        question,
    );
    walked.extend([
        Reason::NoPolicy,
        Reason::FlowTable,
        Reason::FragmentTable,
        Reason::NoEndpoint,
        Reason::NoGeneration,
    ]);

    let all: BTreeSet<Reason> = Reason::ALL
        .iter()
        .copied()
        .filter(|reason| reason.is_drop())
        .collect();
    assert_eq!(walked, all, "every drop reason is walked");
}

#[test]
fn netns_harmless_options_and_advertisements_on_the_link_pass() {
    let Stage {
        world: _world,
        datapath,
        a,
        b,
        ..
    } = stage();
    let question = ipv4(a.v4, b.v4, UDP, 0, &udp_header(53));
    let router_alert = [148, 4, 0, 0];
    expect(
        &datapath,
        Direction::Egress,
        Reason::Policy,
        "a router alert",
        || send(&a.netns, "eth0", with_options(question, &router_alert)),
    );
    let mut rest = vec![0; 4];
    rest.extend(octets(a.v6));
    for (to, options) in [
        ("ff02::1", vec![]),
        ("fe80::1", vec![]),
        ("ff02::1", vec![2, 1, 2, 0, 0, 0, 0, 2]),
        // As many as are read.
        ("ff02::1", [14, 1, 1, 2, 3, 4, 5, 6].repeat(8)),
    ] {
        let message = [&rest[..], &options].concat();
        expect(&datapath, Direction::Egress, Reason::Neighbour, to, || {
            send(
                &a.netns,
                "eth0",
                ipv6(a.v6, parse(to), 58, &icmp(136, &message)),
            )
        });
    }
}

#[test]
fn netns_an_allowed_connection_opens_no_way_back() {
    let Stage {
        world,
        datapath,
        a,
        b,
        ..
    } = stage();
    let tables = {
        let mut tables = world.tables(2, &[CELL, CELL]);
        let rules = [
            (
                1,
                RuleKey::new(Identity::component(2), 8080, TCP, Direction::Egress),
            ),
            (
                2,
                RuleKey::new(Identity::component(1), 8080, TCP, Direction::Ingress),
            ),
        ];
        for (of, key) in rules {
            let of = tables
                .policies
                .get_mut(&Identity::component(of))
                .expect("it has a pod");
            of.insert(key, Rule::new(Action::Pass, 1));
        }
        tables
    };
    world.activate(&datapath, tables);
    world::echo_tcp(&b.netns, SocketAddr::new(b.v4, 8080));
    let mut stream = world::connect(&a.netns, SocketAddr::new(b.v4, 8080)).expect("declared");
    assert!(world::talks(&mut stream));
    let port = stream.local_addr().expect("a connected socket").port();
    let mut back = syn(port);
    back[..2].copy_from_slice(&8080u16.to_be_bytes());
    let frame = ipv4(b.v4, a.v4, TCP, 0, &back);
    expect(
        &datapath,
        Direction::Egress,
        Reason::NotDeclared,
        "a new connection back",
        || {
            send(&b.netns, "eth0", frame);
        },
    );
    assert!(world::talks(&mut stream), "the connection itself lives on");
}

#[test]
fn netns_an_error_right_after_a_flip_is_judged_like_its_connection() {
    let Stage {
        mut tables,
        world,
        datapath,
        a,
        b,
    } = stage();
    let question = ipv4(a.v4, b.v4, UDP, 0, &udp_header(7777));
    let mut quote = vec![0; 4];
    quote.extend(&question[14..]);
    let error = ipv4(b.v4, a.v4, 1, 0, &icmp(3, &quote));
    // Nobody listens on 7777: the pod's own kernel sends the first error. The connection is the one that is quoted.
    let (from, to) = (SocketAddr::new(a.v4, 0xc000), SocketAddr::new(b.v4, 7777));
    expect(
        &datapath,
        Direction::Ingress,
        Reason::IcmpError,
        "an error of this generation",
        || {
            inside(&a.netns, move || {
                let socket = UdpSocket::bind(from).expect("its own address");
                socket.send_to(b"anybody?", to).expect("declared");
            });
        },
    );
    tables.generation = 2;
    world.activate(&datapath, tables.clone());
    // Each gate has a flow of its own, so each is asked.
    let node = world.node.clone();
    for (direction, netns, interface) in [
        (Direction::Egress, &b.netns, "eth0"),
        (Direction::Ingress, &node, a.ifname.as_str()),
    ] {
        let again = error.clone();
        expect(&datapath, direction, Reason::IcmpError, "stale", || {
            send(netns, interface, again)
        });
    }
    tables.generation = 3;
    for number in [1, 2] {
        let rules = tables
            .policies
            .get_mut(&Identity::component(number))
            .expect("it has a pod");
        let kept = rules.iter().filter(|(key, _)| key.port() != 7777);
        *rules = kept.map(|(key, rule)| (*key, *rule)).collect();
    }
    world.activate(&datapath, tables);
    expect(
        &datapath,
        Direction::Egress,
        Reason::IcmpUntracked,
        "revoked",
        || send(&b.netns, "eth0", error),
    );
}

#[test]
fn netns_errors_of_tracked_flows_and_declared_echo_pass() {
    let Stage {
        world,
        datapath,
        a,
        b,
        ..
    } = stage();
    inside(&a.netns, || {
        std::fs::write("/proc/sys/net/ipv4/ping_group_range", "0 0")
    })
    .expect("a namespace's own setting");
    for (source, to) in [(a.v4, b.v4), (a.v6, b.v6)] {
        let refused = inside(&a.netns, move || {
            let socket = UdpSocket::bind(SocketAddr::new(source, 0)).expect("its own address");
            socket
                .set_read_timeout(Some(SURELY))
                .expect("a time above zero");
            socket
                .connect(SocketAddr::new(to, 7777))
                .expect("a UDP socket");
            socket.send(b"anybody?").expect("declared");
            socket.recv(&mut [0; 8]).expect_err("nobody").kind()
        });
        assert_eq!(refused, std::io::ErrorKind::ConnectionRefused, "{to}");
        let echoed = |netns: &str, to: IpAddr, within| {
            inside(netns, move || {
                let (domain, protocol, kind) = match to {
                    IpAddr::V4(_) => (Domain::IPV4, Protocol::ICMPV4, 8),
                    IpAddr::V6(_) => (Domain::IPV6, Protocol::ICMPV6, 128),
                };
                let socket =
                    Socket::new(domain, Type::DGRAM, Some(protocol)).expect("a ping socket");
                socket
                    .set_read_timeout(Some(within))
                    .expect("a time above zero");
                let mut message = [0; 3000];
                message[0] = kind;
                socket
                    .send_to(&message, &SocketAddr::new(to, 0).into())
                    .expect("there is a route");
                let mut buffer = [std::mem::MaybeUninit::uninit(); 4000];
                socket
                    .recv(&mut buffer)
                    .is_ok_and(|length| length == message.len())
            })
        };
        assert!(echoed(&a.netns, to, SURELY), "echo to {to}, in fragments");
        inside(&b.netns, || {
            std::fs::write("/proc/sys/net/ipv4/ping_group_range", "0 0")
        })
        .expect("its own setting");
        assert!(
            !echoed(&b.netns, source, SOON),
            "undeclared echo to {source}"
        );
    }
    for direction in [Direction::Egress, Direction::Ingress] {
        assert!(
            count(&datapath, direction, Reason::IcmpError) >= 2,
            "{direction}"
        );
        assert!(
            count(&datapath, direction, Reason::Neighbour) >= 2,
            "{direction}"
        );
    }
    assert!(
        udp_is_lost(&world.node, SocketAddr::new(b.v4, 53), 8),
        "the node is not declared"
    );
    let found = inside(&world.node, scan).expect("the node can be scanned");
    assert!(
        found.node_addresses.contains(&parse("169.254.1.1")),
        "{found:?}"
    );
}
