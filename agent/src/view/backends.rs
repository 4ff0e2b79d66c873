//! Backends that policies are about, as the router knows them now.

use std::time::Duration;

use crate::route::RouteTable;
use crate::status::{BackendEndpointStatus, BackendStatus};

/// Backends by name and policy.
pub(super) fn rows(table: &RouteTable, now: Duration) -> Vec<BackendStatus> {
    let rows = table.managed().map(|managed| {
        let state = managed.backend.state();
        let breaker = managed.policy.circuit_breaker.as_ref();
        let endpoints = managed.backend.endpoints.iter().enumerate();
        BackendStatus {
            backend: managed.backend.name.to_string(),
            policy: managed.policy.id().to_string(),
            requests: state.requests.taken(),
            max_requests: breaker.map(|breaker| breaker.max_requests),
            retries: state.retries.taken(),
            endpoints: endpoints
                .map(|(at, one)| BackendEndpointStatus {
                    endpoint: one.name.to_string(),
                    healthy: managed.healthy(at),
                    ejected: managed.ejected(at, now),
                    requests: one.state().requests.taken(),
                })
                .collect(),
        }
    });
    rows.collect()
}
