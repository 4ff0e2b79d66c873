//! Where a matched rule sends a request: one target by weight, and the places behind it.

use std::net::SocketAddr;
use std::sync::Arc;

use agent_common::Mark;
use http::HeaderValue;
use snapshot::model::UpstreamHost;

use super::connection::Conn;
use super::exchange::Exchange;
use super::grpc::is_grpc;
use super::inbound::Inbound;
use super::log::Reason;
use super::managed;
use super::placed::{self, Serving};
use super::respond::Refusal;
use super::worker::Worker;
use crate::route::backend::Location;
use crate::route::{Identity, Managed, RouteRule, RouteTarget, RouteUpstream, TargetKind, TlsPeer};
use crate::upstream::{Destination, Place};

/// Where a rule sends a request.
pub(super) struct Chosen {
    pub(super) destinations: Vec<Destination>,
    /// Bytes that the body may have.
    pub(super) body_limit: Option<u64>,
    /// The placement, if it was chosen by routing key.
    pub(super) serving: Option<Serving>,
    /// A cookie that leads the client to the same endpoint the next time.
    pub(super) cookie: Option<HeaderValue>,
}

/// One target of a rule by weight.
pub(super) fn pick<'a>(worker: &Worker, rule: &'a RouteRule) -> Result<&'a RouteTarget, Refusal> {
    let none = || Refusal::new(Reason::NoTarget, "the rule has no target with a weight");
    if rule.weight == 0 {
        return Err(none());
    }
    rule.target(worker.random() % rule.weight).ok_or_else(none)
}

pub(super) fn choose(
    worker: &Worker,
    exchange: &mut Exchange,
    conn: &Conn,
    inbound: &Inbound,
    target: &RouteTarget,
    to: Option<SocketAddr>,
    mark: Mark,
) -> Result<Chosen, Refusal> {
    let websocket = inbound.upgrade.is_some();
    let grpc = !websocket && is_grpc(&inbound.parts.headers);
    let destination = |place, tls, http2| Destination {
        place,
        tls,
        http2,
        mark: worker.mark(mark),
        host: None,
        outside: false,
        owner: None,
        terms: target.terms.clone(),
    };
    let plain = |destinations| Chosen {
        destinations,
        body_limit: None,
        serving: None,
        cookie: None,
    };
    let treated = |exchange: &Exchange, managed: &Managed, http2| {
        let (places, cookie) = managed::places(worker, exchange, inbound, (managed, target.id))?;
        let places = places.into_iter();
        let destinations = places.map(|(place, tls)| destination(place, tls, http2));
        Ok(Chosen {
            cookie,
            ..plain(destinations.collect())
        })
    };
    if let Some(managed) = &target.managed {
        managed::admit(exchange, managed)?;
    }
    match &target.kind {
        TargetKind::Upstreams(list) => {
            let http2 = !websocket && (target.http2 || grpc);
            if list.is_empty() {
                return Err(Refusal::new(
                    Reason::NoReadyEndpoint,
                    "the backend has no address",
                ));
            }
            if let Some(managed) = &target.managed {
                return treated(exchange, managed, http2);
            }
            let places = in_turn(worker, exchange.record.generation, target.id, list);
            Ok(plain(
                places
                    .map(|(place, tls)| destination(place, tls, http2))
                    .collect(),
            ))
        }
        TargetKind::Endpoint {
            endpoint,
            addresses,
            http2,
        } => {
            let http2 = !websocket && (*http2 || grpc);
            if let Some(to) = to {
                return Ok(plain(vec![destination(Place::Address(to), None, http2)]));
            }
            if addresses.is_empty() {
                let detail = format!("no workload of {endpoint} is known");
                return Err(Refusal::new(Reason::NoReadyEndpoint, detail));
            }
            if let Some(managed) = &target.managed {
                return treated(exchange, managed, http2);
            }
            let turn = worker.turn(exchange.record.generation, target.id, addresses.len());
            let (before, after) = addresses.split_at(turn);
            let places = after.iter().chain(before).copied().map(Place::Address);
            Ok(plain(
                places
                    .map(|place| destination(place, None, http2))
                    .collect(),
            ))
        }
        TargetKind::Placements(table) => {
            let reach = |place, tls| destination(place, tls, grpc);
            placed::choose(worker, exchange, conn, inbound, (table, target.id), reach)
        }
        TargetKind::Unresolved(reason) => Err(Refusal::new(Reason::Unresolved, &**reason)),
    }
}

/// Where a copy goes, with version and mark of the request itself, and what is shown there.
pub(super) fn mirrored(
    worker: &Worker,
    generation: u64,
    target: &RouteTarget,
    (like, identity): (&Destination, Option<&Arc<Identity>>),
) -> Vec<Destination> {
    let places: Vec<Location> = match &target.kind {
        TargetKind::Upstreams(list) if !list.is_empty() => {
            in_turn(worker, generation, target.id, list).collect()
        }
        TargetKind::Endpoint { addresses, .. } if !addresses.is_empty() => {
            let turn = worker.turn(generation, target.id, addresses.len());
            vec![(Place::Address(addresses[turn]), None)]
        }
        _ => Vec::new(),
    };
    let destination = |(place, tls): (Place, Option<TlsPeer>)| Destination {
        place,
        tls: tls.map(|tls| TlsPeer {
            identity: identity.cloned(),
            ..tls
        }),
        host: None,
        terms: target.terms.clone(),
        ..like.clone()
    };
    places.into_iter().map(destination).collect()
}

/// A list of upstreams, from the one whose turn it is.
pub(super) fn in_turn<'a>(
    worker: &Worker,
    generation: u64,
    target: u64,
    list: &'a [RouteUpstream],
) -> impl Iterator<Item = (Place, Option<TlsPeer>)> + use<'a> {
    let turn = worker.turn(generation, target, list.len());
    let (before, after) = list.split_at(turn);
    after
        .iter()
        .chain(before)
        .map(|one| (Place::from(&one.upstream), one.tls.clone()))
}

pub(super) fn tls_name(host: &UpstreamHost) -> Result<TlsPeer, Refusal> {
    let name = match host {
        UpstreamHost::Address(address) => rustls_pki_types::ServerName::from(*address),
        UpstreamHost::Name(name) => rustls_pki_types::ServerName::try_from(name.to_string())
            .map_err(|error| Refusal::new(Reason::Unresolved, error.to_string()))?,
    };
    Ok(TlsPeer::from(name))
}
