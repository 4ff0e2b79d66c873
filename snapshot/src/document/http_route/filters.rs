//! What a rule changes on the way.

use std::collections::BTreeSet;

use super::headers::{header, header_name};
use super::matches::canonical;
use super::{FilterDraft, MAX_ITEMS};
use crate::document::{ENVOY_GATEWAY, Meta, group};
use crate::model::{Filter, HeaderEdits, Hostname, ObjectName, PathRewrite};
use crate::reader::{Field, Object, one_of};

pub(super) fn filter(
    object: &mut Object<'_>,
    meta: &Meta,
    kinds: &mut BTreeSet<&'static str>,
    prefixes: bool,
) -> Option<FilterDraft> {
    const KNOWN: [(&str, &str); 4] = [
        ("RequestHeaderModifier", "requestHeaderModifier"),
        ("ResponseHeaderModifier", "responseHeaderModifier"),
        ("URLRewrite", "urlRewrite"),
        ("ExtensionRef", "extensionRef"),
    ];
    const UNSUPPORTED: [(&str, &str); 4] = [
        ("RequestRedirect", "requestRedirect"),
        ("RequestMirror", "requestMirror"),
        ("CORS", "cors"),
        ("ExternalAuth", "externalAuth"),
    ];
    let kind_field = object.required("type");
    let given = kind_field.as_ref().and_then(|field| field.string());
    let found = KNOWN.into_iter().find(|(kind, _)| Some(*kind) == given);
    let (Some(kind_field), Some((kind, body))) = (&kind_field, found) else {
        // Which of them would be right is not known.
        object.ignored(&KNOWN.map(|(_, body)| body));
        object.ignored(&UNSUPPORTED.map(|(_, body)| body));
        if let (Some(field), Some(given)) = (&kind_field, given) {
            if UNSUPPORTED.iter().any(|(kind, _)| *kind == given) {
                field.mistake(format_args!("filter `{given}` is not supported yet"));
            } else {
                field.expected(one_of(KNOWN.iter().map(|(kind, _)| *kind)));
            }
        }
        return None;
    };
    if !kinds.insert(kind) {
        kind_field.mistake(format_args!("filter `{kind}` is in the list already"));
    }
    let field = object.required(body)?;
    let mut inner = field.object()?;
    let filter =
        match kind {
            "RequestHeaderModifier" => header_edits(&mut inner)
                .map(|edits| FilterDraft::Here(Filter::RequestHeaders(edits))),
            "ResponseHeaderModifier" => header_edits(&mut inner)
                .map(|edits| FilterDraft::Here(Filter::ResponseHeaders(edits))),
            "URLRewrite" => rewrite(&mut inner, prefixes).map(FilterDraft::Here),
            _ => {
                if let Some(field) = inner.required("group") {
                    field.choice(&[(group(ENVOY_GATEWAY), ())]);
                }
                if let Some(field) = inner.required("kind") {
                    field.choice(&[("HTTPRouteFilter", ())]);
                }
                let name = inner.required("name").and_then(|field| {
                    field.parse(|text| ObjectName::new(meta.name.namespace(), text))
                });
                name.map(|name| FilterDraft::Extension {
                    source: field.source().clone(),
                    name,
                })
            }
        };
    inner.finish();
    filter
}

/// Headers that frame a message or belong to one connection: to edit them would desynchronise the two
/// sides (RFC 9110, section 7.6.1; RFC 9112, section 6). `host` has a field of its own in `URLRewrite`.
const FRAMING: [&str; 9] = [
    "connection",
    "content-length",
    "host",
    "keep-alive",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

fn header_edits(object: &mut Object<'_>) -> Option<HeaderEdits> {
    let mut names = BTreeSet::new();
    let mut allowed = |field: &Field<'_>, name: &str| {
        if FRAMING.contains(&name) {
            field.mistake(format_args!("header `{name}` cannot be edited"));
        } else if !names.insert(name.to_owned()) {
            field.mistake(format_args!("header `{name}` is edited already"));
        }
    };
    let mut pairs = |object: &mut Object<'_>, list: &'static str| -> Vec<(String, String)> {
        let Some(field) = object.optional(list) else {
            return Vec::new();
        };
        field
            .limited_list(MAX_ITEMS)
            .iter()
            .filter_map(|field| {
                let mut object = field.object()?;
                let pair = header(&mut object);
                object.finish();
                allowed(field, &pair.as_ref()?.0);
                pair
            })
            .collect()
    };
    let set = pairs(object, "set");
    let add = pairs(object, "add");
    let mut remove = Vec::new();
    if let Some(field) = object.optional("remove") {
        for item in field.limited_list(MAX_ITEMS) {
            if let Some(name) = item.parse(header_name) {
                allowed(&item, &name);
                remove.push(name);
            }
        }
    }
    Some(HeaderEdits { set, add, remove })
}

fn rewrite(object: &mut Object<'_>, prefixes: bool) -> Option<Filter> {
    let hostname = object
        .optional("hostname")
        .and_then(|field| field.parse(Hostname::new));
    let path_field = object.optional("path");
    if hostname.is_none() && path_field.is_none() {
        object
            .field()
            .mistake("expected `hostname`, `path` or both, got neither");
    }
    let path = match path_field {
        None => None,
        Some(field) => {
            let mut path = field.object()?;
            let prefix = path.required("type").and_then(|field| {
                field.choice(&[("ReplaceFullPath", false), ("ReplacePrefixMatch", true)])
            });
            let value = match prefix {
                Some(true) => path.required("replacePrefixMatch"),
                Some(false) => path.required("replaceFullPath"),
                None => {
                    path.ignored(&["replacePrefixMatch", "replaceFullPath"]);
                    None
                }
            };
            path.finish();
            let value = value?;
            if prefix == Some(true) && !prefixes {
                field.mistake(
                    "`ReplacePrefixMatch` needs a match of type `PathPrefix` in every match of the rule",
                );
                return None;
            }
            let text = value.string()?;
            Some(if prefix == Some(true) {
                if !text.is_empty() {
                    value.parse(canonical)?;
                }
                PathRewrite::Prefix(text.to_owned())
            } else {
                PathRewrite::Full(value.parse(canonical)?.as_str().to_owned())
            })
        }
    };
    Some(Filter::Rewrite { path, hostname })
}
