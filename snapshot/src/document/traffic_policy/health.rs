//! `spec.healthCheck`.

use std::collections::BTreeSet;
use std::num::NonZeroU32;
use std::time::Duration;

use data_encoding::BASE64;

use super::retry::statuses;
use super::{count, percent, some};
use crate::model::{ActiveCheck, Hostname, LocalFailures, PassiveCheck, Question};
use crate::reader::{Field, Object};
use crate::tree::shortened;

/// Bytes of a payload that is sent, or looked for.
const MAX_PAYLOAD: usize = 1024;
/// Characters of a path (Envoy Gateway, `HTTPActiveHealthChecker.path`).
const MAX_PATH: usize = 1024;

/// What the field says.
#[derive(Default)]
pub(super) struct Health {
    pub(super) active: Option<ActiveCheck>,
    pub(super) passive: Option<PassiveCheck>,
    pub(super) panic_threshold: Option<u8>,
}

pub(super) fn read(field: &Field<'_>) -> Option<Health> {
    let mut object = field.object()?;
    let active = object.optional("active").map(|field| active(&field));
    let passive = object.optional("passive").map(|field| passive(&field));
    let threshold = object
        .optional("panicThreshold")
        .map(|field| percent(&field));
    object.finish();
    Some(Health {
        active: match active {
            Some(active) => Some(active?),
            None => None,
        },
        passive: match passive {
            Some(passive) => Some(passive?),
            None => None,
        },
        panic_threshold: match threshold {
            Some(threshold) => Some(threshold?),
            None => None,
        },
    })
}

/// A time that may be absent.
fn time(object: &mut Object<'_>, name: &'static str, usual: u64) -> Option<Duration> {
    match object.optional(name) {
        Some(field) => some(&field),
        None => Some(Duration::from_secs(usual)),
    }
}

#[derive(Clone, Copy)]
enum Kind {
    Http,
    Tcp,
    Grpc,
}

fn active(field: &Field<'_>) -> Option<ActiveCheck> {
    let mut object = field.object()?;
    object.unsupported(&["initialJitter", "overrides"]);
    let timeout = time(&mut object, "timeout", 1);
    let interval = time(&mut object, "interval", 3);
    let mut threshold = |name, usual| match object.optional(name) {
        Some(field) => field
            .integer(1..=i64::from(u32::MAX))
            .and_then(|given| u32::try_from(given).ok()),
        None => Some(usual),
    };
    let unhealthy = threshold("unhealthyThreshold", 3);
    let healthy = threshold("healthyThreshold", 1);
    let kind = object.required("type").and_then(|field| {
        field.choice(&[
            ("HTTP", Kind::Http),
            ("TCP", Kind::Tcp),
            ("GRPC", Kind::Grpc),
        ])
    });
    let http = match kind {
        Some(Kind::Http) => object.required("http"),
        _ => object.optional("http"),
    };
    let tcp = match kind {
        Some(Kind::Tcp) => object.required("tcp"),
        _ => object.optional("tcp"),
    };
    let grpc = object.optional("grpc");
    object.finish();
    let mut complete = true;
    let mut other = |field: &Option<Field<'_>>, name| {
        if let Some(field) = field {
            field.mistake(format_args!("is for type `{name}` only"));
            complete = false;
        }
    };
    let question = match kind? {
        Kind::Http => {
            other(&tcp, "TCP");
            other(&grpc, "GRPC");
            self::http(&http?)
        }
        Kind::Tcp => {
            other(&http, "HTTP");
            other(&grpc, "GRPC");
            self::tcp(&tcp?)
        }
        Kind::Grpc => {
            other(&http, "HTTP");
            other(&tcp, "TCP");
            self::grpc(grpc.as_ref())
        }
    };
    Some(ActiveCheck {
        timeout: timeout?,
        interval: interval?,
        unhealthy_threshold: NonZeroU32::new(unhealthy?)?,
        healthy_threshold: NonZeroU32::new(healthy?)?,
        question: question.filter(|_| complete)?,
    })
}

fn http(field: &Field<'_>) -> Option<Question> {
    let mut object = field.object()?;
    object.unsupported(&["retriableStatuses"]);
    let host = object
        .optional("hostname")
        .map(|field| field.parse(Hostname::new));
    let path = object.required("path").and_then(|field| field.parse(path));
    let method = match object.optional("method") {
        Some(field) => field
            .choice(&[
                ("GET", "GET"),
                ("HEAD", "HEAD"),
                ("POST", "POST"),
                ("PUT", "PUT"),
                ("DELETE", "DELETE"),
                ("OPTIONS", "OPTIONS"),
                ("PATCH", "PATCH"),
            ])
            .map(str::to_owned),
        None => Some("GET".to_owned()),
    };
    let statuses = match object.optional("expectedStatuses") {
        Some(field) => statuses(&field),
        None => Some(BTreeSet::from([200])),
    };
    let body = object
        .optional("expectedResponse")
        .map(|field| payload(&field));
    object.finish();
    Some(Question::Http {
        host: match host {
            Some(host) => Some(host?),
            None => None,
        },
        method: method?,
        path: path?,
        statuses: statuses?,
        body: match body {
            Some(body) => Some(body?),
            None => None,
        },
    })
}

/// A target in origin form (RFC 9112, section 3.2.1).
fn path(text: &str) -> Result<String, String> {
    let valid = text.len() <= MAX_PATH
        && text.starts_with('/')
        && text
            .bytes()
            .all(|byte| byte.is_ascii_graphic() && byte != b'#');
    if valid {
        return Ok(text.to_owned());
    }
    Err(format!(
        "expected a path of at most {MAX_PATH} printable ASCII characters that begins with `/`, got `{}`",
        shortened(text)
    ))
}

fn tcp(field: &Field<'_>) -> Option<Question> {
    let mut object = field.object()?;
    let mut bytes = |name| match object.optional(name) {
        Some(field) => payload(&field),
        None => Some(Vec::new()),
    };
    let (send, receive) = (bytes("send"), bytes("receive"));
    object.finish();
    Some(Question::Tcp {
        send: send?,
        receive: receive?,
    })
}

fn grpc(field: Option<&Field<'_>>) -> Option<Question> {
    let Some(field) = field else {
        return Some(Question::Grpc {
            service: String::new(),
        });
    };
    let mut object = field.object()?;
    let service = match object.optional("service") {
        Some(field) => field.string().map(str::to_owned),
        None => Some(String::new()),
    };
    object.finish();
    Some(Question::Grpc { service: service? })
}

fn payload(field: &Field<'_>) -> Option<Vec<u8>> {
    let mut object = field.object()?;
    let binary = object
        .required("type")
        .and_then(|field| field.choice(&[("Text", false), ("Binary", true)]));
    let bytes = match binary {
        Some(true) => object
            .required("binary")
            .and_then(|field| field.parse(|text| BASE64.decode(text.as_bytes()))),
        Some(false) => object
            .required("text")
            .and_then(|field| Some(field.string()?.as_bytes().to_vec())),
        None => {
            object.ignored(&["text", "binary"]);
            None
        }
    };
    object.finish();
    let bytes = bytes?;
    if bytes.is_empty() || bytes.len() > MAX_PAYLOAD {
        field.mistake(format_args!(
            "expected 1 to {MAX_PAYLOAD} bytes, got {}",
            bytes.len()
        ));
        return None;
    }
    Some(bytes)
}

fn passive(field: &Field<'_>) -> Option<PassiveCheck> {
    let mut object = field.object()?;
    object.unsupported(&["failurePercentageThreshold"]);
    let split = match object.optional("splitExternalLocalOriginErrors") {
        Some(field) => field.boolean(),
        None => Some(false),
    };
    if split == Some(false)
        && let Some(field) = object.optional("consecutiveLocalOriginFailures")
    {
        field.warning("has no effect without `splitExternalLocalOriginErrors: true`");
    }
    let mut number = |name, usual| match object.optional(name) {
        Some(field) => count(&field),
        None => Some(usual),
    };
    let local = number("consecutiveLocalOriginFailures", 5);
    let gateway = number("consecutiveGatewayErrors", 0);
    let server = number("consecutive5XxErrors", 5);
    let interval = time(&mut object, "interval", 3);
    let base = time(&mut object, "baseEjectionTime", 30);
    let most = match object.optional("maxEjectionPercent") {
        Some(field) => percent(&field),
        None => Some(10),
    };
    let always = match object.optional("alwaysEjectOneEndpoint") {
        Some(field) => field.boolean(),
        None => Some(false),
    };
    object.finish();
    let local = NonZeroU32::new(local?);
    let local_failures = match split? {
        true => LocalFailures::Apart(local),
        false => LocalFailures::GatewayErrors,
    };
    Some(PassiveCheck {
        server_errors: NonZeroU32::new(server?),
        gateway_errors: NonZeroU32::new(gateway?),
        local_failures,
        base_ejection: base?,
        interval: interval?,
        max_ejected: most?,
        always_one: always?,
    })
}
