//! How traffic to the backends of a rule is treated.

use std::sync::Arc;
use std::time::Duration;

use super::{Declared, Limit, ObjectName, Retry};

/// What a `BackendTrafficPolicy` (Envoy Gateway) says of a rule's requests and of the backends that they go
/// to.
#[derive(Clone, Debug)]
pub struct TrafficPolicy {
    /// Its name.
    pub name: ObjectName,
    /// Its document.
    pub declared: Declared,
    /// From a request's head to the end of the answer, with all tries. What a route says itself goes before.
    pub request_timeout: Limit,
    /// Until a connection to a backend stands, TLS included; none: the router's own.
    pub connect_timeout: Option<Duration>,
    /// Whether and how requests are tried again. What a route says itself goes before.
    pub retry: Option<PolicyRetry>,
}

/// Retries of a policy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PolicyRetry {
    /// When and how often.
    pub retry: Arc<Retry>,
    /// How long one try is waited for.
    pub timeout: Limit,
}
