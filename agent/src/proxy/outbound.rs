//! How a request leaves: its target, version and framing headers towards the upstream.

use http::header::{self, HeaderValue};
use http::request::Parts;
use http::{HeaderMap, Uri, Version};

use super::log::Reason;
use super::respond::Refusal;
use crate::upstream::{RequestBody, UpstreamRequest};

/// How a request leaves.
pub(super) struct Outbound<'a> {
    /// Path and query; none: those of the request.
    pub(super) target: Option<&'a str>,
    pub(super) host: HeaderValue,
    pub(super) tls: bool,
    pub(super) http2: bool,
    pub(super) trailers: bool,
    pub(super) websocket: bool,
}

impl Outbound<'_> {
    pub(super) fn request(
        self,
        mut parts: Box<Parts>,
        body: RequestBody,
    ) -> Result<Box<UpstreamRequest>, Refusal> {
        let broken = |error: String| Refusal::new(Reason::Rewrite, error);
        let headers = &mut parts.headers;
        join_cookies(headers);
        if self.http2 {
            let scheme = if self.tls { "https" } else { "http" };
            let authority = self
                .host
                .to_str()
                .map_err(|error| broken(error.to_string()))?;
            let whole = match (self.target, parts.uri.path_and_query()) {
                (Some(target), _) => format!("{scheme}://{authority}{target}"),
                (None, Some(own)) => format!("{scheme}://{authority}{own}"),
                (None, None) => format!("{scheme}://{authority}/"),
            };
            parts.uri = Uri::try_from(whole).map_err(|error| broken(error.to_string()))?;
            parts.version = Version::HTTP_2;
            headers.remove(header::HOST);
            if self.trailers {
                headers.insert(header::TE, HeaderValue::from_static("trailers"));
            }
        } else {
            if let Some(target) = self.target {
                parts.uri = Uri::try_from(target).map_err(|error| broken(error.to_string()))?;
            }
            parts.version = Version::HTTP_11;
            // Most requests leave for the host that they came for.
            let mut hosts = headers.get_all(header::HOST).iter();
            if (hosts.next(), hosts.next()) != (Some(&self.host), None) {
                headers.insert(header::HOST, self.host);
            }
            if self.websocket {
                headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
                headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
            }
        }
        parts.extensions.clear();
        let more = Vec::new();
        Ok(Box::new(UpstreamRequest { parts, more, body }))
    }
}

/// HTTP/2 may split cookies over lines, HTTP/1.1 may not (RFC 9113, section 8.2.3).
fn join_cookies(headers: &mut HeaderMap) {
    if headers.len() == headers.keys_len() {
        // Nothing is there twice.
        return;
    }
    let mut lines = headers.get_all(header::COOKIE).iter();
    let (Some(first), Some(second)) = (lines.next(), lines.next()) else {
        return;
    };
    let mut joined = first.as_bytes().to_vec();
    for line in std::iter::once(second).chain(lines) {
        joined.extend_from_slice(b"; ");
        joined.extend_from_slice(line.as_bytes());
    }
    // Parts that were header values, joined by ASCII, are a header value.
    if let Ok(value) = HeaderValue::from_bytes(&joined) {
        headers.insert(header::COOKIE, value);
    }
}
