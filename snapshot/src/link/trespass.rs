//! Backends of routes that lead into a cell from another namespace.
//!
//! The router speaks to backends as a gate or as the node, whom cells let in at the ports of their endpoints, and asks for what the
//! route of a document says. To whatever a cell closes, only documents of its own namespace may open such a way (CVE-2021-25740). Slices that
//! the cluster makes for services that select pods lead to pods of their own namespace.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use super::collect::Taking;
use super::memory::BackendPart;
use crate::document::Drafts;
use crate::document::cell::CellDraft;
use crate::document::endpoint_slice::{SliceDraft, State};
use crate::model::{Border, Cell, CellId, ObjectName, Upstream, UpstreamHost, Workloads};
use crate::shared::Shared;

/// Addresses of `Backend`s, and of endpoints of `Service`s, that no route is to lead to. Nearly always there are none.
pub(super) type Trespasses = BTreeMap<(BackendPart, ObjectName), BTreeSet<IpAddr>>;

/// Finds them. `documents` are those of cells that are taken. In a folder everything is one author's.
pub(super) fn find(
    drafts: &Drafts,
    cells: &BTreeMap<CellId, Shared<Cell>>,
    documents: &[Arc<CellDraft>],
    taking: Taking,
) -> Trespasses {
    let mut found = Trespasses::new();
    if taking == Taking::Whole || !has_routes(drafts) {
        return found;
    }
    let mut guard = Guard::new(drafts);
    if !guard.enclose(cells, documents) {
        return found;
    }
    guard.serve();
    for (_, slice) in drafts.slices.values() {
        let Some((slice, service)) = of_service(slice.as_deref()) else {
            continue;
        };
        for address in answering(slice) {
            if !guard.admits(address, service.namespace()) {
                let key = (BackendPart::Service, service.clone());
                found.entry(key).or_default().insert(address);
            }
        }
    }
    for (name, (_, upstreams)) in &drafts.backends {
        for upstream in upstreams.iter().flat_map(|all| &**all) {
            if let Upstream::Tcp {
                host: UpstreamHost::Address(address),
                ..
            } = upstream
                && !guard.admits(*address, name.namespace())
            {
                let key = (BackendPart::Backend, name.clone());
                found.entry(key).or_default().insert(*address);
            }
        }
    }
    found
}

fn has_routes(drafts: &Drafts) -> bool {
    let l7 = [&drafts.http_routes, &drafts.grpc_routes];
    let l4 = [&drafts.tls_routes, &drafts.tcp_routes, &drafts.udp_routes];
    l7.iter().any(|routes| !routes.is_empty()) || l4.iter().any(|routes| !routes.is_empty())
}

/// Who leads where.
struct Guard<'a> {
    drafts: &'a Drafts,
    /// Addresses of components that not everybody is let in to, and of services.
    places: HashMap<IpAddr, Place<'a>>,
    /// Pods by address and namespace. Most of the time nobody asks for these, and for what follows.
    pods: Option<HashSet<(IpAddr, &'a str)>>,
    slices: Option<HashMap<&'a ObjectName, Vec<&'a SliceDraft>>>,
    /// What was found out about services' addresses, by namespace.
    known: HashMap<(IpAddr, &'a str), bool>,
}

/// What is at an address.
#[derive(Clone, Copy, Default)]
struct Place<'a> {
    /// Something that is enclosed, with the namespace of its cell's document if that is known.
    enclosed: Option<Option<&'a str>>,
    service: Option<&'a ObjectName>,
}

impl<'a> Guard<'a> {
    fn new(drafts: &'a Drafts) -> Self {
        Self {
            drafts,
            places: HashMap::with_capacity(drafts.pods.len() + drafts.services.len()),
            pods: None,
            slices: None,
            known: HashMap::new(),
        }
    }

    /// Notes what is inside of cells; whether there is anything.
    fn enclose(
        &mut self,
        cells: &'a BTreeMap<CellId, Shared<Cell>>,
        documents: &'a [Arc<CellDraft>],
    ) -> bool {
        let documents = documents.iter();
        let namespaces: BTreeMap<&CellId, &str> = documents
            .map(|draft| (&draft.cell.id, draft.namespace.as_str()))
            .collect();
        let closed = cells
            .values()
            .filter(|cell| cell.borders.ingress == Border::Declared);
        for component in closed.flat_map(|cell| cell.components.values()) {
            let namespace = match &component.workloads {
                Workloads::Selector { namespace, .. } => Some(namespace.as_str()),
                Workloads::Addresses(_) => namespaces.get(&component.id.cell).copied(),
            };
            let place = Place {
                enclosed: Some(namespace),
                service: None,
            };
            let addresses = component.addresses();
            self.places
                .extend(addresses.map(|address| (*address, place)));
        }
        !self.places.is_empty()
    }

    /// Notes where services are.
    fn serve(&mut self) {
        for (name, (_, service)) in &self.drafts.services {
            for placed in service.iter().flat_map(|service| &service.addresses) {
                let place = self.places.entry(placed.address).or_default();
                place.service = Some(name);
            }
        }
    }

    /// Whether a document of a namespace may lead to an address. At that of a service its endpoints answer; those that are services
    /// again nobody follows.
    fn admits(&mut self, address: IpAddr, namespace: &'a str) -> bool {
        let Some(place) = self.places.get(&address).copied() else {
            return true;
        };
        if !self.is_open(place, address, namespace) {
            return false;
        }
        let Some(service) = place.service else {
            return true;
        };
        if let Some(known) = self.known.get(&(address, namespace)) {
            return *known;
        }
        let admitted = self.behind(service).into_iter().all(|one| {
            let place = self.places.get(&one).copied().unwrap_or_default();
            place.service.is_none() && self.is_open(place, one, namespace)
        });
        self.known.insert((address, namespace), admitted);
        admitted
    }

    /// Whether a place is of no cell, or of a cell or pod of this namespace.
    fn is_open(&mut self, place: Place<'_>, address: IpAddr, namespace: &str) -> bool {
        let Some(owner) = place.enclosed else {
            return true;
        };
        let drafts = self.drafts;
        owner == Some(namespace) || {
            let pods = self.pods.get_or_insert_with(|| {
                let pods = drafts.pods.iter();
                let pods = pods.filter_map(|(name, (_, pod))| Some((name, pod.as_deref()?)));
                let addresses = pods.flat_map(|(name, pod)| {
                    let own = pod.addresses.iter();
                    own.map(|placed| (placed.address, name.namespace()))
                });
                addresses.collect()
            });
            pods.contains(&(address, namespace))
        }
    }

    /// Endpoints of a service.
    fn behind(&mut self, service: &ObjectName) -> Vec<IpAddr> {
        let drafts = self.drafts;
        let slices = self.slices.get_or_insert_with(|| {
            let mut slices: HashMap<_, Vec<_>> = HashMap::new();
            for (_, slice) in drafts.slices.values() {
                if let Some((slice, service)) = of_service(slice.as_deref()) {
                    slices.entry(service).or_default().push(slice);
                }
            }
            slices
        });
        let slices = slices.get(service).into_iter().flatten();
        slices.flat_map(|slice| answering(slice)).collect()
    }
}

fn of_service(slice: Option<&SliceDraft>) -> Option<(&SliceDraft, &ObjectName)> {
    let slice = slice?;
    Some((slice, slice.service.as_ref()?))
}

/// Addresses of a slice that get requests.
fn answering(slice: &SliceDraft) -> impl Iterator<Item = IpAddr> {
    let endpoints = slice.endpoints.iter();
    let answering = endpoints.filter(|one| one.state != State::No);
    answering.map(|one| one.address)
}
