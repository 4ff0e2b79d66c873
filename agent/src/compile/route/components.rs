//! What is known of components: who calls, what is behind their addresses, and what is inside.

use std::collections::{BTreeMap, HashSet};
use std::net::SocketAddr;
use std::sync::Arc;

use snapshot::Snapshot;
use snapshot::model::{
    Border, Cell, Component, EndpointId, Gate, Name, Origin, SouthDestination, SouthProtocol,
};

use super::Compiler;
use crate::route::{Caller, HashMap, HostRules, Inside, RouteRules, SouthHosts, Steered};

impl Compiler<'_> {
    /// What is behind each address and port of a component, with the rules that the west gate has
    /// for it.
    pub(super) fn steered(&mut self, rules: &[RouteRules]) -> HashMap<SocketAddr, Steered> {
        let snapshot = self.snapshot;
        let mut internal: HashMap<&EndpointId, Vec<usize>> = HashMap::default();
        for (at, route) in snapshot.routes.iter().enumerate() {
            if let Origin::Endpoint {
                endpoint,
                gate: Gate::Internal,
            } = &route.origin
            {
                internal.entry(&**endpoint).or_default().push(at);
            }
        }
        let mut steered = HashMap::default();
        let components = snapshot
            .cells
            .values()
            .flat_map(|cell| cell.components.values());
        for component in components {
            let id = &component.id;
            let prefix: Arc<str> = format!("/{}/{}", id.cell.project, id.component).into();
            let mut ports: BTreeMap<u16, Vec<EndpointId>> = BTreeMap::new();
            for endpoint in component
                .endpoints
                .values()
                .filter(|one| one.kind.is_http())
            {
                ports
                    .entry(endpoint.port.get())
                    .or_default()
                    .push(endpoint.id.clone());
            }
            for (port, endpoints) in ports {
                let mut together = HostRules::default();
                for at in endpoints
                    .iter()
                    .filter_map(|one| internal.get(one))
                    .flatten()
                {
                    self.add(&mut together, &snapshot.routes[*at], &rules[*at], *at);
                }
                together.complete();
                let (endpoints, together): (Arc<[_]>, _) = (endpoints.into(), Arc::new(together));
                let workloads = component.workloads.addresses().iter();
                let services = component.service_addresses.iter();
                for (address, service) in workloads
                    .map(|one| (one, false))
                    .chain(services.map(|one| (one, true)))
                {
                    steered.insert(
                        SocketAddr::new(*address, port),
                        Steered {
                            endpoints: Arc::clone(&endpoints),
                            rules: Arc::clone(&together),
                            prefix: Arc::clone(&prefix),
                            service,
                        },
                    );
                }
            }
        }
        steered
    }
}

/// What no declared name may lead to. The kernel draws the same line for networks of south calls.
pub(super) fn inside(snapshot: &Snapshot) -> Inside {
    let platform = &snapshot.platform;
    let components = snapshot
        .cells
        .values()
        .flat_map(|cell| cell.components.values())
        .flat_map(|one| one.addresses());
    let gates = [&platform.external, &platform.internal];
    let gates = gates.into_iter().flatten();
    let services = snapshot.services.values();
    let hosts = components
        .chain(services.flat_map(|one| &one.addresses))
        .chain(snapshot.gateways.values().flat_map(|one| &one.addresses))
        .chain(gates.flat_map(|gate| &gate.remote_addresses))
        .chain(platform.nodes.iter().flat_map(|node| &node.addresses))
        .chain(&platform.dns)
        .chain(&platform.dns_service_addresses);
    let services = platform.services.iter();
    Inside {
        hosts: hosts.copied().collect(),
        networks: services
            .flat_map(|one| one.addresses.iter().copied())
            .collect(),
    }
}

pub(super) fn callers(snapshot: &Snapshot) -> HashMap<std::net::IpAddr, Arc<Caller>> {
    let mut callers = HashMap::default();
    for cell in snapshot.cells.values() {
        for component in cell.components.values() {
            let caller = Arc::new(caller(cell, component));
            for address in component.workloads.addresses() {
                callers.insert(*address, Arc::clone(&caller));
            }
        }
    }
    callers
}

/// What is behind each address and port of a cell whose components are those that labels name.
pub(super) fn labelled(snapshot: &Snapshot) -> HashMap<SocketAddr, EndpointId> {
    let cells = snapshot.cells.values();
    let open = cells.filter(|cell| cell.borders.ingress == Border::Open);
    let mut endpoints = HashMap::default();
    for component in open.flat_map(|cell| cell.components.values()) {
        for endpoint in component.endpoints.values() {
            for address in component.workloads.addresses() {
                let at = SocketAddr::new(*address, endpoint.port.get());
                endpoints.insert(at, endpoint.id.clone());
            }
        }
    }
    endpoints
}

fn caller(cell: &Cell, component: &Component) -> Caller {
    let name = &component.id.component;
    let from = |names: &[Name]| names.is_empty() || names.contains(name);
    let mut south: HashMap<u16, SouthHosts> = HashMap::default();
    for declared in cell.south.iter().filter(|south| from(&south.from)) {
        if let SouthDestination::Hosts { hosts, protocol } = &declared.destination {
            let entry = south.entry(declared.port.get()).or_default();
            let names = match protocol {
                SouthProtocol::Tls => &mut entry.tls,
                SouthProtocol::Http => &mut entry.http,
            };
            names.extend(
                hosts
                    .iter()
                    .map(|host| (host.as_str().into(), host.clone())),
            );
        }
    }
    let calls: HashSet<EndpointId> = cell
        .east
        .iter()
        .filter(|east| from(&east.from))
        .map(|east| &east.to)
        .chain(
            component
                .connections
                .iter()
                .map(|connection| &connection.to),
        )
        .cloned()
        .collect();
    Caller {
        name: component.id.to_string().into(),
        cell: component.id.cell.to_string().into(),
        id: component.id.clone(),
        calls,
        intra: cell.intra,
        egress: cell.borders.egress,
        south,
    }
}
