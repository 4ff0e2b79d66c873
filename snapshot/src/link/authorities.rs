//! Certificates of authorities: out of the objects that documents name.
//!
//! One that is not there, or holds something else, does not refuse the documents: it may come later, as
//! certificates are renewed. Until then nobody is believed.

use std::collections::BTreeMap;

use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;

use crate::document::Table;
use crate::document::authorities::{AuthorityRef, Holder};
use crate::document::secret::SecretDraft;
use crate::model::Authorities;
use crate::reader::Sink;

/// Key under which certificates of authorities are (Gateway API, `caCertificateRefs`).
const KEY: &str = "ca.crt";

/// Values of `ConfigMap`s by key.
pub(super) type ConfigMaps = Table<BTreeMap<String, Vec<u8>>>;

/// Where references lead to.
pub(super) struct Holders<'a> {
    pub(super) config_maps: &'a ConfigMaps,
    pub(super) secrets: &'a Table<SecretDraft>,
    pub(super) sink: &'a Sink,
}

impl Holders<'_> {
    /// The certificates of all references. `consequence` is what it means that there are none.
    pub(super) fn authorities(
        &self,
        references: &[AuthorityRef],
        consequence: &str,
    ) -> Authorities {
        let mut all = Vec::new();
        let mut missing = None;
        for reference in references {
            match self.certificates(reference) {
                Ok(certificates) => all.extend(certificates),
                Err(why) => {
                    self.sink.warning(
                        reference.source.clone(),
                        format_args!("{why}; {consequence}"),
                    );
                    missing.get_or_insert(why);
                }
            }
        }
        match missing {
            Some(why) => Authorities::Missing(why),
            None => Authorities::These(all),
        }
    }

    fn certificates(
        &self,
        reference: &AuthorityRef,
    ) -> Result<Vec<CertificateDer<'static>>, String> {
        let name = &reference.name;
        let (kind, pem) = match reference.holder {
            Holder::ConfigMap => (
                "ConfigMap",
                match self.config_maps.get(name) {
                    None => return Err(format!("no `ConfigMap` {name}")),
                    Some((_, None)) => return Err(format!("`ConfigMap` {name} has mistakes")),
                    Some((_, Some(values))) => values.get(KEY),
                },
            ),
            Holder::Secret => (
                "Secret",
                match self.secrets.get(name) {
                    None => return Err(format!("no `Secret` {name}")),
                    Some((_, None)) => return Err(format!("`Secret` {name} has mistakes")),
                    Some((_, Some(secret))) => match &**secret {
                        SecretDraft::Opaque(values) => values.get(KEY),
                        SecretDraft::Tls { authority, .. } => authority.as_ref(),
                    },
                },
            ),
        };
        let pem = pem.ok_or_else(|| format!("`{kind}` {name} has no key `{KEY}`"))?;
        anchors(pem).map_err(|why| format!("`{KEY}` of `{kind}` {name} {why}"))
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
