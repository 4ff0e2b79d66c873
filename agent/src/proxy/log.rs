//! What happened to each request and each refused or tunnelled connection.
//!
//! A record goes into a ring of the last [`KEPT`] records, which the admin socket serves, and to the access
//! log and the collector of traces if they are asked for. It has no query, no header and no body.

use std::borrow::Cow;
use std::cell::Cell;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, TryLockError};

use http::StatusCode;
use prometheus_client::registry::Registry;

use super::request_id::RequestId;
use super::trace::TraceContext;
use crate::route::{FailoverReason, RouteReason};
use crate::telemetry::Sinks;

/// Bytes of a text in a record; what a client may send is longer, and many records are kept.
const MAX_TEXT: usize = 2048;

/// Records that each core keeps for [`RequestLog::since`]. All of them are written to again and again, and should not take
/// the core's cache.
pub const KEPT: usize = 256;

/// One request, or one connection that never became requests.
#[derive(Clone, Debug, Default, serde::Serialize)]
pub struct AccessRecord {
    /// Position in the log, from 1.
    pub seq: u64,
    /// Start, in milliseconds since 1970.
    pub time_ms: u64,
    /// Id of the request; empty for connections.
    #[serde(skip_serializing_if = "RequestId::is_none")]
    pub request_id: RequestId,
    /// Start, in nanoseconds since 1970; spans are as exact.
    #[serde(skip)]
    pub start_ns: u64,
    /// Its trace; of records that have none all is zero.
    #[serde(flatten, serialize_with = "trace")]
    pub trace: TraceContext,
    /// Cell of the endpoint that was asked for, or of the caller where that is outside.
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "text")]
    pub cell: Option<Arc<str>>,
    /// `north`, `west`, `east` or `south`; none at a gateway that is no gate.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub direction: Option<&'static str>,
    /// `http` for HTTP/1.1 and HTTP/2, `http/3`, `tls`, `tcp`, `udp` or `quic`.
    pub protocol: &'static str,
    /// Method.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub method: Option<Cow<'static, str>>,
    /// Host asked for: the request's authority or the SNI, lower case and without port.
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "text")]
    pub host: Option<Arc<str>>,
    /// Canonical path; as sent when it has no canonical form.
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "text")]
    pub path: Option<Arc<str>>,
    /// Path sent upstream, where it differs.
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "text")]
    pub upstream_path: Option<Arc<str>>,
    /// Listener, `east` or `south`.
    #[serde(serialize_with = "text")]
    pub listener: Option<Arc<str>>,
    /// Route.
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "text")]
    pub route: Option<Arc<str>>,
    /// Position of the rule in the route.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rule: Option<usize>,
    /// Status of the answer; 0 if the connection ended without one.
    pub status: u16,
    /// How it went.
    pub reason: Reason,
    /// The chain of causes, for refusals.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
    /// Where the answer came from.
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "text")]
    pub upstream: Option<Arc<str>>,
    /// Times that the request was sent again.
    #[serde(skip_serializing_if = "none")]
    pub retries: u32,
    /// Placement of the routing key.
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "text")]
    pub placement: Option<Arc<str>>,
    /// Why this placement.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub route_reason: Option<RouteReason>,
    /// From the head of the request to the moment that an upstream is asked, in microseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub request_us: Option<u64>,
    /// From there to the head of the upstream's answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub upstream_us: Option<u64>,
    /// Why another placement served than the key's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failover_reason: Option<FailoverReason>,
    /// From the head of the request to the end of the answer's body, in microseconds.
    pub duration_us: u64,
    /// Bytes of the request's body.
    pub bytes_in: u64,
    /// Bytes of the answer's body.
    pub bytes_out: u64,
    /// Address of the client.
    #[serde(serialize_with = "text")]
    pub client: Option<Arc<str>>,
    /// Component of the client.
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "text")]
    pub caller: Option<Arc<str>>,
    /// Generation of the table that decided.
    pub generation: u64,
}

fn none(retries: &u32) -> bool {
    *retries == 0
}

/// `trace_id`, `span_id` and `parent_span_id`, as far as they are known.
fn trace<S: serde::Serializer>(value: &TraceContext, to: S) -> Result<S::Ok, S::Error> {
    use serde::ser::SerializeMap;
    let mut map = to.serialize_map(None)?;
    if value.trace != 0 {
        map.serialize_entry("trace_id", &format_args!("{:032x}", value.trace))?;
        map.serialize_entry("span_id", &format_args!("{:016x}", value.span))?;
        if value.parent != 0 {
            map.serialize_entry("parent_span_id", &format_args!("{:016x}", value.parent))?;
        }
    }
    map.end()
}

fn text<S: serde::Serializer>(value: &Option<Arc<str>>, to: S) -> Result<S::Ok, S::Error> {
    serde::Serialize::serialize(&value.as_deref(), to)
}

/// How a request or connection went. The names are what clients, logs and metrics show.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// Served; the status is the upstream's.
    #[default]
    Ok,
    /// Served by the rule itself: a redirect, or a response as it is written.
    Answered,
    /// The request is not well-formed, or ambiguous.
    BadRequest,
    /// More header lines than a request may have.
    HeadTooLarge,
    /// A method that a gateway does not serve.
    MethodRefused,
    /// No listener for the host.
    NoListener,
    /// No route matches.
    NoRoute,
    /// The connection's server name belongs to another listener than the request's host.
    Misdirected,
    /// A token is needed.
    JwtMissing,
    /// The token is not good.
    JwtInvalid,
    /// The keys that the token would be checked with are not there.
    KeysUnavailable,
    /// A client's key, or a user, is needed.
    CredentialMissing,
    /// No client has the key, or no user the password.
    CredentialInvalid,
    /// The token does not allow it.
    Scope,
    /// A rule of authorization denies, or none allows.
    AccessDenied,
    /// The policy of the rule refers to what is not there.
    PolicyUnusable,
    /// More requests than the rate limit lets pass.
    RateLimited,
    /// The endpoint declares operations and none of them matches.
    OperationNotDeclared,
    /// The routing key is missing.
    RoutingKeyMissing,
    /// The routing key is ambiguous or malformed.
    RoutingKeyInvalid,
    /// The routing key is not this client's to set.
    RoutingKeyUntrusted,
    /// The caller's cell did not declare a call to this endpoint.
    EastNotDeclared,
    /// A component of a cell came to the north gate.
    NorthFromCell,
    /// A name that the caller did not declare for this port.
    SniNotDeclared,
    /// A host that the caller did not declare for this port.
    HostNotDeclared,
    /// Nothing is declared for this port.
    SouthNotDeclared,
    /// A port declared as TLS carried something else.
    NotTls,
    /// The source address belongs to no component.
    CallerUnknown,
    /// The rule has no target, or none that it may use.
    NoTarget,
    /// The rule's target is a reference that leads nowhere.
    Unresolved,
    /// The placement has no endpoint.
    NoEndpoint,
    /// As many requests are under way as may be.
    ConcurrencyLimit,
    /// The request's body is longer than may be.
    BodySizeLimit,
    /// The circuit breaker is open, and nobody serves instead.
    CircuitOpen,
    /// As many requests are under way to the backend as may be.
    BackendOverloaded,
    /// No workload is there, or no endpoint is healthy.
    NoReadyEndpoint,
    /// A rewrite made no valid path or host.
    Rewrite,
    /// A filter cannot be applied.
    Filter,
    /// The upstream's name has no address.
    UpstreamResolve,
    /// No connection to the upstream.
    UpstreamConnect,
    /// The upstream broke off.
    UpstreamReset,
    /// No connection to the upstream, although the rule had it tried again.
    RetriesExhausted,
    /// The upstream did not answer in time.
    UpstreamTimeout,
    /// The client stopped sending.
    RequestTimeout,
    /// The client left before the end of the answer.
    ClientClosed,
    /// No certificate for the server name.
    NoCertificate,
    /// The certificate has expired.
    CertificateExpired,
    /// The TLS handshake failed.
    TlsHandshake,
    /// Neither side of a connection sent anything for too long.
    IdleTimeout,
    /// As many connections are open as may be.
    ConnectionLimit,
    /// The connection should begin with a PROXY header, and does not.
    ProxyHeader,
    /// The header that tells the client's address does not.
    ClientUnknown,
}

impl Reason {
    /// The name as in logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Answered => "answered",
            Self::BadRequest => "bad_request",
            Self::HeadTooLarge => "head_too_large",
            Self::MethodRefused => "method_refused",
            Self::NoListener => "no_listener",
            Self::NoRoute => "no_route",
            Self::Misdirected => "misdirected",
            Self::JwtMissing => "jwt_missing",
            Self::JwtInvalid => "jwt_invalid",
            Self::KeysUnavailable => "keys_unavailable",
            Self::CredentialMissing => "credential_missing",
            Self::CredentialInvalid => "credential_invalid",
            Self::Scope => "scope",
            Self::AccessDenied => "access_denied",
            Self::PolicyUnusable => "policy_unusable",
            // The word that Envoy has for it.
            Self::RateLimited => "local_rate_limited",
            Self::OperationNotDeclared => "operation_not_declared",
            Self::RoutingKeyMissing => "routing_key_missing",
            Self::RoutingKeyInvalid => "routing_key_invalid",
            Self::RoutingKeyUntrusted => "routing_key_untrusted",
            Self::EastNotDeclared => "east_not_declared",
            Self::NorthFromCell => "north_from_cell",
            Self::SniNotDeclared => "sni_not_declared",
            Self::HostNotDeclared => "host_not_declared",
            Self::SouthNotDeclared => "south_not_declared",
            Self::NotTls => "not_tls",
            Self::CallerUnknown => "caller_unknown",
            Self::NoTarget => "no_target",
            Self::Unresolved => "unresolved",
            Self::NoEndpoint => "no_endpoint",
            Self::ConcurrencyLimit => "concurrency_limit",
            Self::BodySizeLimit => "body_size_limit",
            Self::CircuitOpen => "circuit_open",
            Self::BackendOverloaded => "backend_overloaded",
            Self::NoReadyEndpoint => "no_ready_endpoint",
            Self::Rewrite => "rewrite",
            Self::Filter => "filter",
            Self::UpstreamResolve => "upstream_resolve",
            Self::UpstreamConnect => "upstream_connect",
            Self::UpstreamReset => "upstream_reset",
            Self::RetriesExhausted => "retries_exhausted",
            Self::UpstreamTimeout => "upstream_timeout",
            Self::RequestTimeout => "request_timeout",
            Self::ClientClosed => "client_closed",
            Self::NoCertificate => "no_certificate",
            Self::CertificateExpired => "certificate_expired",
            Self::TlsHandshake => "tls_handshake",
            Self::IdleTimeout => "idle_timeout",
            Self::ConnectionLimit => "connection_limit",
            Self::ProxyHeader => "proxy_header",
            Self::ClientUnknown => "client_unknown",
        }
    }

    /// Whether an upstream was asked and gave no answer.
    pub(super) fn no_answer(self) -> bool {
        matches!(
            self,
            Self::UpstreamResolve
                | Self::UpstreamConnect
                | Self::UpstreamReset
                | Self::UpstreamTimeout
                | Self::RetriesExhausted
        )
    }

    /// The status that tells a client.
    pub fn status(self) -> StatusCode {
        match self {
            Self::Ok | Self::Answered => StatusCode::OK,
            Self::BadRequest
            | Self::RoutingKeyMissing
            | Self::RoutingKeyInvalid
            | Self::ProxyHeader => StatusCode::BAD_REQUEST,
            Self::HeadTooLarge => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            Self::MethodRefused => StatusCode::NOT_IMPLEMENTED,
            Self::NoListener | Self::NoRoute => StatusCode::NOT_FOUND,
            Self::Misdirected => StatusCode::MISDIRECTED_REQUEST,
            Self::JwtMissing
            | Self::JwtInvalid
            | Self::CredentialMissing
            | Self::CredentialInvalid => StatusCode::UNAUTHORIZED,
            Self::Scope
            | Self::AccessDenied
            | Self::RoutingKeyUntrusted
            | Self::OperationNotDeclared
            | Self::EastNotDeclared
            | Self::NorthFromCell
            | Self::SniNotDeclared
            | Self::HostNotDeclared
            | Self::SouthNotDeclared
            | Self::NotTls
            | Self::CallerUnknown
            | Self::ClientUnknown
            | Self::NoCertificate
            | Self::CertificateExpired
            | Self::TlsHandshake => StatusCode::FORBIDDEN,
            Self::NoTarget
            | Self::Unresolved
            | Self::NoEndpoint
            | Self::PolicyUnusable
            | Self::Rewrite
            | Self::Filter => StatusCode::INTERNAL_SERVER_ERROR,
            Self::ConcurrencyLimit | Self::ConnectionLimit | Self::RateLimited => {
                StatusCode::TOO_MANY_REQUESTS
            }
            Self::BodySizeLimit => StatusCode::PAYLOAD_TOO_LARGE,
            Self::BackendOverloaded
            | Self::NoReadyEndpoint
            | Self::KeysUnavailable
            | Self::CircuitOpen
            | Self::RetriesExhausted => StatusCode::SERVICE_UNAVAILABLE,
            Self::UpstreamResolve | Self::UpstreamConnect | Self::UpstreamReset => {
                StatusCode::BAD_GATEWAY
            }
            Self::UpstreamTimeout => StatusCode::GATEWAY_TIMEOUT,
            Self::RequestTimeout | Self::ClientClosed | Self::IdleTimeout => {
                StatusCode::REQUEST_TIMEOUT
            }
        }
    }
}

/// Rings that the cores share out among them.
const RINGS: usize = 16;

/// The last [`KEPT`] records of each core. Writers never wait: a place that somebody reads is left out.
#[derive(Debug)]
pub struct RequestLog {
    next: AtomicU64,
    rings: [Ring; RINGS],
    sinks: Sinks,
}

/// The last [`KEPT`] records of a core; places without a record have the number 0.
#[derive(Debug, Default)]
struct Ring {
    places: OnceLock<Box<[Mutex<AccessRecord>]>>,
    next: AtomicUsize,
}

impl Default for RequestLog {
    fn default() -> Self {
        Self::new(Sinks::default())
    }
}

impl RequestLog {
    /// A log that also tells others.
    pub(crate) fn new(sinks: Sinks) -> Self {
        Self {
            next: AtomicU64::new(1),
            rings: Default::default(),
            sinks,
        }
    }

    /// Adds the series of the access log and of traces to a registry.
    pub fn register(&self, registry: &mut Registry) {
        self.sinks.register(registry);
    }

    /// Who else is told.
    pub(crate) fn sinks(&self) -> &Sinks {
        &self.sinks
    }

    /// Numbers and keeps a record, and hands it on. What is left in its place is nobody's.
    pub fn push(&self, record: &mut AccessRecord) {
        record.seq = self.next.fetch_add(1, Ordering::Relaxed);
        let texts = [
            &mut record.host,
            &mut record.path,
            &mut record.upstream_path,
        ];
        texts.into_iter().flatten().for_each(clip_shared);
        record.detail.iter_mut().for_each(clip);
        if let Some(Cow::Owned(method)) = &mut record.method {
            clip(method);
        }
        self.sinks.tell(record);
        self.rings[own_ring()].keep(record);
    }

    /// Records after a position, oldest first. A gap means that the reader was too slow.
    pub fn since(&self, seq: u64) -> Vec<Arc<AccessRecord>> {
        let places = self.rings.iter().filter_map(|ring| ring.places.get());
        let mut records: Vec<_> = places
            .flatten()
            .filter_map(|place| {
                let record = place.lock().unwrap_or_else(PoisonError::into_inner);
                (record.seq > seq).then(|| Arc::new(record.clone()))
            })
            .collect();
        records.sort_by_key(|record| record.seq);
        records
    }
}

impl Ring {
    fn keep(&self, record: &mut AccessRecord) {
        let make = || (0..KEPT).map(|_| Mutex::default()).collect();
        let places = self.places.get_or_init(make);
        for _ in 0..KEPT {
            let at = self.next.fetch_add(1, Ordering::Relaxed) % KEPT;
            let mut place = match places[at].try_lock() {
                Ok(place) => place,
                // A record is exchanged as a whole, so a panic elsewhere leaves it valid.
                Err(TryLockError::Poisoned(place)) => place.into_inner(),
                Err(TryLockError::WouldBlock) => continue,
            };
            std::mem::swap(&mut *place, record);
            return;
        }
    }
}

/// The ring of this thread.
fn own_ring() -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    thread_local! {
        static OWN: Cell<usize> = Cell::new(NEXT.fetch_add(1, Ordering::Relaxed) % RINGS);
    }
    OWN.get()
}

/// Shortens a text to [`MAX_TEXT`] bytes, its end marked, and gives back the rest of its memory.
fn clip(text: &mut String) {
    if text.len() > MAX_TEXT {
        text.truncate(text.floor_char_boundary(MAX_TEXT - '…'.len_utf8()));
        text.push('…');
        text.shrink_to_fit();
    }
}

/// The same of a text that others may have too.
fn clip_shared(text: &mut Arc<str>) {
    if text.len() > MAX_TEXT {
        let mut clipped = text.to_string();
        clip(&mut clipped);
        *text = clipped.into();
    }
}

#[cfg(test)]
mod tests {
    use super::{AccessRecord, KEPT, MAX_TEXT, RequestLog};

    #[test]
    fn records_are_of_bounded_size() {
        let log = RequestLog::default();
        for path in ["/a".repeat(30_000), "ä".repeat(30_000), "/short".into()] {
            log.push(&mut AccessRecord {
                path: Some(path.as_str().into()),
                detail: Some(path),
                ..AccessRecord::default()
            });
        }
        let all = log.since(0);
        let paths: Vec<_> = all.iter().filter_map(|one| one.path.as_ref()).collect();
        let details: Vec<_> = all.iter().filter_map(|one| one.detail.as_ref()).collect();
        for (path, detail) in paths[..2].iter().zip(&details) {
            assert!(path.len() <= MAX_TEXT && path.ends_with('…'));
            assert!(detail.capacity() <= 2 * MAX_TEXT && detail.as_str() == &***path);
        }
        assert_eq!((&**paths[2], details[2].as_str()), ("/short", "/short"));
    }

    #[test]
    fn the_log_keeps_the_last_records_in_order() {
        let log = RequestLog::default();
        for status in 0..3000 {
            log.push(&mut AccessRecord {
                status,
                ..AccessRecord::default()
            });
        }
        let all = log.since(0);
        assert_eq!(all.len(), KEPT);
        assert!(all.is_sorted_by_key(|record| record.seq));
        let last: Vec<_> = log.since(2998).iter().map(|one| one.status).collect();
        assert_eq!(last, [2998, 2999]);
        assert!(log.since(3000).is_empty());
    }
}
