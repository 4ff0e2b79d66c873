//! `ClientTrafficPolicy` documents to the listeners that they are for.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::http_route::Gateways;
use crate::document::Table;
use crate::document::client_policy::{ClientDraft, ClientTarget};
use crate::model::{ClientPolicy, Gateway, Listener, ListenerProtocol, ObjectName};
use crate::reader::Sink;
use crate::report::Source;

/// Policies by target, each with the field that names it.
type Policies = BTreeMap<ClientTarget, (Source, Arc<ClientPolicy>)>;

/// Puts policies on listeners: that of a listener as a whole over that of its gateway. Of two for one target the older wins,
/// then the one whose name comes first.
pub(super) fn apply(
    drafts: Table<ClientDraft>,
    gateways: &mut BTreeMap<ObjectName, Gateway>,
    known: &Gateways,
    sink: &Sink,
) {
    let policies = targets(drafts, known, sink);
    if policies.is_empty() {
        return;
    }
    for gateway in gateways.values_mut() {
        let mut sources: Vec<Option<Source>> = Vec::new();
        for listener in &mut gateway.listeners {
            let target = |listener| ClientTarget {
                gateway: gateway.name.clone(),
                listener,
            };
            let own = policies.get(&target(Some(listener.name.clone())));
            let found = own.or_else(|| policies.get(&target(None)));
            listener.client = found.map(|(_, policy)| Arc::clone(policy));
            sources.push(found.map(|(source, _)| source.clone()));
        }
        agree(&gateway.listeners, &sources, sink);
    }
}

fn targets(drafts: Table<ClientDraft>, known: &Gateways, sink: &Sink) -> Policies {
    let mut drafts: Vec<(ObjectName, Source, ClientDraft)> = drafts
        .into_iter()
        .filter_map(|(name, (declared, draft))| Some((name, declared, draft?)))
        .collect();
    drafts.sort_by(|(a_name, _, a), (b_name, _, b)| {
        let age = |draft: &ClientDraft| (draft.created.is_none(), draft.created);
        (age(a), a_name).cmp(&(age(b), b_name))
    });
    let mut policies = Policies::new();
    for (_, _, draft) in drafts {
        let policy = Arc::new(draft.policy);
        for (source, target) in draft.targets {
            if let Some(missing) = missing(&target, known, sink) {
                sink.mistake(source, missing);
                continue;
            }
            match policies.get(&target) {
                Some((_, first)) => sink.warning(
                    source,
                    format_args!(
                        "has no effect here: {} is for this target as well, and is older or comes first by name",
                        first.declared
                    ),
                ),
                None => {
                    policies.insert(target, (source, Arc::clone(&policy)));
                }
            }
        }
    }
    policies
}

fn missing(target: &ClientTarget, known: &Gateways, sink: &Sink) -> Option<String> {
    let Some(gateway) = known.get(&target.gateway) else {
        return Some(format!("no `Gateway` {}", target.gateway));
    };
    // One that could not be read has mistakes of its own.
    let listeners = &gateway.as_ref()?.listeners;
    let wanted = target.listener.as_ref()?;
    let found = listeners.iter().any(|one| one.listener.name == *wanted);
    let unread = listeners
        .iter()
        .any(|one| sink.tainted(&one.listener.declared));
    (!found && !unread).then(|| format!("`Gateway` {} has no listener `{wanted}`", target.gateway))
}

/// Listeners of one port are told apart after their connections began, by server name or host: what is decided before that
/// must not differ between them.
fn agree(listeners: &[Listener], sources: &[Option<Source>], sink: &Sink) {
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
            let policy = one.client.as_ref();
            policy
                .map(|policy| policy.entrance.clone())
                .unwrap_or_default()
        };
        let agree = match (&first.client, &listener.client) {
            (Some(a), Some(b)) if Arc::ptr_eq(a, b) => true,
            (None, None) => true,
            _ => !whole && entrance(first) == entrance(listener),
        };
        if agree {
            continue;
        }
        // The policy of one of the two, or of both, says something about a listener alone.
        let first_source = listeners
            .iter()
            .position(|one| one.name == first.name)
            .and_then(|at| sources[at].as_ref());
        let Some(source) = sources[at].as_ref().or(first_source) else {
            continue;
        };
        let what = match whole {
            true => "its policy",
            false => "`enableProxyProtocol`, `connection.connectionLimit` and `tcpKeepalive`",
        };
        sink.mistake(
            source.clone(),
            format_args!(
                "listeners `{}` and `{}` share port {}, and so {what}; expected the same for both",
                first.name, listener.name, listener.port
            ),
        );
    }
}
