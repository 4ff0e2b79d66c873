//! `Gateway` (Gateway API).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::addresses::{Placed, address, addresses};
use super::{Meta, name, reference};
use crate::model::{
    HostPattern, Hostname, L4Kind, L7Kind, Listener, ListenerProtocol, Name, ObjectName, Port,
    RouteKind, TlsMode,
};
use crate::reader::{Field, Object, quoted};
use crate::report::Source;

mod tls;

pub(crate) use tls::{GatewayTlsDraft, ValidationDraft};

/// Gateway API, `spec.listeners`: at most 64.
const MAX_LISTENERS: usize = 64;
/// Gateway API: at most 16 addresses and 64 certificates of a listener.
const MAX_ADDRESSES: usize = 16;
const MAX_CERTIFICATES: usize = 64;

/// A gateway whose certificates are not resolved.
pub(crate) struct GatewayDraft {
    pub(crate) addresses: Vec<Placed>,
    pub(crate) listeners: Vec<ListenerDraft>,
    pub(crate) tls: GatewayTlsDraft,
}

/// A listener and who may attach.
pub(crate) struct ListenerDraft {
    pub(crate) listener: Listener,
    /// Where each certificate is named.
    pub(crate) certificate_sources: Vec<Source>,
    /// Routes of every namespace, or of the gateway's own.
    pub(crate) all_namespaces: bool,
    /// Kinds of routes that it takes.
    pub(crate) kinds: BTreeSet<RouteKind>,
}

/// Protocol of a listener as it is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Protocol {
    Http,
    Https,
    Tls,
    Tcp,
    Udp,
}

impl Protocol {
    const ALL: [(&'static str, Self); 5] = [
        ("HTTP", Self::Http),
        ("HTTPS", Self::Https),
        ("TLS", Self::Tls),
        ("TCP", Self::Tcp),
        ("UDP", Self::Udp),
    ];

    /// Kinds of routes that may attach (Gateway API, `AllowedRoutes.kinds`).
    fn kinds(self) -> &'static [RouteKind] {
        match self {
            Self::Http | Self::Https => &[RouteKind::L7(L7Kind::Http), RouteKind::L7(L7Kind::Grpc)],
            Self::Tls => &[RouteKind::L4(L4Kind::Tls)],
            Self::Tcp => &[RouteKind::L4(L4Kind::Tcp)],
            Self::Udp => &[RouteKind::L4(L4Kind::Udp)],
        }
    }
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
        let rival = listeners
            .iter()
            .map(|draft| &draft.listener)
            .find_map(|other| indistinct(other, new));
        if let Some(complaint) = rival {
            item.mistake(complaint);
            continue;
        }
        listeners.push(draft);
    }
    let tls = match spec.optional("tls") {
        Some(field) => tls::read(&field, meta),
        None => Some(GatewayTlsDraft::default()),
    };
    spec.unsupported(&[
        "infrastructure",
        "backendTLS",
        "allowedListeners",
        "defaultScope",
    ]);
    Some(GatewayDraft {
        addresses,
        listeners,
        tls: tls?,
    })
}

/// Why two listeners of one gateway cannot be told apart (Gateway API, `spec.listeners`: distinct listeners).
fn indistinct(other: &Listener, new: &Listener) -> Option<String> {
    let transport = new.protocol.transport();
    if other.port != new.port || other.protocol.transport() != transport {
        return None;
    }
    let same = other.protocol.as_str() == new.protocol.as_str();
    // Whoever connects says what he wants by TLS, by HTTP, or not at all; a port is for one of these.
    let told = |listener: &Listener| match listener.protocol {
        ListenerProtocol::Https { .. } | ListenerProtocol::Tls(_) => 0,
        ListenerProtocol::Http => 1,
        ListenerProtocol::Tcp | ListenerProtocol::Udp => 2,
    };
    if told(other) != told(new) {
        return Some(format!(
            "has the port of listener `{}`, which is of protocol {}; a port is for HTTP, or for HTTPS and TLS, or for TCP",
            other.name,
            other.protocol.as_str()
        ));
    }
    (other.hostname == new.hostname).then(|| match same {
        true => format!(
            "has the port, protocol and hostname of listener `{}`",
            other.name
        ),
        false => format!("has the port and hostname of listener `{}`", other.name),
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
    let hostname = object.optional("hostname");
    let port: Option<Port> = object.required("port").and_then(|field| field.port());
    let written = object
        .required("protocol")
        .and_then(|field| field.choice(&Protocol::ALL));
    if let (Some(Protocol::Tcp | Protocol::Udp), Some(field)) = (written, &hostname) {
        field.mistake("nobody names a host over TCP and UDP; expected no hostname");
    }
    let hostname = hostname.map(|field| pattern(&field));
    let mut certificate_sources = Vec::new();
    let protocol =
        written.and_then(|written| protocol(written, object, meta, &mut certificate_sources));
    let allowed = match (object.optional("allowedRoutes"), written) {
        (Some(field), Some(written)) => allowed_routes(&field, written.kinds()),
        (Some(_), None) => None,
        (None, written) => Some((
            false,
            written.map_or(BTreeSet::new(), |written| {
                written.kinds().iter().copied().collect()
            }),
        )),
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
            clients: None,
        },
        certificate_sources,
        all_namespaces,
        kinds,
    })
}

/// The protocol with what its `tls` says.
fn protocol(
    written: Protocol,
    object: &mut Object<'_>,
    meta: &Meta,
    sources: &mut Vec<Source>,
) -> Option<ListenerProtocol> {
    let tls = object.optional("tls");
    let plain = match written {
        Protocol::Http => Some(ListenerProtocol::Http),
        Protocol::Tcp => Some(ListenerProtocol::Tcp),
        Protocol::Udp => Some(ListenerProtocol::Udp),
        Protocol::Https | Protocol::Tls => None,
    };
    let (name, _) = Protocol::ALL.iter().find(|(_, one)| *one == written)?;
    match (plain, tls) {
        (Some(plain), None) => Some(plain),
        (Some(_), Some(field)) => {
            field.mistake(format_args!("expected no `tls` with protocol {name}"));
            None
        }
        (None, None) => {
            object.field().sink().mistake(
                object.at("tls"),
                format_args!("is missing, and required with protocol {name}"),
            );
            None
        }
        (None, Some(field)) => {
            let mut tls = field.object()?;
            let protocol = terminating(written, &mut tls, meta, sources);
            tls.finish();
            protocol
        }
    }
}

fn terminating(
    written: Protocol,
    tls: &mut Object<'_>,
    meta: &Meta,
    sources: &mut Vec<Source>,
) -> Option<ListenerProtocol> {
    let modes: &[(&str, bool)] = match written {
        Protocol::Tls => &[("Terminate", false), ("Passthrough", true)],
        _ => &[("Terminate", false)],
    };
    let passthrough = match tls.optional("mode") {
        Some(field) => field.choice(modes)?,
        None => false,
    };
    tls.unsupported(&["options", "frontendValidation"]);
    if passthrough {
        if let Some(field) = tls.optional("certificateRefs") {
            field.mistake(
                "with mode Passthrough TLS is not terminated here; expected no certificates",
            );
        }
        return Some(ListenerProtocol::Tls(TlsMode::Passthrough));
    }
    let certificates = certificates(tls, meta, sources)?;
    Some(match written {
        Protocol::Tls => ListenerProtocol::Tls(TlsMode::Terminate { certificates }),
        _ => ListenerProtocol::Https { certificates },
    })
}

fn certificates(
    tls: &mut Object<'_>,
    meta: &Meta,
    sources: &mut Vec<Source>,
) -> Option<Vec<ObjectName>> {
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

fn allowed_routes(
    field: &Field<'_>,
    possible: &[RouteKind],
) -> Option<(bool, BTreeSet<RouteKind>)> {
    let mut object = field.object()?;
    let mut all = Some(false);
    if let Some(mut namespaces) = object.optional("namespaces").and_then(|f| f.object()) {
        if let Some(field) = namespaces.optional("from") {
            all = field.choice(&[("Same", false), ("All", true)]);
        }
        namespaces.unsupported(&["selector"]);
        namespaces.finish();
    }
    let mut kinds: BTreeSet<RouteKind> = possible.iter().copied().collect();
    if let Some(listed) = object.optional("kinds") {
        let choices: Vec<_> = possible.iter().map(|kind| (kind.as_str(), *kind)).collect();
        kinds.clear();
        for field in listed.list() {
            let Some(mut kind) = field.object() else {
                continue;
            };
            if let Some(field) = kind.optional("group") {
                field.choice(&[("gateway.networking.k8s.io", ())]);
            }
            if let Some(field) = kind.required("kind") {
                kinds.extend(field.choice(&choices));
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
