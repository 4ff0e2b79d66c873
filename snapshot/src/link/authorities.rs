//! Certificates of authorities, and what these revoked: out of the objects that documents name.
//!
//! One that is not there, or holds something else, does not refuse the documents: it may come later, as
//! certificates are renewed. Until then nobody is believed.

use std::collections::BTreeMap;

use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, CertificateRevocationListDer};

use super::context::Fault;
use super::grants::{self, Grants};
use crate::document::authorities::{AuthorityRef, Holder};
use crate::document::secret::SecretDraft;
use crate::document::{Kind, Table};
use crate::model::{Authorities, ObjectName};
use crate::reader::Sink;
use crate::status::Reason;

/// Key under which certificates of authorities are (Gateway API, `caCertificateRefs`).
const CERTIFICATES: &str = "ca.crt";

/// Key under which lists of revoked certificates are (Envoy Gateway, `CrlContext`).
const REVOCATIONS: &str = "ca.crl";

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
        match self.all(references, from, consequence, CERTIFICATES, anchors) {
            Ok(all) => Found {
                authorities: Authorities::These(all),
                fault: None,
            },
            Err(fault) => Found {
                authorities: Authorities::Missing(fault.message.clone()),
                fault: Some(fault),
            },
        }
    }

    /// The same for lists of revoked certificates.
    pub(super) fn revocations(
        &self,
        references: &[AuthorityRef],
        from: (Kind, &str),
        consequence: &str,
    ) -> Result<Vec<CertificateRevocationListDer<'static>>, Fault> {
        self.all(references, from, consequence, REVOCATIONS, lists)
    }

    /// What `read` finds under a key of all holders, or what is wrong with the first one.
    fn all<T>(
        &self,
        references: &[AuthorityRef],
        from: (Kind, &str),
        consequence: &str,
        key: &str,
        read: fn(&[u8]) -> Result<Vec<T>, &'static str>,
    ) -> Result<Vec<T>, Fault> {
        let mut all = Vec::new();
        let mut first = None;
        for reference in references {
            match self.one(reference, from, key, read) {
                Ok(found) => all.extend(found),
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
        first.map_or(Ok(all), Err)
    }

    fn one<T>(
        &self,
        reference: &AuthorityRef,
        from: (Kind, &str),
        key: &str,
        read: fn(&[u8]) -> Result<Vec<T>, &'static str>,
    ) -> Result<Vec<T>, Fault> {
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
        self.pem(*holder, name, key)
            .and_then(|pem| {
                let pem = pem.ok_or_else(|| format!("`{kind}` {name} has no key `{key}`"))?;
                read(pem).map_err(|why| format!("`{key}` of `{kind}` {name} {why}"))
            })
            .map_err(|why| Fault::new(Reason::InvalidCACertificateRef, why))
    }

    fn pem(
        &self,
        holder: Holder,
        name: &ObjectName,
        key: &str,
    ) -> Result<Option<&Vec<u8>>, String> {
        match holder {
            Holder::ConfigMap => match self.config_maps.get(name) {
                None => Err(format!("no `ConfigMap` {name}")),
                Some((_, None)) => Err(format!("`ConfigMap` {name} has mistakes")),
                Some((_, Some(values))) => Ok(values.get(key)),
            },
            Holder::Secret => match self.secrets.get(name) {
                None => Err(format!("no `Secret` {name}")),
                Some((_, None)) => Err(format!("`Secret` {name} has mistakes")),
                Some((_, Some(secret))) => Ok(match &**secret {
                    SecretDraft::Opaque(values) => values.get(key),
                    SecretDraft::Tls { beside, .. } => beside.get(key),
                }),
            },
        }
    }
}

/// Certificates in PEM form, each of which can be an anchor of trust.
fn anchors(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, &'static str> {
    let certificates: Vec<CertificateDer<'static>> =
        blocks(pem, "holds no PEM block `CERTIFICATE`")?;
    let mut roots = rustls::RootCertStore::empty();
    for certificate in &certificates {
        roots
            .add(certificate.clone())
            .map_err(|_| "holds what is no X.509 certificate of an authority")?;
    }
    Ok(certificates)
}

/// Lists of revoked certificates in PEM form.
fn lists(pem: &[u8]) -> Result<Vec<CertificateRevocationListDer<'static>>, &'static str> {
    blocks(pem, "holds no PEM block `X509 CRL`")
}

/// PEM blocks of one kind, of which there is at least one.
fn blocks<T: PemObject>(pem: &[u8], none: &'static str) -> Result<Vec<T>, &'static str> {
    let blocks: Result<Vec<T>, _> = T::pem_slice_iter(pem).collect();
    let blocks = blocks.map_err(|_| "holds a broken PEM block (RFC 7468)")?;
    match blocks.is_empty() {
        true => Err(none),
        false => Ok(blocks),
    }
}
