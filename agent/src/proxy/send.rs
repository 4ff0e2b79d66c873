//! A request on its way: to its upstream, and perhaps to a tunnel.

use std::rc::Rc;

use http::header;
use http::{Request, Response, StatusCode, Version};
use snapshot::model::EndpointId;

use super::attempts::{self, Effort, Got};
use super::body::ResponseBody;
use super::exchange::Exchange;
use super::log::Reason;
use super::normalise;
use super::request::Stage;
use super::respond::Refusal;
use super::tunnel::{self, OnUpgrade};
use super::websocket::{self, Asked};
use crate::upstream::{Destination, RequestBody};

pub(super) async fn send(
    stage: &Stage<'_>,
    exchange: &mut Exchange,
    destinations: Vec<Destination>,
    request: Request<RequestBody>,
    upgrade: Option<Upgrade>,
    effort: Effort<'_>,
) -> Result<Response<ResponseBody>, Refusal> {
    exchange.asks();
    let Got { answer, deadline } =
        attempts::send(stage, exchange, destinations, request, effort).await?;
    exchange.answered();
    exchange.record.upstream = Some(answer.from);
    exchange.place = Some(answer.place);
    let response = answer.response;
    let switching = response.status() == StatusCode::SWITCHING_PROTOCOLS;
    let asked = upgrade.as_ref().map(|upgrade| upgrade.asked);
    let websocket = switching && upgrade.is_some();
    websocket::no_tunnel(response.status(), asked)?;
    if switching && !websocket {
        return Err(Refusal::new(
            Reason::UpstreamReset,
            "upstream switched protocols although nobody asked",
        ));
    }
    if let (Some(upstream), Some(Upgrade { client, call, .. })) = (answer.switched, upgrade) {
        let (worker, source) = (Rc::clone(stage.worker), stage.conn.peer.ip());
        let was_caller = worker.caller(stage.table, source).is_some();
        let held = (
            exchange.slots.clone(),
            exchange.served.clone(),
            stage.conn.counted.clone(),
        );
        tunnel::upgraded(stage.worker, client, upstream, move |table| {
            // The slots, and the connection's place among those of its port, are given back when the tunnel ends.
            let _held = &held;
            match (worker.caller(table, source), &call) {
                (Some(caller), Call::Endpoint(Some(endpoint))) => caller.may_call(endpoint),
                (Some(caller), Call::South(host, port)) => caller
                    .south(*port)
                    .is_some_and(|hosts| hosts.http.contains_key(host.as_str())),
                (Some(_), Call::Endpoint(None)) => true,
                // Clients that are no component have no declarations to lose.
                (None, _) => !was_caller,
            }
        });
    }
    let (mut parts, body) = response.into_parts();
    if parts.headers.contains_key(header::TRANSFER_ENCODING) {
        // The coding told where the body ends; a length besides it is not to be passed on (RFC 9112,
        // section 6.3).
        parts.headers.remove(header::CONTENT_LENGTH);
    }
    normalise::strip_hop_by_hop(&mut parts.headers);
    if let (true, Some(asked)) = (websocket, asked) {
        websocket::switched(&mut parts, asked);
    }
    parts.version = Version::HTTP_11;
    parts.extensions.clear();
    Ok(Response::from_parts(
        parts,
        ResponseBody::streamed(body, deadline),
    ))
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
    South(String, u16),
}
