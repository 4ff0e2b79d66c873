//! What pods that are alike may do, as rules: what their cell declares, and what network policies leave of it.

use std::collections::BTreeMap;

use agent_common::{Action, Direction, Identity, Lookups, RuleKey};
use snapshot::model::{AddressClass, Cell, Component};
use snapshot::{Snapshot, Source};

use super::isolation::{Isolation, lookups};
use super::names::Names;
use super::origin::{Declaration, Meaning, Origin, Origins};
use crate::datapath::RuleSource;

mod cell;
mod network;

pub(super) use cell::calls;

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

    /// Something that no document says.
    fn unsaid(&mut self, text: String) -> Declaration {
        let source = Source::new("", 1, text.as_str());
        self.declare(text, &source)
    }
}
