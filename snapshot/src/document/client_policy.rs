//! `ClientTrafficPolicy` (Envoy Gateway): how listeners treat those who connect to them.

use std::num::{NonZeroU32, NonZeroUsize};
use std::time::Duration;

use super::Meta;
use super::addresses::network;
use super::duration::duration;
use super::gateway::ValidationDraft;
use super::http_route::header_name;
use super::policy::{Targets, gateways};
use super::quantity::bytes;
use crate::model::{
    Alpn, ClientHttp2, ClientHttp3, ClientPolicy, ClientTimeouts, ClientTls, ConnectionLimit,
    DocumentPath, Entrance, EscapedSlashes, Http1End, Keepalive, Timestamp, Tls12Cipher,
    TlsVersions,
};
use crate::reader::{Field, Object};

mod client_ip;
mod headers;
mod tls;
mod validation;

/// More is not told from no limit.
const MAX_COUNT: i64 = 1_000_000_000;
/// Probes that the kernel takes (tcp(7), `TCP_KEEPCNT`), and the longest of its times in seconds.
const MAX_PROBES: i64 = 127;
const MAX_KEEPALIVE: Duration = Duration::from_secs(32_767);
/// A flow-control window in bytes (RFC 9113, sections 6.5.2 and 6.9.2): at least what HTTP/2 begins with.
const WINDOWS: std::ops::RangeInclusive<u64> = 65_535..=2_147_483_647;

/// A policy whose targets are not resolved.
pub(crate) struct ClientDraft {
    pub(crate) created: Option<Timestamp>,
    pub(crate) targets: Targets,
    pub(crate) policy: ClientPolicy,
    /// What clients are asked for, with the authorities by name.
    pub(crate) validation: Option<ValidationDraft>,
}

/// Reads the `spec`.
pub(crate) fn read(spec: &mut Object<'_>, meta: &Meta) -> Option<ClientDraft> {
    spec.unsupported(&["grpc", "scheme"]);
    let targets = gateways(spec, meta);
    let proxy_protocol = proxy_protocol(spec);
    let client_ip = spec
        .optional("clientIPDetection")
        .map(|field| client_ip::read(&field));
    let path = spec.optional("path").map(|field| path(&field));
    let headers = spec.optional("headers").map(|field| headers::read(&field));
    let timeouts = spec.optional("timeout").map(|field| timeouts(&field));
    let tls = spec.optional("tls").map(|field| tls::read(&field, meta));
    let connections = spec.optional("connection").map(|field| connection(&field));
    let keepalive = spec.optional("tcpKeepalive").map(|field| keepalive(&field));
    let http1 = spec.optional("http1").map(|field| http1(&field));
    let http2 = spec.optional("http2").map(|field| http2(&field));
    let quic = spec.optional("http3");
    let http3 = quic.as_ref().map(http3);
    let health_path = spec.optional("healthCheck").map(|field| health(&field));
    let (escaped_slashes, merge_slashes) = settled(path)?.unwrap_or((EscapedSlashes::Reject, true));
    let connections = settled(connections)?.unwrap_or_default();
    let headers = settled(headers)?.unwrap_or_default();
    let client_ip = settled(client_ip)?.unwrap_or_default();
    let http1 = settled(http1)?.unwrap_or_default();
    let (tls, validation) = settled(tls)?.unwrap_or_default();
    let proxy_protocol = proxy_protocol?;
    let http3 = settled(http3)?;
    if let Some(field) = &quic {
        possible(field, proxy_protocol, tls.versions)?;
    }
    Some(ClientDraft {
        created: meta.created,
        targets,
        validation,
        policy: ClientPolicy {
            declared: meta.declared.clone(),
            entrance: Entrance {
                proxy_protocol,
                limit: connections.limit,
                keepalive: settled(keepalive)?,
            },
            client_ip: client_ip.by,
            escaped_slashes,
            merge_slashes,
            underscores: headers.underscores,
            request_id: headers.request_id,
            early: headers.early,
            late: headers.late,
            told_certificate: headers.told_certificate,
            tell_client: client_ip.tell_client,
            strip_host_dot: headers.strip_host_dot,
            default_host: http1.default_host,
            rate_headers: headers.rate_headers,
            timeouts: settled(timeouts)?.unwrap_or_default(),
            tls,
            max_requests: connections.max_requests,
            max_age: connections.max_age,
            max_stream: connections.max_stream,
            http1_end: http1.end,
            http2: settled(http2)?.unwrap_or_default(),
            http3,
            health_path: settled(health_path)?,
        },
    })
}

/// None at all is a part that the document does not have; none inside is one that has mistakes.
#[expect(
    clippy::option_option,
    reason = "absent and unreadable are two things here, and both end at `read`"
)]
fn settled<T>(part: Option<Option<T>>) -> Option<Option<T>> {
    match part {
        None => Some(None),
        Some(read) => read.map(Some),
    }
}

fn proxy_protocol(spec: &mut Object<'_>) -> Option<bool> {
    let enabled = spec
        .optional("enableProxyProtocol")
        .map(|field| field.boolean());
    let settings = spec.optional("proxyProtocol").map(|field| {
        let mut object = field.object()?;
        if let Some(field) = object.optional("optional")
            && field.boolean()?
        {
            field.mistake("who may leave the header out could also make one up; expected `false`");
            return None;
        }
        object.finish();
        Some(true)
    });
    let enabled = settled(enabled)?.unwrap_or_default();
    Some(settled(settings)?.unwrap_or(enabled))
}

fn path(field: &Field<'_>) -> Option<(EscapedSlashes, bool)> {
    let mut object = field.object()?;
    let action = object.optional("escapedSlashesAction").map(|field| {
        field.choice(&[
            ("RejectRequest", EscapedSlashes::Reject),
            ("KeepUnchanged", EscapedSlashes::Keep),
            ("UnescapeAndForward", EscapedSlashes::Unescape),
            ("UnescapeAndRedirect", EscapedSlashes::Redirect),
        ])
    });
    let unmerged = object
        .optional("disableMergeSlashes")
        .map(|field| field.boolean());
    object.finish();
    Some((
        settled(action)?.unwrap_or_default(),
        !settled(unmerged)?.unwrap_or_default(),
    ))
}

fn timeouts(field: &Field<'_>) -> Option<ClientTimeouts> {
    let mut object = field.object()?;
    let mut timeouts = ClientTimeouts::default();
    let mut sound = true;
    if let Some(field) = object.optional("http") {
        let mut http = field.object()?;
        http.unsupported(&["requestHeadersReceivedTimeout"]);
        for (name, place) in [
            ("requestReceivedTimeout", &mut timeouts.request),
            ("idleTimeout", &mut timeouts.idle),
            ("streamIdleTimeout", &mut timeouts.stream_idle),
        ] {
            if let Some(field) = http.optional(name) {
                *place = above_zero(&field);
                sound &= place.is_some();
            }
        }
        http.finish();
    }
    if let Some(field) = object.optional("tcp") {
        let mut tcp = field.object()?;
        tcp.unsupported(&["tlsHandshakeTimeout", "connectionInspectionTimeout"]);
        if let Some(field) = tcp.optional("idleTimeout") {
            timeouts.tcp_idle = above_zero(&field);
            sound &= timeouts.tcp_idle.is_some();
        }
        tcp.finish();
    }
    object.finish();
    sound.then_some(timeouts)
}

fn above_zero(field: &Field<'_>) -> Option<Duration> {
    let given = field.parse(duration)?;
    if given.is_zero() {
        field.mistake("expected a duration above zero");
        return None;
    }
    Some(given)
}

/// `connection`.
#[derive(Default)]
struct Connections {
    limit: Option<ConnectionLimit>,
    max_requests: Option<NonZeroU32>,
    max_age: Option<Duration>,
    max_stream: Option<Duration>,
}

fn connection(field: &Field<'_>) -> Option<Connections> {
    let mut object = field.object()?;
    object.unsupported(&[
        "bufferLimit",
        "socketBufferLimit",
        "maxAcceptPerSocketEvent",
    ]);
    let limit = object
        .optional("connectionLimit")
        .map(|field| limit(&field));
    object.finish();
    Some(settled(limit)?.unwrap_or_default())
}

fn limit(field: &Field<'_>) -> Option<Connections> {
    let mut object = field.object()?;
    let value = object
        .optional("value")
        .map(|field| field.integer(1..=MAX_COUNT));
    let delay = object.optional("closeDelay");
    if let (None, Some(field)) = (&value, &delay) {
        field.mistake("there is no limit whose excess is closed; expected `value` beside it");
        return None;
    }
    let close_delay = delay.map(|field| field.parse(duration));
    let requests = object
        .optional("maxRequestsPerConnection")
        .map(|field| count(&field, MAX_COUNT));
    let age = object
        .optional("maxConnectionDuration")
        .map(|field| above_zero(&field));
    let stream = object
        .optional("maxStreamDuration")
        .map(|field| above_zero(&field));
    object.finish();
    let close_delay = settled(close_delay)?.unwrap_or_default();
    let limit = match settled(value)? {
        Some(value) => Some(ConnectionLimit {
            value: NonZeroUsize::new(usize::try_from(value).ok()?)?,
            close_delay,
        }),
        None => None,
    };
    Some(Connections {
        limit,
        max_requests: settled(requests)?,
        max_age: settled(age)?,
        max_stream: settled(stream)?,
    })
}

fn count(field: &Field<'_>, most: i64) -> Option<NonZeroU32> {
    let count = field.integer(1..=most)?;
    NonZeroU32::new(u32::try_from(count).ok()?)
}

fn keepalive(field: &Field<'_>) -> Option<Keepalive> {
    let mut object = field.object()?;
    let probes = object
        .optional("probes")
        .map(|field| count(&field, MAX_PROBES));
    let seconds = |field: Field<'_>| {
        let given = field.parse(duration)?;
        if !(Duration::from_secs(1)..=MAX_KEEPALIVE).contains(&given) || given.subsec_nanos() > 0 {
            field.expected(format_args!(
                "whole seconds, from `1s` to `{}s`",
                MAX_KEEPALIVE.as_secs()
            ));
            return None;
        }
        Some(given)
    };
    let idle = object.optional("idleTime").map(seconds);
    let interval = object.optional("interval").map(seconds);
    object.finish();
    Some(Keepalive {
        probes: settled(probes)?,
        idle: settled(idle)?,
        interval: settled(interval)?,
    })
}

/// `http1` (Envoy Gateway, `HTTP1Settings`).
#[derive(Default)]
struct Http1 {
    end: Http1End,
    default_host: bool,
}

/// Of what the router does alike for everybody only that is a choice.
fn http1(field: &Field<'_>) -> Option<Http1> {
    let mut object = field.object()?;
    let mut sound = true;
    for (name, always, why) in [
        ("enableTrailers", true, "trailers pass"),
        (
            "preserveHeaderCase",
            false,
            "names of headers are lower case",
        ),
    ] {
        if let Some(field) = object.optional(name) {
            let given = field.boolean();
            if given == Some(!always) {
                field.mistake(format_args!("{why}; expected `{always}`"));
            }
            sound &= given == Some(always);
        }
    }
    let at_once = object
        .optional("disableSafeMaxConnectionDuration")
        .map(|field| field.boolean());
    let http10 = object.optional("http10").map(|field| http10(&field));
    object.finish();
    let http1 = Http1 {
        end: match settled(at_once)?.unwrap_or_default() {
            true => Http1End::AtRest,
            false => Http1End::NextAnswer,
        },
        default_host: settled(http10)?.unwrap_or_default(),
    };
    sound.then_some(http1)
}

/// HTTP/1.0 is served with it and without; whether requests without a host are.
fn http10(field: &Field<'_>) -> Option<bool> {
    let mut object = field.object()?;
    let default_host = object
        .optional("useDefaultHost")
        .map(|field| field.boolean());
    object.finish();
    Some(settled(default_host)?.unwrap_or_default())
}

/// What ends with a malformed request (Envoy Gateway, `InvalidMessageAction`).
#[derive(Clone, Copy, PartialEq, Eq)]
enum Invalid {
    Stream,
    Connection,
}

const INVALID_MESSAGE: [(&str, Invalid); 2] = [
    ("TerminateStream", Invalid::Stream),
    ("TerminateConnection", Invalid::Connection),
];

fn http2(field: &Field<'_>) -> Option<ClientHttp2> {
    let mut object = field.object()?;
    if let Some(field) = object.optional("onInvalidMessage")
        && field.choice(&INVALID_MESSAGE)? == Invalid::Connection
    {
        field.mistake(
            "only its own stream ends with a malformed request; expected `TerminateStream`",
        );
        return None;
    }
    let stream = object
        .optional("initialStreamWindowSize")
        .map(|field| window(&field));
    let connection = object
        .optional("initialConnectionWindowSize")
        .map(|field| window(&field));
    let streams = object
        .optional("maxConcurrentStreams")
        .map(|field| count(&field, i64::from(i32::MAX)));
    object.finish();
    Some(ClientHttp2 {
        stream_window: settled(stream)?,
        connection_window: settled(connection)?,
        max_streams: settled(streams)?,
    })
}

fn http3(field: &Field<'_>) -> Option<ClientHttp3> {
    let mut object = field.object()?;
    let port = object.optional("advertisedPort").map(|field| field.port());
    object.finish();
    Some(ClientHttp3 {
        advertised_port: settled(port)?,
    })
}

/// What QUIC cannot do for a listener that has it.
fn possible(http3: &Field<'_>, proxy_protocol: bool, versions: TlsVersions) -> Option<()> {
    if proxy_protocol {
        http3.mistake(
            "datagrams begin with no PROXY header; expected either `http3` or the PROXY protocol",
        );
        return None;
    }
    if versions == TlsVersions::Only12 {
        http3.mistake("QUIC speaks TLS 1.3, which `tls.maxVersion` leaves out");
        return None;
    }
    Some(())
}

fn window(field: &Field<'_>) -> Option<u32> {
    u32::try_from(bytes(field, WINDOWS)?).ok()
}

fn health(field: &Field<'_>) -> Option<DocumentPath> {
    let mut object = field.object()?;
    let path = object.required("path").and_then(|field| {
        let text = field.string()?;
        let path = DocumentPath::new(text)
            .map_err(|error| field.mistake(error))
            .ok()?;
        if path.as_str() != text {
            field.mistake(format_args!(
                "no request would have this path; expected `{path}`"
            ));
            return None;
        }
        Some(path)
    });
    object.finish();
    path
}
