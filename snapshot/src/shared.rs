//! Parts that snapshots have in common.
//!
//! Documents are read anew for every change, so that a snapshot has its own copy of everything. [`Snapshot::sharing`]
//! takes what is equal from the snapshot before instead. Whoever then compares the two is done with an equal part after one
//! look at its address.

use std::collections::BTreeMap;
use std::ops::{Deref, DerefMut};
use std::sync::Arc;

use crate::model::Snapshot;

/// A value that several snapshots may hold. To change it takes a copy of its own if another one holds it too.
#[derive(Debug, Default)]
pub struct Shared<T>(Arc<T>);

impl<T> Shared<T> {
    /// Whether these are one value, not only equal ones.
    #[must_use]
    pub fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl<T> Shared<T> {
    /// Where the value is. No other one is there as long as somebody holds this one.
    #[must_use]
    pub fn address(&self) -> usize {
        Arc::as_ptr(&self.0).addr()
    }
}

impl<T> Clone for Shared<T> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<T: Eq> PartialEq for Shared<T> {
    fn eq(&self, other: &Self) -> bool {
        self.is(other) || *self.0 == *other.0
    }
}

impl<T: Eq> Eq for Shared<T> {}

impl<T> From<T> for Shared<T> {
    fn from(value: T) -> Self {
        Self(Arc::new(value))
    }
}

impl<T> Deref for Shared<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}

impl<T: Clone> DerefMut for Shared<T> {
    fn deref_mut(&mut self) -> &mut T {
        Arc::make_mut(&mut self.0)
    }
}

impl Snapshot {
    /// The same snapshot, which has the platform, and every cell, component and service that `known` has as well, in common with it.
    #[must_use]
    pub fn sharing(mut self, known: &Self) -> Self {
        take(&mut self.platform, &known.platform);
        take(&mut self.network.classes, &known.network.classes);
        take(&mut self.network.members, &known.network.members);
        for (id, cell) in &mut self.cells {
            let Some(before) = known.cells.get(id) else {
                continue;
            };
            take_each(&mut cell.components, &before.components);
            // Its equal components are told by their addresses now.
            take(cell, before);
        }
        take_each(&mut self.services, &known.services);
        self
    }
}

fn take<T: Eq>(own: &mut Shared<T>, known: &Shared<T>) {
    if own == known {
        own.clone_from(known);
    }
}

/// Both are in the order of their keys, so they are walked through once.
fn take_each<K: Ord, T: Eq>(own: &mut BTreeMap<K, Shared<T>>, known: &BTreeMap<K, Shared<T>>) {
    let mut known = known.iter().peekable();
    for (key, own) in own {
        while known.next_if(|(other, _)| *other < key).is_some() {}
        if let Some((_, known)) = known.next_if(|(other, _)| *other == key) {
            take(own, known);
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::model::Snapshot;
    use crate::parse::{SourceFile, parse};

    fn snapshot(cells: &[(&str, [u16; 2])]) -> Snapshot {
        let mut files = Vec::new();
        for (n, (project, [first, second])) in cells.iter().enumerate() {
            let text = format!(
                "apiVersion: cardinal.dev/v1alpha1
kind: Cell
metadata: {{ name: {project} }}
spec:
  organization: acme
  project: {project}
  environment: prod
  components:
    - name: first
      workloads: {{ addresses: [10.0.{n}.1] }}
      endpoints: [{{ name: api, type: TCP, port: {first} }}]
    - name: second
      workloads: {{ addresses: [10.0.{n}.2] }}
      endpoints: [{{ name: api, type: TCP, port: {second} }}]
"
            );
            files.push(SourceFile {
                path: format!("{project}.yaml"),
                bytes: text.into_bytes(),
            });
        }
        parse(&files).expect("good documents")
    }

    #[test]
    fn what_is_equal_is_one_value_and_what_differs_is_not() {
        let before = snapshot(&[("bank", [1, 2]), ("gone", [1, 1]), ("shop", [1, 2])]);
        let after = snapshot(&[("bank", [1, 2]), ("new", [1, 1]), ("shop", [1, 3])]);
        let shared = after.clone().sharing(&before);
        let of = |snapshot: &Snapshot, project: &str| {
            let mut cells = snapshot.cells.values();
            cells
                .find(|cell| cell.id.project.as_str() == project)
                .expect("it is declared")
                .clone()
        };
        assert!(shared.platform.is(&before.platform));
        assert!(of(&shared, "bank").is(&of(&before, "bank")));
        let (shop, old) = (of(&shared, "shop"), of(&before, "shop"));
        assert!(!shop.is(&old));
        let same: Vec<bool> = shop
            .components
            .iter()
            .map(|(name, component)| component.is(&old.components[name]))
            .collect();
        assert_eq!(same, [true, false]);
        assert!(shared.cells == after.cells, "it says what it said before");
    }
}
