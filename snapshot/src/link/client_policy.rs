//! `ClientTrafficPolicy` documents to the listeners that they are for.

use std::sync::Arc;

use super::Served;
use super::attachment::{Effect, Known, Policies, Policy, Refused};
use crate::document::Table;
use crate::document::client_policy::ClientDraft;
use crate::model::{Auth, ClientPolicy, Listener, ListenerProtocol};
use crate::reader::Sink;

/// Puts policies on listeners: that of a listener as a whole over that of its gateway. What comes back closes the routes
/// of listeners whose policy has mistakes.
pub(super) fn apply(
    drafts: &Table<ClientDraft>,
    refused: &[Refused],
    gateways: &mut Served,
    known: Known<'_, '_>,
) -> Policies<'static, ClientPolicy> {
    let sink = known.sink;
    let policies = drafts.iter().filter_map(|(name, (declared, draft))| {
        let draft = draft.as_ref()?;
        Some(Policy {
            name: name.clone(),
            declared: declared.clone(),
            created: draft.created,
            targets: draft.targets.clone(),
            what: Effect::Applies(Arc::new(draft.policy.clone())),
        })
    });
    let policies = policies
        .chain(refused.iter().map(Refused::policy))
        .collect();
    // The more specific one stands alone.
    let alone = Box::new(|own: &Arc<_>, _: &Arc<_>| Effect::Applies(Arc::clone(own)));
    let mut policies = Policies::new(policies, None, alone, known);
    for gateway in gateways.values_mut() {
        let name = &gateway.name;
        for listener in &mut gateway.listeners {
            listener.policy = match policies.on_listener(name, &listener.name) {
                Some(Effect::Applies(policy)) => Some(Arc::clone(policy)),
                Some(Effect::Closes(_)) | None => None,
            };
        }
        for at in agree(&gateway.listeners, sink) {
            let Some(policy) = gateway.listeners[at].policy.take() else {
                continue;
            };
            let why = format!("{} is for only a part of a port", policy.declared.object);
            let auth = Arc::new(Auth::closed(policy.declared.clone(), why));
            policies.close(name, &gateway.listeners[at].name, &auth);
        }
    }
    policies
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
