//! `HTTPRouteFilter` (Envoy Gateway): rewriting a path by a pattern, choosing the host, answering
//! without an upstream.

use std::sync::Arc;

use super::Meta;
use super::http_route::{edits, header_name, header_value};
use crate::model::{
    DirectResponse, Filter, HeaderEdits, HostRewrite, PathRewrite, Pattern, Rewrite,
};
use crate::reader::{Field, Object};

/// Envoy: bytes of the body of a direct response.
const MAX_BODY: usize = 4096;

/// Reads the `spec`.
pub(crate) fn read(spec: &mut Object<'_>, _meta: &Meta) -> Option<Filter> {
    spec.unsupported(&["credentialInjection", "matches"]);
    let rewrite = spec.optional("urlRewrite");
    let response = spec.optional("directResponse");
    match (rewrite, response) {
        (Some(field), None) => url_rewrite(&field),
        (None, Some(field)) => direct_response(&field).map(Arc::new).map(Filter::Respond),
        (Some(_), Some(field)) => {
            field
                .mistake("nothing is sent that `urlRewrite` could change; expected one of the two");
            None
        }
        (None, None) => {
            spec.field()
                .mistake("expected `urlRewrite` or `directResponse`, got neither");
            None
        }
    }
}

fn url_rewrite(field: &Field<'_>) -> Option<Filter> {
    let mut object = field.object()?;
    let path = object.optional("path").map(|field| path(&field));
    let hostname = object.optional("hostname").map(|field| hostname(&field));
    object.finish();
    if path.is_none() && hostname.is_none() {
        field.mistake("expected `path`, `hostname` or both, got neither");
        return None;
    }
    let path = match path {
        Some(path) => Some(path?),
        None => None,
    };
    let hostname = match hostname {
        Some(hostname) => Some(hostname?),
        None => None,
    };
    Some(Filter::Rewrite(Arc::new(Rewrite { path, hostname })))
}

fn path(field: &Field<'_>) -> Option<PathRewrite> {
    let mut path = field.object()?;
    if let Some(field) = path.required("type") {
        field.choice(&[("ReplaceRegexMatch", ())]);
    }
    let replace = path.required("replaceRegexMatch");
    path.finish();
    let (pattern, substitution) = replaced(&replace?)?;
    Some(PathRewrite::Regex {
        pattern,
        substitution,
    })
}

fn replaced(field: &Field<'_>) -> Option<(Pattern, String)> {
    let mut replace = field.object()?;
    let pattern = replace
        .required("pattern")
        .and_then(|field| pattern(&field, Pattern::new));
    let substitution = replace.required("substitution");
    replace.finish();
    let (pattern, substitution) = (pattern?, substitution?);
    let groups = pattern.regex().captures_len();
    let substitution = substitution.parse(|text| expansion(text, groups))?;
    Some((pattern, substitution))
}

fn hostname(field: &Field<'_>) -> Option<HostRewrite> {
    #[derive(Clone, Copy, PartialEq)]
    enum Kind {
        Header,
        Backend,
        Path,
    }
    let mut object = field.object()?;
    let kind = object.required("type").and_then(|field| {
        field.choice(&[
            ("Header", Kind::Header),
            ("Backend", Kind::Backend),
            ("PathRegex", Kind::Path),
        ])
    });
    let rewrite = match kind {
        Some(Kind::Header) => object
            .required("header")
            .and_then(|field| field.parse(header_name))
            .map(HostRewrite::Header),
        Some(Kind::Backend) => Some(HostRewrite::Backend),
        Some(Kind::Path) => object
            .required("pathRegex")
            .and_then(|field| replaced(&field))
            .map(|(pattern, substitution)| HostRewrite::Path {
                pattern,
                substitution,
            }),
        None => {
            object.ignored(&["header", "pathRegex"]);
            None
        }
    };
    object.finish();
    rewrite
}

fn direct_response(field: &Field<'_>) -> Option<DirectResponse> {
    let mut object = field.object()?;
    let status = match object.optional("statusCode") {
        Some(field) => field.integer(200..=599),
        None => Some(200),
    };
    let content_type = object
        .optional("contentType")
        .map(|field| field.parse(header_value));
    let body = match object.optional("body") {
        Some(field) => body(&field),
        None => Some(String::new()),
    };
    let headers = match object.optional("header") {
        Some(field) => edits(&field),
        None => Some(HeaderEdits::default()),
    };
    object.finish();
    let content_type = match content_type {
        Some(content_type) => Some(content_type?),
        None => None,
    };
    Some(DirectResponse {
        status: u16::try_from(status?).ok()?,
        content_type,
        body: body?,
        headers: headers?,
    })
}

fn body(field: &Field<'_>) -> Option<String> {
    let mut object = field.object()?;
    if let Some(field) = object.optional("type") {
        if field.value().text() == Some("ValueRef") {
            field.mistake("a body out of a `ConfigMap` is not supported yet; expected `Inline`");
        } else {
            field.choice(&[("Inline", ())]);
        }
    }
    object.ignored(&["valueRef"]);
    let body = object.required("inline").and_then(|field| {
        field.parse(|text| match text.len() {
            0..=MAX_BODY => Ok(text.to_owned()),
            given => Err(format!("expected at most {MAX_BODY} bytes, got {given}")),
        })
    });
    object.finish();
    body
}

/// A regular expression; the message is the engine's, in one line.
pub(crate) fn pattern(
    field: &Field<'_>,
    compile: impl Fn(&str) -> Result<Pattern, regex::Error>,
) -> Option<Pattern> {
    field.parse(|text| {
        compile(text).map_err(|error| {
            let message = error.to_string();
            let last = message.lines().last().unwrap_or_default();
            format!(
                "expected a regular expression (RE2 syntax): {}",
                last.trim_start_matches("error: ")
            )
        })
    })
}

/// A substitution of RE2 (`\0` to `\9`, `\\`) as `regex::Captures::expand` reads it.
fn expansion(text: &str, groups: usize) -> Result<String, String> {
    let mut expansion = String::with_capacity(text.len());
    let mut characters = text.chars();
    while let Some(character) = characters.next() {
        match character {
            '$' => expansion.push_str("$$"),
            '\\' => match characters.next() {
                Some('\\') => expansion.push('\\'),
                Some(digit) if digit.is_ascii_digit() => {
                    let group = usize::from(digit as u8 - b'0');
                    if group >= groups {
                        return Err(format!(
                            "`\\{group}` stands for a group that the pattern does not have; it has {}",
                            groups - 1
                        ));
                    }
                    expansion.push_str(&format!("${{{group}}}"));
                }
                _ => {
                    return Err("expected `\\0` to `\\9` or `\\\\` behind a backslash".to_owned());
                }
            },
            _ => expansion.push(character),
        }
    }
    Ok(expansion)
}

#[cfg(test)]
mod tests {
    use super::expansion;

    #[test]
    fn substitutions_mean_what_re2_means() {
        let pattern = regex::Regex::new("^/a/([^/]+)/(.*)$").expect("pattern compiles");
        for (given, result) in [
            (r"/\2/\1", "/c/b"),
            (r"/$1/\10", "/$1/b0"),
            (r"\0", "/a/b/c"),
            (r"/\\1", r"/\1"),
            ("/${2}", "/${2}"),
        ] {
            let expansion = expansion(given, pattern.captures_len()).expect(given);
            assert_eq!(
                pattern.replace_all("/a/b/c", &*expansion),
                result,
                "{given}"
            );
        }
        for given in [r"\3", r"\x", "\\"] {
            assert!(expansion(given, pattern.captures_len()).is_err(), "{given}");
        }
    }
}
