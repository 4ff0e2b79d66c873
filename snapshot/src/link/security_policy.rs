//! `SecurityPolicy` documents to the rules that they protect. What a cell declares for its own endpoints
//! counts as a policy of the rule.

use std::sync::Arc;

use super::Served;
use super::attachment::{Effect, Known, Policies, Policy, Refused};
use super::credentials;
use super::merging::merge;
use crate::document::Table;
use crate::document::secret::SecretDraft;
use crate::document::security_policy::{PolicyDraft, merged};
use crate::model::{Auth, ListenerProtocol};
use crate::reader::Sink;

/// Policies by what they protect.
pub(super) fn policies<'s>(
    drafts: &'s Table<PolicyDraft>,
    refused: &[Refused],
    secrets: &'s Table<SecretDraft>,
    known: Known<'_, 's>,
) -> Policies<'s, Auth> {
    let mut written = Vec::new();
    let policies = drafts.iter().filter_map(|(name, (declared, draft))| {
        let draft = draft.as_ref()?;
        let auth = credentials::auth(declared.clone(), draft, secrets, known.sink);
        let auth = Arc::new(auth);
        written.push((Arc::clone(&auth), &draft.spec));
        Some(Policy {
            name: name.clone(),
            declared: declared.clone(),
            created: draft.created,
            targets: draft.targets.clone(),
            what: Effect::Applies(auth),
        })
    });
    let policies = policies
        .chain(refused.iter().map(Refused::policy))
        .collect();
    // What a Secret lacks is said where the policy that names it stands alone.
    let merge = merge(written, known.sink, move |own, above, found| {
        let draft = merged(own, above, found)?;
        Some(credentials::auth(
            own.declared.clone(),
            &draft,
            secrets,
            found,
        ))
    });
    Policies::new(policies, Some(|rule| &mut rule.auth), merge, known)
}

/// Says where a policy of a gateway or listener is about clients and the listener is not of HTTP: connections there pass unread.
pub(super) fn without_effect(policies: &Policies<'_, Auth>, gateways: &Served, sink: &Sink) {
    let all = gateways.values();
    let listeners = all.flat_map(|one| one.listeners.iter().map(move |of| (one, of)));
    for (gateway, listener) in listeners {
        let is_http = matches!(
            listener.protocol,
            ListenerProtocol::Http | ListenerProtocol::Https { .. }
        );
        let policy = policies.on_listener(&gateway.name, &listener.name);
        let (false, Some(Effect::Applies(auth))) = (is_http, policy) else {
            continue;
        };
        if !auth.is_open() {
            sink.warning(
                auth.declared.at("spec"),
                format_args!(
                    "what it asks of clients has no effect at listener `{}` of {}, which is not of HTTP",
                    listener.name, gateway.name
                ),
            );
        }
    }
}
