//! Cells by the labels that OpenChoreo puts on the objects of a data plane.
//!
//! ```text
//! labels of a namespace ─▶ organization, project, environment ─┐
//! labels of its pods ────▶ components ─────────────────────────┴▶ a cell whose borders are open
//! slices of its services ─▶ endpoints of the components
//! a Cell without components ─▶ the same components, and egress as it declares
//! ```
//!
//! Labels say who is who, never what is allowed: a cell of labels alone is open in both directions, as in OpenChoreo, where
//! network policies restrict it. A pod whose labels say nothing is of the cell all the same, so that nothing in a cell's namespace is
//! beside its rules.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use super::closed_cells::Refused;
use crate::document::cell::CellDraft;
use crate::document::endpoint_slice::{SliceDraft, SlicePort};
use crate::document::labels::Labels;
use crate::document::pod::PodDraft;
use crate::document::{Drafts, Table};
use crate::model::{
    Border, Borders, Cell, CellId, Component, ComponentId, ComponentKind, DocumentPath, Endpoint,
    EndpointId, EndpointKind, Exposure, Intra, Name, ObjectName, TrafficDistribution, Transport,
    Workloads,
};
use crate::reader::Sink;
use crate::report::Source;
use crate::shared::Shared;

/// Labels of namespaces: organization, project, environment. Release 1.2 calls the organization a namespace: it is one of the
/// control plane.
const RELEASE: [&str; 3] = [
    "openchoreo.dev/namespace",
    "openchoreo.dev/project",
    "openchoreo.dev/environment",
];
/// The same of the first controllers.
const FIRST: [&str; 3] = ["organization-name", "project-name", "environment-name"];
/// Without a domain these labels may be anybody's; this one, with its value, is on what the first controllers made.
const MADE_BY: (&str, &str) = ("managed-by", "choreo-deployment-controller");

/// Labels of pods that name the component, of both generations.
const COMPONENT: [&str; 2] = ["openchoreo.dev/component", "component-name"];
/// The label of pods that says what the component is; of the first controllers.
const TYPE: &str = "component-type";

/// The component of pods whose labels name none.
const OTHERS: &str = "other-pods";

/// What labels of namespaces name.
#[derive(Default)]
pub(super) struct Labelled<'a> {
    /// Namespaces by the cell that they name.
    cells: BTreeMap<CellId, BTreeMap<&'a str, &'a Source>>,
    /// The organization of a namespace.
    organizations: BTreeMap<&'a str, Name>,
}

impl<'a> Labelled<'a> {
    /// What labels of namespaces say.
    pub(super) fn of(namespaces: &'a Table<Labels>, sink: &Sink) -> Self {
        let mut labelled = Self::default();
        for (name, (source, labels)) in namespaces {
            let Some(labels) = labels.as_deref() else {
                continue;
            };
            match cell(labels) {
                Ok(Some(id)) => {
                    let organization = id.organization.clone();
                    labelled.organizations.insert(name.name(), organization);
                    let of = labelled.cells.entry(id).or_default();
                    of.insert(name.name(), source);
                }
                Ok(None) => {}
                Err(why) => sink.warning(source.at("metadata.labels"), why),
            }
        }
        labelled
    }

    /// Why a document of `namespace` cannot speak for a cell: it is other namespaces, or this one is another organization's.
    pub(super) fn denies(&self, id: &CellId, namespace: &str) -> Option<String> {
        if let Some(namespaces) = self.cells.get(id) {
            if namespaces.contains_key(namespace) {
                return None;
            }
            let names: Vec<String> = namespaces.keys().map(|name| format!("`{name}`")).collect();
            let names = names.join(", ");
            return Some(format!(
                "by its labels cell `{id}` is namespace {names}; expected its document there"
            ));
        }
        let own = self.organizations.get(namespace)?;
        (*own != id.organization).then(|| {
            format!(
                "by its labels namespace `{namespace}` is of organization `{own}`, and cell `{id}` of another one"
            )
        })
    }

    /// Whether labels name this cell.
    pub(super) fn has(&self, id: &CellId) -> bool {
        self.cells.contains_key(id)
    }

    /// Whether labels say whose the pods of a namespace are.
    pub(super) fn speaks_for(&self, namespace: &str) -> bool {
        self.organizations.contains_key(namespace)
    }

    fn namespaces(&self, id: &CellId) -> impl Iterator<Item = &'a str> {
        self.cells
            .get(id)
            .into_iter()
            .flat_map(|of| of.keys().copied())
    }
}

/// The cell that labels of a namespace name; none: they are not OpenChoreo's.
fn cell(labels: &Labels) -> Result<Option<CellId>, String> {
    let (key, value) = MADE_BY;
    let first = labels.get(key).is_some_and(|by| by == value);
    let release = RELEASE[1..].iter().any(|key| labels.has(key));
    let keys = match (release, first) {
        (true, _) => RELEASE,
        (false, true) => FIRST,
        (false, false) => return Ok(None),
    };
    let name = |key: &str| {
        let value = labels
            .get(key)
            .ok_or_else(|| format!("without `{key}` these labels of OpenChoreo name no cell"))?;
        Name::new(value).map_err(|error| format!("`{key}` names no cell: {error}"))
    };
    let [organization, project, environment] = keys;
    Ok(Some(CellId {
        organization: name(organization)?,
        project: name(project)?,
        environment: name(environment)?,
    }))
}

/// Whether labels of a namespace name a cell.
pub(super) fn names_cell(labels: &Labels) -> bool {
    cell(labels).is_ok_and(|cell| cell.is_some())
}

/// The component that labels of a pod name, with the label.
fn component(labels: &Labels) -> Option<(Name, &'static str)> {
    let mut named = COMPONENT
        .iter()
        .filter_map(|key| Some((labels.get(key)?, *key)));
    let (value, key) = named.next()?;
    Some((Name::new(value).ok()?, key))
}

fn kind(labels: &Labels) -> ComponentKind {
    match labels.get(TYPE) {
        Some("WebApplication") => ComponentKind::WebApplication,
        Some("ScheduledTask" | "ManualTask") => ComponentKind::Task,
        _ => ComponentKind::Service,
    }
}

/// Gives cells whose documents leave that to labels their components, and makes cells of the namespaces that no document speaks
/// for. Pods of components that documents declare are theirs.
pub(super) fn derive(
    labelled: &Labelled<'_>,
    drafts: &Drafts,
    documents: &[Arc<CellDraft>],
    refused: &[Refused<'_>],
    cells: &mut BTreeMap<CellId, Shared<Cell>>,
    sink: &Sink,
) {
    let declared = cells.values().flat_map(|cell| cell.components.values());
    let mut pods = Pods {
        of: BTreeMap::new(),
        taken: declared
            .flat_map(|component| component.workloads.addresses())
            .copied()
            .collect(),
    };
    for (name, (_, pod)) in &drafts.pods {
        let of = pods.of.entry(name.namespace()).or_default();
        of.extend(pod.as_deref());
    }
    for draft in documents.iter().filter(|draft| draft.labelled) {
        let Some(cell) = cells.get_mut(&draft.cell.id) else {
            continue;
        };
        let mut namespaces: BTreeSet<&str> = labelled.namespaces(&cell.id).collect();
        namespaces.insert(&draft.namespace);
        let components = pods.components(cell, &namespaces, &drafts.slices);
        cell.components = components;
        callers(cell, sink);
    }
    for (id, namespaces) in &labelled.cells {
        let Some((_, source)) = namespaces.first_key_value() else {
            continue;
        };
        if cells.contains_key(id) {
            continue;
        }
        let namespaces: BTreeSet<&str> = namespaces.keys().copied().collect();
        // What a document that is refused closes stays closed: egress, and with components of its own also ingress.
        let about = |one: &&Refused<'_>| namespaces.contains(one.name.namespace());
        let border = |closed| match closed {
            true => Border::Declared,
            false => Border::Open,
        };
        let mut about = refused.iter().filter(about);
        let egress = border(about.clone().next().is_some());
        let ingress = border(about.any(|one| !one.remains.labelled));
        let mut cell = Cell {
            id: id.clone(),
            declared: Source::clone(source),
            intra: Intra::Open,
            intra_declared: source.at("metadata.labels"),
            components: BTreeMap::new(),
            borders: Borders { ingress, egress },
            east: Vec::new(),
            south: Vec::new(),
        };
        cell.components = pods.components(&cell, &namespaces, &drafts.slices);
        cells.insert(id.clone(), cell.into());
    }
}

/// Says which callers are not there: the labels of no pod name them.
fn callers(cell: &Cell, sink: &Sink) {
    let east = cell.east.iter().map(|one| (&one.declared, &one.from));
    let south = cell.south.iter().map(|one| (&one.declared, &one.from));
    for (declared, from) in east.chain(south) {
        for name in from
            .iter()
            .filter(|name| !cell.components.contains_key(name))
        {
            sink.warning(
                declared.clone(),
                format_args!("grants `{name}` nothing: labels of no pod of the cell name it"),
            );
        }
    }
}

/// Pods, and whose they are already.
struct Pods<'a> {
    of: BTreeMap<&'a str, Vec<&'a PodDraft>>,
    taken: BTreeSet<IpAddr>,
}

/// What pods of one component have in common.
struct Members<'a> {
    namespace: &'a str,
    kind: ComponentKind,
    label: Option<&'static str>,
    addresses: BTreeSet<IpAddr>,
}

impl Pods<'_> {
    /// The components of a cell that has these namespaces. Their pods are taken from now on.
    fn components(
        &mut self,
        cell: &Cell,
        namespaces: &BTreeSet<&str>,
        slices: &Table<SliceDraft>,
    ) -> BTreeMap<Name, Shared<Component>> {
        let mut found: BTreeMap<Name, Members<'_>> = BTreeMap::new();
        for namespace in namespaces {
            for pod in self.of.get(namespace).into_iter().flatten() {
                let addresses: Vec<IpAddr> = pod.addresses.iter().map(|one| one.address).collect();
                if addresses.is_empty() || addresses.iter().any(|one| self.taken.contains(one)) {
                    continue;
                }
                let named = component(&pod.labels);
                let others = || Some((Name::new(OTHERS).ok()?, None));
                let Some((name, label)) = named
                    .map(|(name, label)| (name, Some(label)))
                    .or_else(others)
                else {
                    continue;
                };
                let members = found.entry(name).or_insert_with(|| Members {
                    namespace,
                    kind: kind(&pod.labels),
                    label,
                    addresses: BTreeSet::new(),
                });
                self.taken.extend(&addresses);
                members.addresses.extend(addresses);
            }
        }
        let mut endpoints = endpoints(cell, &found, namespaces, slices);
        let components = found.into_iter().map(|(name, members)| {
            let label = members.label.map(|key| (key.to_owned(), name.to_string()));
            let component = Component {
                id: ComponentId {
                    cell: cell.id.clone(),
                    component: name.clone(),
                },
                declared: cell.declared.clone(),
                kind: members.kind,
                workloads: Workloads::Selector {
                    namespace: members.namespace.to_owned(),
                    match_labels: label.into_iter().collect(),
                    addresses: members.addresses.into_iter().collect(),
                },
                service_addresses: Vec::new(),
                session_affinity: None,
                traffic_distribution: TrafficDistribution::default(),
                endpoints: endpoints.remove(&name).unwrap_or_default(),
                connections: Vec::new(),
            };
            (name, component.into())
        });
        components.collect()
    }
}

/// Ports of services by the component whose pods answer there. What is spoken is not told, so they are bytes; who may come from
/// other cells, their callers say.
fn endpoints(
    cell: &Cell,
    found: &BTreeMap<Name, Members<'_>>,
    namespaces: &BTreeSet<&str>,
    slices: &Table<SliceDraft>,
) -> BTreeMap<Name, BTreeMap<Name, Endpoint>> {
    let of_addresses = found
        .iter()
        .flat_map(|(name, members)| members.addresses.iter().map(move |one| (*one, name)));
    let owners: BTreeMap<IpAddr, &Name> = of_addresses.collect();
    let mut endpoints: BTreeMap<Name, BTreeMap<Name, Endpoint>> = BTreeMap::new();
    let of_services = slices.iter().filter_map(|(name, (_, slice))| {
        let slice = slice.as_deref().filter(|slice| slice.service.is_some())?;
        namespaces
            .contains(ObjectName::namespace(name))
            .then_some(slice)
    });
    for slice in of_services {
        let answering = slice.endpoints.iter();
        let owners: BTreeSet<&Name> = answering
            .filter_map(|one| owners.get(&one.address).copied())
            .collect();
        for owner in owners {
            for port in &slice.ports {
                let Some((name, kind)) = endpoint(port) else {
                    continue;
                };
                let endpoint = Endpoint {
                    id: EndpointId {
                        component: ComponentId {
                            cell: cell.id.clone(),
                            component: owner.clone(),
                        },
                        endpoint: name.clone(),
                    },
                    declared: cell.declared.clone(),
                    kind,
                    port: port.port,
                    base_path: DocumentPath::root(),
                    public: None,
                    organization: Some(Exposure {
                        declared: cell.declared.clone(),
                        jwt: None,
                        operations: Vec::new(),
                    }),
                };
                let of = endpoints.entry(owner.clone()).or_default();
                of.entry(name).or_insert(endpoint);
            }
        }
    }
    endpoints
}

/// An endpoint has the name of its service's port, or the one that the first controllers would have given it.
fn endpoint(port: &SlicePort) -> Option<(Name, EndpointKind)> {
    let (kind, word) = match port.transport? {
        Transport::Tcp => (EndpointKind::Tcp, "tcp"),
        Transport::Udp => (EndpointKind::Udp, "udp"),
    };
    let name = Name::new(&port.name)
        .or_else(|_| Name::new(&format!("ep-{}-{word}", port.port)))
        .ok()?;
    Some((name, kind))
}
