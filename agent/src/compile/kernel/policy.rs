//! What one component may do: the verdict tables of the four gates, as rules.

use std::collections::{BTreeMap, BTreeSet};

use agent_common::{Action, Direction, Identity, RuleKey};
use snapshot::model::{Cell, Component, Gate, Intra, Snapshot, SouthDestination};

use super::names::Names;
use super::{DNS_PORT, ICMP, ICMPV6, TCP, UDP, endpoint, protocol};

/// A rule and the declaration behind it.
pub(super) struct Declared {
    pub(super) action: Action,
    pub(super) text: String,
}

/// Collects the rules of one component.
pub(super) struct Policy<'a> {
    pub(super) snapshot: &'a Snapshot,
    pub(super) names: &'a Names<'a>,
    pub(super) rules: BTreeMap<RuleKey, Declared>,
}

impl Policy<'_> {
    pub(super) fn of(mut self, cell: &Cell, component: &Component) -> BTreeMap<RuleKey, Declared> {
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
    pub(super) fn ingress(&mut self, component: &Component) {
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
