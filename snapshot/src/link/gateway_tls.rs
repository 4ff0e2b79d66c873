//! What gateways ask of their clients and show to their backends.

use std::collections::BTreeMap;
use std::sync::Arc;

use rustls::RootCertStore;
use rustls::server::WebPkiClientVerifier;
use rustls_pki_types::{CertificateDer, CertificateRevocationListDer};

use super::authorities::{Found, Holders};
use super::context::{Context, Fault};
use super::gateway::Built;
use super::listener::certificate;
use crate::document::Kind;
use crate::document::gateway::{RevocationDraft, ValidationDraft};
use crate::model::{Authorities, ClientValidation, Port, Revocations};
use crate::status::Reason;

/// Puts what is said of clients on the HTTPS listeners of a gateway, and finds the certificate that its backends are
/// shown.
pub(super) fn apply(built: &mut Built, to: &Context<'_>) {
    let draft = Arc::clone(&built.draft);
    let namespace = built.name.namespace().to_owned();
    let linked =
        |draft: &ValidationDraft| validation(draft, (Kind::Gateway, &namespace), to.holders);
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

/// What clients are asked for, with the authorities themselves, and what is wrong with a reference to them. The draft is of a
/// document of kind and namespace.
pub(super) fn validation(
    draft: &ValidationDraft,
    from: (Kind, &str),
    holders: &Holders<'_>,
) -> (Arc<ClientValidation>, Option<Fault>) {
    let consequence = "no client gets through the handshakes that it is for";
    let Found {
        mut authorities,
        mut fault,
    } = holders.authorities(&draft.authorities, from, consequence);
    let mut revocations = None;
    if let Some(draft) = &draft.revocations {
        match revoked(draft, from, holders, &authorities, consequence) {
            Ok(found) => revocations = Some(found),
            Err(other) => {
                authorities = Authorities::Missing(other.message.clone());
                fault.get_or_insert(other);
            }
        }
    }
    let clients = Arc::new(ClientValidation {
        declared: draft.source.clone(),
        authorities,
        demand: draft.demand,
        accepted: draft.accepted.clone(),
        revocations,
    });
    (clients, fault)
}

/// What these authorities revoked. Who cannot know that believes nobody.
fn revoked(
    draft: &RevocationDraft,
    from: (Kind, &str),
    holders: &Holders<'_>,
    authorities: &Authorities,
    consequence: &str,
) -> Result<Revocations, Fault> {
    let lists = holders.revocations(&draft.references, from, consequence)?;
    if let Authorities::These(certificates) = authorities
        && let Err(why) = usable(certificates, &lists)
    {
        let fault = Fault::new(Reason::InvalidCACertificateRef, why);
        if let Some(first) = draft.references.first() {
            let source = first.source.clone();
            holders
                .sink
                .warning(source, format_args!("{}; {consequence}", fault.message));
        }
        return Err(fault);
    }
    Ok(Revocations {
        lists,
        leaf_only: draft.leaf_only,
    })
}

/// Whether handshakes can be judged by these lists, whatever else they ask for.
fn usable(
    certificates: &[CertificateDer<'static>],
    lists: &[CertificateRevocationListDer<'static>],
) -> Result<(), String> {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(certificates.iter().cloned());
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
        .with_crls(lists.iter().cloned())
        .build()
        .map(drop)
        .map_err(|error| format!("a list of revoked certificates cannot be used: {error}"))
}
