//! `spec.apiKeyAuth` and `spec.basicAuth`: credentials that are in Secrets.

use crate::document::Meta;
use crate::document::http_route::headers::header_name;
use crate::model::{CredentialPlace, ObjectName};
use crate::reader::{Field, Object, quoted};
use crate::report::Source;

/// Secrets of one policy, and places of its keys.
const MAX_ITEMS: usize = 16;

/// Headers that frame or address a message, or that the router sets or strips itself.
const ROUTERS: [&str; 16] = [
    "host",
    "content-length",
    "transfer-encoding",
    "connection",
    "keep-alive",
    "te",
    "trailer",
    "upgrade",
    "expect",
    "proxy-authorization",
    "proxy-authenticate",
    "forwarded",
    "x-real-ip",
    "x-request-id",
    "x-routed-to",
    "x-route-reason",
];

/// Keys of clients whose Secrets are not resolved.
pub(crate) struct ApiKeyDraft {
    pub(crate) secrets: Vec<(Source, ObjectName)>,
    pub(crate) places: Vec<CredentialPlace>,
    pub(crate) forward: Option<String>,
    pub(crate) sanitize: bool,
}

/// Users whose Secret is not resolved.
pub(crate) struct BasicDraft {
    pub(crate) source: Source,
    pub(crate) secret: ObjectName,
    pub(crate) forward: Option<String>,
}

/// Namespaces that references may name.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum References {
    /// That of their policy.
    Own,
    /// Those of two policies that were merged, each of which was read before.
    OfBoth,
}

pub(super) fn api_keys(
    field: &Field<'_>,
    meta: &Meta,
    references: References,
) -> Option<ApiKeyDraft> {
    let mut object = field.object()?;
    let secrets = object.required("credentialRefs").and_then(|field| {
        field
            .some_limited_list(MAX_ITEMS)
            .iter()
            .map(|item| Some((item.source().clone(), secret(item, meta, references)?)))
            .collect::<Option<Vec<_>>>()
    });
    let places = object
        .required("extractFrom")
        .and_then(|field| places(&field));
    let forward = forward(&mut object, "forwardClientIDHeader");
    let sanitize = match object.optional("sanitize") {
        Some(field) => field.boolean(),
        None => Some(false),
    };
    object.finish();
    Some(ApiKeyDraft {
        secrets: secrets?,
        places: places?,
        forward: forward?,
        sanitize: sanitize?,
    })
}

pub(super) fn users(field: &Field<'_>, meta: &Meta, references: References) -> Option<BasicDraft> {
    let mut object = field.object()?;
    let users = object.required("users");
    let forward = forward(&mut object, "forwardUsernameHeader");
    object.finish();
    let users = users?;
    Some(BasicDraft {
        source: users.source().clone(),
        secret: secret(&users, meta, references)?,
        forward: forward?,
    })
}

#[expect(
    clippy::option_option,
    reason = "a header that is absent and one that has mistakes are two things"
)]
fn forward(object: &mut Object<'_>, name: &'static str) -> Option<Option<String>> {
    match object.optional(name) {
        Some(field) => own_header(&field).map(Some),
        None => Some(None),
    }
}

/// A reference to a `Secret`; one of another namespace needs a grant, and grants are no documents yet.
fn secret(field: &Field<'_>, meta: &Meta, references: References) -> Option<ObjectName> {
    let mut object = field.object()?;
    if let Some(field) = object.optional("group") {
        field.choice(&[("", ())])?;
    }
    if let Some(field) = object.optional("kind") {
        field.choice(&[("Secret", ())])?;
    }
    let given = object.optional("namespace");
    let own = meta.name.namespace();
    let namespace = match &given {
        Some(field) => field.string(),
        None => Some(own),
    };
    let name = object.required("name");
    object.finish();
    let namespace = namespace?;
    if references == References::Own
        && namespace != own
        && let Some(field) = given
    {
        field.mistake("a `Secret` of another namespace is not supported yet");
        return None;
    }
    name?.parse(|text| ObjectName::new(namespace, text))
}

fn places(field: &Field<'_>) -> Option<Vec<CredentialPlace>> {
    let mut places = Vec::new();
    for item in field.some_limited_list(MAX_ITEMS) {
        let mut object = item.object()?;
        for header in object.list("headers") {
            places.push(CredentialPlace::Header {
                name: header.parse(header_name)?,
                prefix: String::new(),
            });
        }
        for param in object.list("params") {
            places.push(query_name(&param)?);
        }
        for cookie in object.list("cookies") {
            places.push(cookie_name(&cookie)?);
        }
        object.finish();
    }
    if !(1..=MAX_ITEMS).contains(&places.len()) {
        field.mistake(format_args!(
            "expected 1 to {MAX_ITEMS} `headers`, `params` and `cookies` together, got {}",
            places.len()
        ));
        return None;
    }
    Some(places)
}

/// The name of a cookie (RFC 6265, section 4.1.1).
pub(super) fn cookie_name(field: &Field<'_>) -> Option<CredentialPlace> {
    let text = field.some_string()?;
    if header_name(text).is_err() {
        field.mistake(format_args!(
            "expected the name of a cookie, got {}",
            quoted(text)
        ));
        return None;
    }
    Some(CredentialPlace::Cookie(text.to_owned()))
}

/// The name of a parameter that stands in a query as it is.
pub(super) fn query_name(field: &Field<'_>) -> Option<CredentialPlace> {
    let text = field.some_string()?;
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
    if !text.bytes().all(plain) {
        field.mistake(format_args!(
            "expected a parameter of letters, digits, `-`, `.`, `_` and `~`, got {}",
            quoted(text)
        ));
        return None;
    }
    Some(CredentialPlace::Query(text.to_owned()))
}

/// A header that the router sets to what it knows of the client.
pub(super) fn own_header(field: &Field<'_>) -> Option<String> {
    let name = field.parse(header_name)?;
    if ROUTERS.contains(&name.as_str()) || name.starts_with("x-forwarded-") {
        field.mistake(format_args!(
            "header `{name}` is the router's own; choose another"
        ));
        return None;
    }
    Some(name)
}
