//! What a snapshot means to the kernel of this node: identities, rules, services, gateways' addresses.
//!
//! Flows in: the snapshot, the pods that were found, and what was compiled before. Flows out: [`Compiled`], with the
//! [`KernelTables`]. A pure function: the tables say nothing of what was compiled before them, it only saves what both
//! have in common. Rules are made only for those with a pod here; identities for everything, since every address
//! may be a peer.
//!
//! ```text
//! snapshot before ─┐
//! snapshot ────────┴▶ changes ─▶ names ─▶ claims ─▶ parts ─▶ places ─┬▶ identities   of addresses that changed hands or moved
//! discovery ───────────────────────────────────────▲────────▲         ├▶ policies     of components here that the changes reach
//!                                                                     └▶ services     of addresses whose component changed or moved
//! ```
//!
//! What everything hangs on is made anew as a whole: the entries of the platform when the platform changes, all rules here
//! when networks, gateways, the platform's own calls or what network policies say do, and everything if a name that stays gets
//! another number.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use agent_common::Identity;
use snapshot::Snapshot;
use snapshot::model::{
    Component, ComponentId, Endpoint, EndpointId, Gate, ObjectName, Platform, Transport,
};

use crate::compile::node_addresses;
use crate::datapath::{Discovery, KernelTables, Network, Owner, Pod, ServiceAddress, Table};

mod changes;
mod claims;
pub(super) mod endpoints;
mod identities;
mod isolation;
mod names;
mod numbers;
mod origin;
mod parts;
mod places;
mod policies;
mod policy;
mod services;
#[cfg(test)]
mod tests;

use changes::Changes;
use claims::Claims;
use endpoints::Here;
use identities::Owners;
use names::Names;
use parts::Parts;
use places::{Place, Places, Whose};
use policies::{Policies, Reach};
use services::{Services, Topology, Zone};

const ICMP: u8 = 1;
const TCP: u8 = 6;
const UDP: u8 = 17;
const ICMPV6: u8 = 58;
const DNS_PORT: u16 = 53;

/// Makes the tables of a generation that comes after nothing.
#[must_use]
pub fn compile(snapshot: &Arc<Snapshot>, discovery: &Discovery, generation: u32) -> KernelTables {
    Compiled::default()
        .next(snapshot, discovery, generation)
        .tables
}

/// The tables of a generation, and what they were made from. A copy has everything in common with the original.
#[derive(Clone, Default)]
pub struct Compiled {
    tables: KernelTables,
    /// None before the first.
    from: Option<Arc<Snapshot>>,
    discovery: Arc<Discovery>,
    names: Names,
    /// Components by their workloads' addresses.
    workloads: Claims,
    /// Components by their service addresses.
    services: Claims,
    places: Arc<Places>,
    /// Identities of everybody but components, as far as cells and the platform tell them apart.
    whole: Table<Network, Owner>,
    /// What network policies make of them.
    parts: Arc<Parts>,
    /// Identities of everybody but components and pods.
    others: Table<Network, Owner>,
    policies: Policies,
    zone: Arc<Zone>,
    /// `Service`s by their addresses.
    cluster: Table<IpAddr, ObjectName>,
    here: Arc<Here>,
}

impl std::fmt::Debug for Compiled {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Compiled")
            .field("generation", &self.tables.generation)
            .finish_non_exhaustive()
    }
}

impl Compiled {
    /// The tables.
    #[must_use]
    pub fn tables(&self) -> &KernelTables {
        &self.tables
    }

    /// The tables of `generation`, which says what `snapshot` and `discovery` mean. They are what they would be after nothing,
    /// and cost what differs from these. Parts that the two snapshots have in common ([`Snapshot::sharing`]) are not looked at.
    #[must_use]
    pub fn next(&self, snapshot: &Arc<Snapshot>, discovery: &Discovery, generation: u32) -> Self {
        let changes = Changes::between(self.from.as_deref(), snapshot);
        let mut next = self.clone();
        let renumbered = next.names.follow(snapshot, &changes);
        if renumbered.names {
            // Two names that want one number. It may be in any rule and identity, and happens once in many thousand names.
            return Self::default().next(snapshot, discovery, generation);
        }
        next.tables.generation = generation;
        next.from = Some(Arc::clone(snapshot));
        let pods = self.discovery.pods != discovery.pods;
        let node = self.discovery.node_addresses != discovery.node_addresses;
        if *self.discovery != *discovery {
            next.discovery = Arc::new(discovery.clone());
        }
        let addresses = next
            .workloads
            .follow(&changes, |component| component.workloads.addresses());
        next.services
            .follow(&changes, |component| &component.service_addresses);
        let whole = changes.platform || changes.gateways || renumbered.networks || node;
        if whole {
            next.whole = identities::others(snapshot, &next.names.networks, discovery);
        }
        if whole || changes.policies || addresses {
            next.set_parts(snapshot);
        }
        let placed = pods || addresses || changes.policies || next.parts != self.parts;
        if placed {
            let whose = Whose {
                workloads: &next.workloads,
                policies: &snapshot.network,
                names: &next.names,
                parts: &next.parts,
            };
            next.places = Arc::new(Places::of(discovery, &whose));
        }
        let moved = next.places.moved(&self.places);
        if changes.platform || node {
            next.zone = Arc::new(services::zone(&snapshot.platform, discovery));
            next.here = Arc::new(Here::of(&snapshot.platform, &discovery.node_addresses));
        }
        next.set_identities(self, &changes, &moved);
        next.set_cells(self, &changes);
        next.follow_cluster(&changes);
        next.set_services(self, snapshot, &changes, &moved);
        let told = self
            .from
            .as_deref()
            .is_none_or(|before| before.network.classes != snapshot.network.classes);
        let everybody = changes.gateways
            || renumbered.networks
            || told
            || !next.parts.same_identities(&self.parts)
            || self
                .from
                .as_deref()
                .is_none_or(|before| calls(&before.platform) != calls(&snapshot.platform));
        next.policies.follow(
            &mut next.tables,
            snapshot,
            &next.names,
            &next.parts,
            &next.places.subjects(),
            &Reach::of(&changes, everybody),
        );
        // What rules need to be found is told by the endpoints that name them.
        next.set_endpoints();
        if changes.gateways || changes.platform || node {
            let own = node_addresses(&snapshot.platform, discovery);
            listeners(&mut next.tables, snapshot, &own);
        }
        next
    }

    fn set_identities(&mut self, before: &Self, changes: &Changes<'_>, moved: &BTreeSet<IpAddr>) {
        let owners = Owners {
            names: &self.names,
            workloads: &self.workloads,
            places: &self.places,
            parts: &self.parts,
            others: &self.others,
        };
        let identities = &mut self.tables.identities;
        owners.others_changed(identities, &before.others);
        for change in &changes.components {
            if change.differs(|component| component.workloads.addresses()) {
                let addresses = change.sides();
                for address in addresses.flat_map(|component| component.workloads.addresses()) {
                    owners.set(identities, *address);
                }
            }
        }
        for address in moved {
            owners.set(identities, *address);
        }
        if !Arc::ptr_eq(&self.parts, &before.parts) {
            let (now, then) = (&self.parts.members, &before.parts.members);
            let differs = |address: &&IpAddr| now.get(*address) != then.get(*address);
            for address in then.keys().chain(now.keys()).filter(differs) {
                owners.set(identities, *address);
            }
        }
    }

    /// Splits identities as network policies ask for, if they do.
    fn set_parts(&mut self, snapshot: &Snapshot) {
        let component = |address: &IpAddr| {
            let id = self.workloads.owner(address)?;
            Some(self.names.component(id))
        };
        let parts = Parts::of(&snapshot.network, &self.whole, component);
        self.others = parts.owners(&self.whole);
        if *self.parts != parts {
            self.parts = Arc::new(parts);
        }
    }

    fn set_cells(&mut self, before: &Self, changes: &Changes<'_>) {
        let cells = &mut self.tables.cells;
        // A number may be another cell's now.
        for id in changes.cells.iter().filter_map(|cell| cell.gone()) {
            cells.remove(&before.names.cell(id));
        }
        for id in changes.cells.iter().filter_map(|cell| cell.came()) {
            cells.insert(self.names.cell(id), id.to_string());
        }
    }

    /// As many as pods are here: made anew each time.
    fn set_endpoints(&mut self) {
        self.tables.endpoints.clear();
        for pod in &self.discovery.pods {
            let Some(place) = self.places.by_interface.get(&pod.ifindex) else {
                continue;
            };
            let (identity, whole, cell) = match place {
                Place::Of(subject, identity) => {
                    let component = subject.component.as_ref();
                    let whole = component.map_or(Identity::WORLD, |id| self.names.component(id));
                    let cell = component.map_or(0, |id| self.names.cell(&id.cell));
                    (*identity, Some(whole), cell)
                }
                // Guarded without identity or rules: all its packets are dropped.
                Place::Contradiction => (Identity::NONE, None, 0),
            };
            let endpoint = Pod {
                ifname: pod.host_ifname.clone(),
                identity,
                whole,
                cell,
                lookups: self.policies.lookups(identity),
                mac: pod.mac,
            };
            self.tables.endpoints.insert(pod.ifindex, endpoint);
        }
    }

    /// Takes over which addresses `Service`s have now.
    fn follow_cluster(&mut self, changes: &Changes<'_>) {
        for before in changes.services.iter().filter_map(|change| change.before) {
            for address in &before.addresses {
                self.cluster.remove(address);
            }
        }
        for after in changes.services.iter().filter_map(|change| change.after) {
            for address in &after.addresses {
                self.cluster.insert(*address, after.name.clone());
            }
        }
    }

    fn set_services(
        &mut self,
        before: &Self,
        snapshot: &Snapshot,
        changes: &Changes<'_>,
        moved: &BTreeSet<IpAddr>,
    ) {
        let services = Services {
            snapshot,
            declared: &self.services,
            topology: Topology {
                local: &self.places.owned,
                zone: &self.zone,
            },
            cluster: &self.cluster,
            here: &self.here,
        };
        let zone = self.zone != before.zone;
        let mut touched = services.near(&self.workloads, (!zone).then_some(moved));
        for component in changes.components.iter().flat_map(|change| change.sides()) {
            touched.extend(&component.service_addresses);
        }
        for service in changes.services.iter().flat_map(|change| change.sides()) {
            touched.extend(&service.addresses);
        }
        if self.here != before.here {
            let all = snapshot.services.values();
            let near = all.filter(|service| Here::matters(service));
            touched.extend(near.flat_map(|service| &service.addresses));
        }
        if changes.platform {
            for snapshot in before.from.as_deref().into_iter().chain([snapshot]) {
                touched.extend(&snapshot.platform.dns_service_addresses);
            }
        }
        let known = |address: &IpAddr| {
            let from = before.from.as_deref();
            let platform = from.map(|from| &from.platform.dns_service_addresses);
            before.services.owner(address).is_some()
                || before.cluster.contains_key(address)
                || platform.is_some_and(|addresses| addresses.contains(address))
        };
        for address in touched {
            let known = known(&address);
            services.set(&mut self.tables.services, address, known);
        }
    }
}

/// What the platform says that all rules are made with.
fn calls(platform: &Platform) -> impl PartialEq {
    (
        &platform.services,
        &platform.dns_declared,
        platform.other_nodes,
    )
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

fn listeners(tables: &mut KernelTables, snapshot: &Snapshot, node: &[IpAddr]) {
    tables.listeners.clear();
    for gateway in snapshot.gateways.values() {
        for listener in &gateway.listeners {
            for transport in listener.transports() {
                for socket in gateway.sockets_of(listener, transport, node) {
                    let at = ServiceAddress {
                        address: socket.ip(),
                        port: socket.port(),
                        protocol: protocol(transport),
                    };
                    tables
                        .listeners
                        .insert(at, gateway.gate.map_or(Identity::NONE, gate));
                }
            }
        }
    }
}
