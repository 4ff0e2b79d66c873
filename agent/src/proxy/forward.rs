//! From a matched rule to the answer of an upstream.

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

use agent_common::Mark;
use http::header;
use http::request::Parts;
use http::{Response, StatusCode};
use snapshot::model::{EndpointId, L7Kind, Origin, RuleTimeouts};

use super::access::{self, Visit};
use super::answer;
use super::attempts::Effort;
use super::body::ResponseBody;
use super::buffer;
use super::exchange::Exchange;
use super::grpc;
use super::inbound::Inbound;
use super::log::Reason;
use super::mirror;
use super::normalise;
use super::outbound::Outbound;
use super::request::Stage;
use super::request_id;
use super::respond::Refusal;
use super::seen::Seen;
use super::send::{Call, Upgrade, send};
use super::session::{self, Session};
use super::target::{choose, pick};
use super::told_certificate;
use crate::route::cors;
use crate::route::gatekeeper::Denied;
use crate::route::limiter::Asking;
use crate::route::{Filters, Identity, Limiter, Matched, TargetKind, rewrite};
use crate::upstream::{Destination, RequestBody, UpstreamRequest};

/// Fields that the router adds to a request: three of where it came from, and its id.
const MORE: usize = 4;

/// From a matched rule to the answer of an upstream. `visit`: who it is, if that was asked; `to` replaces an endpoint's workloads.
pub(super) async fn forward(
    stage: &Stage<'_>,
    exchange: &mut Exchange,
    mut inbound: Box<Inbound>,
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
        } = &*inbound.parts;
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
        return Ok(edited(answer?, [&*rule.filters]));
    }
    let timeouts = rule.timeouts.as_deref().copied().unwrap_or_default();
    let timeouts = match exchange.grpc {
        true => grpc::timeouts(timeouts, &inbound.parts.headers)?,
        false => timeouts,
    };
    let timeouts = match stage.client.and_then(|one| one.policy.max_stream) {
        Some(own) => RuleTimeouts {
            stream: timeouts.stream.at_most(own),
            ..timeouts
        },
        None => timeouts,
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
    let lists = [&*rule.filters, &*picked.filters];
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
        seen,
        upgrade,
        identity,
        ..
    } = *inbound;
    let mut rewritten = None;
    let headers = &mut parts.headers;
    // Policies may have changed what was read.
    let changed = rule.auth.is_some() || stage.client.is_some();
    let seen = if changed { Seen::of(headers) } else { seen };
    let authorised = rule.auth.is_some() || matches!(rule.origin, Origin::Endpoint { .. });
    normalise::strip(headers, seen, authorised);
    let (client, tls) = (&stage.conn.address, stage.conn.tls);
    let policy = stage.client.map(|one| &one.policy);
    let certificate = policy.and_then(|policy| told_certificate::told(policy, stage.conn, headers));
    let client = Some(client).filter(|_| policy.is_none_or(|policy| policy.tell_client));
    let forwarded = normalise::forwarded(headers, seen, client, tls, &normal);
    let certificate = certificate.map(|told| (told_certificate::HEADER, told));
    let forwarded = forwarded.chain(certificate);
    let mut host = normal.authority;
    // What a client sent itself is there, unless something was taken away.
    let tells = exchange.record.request_id.is_own() || changed || seen.any(Seen::HOP);
    if tells && seen.any(Seen::REQUEST_ID) {
        headers.remove(request_id::HEADER);
    }
    let id = exchange.id.clone().filter(|_| tells);
    let id = id.map(|id| (request_id::HEADER, id));
    let mirrors = lists.iter().any(|one| !one.mirrors.is_empty());
    let read = |one: &&Filters| one.host.is_some() || !one.request.is_empty();
    // What is told goes behind the other fields, unless somebody reads or changes it on the way.
    let mut more = Vec::new();
    if mirrors || lists.iter().any(read) {
        headers.extend(forwarded.chain(id));
    } else {
        more.reserve_exact(MORE);
        more.extend(forwarded);
        more.extend(id);
    }
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
    exchange.record.upstream_path = rewritten.clone().map(Into::into);
    if let Some(own) = chosen
        .destinations
        .first()
        .and_then(|one| one.host.as_ref())
    {
        host.clone_from(own.field());
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
    if let Some(limit) = rule.buffer {
        let whole = buffer::whole(stage.worker, exchange, request.body, limit);
        request.body = Box::pin(whole).await?;
    }
    if let (true, None, Some(like)) = (mirrors, &upgrade, chosen.destinations.first()) {
        let like = (like, identity.as_ref());
        request = mirrored(stage, exchange, request, lists, like)?;
    }
    request.more = more;
    let endpoint = match (&rule.origin, &picked.kind) {
        (Origin::Endpoint { endpoint, .. }, _) => Some(EndpointId::clone(endpoint)),
        // As `admit` asked for a document's route on the west gate.
        (Origin::Document, TargetKind::Endpoint { endpoint, .. }) if mark == Mark::WestGate => {
            Some(EndpointId::clone(endpoint))
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
    let destinations = &mut chosen.destinations;
    let mut answer = send(stage, exchange, destinations, request, upgrade, effort).await;
    if let Some(serving) = chosen.serving {
        exchange.served_by = serving.ended(stage.worker, exchange.moment(), &mut answer);
    }
    let mut response = answer?;
    if lists.iter().any(|one| !one.response.is_empty()) {
        if let Some(served) = exchange.served_by.take() {
            served.tell(response.headers_mut());
        }
        response = edited(response, lists);
    }
    if let Some(cookie) = chosen.cookie {
        response.headers_mut().append(header::SET_COOKIE, cookie);
    }
    let answered = exchange.at.and_then(|at| chosen.destinations.get(at));
    if let (Some(settings), Some(answered)) = (&rule.session, answered) {
        let (known, tls) = (session.as_ref(), stage.conn.tls);
        let headers = response.headers_mut();
        let place = answered.place.to_string();
        session::tell(settings, known, picked, &place, tls, access::now(), headers);
    }
    Ok(response)
}

/// Sends copies of a request to the mirrors of these lists. What goes on is read from the same body as they are.
fn mirrored(
    stage: &Stage<'_>,
    exchange: &mut Exchange,
    request: Box<UpstreamRequest>,
    lists: [&Filters; 2],
    like: (&Destination, Option<&Arc<Identity>>),
) -> Result<Box<UpstreamRequest>, Refusal> {
    let mirrors = mirror::chosen(stage.worker, lists);
    if mirrors.is_empty() {
        return Ok(request);
    }
    let UpstreamRequest { parts, more, body } = *request;
    let kept = body.keep(&stage.worker.room);
    mirror::send(
        stage.worker,
        stage.table,
        &mirrors,
        &parts,
        kept.as_ref(),
        like,
    );
    let progress = Rc::clone(&exchange.progress);
    let body = match &kept {
        Some(kept) => RequestBody::again(kept, progress)
            .ok_or_else(|| Refusal::new(Reason::RequestTimeout, "the body is gone"))?,
        None => RequestBody::empty(progress),
    };
    exchange.kept = kept;
    Ok(Box::new(UpstreamRequest { parts, more, body }))
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
    let mut changed = false;
    for edits in lists.iter().flat_map(|one| &one.response) {
        edits.apply(response.headers_mut());
        changed = true;
    }
    if changed {
        // The router says which request it is an answer to.
        response.headers_mut().remove(request_id::HEADER);
    }
    response
}
