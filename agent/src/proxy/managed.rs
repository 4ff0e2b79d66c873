//! Requests to backends that a policy is about: who gets one, whether it may go there at all, and what came
//! of each try.

use http::HeaderValue;
use tokio::time::Instant;

use super::exchange::Exchange;
use super::inbound::Inbound;
use super::log::Reason;
use super::respond::Refusal;
use super::session::cookie;
use super::worker::Worker;
use crate::resilience::{Outcome, Overflow, Slot};
use crate::route::backend::{Connection, Location, Managed};
use crate::route::balance::{Balancer, Draw, Keyed, new_cookie};
use crate::route::hash::stable;
use crate::route::query;
use crate::upstream::{Answer, Destination, Patience, Place, UpstreamError};

/// Admits a request to a backend. Its place is kept to the end of the exchange.
pub(super) fn admit(exchange: &mut Exchange, managed: &Managed) -> Result<(), Refusal> {
    let slot = managed.request().ok_or_else(|| {
        let detail = format!(
            "{} has as many requests as it may have",
            managed.backend.name
        );
        Refusal::new(Reason::BackendOverloaded, detail)
    })?;
    exchange.slots.backend = Some(slot);
    Ok(())
}

/// Endpoints that may serve a request, in the order in which they are tried, and a cookie for the client.
pub(super) fn places(
    worker: &Worker,
    exchange: &Exchange,
    inbound: &Inbound,
    (managed, turn): (&Managed, u64),
) -> Result<(Vec<Location>, Option<HeaderValue>), Refusal> {
    let now = worker.now();
    let mut usable = managed.usable(now);
    if usable.is_empty() {
        let detail = format!("no endpoint of {} is healthy", managed.backend.name);
        return Err(Refusal::new(Reason::NoReadyEndpoint, detail));
    }
    let (hash, cookie) = match &managed.balancer {
        Balancer::Hash(hashing) => hash(worker, inbound, &hashing.key),
        _ => (None, None),
    };
    let draw = Draw {
        random: || worker.random(),
        turn: |count| worker.turn(exchange.record.generation, turn, count),
        hash,
        now,
    };
    managed.balancer.choose(&managed.backend, &mut usable, draw);
    let endpoints = &managed.backend.endpoints;
    let places = usable.into_iter().map(|at| {
        let one = &endpoints[at];
        (one.place.clone(), one.tls.clone())
    });
    Ok((places.collect(), cookie))
}

/// Hash of what a policy names, if the request has it.
fn hash(worker: &Worker, inbound: &Inbound, key: &Keyed) -> (Option<u64>, Option<HeaderValue>) {
    let headers = &inbound.parts.headers;
    let hash = match key {
        Keyed::SourceIp => Some(stable(&[inbound.client.to_string().as_bytes()])),
        Keyed::Headers(names) => {
            let lines = names.iter().flat_map(|name| {
                let lines = headers.get_all(name).iter();
                lines.flat_map(move |line| [name.as_str().as_bytes(), line.as_bytes()])
            });
            hash_of(&lines.collect::<Vec<_>>())
        }
        Keyed::QueryParams(names) => {
            let query = inbound.parts.uri.query();
            let values: Vec<_> = names
                .iter()
                .filter_map(|name| Some((name, query::first(query, name)?)))
                .collect();
            let parts = values
                .iter()
                .flat_map(|(name, value)| [name.as_bytes(), &**value]);
            hash_of(&parts.collect::<Vec<_>>())
        }
        Keyed::Cookie(wanted) => match cookie(headers, &wanted.name) {
            Some(value) => Some(stable(&[value.as_bytes()])),
            None => {
                let value = format!("{:016x}", worker.random());
                return match new_cookie(wanted, &value) {
                    Some(given) => (Some(stable(&[value.as_bytes()])), Some(given)),
                    None => (None, None),
                };
            }
        },
    };
    (hash, None)
}

fn hash_of(parts: &[&[u8]]) -> Option<u64> {
    (!parts.is_empty()).then(|| stable(parts))
}

/// Waits until a request that needs a connection for itself may have one, for as long as its answer is waited
/// for.
async fn connection(
    worker: &Worker,
    managed: &Managed,
    destinations: &[Destination],
    patience: Patience,
) -> Result<Option<Connection>, UpstreamError> {
    // Over HTTP/2 requests share a connection.
    let Some(first) = destinations.first().filter(|one| !one.http2) else {
        return Ok(None);
    };
    let place = || first.place.to_string();
    let seat = managed.connection(managed.at(&first.place));
    let limit = worker.client.settings().timeouts.head;
    let late = |_| UpstreamError::Deadline { place: place() };
    let seat = match patience {
        Patience::Endless => Ok(seat.await),
        Patience::Usual => {
            tokio::time::timeout(limit, seat)
                .await
                .map_err(|_| UpstreamError::HeadTimeout {
                    place: place(),
                    limit,
                })
        }
        Patience::Until(deadline) => {
            let seat = tokio::time::timeout_at(deadline, seat);
            seat.await.map_err(late)
        }
        Patience::UsualUntil(deadline) => {
            let soon = deadline.min(Instant::now() + limit);
            let seat = tokio::time::timeout_at(soon, seat);
            seat.await.map_err(late)
        }
    };
    seat?.map_err(|Overflow| UpstreamError::Overloaded { place: place() })
}

/// What a request holds of the endpoint that answered it, to the end of its answer.
#[derive(Debug)]
pub(super) struct Held {
    _request: Option<Slot>,
    _connection: Option<Connection>,
}

/// A try under way. Dropped without an end it says nothing about the endpoint: the client gave up.
pub(super) struct Try<'a> {
    managed: &'a Managed,
    slot: Option<Slot>,
    seat: Option<Connection>,
}

impl<'a> Try<'a> {
    /// Begins a try that asks the first of some destinations first.
    pub(super) async fn begin(
        worker: &Worker,
        managed: &'a Managed,
        destinations: &[Destination],
        patience: Patience,
    ) -> Result<Self, UpstreamError> {
        let seat = connection(worker, managed, destinations, patience).await?;
        let first = destinations.first();
        let at = first.and_then(|one| managed.at(&one.place));
        Ok(Self {
            slot: at.and_then(|at| slot(managed, at)),
            seat,
            managed,
        })
    }

    /// Counts what came of it, at each endpoint that was asked. Gives what its answer holds.
    pub(super) fn ended(
        self,
        worker: &Worker,
        destinations: &[Destination],
        result: &Result<Box<Answer>, UpstreamError>,
    ) -> Option<Held> {
        let managed = self.managed;
        let now = worker.now();
        let count = |place: &Place, outcome| {
            if let Some(at) = managed.at(place) {
                managed.count(at, outcome, now);
            }
        };
        let answer = match result {
            Ok(answer) => answer,
            Err(error) => {
                for one in blamed(destinations, error) {
                    count(&one.place, Outcome::LocalFailure);
                }
                return None;
            }
        };
        let answered = &destinations[answer.at].place;
        // Those before it took no connection.
        for one in &destinations[..answer.at] {
            count(&one.place, Outcome::LocalFailure);
        }
        let outcome = match answer.status.as_u16() {
            502..=504 => Outcome::GatewayError,
            500.. => Outcome::ServerError,
            _ => Outcome::Good,
        };
        count(answered, outcome);
        let request = match answer.at {
            0 => self.slot,
            _ => managed.at(answered).and_then(|at| slot(managed, at)),
        };
        Some(Held {
            _request: request,
            _connection: self.seat,
        })
    }
}

fn slot(managed: &Managed, at: usize) -> Option<Slot> {
    managed.backend.endpoints[at].state().requests.take(None)
}

/// The destinations that a failure is about.
fn blamed<'a>(destinations: &'a [Destination], error: &UpstreamError) -> &'a [Destination] {
    let up_to = |place: &str| {
        let found = destinations
            .iter()
            .position(|one| one.place.to_string() == place);
        &destinations[..found.map_or(1, |at| at + 1).min(destinations.len())]
    };
    match error {
        // One after the other took no connection.
        UpstreamError::Resolve { .. }
        | UpstreamError::Connect { .. }
        | UpstreamError::ConnectTimeout { .. } => destinations,
        UpstreamError::Broken { place, .. }
        | UpstreamError::HeadTimeout { place, .. }
        | UpstreamError::Deadline { place } => up_to(place),
        UpstreamError::Untrusted { .. }
        | UpstreamError::NoDatagrams { .. }
        | UpstreamError::ClientStalled { .. }
        | UpstreamError::ClientGone
        | UpstreamError::BodyTooLong { .. }
        | UpstreamError::Overloaded { .. }
        | UpstreamError::Nowhere => &[],
    }
}
