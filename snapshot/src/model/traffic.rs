//! How traffic to the backends of a rule is treated.

use std::collections::BTreeSet;
use std::fmt;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use super::{Cidr, Declared, DocumentPath, Hostname, Limit, ObjectName, Pattern, Retry, TextMatch};

/// What a `BackendTrafficPolicy` (Envoy Gateway) says of a rule's requests and of the backends that they go
/// to.
#[derive(Clone, Debug)]
pub struct TrafficPolicy {
    /// Its name.
    pub name: ObjectName,
    /// Its document.
    pub declared: Declared,
    /// The policy of a gateway or listener that it was merged into.
    pub parent: Option<ObjectName>,
    /// Whether the rate limit is that one's.
    pub rates_of_parent: bool,
    /// From a request's head to the end of the answer, with all tries. What a route says itself goes before.
    pub request_timeout: Limit,
    /// Without a part of a request or of its answer.
    pub stream_idle: Limit,
    /// From a request's head to the end of the answer, where one of them has no length that its head tells.
    pub max_stream: Limit,
    /// Until a connection to a backend stands, TLS included; none: the router's own.
    pub connect_timeout: Option<Duration>,
    /// How long a connection to a backend is kept without a request.
    pub connection_idle: Limit,
    /// How long a connection to a backend serves requests; none: no limit.
    pub connection_duration: Option<Duration>,
    /// Whether and how requests are tried again. What a route says itself goes before.
    pub retry: Option<PolicyRetry>,
    /// Which endpoint of a backend gets a request.
    pub balance: Balance,
    /// How much a backend gets at a time.
    pub circuit_breaker: Option<CircuitBreaker>,
    /// Which endpoints are asked whether they are healthy, and how.
    pub active: Option<ActiveCheck>,
    /// Which endpoints are left out for what became of requests.
    pub passive: Option<PassiveCheck>,
    /// With fewer endpoints of a backend healthy than so many in a hundred, all of them are used.
    pub panic_threshold: u8,
    /// How many requests pass.
    pub rate_limit: Option<RateLimit>,
}

impl TrafficPolicy {
    /// A policy that leaves everything as is usual.
    pub fn new(name: ObjectName, declared: Declared) -> Self {
        Self {
            name,
            declared,
            parent: None,
            rates_of_parent: false,
            request_timeout: Limit::Unset,
            stream_idle: Limit::Unset,
            max_stream: Limit::Unset,
            connect_timeout: None,
            connection_idle: Limit::Unset,
            connection_duration: None,
            retry: None,
            balance: Balance::default(),
            circuit_breaker: None,
            active: None,
            passive: None,
            panic_threshold: Self::PANIC_THRESHOLD,
            rate_limit: None,
        }
    }

    /// Which policy it is.
    pub fn id(&self) -> PolicyId {
        PolicyId {
            name: self.name.clone(),
            parent: self.parent.clone(),
        }
    }

    /// Which policy its rate limit is of.
    pub fn rates_id(&self) -> PolicyId {
        match &self.parent {
            Some(parent) if self.rates_of_parent => PolicyId {
                name: parent.clone(),
                parent: None,
            },
            _ => self.id(),
        }
    }

    /// Whether it says something of endpoints, and not of requests alone.
    pub fn is_about_endpoints(&self) -> bool {
        self.circuit_breaker.is_some()
            || self.active.is_some()
            || self.passive.is_some()
            || self.balance != Balance::default()
    }

    /// Without a number in the document (Envoy, `healthy_panic_threshold`).
    pub const PANIC_THRESHOLD: u8 = 50;
}

/// A policy, or what came of it and the one that it was merged into.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PolicyId {
    /// Its name.
    pub name: ObjectName,
    /// The policy that it was merged into.
    pub parent: Option<ObjectName>,
}

impl fmt::Display for PolicyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.parent {
            Some(parent) => write!(f, "{} in {parent}", self.name),
            None => write!(f, "{}", self.name),
        }
    }
}

/// Retries of a policy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PolicyRetry {
    /// When and how often.
    pub retry: Arc<Retry>,
    /// How long one try is waited for.
    pub timeout: Limit,
}

/// How an endpoint of a backend is chosen (Envoy Gateway, `LoadBalancer`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Balance {
    /// The one of two drawn endpoints with fewer requests under way.
    LeastRequest {
        /// How long a new endpoint's share grows until it is whole.
        slow_start: Option<Duration>,
    },
    /// Each in turn.
    RoundRobin {
        /// The same.
        slow_start: Option<Duration>,
    },
    /// Any.
    Random,
    /// The one that a hash of the request leads to, as long as it is there.
    ConsistentHash(ConsistentHash),
}

impl Default for Balance {
    fn default() -> Self {
        Self::LeastRequest { slow_start: None }
    }
}

/// Consistent hashing by a Maglev table (Eisenbud et al. 2016, section 3.4).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConsistentHash {
    /// What is hashed; a request without it goes to any endpoint.
    pub key: HashKey,
    /// Entries of the table, a prime number.
    pub table_size: u32,
}

/// What of a request is hashed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HashKey {
    /// The client's address.
    SourceIp,
    /// Headers by lower-case name, those that are there; never empty.
    Headers(Vec<String>),
    /// A cookie.
    Cookie(HashCookie),
    /// Parameters of the query by name, those that are there; never empty.
    QueryParams(Vec<String>),
}

/// A cookie that is hashed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HashCookie {
    /// Its name.
    pub name: String,
    /// How long a client that has none keeps the one that it gets; zero: as long as its session. None: it gets
    /// none.
    pub ttl: Option<Duration>,
    /// Attributes of the one that it gets (RFC 6265, section 4.1.1); an empty value is none.
    pub attributes: Vec<(String, String)>,
}

/// How much a backend gets at a time (Envoy Gateway, `CircuitBreaker`), of all nodes' cores together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CircuitBreaker {
    /// Connections in use.
    pub max_connections: u32,
    /// The same to one endpoint; none: no limit.
    pub max_endpoint_connections: Option<u32>,
    /// Requests of one connection; none: no limit.
    pub max_connection_requests: Option<NonZeroU32>,
    /// Requests that wait for one of them.
    pub max_pending: u32,
    /// Requests under way.
    pub max_requests: u32,
    /// Retries under way.
    pub max_retries: RetryLimit,
}

/// How many retries may be under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RetryLimit {
    /// So many.
    Number(u32),
    /// A share of the requests under way.
    Share {
        /// Of ...
        numerator: u32,
        /// ... so many.
        denominator: NonZeroU32,
        /// And so many in any case.
        least: u32,
    },
}

/// How endpoints are asked whether they are healthy (Envoy Gateway, `ActiveHealthCheck`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ActiveCheck {
    /// Until an answer is there.
    pub timeout: Duration,
    /// From one question to the next.
    pub interval: Duration,
    /// Bad answers in a row until an endpoint is unhealthy.
    pub unhealthy_threshold: NonZeroU32,
    /// Good ones until it is healthy again.
    pub healthy_threshold: NonZeroU32,
    /// What is asked.
    pub question: Question,
}

/// What an endpoint is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Question {
    /// A request by HTTP/1.1.
    Http {
        /// Host that is asked for; none: the endpoint's own.
        host: Option<Hostname>,
        /// Its method, upper case.
        method: String,
        /// Path and query.
        path: String,
        /// Statuses that are good; never empty.
        statuses: BTreeSet<u16>,
        /// What the body must have in it.
        body: Option<Vec<u8>>,
    },
    /// A connection, and bytes on it.
    Tcp {
        /// What is sent.
        send: Vec<u8>,
        /// What comes back must have this in it; empty: the connection is enough.
        receive: Vec<u8>,
    },
    /// `grpc.health.v1.Health/Check` by HTTP/2.
    Grpc {
        /// The service that is asked about; empty: the whole server.
        service: String,
    },
}

/// When an endpoint is left out for what became of requests (Envoy Gateway, `PassiveHealthCheck`; Envoy, outlier
/// detection).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PassiveCheck {
    /// Answers from 500 in a row; none: they do not count.
    pub server_errors: Option<NonZeroU32>,
    /// Answers 502, 503 and 504 in a row; none: they do not count by themselves.
    pub gateway_errors: Option<NonZeroU32>,
    /// Tries without an answer.
    pub local_failures: LocalFailures,
    /// How long an endpoint is left out the first time; each time more adds the same.
    pub base_ejection: Duration,
    /// So long after its return one of these times is forgotten.
    pub interval: Duration,
    /// Of a hundred endpoints at most so many are left out at a time.
    pub max_ejected: u8,
    /// Whether one may be left out in any case.
    pub always_one: bool,
}

/// How tries without an answer count: no connection, one that broke, no answer in time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LocalFailures {
    /// Each is a gateway error.
    GatewayErrors,
    /// By themselves, so many in a row; none: not at all.
    Apart(Option<NonZeroU32>),
}

/// How many requests pass (Envoy Gateway, `LocalRateLimit`): of one node, each of its routes for itself.
#[derive(Clone, Debug)]
pub struct RateLimit {
    /// Rules in document order; at most one has no selector.
    pub rules: Vec<RateRule>,
}

/// A rule of a rate limit.
#[derive(Clone, Debug)]
pub struct RateRule {
    /// Which requests it is for: all of them must fit. None: those that no other rule is for.
    pub selectors: Vec<RateSelector>,
    /// Requests, and how many may come at once.
    pub requests: NonZeroU32,
    /// In this time.
    pub period: Duration,
    /// As how many a request counts.
    pub cost: u32,
    /// Whether all routes of the policy share it.
    pub shared: bool,
}

/// A condition of a rule. All its parts must fit.
#[derive(Clone, Debug)]
pub struct RateSelector {
    /// Headers by lower-case name.
    pub headers: Vec<(String, RateText)>,
    /// Parameters of the query by name, decoded.
    pub query: Vec<(String, RateText)>,
    /// Methods in upper case, one of which fits; empty: any.
    pub methods: Vec<Inverted<String>>,
    /// The path.
    pub path: Option<Inverted<RatePath>>,
    /// The client's address.
    pub source: Option<RateSource>,
}

/// A condition, or what it does not fit.
#[derive(Clone, Debug)]
pub struct Inverted<T> {
    /// The condition.
    pub wanted: T,
    /// Whether it must not hold.
    pub invert: bool,
}

/// How the value of a header or query parameter is looked at.
#[derive(Clone, Debug)]
pub enum RateText {
    /// It must be like this. What is not there is not.
    Like(Inverted<TextMatch>),
    /// It must be there, and each value is counted for itself.
    Distinct,
}

/// Where clients are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RateSource {
    /// In this network.
    pub network: Cidr,
    /// Whether each address is counted for itself.
    pub distinct: bool,
}

/// How the canonical path of a request is looked at.
#[derive(Clone, Debug)]
pub enum RatePath {
    /// Byte for byte.
    Exact(DocumentPath),
    /// By whole segments.
    Prefix(DocumentPath),
    /// The whole path, in linear time.
    Regex(Pattern),
}
