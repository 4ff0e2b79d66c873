//! What gateways ask of their clients and show to their backends.

use std::sync::Arc;

use super::authorities::Holders;
use crate::document::gateway::{GatewayDraft, ValidationDraft};
use crate::document::secret::SecretDraft;
use crate::model::{ClientValidation, Gateway, ListenerProtocol, ObjectName};

/// Puts what is said of clients on the HTTPS listeners of a gateway, and gives the name of the certificate
/// that its backends are shown.
pub(super) fn apply(gateway: &mut Gateway, draft: &GatewayDraft, holders: &Holders<'_>) {
    let tls = &draft.tls;
    let linked = |draft: &ValidationDraft| {
        let authorities = holders.authorities(
            &draft.authorities,
            "no client gets through the handshakes that it is for",
        );
        Arc::new(ClientValidation {
            declared: draft.source.clone(),
            authorities,
            required: draft.required,
        })
    };
    let usual = tls.default.as_ref().map(linked);
    for listener in &mut gateway.listeners {
        if !matches!(listener.protocol, ListenerProtocol::Https { .. }) {
            continue;
        }
        listener.clients = match tls.ports.get(&listener.port) {
            Some((_, own)) => own.as_ref().map(linked),
            None => usual.clone(),
        };
    }
    for (port, (source, _)) in &tls.ports {
        let https = gateway.listeners.iter().any(|listener| {
            listener.port == *port && matches!(listener.protocol, ListenerProtocol::Https { .. })
        });
        if !https {
            holders.sink.warning(
                source.clone(),
                format_args!("no listener of port {port} has protocol HTTPS; it is for nobody"),
            );
        }
    }
    gateway.identity = identity(draft, holders);
}

fn identity(draft: &GatewayDraft, holders: &Holders<'_>) -> Option<ObjectName> {
    let (source, name) = draft.tls.identity.as_ref()?;
    match holders.secrets.get(name) {
        None => holders
            .sink
            .mistake(source.clone(), format_args!("no `Secret` {name}")),
        Some((_, None)) => {}
        Some((_, Some(secret))) => match **secret {
            SecretDraft::Opaque(_) => holders.sink.mistake(
                source.clone(),
                format_args!(
                    "`Secret` {name} holds no certificate; expected type `kubernetes.io/tls`"
                ),
            ),
            SecretDraft::Tls { .. } => return Some(name.clone()),
        },
    }
    None
}
