//! `Gateway` (Gateway API).

use std::collections::BTreeMap;
use std::net::IpAddr;

use super::addresses::{Placed, address};
use super::selector::{From, namespaces};
use super::{Meta, texts};
use crate::model::{HostPattern, Hostname, Timestamp};
use crate::reader::{Field, Object};
use crate::report::Source;

mod listener;
mod tls;

pub(crate) use listener::{ListenerDraft, Protocol, SecretRef, listeners};
pub(crate) use tls::{GatewayTlsDraft, RevocationDraft, ValidationDraft};

/// Gateway API, `spec.listeners`: at most 64.
pub(crate) const MAX_LISTENERS: usize = 64;
/// Gateway API: at most 16 addresses.
const MAX_ADDRESSES: usize = 16;

/// A gateway whose references are not resolved.
pub(crate) struct GatewayDraft {
    pub(crate) created: Option<Timestamp>,
    pub(crate) class: String,
    /// Where its addresses are, or would be.
    pub(crate) addresses_source: Source,
    pub(crate) addresses: Vec<AddressDraft>,
    /// Addresses that it had before, by its status.
    pub(crate) assigned: Vec<IpAddr>,
    pub(crate) listeners: Vec<ListenerDraft>,
    pub(crate) tls: GatewayTlsDraft,
    /// Where it has parameters.
    pub(crate) parameters: Option<Source>,
    /// For what is made for it.
    pub(crate) infrastructure: Infrastructure,
    /// Namespaces whose `ListenerSet`s it takes.
    pub(crate) sets: From,
}

/// Labels and annotations of objects that are made for a gateway (Gateway API, `GatewayInfrastructure`).
#[derive(Default)]
pub(crate) struct Infrastructure {
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) annotations: BTreeMap<String, String>,
}

/// An address of a gateway.
pub(crate) enum AddressDraft {
    /// This one.
    Fixed(Placed),
    /// Any.
    Any,
    /// Of a type that is not supported.
    Unsupported(Source, String),
}

/// Reads the object.
pub(crate) fn read(object: &mut Object<'_>, meta: &Meta) -> Option<GatewayDraft> {
    let assigned = object.optional("status").map(|field| assigned(&field));
    let mut spec = object.required("spec").and_then(|field| field.object())?;
    let draft = spec_of(&mut spec, meta);
    spec.finish();
    Some(GatewayDraft {
        assigned: assigned.unwrap_or_default(),
        ..draft?
    })
}

fn spec_of(spec: &mut Object<'_>, meta: &Meta) -> Option<GatewayDraft> {
    let class = spec
        .required("gatewayClassName")
        .and_then(|field| field.some_string());
    let addresses_source = spec.at("addresses");
    let addresses = spec
        .optional("addresses")
        .map(|field| gateway_addresses(&field))
        .unwrap_or_default();
    let items = spec
        .required("listeners")
        .map(|field| field.some_limited_list(MAX_LISTENERS))
        .unwrap_or_default();
    let listeners = listeners(&items, meta);
    let tls = match spec.optional("tls") {
        Some(field) => tls::read(&field, meta),
        None => Some(GatewayTlsDraft::default()),
    };
    let mut parameters = None;
    let mut infrastructure = Infrastructure::default();
    if let Some(mut object) = spec
        .optional("infrastructure")
        .and_then(|field| field.object())
    {
        infrastructure = Infrastructure {
            labels: texts(object.optional("labels")),
            annotations: texts(object.optional("annotations")),
        };
        parameters = object
            .optional("parametersRef")
            .map(|field| field.source().clone());
        object.finish();
    }
    let sets = match spec
        .optional("allowedListeners")
        .and_then(|field| field.object())
    {
        Some(mut object) => {
            let sets = match object.optional("namespaces") {
                Some(field) => namespaces(&field, From::None),
                None => Some(From::None),
            };
            object.finish();
            sets
        }
        None => Some(From::None),
    };
    spec.unsupported(&["backendTLS", "defaultScope"]);
    Some(GatewayDraft {
        created: meta.created,
        class: class?.to_owned(),
        addresses_source,
        addresses,
        assigned: Vec::new(),
        listeners,
        tls: tls?,
        parameters,
        infrastructure,
        sets: sets?,
    })
}

fn gateway_addresses(field: &Field<'_>) -> Vec<AddressDraft> {
    let mut addresses: Vec<AddressDraft> = Vec::new();
    // An empty list names none, as no list does.
    for item in field.limited_list(MAX_ADDRESSES) {
        let Some(address) = gateway_address(&item) else {
            continue;
        };
        let same = |other: &AddressDraft| match (other, &address) {
            (AddressDraft::Fixed(a), AddressDraft::Fixed(b)) if a.address == b.address => {
                Some(a.source.field.clone())
            }
            _ => None,
        };
        match (addresses.iter().find_map(same), &address) {
            (Some(first), AddressDraft::Fixed(new)) => {
                item.mistake(format_args!("`{}` is in {first} already", new.address));
            }
            _ => addresses.push(address),
        }
    }
    addresses
}

fn gateway_address(field: &Field<'_>) -> Option<AddressDraft> {
    let mut object = field.object()?;
    let given = object.optional("type");
    let value = object.optional("value");
    object.finish();
    if let Some(given) = given {
        let kind = given.string()?;
        if kind != "IPAddress" {
            return Some(AddressDraft::Unsupported(
                given.source().clone(),
                format!("expected `IPAddress`, got {}", given.value()),
            ));
        }
    }
    match value {
        Some(value) if value.value().text() != Some("") => address(&value).map(AddressDraft::Fixed),
        _ => Some(AddressDraft::Any),
    }
}

/// Addresses in the status. What is none there is nobody's mistake.
fn assigned(status: &Field<'_>) -> Vec<IpAddr> {
    let addresses = status.value().get("addresses").map(|node| &node.value);
    let Some(crate::tree::Value::List(items)) = addresses else {
        return Vec::new();
    };
    let values = items
        .iter()
        .filter_map(|item| item.value.get("value")?.value.text()?.parse().ok());
    values.collect()
}

/// A host name or `*.` and a host name.
pub(crate) fn pattern(field: &Field<'_>) -> Option<HostPattern> {
    field.parse(|text| match text.strip_prefix("*.") {
        Some(suffix) => Hostname::new(suffix).map(HostPattern::Wildcard),
        None => Hostname::new(text).map(HostPattern::Exact),
    })
}
