//! The stages of a request: normalise → match listener, host, route → authenticate → authorise →
//! routing key → rewrite, headers → upstream → response headers → access log.
//!
//! Every stage reads the same [`Normal`] request and the one table that [`handle`] loaded.

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use agent_common::Mark;
use http::header::{self, HeaderValue};
use http::request::Parts;
use http::{Method, Request, Response, StatusCode, Version};
use hyper::body::Incoming;
use hyper::upgrade::OnUpgrade;
use snapshot::model::{EndpointId, Gate, Origin};
use snapshot::path::CanonicalPath;

use super::body::ResponseBody;
use super::connection::{Conn, Entry};
use super::exchange::Exchange;
use super::log::Reason;
use super::normalise::{self, Normal};
use super::outbound::Outbound;
use super::respond::{self, Refusal};
use super::target::{choose, is_grpc, pick};
use super::tunnel;
use super::worker::Worker;
use crate::route::key::KeySubject;
use crate::route::matching::Subject;
use crate::route::token::{Denied, Verified};
use crate::route::{
    Caller, Listener, Matched, RouteFilter, RouteRule, RouteTable, Steered, TargetKind, rewrite,
};
use crate::upstream::{Destination, Place, RequestBody};

/// What every stage knows besides the request.
pub(super) struct Stage<'a> {
    pub(super) worker: &'a Rc<Worker>,
    pub(super) conn: &'a Conn,
    pub(super) table: &'a Arc<RouteTable>,
}

/// Serves one request: from its head to the head of its answer. The record is written when the
/// answer's body ends.
pub(super) async fn handle(
    worker: Rc<Worker>,
    conn: Rc<Conn>,
    request: Request<Incoming>,
) -> Response<ResponseBody> {
    let table = worker.table.load_full();
    let mut exchange = Box::new(Exchange::begin(&worker, "http", conn.peer.to_string()));
    exchange.conn = Some(Rc::clone(&conn));
    let id = match normalise::request_id(request.headers()) {
        Some(id) => id.to_owned(),
        None => worker.random_id(),
    };
    let head = *request.method() == Method::HEAD;
    let http1 = request.version() < Version::HTTP_2;
    let grpc = !http1 && is_grpc(request.headers());
    let record = &mut exchange.record;
    record.generation = table.generation;
    record.request_id.clone_from(&id);
    record.method = Some(request.method().to_string());
    record.path = Some(request.uri().path().to_owned());
    let stage = Stage {
        worker: &worker,
        conn: &conn,
        table: &table,
    };
    let mut response = match serve(&stage, &mut exchange, request).await {
        Ok(response) => response,
        Err(refusal) => {
            let close = http1 && matches!(refusal.reason, Reason::BadRequest | Reason::Misdirected);
            let response = respond::refusal(&refusal, &id, grpc, close);
            exchange.refused(refusal.reason, refusal.detail);
            if head {
                response.map(|_| ResponseBody::empty())
            } else {
                response
            }
        }
    };
    if let Ok(value) = HeaderValue::from_str(&id) {
        response.headers_mut().insert("x-request-id", value);
    }
    exchange.record.status = response.status().as_u16();
    response.map(|body| body.ends(exchange))
}

async fn serve(
    stage: &Stage<'_>,
    exchange: &mut Exchange,
    mut request: Request<Incoming>,
) -> Result<Response<ResponseBody>, Refusal> {
    let normal = normalise::read(&request)?;
    exchange.record.host = Some(normal.host.clone());
    exchange.record.path = Some(normal.path.to_string());
    let upgrade = normal.websocket.then(|| hyper::upgrade::on(&mut request));
    let (parts, body) = request.into_parts();
    let caller = stage.worker.caller(stage.table, stage.conn.peer.ip());
    exchange.record.caller = caller.map(|caller| Arc::clone(&caller.name));
    let body = RequestBody::new(body, Rc::clone(&exchange.progress));
    let mut inbound = Inbound {
        parts,
        body,
        normal,
        upgrade,
        token: None,
    };
    match stage.conn.entry {
        Entry::Gateway => {
            let listener = listener(stage, exchange, &inbound)?;
            let rules = listener.rules(&inbound.normal.host);
            let matched = rules
                .and_then(|rules| rules.find(inbound.subject()))
                .ok_or_else(|| Refusal::new(Reason::NoRoute, "no route matches"))?;
            note(exchange, &matched);
            admit(caller, listener, matched.rule)?;
            let mark = match listener.gate {
                Some(Gate::External) => Mark::NorthGate,
                Some(Gate::Internal) => Mark::WestGate,
                None => Mark::Upstream,
            };
            forward(stage, exchange, inbound, matched, None, mark).await
        }
        Entry::Steered => {
            let caller = caller.ok_or_else(|| {
                Refusal::new(Reason::CallerUnknown, "source address is no component")
            })?;
            let Some(steered) = stage.table.steered(stage.conn.local) else {
                return south(stage, exchange, inbound, caller).await;
            };
            exchange.record.listener = Some(stage.worker.east_label());
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
            exchange.record.path = Some(inbound.normal.path.to_string());
            let matched = steered.rules.find(inbound.subject()).ok_or_else(|| {
                Refusal::new(Reason::NoRoute, "no route of the west gate matches")
            })?;
            note(exchange, &matched);
            // Endpoints may share the port: the one that the path leads to has to be declared.
            if let Origin::Endpoint { endpoint, .. } = &matched.rule.origin {
                declared(caller, endpoint)?;
            }
            let to = (!steered.service).then_some(stage.conn.local);
            forward(stage, exchange, inbound, matched, to, Mark::WestGate).await
        }
    }
}

/// A request taken apart.
pub(super) struct Inbound {
    pub(super) parts: Parts,
    body: RequestBody,
    normal: Normal,
    pub(super) upgrade: Option<OnUpgrade>,
    token: Option<Verified>,
}

impl Inbound {
    fn subject(&self) -> Subject<'_> {
        Subject {
            path: &self.normal.path,
            method: &self.parts.method,
            headers: &self.parts.headers,
        }
    }
}

impl Inbound {
    /// What a routing key can be read from. `listener`: by which it came.
    pub(super) fn key_subject<'a>(
        &'a self,
        conn: &'a Conn,
        listener: Option<&'a str>,
    ) -> KeySubject<'a> {
        KeySubject {
            headers: &self.parts.headers,
            path: &self.normal.path,
            query: self.parts.uri.query(),
            host: &self.normal.host,
            sni: conn.sni.as_deref(),
            token: self.token.as_ref(),
            listener,
            client: conn.peer.ip(),
        }
    }
}

/// The listener of a request by its host; under TLS the server name must lead to the same one.
fn listener<'a>(
    stage: &Stage<'a>,
    exchange: &mut Exchange,
    inbound: &Inbound,
) -> Result<&'a Arc<Listener>, Refusal> {
    let none = || Refusal::new(Reason::NoListener, "no listener takes this host");
    let bind = stage.table.bind(stage.conn.local).ok_or_else(none)?;
    if bind.tls != stage.conn.tls {
        // The connection was accepted before the port changed to, or from, TLS.
        return Err(Refusal::new(
            Reason::Misdirected,
            "the listener's protocol is no longer that of this connection",
        ));
    }
    let by_host = bind.listener(&inbound.normal.host);
    if stage.conn.tls {
        let by_name = match &stage.conn.sni {
            Some(name) => bind.listener(name),
            None => bind.default_listener(),
        };
        let same = by_name.map(|one| &one.name) == by_host.map(|one| &one.name);
        if !same {
            return Err(Refusal::new(
                Reason::Misdirected,
                format!(
                    "server name {} and host {} belong to two listeners",
                    stage.conn.sni.as_deref().unwrap_or("none"),
                    inbound.normal.host
                ),
            ));
        }
    }
    let listener = by_host.ok_or_else(none)?;
    exchange.listener(&listener.name);
    Ok(listener)
}

fn note(exchange: &mut Exchange, matched: &Matched<'_>) {
    exchange.record.route = Some(Arc::clone(&matched.rule.route));
    exchange.record.rule = Some(matched.rule.index);
}

/// Whether a component may use a gate: the north one never; the west one for endpoints that it
/// declared, and those of its own cell if that is open. Clients that are no component pass by the
/// route's rules.
fn admit(
    caller: Option<&Arc<Caller>>,
    listener: &Listener,
    rule: &RouteRule,
) -> Result<(), Refusal> {
    let Some(caller) = caller else {
        return Ok(());
    };
    if listener.gate == Some(Gate::External) {
        return Err(Refusal::new(
            Reason::NorthFromCell,
            format!("component {} came to the north gate", caller.name),
        ));
    }
    match &rule.origin {
        Origin::Endpoint { endpoint, .. } => declared(caller, endpoint),
        Origin::Document if listener.gate.is_none() => Ok(()),
        // A route of a document on the west gate: what it leads to has to be declared all the same.
        Origin::Document => rule
            .targets
            .iter()
            .try_for_each(|target| match &target.kind {
                TargetKind::Endpoint { endpoint, .. } => declared(caller, endpoint),
                _ => Err(Refusal::new(
                    Reason::EastNotDeclared,
                    format!(
                        "{} leads {} to what no cell declares",
                        rule.route, caller.name
                    ),
                )),
            }),
    }
}

fn declared(caller: &Caller, endpoint: &EndpointId) -> Result<(), Refusal> {
    if caller.may_call(endpoint) {
        return Ok(());
    }
    Err(Refusal::new(
        Reason::EastNotDeclared,
        format!("{} did not declare a call to {endpoint}", caller.name),
    ))
}

fn prefixed(steered: &Steered, path: &CanonicalPath) -> Result<CanonicalPath, Refusal> {
    CanonicalPath::new(&format!("{}{path}", steered.prefix))
        .map_err(|error| Refusal::new(Reason::Rewrite, error.to_string()))
}

/// From a matched rule to the answer of an upstream. `to` replaces an endpoint's workloads.
async fn forward(
    stage: &Stage<'_>,
    exchange: &mut Exchange,
    mut inbound: Inbound,
    matched: Matched<'_>,
    to: Option<SocketAddr>,
    mark: Mark,
) -> Result<Response<ResponseBody>, Refusal> {
    let rule = matched.rule;
    if let Some(gatekeeper) = &rule.auth {
        let query = inbound.parts.uri.query();
        let token = gatekeeper.authenticate(&inbound.parts.headers, query, now())?;
        gatekeeper.authorise(&token)?;
        inbound.token = Some(token);
    }
    // An endpoint's rule without target is what its operations leave over.
    if rule.targets.is_empty() && matches!(rule.origin, Origin::Endpoint { .. }) {
        return Err(Denied::NoOperation.into());
    }
    let picked = pick(stage.worker, rule)?;
    let chosen = choose(
        stage.worker,
        exchange,
        stage.conn,
        &inbound,
        picked,
        to,
        mark,
    )?;

    let Inbound {
        mut parts,
        body,
        normal,
        upgrade,
        ..
    } = inbound;
    let mut path = normal.path.clone();
    let mut host = normal.authority.clone();
    let headers = &mut parts.headers;
    normalise::strip_hop_by_hop(headers);
    normalise::strip_ours(headers);
    if rule.auth.is_some() || matches!(rule.origin, Origin::Endpoint { .. }) {
        normalise::strip_overrides(headers);
    }
    // The wait for `100 Continue` is answered here, when the upstream asks for the body.
    headers.remove(header::EXPECT);
    normalise::forwarded(headers, stage.conn.peer.ip(), stage.conn.tls, &normal);
    if let Ok(id) = HeaderValue::from_str(&exchange.record.request_id) {
        headers.insert("x-request-id", id);
    }
    for filter in &rule.filters {
        match filter {
            RouteFilter::RequestHeaders(edits) => edits.apply(headers),
            RouteFilter::Path(change) => {
                path = rewrite::path(&path, matched.prefix, change)
                    .map_err(|error| Refusal::new(Reason::Rewrite, error.to_string()))?;
            }
            RouteFilter::Host(value) => host.clone_from(value),
            RouteFilter::ResponseHeaders(_) => {}
        }
    }
    if path != normal.path {
        exchange.record.upstream_path = Some(path.to_string());
    }
    if let Some(own) = chosen
        .destinations
        .first()
        .and_then(|one| one.host.as_ref())
    {
        host.clone_from(own);
    }
    let http2 = chosen.destinations.first().is_some_and(|one| one.http2);
    let tls = chosen
        .destinations
        .first()
        .is_some_and(|one| one.tls.is_some());
    let target = match parts.uri.query() {
        Some(query) => format!("{path}?{query}"),
        None => path.to_string(),
    };
    let outbound = Outbound {
        target: &target,
        host,
        tls,
        http2,
        trailers: normal.trailers,
        websocket: upgrade.is_some(),
    };
    let request = outbound.request(parts, body.limited(chosen.body_limit))?;
    let endpoint = match (&rule.origin, &picked.kind) {
        (Origin::Endpoint { endpoint, .. }, _) => Some(endpoint.clone()),
        // As `admit` asked for a document's route on the west gate.
        (Origin::Document, TargetKind::Endpoint { endpoint, .. }) if mark == Mark::WestGate => {
            Some(endpoint.clone())
        }
        (Origin::Document, _) => None,
    };
    let upgrade = upgrade.map(|client| Upgrade {
        client,
        call: Call::Endpoint(endpoint),
    });
    let mut answer = send(stage, exchange, &chosen.destinations, request, upgrade).await;
    if let Some(serving) = chosen.serving {
        serving.ended(stage.worker, &mut answer);
    }
    let mut response = answer?;

    for filter in &rule.filters {
        if let RouteFilter::ResponseHeaders(edits) = filter {
            edits.apply(response.headers_mut());
        }
    }
    Ok(response)
}

async fn send(
    stage: &Stage<'_>,
    exchange: &mut Exchange,
    destinations: &[Destination],
    request: Request<RequestBody>,
    upgrade: Option<Upgrade>,
) -> Result<Response<ResponseBody>, Refusal> {
    let progress = Rc::clone(&exchange.progress);
    let answer = stage
        .worker
        .client
        .send(destinations, request, &progress, stage.table)
        .await?;
    exchange.record.upstream = Some(match answer.peer {
        Some(peer) => peer.to_string(),
        None => answer.place,
    });
    let mut response = answer.response;
    let switching = response.status() == StatusCode::SWITCHING_PROTOCOLS;
    let websocket = switching && upgrade.is_some();
    if switching && !websocket {
        return Err(Refusal::new(
            Reason::UpstreamReset,
            "upstream switched protocols although nobody asked",
        ));
    }
    if let (true, Some(Upgrade { client, call })) = (websocket, upgrade) {
        let upstream = hyper::upgrade::on(&mut response);
        let (worker, source) = (Rc::clone(stage.worker), stage.conn.peer.ip());
        let was_caller = worker.caller(stage.table, source).is_some();
        let slot = exchange.slot.clone();
        tunnel::upgraded(stage.worker, client, upstream, move |table| {
            // The slot is given back when the tunnel ends.
            let _held = &slot;
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
    if websocket {
        let headers = &mut parts.headers;
        headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
        headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    }
    parts.version = Version::HTTP_11;
    parts.extensions.clear();
    Ok(Response::from_parts(parts, ResponseBody::streamed(body)))
}

/// A request that may become a tunnel.
struct Upgrade {
    client: OnUpgrade,
    call: Call,
}

/// What a tunnel needs its caller to have declared, for as long as it lives.
enum Call {
    /// A call to an endpoint; none: a document's route, which asks for no declaration.
    Endpoint(Option<EndpointId>),
    /// A service outside, by host and port.
    South(String, u16),
}

/// A request of a component to a service outside, by plain HTTP: the host must be declared for the
/// port; the connection goes to what the declared name resolves to. Path and headers stay as sent:
/// nothing here decides by them.
async fn south(
    stage: &Stage<'_>,
    exchange: &mut Exchange,
    inbound: Inbound,
    caller: &Caller,
) -> Result<Response<ResponseBody>, Refusal> {
    exchange.record.listener = Some(stage.worker.south_label());
    let port = stage.conn.local.port();
    let normal = &inbound.normal;
    let name = caller
        .south(port)
        .and_then(|hosts| hosts.http.get(normal.host.as_str()))
        .filter(|_| normal.port.unwrap_or(80) == port)
        .ok_or_else(|| {
            let detail = format!(
                "{} did not declare {}:{port} as HTTP",
                caller.name, normal.host
            );
            Refusal::new(Reason::HostNotDeclared, detail)
        })?;
    let http2 = inbound.parts.version == Version::HTTP_2;
    let destinations = [Destination {
        place: Place::Name(name.clone(), port),
        tls: None,
        http2,
        mark: stage.worker.mark(Mark::Upstream),
        host: None,
        outside: stage.worker.outside(),
        owner: Some(Arc::clone(&caller.name)),
    }];
    let Inbound {
        mut parts,
        body,
        normal,
        upgrade,
        ..
    } = inbound;
    normalise::strip_hop_by_hop(&mut parts.headers);
    parts.headers.remove(header::EXPECT);
    let target = parts
        .uri
        .path_and_query()
        .map_or_else(|| "/".to_owned(), ToString::to_string);
    let outbound = Outbound {
        target: &target,
        host: normal.authority,
        tls: false,
        http2,
        trailers: normal.trailers,
        websocket: upgrade.is_some(),
    };
    let request = outbound.request(parts, body)?;
    let upgrade = upgrade.map(|client| Upgrade {
        client,
        call: Call::South(normal.host, port),
    });
    send(stage, exchange, &destinations, request, upgrade).await
}

/// Seconds since 1970. With a clock from before that nothing is known about a token's time, and it has expired.
fn now() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(u64::MAX >> 1, |since| since.as_secs())
}
