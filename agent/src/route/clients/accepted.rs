//! Certificates that are good beside being signed by an authority: those that a policy lists by hash or name.

use std::sync::Arc;

use rustls::client::danger::HandshakeSignatureValid;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, OtherError, SignatureScheme,
};
use rustls_pki_types::{CertificateDer, UnixTime};
use sha2::{Digest, Sha256};
use snapshot::model::{AcceptedCertificates, NameKind};
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::route::trust::names;

/// Lets those pass whom `inner` lets pass, if their certificate is one of these.
#[derive(Debug)]
pub(super) struct Accepting {
    inner: Arc<dyn ClientCertVerifier>,
    accepted: AcceptedCertificates,
}

/// A good certificate of somebody else.
#[derive(thiserror::Error)]
#[error("{0}")]
struct NotListed(&'static str);

/// As rustls shows it to people.
impl std::fmt::Debug for NotListed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{self}")
    }
}

impl Accepting {
    pub(super) fn new(inner: Arc<dyn ClientCertVerifier>, accepted: &AcceptedCertificates) -> Self {
        Self {
            inner,
            accepted: accepted.clone(),
        }
    }

    /// Whether a certificate or its key has one of the hashes.
    fn is_known(&self, leaf: &CertificateDer<'_>) -> bool {
        let AcceptedCertificates {
            certificates, keys, ..
        } = &self.accepted;
        if certificates.is_empty() && keys.is_empty() {
            return true;
        }
        let digest = |bytes: &[u8]| -> [u8; 32] { Sha256::digest(bytes).into() };
        if certificates.contains(&digest(leaf)) {
            return true;
        }
        // One that cannot be read has no key that is known.
        X509Certificate::from_der(leaf)
            .is_ok_and(|(_, parsed)| keys.contains(&digest(parsed.public_key().raw)))
    }

    /// Whether it has one of the names.
    fn is_named(&self, leaf: &CertificateDer<'_>) -> bool {
        if self.accepted.names.is_empty() {
            return true;
        }
        // One whose names cannot be read has none that is wanted.
        let names = names(leaf).unwrap_or_default();
        let addresses: Vec<String> = names.addresses.iter().map(ToString::to_string).collect();
        self.accepted.names.iter().any(|wanted| {
            let own = match wanted.kind {
                NameKind::Dns => &names.hosts,
                NameKind::Email => &names.emails,
                NameKind::Address => &addresses,
                NameKind::Uri => &names.uris,
            };
            own.iter().any(|name| wanted.text.fits(name))
        })
    }
}

impl ClientCertVerifier for Accepting {
    fn offer_client_auth(&self) -> bool {
        self.inner.offer_client_auth()
    }

    fn client_auth_mandatory(&self) -> bool {
        self.inner.client_auth_mandatory()
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.inner.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        let verified = self
            .inner
            .verify_client_cert(end_entity, intermediates, now)?;
        let why = if !self.is_known(end_entity) {
            "it has none of the hashes that the policy lists"
        } else if !self.is_named(end_entity) {
            "it has none of the names that the policy lists"
        } else {
            return Ok(verified);
        };
        let error = CertificateError::Other(OtherError(Arc::new(NotListed(why))));
        Err(rustls::Error::InvalidCertificate(error))
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.inner
            .verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.inner
            .verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}
