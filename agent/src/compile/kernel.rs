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

use agent_common::{Identity, IdentityValue, Rule, RuleKey};
use snapshot::model::{Component, ComponentId, Endpoint, EndpointId, Gate, Snapshot, Transport};

use crate::datapath::{Discovery, KernelTables, Network, Owner, Pod, Rules, ServiceAddress};

mod names;
mod origin;
mod policy;
mod services;
#[cfg(test)]
mod tests;

use names::Names;
use origin::Origins;
use policy::{Declared, Policy};

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
    let mut origins = Origins::default();
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
                origins: &mut origins,
                rules: BTreeMap::new(),
            }
            .of(cell, component);
            Some((names.component(id), rules))
        })
        .collect();
    let used = declared
        .values()
        .flat_map(|rules| rules.values().map(|rule| rule.origin))
        .collect();
    let (numbers, rules) = origins.finish(&used);
    tables.rules = rules;
    tables.policies = declared
        .into_iter()
        .map(|(identity, rules)| {
            let rule = |rule: Declared| {
                Rule::new(rule.action, numbers.get(&rule.origin).copied().unwrap_or(0))
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
    services::add(&mut tables, snapshot, discovery, &local.owned);
    listeners(&mut tables, snapshot);
    tables
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
    let cell = snapshot.cells.get(&id.cell)?;
    Some(cell.components.get(&id.component)?)
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
        let owner = Owner {
            identity,
            ifindex,
            cell: 0,
        };
        tables.identities.insert(network, owner);
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
            let owner = Owner {
                identity: names.component(id),
                ifindex: local.owned.get(address).copied().unwrap_or(0),
                cell: names.cells.get(&id.cell).copied().unwrap_or(0),
            };
            tables.identities.insert(Network::host(*address), owner);
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
