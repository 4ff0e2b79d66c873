//! What linking remembers from one time to the next, so that a change costs little more than what it changes.
//!
//! Flows in: the objects of a moment. Flows out: which of the routes that were linked before are linked alike now. A route is
//! if its own document, everything that it refers to and everything that decides which listeners take it are as they were. What
//! it refers to is followed by name for the kinds that change all the time; a change of any other kind forgets everything. Nothing
//! that is remembered may be seen in what comes out.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use imbl::OrdMap;

use super::assembly::{Assembly, Changes};
use super::backend::Lists;
use super::collect::Placed;
use super::gateway::{Built, Gateways};
use super::http_route::Linked;
use super::listener::Entry;
use super::trespass::Trespasses;
use crate::document::http_route::{BackendDraft, BackendKind, FilterDraft, RouteDraft};
use crate::document::{Draft, Kind, Read};
use crate::model::{ObjectName, RouteKind, SectionName};
use crate::report::{Mistake, Source, Warning};
use crate::status::RouteStatus;

/// What is remembered.
#[derive(Default)]
pub(crate) struct Memory {
    /// What was put together last.
    pub(super) assembly: Assembly,
    /// Documents that were refused then, those of routes apart: what refers to them depends on it.
    refused: Vec<Source>,
    /// Routes by the address of their draft, which each of them holds.
    routes: HashMap<usize, Box<Remembered>>,
    /// Their status.
    statuses: Statuses,
    /// Backends that are not as they were.
    moved: BTreeSet<(BackendPart, ObjectName)>,
    /// Those that led into cells of other namespaces.
    trespasses: Trespasses,
    /// Lists of endpoints that routes lead to.
    pub(super) lists: Lists,
    /// The route that was linked last: most routes are attached alike, and have that in common.
    last: Option<Alike>,
    /// How often was linked.
    round: u64,
}

/// What many routes have alike.
struct Alike {
    status: Option<Arc<RouteStatus>>,
    counted: Arc<[Counted]>,
    rule_names: Arc<[Option<SectionName>]>,
}

/// A listener that counts a route: the gateway, and the name in the gateway.
pub(super) type Counted = (ObjectName, SectionName);

/// Status of routes, by kind and name.
pub(super) type Statuses = OrdMap<(RouteKind, ObjectName), Arc<RouteStatus>>;

/// Which kind a backend is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum BackendPart {
    Service,
    Backend,
}

/// A route, and everything that linking it did elsewhere.
pub(super) struct Remembered {
    draft: Arc<RouteDraft>,
    pub(super) linked: Linked,
    /// Listeners that count it.
    pub(super) counted: Arc<[Counted]>,
    /// What is wrong with it and what is without effect; of most routes there is nothing to say.
    pub(super) said: Option<Box<(Vec<Mistake>, Vec<Warning>)>>,
    /// Whether it holds as long as what it refers to; not if another route took hosts away.
    pub(super) lasting: bool,
    round: u64,
}

impl Remembered {
    pub(super) fn new(draft: &Arc<RouteDraft>, linked: Linked) -> Self {
        Self {
            draft: Arc::clone(draft),
            linked,
            counted: Arc::default(),
            said: None,
            lasting: true,
            round: 0,
        }
    }

    fn key(&self) -> (RouteKind, ObjectName) {
        let route = &self.linked.route;
        (RouteKind::L7(route.kind), route.name.clone())
    }

    /// The listeners that count it.
    pub(super) fn listeners<'a>(
        &'a self,
        gateways: &'a Gateways,
    ) -> impl Iterator<Item = (&'a Built, &'a Entry)> {
        let counted = self.counted.iter();
        counted.filter_map(|(gateway, id)| gateways.listener(gateway, id))
    }
}

impl Memory {
    /// Forgets what does not hold for these objects.
    pub(super) fn look(&mut self, changes: &Changes, documents: &[Placed<'_>]) {
        self.round += 1;
        self.moved.clear();
        let refused: Vec<Source> = documents
            .iter()
            .filter(|placed| placed.refused && !is_route(placed.document.draft.kind()))
            .map(|placed| placed.document.meta.declared.clone())
            .collect();
        let mut holds = refused == self.refused;
        self.refused = refused;
        for read in changes.gone.iter().chain(&changes.come) {
            holds = self.follow(read) && holds;
        }
        let policies = |kind| {
            documents
                .iter()
                .any(|one| one.document.draft.kind() == kind)
        };
        // Whether a policy has a target is part of what becomes of it, and that of every route to the target.
        let held = self.moved.is_empty() || !policies(Kind::BackendTLSPolicy);
        if !holds || !held {
            self.routes.clear();
            self.statuses.clear();
        }
        for document in changes.gone.iter().flat_map(|read| &read.documents) {
            if let Draft::HTTPRoute(Some(draft)) | Draft::GRPCRoute(Some(draft)) = &document.draft {
                self.forget(address(draft));
            }
        }
    }

    /// Notes which backends lead into cells of other namespaces now: whose pods and cells these are is followed by what comes of it.
    pub(super) fn trespass(&mut self, now: &Trespasses) {
        let differs = |one: &Trespasses, other: &Trespasses| {
            let differing = one.iter().filter(|(key, own)| other.get(key) != Some(own));
            differing.map(|(key, _)| key.clone()).collect::<Vec<_>>()
        };
        self.moved.extend(differs(&self.trespasses, now));
        self.moved.extend(differs(now, &self.trespasses));
        self.trespasses.clone_from(now);
    }

    fn forget(&mut self, route: usize) {
        if let Some(gone) = self.routes.remove(&route) {
            self.statuses.remove(&gone.key());
        }
    }

    /// Notes what a document that came, went or changed is to routes. Whether they are still as they were as far as they do not
    /// refer to it.
    fn follow(&mut self, read: &Read) -> bool {
        read.documents.iter().all(|document| {
            let name = &document.meta.name;
            match &document.draft {
                // A route's own draft says that it changed.
                Draft::HTTPRoute(_) | Draft::GRPCRoute(_) => true,
                // No route of a document leads to these, and to what is theirs only as backends do.
                Draft::Pod(_)
                | Draft::Cell(_)
                | Draft::NetworkPolicy(_)
                | Draft::CiliumNetworkPolicy(_) => true,
                Draft::Service(service) => {
                    self.moved.insert((BackendPart::Service, name.clone()));
                    // What a load balancer gave it may be where a gateway listens.
                    let service = service.as_deref();
                    service.is_none_or(|service| service.ingress.is_empty())
                }
                Draft::EndpointSlice(slice) => {
                    let of = slice.as_ref().and_then(|slice| slice.service.clone());
                    self.moved
                        .extend(of.map(|service| (BackendPart::Service, service)));
                    true
                }
                Draft::Backend(_) => {
                    self.moved.insert((BackendPart::Backend, name.clone()));
                    true
                }
                _ => false,
            }
        })
    }

    /// What is remembered of a route, if it holds.
    pub(super) fn of(&mut self, draft: &Arc<RouteDraft>) -> Option<&Remembered> {
        let known = self.routes.get_mut(&address(draft))?;
        if known.round == self.round {
            return Some(known);
        }
        let moved = &self.moved;
        let refers = |backend: &BackendDraft| {
            let part = match backend.kind {
                BackendKind::Service(_) => BackendPart::Service,
                BackendKind::Backend => BackendPart::Backend,
                BackendKind::RoutingTable | BackendKind::Foreign(_) => return false,
            };
            moved.contains(&(part, backend.name.clone()))
        };
        if !known.lasting || (!moved.is_empty() && backends(draft).any(refers)) {
            return None;
        }
        known.round = self.round;
        Some(known)
    }

    /// Remembers a route and its status.
    pub(super) fn keep(&mut self, mut route: Remembered, status: Option<RouteStatus>) {
        route.round = self.round;
        let mut status = status.map(Arc::new);
        if let Some(last) = &self.last {
            if let (Some(status), Some(last)) = (&mut status, &last.status) {
                share(status, last);
                if !Arc::ptr_eq(status, last) {
                    share(&mut Arc::make_mut(status).parents, &last.parents);
                }
            }
            share(&mut route.counted, &last.counted);
            share(&mut route.linked.rule_names, &last.rule_names);
        }
        self.last = Some(Alike {
            status: status.clone(),
            counted: Arc::clone(&route.counted),
            rule_names: Arc::clone(&route.linked.rule_names),
        });
        match status {
            Some(status) => self.statuses.insert(route.key(), status),
            None => self.statuses.remove(&route.key()),
        };
        self.routes.insert(address(&route.draft), Box::new(route));
    }

    /// Forgets routes that were not linked now, and says what the status of the others is.
    pub(super) fn tidy(&mut self, routes: usize) -> Statuses {
        if self.routes.len() > routes {
            let left = self.routes.iter();
            let left = left.filter(|(_, route)| route.round != self.round);
            let left: Vec<usize> = left.map(|(address, _)| *address).collect();
            for route in left {
                self.forget(route);
            }
        }
        self.statuses.clone()
    }
}

fn share<T: PartialEq + ?Sized>(own: &mut Arc<T>, other: &Arc<T>) {
    if *own == *other {
        own.clone_from(other);
    }
}

fn address(draft: &Arc<RouteDraft>) -> usize {
    Arc::as_ptr(draft).addr()
}

fn is_route(kind: Kind) -> bool {
    matches!(kind, Kind::HTTPRoute | Kind::GRPCRoute)
}

/// Every reference of a route to a backend.
fn backends(draft: &RouteDraft) -> impl Iterator<Item = &BackendDraft> {
    draft.rules.iter().flat_map(|rule| {
        let own = rule.backends.iter();
        let own = own.flat_map(|one| std::iter::once(one).chain(mirrors(&one.filters)));
        own.chain(mirrors(&rule.filters))
    })
}

fn mirrors(filters: &[FilterDraft]) -> impl Iterator<Item = &BackendDraft> {
    filters.iter().filter_map(|filter| match filter {
        FilterDraft::Mirror { backend, .. } => Some(&**backend),
        FilterDraft::Here(_) | FilterDraft::Extension { .. } => None,
    })
}
