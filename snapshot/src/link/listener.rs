//! Listeners of a gateway: which of them work, and why the others do not.

use std::cell::Cell;
use std::sync::Arc;

use super::context::{Context, Fault, condition};
use super::grants;
use crate::document::Kind;
use crate::document::gateway::{ListenerDraft, Protocol, SecretRef};
use crate::document::secret::SecretDraft;
use crate::document::selector::From;
use crate::model::{
    Certificate, ClientValidation, HostPattern, Listener, ListenerProtocol, ObjectName, Port,
    RouteKind, SectionName, TlsMode, Transport, Unserved,
};
use crate::report::Source;
use crate::status::{Condition, ConditionKind, ListenerStatus, Reason};

/// Whose a listener is.
#[derive(Clone, Copy, Debug)]
pub(super) enum Owner<'a> {
    Gateway(&'a ObjectName),
    Set(&'a ObjectName),
}

/// A listener, whatever its state is.
pub(super) struct Entry {
    /// The set that brings it; none: the gateway itself.
    pub(super) set: Option<ObjectName>,
    /// Its name as it is written.
    pub(super) name: SectionName,
    /// Its name in the gateway.
    pub(super) id: SectionName,
    pub(super) declared: Source,
    pub(super) port: Option<Port>,
    pub(super) hostname: Option<HostPattern>,
    pub(super) from: From,
    pub(super) kinds: Vec<RouteKind>,
    pub(super) clients: Option<Arc<ClientValidation>>,
    written: Option<Protocol>,
    /// With what of it can be used; none: too little.
    protocol: Option<ListenerProtocol>,
    accepted: Option<Fault>,
    conflict: Option<Fault>,
    resolved: Option<Fault>,
    /// Why no client gets through its handshakes.
    unverifiable: Option<Fault>,
    /// Accepted routes that are attached.
    pub(super) attached: Cell<usize>,
}

impl Entry {
    /// Counts a route that is attached.
    pub(super) fn count(&self) {
        self.attached.set(self.attached.get() + 1);
    }

    /// A listener of a gateway, or of a set, each by its name.
    pub(super) fn new(draft: &ListenerDraft, owner: Owner<'_>, to: &Context<'_>) -> Self {
        let set = match owner {
            Owner::Gateway(_) => None,
            Owner::Set(set) => Some(set),
        };
        for fault in draft.faults.iter().chain(&draft.allowed.others) {
            to.sink.mistake(fault.source.clone(), &fault.message);
        }
        let accepted = draft.faults.first().map(|fault| {
            let reason = match draft.protocol {
                None => Reason::UnsupportedProtocol,
                Some(_) => Reason::UnsupportedValue,
            };
            Fault::new(reason, format!("{}: {}", fault.source.field, fault.message))
        });
        let kinds = draft.allowed.others.first();
        let mut resolved = kinds.map(|one| Fault::new(Reason::InvalidRouteKinds, &one.message));
        let certificates = certificates(draft, owner, &mut resolved, to);
        let protocol = match draft.protocol {
            None => None,
            Some(Protocol::Http) => Some(ListenerProtocol::Http),
            Some(Protocol::Tcp) => Some(ListenerProtocol::Tcp),
            Some(Protocol::Udp) => Some(ListenerProtocol::Udp),
            Some(Protocol::Tls) if draft.passthrough => {
                Some(ListenerProtocol::Tls(TlsMode::Passthrough))
            }
            Some(Protocol::Https | Protocol::Tls) if certificates.is_empty() => None,
            Some(Protocol::Https) => Some(ListenerProtocol::Https { certificates }),
            Some(Protocol::Tls) => Some(ListenerProtocol::Tls(TlsMode::Terminate { certificates })),
        };
        Self {
            set: set.cloned(),
            name: draft.name.clone(),
            id: match set {
                Some(set) => SectionName::of_set(set, &draft.name),
                None => draft.name.clone(),
            },
            declared: draft.declared.clone(),
            port: draft.port,
            hostname: draft.hostname.clone(),
            from: draft.allowed.from.clone(),
            kinds: draft.allowed.kinds.clone(),
            clients: None,
            written: draft.protocol,
            protocol,
            accepted,
            conflict: None,
            resolved,
            unverifiable: None,
            attached: Cell::new(0),
        }
    }

    /// Whether it is part of its gateway.
    pub(super) fn works(&self) -> bool {
        self.is_accepted() && self.protocol.is_some()
    }

    /// Whether it is valid, its references apart.
    pub(super) fn is_accepted(&self) -> bool {
        self.accepted.is_none() && self.conflict.is_none()
    }

    /// Whether it is HTTPS and could work.
    pub(super) fn is_https(&self) -> bool {
        self.is_accepted() && self.written == Some(Protocol::Https)
    }

    /// The listener, if it works.
    pub(super) fn model(&self) -> Option<Listener> {
        if !self.is_accepted() {
            return None;
        }
        Some(Listener {
            name: self.id.clone(),
            declared: self.declared.clone(),
            port: self.port?,
            protocol: self.protocol.clone()?,
            hostname: self.hostname.clone(),
            policy: None,
            clients: self.clients.clone(),
        })
    }

    /// What it keeps from broader listeners of its port if it does not work. One that another listener is in conflict with keeps
    /// nothing: its hosts are the other's, or nobody's to say. So does one whose port is not its gateway's.
    pub(super) fn unserved(&self) -> Option<Unserved> {
        let elsewhere = self
            .accepted
            .as_ref()
            .is_some_and(|fault| fault.reason == Reason::PortUnavailable);
        if self.works() || self.conflict.is_some() || elsewhere {
            return None;
        }
        keeping(&self.id, self.written, self.port, self.hostname.as_ref())
    }

    /// The same of a listener of a set that has mistakes.
    pub(super) fn of_refused(draft: &ListenerDraft, set: &ObjectName) -> Option<Unserved> {
        let id = SectionName::of_set(set, &draft.name);
        keeping(&id, draft.protocol, draft.port, draft.hostname.as_ref())
    }

    /// Where it listens if it is valid, whether or not its references lead anywhere.
    pub(super) fn socket(&self) -> Option<(Transport, Port)> {
        let transport = match self.written.filter(|_| self.is_accepted())? {
            Protocol::Udp => Transport::Udp,
            Protocol::Http | Protocol::Https | Protocol::Tls | Protocol::Tcp => Transport::Tcp,
        };
        Some((transport, self.port?))
    }

    pub(super) fn unavailable(&mut self, why: String) {
        self.accepted = Some(Fault::new(Reason::PortUnavailable, why));
    }

    /// Asks its clients for certificates, or turns all of them away.
    pub(super) fn ask(&mut self, clients: Arc<ClientValidation>, fault: Option<&Fault>) {
        self.clients = Some(clients);
        if let Some(fault) = fault {
            self.resolved.get_or_insert_with(|| fault.clone());
            let why = Fault::new(Reason::NoValidCACertificate, &fault.message);
            self.unverifiable = Some(why);
        }
    }

    /// Its status in a gateway; `outside` is what is wrong with the gateway.
    pub(super) fn status(&self, outside: Option<&Fault>) -> ListenerStatus {
        let own = self.conflict.as_ref().or(self.accepted.as_ref());
        let accepted = own.or(self.unverifiable.as_ref());
        let unusable = self.resolved.as_ref().filter(|_| self.protocol.is_none());
        let invalid = unusable.map(|fault| Fault::new(Reason::Invalid, &fault.message));
        let conflicted = match &self.conflict {
            None => Condition::fails(ConditionKind::Conflicted, Reason::NoConflicts, ""),
            Some(fault) => {
                Condition::holds(ConditionKind::Conflicted, fault.reason, &fault.message)
            }
        };
        let programmed = match (&self.conflict, accepted) {
            (Some(conflict), _) => Some(conflict.clone()),
            (None, Some(fault)) => Some(Fault::new(Reason::Invalid, &fault.message)),
            (None, None) => invalid.or_else(|| outside.cloned()),
        };
        ListenerStatus {
            name: self.name.to_string(),
            supported_kinds: self.kinds.clone(),
            attached_routes: self.attached.get(),
            conditions: vec![
                condition(ConditionKind::Accepted, Reason::Accepted, accepted),
                conflicted,
                condition(
                    ConditionKind::ResolvedRefs,
                    Reason::ResolvedRefs,
                    self.resolved.as_ref(),
                ),
                condition(
                    ConditionKind::Programmed,
                    Reason::Programmed,
                    programmed.as_ref(),
                ),
            ],
        }
    }
}

/// What a listener keeps from others, if anything.
fn keeping(
    id: &SectionName,
    protocol: Option<Protocol>,
    port: Option<Port>,
    hostname: Option<&HostPattern>,
) -> Option<Unserved> {
    let tls = match protocol? {
        Protocol::Http => false,
        Protocol::Https | Protocol::Tls => true,
        Protocol::Tcp | Protocol::Udp => return None,
    };
    Some(Unserved {
        name: id.clone(),
        port: port?,
        tls,
        hostname: hostname?.clone(),
    })
}

/// The certificates of a listener that can be used.
fn certificates(
    draft: &ListenerDraft,
    owner: Owner<'_>,
    resolved: &mut Option<Fault>,
    to: &Context<'_>,
) -> Vec<ObjectName> {
    // A set has references of its own (Gateway API, `ListenerSet`, semantics of grants).
    let from = match owner {
        Owner::Set(set) => (Kind::ListenerSet, set.namespace()),
        Owner::Gateway(gateway) => (Kind::Gateway, gateway.namespace()),
    };
    let mut certificates = Vec::new();
    for reference in &draft.certificates {
        match certificate(reference, from, Reason::InvalidCertificateRef, to) {
            Ok((name, certificate)) => {
                host_is_named(draft, certificate, &reference.source, to);
                certificates.push(name.clone());
            }
            Err(fault) => {
                resolved.get_or_insert(fault);
            }
        }
    }
    certificates
}

/// The certificate that a document of kind and namespace refers to.
pub(super) fn certificate<'a>(
    reference: &'a SecretRef,
    from: (Kind, &str),
    reason: Reason,
    to: &Context<'a>,
) -> Result<(&'a ObjectName, &'a Certificate), Fault> {
    let refuse = |reason, why: String| {
        to.sink.mistake(reference.source.clone(), &why);
        Err(Fault::new(reason, why))
    };
    let name = match &reference.secret {
        Ok(name) => name,
        Err(why) => return refuse(reason, why.clone()),
    };
    if !to.grants.permit(from, ("", "Secret"), name) {
        return refuse(Reason::RefNotPermitted, grants::refusal("Secret", name));
    }
    match to.holders.secrets.get(name) {
        None => refuse(reason, format!("no `Secret` {name}")),
        // Its own document says what is wrong.
        Some((_, None)) => Err(Fault::new(reason, format!("`Secret` {name} has mistakes"))),
        Some((_, Some(secret))) => match &**secret {
            SecretDraft::Tls { certificate, .. } => Ok((name, certificate)),
            SecretDraft::Opaque(_) => refuse(
                reason,
                format!("`Secret` {name} holds no certificate; expected type `kubernetes.io/tls`"),
            ),
        },
    }
}

/// A certificate that names none of a listener's hosts is accepted: another one of the list may.
fn host_is_named(
    listener: &ListenerDraft,
    certificate: &Certificate,
    source: &Source,
    to: &Context<'_>,
) {
    let Some(host) = &listener.hostname else {
        return;
    };
    let host = host.to_string();
    let named = certificate.names.iter().any(|name| {
        let below = |suffix: &str, host: &str| {
            host.strip_suffix(suffix)
                .and_then(|front| front.strip_suffix('.'))
                .is_some_and(|label| !label.is_empty() && !label.contains('.'))
        };
        *name == host
            || name
                .strip_prefix("*.")
                .is_some_and(|suffix| below(suffix, &host))
            || host
                .strip_prefix("*.")
                .is_some_and(|suffix| below(suffix, name))
    });
    if !named && !certificate.names.is_empty() {
        to.sink.warning(
            source.clone(),
            format_args!(
                "certificate {} does not name the listener's host `{host}`",
                certificate.name
            ),
        );
    }
}

/// Finds listeners that cannot be told apart. Of two objects the first one's win, and of one object all lose (Gateway API,
/// `spec.listeners` of a `Gateway` and of a `ListenerSet`).
pub(super) fn conflicts(entries: &mut [Entry], to: &Context<'_>) {
    let mut start = 0;
    while start < entries.len() {
        let set = entries[start].set.clone();
        let count = entries[start..].iter().take_while(|one| one.set == set);
        let end = start + count.count();
        let (before, own) = entries[..end].split_at_mut(start);
        for new in &mut *own {
            let winners = before.iter().filter(|one| one.conflict.is_none());
            new.conflict = winners.filter_map(|first| indistinct(first, new)).next();
        }
        for new in own.iter().filter(|one| one.conflict.is_some()) {
            say(new, to);
        }
        // What lost against an earlier object is in nobody's way.
        let mut rivals: Vec<&mut Entry> = own
            .iter_mut()
            .filter(|one| one.conflict.is_none())
            .collect();
        let mut lost: Vec<(usize, Fault)> = Vec::new();
        for (at, new) in rivals.iter().enumerate() {
            for (before, first) in rivals[..at].iter().enumerate() {
                if let (Some(fault), Some(other)) = (indistinct(first, new), indistinct(new, first))
                {
                    lost.extend([(before, other), (at, fault)]);
                }
            }
        }
        for (at, fault) in lost {
            rivals[at].conflict.get_or_insert(fault);
        }
        for (at, new) in rivals.iter().enumerate() {
            // The first of them says what it is; the others, why it is not.
            if rivals[..at]
                .iter()
                .any(|first| indistinct(first, new).is_some())
            {
                say(new, to);
            }
        }
        start = end;
    }
}

fn say(entry: &Entry, to: &Context<'_>) {
    if let Some(fault) = &entry.conflict {
        to.sink.mistake(entry.declared.clone(), &fault.message);
    }
}

/// Why two listeners of one gateway cannot be told apart (Gateway API, `spec.listeners`: distinct listeners).
fn indistinct(other: &Entry, new: &Entry) -> Option<Fault> {
    let (Some(others), Some(own)) = (other.written, new.written) else {
        return None;
    };
    let valid = other.accepted.is_none() && new.accepted.is_none();
    let udp = |protocol| protocol == Protocol::Udp;
    if !valid || other.port != new.port || udp(others) != udp(own) {
        return None;
    }
    // Whoever connects says what he wants by TLS, by HTTP, or not at all; a port is for one of these.
    let told = |protocol| match protocol {
        Protocol::Https | Protocol::Tls => 0,
        Protocol::Http => 1,
        Protocol::Tcp | Protocol::Udp => 2,
    };
    if told(others) != told(own) {
        return Some(Fault::new(
            Reason::ProtocolConflict,
            format!(
                "has the port of listener `{}`, which is of protocol {}; a port is for HTTP, or for HTTPS and TLS, or for TCP",
                other.name,
                others.as_str()
            ),
        ));
    }
    let what = match others == own {
        true => "port, protocol and hostname",
        false => "port and hostname",
    };
    let why = format!("has the {what} of listener `{}`", other.name);
    (other.hostname == new.hostname).then(|| Fault::new(Reason::HostnameConflict, why))
}
