//! Who sends a request, and whether he may: keys, users, tokens, then rules.
//!
//! Flows in: a request that matched a rule. Flows out: the same request with the headers that tell the
//! upstream who it is from, or a refusal. Nothing here waits.

use std::rc::Rc;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use http::Uri;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::request::Parts;
use http::uri::PathAndQuery;
use snapshot::model::CredentialPlace;

use super::inbound::Inbound;
use super::log::Reason;
use super::request::Stage;
use super::respond::Refusal;
use super::tokens::{self, Known};
use super::worker::Worker;
use crate::route::cors;
use crate::route::credential::{Carrier, CredentialError, KeyRing, without};
use crate::route::gatekeeper::{TokenCheck, Visitor, first_good};
use crate::route::token::{Provider, TokenError};
use crate::route::{Gatekeeper, HostRules, Matched};

/// Longest token that is remembered, in bytes: it bounds the memory of a core.
const MAX_REMEMBERED: usize = 4096;

/// Longest path in a realm, in bytes.
const MAX_REALM: usize = 1024;

/// Whom a gatekeeper knows.
pub(super) struct Visit {
    by: Arc<Gatekeeper>,
    tokens: Vec<Known>,
}

/// Authenticates by the rule that matched, and matches again if its policy says so: then by what the
/// token claims. The second rule is asked as well; there is no third.
pub(super) fn enter<'a>(
    stage: &Stage<'_>,
    inbound: &mut Inbound,
    rules: &'a HostRules,
    matched: Matched<'a>,
    mut noted: impl FnMut(&Matched<'_>) -> Result<(), Refusal>,
) -> Result<(Matched<'a>, Option<Visit>), Refusal> {
    let Some(gatekeeper) = &matched.rule.auth else {
        return Ok((matched, None));
    };
    let recompute = gatekeeper.tokens.as_ref().is_some_and(|one| one.recompute);
    // A preflight has no credential (Fetch, section 3.2.2), and is answered without one.
    let parts = &inbound.parts;
    let answered = matched.rule.filters.cors.is_some()
        && cors::preflight(&parts.method, &parts.headers).is_some();
    if !recompute || answered {
        return Ok((matched, None));
    }
    let visit = authenticate(stage, inbound, gatekeeper)?;
    let again = rules
        .find(inbound.subject())
        .ok_or_else(|| Refusal::new(Reason::NoRoute, "no route matches what the token claims"))?;
    if Arc::ptr_eq(again.rule, matched.rule) {
        return Ok((again, Some(visit)));
    }
    noted(&again)?;
    // What the first rule's policy lets pass was proven by its own providers only.
    let same = |own: &Arc<Gatekeeper>| Arc::ptr_eq(own, &visit.by);
    match &again.rule.auth {
        Some(own) if same(own) => Ok((again, Some(visit))),
        Some(own) => {
            let visit = authenticate_again(stage, inbound, own, &visit)?;
            Ok((again, Some(visit)))
        }
        None => Ok((again, None)),
    }
}

/// Authenticates unless that is done, and authorises. Gives the good tokens.
pub(super) fn pass(
    stage: &Stage<'_>,
    inbound: &mut Inbound,
    gatekeeper: &Arc<Gatekeeper>,
    visit: Option<Visit>,
) -> Result<Vec<Known>, Refusal> {
    let visit = match visit {
        Some(visit) => visit,
        None => authenticate(stage, inbound, gatekeeper)?,
    };
    let visitor = Visitor {
        method: &inbound.parts.method,
        path: inbound.path(),
        headers: &inbound.parts.headers,
        client: inbound.client,
    };
    gatekeeper
        .authorise(visitor, &visit.tokens)
        .map_err(|denied| {
            let realm = gatekeeper.tokens.is_some().then(|| realm(stage, inbound));
            Refusal::denied(denied, realm.as_deref())
        })?;
    Ok(visit.tokens)
}

/// Takes away headers that only a token may set and that choose the route: before the first match, since
/// a client could else choose a route that no policy protects.
pub(super) fn strip(headers: &mut HeaderMap, names: &[HeaderName]) {
    for name in names {
        headers.remove(name);
    }
}

fn authenticate(
    stage: &Stage<'_>,
    inbound: &mut Inbound,
    gatekeeper: &Arc<Gatekeeper>,
) -> Result<Visit, Refusal> {
    checked(stage, inbound, gatekeeper, &[])
}

/// As [`authenticate`], after another gatekeeper set headers from claims, which stay.
fn authenticate_again(
    stage: &Stage<'_>,
    inbound: &mut Inbound,
    gatekeeper: &Arc<Gatekeeper>,
    before: &Visit,
) -> Result<Visit, Refusal> {
    let kept: Vec<HeaderName> = before.by.own_headers().cloned().collect();
    checked(stage, inbound, gatekeeper, &kept)
}

fn checked(
    stage: &Stage<'_>,
    inbound: &mut Inbound,
    gatekeeper: &Arc<Gatekeeper>,
    kept: &[HeaderName],
) -> Result<Visit, Refusal> {
    if let Some(why) = &gatekeeper.closed {
        return Err(Refusal::new(Reason::PolicyUnusable, &**why));
    }
    let carrier = Carrier {
        headers: &inbound.parts.headers,
        query: inbound.parts.uri.query(),
    };
    let mut tell: Vec<(HeaderName, HeaderValue)> = Vec::new();
    if let Some(keys) = &gatekeeper.keys {
        let client = keys
            .client(carrier)
            .map_err(|error| credential(error, None))?;
        tell.extend(keys.forward.clone().map(|name| (name, client.clone())));
    }
    if let Some(users) = &gatekeeper.users {
        let user = users
            .user(carrier)
            .map_err(|error| credential(error, Some(&realm(stage, inbound))))?;
        tell.extend(users.forward.clone().map(|name| (name, user)));
    }
    let mut tokens = Vec::new();
    if let Some(check) = &gatekeeper.tokens {
        let now = now();
        tokens = check
            .good(carrier, |token, providers| {
                verified(stage.worker, check, token, providers, now)
            })
            .map_err(|error| Refusal::token(&error, &realm(stage, inbound)))?;
        for (provider, header, claim) in &check.claim_headers {
            let text = tokens
                .iter()
                .find(|token| token.0.provider() == provider)
                .and_then(|token| token.0.text(claim));
            // What no header can carry, such as a line break, is not told.
            let value = text.and_then(|text| HeaderValue::from_bytes(text.as_bytes()).ok());
            tell.extend(value.map(|value| (header.clone(), value)));
        }
    }
    let headers = &mut inbound.parts.headers;
    for name in gatekeeper.own_headers() {
        if !kept.contains(name) {
            headers.remove(name);
        }
    }
    if let Some(keys) = gatekeeper.keys.as_ref().filter(|keys| keys.sanitize) {
        sanitize(&mut inbound.parts, keys)?;
    }
    for (name, value) in tell {
        inbound.parts.headers.insert(name, value);
    }
    Ok(Visit {
        by: Arc::clone(gatekeeper),
        tokens,
    })
}

/// A good token, of this core's memory or verified now.
fn verified(
    worker: &Worker,
    check: &TokenCheck,
    token: &str,
    providers: &[&Arc<Provider>],
    now: u64,
) -> Result<Known, TokenError> {
    let fetched = &*worker.keys;
    let key = tokens::key(token, &check.fingerprint).filter(|_| token.len() <= MAX_REMEMBERED);
    if let Some(key) = &key {
        let mut cache = worker.tokens.borrow_mut();
        if let Some(seen) = cache.get(key) {
            let own = providers.iter().find(|one| one.name == *seen.0.provider());
            let good = own.is_some_and(|one| seen.0.still_good(one.current(fetched).as_ref(), now));
            if good {
                worker.metrics.token_remembered();
                return Ok(seen);
            }
            if own.is_some() {
                cache.forget(key);
            }
        }
    }
    let good = first_good(token, providers, fetched, now, |provider, error| {
        if matches!(error, TokenError::UnknownKey | TokenError::NoKeys)
            && let Some(remote) = provider.remote()
        {
            worker.keys.ask(remote);
        }
    })?;
    let good = Known(Rc::new(good));
    if let Some(key) = key {
        worker.tokens.borrow_mut().put(key, good.clone());
    }
    worker.metrics.token_verified();
    Ok(good)
}

fn credential(error: CredentialError, realm: Option<&str>) -> Refusal {
    let reason = match error {
        CredentialError::KeyMissing | CredentialError::UserMissing => Reason::CredentialMissing,
        CredentialError::KeyInvalid | CredentialError::UserInvalid => Reason::CredentialInvalid,
    };
    let detail = match error {
        CredentialError::KeyMissing => "no key at any place",
        CredentialError::KeyInvalid => "no client has this key, or there are several",
        CredentialError::UserMissing => "no user and password",
        CredentialError::UserInvalid => "no user has this password",
    };
    let challenge = realm.map(|realm| format!("Basic realm=\"{realm}\""));
    Refusal::challenged(reason, detail, error.to_string(), challenge)
}

/// Takes the key out of every place that was looked at.
fn sanitize(parts: &mut Parts, keys: &KeyRing) -> Result<(), Refusal> {
    let mut params = Vec::new();
    for place in &keys.places {
        match place {
            CredentialPlace::Header { name, .. } => {
                parts.headers.remove(name);
            }
            CredentialPlace::Query(name) => params.push(name.as_str()),
            CredentialPlace::Cookie(name) => cookies_without(&mut parts.headers, name),
        }
    }
    if let Some(query) = parts.uri.query()
        && !params.is_empty()
    {
        let rest = without(query, &params);
        let target = match rest.as_str() {
            "" => parts.uri.path().to_owned(),
            rest => format!("{}?{rest}", parts.uri.path()),
        };
        let mut changed = std::mem::take(&mut parts.uri).into_parts();
        changed.path_and_query = Some(PathAndQuery::try_from(target).map_err(broken)?);
        parts.uri = Uri::from_parts(changed).map_err(broken)?;
    }
    Ok(())
}

/// A target that is none without its credential must not become another one.
fn broken(error: impl Into<http::Error>) -> Refusal {
    let detail = format!("target without its credential: {}", error.into());
    Refusal::new(Reason::BadRequest, detail)
}

fn cookies_without(headers: &mut HeaderMap, name: &str) {
    let lines: Vec<HeaderValue> = headers
        .get_all(header::COOKIE)
        .iter()
        .filter_map(|line| {
            let text = line.to_str().ok()?;
            let kept: Vec<&str> = text
                .split(';')
                .map(str::trim)
                .filter(|pair| {
                    let key = pair.split_once('=').map_or(*pair, |(key, _)| key);
                    !pair.is_empty() && key != name
                })
                .collect();
            (!kept.is_empty())
                .then(|| HeaderValue::from_str(&kept.join("; ")).ok())
                .flatten()
        })
        .collect();
    headers.remove(header::COOKIE);
    for line in lines {
        headers.append(header::COOKIE, line);
    }
}

/// What a challenge is for: the URI without its query, as Envoy tells it (RFC 9110, section 11.5).
fn realm(stage: &Stage<'_>, inbound: &Inbound) -> String {
    let scheme = if stage.conn.tls { "https" } else { "http" };
    let path = inbound.path();
    let path = if path.len() > MAX_REALM { "" } else { path };
    let mut realm = format!("{scheme}://{}{path}", inbound.host());
    // A canonical path may have quotes, which would end the text.
    realm.retain(|one| one.is_ascii_graphic() && one != '"' && one != '\\');
    realm
}

/// Seconds since 1970. With a clock from before that nothing is known about a token's time, and it has expired.
pub(super) fn now() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(u64::MAX >> 1, |since| since.as_secs())
}
