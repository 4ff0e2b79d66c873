//! Answers that a rule gives itself: redirects, and responses as they are written.

use http::header::{self, HeaderValue};
use http::{Method, Response, StatusCode};

use super::body::ResponseBody;
use super::connection::Conn;
use super::log::Reason;
use super::normalise::Normal;
use super::respond::Refusal;
use crate::route::filter::{Answer, Redirect};
use crate::route::{Filters, rewrite};

/// The answer of a list of filters to a request, if it has one. `prefix` is the prefix that matched.
pub(super) fn given(
    filters: &Filters,
    conn: &Conn,
    method: &Method,
    normal: &Normal,
    query: Option<&str>,
    prefix: Option<&str>,
) -> Option<Result<Response<ResponseBody>, Refusal>> {
    let answer = match filters.answer.as_deref()? {
        Answer::Redirect(redirect) => {
            location(redirect, conn, normal, query, prefix).map(|location| {
                let mut response = body(redirect.status, method, &[]);
                response.headers_mut().insert(header::LOCATION, location);
                response
            })
        }
        Answer::Response(written) => {
            let mut response = body(written.status, method, &written.body);
            let headers = response.headers_mut();
            if let Some(kind) = &written.content_type {
                headers.insert(header::CONTENT_TYPE, kind.clone());
            }
            written.headers.apply(headers);
            Ok(response)
        }
    };
    Some(answer)
}

/// A response with a body, which only `HEAD` does not get to see.
fn body(status: StatusCode, method: &Method, bytes: &[u8]) -> Response<ResponseBody> {
    // RFC 9110, sections 15.3.5, 15.3.6 and 15.4.5: these have none, whatever is written.
    let none = matches!(
        status,
        StatusCode::NO_CONTENT | StatusCode::RESET_CONTENT | StatusCode::NOT_MODIFIED
    );
    let mut response = Response::new(if none || bytes.is_empty() || *method == Method::HEAD {
        ResponseBody::empty()
    } else {
        ResponseBody::full(bytes.to_vec())
    });
    *response.status_mut() = status;
    if !none {
        let length = HeaderValue::from(bytes.len());
        response
            .headers_mut()
            .insert(header::CONTENT_LENGTH, length);
    }
    response
}

/// `Location` of a redirect (Gateway API, `HTTPRequestRedirectFilter`); the query stays.
fn location(
    redirect: &Redirect,
    conn: &Conn,
    normal: &Normal,
    query: Option<&str>,
    prefix: Option<&str>,
) -> Result<HeaderValue, Refusal> {
    let broken = |error: String| Refusal::new(Reason::Rewrite, error);
    let scheme = if redirect.tls.unwrap_or(conn.tls) {
        "https"
    } else {
        "http"
    };
    let host = redirect.host.as_deref().unwrap_or(&normal.host);
    let mut location = format!("{scheme}://{host}");
    if let Some(port) = redirect.port(conn.tls, conn.local.port()) {
        location.push_str(&format!(":{port}"));
    }
    match &redirect.path {
        Some(change) => {
            let path = rewrite::path(&normal.path, prefix, change)
                .map_err(|error| broken(error.to_string()))?;
            location.push_str(path.as_str());
        }
        None => location.push_str(normal.path.as_str()),
    }
    if let Some(query) = query {
        location.push('?');
        location.push_str(query);
    }
    HeaderValue::from_str(&location).map_err(|error| broken(error.to_string()))
}
