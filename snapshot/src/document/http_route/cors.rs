//! The `CORS` filter, a mapping that other kinds have in the same form, and `cors` of a `SecurityPolicy`, which says the same
//! in slightly other words.

use super::headers::header_name;
use crate::document::duration::duration;
use crate::model::{Allowed, Cors, OriginPattern};
use crate::reader::{Field, Object};

/// Gateway API: origins and headers of each list.
const MAX_NAMES: usize = 64;
/// Seconds that a browser remembers a permission where nothing is said (Gateway API, `maxAge`; Fetch, section 4.8).
const MAX_AGE: u32 = 5;
const METHODS: [&str; 10] = [
    "GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH", "*",
];

/// Reads the filter's mapping, whose unknown fields are for the caller to report.
pub(crate) fn cors(object: &mut Object<'_>) -> Option<Cors> {
    let origins = object
        .required("allowOrigins")
        .map(|field| origins(&field, OriginPattern::new))
        .unwrap_or_default();
    let max_age = match object.optional("maxAge") {
        Some(field) => field
            .integer(1..=i64::from(i32::MAX))
            .and_then(|seconds| u32::try_from(seconds).ok()),
        None => Some(MAX_AGE),
    };
    let choices = METHODS.map(|method| (method, method));
    let method = |field: &Field<'_>| field.choice(&choices).map(str::to_owned);
    common(object, origins, max_age, (method, Star::Alone))
}

/// Reads `cors` of a policy (Envoy Gateway, `CORS`). Without origins there are none that may: a policy that is merged has
/// those of the one above it.
pub(crate) fn of_policy(field: &Field<'_>) -> Option<Cors> {
    let mut object = field.object()?;
    let origins = object
        .optional("allowOrigins")
        .map(|field| origins(&field, OriginPattern::of_policy))
        .unwrap_or_default();
    let max_age = match object.optional("maxAge") {
        Some(field) => seconds(&field),
        None => Some(MAX_AGE),
    };
    let cors = common(&mut object, origins, max_age, (method, Star::First));
    object.finish();
    cors
}

/// What `*` means in a list that has other names.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Star {
    /// It is a mistake (Gateway API).
    Alone,
    /// All, whatever the others are (Envoy Gateway).
    First,
}

fn common(
    object: &mut Object<'_>,
    origins: Vec<OriginPattern>,
    max_age: Option<u32>,
    (method, star): (impl Fn(&Field<'_>) -> Option<String>, Star),
) -> Option<Cors> {
    let credentials = match object.optional("allowCredentials") {
        Some(field) => field.boolean(),
        None => Some(false),
    };
    let methods = names(object, "allowMethods", star, method);
    let headers = names(object, "allowHeaders", star, header);
    let expose = names(object, "exposeHeaders", star, header);
    Some(Cors {
        origins,
        methods,
        headers,
        expose,
        max_age: max_age?,
        credentials: credentials?,
    })
}

fn origins(
    field: &Field<'_>,
    read: impl Fn(&str) -> Result<OriginPattern, String>,
) -> Vec<OriginPattern> {
    let items = field.some_limited_list(MAX_NAMES);
    let read = items.iter().map(|item| item.parse(&read));
    read.flatten().collect()
}

/// A method (RFC 9110, section 9.1), of which a policy may name any.
fn method(field: &Field<'_>) -> Option<String> {
    let text = field.some_string()?;
    let token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    if !text.bytes().all(token) {
        field.expected("the name of a method, or `*`");
        return None;
    }
    Some(text.to_owned())
}

/// `maxAge` of a policy: a duration of whole seconds, as that is what browsers are told.
fn seconds(field: &Field<'_>) -> Option<u32> {
    let given = field.parse(duration)?;
    match u32::try_from(given.as_secs()) {
        Ok(seconds) if given.subsec_nanos() == 0 => Some(seconds),
        _ => {
            field.expected("whole seconds");
            None
        }
    }
}

fn header(field: &Field<'_>) -> Option<String> {
    match field.value().text() {
        Some("*") => Some("*".to_owned()),
        _ => field.parse(header_name),
    }
}

fn names(
    object: &mut Object<'_>,
    list: &'static str,
    star: Star,
    name: impl Fn(&Field<'_>) -> Option<String>,
) -> Allowed {
    let Some(field) = object.optional(list) else {
        return Allowed::Names(Vec::new());
    };
    let items = field.limited_list(MAX_NAMES);
    let names: Vec<String> = items.iter().filter_map(name).collect();
    if !names.iter().any(|name| name == "*") {
        return Allowed::Names(names);
    }
    if names.len() > 1 && star == Star::Alone {
        field.mistake("`*` stands for all; expected no other name beside it");
    }
    Allowed::Any
}
