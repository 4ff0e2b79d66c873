//! `BackendTrafficPolicy` (Envoy Gateway): time limits, retries, and how backends are chosen and spared.

use std::num::NonZeroU64;
use std::time::Duration;

use super::Meta;
use super::duration::duration;
use super::policy::merge::{Spec, merge_type};
use super::policy::{Targets, targets};
use super::quantity::bytes;
use crate::model::{Limit, Timestamp, TrafficPolicy};
use crate::reader::{Field, Object};

mod balance;
mod circuit_breaker;
mod health;
mod merge;
mod rate_limit;
mod retry;

pub(crate) use merge::merged;

use health::Health;

/// Bytes of a request that is taken whole: it is in memory.
const MAX_BUFFER: u64 = 64 << 20;

/// A policy whose targets are not resolved.
pub(crate) struct TrafficDraft {
    pub(crate) created: Option<Timestamp>,
    pub(crate) targets: Targets,
    pub(crate) policy: TrafficPolicy,
    pub(crate) spec: Spec,
}

/// Reads the `spec`.
pub(crate) fn read(spec: &mut Object<'_>, meta: &Meta) -> Option<TrafficDraft> {
    spec.unsupported(&[
        "faultInjection",
        "compression",
        "compressor",
        "responseOverride",
        "httpUpgrade",
        "telemetry",
        "tcpKeepalive",
        "proxyProtocol",
        "connection",
        "dns",
        "http2",
        "useClientProtocol",
        "admissionControl",
        "bandwidthLimit",
        "routingType",
    ]);
    let targets = targets(spec, meta);
    let merge = merge_type(spec, &targets);
    let timeout = spec.optional("timeout").map(|field| timeouts(&field));
    let retry = spec.optional("retry").map(|field| retry::read(&field));
    let balance = spec.optional("loadBalancer");
    let balance = balance.map(|field| balance::read(&field));
    let breaker = spec.optional("circuitBreaker");
    let breaker = breaker.map(|field| circuit_breaker::read(&field));
    let health = spec.optional("healthCheck");
    let health = health.map(|field| health::read(&field));
    let buffer = spec.optional("requestBuffer");
    let buffer = buffer.map(|field| request_buffer(&field));
    let rates = spec.optional("rateLimit");
    let rates = rates.map(|field| rate_limit::read(&field));
    let timeouts = read_or_usual(timeout)?;
    let balance = read_or_usual(balance)?;
    let Health {
        active,
        passive,
        panic_threshold,
    } = read_or_usual(health)?;
    let retry = match retry {
        Some(retry) => Some(retry?),
        None => None,
    };
    let circuit_breaker = match breaker {
        Some(breaker) => Some(breaker?),
        None => None,
    };
    let rate_limit = match rates {
        Some(rates) => Some(rates?),
        None => None,
    };
    Some(TrafficDraft {
        created: meta.created,
        targets,
        spec: Spec::new(spec, meta, merge?),
        policy: TrafficPolicy {
            request_timeout: timeouts.http.request,
            stream_idle: timeouts.http.stream_idle,
            max_stream: timeouts.http.max_stream,
            connect_timeout: timeouts.connect,
            connection_idle: timeouts.http.connection_idle,
            connection_duration: timeouts.http.connection_duration,
            retry,
            balance,
            circuit_breaker,
            active,
            passive,
            rate_limit,
            request_buffer: match buffer {
                Some(buffer) => Some(buffer?),
                None => None,
            },
            panic_threshold: panic_threshold.unwrap_or(TrafficPolicy::PANIC_THRESHOLD),
            ..TrafficPolicy::new(meta.name.clone(), meta.declared.clone())
        },
    })
}

/// A part as it was read, or as it is without the field; none: it has mistakes.
#[expect(
    clippy::option_option,
    reason = "absent and unreadable are two things, and both end here"
)]
fn read_or_usual<T: Default>(part: Option<Option<T>>) -> Option<T> {
    part.unwrap_or_else(|| Some(T::default()))
}

#[derive(Default)]
struct Timeouts {
    connect: Option<Duration>,
    http: HttpTimeouts,
}

#[derive(Default)]
struct HttpTimeouts {
    request: Limit,
    stream_idle: Limit,
    max_stream: Limit,
    connection_idle: Limit,
    connection_duration: Option<Duration>,
}

fn timeouts(field: &Field<'_>) -> Option<Timeouts> {
    let mut object = field.object()?;
    let tcp = object.optional("tcp");
    let http = object.optional("http");
    object.finish();
    let connect = match tcp {
        Some(field) => {
            let mut object = field.object()?;
            let connect = time(&mut object, "connectTimeout");
            object.finish();
            connect
        }
        None => Some(None),
    };
    let http = match http {
        Some(field) => http_timeouts(&field),
        None => Some(HttpTimeouts::default()),
    };
    Some(Timeouts {
        connect: connect?,
        http: http?,
    })
}

/// `timeout.http` (Envoy Gateway, `HTTPTimeout`).
fn http_timeouts(field: &Field<'_>) -> Option<HttpTimeouts> {
    let mut object = field.object()?;
    let mut given = |name| match object.optional(name) {
        Some(field) => limit(&field),
        None => Some(Limit::Unset),
    };
    let request = given("requestTimeout");
    let stream_idle = given("streamIdleTimeout");
    let max_stream = given("maxStreamDuration");
    let connection_idle = given("connectionIdleTimeout");
    let connection_duration = time(&mut object, "maxConnectionDuration");
    object.finish();
    Some(HttpTimeouts {
        request: request?,
        stream_idle: stream_idle?,
        max_stream: max_stream?,
        connection_idle: connection_idle?,
        connection_duration: connection_duration?,
    })
}

/// A time above zero, if there is one; none at all: it has mistakes.
#[expect(
    clippy::option_option,
    reason = "absent and unreadable are two things, and both end at `read`"
)]
fn time(object: &mut Object<'_>, name: &'static str) -> Option<Option<Duration>> {
    match object.optional(name) {
        Some(field) => some(&field).map(Some),
        None => Some(None),
    }
}

/// `requestBuffer`: bytes of a request at most.
fn request_buffer(field: &Field<'_>) -> Option<NonZeroU64> {
    let mut object = field.object()?;
    let limit = object
        .required("limit")
        .and_then(|field| bytes(&field, 1..=MAX_BUFFER));
    object.finish();
    NonZeroU64::new(limit?)
}

/// A time limit that zero switches off.
fn limit(field: &Field<'_>) -> Option<Limit> {
    let given = field.parse(duration)?;
    Some(if given.is_zero() {
        Limit::Off
    } else {
        Limit::After(given)
    })
}

/// A time above zero.
fn some(field: &Field<'_>) -> Option<Duration> {
    field.parse(|text| match duration(text)? {
        Duration::ZERO => Err("expected a time above zero".to_owned()),
        given => Ok(given),
    })
}

/// A whole number of 32 bits, zero included.
fn count(field: &Field<'_>) -> Option<u32> {
    u32::try_from(field.integer(0..=i64::from(u32::MAX))?).ok()
}

/// A share of a hundred.
fn percent(field: &Field<'_>) -> Option<u8> {
    u8::try_from(field.integer(0..=100)?).ok()
}
