//! What gateways ask of their clients and show to their backends.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::authorities::Found;
use super::context::Context;
use super::gateway::Built;
use super::listener::certificate;
use crate::document::Kind;
use crate::document::gateway::ValidationDraft;
use crate::model::{ClientValidation, Port};
use crate::status::Reason;

/// Puts what is said of clients on the HTTPS listeners of a gateway, and finds the certificate that its backends are
/// shown.
pub(super) fn apply(built: &mut Built, to: &Context<'_>) {
    let draft = Arc::clone(&built.draft);
    let namespace = built.name.namespace().to_owned();
    let linked = |draft: &ValidationDraft| {
        let Found { authorities, fault } = to.holders.authorities(
            &draft.authorities,
            (Kind::Gateway, &namespace),
            "no client gets through the handshakes that it is for",
        );
        let clients = Arc::new(ClientValidation {
            declared: draft.source.clone(),
            authorities,
            required: draft.required,
        });
        (clients, fault)
    };
    let usual = draft.tls.default.as_ref().map(linked);
    let ports: BTreeMap<Port, _> = draft
        .tls
        .ports
        .iter()
        .map(|(port, (_, own))| (*port, own.as_ref().map(linked)))
        .collect();
    for entry in &mut built.entries {
        let Some(port) = entry.port.filter(|_| entry.is_https()) else {
            continue;
        };
        if let Some((clients, fault)) = ports.get(&port).unwrap_or(&usual) {
            entry.ask(Arc::clone(clients), fault.as_ref());
        }
    }
    for (port, (source, _)) in &draft.tls.ports {
        let https = |one: &super::listener::Entry| one.port == Some(*port) && one.is_https();
        if !built.entries.iter().any(https) {
            to.sink.warning(
                source.clone(),
                format_args!("no listener of port {port} has protocol HTTPS; it is for nobody"),
            );
        }
    }
    if let Some(reference) = &draft.tls.identity {
        match certificate(
            reference,
            (Kind::Gateway, &namespace),
            Reason::InvalidClientCertificateRef,
            to,
        ) {
            Ok((name, _)) => built.identity = Some(name.clone()),
            Err(fault) => built.resolved = Some(fault),
        }
    }
}
