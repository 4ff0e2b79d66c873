//! `HTTPRoute` (Gateway API).

use std::collections::BTreeSet;

use super::filter::pattern;
use super::{CARDINAL, ENVOY_GATEWAY, Meta, group, name, reference};
use crate::model::{
    DocumentPath, Filter, HeaderEdits, HostPattern, Hostname, Name, ObjectName, PathMatch,
    PathRewrite, Pattern, Port, RequestMatch,
};
use crate::reader::{Field, Object, one_of, quoted};
use crate::report::Source;
use crate::tree::shortened;

const MAX_PARENTS: usize = 32;
const MAX_HOSTNAMES: usize = 16;
const MAX_RULES: usize = 16;
const MAX_MATCHES: usize = 64;
const MAX_MATCHES_OF_ROUTE: usize = 128;
const MAX_ITEMS: usize = 16;
const MAX_WEIGHT: i64 = 1_000_000;

/// A route whose references are not resolved.
pub(crate) struct RouteDraft {
    pub(crate) parents: Vec<ParentDraft>,
    pub(crate) hostnames: Vec<HostPattern>,
    pub(crate) rules: Vec<RuleDraft>,
}

/// A parent reference.
pub(crate) struct ParentDraft {
    pub(crate) source: Source,
    pub(crate) gateway: ObjectName,
    pub(crate) section: Option<Name>,
    pub(crate) port: Option<Port>,
}

/// A rule.
pub(crate) struct RuleDraft {
    pub(crate) source: Source,
    pub(crate) name: Option<Name>,
    pub(crate) matches: Vec<RequestMatch>,
    pub(crate) filters: Vec<FilterDraft>,
    pub(crate) backends: Vec<BackendDraft>,
}

/// A filter, or a reference to one.
pub(crate) enum FilterDraft {
    Here(Filter),
    Extension { source: Source, name: ObjectName },
}

/// A reference to where requests go.
pub(crate) struct BackendDraft {
    pub(crate) source: Source,
    pub(crate) kind: BackendKind,
    pub(crate) name: ObjectName,
    pub(crate) weight: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum BackendKind {
    Backend,
    RoutingTable,
}

/// Reads the `spec`.
pub(crate) fn read(spec: &mut Object<'_>, meta: &Meta) -> Option<RouteDraft> {
    spec.unsupported(&["useDefaultGateways"]);
    let parents = spec
        .required("parentRefs")
        .map(|field| {
            field.limited_list(MAX_PARENTS);
            field.some_list()
        })
        .unwrap_or_default()
        .iter()
        .filter_map(|field| parent(field, meta))
        .collect();
    let mut hostnames: Vec<HostPattern> = Vec::new();
    if let Some(field) = spec.optional("hostnames") {
        for item in field.limited_list(MAX_HOSTNAMES) {
            let Some(pattern) = super::gateway::pattern(&item) else {
                continue;
            };
            if hostnames.contains(&pattern) {
                item.mistake(format_args!("`{pattern}` is in the list already"));
            } else {
                hostnames.push(pattern);
            }
        }
    }
    let rules_field = spec.required("rules");
    let mut names = BTreeSet::new();
    let mut rules = Vec::new();
    if let Some(field) = &rules_field {
        field.limited_list(MAX_RULES);
        for item in field.some_list() {
            let Some(mut object) = item.object() else {
                continue;
            };
            let rule = rule(&mut object, meta, &mut names);
            object.finish();
            rules.extend(rule);
        }
        let matches: usize = rules.iter().map(|rule| rule.matches.len()).sum();
        if matches > MAX_MATCHES_OF_ROUTE {
            field.mistake(format_args!(
                "expected at most {MAX_MATCHES_OF_ROUTE} matches in all rules together, got {matches}"
            ));
        }
    }
    Some(RouteDraft {
        parents,
        hostnames,
        rules,
    })
}

fn parent(field: &Field<'_>, meta: &Meta) -> Option<ParentDraft> {
    let mut object = field.object()?;
    if let Some(field) = object.optional("group") {
        field.choice(&[("gateway.networking.k8s.io", ())]);
    }
    if let Some(field) = object.optional("kind") {
        field.choice(&[("Gateway", ())]);
    }
    let gateway = reference(&mut object, meta);
    let section = object.optional("sectionName").map(|field| name(&field));
    let port = object.optional("port").map(|field| field.port());
    object.finish();
    let section = match section {
        Some(section) => Some(section?),
        None => None,
    };
    let port = match port {
        Some(port) => Some(port?),
        None => None,
    };
    Some(ParentDraft {
        source: field.source().clone(),
        gateway: gateway?,
        section,
        port,
    })
}

fn rule(object: &mut Object<'_>, meta: &Meta, names: &mut BTreeSet<Name>) -> Option<RuleDraft> {
    let source = object.field().source().clone();
    let name = object.optional("name").and_then(|field| {
        let name = name(&field)?;
        if !names.insert(name.clone()) {
            field.mistake(format_args!("rule `{name}` is in the list already"));
        }
        Some(name)
    });
    let mut matches = Vec::new();
    if let Some(field) = object.optional("matches") {
        matches = field
            .limited_list(MAX_MATCHES)
            .iter()
            .filter_map(request_match)
            .collect();
    }
    if matches.is_empty() {
        // Gateway API: a rule without matches takes every request.
        matches.push(RequestMatch {
            path: PathMatch::Prefix(DocumentPath::root()),
            method: None,
            headers: Vec::new(),
        });
    }
    let prefixes = matches
        .iter()
        .all(|given| matches!(given.path, PathMatch::Prefix(_)));
    let mut filters = Vec::new();
    if let Some(field) = object.optional("filters") {
        let mut kinds = BTreeSet::new();
        for item in field.limited_list(MAX_ITEMS) {
            let Some(mut object) = item.object() else {
                continue;
            };
            let filter = filter(&mut object, meta, &mut kinds, prefixes);
            object.finish();
            filters.extend(filter);
        }
    }
    let rewrites = filters
        .iter()
        .filter(|filter| {
            matches!(
                filter,
                FilterDraft::Extension { .. }
                    | FilterDraft::Here(Filter::Rewrite { path: Some(_), .. })
            )
        })
        .count();
    if rewrites > 1 {
        object.field().sink().mistake(
            object.at("filters"),
            "expected at most one filter that rewrites the path, got more",
        );
    }
    let backends: Vec<BackendDraft> = match object.optional("backendRefs") {
        Some(field) => field
            .limited_list(MAX_ITEMS)
            .iter()
            .filter_map(|field| backend(field, meta))
            .collect(),
        None => {
            object.field().warning(
                "has no `backendRefs`: every request that it matches is answered with 500",
            );
            Vec::new()
        }
    };
    object.unsupported(&["timeouts", "retry", "sessionPersistence"]);
    Some(RuleDraft {
        source,
        name,
        matches,
        filters,
        backends,
    })
}

fn request_match(field: &Field<'_>) -> Option<RequestMatch> {
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
fn canonical(text: &str) -> Result<DocumentPath, String> {
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

fn header(object: &mut Object<'_>) -> Option<(String, String)> {
    let name = object
        .required("name")
        .and_then(|field| field.parse(header_name));
    let value = object
        .required("value")
        .and_then(|field| field.parse(header_value));
    Some((name?, value?))
}

/// A header's name in lower case (RFC 9110, section 5.1).
pub(crate) fn header_name(text: &str) -> Result<String, String> {
    let token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    if text.is_empty() || text.len() > 256 || !text.bytes().all(token) {
        return Err(format!(
            "expected the name of a header, got {}",
            quoted(text)
        ));
    }
    Ok(text.to_ascii_lowercase())
}

/// A header's value (RFC 9110, section 5.5), ASCII.
fn header_value(text: &str) -> Result<String, String> {
    let valid = text
        .bytes()
        .all(|byte| (b' '..=b'~').contains(&byte) || byte == b'\t');
    if !valid || text.trim() != text || text.len() > 4096 {
        return Err(format!(
            "expected the value of a header: printable ASCII without blanks around it, got {}",
            quoted(text)
        ));
    }
    Ok(text.to_owned())
}

fn filter(
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

fn backend(field: &Field<'_>, meta: &Meta) -> Option<BackendDraft> {
    let mut object = field.object()?;
    let group_field = object.optional("group");
    let kind_field = object.optional("kind");
    let reference = reference(&mut object, meta);
    let port = object.optional("port");
    let weight = match object.optional("weight") {
        Some(field) => field.integer(0..=MAX_WEIGHT),
        None => Some(1),
    };
    object.unsupported(&["filters"]);
    object.finish();
    let given_kind = match &kind_field {
        Some(field) => field.string()?,
        None => "Service",
    };
    let given_group = match &group_field {
        Some(field) => field.string()?,
        None => "",
    };
    let kind = match (given_group, given_kind) {
        (given, "Backend") if given == group(ENVOY_GATEWAY) => BackendKind::Backend,
        (given, "RoutingTable") if given == group(CARDINAL) => BackendKind::RoutingTable,
        ("", "Service") => {
            field.mistake(
                "leads to a Kubernetes `Service`, which a folder of documents does not have; expected kind `Backend` of group `gateway.envoyproxy.io` or `RoutingTable` of `cardinal.dev`",
            );
            return None;
        }
        (given_group, given_kind) => {
            field.mistake(format_args!(
                "expected kind `Backend` of group `gateway.envoyproxy.io` or `RoutingTable` of `cardinal.dev`, got {} of {}",
                quoted(given_kind),
                quoted(given_group)
            ));
            return None;
        }
    };
    if let Some(port) = port {
        port.mistake("the endpoints of the target have ports of their own; expected no port");
    }
    let reference = reference?;
    if reference.namespace() != meta.name.namespace() {
        field.mistake(format_args!(
            "a target of another namespace needs a `ReferenceGrant`, which is not supported yet; expected namespace {}",
            quoted(meta.name.namespace())
        ));
        return None;
    }
    Some(BackendDraft {
        source: field.source().clone(),
        kind,
        name: reference,
        weight: u32::try_from(weight?).ok()?,
    })
}
