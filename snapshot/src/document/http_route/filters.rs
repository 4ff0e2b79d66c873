//! What a rule changes on the way.

use std::collections::BTreeSet;
use std::num::NonZeroU32;
use std::sync::Arc;

use super::headers::{header, header_name};
use super::matches::canonical;
use super::{BackendKind, FilterDraft, MAX_ITEMS, backend_reference, cors};
use crate::document::{ENVOY_GATEWAY, Meta, group};
use crate::lasting::exact;
use crate::model::{
    FRAMING, Filter, HeaderEdits, HostRewrite, Hostname, L7Kind, ObjectName, PathRewrite, Redirect,
    Rewrite,
};
use crate::reader::{Field, Object, one_of};
use crate::tree::Value;

/// Where a list of filters stands.
#[derive(Clone, Copy)]
pub(super) struct Place {
    pub(super) kind: L7Kind,
    /// At a backend reference, or at the rule.
    pub(super) backend: bool,
    /// Whether every match of the rule is a prefix.
    pub(super) prefixes: bool,
}

/// The filters of a rule or of a backend reference.
pub(super) fn filters(object: &mut Object<'_>, meta: &Meta, place: Place) -> Vec<FilterDraft> {
    let mut filters = Vec::new();
    let Some(field) = object.optional("filters") else {
        return filters;
    };
    let mut kinds = BTreeSet::new();
    for item in field.limited_list(MAX_ITEMS) {
        let Some(mut object) = item.object() else {
            continue;
        };
        let filter = filter(&mut object, meta, &mut kinds, place);
        object.finish();
        filters.extend(filter);
    }
    exact(filters)
}

/// Filters, each with the field that says more of it; the first of them are a `GRPCRoute`'s too.
const KNOWN: [(&str, &str); 7] = [
    ("RequestHeaderModifier", "requestHeaderModifier"),
    ("ResponseHeaderModifier", "responseHeaderModifier"),
    ("RequestMirror", "requestMirror"),
    ("ExtensionRef", "extensionRef"),
    ("RequestRedirect", "requestRedirect"),
    ("URLRewrite", "urlRewrite"),
    ("CORS", "cors"),
];
const OF_CALLS: usize = 4;
const UNSUPPORTED: [(&str, &str); 1] = [("ExternalAuth", "externalAuth")];

fn filter(
    object: &mut Object<'_>,
    meta: &Meta,
    kinds: &mut BTreeSet<&'static str>,
    place: Place,
) -> Option<FilterDraft> {
    let (known, unsupported) = match place.kind {
        L7Kind::Http => (&KNOWN[..], &UNSUPPORTED[..]),
        L7Kind::Grpc => (&KNOWN[..OF_CALLS], &[][..]),
    };
    let prefixes = place.prefixes;
    let kind_field = object.required("type");
    let given = kind_field.as_ref().and_then(|field| field.string());
    let found = known.iter().find(|(kind, _)| Some(*kind) == given);
    let (Some(kind_field), Some((kind, body))) = (&kind_field, found.copied()) else {
        // Which of them would be right is not known.
        object.ignored(&KNOWN.map(|(_, body)| body));
        object.ignored(&UNSUPPORTED.map(|(_, body)| body));
        if let (Some(field), Some(given)) = (&kind_field, given) {
            if unsupported.iter().any(|(kind, _)| *kind == given) {
                field.mistake(format_args!("filter `{given}` is not supported yet"));
            } else {
                field.expected(one_of(known.iter().map(|(kind, _)| *kind)));
            }
        }
        return None;
    };
    // Gateway API: once each, except those that may be repeated.
    if !kinds.insert(kind) && kind != "ExtensionRef" && kind != "RequestMirror" {
        kind_field.mistake(format_args!("filter `{kind}` is in the list already"));
    }
    if kind == "CORS" && place.backend {
        kind_field.mistake(
            "a preflight is answered before a backend is chosen; expected `CORS` at the rule",
        );
    }
    let field = object.required(body)?;
    let mut inner = field.object()?;
    let filter = match kind {
        "RequestHeaderModifier" => Some(Filter::RequestHeaders(header_edits(&mut inner).into())),
        "ResponseHeaderModifier" => Some(Filter::ResponseHeaders(header_edits(&mut inner).into())),
        "RequestRedirect" => redirect(&mut inner, prefixes)
            .map(Arc::new)
            .map(Filter::Redirect),
        "URLRewrite" => rewrite(&mut inner, prefixes),
        "CORS" => cors(&mut inner).map(Arc::new).map(Filter::Cors),
        "RequestMirror" => {
            let mirror = mirror(&mut inner, meta);
            inner.finish();
            return mirror;
        }
        _ => {
            if let Some(field) = inner.required("group") {
                field.choice(&[(group(ENVOY_GATEWAY), ())]);
            }
            if let Some(field) = inner.required("kind") {
                field.choice(&[("HTTPRouteFilter", ())]);
            }
            let name = inner
                .required("name")
                .and_then(|field| field.parse(|text| ObjectName::new(meta.name.namespace(), text)));
            inner.finish();
            return name.map(|name| FilterDraft::Extension {
                source: Box::new(field.source().lasting()),
                name,
            });
        }
    };
    inner.finish();
    filter.map(FilterDraft::Here)
}

/// Edits of headers: a mapping with `set`, `add` and `remove`.
pub(crate) fn edits(field: &Field<'_>) -> Option<HeaderEdits> {
    let mut object = field.object()?;
    let edits = header_edits(&mut object);
    object.finish();
    Some(edits)
}

/// The same of a mapping that has more.
fn header_edits(object: &mut Object<'_>) -> HeaderEdits {
    EditLists::default().edits(object)
}

/// Lists of edits, which name each header once, and none that frames a message.
#[derive(Default)]
pub(crate) struct EditLists {
    names: BTreeSet<String>,
}

impl EditLists {
    /// `set`, `add` and `remove`.
    pub(crate) fn edits(&mut self, object: &mut Object<'_>) -> HeaderEdits {
        let set = self.pairs(object, "set");
        let add = self.pairs(object, "add");
        let mut remove = Vec::new();
        if let Some(field) = object.optional("remove") {
            for item in field.limited_list(MAX_ITEMS) {
                if let Some(name) = item.parse(header_name) {
                    self.allowed(&item, &name);
                    remove.push(name);
                }
            }
        }
        HeaderEdits {
            set,
            add,
            remove: exact(remove),
        }
    }

    /// A list of headers with values.
    pub(crate) fn pairs(
        &mut self,
        object: &mut Object<'_>,
        list: &'static str,
    ) -> Vec<(String, String)> {
        let Some(field) = object.optional(list) else {
            return Vec::new();
        };
        let items = field.limited_list(MAX_ITEMS);
        let read = items.iter().filter_map(|item| {
            let mut object = item.object()?;
            let pair = header(&mut object);
            object.finish();
            self.allowed(item, &pair.as_ref()?.0);
            pair
        });
        exact(read.collect())
    }

    fn allowed(&mut self, field: &Field<'_>, name: &str) {
        if FRAMING.contains(&name) {
            field.mistake(format_args!("header `{name}` cannot be edited"));
        } else if !self.names.insert(name.to_owned()) {
            field.mistake(format_args!("header `{name}` is edited already"));
        }
    }
}

fn mirror(object: &mut Object<'_>, meta: &Meta) -> Option<FilterDraft> {
    let backend = object.required("backendRef").and_then(|field| {
        let draft = backend_reference(&field, field.object()?, meta)?;
        if draft.kind == BackendKind::RoutingTable {
            field.mistake(
                "a copy has no routing key of its own; expected kind `Service` or `Backend`",
            );
            return None;
        }
        Some(draft)
    });
    let percent = object.optional("percent");
    let fraction = object.optional("fraction");
    let share = match (percent, fraction) {
        (None, None) => Some((1, NonZeroU32::MIN)),
        (Some(percent), None) => percent.integer(0..=100).and_then(|percent| {
            let percent = u32::try_from(percent).ok()?;
            Some((
                percent,
                const { NonZeroU32::new(100).expect("100 is not zero") },
            ))
        }),
        (None, Some(field)) => fraction_of(&field),
        (Some(_), Some(field)) => {
            field.mistake("expected `percent` or `fraction`, got both");
            None
        }
    };
    let (share, of) = share?;
    Some(FilterDraft::Mirror {
        backend: Box::new(backend?),
        share,
        of,
    })
}

/// Gateway API, `Fraction`.
fn fraction_of(field: &Field<'_>) -> Option<(u32, NonZeroU32)> {
    let mut object = field.object()?;
    let whole = |field: Field<'_>, least| field.integer(least..=i64::from(i32::MAX));
    let numerator = object
        .required("numerator")
        .and_then(|field| whole(field, 0));
    let denominator = match object.optional("denominator") {
        Some(field) => whole(field, 1),
        None => Some(100),
    };
    object.finish();
    let numerator = u32::try_from(numerator?).ok()?;
    let denominator = NonZeroU32::new(u32::try_from(denominator?).ok()?)?;
    if numerator > denominator.get() {
        field.mistake("the numerator is greater than the denominator");
        return None;
    }
    Some((numerator, denominator))
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
        Some(field) => Some(path(&field, prefixes)?),
    };
    Some(Filter::Rewrite(Arc::new(Rewrite {
        path,
        hostname: hostname.map(HostRewrite::Name),
    })))
}

fn redirect(object: &mut Object<'_>, prefixes: bool) -> Option<Redirect> {
    const STATUSES: [i64; 5] = [301, 302, 303, 307, 308];
    let tls = object
        .optional("scheme")
        .map(|field| field.choice(&[("http", false), ("https", true)]));
    let hostname = object
        .optional("hostname")
        .map(|field| field.parse(Hostname::new));
    let port = object.optional("port").map(|field| field.port());
    let path_field = object.optional("path");
    let status = match object.optional("statusCode") {
        None => Some(302),
        Some(field) => match field.value() {
            Value::Integer(code) if STATUSES.contains(code) => u16::try_from(*code).ok(),
            _ => {
                field.expected("301, 302, 303, 307 or 308");
                None
            }
        },
    };
    let path = match path_field {
        None => None,
        Some(field) => Some(path(&field, prefixes)?),
    };
    Some(Redirect {
        tls: given(tls)?,
        hostname: given(hostname)?,
        port: given(port)?,
        path,
        status: status?,
    })
}

/// Nothing for a field that is there and wrong, which has its mistake already.
fn given<T>(field: Option<Option<T>>) -> Option<Option<T>> {
    match field {
        Some(value) => value.map(Some),
        None => Some(None),
    }
}

fn path(field: &Field<'_>, prefixes: bool) -> Option<PathRewrite> {
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
    if prefix == Some(true) {
        if !text.is_empty() {
            value.parse(canonical)?;
        }
        return Some(PathRewrite::Prefix(text.to_owned()));
    }
    let full = value.parse(canonical)?;
    Some(PathRewrite::Full(full.as_str().to_owned()))
}
