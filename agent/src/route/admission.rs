//! Which placement serves a request now: the decision of its key, then slot, body, breaker and health, and
//! at most one hop per cause.
//!
//! Flows in: a key, the length of the body as far as it is known, the time. Flows out: an [`Admitted`]
//! whose slot and permit are those of the placement that serves, or why nobody does.

use std::sync::Arc;
use std::time::Duration;

use super::placement::{Placement, Placements, RouteReason};
use crate::resilience::{Admission, Change, CircuitState, Slot};

/// Why another placement than that of the key serves, as in `X-Failover-Reason`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum FailoverReason {
    /// The breaker refuses.
    CircuitOpen,
    /// No endpoint is healthy.
    UpstreamUnhealthy,
}

impl FailoverReason {
    /// As in `X-Failover-Reason`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::CircuitOpen => "circuit_open",
            Self::UpstreamUnhealthy => "upstream_unhealthy",
        }
    }
}

/// Why no placement serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotAdmitted {
    /// The table has no endpoint for the placement.
    #[error("has no endpoint")]
    NoEndpoint,
    /// As many requests as its limit are under way.
    #[error("has no free slot")]
    Full,
    /// The body is longer than its limit.
    #[error("takes no body of this size")]
    BodyTooLarge,
    /// Its breaker is open, and nobody serves instead.
    #[error("has an open breaker, and nobody serves instead")]
    CircuitOpen,
}

/// A request that a placement serves.
#[derive(Debug)]
pub struct Admitted {
    /// The placement that serves.
    pub placement: Arc<Placement>,
    /// Reason of the first decision.
    pub reason: RouteReason,
    /// Why another one serves than decided; with two hops the last cause.
    pub failover: Option<FailoverReason>,
    /// Its slot, to be kept to the end of the exchange.
    pub slot: Slot,
    /// For the result.
    pub permit: Permit,
}

/// Whether a body is within a limit; none is unlimited.
pub fn fits(limit: Option<u64>, bytes: u64) -> bool {
    limit.is_none_or(|limit| bytes <= limit)
}

impl Placements {
    /// Finds who serves a key. `body` is the length that the request tells, if it does. An error comes
    /// with the reason of the decision and the name of the placement that it is about.
    pub fn admit(
        &self,
        key: &str,
        body: Option<u64>,
        now: Duration,
    ) -> Result<Admitted, (RouteReason, Arc<str>, NotAdmitted)> {
        let placed = self.decide(key);
        let refused = |name: &Arc<str>, why| (placed.reason, Arc::clone(name), why);
        let mut at = placed
            .placement
            .ok_or_else(|| refused(placed.name, NotAdmitted::NoEndpoint))?;
        let mut failover = None;
        loop {
            let settings = &at.settings;
            let state = at.state();
            let slot = state
                .slots
                .take(settings.concurrency_limit)
                .ok_or_else(|| refused(&at.name, NotAdmitted::Full))?;
            if !fits(settings.max_request_body_bytes, body.unwrap_or(0)) {
                return Err(refused(&at.name, NotAdmitted::BodyTooLarge));
            }
            let fallback = settings.fallback.as_deref();
            let fallback = fallback.and_then(|name| self.placement(name));
            let Some(admission) = state.breaker.allow(now, &settings.breaker) else {
                // One hop for this cause, and only from where the key leads.
                let target = fallback.filter(|_| failover.is_none());
                at = target.ok_or_else(|| refused(&at.name, NotAdmitted::CircuitOpen))?;
                failover = Some(FailoverReason::CircuitOpen);
                continue;
            };
            let permit = Permit::new(at, admission);
            if failover != Some(FailoverReason::UpstreamUnhealthy) && !at.healthy(key) {
                let other = fallback
                    .or(self.default_placement())
                    .filter(|other| other.name != at.name);
                if let Some(other) = other {
                    // The permit ends without a result: if it was a probe, the next request is.
                    drop(permit);
                    at = other;
                    failover = Some(FailoverReason::UpstreamUnhealthy);
                    continue;
                }
            }
            return Ok(Admitted {
                placement: Arc::clone(at),
                reason: placed.reason,
                failover,
                slot,
                permit,
            });
        }
    }
}

/// Leave of a placement's breaker for one request. Dropped without a result it says nothing about the
/// placement: the client gave up.
#[derive(Debug)]
pub struct Permit {
    placement: Arc<Placement>,
    admission: Option<Admission>,
}

impl Permit {
    fn new(placement: &Arc<Placement>, admission: Admission) -> Self {
        let permit = Self {
            placement: Arc::clone(placement),
            admission: Some(admission),
        };
        if permit.admission.as_ref().is_some_and(|one| one.opened_half) {
            permit.log(CircuitState::HalfOpen, "timeout_elapsed");
        }
        permit
    }

    /// Counts the result: a failure is no answer, or a status of 500 and up. Returns the state before.
    pub fn count(mut self, success: bool, now: Duration) -> Option<CircuitState> {
        let admission = self.admission.take()?;
        let breaker = &self.placement.state().breaker;
        let settings = &self.placement.settings.breaker;
        let counted = breaker.count(admission, success, now, settings);
        match counted.change {
            None => {}
            Some(Change::Opened) => self.log(CircuitState::Open, "failure_threshold_reached"),
            Some(Change::Reopened) => self.log(CircuitState::Open, "half_open_failure"),
            Some(Change::Closed) => self.log(CircuitState::Closed, "recovery_successful"),
        }
        Some(counted.before)
    }

    fn log(&self, state: CircuitState, reason: &'static str) {
        tracing::warn!(
            table = %self.placement.table,
            placement = &*self.placement.name,
            state = state.as_str(),
            reason,
            "circuit breaker changed"
        );
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        if let Some(admission) = self.admission.take() {
            self.placement.state().breaker.cancel(admission);
        }
    }
}

#[cfg(test)]
mod tests;
