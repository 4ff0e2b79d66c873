//! What one table hands on to the next: rules of routes and lists of endpoints that would be made again as they are.

use std::fmt;
use std::sync::Arc;

use snapshot::Shared;
use snapshot::model::{BackendName, Route, Service, Upstream};

use super::{HashMap, RouteRules, RouteUpstream};
use crate::compile::Here;

/// Routes whose rules depend on nothing but the route, the services that it leads to and where the node is, by the route's
/// address, which stays its own for as long as it is held here.
#[derive(Default)]
pub(crate) struct Kept {
    here: Here,
    /// All services, in the order of their names.
    services: Vec<Shared<Service>>,
    routes: HashMap<usize, Arc<KeptRules>>,
    lists: HashMap<BackendName, KeptList>,
}

/// Endpoints of a service's port, without TLS, as requests get them here: rules that lead there have one list.
#[derive(Clone)]
struct KeptList {
    made: Arc<[RouteUpstream]>,
    /// What it was made of.
    given: Arc<[Upstream]>,
    service: Option<Shared<Service>>,
}

pub(crate) struct KeptRules {
    pub(crate) rules: RouteRules,
    /// What its targets' services were, in the order of the targets.
    services: Box<[Option<Shared<Service>>]>,
    _route: Shared<Route>,
}

impl Kept {
    /// Nothing that was compiled for this place and these services, with room for so many routes.
    pub(crate) fn with_room<'a>(
        here: Here,
        services: impl Iterator<Item = &'a Shared<Service>>,
        routes: usize,
    ) -> Self {
        let mut kept = HashMap::default();
        kept.reserve(routes);
        Self {
            here,
            services: services.cloned().collect(),
            routes: kept,
            lists: HashMap::default(),
        }
    }

    /// Takes over lists that rules of the table before have, which may be rules of this one.
    pub(crate) fn take_over(&mut self, before: &Self) {
        if self.here != before.here {
            return;
        }
        for (name, list) in &before.lists {
            if Arc::strong_count(&list.made) > 1 && !self.lists.contains_key(name) {
                self.lists.insert(name.clone(), list.clone());
            }
        }
    }

    /// The list that was made of these endpoints for this place, when the service was this.
    pub(crate) fn list(
        &self,
        name: &BackendName,
        given: &Arc<[Upstream]>,
        service: Option<&Shared<Service>>,
    ) -> Option<&Arc<[RouteUpstream]>> {
        let list = self.lists.get(name)?;
        let same = Arc::ptr_eq(&list.given, given) && list.service.as_ref() == service;
        same.then_some(&list.made)
    }

    /// Keeps a list.
    pub(crate) fn keep_list(
        &mut self,
        name: &BackendName,
        given: &Arc<[Upstream]>,
        service: Option<&Shared<Service>>,
        made: &Arc<[RouteUpstream]>,
    ) {
        let list = KeptList {
            made: Arc::clone(made),
            given: Arc::clone(given),
            service: service.cloned(),
        };
        self.lists.insert(name.clone(), list);
    }

    /// Whether all services are the same ones here and there.
    pub(crate) fn has_services_of(&self, other: &Self) -> bool {
        let (own, others) = (&self.services, &other.services);
        own.len() == others.len() && own.iter().zip(others).all(|(own, other)| own.is(other))
    }

    /// The rules of a route that was compiled for this place, when its targets' services were these; none: all are as they were.
    pub(crate) fn of<'a>(
        &'a self,
        here: &Here,
        route: &Shared<Route>,
        services: Option<impl Iterator<Item = Option<&'a Shared<Service>>>>,
    ) -> Option<&'a Arc<KeptRules>> {
        if self.here != *here {
            return None;
        }
        let kept = self.routes.get(&route.address())?;
        let known = kept.services.iter().map(Option::as_ref);
        services
            .is_none_or(|services| known.eq(services))
            .then_some(kept)
    }

    /// Keeps the rules of a route.
    pub(crate) fn keep<'a>(
        &mut self,
        route: &Shared<Route>,
        services: impl Iterator<Item = Option<&'a Shared<Service>>>,
        rules: &RouteRules,
    ) {
        let kept = KeptRules {
            rules: Arc::clone(rules),
            services: services.map(|one| one.cloned()).collect(),
            _route: route.clone(),
        };
        self.routes.insert(route.address(), Arc::new(kept));
    }

    /// Goes on keeping the rules of a route.
    pub(crate) fn keep_on(&mut self, route: &Shared<Route>, rules: &Arc<KeptRules>) {
        self.routes.insert(route.address(), Arc::clone(rules));
    }
}

impl fmt::Debug for Kept {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // All of it is in the table, and addresses say nothing.
        f.debug_struct("Kept").finish_non_exhaustive()
    }
}
