//! The rules of all components with a pod here, and of pods that network policies restrict, and the numbers of what they mean.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use agent_common::{Identity, Lookups, Rule};
use snapshot::model::{
    Border, Borders, Cell, CellId, Component, ComponentId, Connection, East, Endpoint, Intra, Name,
    South,
};
use snapshot::{Snapshot, Source};

use super::changes::{Change, Changes};
use super::isolation::Isolation;
use super::names::Names;
use super::numbers::Numbers;
use super::origin::Meaning;
use super::parts::Parts;
use super::places::Subject;
use super::policy::{Policy, calls};
use crate::datapath::{KernelTables, Rules, Table};

/// Rules as they are declared, by the identity of the pods that have them.
#[derive(Clone)]
pub(super) struct Policies {
    of: Table<Identity, Arc<Policy>>,
    /// Identities with a rule of a meaning, in their order. Where it is declared is told by the first of them.
    saying: Table<Meaning, Vec<Identity>>,
    numbers: Numbers<Meaning>,
}

impl Default for Policies {
    fn default() -> Self {
        Self {
            of: Table::new(),
            saying: Table::new(),
            numbers: Numbers::below(u32::MAX),
        }
    }
}

impl Policies {
    /// Takes over the rules of `local`, those with a pod here, and puts the tables right. Rules are made anew for those that come,
    /// and those that `reach` touches.
    pub(super) fn follow(
        &mut self,
        tables: &mut KernelTables,
        snapshot: &Snapshot,
        names: &Names,
        parts: &Parts,
        local: &BTreeMap<Identity, &Subject>,
        reach: &Reach<'_>,
    ) {
        let mut next: Vec<(Identity, Option<Arc<Policy>>)> = Vec::new();
        for id in self.of.keys().filter(|id| !local.contains_key(*id)) {
            tables.policies.remove(id);
            next.push((*id, None));
        }
        let classes = &*snapshot.network.classes;
        let isolation = Isolation {
            classes,
            parts,
            other_nodes: snapshot.platform.other_nodes,
        };
        for (id, subject) in local {
            let known = self.of.contains_key(id);
            let class = subject.class.as_ref().and_then(|id| classes.of.get(id));
            let policy = match &subject.component {
                Some(component) => {
                    let Some(cell) = snapshot.cells.get(&component.cell) else {
                        continue;
                    };
                    let Some(component) = cell.components.get(&component.component) else {
                        continue;
                    };
                    if known && !reach.touches(cell, component) {
                        continue;
                    }
                    Policy::of_component(snapshot, names, cell, component, (isolation, class))
                }
                None => {
                    let Some(class) = class else { continue };
                    if known && !reach.everybody {
                        continue;
                    }
                    Policy::of_pods(snapshot, names, isolation, class)
                }
            };
            next.push((*id, Some(Arc::new(policy))));
        }
        if next.is_empty() {
            return;
        }
        // What was said by those whose rules are made anew, and what nobody said.
        let (mut said, mut new) = (BTreeSet::new(), Vec::new());
        for (id, policy) in &next {
            let before = match policy {
                Some(policy) => self.of.insert(*id, Arc::clone(policy)),
                None => self.of.remove(id),
            };
            for (meaning, _) in before.iter().flat_map(|policy| &policy.meanings) {
                if let Some(saying) = self.saying.get_mut(meaning) {
                    saying.retain(|known| known != id);
                }
                said.insert(meaning.clone());
            }
            for (meaning, _) in policy.iter().flat_map(|policy| &policy.meanings) {
                let saying = self.saying.entry(meaning.clone()).or_default();
                if saying.is_empty() && !said.contains(meaning) {
                    new.push(meaning.clone());
                }
                if let Err(at) = saying.binary_search(id) {
                    saying.insert(at, *id);
                }
            }
        }
        let moved = self.renumber(tables, &said, new);
        if moved {
            // Two meanings that want one number: one of 4,294,967,295 for each two.
            tables.rules = Table::new();
            let all = self.of.iter();
            next = all
                .map(|(id, policy)| (*id, Some(Arc::clone(policy))))
                .collect();
        } else {
            self.name(tables, &said);
        }
        for (id, policy) in next {
            let Some(policy) = policy else { continue };
            let rules = self.rules(tables, &policy);
            if tables.policies.get(&id) != Some(&rules) {
                tables.policies.insert(id, rules);
            }
        }
    }

    /// What it takes to find the rules of these pods.
    pub(super) fn lookups(&self, identity: Identity) -> Lookups {
        let policy = self.of.get(&identity);
        policy.map_or(Lookups::default(), |policy| policy.lookups)
    }

    /// Numbers for what is said now, when `said` was before, perhaps, and `new` was not. Tells whether a meaning that stays has
    /// another number.
    fn renumber(
        &mut self,
        tables: &mut KernelTables,
        said: &BTreeSet<Meaning>,
        new: Vec<Meaning>,
    ) -> bool {
        let mut gone = Vec::new();
        for meaning in said {
            if self.saying.get(meaning).is_some_and(Vec::is_empty) {
                self.saying.remove(meaning);
                if let Some(number) = self.numbers.get(meaning) {
                    tables.rules.remove(&number);
                }
                gone.push(meaning.clone());
            }
        }
        self.numbers.update(gone, new)
    }

    /// Says in the tables where rules of these meanings are declared.
    fn name(&self, tables: &mut KernelTables, said: &BTreeSet<Meaning>) {
        for meaning in said {
            let first = self.saying.get(meaning).and_then(|saying| saying.first());
            let source = first
                .and_then(|id| self.of.get(id))
                .and_then(|policy| policy.source(meaning));
            let (Some(number), Some(source)) = (self.numbers.get(meaning), source) else {
                continue;
            };
            if tables.rules.get(&number) != Some(source) {
                tables.rules.insert(number, source.clone());
            }
        }
    }

    /// The rules, with numbers. What has none of its own in the tables yet is declared here: identities come in their order.
    fn rules(&self, tables: &mut KernelTables, policy: &Policy) -> Rules {
        let mut numbers = Vec::with_capacity(policy.meanings.len());
        for (meaning, source) in &policy.meanings {
            let number = self.numbers.get(meaning).unwrap_or(0);
            if !tables.rules.contains_key(&number) {
                tables.rules.insert(number, source.clone());
            }
            numbers.push(number);
        }
        let rules = policy.rules.iter();
        rules
            .map(|(key, action, meaning)| (*key, Rule::new(*action, numbers[*meaning])))
            .collect()
    }
}

/// Whose rules a change may touch. It may name too many, never too few.
pub(super) struct Reach<'a> {
    /// Everybody's: what all rules are made with is not as before.
    everybody: bool,
    /// Cells with another word about all of their components.
    cells: BTreeSet<&'a CellId>,
    /// Components whose endpoints or connections differ.
    components: BTreeSet<&'a ComponentId>,
    /// Cells of these.
    around: BTreeSet<&'a CellId>,
    /// Who is called by them or by these cells, or was.
    called: BTreeSet<&'a ComponentId>,
}

impl<'a> Reach<'a> {
    pub(super) fn of(changes: &Changes<'a>, everybody: bool) -> Self {
        let mut reach = Self {
            everybody,
            cells: BTreeSet::new(),
            components: BTreeSet::new(),
            around: BTreeSet::new(),
            called: BTreeSet::new(),
        };
        if everybody {
            return reach;
        }
        for change in &changes.components {
            if change.differs(Policed::of) {
                reach.component(change);
            }
        }
        let moved: BTreeSet<&CellId> = changes
            .components
            .iter()
            .filter_map(|one| one.gone().or(one.came()))
            .map(|id| &id.cell)
            .collect();
        for change in &changes.cells {
            let members = change.sides().any(|cell| moved.contains(&cell.id));
            let words = change.differs(Words::of);
            if members || words {
                reach.cell(change, members, words);
            }
            // Callers of a cell that lets everybody in may come by the west gate too.
            if change.differs(|cell| cell.borders) {
                let components = change.sides().flat_map(|cell| cell.components.values());
                reach.components.extend(components.map(|one| &one.id));
            }
        }
        reach
    }

    fn component(&mut self, change: &Change<'a, Component>) {
        for side in change.sides() {
            self.components.insert(&side.id);
            self.around.insert(&side.id.cell);
            let called = side.connections.iter();
            self.called
                .extend(called.map(|connection| &connection.to.component));
        }
    }

    /// `members` tells whether components of the cell came or went.
    fn cell(&mut self, change: &Change<'a, Cell>, members: bool, words: bool) {
        for side in change.sides() {
            // Components of an open cell have rules about all the others.
            if words || (members && side.intra == Intra::Open) {
                self.cells.insert(&side.id);
            }
            // Whom any of the cell may call.
            self.called
                .extend(side.east.iter().map(|east| &east.to.component));
        }
    }

    /// Whether rules of a component of this cell may be touched.
    fn touches(&self, cell: &Cell, component: &Component) -> bool {
        if self.everybody || self.cells.contains(&cell.id) {
            return true;
        }
        if self.components.is_empty() && self.called.is_empty() {
            return false;
        }
        self.components.contains(&component.id)
            || self.called.contains(&component.id)
            || (self.around.contains(&cell.id)
                && component
                    .connections
                    .iter()
                    .any(|call| self.components.contains(&call.to.component)))
            || cell.east.iter().any(|east| {
                self.components.contains(&east.to.component) && calls(&east.from, component)
            })
    }
}

/// What a component says that rules are made of, its own and those of others.
#[derive(PartialEq)]
struct Policed<'a> {
    endpoints: &'a BTreeMap<Name, Endpoint>,
    connections: &'a [Connection],
}

impl<'a> Policed<'a> {
    fn of(component: &'a Component) -> Self {
        Self {
            endpoints: &component.endpoints,
            connections: &component.connections,
        }
    }
}

/// What a cell says about all of its components, for rules.
#[derive(PartialEq)]
struct Words<'a> {
    intra: Intra,
    intra_declared: &'a Source,
    borders: Borders,
    /// Where a border that is open is declared.
    open: Option<&'a Source>,
    east: &'a [East],
    south: &'a [South],
}

impl<'a> Words<'a> {
    fn of(cell: &'a Cell) -> Self {
        Self {
            intra: cell.intra,
            intra_declared: &cell.intra_declared,
            borders: cell.borders,
            open: [cell.borders.ingress, cell.borders.egress]
                .contains(&Border::Open)
                .then_some(&cell.declared),
            east: &cell.east,
            south: &cell.south,
        }
    }
}
