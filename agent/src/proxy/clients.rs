//! What a listener's policy says of a request: whose it is, what it may look like, and how long it may take.

use std::net::IpAddr;
use std::rc::Rc;
use std::time::Duration;

use http::header::{self, HeaderMap, HeaderValue};
use http::request::Parts;
use http::{Method, Response, StatusCode};
use snapshot::model::Underscores;
use tokio::time::Instant;

use super::body::ResponseBody;
use super::connection::Conn;
use super::exchange::Exchange;
use super::log::Reason;
use super::normalise::{self, Normal};
use super::respond::Refusal;
use crate::route::RouteTable;
use crate::route::client::{ClientSettings, FORWARDED_FOR};
use crate::upstream::Progress;

/// Between looks at a request whose time is over, and whose client is not what it waits for.
const LOOK: Duration = Duration::from_millis(50);

/// Takes away what the policy does not let through, and finds out whose the request is: `connection` is what is known
/// without the policy.
pub(super) fn received(
    settings: &ClientSettings,
    exchange: &mut Exchange,
    headers: &mut HeaderMap,
    connection: IpAddr,
) -> Result<IpAddr, Refusal> {
    if settings.policy.underscores == Underscores::Drop {
        normalise::remove(headers, |name| name.as_str().contains('_'));
    }
    let detected = settings
        .detect(headers, connection)
        .map_err(|error| Refusal::new(Reason::ClientUnknown, error.to_string()))?;
    let Some(detected) = detected else {
        return Ok(connection);
    };
    // What an untrusted client made up of the way so far goes no further.
    match HeaderValue::from_str(&detected.way) {
        Ok(way) if !way.is_empty() => {
            headers.insert(FORWARDED_FOR, way);
        }
        _ => {
            headers.remove(FORWARDED_FOR);
        }
    }
    if detected.address != connection {
        exchange.record.client = Some(detected.address.to_string().into());
    }
    Ok(detected.address)
}

/// Gives a request without a host the one that its listener has for it, if there is one.
pub(super) fn give_host(table: &RouteTable, conn: &Conn, parts: &mut Parts) {
    if parts.uri.authority().is_some() || parts.headers.contains_key(header::HOST) {
        return;
    }
    if let Some(host) = table.default_host(conn.local, conn.tls, conn.sni.as_deref()) {
        parts.headers.insert(header::HOST, host.clone());
    }
}

/// The answer to a request that no route is asked for: a health check, or another path.
pub(super) fn answered(
    settings: &ClientSettings,
    parts: &Parts,
    normal: &Normal,
) -> Option<Response<ResponseBody>> {
    if normal.elsewhere {
        let path = normal.path.as_str();
        // Two slashes at its beginning would name another host (RFC 3986, section 4.2); the dot goes when it is resolved.
        let here = if path.starts_with("//") { "/." } else { "" };
        let target = match parts.uri.query() {
            Some(query) => format!("{here}{path}?{query}"),
            None => format!("{here}{path}"),
        };
        // A canonical path and the query that came are characters of a header's value.
        let target = HeaderValue::from_str(&target).ok()?;
        let mut response = Response::new(ResponseBody::empty());
        *response.status_mut() = StatusCode::TEMPORARY_REDIRECT;
        response.headers_mut().insert(header::LOCATION, target);
        return Some(response);
    }
    let checked = settings.policy.health_path.as_ref() == Some(&normal.path)
        && matches!(parts.method, Method::GET | Method::HEAD);
    checked.then(|| Response::new(ResponseBody::empty()))
}

/// Waits for an answer as long as the policy lets its client take.
pub(super) async fn within<F>(
    settings: &ClientSettings,
    progress: &Rc<Progress>,
    answer: F,
) -> Result<Response<ResponseBody>, Refusal>
where
    F: Future<Output = Result<Response<ResponseBody>, Refusal>>,
{
    let timeouts = &settings.policy.timeouts;
    progress.touch(Instant::now());
    tokio::select! {
        biased;
        answer = answer => answer,
        refusal = late(progress, timeouts.request) => Err(refusal),
        refusal = unreleased(progress, timeouts.stream_idle) => Err(refusal),
    }
}

/// Returns once a client has had `limit` for its request, and it is the one that is waited for.
async fn late(progress: &Progress, limit: Option<Duration>) -> Refusal {
    let Some(limit) = limit else {
        return std::future::pending().await;
    };
    tokio::time::sleep(limit).await;
    while !progress.waits_for_client() {
        tokio::time::sleep(LOOK).await;
    }
    Refusal::new(
        Reason::RequestTimeout,
        format!("the request was not complete within {limit:?}"),
    )
}

/// As [`stuck`], unless the request's rule has a limit of its own.
async fn unreleased(progress: &Progress, limit: Option<Duration>) -> Refusal {
    let refusal = stuck(progress, limit).await;
    match progress.released() {
        true => std::future::pending().await,
        false => refusal,
    }
}

/// Returns once nothing of a request has moved for `limit`.
pub(super) async fn stuck(progress: &Progress, limit: Option<Duration>) -> Refusal {
    let Some(limit) = limit else {
        return std::future::pending().await;
    };
    loop {
        let end = progress.last() + limit;
        if Instant::now() >= end {
            break;
        }
        tokio::time::sleep_until(end).await;
    }
    let reason = match progress.waits_for_client() {
        true => Reason::RequestTimeout,
        false => Reason::UpstreamTimeout,
    };
    Refusal::new(reason, format!("nothing moved for {limit:?}"))
}
