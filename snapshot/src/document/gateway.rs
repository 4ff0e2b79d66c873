//! `Gateway` (Gateway API).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::addresses::{Placed, address, addresses};
use super::{Meta, name, reference};
use crate::model::{
    HostPattern, Hostname, Listener, ListenerProtocol, Name, ObjectName, Port, RouteKind,
};
use crate::reader::{Field, Object, quoted};
use crate::report::Source;

/// Gateway API, `spec.listeners`: at most 64.
const MAX_LISTENERS: usize = 64;
/// Gateway API: at most 16 addresses and 64 certificates of a listener.
const MAX_ADDRESSES: usize = 16;
const MAX_CERTIFICATES: usize = 64;

/// A gateway whose certificates are not resolved.
pub(crate) struct GatewayDraft {
    pub(crate) addresses: Vec<Placed>,
    pub(crate) listeners: Vec<ListenerDraft>,
}

/// A listener and who may attach.
pub(crate) struct ListenerDraft {
    pub(crate) listener: Listener,
    /// Where each certificate is named.
    pub(crate) certificate_sources: Vec<Source>,
    /// Routes of every namespace, or of the gateway's own.
    pub(crate) all_namespaces: bool,
    /// Kinds of routes that the listener takes.
    pub(crate) kinds: BTreeSet<RouteKind>,
}

/// Reads the `spec`.
pub(crate) fn read(spec: &mut Object<'_>, meta: &Meta) -> Option<GatewayDraft> {
    // Which controller serves a class is a question of Kubernetes; the documents here are for this one.
    if let Some(field) = spec.required("gatewayClassName") {
        field.some_string();
    }
    let addresses = addresses(
        spec.required("addresses")
            .map(|field| field.some_limited_list(MAX_ADDRESSES))
            .unwrap_or_default(),
        gateway_address,
    );
    let mut listeners: Vec<ListenerDraft> = Vec::new();
    let mut names: BTreeMap<Name, Arc<str>> = BTreeMap::new();
    let items = spec
        .required("listeners")
        .map(|field| field.some_limited_list(MAX_LISTENERS))
        .unwrap_or_default();
    for item in items {
        let Some(mut object) = item.object() else {
            continue;
        };
        let listener = listener(&mut object, meta, &mut names);
        object.finish();
        let Some(draft) = listener else { continue };
        let new = &draft.listener;
        let rival = listeners.iter().map(|draft| &draft.listener).find(|other| {
            let same_kind =
                std::mem::discriminant(&other.protocol) == std::mem::discriminant(&new.protocol);
            other.port == new.port && (!same_kind || other.hostname == new.hostname)
        });
        if let Some(rival) = rival {
            let same_kind =
                std::mem::discriminant(&rival.protocol) == std::mem::discriminant(&new.protocol);
            item.mistake(if same_kind {
                format!(
                    "has the port, protocol and hostname of listener `{}`",
                    rival.name
                )
            } else {
                format!(
                    "has the port of listener `{}`, which speaks the other of HTTP and HTTPS",
                    rival.name
                )
            });
            continue;
        }
        listeners.push(draft);
    }
    spec.unsupported(&[
        "infrastructure",
        "backendTLS",
        "tls",
        "allowedListeners",
        "defaultScope",
    ]);
    Some(GatewayDraft {
        addresses,
        listeners,
    })
}

fn gateway_address(field: &Field<'_>) -> Option<Placed> {
    let mut object = field.object()?;
    if let Some(field) = object.optional("type") {
        field.choice(&[("IPAddress", ())]);
    }
    let value = object.required("value").and_then(|field| address(&field));
    object.finish();
    value
}

fn listener(
    object: &mut Object<'_>,
    meta: &Meta,
    names: &mut BTreeMap<Name, Arc<str>>,
) -> Option<ListenerDraft> {
    let declared = object.field().source().clone();
    let listener_name = object.required("name").and_then(|field| {
        let name = name(&field)?;
        if let Some(first) = names.get(&name) {
            field.mistake(format_args!("listener `{name}` is in {first} already"));
            return None;
        }
        names.insert(name.clone(), declared.field.clone());
        Some(name)
    });
    let hostname = object.optional("hostname").map(|field| pattern(&field));
    let port: Option<Port> = object.required("port").and_then(|field| field.port());
    let https = object
        .required("protocol")
        .and_then(|field| field.choice(&[("HTTP", false), ("HTTPS", true)]));
    let tls = object.optional("tls");
    let mut certificate_sources = Vec::new();
    let protocol = match (https, tls) {
        (Some(true), Some(field)) => field.object().and_then(|mut object| {
            let certificates = certificates(&mut object, meta, &mut certificate_sources);
            object.finish();
            Some(ListenerProtocol::Https {
                certificates: certificates?,
            })
        }),
        (Some(true), None) => {
            object.field().sink().mistake(
                object.at("tls"),
                "is missing, and required with protocol HTTPS",
            );
            None
        }
        (Some(false), Some(field)) => {
            field.mistake("expected no `tls` with protocol HTTP");
            None
        }
        (Some(false), None) => Some(ListenerProtocol::Http),
        (None, _) => None,
    };
    let allowed = match object.optional("allowedRoutes") {
        Some(field) => allowed_routes(&field),
        None => Some((false, BTreeSet::from(KINDS))),
    };
    let (all_namespaces, kinds) = allowed?;
    let hostname = match hostname {
        Some(hostname) => Some(hostname?),
        None => None,
    };
    Some(ListenerDraft {
        listener: Listener {
            name: listener_name?,
            declared,
            port: port?,
            protocol: protocol?,
            hostname,
        },
        certificate_sources,
        all_namespaces,
        kinds,
    })
}

fn certificates(
    tls: &mut Object<'_>,
    meta: &Meta,
    sources: &mut Vec<Source>,
) -> Option<Vec<ObjectName>> {
    if let Some(field) = tls.optional("mode") {
        field.choice(&[("Terminate", ())]);
    }
    tls.unsupported(&["options", "frontendValidation"]);
    let refs = tls.required("certificateRefs")?;
    let mut certificates = Vec::new();
    for field in refs.some_limited_list(MAX_CERTIFICATES) {
        let Some(mut object) = field.object() else {
            continue;
        };
        if let Some(field) = object.optional("group") {
            field.choice(&[("", ())]);
        }
        if let Some(field) = object.optional("kind") {
            field.choice(&[("Secret", ())]);
        }
        let reference = reference(&mut object, meta);
        object.finish();
        let Some(reference) = reference else { continue };
        if reference.namespace() != meta.name.namespace() {
            field.mistake(format_args!(
                "a secret of another namespace needs a `ReferenceGrant`, which is not supported yet; expected namespace {}",
                quoted(meta.name.namespace())
            ));
            continue;
        }
        if certificates.contains(&reference) {
            field.mistake(format_args!("secret `{reference}` is in the list already"));
            continue;
        }
        sources.push(field.source().clone());
        certificates.push(reference);
    }
    Some(certificates)
}

/// Kinds of routes that HTTP and HTTPS listeners take (Gateway API, `AllowedRoutes.kinds`).
const KINDS: [RouteKind; 2] = [RouteKind::Http, RouteKind::Grpc];

fn allowed_routes(field: &Field<'_>) -> Option<(bool, BTreeSet<RouteKind>)> {
    let mut object = field.object()?;
    let mut all = Some(false);
    if let Some(mut namespaces) = object.optional("namespaces").and_then(|f| f.object()) {
        if let Some(field) = namespaces.optional("from") {
            all = field.choice(&[("Same", false), ("All", true)]);
        }
        namespaces.unsupported(&["selector"]);
        namespaces.finish();
    }
    let mut kinds = BTreeSet::from(KINDS);
    if let Some(listed) = object.optional("kinds") {
        kinds.clear();
        for field in listed.list() {
            let Some(mut kind) = field.object() else {
                continue;
            };
            if let Some(field) = kind.optional("group") {
                field.choice(&[("gateway.networking.k8s.io", ())]);
            }
            if let Some(field) = kind.required("kind") {
                kinds.extend(field.choice(&KINDS.map(|kind| (kind.as_str(), kind))));
            }
            kind.finish();
        }
    }
    object.finish();
    Some((all?, kinds))
}

/// A host name or `*.` and a host name.
pub(crate) fn pattern(field: &Field<'_>) -> Option<HostPattern> {
    field.parse(|text| match text.strip_prefix("*.") {
        Some(suffix) => Hostname::new(suffix).map(HostPattern::Wildcard),
        None => Hostname::new(text).map(HostPattern::Exact),
    })
}
