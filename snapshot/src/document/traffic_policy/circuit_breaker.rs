//! `spec.circuitBreaker`.

use super::{count, percent};
use crate::model::{CircuitBreaker, RetryLimit};
use crate::reader::Field;

/// Where a number is absent (Envoy Gateway, `CircuitBreaker`).
const USUAL: u32 = 1024;
/// Retries in any case (Envoy, `min_retry_concurrency`).
const LEAST_RETRIES: u32 = 3;
/// Retries in a hundred requests (Envoy, `budget_percent`).
const RETRY_PERCENT: u8 = 20;

pub(super) fn read(field: &Field<'_>) -> Option<CircuitBreaker> {
    let mut object = field.object()?;
    object.unsupported(&["maxRequestsPerConnection", "perEndpoint"]);
    let mut number = |name| match object.optional(name) {
        Some(field) => count(&field),
        None => Some(USUAL),
    };
    let connections = number("maxConnections");
    let pending = number("maxPendingRequests");
    let requests = number("maxParallelRequests");
    let retries = object.optional("maxParallelRetries");
    let budget = object.optional("retryBudget");
    object.finish();
    let retries = match (retries, budget) {
        (Some(_), Some(field)) => {
            field.mistake("expected either `maxParallelRetries` or `retryBudget`, got both");
            None
        }
        (Some(field), None) => count(&field).map(RetryLimit::Number),
        (None, Some(field)) => retry_budget(&field),
        (None, None) => Some(RetryLimit::Number(USUAL)),
    };
    Some(CircuitBreaker {
        max_connections: connections?,
        max_pending: pending?,
        max_requests: requests?,
        max_retries: retries?,
    })
}

fn retry_budget(field: &Field<'_>) -> Option<RetryLimit> {
    let mut object = field.object()?;
    let percent = match object.optional("percent") {
        Some(field) => percent(&field),
        None => Some(RETRY_PERCENT),
    };
    let least = match object.optional("minRetryConcurrency") {
        Some(field) => count(&field),
        None => Some(LEAST_RETRIES),
    };
    object.finish();
    Some(RetryLimit::Share {
        percent: percent?,
        least: least?,
    })
}
