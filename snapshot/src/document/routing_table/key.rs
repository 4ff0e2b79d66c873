//! `key` of a routing table: where a request's routing key is, and who may set it.

use crate::document::Meta;
use crate::document::addresses::network;
use crate::document::http_route::header_name;
use crate::model::{CertificateName, KeySource, KeyTrust, ObjectName, SectionName};
use crate::reader::{Field, one_of};

const DEFAULT_HEADER: &str = "x-routing-key";
const SOURCES: [&str; 8] = [
    "header",
    "claim",
    "clientCertificate",
    "sni",
    "host",
    "path",
    "query",
    "cookie",
];
/// Segments of a path in which a key may be.
const MAX_SEGMENT: i64 = 32;
/// Rules of who may set a key.
const MAX_TRUST: usize = 64;

/// The key of a table that says nothing of it.
pub(super) fn default() -> KeySource {
    KeySource::Header(DEFAULT_HEADER.to_owned())
}

/// Reads the field.
pub(super) fn read(field: &Field<'_>, meta: &Meta) -> Option<(KeySource, Vec<KeyTrust>)> {
    let mut object = field.object()?;
    let given: Vec<_> = SOURCES
        .iter()
        .filter_map(|name| Some((*name, object.optional(name)?)))
        .collect();
    let trust = object.optional("trust");
    let source = match given.as_slice() {
        [] if trust.is_some() => Some(default()),
        [(name, field)] => source(name, field),
        _ => {
            field.mistake(format_args!(
                "expected exactly one of {}",
                one_of(SOURCES.into_iter())
            ));
            None
        }
    };
    let rules = match &trust {
        Some(field) => trusted(field, meta),
        None => Some(Vec::new()),
    };
    object.finish();
    if let (Some(field), Some(KeySource::Claim(_))) = (&trust, &source) {
        field.mistake("a claim is set by who issues the token; there is nobody else to trust");
        return None;
    }
    Some((source?, rules?))
}

fn source(name: &str, field: &Field<'_>) -> Option<KeySource> {
    match name {
        "header" => field.parse(header_name).map(KeySource::Header),
        "claim" => field
            .some_string()
            .map(|text| KeySource::Claim(text.to_owned())),
        "clientCertificate" => field
            .choice(&[
                ("commonName", CertificateName::Common),
                ("dns", CertificateName::Dns),
                ("uri", CertificateName::Uri),
            ])
            .map(KeySource::Certificate),
        "query" => field
            .some_string()
            .map(|text| KeySource::Query(text.to_owned())),
        "cookie" => field.parse(cookie_name).map(KeySource::Cookie),
        "path" => {
            let at = usize::try_from(field.integer(1..=MAX_SEGMENT)?).ok()?;
            Some(KeySource::Path(at - 1))
        }
        // Written as `sni: true`: there is nothing to choose.
        _ => {
            if !field.boolean()? {
                field.mistake("expected `true`, or another source in its place");
                return None;
            }
            Some(if name == "sni" {
                KeySource::Sni
            } else {
                KeySource::Host
            })
        }
    }
}

/// A token (RFC 6265, section 4.1.1).
fn cookie_name(text: &str) -> Result<String, String> {
    header_name(text)
        .map(|_| text.to_owned())
        .map_err(|error| error.replace("header", "cookie"))
}

fn trusted(field: &Field<'_>, meta: &Meta) -> Option<Vec<KeyTrust>> {
    let items = field.some_limited_list(MAX_TRUST);
    let count = items.len();
    let mut rules = Vec::new();
    for item in items {
        let Some(mut object) = item.object() else {
            continue;
        };
        let gateway = object
            .required("gateway")
            .and_then(|field| field.parse(|text| ObjectName::new(meta.name.namespace(), text)));
        let listener = match object.optional("listener") {
            Some(field) => field.parse(SectionName::new).map(Some),
            None => Some(None),
        };
        let sources = match object.optional("sources") {
            Some(field) => {
                let items = field.some_list();
                let networks: Vec<_> = items.iter().filter_map(network).collect();
                (!items.is_empty() && networks.len() == items.len()).then_some(networks)
            }
            None => Some(Vec::new()),
        };
        object.finish();
        if let (Some(gateway), Some(listener), Some(sources)) = (gateway, listener, sources) {
            rules.push(KeyTrust {
                declared: item.source().clone(),
                gateway,
                listener,
                sources,
            });
        }
    }
    (count > 0 && rules.len() == count).then_some(rules)
}
