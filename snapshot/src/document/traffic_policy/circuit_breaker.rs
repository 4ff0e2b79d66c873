//! `spec.circuitBreaker`.

use std::num::NonZeroU32;

use super::count;
use crate::model::{CircuitBreaker, RetryLimit};
use crate::reader::Field;

/// Where a number is absent (Envoy Gateway, `CircuitBreaker`).
const USUAL: u32 = 1024;
/// Retries in any case (Envoy Gateway, `RetryBudget.minRetryConcurrency`).
const LEAST_RETRIES: u32 = 3;
/// Gateway API, `Fraction.denominator`.
const HUNDRED: u32 = 100;

pub(super) fn read(field: &Field<'_>) -> Option<CircuitBreaker> {
    let mut object = field.object()?;
    let mut number = |name| match object.optional(name) {
        Some(field) => count(&field),
        None => Some(USUAL),
    };
    let connections = number("maxConnections");
    let pending = number("maxPendingRequests");
    let requests = number("maxParallelRequests");
    let retries = number("maxParallelRetries");
    // Zero is no limit, as in Envoy (`max_requests_per_connection`).
    let connection_requests = match object.optional("maxRequestsPerConnection") {
        Some(field) => count(&field).map(NonZeroU32::new),
        None => Some(None),
    };
    let endpoint_connections = match object.optional("perEndpoint") {
        Some(field) => per_endpoint(&field).map(Some),
        None => Some(None),
    };
    let budget = object.optional("retryBudget");
    object.finish();
    // Whoever asks for a budget has the other one as a default (Envoy Gateway, `CircuitBreaker.retryBudget`).
    let retries = match budget {
        Some(field) => retry_budget(&field),
        None => retries.map(RetryLimit::Number),
    };
    Some(CircuitBreaker {
        max_connections: connections?,
        max_endpoint_connections: endpoint_connections?,
        max_connection_requests: connection_requests?,
        max_pending: pending?,
        max_requests: requests?,
        max_retries: retries?,
    })
}

fn per_endpoint(field: &Field<'_>) -> Option<u32> {
    let mut object = field.object()?;
    let connections = match object.optional("maxConnections") {
        Some(field) => count(&field),
        None => Some(USUAL),
    };
    object.finish();
    connections
}

fn retry_budget(field: &Field<'_>) -> Option<RetryLimit> {
    let mut object = field.object()?;
    let percent = object
        .required("percent")
        .and_then(|field| fraction(&field));
    let least = match object.optional("minRetryConcurrency") {
        Some(field) => count(&field),
        None => Some(LEAST_RETRIES),
    };
    object.finish();
    let (numerator, denominator) = percent?;
    Some(RetryLimit::Share {
        numerator,
        denominator,
        least: least?,
    })
}

/// Gateway API, `Fraction`: at most the whole.
fn fraction(field: &Field<'_>) -> Option<(u32, NonZeroU32)> {
    let mut object = field.object()?;
    let numerator = object
        .required("numerator")
        .and_then(|field| u32::try_from(field.integer(0..=i64::from(i32::MAX))?).ok());
    let denominator = match object.optional("denominator") {
        Some(field) => u32::try_from(field.integer(1..=i64::from(i32::MAX))?).ok(),
        None => Some(HUNDRED),
    };
    object.finish();
    let (numerator, denominator) = (numerator?, denominator?);
    if numerator > denominator {
        field.mistake("expected a part of the whole: `numerator` is above `denominator`");
        return None;
    }
    Some((numerator, NonZeroU32::new(denominator)?))
}
