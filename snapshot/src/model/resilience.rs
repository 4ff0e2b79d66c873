//! Time limits and retries of a rule: values that a route's document gives, and that a policy may give
//! instead.

use std::collections::BTreeSet;
use std::time::Duration;

/// A time limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Limit {
    /// Nothing is said: what the router has for everybody.
    #[default]
    Unset,
    /// No limit.
    Off,
    /// This one, above zero.
    After(Duration),
}

/// Time limits of a rule's requests (Gateway API, `HTTPRouteTimeouts`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RuleTimeouts {
    /// From the request's head to the end of the answer, with all tries.
    pub request: Limit,
    /// The same for one try; not longer than `request`.
    pub backend: Limit,
}

/// When and how often a request is sent again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Retry {
    /// Tries after the first.
    pub attempts: u32,
    /// Statuses that are tried again.
    pub codes: BTreeSet<u16>,
    /// Whether a connection that failed, or broke before the first byte of an answer, is tried again.
    pub connection_errors: bool,
    /// Whether a try that ran out of its own time is tried again.
    pub timeouts: bool,
    /// Least time until the second try; it doubles with each one, and is drawn from there to twice of it.
    pub backoff: Duration,
    /// Most of that least time.
    pub max_backoff: Duration,
    /// How many retries a backend gets at most.
    pub budget: RetryBudget,
}

impl Retry {
    /// Tries after the first where a document asks for retries without a number (Envoy Gateway,
    /// `BackendTrafficPolicy`).
    pub const ATTEMPTS: u32 = 2;
    /// Backoff where a document says nothing (Envoy, `retry_back_off`).
    pub const BACKOFF: Duration = Duration::from_millis(25);
    /// Longest backoff in units of the first (Envoy, `retry_back_off`).
    pub const GROWTH: u32 = 10;
}

/// Share of retries among the requests of a backend, over ten seconds and per core, so that retries
/// cannot multiply the load of a backend that fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RetryBudget {
    /// Retries in percent of requests.
    pub percent: u32,
    /// Retries a second that are granted anyway.
    pub least: u32,
}

impl Default for RetryBudget {
    fn default() -> Self {
        // Gateway API, `XBackendTrafficPolicy.retryConstraint`: 20 % and 10 a second.
        Self {
            percent: 20,
            least: 10,
        }
    }
}
