//! Routing tables: from a routing key to a placement to an endpoint.

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroU32;
use std::time::Duration;

use super::{Cidr, Declared, ObjectName, Port, SectionName, UpstreamHost};

/// A routing table.
#[derive(Clone, Debug)]
pub struct RoutingTable {
    /// Its name.
    pub name: ObjectName,
    /// Its document.
    pub declared: Declared,
    /// The author's word; opaque, no order.
    pub version: String,
    /// Where the key of a request is.
    pub key: KeySource,
    /// Who may set the key; empty: every client.
    pub trust: Vec<KeyTrust>,
    /// Key to name of a placement in `placements`.
    pub keys: BTreeMap<String, String>,
    /// Placements by name.
    pub placements: BTreeMap<String, Placement>,
    /// Placement of unknown keys; in `placements`.
    pub default: String,
    /// Placements that are tiers; a key that leads to one has reason `tier`, to another `dedicated`.
    pub tiers: BTreeSet<String>,
}

/// Where the routing key of a request is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeySource {
    /// A request header, lower case; by default `x-routing-key`.
    Header(String),
    /// A claim of the verified token, by its dotted path.
    Claim(String),
    /// A name of the client's certificate, which was verified.
    Certificate(CertificateName),
    /// The server name of the TLS connection.
    Sni,
    /// The request's host.
    Host,
    /// A segment of the path, from 0.
    Path(usize),
    /// A parameter of the query.
    Query(String),
    /// A cookie.
    Cookie(String),
}

/// Which name of a certificate (RFC 5280, sections 4.1.2.6 and 4.2.1.6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CertificateName {
    /// The subject's common name.
    Common,
    /// The alternative name that is a DNS name.
    Dns,
    /// The alternative name that is a URI.
    Uri,
}

/// Clients that may set the key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyTrust {
    /// Where it is said.
    pub declared: Declared,
    /// The gateway that they come to.
    pub gateway: ObjectName,
    /// Its listener; none: any of its listeners.
    pub listener: Option<SectionName>,
    /// Networks that they come from; empty: anywhere.
    pub sources: Vec<Cidr>,
}

/// A cell's worth of endpoints behind one name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placement {
    /// Base URLs of its endpoints, one or more.
    pub endpoints: Vec<PlacementUrl>,
    /// Endpoints that one routing key may use; none: all of them.
    pub shard_size: Option<NonZeroU32>,
    /// Placement that serves when this one cannot; in `placements`, without circles.
    pub fallback: Option<String>,
    /// Active health check.
    pub health_check: HealthCheck,
    /// Circuit breaker.
    pub breaker: BreakerSettings,
    /// Requests at a time; none: unlimited.
    pub concurrency_limit: Option<NonZeroU32>,
    /// Bytes of a request body; none: unlimited.
    pub max_request_body_bytes: Option<u64>,
}

/// `http` or `https`, host and port; no path, query or user.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlacementUrl {
    /// Whether the router speaks TLS to it.
    pub tls: bool,
    /// Host.
    pub host: UpstreamHost,
    /// Port; 80 or 443 when the URL has none.
    pub port: Port,
}

/// Active health check of a placement.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HealthCheck {
    /// Path, not empty.
    pub path: String,
    /// Time between probes, above zero.
    pub interval: Duration,
    /// Time for one probe, above zero.
    pub timeout: Duration,
}

impl Default for HealthCheck {
    /// What a placement has that says nothing: GET /health every 10 s, for at most 2 s.
    fn default() -> Self {
        Self {
            path: "/health".to_owned(),
            interval: Duration::from_secs(10),
            timeout: Duration::from_secs(2),
        }
    }
}

/// Circuit breaker of a placement.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BreakerSettings {
    /// Failures in a row until it opens.
    pub failure_threshold: NonZeroU32,
    /// Time until it half-opens, above zero.
    pub timeout: Duration,
}

impl Default for BreakerSettings {
    /// What a placement has that says nothing: 5 failures in a row, 30 s.
    fn default() -> Self {
        Self {
            failure_threshold: NonZeroU32::MIN.saturating_add(4),
            timeout: Duration::from_secs(30),
        }
    }
}

impl Placement {
    /// A placement of one endpoint, with nothing set.
    pub fn at(url: PlacementUrl) -> Self {
        Self {
            endpoints: vec![url],
            shard_size: None,
            fallback: None,
            health_check: HealthCheck::default(),
            breaker: BreakerSettings::default(),
            concurrency_limit: None,
            max_request_body_bytes: None,
        }
    }
}
