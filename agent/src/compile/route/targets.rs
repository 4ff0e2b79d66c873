//! Where to: targets of rules and of routes below HTTP, and what policies make of them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use rustls_pki_types::ServerName;
use snapshot::model::{
    BackendName, Component, Declared, EndpointId, EndpointKind, Filter, L7Kind, ObjectName, Port,
    Route, Target, TrafficPolicy, Transport, Upstream, UpstreamHost, UpstreamTls, WeightedTarget,
};
use snapshot::{Shared, Snapshot, common, exact};

use super::{Compiler, ManagedKey};
use crate::compile::{filter, traffic};
use crate::route::filter::{Filters, Mirror};
use crate::route::stream::{StreamRoute, StreamTarget};
use crate::route::trust::{Identity, UpstreamTrust};
use crate::route::{Backend, Limiter, Managed, RouteTarget, RouteUpstream, TargetKind, TlsPeer};

impl Compiler<'_> {
    pub(super) fn filters(&mut self, source: &Declared, list: &[Filter]) -> Filters {
        let mut filters = filter::filters(list).unwrap_or_else(|error| {
            self.mistake(source, error);
            Filters::default()
        });
        for filter in list {
            if let Filter::Mirror(mirror) = filter {
                let target = WeightedTarget::new(1, mirror.target.clone());
                filters.mirrors.push(Mirror {
                    target: self.route_target(source, &target),
                    share: mirror.share,
                    of: mirror.of,
                });
            }
        }
        filters.request = exact(filters.request);
        filters.response = exact(filters.response);
        filters.mirrors = exact(filters.mirrors);
        filters
    }

    pub(super) fn route_target(
        &mut self,
        source: &Declared,
        target: &WeightedTarget,
    ) -> RouteTarget {
        self.targets += 1;
        RouteTarget {
            id: self.targets,
            weight: target.weight,
            backend: backend(target),
            http2: target.http2,
            kind: self.target(target),
            filters: self.filters(source, &target.filters).into(),
            terms: None,
            managed: None,
        }
    }

    /// The rate limit of a policy for a route. All rules of the route that have the policy share it.
    pub(super) fn limiter(
        &mut self,
        policy: &TrafficPolicy,
        (kind, route): (L7Kind, &Arc<str>),
    ) -> Option<Arc<Limiter>> {
        let limit = policy.rate_limit.as_ref()?;
        let id = policy.rates_id();
        let key = (id.clone(), kind, Arc::clone(route));
        let shared = self.shared_rules.entry(id).or_default();
        let made = self.limiters.entry(key);
        let limiter = made.or_insert_with(|| Arc::new(Limiter::new(limit, shared)));
        Some(Arc::clone(limiter))
    }

    /// A target as a policy treats it. Rules of one policy and backend share what is compiled of both.
    pub(super) fn treated(
        &mut self,
        target: RouteTarget,
        policy: &Arc<TrafficPolicy>,
    ) -> RouteTarget {
        let places = traffic::places(&target.kind);
        let managed = places.map(|places| {
            let name = &target.backend;
            let key = (Arc::clone(name), policy.id());
            let identity = self.shown.get(&key).cloned();
            let backend = self
                .backends
                .entry(Arc::clone(name))
                .or_insert_with(|| Arc::new(Backend::new(Arc::clone(name), places)));
            let managed = self.managed.entry(key).or_insert_with(|| {
                Arc::new(Managed::new(
                    Arc::clone(policy),
                    Arc::clone(backend),
                    identity,
                ))
            });
            Arc::clone(managed)
        });
        RouteTarget {
            terms: traffic::terms(policy),
            managed,
            ..target
        }
    }

    /// What probes of a backend under a policy show: the certificate of the gateway whose requests go there, of several
    /// the first by name that has one.
    pub(super) fn shown(&self) -> BTreeMap<ManagedKey, Arc<Identity>> {
        let mut shown = BTreeMap::new();
        for gateway in self.snapshot.gateways.values() {
            let Some(identity) = self.identity(gateway) else {
                continue;
            };
            let routes = self.snapshot.routes.iter();
            let attached = |route: &&Shared<Route>| {
                route.parents.iter().any(|one| one.gateway == gateway.name)
            };
            for rule in routes.filter(attached).flat_map(|route| &route.rules) {
                let Some(policy) = rule.traffic.as_ref().filter(|one| one.active.is_some()) else {
                    continue;
                };
                for target in &rule.targets {
                    let key = (backend(target), policy.id());
                    shown.entry(key).or_insert_with(|| Arc::clone(&identity));
                }
            }
        }
        shown
    }

    fn target(&mut self, target: &WeightedTarget) -> TargetKind {
        match &target.target {
            Target::Upstreams(list) => TargetKind::Upstreams(match &target.backend {
                Some(backend @ BackendName::Service(name, port)) => {
                    self.service(backend, (name, *port), list)
                }
                _ => self.upstreams(list).into(),
            }),
            Target::RoutingTable(name) => match self.placements.get(name) {
                Some(placements) => TargetKind::Placements(Arc::clone(placements)),
                None => TargetKind::Unresolved(format!("no routing table `{name}`").into()),
            },
            Target::Unresolved(reason) => TargetKind::Unresolved(reason.as_str().into()),
            Target::Endpoint(id) => match find_endpoint(self.snapshot, id) {
                Some((component, port, kind)) => TargetKind::Endpoint {
                    endpoint: Arc::clone(id),
                    addresses: component
                        .workloads
                        .addresses()
                        .iter()
                        .map(|address| SocketAddr::new(*address, port))
                        .collect(),
                    http2: kind == EndpointKind::Grpc,
                },
                None => TargetKind::Unresolved(format!("no endpoint `{id}`").into()),
            },
        }
    }

    /// Endpoints of a service's port as requests get them.
    fn service(
        &mut self,
        backend: &BackendName,
        (name, port): (&ObjectName, Port),
        list: &Arc<[Upstream]>,
    ) -> Arc<[RouteUpstream]> {
        let snapshot = self.snapshot;
        let service = snapshot.services.get(name);
        if let Some(known) = self.kept.list(backend, list, service) {
            return Arc::clone(known);
        }
        let made: Arc<[_]> = self.upstreams(&self.near(name, port, list)).into();
        // What is made of TLS depends on its policy too.
        if !list
            .iter()
            .any(|one| matches!(one, Upstream::Tcp { tls: Some(_), .. }))
        {
            self.kept.keep_list(backend, list, service, &made);
        }
        made
    }

    /// Endpoints of a service that it hints to this node or its zone, as clients of its address get them. A headless one, which no
    /// client meets at an address, has all of them.
    fn near(&self, name: &ObjectName, port: Port, all: &[Upstream]) -> Vec<Upstream> {
        let service = self.snapshot.services.get(name);
        let mut ports = service.into_iter().flat_map(|service| &service.ports);
        let Some(port) = ports.find(|one| one.port == port && one.transport == Transport::Tcp)
        else {
            return all.to_vec();
        };
        let families = [Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into()];
        let near = families.iter();
        let near = near.flat_map(|family| self.here.choose(&port.endpoints, family, false));
        let near: BTreeSet<_> = near.map(|one| (one.address, one.port)).collect();
        let is_near = |one: &&Upstream| match one {
            Upstream::Tcp {
                host: UpstreamHost::Address(address),
                port,
                ..
            } => near.contains(&(*address, *port)),
            Upstream::Tcp { .. } | Upstream::Unix(_) => false,
        };
        all.iter().filter(is_near).cloned().collect()
    }

    fn upstreams(&mut self, list: &[Upstream]) -> Vec<RouteUpstream> {
        list.iter().filter_map(|one| self.upstream(one)).collect()
    }

    fn upstream(&mut self, upstream: &Upstream) -> Option<RouteUpstream> {
        let tls = match upstream {
            Upstream::Tcp { tls: Some(tls), .. } => Some(self.peer(tls)?),
            Upstream::Tcp { .. } | Upstream::Unix(_) => None,
        };
        Some(RouteUpstream {
            upstream: upstream.clone(),
            tls,
        })
    }

    /// Upstreams of one policy share what is made of it.
    fn peer(&mut self, tls: &Arc<UpstreamTls>) -> Option<TlsPeer> {
        // As with `Auth`: the snapshot outlives the compiler.
        let policy = Arc::as_ptr(tls);
        if let Some(known) = self.peers.get(&policy) {
            return Some(known.clone());
        }
        let trust = UpstreamTrust::new(tls).map_err(anyhow::Error::new);
        let name = ServerName::try_from(tls.hostname.as_str().to_owned());
        let peer = trust.and_then(|trust| {
            Ok(TlsPeer {
                trust: Some(Arc::new(trust)),
                ..TlsPeer::from(name?)
            })
        });
        match peer {
            Ok(peer) => {
                self.peers.insert(policy, peer.clone());
                Some(peer)
            }
            Err(error) => {
                self.mistake(&tls.declared, format!("{error:#}"));
                None
            }
        }
    }

    /// All routes below HTTP, compiled once however many listeners they serve.
    pub(super) fn streams(&mut self) -> Vec<Arc<StreamRoute>> {
        let snapshot = self.snapshot;
        let routes = snapshot.l4_routes.iter();
        routes
            .map(|route| {
                let targets: Vec<_> = route
                    .backends
                    .iter()
                    .map(|backend| {
                        self.targets += 1;
                        StreamTarget {
                            id: self.targets,
                            weight: backend.weight,
                            upstreams: self.upstreams(&backend.upstreams),
                        }
                    })
                    .collect();
                Arc::new(StreamRoute {
                    name: route.name.to_string().into(),
                    weight: targets.iter().map(|target| u64::from(target.weight)).sum(),
                    targets,
                })
            })
            .collect()
    }
}

/// A target's name: what it is called, or the addresses of a list.
fn backend(target: &WeightedTarget) -> Arc<str> {
    if let Some(name) = &target.backend {
        return common(&name.to_string());
    }
    match &target.target {
        Target::Upstreams(list) => {
            let mut names: Vec<_> = list.iter().map(ToString::to_string).collect();
            names.sort_unstable();
            names.join(",").into()
        }
        Target::Endpoint(id) => format!("endpoint {id}").into(),
        Target::RoutingTable(name) => format!("table {name}").into(),
        Target::Unresolved(_) => "".into(),
    }
}

fn find_endpoint<'a>(
    snapshot: &'a Snapshot,
    id: &EndpointId,
) -> Option<(&'a Component, u16, EndpointKind)> {
    let cell = snapshot.cells.get(&id.component.cell)?;
    let component = cell.components.get(&id.component.component)?;
    let endpoint = component.endpoints.get(&id.endpoint)?;
    Some((component, endpoint.port.get(), endpoint.kind))
}
