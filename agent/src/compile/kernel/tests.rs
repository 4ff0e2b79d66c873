//! The verdict tables, row by row.

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroU16;
use std::time::Duration;

use agent_common::{Action, Direction, IdentityValue, Rule, RuleKey};
use snapshot::model::{
    Cell, CellId, Cidr, ComponentKind, Connection, East, EndpointKind, Exposure, GateRef, Gateway,
    Intra, Listener, ListenerProtocol, Name, NetworkPolicies, Node, ObjectName, Platform,
    PlatformPort, PlatformService, SectionName, South, SouthDestination, SouthProtocol,
    TrafficDistribution, Workloads,
};
use snapshot::path::CanonicalPath;
use snapshot::{Shared, Source};

use super::*;
use crate::datapath::{Backend, DiscoveredPod, Service};

mod borders;
mod edits;
mod isolation;
mod originals;
mod sources;
mod vectors;

/// The tables of a snapshot that comes after nothing.
fn compile(snapshot: &Snapshot, discovery: &Discovery, generation: u32) -> KernelTables {
    super::compile(&Arc::new(snapshot.clone()), discovery, generation)
}

fn source() -> Source {
    Source::new("test.yaml", 1, "")
}

fn name(text: &str) -> Name {
    Name::new(text).expect("a name of the table")
}

fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address of the table")
}

fn cidr(text: &str) -> Cidr {
    text.parse().expect("a network of the table")
}

fn port(port: u16) -> NonZeroU16 {
    NonZeroU16::new(port).expect("a port of the table")
}

fn cell_id(project: &str) -> CellId {
    CellId {
        organization: name("acme"),
        project: name(project),
        environment: name("prod"),
    }
}

fn component_id(project: &str, component: &str) -> ComponentId {
    ComponentId {
        cell: cell_id(project),
        component: name(component),
    }
}

fn endpoint_id(project: &str, component: &str, endpoint: &str) -> EndpointId {
    EndpointId {
        component: component_id(project, component),
        endpoint: name(endpoint),
    }
}

/// Endpoints: name, kind, port, public, organization.
type Ports<'a> = &'a [(&'a str, EndpointKind, u16, bool, bool)];

fn component(
    project: &str,
    component: &str,
    addresses: &[&str],
    ports: Ports<'_>,
) -> (Name, Shared<Component>) {
    let exposure = |exposed: bool| {
        exposed.then(|| Exposure {
            declared: source(),
            jwt: None,
            operations: Vec::new(),
        })
    };
    let endpoints = ports
        .iter()
        .map(|(endpoint, kind, number, public, organization)| {
            let endpoint = Endpoint {
                id: endpoint_id(project, component, endpoint),
                declared: source(),
                kind: *kind,
                port: port(*number),
                base_path: CanonicalPath::new("/").expect("the root"),
                public: exposure(*public),
                organization: exposure(*organization),
            };
            (endpoint.id.endpoint.clone(), endpoint)
        });
    let component = Component {
        id: component_id(project, component),
        declared: source(),
        kind: ComponentKind::Service,
        workloads: Workloads::Addresses(addresses.iter().map(|address| ip(address)).collect()),
        service_addresses: Vec::new(),
        session_affinity: None,
        traffic_distribution: Default::default(),
        endpoints: endpoints.collect(),
        connections: Vec::new(),
    };
    (component.id.component.clone(), component.into())
}

fn cell(project: &str, intra: Intra, components: Vec<(Name, Shared<Component>)>) -> (CellId, Cell) {
    let cell = Cell {
        id: cell_id(project),
        declared: source(),
        intra,
        borders: Default::default(),
        intra_declared: source(),
        components: components.into_iter().collect(),
        east: Vec::new(),
        south: Vec::new(),
    };
    (cell.id.clone(), cell)
}

/// Two cells: `shop` calls, `bank` is called; pods of both are here.
fn world() -> (Snapshot, Discovery) {
    let (shop_id, mut shop) = cell(
        "shop",
        Intra::Open,
        vec![
            component(
                "shop",
                "web",
                &["10.1.0.1", "fd01::1"],
                &[("site", EndpointKind::Http, 8080, true, false)],
            ),
            component("shop", "orders", &["10.1.0.2"], &[]),
        ],
    );
    let (bank_id, bank) = cell(
        "bank",
        Intra::Declared,
        vec![
            component(
                "bank",
                "ledger",
                &["10.2.0.1", "fd02::1"],
                &[
                    ("api", EndpointKind::Http, 8080, false, true),
                    ("feed", EndpointKind::Tcp, 9000, false, true),
                    ("private", EndpointKind::Http, 7000, false, false),
                ],
            ),
            component("bank", "audit", &["10.2.0.2"], &[]),
        ],
    );
    shop.east = ["api", "feed"]
        .map(|endpoint| East {
            declared: source(),
            from: vec![name("web")],
            to: endpoint_id("bank", "ledger", endpoint),
        })
        .to_vec();
    let south = |call: &str, destination, to: u16| South {
        declared: source(),
        name: name(call),
        from: vec![name("orders")],
        destination,
        port: port(to),
    };
    let networks = |cidrs: &[&str]| SouthDestination::Networks {
        cidrs: cidrs.iter().map(|network| cidr(network)).collect(),
        transport: Transport::Tcp,
    };
    let host = snapshot::model::Hostname::new("api.stripe.com").expect("a host name");
    shop.south = vec![
        south("partner", networks(&["203.0.113.0/24"]), 5432),
        south(
            "stripe",
            SouthDestination::Hosts {
                hosts: vec![host],
                protocol: SouthProtocol::Tls,
            },
            443,
        ),
    ];
    let gateway = |gateway: &str, address: &str, kind| {
        let name_ = ObjectName::new("default", gateway).expect("a name");
        let gateway = Gateway {
            name: name_.clone(),
            declared: source(),
            addresses: vec![ip(address)],
            listeners: vec![Listener {
                name: SectionName::new("https").expect("a name"),
                declared: source(),
                port: port(443),
                protocol: ListenerProtocol::Http,
                hostname: None,
                policy: None,
                clients: None,
            }],
            unserved: Vec::new(),
            gate: Some(kind),
            node_ports: snapshot::model::NodePorts::None,
            health_check: None,
            identity: None,
        };
        (name_, gateway)
    };
    let snapshot = Snapshot {
        digest: "".into(),
        platform: Platform {
            dns: vec![ip("10.9.0.53")],
            dns_declared: Some(source()),
            dns_service_addresses: vec![ip("10.96.0.10")],
            nodes: vec![Node {
                name: "other".into(),
                addresses: vec![ip("192.0.2.2")],
                zone: None,
                pod_networks: Vec::new(),
            }],
            internal: Some(GateRef {
                gateway: ObjectName::new("default", "internal").expect("a name"),
                remote_addresses: vec![ip("192.0.2.22")],
            }),
            services: vec![PlatformService {
                declared: source(),
                name: name("monitoring"),
                addresses: vec![cidr("10.8.0.0/16")],
                ports: vec![PlatformPort {
                    port: port(9090),
                    transport: Transport::Tcp,
                }],
            }],
            ..Platform::default()
        }
        .into(),
        cells: [(shop_id, shop.into()), (bank_id, bank.into())].into(),
        services: BTreeMap::new(),
        routing_tables: BTreeMap::new(),
        gateways: [
            gateway("external", "192.0.2.20", Gate::External),
            gateway("internal", "192.0.2.21", Gate::Internal),
        ]
        .into(),
        routes: Vec::new(),
        l4_routes: Vec::new(),
        network: NetworkPolicies::default(),
        awaited: BTreeSet::new(),
        certificates: BTreeMap::new(),
        warnings: Vec::new(),
    };
    let discovery = Discovery {
        pods: [
            (11, "10.1.0.1"),
            (12, "10.1.0.2"),
            (21, "10.2.0.1"),
            (22, "10.2.0.2"),
        ]
        .map(|(ifindex, address)| pod(ifindex, &[address]))
        .to_vec(),
        unidentified: Vec::new(),
        node_addresses: vec![ip("169.254.1.1"), ip("192.0.2.1")],
    };
    (snapshot, discovery)
}

fn pod(ifindex: u32, addresses: &[&str]) -> DiscoveredPod {
    DiscoveredPod {
        ifindex,
        host_ifname: format!("veth{ifindex}"),
        mac: [2, 0, 0, 0, 0, ifindex as u8],
        addresses: addresses.iter().map(|address| ip(address)).collect(),
        number: u64::from(ifindex),
    }
}

fn owner(tables: &KernelTables, address: &str) -> Owner {
    let address = Network::host(ip(address));
    // The longest prefix, as the kernel finds it.
    *tables
        .identities
        .iter()
        .filter(|(network, _)| {
            let bits = network.bits();
            let mask = u128::MAX.checked_shl(128 - bits).unwrap_or(0);
            (u128::from_be_bytes(network.address()) ^ u128::from_be_bytes(address.address())) & mask
                == 0
        })
        .max_by_key(|(network, _)| network.bits())
        .map(|(_, owner)| owner)
        .expect("every address belongs to somebody")
}

/// What the rules of the component at `own` say about a connection, looked up as the kernel does.
fn verdict(
    tables: &KernelTables,
    own: &str,
    peer: Identity,
    port: u16,
    protocol: u8,
    way: Direction,
) -> Action {
    let rules = &tables.policies[&owner(tables, own).identity];
    [(port, protocol), (0, protocol), (0, 0)]
        .into_iter()
        .find_map(|(port, protocol)| rules.get(&RuleKey::new(peer, port, protocol, way)))
        .map_or(Action::Deny, Rule::action)
}

#[test]
fn from_a_component() {
    let (snapshot, discovery) = world();
    let tables = compile(&snapshot, &discovery, 1);
    let (web, orders, ledger) = ("10.1.0.1", "10.1.0.2", "10.2.0.1");
    for (own, to, port, protocol, expected) in [
        (web, orders, 1234, TCP, Action::Pass),
        (web, orders, 0, ICMP, Action::Pass),
        (web, "10.9.0.53", 53, UDP, Action::Pass),
        (web, "10.9.0.53", 53, TCP, Action::Pass),
        (web, "10.9.0.53", 80, TCP, Action::Deny),
        (web, ledger, 9000, TCP, Action::Pass),
        (web, "fd02::1", 9000, TCP, Action::Pass),
        (web, ledger, 9000, UDP, Action::Deny),
        (web, ledger, 8080, TCP, Action::Steer),
        (web, ledger, 7000, TCP, Action::Deny),
        (web, ledger, 0, ICMP, Action::Deny),
        (web, "192.0.2.21", 443, TCP, Action::Pass),
        (web, "192.0.2.22", 443, TCP, Action::Pass),
        (web, "192.0.2.20", 443, TCP, Action::Deny),
        (orders, "192.0.2.21", 443, TCP, Action::Deny),
        (orders, ledger, 9000, TCP, Action::Deny),
        (orders, "203.0.113.9", 5432, TCP, Action::Pass),
        (orders, "203.0.113.9", 5433, TCP, Action::Deny),
        (web, "203.0.113.9", 5432, TCP, Action::Deny),
        (orders, "198.51.100.1", 443, TCP, Action::Steer),
        (orders, "2001:db8::1", 443, TCP, Action::Steer),
        (orders, "203.0.113.9", 443, TCP, Action::Steer),
        (orders, "198.51.100.1", 443, UDP, Action::Deny),
        (orders, "198.51.100.1", 80, TCP, Action::Deny),
        (web, "198.51.100.1", 443, TCP, Action::Deny),
        (orders, "169.254.169.254", 443, TCP, Action::Deny),
        (orders, "fd00:ec2::254", 443, TCP, Action::Deny),
        (orders, "169.254.1.1", 443, TCP, Action::Deny),
        (orders, "192.0.2.2", 443, TCP, Action::Deny),
        (orders, "10.8.0.1", 443, TCP, Action::Deny),
        (ledger, "10.2.0.2", 1234, TCP, Action::Deny),
        (ledger, web, 8080, TCP, Action::Deny),
    ] {
        let peer = owner(&tables, to).identity;
        assert_eq!(
            verdict(&tables, own, peer, port, protocol, Direction::Egress),
            expected,
            "{own} to {to}:{port}/{protocol}"
        );
    }
}

#[test]
fn to_a_component() {
    let (snapshot, discovery) = world();
    let tables = compile(&snapshot, &discovery, 1);
    let (web, orders, ledger) = ("10.1.0.1", "10.1.0.2", "10.2.0.1");
    let of = |address: &str| owner(&tables, address).identity;
    for (from, own, port, protocol, expected) in [
        (of(orders), web, 1234, TCP, Action::Pass),
        (Identity::NORTH_GATE, web, 8080, TCP, Action::Pass),
        (Identity::WEST_GATE, web, 8080, TCP, Action::Deny),
        (Identity::NORTH_GATE, ledger, 8080, TCP, Action::Deny),
        (Identity::WEST_GATE, ledger, 8080, TCP, Action::Pass),
        (Identity::WEST_GATE, ledger, 7000, TCP, Action::Deny),
        (of(web), ledger, 9000, TCP, Action::Pass),
        (of(web), ledger, 8080, TCP, Action::Deny),
        (of(orders), ledger, 9000, TCP, Action::Deny),
        (Identity::NODE, ledger, 7000, TCP, Action::Pass),
        (Identity::NODE, ledger, 22, TCP, Action::Deny),
        (of("10.8.3.4"), ledger, 9090, TCP, Action::Pass),
        (of("10.8.3.4"), ledger, 8080, TCP, Action::Deny),
        (Identity::WORLD, web, 8080, TCP, Action::Deny),
        (Identity::OTHER_NODE, web, 8080, TCP, Action::Deny),
        (of("203.0.113.9"), orders, 5432, TCP, Action::Deny),
    ] {
        assert_eq!(
            verdict(&tables, own, from, port, protocol, Direction::Ingress),
            expected,
            "{from} to {own}:{port}/{protocol}"
        );
    }
}

#[test]
fn a_declared_connection_is_one_way_and_carries_echo() {
    let (mut snapshot, discovery) = world();
    let bank = snapshot.cells.get_mut(&cell_id("bank")).expect("the bank");
    let audit = bank
        .components
        .get_mut(&name("audit"))
        .expect("its component");
    audit.connections = vec![Connection {
        declared: source(),
        to: endpoint_id("bank", "ledger", "private"),
    }];
    let tables = compile(&snapshot, &discovery, 1);
    let (ledger, audit) = ("10.2.0.1", "10.2.0.2");
    let of = |address: &str| owner(&tables, address).identity;
    for (own, peer, port, protocol, way, expected) in [
        (audit, ledger, 7000, TCP, Direction::Egress, Action::Pass),
        (ledger, audit, 7000, TCP, Direction::Ingress, Action::Pass),
        (audit, ledger, 8080, TCP, Direction::Egress, Action::Deny),
        (ledger, audit, 7000, TCP, Direction::Egress, Action::Deny),
        (audit, ledger, 0, ICMPV6, Direction::Egress, Action::Pass),
        (ledger, audit, 0, ICMPV6, Direction::Egress, Action::Deny),
    ] {
        assert_eq!(
            verdict(&tables, own, of(peer), port, protocol, way),
            expected,
            "{own} {way} {peer}:{port}"
        );
    }
}

#[test]
fn a_wide_network_holds_inside_the_narrow_ones_of_others_and_never_for_the_platform() {
    let (mut snapshot, discovery) = world();
    let bank = snapshot.cells.get_mut(&cell_id("bank")).expect("the bank");
    bank.south = vec![South {
        declared: source(),
        name: name("everything"),
        from: Vec::new(),
        destination: SouthDestination::Networks {
            cidrs: vec![cidr("0.0.0.0/0")],
            transport: Transport::Tcp,
        },
        port: port(5432),
    }];
    let tables = compile(&snapshot, &discovery, 1);
    let ledger = "10.2.0.1";
    for (to, expected) in [
        ("198.51.100.1", Action::Pass),
        ("203.0.113.9", Action::Pass),
        ("10.8.0.1", Action::Deny),
        ("10.1.0.1", Action::Deny),
        ("169.254.169.254", Action::Deny),
        ("192.0.2.1", Action::Deny),
        ("192.0.2.2", Action::Deny),
        ("192.0.2.20", Action::Deny),
        ("2001:db8::1", Action::Deny),
    ] {
        let peer = owner(&tables, to).identity;
        assert_eq!(
            verdict(&tables, ledger, peer, 5432, TCP, Direction::Egress),
            expected,
            "{to}"
        );
    }
    // The call by name of the other cell still goes to the router, whatever network the bank declared.
    let peer = owner(&tables, "198.51.100.1").identity;
    assert_eq!(
        verdict(&tables, "10.1.0.2", peer, 443, TCP, Direction::Egress),
        Action::Steer
    );
}

#[test]
fn an_address_of_this_node_is_its_own_whatever_else_it_is() {
    let (snapshot, mut discovery) = world();
    // A name server on every node, and a gate by an address that this node has too.
    let also = [
        ("10.9.0.53", Identity::DNS),
        ("192.0.2.22", Identity::WEST_GATE),
        ("169.254.169.254", Identity::METADATA),
    ];
    for here in [false, true] {
        if here {
            let addresses = also.iter().map(|(address, _)| ip(address));
            discovery.node_addresses.extend(addresses);
            discovery.node_addresses.sort_unstable();
        }
        let tables = compile(&snapshot, &discovery, 1);
        for (address, identity) in also {
            let expected = Owner {
                identity,
                ifindex: if here { IdentityValue::THIS_NODE } else { 0 },
                cell: 0,
            };
            assert_eq!(owner(&tables, address), expected, "{address} {here}");
        }
    }
}

/// On some clouds one of the metadata service's addresses is the name server's too.
#[test]
fn a_name_server_at_the_address_of_a_metadata_service_answers_at_its_port_only() {
    let (mut snapshot, discovery) = world();
    let server = ip("168.63.129.16");
    assert_eq!(
        owner(&compile(&snapshot, &discovery, 1), "168.63.129.16").identity,
        Identity::METADATA
    );
    snapshot.platform.dns.push(server);
    let tables = compile(&snapshot, &discovery, 1);
    let peer = owner(&tables, "168.63.129.16").identity;
    assert_eq!(peer, Identity::DNS);
    for (port, expected) in [(53, Action::Pass), (80, Action::Deny)] {
        let verdict = verdict(&tables, "10.1.0.2", peer, port, UDP, Direction::Egress);
        assert_eq!(verdict, expected, "{port}");
    }
}

#[test]
fn addresses_have_the_owner_that_declared_them_and_the_interface_that_has_them() {
    let (snapshot, mut discovery) = world();
    discovery.pods.push(pod(31, &["10.1.0.1", "10.2.0.1"])); // claims two components
    discovery.pods.push(pod(32, &["10.2.0.2"])); // a younger pod with another's address
    discovery.pods.push(pod(33, &["10.66.0.1"])); // no cell's
    let tables = compile(&snapshot, &discovery, 1);
    for (address, ifindex) in [
        ("10.1.0.1", 11),
        ("10.2.0.1", 21),
        ("10.2.0.2", 22),
        ("fd01::1", 0),
        ("10.66.0.1", 0),
    ] {
        assert_eq!(owner(&tables, address).ifindex, ifindex, "{address}");
    }
    assert_eq!(
        owner(&tables, "192.0.2.21"),
        Owner {
            identity: Identity::WEST_GATE,
            ifindex: IdentityValue::THIS_NODE,
            cell: 0
        }
    );
    assert_eq!(
        owner(&tables, "192.0.2.22"),
        Owner {
            identity: Identity::WEST_GATE,
            ifindex: 0,
            cell: 0
        }
    );
    assert_eq!(
        owner(&tables, "192.0.2.1"),
        Owner {
            identity: Identity::NODE,
            ifindex: IdentityValue::THIS_NODE,
            cell: 0
        }
    );
    assert_eq!(
        tables.endpoints[&31].identity,
        Identity::NONE,
        "guarded, and denied everything"
    );
    assert!(!tables.policies.contains_key(&Identity::NONE));
    assert!(!tables.endpoints.contains_key(&33));
    assert_eq!(tables.cells[&tables.endpoints[&11].cell], "acme/shop/prod");
}

#[test]
fn services_and_listeners() {
    let (mut snapshot, discovery) = world();
    let bank = snapshot.cells.get_mut(&cell_id("bank")).expect("the bank");
    let ledger = bank
        .components
        .get_mut(&name("ledger"))
        .expect("its component");
    ledger.service_addresses = vec![ip("10.96.0.1"), ip("fd96::1")];
    let tables = compile(&snapshot, &discovery, 1);
    let service = |address: &str, port, protocol| ServiceAddress {
        address: ip(address),
        port,
        protocol,
    };
    let backend = |address: &str, port| Service {
        backends: vec![Backend {
            address: ip(address),
            port,
            weight: 1,
        }],
        affinity: None,
    };
    assert_eq!(
        tables.services[&service("10.96.0.1", 9000, TCP)],
        backend("10.2.0.1", 9000)
    );
    assert_eq!(
        tables.services[&service("fd96::1", 8080, TCP)],
        backend("fd02::1", 8080)
    );
    assert_eq!(
        tables.services[&service("10.96.0.10", 53, UDP)],
        backend("10.9.0.53", 53)
    );
    assert!(!tables.services.contains_key(&service("10.96.0.1", 1, TCP)));
    assert_eq!(
        tables.listeners[&service("192.0.2.20", 443, TCP)],
        Identity::NORTH_GATE
    );
    assert_eq!(
        tables.listeners[&service("192.0.2.21", 443, TCP)],
        Identity::WEST_GATE
    );
}

#[test]
fn near_backends_are_preferred_where_the_component_asks_for_it() {
    let (mut snapshot, mut discovery) = world();
    let all = ["10.2.0.1", "10.2.1.1", "10.2.2.1", "fd02::1", "fd02:1::1"];
    let node = |name: &str, address: &str, zone: Option<&str>, pods: &[&str]| Node {
        name: name.into(),
        addresses: vec![ip(address)],
        zone: zone.map(Into::into),
        pod_networks: pods.iter().map(|network| cidr(network)).collect(),
    };
    let mut backends = |distribution, service: &str, zone: Option<&str>, here: &[&str]| {
        snapshot.platform.nodes = vec![
            // The one that has an address of this node.
            node("this", "192.0.2.1", zone, &["10.2.0.0/24", "fd02::/64"]),
            node(
                "near",
                "192.0.2.2",
                Some("west"),
                &["10.2.1.0/24", "fd02:1::/64"],
            ),
            node("far", "192.0.2.3", Some("east"), &["10.2.2.0/24"]),
        ];
        let bank = snapshot.cells.get_mut(&cell_id("bank")).expect("the bank");
        let ledger = bank
            .components
            .get_mut(&name("ledger"))
            .expect("its component");
        ledger.workloads = Workloads::Addresses(all.map(ip).to_vec());
        ledger.service_addresses = vec![ip("10.96.0.1"), ip("fd96::1")];
        ledger.traffic_distribution = distribution;
        ledger.session_affinity = Some(Duration::from_secs(60));
        discovery.pods = vec![pod(21, here)];
        let tables = compile(&snapshot, &discovery, 1);
        let service = &tables.services[&ServiceAddress {
            address: ip(service),
            port: 9000,
            protocol: TCP,
        }];
        assert_eq!(service.affinity, Some(Duration::from_secs(60)));
        let addresses = service.backends.iter().map(|one| one.address.to_string());
        addresses.collect::<Vec<_>>()
    };
    use TrafficDistribution::{Anywhere, PreferSameNode, PreferSameZone};
    let (v4, v6) = ("10.96.0.1", "fd96::1");
    let west = Some("west");
    let here = &["10.2.0.1"][..];
    assert_eq!(backends(Anywhere, v4, west, here), all[..3]);
    assert_eq!(backends(PreferSameNode, v4, west, here), all[..1]);
    assert_eq!(backends(PreferSameZone, v4, west, here), all[..2]);
    // Of this family no pod is here, though its network is of this node: nearest is the zone.
    assert_eq!(backends(PreferSameNode, v6, west, here), all[3..]);
    assert_eq!(backends(PreferSameNode, v4, west, &["10.2.9.9"]), all[..2]);
    assert_eq!(
        backends(PreferSameNode, v4, Some("south"), &["10.2.9.9"]),
        all[..1]
    );
    assert_eq!(
        backends(PreferSameZone, v4, Some("north"), &["10.2.2.1"]),
        ["10.2.0.1", "10.2.2.1"]
    );
    // Where nobody says in which zone this node is, none is its own.
    assert_eq!(backends(PreferSameZone, v4, None, here), all[..3]);
    assert_eq!(backends(PreferSameNode, v4, None, &["10.2.9.9"]), all[..3]);
}

#[test]
fn the_same_input_gives_the_same_tables_and_a_new_cell_changes_no_other() {
    let (mut snapshot, discovery) = world();
    let before = compile(&snapshot, &discovery, 1);
    assert_eq!(compile(&snapshot, &discovery, 1), before);
    let (id, new) = cell(
        "aaa",
        Intra::Open,
        vec![component("aaa", "new", &["10.3.0.1"], &[])],
    );
    snapshot.cells.insert(id, new.into());
    let after = compile(&snapshot, &discovery, 2);
    assert_eq!(after.policies, before.policies);
    assert_eq!(after.endpoints, before.endpoints);
    for (network, owner) in &before.identities {
        assert_eq!(after.identities[network], *owner);
    }
}
