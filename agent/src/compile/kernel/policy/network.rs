//! What network policies leave of a cell's rules, and what they allow pods of no cell.

use agent_common::{Action, Direction, Identity, RuleKey};
use snapshot::model::{AddressClass, PolicyRule, PortNumbers};

use super::super::isolation::{Isolation, Ports, allowed, isolating, names};
use super::super::parts::Peer;
use super::{Collector, Declared};

impl Collector<'_> {
    /// Leaves of the cell's rules what policies allow too, and says it of everybody whom policies tell apart.
    pub(super) fn isolate(&mut self, isolation: Isolation<'_>, class: Option<&AddressClass>) {
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
                    (Some(class), Some(rules)) if !isolation.exempts(whole, direction) => {
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
    pub(super) fn pods(
        &mut self,
        isolation: Isolation<'_>,
        class: &AddressClass,
        direction: Direction,
    ) {
        let Isolation { classes, parts, .. } = isolation;
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
        let exempt = |whole: &&Identity| isolation.exempts(**whole, direction);
        for whole in own.iter().filter(exempt) {
            let by = self.unsaid("nodes and their gateways".to_owned());
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
}

/// Whether a rule names ports.
fn has_names(rule: &PolicyRule) -> bool {
    let mut ports = rule.ports.iter().flatten();
    ports.any(|port| matches!(port.numbers, PortNumbers::Named(_)))
}
