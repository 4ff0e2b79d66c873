//! Time limits and retries of a rule: values that a route's document gives, and that a policy may give
//! instead.

use std::collections::BTreeSet;
use std::time::Duration;

/// A time limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Limit {
    /// Nothing is said: what the router has for everybody.
    #[default]
    Unset,
    /// No limit.
    Off,
    /// This one, above zero.
    After(Duration),
}

impl Limit {
    /// The shorter of this and another one.
    #[must_use]
    pub fn at_most(self, other: Duration) -> Self {
        match self {
            Self::After(own) => Self::After(own.min(other)),
            Self::Unset | Self::Off => Self::After(other),
        }
    }
}

/// Time limits of a rule's requests (Gateway API, `HTTPRouteTimeouts`; Envoy Gateway, `HTTPTimeout`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RuleTimeouts {
    /// From the request's head to the end of the answer, with all tries.
    pub request: Limit,
    /// The same for one try; not longer than `request`.
    pub backend: Limit,
    /// Without a part of the request or of the answer. Unset: as the listener has it.
    pub idle: Limit,
    /// From the request's head to the end of the answer, if one of them has no length that its head tells.
    pub stream: Limit,
}

/// When and how often a request is sent again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Retry {
    /// Tries after the first.
    pub attempts: u32,
    /// Statuses that are tried again.
    pub codes: BTreeSet<u16>,
    /// Statuses of gRPC that are tried again where the head of an answer tells them.
    pub grpc_codes: BTreeSet<u8>,
    /// Tries without an answer that are tried again.
    pub failures: Failures,
    /// Interval until the second try; it doubles with each one.
    pub backoff: Duration,
    /// Longest interval.
    pub max_backoff: Duration,
    /// What is drawn from an interval.
    pub jitter: Jitter,
    /// How many retries a backend gets at most.
    pub budget: RetryBudget,
}

/// Why a try may end without an answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Failures {
    /// There was no connection.
    pub connect: bool,
    /// The upstream refused the stream before it did anything (RFC 9113, section 8.7, `REFUSED_STREAM`).
    pub refused: bool,
    /// The connection broke before the first byte of an answer.
    pub reset: bool,
    /// The try ran out of its own time.
    pub timeout: bool,
}

impl Failures {
    /// All of them.
    pub const ALL: Self = Self {
        connect: true,
        refused: true,
        reset: true,
        timeout: true,
    };
}

/// How the wait for the next try is drawn from its interval, so that requests which failed together do not
/// come back together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Jitter {
    /// From once to twice the interval: a minimum (Gateway API, `HTTPRouteRetry.backoff`).
    Above,
    /// From nothing to the interval (Envoy, `retry_back_off`).
    Full,
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
