//! A rule and the policy of its traffic, joined. What the route says itself goes before.

use std::sync::Arc;

use snapshot::model::{Limit, Retry, Rule, RuleTimeouts, TrafficPolicy};

use crate::route::TargetKind;
use crate::route::backend::Location;
use crate::upstream::{Place, Terms};

/// How long requests of a rule are waited for.
pub(super) fn timeouts(rule: &Rule) -> Option<Arc<RuleTimeouts>> {
    let Some(policy) = &rule.traffic else {
        return rule.timeouts.clone();
    };
    let said = rule.timeouts.as_deref().copied().unwrap_or_default();
    let or = |own: Limit, other: Limit| match own {
        Limit::Unset => other,
        said => said,
    };
    let retry = policy.retry.as_ref().filter(|_| rule.retry.is_none());
    let timeouts = RuleTimeouts {
        request: or(said.request, policy.request_timeout),
        backend: or(
            said.backend,
            retry.map_or(Limit::Unset, |retry| retry.timeout),
        ),
        idle: policy.stream_idle,
        stream: policy.max_stream,
    };
    (timeouts != RuleTimeouts::default()).then(|| Arc::new(timeouts))
}

/// Whether and how requests of a rule are tried again.
pub(super) fn retry(rule: &Rule) -> Option<Arc<Retry>> {
    let policy = || Some(Arc::clone(&rule.traffic.as_ref()?.retry.as_ref()?.retry));
    rule.retry.clone().or_else(policy)
}

/// What a policy says of connections, if it says something.
pub(super) fn terms(policy: &TrafficPolicy) -> Option<Arc<Terms>> {
    let breaker = policy.circuit_breaker.as_ref();
    let terms = Terms {
        connect: policy.connect_timeout,
        idle: policy.connection_idle,
        age: policy.connection_duration,
        requests: breaker.and_then(|breaker| breaker.max_connection_requests),
    };
    (terms != Terms::default()).then(|| Arc::new(terms))
}

/// The endpoints of a backend that a policy can be about; none: it is about requests alone there.
pub(super) fn places(kind: &TargetKind) -> Option<Vec<Location>> {
    match kind {
        TargetKind::Upstreams(list) => {
            let places = list.iter();
            let places = places.map(|one| (Place::from(&one.upstream), one.tls.clone()));
            Some(places.collect())
        }
        TargetKind::Endpoint { addresses, .. } => {
            let places = addresses.iter().copied().map(Place::Address);
            Some(places.map(|place| (place, None)).collect())
        }
        TargetKind::Placements(_) | TargetKind::Unresolved(_) => None,
    }
}
