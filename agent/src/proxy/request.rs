//! The stages of a request: normalise → match listener, host, route → authenticate → authorise →
//! routing key → rewrite, headers → upstream → response headers → access log.
//!
//! Every stage reads the same `Normal` request and the one table that [`handle`] loaded.

use std::borrow::Cow;
use std::rc::Rc;
use std::sync::Arc;

use agent_common::Mark;
use http::header::{self, HeaderValue};
use http::request::Parts;
use http::{Method, Response, Version};
use http_body::Body as _;
use snapshot::model::{Gate, Limit, Origin, RequestIds};

use super::access::{self};
use super::body::ResponseBody;
use super::clients;
use super::connection::{Conn, Entry};
use super::exchange::Exchange;
use super::forward::forward;
use super::gate::{admit, declared, find, listener, note, prefixed};
use super::grpc;
use super::inbound::Inbound;
use super::log::Reason;
use super::normalise::{self};
use super::request_id::RequestId;
use super::respond::{self, Refusal};
use super::seen::Seen;
use super::south::south;
use super::trace::TraceContext;
use super::tunnel::OnUpgrade;
use super::websocket::{self, Asked};
use super::worker::Worker;
use crate::route::RouteTable;
use crate::route::client::ClientSettings;
use crate::upstream::{ClientBody, RequestBody};

/// What every stage knows besides the request.
pub(super) struct Stage<'a> {
    pub(super) worker: &'a Rc<Worker>,
    pub(super) conn: &'a Conn,
    pub(super) table: &'a Arc<RouteTable>,
    /// The policy of the listener for its clients.
    pub(super) client: Option<&'a ClientSettings>,
}

/// Serves one request: from its head to the head of its answer. `upgrade`: what its connection becomes if
/// it leaves HTTP, as far as the request may ask for that. The record is written when the
/// answer's body ends.
pub(super) async fn handle(
    worker: Rc<Worker>,
    conn: Rc<Conn>,
    (mut parts, body): (Box<Parts>, ClientBody),
    upgrade: Option<OnUpgrade>,
) -> Response<ResponseBody> {
    let table = worker.table.load_full();
    let http3 = parts.version == Version::HTTP_3;
    let protocol = if http3 { "http/3" } else { "http" };
    let mut exchange = Box::new(Exchange::begin(&worker, protocol, Arc::clone(&conn.client)));
    exchange.conn = Some(Rc::clone(&conn));
    conn.body.replace(Rc::downgrade(&exchange.progress));
    let client = match conn.entry {
        Entry::Gateway => table.client(conn.local, conn.tls, conn.sni.as_deref()),
        Entry::Steered => None,
    };
    let mut ids = RequestIds::default();
    if let Some(client) = client {
        client.early.apply(&mut parts.headers);
        ids = client.policy.request_id;
        if client.policy.default_host && parts.version == Version::HTTP_10 {
            clients::give_host(&table, &conn, &mut parts);
        }
    }
    let seen = Seen::of(&parts.headers);
    let id = match (ids, seen.any(Seen::REQUEST_ID)) {
        (RequestIds::PreserveOrGenerate, false) => worker.request_id(),
        _ => RequestId::of(ids, &mut parts.headers, || worker.request_id()),
    };
    exchange.id = id.value(|text| worker.keep(text));
    let head = parts.method == Method::HEAD;
    let http1 = parts.version < Version::HTTP_2;
    exchange.grpc = !http1 && grpc::is_grpc(&parts.headers);
    let record = &mut exchange.record;
    record.generation = table.generation;
    record.request_id = id;
    record.method = Some(method(&parts.method));
    if let Some(ratio) = worker.log.sinks().ratio() {
        record.trace = TraceContext::of(&parts.headers, &worker, ratio);
    }
    let stage = Stage {
        worker: &worker,
        conn: &conn,
        table: &table,
        client: client.map(|one| &**one),
    };
    let last = client.is_some_and(|client| is_last(&conn, client));
    if last && !http1 {
        conn.spent.notify_one();
    }
    let bodiless = body.is_end_stream();
    let progress = Rc::clone(&exchange.progress);
    let served = {
        let served = serve(&stage, &mut exchange, (parts, body), (seen, upgrade));
        tokio::pin!(served);
        match stage.client.filter(|one| one.is_timed()) {
            None => served.await,
            Some(client) => clients::within(client, &progress, served).await,
        }
    };
    let mut response = match served {
        Ok(response) => response,
        Err(refusal) => {
            if !bodiless {
                conn.unread.note();
            }
            let close = http1 && matches!(refusal.reason, Reason::BadRequest | Reason::Misdirected);
            let id = exchange.record.request_id.to_string();
            let mut response = respond::refusal(&refusal, &id, exchange.grpc, close);
            exchange.refused(refusal.reason, refusal.detail);
            if head {
                // The type of content that is not made need not be told (RFC 9110, section 9.3.2). A client that finds one may
                // try to read what is not there.
                response.headers_mut().remove(header::CONTENT_TYPE);
                response.map(|_| ResponseBody::empty())
            } else {
                response
            }
        }
    };
    if !http1 || exchange.cors.is_some() {
        // Else it is written behind the other fields.
        exchange.tell(response.headers_mut());
    }
    if let Some((cors, origin)) = &exchange.cors {
        cors.decorate(origin.as_ref(), response.headers_mut());
    }
    if let Some(verdict) = &exchange.rate
        && client.is_none_or(|client| client.policy.rate_headers)
    {
        response.headers_mut().extend(verdict.headers());
    }
    if let Some(client) = client {
        if client.policy.http3.is_some()
            && conn.tls
            && !http3
            && let Some(told) = table.alt_svc(conn.local, conn.sni.as_deref())
        {
            response.headers_mut().insert(header::ALT_SVC, told.clone());
        }
        client.late.apply(response.headers_mut());
    }
    exchange.record.status = response.status().as_u16();
    if last && http1 {
        let close = HeaderValue::from_static("close");
        response.headers_mut().insert(header::CONNECTION, close);
    }
    let idle = match exchange.idle {
        Limit::Unset => client.and_then(|one| one.stream_idle()),
        Limit::Off => None,
        Limit::After(limit) => Some(limit),
    };
    response.map(|body| body.patient(idle).ends(exchange))
}

/// Whether a connection may have no request after this one.
fn is_last(conn: &Conn, client: &ClientSettings) -> bool {
    let spent = client.policy.max_requests.is_some_and(|most| {
        let count = conn.requests.get().saturating_add(1);
        conn.requests.set(count);
        count >= most.get()
    });
    let old = client.policy.max_age;
    spent || old.is_some_and(|most| conn.begun.elapsed() >= most)
}

/// Of the methods that everybody uses nothing is copied.
fn method(method: &Method) -> Cow<'static, str> {
    match *method {
        Method::GET => Cow::Borrowed("GET"),
        Method::HEAD => Cow::Borrowed("HEAD"),
        Method::POST => Cow::Borrowed("POST"),
        Method::PUT => Cow::Borrowed("PUT"),
        Method::PATCH => Cow::Borrowed("PATCH"),
        Method::DELETE => Cow::Borrowed("DELETE"),
        Method::OPTIONS => Cow::Borrowed("OPTIONS"),
        _ => Cow::Owned(method.as_str().to_owned()),
    }
}

async fn serve(
    stage: &Stage<'_>,
    exchange: &mut Exchange,
    (mut parts, body): (Box<Parts>, ClientBody),
    (seen, upgrade): (Seen, Option<OnUpgrade>),
) -> Result<Response<ResponseBody>, Refusal> {
    let normal = match normalise::read(&parts, seen, stage.client) {
        Ok(normal) => normal,
        Err(refusal) => {
            exchange.record.path = Some(parts.uri.path().into());
            return Err(refusal);
        }
    };
    exchange.record.host = Some(Arc::clone(&normal.host));
    exchange.record.path = Some(normal.path.clone().into());
    let asked = normal.websocket;
    let upgrade = upgrade.zip(asked);
    if asked == Some(Asked::Connect) {
        websocket::as_upgrade(&mut parts, [stage.worker.random(), stage.worker.random()]);
    }
    let mut client = stage.conn.source.ip();
    if let Some(settings) = stage.client {
        client = clients::received(settings, exchange, &mut parts.headers, client)?;
        if normal.elsewhere && exchange.grpc {
            let detail = "path has an encoded slash, and a call is not sent elsewhere";
            return Err(Refusal::new(Reason::BadRequest, detail));
        }
        if let Some(answer) = clients::answered(settings, &parts, &normal) {
            exchange.record.reason = Reason::Answered;
            return Ok(answer);
        }
    }
    let caller = stage.worker.caller(stage.table, stage.conn.peer.ip());
    exchange.record.caller = caller.map(|caller| Arc::clone(&caller.name));
    let body = RequestBody::new(body, Rc::clone(&exchange.progress));
    let mut inbound = Box::new(Inbound {
        parts,
        body,
        normal,
        seen,
        upgrade,
        client,
        tokens: Vec::new(),
        identity: None,
    });
    match stage.conn.entry {
        Entry::Gateway => {
            let listener = listener(stage, exchange, &inbound)?;
            exchange.record.direction = listener.gate.map(Gate::direction);
            inbound.identity.clone_from(&listener.identity);
            access::strip(&mut inbound.parts.headers, &listener.token_headers);
            let rules = listener.rules(&inbound.normal.host);
            let none = || Refusal::new(Reason::NoRoute, "no route matches");
            let rules = rules.ok_or_else(none)?;
            let matched = find(rules, &inbound).ok_or_else(none)?;
            note(exchange, &matched);
            admit(stage.table, caller, listener, matched.rule)?;
            let (matched, visit) = access::enter(stage, &mut inbound, rules, matched, |again| {
                note(exchange, again);
                admit(stage.table, caller, listener, again.rule)
            })?;
            let mark = match listener.gate {
                Some(Gate::External) => Mark::NorthGate,
                Some(Gate::Internal) => Mark::WestGate,
                None => Mark::Upstream,
            };
            forward(stage, exchange, inbound, matched, visit, None, mark).await
        }
        Entry::Steered => {
            let caller = caller.ok_or_else(|| {
                Refusal::new(Reason::CallerUnknown, "source address is no component")
            })?;
            let Some(steered) = stage.table.steered(stage.conn.local) else {
                return Box::pin(south(stage, exchange, inbound, caller)).await;
            };
            exchange.record.listener = Some(stage.worker.east_label());
            exchange.record.direction = Some("east");
            // To whom nothing here is declared, nothing is told of what is here.
            if !steered.endpoints.iter().any(|one| caller.may_call(one)) {
                let detail = format!(
                    "{} did not declare a call to {}",
                    caller.name, stage.conn.local
                );
                return Err(Refusal::new(Reason::EastNotDeclared, detail));
            }
            // The west gate publishes the component under its prefix; with it the same rules apply.
            inbound.normal.path = prefixed(steered, &inbound.normal.path)?;
            exchange.record.path = Some(inbound.normal.path.clone().into());
            let matched = steered.rules.find(inbound.subject()).ok_or_else(|| {
                Refusal::new(Reason::NoRoute, "no route of the west gate matches")
            })?;
            note(exchange, &matched);
            // Endpoints may share the port: the one that the path leads to has to be declared.
            if let Origin::Endpoint { endpoint, .. } = &matched.rule.origin {
                declared(caller, endpoint)?;
            }
            let to = (!steered.service).then_some(stage.conn.local);
            forward(stage, exchange, inbound, matched, None, to, Mark::WestGate).await
        }
    }
}
