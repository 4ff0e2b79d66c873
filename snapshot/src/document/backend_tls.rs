//! `BackendTLSPolicy` (Gateway API): TLS towards backends, and whom to believe there.

use super::authorities::{self, AuthorityRef};
use super::policy::some_list;
use super::{ENVOY_GATEWAY, Meta, group};
use crate::model::{HostPattern, Hostname, ObjectName, Port, SubjectName, Timestamp};
use crate::reader::{Field, Object, quoted};
use crate::report::Source;

/// Gateway API: at most 5 names.
const MAX_NAMES: usize = 5;
/// Gateway API, `AbsoluteURI`: bytes of a URI.
const MAX_URI: usize = 253;

/// A policy whose targets and authorities are not resolved.
pub(crate) struct TlsPolicyDraft {
    pub(crate) created: Option<Timestamp>,
    pub(crate) targets: Vec<(Source, TlsTarget)>,
    pub(crate) hostname: Hostname,
    pub(crate) names: Vec<SubjectName>,
    /// None: the authorities of the node.
    pub(crate) authorities: Option<Vec<AuthorityRef>>,
}

/// What is reached over TLS.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum TlsTarget {
    /// A `Backend`, or its endpoints of one port.
    Backend(ObjectName, Option<Port>),
    /// A `Service`, or its port of this name.
    Service(ObjectName, Option<String>),
}

/// Reads the `spec`.
pub(crate) fn read(spec: &mut Object<'_>, meta: &Meta) -> Option<TlsPolicyDraft> {
    spec.unsupported(&["options"]);
    let targets = targets(spec, meta);
    let validation = spec.required("validation")?;
    let mut object = validation.object()?;
    let hostname = object
        .required("hostname")
        .and_then(|field| field.parse(Hostname::new));
    let references = object.optional("caCertificateRefs");
    let well_known = object.optional("wellKnownCACertificates");
    let names = match object.optional("subjectAltNames") {
        Some(field) => names(&field),
        None => Some(Vec::new()),
    };
    object.finish();
    let authorities = match (references, well_known) {
        (Some(field), None) => authorities::references(&field, meta).map(Some),
        (None, Some(field)) => field.choice(&[("System", None::<()>)]).map(|_| None),
        _ => {
            validation.mistake(
                "expected either `caCertificateRefs` or `wellKnownCACertificates`: a certificate that nobody vouches for proves nothing",
            );
            None
        }
    };
    Some(TlsPolicyDraft {
        created: meta.created,
        targets,
        hostname: hostname?,
        names: names?,
        authorities: authorities?,
    })
}

/// `targetRefs` of a `spec`.
pub(super) fn targets(spec: &mut Object<'_>, meta: &Meta) -> Vec<(Source, TlsTarget)> {
    let mut targets: Vec<(Source, TlsTarget)> = Vec::new();
    let items = spec.required("targetRefs").map(|field| some_list(&field));
    for item in items.unwrap_or_default() {
        let Some(target) = target(&item, meta) else {
            continue;
        };
        if targets.iter().any(|(_, other)| *other == target) {
            item.mistake("this target is in the list already");
        } else {
            targets.push((item.source().clone(), target));
        }
    }
    targets
}

/// A target; one whose section cannot be read is all of it, as the policy is refused and closes.
fn target(field: &Field<'_>, meta: &Meta) -> Option<TlsTarget> {
    let mut object = field.object()?;
    let given_group = object.required("group").and_then(|field| field.string());
    let given_kind = object.required("kind").and_then(|field| field.string());
    let backend = object
        .required("name")
        .and_then(|field| field.parse(|text| ObjectName::new(meta.name.namespace(), text)));
    let section = object.optional("sectionName");
    object.finish();
    let (given_group, given_kind) = (given_group?, given_kind?);
    if (given_group, given_kind) == ("", "Service") {
        let section = section.and_then(|field| Some(field.some_string()?.to_owned()));
        return Some(TlsTarget::Service(backend?, section));
    }
    if given_group != group(ENVOY_GATEWAY) || given_kind != "Backend" {
        field.mistake(format_args!(
            "expected kind `Service`, or `Backend` of group `gateway.envoyproxy.io`, got {} of {}",
            quoted(given_kind),
            quoted(given_group)
        ));
        return None;
    }
    let port = section.and_then(|field| {
        field.parse(|text| {
            text.parse::<Port>().map_err(|_| {
                format!(
                    "endpoints of a `Backend` have no names; expected their port as a text, such as `\"8443\"`, got {}",
                    quoted(text)
                )
            })
        })
    });
    Some(TlsTarget::Backend(backend?, port))
}

fn names(field: &Field<'_>) -> Option<Vec<SubjectName>> {
    let items = field.some_limited_list(MAX_NAMES);
    let count = items.len();
    let names: Vec<_> = items.iter().filter_map(name).collect();
    (count > 0 && names.len() == count).then_some(names)
}

fn name(field: &Field<'_>) -> Option<SubjectName> {
    let mut object = field.object()?;
    let uri = object
        .required("type")
        .and_then(|field| field.choice(&[("Hostname", false), ("URI", true)]));
    let value = match uri {
        Some(true) => object.required("uri"),
        Some(false) => object.required("hostname"),
        None => {
            object.ignored(&["uri", "hostname"]);
            None
        }
    };
    object.finish();
    let value = value?;
    match uri? {
        true => value.parse(absolute_uri).map(SubjectName::Uri),
        false => value.parse(host).map(SubjectName::Host),
    }
}

fn host(text: &str) -> Result<HostPattern, crate::model::NameError> {
    match text.strip_prefix("*.") {
        Some(suffix) => Hostname::new(suffix).map(HostPattern::Wildcard),
        None => Hostname::new(text).map(HostPattern::Exact),
    }
}

/// A URI with scheme and authority (Gateway API, `AbsoluteURI`).
fn absolute_uri(text: &str) -> Result<String, String> {
    let (scheme, rest) = text.split_once("://").unwrap_or_default();
    let valid = text.len() <= MAX_URI
        && scheme.starts_with(|first: char| first.is_ascii_alphabetic())
        && scheme
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte))
        && !rest.is_empty()
        && !rest.starts_with('/')
        && rest.bytes().all(|byte| byte.is_ascii_graphic());
    if valid {
        return Ok(text.to_owned());
    }
    Err(format!(
        "expected a URI with scheme and host, such as `spiffe://example.org/ns/shop/sa/orders`, got {}",
        quoted(text)
    ))
}
