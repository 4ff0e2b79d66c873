//! The `CORS` filter: a mapping that other kinds have in the same form.

use super::headers::header_name;
use crate::model::{Allowed, Cors, OriginPattern};
use crate::reader::{Field, Object};

/// Gateway API: origins and headers of each list.
const MAX_NAMES: usize = 64;
/// Seconds that a browser remembers a permission where nothing is said (Gateway API, `maxAge`).
const MAX_AGE: u32 = 5;
const METHODS: [&str; 10] = [
    "GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH", "*",
];

/// Reads the filter's mapping, whose unknown fields are for the caller to report.
pub(crate) fn cors(object: &mut Object<'_>) -> Option<Cors> {
    let origins: Vec<OriginPattern> = object
        .required("allowOrigins")
        .map(|field| field.some_limited_list(MAX_NAMES))
        .unwrap_or_default()
        .iter()
        .filter_map(|field| field.parse(OriginPattern::new))
        .collect();
    let credentials = match object.optional("allowCredentials") {
        Some(field) => field.boolean(),
        None => Some(false),
    };
    let choices = METHODS.map(|method| (method, method));
    let methods = names(object, "allowMethods", |field| {
        field.choice(&choices).map(str::to_owned)
    });
    let headers = names(object, "allowHeaders", header);
    let expose = names(object, "exposeHeaders", header);
    let max_age = match object.optional("maxAge") {
        Some(field) => field
            .integer(1..=i64::from(i32::MAX))
            .and_then(|seconds| u32::try_from(seconds).ok()),
        None => Some(MAX_AGE),
    };
    Some(Cors {
        origins,
        methods,
        headers,
        expose,
        max_age: max_age?,
        credentials: credentials?,
    })
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
    if names.len() > 1 {
        field.mistake("`*` stands for all; expected no other name beside it");
    }
    Allowed::Any
}
