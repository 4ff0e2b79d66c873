//! WebSockets by either codec: asked for by an `Upgrade` of HTTP/1.1 (RFC 6455), or by an extended `CONNECT` of HTTP/2
//! (RFC 8441). Towards upstreams all of them are upgrades of HTTP/1.1.
//!
//! Flows in: the head of a request, later the head of its answer. Flows out: the same heads as the other side reads them.

use data_encoding::BASE64;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Method, Response, StatusCode, Version, request};
use hyper::ext::Protocol;

use super::log::Reason;
use super::respond::Refusal;

const PROTOCOL: &str = "websocket";

/// How a client asks for a WebSocket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Asked {
    /// By an upgrade of its connection.
    Upgrade,
    /// By an extended `CONNECT`, which becomes one stream of its connection.
    Connect,
}

/// Whether an extended `CONNECT` asks for a WebSocket.
pub(super) fn connect(request: &request::Parts) -> bool {
    let protocol = request.extensions.get::<Protocol>();
    request.version == Version::HTTP_2
        && request.method == Method::CONNECT
        && protocol.is_some_and(|one| one.as_str().eq_ignore_ascii_case(PROTOCOL))
}

/// Makes an extended `CONNECT` the request that an upstream of HTTP/1.1 knows: a `GET` with a key, which over HTTP/2 no
/// client sends (RFC 8441, section 5). Routes and operations are matched with this method too.
pub(super) fn as_upgrade(parts: &mut request::Parts, nonce: [u64; 2]) {
    parts.method = Method::GET;
    let bytes = [nonce[0].to_be_bytes(), nonce[1].to_be_bytes()].concat();
    if let Ok(key) = HeaderValue::from_str(&BASE64.encode(&bytes)) {
        parts.headers.insert(header::SEC_WEBSOCKET_KEY, key);
    }
}

/// The head of an answer that switched protocols, as its client reads it.
pub(super) fn switched<B>(response: &mut Response<B>, asked: Asked) {
    if asked == Asked::Connect {
        *response.status_mut() = StatusCode::OK;
    }
    let headers = response.headers_mut();
    match asked {
        Asked::Upgrade => {
            headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
            headers.insert(header::UPGRADE, HeaderValue::from_static(PROTOCOL));
        }
        Asked::Connect => {
            // Of the handshake that the client did not make, and of a body that is none.
            remove(
                headers,
                &[header::SEC_WEBSOCKET_ACCEPT, header::CONTENT_LENGTH],
            );
        }
    }
}

/// Refuses a success that opened no tunnel: the client of a `CONNECT` would take its body for one.
pub(super) fn no_tunnel(status: StatusCode, asked: Option<Asked>) -> Result<(), Refusal> {
    if asked == Some(Asked::Connect) && status.is_success() {
        return Err(Refusal::new(
            Reason::UpstreamReset,
            "upstream answered a WebSocket's request without one",
        ));
    }
    Ok(())
}

fn remove(headers: &mut HeaderMap, names: &[HeaderName]) {
    for name in names {
        headers.remove(name);
    }
}
