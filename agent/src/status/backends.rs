//! Backends that policies are about: what is under way, and how their endpoints are.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::{Status, plural, section, table};

/// A backend under a `BackendTrafficPolicy`.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, Eq)]
pub struct BackendStatus {
    /// Its name.
    pub backend: String,
    /// namespace/name of the policy.
    pub policy: String,
    /// Requests under way, whatever the policy of their rule.
    pub requests: u32,
    /// Those that may be under way; absent: any number.
    pub max_requests: Option<u32>,
    /// Retries under way.
    pub retries: u32,
    /// Its endpoints.
    pub endpoints: Vec<BackendEndpointStatus>,
}

/// An endpoint of a backend.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, Eq)]
pub struct BackendEndpointStatus {
    /// Where it is.
    pub endpoint: String,
    /// Whether its last probes were good; true before the first, and without any.
    pub healthy: bool,
    /// Whether it is left out for what became of requests.
    pub ejected: bool,
    /// Requests under way.
    pub requests: u32,
}

impl Status {
    pub(super) fn write_backends(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        section(f, "backends with policies", self.backends.len())?;
        let rows = self.backends.iter().map(|one| {
            let requests = match one.max_requests {
                Some(limit) => format!("{} of {limit} requests", one.requests),
                None => plural(one.requests, "request"),
            };
            let endpoints = one.endpoints.iter().map(|one| {
                let health = match (one.healthy, one.ejected) {
                    (false, _) => "UNHEALTHY",
                    (true, true) => "LEFT OUT",
                    (true, false) => "healthy",
                };
                format!("{} {health} {}", one.endpoint, one.requests)
            });
            vec![
                one.backend.clone(),
                format!("policy {}", one.policy),
                format!("{requests}, {}", plural(one.retries, "retry")),
                endpoints.collect::<Vec<_>>().join(", "),
            ]
        });
        table(f, rows.collect())
    }
}
