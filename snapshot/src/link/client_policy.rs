//! `ClientTrafficPolicy` documents to the listeners that they are for.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use super::Served;
use super::attachment::{Effect, Known, Policies, Policy, Refused};
use super::authorities::Holders;
use super::gateway_tls::validation as validated;
use crate::document::client_policy::ClientDraft;
use crate::document::{Kind, Table};
use crate::model::{
    Auth, ClientPolicy, ClientValidation, Gateway, Listener, ListenerProtocol, Port, Transport,
};
use crate::reader::Sink;

/// Puts policies on listeners: that of a listener as a whole over that of its gateway. What comes back closes the routes
/// of listeners whose policy has mistakes.
pub(super) fn apply(
    drafts: &Table<ClientDraft>,
    refused: &[Refused],
    gateways: &mut Served,
    known: Known<'_, '_>,
    holders: &Holders<'_>,
) -> Policies<'static, ClientPolicy> {
    let sink = known.sink;
    let mut validations: Vec<(Arc<ClientPolicy>, Arc<ClientValidation>)> = Vec::new();
    let policies = drafts.iter().filter_map(|(name, (declared, draft))| {
        let draft = draft.as_ref()?;
        let policy = Arc::new(draft.policy.clone());
        if let Some(validation) = &draft.validation {
            let from = (Kind::ClientTrafficPolicy, name.namespace());
            // Without authorities nobody gets through.
            let (validation, _) = validated(validation, from, holders);
            validations.push((Arc::clone(&policy), validation));
        }
        Some(Policy {
            name: name.clone(),
            declared: declared.clone(),
            created: draft.created,
            targets: draft.targets.clone(),
            what: Effect::Applies(policy),
        })
    });
    let policies = policies
        .chain(refused.iter().map(Refused::policy))
        .collect();
    // The more specific one stands alone.
    let alone = Box::new(|own: &Arc<_>, _: &Effect<_>| Effect::Applies(Arc::clone(own)));
    let mut policies = Policies::new(policies, None, alone, known);
    let datagrams = datagrams(gateways);
    for gateway in gateways.values_mut() {
        let name = &gateway.name;
        for listener in &mut gateway.listeners {
            listener.policy = match policies.on_listener(name, &listener.name) {
                Some(Effect::Applies(policy)) => Some(Arc::clone(policy)),
                Some(Effect::Closes(_)) | None => None,
            };
        }
        let mut apart = agree(&gateway.listeners, sink);
        apart.extend(occupied(gateway, &datagrams, sink));
        for (at, listener) in gateway.listeners.iter_mut().enumerate() {
            let asked = listener.policy.as_ref().and_then(|policy| {
                let found = validations.iter().find(|(of, _)| Arc::ptr_eq(of, policy));
                found.map(|(_, validation)| Arc::clone(validation))
            });
            if asked.is_some_and(|validation| !ask(listener, &validation, sink)) {
                apart.push(at);
            }
        }
        for at in apart {
            let Some(policy) = gateway.listeners[at].policy.take() else {
                continue;
            };
            let why = format!(
                "{} cannot be what its listener does",
                policy.declared.object
            );
            let auth = Arc::new(Auth::closed(policy.declared.clone(), why));
            policies.close(name, &gateway.listeners[at].name, &auth);
        }
    }
    policies
}

/// Where datagrams go: an address of a gateway, or those of every node (none), and a port.
type Datagrams = BTreeMap<(Option<IpAddr>, Port), String>;

fn sockets(gateway: &Gateway, port: Port) -> impl Iterator<Item = (Option<IpAddr>, Port)> {
    let own = gateway.addresses.iter();
    let own = own.map(move |address| (Some(*address), port));
    let nodes = gateway.node_ports.of(Transport::Udp, port);
    own.chain(nodes.map(|port| (None, port)))
}

/// The listeners of UDP, by where they are.
fn datagrams(gateways: &Served) -> Datagrams {
    let mut datagrams = Datagrams::new();
    for gateway in gateways.values() {
        let listeners = gateway.listeners.iter();
        for listener in listeners.filter(|one| one.protocol == ListenerProtocol::Udp) {
            let what = format!("listener `{}` of `Gateway` {}", listener.name, gateway.name);
            let places = sockets(gateway, listener.port);
            datagrams.extend(places.map(|place| (place, what.clone())));
        }
    }
    datagrams
}

/// Which listeners should have HTTP/3 at ports whose datagrams are a listener's of UDP.
fn occupied(gateway: &Gateway, datagrams: &Datagrams, sink: &Sink) -> Vec<usize> {
    let mut occupied = Vec::new();
    for (at, listener) in gateway.listeners.iter().enumerate() {
        let policy = listener
            .policy
            .as_ref()
            .filter(|_| listener.http3().is_some());
        let Some(policy) = policy else { continue };
        let other = sockets(gateway, listener.port).find_map(|place| datagrams.get(&place));
        if let Some(other) = other {
            sink.mistake(
                policy.declared.at("spec.http3"),
                format_args!(
                    "UDP port {} of listener `{}` belongs to {other}; expected no listener of UDP there",
                    listener.port, listener.name
                ),
            );
            occupied.push(at);
        }
    }
    occupied
}

/// Lets a listener ask its clients for certificates; false if it cannot.
fn ask(listener: &mut Listener, validation: &Arc<ClientValidation>, sink: &Sink) -> bool {
    let message = match (&listener.protocol, &listener.clients) {
        (ListenerProtocol::Https { .. }, None) => {
            listener.clients = Some(Arc::clone(validation));
            return true;
        }
        (ListenerProtocol::Https { .. }, Some(other)) => format!(
            "{} asks the clients of listener `{}` as well; expected one of the two",
            other.declared, listener.name
        ),
        (ListenerProtocol::Tls(_), _) => format!(
            "is for listeners of HTTPS, and listener `{}` has protocol TLS",
            listener.name
        ),
        // Without TLS there are no certificates.
        (ListenerProtocol::Http | ListenerProtocol::Tcp | ListenerProtocol::Udp, _) => return true,
    };
    sink.mistake(validation.declared.clone(), message);
    false
}

/// Listeners of one port are told apart after their connections began, by server name or host: what is decided before that
/// must not differ between them. Says which do not agree.
fn agree(listeners: &[Listener], sink: &Sink) -> Vec<usize> {
    let mut apart = Vec::new();
    for (at, listener) in listeners.iter().enumerate() {
        let same_port = |other: &&Listener| {
            other.port == listener.port
                && other.protocol.transport() == listener.protocol.transport()
        };
        let Some(before) = listeners[..at].iter().position(|one| same_port(&one)) else {
            continue;
        };
        let first = &listeners[before];
        let whole = listener.protocol == ListenerProtocol::Http;
        let entrance = |one: &Listener| {
            let policy = one.policy.as_ref();
            policy
                .map(|policy| policy.entrance.clone())
                .unwrap_or_default()
        };
        let agree = match (&first.policy, &listener.policy) {
            (Some(a), Some(b)) if Arc::ptr_eq(a, b) => true,
            (None, None) => true,
            _ => !whole && entrance(first) == entrance(listener),
        };
        if agree {
            continue;
        }
        // The policy of one of the two, or of both, says something about a listener alone.
        let Some(policy) = listener.policy.as_ref().or(first.policy.as_ref()) else {
            continue;
        };
        let what = match whole {
            true => "its policy",
            false => "`enableProxyProtocol`, `connection.connectionLimit` and `tcpKeepalive`",
        };
        sink.mistake(
            policy.declared.at("spec.targetRefs"),
            format_args!(
                "listeners `{}` and `{}` share port {}, and so {what}; expected the same for both",
                first.name, listener.name, listener.port
            ),
        );
        let port = listeners.iter().enumerate();
        apart.extend(port.filter(|(_, one)| same_port(one)).map(|(at, _)| at));
    }
    apart
}
