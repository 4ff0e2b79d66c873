//! What pods of one component may do: the verdict tables of the four gates, as rules, and what network policies leave of them.

use std::collections::{BTreeMap, BTreeSet};

use agent_common::{Action, Direction, Identity, Lookups, RuleKey};
use snapshot::model::{
    AddressClass, Border, Cell, Component, East, EndpointId, Gate, Intra, PolicyRule, PortNumbers,
    SouthDestination,
};
use snapshot::{Snapshot, Source};

use super::isolation::{Isolation, Ports, allowed, is_exempt, isolating, lookups, names};
use super::names::Names;
use super::origin::{Declaration, Meaning, Origin, Origins};
use super::parts::Peer;
use super::{DNS_PORT, ICMP, ICMPV6, TCP, UDP, endpoint, protocol};
use crate::datapath::RuleSource;

/// The rules of pods that are alike, before what they mean has numbers.
pub(super) struct Policy {
    /// With the index of what each means.
    pub(super) rules: Vec<(RuleKey, Action, usize)>,
    /// In order, each once.
    pub(super) meanings: Vec<(Meaning, RuleSource)>,
    /// What it takes to find them.
    pub(super) lookups: Lookups,
}

/// A rule and what it comes from.
struct Declared {
    action: Action,
    origin: Origin,
}

/// Collects these rules.
struct Collector<'a> {
    snapshot: &'a Snapshot,
    names: &'a Names,
    origins: Origins,
    rules: BTreeMap<RuleKey, Declared>,
}

impl Policy {
    /// The rules of pods that are of a component of this cell, and of a class.
    pub(super) fn of_component(
        snapshot: &Snapshot,
        names: &Names,
        cell: &Cell,
        component: &Component,
        (isolation, class): (Isolation<'_>, Option<&AddressClass>),
    ) -> Self {
        let mut collector = Collector::new(snapshot, names);
        collector.collect(cell, component);
        collector.isolate(isolation, class);
        collector.finish()
    }

    /// The rules of pods of no cell that policies isolate.
    pub(super) fn of_pods(
        snapshot: &Snapshot,
        names: &Names,
        isolation: Isolation<'_>,
        class: &AddressClass,
    ) -> Self {
        let mut collector = Collector::new(snapshot, names);
        for direction in [Direction::Egress, Direction::Ingress] {
            collector.pods(isolation, class, direction);
        }
        collector.finish()
    }

    /// Where the rules with a meaning of this component are declared.
    pub(super) fn source(&self, meaning: &Meaning) -> Option<&RuleSource> {
        let at = self
            .meanings
            .binary_search_by(|(known, _)| known.cmp(meaning));
        at.ok().map(|at| &self.meanings[at].1)
    }
}

impl<'a> Collector<'a> {
    fn new(snapshot: &'a Snapshot, names: &'a Names) -> Self {
        Self {
            snapshot,
            names,
            origins: Origins::default(),
            rules: BTreeMap::new(),
        }
    }

    fn finish(self) -> Policy {
        let Self { origins, rules, .. } = self;
        let used = rules.values().map(|rule| rule.origin).collect();
        let (of, meanings) = origins.finish(&used);
        let lookups = lookups(rules.keys());
        let rules = rules.into_iter();
        Policy {
            rules: rules
                .map(|(key, rule)| (key, rule.action, of[&rule.origin]))
                .collect(),
            meanings,
            lookups,
        }
    }
}

impl Collector<'_> {
    fn collect(&mut self, cell: &Cell, component: &Component) {
        self.borders(cell);
        self.intra(cell, component);
        self.ingress(component);
        self.name_servers();
        self.east(cell, component);
        self.south(cell, component);
    }

    /// Of two declarations for the same packets, the one that needs no router wins: it was declared by address. If they
    /// want the same, the rule comes from both.
    fn allow(
        &mut self,
        peer: Identity,
        port: u16,
        protocol: u8,
        direction: Direction,
        action: Action,
        by: Declaration,
    ) {
        self.put(RuleKey::new(peer, port, protocol, direction), action, by);
    }

    fn put(&mut self, key: RuleKey, action: Action, by: Declaration) {
        let before = match self.rules.get(&key) {
            Some(known) if known.action == action => Some(known.origin),
            Some(known) if known.action == Action::Pass => return,
            _ => None,
        };
        let origin = self.origins.and(before, by);
        self.rules.insert(key, Declared { action, origin });
    }

    fn pass(
        &mut self,
        peer: Identity,
        port: u16,
        protocol: u8,
        direction: Direction,
        by: Declaration,
    ) {
        self.allow(peer, port, protocol, direction, Action::Pass, by);
    }

    fn declare(&mut self, text: String, source: &Source) -> Declaration {
        self.origins.declare(text, &[], || source.clone())
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

    /// Leaves of the cell's rules what policies allow too, and says it of everybody whom policies tell apart.
    fn isolate(&mut self, isolation: Isolation<'_>, class: Option<&AddressClass>) {
        let mut rules: Vec<_> = std::mem::take(&mut self.rules).into_iter().collect();
        // What is left of a wide rule must not take the place of a narrow one.
        rules.sort_by_key(|(key, _)| {
            let anybody = key.peer() == RuleKey::ANYBODY;
            (anybody, key.port() == 0, key.protocol() == 0)
        });
        for (key, Declared { action, origin }) in rules {
            let (whole, port, protocol) = (key.peer(), key.port(), key.protocol());
            let Some(direction) = key.direction() else {
                continue;
            };
            if whole == RuleKey::ANYBODY {
                // A border that is open: what is left of it is what policies allow pods of no cell.
                match class.filter(|class| isolating(Some(class), direction).is_some()) {
                    Some(class) => self.within_border(isolation, class, direction),
                    None => drop(self.rules.insert(key, Declared { action, origin })),
                }
                continue;
            }
            for (identity, peer) in isolation.parts.within(isolation.classes, whole) {
                let ports = match (class, isolating(class, direction)) {
                    (Some(class), Some(rules)) if !is_exempt(whole, direction) => {
                        allowed(rules, class, &peer, direction)
                    }
                    _ => Ports::Everything,
                };
                ports.keys(identity, port, protocol, direction, |key| {
                    let declared = Declared { action, origin };
                    self.rules.entry(key).or_insert(declared);
                });
            }
        }
    }

    /// What policies allow beside what the cell says in more words than that a border is open.
    fn within_border(
        &mut self,
        isolation: Isolation<'_>,
        class: &AddressClass,
        direction: Direction,
    ) {
        let declared = std::mem::take(&mut self.rules);
        self.pods(isolation, class, direction);
        self.rules.extend(declared);
    }

    /// What policies allow pods of no cell.
    fn pods(&mut self, isolation: Isolation<'_>, class: &AddressClass, direction: Direction) {
        let Isolation { classes, parts } = isolation;
        let Some(rules) = isolating(Some(class), direction) else {
            let by = self.unsaid(format!("no network policy isolates {direction}"));
            return self.pass(RuleKey::ANYBODY, 0, 0, direction, by);
        };
        let own: Vec<Identity> = [
            Identity::WORLD,
            Identity::NODE,
            Identity::OTHER_NODE,
            Identity::DNS,
            Identity::NORTH_GATE,
            Identity::WEST_GATE,
            Identity::METADATA,
        ]
        .into_iter()
        .chain(self.names.networks.external.values().copied())
        .chain(self.names.networks.platform.values().copied())
        .collect();
        for whole in own.iter().filter(|whole| is_exempt(**whole, direction)) {
            let by = self.unsaid("the pod's own node".to_owned());
            for (identity, _) in parts.within(classes, *whole) {
                self.pass(identity, 0, 0, direction, by);
            }
        }
        let unsplit = own
            .iter()
            .filter_map(|whole| parts.within(classes, *whole).next());
        let everybody: Vec<(Identity, Peer<'_>)> = unsplit.chain(parts.all(classes)).collect();
        for rule in rules {
            let text = format!("{} {}", rule.policy, rule.declared.field);
            let by = self.declare(text, &rule.declared);
            let mut allow = |identity, called: Option<&AddressClass>| {
                let called = match direction {
                    Direction::Ingress => Some(class),
                    Direction::Egress => called,
                };
                let ports = Ports::of([rule.ports.as_deref()].into_iter(), called);
                ports.keys(identity, 0, 0, direction, |key| {
                    self.put(key, Action::Pass, by);
                });
            };
            match &rule.peers {
                Some(peers) => {
                    for (identity, peer) in &everybody {
                        if names(peers, peer) {
                            allow(*identity, peer.class);
                        }
                    }
                }
                None => {
                    allow(RuleKey::ANYBODY, None);
                    // Names of ports mean something else at each of those who have them.
                    if direction == Direction::Egress && has_names(rule) {
                        for (identity, peer) in &everybody {
                            allow(*identity, peer.class);
                        }
                    }
                }
            }
        }
    }

    /// Something that no document says.
    fn unsaid(&mut self, text: String) -> Declaration {
        let source = Source::new("", 1, text.as_str());
        self.declare(text, &source)
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

/// Whether a rule names ports.
fn has_names(rule: &PolicyRule) -> bool {
    let mut ports = rule.ports.iter().flatten();
    ports.any(|port| matches!(port.numbers, PortNumbers::Named(_)))
}

/// Whether a declaration is about a component; one that names none is about all.
pub(super) fn calls(from: &[snapshot::model::Name], component: &Component) -> bool {
    from.is_empty() || from.contains(&component.id.component)
}
