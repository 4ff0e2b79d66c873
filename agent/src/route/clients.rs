//! Whom a listener believes to be who their certificates say.
//!
//! Flows in: what a gateway says of its clients (`tls.frontend`). Flows out: settings of handshakes, and the
//! names of certificates that were verified; nothing else of a client's certificate ever leaves here.

use std::sync::Arc;

use rustls::crypto::aws_lc_rs;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{NoServerSessionStorage, ResolvesServerCertUsingSni, WebPkiClientVerifier};
use rustls::{
    DigitallySignedStruct, DistinguishedName, RootCertStore, ServerConfig, SignatureScheme,
};
use rustls_pki_types::{CertificateDer, UnixTime};
use sha2::{Digest, Sha256};
use snapshot::model::{Authorities, ClientValidation};

use super::trust::{Names, names};

/// What a listener asks of its clients.
pub struct ClientTrust {
    digest: [u8; 32],
    required: bool,
    checked: Result<Checked, Arc<str>>,
}

struct Checked {
    verifier: Arc<dyn ClientCertVerifier>,
    settings: ServerConfig,
}

impl ClientTrust {
    /// Compiles what a gateway says.
    pub fn new(model: &ClientValidation) -> anyhow::Result<Self> {
        let said = format!("{:?}", (&model.authorities, model.required));
        let checked = match &model.authorities {
            Authorities::Missing(why) => Err(why.as_str().into()),
            Authorities::These(certificates) => Ok(checked(certificates, model.required)?),
        };
        Ok(Self {
            digest: Sha256::digest(said).into(),
            required: model.required,
            checked,
        })
    }

    /// Settings of handshakes, or why there are none to be made. No session is resumed: a certificate is verified
    /// at every handshake, by the authorities of its time, and no ticket of a listener that asks for less is worth
    /// anything here.
    pub(crate) fn settings(&self) -> Result<&ServerConfig, &Arc<str>> {
        self.checked.as_ref().map(|checked| &checked.settings)
    }

    /// The names of a client whose handshake is over, if it has a good certificate.
    pub(crate) fn verified(&self, chain: &[CertificateDer<'_>]) -> Option<Names> {
        let (leaf, others) = chain.split_first()?;
        let checked = self.checked.as_ref().ok()?;
        if !self.required {
            // The handshake took it as it was.
            let now = UnixTime::now();
            checked
                .verifier
                .verify_client_cert(leaf, others, now)
                .ok()?;
        }
        names(leaf)
    }
}

impl PartialEq for ClientTrust {
    fn eq(&self, other: &Self) -> bool {
        self.digest == other.digest
    }
}

impl std::fmt::Debug for ClientTrust {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ClientTrust")
            .field("required", &self.required)
            .finish_non_exhaustive()
    }
}

fn checked(certificates: &[CertificateDer<'static>], required: bool) -> anyhow::Result<Checked> {
    let mut roots = RootCertStore::empty();
    for one in certificates {
        roots.add(one.clone())?;
    }
    let provider = Arc::new(aws_lc_rs::default_provider());
    let verifier =
        WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
            .build()?;
    let asked: Arc<dyn ClientCertVerifier> = match required {
        true => Arc::clone(&verifier),
        false => Arc::new(Lenient(Arc::clone(&verifier))),
    };
    let mut settings = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_client_cert_verifier(asked)
        // Each handshake brings its own.
        .with_cert_resolver(Arc::new(ResolvesServerCertUsingSni::new()));
    settings.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    settings.session_storage = Arc::new(NoServerSessionStorage {});
    settings.send_tls13_tickets = 0;
    Ok(Checked { verifier, settings })
}

/// Asks for a certificate and lets everybody pass who has the key of the one that he shows, or shows none (Gateway
/// API, `AllowInsecureFallback`).
#[derive(Debug)]
struct Lenient(Arc<dyn ClientCertVerifier>);

impl ClientCertVerifier for Lenient {
    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        // Whoever has another authority's is to show it all the same.
        &[]
    }

    fn verify_client_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        self.0
            .verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        self.0
            .verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_verify_schemes()
    }
}
