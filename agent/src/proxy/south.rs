//! Calls of components to services outside.

use std::sync::Arc;

use agent_common::Mark;
use http::header;
use http::{Response, Version};
use snapshot::model::RuleTimeouts;

use super::attempts::Effort;
use super::body::ResponseBody;
use super::exchange::Exchange;
use super::inbound::Inbound;
use super::log::Reason;
use super::normalise;
use super::outbound::Outbound;
use super::request::Stage;
use super::respond::Refusal;
use super::send::{Call, Upgrade, send};
use crate::route::Caller;
use crate::upstream::{Destination, Place};

/// A request of a component to a service outside, by plain HTTP: the host must be declared for the
/// port; the connection goes to what the declared name resolves to. Path and headers stay as sent:
/// nothing here decides by them.
pub(super) async fn south(
    stage: &Stage<'_>,
    exchange: &mut Exchange,
    inbound: Box<Inbound>,
    caller: &Caller,
) -> Result<Response<ResponseBody>, Refusal> {
    exchange.record.listener = Some(stage.worker.south_label());
    exchange.record.direction = Some("south");
    exchange.record.cell = Some(Arc::clone(&caller.cell));
    let port = stage.conn.local.port();
    let normal = &inbound.normal;
    let name = caller
        .south(port)
        .and_then(|hosts| hosts.http.get(&*normal.host))
        .filter(|_| normal.port.unwrap_or(80) == port)
        .ok_or_else(|| {
            let detail = format!(
                "{} did not declare {}:{port} as HTTP",
                caller.name, normal.host
            );
            Refusal::new(Reason::HostNotDeclared, detail)
        })?;
    let http2 = inbound.parts.version == Version::HTTP_2 && inbound.upgrade.is_none();
    let mut destinations = [Destination {
        place: Place::Name(name.clone(), port),
        tls: None,
        http2,
        mark: stage.worker.mark(Mark::Upstream),
        host: None,
        outside: stage.worker.outside(),
        owner: Some(Arc::clone(&caller.name)),
        terms: None,
    }];
    let Inbound {
        mut parts,
        body,
        normal,
        upgrade,
        ..
    } = *inbound;
    normalise::strip_hop_by_hop(&mut parts.headers);
    parts.headers.remove(header::EXPECT);
    let outbound = Outbound {
        target: None,
        host: normal.authority,
        tls: false,
        http2,
        trailers: normal.trailers,
        websocket: upgrade.is_some(),
    };
    let request = outbound.request(parts, body)?;
    let upgrade = upgrade.map(|(client, asked)| Upgrade {
        client,
        asked,
        call: Call::South(normal.host, port),
    });
    let effort = Effort {
        timeouts: RuleTimeouts::default(),
        retry: None,
        backend: &caller.name,
        managed: None,
    };
    send(stage, exchange, &mut destinations, request, upgrade, effort).await
}
