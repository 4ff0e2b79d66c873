//! What a request must look like.

use super::MAX_ITEMS;
use super::headers::header;
use crate::document::filter::pattern;
use crate::model::{DocumentPath, PathMatch, Pattern, RequestMatch};
use crate::reader::Field;
use crate::tree::shortened;

pub(super) fn request_match(field: &Field<'_>) -> Option<RequestMatch> {
    let mut object = field.object()?;
    let path = match object.optional("path") {
        Some(field) => path_match(&field),
        None => Some(PathMatch::Prefix(DocumentPath::root())),
    };
    let methods = [
        "GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH",
    ]
    .map(|method| (method, method));
    let method = object
        .optional("method")
        .map(|field| field.choice(&methods).map(str::to_owned));
    let mut headers: Vec<(String, String)> = Vec::new();
    if let Some(field) = object.optional("headers") {
        for item in field.limited_list(MAX_ITEMS) {
            let Some(mut object) = item.object() else {
                continue;
            };
            if let Some(field) = object.optional("type") {
                if field.value().text() == Some("RegularExpression") {
                    field.mistake("`RegularExpression` is not supported yet; expected `Exact`");
                } else {
                    field.choice(&[("Exact", ())]);
                }
            }
            let header = header(&mut object);
            object.finish();
            let Some((name, value)) = header else {
                continue;
            };
            if headers.iter().any(|(other, _)| *other == name) {
                item.mistake(format_args!("header `{name}` is in the list already"));
                continue;
            }
            headers.push((name, value));
        }
    }
    object.unsupported(&["queryParams"]);
    object.finish();
    let method = match method {
        Some(method) => Some(method?),
        None => None,
    };
    Some(RequestMatch {
        path: path?,
        method,
        headers,
    })
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
pub(super) fn canonical(text: &str) -> Result<DocumentPath, String> {
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
