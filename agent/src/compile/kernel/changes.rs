//! What differs between two snapshots, by cell and component.
//!
//! Parts that the two have in common are told by their addresses. Others are compared, so that nothing depends on who made
//! the snapshots, only the time that it takes.

use std::collections::BTreeMap;

use snapshot::model::{Cell, CellId, Component, ComponentId, ObjectName, Service};
use snapshot::{Shared, Snapshot};

/// What is not as before, in the order of names.
pub(super) struct Changes<'a> {
    pub(super) platform: bool,
    pub(super) gateways: bool,
    /// Classes of addresses, or who is in which.
    pub(super) policies: bool,
    /// Cells in which anything may differ: those that the two have not in common.
    pub(super) cells: Vec<Change<'a, Cell>>,
    /// Components in which anything differs.
    pub(super) components: Vec<Change<'a, Component>>,
    /// `Service`s in which anything differs.
    pub(super) services: Vec<Change<'a, Service>>,
}

/// A part that came, went, or is another.
pub(super) struct Change<'a, T> {
    pub(super) before: Option<&'a T>,
    pub(super) after: Option<&'a T>,
}

/// What has a name.
pub(super) trait Named {
    type Id;

    fn id(&self) -> &Self::Id;
}

impl Named for Cell {
    type Id = CellId;

    fn id(&self) -> &CellId {
        &self.id
    }
}

impl Named for Component {
    type Id = ComponentId;

    fn id(&self) -> &ComponentId {
        &self.id
    }
}

impl Named for Service {
    type Id = ObjectName;

    fn id(&self) -> &ObjectName {
        &self.name
    }
}

impl<'a, T: Named> Change<'a, T> {
    /// Both sides, as far as there are.
    pub(super) fn sides(&self) -> impl Iterator<Item = &'a T> + use<'a, T> {
        self.before.into_iter().chain(self.after)
    }

    /// Whether `part` differs. What one side has not, differs.
    pub(super) fn differs<P: PartialEq>(&self, part: impl Fn(&'a T) -> P) -> bool {
        self.before.map(&part) != self.after.map(&part)
    }

    /// Its name, if it went.
    pub(super) fn gone(&self) -> Option<&'a T::Id> {
        let gone = self.before.filter(|_| self.after.is_none());
        gone.map(Named::id)
    }

    /// Its name, if it came.
    pub(super) fn came(&self) -> Option<&'a T::Id> {
        let came = self.after.filter(|_| self.before.is_none());
        came.map(Named::id)
    }
}

impl<'a> Changes<'a> {
    /// From `before`, which may be nothing yet, to `after`.
    pub(super) fn between(before: Option<&'a Snapshot>, after: &'a Snapshot) -> Self {
        let mut cells = Vec::new();
        let known = before.map(|before| &before.cells);
        differences(known, &after.cells, Shared::is, &mut cells);
        let mut components = Vec::new();
        for cell in &cells {
            let of = |cell: Option<&'a Cell>| cell.map(|cell| &cell.components);
            match (of(cell.before), of(cell.after)) {
                (before, Some(after)) => {
                    differences(before, after, Shared::eq, &mut components);
                }
                (Some(before), None) => {
                    let gone = before.values().map(|component| Change {
                        before: Some(&**component),
                        after: None,
                    });
                    components.extend(gone);
                }
                (None, None) => {}
            }
        }
        let mut services = Vec::new();
        let known = before.map(|before| &before.services);
        differences(known, &after.services, Shared::eq, &mut services);
        Self {
            platform: before.is_none_or(|before| before.platform != after.platform),
            gateways: before.is_none_or(|before| before.gateways != after.gateways),
            policies: before.is_none_or(|before| before.network != after.network),
            cells,
            components,
            services,
        }
    }
}

/// Both are in the order of their keys, so they are walked through once. A value that the two have in common has one key.
fn differences<'a, K: Ord, T>(
    before: Option<&'a BTreeMap<K, Shared<T>>>,
    after: &'a BTreeMap<K, Shared<T>>,
    same: impl Fn(&Shared<T>, &Shared<T>) -> bool,
    changes: &mut Vec<Change<'a, T>>,
) {
    let mut before = before.into_iter().flatten().peekable();
    for (key, now) in after {
        let mut known = None;
        while let Some((other, value)) = before.peek() {
            if value.is(now) || *other == key {
                known = Some(*value);
                before.next();
                break;
            }
            if *other > key {
                break;
            }
            changes.push(Change {
                before: Some(&***value),
                after: None,
            });
            before.next();
        }
        if known.is_none_or(|known| !same(known, now)) {
            changes.push(Change {
                before: known.map(|known| &**known),
                after: Some(&**now),
            });
        }
    }
    changes.extend(before.map(|(_, gone)| Change {
        before: Some(&**gone),
        after: None,
    }));
}
