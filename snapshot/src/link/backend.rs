//! Where requests and connections go: endpoints of `Backend`s and of `Service`s.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use super::Taking;
use super::backend_tls::TlsPolicies;
use super::context::{Context, Fault};
use super::grants;
use super::memory::BackendPart;
use super::trespass::Trespasses;
use crate::document::addresses::of_node;
use crate::document::backend_tls::TlsTarget;
use crate::document::endpoint_slice::{SliceDraft, State};
use crate::document::http_route::{BackendDraft, BackendKind};
use crate::document::service::{ServiceDraft, ServicePort};
use crate::document::{CARDINAL, ENVOY_GATEWAY, Kind, Table, group};
use crate::model::{
    BackendName, ObjectName, Port, RoutingTable, Target, Transport, Upstream, UpstreamHost,
    UpstreamTls,
};
use crate::status::Reason;

/// Everything that a route can lead to.
pub(super) struct Backends<'a> {
    backends: &'a Table<Vec<Upstream>>,
    services: &'a Table<ServiceDraft>,
    tables: &'a Table<RoutingTable>,
    /// Slices by their service.
    slices: BTreeMap<&'a ObjectName, Vec<&'a SliceDraft>>,
    /// Lists of endpoints that routes lead to.
    lists: RefCell<Lists>,
    /// What leads into cells of other namespaces.
    trespasses: &'a Trespasses,
}

/// Endpoints by what they are of: routes that lead to one backend have one list.
pub(super) type Lists = HashMap<BackendName, Arc<[Upstream]>>;

/// What a reference leads to.
pub(super) struct Resolved {
    pub(super) target: Target,
    pub(super) name: Option<BackendName>,
    pub(super) http2: bool,
    /// Why it leads nowhere.
    pub(super) fault: Option<Fault>,
}

impl Resolved {
    fn nowhere(fault: Fault) -> Self {
        Self {
            target: Target::Unresolved(fault.message.clone()),
            name: None,
            http2: false,
            fault: Some(fault),
        }
    }
}

impl<'a> Backends<'a> {
    pub(super) fn new(
        backends: &'a Table<Vec<Upstream>>,
        services: &'a Table<ServiceDraft>,
        slices: &'a Table<SliceDraft>,
        tables: &'a Table<RoutingTable>,
        lists: Lists,
        trespasses: &'a Trespasses,
    ) -> Self {
        let mut by_service: BTreeMap<_, Vec<_>> = BTreeMap::new();
        for (_, slice) in slices.values() {
            let Some(slice) = slice.as_deref() else {
                continue;
            };
            if let Some(service) = &slice.service {
                by_service.entry(service).or_default().push(slice);
            }
        }
        Self {
            backends,
            services,
            tables,
            slices: by_service,
            lists: lists.into(),
            trespasses,
        }
    }

    /// The lists that something leads to.
    pub(super) fn lists(self) -> Lists {
        let mut lists = self.lists.into_inner();
        lists.retain(|_, list| Arc::strong_count(list) > 1);
        lists
    }

    /// The list of a backend: one that says the same as before is the one from before.
    fn list(&self, name: &BackendName, endpoints: Vec<Upstream>) -> Target {
        let mut lists = self.lists.borrow_mut();
        let known = lists.get(name).filter(|known| ***known == endpoints[..]);
        let list = match known {
            Some(known) => Arc::clone(known),
            None => {
                let list: Arc<[Upstream]> = endpoints.into();
                lists.insert(name.clone(), Arc::clone(&list));
                list
            }
        };
        Target::Upstreams(list)
    }

    /// Endpoints of a `Backend`, if there is one and it could be read.
    pub(super) fn backend(&self, name: &ObjectName) -> Option<Option<&'a Vec<Upstream>>> {
        let (_, upstreams) = self.backends.get(name)?;
        Some(upstreams.as_deref())
    }

    /// A `Service`, if there is one and it could be read.
    pub(super) fn service(&self, name: &ObjectName) -> Option<Option<&'a ServiceDraft>> {
        let (_, service) = self.services.get(name)?;
        Some(service.as_deref())
    }

    /// Follows a reference of a document of kind and namespace.
    pub(super) fn resolve(
        &self,
        draft: &BackendDraft,
        from: (Kind, &str),
        transport: Transport,
        policies: &TlsPolicies,
        to: &Context<'_>,
    ) -> Resolved {
        let refuse = |reason, why: String| {
            to.sink.mistake(draft.source.clone(), &why);
            Resolved::nowhere(Fault::new(reason, why))
        };
        let name = &draft.name;
        let (to_group, kind) = match &draft.kind {
            BackendKind::Foreign(why) => return refuse(Reason::InvalidKind, why.clone()),
            BackendKind::Backend => (group(ENVOY_GATEWAY), "Backend"),
            BackendKind::RoutingTable => (group(CARDINAL), "RoutingTable"),
            BackendKind::Service(_) => ("", "Service"),
        };
        if !to.grants.permit(from, (to_group, kind), name) {
            return refuse(Reason::RefNotPermitted, grants::refusal(kind, name));
        }
        let absent = || refuse(Reason::BackendNotFound, format!("no `{kind}` {name}"));
        let unread = || {
            let why = format!("`{kind}` {name} has mistakes");
            Resolved::nowhere(Fault::new(Reason::BackendNotFound, why))
        };
        let resolved = match &draft.kind {
            BackendKind::Foreign(_) => return unread(),
            BackendKind::RoutingTable => {
                let Some((_, table)) = self.tables.get(name) else {
                    return absent();
                };
                let hosts = table.iter().flat_map(|table| table.placements.values());
                let hosts = hosts.flat_map(|one| &one.endpoints).map(|url| &url.host);
                if let Some(place) = to.own_place(hosts) {
                    return refuse(Reason::RefNotPermitted, of_the_node(kind, name, place));
                }
                return Resolved {
                    target: Target::RoutingTable(name.clone()),
                    name: None,
                    http2: false,
                    fault: None,
                };
            }
            BackendKind::Backend => match self.backend(name) {
                None => return absent(),
                Some(None) => return unread(),
                Some(Some(upstreams)) => {
                    let sockets = upstreams.iter().any(|one| matches!(one, Upstream::Unix(_)));
                    let hosts = upstreams.iter().filter_map(|one| match one {
                        Upstream::Tcp { host, .. } => Some(host),
                        Upstream::Unix(_) => None,
                    });
                    let socket = (sockets && to.taking == Taking::Each).then_some("a Unix socket");
                    if let Some(place) = to.own_place(hosts).or(socket) {
                        return refuse(Reason::RefNotPermitted, of_the_node(kind, name, place));
                    }
                    if let Some(address) = self.trespass(BackendPart::Backend, name) {
                        return refuse(Reason::RefNotPermitted, into_a_cell(kind, name, address));
                    }
                    self.declared(name, upstreams, policies)
                }
            },
            BackendKind::Service(port) => match self.service(name) {
                None => return absent(),
                Some(None) => return unread(),
                Some(Some(service)) => {
                    let port = self.port(name, service, *port, transport, policies);
                    if port.is_ok()
                        && let Some(address) = self.trespass(BackendPart::Service, name)
                    {
                        let why = into_a_cell(kind, name, address);
                        let source = draft.source.clone();
                        to.sink
                            .warning(source, format_args!("{why}: it is left out"));
                    }
                    port
                }
            },
        };
        match resolved {
            Ok(resolved) => resolved,
            Err(Problem::Refused(fault)) => refuse(fault.reason, fault.message),
            // The policy's document says what is wrong.
            Err(Problem::Closed(why)) => Resolved {
                target: Target::Unresolved(why),
                name: None,
                http2: false,
                fault: None,
            },
        }
    }

    /// The first address of a backend that is inside of a cell of another namespace.
    fn trespass(&self, part: BackendPart, name: &ObjectName) -> Option<IpAddr> {
        if self.trespasses.is_empty() {
            return None;
        }
        let addresses = self.trespasses.get(&(part, name.clone()))?;
        addresses.first().copied()
    }

    /// The endpoints of a service's port.
    fn port(
        &self,
        name: &ObjectName,
        service: &ServiceDraft,
        port: Port,
        transport: Transport,
        policies: &TlsPolicies,
    ) -> Result<Resolved, Problem> {
        let refused = |reason, why: String| Err(Problem::Refused(Fault::new(reason, why)));
        if service.external {
            // Whoever may write a service could send requests anywhere by it (CVE-2021-25740).
            let why = format!("`Service` {name} is of type ExternalName, which no route leads to");
            return refused(Reason::InvalidKind, why);
        }
        let mut ports = service.ports.iter();
        let Some(found) = ports.find(|one| one.port == port && one.transport == Some(transport))
        else {
            let why = format!("`Service` {name} has no port {port} of {transport}");
            return refused(Reason::BackendNotFound, why);
        };
        let policy = policies.service(name, &found.name)?;
        let http2 = match speaks(found, policy.is_some()) {
            Ok(http2) => http2,
            Err(unknown) => {
                let why = format!(
                    "port {port} of `Service` {name} speaks `{unknown}`, which is not supported"
                );
                return refused(Reason::UnsupportedProtocol, why);
            }
        };
        let endpoints = self.endpoints(name, service, found, policy);
        if endpoints.is_empty()
            && let Some(address) = self.trespass(BackendPart::Service, name)
        {
            return refused(
                Reason::RefNotPermitted,
                into_a_cell("Service", name, address),
            );
        }
        let name = BackendName::Service(name.clone(), port);
        Ok(Resolved {
            target: self.list(&name, endpoints),
            name: Some(name),
            http2,
            fault: None,
        })
    }

    /// The endpoints of a `Backend`.
    fn declared(
        &self,
        name: &ObjectName,
        upstreams: &[Upstream],
        policies: &TlsPolicies,
    ) -> Result<Resolved, Problem> {
        let mut upstreams = upstreams.to_vec();
        for upstream in &mut upstreams {
            if let Upstream::Tcp { port, tls, .. } = upstream {
                *tls = policies.backend(name, *port)?.cloned();
            }
        }
        let name = BackendName::Backend(name.clone());
        Ok(Resolved {
            target: self.list(&name, upstreams),
            name: Some(name),
            http2: false,
            fault: None,
        })
    }

    /// Ready endpoints, or, if there are none, those that end and still answer. Of a service with two families those of
    /// its first one, as each pod has both. Addresses come into other hands before slices say so: one that is in a cell of another
    /// namespace is left out.
    fn endpoints(
        &self,
        name: &ObjectName,
        service: &ServiceDraft,
        port: &ServicePort,
        tls: Option<&Arc<UpstreamTls>>,
    ) -> Vec<Upstream> {
        let slices = self.slices.get(name);
        let key = (!self.trespasses.is_empty()).then(|| (BackendPart::Service, name.clone()));
        let inside: Option<&BTreeSet<IpAddr>> = key.and_then(|key| self.trespasses.get(&key));
        let mut ready = Vec::new();
        let mut ending = Vec::new();
        for slice in slices.into_iter().flatten() {
            let mut ports = slice.ports.iter();
            let own = |one: &&crate::document::endpoint_slice::SlicePort| {
                one.name == port.name && one.transport == port.transport
            };
            let Some(number) = ports.find(own).map(|one| one.port) else {
                continue;
            };
            for endpoint in &slice.endpoints {
                if inside.is_some_and(|inside| inside.contains(&endpoint.address)) {
                    continue;
                }
                let place = (endpoint.address, number);
                match endpoint.state {
                    State::Ready => ready.push(place),
                    State::Ending => ending.push(place),
                    State::No => {}
                }
            }
        }
        let mut places = if ready.is_empty() { ending } else { ready };
        if let Some(v6) = service.prefers_v6
            && places.iter().any(|(address, _)| address.is_ipv6() == v6)
        {
            places.retain(|(address, _)| address.is_ipv6() == v6);
        }
        places.sort_unstable();
        places.dedup();
        let upstreams = places.into_iter().map(|(address, port)| Upstream::Tcp {
            host: UpstreamHost::Address(address),
            port,
            tls: tls.cloned(),
        });
        upstreams.collect()
    }
}

/// What to say of a backend that is the router's own node, or something that only the node is to reach.
fn of_the_node(kind: &str, name: &ObjectName, place: &str) -> String {
    format!(
        "`{kind}` {name} has {place} among its endpoints, which in a cluster is the node's: no document of a namespace leads there"
    )
}

/// What to say of a backend that leads into a cell of another namespace.
fn into_a_cell(kind: &str, name: &ObjectName, address: IpAddr) -> String {
    format!(
        "`{kind}` {name} has `{address}` among its endpoints, which in a cluster is inside of a cell of another namespace: only documents of that one lead there"
    )
}

impl Context<'_> {
    /// What of a cluster's node is among these hosts. The router is on the node's network: whoever may write a document of a
    /// namespace must not get there through it. A folder is the node's own.
    fn own_place<'h>(&self, hosts: impl Iterator<Item = &'h UpstreamHost>) -> Option<&'static str> {
        let mut hosts = hosts.filter(|_| self.taking == Taking::Each);
        hosts.find_map(|host| match host {
            UpstreamHost::Address(address) => of_node(*address),
            UpstreamHost::Name(name) => {
                let name = name.to_string();
                let own = name == "localhost" || name.ends_with(".localhost");
                own.then_some("the name `localhost`")
            }
        })
    }
}

/// Why a target is closed.
pub(super) enum Problem {
    /// The reference leads to nothing that can be used.
    Refused(Fault),
    /// Something about it is, for this reason.
    Closed(String),
}

/// Whether a port wants HTTP/2 (Kubernetes, `appProtocol`; GEP-1911). What is no name of Kubernetes' is a hint for
/// somebody else.
fn speaks(port: &ServicePort, tls: bool) -> Result<bool, &str> {
    match port.speaks.as_deref() {
        Some("kubernetes.io/h2c" | "grpc") => Ok(true),
        Some("kubernetes.io/ws") => Ok(false),
        Some("kubernetes.io/wss") if tls => Ok(false),
        Some(other) if other.starts_with("kubernetes.io/") => Err(other),
        Some(_) | None => Ok(false),
    }
}

impl TlsPolicies {
    /// The policy of a backend's endpoints of a port: one of the port wins over one of the whole.
    fn backend(&self, name: &ObjectName, port: Port) -> Result<Option<&Arc<UpstreamTls>>, Problem> {
        self.first([
            TlsTarget::Backend(name.clone(), Some(port)),
            TlsTarget::Backend(name.clone(), None),
        ])
    }

    /// The policy of a service's port.
    fn service(&self, name: &ObjectName, port: &str) -> Result<Option<&Arc<UpstreamTls>>, Problem> {
        self.first([
            TlsTarget::Service(name.clone(), Some(port.to_owned())),
            TlsTarget::Service(name.clone(), None),
        ])
    }

    fn first(&self, targets: [TlsTarget; 2]) -> Result<Option<&Arc<UpstreamTls>>, Problem> {
        match targets.iter().find_map(|target| self.of(target)) {
            None => Ok(None),
            Some(Ok(tls)) => Ok(Some(tls)),
            Some(Err(why)) => Err(Problem::Closed(why.clone())),
        }
    }
}
