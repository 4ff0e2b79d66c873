//! `spec.rateLimit`.

use std::num::NonZeroU32;
use std::time::Duration;

use crate::document::addresses::network;
use crate::document::filter::pattern;
use crate::document::http_route::{canonical, header_name, header_value};
use crate::model::{
    DocumentPath, Inverted, Pattern, RateLimit, RatePath, RateRule, RateSelector, RateSource,
    RateText, TextMatch,
};
use crate::reader::{Field, Object};

/// Envoy Gateway, `LocalRateLimit.rules`.
const MAX_RULES: usize = 16;
/// Envoy Gateway, `RateLimitRule.clientSelectors`.
const MAX_SELECTORS: usize = 8;
/// Envoy Gateway, `RateLimitSelectCondition`.
const MAX_ITEMS: usize = 16;
/// Requests of a rule: a nanosecond each is the finest.
const MAX_REQUESTS: i64 = 1_000_000_000;

const DAY: u64 = 24 * 60 * 60;
const UNITS: [(&str, u64); 6] = [
    ("Second", 1),
    ("Minute", 60),
    ("Hour", 60 * 60),
    ("Day", DAY),
    ("Month", 30 * DAY),
    ("Year", 365 * DAY),
];

pub(super) fn read(field: &Field<'_>) -> Option<RateLimit> {
    let mut object = field.object()?;
    object.unsupported(&["global"]);
    if let Some(field) = object.optional("type") {
        field.choice(&[("Local", ())]);
    }
    let rules = object.required("local").and_then(|field| local(&field));
    object.finish();
    Some(RateLimit { rules: rules? })
}

fn local(field: &Field<'_>) -> Option<Vec<RateRule>> {
    let mut object = field.object()?;
    let rules: Option<Vec<RateRule>> = object.required("rules").and_then(|field| {
        let mut open = false;
        let items = field.some_limited_list(MAX_RULES);
        let rules: Vec<_> = items
            .iter()
            .map(|item| {
                let rule = rule(item)?;
                if rule.selectors.is_empty() && std::mem::replace(&mut open, true) {
                    item.mistake(
                        "a rule before has no `clientSelectors` either; expected one at most",
                    );
                    return None;
                }
                Some(rule)
            })
            .collect();
        // All are read, so that all mistakes are told.
        rules.into_iter().collect()
    });
    object.finish();
    rules
}

fn rule(field: &Field<'_>) -> Option<RateRule> {
    let mut object = field.object()?;
    object.unsupported(&["shadowMode"]);
    let selectors: Option<Vec<RateSelector>> = match object.optional("clientSelectors") {
        Some(field) => field
            .limited_list(MAX_SELECTORS)
            .iter()
            .map(selector)
            .collect(),
        None => Some(Vec::new()),
    };
    let limit = object.required("limit").and_then(|field| limit(&field));
    let cost = match object.optional("cost") {
        Some(field) => cost(&field),
        None => Some(1),
    };
    let shared = match object.optional("shared") {
        Some(field) => field.boolean(),
        None => Some(false),
    };
    object.finish();
    let (requests, period) = limit?;
    Some(RateRule {
        selectors: selectors?,
        requests,
        period,
        cost: cost?,
        shared: shared?,
    })
}

fn limit(field: &Field<'_>) -> Option<(NonZeroU32, Duration)> {
    let mut object = field.object()?;
    let requests = object
        .required("requests")
        .and_then(|field| field.integer(1..=MAX_REQUESTS))
        .and_then(|requests| NonZeroU32::new(u32::try_from(requests).ok()?));
    let unit = object
        .required("unit")
        .and_then(|field| field.choice(&UNITS));
    object.finish();
    Some((requests?, Duration::from_secs(unit?)))
}

fn cost(field: &Field<'_>) -> Option<u32> {
    let mut object = field.object()?;
    object.unsupported(&["response"]);
    let request = object.optional("request");
    object.finish();
    let Some(field) = request else {
        return Some(1);
    };
    let mut object = field.object()?;
    object.unsupported(&["metadata"]);
    if let Some(field) = object.required("from") {
        field.choice(&[("Number", ())]);
    }
    let number = object
        .required("number")
        .and_then(|field| u32::try_from(field.integer(0..=MAX_REQUESTS)?).ok());
    object.finish();
    number
}

fn selector(field: &Field<'_>) -> Option<RateSelector> {
    let mut object = field.object()?;
    let headers = texts(&mut object, "headers", |field| field.parse(header_name));
    let query = texts(&mut object, "queryParams", |field| {
        field.some_string().map(str::to_owned)
    });
    let methods: Option<Vec<Inverted<String>>> = match object.optional("methods") {
        Some(field) => field
            .some_limited_list(MAX_ITEMS)
            .iter()
            .map(method)
            .collect(),
        None => Some(Vec::new()),
    };
    let path = object.optional("path").map(|field| path(&field));
    let source = object.optional("sourceCIDR").map(|field| source(&field));
    object.finish();
    let selector = RateSelector {
        headers: headers?,
        query: query?,
        methods: methods?,
        path: match path {
            Some(path) => Some(path?),
            None => None,
        },
        source: match source {
            Some(source) => Some(source?),
            None => None,
        },
    };
    let says_something = !selector.headers.is_empty()
        || !selector.query.is_empty()
        || !selector.methods.is_empty()
        || selector.path.is_some()
        || selector.source.is_some();
    if !says_something {
        field.mistake(
            "expected at least one of `headers`, `queryParams`, `methods`, `path` and `sourceCIDR`",
        );
    }
    Some(selector)
}

fn invert(object: &mut Object<'_>) -> Option<bool> {
    match object.optional("invert") {
        Some(field) => field.boolean(),
        None => Some(false),
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Exact,
    Regex,
    Distinct,
}

fn texts(
    object: &mut Object<'_>,
    list: &'static str,
    name: impl Fn(&Field<'_>) -> Option<String>,
) -> Option<Vec<(String, RateText)>> {
    let Some(field) = object.optional(list) else {
        return Some(Vec::new());
    };
    let items = field.some_limited_list(MAX_ITEMS);
    items.iter().map(|item| text(item, &name)).collect()
}

fn text(
    field: &Field<'_>,
    name: impl Fn(&Field<'_>) -> Option<String>,
) -> Option<(String, RateText)> {
    let mut object = field.object()?;
    let kind = match object.optional("type") {
        Some(field) => field.choice(&[
            ("Exact", Kind::Exact),
            ("RegularExpression", Kind::Regex),
            ("Distinct", Kind::Distinct),
        ]),
        None => Some(Kind::Exact),
    };
    let name = object.required("name").and_then(|field| name(&field));
    if kind == Some(Kind::Distinct) {
        object.refused(
            &["value", "invert"],
            "is not for `Distinct`, which is for all values",
        );
        object.finish();
        return Some((name?, RateText::Distinct));
    }
    let value = object.required("value");
    let invert = invert(&mut object);
    object.finish();
    let value = value?;
    let wanted = match kind? {
        Kind::Regex => TextMatch::Regex(pattern(&value, Pattern::whole)?),
        _ => TextMatch::Exact(value.parse(header_value)?),
    };
    let like = Inverted {
        wanted,
        invert: invert?,
    };
    Some((name?, RateText::Like(like)))
}

fn method(field: &Field<'_>) -> Option<Inverted<String>> {
    let methods = [
        "GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH",
    ]
    .map(|method| (method, method));
    let mut object = field.object()?;
    let value = object
        .required("value")
        .and_then(|field| field.choice(&methods));
    let invert = invert(&mut object);
    object.finish();
    Some(Inverted {
        wanted: value?.to_owned(),
        invert: invert?,
    })
}

fn path(field: &Field<'_>) -> Option<Inverted<RatePath>> {
    type Read = fn(&Field<'_>) -> Option<RatePath>;
    let mut object = field.object()?;
    let read: Option<Read> = match object.optional("type") {
        Some(field) => field.choice::<Read>(&[
            ("Exact", |field| field.parse(canonical).map(RatePath::Exact)),
            ("PathPrefix", prefix),
            ("RegularExpression", |field| {
                pattern(field, Pattern::whole).map(RatePath::Regex)
            }),
        ]),
        None => Some(prefix),
    };
    let value = object.optional("value");
    let invert = invert(&mut object);
    object.finish();
    let wanted = match value {
        Some(value) => read?(&value)?,
        // Envoy Gateway, `PathMatch.value`.
        None => RatePath::Prefix(DocumentPath::root()),
    };
    Some(Inverted {
        wanted,
        invert: invert?,
    })
}

fn prefix(field: &Field<'_>) -> Option<RatePath> {
    field.parse(canonical).map(RatePath::Prefix)
}

fn source(field: &Field<'_>) -> Option<RateSource> {
    let mut object = field.object()?;
    let distinct = match object.optional("type") {
        Some(field) => field.choice(&[("Exact", false), ("Distinct", true)]),
        None => Some(false),
    };
    let network = object.required("value").and_then(|field| network(&field));
    object.finish();
    Some(RateSource {
        network: network?,
        distinct: distinct?,
    })
}
