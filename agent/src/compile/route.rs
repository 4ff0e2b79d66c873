//! From a snapshot to a [`RouteTable`]. Pure: no clock, no I/O, no randomness.
//!
//! What the snapshot cannot know is found here and reported as a mistake with its field: keys that
//! do not sign, keys that do not verify, gateways that claim one address and port twice.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::Arc;

use http::HeaderName;
use rustls::crypto::aws_lc_rs::sign::any_supported_type;
use rustls::sign::CertifiedKey;
use rustls_pki_types::ServerName;
use sha2::{Digest, Sha256};
use snapshot::model::{
    Auth, Cell, ClientPolicy, ClientValidation, Component, Declared, EndpointId, EndpointKind,
    Filter, Gate, Gateway, HostPattern, Hostname, L7Kind, Listener as ListenerModel,
    ListenerProtocol, Name, ObjectName, Origin, ProviderKeys, RemoteKeys, Route, Rule,
    SouthDestination, SouthProtocol, Target, TlsMode, Tokens, TrafficPolicy, Upstream, UpstreamTls,
    WeightedTarget, effective_hosts,
};
use snapshot::{Mistake, Snapshot};

use super::{client, filter, traffic};
use crate::route::client::{ClientSettings, Handshakes};
use crate::route::credential::{KeyRing, Users};
use crate::route::filter::{Filters, Mirror};
use crate::route::gatekeeper::TokenCheck;
use crate::route::limiter::SharedRules;
use crate::route::stream::{StreamRoute, StreamTarget, Streams};
use crate::route::token::Provider;
use crate::route::trust::UpstreamTrust;
use crate::route::{
    Backend, Bind, Caller, ClientTrust, Gatekeeper, HostIndex, HostRules, Identity, Inside,
    Limiter, Listener, Managed, Placements, RouteRule, RouteTable, RouteTarget, RouteUpstream,
    ServerCertificate, SouthHosts, Steered, TargetKind, TlsPeer, Wire,
};

/// Compiles the router's table of a generation, or lists everything that cannot be compiled.
pub fn compile(snapshot: &Snapshot, generation: u64) -> Result<RouteTable, Vec<Mistake>> {
    let mut compiler = Compiler::new(snapshot);
    let rules = compiler.rules();
    let streams = compiler.streams();
    let table = RouteTable {
        generation,
        binds: compiler.binds(&rules, &streams),
        datagrams: compiler.datagrams(&rules, &streams),
        has_clients: !compiler.policies.is_empty(),
        callers: callers(snapshot),
        steered: compiler.steered(&rules),
        dns: snapshot.platform.dns.clone(),
        inside: inside(snapshot),
        remote_keys: compiler.remote_keys,
        placements: compiler.placements,
        backends: compiler.backends,
        managed: compiler.managed,
        limiters: compiler.limiters,
    };
    if compiler.mistakes.is_empty() {
        return Ok(table);
    }
    compiler.mistakes.sort();
    compiler.mistakes.dedup();
    Err(compiler.mistakes)
}

struct Compiler<'a> {
    snapshot: &'a Snapshot,
    mistakes: Vec<Mistake>,
    providers: HashMap<Name, Arc<Provider>>,
    gatekeepers: HashMap<*const Auth, Arc<Gatekeeper>>,
    remote_keys: HashSet<Arc<RemoteKeys>>,
    placements: BTreeMap<ObjectName, Arc<Placements>>,
    backends: BTreeMap<Arc<str>, Arc<Backend>>,
    managed: BTreeMap<(Arc<str>, ObjectName), Arc<Managed>>,
    limiters: BTreeMap<(ObjectName, L7Kind, Arc<str>), Arc<Limiter>>,
    shared_rules: BTreeMap<ObjectName, SharedRules>,
    certificates: BTreeMap<ObjectName, Arc<ServerCertificate>>,
    peers: HashMap<*const UpstreamTls, TlsPeer>,
    targets: u32,
    policies: HashMap<*const ClientPolicy, Arc<ClientSettings>>,
}

impl<'a> Compiler<'a> {
    fn new(snapshot: &'a Snapshot) -> Self {
        let mut compiler = Self {
            snapshot,
            mistakes: Vec::new(),
            providers: HashMap::new(),
            gatekeepers: HashMap::new(),
            remote_keys: HashSet::new(),
            placements: BTreeMap::new(),
            backends: BTreeMap::new(),
            managed: BTreeMap::new(),
            limiters: BTreeMap::new(),
            shared_rules: BTreeMap::new(),
            certificates: BTreeMap::new(),
            peers: HashMap::new(),
            targets: 0,
            policies: HashMap::new(),
        };
        for table in snapshot.routing_tables.values() {
            match Placements::new(table) {
                Ok(placements) => {
                    compiler
                        .placements
                        .insert(table.name.clone(), Arc::new(placements));
                }
                Err(error) => compiler.mistake(&table.declared, error),
            }
        }
        compiler.certificates();
        compiler
    }

    fn mistake(&mut self, source: &Declared, message: impl std::fmt::Display) {
        self.mistakes.push(Mistake {
            source: source.clone(),
            message: message.to_string(),
        });
    }

    fn certificates(&mut self) {
        for certificate in self.snapshot.certificates.values() {
            let key = match any_supported_type(&certificate.key) {
                Ok(key) => CertifiedKey::new(certificate.chain.clone(), key),
                Err(error) => {
                    self.mistake(
                        &certificate.declared,
                        format!("private key cannot sign: {error}"),
                    );
                    continue;
                }
            };
            match key.keys_match() {
                Ok(())
                | Err(rustls::Error::InconsistentKeys(rustls::InconsistentKeys::Unknown)) => {}
                Err(_) => self.mistake(
                    &certificate.declared,
                    "private key does not belong to the certificate",
                ),
            }
            self.certificates.insert(
                certificate.name.clone(),
                Arc::new(ServerCertificate {
                    name: certificate.name.to_string().into(),
                    not_after: certificate.not_after,
                    key: Arc::new(key),
                }),
            );
        }
    }

    /// All rules by route, compiled once however many listeners they are attached to.
    fn rules(&mut self) -> Vec<Vec<Arc<RouteRule>>> {
        let snapshot = self.snapshot;
        snapshot
            .routes
            .iter()
            .map(|route| {
                let name: Arc<str> = route.name.to_string().into();
                route
                    .rules
                    .iter()
                    .enumerate()
                    .map(|(index, rule)| Arc::new(self.rule(route, &name, index, rule)))
                    .collect()
            })
            .collect()
    }

    fn rule(&mut self, route: &Route, name: &Arc<str>, index: usize, rule: &Rule) -> RouteRule {
        let auth = rule.auth.as_ref().map(|auth| self.gatekeeper(auth));
        let filters = self.filters(&rule.declared, &rule.filters);
        let targets: Vec<_> = rule
            .targets
            .iter()
            .map(|target| {
                let target = self.route_target(&rule.declared, target);
                match &rule.traffic {
                    Some(policy) => self.treated(target, policy),
                    None => target,
                }
            })
            .collect();
        for target in &targets {
            if let (TargetKind::Placements(table), None) = (&target.kind, &auth)
                && table.key().needs_token()
            {
                let message = format!(
                    "routing table `{}` takes its key from a token, and no SecurityPolicy of this rule asks for one",
                    table.name
                );
                self.mistake(&rule.declared, message);
            }
        }
        RouteRule {
            kind: route.kind,
            route: Arc::clone(name),
            index,
            origin: route.origin.clone(),
            cell: match &route.origin {
                Origin::Endpoint { endpoint, .. } => {
                    Some(endpoint.component.cell.to_string().into())
                }
                Origin::Document => None,
            },
            auth,
            limiter: rule
                .traffic
                .as_ref()
                .and_then(|policy| self.limiter(policy, (route.kind, name))),
            filters,
            timeouts: traffic::timeouts(rule),
            retry: traffic::retry(rule),
            session: rule.session.clone(),
            weight: targets.iter().map(|target| u64::from(target.weight)).sum(),
            targets,
        }
    }

    /// Rules of one policy share its gatekeeper.
    fn gatekeeper(&mut self, auth: &Arc<Auth>) -> Arc<Gatekeeper> {
        // The snapshot holds every `Auth` as long as this compiler lives, so an address is one policy's.
        let policy = Arc::as_ptr(auth);
        if let Some(known) = self.gatekeepers.get(&policy) {
            return Arc::clone(known);
        }
        let keys = auth.api_keys.as_ref().and_then(|keys| {
            let ring = KeyRing::new(keys);
            if ring.is_none() {
                self.mistake(
                    &auth.declared,
                    "a client's name or its header is no header text",
                );
            }
            ring
        });
        let users = auth.users.as_ref().and_then(|users| {
            let users = Users::new(users);
            if users.is_none() {
                self.mistake(&auth.declared, "the users' header is no header");
            }
            users
        });
        let tokens = auth.tokens.as_ref().map(|tokens| self.tokens(tokens));
        let gatekeeper = Arc::new(Gatekeeper::new(auth, keys, users, tokens));
        self.gatekeepers.insert(policy, Arc::clone(&gatekeeper));
        gatekeeper
    }

    fn tokens(&mut self, tokens: &Tokens) -> TokenCheck {
        let mut providers = Vec::with_capacity(tokens.providers.len());
        let mut claim_headers = Vec::new();
        let mut asked = Sha256::new();
        for model in &tokens.providers {
            // Texts in this form are quoted, so no two providers give the same one.
            asked.update(format!(
                "{:?}",
                (
                    &model.name,
                    &model.issuer,
                    &model.audiences,
                    &model.algorithms,
                    &model.keys,
                    &model.places
                )
            ));
            if let ProviderKeys::Remote(remote) = &model.keys {
                self.remote_keys.insert(Arc::clone(remote));
            }
            for one in &model.claim_headers {
                match HeaderName::from_bytes(one.header.as_bytes()) {
                    Ok(header) => {
                        claim_headers.push((model.name.clone(), header, one.claim.clone()));
                    }
                    Err(error) => self.mistake(&model.declared, error),
                }
            }
            // Names of providers are unique in a snapshot only for those of the platform.
            let shared = self.snapshot.platform.jwt_providers.get(&model.name);
            let cached = shared.is_some_and(|shared| Arc::ptr_eq(shared, model));
            if cached && let Some(provider) = self.providers.get(&model.name) {
                providers.push(Arc::clone(provider));
                continue;
            }
            match Provider::new(model) {
                Ok(provider) => {
                    let provider = Arc::new(provider);
                    if cached {
                        self.providers
                            .insert(model.name.clone(), Arc::clone(&provider));
                    }
                    providers.push(provider);
                }
                Err(error) => {
                    self.mistake(&model.declared, format!("{:#}", anyhow::Error::new(error)));
                }
            }
        }
        TokenCheck {
            fingerprint: asked.finalize().into(),
            providers,
            leniency: tokens.leniency,
            claim_headers,
            recompute: tokens.providers.iter().any(|one| one.recompute_route),
        }
    }

    fn filters(&mut self, source: &Declared, list: &[Filter]) -> Filters {
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
        filters
    }

    fn route_target(&mut self, source: &Declared, target: &WeightedTarget) -> RouteTarget {
        self.targets += 1;
        RouteTarget {
            id: self.targets,
            weight: target.weight,
            backend: backend(target),
            kind: self.target(&target.target),
            filters: self.filters(source, &target.filters),
            terms: None,
            managed: None,
        }
    }

    /// The rate limit of a policy for a route. All rules of the route that have the policy share it.
    fn limiter(
        &mut self,
        policy: &TrafficPolicy,
        (kind, route): (L7Kind, &Arc<str>),
    ) -> Option<Arc<Limiter>> {
        let limit = policy.rate_limit.as_ref()?;
        let key = (policy.name.clone(), kind, Arc::clone(route));
        let shared = self.shared_rules.entry(policy.name.clone()).or_default();
        let made = self.limiters.entry(key);
        let limiter = made.or_insert_with(|| Arc::new(Limiter::new(limit, shared)));
        Some(Arc::clone(limiter))
    }

    /// A target as a policy treats it. Rules of one policy and backend share what is compiled of both.
    fn treated(&mut self, target: RouteTarget, policy: &Arc<TrafficPolicy>) -> RouteTarget {
        let places = traffic::places(&target.kind);
        let managed = places.map(|places| {
            let name = &target.backend;
            let key = (Arc::clone(name), policy.name.clone());
            let backend = self
                .backends
                .entry(Arc::clone(name))
                .or_insert_with(|| Arc::new(Backend::new(Arc::clone(name), places)));
            let managed = self
                .managed
                .entry(key)
                .or_insert_with(|| Arc::new(Managed::new(Arc::clone(policy), Arc::clone(backend))));
            Arc::clone(managed)
        });
        RouteTarget {
            terms: traffic::terms(policy),
            managed,
            ..target
        }
    }

    fn target(&mut self, target: &Target) -> TargetKind {
        match target {
            Target::Upstreams(list) => TargetKind::Upstreams(self.upstreams(list)),
            Target::RoutingTable(name) => match self.placements.get(name) {
                Some(placements) => TargetKind::Placements(Arc::clone(placements)),
                None => TargetKind::Unresolved(format!("no routing table `{name}`").into()),
            },
            Target::Unresolved(reason) => TargetKind::Unresolved(reason.as_str().into()),
            Target::Endpoint(id) => match find_endpoint(self.snapshot, id) {
                Some((component, port, kind)) => TargetKind::Endpoint {
                    endpoint: id.clone(),
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
    fn streams(&mut self) -> Vec<Arc<StreamRoute>> {
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

    fn binds(
        &mut self,
        rules: &[Vec<Arc<RouteRule>>],
        streams: &[Arc<StreamRoute>],
    ) -> HashMap<SocketAddr, Bind> {
        let snapshot = self.snapshot;
        let mut binds: HashMap<SocketAddr, Bind> = HashMap::new();
        for gateway in snapshot.gateways.values() {
            for listener in &gateway.listeners {
                let (wire, passthrough) = match &listener.protocol {
                    ListenerProtocol::Http => (Wire::Http, false),
                    ListenerProtocol::Https { .. } => (Wire::Tls, false),
                    ListenerProtocol::Tls(mode) => (Wire::Tls, *mode == TlsMode::Passthrough),
                    ListenerProtocol::Tcp => (Wire::Any, false),
                    ListenerProtocol::Udp => continue,
                };
                let compiled = Arc::new(self.listener(gateway, listener, rules, streams));
                for address in &gateway.addresses {
                    let address = SocketAddr::new(*address, listener.port.get());
                    let bind = binds
                        .entry(address)
                        .or_insert_with(|| Bind::new(wire, compiled.policy.clone()));
                    bind.passthrough |= passthrough;
                    if bind.wire != wire {
                        self.mistake(
                            &listener.declared,
                            format!(
                                "{address} is for listeners of another protocol already; a port is for HTTP, or for HTTPS and TLS, or for TCP"
                            ),
                        );
                    }
                    let other = bind
                        .listeners
                        .insert(listener.hostname.as_ref(), Arc::clone(&compiled));
                    if let Some(other) = other {
                        self.mistake(
                            &listener.declared,
                            format!(
                                "{address} with this hostname is already listener `{}`",
                                other.name
                            ),
                        );
                    }
                }
            }
        }
        binds
    }

    fn datagrams(
        &mut self,
        rules: &[Vec<Arc<RouteRule>>],
        streams: &[Arc<StreamRoute>],
    ) -> HashMap<SocketAddr, Arc<Listener>> {
        let mut datagrams = HashMap::new();
        for gateway in self.snapshot.gateways.values() {
            for listener in &gateway.listeners {
                if listener.protocol != ListenerProtocol::Udp {
                    continue;
                }
                let compiled = Arc::new(self.listener(gateway, listener, rules, streams));
                for address in &gateway.addresses {
                    let address = SocketAddr::new(*address, listener.port.get());
                    if let Some(other) = datagrams.insert(address, Arc::clone(&compiled)) {
                        self.mistake(
                            &listener.declared,
                            format!("{address} is already listener `{}`", other.name),
                        );
                    }
                }
            }
        }
        datagrams
    }

    /// Listeners of one policy share what is made of it.
    fn policy(&mut self, policy: &Arc<ClientPolicy>) -> Option<Arc<ClientSettings>> {
        // As for gatekeepers, an address is one policy's.
        let address = Arc::as_ptr(policy);
        if let Some(known) = self.policies.get(&address) {
            return Some(Arc::clone(known));
        }
        match client::settings(policy) {
            Ok(settings) => {
                let settings = Arc::new(settings);
                self.policies.insert(address, Arc::clone(&settings));
                Some(settings)
            }
            Err(why) => {
                self.mistake(&policy.declared, why);
                None
            }
        }
    }

    /// What a listener does that is not HTTP.
    fn passed(
        &self,
        gateway: &Gateway,
        listener: &ListenerModel,
        compiled: &[Arc<StreamRoute>],
    ) -> Option<Streams> {
        let passthrough = match &listener.protocol {
            ListenerProtocol::Http | ListenerProtocol::Https { .. } => return None,
            ListenerProtocol::Tls(mode) => *mode == TlsMode::Passthrough,
            ListenerProtocol::Tcp | ListenerProtocol::Udp => false,
        };
        let mut streams = Streams {
            passthrough,
            ..Streams::default()
        };
        for (route, compiled) in self.snapshot.l4_routes.iter().zip(compiled) {
            let parents = route.parents.iter();
            for parent in
                parents.filter(|one| one.gateway == gateway.name && one.listener == listener.name)
            {
                for host in &parent.hosts {
                    streams.routes.insert(host.as_ref(), Arc::clone(compiled));
                }
            }
        }
        Some(streams)
    }

    fn listener(
        &mut self,
        gateway: &Gateway,
        listener: &ListenerModel,
        rules: &[Vec<Arc<RouteRule>>],
        streams: &[Arc<StreamRoute>],
    ) -> Listener {
        let mut certificates = HostIndex::default();
        let mut default_certificate = None;
        for name in listener.protocol.certificates() {
            let Some(ready) = self.certificates.get(name) else {
                continue;
            };
            default_certificate.get_or_insert_with(|| Arc::clone(ready));
            let model = &self.snapshot.certificates[name];
            for pattern in model.names.iter().filter_map(|name| host_pattern(name)) {
                // The first certificate that carries a name serves it.
                if certificates.exact_or_wildcard(&pattern).is_none() {
                    certificates.insert(Some(&pattern), Arc::clone(ready));
                }
            }
        }
        let clients = match &listener.clients {
            Some(clients) => self.clients(clients, listener.policy.as_ref()),
            None => None,
        };
        let mut hosts: HostIndex<HostRules> = HostIndex::default();
        let mut token_headers: HashSet<HeaderName> = HashSet::new();
        for (at, route) in self.snapshot.routes.iter().enumerate() {
            let attached = route.parents.iter().any(|parent| {
                parent.gateway == gateway.name
                    && parent
                        .listener
                        .as_ref()
                        .is_none_or(|name| *name == listener.name)
                    && parent.port.is_none_or(|port| port == listener.port)
            });
            if attached {
                if clients.is_none() {
                    self.no_certificates(route, &rules[at], listener);
                }
                for host in effective_hosts(listener.hostname.as_ref(), &route.hostnames) {
                    let entry = hosts.entry(host.as_ref());
                    self.add(entry, route, &rules[at], at);
                }
                token_headers.extend(
                    rules[at]
                        .iter()
                        .flat_map(|rule| rule.token_headers())
                        .cloned(),
                );
            }
        }
        Listener {
            name: format!("{}/{}", gateway.name, listener.name).into(),
            gate: gateway.gate,
            hosts,
            token_headers: sorted(token_headers),
            certificates,
            default_certificate,
            clients,
            identity: self.identity(gateway),
            streams: self.passed(gateway, listener, streams),
            policy: listener
                .policy
                .as_ref()
                .and_then(|policy| self.policy(policy)),
        }
    }

    /// What a listener's clients are asked for; ports that are told the same have it made once each.
    fn clients(
        &mut self,
        clients: &ClientValidation,
        policy: Option<&Arc<ClientPolicy>>,
    ) -> Option<Arc<ClientTrust>> {
        let tls = policy.map_or_else(Default::default, |policy| policy.tls.clone());
        match ClientTrust::new(clients, &Handshakes::new(&tls)) {
            Ok(trust) => Some(Arc::new(trust)),
            Err(error) => {
                self.mistake(&clients.declared, format!("{error:#}"));
                None
            }
        }
    }

    fn identity(&self, gateway: &Gateway) -> Option<Arc<Identity>> {
        let certificate = self.certificates.get(gateway.identity.as_ref()?)?;
        Some(Arc::new(Identity::new(&certificate.key)))
    }

    /// A key that comes from a client's certificate is there only if the client is asked for one.
    fn no_certificates(
        &mut self,
        route: &Route,
        rules: &[Arc<RouteRule>],
        listener: &ListenerModel,
    ) {
        for (rule, compiled) in route.rules.iter().zip(rules) {
            for target in &compiled.targets {
                if let TargetKind::Placements(table) = &target.kind
                    && table.key().needs_certificate()
                {
                    let message = format!(
                        "routing table `{}` takes its key from the client's certificate, and listener `{}` asks for none (`spec.tls.frontend` of its gateway)",
                        table.name, listener.name
                    );
                    self.mistake(&rule.declared, message);
                }
            }
        }
    }

    /// Adds a route's matches. Order: routes as the snapshot lists them, then rules as written.
    fn add(&mut self, into: &mut HostRules, route: &Route, rules: &[Arc<RouteRule>], at: usize) {
        for (rule, compiled) in route.rules.iter().zip(rules) {
            let order = (at << 16) | compiled.index;
            for one in &rule.matches {
                if let Err(error) = into.add(one, compiled, order) {
                    self.mistake(&rule.declared, error);
                }
            }
        }
    }

    /// What is behind each address and port of a component, with the rules that the west gate has
    /// for it.
    fn steered(&mut self, rules: &[Vec<Arc<RouteRule>>]) -> HashMap<SocketAddr, Steered> {
        let snapshot = self.snapshot;
        let mut internal: HashMap<&EndpointId, Vec<usize>> = HashMap::new();
        for (at, route) in snapshot.routes.iter().enumerate() {
            if let Origin::Endpoint {
                endpoint,
                gate: Gate::Internal,
            } = &route.origin
            {
                internal.entry(endpoint).or_default().push(at);
            }
        }
        let mut steered = HashMap::new();
        let components = snapshot
            .cells
            .values()
            .flat_map(|cell| cell.components.values());
        for component in components {
            let id = &component.id;
            let prefix: Arc<str> = format!("/{}/{}", id.cell.project, id.component).into();
            let mut ports: BTreeMap<u16, Vec<EndpointId>> = BTreeMap::new();
            for endpoint in component
                .endpoints
                .values()
                .filter(|one| one.kind.is_http())
            {
                ports
                    .entry(endpoint.port.get())
                    .or_default()
                    .push(endpoint.id.clone());
            }
            for (port, endpoints) in ports {
                let mut together = HostRules::default();
                for at in endpoints
                    .iter()
                    .filter_map(|one| internal.get(one))
                    .flatten()
                {
                    self.add(&mut together, &snapshot.routes[*at], &rules[*at], *at);
                }
                let (endpoints, together): (Arc<[_]>, _) = (endpoints.into(), Arc::new(together));
                let workloads = component.workloads.addresses().iter();
                let services = component.service_addresses.iter();
                for (address, service) in workloads
                    .map(|one| (one, false))
                    .chain(services.map(|one| (one, true)))
                {
                    steered.insert(
                        SocketAddr::new(*address, port),
                        Steered {
                            endpoints: Arc::clone(&endpoints),
                            rules: Arc::clone(&together),
                            prefix: Arc::clone(&prefix),
                            service,
                        },
                    );
                }
            }
        }
        steered
    }
}

/// A target's name: what it is called, or the addresses of a list.
fn backend(target: &WeightedTarget) -> Arc<str> {
    if let Some(name) = &target.backend {
        return format!("backend {name}").into();
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

/// In an order that is always the same.
fn sorted(names: HashSet<HeaderName>) -> Vec<HeaderName> {
    let mut names: Vec<_> = names.into_iter().collect();
    names.sort_by(|a, b| a.as_str().cmp(b.as_str()));
    names
}

/// A name of a certificate as a pattern; addresses are none, as SNI never names one.
fn host_pattern(name: &str) -> Option<HostPattern> {
    match name.strip_prefix("*.") {
        Some(suffix) => Hostname::new(suffix).ok().map(HostPattern::Wildcard),
        None => Hostname::new(name).ok().map(HostPattern::Exact),
    }
}

/// What no declared name may lead to. The kernel draws the same line for networks of south calls.
fn inside(snapshot: &Snapshot) -> Inside {
    let platform = &snapshot.platform;
    let components = snapshot
        .cells
        .values()
        .flat_map(|cell| cell.components.values())
        .flat_map(|one| {
            one.workloads
                .addresses()
                .iter()
                .chain(&one.service_addresses)
        });
    let gates = [&platform.external, &platform.internal];
    let gates = gates.into_iter().flatten();
    let hosts = components
        .chain(snapshot.gateways.values().flat_map(|one| &one.addresses))
        .chain(gates.flat_map(|gate| &gate.remote_addresses))
        .chain(platform.nodes.iter().flat_map(|node| &node.addresses))
        .chain(&platform.dns)
        .chain(&platform.dns_service_addresses);
    let services = platform.services.iter();
    Inside {
        hosts: hosts.copied().collect(),
        networks: services
            .flat_map(|one| one.addresses.iter().copied())
            .collect(),
    }
}

fn callers(snapshot: &Snapshot) -> HashMap<std::net::IpAddr, Arc<Caller>> {
    let mut callers = HashMap::new();
    for cell in snapshot.cells.values() {
        for component in cell.components.values() {
            let caller = Arc::new(caller(cell, component));
            for address in component.workloads.addresses() {
                callers.insert(*address, Arc::clone(&caller));
            }
        }
    }
    callers
}

fn caller(cell: &Cell, component: &Component) -> Caller {
    let name = &component.id.component;
    let from = |names: &[Name]| names.is_empty() || names.contains(name);
    let mut south: HashMap<u16, SouthHosts> = HashMap::new();
    for declared in cell.south.iter().filter(|south| from(&south.from)) {
        if let SouthDestination::Hosts { hosts, protocol } = &declared.destination {
            let entry = south.entry(declared.port.get()).or_default();
            let names = match protocol {
                SouthProtocol::Tls => &mut entry.tls,
                SouthProtocol::Http => &mut entry.http,
            };
            names.extend(
                hosts
                    .iter()
                    .map(|host| (host.as_str().into(), host.clone())),
            );
        }
    }
    let calls: HashSet<EndpointId> = cell
        .east
        .iter()
        .filter(|east| from(&east.from))
        .map(|east| &east.to)
        .chain(
            component
                .connections
                .iter()
                .map(|connection| &connection.to),
        )
        .cloned()
        .collect();
    Caller {
        name: component.id.to_string().into(),
        cell: component.id.cell.to_string().into(),
        id: component.id.clone(),
        calls,
        intra: cell.intra,
        south,
    }
}
