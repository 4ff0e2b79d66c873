//! What the kernel is told on the sides that have the datapath. The only file of the benchmark that knows the layout of
//! [`KernelTables`].

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use agent_common::{Action, Direction, Identity, IdentityValue, Rule, RuleKey, SocketKey};
use anyhow::{Context as _, Result};
use cardinal_agent::datapath::{
    Backend, Datapath, DiscoveredPod, Discovery, KernelTables, Network, Owner, Pod, Rules, Service,
    ServiceAddress,
};
use tests::world::NODE;

use crate::load::port;
use crate::side::{CLIENT, GATEWAY, SERVER, SERVICE};

/// IP protocol numbers.
const TCP: u8 = 6;
const UDP: u8 = 17;

/// The rule that filler entries name, and the one that the measured packets meet.
const FILLER: u32 = 1;
const MEASURED: u32 = 2;

/// How large the tables are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Shape {
    /// Whether the two pods have gates.
    pub(crate) gates: bool,
    /// Rules of each pod's component beside those that the measured packets need.
    pub(crate) rules: u32,
    /// Identities beside those.
    pub(crate) identities: u32,
    /// Service addresses; with any, the last of them leads to the server pod.
    pub(crate) services: u32,
    /// Whether calls of the host outside are the router's, which takes the policy route.
    pub(crate) steers: bool,
}

impl Shape {
    /// No gates, no services.
    pub(crate) const EMPTY: Self = Self {
        gates: false,
        rules: 0,
        identities: 0,
        services: 0,
        steers: false,
    };
}

/// The tables of a generation for the pods of a side.
pub(crate) fn tables(generation: u32, discovery: &Discovery, shape: Shape) -> Result<KernelTables> {
    let mut tables = KernelTables {
        generation,
        ..KernelTables::default()
    };
    identities(&mut tables, discovery, shape)?;
    if shape.gates {
        gates(&mut tables, discovery, shape)?;
    }
    services(&mut tables, shape.services);
    tables.listeners.insert(
        ServiceAddress {
            address: GATEWAY.into(),
            port: port::CRR,
            protocol: TCP,
        },
        Identity::NORTH_GATE,
    );
    Ok(tables)
}

/// The component of the client pod and of the server pod; both are of one cell.
const COMPONENTS: [Identity; 2] = [Identity::component(1), Identity::component(2)];
const CELL: u32 = 1;

fn owner(identity: Identity, ifindex: u32) -> Owner {
    Owner {
        identity,
        ifindex,
        cell: if identity.is_component() { CELL } else { 0 },
    }
}

fn pods(discovery: &Discovery) -> Result<[&DiscoveredPod; 2]> {
    let find = |address: IpAddr| {
        discovery
            .pods
            .iter()
            .find(|pod| pod.addresses.contains(&address))
            .with_context(|| format!("no pod has {address}"))
    };
    Ok([find(CLIENT.v4.into())?, find(SERVER.v4.into())?])
}

fn identities(tables: &mut KernelTables, discovery: &Discovery, shape: Shape) -> Result<()> {
    let own = &mut tables.identities;
    for any in [
        IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    ] {
        own.insert(Network::new(any, 0), owner(Identity::WORLD, 0));
    }
    for number in 0..shape.identities {
        // 10.128.0.0/9 is nobody's in a side's world.
        let address = Ipv4Addr::from(0x0a80_0000 + number);
        own.insert(
            Network::host(address.into()),
            owner(Identity::external(number + 1), 0),
        );
    }
    let here = IdentityValue::THIS_NODE;
    for address in [IpAddr::V4(NODE.v4), IpAddr::V6(NODE.v6)] {
        own.insert(Network::host(address), owner(Identity::NODE, here));
    }
    own.insert(
        Network::host(GATEWAY.into()),
        owner(Identity::NORTH_GATE, here),
    );
    for (pod, identity) in pods(discovery)?.into_iter().zip(COMPONENTS) {
        let ifindex = if shape.gates { pod.ifindex } else { 0 };
        for address in &pod.addresses {
            own.insert(Network::host(*address), owner(identity, ifindex));
        }
    }
    Ok(())
}

fn gates(tables: &mut KernelTables, discovery: &Discovery, shape: Shape) -> Result<()> {
    let [client, server] = COMPONENTS;
    let sides = [
        (client, server, Direction::Egress),
        (server, client, Direction::Ingress),
    ];
    for (pod, (identity, peer, direction)) in pods(discovery)?.into_iter().zip(sides) {
        tables.endpoints.insert(
            pod.ifindex,
            Pod {
                ifname: pod.host_ifname.clone(),
                identity,
                cell: CELL,
                whole: None,
                lookups: agent_common::Lookups::default(),
                mac: pod.mac,
            },
        );
        tables
            .policies
            .insert(identity, rules(peer, direction, shape));
    }
    tables.cells.insert(CELL, "bench".to_owned());
    Ok(())
}

fn rules(peer: Identity, direction: Direction, shape: Shape) -> Rules {
    let pass = Rule::new(Action::Pass, MEASURED);
    let mut rules = Rules::new();
    for number in 0..shape.rules {
        // Ports repeat, peers do not.
        let (peer, port) = (Identity::external(number + 1), 1 + (number % 60_000) as u16);
        rules.insert(
            RuleKey::new(peer, port, TCP, direction),
            Rule::new(Action::Pass, FILLER),
        );
    }
    let tcp = [port::RR, port::CRR, port::BULK].map(|port| (port, TCP));
    for (port, protocol) in tcp.into_iter().chain([(port::UDP, UDP), (0, UDP)]) {
        rules.insert(RuleKey::new(peer, port, protocol, direction), pass);
    }
    let anybody = Identity::WORLD;
    match direction {
        // Calls of the host outside.
        Direction::Ingress => {
            for (port, protocol) in tcp.into_iter().chain([(port::UDP, UDP)]) {
                rules.insert(RuleKey::new(anybody, port, protocol, direction), pass);
            }
        }
        // Calls that the router takes, and calls of its listener's own address.
        Direction::Egress => {
            if shape.steers {
                rules.insert(
                    RuleKey::new(anybody, port::CRR, TCP, direction),
                    Rule::new(Action::Steer, MEASURED),
                );
            }
            rules.insert(
                RuleKey::new(Identity::NODE, port::CRR, TCP, direction),
                pass,
            );
        }
    }
    rules
}

fn services(tables: &mut KernelTables, count: u32) {
    let mut add = |address: Ipv4Addr, port, protocol| {
        let at = ServiceAddress {
            address: address.into(),
            port,
            protocol,
        };
        let backend = Backend {
            address: SERVER.v4.into(),
            port,
            weight: 1,
        };
        let service = Service {
            backends: vec![backend],
            affinity: None,
        };
        tables.services.insert(at, service);
    };
    for number in 1..count {
        add(filler_service(number), 80, TCP);
    }
    if count > 0 {
        add(SERVICE, port::RR, TCP);
        add(SERVICE, port::CRR, TCP);
        add(SERVICE, port::UDP, UDP);
    }
}

/// The address of a service that nobody calls.
pub(crate) fn filler_service(number: u32) -> Ipv4Addr {
    Ipv4Addr::from(0x0a60_0000 + number)
}

/// The names under which the kernel looks for the router's listener: the gateway's address, and any for what is steered.
pub(crate) fn router_keys() -> [SocketKey; 2] {
    let gateway = ServiceAddress {
        address: GATEWAY.into(),
        port: port::CRR,
        protocol: TCP,
    };
    [gateway.socket_key(), SocketKey::TRANSPARENT_V4]
}

/// How full the tables of flows are, in words.
pub(crate) fn flows(datapath: &Datapath) -> Result<String> {
    let facts = datapath.map_facts()?;
    let full = |name| {
        let map = facts.iter().find(|map| map.name == name);
        let map = map.with_context(|| format!("the datapath has no map `{name}`"))?;
        Ok::<_, anyhow::Error>(format!("{} of {} {name}", map.used, map.size))
    };
    Ok(format!("{}, {}", full("flows")?, full("unassured")?))
}
