//! Flows: how connections are known, how they end, and whose room they take, on a real kernel. Needs root; fails without it.

#[path = "netns/rules.rs"]
#[allow(dead_code, reason = "each test binary uses its part of the rules")]
mod rules;
#[path = "netns/world.rs"]
#[allow(dead_code, reason = "each test binary uses its part of the world")]
mod world;

#[path = "netns/frames.rs"]
#[allow(dead_code, reason = "each test binary makes its own frames")]
mod frames;

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsRawFd as _;
use std::time::Duration;

use agent_common::{Control, Direction, FlowState, FlowValue, Path, Reason};
use aya::maps::{ArrayOfMaps, HashMap, Map, MapData};
use cardinal_agent::datapath::{Datapath, GateHook, Rules};
use frames::{ipv4, send, udp_header};
use rules::{TCP, UDP, allow, at};
use world::{SOON, SURELY, TestPod, World, chain, connect, echo_udp, inside, talks, udp, until};

const ICMP: u8 = 1;

/// A pod's own tables of flows, assured and other, as the kernel has them: keys of 40 bytes.
struct Table([HashMap<MapData, [u8; 40], [u8; VALUE]>; 2]);

const VALUE: usize = size_of::<FlowValue>();

impl Table {
    fn of(world: &World, generation: u32, pod: &TestPod) -> Self {
        let endpoints: HashMap<_, [u32; 2], [u32; 7]> =
            HashMap::try_from(Map::HashMap(world.pinned("endpoints"))).expect("a hash");
        let [_, _, _, slot, ..] = endpoints
            .get(&[generation, pod.ifindex], 0)
            .expect("the pod is known");
        Self(["flows", "unassured"].map(|name| {
            let outer: ArrayOfMaps<_, MapData> =
                ArrayOfMaps::try_from(Map::ArrayOfMaps(world.pinned(name))).expect("a map of maps");
            let inner = outer.get(&slot, 0).expect("the pod has flows");
            HashMap::try_from(Map::LruHashMap(inner)).expect("a hash")
        }))
    }

    /// The flows of one protocol with their values.
    fn flows(&self, protocol: u8) -> Vec<([u8; 40], FlowValue)> {
        self.0
            .iter()
            .flat_map(HashMap::iter)
            .map(|entry| entry.expect("the table can be read"))
            .filter(|(key, _)| key[36] == protocol)
            .map(|(key, value)| {
                // SAFETY: any bytes are a flow's value.
                let value = unsafe { std::mem::transmute::<[u8; VALUE], FlowValue>(value) };
                (key, value)
            })
            .collect()
    }

    fn only(&self, protocol: u8) -> ([u8; 40], FlowValue) {
        let flows = self.flows(protocol);
        assert_eq!(flows.len(), 1, "{flows:?}");
        flows[0]
    }

    /// Makes a flow look as if its last packet had come `seconds` earlier.
    fn age(&mut self, key: &[u8; 40], value: &FlowValue, seconds: u64) {
        let tables = self.0.iter_mut();
        let (mut bytes, table) = tables
            .filter_map(|table| Some((table.get(key, 0).ok()?, table)))
            .next()
            .expect("it is there");
        let tick = nix::time::clock_getres(nix::time::ClockId::CLOCK_MONOTONIC_COARSE)
            .expect("every kernel has this clock")
            .tv_nsec() as u64;
        let seen = value.seen() - seconds * 1_000_000_000 / tick;
        bytes[..8].copy_from_slice(&seen.to_ne_bytes());
        table.insert(key, bytes, 0).expect("writable for root");
    }
}

fn count(datapath: &Datapath, fits: impl Fn(Direction, Path, Reason) -> bool) -> u64 {
    let rows = datapath.counters().expect("counters can be read");
    rows.iter()
        .filter(|row| fits(row.way, row.path, row.reason))
        .map(|row| row.packets)
        .sum()
}

/// A server that sends first whenever it is told to, and otherwise nothing.
fn push(netns: &str, address: SocketAddr) -> TcpListener {
    inside(netns, move || TcpListener::bind(address)).expect("the pod's own address")
}

fn receives(stream: &mut TcpStream) -> bool {
    let mut buffer = [0; 4];
    stream
        .set_read_timeout(Some(SOON))
        .expect("a time above zero");
    stream.read_exact(&mut buffer).is_ok()
}

#[test]
fn netns_a_flow_that_was_idle_for_too_long_is_no_answer_any_more() {
    for v6 in [false, true] {
        let world = World::new(2);
        let [a, b] = [0, 1].map(|n: usize| world.pods[n].clone());
        let datapath = world.open();
        let mut tables = world.tables(1, &[1, 1]);
        allow(&mut tables, 1, 2, 80, TCP);
        world.activate(&datapath, tables);
        let to = at(if v6 { b.v6 } else { b.v4 }, 80);
        let listener = push(&b.netns, to);
        let mut client = connect(&a.netns, to).expect("declared");
        let (mut server, _) = listener.accept().expect("a connection");
        server.write_all(b"once").expect("an open connection");
        assert!(receives(&mut client));

        let mut table = Table::of(&world, 1, &b);
        let (key, flow) = table.only(TCP);
        assert_eq!(flow.direction(), Direction::Ingress);
        assert!(flow.state().has(FlowState::REPLIED));
        table.age(&key, &flow, 7441);
        let before = count(&datapath, |_, _, reason| reason == Reason::NotDeclared);
        server.write_all(b"late").expect("an open connection");
        assert!(!receives(&mut client), "the server opens nothing");
        assert!(count(&datapath, |_, _, reason| reason == Reason::NotDeclared) > before);
        // The opener's next packet makes it known again, and the retransmission comes through.
        client.write_all(b"hello").expect("an open connection");
        client
            .set_read_timeout(Some(SURELY))
            .expect("a time above zero");
        let mut buffer = [0; 4];
        client.read_exact(&mut buffer).expect("the answer arrives");
        assert_eq!(&buffer, b"late");
    }
}

#[test]
fn netns_the_end_of_a_connection_is_noted() {
    let world = World::new(2);
    let [a, b] = [0, 1].map(|n: usize| world.pods[n].clone());
    let datapath = world.open();
    let mut tables = world.tables(1, &[1, 1]);
    allow(&mut tables, 1, 2, 80, TCP);
    world.activate(&datapath, tables);
    let listener = push(&b.netns, at(b.v4, 80));
    let listener_v6 = push(&b.netns, at(b.v6, 80));
    let states = |pod: &TestPod| {
        let mut states: Vec<_> = Table::of(&world, 1, pod)
            .flows(TCP)
            .into_iter()
            .map(|(_, flow)| flow.state())
            .collect();
        states.sort_by_key(|state| format!("{state:?}"));
        states
    };

    let client = connect(&a.netns, at(b.v4, 80)).expect("declared");
    let (server, _) = listener.accept().expect("a connection");
    assert!(states(&a).iter().all(|state| !state.closed()));
    drop(client);
    for pod in [&a, &b] {
        until("the opener's end is noted", || {
            let seen = states(pod);
            seen.len() == 1 && seen[0].has(FlowState::FIN_OPENER) && !seen[0].closed()
        });
    }
    // With the last acknowledgement nothing of it is left.
    drop(server);
    let client = connect(&a.netns, at(b.v6, 80)).expect("declared");
    let (server, _) = listener_v6.accept().expect("a connection");
    drop(server);
    drop(client);
    until("nothing is left", || states(&b).is_empty());
    // Where the opener acknowledged last, its gate keeps the flow for the other side's repeated end.
    until("it is closed", || {
        let seen = states(&a);
        seen.len() == 1 && seen[0].closed()
    });

    let client = connect(&a.netns, at(b.v4, 80)).expect("declared");
    let (server, _) = listener.accept().expect("a connection");
    socket2::SockRef::from(&client)
        .set_linger(Some(Duration::ZERO))
        .expect("a TCP socket");
    drop(client);
    until("the reset is noted", || {
        states(&b).iter().any(|state| state.has(FlowState::RESET))
    });
    drop(server);
}

#[test]
fn netns_a_pod_pushes_out_no_flows_but_its_own() {
    let world = World::new(4);
    let [a, b, c, d] = [0, 1, 2, 3].map(|n: usize| world.pods[n].clone());
    let datapath = world.open();
    let mut tables = world.tables(1, &[1, 1, 2, 2]);
    allow(&mut tables, 1, 2, 0, UDP);
    allow(&mut tables, 3, 4, 5353, UDP);
    world.activate(&datapath, tables);
    // c asks d, and d answers only when it is told to: its answer passes by the flow alone.
    let asker = inside(&c.netns, {
        let from = at(c.v4, 4000);
        move || UdpSocket::bind(from)
    })
    .expect("the pod's own address");
    let answerer = inside(&d.netns, {
        let from = at(d.v4, 5353);
        move || UdpSocket::bind(from)
    })
    .expect("the pod's own address");
    asker.send_to(b"ask", at(d.v4, 5353)).expect("declared");
    let mut buffer = [0; 16];
    answerer.set_read_timeout(Some(SURELY)).expect("above zero");
    let (_, back) = answerer.recv_from(&mut buffer).expect("the question");

    const FLOWS: u16 = 20_000;
    let target = b.v4;
    inside(&a.netns, move || {
        let socket = UdpSocket::bind("0.0.0.0:0").expect("any port");
        for port in 1..=FLOWS {
            // The receiver has no such port; what it answers may come back as an error of an earlier datagram.
            let _ = socket.send_to(b"x", at(target, port));
        }
    });
    let own = Table::of(&world, 1, &a).flows(UDP).len();
    assert!(
        (2000..=4096).contains(&own),
        "{own} flows of {FLOWS}: as many as there is room for"
    );
    let fresh = count(&datapath, |way, path, reason| {
        (way, path, reason) == (Direction::Egress, Path::Intra, Reason::Policy)
    });
    // All but the three ports of tunnels.
    assert!(fresh >= u64::from(FLOWS) - 3, "{fresh}");
    answerer.send_to(b"answer", back).expect("an open socket");
    asker.set_read_timeout(Some(SURELY)).expect("above zero");
    asker
        .recv_from(&mut buffer)
        .expect("the answer passes by the flow of before");
}

#[test]
fn netns_whoever_floods_a_pod_pushes_out_no_connection_of_its_other_callers() {
    const OPENINGS: u16 = 20_000;
    let world = World::new(3);
    let [a, b, c] = [0, 1, 2].map(|n: usize| world.pods[n].clone());
    let datapath = world.open();
    let mut tables = world.tables(1, &[1, 1, 1]);
    for caller in [1, 3] {
        allow(&mut tables, caller, 2, 80, TCP);
        allow(&mut tables, caller, 2, 0, UDP);
    }
    world.activate(&datapath, tables);
    let listener = push(&b.netns, at(b.v4, 80));
    let mut client = connect(&c.netns, at(b.v4, 80)).expect("declared");
    let (mut server, _) = listener.accept().expect("a connection");
    client.write_all(b"hello").expect("an open connection");

    // a opens connections and answers none, sends datagrams, and aborts what it has opened.
    let openings = (1..=OPENINGS).map(|port| {
        let mut segment = frames::syn(80);
        segment[..2].copy_from_slice(&port.to_be_bytes());
        ipv4(a.v4, b.v4, TCP, 0, &segment)
    });
    frames::send_all(&a.netns, "eth0", openings.collect());
    let target = b.v4;
    inside(&a.netns, move || {
        let socket = UdpSocket::bind("0.0.0.0:0").expect("any port");
        for port in 1..=OPENINGS {
            // The receiver has no such port; what it answers may come back as an error of an earlier datagram.
            let _ = socket.send_to(b"x", at(target, port));
        }
    });
    for _ in 0..9000 {
        let aborted = connect(&a.netns, at(b.v4, 80)).expect("declared");
        let (accepted, _) = listener.accept().expect("a connection");
        socket2::SockRef::from(&aborted)
            .set_linger(Some(Duration::ZERO))
            .expect("a TCP socket");
        drop((aborted, accepted));
    }
    let opened = count(&datapath, |way, _, reason| {
        (way, reason) == (Direction::Ingress, Reason::Policy)
    });
    assert!(opened > 2 * u64::from(OPENINGS), "{opened} flows at b");

    // b speaks first: its packets pass by the flow alone.
    server.write_all(b"push").expect("an open connection");
    assert!(receives(&mut client), "the flow is there still");
    let denied = |_, _, reason| reason == Reason::NotDeclared;
    assert_eq!(count(&datapath, denied), 0);
}

#[test]
fn netns_connections_older_than_the_gates_live_on_when_they_may_be_picked_up() {
    for (window, lives) in [(Duration::from_secs(60), true), (Duration::ZERO, false)] {
        let world = World::new(2);
        let [a, b] = [0, 1].map(|n: usize| world.pods[n].clone());
        let listener = push(&b.netns, at(b.v6, 80));
        let mut client = connect(&a.netns, at(b.v6, 80)).expect("nothing is guarded yet");
        let (mut server, _) = listener.accept().expect("a connection");

        let mut config = world.config(GateHook::Auto);
        config.pick_up = window;
        let datapath = inside(&world.node, move || Datapath::open(&config))
            .unwrap_or_else(|error| panic!("{}", chain(&error)));
        let mut tables = world.tables(1, &[1, 1]);
        allow(&mut tables, 1, 2, 80, TCP);
        world.activate(&datapath, tables.clone());
        server.write_all(b"push").expect("an open connection");
        assert_eq!(receives(&mut client), lives, "{window:?}");
        if lives {
            let (_, flow) = Table::of(&world, 1, &b).only(TCP);
            assert_eq!(flow.direction(), Direction::Ingress, "who opened it");
            // What may not be opened may not be picked up either.
            tables.generation = 2;
            let revoked = tables.policies.keys().map(|of| (*of, Rules::new()));
            tables.policies = revoked.collect();
            world.activate(&datapath, tables);
            server.write_all(b"more").expect("an open connection");
            assert!(!receives(&mut client));
        }
    }
}

#[test]
fn netns_an_agent_with_other_maps_takes_over_without_a_gap() {
    let world = World::new(2);
    let [a, b] = [0, 1].map(|n: usize| world.pods[n].clone());
    let tables = |generation| {
        let mut tables = world.tables(generation, &[1, 1]);
        allow(&mut tables, 1, 2, 80, TCP);
        tables
    };
    let datapath = world.open();
    world.activate(&datapath, tables(1));
    world::echo_tcp(&b.netns, at(b.v4, 80));
    world::echo_tcp(&b.netns, at(b.v4, 81));
    let mut stream = connect(&a.netns, at(b.v4, 80)).expect("declared");
    assert!(talks(&mut stream));
    drop(datapath);
    // The maps of another layout, as far as this agent can tell.
    let root = world.folder.join("bpf");
    let (own, other) = (format!("maps_{}", Control::SCHEMA), "maps_1");
    fs::rename(root.join(&own), root.join(other)).expect("pins can be moved");

    let datapath = world.open();
    assert_eq!(datapath.active_generation(), 0, "its own maps are new");
    assert!(talks(&mut stream), "the earlier programs judge on");
    assert!(!world::tcp(&a.netns, at(b.v4, 81)), "and deny on");
    let care = datapath.look_after(&[], true);
    assert!(
        care.failed.is_empty() && care.tables.is_empty(),
        "nothing is replaced before its time: {care:?}"
    );
    assert!(talks(&mut stream));
    assert!(root.join(other).exists());
    world.activate(&datapath, tables(1));
    assert!(
        !root.join(other).exists(),
        "nothing is left of the other layout"
    );
    assert!(talks(&mut stream), "judged by the new programs");
    assert!(!world::tcp(&a.netns, at(b.v4, 81)));
    assert_eq!(datapath.guarded().len(), 2);
    let established = count(&datapath, |_, _, reason| reason == Reason::Established);
    assert!(established > 0, "the new maps count");
}

#[test]
fn netns_packets_between_pods_look_routed_and_the_old_ones_end_at_the_node() {
    let world = World::new(2);
    let [a, b] = [0, 1].map(|n: usize| world.pods[n].clone());
    let datapath = world.open();
    let mut tables = world.tables(1, &[1, 1]);
    allow(&mut tables, 1, 2, 0, UDP);
    allow(&mut tables, 1, 2, 0, ICMP);
    world.activate(&datapath, tables);
    echo_udp(&b.netns, at(b.v4, 5353));
    assert!(udp(&a.netns, at(b.v4, 5353), 64));
    assert!(
        udp(&a.netns, at(b.v4, 5353), 4000),
        "fragments take the stack"
    );

    for (to, level, name, kind) in [
        (b.v4, libc::IPPROTO_IP, libc::IP_RECVTTL, libc::IP_TTL),
        (
            b.v6,
            libc::IPPROTO_IPV6,
            libc::IPV6_RECVHOPLIMIT,
            libc::IPV6_HOPLIMIT,
        ),
    ] {
        let receiver = inside(&b.netns, move || UdpSocket::bind(at(to, 6000))).expect("own");
        let on: i32 = 1;
        // SAFETY: the option's value is an integer of the size that is told.
        let set = unsafe {
            libc::setsockopt(
                receiver.as_raw_fd(),
                level,
                name,
                std::ptr::from_ref(&on).cast(),
                size_of::<i32>() as u32,
            )
        };
        assert_eq!(set, 0);
        receiver.set_read_timeout(Some(SURELY)).expect("above zero");
        inside(&a.netns, move || {
            let any = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
            let socket = UdpSocket::bind(any).expect("any port");
            socket.send_to(b"hop", at(to, 6000)).expect("declared");
        });
        let (mut bytes, mut control) = ([0u8; 16], [0u8; 64]);
        let mut vector = libc::iovec {
            iov_base: bytes.as_mut_ptr().cast(),
            iov_len: bytes.len(),
        };
        // SAFETY: all zero is a valid message header, and the pointers outlive the call.
        let (length, hops) = unsafe {
            let mut message: libc::msghdr = std::mem::zeroed();
            message.msg_iov = &raw mut vector;
            message.msg_iovlen = 1;
            message.msg_control = control.as_mut_ptr().cast();
            message.msg_controllen = control.len();
            let length = libc::recvmsg(receiver.as_raw_fd(), &raw mut message, 0);
            let header = libc::CMSG_FIRSTHDR(&raw const message);
            assert!(!header.is_null(), "the kernel tells the hop count");
            assert_eq!(((*header).cmsg_level, (*header).cmsg_type), (level, kind));
            (
                length,
                std::ptr::read_unaligned(libc::CMSG_DATA(header).cast::<i32>()),
            )
        };
        assert_eq!(
            (length, hops),
            (3, 63),
            "{to}: one hop fewer than it was sent with"
        );
    }

    // One that has no hop left is the node's to answer for.
    let mut frame = ipv4(a.v4, b.v4, UDP, 0, &udp_header(6001));
    frame[22] = 1;
    let sum = frame[14..34]
        .chunks(2)
        .map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])))
        .sum::<u32>();
    let sum = !(((sum & 0xffff) + (sum >> 16)) as u16);
    frame[24..26].copy_from_slice(&sum.to_be_bytes());
    let errors = || {
        count(&datapath, |way, _, reason| {
            (way, reason) == (Direction::Ingress, Reason::IcmpError)
        })
    };
    let before = errors();
    send(&a.netns, "eth0", frame);
    until("time exceeded comes back to the sender", || {
        errors() == before + 1
    });
}
