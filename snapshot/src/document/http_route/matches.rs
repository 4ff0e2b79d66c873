//! What a request must look like.

use super::MAX_ITEMS;
use super::headers::{header_name, header_value};
use crate::document::filter::pattern;
use crate::lasting::exact;
use crate::model::{DocumentPath, PathMatch, Pattern, RequestMatch, TextMatch};
use crate::reader::{Field, Object, quoted};
use crate::tree::{Value, shortened};

pub(super) fn request_match(field: &Field<'_>) -> Option<RequestMatch> {
    let parts = parts(field)?;
    Some(RequestMatch {
        path: parts.path?,
        method: parts.method?,
        headers: parts.headers,
        query: parts.query,
    })
}

/// What is left of a match in a route that is refused: its path, and of the rest what can be read. Nothing: it takes every request, or
/// nobody can read which.
pub(super) fn remaining(field: &Field<'_>) -> Vec<RequestMatch> {
    let Some(parts) = parts(field) else {
        return Vec::new();
    };
    let path = field.value().get("path").map(|node| &node.value);
    let paths = match parts.path {
        Some(path) => vec![path],
        None => path.map(beginning).unwrap_or_default(),
    };
    let left = paths.into_iter().map(|path| RequestMatch {
        path,
        method: parts.method.clone().flatten(),
        headers: parts.headers.clone(),
        query: parts.query.clone(),
    });
    let left: Vec<_> = left.collect();
    match left.iter().any(RequestMatch::is_every) {
        true => Vec::new(),
        false => left,
    }
}

/// A match of every request.
pub(super) fn every() -> RequestMatch {
    RequestMatch::new(PathMatch::Prefix(DocumentPath::root()))
}

/// Parts of a match; none of them: it cannot be read.
struct Parts {
    path: Option<PathMatch>,
    method: Option<Option<String>>,
    headers: Vec<(String, TextMatch)>,
    query: Vec<(String, TextMatch)>,
}

fn parts(field: &Field<'_>) -> Option<Parts> {
    let mut object = field.object()?;
    let path = match object.optional("path") {
        Some(field) => path_match(&field),
        None => Some(PathMatch::Prefix(DocumentPath::root())),
    };
    let methods = [
        "GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH",
    ]
    .map(|method| (method, method));
    let method = match object.optional("method") {
        Some(field) => field.choice(&methods).map(|method| Some(method.to_owned())),
        None => Some(None),
    };
    let headers = header_matches(&mut object);
    let query = texts(&mut object, "queryParams", "query parameter", |field| {
        field.parse(parameter_name)
    });
    object.finish();
    Some(Parts {
        path,
        method,
        headers,
        query,
    })
}

/// What everything begins with that a path matches which cannot be read otherwise, each where the path would have been in the order of
/// precedence; nothing: nobody can tell.
fn beginning(path: &Value) -> Vec<PathMatch> {
    let text = |name| path.get(name).and_then(|node| node.value.text());
    let Some(written) = text("value") else {
        return Vec::new();
    };
    let beneath = |segments: &str| DocumentPath::new(segments).ok();
    match text("type") {
        Some("RegularExpression") => {
            // Of the root everything is left, which has no part of a pattern's precedence.
            let path = segments(written).and_then(beneath);
            let path = path.filter(|path| *path != DocumentPath::root());
            let pattern = path.and_then(|path| {
                let pattern = format!("{}(?:/.*)?", regex::escape(path.without_slash()));
                Pattern::in_place_of(written, &pattern).ok()
            });
            pattern.into_iter().map(PathMatch::Regex).collect()
        }
        kind => {
            let path = beneath(written);
            // Only its own requests come before what patterns match.
            let exact = path.clone().filter(|_| kind == Some("Exact"));
            let exact = exact.into_iter().map(PathMatch::Exact);
            exact.chain(path.map(PathMatch::Prefix)).collect()
        }
    }
}

/// The segments with which everything begins that a pattern matches which cannot be compiled.
fn segments(pattern: &str) -> Option<&str> {
    // What stands in front of an alternative says nothing of the others.
    if pattern.contains('|') {
        return None;
    }
    let text = pattern.strip_prefix('^').unwrap_or(pattern);
    let literal = |byte: u8| byte.is_ascii_alphanumeric() || b"/-_~".contains(&byte);
    let mut end = text.bytes().take_while(|byte| literal(*byte)).count();
    // What is repeated may be there not once.
    if text[end..].starts_with(['*', '?', '{']) {
        end = end.saturating_sub(1);
    }
    Some(&text[..text[..end].rfind('/')?])
}

/// The headers of a match.
pub(in crate::document) fn header_matches(object: &mut Object<'_>) -> Vec<(String, TextMatch)> {
    texts(object, "headers", "header", |field| {
        field.parse(header_name)
    })
}

/// A list of names with values to match. Gateway API counts the first of equal names only; a second
/// one would mean nothing, and is a mistake here.
fn texts(
    object: &mut Object<'_>,
    list: &'static str,
    what: &str,
    name: impl Fn(&Field<'_>) -> Option<String>,
) -> Vec<(String, TextMatch)> {
    let mut texts: Vec<(String, TextMatch)> = Vec::new();
    let Some(field) = object.optional(list) else {
        return texts;
    };
    for item in field.limited_list(MAX_ITEMS) {
        let Some(mut object) = item.object() else {
            continue;
        };
        let regex = match object.optional("type") {
            Some(field) => field.choice(&[("Exact", false), ("RegularExpression", true)]),
            None => Some(false),
        };
        let name = object.required("name").and_then(|field| name(&field));
        let value = object.required("value").and_then(|field| match regex? {
            true => pattern(&field, Pattern::whole).map(TextMatch::Regex),
            false => field.parse(exact_value).map(TextMatch::Exact),
        });
        object.finish();
        let (Some(name), Some(value)) = (name, value) else {
            continue;
        };
        if texts.iter().any(|(other, _)| *other == name) {
            item.mistake(format_args!("{what} `{name}` is in the list already"));
            continue;
        }
        texts.push((name, value));
    }
    exact(texts)
}

/// The name of a query parameter as Gateway API has it: that of a header, but upper and lower case
/// differ.
fn parameter_name(text: &str) -> Result<String, String> {
    match header_name(text) {
        Ok(_) => Ok(text.to_owned()),
        Err(_) => Err(format!(
            "expected the name of a query parameter, got {}",
            quoted(text)
        )),
    }
}

/// A value to compare with: an empty one is refused by Gateway API.
fn exact_value(text: &str) -> Result<String, String> {
    if text.is_empty() {
        return Err("expected a value that is not empty".to_owned());
    }
    header_value(text)
}

fn path_match(field: &Field<'_>) -> Option<PathMatch> {
    #[derive(Clone, Copy)]
    enum Kind {
        Exact,
        Prefix,
        Regex,
    }
    let mut object = field.object()?;
    let kind = match object.optional("type") {
        Some(field) => field.choice(&[
            ("Exact", Kind::Exact),
            ("PathPrefix", Kind::Prefix),
            ("RegularExpression", Kind::Regex),
        ]),
        None => Some(Kind::Prefix),
    };
    let value = object.optional("value");
    object.finish();
    let canonical_value = |value: Option<Field<'_>>| match value {
        Some(value) => value.parse(canonical),
        None => Some(DocumentPath::root()),
    };
    match kind? {
        Kind::Exact => canonical_value(value).map(PathMatch::Exact),
        Kind::Prefix => canonical_value(value).map(PathMatch::Prefix),
        Kind::Regex => {
            let Some(value) = value else {
                field.mistake("expected a regular expression as `value`");
                return None;
            };
            pattern(&value, Pattern::whole).map(PathMatch::Regex)
        }
    }
}

/// A path that is canonical as it stands: another spelling would never match.
pub(crate) fn canonical(text: &str) -> Result<DocumentPath, String> {
    let path =
        DocumentPath::new(text).map_err(|error| format!("{error}: `{}`", shortened(text)))?;
    if path.as_str() != text {
        return Err(format!(
            "expected the canonical form of the path, `{}`, got `{}`",
            shortened(path.as_str()),
            shortened(text)
        ));
    }
    Ok(path)
}
