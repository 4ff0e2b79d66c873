//! `ClientTrafficPolicy` (Envoy Gateway): how listeners treat those who connect to them.

use std::num::{NonZeroU32, NonZeroUsize};
use std::time::Duration;

use super::Meta;
use super::addresses::network;
use super::duration::duration;
use super::http_route::header_name;
use super::policy::{Targets, gateways};
use crate::model::{
    Alpn, ClientHttp2, ClientPolicy, ClientTimeouts, ClientTls, ConnectionLimit, DocumentPath,
    Entrance, EscapedSlashes, Keepalive, Timestamp, Tls12Cipher, TlsVersions, Underscores,
};
use crate::reader::{Field, Object};

mod client_ip;
mod tls;

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
}

/// Reads the `spec`.
pub(crate) fn read(spec: &mut Object<'_>, meta: &Meta) -> Option<ClientDraft> {
    spec.unsupported(&["http1", "http3", "scheme"]);
    let targets = gateways(spec, meta);
    let proxy_protocol = proxy_protocol(spec);
    let client_ip = spec
        .optional("clientIPDetection")
        .map(|field| client_ip::read(&field));
    let path = spec.optional("path").map(|field| path(&field));
    let underscores = spec.optional("headers").map(|field| headers(&field));
    let timeouts = spec.optional("timeout").map(|field| timeouts(&field));
    let tls = spec.optional("tls").map(|field| tls::read(&field));
    let connections = spec.optional("connection").map(|field| connection(&field));
    let keepalive = spec.optional("tcpKeepalive").map(|field| keepalive(&field));
    let http2 = spec.optional("http2").map(|field| http2(&field));
    let health_path = spec.optional("healthCheck").map(|field| health(&field));
    let (escaped_slashes, merge_slashes) = settled(path)?.unwrap_or((EscapedSlashes::Reject, true));
    let (limit, max_requests) = settled(connections)?.unwrap_or_default();
    Some(ClientDraft {
        created: meta.created,
        targets,
        policy: ClientPolicy {
            declared: meta.declared.clone(),
            entrance: Entrance {
                proxy_protocol: proxy_protocol?,
                limit,
                keepalive: settled(keepalive)?,
            },
            client_ip: settled(client_ip)?.flatten(),
            escaped_slashes,
            merge_slashes,
            underscores: settled(underscores)?.unwrap_or_default(),
            timeouts: settled(timeouts)?.unwrap_or_default(),
            tls: settled(tls)?.unwrap_or_default(),
            max_requests,
            http2: settled(http2)?.unwrap_or_default(),
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

fn headers(field: &Field<'_>) -> Option<Underscores> {
    let mut object = field.object()?;
    object.unsupported(&[
        "enableEnvoyHeaders",
        "disableRateLimitHeaders",
        "xForwardedClientCert",
        "preserveXRequestID",
        "requestID",
        "earlyRequestHeaders",
        "lateResponseHeaders",
    ]);
    let action = object.optional("withUnderscoresAction").map(|field| {
        field.choice(&[
            ("RejectRequest", Underscores::Reject),
            ("Allow", Underscores::Allow),
            ("DropHeader", Underscores::Drop),
        ])
    });
    object.finish();
    Some(settled(action)?.unwrap_or_default())
}

fn timeouts(field: &Field<'_>) -> Option<ClientTimeouts> {
    let mut object = field.object()?;
    let mut timeouts = ClientTimeouts::default();
    let mut sound = true;
    if let Some(field) = object.optional("http") {
        let mut http = field.object()?;
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

fn connection(field: &Field<'_>) -> Option<(Option<ConnectionLimit>, Option<NonZeroU32>)> {
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
    Some(match settled(limit)? {
        Some((limit, requests)) => (Some(limit), requests),
        None => (None, None),
    })
}

fn limit(field: &Field<'_>) -> Option<(ConnectionLimit, Option<NonZeroU32>)> {
    let mut object = field.object()?;
    object.unsupported(&["maxConnectionDuration", "maxStreamDuration"]);
    let value = object
        .required("value")
        .and_then(|field| field.integer(1..=MAX_COUNT));
    let close_delay = object
        .optional("closeDelay")
        .map(|field| field.parse(duration));
    let requests = object
        .optional("maxRequestsPerConnection")
        .map(|field| count(&field, MAX_COUNT));
    object.finish();
    let limit = ConnectionLimit {
        value: NonZeroUsize::new(usize::try_from(value?).ok()?)?,
        close_delay: settled(close_delay)?.unwrap_or_default(),
    };
    Some((limit, settled(requests)?))
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

fn http2(field: &Field<'_>) -> Option<ClientHttp2> {
    let mut object = field.object()?;
    object.unsupported(&["onInvalidMessage"]);
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

/// Bytes, as a whole number or a quantity of Kubernetes such as `64Ki`.
fn window(field: &Field<'_>) -> Option<u32> {
    use crate::tree::Value;
    let bytes = match field.value() {
        Value::Integer(number) => u64::try_from(*number).ok(),
        Value::String(text) => quantity(text),
        _ => None,
    };
    let fitting = bytes.filter(|bytes| WINDOWS.contains(bytes));
    if fitting.is_none() {
        field.expected(format_args!(
            "{} to {} bytes, such as `64Ki` or `1Mi`",
            WINDOWS.start(),
            WINDOWS.end()
        ));
    }
    fitting.and_then(|bytes| u32::try_from(bytes).ok())
}

/// A whole quantity with or without its suffix (Kubernetes, `resource.Quantity`).
fn quantity(text: &str) -> Option<u64> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, suffix) = text.split_at(digits);
    let unit: u64 = match suffix {
        "" => 1,
        "k" => 1_000,
        "M" => 1_000_000,
        "G" => 1_000_000_000,
        "Ki" => 1 << 10,
        "Mi" => 1 << 20,
        "Gi" => 1 << 30,
        _ => return None,
    };
    number.parse::<u64>().ok()?.checked_mul(unit)
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

#[cfg(test)]
mod tests {
    use super::quantity;

    #[test]
    fn quantities_are_whole_numbers_with_a_unit() {
        for (text, expected) in [
            ("65536", Some(65_536)),
            ("64Ki", Some(65_536)),
            ("1Mi", Some(1 << 20)),
            ("2k", Some(2_000)),
            ("1G", Some(1_000_000_000)),
            ("", None),
            ("Ki", None),
            ("1.5Ki", None),
            ("-1", None),
            ("1 Ki", None),
            ("1KiB", None),
            ("99999999999999999999", None),
            ("18446744073709551615Gi", None),
        ] {
            assert_eq!(quantity(text), expected, "{text}");
        }
    }
}
