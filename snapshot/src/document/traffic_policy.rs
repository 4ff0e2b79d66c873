//! `BackendTrafficPolicy` (Envoy Gateway): time limits, retries, and how backends are chosen and spared.

use std::time::Duration;

use super::Meta;
use super::duration::duration;
use super::policy::{Targets, targets};
use crate::model::{Limit, Timestamp, TrafficPolicy};
use crate::reader::{Field, Object};

mod retry;

/// A policy whose targets are not resolved.
pub(crate) struct TrafficDraft {
    pub(crate) created: Option<Timestamp>,
    pub(crate) targets: Targets,
    pub(crate) policy: TrafficPolicy,
}

/// Reads the `spec`.
pub(crate) fn read(spec: &mut Object<'_>, meta: &Meta) -> Option<TrafficDraft> {
    spec.unsupported(&[
        "targetSelectors",
        "mergeType",
        "loadBalancer",
        "circuitBreaker",
        "healthCheck",
        "rateLimit",
        "faultInjection",
        "compression",
        "compressor",
        "responseOverride",
        "httpUpgrade",
        "requestBuffer",
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
    let timeout = spec.optional("timeout").map(|field| timeouts(&field));
    let retry = spec.optional("retry").map(|field| retry::read(&field));
    let Timeouts { request, connect } = match timeout {
        Some(timeouts) => timeouts?,
        None => Timeouts::default(),
    };
    let retry = match retry {
        Some(retry) => Some(retry?),
        None => None,
    };
    Some(TrafficDraft {
        created: meta.created,
        targets,
        policy: TrafficPolicy {
            name: meta.name.clone(),
            declared: meta.declared.clone(),
            request_timeout: request,
            connect_timeout: connect,
            retry,
        },
    })
}

#[derive(Default)]
struct Timeouts {
    request: Limit,
    connect: Option<Duration>,
}

fn timeouts(field: &Field<'_>) -> Option<Timeouts> {
    let mut object = field.object()?;
    let tcp = object.optional("tcp");
    let http = object.optional("http");
    object.finish();
    let connect = match tcp {
        Some(field) => {
            let mut object = field.object()?;
            let connect = object.optional("connectTimeout").map(|field| some(&field));
            object.finish();
            connect
        }
        None => None,
    };
    let request = match http {
        Some(field) => {
            let mut object = field.object()?;
            object.unsupported(&[
                "connectionIdleTimeout",
                "maxConnectionDuration",
                "maxStreamDuration",
                "streamIdleTimeout",
            ]);
            let request = object.optional("requestTimeout").map(|field| limit(&field));
            object.finish();
            request
        }
        None => None,
    };
    Some(Timeouts {
        request: match request {
            Some(request) => request?,
            None => Limit::Unset,
        },
        connect: match connect {
            Some(connect) => Some(connect?),
            None => None,
        },
    })
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
