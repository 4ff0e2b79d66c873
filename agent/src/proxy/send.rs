//! A request on its way: to its upstream, and perhaps to a tunnel.

use std::rc::Rc;
use std::sync::Arc;

use http::{Response, StatusCode};
use snapshot::model::{EndpointId, Limit};

use super::attempts::{self, Effort, Got};
use super::body::ResponseBody;
use super::clients;
use super::exchange::Exchange;
use super::log::Reason;
use super::normalise;
use super::request::Stage;
use super::respond::Refusal;
use super::tunnel::{self, OnUpgrade};
use super::websocket::{self, Asked};
use crate::upstream::{Answer, Destination, UpstreamRequest};

pub(super) async fn send(
    stage: &Stage<'_>,
    exchange: &mut Exchange,
    destinations: &mut [Destination],
    request: Box<UpstreamRequest>,
    upgrade: Option<Upgrade>,
    effort: Effort<'_>,
) -> Result<Response<ResponseBody>, Refusal> {
    exchange.asks();
    let idle = effort.timeouts.idle;
    let got = match idle {
        Limit::Unset => attempts::send(stage, exchange, destinations, request, effort).await,
        idle => {
            Box::pin(watched(
                stage,
                exchange,
                destinations,
                request,
                (effort, idle),
            ))
            .await
        }
    };
    let Got { answer, deadline } = got?;
    exchange.answered();
    let Answer {
        status,
        mut headers,
        body,
        switched,
        from,
        at,
    } = *answer;
    exchange.record.upstream = Some(from);
    exchange.at = Some(at);
    let switching = status == StatusCode::SWITCHING_PROTOCOLS;
    let asked = upgrade.as_ref().map(|upgrade| upgrade.asked);
    let websocket = switching && upgrade.is_some();
    websocket::no_tunnel(status, asked)?;
    if switching && !websocket {
        return Err(Refusal::new(
            Reason::UpstreamReset,
            "upstream switched protocols although nobody asked",
        ));
    }
    if let (Some(upstream), Some(Upgrade { client, call, .. })) = (switched, upgrade) {
        let (worker, source) = (Rc::clone(stage.worker), stage.conn.peer.ip());
        let was_caller = worker.caller(stage.table, source).is_some();
        let slots = std::mem::take(&mut exchange.slots);
        let held = (slots, stage.conn.counted.clone());
        tunnel::upgraded(stage.worker, client, *upstream, move |table| {
            // The slots, and the connection's place among those of its port, are given back when the tunnel ends.
            let _held = &held;
            match (worker.caller(table, source), &call) {
                (Some(caller), Call::Endpoint(Some(endpoint))) => caller.may_call(endpoint),
                (Some(caller), Call::South(host, port)) => caller
                    .south(*port)
                    .is_some_and(|hosts| hosts.http.contains_key(&**host)),
                (Some(_), Call::Endpoint(None)) => true,
                // Clients that are no component have no declarations to lose.
                (None, _) => !was_caller,
            }
        });
    }
    normalise::received(&mut headers);
    let mut response = Response::new(ResponseBody::streamed(body, deadline));
    *response.status_mut() = status;
    *response.headers_mut() = headers;
    if let (true, Some(asked)) = (websocket, asked) {
        websocket::switched(&mut response, asked);
    }
    Ok(response)
}

/// The same, by a limit of the rule in the place of that of the listener.
async fn watched(
    stage: &Stage<'_>,
    exchange: &mut Exchange,
    destinations: &mut [Destination],
    request: Box<UpstreamRequest>,
    (effort, idle): (Effort<'_>, Limit),
) -> Result<Got, Refusal> {
    exchange.idle = idle;
    let progress = Rc::clone(&exchange.progress);
    progress.release();
    let limit = match idle {
        Limit::After(limit) => Some(limit),
        Limit::Off | Limit::Unset => None,
    };
    tokio::select! {
        biased;
        got = attempts::send(stage, exchange, destinations, request, effort) => got,
        refusal = clients::stuck(&progress, limit) => Err(refusal),
    }
}

/// A request that may become a tunnel.
pub(super) struct Upgrade {
    pub(super) client: OnUpgrade,
    pub(super) asked: Asked,
    pub(super) call: Call,
}

/// What a tunnel needs its caller to have declared, for as long as it lives.
pub(super) enum Call {
    /// A call to an endpoint; none: a document's route, which asks for no declaration.
    Endpoint(Option<EndpointId>),
    /// A service outside, by host and port.
    South(Arc<str>, u16),
}
