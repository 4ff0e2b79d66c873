//! `ClientTrafficPolicy` documents to the listeners that they are for.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::attachment::{Effect, Policies, Policy, Refused, by_target};
use super::http_route::{Documents, Gateways};
use crate::document::Table;
use crate::document::client_policy::ClientDraft;
use crate::model::{ClientPolicy, Gateway, Listener, ListenerProtocol, ObjectName};
use crate::reader::Sink;

/// Puts policies on listeners: that of a listener as a whole over that of its gateway. What comes back closes the routes
/// of listeners whose policy has mistakes.
pub(super) fn apply(
    drafts: Table<ClientDraft>,
    refused: &[Refused],
    gateways: &mut BTreeMap<ObjectName, Gateway>,
    known: &Gateways,
    sink: &Sink,
) -> Policies<ClientPolicy> {
    let policies = drafts.into_iter().filter_map(|(name, (declared, draft))| {
        let draft = draft?;
        Some(Policy {
            name,
            declared,
            created: draft.created,
            targets: draft.targets.clone(),
            what: Effect::Applies(Arc::new(draft.policy.clone())),
        })
    });
    let policies = policies.chain(refused.iter().map(Refused::policy));
    // None of them is for a route.
    let policies = by_target(policies.collect(), &Documents::new(), known, sink);
    let policies = Policies::of_listeners(policies);
    for gateway in gateways.values_mut() {
        let name = &gateway.name;
        for listener in &mut gateway.listeners {
            listener.policy = match policies.on_listener(name, &listener.name) {
                Some(Effect::Applies(policy)) => Some(Arc::clone(policy)),
                Some(Effect::Closes(_)) | None => None,
            };
        }
        agree(&gateway.listeners, sink);
    }
    policies
}

/// Listeners of one port are told apart after their connections began, by server name or host: what is decided before that
/// must not differ between them.
fn agree(listeners: &[Listener], sink: &Sink) {
    for (at, listener) in listeners.iter().enumerate() {
        let same_port = |other: &&Listener| {
            other.port == listener.port
                && other.protocol.transport() == listener.protocol.transport()
        };
        let Some(first) = listeners[..at].iter().find(same_port) else {
            continue;
        };
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
    }
}
