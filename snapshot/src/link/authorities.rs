//! Certificates of authorities: out of the objects that documents name.
//!
//! One that is not there, or holds something else, does not refuse the documents: it may come later, as
//! certificates are renewed. Until then nobody is believed.

use std::collections::BTreeMap;

use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;

use super::context::Fault;
use super::grants::{self, Grants};
use crate::document::authorities::{AuthorityRef, Holder};
use crate::document::secret::SecretDraft;
use crate::document::{Kind, Table};
use crate::model::{Authorities, ObjectName};
use crate::reader::Sink;
use crate::status::Reason;

/// Key under which certificates of authorities are (Gateway API, `caCertificateRefs`).
const KEY: &str = "ca.crt";

/// Values of `ConfigMap`s by key.
pub(super) type ConfigMaps = Table<BTreeMap<String, Vec<u8>>>;

/// Where references lead to.
pub(super) struct Holders<'a> {
    pub(super) grants: &'a Grants,
    pub(super) config_maps: &'a ConfigMaps,
    pub(super) secrets: &'a Table<SecretDraft>,
    pub(super) sink: &'a Sink,
}

/// Certificates that were found, and what is wrong with the first reference that leads to none.
pub(super) struct Found {
    pub(super) authorities: Authorities,
    pub(super) fault: Option<Fault>,
}

impl Holders<'_> {
    /// The certificates of all references of a document of kind and namespace. `consequence` is what it means that there
    /// are none.
    pub(super) fn authorities(
        &self,
        references: &[AuthorityRef],
        from: (Kind, &str),
        consequence: &str,
    ) -> Found {
        let mut all = Vec::new();
        let mut first = None;
        for reference in references {
            match self.certificates(reference, from) {
                Ok(certificates) => all.extend(certificates),
                Err(fault) => {
                    let source = reference.source.clone();
                    match fault.reason {
                        // It may come later, as certificates are renewed.
                        Reason::InvalidCACertificateRef => self
                            .sink
                            .warning(source, format_args!("{}; {consequence}", fault.message)),
                        _ => self.sink.mistake(source, &fault.message),
                    }
                    first.get_or_insert(fault);
                }
            }
        }
        Found {
            authorities: match &first {
                Some(fault) => Authorities::Missing(fault.message.clone()),
                None => Authorities::These(all),
            },
            fault: first,
        }
    }

    fn certificates(
        &self,
        reference: &AuthorityRef,
        from: (Kind, &str),
    ) -> Result<Vec<CertificateDer<'static>>, Fault> {
        let (holder, name) = match &reference.holder {
            Ok((holder, name)) => (holder, name),
            Err(why) => return Err(Fault::new(Reason::InvalidCACertificateKind, why)),
        };
        let kind = match holder {
            Holder::ConfigMap => "ConfigMap",
            Holder::Secret => "Secret",
        };
        if !self.grants.permit(from, ("", kind), name) {
            return Err(Fault::new(
                Reason::RefNotPermitted,
                grants::refusal(kind, name),
            ));
        }
        self.pem(*holder, name)
            .and_then(|pem| {
                let pem = pem.ok_or_else(|| format!("`{kind}` {name} has no key `{KEY}`"))?;
                anchors(pem).map_err(|why| format!("`{KEY}` of `{kind}` {name} {why}"))
            })
            .map_err(|why| Fault::new(Reason::InvalidCACertificateRef, why))
    }

    fn pem(&self, holder: Holder, name: &ObjectName) -> Result<Option<&Vec<u8>>, String> {
        match holder {
            Holder::ConfigMap => match self.config_maps.get(name) {
                None => Err(format!("no `ConfigMap` {name}")),
                Some((_, None)) => Err(format!("`ConfigMap` {name} has mistakes")),
                Some((_, Some(values))) => Ok(values.get(KEY)),
            },
            Holder::Secret => match self.secrets.get(name) {
                None => Err(format!("no `Secret` {name}")),
                Some((_, None)) => Err(format!("`Secret` {name} has mistakes")),
                Some((_, Some(secret))) => Ok(match &**secret {
                    SecretDraft::Opaque(values) => values.get(KEY),
                    SecretDraft::Tls { authority, .. } => authority.as_ref(),
                }),
            },
        }
    }
}

/// Certificates in PEM form, each of which can be an anchor of trust.
fn anchors(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, &'static str> {
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    let certificates = certificates.map_err(|_| "holds a broken PEM block (RFC 7468)")?;
    if certificates.is_empty() {
        return Err("holds no PEM block `CERTIFICATE`");
    }
    let mut roots = rustls::RootCertStore::empty();
    for certificate in &certificates {
        roots
            .add(certificate.clone())
            .map_err(|_| "holds what is no X.509 certificate of an authority")?;
    }
    Ok(certificates)
}
