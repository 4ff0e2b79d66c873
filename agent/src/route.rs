//! What the router knows, compiled: one immutable [`RouteTable`] per generation.
//!
//! Flows in: what `compile::route` derives from a snapshot. Flows out: answers to "which listener,
//! which rule, who may, where to". A request loads the table once and asks nothing else.
//! What it deliberately does not do: no sockets, no clock of its own, no state that changes.

use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::num::NonZeroU64;
use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, OnceLock};

use http::{HeaderName, HeaderValue};
use rustls::sign::CertifiedKey;
use snapshot::Shared;
use snapshot::model::{
    Border, Cidr, ComponentId, EndpointId, Gate, HostPattern, Hostname, Intra, L7Kind, ObjectName,
    Origin, PolicyId, RemoteKeys, Retry, Route, RuleTimeouts, SessionPersistence, Upstream,
};

use crate::upstream::Terms;

pub mod admission;
pub mod backend;
pub mod balance;
pub mod client;
pub mod clients;
pub mod cors;
pub mod credential;
pub mod filter;
pub mod gatekeeper;
pub mod hash;
pub(crate) mod kept;
pub mod key;
pub mod limiter;
pub mod maglev;
pub mod matching;
pub mod placement;
pub mod query;
pub mod rewrite;
pub mod stream;
pub mod token;
pub mod trust;

pub use admission::{Admitted, FailoverReason, NotAdmitted, Permit};
pub use backend::{Backend, Managed};
pub use clients::ClientTrust;
pub use filter::{FilterList, Filters};
pub use gatekeeper::Gatekeeper;
pub(crate) use kept::Kept;
pub use limiter::Limiter;
pub use matching::{HostRules, Matched};
pub use placement::{Placement, PlacementEndpoint, Placements, RouteReason};
pub use trust::{Identity, TlsPeer};

/// A map that requests ask. Its hash is fast, and seeded anew in each process: whoever writes documents cannot choose
/// their names so that they collide.
pub(crate) type HashMap<K, V> = std::collections::HashMap<K, V, foldhash::fast::RandomState>;

/// Everything the router needs for one generation.
#[derive(Debug, Default)]
pub struct RouteTable {
    /// Counter of the configuration that this table was compiled from.
    pub generation: u64,
    pub(crate) binds: HashMap<SocketAddr, Bind>,
    /// Whether some listener has a policy for its clients; where none has, no request looks for one.
    pub(crate) has_clients: bool,
    /// Listeners of UDP.
    pub(crate) datagrams: HashMap<SocketAddr, Arc<Listener>>,
    /// Where datagrams are QUIC, and the address and port of TCP that has the listeners of its connections.
    pub(crate) quic: HashMap<SocketAddr, SocketAddr>,
    pub(crate) callers: HashMap<IpAddr, Arc<Caller>>,
    pub(crate) steered: HashMap<SocketAddr, Steered>,
    /// Endpoints of cells of labels, which routes of documents lead to.
    pub(crate) labelled: HashMap<SocketAddr, EndpointId>,
    pub(crate) dns: Vec<IpAddr>,
    pub(crate) inside: Inside,
    pub(crate) remote_keys: HashSet<Arc<RemoteKeys>>,
    pub(crate) placements: BTreeMap<ObjectName, Arc<Placements>>,
    /// Backends that policies are about, by name.
    pub(crate) backends: BTreeMap<Arc<str>, Arc<Backend>>,
    /// The same with each of their policies.
    pub(crate) managed: BTreeMap<(Arc<str>, PolicyId), Arc<Managed>>,
    /// Rate limits by policy and route.
    pub(crate) limiters: BTreeMap<(PolicyId, L7Kind, Arc<str>), Arc<Limiter>>,
    /// What the next table can take over as it is.
    pub(crate) kept: Kept,
}

impl RouteTable {
    /// Takes over what the table before remembers of breakers, limits and health, by key. Called once,
    /// before the table is published.
    pub fn adopt(&self, before: &Self) {
        for (name, backend) in &self.backends {
            if let Some(before) = before.backends.get(name) {
                backend.adopt(before);
            }
        }
        for (key, limiter) in &self.limiters {
            if let Some(before) = before.limiters.get(key) {
                limiter.adopt(before);
            }
        }
        for (key, managed) in &self.managed {
            if let Some(before) = before.managed.get(key) {
                managed.adopt(before);
            }
        }
        for (name, placements) in &self.placements {
            if let Some(before) = before.placements.get(name) {
                placements.adopt(before);
            }
        }
        for (address, bind) in &self.binds {
            if let Some(before) = before.binds.get(address) {
                // Nobody has counted on it yet: the table is not published.
                let _new = bind.open.set(Arc::clone(before.open()));
            }
        }
    }

    /// The policy for the requests of a connection to a gateway; `name` is the server name of its TLS.
    pub fn client(
        &self,
        local: SocketAddr,
        tls: bool,
        name: Option<&str>,
    ) -> Option<&Arc<client::ClientSettings>> {
        if !self.has_clients {
            return None;
        }
        let bind = self.bind(local)?;
        match tls {
            true => bind.named(name)?.policy.as_ref(),
            false => bind.policy.as_ref(),
        }
    }

    /// The host that a request of HTTP/1.0 without one is for, where a policy says so: that of the listener which its connection
    /// is for, or, where nothing tells listeners of a port apart, the only one that any of them has.
    pub fn default_host(
        &self,
        local: SocketAddr,
        tls: bool,
        name: Option<&str>,
    ) -> Option<&HeaderValue> {
        let bind = self.bind(local)?;
        if tls {
            return bind.named(name)?.default_host.as_ref();
        }
        let mut hosts = bind
            .listeners
            .values()
            .filter_map(|one| one.default_host.as_ref());
        let first = hosts.next()?;
        hosts.all(|other| other == first).then_some(first)
    }

    /// Backends that policies are about, by name and policy.
    pub fn managed(&self) -> impl Iterator<Item = &Arc<Managed>> {
        self.managed.values()
    }

    /// The same backends by name.
    pub fn backends(&self) -> impl Iterator<Item = &Arc<Backend>> {
        self.backends.values()
    }

    /// All routing tables.
    pub fn placements(&self) -> impl Iterator<Item = &Arc<Placements>> {
        self.placements.values()
    }

    /// The listeners of a local address and port; a gateway on the unspecified address takes all
    /// addresses of its family.
    pub fn bind(&self, local: SocketAddr) -> Option<&Bind> {
        let any: IpAddr = match local.ip() {
            IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        };
        self.binds
            .get(&local)
            .or_else(|| self.binds.get(&SocketAddr::new(any, local.port())))
    }

    /// The listener that takes datagrams at a local address and port.
    pub fn datagrams(&self, local: SocketAddr) -> Option<&Arc<Listener>> {
        self.datagrams.get(&local)
    }

    /// The address and port of TCP whose listeners take the connections of QUIC to an address and port of UDP.
    pub fn quic(&self, local: SocketAddr) -> Option<SocketAddr> {
        self.quic.get(&local).copied()
    }

    /// What answers over TCP tell of HTTP/3; `name` is the server name of their connection.
    pub fn alt_svc(&self, local: SocketAddr, name: Option<&str>) -> Option<&HeaderValue> {
        self.bind(local)?.named(name)?.alt_svc.as_ref()
    }

    /// Addresses and ports of all listeners of UDP and of HTTP/3: what has to be open for datagrams, and for which.
    pub fn datagram_addresses(&self) -> BTreeMap<SocketAddr, Datagrams> {
        let sessions = self.datagrams.keys().map(|at| (*at, Datagrams::Sessions));
        let quic = self.quic.keys().map(|at| (*at, Datagrams::Quic));
        sessions.chain(quic).collect()
    }

    /// Addresses and ports of all listeners of TCP: what has to be open before this table is published.
    pub fn addresses(&self) -> std::collections::BTreeSet<SocketAddr> {
        self.binds.keys().copied().collect()
    }

    /// The component of a cell that owns a source address.
    pub fn caller(&self, source: IpAddr) -> Option<&Arc<Caller>> {
        self.callers.get(&source)
    }

    /// The HTTP endpoints behind an address and port of a component.
    pub fn steered(&self, address: SocketAddr) -> Option<&Steered> {
        self.steered.get(&address)
    }

    /// Whether an address is of the platform itself: of a component, a gate, a node, a name server or
    /// a platform service.
    pub fn inside(&self, address: IpAddr) -> bool {
        self.inside.hosts.contains(&address)
            || self
                .inside
                .networks
                .iter()
                .any(|network| network.contains(&Cidr::host(address)))
    }

    /// Key sets that rules of this table need and that are fetched.
    pub fn remote_keys(&self) -> &HashSet<Arc<RemoteKeys>> {
        &self.remote_keys
    }

    /// Name servers of the platform; empty: those of the node.
    pub fn dns(&self) -> &[IpAddr] {
        &self.dns
    }
}

/// Addresses of the platform itself.
#[derive(Debug, Default)]
pub(crate) struct Inside {
    pub(crate) hosts: HashSet<IpAddr>,
    pub(crate) networks: Vec<Cidr>,
}

/// Listeners that share an address and port.
#[derive(Debug, Default)]
pub struct Bind {
    /// How connections begin; all listeners of a port agree.
    pub wire: Wire,
    /// Whether the TLS of some of them stays closed, so that a `ClientHello` has to go on as it came.
    pub passthrough: bool,
    /// Whether the TLS of some of them is opened here.
    pub terminates: bool,
    /// Whether some of them ask their clients for certificates.
    pub(crate) asks: bool,
    /// The policy of their connections, and, if these begin with a request, of requests too; all listeners of a port agree.
    pub(crate) policy: Option<Arc<client::ClientSettings>>,
    /// Connections of the address and port that count, in this generation and in those before.
    open: OnceLock<Arc<AtomicUsize>>,
    pub(crate) listeners: HostIndex<Arc<Listener>>,
}

impl Bind {
    pub(crate) fn new(wire: Wire, policy: Option<Arc<client::ClientSettings>>) -> Self {
        Self {
            wire,
            policy,
            ..Self::default()
        }
    }

    /// Counts the connections that are open here.
    pub(crate) fn open(&self) -> &Arc<AtomicUsize> {
        self.open.get_or_init(Arc::default)
    }

    /// The listener with the most specific host that covers `host` (Gateway API, listener
    /// isolation): what it claims never falls back to a broader one.
    pub fn listener(&self, host: &str) -> Option<&Arc<Listener>> {
        self.listeners.find(host)
    }

    /// The listener for a server name; without a name, the one without a host.
    pub fn named(&self, name: Option<&str>) -> Option<&Arc<Listener>> {
        match name {
            Some(name) => self.listener(name),
            None => self.default_listener(),
        }
    }

    /// The listener for a `ClientHello` without SNI: the one without a host, if any.
    pub fn default_listener(&self) -> Option<&Arc<Listener>> {
        self.listeners.any.as_ref()
    }
}

/// What the datagrams of an address and port are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Datagrams {
    /// Anything: clients of UDP routes have a session each.
    Sessions,
    /// QUIC (RFC 9000), with HTTP/3 in it.
    Quic,
}

/// How a connection begins.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Wire {
    /// With a request.
    #[default]
    Http,
    /// With a `ClientHello`.
    Tls,
    /// With anything, or with nothing until the other side speaks.
    Any,
}

/// One listener of a gateway, with its routes by host.
#[derive(Debug)]
pub struct Listener {
    /// `namespace/gateway/listener`, for logs, metrics and comparison.
    pub name: Arc<str>,
    /// The gate that its gateway plays.
    pub gate: Option<Gate>,
    pub(crate) hosts: HostIndex<Arc<HostRules>>,
    /// The routes that `hosts` was made of, in order.
    pub(crate) attached: Vec<Attached>,
    /// Headers that tokens set and that choose a route again: a client's own never choose one.
    pub(crate) token_headers: Vec<HeaderName>,
    pub(crate) certificates: HostIndex<Arc<ServerCertificate>>,
    pub(crate) default_certificate: Option<Arc<ServerCertificate>>,
    /// What its clients are asked for; none: nothing.
    pub(crate) clients: Option<Arc<ClientTrust>>,
    /// What its upstreams are shown if they ask.
    pub(crate) identity: Option<Arc<Identity>>,
    /// Where connections go that are not HTTP; none: they are.
    pub(crate) streams: Option<stream::Streams>,
    /// How it treats its clients.
    pub(crate) policy: Option<Arc<client::ClientSettings>>,
    /// What a request without a host is for, if its policy lets there be one.
    pub(crate) default_host: Option<HeaderValue>,
    /// What answers over TCP tell of its HTTP/3 (RFC 7838); none: it has none.
    pub(crate) alt_svc: Option<HeaderValue>,
}

impl Listener {
    /// One that has no routes and no certificate.
    pub(crate) fn closed(name: Arc<str>, gate: Option<Gate>) -> Self {
        Self {
            name,
            gate,
            hosts: HostIndex::default(),
            attached: Vec::new(),
            token_headers: Vec::new(),
            certificates: HostIndex::default(),
            default_certificate: None,
            clients: None,
            identity: None,
            streams: None,
            policy: None,
            default_host: None,
            alt_svc: None,
        }
    }

    /// The rules of the most specific host that covers `host`. As in Envoy's virtual hosts, rules of
    /// a broader host are not asked when none of these match.
    pub fn rules(&self, host: &str) -> Option<&HostRules> {
        self.hosts.find(host).map(|rules| &**rules)
    }

    /// The certificate for a server name: exact before wildcard; without either, or without a
    /// name, the listener's first.
    pub fn certificate(&self, sni: Option<&str>) -> Option<&Arc<ServerCertificate>> {
        sni.and_then(|name| self.certificates.find(name))
            .or(self.default_certificate.as_ref())
    }
}

/// A certificate ready for handshakes.
#[derive(Debug)]
pub struct ServerCertificate {
    /// `namespace/name` of its `Secret`.
    pub name: Arc<str>,
    /// End of validity in seconds since 1970; later handshakes are refused.
    pub not_after: i64,
    /// Chain and signing key.
    pub key: Arc<CertifiedKey>,
}

/// Values by host: exact names, wildcards by suffix, and one for all other hosts.
#[derive(Clone, Debug)]
pub struct HostIndex<T> {
    pub(crate) exact: HashMap<Arc<str>, T>,
    pub(crate) wildcard: HashMap<Arc<str>, T>,
    pub(crate) any: Option<T>,
}

impl<T> Default for HostIndex<T> {
    fn default() -> Self {
        Self {
            exact: HashMap::default(),
            wildcard: HashMap::default(),
            any: None,
        }
    }
}

impl<T> HostIndex<T> {
    /// The value of the most specific pattern that covers a host in lower case without port.
    pub fn find(&self, host: &str) -> Option<&T> {
        if let Some(value) = self.exact.get(host) {
            return Some(value);
        }
        // Most listeners have no wildcard, and no label to look for.
        if !self.wildcard.is_empty() {
            let mut rest = host;
            while let Some((_, suffix)) = rest.split_once('.') {
                if let Some(value) = self.wildcard.get(suffix) {
                    return Some(value);
                }
                rest = suffix;
            }
        }
        self.any.as_ref()
    }

    /// All values.
    pub fn values(&self) -> impl Iterator<Item = &T> {
        let named = self.exact.values().chain(self.wildcard.values());
        named.chain(&self.any)
    }

    /// The value of exactly this pattern, none meaning every host.
    pub fn of(&self, pattern: Option<&HostPattern>) -> Option<&T> {
        match pattern {
            Some(pattern) => self.exact_or_wildcard(pattern),
            None => self.any.as_ref(),
        }
    }

    /// The value of exactly this pattern.
    pub fn exact_or_wildcard(&self, pattern: &HostPattern) -> Option<&T> {
        match pattern {
            HostPattern::Exact(name) => self.exact.get(name.as_str()),
            HostPattern::Wildcard(name) => self.wildcard.get(name.as_str()),
        }
    }

    /// Sets the value of a pattern, none meaning every host; gives back the one it replaces.
    pub fn insert(&mut self, pattern: Option<&HostPattern>, value: T) -> Option<T> {
        match pattern {
            Some(HostPattern::Exact(name)) => self.exact.insert(name.text(), value),
            Some(HostPattern::Wildcard(name)) => self.wildcard.insert(name.text(), value),
            None => self.any.replace(value),
        }
    }
}

impl<T: Default> HostIndex<T> {
    /// The value of a pattern, made if there is none yet.
    pub fn entry(&mut self, pattern: Option<&HostPattern>) -> &mut T {
        match pattern {
            Some(HostPattern::Exact(name)) => self.exact.entry(name.text()).or_default(),
            Some(HostPattern::Wildcard(name)) => self.wildcard.entry(name.text()).or_default(),
            None => self.any.get_or_insert_default(),
        }
    }
}

/// A component as the source of requests.
#[derive(Debug)]
pub struct Caller {
    /// Who it is.
    pub id: ComponentId,
    /// The same for logs.
    pub name: Arc<str>,
    /// Its cell, for logs.
    pub cell: Arc<str>,
    /// Declared calls: to other cells, and inside of its own cell.
    pub(crate) calls: HashSet<EndpointId>,
    /// What components of its cell may do among themselves without a declaration.
    pub(crate) intra: Intra,
    /// What they may do outside of it without one.
    pub(crate) egress: Border,
    pub(crate) south: HashMap<u16, SouthHosts>,
}

impl Caller {
    /// Whether it may call an endpoint: it declared the call, or its own cell is open.
    pub fn may_call(&self, endpoint: &EndpointId) -> bool {
        self.calls.contains(endpoint)
            || (self.intra == Intra::Open && self.id.cell == endpoint.component.cell)
    }

    /// The host names that it declared for a port.
    pub fn south(&self, port: u16) -> Option<&SouthHosts> {
        self.south.get(&port)
    }
}

/// Declared host names of one caller and port.
#[derive(Debug, Default)]
pub struct SouthHosts {
    /// Reached over TLS, which passes unopened.
    pub tls: HashMap<Box<str>, Hostname>,
    /// Reached over plain HTTP.
    pub http: HashMap<Box<str>, Hostname>,
}

/// What is behind an address and port that a component may call directly.
#[derive(Debug)]
pub struct Steered {
    /// The HTTP endpoints that share the port; their base paths tell them apart.
    pub endpoints: Arc<[EndpointId]>,
    /// The west gate's rules of all of them, whatever host they are published under.
    pub rules: Arc<HostRules>,
    /// `/{project}/{component}`, under which the west gate publishes the component.
    pub prefix: Arc<str>,
    /// Whether the address is a service address: requests then go to one of the workloads, else
    /// to the very address.
    pub service: bool,
}

/// The rules of a route, compiled.
pub(crate) type RouteRules = Arc<[Arc<RouteRule>]>;

/// A route that is attached to a listener.
pub(crate) struct Attached {
    pub(crate) route: Shared<Route>,
    pub(crate) rules: RouteRules,
}

impl fmt::Debug for Attached {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // What requests meet of it is in the rules of its hosts.
        f.debug_struct("Attached").finish_non_exhaustive()
    }
}

/// A rule of a route, compiled.
#[derive(Debug)]
pub struct RouteRule {
    /// Kind of the route.
    pub kind: L7Kind,
    /// Name of the route, for logs.
    pub route: Arc<str>,
    /// Position of the rule in its route.
    pub index: usize,
    /// Where the route comes from.
    pub origin: Origin,
    /// Cell of the endpoint that it is for, for logs.
    pub cell: Option<Arc<str>>,
    /// Who may pass; none: everybody.
    pub auth: Option<Arc<Gatekeeper>>,
    /// How many of its requests pass.
    pub limiter: Option<Arc<Limiter>>,
    /// What is changed on the way, or answered here.
    pub filters: FilterList,
    /// Bytes of a request that is taken whole before it is sent; none: it is sent as it comes.
    pub buffer: Option<NonZeroU64>,
    /// How long requests are waited for; none: nothing is said of it.
    pub timeouts: Option<Arc<RuleTimeouts>>,
    /// Whether and how they are tried again.
    pub retry: Option<Arc<Retry>>,
    /// Whether clients keep the endpoint that served them first.
    pub session: Option<Arc<SessionPersistence>>,
    /// Where to.
    pub targets: Vec<RouteTarget>,
    /// Sum of the targets' weights.
    pub weight: u64,
}

impl RouteRule {
    /// Headers that its policy sets from claims in order to choose the route again.
    pub(crate) fn token_headers(&self) -> impl Iterator<Item = &HeaderName> {
        self.auth
            .iter()
            .filter(|one| one.tokens.as_ref().is_some_and(|tokens| tokens.recompute))
            .flat_map(|one| one.own_headers())
    }

    /// The target for a number below [`RouteRule::weight`].
    pub fn target(&self, mut at: u64) -> Option<&RouteTarget> {
        self.targets.iter().find(|target| {
            let inside = at < u64::from(target.weight);
            at = at.saturating_sub(u64::from(target.weight));
            inside
        })
    }
}

/// Edits of headers: replace, append, delete.
#[derive(Debug, Default)]
pub struct Edits {
    pub(crate) set: Vec<(HeaderName, HeaderValue)>,
    pub(crate) add: Vec<(HeaderName, HeaderValue)>,
    pub(crate) remove: Vec<HeaderName>,
}

impl RouteRule {
    /// Everything that its requests may go to, copies included.
    pub fn destinations(&self) -> impl Iterator<Item = &RouteTarget> {
        let lists =
            std::iter::once(&self.filters).chain(self.targets.iter().map(|one| &one.filters));
        let mirrors = lists.flat_map(|filters| &filters.mirrors);
        self.targets
            .iter()
            .chain(mirrors.map(|mirror| &mirror.target))
    }
}

/// A target and its share.
#[derive(Debug)]
pub struct RouteTarget {
    /// Number of the target, unique among all tables; round robin is counted under it.
    pub id: u64,
    /// Share among the rule's targets.
    pub weight: u32,
    /// Name of what is behind it, the same in every generation; state of the backend is kept under it.
    pub backend: Arc<str>,
    /// Whether its listed upstreams speak HTTP/2 to every client but those that upgrade to a websocket.
    pub http2: bool,
    /// Where to.
    pub kind: TargetKind,
    /// What is changed for this target alone. A rewrite takes the place of the rule's.
    pub filters: FilterList,
    /// What a policy says of connections there.
    pub terms: Option<Arc<Terms>>,
    /// Who gets a request, if a policy says something of the endpoints.
    pub managed: Option<Arc<Managed>>,
}

/// A listed upstream.
#[derive(Clone, Debug)]
pub struct RouteUpstream {
    /// Where it is.
    pub upstream: Upstream,
    /// The other end of TLS; none: without TLS.
    pub tls: Option<TlsPeer>,
}

/// Where requests go.
#[derive(Debug)]
pub enum TargetKind {
    /// Listed upstreams, in turn.
    Upstreams(Arc<[RouteUpstream]>),
    /// Workloads of a component, in turn.
    Endpoint {
        /// The endpoint.
        endpoint: Arc<EndpointId>,
        /// Addresses of its workloads.
        addresses: Vec<SocketAddr>,
        /// Whether the endpoint speaks HTTP/2 without TLS: gRPC does.
        http2: bool,
    },
    /// By routing key.
    Placements(Arc<Placements>),
    /// A reference that leads nowhere: answers 500 with this in the log.
    Unresolved(Arc<str>),
}
