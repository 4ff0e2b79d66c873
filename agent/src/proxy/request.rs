//! The stages of a request: normalise → match listener, host, route → authenticate → authorise →
//! routing key → rewrite, headers → upstream → response headers → access log.
//!
//! Every stage reads the same [`Normal`] request and the one table that [`handle`] loaded.

use std::borrow::Cow;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;

use agent_common::Mark;
use http::header::{self, HeaderValue};
use http::request::Parts;
use http::{Method, Request, Response, StatusCode, Version};
use hyper::body::{Body as _, Incoming};
use hyper::upgrade::OnUpgrade;
use snapshot::model::{EndpointId, Gate, L7Kind, Origin, RuleTimeouts};
use snapshot::path::CanonicalPath;

use super::access::{self, Visit};
use super::answer;
use super::attempts::{self, Effort, Got};
use super::body::ResponseBody;
use super::clients;
use super::connection::{Conn, Entry};
use super::exchange::Exchange;
use super::grpc;
use super::log::Reason;
use super::mirror;
use super::normalise::{self, Normal};
use super::outbound::Outbound;
use super::request_id::RequestId;
use super::respond::{self, Refusal};
use super::session::{self, Session};
use super::target::{choose, pick};
use super::tokens::Known;
use super::trace::TraceContext;
use super::tunnel;
use super::websocket::{self, Asked};
use super::worker::Worker;
use crate::route::client::ClientSettings;
use crate::route::cors;
use crate::route::gatekeeper::Denied;
use crate::route::key::KeySubject;
use crate::route::limiter::Asking;
use crate::route::matching::Subject;
use crate::route::{
    Caller, Filters, HostRules, Identity, Limiter, Listener, Matched, RouteRule, RouteTable,
    Steered, TargetKind, Wire, rewrite,
};
use crate::upstream::{Destination, Place, RequestBody};

/// What every stage knows besides the request.
pub(super) struct Stage<'a> {
    pub(super) worker: &'a Rc<Worker>,
    pub(super) conn: &'a Conn,
    pub(super) table: &'a Arc<RouteTable>,
    /// The policy of the listener for its clients.
    pub(super) client: Option<&'a ClientSettings>,
}

/// Serves one request: from its head to the head of its answer. The record is written when the
/// answer's body ends.
pub(super) async fn handle(
    worker: Rc<Worker>,
    conn: Rc<Conn>,
    request: Request<Incoming>,
) -> Response<ResponseBody> {
    let table = worker.table.load_full();
    let mut exchange = Box::new(Exchange::begin(&worker, "http", Arc::clone(&conn.client)));
    exchange.conn = Some(Rc::clone(&conn));
    conn.body.replace(Rc::downgrade(&exchange.progress));
    let id = RequestId::received(request.headers()).unwrap_or_else(|| worker.request_id());
    let head = *request.method() == Method::HEAD;
    let http1 = request.version() < Version::HTTP_2;
    exchange.grpc = !http1 && grpc::is_grpc(request.headers());
    let record = &mut exchange.record;
    record.generation = table.generation;
    record.request_id = id.clone();
    record.method = Some(method(request.method()));
    if let Some(ratio) = worker.log.sinks().ratio() {
        record.trace = TraceContext::of(request.headers(), &worker, ratio);
    }
    let client = match conn.entry {
        Entry::Gateway => table.client(conn.local, conn.tls, conn.sni.as_deref()),
        Entry::Steered => None,
    };
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
    let bodiless = request.body().is_end_stream();
    let progress = Rc::clone(&exchange.progress);
    let served = {
        let served = serve(&stage, &mut exchange, request);
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
            let response = respond::refusal(&refusal, id.as_str(), exchange.grpc, close);
            exchange.refused(refusal.reason, refusal.detail);
            if head {
                response.map(|_| ResponseBody::empty())
            } else {
                response
            }
        }
    };
    id.tell(response.headers_mut());
    if let Some((cors, origin)) = &exchange.cors {
        cors.decorate(origin.as_ref(), response.headers_mut());
    }
    if let Some(verdict) = &exchange.rate {
        response.headers_mut().extend(verdict.headers());
    }
    exchange.record.status = response.status().as_u16();
    if last && http1 {
        let close = HeaderValue::from_static("close");
        response.headers_mut().insert(header::CONNECTION, close);
    }
    let idle = client.and_then(|one| one.stream_idle());
    response.map(|body| body.patient(idle).ends(exchange))
}

/// Whether a connection may have no request after this one.
fn is_last(conn: &Conn, client: &ClientSettings) -> bool {
    client.policy.max_requests.is_some_and(|most| {
        let count = conn.requests.get().saturating_add(1);
        conn.requests.set(count);
        count >= most.get()
    })
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
    mut request: Request<Incoming>,
) -> Result<Response<ResponseBody>, Refusal> {
    let normal = match normalise::read(&request, stage.client) {
        Ok(normal) => normal,
        Err(refusal) => {
            exchange.record.path = Some(request.uri().path().to_owned());
            return Err(refusal);
        }
    };
    exchange.record.host = Some(normal.host.clone());
    exchange.record.path = Some(normal.path.as_str().to_owned());
    let asked = normal.websocket;
    let upgrade = asked.map(|asked| (hyper::upgrade::on(&mut request), asked));
    let (mut parts, body) = request.into_parts();
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
    let mut inbound = Inbound {
        parts,
        body,
        normal,
        upgrade,
        client,
        tokens: Vec::new(),
        identity: None,
    };
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
            admit(caller, listener, matched.rule)?;
            let (matched, visit) = access::enter(stage, &mut inbound, rules, matched, |again| {
                note(exchange, again);
                admit(caller, listener, again.rule)
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
            forward(stage, exchange, inbound, matched, None, to, Mark::WestGate).await
        }
    }
}

/// A request taken apart.
pub(super) struct Inbound {
    pub(super) parts: Parts,
    body: RequestBody,
    normal: Normal,
    pub(super) upgrade: Option<(OnUpgrade, Asked)>,
    /// Address of whom it is from.
    pub(super) client: IpAddr,
    /// The good tokens that its rule's policy asked for.
    tokens: Vec<Known>,
    /// What upstreams are shown if they ask.
    identity: Option<Arc<Identity>>,
}

impl Inbound {
    /// The one path.
    pub(super) fn path(&self) -> &str {
        self.normal.path.as_str()
    }

    /// Host in lower case, without port.
    pub(super) fn host(&self) -> &str {
        &self.normal.host
    }

    pub(super) fn subject(&self) -> Subject<'_> {
        Subject {
            path: &self.normal.path,
            method: &self.parts.method,
            headers: &self.parts.headers,
            query: self.parts.uri.query(),
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
            certificate: conn.certificate.as_ref(),
            tokens: self.tokens.iter().map(|known| &*known.0).collect(),
            listener,
            client: self.client,
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
    let wire = if stage.conn.tls {
        Wire::Tls
    } else {
        Wire::Http
    };
    if bind.wire != wire {
        // The connection was accepted before the port changed to, or from, TLS or TCP.
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
    if stage.conn.clients != listener.clients {
        // Who the client is was asked when it connected, and not as it is asked now.
        return Err(Refusal::new(
            Reason::Misdirected,
            "the listener asks for another certificate than this connection was made with",
        ));
    }
    Ok(listener)
}

/// The rule of a request. A preflight asks about another request: if the rule of that one has permissions
/// to give, it answers, whatever method it takes itself.
fn find<'a>(rules: &'a HostRules, inbound: &Inbound) -> Option<Matched<'a>> {
    let subject = inbound.subject();
    let asked = cors::preflight(&inbound.parts.method, &inbound.parts.headers);
    asked
        .and_then(|method| {
            rules.find(Subject {
                method: &method,
                ..subject
            })
        })
        .filter(|matched| matched.rule.filters.cors.is_some())
        .or_else(|| rules.find(subject))
}

fn note(exchange: &mut Exchange, matched: &Matched<'_>) {
    exchange.record.route = Some(Arc::clone(&matched.rule.route));
    exchange.record.rule = Some(matched.rule.index);
    exchange.record.cell.clone_from(&matched.rule.cell);
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
            .destinations()
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

/// From a matched rule to the answer of an upstream. `visit`: who it is, if that was asked; `to` replaces an endpoint's workloads.
async fn forward(
    stage: &Stage<'_>,
    exchange: &mut Exchange,
    mut inbound: Inbound,
    matched: Matched<'_>,
    visit: Option<Visit>,
    to: Option<SocketAddr>,
    mark: Mark,
) -> Result<Response<ResponseBody>, Refusal> {
    let rule = matched.rule;
    sound(&rule.filters)?;
    if let Some(cors) = &rule.filters.cors {
        let Parts {
            method, headers, ..
        } = &inbound.parts;
        if cors::preflight(method, headers).is_some() {
            exchange.record.reason = Reason::Answered;
            let mut response = Response::new(ResponseBody::empty());
            *response.status_mut() = StatusCode::NO_CONTENT;
            *response.headers_mut() = cors.answer(&inbound.parts);
            return Ok(response);
        }
        // Errors too: a page that may not read them cannot tell what went wrong.
        let origin = headers.get(header::ORIGIN).cloned();
        exchange.cors = Some((Arc::clone(cors), origin));
    }
    if let Some(gatekeeper) = &rule.auth {
        inbound.tokens = access::pass(stage, &mut inbound, gatekeeper, visit)?;
    }
    if let Some(limiter) = &rule.limiter {
        limited(stage, exchange, &inbound, limiter)?;
    }
    // An endpoint's rule without target is what its operations leave over.
    if rule.targets.is_empty() && matches!(rule.origin, Origin::Endpoint { .. }) {
        return Err(Refusal::denied(Denied::NoOperation, None));
    }
    if let Some(answer) = answered(stage, exchange, &inbound, &matched, &rule.filters) {
        return Ok(edited(answer?, [&rule.filters]));
    }
    let timeouts = match exchange.grpc {
        true => grpc::timeouts(rule.timeouts, &inbound.parts.headers)?,
        false => rule.timeouts,
    };
    let session = rule
        .session
        .as_ref()
        .and_then(|settings| Session::of(settings, &inbound.parts.headers, access::now()));
    let picked = match session.as_ref().and_then(|session| session.target(rule)) {
        Some(target) => target,
        None => pick(stage.worker, rule)?,
    };
    sound(&picked.filters)?;
    let lists = [&rule.filters, &picked.filters];
    if let Some(answer) = answered(stage, exchange, &inbound, &matched, &picked.filters) {
        return Ok(edited(answer?, lists));
    }
    let mut chosen = choose(
        stage.worker,
        exchange,
        stage.conn,
        &inbound,
        picked,
        to,
        mark,
    )?;
    if let Some(session) = &session {
        session.first(picked, &mut chosen.destinations);
    }
    if let Some(identity) = &inbound.identity {
        for tls in chosen
            .destinations
            .iter_mut()
            .filter_map(|one| one.tls.as_mut())
        {
            tls.identity = Some(Arc::clone(identity));
        }
    }
    // What a `GRPCRoute` leads to speaks HTTP/2, whatever the request is.
    if rule.kind == L7Kind::Grpc && inbound.upgrade.is_none() {
        for destination in &mut chosen.destinations {
            destination.http2 = true;
        }
    }

    let Inbound {
        mut parts,
        body,
        normal,
        upgrade,
        ..
    } = inbound;
    let mut rewritten = None;
    let mut host = normal.authority.clone();
    let headers = &mut parts.headers;
    normalise::strip_hop_by_hop(headers);
    normalise::strip_ours(headers);
    if rule.auth.is_some() || matches!(rule.origin, Origin::Endpoint { .. }) {
        normalise::strip_overrides(headers);
    }
    // The wait for `100 Continue` is answered here, when the upstream asks for the body.
    headers.remove(header::EXPECT);
    normalise::forwarded(headers, &stage.conn.address, stage.conn.tls, &normal);
    exchange.record.request_id.tell(headers);
    if exchange.record.trace.trace != 0 {
        exchange.record.trace.upstream = stage.worker.random();
        exchange.record.trace.tell(headers);
    }
    // What a header says of the host is asked before a filter changes it.
    if let Some(change) = lists.iter().rev().find_map(|one| one.host.as_ref()) {
        let backend = chosen.destinations.first().and_then(Destination::name);
        let changed = rewrite::host(change, headers, &normal.path, backend)
            .map_err(|error| Refusal::new(Reason::Rewrite, error.to_string()))?;
        host = changed.unwrap_or(host);
    }
    if let Some(change) = lists.iter().rev().find_map(|one| one.path.as_ref()) {
        let path = rewrite::path(&normal.path, matched.prefix, change)
            .map_err(|error| Refusal::new(Reason::Rewrite, error.to_string()))?;
        rewritten = Some(path).filter(|path| *path != normal.path);
    }
    for edits in lists.iter().flat_map(|one| &one.request) {
        edits.apply(headers);
    }
    exchange.record.upstream_path = rewritten.as_ref().map(ToString::to_string);
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
    let path = rewritten.as_ref().unwrap_or(&normal.path).as_str();
    // What leaves as it came is not put together again.
    let target = (path != parts.uri.path()).then(|| match parts.uri.query() {
        Some(query) => format!("{path}?{query}"),
        None => path.to_owned(),
    });
    let outbound = Outbound {
        target: target.as_deref(),
        host,
        tls,
        http2,
        trailers: normal.trailers,
        websocket: upgrade.is_some(),
    };
    let mut request = outbound.request(parts, body.limited(chosen.body_limit))?;
    let mirrors = mirror::chosen(stage.worker, lists);
    if let (false, None, Some(like)) = (mirrors.is_empty(), &upgrade, chosen.destinations.first()) {
        let (parts, body) = request.into_parts();
        let kept = body.keep(&stage.worker.room);
        mirror::send(
            stage.worker,
            stage.table,
            &mirrors,
            &parts,
            kept.as_ref(),
            (like, inbound.identity.as_ref()),
        );
        let progress = Rc::clone(&exchange.progress);
        let body = match &kept {
            Some(kept) => RequestBody::again(kept, progress)
                .ok_or_else(|| Refusal::new(Reason::RequestTimeout, "the body is gone"))?,
            None => RequestBody::empty(progress),
        };
        exchange.kept = kept;
        request = Request::from_parts(parts, body);
    }
    let endpoint = match (&rule.origin, &picked.kind) {
        (Origin::Endpoint { endpoint, .. }, _) => Some(endpoint.clone()),
        // As `admit` asked for a document's route on the west gate.
        (Origin::Document, TargetKind::Endpoint { endpoint, .. }) if mark == Mark::WestGate => {
            Some(endpoint.clone())
        }
        (Origin::Document, _) => None,
    };
    let upgrade = upgrade.map(|(client, asked)| Upgrade {
        client,
        asked,
        call: Call::Endpoint(endpoint),
    });
    let effort = Effort {
        timeouts,
        retry: rule.retry.as_deref(),
        backend: &picked.backend,
        managed: picked.managed.as_deref(),
    };
    let destinations = chosen.destinations;
    let mut answer = send(stage, exchange, destinations, request, upgrade, effort).await;
    if let Some(serving) = chosen.serving {
        serving.ended(stage.worker, &mut answer);
    }
    let mut response = edited(answer?, lists);
    if let Some(cookie) = chosen.cookie {
        response.headers_mut().append(header::SET_COOKIE, cookie);
    }
    if let (Some(settings), Some(place)) = (&rule.session, &exchange.place) {
        let (known, tls) = (session.as_ref(), stage.conn.tls);
        let headers = response.headers_mut();
        let place = place.to_string();
        session::tell(settings, known, picked, &place, tls, access::now(), headers);
    }
    Ok(response)
}

/// Asks the rate limit of a rule. What its client is told stands on every answer.
fn limited(
    stage: &Stage<'_>,
    exchange: &mut Exchange,
    inbound: &Inbound,
    limiter: &Limiter,
) -> Result<(), Refusal> {
    let asking = Asking {
        method: &inbound.parts.method,
        path: &inbound.normal.path,
        query: inbound.parts.uri.query(),
        headers: &inbound.parts.headers,
        client: inbound.client,
    };
    exchange.rate = limiter.ask(asking, stage.worker.now());
    match exchange.rate.filter(|verdict| !verdict.taken.allowed) {
        Some(verdict) => {
            let detail = format!("more than {} requests", verdict.limit);
            Err(Refusal::new(Reason::RateLimited, detail))
        }
        None => Ok(()),
    }
}

/// Refuses what a filter should have changed and cannot.
fn sound(filters: &Filters) -> Result<(), Refusal> {
    match &filters.broken {
        Some(why) => Err(Refusal::new(Reason::Filter, &**why)),
        None => Ok(()),
    }
}

/// The answer that a list of filters has for the request itself.
fn answered(
    stage: &Stage<'_>,
    exchange: &mut Exchange,
    inbound: &Inbound,
    matched: &Matched<'_>,
    filters: &Filters,
) -> Option<Result<Response<ResponseBody>, Refusal>> {
    let Inbound { parts, normal, .. } = inbound;
    let query = parts.uri.query();
    let answer = answer::given(
        filters,
        stage.conn,
        &parts.method,
        normal,
        query,
        matched.prefix,
    )?;
    exchange.record.reason = Reason::Answered;
    Some(answer)
}

/// A response with the edits of these lists, in their order.
fn edited<const N: usize>(
    mut response: Response<ResponseBody>,
    lists: [&Filters; N],
) -> Response<ResponseBody> {
    for edits in lists.iter().flat_map(|one| &one.response) {
        edits.apply(response.headers_mut());
    }
    response
}

async fn send(
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
struct Upgrade {
    client: OnUpgrade,
    asked: Asked,
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
    exchange.record.direction = Some("south");
    exchange.record.cell = Some(Arc::clone(&caller.cell));
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
    let http2 = inbound.parts.version == Version::HTTP_2 && inbound.upgrade.is_none();
    let destinations = vec![Destination {
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
    } = inbound;
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
    send(stage, exchange, destinations, request, upgrade, effort).await
}
