//! What a cell declares for pods of a component: the verdict tables of the four gates, as rules.

use std::collections::BTreeSet;

use agent_common::{Action, Direction, Identity, RuleKey};
use snapshot::model::{
    Border, Cell, Component, East, EndpointId, Gate, Intra, Name, OtherNodes, SouthDestination,
};

use super::super::origin::Declaration;
use super::super::{DNS_PORT, ICMP, ICMPV6, TCP, UDP, endpoint, protocol};
use super::Collector;

impl Collector<'_> {
    pub(super) fn collect(&mut self, cell: &Cell, component: &Component) {
        self.borders(cell);
        self.intra(cell, component);
        self.ingress(component);
        self.name_servers();
        self.east(cell, component);
        self.south(cell, component);
    }

    /// Directions that nothing restricts.
    fn borders(&mut self, cell: &Cell) {
        for (border, direction) in [
            (cell.borders.ingress, Direction::Ingress),
            (cell.borders.egress, Direction::Egress),
        ] {
            if border == Border::Open {
                let by = self.declare(format!("{direction} open of {}", cell.id), &cell.declared);
                self.pass(RuleKey::ANYBODY, 0, 0, direction, by);
            }
        }
    }

    fn intra(&mut self, cell: &Cell, component: &Component) {
        match cell.intra {
            Intra::Open => {
                let by = self.declare(format!("intra open of {}", cell.id), &cell.intra_declared);
                for other in cell.components.values() {
                    for direction in [Direction::Egress, Direction::Ingress] {
                        self.pass(self.names.component(&other.id), 0, 0, direction, by);
                    }
                }
            }
            Intra::Declared => {
                for caller in cell.components.values() {
                    for connection in &caller.connections {
                        let to = &connection.to;
                        if caller.id != component.id && to.component != component.id {
                            continue;
                        }
                        let Some(endpoint) = endpoint(self.snapshot, to) else {
                            continue;
                        };
                        let text = format!("connection {} to {to}", caller.id);
                        let by = self.declare(text, &connection.declared);
                        let port = endpoint.port.get();
                        let protocol = protocol(endpoint.kind.transport());
                        let sides = [
                            (&caller.id, &to.component, Direction::Egress),
                            (&to.component, &caller.id, Direction::Ingress),
                        ];
                        for (side, peer, direction) in sides {
                            if *side == component.id {
                                let peer = self.names.component(peer);
                                self.pass(peer, port, protocol, direction, by);
                                // Echo follows the intra rule.
                                for echo in [ICMP, ICMPV6] {
                                    self.pass(peer, 0, echo, direction, by);
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
            for (exposure, gate, word) in [
                (&endpoint.public, Identity::NORTH_GATE, "public"),
                (&endpoint.organization, Identity::WEST_GATE, "organization"),
            ] {
                if let Some(exposure) = exposure {
                    let by = self.declare(format!("{word} {}", endpoint.id), &exposure.declared);
                    self.pass(gate, port, protocol, ingress, by);
                    if self.snapshot.platform.other_nodes == OtherNodes::Gateways {
                        self.pass(Identity::OTHER_NODE, port, protocol, ingress, by);
                    }
                }
            }
            let text = format!("probes of {}", endpoint.id);
            let declared = &endpoint.declared;
            let by = self.origins.declare(text, &[], || {
                declared.at(format!("{}.port", declared.field))
            });
            self.pass(Identity::NODE, port, protocol, ingress, by);
        }
        for service in &self.snapshot.platform.services {
            let text = format!("platform service {}", service.name);
            let by = self.declare(text, &service.declared);
            for peer in service
                .addresses
                .iter()
                .flat_map(|cidr| self.names.networks.within_platform(cidr))
            {
                for port in &service.ports {
                    self.pass(peer, port.port.get(), protocol(port.transport), ingress, by);
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
                let by = self.call(caller, east);
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
                        by,
                    );
                }
            }
        }
    }

    fn name_servers(&mut self) {
        // Where none are declared, no address is one.
        let Some(declared) = &self.snapshot.platform.dns_declared else {
            return;
        };
        let by = self.declare("platform dns".to_owned(), declared);
        for protocol in [UDP, TCP] {
            self.pass(Identity::DNS, DNS_PORT, protocol, Direction::Egress, by);
        }
    }

    /// A cell may declare a call to one endpoint more than once, for different callers.
    fn call(&mut self, cell: &Cell, east: &East) -> Declaration {
        let text = format!("east {} to {}", cell.id, east.to);
        self.origins
            .declare(text, &east.from, || east.declared.clone())
    }

    fn east(&mut self, cell: &Cell, component: &Component) {
        for east in cell.east.iter().filter(|east| calls(&east.from, component)) {
            let Some(endpoint) = endpoint(self.snapshot, &east.to) else {
                continue;
            };
            let by = self.call(cell, east);
            let peer = self.names.component(&east.to.component);
            let port = endpoint.port.get();
            if !endpoint.kind.is_http() {
                self.pass(
                    peer,
                    port,
                    protocol(endpoint.kind.transport()),
                    Direction::Egress,
                    by,
                );
                // What is spoken there is not known of a cell of labels: documents may have routes to it at the west gate.
                if !self.is_open(&east.to) {
                    continue;
                }
            } else {
                self.allow(peer, port, TCP, Direction::Egress, Action::Steer, by);
            }
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
                self.pass(Identity::WEST_GATE, port, TCP, Direction::Egress, by);
            }
        }
    }

    /// Whether the cell of an endpoint lets everybody in.
    fn is_open(&self, to: &EndpointId) -> bool {
        let cell = self.snapshot.cells.get(&to.component.cell);
        cell.is_some_and(|cell| cell.borders.ingress == Border::Open)
    }

    fn south(&mut self, cell: &Cell, component: &Component) {
        for south in cell
            .south
            .iter()
            .filter(|south| calls(&south.from, component))
        {
            let text = format!("south {} of {}", south.name, cell.id);
            let by = self.declare(text, &south.declared);
            let port = south.port.get();
            match &south.destination {
                SouthDestination::Networks { cidrs, transport } => {
                    let networks = &self.names.networks;
                    for peer in cidrs.iter().flat_map(|cidr| networks.within_south(cidr)) {
                        self.pass(peer, port, protocol(*transport), Direction::Egress, by);
                    }
                }
                SouthDestination::Hosts { .. } => {
                    // The name may resolve to any address outside the platform, also to one that some cell declared.
                    for peer in self
                        .names
                        .networks
                        .external
                        .values()
                        .copied()
                        .chain([Identity::WORLD])
                    {
                        self.allow(peer, port, TCP, Direction::Egress, Action::Steer, by);
                    }
                }
            }
        }
    }
}

/// Whether a declaration is about a component; one that names none is about all.
pub(in crate::compile::kernel) fn calls(from: &[Name], component: &Component) -> bool {
    from.is_empty() || from.contains(&component.id.component)
}
