//! `tls` of a `Gateway`: what its listeners ask of clients, and what it shows to backends (Gateway API,
//! `GatewayTLSConfig`).

use std::collections::BTreeMap;

use super::listener::{SecretRef, secret};
use crate::document::Meta;
use crate::document::authorities::{AuthorityRef, references};
use crate::model::{AcceptedCertificates, ClientDemand, Port};
use crate::reader::Field;
use crate::report::Source;

/// Gateway API: at most 64 ports.
const MAX_PORTS: usize = 64;

/// What is said for all listeners together.
#[derive(Default)]
pub(crate) struct GatewayTlsDraft {
    /// Secret with the certificate that backends are shown.
    pub(crate) identity: Option<SecretRef>,
    /// For HTTPS listeners of ports that are not in the next.
    pub(crate) default: Option<ValidationDraft>,
    /// By port; none: its clients are asked for nothing.
    pub(crate) ports: BTreeMap<Port, (Source, Option<ValidationDraft>)>,
}

/// How clients are checked.
pub(crate) struct ValidationDraft {
    pub(crate) source: Source,
    pub(crate) authorities: Vec<AuthorityRef>,
    pub(crate) demand: ClientDemand,
    pub(crate) accepted: AcceptedCertificates,
    pub(crate) revocations: Option<RevocationDraft>,
}

/// Lists of revoked certificates that are not resolved.
pub(crate) struct RevocationDraft {
    pub(crate) references: Vec<AuthorityRef>,
    pub(crate) leaf_only: bool,
}

/// Reads the field.
pub(super) fn read(field: &Field<'_>, meta: &Meta) -> Option<GatewayTlsDraft> {
    let mut object = field.object()?;
    let backend = object.optional("backend");
    let frontend = object.optional("frontend");
    object.finish();
    let mut draft = GatewayTlsDraft::default();
    if let Some(mut backend) = backend.and_then(|field| field.object()) {
        draft.identity = backend
            .optional("clientCertificateRef")
            .and_then(|field| secret(&field, meta));
        backend.finish();
    }
    if let Some(mut frontend) = frontend.and_then(|field| field.object()) {
        draft.default = frontend
            .required("default")
            .and_then(|field| validation(&field, meta));
        let ports = frontend.optional("perPort");
        for item in ports
            .map(|field| field.limited_list(MAX_PORTS))
            .unwrap_or_default()
        {
            port(&item, meta, &mut draft);
        }
        frontend.finish();
    }
    Some(draft)
}

fn port(item: &Field<'_>, meta: &Meta, draft: &mut GatewayTlsDraft) {
    let Some(mut object) = item.object() else {
        return;
    };
    let port = object.required("port").and_then(|field| field.port());
    let tls = object.required("tls");
    object.finish();
    let (Some(port), Some(tls)) = (port, tls) else {
        return;
    };
    let validation = validation(&tls, meta);
    if draft.ports.contains_key(&port) {
        item.mistake(format_args!("port {port} is in the list already"));
        return;
    }
    draft
        .ports
        .insert(port, (item.source().clone(), validation));
}

/// Without `validation` nothing is asked.
fn validation(field: &Field<'_>, meta: &Meta) -> Option<ValidationDraft> {
    let mut object = field.object()?;
    let validation = object.optional("validation");
    object.finish();
    let validation = validation?;
    let mut object = validation.object()?;
    let authorities = object
        .required("caCertificateRefs")
        .and_then(|field| references(&field, meta));
    let demand = match object.optional("mode") {
        Some(field) => field.choice(&[
            ("AllowValidOnly", ClientDemand::Required),
            ("AllowInsecureFallback", ClientDemand::Fallback),
        ]),
        None => Some(ClientDemand::Required),
    };
    object.finish();
    Some(ValidationDraft {
        source: validation.source().clone(),
        authorities: authorities?,
        demand: demand?,
        accepted: AcceptedCertificates::default(),
        revocations: None,
    })
}
