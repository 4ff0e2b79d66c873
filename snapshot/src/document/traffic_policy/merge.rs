//! A policy that is merged into the one above it: the defaults of its sections, and whose rate limit it has.

use super::super::policy::merge::{self, Section, Spec, Usual};
use crate::model::TrafficPolicy;
use crate::reader::Sink;
use crate::tree::Node;

/// Sections, and the defaults of their fields in the API (Envoy Gateway 1.9, `BackendTrafficPolicy`).
const DEFAULTS: [Section; 7] = [
    (
        &["circuitBreaker"],
        &[
            ("maxConnections", Usual::Number(1024)),
            ("maxParallelRequests", Usual::Number(1024)),
            ("maxParallelRetries", Usual::Number(1024)),
            ("maxPendingRequests", Usual::Number(1024)),
        ],
    ),
    (
        &["circuitBreaker", "perEndpoint"],
        &[("maxConnections", Usual::Number(1024))],
    ),
    (
        &["circuitBreaker", "retryBudget", "percent"],
        &[("denominator", Usual::Number(100))],
    ),
    (
        &["healthCheck", "active"],
        &[
            ("healthyThreshold", Usual::Number(1)),
            ("interval", Usual::Text("3s")),
            ("timeout", Usual::Text("1s")),
            ("unhealthyThreshold", Usual::Number(3)),
        ],
    ),
    (
        &["healthCheck", "passive"],
        &[
            ("alwaysEjectOneEndpoint", Usual::No),
            ("baseEjectionTime", Usual::Text("30s")),
            ("consecutive5XxErrors", Usual::Number(5)),
            ("consecutiveLocalOriginFailures", Usual::Number(5)),
            ("interval", Usual::Text("3s")),
            ("maxEjectionPercent", Usual::Number(10)),
            ("splitExternalLocalOriginErrors", Usual::No),
        ],
    ),
    (
        &["loadBalancer", "consistentHash"],
        &[("tableSize", Usual::Number(65_537))],
    ),
    (&["retry"], &[("numRetries", Usual::Number(2))]),
];

/// The policy that comes of one and the one above it; none: it has mistakes, of which `sink` is told.
pub(crate) fn merged(patch: &Spec, original: &Spec, sink: &Sink) -> Option<TrafficPolicy> {
    let rates = |node: &Node| node.value.get("rateLimit").is_some();
    let inherited = rates(&original.node) && !rates(&patch.node);
    let draft = merge::merged(patch, &original.node, &DEFAULTS, sink, super::read)?;
    Some(TrafficPolicy {
        parent: Some(original.name.clone()),
        rates_of_parent: inherited,
        ..draft.policy
    })
}
