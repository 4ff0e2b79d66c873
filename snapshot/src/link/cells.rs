//! Cells: each tuple once, calls that are granted, and the routes of what they expose.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use super::Served;
use super::addresses::{Foreign, Others};
use super::closed_cells::{self, Refused};
use super::collect::Placed;
use super::openchoreo::{self, Labelled};
use crate::derive::{self, Hosts, Rival};
use crate::document::cell::remains::Remains;
use crate::document::cell::{CellDraft, ExposureDraft};
use crate::document::pod::PodDraft;
use crate::document::{Draft, Drafts, Kind, Table};
use crate::model::{
    Cell, CellId, ComponentId, East, EndpointId, JwtProvider, Name, Origin, Platform, Route,
    Workloads,
};
use crate::reader::Sink;
use crate::report::Source;
use crate::shared::Shared;

/// Reports every cell whose tuple another one has that is older, or comes first by its place, and every one that by labels is
/// another namespace, or in a namespace of another organization. `derived` tells that labels of OpenChoreo make cells.
pub(super) fn unique(drafts: &Drafts, derived: bool, sink: &Sink) {
    let labelled = match derived {
        // What is wrong with labels is told later.
        true => Labelled::of(&drafts.namespaces, &Sink::default()),
        false => Labelled::default(),
    };
    let mut known: BTreeMap<&CellId, &Source> = BTreeMap::new();
    for (source, draft) in by_age(drafts) {
        let id = &draft.cell.id;
        if let Some(first) = known.get(id) {
            sink.mistake(
                source.at("spec"),
                format_args!("cell `{id}` is declared before, in {first}"),
            );
        } else if let Some(why) = labelled.denies(id, &draft.namespace) {
            sink.mistake(source.at("spec"), why);
        } else {
            known.insert(id, source);
        }
    }
}

/// Documents of cells, the oldest first: nobody takes a tuple from somebody else by the name of a document.
fn by_age(drafts: &Drafts) -> Vec<(&Source, &Arc<CellDraft>)> {
    let documents = drafts.cells.values();
    let mut cells: Vec<(&Source, &Arc<CellDraft>)> = documents
        .filter_map(|(source, draft)| Some((source, draft.as_ref()?)))
        .collect();
    cells.sort_by(|(one, a), (other, b)| {
        let age = |draft: &CellDraft| (draft.created.is_none(), draft.created);
        (age(a), one.position()).cmp(&(age(b), other.position()))
    });
    cells
}

/// Cells by their tuple; of two with one the first counts. What the others expose is not told. Those that are refused are closed.
/// `derived` tells that labels of OpenChoreo make cells too. What is `foreign` they are without.
pub(super) fn link(
    drafts: &Drafts,
    documents: &[Placed<'_>],
    foreign: &Foreign,
    derived: bool,
    sink: &Sink,
) -> (BTreeMap<CellId, Shared<Cell>>, Vec<Arc<CellDraft>>) {
    let labelled = match derived {
        true => Labelled::of(&drafts.namespaces, sink),
        false => Labelled::default(),
    };
    let mut linked: BTreeMap<CellId, Shared<Cell>> = BTreeMap::new();
    let mut exposing = Vec::new();
    let refused = refused(documents);
    for (_, draft) in by_age(drafts) {
        let id = &draft.cell.id;
        // A folder's mistake, which is told.
        if linked.contains_key(id) || labelled.denies(id, &draft.namespace).is_some() {
            continue;
        }
        let mut cell = draft.cell.clone();
        foreign.leave_out(draft, &mut cell, sink);
        linked.insert(id.clone(), cell);
        exposing.push(Arc::clone(draft));
    }
    select(&mut linked, &drafts.pods, sink);
    if !refused.is_empty() {
        let others = Others::of(drafts);
        let taken = (&others, foreign);
        closed_cells::add(&mut linked, &refused, &labelled, &drafts.pods, taken);
    }
    openchoreo::derive(&labelled, drafts, &exposing, &refused, &mut linked, sink);
    easts(&mut linked, sink);
    (linked, exposing)
}

/// What is left of cells that are refused.
fn refused<'a>(documents: &'a [Placed<'_>]) -> Vec<Refused<'a>> {
    let refused = documents.iter().filter(|placed| placed.refused);
    let cells = refused.filter(|placed| placed.document.draft.kind() == Kind::Cell);
    let remains = cells.filter_map(|placed| {
        let document = placed.document;
        let read = document
            .closes
            .as_ref()
            .and_then(|closes| closes.cell.clone());
        let remains = read.or_else(|| match &document.draft {
            Draft::Cell(draft) => draft.as_deref().map(Remains::of),
            _ => None,
        });
        Some(Refused {
            name: &document.meta.name,
            declared: &document.meta.declared,
            remains: remains?,
        })
    });
    remains.collect()
}

/// Gives components the addresses of the pods that they select. A pod is one component's: of two that select it the first
/// one has it, and the other is told.
fn select(cells: &mut BTreeMap<CellId, Shared<Cell>>, pods: &Table<PodDraft>, sink: &Sink) {
    let mut taken: BTreeMap<IpAddr, ComponentId> = BTreeMap::new();
    for cell in cells.values() {
        for component in cell.components.values() {
            let known = component.workloads.addresses().iter();
            taken.extend(known.map(|address| (*address, component.id.clone())));
        }
    }
    let mut by_namespace: BTreeMap<&str, Vec<&PodDraft>> = BTreeMap::new();
    for (name, (_, pod)) in pods {
        by_namespace
            .entry(name.namespace())
            .or_default()
            .extend(pod.as_deref());
    }
    for cell in cells.values_mut() {
        let mut selected = Vec::new();
        for (name, component) in &cell.components {
            let Workloads::Selector {
                namespace,
                match_labels,
                ..
            } = &component.workloads
            else {
                continue;
            };
            let pods = by_namespace.get(namespace.as_str());
            let pods = pods.into_iter().flatten().filter(|pod| {
                let mut labels = match_labels.iter();
                labels.all(|(key, value)| pod.labels.get(key) == Some(value.as_str()))
            });
            let mut own = Vec::new();
            for address in pods.flat_map(|pod| &pod.addresses) {
                let first = taken
                    .entry(address.address)
                    .or_insert_with(|| component.id.clone());
                if *first == component.id {
                    own.push(address.address);
                } else {
                    sink.warning(
                        component.declared.clone(),
                        format_args!(
                            "selects the pod with address `{}`, which is one of component `{first}`",
                            address.address
                        ),
                    );
                }
            }
            own.sort_unstable();
            own.dedup();
            if !own.is_empty() {
                selected.push((name.clone(), own));
            }
        }
        // A cell that selects nothing stays the one that was read.
        for (name, own) in selected {
            if let Some(component) = cell.components.get_mut(&name)
                && let Workloads::Selector { addresses, .. } = &mut component.workloads
            {
                *addresses = own;
            }
        }
    }
}

/// Routes of everything that cells expose. Where one cannot be what its document says it is closed.
pub(super) fn routes(
    cells: &[Arc<CellDraft>],
    platform: &Platform,
    gateways: &Served,
    sink: &Sink,
) -> Vec<Shared<Route>> {
    let mut exposing = Exposing {
        platform,
        gateways,
        hosts: Hosts::default(),
        routes: Vec::new(),
        sink,
    };
    for draft in cells {
        let first = exposing.routes.len();
        for exposure in &draft.exposures {
            exposing.expose(exposure, &draft.namespace, first);
        }
    }
    exposing.routes.into_iter().map(Shared::from).collect()
}

/// Drops calls that nobody grants. They are no mistake: the other cell is another team's document.
fn easts(cells: &mut BTreeMap<CellId, Shared<Cell>>, sink: &Sink) {
    let refusal = |to: &EndpointId| -> Option<String> {
        let Some(cell) = cells.get(&to.component.cell) else {
            return Some(format!("there is no cell `{}`", to.component.cell));
        };
        let Some(component) = cell.components.get(&to.component.component) else {
            return Some(format!(
                "cell `{}` has no component `{}`",
                cell.id, to.component.component
            ));
        };
        let Some(endpoint) = component.endpoints.get(&to.endpoint) else {
            return Some(format!(
                "component `{}` has no endpoint `{}`",
                component.id, to.endpoint
            ));
        };
        endpoint.organization.is_none().then(|| {
            format!(
                "endpoint `{}` has no visibility `organization`",
                endpoint.id
            )
        })
    };
    let mut granted: BTreeMap<CellId, Vec<East>> = BTreeMap::new();
    for cell in cells.values() {
        let mut list = Vec::new();
        for east in &cell.east {
            match refusal(&east.to) {
                Some(why) => {
                    sink.warning(east.declared.clone(), format_args!("grants nothing: {why}"))
                }
                None => list.push(east.clone()),
            }
        }
        // A cell that calls nobody in vain stays the one that was read.
        if list.len() < cell.east.len() {
            granted.insert(cell.id.clone(), list);
        }
    }
    for (id, list) in granted {
        if let Some(cell) = cells.get_mut(&id) {
            cell.east = list;
        }
    }
}

/// What becomes of exposures.
struct Exposing<'a> {
    platform: &'a Platform,
    gateways: &'a Served,
    hosts: Hosts,
    routes: Vec<Route>,
    sink: &'a Sink,
}

impl Exposing<'_> {
    /// Makes the route of one exposure. Those of its cell begin at `first`.
    fn expose(&mut self, exposure: &ExposureDraft, namespace: &str, first: usize) {
        let sink = self.sink;
        let refuse = |message: &str| sink.mistake(exposure.source.clone(), message);
        // What is not there for one endpoint is not for those beside it either: there is nothing to close.
        let place = derive::site(exposure, self.platform)
            .and_then(|site| Ok((derive::wildcard_path(exposure, &site)?, site)));
        let (path, site) = match place {
            Ok(place) => place,
            Err(why) => return refuse(&why),
        };
        // A gateway that is named and not there has mistakes of its own.
        let Some(gateway) = self.gateways.get(&site.gateway) else {
            return;
        };
        let parents = derive::parents(&site, gateway.listeners.iter());
        if parents.is_empty() && !sink.tainted(&gateway.declared) {
            return refuse(&format!(
                "no listener of gateway {} takes its host `{}`",
                gateway.name, site.host
            ));
        }
        let made = match self.hosts.claim(exposure, &site, &path) {
            Err(Rival::Component(why)) => return refuse(&why),
            Err(Rival::Endpoint(rival)) => {
                let why = format!(
                    "endpoint `{rival}` of this component has the same base path at the same gate"
                );
                self.close(exposure, rival, first, &why);
                refuse(&why);
                Err(why)
            }
            Ok(()) => self.provider(exposure).and_then(|provider| {
                let parents = parents.clone();
                let route = derive::route(exposure, &site, namespace, parents, provider);
                route.inspect_err(|why| refuse(why))
            }),
        };
        let closed = |why: String| derive::closed(exposure, &site, namespace, parents, &why);
        match made.or_else(closed) {
            Ok(route) => self.routes.push(route),
            Err(why) => refuse(&why),
        }
    }

    /// The provider of the tokens that it asks for, if it does. That there is no such one is said.
    fn provider(&self, exposure: &ExposureDraft) -> Result<Option<&Arc<JwtProvider>>, String> {
        let Some((name, source)) = &exposure.provider else {
            return Ok(None);
        };
        let provider = self.platform.jwt_providers.get(name);
        provider.map(Some).ok_or_else(|| {
            let why =
                format!("no token provider `{name}` in `spec.jwtProviders` of the `Platform`");
            self.sink.mistake(source.clone(), &why);
            why
        })
    }

    /// Closes what an endpoint has in common with one of the same component: which of the two has it nobody can say.
    fn close(&mut self, exposure: &ExposureDraft, rival: Name, first: usize, why: &str) {
        let rival = EndpointId {
            component: exposure.endpoint.component.clone(),
            endpoint: rival,
        };
        let is_rival = |route: &&mut Route| matches!(&route.origin, Origin::Endpoint { endpoint, gate } if **endpoint == rival && *gate == exposure.gate);
        let route = self.routes.iter_mut().skip(first).find(is_rival);
        for rule in route.into_iter().flat_map(|route| &mut route.rules) {
            derive::close(rule, why);
        }
    }
}
