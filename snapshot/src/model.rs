//! The validated model: values that cannot be wrong.
//!
//! References are resolved, names are checked, paths are canonical, patterns compile, and a cell's
//! endpoints are already routes. Nobody after this module checks again.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;
use std::num::NonZeroU16;
use std::sync::Arc;

use crate::lasting::common;
use crate::path::CanonicalPath;
use crate::report::{Source, Warning};
use crate::shared::Shared;
use crate::tree::shortened;

mod auth;
mod cell;
mod client;
mod cors;
mod filter;
mod gateway;
mod jwt;
mod l4;
mod matches;
mod network_policy;
mod node_ports;
mod platform;
mod resilience;
mod routing;
mod section;
mod service;
mod session;
mod timestamp;
mod tls;
mod traffic;

pub use auth::{
    ApiKeys, Auth, AuthRule, Authorization, BasicUsers, ClaimRequirement, ClaimShape,
    CredentialPlace, Decision, HeaderRequirement, Leniency, ScopeClaims, TokenRequirement, Tokens,
};
pub use cell::{
    Border, Borders, Cell, Component, ComponentKind, Connection, East, Endpoint, EndpointKind,
    Exposure, Intra, Operation, South, SouthDestination, SouthProtocol, TrafficDistribution,
    Workloads,
};
pub use client::{
    Alpn, CertificateDetails, ClientHttp2, ClientHttp3, ClientIp, ClientPolicy, ClientTimeouts,
    ClientTls, ConnectionLimit, Entrance, EscapedSlashes, Http1End, Keepalive, MessageEdits,
    RequestIds, Tls12Cipher, TlsVersions, ToldCertificate, Underscores,
};
pub use cors::{Allowed, Cors, OriginHost, OriginPattern, OriginPort};
pub use filter::{
    DirectResponse, FRAMING, Filter, HeaderEdits, HostRewrite, Mirror, Redirect, Rewrite,
};
pub use gateway::{
    BackendName, Certificate, Gateway, HostPattern, L7Kind, Listener, ListenerProtocol, Origin,
    Parent, PathRewrite, Route, RouteKind, RouteName, Rule, Target, TlsMode, Unserved, Upstream,
    UpstreamHost, WeightedTarget, effective_hosts,
};
pub use jwt::{
    Algorithm, ClaimHeader, JwtProvider, Key, KeyMaterial, KeyUri, ProviderKeys, RemoteKeys,
};
pub use l4::{L4Backend, L4Kind, L4Parent, L4Route};
pub use matches::{CallMatch, PathMatch, Pattern, RequestMatch, StringMatch, TextMatch};
pub use network_policy::{
    AddressClass, BlockId, ClassId, Classes, Entity, IpBlock, NetworkPolicies, PeerId, PolicyPeers,
    PolicyPort, PolicyRule, PolicyScope, PortNumbers,
};
pub use node_ports::{NodeCheck, NodePorts};
pub use platform::{
    GateRef, METADATA, Node, OtherNodes, Platform, PlatformPort, PlatformService, VirtualHosts,
};
pub use resilience::{Failures, Jitter, Limit, Retry, RetryBudget, RuleTimeouts};
pub use routing::{
    BreakerSettings, CertificateName, HealthCheck, KeySource, KeyTrust, Placement, PlacementUrl,
    RoutingTable,
};
pub use section::SectionName;
pub use service::{Service, ServiceEndpoint, ServicePort};
pub use session::{Carrier, SessionPersistence};
pub use timestamp::Timestamp;
pub use tls::{
    AcceptedCertificates, Authorities, ClientDemand, ClientValidation, NameKind, NameMatch,
    Revocations, SubjectName, UpstreamTls,
};
pub use traffic::{
    ActiveCheck, Balance, CircuitBreaker, ConsistentHash, HashCookie, HashKey, Inverted,
    LocalFailures, PassiveCheck, PolicyId, PolicyRetry, Question, RateLimit, RatePath, RateRule,
    RateSelector, RateSource, RateText, RetryLimit, TrafficPolicy,
};

/// Everything a node is told, valid as a whole.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// SHA-256 over the files' paths and bytes in file order, lower-case hex.
    pub digest: Arc<str>,
    /// What is not a cell. A set of documents without a `Platform` gets the empty one.
    pub platform: Shared<Platform>,
    /// Cells by identity.
    pub cells: BTreeMap<CellId, Shared<Cell>>,
    /// What network policies say, and whom they tell apart.
    pub network: NetworkPolicies,
    /// Nodes on which a pod has no address yet that may be a cell's, or one that network policies restrict.
    pub awaited: BTreeSet<Arc<str>>,
    /// Services that have addresses, by name.
    pub services: BTreeMap<ObjectName, Shared<Service>>,
    /// Routing tables by name.
    pub routing_tables: BTreeMap<ObjectName, Arc<RoutingTable>>,
    /// Gateways by name.
    pub gateways: BTreeMap<ObjectName, Gateway>,
    /// Routes of documents and those that cells' endpoints generate, in a fixed order:
    /// by origin, then age, then name. Where nothing else decides between two routes, the first wins.
    pub routes: Vec<Shared<Route>>,
    /// Routes below HTTP, the oldest first, then by kind and name.
    pub l4_routes: Vec<L4Route>,
    /// Certificates by the name of their `Secret`.
    pub certificates: BTreeMap<ObjectName, Arc<Certificate>>,
    /// What is valid and without effect.
    pub warnings: Vec<Warning>,
}

/// A name of organization, project, environment, component or endpoint: 1 to 63 characters of a
/// DNS label (RFC 1123, section 2.1), lower case.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Name(Arc<str>);

impl Ord for Name {
    fn cmp(&self, other: &Self) -> Ordering {
        // Names of one cell are one text nearly always, and the order of names is asked for all the time.
        if Arc::ptr_eq(&self.0, &other.0) {
            return Ordering::Equal;
        }
        self.0.cmp(&other.0)
    }
}

impl PartialOrd for Name {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// What a name may have beside letters and digits if it may have dots.
const DOTTED: &str = ", `-` or `.`";

/// What is wrong with a name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "expected 1 to {limit} lower-case letters, digits{marks}, starting and ending with a letter or digit, got `{given}`"
)]
pub struct NameError {
    given: String,
    limit: usize,
    marks: &'static str,
}

impl Name {
    /// Checks and takes a name.
    pub fn new(text: &str) -> Result<Self, NameError> {
        check(text, 63, false).map(|()| Self(text.into()))
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

fn check(text: &str, limit: usize, dots: bool) -> Result<(), NameError> {
    let edge = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_alphanumeric);
    let bytes = text.as_bytes();
    let valid = bytes.len() <= limit
        && edge(bytes.first())
        && edge(bytes.last())
        && bytes.iter().all(|byte| {
            byte.is_ascii_lowercase()
                || byte.is_ascii_digit()
                || *byte == b'-'
                || (dots && *byte == b'.')
        });
    if valid {
        return Ok(());
    }
    Err(NameError {
        given: shortened(text),
        limit,
        marks: if dots { DOTTED } else { " or `-`" },
    })
}

/// Namespace and name of an object, as Kubernetes spells them. Without a namespace: `default`. By namespace first, then by name.
///
/// One text: whoever refers to an object has such a name, so that there are many more of them than objects.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectName(Arc<str>);

/// Between the two parts. It sorts before all characters that they may have.
const BETWEEN: char = '\0';

impl ObjectName {
    /// Checks both parts: a label of at most 63 and a subdomain of at most 253 characters.
    pub fn new(namespace: &str, name: &str) -> Result<Self, NameError> {
        check(namespace, 63, false)?;
        check(name, 253, true)?;
        Ok(Self(format!("{namespace}{BETWEEN}{name}").into()))
    }

    /// The same of what many objects refer to.
    pub(crate) fn referred(namespace: &str, name: &str) -> Result<Self, NameError> {
        let Self(text) = Self::new(namespace, name)?;
        Ok(Self(common(&text)))
    }

    fn parts(&self) -> (&str, &str) {
        self.0.split_once(BETWEEN).unwrap_or_default()
    }

    /// The namespace.
    pub fn namespace(&self) -> &str {
        self.parts().0
    }

    /// The name inside the namespace.
    pub fn name(&self) -> &str {
        self.parts().1
    }
}

impl fmt::Debug for ObjectName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for ObjectName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (namespace, name) = self.parts();
        write!(f, "{namespace}/{name}")
    }
}

/// A cell is keyed by its tuple; a joined name is for people only.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CellId {
    /// The tenant.
    pub organization: Name,
    /// One of the tenant's applications.
    pub project: Name,
    /// A stage of it.
    pub environment: Name,
}

impl fmt::Display for CellId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}/{}/{}",
            self.organization, self.project, self.environment
        )
    }
}

/// A component of a cell.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ComponentId {
    /// Its cell.
    pub cell: CellId,
    /// Its name.
    pub component: Name,
}

impl fmt::Display for ComponentId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.cell, self.component)
    }
}

/// An endpoint of a component.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EndpointId {
    /// Its component.
    pub component: ComponentId,
    /// Its name.
    pub endpoint: Name,
}

impl fmt::Display for EndpointId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.component, self.endpoint)
    }
}

/// Which of the two ingress gates of a cell.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Gate {
    /// North: from the internet, endpoints with visibility `public`.
    External,
    /// West: from the organization and other cells, endpoints with visibility `organization`.
    Internal,
}

impl Gate {
    /// The direction of what comes by it.
    pub fn direction(self) -> &'static str {
        match self {
            Self::External => "north",
            Self::Internal => "west",
        }
    }
}

impl fmt::Display for Gate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.direction())
    }
}

/// Transport protocol of a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Transport {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

impl fmt::Display for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
        })
    }
}

/// An IP network in canonical form: host bits are zero (RFC 4632, RFC 4291).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Cidr {
    address: IpAddr,
    length: u8,
}

/// What is wrong with a network.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CidrError {
    /// Not `address/length`, or not a valid address.
    #[error("expected an IP network such as `203.0.113.0/24` or `2001:db8::/32`, got `{0}`")]
    Malformed(String),
    /// Longer than the address.
    #[error("prefix length of `{0}` is longer than its address")]
    Length(String),
    /// Bits behind the prefix are set; probably a host address was meant.
    #[error("`{given}` has host bits set; expected `{canonical}`")]
    HostBits {
        /// As written.
        given: String,
        /// The network that contains it.
        canonical: String,
    },
}

impl Cidr {
    /// Takes a network whose host bits are zero.
    pub fn new(address: IpAddr, length: u8) -> Result<Self, CidrError> {
        let given = format!("{address}/{length}");
        let network: IpAddr = match address {
            IpAddr::V4(v4) => {
                let host = 32u32
                    .checked_sub(length.into())
                    .ok_or(CidrError::Length(given.clone()))?;
                let mask = u32::MAX.checked_shl(host).unwrap_or(0);
                std::net::Ipv4Addr::from(u32::from(v4) & mask).into()
            }
            IpAddr::V6(v6) => {
                let host = 128u32
                    .checked_sub(length.into())
                    .ok_or(CidrError::Length(given.clone()))?;
                let mask = u128::MAX.checked_shl(host).unwrap_or(0);
                std::net::Ipv6Addr::from(u128::from(v6) & mask).into()
            }
        };
        if network != address {
            return Err(CidrError::HostBits {
                given,
                canonical: format!("{network}/{length}"),
            });
        }
        Ok(Self { address, length })
    }

    /// The network of one address.
    pub fn host(address: IpAddr) -> Self {
        Self {
            address,
            length: if address.is_ipv4() { 32 } else { 128 },
        }
    }

    /// First address of the network.
    pub fn address(&self) -> IpAddr {
        self.address
    }

    /// Length of the prefix in bits of its own family.
    pub fn length(&self) -> u8 {
        self.length
    }

    /// Whether `other` lies inside this network; networks of two families never do.
    pub fn contains(&self, other: &Self) -> bool {
        if self.length > other.length {
            return false;
        }
        match (self.address, other.address) {
            (IpAddr::V4(a), IpAddr::V4(b)) => {
                let mask = u32::MAX
                    .checked_shl(32 - u32::from(self.length))
                    .unwrap_or(0);
                u32::from(b) & mask == u32::from(a)
            }
            (IpAddr::V6(a), IpAddr::V6(b)) => {
                let mask = u128::MAX
                    .checked_shl(128 - u32::from(self.length))
                    .unwrap_or(0);
                u128::from(b) & mask == u128::from(a)
            }
            _ => false,
        }
    }
}

impl std::str::FromStr for Cidr {
    type Err = CidrError;

    fn from_str(text: &str) -> Result<Self, CidrError> {
        let malformed = || CidrError::Malformed(shortened(text));
        let (address, length) = text.split_once('/').ok_or_else(malformed)?;
        let digits = length.bytes().all(|byte| byte.is_ascii_digit());
        if !digits || (length.len() > 1 && length.starts_with('0')) {
            return Err(malformed());
        }
        let address = address.parse().map_err(|_| malformed())?;
        let length = length.parse().map_err(|_| malformed())?;
        Self::new(address, length)
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.length)
    }
}

/// A port. Zero is no port.
pub type Port = NonZeroU16;

/// A DNS host name in lower case without trailing dot (RFC 1123); never an IP address.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Hostname(Arc<str>);

impl Hostname {
    /// Checks and takes a host name; upper case is folded.
    pub fn new(text: &str) -> Result<Self, NameError> {
        let folded = text.to_ascii_lowercase();
        check(&folded, 253, true)?;
        let numeric = folded
            .rsplit('.')
            .next()
            .is_some_and(|last| last.bytes().all(|b| b.is_ascii_digit()));
        if numeric {
            return Err(NameError {
                given: shortened(&folded),
                limit: 253,
                marks: DOTTED,
            });
        }
        for label in folded.split('.') {
            check(label, 63, false)?;
        }
        Ok(Self(folded.into()))
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The name as text that others may hold too.
    pub fn text(&self) -> Arc<str> {
        Arc::clone(&self.0)
    }
}

impl fmt::Display for Hostname {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Where a rule was declared; shown by `status`, logs and counters.
pub type Declared = Source;

/// A base path or a route's path, canonical as requests' paths are.
pub type DocumentPath = CanonicalPath;
