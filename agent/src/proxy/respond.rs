//! Answers of the router itself. Errors become responses in one function: the client gets a class
//! and a request id, the log gets the chain.

use http::{HeaderValue, Response, header};

use super::body::ResponseBody;
use super::grpc;
use super::log::Reason;
use crate::causes::chain;
use crate::resilience::CircuitState;
use crate::route::gatekeeper::Denied;
use crate::route::key::KeyError;
use crate::route::token::TokenError;
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
    challenge: Option<HeaderValue>,
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

impl Refusal {
    /// With a message for the client, and what it is to send (`WWW-Authenticate`).
    pub(super) fn challenged(
        reason: Reason,
        detail: &str,
        message: String,
        challenge: Option<String>,
    ) -> Self {
        Self {
            reason,
            detail: detail.to_owned(),
            message: Some(message),
            // The realm is printable ASCII, as whoever made it saw to.
            challenge: challenge.and_then(|text| HeaderValue::from_str(&text).ok()),
        }
    }

    /// No good token.
    pub(super) fn token(error: &TokenError, realm: &str) -> Self {
        let plain = format!("Bearer realm=\"{realm}\"");
        // RFC 6750, section 3.1: no error code when the request carried no token.
        let (reason, challenge) = match error {
            TokenError::Missing => (Reason::JwtMissing, Some(plain)),
            TokenError::NoKeys => (Reason::KeysUnavailable, None),
            _ => (
                Reason::JwtInvalid,
                Some(format!("{plain}, error=\"invalid_token\"")),
            ),
        };
        let message = error.to_string();
        let detail = match error {
            TokenError::Invalid(why) => why,
            TokenError::UnknownKey => "no key fits its algorithm and `kid`",
            TokenError::NoKeys => "the provider's keys were never fetched, or are too old",
            _ => &message,
        };
        Self::challenged(reason, detail, message.clone(), challenge)
    }

    /// A good request that is not allowed; `realm` if a token could change that.
    pub(super) fn denied(denied: Denied, realm: Option<&str>) -> Self {
        let (reason, detail) = match denied {
            Denied::NoOperation => (
                Reason::OperationNotDeclared,
                "no declared operation matches method and path",
            ),
            Denied::Scope => (Reason::Scope, "token lacks a scope or claim"),
            Denied::Rule => (Reason::AccessDenied, "a rule denies, or none allows"),
        };
        let challenge = realm
            .filter(|_| denied == Denied::Scope)
            .map(|realm| format!("Bearer realm=\"{realm}\", error=\"insufficient_scope\""));
        Self::challenged(reason, detail, "RBAC: access denied".into(), challenge)
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
            | UpstreamError::Untrusted { .. } => Reason::UpstreamConnect,
            UpstreamError::Broken { .. } => Reason::UpstreamReset,
            UpstreamError::HeadTimeout { .. } | UpstreamError::Deadline { .. } => {
                Reason::UpstreamTimeout
            }
            UpstreamError::ClientStalled { .. } => Reason::RequestTimeout,
            UpstreamError::ClientGone => Reason::ClientClosed,
            UpstreamError::BodyTooLong { .. } => Reason::BodySizeLimit,
            UpstreamError::Overloaded { .. } => Reason::BackendOverloaded,
            UpstreamError::Nowhere | UpstreamError::NoDatagrams { .. } => Reason::NoTarget,
        };
        Self::new(reason, chain(&error))
    }
}

/// The answer for a refusal. With `close` the connection ends: what follows on it cannot be trusted, or
/// belongs on another one.
pub(super) fn refusal(
    refusal: &Refusal,
    request_id: &str,
    in_grpc: bool,
    close: bool,
) -> Response<ResponseBody> {
    let mut response = match in_grpc {
        true => grpc::refusal(refusal, request_id),
        false if refusal.reason == Reason::RateLimited => plain_refusal(refusal),
        false => json_refusal(refusal, request_id, close),
    };
    let tell = match refusal.reason {
        Reason::CircuitOpen => Some(("x-circuit-state", CircuitState::Open.as_str())),
        // As Envoy says it.
        Reason::BackendOverloaded => Some(("x-envoy-overloaded", "true")),
        _ => None,
    };
    if let Some((name, value)) = tell {
        let value = HeaderValue::from_static(value);
        response.headers_mut().insert(name, value);
    }
    response
}

/// The reason as a text: clients that know Envoy look for it.
fn plain_refusal(refusal: &Refusal) -> Response<ResponseBody> {
    let mut response = Response::new(ResponseBody::full(refusal.reason.as_str()));
    *response.status_mut() = refusal.reason.status();
    let plain = HeaderValue::from_static("text/plain");
    response.headers_mut().insert(header::CONTENT_TYPE, plain);
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
    if let Some(challenge) = &refusal.challenge {
        headers.insert(header::WWW_AUTHENTICATE, challenge.clone());
    }
    if close {
        headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    response
}
