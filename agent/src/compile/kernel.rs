//! What a snapshot means to the kernel of this node: identities, rules, services, gateways' addresses.
//!
//! Flows in: the snapshot and the pods that were found. Flows out: [`KernelTables`]. A pure function. Rules are made
//! only for components with a pod here; identities for everything, since every address may be a peer.
//!
//! Who owns an address, the later line winning over the earlier:
//! world, networks of declared south calls, networks of platform services, other nodes, this node, name servers, gates,
//! the metadata service, components. A network of a south call therefore never reaches a node, gate or pod inside it,
//! and a network of the platform only if the call names that network or one inside it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use agent_common::{Action, Direction, Identity, IdentityValue, Rule, RuleKey};
use sha2::{Digest as _, Sha256};
use snapshot::model::{
    Cell, CellId, Cidr, Component, ComponentId, Endpoint, EndpointId, Gate, Intra, Snapshot,
    SouthDestination, Transport,
};

use crate::datapath::{
    Backend, Discovery, KernelTables, Network, Owner, Pod, Rules, ServiceAddress,
};

#[cfg(test)]
mod tests;

const ICMP: u8 = 1;
const TCP: u8 = 6;
const UDP: u8 = 17;
const ICMPV6: u8 = 58;
const DNS_PORT: u16 = 53;

/// The metadata services of the large clouds.
const METADATA: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::new(169, 254, 169, 254)),
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254)),
];

/// Makes the tables of a generation.
#[must_use]
pub fn compile(snapshot: &Snapshot, discovery: &Discovery, generation: u32) -> KernelTables {
    let names = Names::of(snapshot);
    let mut tables = KernelTables {
        generation,
        ..KernelTables::default()
    };
    let local = locals(snapshot, &names, discovery);
    identities(&mut tables, snapshot, &names, discovery, &local);
    for (id, number) in &names.cells {
        tables.cells.insert(*number, id.to_string());
    }
    for pod in &discovery.pods {
        let Some(place) = local.by_interface.get(&pod.ifindex) else {
            continue;
        };
        let (identity, cell) = match place {
            Place::Of(id) => (
                names.component(id),
                names.cells.get(&id.cell).copied().unwrap_or(0),
            ),
            // Guarded without identity or rules: all its packets are dropped.
            Place::Contradiction => (Identity::NONE, 0),
        };
        let endpoint = Pod {
            ifname: pod.host_ifname.clone(),
            identity,
            cell,
            mac: pod.mac,
        };
        tables.endpoints.insert(pod.ifindex, endpoint);
    }
    let mut texts = BTreeSet::new();
    let declared: BTreeMap<Identity, BTreeMap<RuleKey, Declared>> = local
        .by_interface
        .values()
        .filter_map(|place| match place {
            Place::Of(id) => Some(*id),
            Place::Contradiction => None,
        })
        .collect::<BTreeSet<_>>()
        .into_iter()
        .filter_map(|id| {
            let cell = snapshot.cells.get(&id.cell)?;
            let component = cell.components.get(&id.component)?;
            let rules = Policy {
                snapshot,
                names: &names,
                rules: BTreeMap::new(),
            }
            .of(cell, component);
            texts.extend(rules.values().map(|rule| rule.text.clone()));
            Some((names.component(id), rules))
        })
        .collect();
    let numbers = numbers(
        texts.into_iter().map(|text| (text.clone(), vec![text])),
        u32::MAX,
    );
    tables.rules = numbers
        .iter()
        .map(|(text, number)| (*number, text.clone()))
        .collect();
    tables.policies = declared
        .into_iter()
        .map(|(identity, rules)| {
            let rule = |rule: Declared| {
                Rule::new(rule.action, numbers.get(&rule.text).copied().unwrap_or(0))
            };
            (
                identity,
                rules
                    .into_iter()
                    .map(|(key, declared)| (key, rule(declared)))
                    .collect::<Rules>(),
            )
        })
        .collect();
    services(&mut tables, snapshot);
    listeners(&mut tables, snapshot);
    tables
}

/// Numbers of everything that has one: from a hash of the name, so that one more cell renumbers no other, and then the
/// next free one in the order of names.
struct Names<'a> {
    cells: BTreeMap<&'a CellId, u32>,
    components: BTreeMap<&'a ComponentId, u32>,
    external: BTreeMap<Cidr, Identity>,
    platform: BTreeMap<Cidr, Identity>,
}

fn numbers<K: Ord>(names: impl Iterator<Item = (K, Vec<String>)>, limit: u32) -> BTreeMap<K, u32> {
    let mut taken = BTreeSet::new();
    let mut numbered = BTreeMap::new();
    for (key, parts) in names {
        let mut hash = Sha256::new();
        for part in &parts {
            // The length keeps ("ab", "c") apart from ("a", "bc").
            hash.update((part.len() as u64).to_be_bytes());
            hash.update(part);
        }
        let digest = hash.finalize();
        let mut number = u32::from_be_bytes([digest[0], digest[1], digest[2], digest[3]]) % limit;
        // Zero is nobody, and there are fewer names than numbers.
        while number == 0 || !taken.insert(number) {
            number = number.wrapping_add(1) % limit;
        }
        numbered.insert(key, number);
    }
    numbered
}

fn parts(cell: &CellId) -> Vec<String> {
    [&cell.organization, &cell.project, &cell.environment]
        .map(ToString::to_string)
        .to_vec()
}

impl<'a> Names<'a> {
    fn of(snapshot: &'a Snapshot) -> Self {
        let limit = Identity::MAX_NUMBER;
        let components = snapshot
            .cells
            .values()
            .flat_map(|cell| cell.components.values())
            .map(|component| {
                let mut parts = parts(&component.id.cell);
                parts.push(component.id.component.to_string());
                (&component.id, parts)
            });
        let networks = |all: BTreeSet<Cidr>| {
            numbers(
                all.into_iter().map(|cidr| (cidr, vec![cidr.to_string()])),
                limit,
            )
        };
        let south = snapshot
            .cells
            .values()
            .flat_map(|cell| &cell.south)
            .flat_map(|south| match &south.destination {
                SouthDestination::Networks { cidrs, .. } => cidrs.as_slice(),
                SouthDestination::Hosts { .. } => &[],
            });
        let platform: BTreeSet<Cidr> = snapshot
            .platform
            .services
            .iter()
            .flat_map(|service| &service.addresses)
            .copied()
            .collect();
        let external = south
            .copied()
            .filter(|cidr| !platform.contains(cidr))
            .collect();
        Self {
            cells: numbers(snapshot.cells.keys().map(|id| (id, parts(id))), limit),
            components: numbers(components, limit),
            external: networks(external)
                .into_iter()
                .map(|(cidr, number)| (cidr, Identity::external(number)))
                .collect(),
            platform: networks(platform)
                .into_iter()
                .map(|(cidr, number)| (cidr, Identity::platform(number)))
                .collect(),
        }
    }

    fn component(&self, id: &ComponentId) -> Identity {
        // Only components of the snapshot are asked for; one that were not would be nobody, and denied.
        self.components
            .get(id)
            .map_or(Identity::NONE, |number| Identity::component(*number))
    }

    /// Everybody that a south call to `cidr` may meet: longest prefixes inside it are identities of their own.
    fn within_south(&self, cidr: &Cidr) -> impl Iterator<Item = Identity> {
        let external = self
            .external
            .iter()
            .filter(|(inner, _)| cidr.contains(inner))
            .map(|(_, identity)| *identity);
        external.chain(self.platform.get(cidr).copied())
    }

    /// Everybody that a platform service with `cidr` may call from.
    fn within_platform(&self, cidr: &Cidr) -> impl Iterator<Item = Identity> {
        self.external
            .iter()
            .chain(&self.platform)
            .filter(|(inner, _)| cidr.contains(inner))
            .map(|(_, identity)| *identity)
    }
}

/// Whose pod is behind an interface.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Place<'a> {
    Of(&'a ComponentId),
    /// Its addresses belong to more than one component: it claims what is not its own.
    Contradiction,
}

struct Locals<'a> {
    by_interface: BTreeMap<u32, Place<'a>>,
    /// Declared addresses that a pod here has, and its interface.
    owned: BTreeMap<IpAddr, u32>,
}

fn locals<'a>(snapshot: &'a Snapshot, names: &Names<'a>, discovery: &Discovery) -> Locals<'a> {
    let mut declared: BTreeMap<IpAddr, &ComponentId> = BTreeMap::new();
    for id in names.components.keys() {
        if let Some(component) = component(snapshot, id) {
            declared.extend(
                component
                    .workloads
                    .addresses()
                    .iter()
                    .map(|address| (*address, *id)),
            );
        }
    }
    let mut by_interface = BTreeMap::new();
    let mut owned = BTreeMap::new();
    for pod in &discovery.pods {
        let claims: BTreeSet<&ComponentId> = pod
            .addresses
            .iter()
            .filter_map(|address| declared.get(address).copied())
            .collect();
        let mut claims = claims.into_iter();
        let place = match (claims.next(), claims.next()) {
            (None, _) => continue,
            (Some(id), None) => Place::Of(id),
            (Some(_), Some(_)) => Place::Contradiction,
        };
        by_interface.insert(pod.ifindex, place);
        if let Place::Of(_) = place {
            // Of two pods with one address the older interface has it; the other one cannot send from it.
            for address in pod
                .addresses
                .iter()
                .filter(|address| declared.contains_key(address))
            {
                owned.entry(*address).or_insert(pod.ifindex);
            }
        }
    }
    Locals {
        by_interface,
        owned,
    }
}

fn component<'a>(snapshot: &'a Snapshot, id: &ComponentId) -> Option<&'a Component> {
    snapshot.cells.get(&id.cell)?.components.get(&id.component)
}

fn endpoint<'a>(snapshot: &'a Snapshot, id: &EndpointId) -> Option<&'a Endpoint> {
    component(snapshot, &id.component)?
        .endpoints
        .get(&id.endpoint)
}

fn identities(
    tables: &mut KernelTables,
    snapshot: &Snapshot,
    names: &Names<'_>,
    discovery: &Discovery,
    local: &Locals<'_>,
) {
    let mut own = |network: Network, identity: Identity, ifindex: u32| {
        tables
            .identities
            .insert(network, Owner { identity, ifindex });
    };
    own(
        Network::new(Ipv4Addr::UNSPECIFIED.into(), 0),
        Identity::WORLD,
        0,
    );
    own(
        Network::new(Ipv6Addr::UNSPECIFIED.into(), 0),
        Identity::WORLD,
        0,
    );
    for (cidr, identity) in names.external.iter().chain(&names.platform) {
        own(Network::new(cidr.address(), cidr.length()), *identity, 0);
    }
    let platform = &snapshot.platform;
    for address in platform.nodes.iter().flat_map(|node| &node.addresses) {
        own(Network::host(*address), Identity::OTHER_NODE, 0);
    }
    for address in &discovery.node_addresses {
        own(
            Network::host(*address),
            Identity::NODE,
            IdentityValue::THIS_NODE,
        );
    }
    for address in &platform.dns {
        own(Network::host(*address), Identity::DNS, 0);
    }
    // An address that plays both gates counts as the west one: calls to it are judged by what the caller declared.
    for (reference, gate) in [
        (&platform.external, Identity::NORTH_GATE),
        (&platform.internal, Identity::WEST_GATE),
    ] {
        for address in reference
            .iter()
            .flat_map(|reference| &reference.remote_addresses)
        {
            own(Network::host(*address), gate, 0);
        }
    }
    for kind in [Gate::External, Gate::Internal] {
        for gateway in snapshot
            .gateways
            .values()
            .filter(|gateway| gateway.gate == Some(kind))
        {
            for address in &gateway.addresses {
                own(
                    Network::host(*address),
                    gate(kind),
                    IdentityValue::THIS_NODE,
                );
            }
        }
    }
    for address in METADATA {
        own(Network::host(address), Identity::METADATA, 0);
    }
    for id in names.components.keys() {
        let addresses =
            component(snapshot, id).map_or(&[][..], |component| component.workloads.addresses());
        for address in addresses {
            own(
                Network::host(*address),
                names.component(id),
                local.owned.get(address).copied().unwrap_or(0),
            );
        }
    }
}

fn gate(gate: Gate) -> Identity {
    match gate {
        Gate::External => Identity::NORTH_GATE,
        Gate::Internal => Identity::WEST_GATE,
    }
}

fn protocol(transport: Transport) -> u8 {
    match transport {
        Transport::Tcp => TCP,
        Transport::Udp => UDP,
    }
}

/// A rule and the declaration behind it.
struct Declared {
    action: Action,
    text: String,
}

/// Collects the rules of one component.
struct Policy<'a> {
    snapshot: &'a Snapshot,
    names: &'a Names<'a>,
    rules: BTreeMap<RuleKey, Declared>,
}

impl Policy<'_> {
    fn of(mut self, cell: &Cell, component: &Component) -> BTreeMap<RuleKey, Declared> {
        self.intra(cell, component);
        self.ingress(component);
        self.name_servers();
        self.east(cell, component);
        self.south(cell, component);
        self.rules
    }

    /// Of two declarations for the same packets, the one that needs no router wins: it was declared by address.
    fn allow(
        &mut self,
        peer: Identity,
        port: u16,
        protocol: u8,
        direction: Direction,
        action: Action,
        text: &str,
    ) {
        let rule = Declared {
            action,
            text: text.to_owned(),
        };
        let key = RuleKey::new(peer, port, protocol, direction);
        match self.rules.get(&key) {
            Some(known) if known.action == Action::Pass || action == Action::Steer => {}
            _ => drop(self.rules.insert(key, rule)),
        }
    }

    fn pass(&mut self, peer: Identity, port: u16, protocol: u8, direction: Direction, text: &str) {
        self.allow(peer, port, protocol, direction, Action::Pass, text);
    }

    fn intra(&mut self, cell: &Cell, component: &Component) {
        match cell.intra {
            Intra::Open => {
                let text = format!("intra open of {}", cell.id);
                for other in cell.components.values() {
                    for direction in [Direction::Egress, Direction::Ingress] {
                        self.pass(self.names.component(&other.id), 0, 0, direction, &text);
                    }
                }
            }
            Intra::Declared => {
                for caller in cell.components.values() {
                    for to in &caller.connections {
                        let Some(endpoint) = endpoint(self.snapshot, to) else {
                            continue;
                        };
                        let text = format!("connection {} to {to}", caller.id);
                        let port = endpoint.port.get();
                        let protocol = protocol(endpoint.kind.transport());
                        let sides = [
                            (&caller.id, &to.component, Direction::Egress),
                            (&to.component, &caller.id, Direction::Ingress),
                        ];
                        for (side, peer, direction) in sides {
                            if *side == component.id {
                                let peer = self.names.component(peer);
                                self.pass(peer, port, protocol, direction, &text);
                                // Echo follows the intra rule.
                                for echo in [ICMP, ICMPV6] {
                                    self.pass(peer, 0, echo, direction, &text);
                                }
                            }
                        }
                    }
                }
            }
        }
    }

    /// Gates, probes, the platform, and callers of other cells.
    fn ingress(&mut self, component: &Component) {
        let ingress = Direction::Ingress;
        for endpoint in component.endpoints.values() {
            let (port, protocol) = (endpoint.port.get(), protocol(endpoint.kind.transport()));
            if endpoint.public.is_some() {
                self.pass(
                    Identity::NORTH_GATE,
                    port,
                    protocol,
                    ingress,
                    &format!("public {}", endpoint.id),
                );
            }
            if endpoint.organization.is_some() {
                self.pass(
                    Identity::WEST_GATE,
                    port,
                    protocol,
                    ingress,
                    &format!("organization {}", endpoint.id),
                );
            }
            self.pass(
                Identity::NODE,
                port,
                protocol,
                ingress,
                &format!("probes of {}", endpoint.id),
            );
        }
        for service in &self.snapshot.platform.services {
            let text = format!("platform service {}", service.name);
            for peer in service
                .addresses
                .iter()
                .flat_map(|cidr| self.names.within_platform(cidr))
            {
                for port in &service.ports {
                    self.pass(
                        peer,
                        port.port.get(),
                        protocol(port.transport),
                        ingress,
                        &text,
                    );
                }
            }
        }
        for caller in self.snapshot.cells.values() {
            for east in caller
                .east
                .iter()
                .filter(|east| east.to.component == component.id)
            {
                let Some(endpoint) = component.endpoints.get(&east.to.endpoint) else {
                    continue;
                };
                // HTTP comes through the west gate.
                if endpoint.kind.is_http() || endpoint.organization.is_none() {
                    continue;
                }
                let text = format!("east {} to {}", caller.id, east.to);
                for from in caller
                    .components
                    .values()
                    .filter(|from| calls(&east.from, from))
                {
                    let peer = self.names.component(&from.id);
                    self.pass(
                        peer,
                        endpoint.port.get(),
                        protocol(endpoint.kind.transport()),
                        ingress,
                        &text,
                    );
                }
            }
        }
    }

    fn name_servers(&mut self) {
        for protocol in [UDP, TCP] {
            self.pass(
                Identity::DNS,
                DNS_PORT,
                protocol,
                Direction::Egress,
                "platform dns",
            );
        }
    }

    fn east(&mut self, cell: &Cell, component: &Component) {
        for east in cell.east.iter().filter(|east| calls(&east.from, component)) {
            let Some(endpoint) = endpoint(self.snapshot, &east.to) else {
                continue;
            };
            let text = format!("east {} to {}", cell.id, east.to);
            let peer = self.names.component(&east.to.component);
            let port = endpoint.port.get();
            if !endpoint.kind.is_http() {
                self.pass(
                    peer,
                    port,
                    protocol(endpoint.kind.transport()),
                    Direction::Egress,
                    &text,
                );
                continue;
            }
            self.allow(peer, port, TCP, Direction::Egress, Action::Steer, &text);
            // The endpoint's host names lead to the west gate's own address. The gate knows callers by their source address,
            // which the sender's gate has checked, and asks there what they declared.
            let gates: BTreeSet<u16> = self
                .snapshot
                .gateways
                .values()
                .filter(|gateway| gateway.gate == Some(Gate::Internal))
                .flat_map(|gateway| &gateway.listeners)
                .map(|listener| listener.port.get())
                .collect();
            for port in gates {
                self.pass(Identity::WEST_GATE, port, TCP, Direction::Egress, &text);
            }
        }
    }

    fn south(&mut self, cell: &Cell, component: &Component) {
        for south in cell
            .south
            .iter()
            .filter(|south| calls(&south.from, component))
        {
            let text = format!("south {} of {}", south.name, cell.id);
            let port = south.port.get();
            match &south.destination {
                SouthDestination::Networks { cidrs, transport } => {
                    for peer in cidrs.iter().flat_map(|cidr| self.names.within_south(cidr)) {
                        self.pass(peer, port, protocol(*transport), Direction::Egress, &text);
                    }
                }
                SouthDestination::Hosts { .. } => {
                    // The name may resolve to any address outside the platform, also to one that some cell declared.
                    for peer in self
                        .names
                        .external
                        .values()
                        .copied()
                        .chain([Identity::WORLD])
                    {
                        self.allow(peer, port, TCP, Direction::Egress, Action::Steer, &text);
                    }
                }
            }
        }
    }
}

/// Whether a declaration is about a component; one that names none is about all.
fn calls(from: &[snapshot::model::Name], component: &Component) -> bool {
    from.is_empty() || from.contains(&component.id.component)
}

fn services(tables: &mut KernelTables, snapshot: &Snapshot) {
    let mut add = |address: IpAddr, port: u16, protocol: u8, to: &[IpAddr]| {
        let backends = to
            .iter()
            .filter(|backend| backend.is_ipv4() == address.is_ipv4())
            .map(|backend| Backend {
                address: *backend,
                port,
            })
            .collect();
        tables.services.insert(
            ServiceAddress {
                address,
                port,
                protocol,
            },
            backends,
        );
    };
    for component in snapshot
        .cells
        .values()
        .flat_map(|cell| cell.components.values())
    {
        for address in &component.service_addresses {
            for endpoint in component.endpoints.values() {
                let protocol = protocol(endpoint.kind.transport());
                add(
                    *address,
                    endpoint.port.get(),
                    protocol,
                    component.workloads.addresses(),
                );
            }
        }
    }
    for address in &snapshot.platform.dns_service_addresses {
        for protocol in [UDP, TCP] {
            add(*address, DNS_PORT, protocol, &snapshot.platform.dns);
        }
    }
}

fn listeners(tables: &mut KernelTables, snapshot: &Snapshot) {
    for gateway in snapshot.gateways.values() {
        for address in &gateway.addresses {
            for listener in &gateway.listeners {
                let at = ServiceAddress {
                    address: *address,
                    port: listener.port.get(),
                    protocol: TCP,
                };
                tables
                    .listeners
                    .insert(at, gateway.gate.map_or(Identity::NONE, gate));
            }
        }
    }
}
