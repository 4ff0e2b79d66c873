//! Backends whose traffic a policy is about: what the node remembers of them, and who gets a request.
//!
//! State is kept by backend and by endpoint, whatever the routes are that lead there: two rules of one backend
//! see the same requests under way and the same endpoints left out.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use snapshot::model::{ActiveCheck, RetryLimit, TrafficPolicy};

use super::TlsPeer;
use super::balance::Balancer;
use super::trust::Identity;
use crate::resilience::{Health, Outcome, Outlier, Overflow, Queue, Seat, Slot, Slots};
use crate::upstream::Place;

/// Where an endpoint is, and whom it must be if it is spoken to by TLS.
pub type Location = (Place, Option<TlsPeer>);

/// A backend: its endpoints.
#[derive(Debug)]
pub struct Backend {
    /// Its name, the same in every generation.
    pub name: Arc<str>,
    /// Its endpoints, in the order of its document.
    pub endpoints: Vec<Endpoint>,
    state: OnceLock<Arc<BackendState>>,
}

/// What the node remembers of a backend.
#[derive(Debug, Default)]
pub struct BackendState {
    /// Requests under way.
    pub requests: Slots,
    /// Those among them that are tries after the first.
    pub retries: Slots,
    /// Connections in use, and requests that wait for one.
    pub connections: Queue,
}

/// An endpoint of a backend.
#[derive(Debug)]
pub struct Endpoint {
    /// Where it is.
    pub place: Place,
    /// The same as a text.
    pub name: Arc<str>,
    /// The other end of TLS; none: without TLS.
    pub tls: Option<TlsPeer>,
    state: OnceLock<Arc<EndpointState>>,
}

/// What the node remembers of an endpoint.
#[derive(Debug, Default)]
pub struct EndpointState {
    /// Requests under way.
    pub requests: Slots,
    /// Connections in use, and requests that wait for one.
    pub connections: Queue,
    /// What became of tries.
    pub outlier: Outlier,
    /// When it was first looked at, in milliseconds and plus one.
    seen: AtomicU64,
}

impl Backend {
    /// A backend of which nothing is remembered.
    pub fn new(name: Arc<str>, places: Vec<Location>) -> Self {
        let endpoints = places.into_iter().map(|(place, tls)| Endpoint {
            name: place.to_string().into(),
            place,
            tls,
            state: OnceLock::new(),
        });
        Self {
            name,
            endpoints: endpoints.collect(),
            state: OnceLock::new(),
        }
    }

    /// What is remembered of it.
    pub fn state(&self) -> &BackendState {
        self.state.get_or_init(Arc::default)
    }

    /// Takes over what is remembered of the backend of this name before.
    pub(super) fn adopt(&self, before: &Self) {
        // Nobody has asked this backend for its state yet: it is not published.
        let _ = self
            .state
            .set(Arc::clone(before.state.get_or_init(Arc::default)));
        for one in &self.endpoints {
            if let Some(same) = before.endpoints.iter().find(|old| old.place == one.place) {
                let _ = one
                    .state
                    .set(Arc::clone(same.state.get_or_init(Arc::default)));
            }
        }
    }
}

impl Endpoint {
    /// What is remembered of it.
    pub fn state(&self) -> &EndpointState {
        self.state.get_or_init(Arc::default)
    }
}

impl EndpointState {
    /// How long it has been there.
    pub fn age(&self, now: Duration) -> Duration {
        let now_ms = u64::try_from(now.as_millis()).unwrap_or(u64::MAX);
        let first = match self.seen.load(Ordering::Relaxed) {
            0 => {
                let set = self.seen.compare_exchange(
                    0,
                    now_ms.saturating_add(1),
                    Ordering::Relaxed,
                    Ordering::Relaxed,
                );
                set.map_or_else(|seen| seen - 1, |_| now_ms)
            }
            seen => seen - 1,
        };
        Duration::from_millis(now_ms.saturating_sub(first))
    }
}

/// A connection in use: its places among those of the backend and of the endpoint.
#[derive(Debug)]
pub struct Connection {
    _endpoint: Option<Seat>,
    _backend: Seat,
}

/// A backend under a policy.
#[derive(Debug)]
pub struct Managed {
    /// The policy.
    pub policy: Arc<TrafficPolicy>,
    /// The backend.
    pub backend: Arc<Backend>,
    /// Who gets a request.
    pub balancer: Balancer,
    /// What probes show when they are asked who they are.
    pub identity: Option<Arc<Identity>>,
    /// What probes say of the endpoints, in their order; empty: nobody asks.
    health: Vec<OnceLock<Arc<Health>>>,
}

impl Managed {
    /// Joins a policy and a backend, whose probes show `identity`.
    pub fn new(
        policy: Arc<TrafficPolicy>,
        backend: Arc<Backend>,
        identity: Option<Arc<Identity>>,
    ) -> Self {
        let probed = policy.active.is_some();
        let health = backend.endpoints.iter().filter(|_| probed);
        Self {
            balancer: Balancer::new(&policy.balance, &backend),
            health: health.map(|_| OnceLock::new()).collect(),
            policy,
            backend,
            identity,
        }
    }

    /// Takes over what probes say of the endpoints that the policy before asked in the same way.
    pub(super) fn adopt(&self, before: &Self) {
        if self.policy.active != before.policy.active {
            return;
        }
        for (one, health) in self.backend.endpoints.iter().zip(&self.health) {
            let old = before.backend.endpoints.iter().zip(&before.health);
            if let Some((_, same)) = old.into_iter().find(|(old, _)| old.place == one.place) {
                // Not published yet, as above.
                let _ = health.set(Arc::clone(same.get_or_init(Arc::default)));
            }
        }
    }

    /// How endpoints are asked, and what is known of each.
    pub fn probes(&self) -> impl Iterator<Item = (&ActiveCheck, &Endpoint, &Arc<Health>)> {
        let check = self.policy.active.as_ref();
        let endpoints = self.backend.endpoints.iter().zip(&self.health);
        check.into_iter().flat_map(move |check| {
            let endpoints = endpoints.clone();
            endpoints.map(move |(one, health)| (check, one, health.get_or_init(Arc::default)))
        })
    }

    /// Whether an endpoint's last probes were good; true before the first.
    pub fn healthy(&self, at: usize) -> bool {
        let health = self.health.get(at).and_then(OnceLock::get);
        health.is_none_or(|health| health.healthy())
    }

    /// Whether an endpoint is left out for what became of requests.
    pub fn ejected(&self, at: usize, now: Duration) -> bool {
        self.policy.passive.is_some() && self.backend.endpoints[at].state().outlier.ejected(now)
    }

    /// Endpoints that may have requests now, by position: the healthy ones, or all of them when fewer are
    /// healthy than the policy's threshold.
    pub fn usable(&self, now: Duration) -> Vec<usize> {
        let count = self.backend.endpoints.len();
        let all = 0..count;
        if self.health.is_empty() && self.policy.passive.is_none() {
            return all.collect();
        }
        let mut usable: Vec<usize> = all
            .clone()
            .filter(|at| self.healthy(*at) && !self.ejected(*at, now))
            .collect();
        if usable.len() * 100 < count * usize::from(self.policy.panic_threshold) {
            usable = all.collect();
        }
        usable
    }

    /// A place among the requests under way; none: as many are as may be.
    pub fn request(&self) -> Option<Slot> {
        let breaker = self.policy.circuit_breaker.as_ref();
        let limit = breaker.map_or(u32::MAX, |breaker| breaker.max_requests);
        self.backend.state().requests.take_below(limit)
    }

    /// A connection to an endpoint for a request that needs one for itself; none: the policy says nothing of
    /// connections.
    pub async fn connection(&self, at: Option<usize>) -> Result<Option<Connection>, Overflow> {
        let Some(breaker) = &self.policy.circuit_breaker else {
            return Ok(None);
        };
        // That of the endpoint first: whoever waits for it keeps no other endpoint's requests waiting.
        let endpoint = match (breaker.max_endpoint_connections, at) {
            (Some(most), Some(at)) => {
                let queue = &self.backend.endpoints[at].state().connections;
                Some(queue.take(most, breaker.max_pending).await?)
            }
            _ => None,
        };
        let queue = &self.backend.state().connections;
        let seat = queue.take(breaker.max_connections, breaker.max_pending);
        Ok(Some(Connection {
            _endpoint: endpoint,
            _backend: seat.await?,
        }))
    }

    /// A place among the retries under way; none: as many are as may be.
    pub fn retry(&self) -> Option<Slot> {
        let state = self.backend.state();
        let breaker = self.policy.circuit_breaker.as_ref();
        let limit = match breaker.map(|breaker| breaker.max_retries) {
            None => u32::MAX,
            Some(RetryLimit::Number(number)) => number,
            Some(RetryLimit::Share {
                numerator,
                denominator,
                least,
            }) => {
                let taken = u64::from(state.requests.taken()) * u64::from(numerator);
                let share = taken / u64::from(denominator.get());
                u32::try_from(share).unwrap_or(u32::MAX).max(least)
            }
        };
        state.retries.take_below(limit)
    }

    /// Position of the endpoint at a place.
    pub fn at(&self, place: &Place) -> Option<usize> {
        let mut endpoints = self.backend.endpoints.iter();
        endpoints.position(|one| one.place == *place)
    }

    /// Counts what became of a try at an endpoint, which may be left out for it.
    pub fn count(&self, at: usize, outcome: Outcome, now: Duration) {
        let Some(settings) = &self.policy.passive else {
            return;
        };
        let endpoint = &self.backend.endpoints[at];
        let outlier = &endpoint.state().outlier;
        if !outlier.observe(outcome, settings) || outlier.ejected(now) {
            return;
        }
        let count = self.backend.endpoints.len();
        let others = (0..count).filter(|at| self.ejected(*at, now)).count();
        let allowed = (others + 1) * 100 <= count * usize::from(settings.max_ejected)
            || (settings.always_one && others == 0);
        if !allowed {
            tracing::warn!(
                backend = &*self.backend.name,
                endpoint = &*endpoint.name,
                others,
                "endpoint fails, and as many are left out as may be"
            );
            return;
        }
        let until = outlier.eject(now, settings);
        tracing::warn!(
            backend = &*self.backend.name,
            endpoint = &*endpoint.name,
            last = ?outcome,
            seconds = until.saturating_sub(now).as_secs_f64(),
            "endpoint is left out"
        );
    }
}

#[cfg(test)]
mod tests;
