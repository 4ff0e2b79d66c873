//! Whom a listener believes to be who their certificates say.
//!
//! Flows in: what a gateway says of its clients (`tls.frontend`), or the policy of a listener. Flows out: settings of handshakes, and the
//! names of certificates that were verified; nothing else of a client's certificate ever leaves here.

use std::sync::Arc;

use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::{
    DigitallySignedStruct, DistinguishedName, RootCertStore, ServerConfig, SignatureScheme,
};
use rustls_pki_types::{CertificateDer, UnixTime};
use sha2::{Digest, Sha256};
use snapshot::model::{Authorities, ClientDemand, ClientValidation};

use super::client::Handshakes;
use super::trust::{Names, names};

mod accepted;

use accepted::Accepting;

/// What a listener asks of its clients.
pub struct ClientTrust {
    digest: [u8; 32],
    demand: ClientDemand,
    checked: Result<Checked, Arc<str>>,
}

struct Checked {
    verifier: Arc<dyn ClientCertVerifier>,
    /// What handshakes ask.
    asked: Arc<dyn ClientCertVerifier>,
    settings: ServerConfig,
}

impl ClientTrust {
    /// Compiles what a gateway says.
    pub(crate) fn new(model: &ClientValidation, handshakes: &Handshakes) -> anyhow::Result<Self> {
        let ClientValidation {
            declared: _,
            authorities,
            demand,
            accepted,
            revocations,
        } = model;
        let said = format!("{:?}", (authorities, demand, accepted, revocations));
        let checked = match authorities {
            Authorities::Missing(why) => Err(why.as_str().into()),
            Authorities::These(certificates) => Ok(checked(certificates, model, handshakes)?),
        };
        Ok(Self {
            digest: Sha256::digest(said).into(),
            demand: *demand,
            checked,
        })
    }

    /// Settings of handshakes, or why there are none to be made. No session is resumed: a certificate is verified
    /// at every handshake, by the authorities of its time, and no ticket of a listener that asks for less is worth
    /// anything here.
    pub(crate) fn settings(&self) -> Result<&ServerConfig, &Arc<str>> {
        self.checked.as_ref().map(|checked| &checked.settings)
    }

    /// What handshakes ask of clients, or why there are none to be made.
    pub(crate) fn asked(&self) -> Result<&Arc<dyn ClientCertVerifier>, &Arc<str>> {
        self.checked.as_ref().map(|checked| &checked.asked)
    }

    /// The names of a client whose handshake is over, if it has a good certificate.
    pub(crate) fn verified(&self, chain: &[CertificateDer<'_>]) -> Option<Names> {
        let (leaf, others) = chain.split_first()?;
        let checked = self.checked.as_ref().ok()?;
        if self.demand == ClientDemand::Fallback {
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
            .field("demand", &self.demand)
            .finish_non_exhaustive()
    }
}

fn checked(
    certificates: &[CertificateDer<'static>],
    model: &ClientValidation,
    handshakes: &Handshakes,
) -> anyhow::Result<Checked> {
    let mut roots = RootCertStore::empty();
    for one in certificates {
        roots.add(one.clone())?;
    }
    let provider = Arc::clone(handshakes.provider());
    let builder = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
    let mut builder = match model.demand {
        ClientDemand::Required | ClientDemand::Fallback => builder,
        ClientDemand::IfGiven => builder.allow_unauthenticated(),
    };
    if let Some(revocations) = &model.revocations {
        // Of an issuer without a list, and of a list that is out of date, nobody knows what is revoked.
        builder = builder
            .with_crls(revocations.lists.iter().cloned())
            .enforce_revocation_expiration();
        if revocations.leaf_only {
            builder = builder.only_check_end_entity_revocation();
        }
    }
    let mut verifier = builder.build()?;
    if !model.accepted.is_every() {
        verifier = Arc::new(Accepting::new(verifier, &model.accepted));
    }
    let asked: Arc<dyn ClientCertVerifier> = match model.demand {
        ClientDemand::Required | ClientDemand::IfGiven => Arc::clone(&verifier),
        ClientDemand::Fallback => Arc::new(Lenient(Arc::clone(&verifier))),
    };
    let mut settings = handshakes.settings(Arc::clone(&asked))?;
    settings.session_storage = Arc::new(NoServerSessionStorage {});
    settings.send_tls13_tickets = 0;
    Ok(Checked {
        verifier,
        asked,
        settings,
    })
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
