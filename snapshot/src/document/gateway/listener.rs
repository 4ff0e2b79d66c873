//! Listeners of a `Gateway` and of a `ListenerSet`.
//!
//! What is wrong with one is kept with it: the others go on without it.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::pattern;
use crate::document::selector::{From, namespaces};
use crate::document::{Meta, reference};
use crate::model::{HostPattern, L4Kind, L7Kind, ObjectName, Port, RouteKind, SectionName};
use crate::reader::{Field, Object, quoted};
use crate::report::{Mistake, Source};

/// Gateway API: at most 64 certificates of a listener.
const MAX_CERTIFICATES: usize = 64;

/// A listener whose references are not resolved.
pub(crate) struct ListenerDraft {
    pub(crate) declared: Source,
    pub(crate) name: SectionName,
    pub(crate) port: Option<Port>,
    /// None: one that is not supported.
    pub(crate) protocol: Option<Protocol>,
    pub(crate) hostname: Option<HostPattern>,
    pub(crate) passthrough: bool,
    pub(crate) certificates: Vec<SecretRef>,
    pub(crate) allowed: Allowed,
    /// What is wrong with it, apart from its references.
    pub(crate) faults: Vec<Mistake>,
}

/// A reference to a `Secret`, or what is wrong with its group or kind.
pub(crate) struct SecretRef {
    pub(crate) source: Source,
    pub(crate) secret: Result<ObjectName, String>,
}

/// Which routes may attach.
pub(crate) struct Allowed {
    pub(crate) from: From,
    pub(crate) kinds: Vec<RouteKind>,
    /// Kinds that cannot.
    pub(crate) others: Vec<Mistake>,
}

/// Protocol of a listener as it is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Protocol {
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

    /// As a document names it.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Http => "HTTP",
            Self::Https => "HTTPS",
            Self::Tls => "TLS",
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
        }
    }

    /// Kinds of routes that may attach (Gateway API, `AllowedRoutes.kinds`).
    pub(crate) fn kinds(self) -> &'static [RouteKind] {
        match self {
            Self::Http | Self::Https => &[RouteKind::L7(L7Kind::Http), RouteKind::L7(L7Kind::Grpc)],
            Self::Tls => &[RouteKind::L4(L4Kind::Tls)],
            Self::Tcp => &[RouteKind::L4(L4Kind::Tcp)],
            Self::Udp => &[RouteKind::L4(L4Kind::Udp)],
        }
    }
}

/// Reads a list of listeners. One whose name cannot be read is a mistake of the whole object: nobody could be told about
/// it.
pub(crate) fn listeners(items: &[Field<'_>], meta: &Meta) -> Vec<ListenerDraft> {
    let mut names: BTreeMap<SectionName, Arc<str>> = BTreeMap::new();
    let mut listeners = Vec::new();
    for item in items {
        let Some(mut object) = item.object() else {
            continue;
        };
        let Some(name) = object.required("name").and_then(|field| {
            let name = field.parse(SectionName::new)?;
            if let Some(first) = names.get(&name) {
                field.mistake(format_args!("listener `{name}` is in {first} already"));
                return None;
            }
            names.insert(name.clone(), item.source().field.clone());
            Some(name)
        }) else {
            // Whatever else is wrong is said at once.
            listener(object, None, meta);
            continue;
        };
        let (draft, faults) = item.sink().aside(|| listener(object, Some(name), meta));
        listeners.extend(draft.map(|draft| ListenerDraft { faults, ..draft }));
    }
    listeners
}

fn listener(
    mut object: Object<'_>,
    name: Option<SectionName>,
    meta: &Meta,
) -> Option<ListenerDraft> {
    let declared = object.field().source().clone();
    let hostname = object.optional("hostname");
    let port = object.required("port").and_then(|field| field.port());
    let protocol = object
        .required("protocol")
        .and_then(|field| field.choice(&Protocol::ALL));
    if let (Some(Protocol::Tcp | Protocol::Udp), Some(field)) = (protocol, &hostname) {
        field.mistake("nobody names a host over TCP and UDP; expected no hostname");
    }
    let hostname = hostname.and_then(|field| pattern(&field));
    let (passthrough, certificates) = tls(protocol, &mut object, meta);
    let allowed = allowed(object.optional("allowedRoutes"), protocol);
    object.finish();
    Some(ListenerDraft {
        declared,
        name: name?,
        port,
        protocol,
        hostname,
        passthrough,
        certificates,
        allowed,
        faults: Vec::new(),
    })
}

/// Whether TLS stays closed, and with which certificates it is terminated otherwise.
fn tls(protocol: Option<Protocol>, object: &mut Object<'_>, meta: &Meta) -> (bool, Vec<SecretRef>) {
    let tls = object.optional("tls");
    let Some(protocol) = protocol else {
        return (false, Vec::new());
    };
    match (protocol, tls) {
        (Protocol::Http | Protocol::Tcp | Protocol::Udp, None) => {}
        (Protocol::Http | Protocol::Tcp | Protocol::Udp, Some(field)) => field.mistake(
            format_args!("expected no `tls` with protocol {}", protocol.as_str()),
        ),
        (Protocol::Https | Protocol::Tls, None) => object.field().sink().mistake(
            object.at("tls"),
            format_args!(
                "is missing, and required with protocol {}",
                protocol.as_str()
            ),
        ),
        (Protocol::Https | Protocol::Tls, Some(field)) => {
            if let Some(mut tls) = field.object() {
                let read = terminating(protocol, &mut tls, meta);
                tls.finish();
                return read;
            }
        }
    }
    (false, Vec::new())
}

fn terminating(protocol: Protocol, tls: &mut Object<'_>, meta: &Meta) -> (bool, Vec<SecretRef>) {
    let modes: &[(&str, bool)] = match protocol {
        Protocol::Tls => &[("Terminate", false), ("Passthrough", true)],
        _ => &[("Terminate", false)],
    };
    let passthrough = match tls.optional("mode") {
        Some(field) => field.choice(modes),
        None => Some(false),
    };
    tls.unsupported(&["options", "frontendValidation"]);
    if passthrough == Some(true) {
        if let Some(field) = tls.optional("certificateRefs") {
            field.mistake(
                "with mode Passthrough TLS is not terminated here; expected no certificates",
            );
        }
        return (true, Vec::new());
    }
    let mut certificates: Vec<SecretRef> = Vec::new();
    let refs = tls.required("certificateRefs");
    for field in refs
        .map(|field| field.some_limited_list(MAX_CERTIFICATES))
        .unwrap_or_default()
    {
        let Some(one) = secret(&field, meta) else {
            continue;
        };
        let same = |other: &SecretRef| other.secret.is_ok() && other.secret == one.secret;
        if let (true, Ok(name)) = (certificates.iter().any(same), &one.secret) {
            field.mistake(format_args!("secret `{name}` is in the list already"));
            continue;
        }
        certificates.push(one);
    }
    (false, certificates)
}

/// A reference to a `Secret`.
pub(crate) fn secret(field: &Field<'_>, meta: &Meta) -> Option<SecretRef> {
    let mut object: Object<'_> = field.object()?;
    let group = text(&mut object, "group");
    let kind = text(&mut object, "kind");
    let name = reference(&mut object, meta);
    object.finish();
    let (group, kind) = (group?.unwrap_or_default(), kind?.unwrap_or("Secret"));
    let secret = match (group, kind) {
        ("", "Secret") => Ok(name?),
        _ => Err(format!(
            "expected kind `Secret` of group ``, got {} of {}",
            quoted(kind),
            quoted(group)
        )),
    };
    Some(SecretRef {
        source: field.source().clone(),
        secret,
    })
}

/// A text that may be absent; none at all: it is no text.
#[expect(
    clippy::option_option,
    reason = "absent and unreadable are two things here, and both end at the callers"
)]
fn text<'a>(object: &mut Object<'a>, name: &'static str) -> Option<Option<&'a str>> {
    match object.optional(name) {
        Some(field) => field.string().map(Some),
        None => Some(None),
    }
}

fn allowed(field: Option<Field<'_>>, protocol: Option<Protocol>) -> Allowed {
    let possible = protocol.map_or(&[][..], Protocol::kinds);
    let mut allowed = Allowed {
        from: From::Same,
        kinds: possible.to_vec(),
        others: Vec::new(),
    };
    let Some(mut object) = field.as_ref().and_then(Field::object) else {
        return allowed;
    };
    if let Some(field) = object.optional("namespaces") {
        // What cannot be read is a fault of the listener, which then takes nobody.
        allowed.from = namespaces(&field, From::Same).unwrap_or(From::None);
    }
    if let Some(listed) = object.optional("kinds") {
        let choices: Vec<_> = possible.iter().map(|kind| (kind.as_str(), *kind)).collect();
        let items = listed.list();
        if !items.is_empty() && protocol.is_some() {
            allowed.kinds.clear();
        }
        for field in items {
            let (kind, others) = field.sink().aside(|| {
                let mut object = field.object()?;
                let group = object
                    .optional("group")
                    .map(|field| field.choice(&[("gateway.networking.k8s.io", ())]));
                let kind = object.required("kind").and_then(|f| f.choice(&choices));
                object.finish();
                kind.filter(|_| group != Some(None))
            });
            if let Some(kind) = kind.filter(|kind| !allowed.kinds.contains(kind)) {
                allowed.kinds.push(kind);
            }
            // Without a protocol nobody can say which kinds are possible.
            if protocol.is_some() {
                allowed.others.extend(others);
            }
        }
    }
    object.finish();
    allowed
}
