//! Requests by routing key: the placement that serves them, its endpoints, and what its answer says of it.

use std::sync::Arc;
use std::time::Instant;

use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Response, StatusCode};
use snapshot::model::PlacementUrl;

use super::connection::Conn;
use super::exchange::Exchange;
use super::inbound::Inbound;
use super::log::Reason;
use super::normalise::{self, CIRCUIT_STATE, FAILOVER_REASON, ROUTE_REASON, ROUTED_TO};
use super::respond::Refusal;
use super::target::{Chosen, tls_name};
use super::worker::Worker;
use crate::resilience::CircuitState;
use crate::route::placement::PlacementEndpoint;
use crate::route::{
    FailoverReason, NotAdmitted, Permit, Placement, Placements, RouteReason, TlsPeer,
};
use crate::upstream::{Destination, Place};

/// The placement that serves a request.
pub(super) struct Serving {
    placement: Arc<Placement>,
    reason: RouteReason,
    failover: Option<FailoverReason>,
    permit: Permit,
}

/// Admits a request to a placement and lists the endpoints that may serve it, in turn and healthy ones
/// first. `turn` numbers the target.
pub(super) fn choose(
    worker: &Worker,
    exchange: &mut Exchange,
    conn: &Conn,
    inbound: &Inbound,
    (table, turn): (&Placements, u64),
    destination: impl Fn(Place, Option<TlsPeer>) -> Destination,
) -> Result<Chosen, Refusal> {
    let headers = &inbound.parts.headers;
    let listener = exchange.record.listener.clone();
    let key = table
        .key()
        .read(&inbound.key_subject(conn, listener.as_deref()))?;
    let moment = worker.at(exchange.moment());
    let admitted = table.admit(&key, length(headers), moment);
    let admitted = admitted.map_err(|(reason, name, why)| {
        let refusal = Refusal::new(refused(why), format!("placement {name} {why}"));
        exchange.record.placement = Some(name);
        exchange.record.route_reason = Some(reason);
        refusal
    })?;
    let placement = admitted.placement;
    exchange.record.placement = Some(Arc::clone(&placement.name));
    exchange.record.route_reason = Some(admitted.reason);
    exchange.record.failover_reason = admitted.failover;
    exchange.slots.placement = Some(admitted.slot);
    let destinations = match &placement.endpoints[..] {
        [only] => vec![reach(only, &destination)?],
        _ => {
            let mut endpoints = placement.shard(&key);
            let generation = exchange.record.generation;
            let first = worker.turn(generation, turn, endpoints.len());
            endpoints.rotate_left(first);
            endpoints.sort_by_key(|one| !one.health().healthy());
            endpoints
                .into_iter()
                .map(|one| reach(one, &destination))
                .collect::<Result<_, _>>()?
        }
    };
    Ok(Chosen {
        destinations,
        body_limit: placement.settings.max_request_body_bytes,
        serving: Some(Serving {
            reason: admitted.reason,
            failover: admitted.failover,
            permit: admitted.permit,
            placement,
        }),
        cookie: None,
    })
}

fn reach(
    endpoint: &PlacementEndpoint,
    destination: impl Fn(Place, Option<TlsPeer>) -> Destination,
) -> Result<Destination, Refusal> {
    let (at, tls) = address(&endpoint.url)?;
    Ok(Destination {
        host: Some(endpoint.host.clone()),
        ..destination(at, tls)
    })
}

/// Place and TLS name of a placement's URL.
pub(super) fn address(url: &PlacementUrl) -> Result<(Place, Option<TlsPeer>), Refusal> {
    let tls = match url.tls {
        true => Some(tls_name(&url.host)?),
        false => None,
    };
    Ok((Place::new(&url.host, url.port.get()), tls))
}

fn refused(why: NotAdmitted) -> Reason {
    match why {
        NotAdmitted::NoEndpoint => Reason::NoEndpoint,
        NotAdmitted::Full => Reason::ConcurrencyLimit,
        NotAdmitted::BodyTooLarge => Reason::BodySizeLimit,
        NotAdmitted::CircuitOpen => Reason::CircuitOpen,
    }
}

/// Length of a body that tells it.
fn length(headers: &HeaderMap) -> Option<u64> {
    headers
        .get(header::CONTENT_LENGTH)?
        .to_str()
        .ok()?
        .parse()
        .ok()
}

impl Serving {
    /// Counts what came of the request. Gives what its answer says of who served it. `moment`: when its head came.
    pub(super) fn ended<B>(
        self,
        worker: &Worker,
        moment: Instant,
        answer: &mut Result<Response<B>, Refusal>,
    ) -> Option<ServedBy> {
        match answer {
            Ok(response) => {
                let success = response.status() < StatusCode::INTERNAL_SERVER_ERROR;
                let state = self.permit.count(success, worker.at(moment));
                let state = state.unwrap_or(CircuitState::Closed);
                let headers = response.headers_mut();
                normalise::strip_ours(headers);
                Some(ServedBy {
                    placement: self.placement.header.clone(),
                    reason: self.reason,
                    state,
                    failover: self.failover,
                })
            }
            Err(refusal) if refusal.reason.no_answer() => {
                self.permit.count(false, worker.now());
                None
            }
            // The client gave up, sent too much, or the request never left: that says nothing about the
            // placement.
            Err(_) => None,
        }
    }
}

/// What an answer says of the placement that served.
pub(super) struct ServedBy {
    placement: HeaderValue,
    reason: RouteReason,
    state: CircuitState,
    failover: Option<FailoverReason>,
}

impl ServedBy {
    /// Its fields.
    pub(super) fn each(&self, mut tell: impl FnMut(HeaderName, &HeaderValue)) {
        tell(ROUTED_TO, &self.placement);
        let text = HeaderValue::from_static;
        tell(ROUTE_REASON, &text(self.reason.as_str()));
        tell(CIRCUIT_STATE, &text(self.state.as_str()));
        if let Some(failover) = self.failover {
            tell(FAILOVER_REASON, &text(failover.as_str()));
        }
    }

    /// Adds them to others.
    pub(super) fn tell(&self, headers: &mut HeaderMap) {
        self.each(|name, value| {
            headers.insert(name, value.clone());
        });
    }
}
