//! Tables that are made from those before are the tables that are made from nothing, whatever changes.

use std::net::{Ipv4Addr, Ipv6Addr};

use proptest::prelude::*;
use proptest::sample::Index;
use snapshot::model::{self, Border, ServiceEndpoint, ServicePort};

use super::*;

const PROJECTS: [&str; 3] = ["bank", "mill", "shop"];
const COMPONENTS: [&str; 4] = ["a", "b", "c", "d"];
const ENDPOINTS: [&str; 2] = ["one", "two"];
const NETWORKS: [&str; 5] = [
    "10.0.0.0/8",
    "10.1.0.0/16",
    "10.8.0.0/16",
    "203.0.113.0/24",
    "fd00::/8",
];

/// One change of the documents or of the node.
#[derive(Clone, Debug)]
enum Edit {
    /// A cell comes or goes.
    Cell(usize),
    /// A component comes or goes.
    Component(usize, usize),
    Intra(usize),
    Borders(usize, bool, bool),
    Workloads(usize, usize, Vec<u8>),
    /// Also what loopback allows: two components with one address.
    Services(usize, usize, Vec<u8>),
    Affinity(usize, usize, bool),
    Distribution(usize, usize, u8),
    /// Kind, port, and who may call, or no endpoint.
    Endpoint(usize, usize, usize, Option<(u8, u16, bool, bool)>),
    Connection(usize, usize, Index, Index),
    /// A call of some of a cell to any endpoint, or one less.
    East(usize, Index, Vec<usize>),
    South(usize, usize, Vec<usize>, bool),
    /// Everything of a cell is a line further down.
    Lines(usize),
    /// A `Service` with these addresses and endpoints, for its node only, with hints.
    Cluster(usize, Vec<u8>, Vec<u8>, bool, bool),
    PlatformService(Vec<usize>, u16),
    Zone(bool),
    NameServers(Vec<u8>),
    Gateway(u8, u16),
    NodeAddress(u8),
    /// A pod comes, moves, or has other addresses.
    Pod(u32, Vec<u8>),
    PodGoes(u32),
}

fn edit() -> impl Strategy<Value = Edit> {
    use Edit::*;
    let cell = 0..PROJECTS.len();
    let one = (cell.clone(), 0..COMPONENTS.len());
    let few = || proptest::collection::vec(0u8..24, 0..3);
    let names = || proptest::collection::vec(0..COMPONENTS.len(), 0..3);
    let networks = || proptest::collection::vec(0..NETWORKS.len(), 0..3);
    let index = any::<Index>;
    prop_oneof![
        1 => cell.clone().prop_map(Cell),
        3 => one.clone().prop_map(|(c, n)| Component(c, n)),
        2 => cell.clone().prop_map(Intra),
        2 => (cell.clone(), any::<bool>(), any::<bool>()).prop_map(|(c, to, from)| Borders(c, to, from)),
        3 => (one.clone(), few()).prop_map(|((c, n), to)| Workloads(c, n, to)),
        3 => (one.clone(), few()).prop_map(|((c, n), to)| Services(c, n, to)),
        1 => (one.clone(), any::<bool>()).prop_map(|((c, n), on)| Affinity(c, n, on)),
        2 => (one.clone(), 0u8..3).prop_map(|((c, n), to)| Distribution(c, n, to)),
        4 => (one.clone(), 0..ENDPOINTS.len(), proptest::option::weighted(0.8, (0u8..3, 80u16..83, any::<bool>(), any::<bool>())))
            .prop_map(|((c, n), e, to)| Endpoint(c, n, e, to)),
        4 => (one, index(), index()).prop_map(|((c, n), to, at)| Connection(c, n, to, at)),
        4 => (cell.clone(), index(), names()).prop_map(|(c, to, from)| East(c, to, from)),
        2 => (cell.clone(), networks(), any::<bool>()).prop_map(|(c, to, hosts)| South(c, c, to, hosts)),
        1 => cell.prop_map(Lines),
        3 => (0usize..3, few(), few(), any::<bool>(), any::<bool>())
            .prop_map(|(n, at, to, local, hinted)| Cluster(n, at, to, local, hinted)),
        1 => (networks(), 9090u16..9092).prop_map(|(to, port)| PlatformService(to, port)),
        1 => any::<bool>().prop_map(Zone),
        1 => few().prop_map(NameServers),
        1 => (0u8..24, 443u16..445).prop_map(|(at, port)| Gateway(at, port)),
        1 => (0u8..24).prop_map(NodeAddress),
        4 => (11u32..15, few()).prop_map(|(at, to)| Pod(at, to)),
        1 => (11u32..15).prop_map(PodGoes),
    ]
}

fn address(number: u8) -> IpAddr {
    match number % 4 {
        3 => IpAddr::V6(Ipv6Addr::new(0xfd01, 0, 0, 0, 0, 0, 0, number.into())),
        _ => IpAddr::V4(Ipv4Addr::new(10, 1, 0, number)),
    }
}

fn addresses(numbers: &[u8]) -> Vec<IpAddr> {
    numbers.iter().copied().map(address).collect()
}

fn called(numbers: &[usize]) -> Vec<Name> {
    numbers.iter().map(|n| name(COMPONENTS[*n])).collect()
}

fn networks(numbers: &[usize]) -> Vec<Cidr> {
    numbers.iter().map(|n| cidr(NETWORKS[*n])).collect()
}

fn endpoints(snapshot: &Snapshot) -> Vec<EndpointId> {
    let cells = snapshot.cells.values();
    cells
        .flat_map(|cell| cell.components.values())
        .flat_map(|component| component.endpoints.values())
        .map(|endpoint| endpoint.id.clone())
        .collect()
}

/// Puts a `Service` in the place of the one before; one without addresses is none.
fn cluster(snapshot: &mut Snapshot, n: usize, at: &[u8], to: &[u8], node_only: bool, hinted: bool) {
    let name = ObjectName::new("default", ENDPOINTS[n % 2]).expect("a name");
    snapshot.services.remove(&name);
    let mut addresses = addresses(at);
    addresses.retain(|one| {
        let mut others = snapshot.services.values();
        others.all(|other| !other.addresses.contains(one))
    });
    addresses.dedup();
    if addresses.is_empty() {
        return;
    }
    let endpoints = to.iter().map(|to| ServiceEndpoint {
        address: address(*to),
        port: port(81),
        ending: to % 3 == 0,
        node: Some(["this", "other"][usize::from(to % 2)].into()),
        zones: hinted.then(|| "west".into()).into_iter().collect(),
        nodes: Vec::new(),
    });
    let service = model::Service {
        name: name.clone(),
        declared: source(),
        addresses,
        affinity: None,
        node_only,
        led: true,
        ports: vec![ServicePort {
            port: port(80),
            transport: Transport::Tcp,
            endpoints: endpoints.collect(),
        }],
    };
    snapshot.services.insert(name, service.into());
}

/// Makes the change. What it leaves dangling is dropped, as linking does.
fn make(edit: &Edit, snapshot: &mut Snapshot, discovery: &mut Discovery) {
    let all = endpoints(snapshot);
    let one =
        |snapshot: &mut Snapshot, c: usize, n: usize, change: &dyn Fn(&mut super::Component)| {
            let cell = snapshot.cells.get_mut(&cell_id(PROJECTS[c]));
            if let Some(one) = cell.and_then(|cell| cell.components.get_mut(&name(COMPONENTS[n]))) {
                change(one);
            }
        };
    let exposed = |exposed: bool| {
        exposed.then(|| Exposure {
            declared: source(),
            jwt: None,
            operations: Vec::new(),
        })
    };
    match edit {
        Edit::Cell(c) => {
            let (id, new) = cell(PROJECTS[*c], Intra::Declared, Vec::new());
            if snapshot.cells.remove(&id).is_none() {
                snapshot.cells.insert(id, new.into());
            }
        }
        Edit::Component(c, n) => {
            let (id, new) = component(PROJECTS[*c], COMPONENTS[*n], &[], &[]);
            if let Some(cell) = snapshot.cells.get_mut(&cell_id(PROJECTS[*c]))
                && cell.components.remove(&id).is_none()
            {
                cell.components.insert(id, new);
            }
        }
        Edit::Intra(c) => {
            if let Some(cell) = snapshot.cells.get_mut(&cell_id(PROJECTS[*c])) {
                cell.intra = match cell.intra {
                    Intra::Open => Intra::Declared,
                    Intra::Declared => Intra::Open,
                };
            }
        }
        Edit::Borders(c, ingress, egress) => {
            if let Some(cell) = snapshot.cells.get_mut(&cell_id(PROJECTS[*c])) {
                let border = |open: bool| match open {
                    true => Border::Open,
                    false => Border::Declared,
                };
                cell.borders = model::Borders {
                    ingress: border(*ingress),
                    egress: border(*egress),
                };
            }
        }
        Edit::Workloads(c, n, to) => one(snapshot, *c, *n, &|one| {
            one.workloads = Workloads::Addresses(addresses(to));
        }),
        Edit::Services(c, n, to) => one(snapshot, *c, *n, &|one| {
            one.service_addresses = addresses(to);
        }),
        Edit::Affinity(c, n, on) => one(snapshot, *c, *n, &|one| {
            one.session_affinity = on.then_some(Duration::from_secs(60));
        }),
        Edit::Distribution(c, n, to) => one(snapshot, *c, *n, &|one| {
            one.traffic_distribution = match to {
                0 => TrafficDistribution::Anywhere,
                1 => TrafficDistribution::PreferSameNode,
                _ => TrafficDistribution::PreferSameZone,
            };
        }),
        Edit::Endpoint(c, n, e, to) => one(snapshot, *c, *n, &|one| {
            let id = endpoint_id(PROJECTS[*c], COMPONENTS[*n], ENDPOINTS[*e]);
            let Some((kind, at, public, organization)) = *to else {
                one.endpoints.remove(&id.endpoint);
                return;
            };
            let endpoint = super::Endpoint {
                declared: source(),
                kind: [EndpointKind::Http, EndpointKind::Tcp, EndpointKind::Udp][usize::from(kind)],
                port: port(at),
                base_path: CanonicalPath::new("/").expect("the root"),
                public: exposed(public),
                organization: exposed(organization),
                id,
            };
            one.endpoints.insert(endpoint.id.endpoint.clone(), endpoint);
        }),
        Edit::Connection(c, n, to, at) => {
            let of = cell_id(PROJECTS[*c]);
            let own: Vec<_> = all.iter().filter(|id| id.component.cell == of).collect();
            one(snapshot, *c, *n, &|one| {
                if one.connections.len() > 2 {
                    one.connections.remove(at.index(one.connections.len()));
                } else if !own.is_empty() {
                    one.connections.push(super::Connection {
                        declared: source(),
                        to: own[to.index(own.len())].clone(),
                    });
                }
            });
        }
        Edit::East(c, to, from) => {
            if let Some(cell) = snapshot.cells.get_mut(&cell_id(PROJECTS[*c])) {
                if cell.east.len() > 2 {
                    cell.east.remove(to.index(3));
                } else if !all.is_empty() {
                    cell.east.push(super::East {
                        declared: source(),
                        from: called(from),
                        to: all[to.index(all.len())].clone(),
                    });
                }
            }
        }
        Edit::South(c, n, to, hosts) => {
            if let Some(cell) = snapshot.cells.get_mut(&cell_id(PROJECTS[*c])) {
                let destination = if *hosts {
                    SouthDestination::Hosts {
                        hosts: Vec::new(),
                        protocol: SouthProtocol::Tls,
                    }
                } else {
                    SouthDestination::Networks {
                        cidrs: networks(to),
                        transport: Transport::Tcp,
                    }
                };
                cell.south = vec![super::South {
                    declared: source(),
                    name: name("outside"),
                    from: called(&[*n]),
                    destination,
                    port: port(443),
                }];
            }
        }
        Edit::Lines(c) => {
            if let Some(cell) = snapshot.cells.get_mut(&cell_id(PROJECTS[*c])) {
                cell.declared.line += 1;
                cell.intra_declared.line += 1;
                for component in cell.components.values_mut() {
                    for endpoint in component.endpoints.values_mut() {
                        endpoint.declared.line += 1;
                    }
                    for connection in &mut component.connections {
                        connection.declared.line += 1;
                    }
                }
            }
        }
        Edit::Cluster(n, at, to, node_only, hinted) => {
            cluster(snapshot, *n, at, to, *node_only, *hinted)
        }
        Edit::PlatformService(to, at) => {
            let service = &mut snapshot.platform.services[0];
            service.addresses = networks(to);
            service.ports[0].port = port(*at);
        }
        Edit::Zone(on) => {
            let zone = on.then(|| "west".to_owned());
            snapshot.platform.nodes = vec![Node {
                name: "this".to_owned(),
                addresses: vec![ip("192.0.2.1")],
                zone,
                pod_networks: vec![cidr("10.1.0.0/29")],
            }];
        }
        Edit::NameServers(to) => {
            snapshot.platform.dns = addresses(to);
            snapshot.platform.dns_service_addresses = addresses(&to[..to.len().min(1)]);
        }
        Edit::Gateway(at, to) => {
            for gateway in snapshot.gateways.values_mut() {
                gateway.addresses = vec![address(*at)];
                gateway.listeners[0].port = port(*to);
            }
        }
        Edit::NodeAddress(at) => discovery.node_addresses = vec![address(*at), ip("192.0.2.1")],
        Edit::Pod(at, to) => {
            discovery.pods.retain(|pod| pod.ifindex != *at);
            let mut new = pod(*at, &[]);
            new.addresses = addresses(to);
            discovery.pods.push(new);
            discovery.pods.sort_by_key(|pod| pod.ifindex);
        }
        Edit::PodGoes(at) => discovery.pods.retain(|pod| pod.ifindex != *at),
    }
    let known = endpoints(snapshot);
    for cell in snapshot.cells.values_mut() {
        if cell.east.iter().any(|east| !known.contains(&east.to)) {
            cell.east.retain(|east| known.contains(&east.to));
        }
        let ids: Vec<Name> = cell.components.keys().cloned().collect();
        for id in ids {
            let dangles = cell.components[&id].connections.iter();
            if dangles.clone().any(|call| !known.contains(&call.to))
                && let Some(component) = cell.components.get_mut(&id)
            {
                let calls = &mut component.connections;
                calls.retain(|call| known.contains(&call.to));
            }
        }
    }
}

/// What `world` has, and cells with much that may change.
fn start() -> (Snapshot, Discovery) {
    let (mut snapshot, mut discovery) = world();
    snapshot.cells.clear();
    for (c, project) in PROJECTS.into_iter().enumerate() {
        let components = COMPONENTS[..3].iter().enumerate().map(|(n, called)| {
            let ports: Ports<'_> = &[
                ("one", EndpointKind::Tcp, 80, true, true),
                ("two", EndpointKind::Http, 81, false, true),
            ];
            let (id, mut one) = component(project, called, &[], ports);
            let at = (8 * c + 2 * n) as u8;
            one.workloads = Workloads::Addresses(addresses(&[at, at + 1]));
            one.service_addresses = vec![address(at + 40)];
            (id, one)
        });
        let (id, one) = cell(project, Intra::Declared, components.collect());
        snapshot.cells.insert(id, one.into());
    }
    discovery.pods = vec![pod(11, &["10.1.0.0"]), pod(12, &["10.1.0.8", "10.1.0.9"])];
    (snapshot, discovery)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]
    #[test]
    fn tables_do_not_tell_what_was_compiled_before(
        steps in proptest::collection::vec((proptest::collection::vec(edit(), 1..4), any::<bool>()), 1..12),
    ) {
        let (mut snapshot, mut discovery) = start();
        let mut compiled = Compiled::default().next(&Arc::new(snapshot.clone()), &discovery, 1);
        for (generation, (edits, failed)) in (2..).zip(steps) {
            for edit in &edits {
                make(edit, &mut snapshot, &mut discovery);
            }
            // The snapshot has what it did not change in common with those before, or nothing.
            let next = compiled.next(&Arc::new(snapshot.clone()), &discovery, generation);
            let expected = compile(&snapshot, &discovery, generation);
            prop_assert_eq!(next.tables(), &expected);
            let own = compiled.next(&Arc::new(apart(&snapshot)), &discovery, generation);
            prop_assert_eq!(own.tables(), &expected);
            // A generation that failed is forgotten; what was compiled before it is as good as ever.
            if !failed {
                compiled = next;
            }
        }
    }
}

/// The same snapshot, with a copy of its own of everything.
fn apart(snapshot: &Snapshot) -> Snapshot {
    let mut own = snapshot.clone();
    own.platform = Platform::clone(&snapshot.platform).into();
    for cell in own.cells.values_mut() {
        for component in cell.components.values_mut() {
            *component = super::Component::clone(component).into();
        }
    }
    own
}
