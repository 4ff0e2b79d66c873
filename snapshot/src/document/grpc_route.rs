//! `GRPCRoute` (Gateway API): an `HTTPRoute` whose matches name calls in the place of paths.

use super::Meta;
use super::filter::pattern;
use super::http_route::{self, RouteDraft, header_matches};
use crate::model::{CallMatch, L7Kind, PathMatch, Pattern, RequestMatch, TextMatch};
use crate::reader::{Field, Object, quoted};

/// Gateway API, `GRPCMethodMatch`: bytes of a service's or method's name.
const MAX_NAME: usize = 1024;

/// The method of every call (gRPC over HTTP/2, `Request-Headers`).
const METHOD: &str = "POST";

/// Reads the `spec`.
pub(crate) fn read(spec: &mut Object<'_>, meta: &Meta) -> Option<RouteDraft> {
    http_route::route(spec, meta, L7Kind::Grpc)
}

/// A match of any call.
pub(super) fn any_call() -> RequestMatch {
    of(CallMatch::default())
}

fn of(call: CallMatch) -> RequestMatch {
    RequestMatch {
        method: Some(METHOD.to_owned()),
        ..RequestMatch::new(PathMatch::Call(call))
    }
}

/// One of a rule's `matches`.
pub(super) fn call_match(field: &Field<'_>) -> Option<RequestMatch> {
    let mut object = field.object()?;
    let call = match object.optional("method") {
        Some(field) => method_match(&field).and_then(|(service, method)| {
            Some(CallMatch {
                service: service?,
                method: method?,
            })
        }),
        None => Some(CallMatch::default()),
    };
    let headers = header_matches(&mut object);
    object.finish();
    Some(RequestMatch {
        headers,
        ..of(call?)
    })
}

/// What is left of a match in a route that is refused. Nothing: it takes every call, or nobody can read which.
pub(super) fn remaining(field: &Field<'_>) -> Vec<RequestMatch> {
    let Some(mut object) = field.object() else {
        return Vec::new();
    };
    let given = object.optional("method");
    let call = given.as_ref().map_or(Some(CallMatch::default()), left);
    let headers = header_matches(&mut object);
    let says = given.is_some() || !headers.is_empty();
    let left = call.filter(|_| says).map(|call| RequestMatch {
        headers,
        ..of(call)
    });
    left.into_iter().collect()
}

/// What is left of a service and a method of which one can be read.
fn left(field: &Field<'_>) -> Option<CallMatch> {
    let (service, method) = method_match(field)?;
    // In the place of a pattern that does not compile is one of everything, so that no shorter pattern has its calls.
    let part = |part: Part, name: &str| {
        let text = |name: &str| field.value().get(name).and_then(|node| node.value.text());
        let any = || {
            let written = text(name).filter(|_| text("type") == Some("RegularExpression"))?;
            Pattern::in_place_of(written, ".*").ok()
        };
        part.unwrap_or_else(|| any().map(TextMatch::Regex))
    };
    let read = [&service, &method];
    let named = read.iter().any(|part| matches!(part, Some(Some(_))));
    named.then(|| CallMatch {
        service: part(service, "service"),
        method: part(method, "method"),
    })
}

/// A part of a call's name, none if it says nothing; or none if it cannot be read.
type Part = Option<Option<TextMatch>>;

/// Service and method.
fn method_match(field: &Field<'_>) -> Option<(Part, Part)> {
    let mut object = field.object()?;
    let regex = match object.optional("type") {
        Some(field) => field.choice(&[("Exact", false), ("RegularExpression", true)]),
        None => Some(false),
    };
    let service = object.optional("service");
    let method = object.optional("method");
    object.finish();
    if service.is_none() && method.is_none() {
        field.mistake("expected `service`, `method` or both, got neither");
        return None;
    }
    let regex = regex?;
    let text = |field: Option<Field<'_>>, name: fn(&str) -> Result<String, String>| match field {
        None => Some(None),
        Some(field) if regex => pattern(&field, Pattern::whole)
            .map(TextMatch::Regex)
            .map(Some),
        Some(field) => field.parse(name).map(TextMatch::Exact).map(Some),
    };
    Some((text(service, service_name), text(method, method_name)))
}

/// A service with its package, as it is in the path of a call: words joined by dots.
fn service_name(text: &str) -> Result<String, String> {
    if text.len() <= MAX_NAME && text.split('.').all(word) {
        return Ok(text.to_owned());
    }
    // Gateway API lets a dot begin it, as protobuf writes a name that is complete; no client sends one.
    Err(format!(
        "expected the name of a service as clients send it, such as `shop.v1.Orders`, got {}",
        quoted(text)
    ))
}

fn method_name(text: &str) -> Result<String, String> {
    if text.len() <= MAX_NAME && word(text) {
        return Ok(text.to_owned());
    }
    Err(format!(
        "expected the name of a method: letters, digits and `_`, not beginning with a digit, got {}",
        quoted(text)
    ))
}

fn word(text: &str) -> bool {
    !text.is_empty()
        && !text.starts_with(|first: char| first.is_ascii_digit())
        && text
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
}
