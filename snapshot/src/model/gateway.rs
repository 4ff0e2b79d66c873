//! Gateways and routes, of Gateway API documents and of cells alike.

use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;

use super::{
    Auth, ClientHttp3, ClientPolicy, ClientValidation, Declared, DocumentPath, EndpointId, Filter,
    Gate, Hostname, L4Kind, NodeCheck, NodePorts, ObjectName, Pattern, Port, RequestMatch, Retry,
    RuleTimeouts, SectionName, SessionPersistence, Timestamp, TrafficPolicy, Transport,
    UpstreamTls,
};

/// A gateway: addresses and listeners.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gateway {
    /// Its name.
    pub name: ObjectName,
    /// Its document.
    pub declared: Declared,
    /// Addresses it listens on on every node.
    pub addresses: Vec<IpAddr>,
    /// Where it listens on each node's own addresses. One that is a gate does so behind a load balancer only.
    pub node_ports: NodePorts,
    /// Where its load balancer asks for it.
    pub health_check: Option<NodeCheck>,
    /// Its listeners in document order. Those of one port are distinct by hostname, and all plain HTTP, all TLS (HTTPS and
    /// other), or a single one of TCP; ports of UDP are others.
    pub listeners: Vec<Listener>,
    /// Hosts of listeners that do not work. No broader listener serves them (Gateway API, listener isolation).
    pub unserved: Vec<Unserved>,
    /// The gate that `Platform` makes of it.
    pub gate: Option<Gate>,
    /// The certificate, of `Snapshot::certificates`, that it shows to upstreams that ask for one.
    pub identity: Option<ObjectName>,
}

/// A listener.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listener {
    /// Its name, unique in its gateway.
    pub name: SectionName,
    /// Its document and field.
    pub declared: Declared,
    /// Its port.
    pub port: Port,
    /// What it speaks.
    pub protocol: ListenerProtocol,
    /// Hosts it takes; all when absent.
    pub hostname: Option<HostPattern>,
    /// How it treats its clients; none: as the router does without a policy. Listeners of one port have one
    /// [`super::Entrance`], and those of plain HTTP one policy.
    pub policy: Option<Arc<ClientPolicy>>,
    /// What it asks of its clients; of HTTPS only.
    pub clients: Option<Arc<ClientValidation>>,
}

impl Listener {
    /// HTTP/3, if the listener has it: datagrams of its port are QUIC then (RFC 9000).
    pub fn http3(&self) -> Option<&ClientHttp3> {
        let https = matches!(self.protocol, ListenerProtocol::Https { .. });
        let policy = self.policy.as_ref().filter(|_| https)?;
        policy.http3.as_ref()
    }

    /// What its sockets are of.
    pub fn transports(&self) -> impl Iterator<Item = Transport> {
        let quic = self.http3().map(|_| Transport::Udp);
        std::iter::once(self.protocol.transport()).chain(quic)
    }
}

/// A listener that does not work, for want of a certificate or for a mistake, as far as others have to know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unserved {
    /// Its name, unique in its gateway.
    pub name: SectionName,
    /// Its port.
    pub port: Port,
    /// Whether it is for HTTPS or TLS, or else for plain HTTP.
    pub tls: bool,
    /// Hosts that it would take.
    pub hostname: HostPattern,
}

/// Protocol of a listener.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ListenerProtocol {
    /// Plain HTTP/1.1 and HTTP/2 with prior knowledge.
    Http,
    /// TLS terminated here, with certificates of the snapshot; never empty.
    Https {
        /// Names in `Snapshot::certificates`.
        certificates: Vec<ObjectName>,
    },
    /// TLS around anything: its routes choose by server name.
    Tls(TlsMode),
    /// Any bytes.
    Tcp,
    /// Datagrams.
    Udp,
}

/// What becomes of the TLS of a listener that is not HTTP.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TlsMode {
    /// It stays closed: the server name of its `ClientHello` is all that is read.
    Passthrough,
    /// It ends here; what was inside goes on as plain bytes.
    Terminate {
        /// Names in `Snapshot::certificates`; never empty.
        certificates: Vec<ObjectName>,
    },
}

impl ListenerProtocol {
    /// Certificates of what is terminated here; empty where nothing is.
    pub fn certificates(&self) -> &[ObjectName] {
        match self {
            Self::Https { certificates } | Self::Tls(TlsMode::Terminate { certificates }) => {
                certificates
            }
            Self::Http | Self::Tls(TlsMode::Passthrough) | Self::Tcp | Self::Udp => &[],
        }
    }

    /// What a listener's socket is of. One of HTTPS may have others besides: [`Listener::transports`].
    pub fn transport(&self) -> Transport {
        match self {
            Self::Http | Self::Https { .. } | Self::Tls(_) | Self::Tcp => Transport::Tcp,
            Self::Udp => Transport::Udp,
        }
    }

    /// Its name in a `Gateway`.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Http => "HTTP",
            Self::Https { .. } => "HTTPS",
            Self::Tls(_) => "TLS",
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
        }
    }
}

/// A certificate chain with its key, checked to be parseable and to belong together.
pub struct Certificate {
    /// Name of its `Secret`.
    pub name: ObjectName,
    /// Its document.
    pub declared: Declared,
    /// End of the leaf's validity, seconds since 1970. A snapshot never expires by age; a listener
    /// whose certificate has expired refuses handshakes.
    pub not_after: i64,
    /// DNS names and addresses of the leaf (RFC 5280, section 4.2.1.6), as text in lower case.
    pub names: Vec<String>,
    /// Chain in DER, leaf first.
    pub chain: Vec<rustls_pki_types::CertificateDer<'static>>,
    /// Private key.
    pub key: rustls_pki_types::PrivateKeyDer<'static>,
}

impl fmt::Debug for Certificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The key must never reach a log.
        f.debug_struct("Certificate")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

/// A host or a wildcard (Gateway API `Hostname`).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum HostPattern {
    /// This host.
    Exact(Hostname),
    /// `*.suffix`: one or more labels in front of the suffix, never the suffix itself.
    Wildcard(Hostname),
}

impl HostPattern {
    /// Whether a host, lower case and without port, is covered.
    pub fn covers(&self, host: &str) -> bool {
        match self {
            Self::Exact(name) => name.as_str() == host,
            Self::Wildcard(suffix) => host
                .strip_suffix(suffix.as_str())
                .and_then(|front| front.strip_suffix('.'))
                .is_some_and(|front| !front.is_empty()),
        }
    }

    /// The more specific of two patterns that both cover something, or none if they are disjoint.
    pub fn intersect(&self, other: &Self) -> Option<Self> {
        match (self, other) {
            (Self::Exact(name), _) => other.covers(name.as_str()).then(|| self.clone()),
            (_, Self::Exact(name)) => self.covers(name.as_str()).then(|| other.clone()),
            (Self::Wildcard(a), Self::Wildcard(b)) if a == b => Some(self.clone()),
            (Self::Wildcard(a), Self::Wildcard(_)) if other.covers(a.as_str()) => {
                Some(self.clone())
            }
            (Self::Wildcard(_), Self::Wildcard(b)) if self.covers(b.as_str()) => {
                Some(other.clone())
            }
            _ => None,
        }
    }
}

/// Hosts under which a route serves on a listener (Gateway API, `HTTPRoute.hostnames`), each once; none in the list is
/// every host, and an empty list means that the two have no host in common.
pub fn effective_hosts(
    listener: Option<&HostPattern>,
    route: &[HostPattern],
) -> Vec<Option<HostPattern>> {
    if route.is_empty() {
        return vec![listener.cloned()];
    }
    let mut hosts: Vec<_> = route
        .iter()
        .filter_map(|own| match listener {
            Some(listener) => listener.intersect(own),
            None => Some(own.clone()),
        })
        .map(Some)
        .collect();
    hosts.sort();
    hosts.dedup();
    hosts
}

impl fmt::Display for HostPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact(name) => write!(f, "{name}"),
            Self::Wildcard(suffix) => write!(f, "*.{suffix}"),
        }
    }
}

/// Kinds of routes of requests. In this order where nothing else decides between two.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum L7Kind {
    /// `HTTPRoute`, and what a cell's endpoint generates.
    Http,
    /// `GRPCRoute`: its backends speak gRPC, which is HTTP/2 on the whole way.
    Grpc,
}

impl L7Kind {
    /// As a document names it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Http => "HTTPRoute",
            Self::Grpc => "GRPCRoute",
        }
    }
}

impl fmt::Display for L7Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Kinds of routes, as listeners take them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RouteKind {
    /// By requests: listeners of HTTP and HTTPS.
    L7(L7Kind),
    /// By connections or datagrams: listeners of TLS, TCP and UDP.
    L4(L4Kind),
}

impl RouteKind {
    /// As a document names it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::L7(kind) => kind.as_str(),
            Self::L4(kind) => kind.as_str(),
        }
    }
}

impl fmt::Display for RouteKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Kind and name of a document of a route.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct RouteName {
    /// Its kind.
    pub kind: L7Kind,
    /// Its name.
    pub name: ObjectName,
}

impl fmt::Display for RouteName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}` {}", self.kind, self.name)
    }
}

/// A route: hosts and rules on gateways.
#[derive(Clone, Debug)]
pub struct Route {
    /// What kind of document it is, or would be.
    pub kind: L7Kind,
    /// Name of the document, or a generated one of a cell's endpoint.
    pub name: ObjectName,
    /// Where it comes from.
    pub origin: Origin,
    /// Its document and field.
    pub declared: Declared,
    /// Listeners it is attached to; each exists and accepts it.
    pub parents: Vec<Parent>,
    /// Hosts; all of the listener when empty.
    pub hostnames: Arc<[HostPattern]>,
    /// When its document was first made (`metadata.creationTimestamp`); older routes come first where
    /// nothing else decides, and those without a time last.
    pub created: Option<Timestamp>,
    /// Its rules in document order; never empty.
    pub rules: Vec<Rule>,
}

/// Where a route comes from.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Origin {
    /// A document.
    Document,
    /// A cell's endpoint, through one of its gates.
    Endpoint {
        /// The endpoint.
        endpoint: Arc<EndpointId>,
        /// The gate.
        gate: Gate,
    },
}

/// A parent reference.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parent {
    /// A gateway of the snapshot.
    pub gateway: ObjectName,
    /// One listener of it; all when absent.
    pub listener: Option<SectionName>,
    /// Only listeners on this port.
    pub port: Option<Port>,
}

/// A rule of a route.
#[derive(Clone, Debug)]
pub struct Rule {
    /// Its document and field.
    pub declared: Declared,
    /// Alternatives; never empty.
    pub matches: Arc<[RequestMatch]>,
    /// Who may pass; none: everybody.
    pub auth: Option<Arc<Auth>>,
    /// What is changed on the way, in this order.
    pub filters: Vec<Filter>,
    /// How long requests are waited for; none: nothing is said of it.
    pub timeouts: Option<Arc<RuleTimeouts>>,
    /// Whether and how they are tried again.
    pub retry: Option<Arc<Retry>>,
    /// How traffic to its backends is treated.
    pub traffic: Option<Arc<TrafficPolicy>>,
    /// Whether clients keep the endpoint that served them first.
    pub session: Option<Arc<SessionPersistence>>,
    /// Where to; an empty list, or weights that sum to zero, answer 500 (Gateway API, `backendRefs`).
    pub targets: Vec<WeightedTarget>,
}

impl Rule {
    /// A rule that takes these requests and leads nowhere yet.
    pub fn new(declared: Declared, matches: impl Into<Arc<[RequestMatch]>>) -> Self {
        Self {
            declared,
            matches: matches.into(),
            auth: None,
            filters: Vec::new(),
            timeouts: None,
            retry: None,
            traffic: None,
            session: None,
            targets: Vec::new(),
        }
    }
}

/// How a path is rewritten. The query stays.
#[derive(Clone, Debug)]
pub enum PathRewrite {
    /// The whole path.
    Full(String),
    /// The matched prefix; without one in the match the document is refused.
    Prefix(String),
    /// Takes this prefix away; `/` if nothing is left.
    Strip(DocumentPath),
    /// Every match of a pattern; the substitution is in the syntax of `regex::Captures::expand`.
    Regex {
        /// The pattern.
        pattern: Pattern,
        /// The replacement.
        substitution: String,
    },
}

/// A target and its share.
#[derive(Clone, Debug)]
pub struct WeightedTarget {
    /// Share of the requests among the rule's targets; 0 gets none.
    pub weight: u32,
    /// Where to.
    pub target: Target,
    /// The name under which its state is kept whatever its endpoints are; none: it has none.
    pub backend: Option<BackendName>,
    /// Whether its endpoints speak HTTP/2 without being asked (`kubernetes.io/h2c`), whatever clients speak.
    pub http2: bool,
    /// What is changed for this target alone, after the rule's own filters. A rewrite here takes the
    /// place of the rule's.
    pub filters: Vec<Filter>,
}

impl WeightedTarget {
    /// A target that changes nothing.
    pub fn new(weight: u32, target: Target) -> Self {
        Self {
            weight,
            target,
            backend: None,
            http2: false,
            filters: Vec::new(),
        }
    }
}

/// What endpoints belong together by.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum BackendName {
    /// A `Backend`.
    Backend(ObjectName),
    /// A port of a `Service`.
    Service(ObjectName, Port),
}

impl fmt::Display for BackendName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Backend(name) => write!(f, "backend {name}"),
            Self::Service(name, port) => write!(f, "service {name}:{port}"),
        }
    }
}

/// Where requests go.
#[derive(Clone, Debug)]
pub enum Target {
    /// Addresses of a `Backend` or a `Service`; each request takes one. None: requests answer 503.
    Upstreams(Arc<[Upstream]>),
    /// The workloads of a component's endpoint.
    Endpoint(Arc<EndpointId>),
    /// By the request's routing key.
    RoutingTable(ObjectName),
    /// A reference that leads nowhere: its share answers 500 (Gateway API, `backendRefs`). The text
    /// says why.
    Unresolved(String),
}

/// One upstream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Upstream {
    /// TCP.
    Tcp {
        /// Host.
        host: UpstreamHost,
        /// Port.
        port: Port,
        /// How it is reached over TLS; none: without.
        tls: Option<Arc<UpstreamTls>>,
    },
    /// A Unix socket.
    Unix(PathBuf),
}

impl fmt::Display for Upstream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp {
                host: UpstreamHost::Address(address),
                port,
                ..
            } => write!(f, "{}", std::net::SocketAddr::new(*address, port.get())),
            Self::Tcp {
                host: UpstreamHost::Name(name),
                port,
                ..
            } => write!(f, "{name}:{port}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// Host of an upstream.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum UpstreamHost {
    /// By address.
    Address(IpAddr),
    /// By name, resolved by the router.
    Name(Hostname),
}
