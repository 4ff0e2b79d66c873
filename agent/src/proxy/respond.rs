//! Answers of the router itself. Errors become responses in one function: the client gets a class
//! and a request id, the log gets the chain.

use http::{HeaderValue, Response, StatusCode, header};

use super::body::ResponseBody;
use super::log::Reason;
use crate::resilience::CircuitState;
use crate::route::key::KeyError;
use crate::route::token::{Denied, TokenError};
use crate::upstream::UpstreamError;

/// Why a request is not served.
#[derive(Debug)]
pub(super) struct Refusal {
    pub(super) reason: Reason,
    /// For the log.
    pub(super) detail: String,
    /// For the client; the class alone says enough when it is none.
    pub(super) message: Option<String>,
    /// Value of `WWW-Authenticate`.
    challenge: Option<&'static str>,
}

impl Refusal {
    pub(super) fn new(reason: Reason, detail: impl Into<String>) -> Self {
        Self {
            reason,
            detail: detail.into(),
            message: None,
            challenge: None,
        }
    }
}

impl From<TokenError> for Refusal {
    fn from(error: TokenError) -> Self {
        // RFC 6750, section 3.1: no error code when the request carried no token.
        let (reason, challenge) = match error {
            TokenError::Missing => (Reason::JwtMissing, "Bearer"),
            _ => (Reason::JwtInvalid, "Bearer error=\"invalid_token\""),
        };
        let detail = match error {
            TokenError::Invalid(why) => why.to_owned(),
            _ => error.to_string(),
        };
        Self {
            reason,
            detail,
            message: Some(error.to_string()),
            challenge: Some(challenge),
        }
    }
}

impl From<Denied> for Refusal {
    fn from(denied: Denied) -> Self {
        let (reason, detail) = match denied {
            Denied::NoOperation => (
                Reason::OperationNotDeclared,
                "no declared operation matches method and path",
            ),
            Denied::Scope => (Reason::Scope, "token lacks a scope or claim"),
        };
        Self {
            reason,
            detail: detail.into(),
            message: Some("RBAC: access denied".into()),
            challenge: matches!(denied, Denied::Scope)
                .then_some("Bearer error=\"insufficient_scope\""),
        }
    }
}

impl From<KeyError> for Refusal {
    fn from(error: KeyError) -> Self {
        let reason = match error {
            KeyError::Missing => Reason::RoutingKeyMissing,
            KeyError::Untrusted => Reason::RoutingKeyUntrusted,
            _ => Reason::RoutingKeyInvalid,
        };
        Self {
            message: Some(error.to_string()),
            ..Self::new(reason, error.to_string())
        }
    }
}

impl From<UpstreamError> for Refusal {
    fn from(error: UpstreamError) -> Self {
        let reason = match &error {
            UpstreamError::Resolve { .. } => Reason::UpstreamResolve,
            UpstreamError::Connect { .. }
            | UpstreamError::ConnectTimeout { .. }
            | UpstreamError::NoRoots { .. } => Reason::UpstreamConnect,
            UpstreamError::Broken { .. } => Reason::UpstreamReset,
            UpstreamError::HeadTimeout { .. } => Reason::UpstreamTimeout,
            UpstreamError::ClientStalled { .. } => Reason::RequestTimeout,
            UpstreamError::ClientGone => Reason::ClientClosed,
            UpstreamError::BodyTooLong { .. } => Reason::BodySizeLimit,
            UpstreamError::Nowhere => Reason::NoTarget,
        };
        Self::new(reason, chain(&error))
    }
}

/// An error and its causes, outermost first.
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

/// The answer for a refusal. With `close` the connection ends: what follows on it cannot be trusted, or
/// belongs on another one.
pub(super) fn refusal(
    refusal: &Refusal,
    request_id: &str,
    grpc: bool,
    close: bool,
) -> Response<ResponseBody> {
    let mut response = if grpc && !matches!(refusal.reason, Reason::BadRequest) {
        grpc_refusal(refusal, request_id)
    } else {
        json_refusal(refusal, request_id, close)
    };
    if refusal.reason == Reason::CircuitOpen {
        let state = HeaderValue::from_static(CircuitState::Open.as_str());
        response.headers_mut().insert("x-circuit-state", state);
    }
    response
}

fn json_refusal(refusal: &Refusal, request_id: &str, close: bool) -> Response<ResponseBody> {
    let status = refusal.reason.status();
    let body = serde_json::json!({
        "error": refusal.reason.as_str(),
        "message": refusal.message,
        "request_id": request_id,
    });
    let mut response = Response::new(ResponseBody::full(format!("{body}\n")));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("application/json"),
    );
    headers.insert(
        header::X_CONTENT_TYPE_OPTIONS,
        HeaderValue::from_static("nosniff"),
    );
    if let Some(challenge) = refusal.challenge {
        headers.insert(
            header::WWW_AUTHENTICATE,
            HeaderValue::from_static(challenge),
        );
    }
    if close {
        headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

/// A gRPC client reads its status from headers of a response without body (gRPC over HTTP/2,
/// "Trailers-Only"); the codes are those that gRPC maps the HTTP statuses to, and `unimplemented` for
/// what has no route.
fn grpc_refusal(refusal: &Refusal, request_id: &str) -> Response<ResponseBody> {
    let code = match refusal.reason.status() {
        StatusCode::BAD_REQUEST => "13",
        StatusCode::UNAUTHORIZED => "16",
        StatusCode::FORBIDDEN => "7",
        StatusCode::NOT_FOUND => "12",
        StatusCode::GATEWAY_TIMEOUT => "4",
        _ => "14",
    };
    let mut response = Response::new(ResponseBody::empty());
    let headers = response.headers_mut();
    headers.insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("application/grpc"),
    );
    headers.insert("grpc-status", HeaderValue::from_static(code));
    let message = format!("{} {request_id}", refusal.reason.as_str());
    // Reasons are words and ids were checked: both are header text.
    if let Ok(message) = HeaderValue::from_str(&message) {
        headers.insert("grpc-message", message);
    }
    response
}
