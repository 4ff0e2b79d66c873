//! Pods that have no address yet: on which nodes something is on its way that is somebody's.
//!
//! A pod has its address before the cluster tells it, and may send by then. An interface that nobody is known to own is only let
//! alone where no such pod is to come. Whose a pod is its address decides, later; here more is expected rather than less.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::collect::Placed;
use crate::document::cell::CellDraft;
use crate::document::labels::Labels;
use crate::document::pod::PodDraft;
use crate::document::{Kind, Table};
use crate::model::{Cell, CellId, PolicyScope, Workloads};
use crate::shared::Shared;

/// The nodes. `taken` are the documents of cells that are not refused, `labelled` the namespaces if their labels make cells.
pub(super) fn nodes(
    pods: &Table<PodDraft>,
    (cells, taken): (&BTreeMap<CellId, Shared<Cell>>, &[Arc<CellDraft>]),
    documents: &[Placed<'_>],
    labelled: Option<&Table<Labels>>,
    scope: PolicyScope,
) -> BTreeSet<Arc<str>> {
    let mut nodes = BTreeSet::new();
    let mut governed = None;
    for (name, (_, pod)) in pods {
        let Some(node) = pod.as_ref().and_then(|pod| pod.awaited_on.as_ref()) else {
            continue;
        };
        // Most of the time there is no such pod.
        let namespaces = governed.get_or_insert_with(|| namespaces(cells, taken, documents));
        let by_label = || labelled.is_some_and(|all| is_labelled(all, name.namespace()));
        let all = scope == PolicyScope::All && documents.iter().any(restricts);
        if all || namespaces.contains(name.namespace()) || by_label() {
            nodes.insert(Arc::clone(node));
        }
    }
    nodes
}

/// Namespaces in which cells select pods, or would if they were not refused. A cell without components has none before it has a
/// pod.
fn namespaces<'a>(
    cells: &'a BTreeMap<CellId, Shared<Cell>>,
    taken: &'a [Arc<CellDraft>],
    documents: &'a [Placed<'_>],
) -> BTreeSet<&'a str> {
    let components = cells.values().flat_map(|cell| cell.components.values());
    let selecting = components.filter_map(|component| match &component.workloads {
        Workloads::Selector { namespace, .. } => Some(namespace.as_str()),
        Workloads::Addresses(_) => None,
    });
    let of_cells = |placed: &&Placed<'_>| placed.document.draft.kind() == Kind::Cell;
    let refused = documents
        .iter()
        .filter(|placed| placed.refused)
        .filter(of_cells);
    let of_labels = taken.iter().filter(|draft| draft.labelled);
    selecting
        .chain(of_labels.map(|draft| draft.namespace.as_str()))
        .chain(refused.map(|placed| placed.document.meta.name.namespace()))
        .collect()
}

fn restricts(placed: &Placed<'_>) -> bool {
    matches!(
        placed.document.draft.kind(),
        Kind::NetworkPolicy | Kind::CiliumNetworkPolicy | Kind::CiliumClusterwideNetworkPolicy
    )
}

/// Whether a namespace has labels that may make a cell of it.
fn is_labelled(namespaces: &Table<Labels>, namespace: &str) -> bool {
    let mut known = namespaces
        .iter()
        .filter(|(name, _)| name.name() == namespace);
    known.any(|(_, (_, labels))| labels.as_deref().is_some_and(super::openchoreo::names_cell))
}
