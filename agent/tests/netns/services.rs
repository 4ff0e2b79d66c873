//! Services of a test, and who answers at them.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::thread;
use std::time::Duration;

use agent_common::{Action, Direction, Identity, Rule, RuleKey};
use aya::maps::{Array, HashMap, Map};
use cardinal_agent::datapath::{
    Backend, Datapath, KernelTables, MapFacts, Service, ServiceAddress,
};

use super::rules::{TCP, UDP};
use super::world::{SURELY, TestPod, World, chain, in_cgroup, inside};

/// Lets pod 1 call pod 2 on every port.
pub(crate) fn open_both(tables: &mut KernelTables) {
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

pub(crate) fn service_at(address: &str, port: u16, protocol: u8) -> ServiceAddress {
    ServiceAddress {
        address: address.parse().expect("an address"),
        port,
        protocol,
    }
}

pub(crate) fn backends(address: IpAddr, shares: &[(u16, u32)]) -> Vec<Backend> {
    let backend = |(port, weight)| Backend {
        address,
        port,
        weight,
    };
    shares.iter().copied().map(backend).collect()
}

pub(crate) fn service(address: IpAddr, ports: &[u16]) -> Service {
    let shares: Vec<(u16, u32)> = ports.iter().map(|port| (*port, 1)).collect();
    Service {
        backends: backends(address, &shares),
        affinity: None,
    }
}

/// UDP servers that answer every datagram with their own port.
pub(crate) fn name_udp(pod: &TestPod, address: IpAddr, ports: impl IntoIterator<Item = u16>) {
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
pub(crate) fn ask(to: SocketAddr, within: Duration) -> std::io::Result<u16> {
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
pub(crate) fn answers(
    world: &World,
    pod: &TestPod,
    to: SocketAddr,
    count: usize,
) -> BTreeMap<u16, usize> {
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
pub(crate) fn one(world: &World, pod: &TestPod, to: SocketAddr, count: usize) -> u16 {
    let answers = answers(world, pod, to, count);
    assert_eq!(answers.len(), 1, "{answers:?}");
    *answers.keys().next().expect("one answer")
}

/// The first slots of both arrays, as the kernel has them.
pub(crate) fn slots(world: &World, count: u32) -> (Vec<[u8; 12]>, Vec<[u8; 28]>) {
    let choices: Array<_, [u8; 12]> =
        Array::try_from(Map::Array(world.pinned("choices"))).expect("an array");
    let backends: Array<_, [u8; 28]> =
        Array::try_from(Map::Array(world.pinned("backends"))).expect("an array");
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
pub(crate) fn entries(world: &World) -> BTreeMap<[u8; 20], [u8; 32]> {
    let map: HashMap<_, [u8; 20], [u8; 32]> =
        HashMap::try_from(Map::HashMap(world.pinned("services"))).expect("a hash");
    map.iter()
        .map(|entry| entry.expect("nobody writes"))
        .collect()
}

pub(crate) fn used(datapath: &Datapath) -> BTreeMap<&'static str, usize> {
    let ours = ["services", "choices", "backends"];
    let facts = datapath.map_facts().expect("maps can be read");
    let count = |map: MapFacts| (map.name, map.used);
    let facts: BTreeMap<_, _> = facts.into_iter().map(count).collect();
    ours.map(|name| (name, facts[name])).into()
}

/// Activates, and retires the generation before.
pub(crate) fn switch(world: &World, datapath: &Datapath, tables: KernelTables) {
    let before = datapath.active_generation();
    world.activate(datapath, tables);
    if before > 0 {
        datapath
            .retire(before)
            .unwrap_or_else(|error| panic!("{}", chain(&error)));
    }
}

fn clock(id: nix::time::ClockId) -> Duration {
    Duration::from(nix::time::clock_gettime(id).expect("every kernel has this clock"))
}

/// The monotonic clock, which `seen` is read from.
pub(crate) fn monotonic() -> Duration {
    clock(nix::time::ClockId::CLOCK_MONOTONIC)
}

/// What this thread has worked.
pub(crate) fn worked() -> Duration {
    clock(nix::time::ClockId::CLOCK_THREAD_CPUTIME_ID)
}
