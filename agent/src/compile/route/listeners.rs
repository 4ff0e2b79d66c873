//! What listens: gateways' addresses and ports, each with its listeners and their routes.

use std::collections::{BTreeSet, HashSet};
use std::net::SocketAddr;
use std::sync::Arc;

use http::{HeaderName, HeaderValue};
use snapshot::model::{
    ClientPolicy, ClientValidation, Gateway, HostPattern, Hostname, Listener as ListenerModel,
    ListenerProtocol, Route, TlsMode, Transport, effective_hosts,
};

use super::Compiler;
use crate::compile::client;
use crate::route::client::{ClientSettings, Handshakes};
use crate::route::stream::{StreamRoute, Streams};
use crate::route::{
    Attached, Bind, ClientTrust, HashMap, HostIndex, HostRules, Identity, Listener, RouteRule,
    RouteRules, TargetKind, Wire,
};

/// When more routes than these differ, all hosts are looked at.
const FEW: usize = 64;

impl<'a> Compiler<'a> {
    pub(super) fn binds(
        &mut self,
        rules: &[RouteRules],
        streams: &[Arc<StreamRoute>],
    ) -> HashMap<SocketAddr, Bind> {
        let snapshot = self.snapshot;
        let mut binds: HashMap<SocketAddr, Bind> = HashMap::default();
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
                for address in gateway.sockets(listener, self.node) {
                    let bind = binds
                        .entry(address)
                        .or_insert_with(|| Bind::new(wire, compiled.policy.clone()));
                    bind.passthrough |= passthrough;
                    bind.asks |= compiled.clients.is_some();
                    bind.terminates |= wire == Wire::Tls && !passthrough;
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
            self.unserved(gateway, &mut binds);
        }
        binds
    }

    /// Keeps hosts of listeners that do not work from broader ones of their gateway and port. Where none of these listens, the port
    /// may be another gateway's.
    fn unserved(&self, gateway: &Gateway, binds: &mut HashMap<SocketAddr, Bind>) {
        let listens = |port| {
            let mut listeners = gateway.listeners.iter();
            listeners.any(|one| one.port == port && one.protocol.transport() == Transport::Tcp)
        };
        for one in gateway.unserved.iter().filter(|one| listens(one.port)) {
            let wire = match one.tls {
                true => Wire::Tls,
                false => Wire::Http,
            };
            let name: Arc<str> = format!("{}/{}", gateway.name, one.name).into();
            let closed = Arc::new(Listener::closed(name, gateway.gate));
            for address in gateway.sockets_at(one.port, Transport::Tcp, self.node) {
                let host = Some(&one.hostname);
                if let Some(bind) = binds.get_mut(&address).filter(|bind| bind.wire == wire)
                    && bind.listeners.of(host).is_none()
                {
                    bind.listeners.insert(host, Arc::clone(&closed));
                }
            }
        }
    }

    pub(super) fn datagrams(
        &mut self,
        rules: &[RouteRules],
        streams: &[Arc<StreamRoute>],
    ) -> HashMap<SocketAddr, Arc<Listener>> {
        let mut datagrams = HashMap::default();
        for gateway in self.snapshot.gateways.values() {
            for listener in &gateway.listeners {
                if listener.protocol != ListenerProtocol::Udp {
                    continue;
                }
                let compiled = Arc::new(self.listener(gateway, listener, rules, streams));
                for address in gateway.sockets(listener, self.node) {
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

    /// Where datagrams are QUIC. Ports of nodes behind a load balancer may differ between the two transports.
    pub(super) fn quic(&mut self) -> HashMap<SocketAddr, SocketAddr> {
        let mut quic = HashMap::default();
        let mut datagrams = HashMap::default();
        for gateway in self.snapshot.gateways.values() {
            for listener in &gateway.listeners {
                let udp = gateway.sockets_of(listener, Transport::Udp, self.node);
                if listener.protocol == ListenerProtocol::Udp {
                    datagrams.extend(udp.into_iter().map(|at| (at, listener)));
                } else if listener.http3().is_some() {
                    // Own addresses come first, and are as many.
                    quic.extend(udp.into_iter().zip(gateway.sockets(listener, self.node)));
                }
            }
        }
        let mut both: Vec<_> = quic
            .keys()
            .filter(|at| datagrams.contains_key(at))
            .collect();
        both.sort();
        for at in both {
            let listener: &ListenerModel = datagrams[at];
            self.mistake(
                &listener.declared,
                format!("datagrams to {at} are HTTP/3 of another listener already"),
            );
        }
        quic
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
        rules: &[RouteRules],
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
        let name: Arc<str> = format!("{}/{}", gateway.name, listener.name).into();
        let before = self.listener_before(gateway, listener, &name);
        let before = before.map(|before| &**before);
        let attached = self.attached(gateway, listener);
        let (hosts, token_headers) =
            self.hosts(listener, before, &attached, rules, clients.is_none());
        let policy = listener
            .policy
            .as_ref()
            .and_then(|policy| self.policy(policy));
        let uses_default = policy.as_ref().is_some_and(|one| one.policy.default_host);
        let default_host = uses_default
            .then(|| default_host(listener.hostname.as_ref(), &hosts))
            .flatten();
        Listener {
            name,
            gate: gateway.gate,
            hosts,
            attached: attached
                .into_iter()
                .map(|at| Attached {
                    route: self.snapshot.routes[at].clone(),
                    rules: Arc::clone(&rules[at]),
                })
                .collect(),
            token_headers,
            certificates,
            default_certificate,
            clients,
            identity: self.identity(gateway),
            streams: self.passed(gateway, listener, streams),
            policy,
            default_host,
            alt_svc: listener.http3().map(|http3| {
                let port = http3.advertised_port.unwrap_or(listener.port);
                alt_svc(port.get())
            }),
        }
    }

    /// The routes that are attached to a listener, by their places in the snapshot.
    fn attached(&self, gateway: &Gateway, listener: &ListenerModel) -> Vec<usize> {
        let attached = |route: &Route| {
            route.parents.iter().any(|parent| {
                parent.gateway == gateway.name
                    && parent
                        .listener
                        .as_ref()
                        .is_none_or(|name| *name == listener.name)
                    && parent.port.is_none_or(|port| port == listener.port)
            })
        };
        let routes = self.snapshot.routes.iter().enumerate();
        let attached = routes.filter(|(_, route)| attached(route));
        attached.map(|(at, _)| at).collect()
    }

    /// The rules of each host of a listener, and the headers that tokens set in them. Hosts whose routes are as before keep
    /// what was made of them.
    fn hosts(
        &mut self,
        listener: &ListenerModel,
        before: Option<&Listener>,
        attached: &[usize],
        rules: &[RouteRules],
        anonymous: bool,
    ) -> (HostIndex<Arc<HostRules>>, Vec<HeaderName>) {
        let same = before.filter(|before| !anonymous || before.clients.is_none());
        let patched =
            same.and_then(|before| self.patched(listener, before, attached, rules, anonymous));
        if let Some(hosts) = patched {
            return (hosts, Vec::new());
        }
        let snapshot = self.snapshot;
        let mut routes: HashMap<Option<HostPattern>, Vec<usize>> = HashMap::default();
        let mut token_headers: HashSet<HeaderName> = HashSet::new();
        for at in attached.iter().copied() {
            let route = &snapshot.routes[at];
            if anonymous {
                self.no_certificates(route, &rules[at], listener);
            }
            for host in effective_hosts(listener.hostname.as_ref(), &route.hostnames) {
                routes.entry(host).or_default().push(at);
            }
            token_headers.extend(token_headers_of(&rules[at]).cloned());
        }
        let mut hosts: HostIndex<Arc<HostRules>> = HostIndex::default();
        hosts.exact.reserve(routes.len());
        for (host, routes) in routes {
            let known = before.and_then(|before| before.hosts.of(host.as_ref()));
            let known = known.filter(|known| known.are(routes.iter().map(|at| &rules[*at])));
            let made = match known {
                Some(known) => Arc::clone(known),
                None => {
                    let mut made = HostRules::default();
                    for at in routes {
                        self.add(&mut made, &snapshot.routes[at], &rules[at], at);
                    }
                    made.complete();
                    Arc::new(made)
                }
            };
            hosts.insert(host.as_ref(), made);
        }
        (hosts, sorted(token_headers))
    }

    /// The rules of each host where all that differs is that a few routes are in the place of others with the same hosts; none if it
    /// is not. Nothing of what these routes are checked for may have come with anything else.
    fn patched(
        &mut self,
        listener: &ListenerModel,
        before: &Listener,
        attached: &[usize],
        rules: &[RouteRules],
        anonymous: bool,
    ) -> Option<HostIndex<Arc<HostRules>>> {
        if before.attached.len() != attached.len() || !before.token_headers.is_empty() {
            return None;
        }
        let snapshot = self.snapshot;
        let differs = |(at, old): &(&usize, &Attached)| !Arc::ptr_eq(&rules[**at], &old.rules);
        let pairs = attached.iter().zip(&before.attached);
        let changed: Vec<_> = pairs.filter(differs).take(FEW + 1).collect();
        if changed.len() > FEW {
            return None;
        }
        let mut hosts: BTreeSet<Option<HostPattern>> = BTreeSet::new();
        for (at, old) in changed {
            let route = &snapshot.routes[*at];
            let effective =
                |route: &Route| effective_hosts(listener.hostname.as_ref(), &route.hostnames);
            let own = effective(route);
            if own != effective(&old.route) || token_headers_of(&rules[*at]).next().is_some() {
                return None;
            }
            if anonymous {
                self.no_certificates(route, &rules[*at], listener);
            }
            hosts.extend(own);
        }
        let mut index = before.hosts.clone();
        for host in hosts {
            let mut made = HostRules::default();
            for route in before.hosts.of(host.as_ref())?.routes() {
                let mut places = before.attached.iter();
                let at = attached[places.position(|one| Arc::ptr_eq(&one.rules, route))?];
                self.add(&mut made, &snapshot.routes[at], &rules[at], at);
            }
            index.insert(host.as_ref(), Arc::new(made));
        }
        Some(index)
    }

    /// What was made of a listener in the table before.
    fn listener_before(
        &self,
        gateway: &Gateway,
        listener: &ListenerModel,
        name: &Arc<str>,
    ) -> Option<&'a Arc<Listener>> {
        let sockets = gateway.sockets(listener, self.node);
        let bind = self.before.binds.get(sockets.first()?)?;
        let known = bind.listeners.of(listener.hostname.as_ref())?;
        (known.name == *name).then_some(known)
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

    pub(super) fn identity(&self, gateway: &Gateway) -> Option<Arc<Identity>> {
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
                        "routing table `{}` takes its key from the client's certificate, and listener `{}` asks for none (`spec.tls.frontend` of its gateway, or `spec.tls.clientValidation` of a `ClientTrafficPolicy`)",
                        table.name, listener.name
                    );
                    self.mistake(&rule.declared, message);
                }
            }
        }
    }
}

/// HTTP/3 at a port of the same host, for a day.
fn alt_svc(port: u16) -> HeaderValue {
    HeaderValue::from_str(&format!("h3=\":{port}\"; ma=86400"))
        .expect("a number and these words are characters of a header's value")
}

/// Headers that tokens set in rules.
fn token_headers_of(rules: &RouteRules) -> impl Iterator<Item = &HeaderName> {
    rules.iter().flat_map(|rule| rule.token_headers())
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

/// A listener's own host, or the only one of its routes (Envoy Gateway, `useDefaultHost`); no wildcard is one.
fn default_host<T>(own: Option<&HostPattern>, routes: &HostIndex<T>) -> Option<HeaderValue> {
    let name = match own {
        Some(HostPattern::Exact(name)) => name.as_str(),
        Some(HostPattern::Wildcard(_)) | None => {
            let mut names = routes.exact.keys();
            names.next().filter(|_| names.next().is_none())?
        }
    };
    // Names of hosts are ASCII.
    HeaderValue::from_str(name).ok()
}
