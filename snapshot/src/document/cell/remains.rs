//! What is left of a cell that is refused: whose pods it is about, and nothing of what these may do.
//!
//! Where the pods of a component cannot be read, they are all of the document's namespace that are nobody else's: a mistake in
//! a document must not set its pods free.

use std::collections::BTreeMap;

use super::CellDraft;
use crate::document::addresses::{addresses, network_address};
use crate::document::{Meta, name};
use crate::model::{CellId, Intra, Name, Workloads};
use crate::reader::{Field, Object};
use crate::tree::Value;

/// A cell without anything that it allows.
#[derive(Clone)]
pub(crate) struct Remains {
    /// Its tuple, if that can be read.
    pub(crate) id: Option<CellId>,
    pub(crate) intra: Intra,
    /// Its components are those that labels of OpenChoreo name.
    pub(crate) labelled: bool,
    /// By component, where its name can be read. Those of selectors have no addresses yet.
    pub(crate) workloads: Vec<(Option<Name>, Workloads)>,
}

impl Remains {
    /// Those of a cell that was read, and is refused for what others have.
    pub(crate) fn of(draft: &CellDraft) -> Self {
        let components = draft.cell.components.values();
        let workloads = components.map(|one| {
            let name = one.id.component.clone();
            (Some(name), one.workloads.clone())
        });
        Self {
            id: Some(draft.cell.id.clone()),
            intra: draft.cell.intra,
            labelled: draft.labelled,
            workloads: workloads.collect(),
        }
    }

    /// Those of a `spec` that has mistakes, which are known.
    pub(crate) fn read(spec: Option<&mut Object<'_>>, meta: &Meta) -> Self {
        let namespace = meta.name.namespace();
        let Some(spec) = spec else {
            return Self {
                id: None,
                intra: Intra::Declared,
                labelled: false,
                workloads: vec![(None, everything(namespace))],
            };
        };
        let mut part = |key| spec.optional(key).as_ref().and_then(name);
        let tuple = (part("organization"), part("project"), part("environment"));
        let id = match tuple {
            (Some(organization), Some(project), Some(environment)) => Some(CellId {
                organization,
                project,
                environment,
            }),
            _ => None,
        };
        let intra = match spec.optional("intra") {
            Some(field) if field.value().text() != Some("open") => Intra::Declared,
            Some(_) | None => Intra::Open,
        };
        let components = spec.optional("components");
        let labelled = components.is_none();
        let workloads = match components {
            None => Vec::new(),
            Some(field) if !matches!(field.value(), Value::List(_)) => {
                vec![(None, everything(namespace))]
            }
            Some(field) => {
                let items = field.list();
                items
                    .iter()
                    .flat_map(|item| component(item, namespace))
                    .collect()
            }
        };
        Self {
            id,
            intra,
            labelled,
            workloads,
        }
    }
}

/// All pods of a namespace.
fn everything(namespace: &str) -> Workloads {
    selected(namespace, BTreeMap::new())
}

fn selected(namespace: &str, match_labels: BTreeMap<String, String>) -> Workloads {
    Workloads::Selector {
        namespace: namespace.to_owned(),
        match_labels,
        addresses: Vec::new(),
    }
}

fn component(item: &Field<'_>, namespace: &str) -> Vec<(Option<Name>, Workloads)> {
    let Some(mut object) = item.object() else {
        return vec![(None, everything(namespace))];
    };
    let name = object.optional("name").as_ref().and_then(name);
    let workloads = object.optional("workloads");
    let Some(mut workloads) = workloads.and_then(|field| field.object()) else {
        return vec![(name, everything(namespace))];
    };
    let mut found = Vec::new();
    if let Some(field) = workloads.optional("addresses") {
        let placed = addresses(field.list(), network_address);
        let plain: Vec<_> = placed.iter().map(|placed| placed.address).collect();
        if !plain.is_empty() {
            found.push((name.clone(), Workloads::Addresses(plain)));
        }
    }
    let selector = workloads.optional("selector");
    if selector.is_some() || found.is_empty() {
        let labels = selector.and_then(|field| field.object()?.optional("matchLabels"));
        // What cannot be read of them selects more pods, never fewer.
        let labels = labels.map(|field| field.entries()).unwrap_or_default();
        let labels = labels.into_iter().filter_map(|(key, value)| {
            let value = value.string()?;
            Some((key.to_owned(), value.to_owned()))
        });
        found.push((name, selected(namespace, labels.collect())));
    }
    found
}
