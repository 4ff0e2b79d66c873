//! Whom the router believes at the other end of a connection to an upstream, and whom it shows there.
//!
//! Flows in: what policies say (`BackendTLSPolicy`, and the client certificate of a gateway). Flows out:
//! settings of handshakes. What is compared is a digest of what was said, so that connections live on
//! while that stays the same, and are never shared beyond it.

use std::hash::{Hash, Hasher};
use std::net::IpAddr;
use std::sync::{Arc, OnceLock};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{
    ResolvesClientCert, WebPkiServerVerifier, verify_server_cert_signed_by_trust_anchor,
    verify_server_name,
};
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::server::ParsedCertificate;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, OtherError, RootCertStore,
    SignatureScheme,
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use sha2::{Digest, Sha256};
use snapshot::model::{Authorities, HostPattern, SubjectName, UpstreamTls};
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::prelude::{FromDer, X509Certificate};

/// Two are the same if their digests are: connections and sessions are shared by that.
macro_rules! same_by_digest {
    ($type:ty) => {
        impl PartialEq for $type {
            fn eq(&self, other: &Self) -> bool {
                self.digest == other.digest
            }
        }

        impl Eq for $type {}

        impl Hash for $type {
            fn hash<H: Hasher>(&self, state: &mut H) {
                self.digest.hash(state);
            }
        }
    };
}

/// The other end of a TLS connection to an upstream.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct TlsPeer {
    /// Server name that is sent, and, unless `trust` says otherwise, that its certificate must carry.
    pub name: ServerName<'static>,
    /// Who it may be; none: whomever the node trusts.
    pub trust: Option<Arc<UpstreamTrust>>,
    /// What the router shows when it is asked who it is.
    pub identity: Option<Arc<Identity>>,
    /// Whether HTTP is what TLS carries, and its version is asked for (ALPN).
    pub http: bool,
}

impl From<ServerName<'static>> for TlsPeer {
    fn from(name: ServerName<'static>) -> Self {
        Self {
            name,
            trust: None,
            identity: None,
            http: true,
        }
    }
}

/// Why an upstream cannot be checked.
#[derive(Debug, thiserror::Error)]
pub enum TrustError {
    /// The node has no certificates of authorities.
    #[error("the node has no certificates of authorities")]
    NoRoots,
    /// Those of the policy are not to be had.
    #[error("nobody is trusted: {0}")]
    Nobody(Arc<str>),
    /// They do not make a verifier.
    #[error("the policy's authorities cannot be used")]
    Unusable(#[from] rustls::Error),
}

/// Who an upstream may be, by one policy.
pub struct UpstreamTrust {
    digest: [u8; 32],
    roots: Roots,
    names: Vec<SubjectName>,
    config: OnceLock<Arc<ClientConfig>>,
}

enum Roots {
    /// Of the node.
    Node,
    Own(Arc<RootCertStore>),
    Nobody(Arc<str>),
}

impl UpstreamTrust {
    /// Compiles what a policy says.
    pub fn new(model: &UpstreamTls) -> Result<Self, rustls::Error> {
        // Texts in this form are quoted, and certificates tell their length.
        let said = format!("{:?}", (&model.hostname, &model.names, &model.authorities));
        let roots = match &model.authorities {
            None => Roots::Node,
            Some(Authorities::Missing(why)) => Roots::Nobody(why.as_str().into()),
            Some(Authorities::These(certificates)) => {
                let mut roots = RootCertStore::empty();
                for one in certificates {
                    roots.add(one.clone())?;
                }
                Roots::Own(Arc::new(roots))
            }
        };
        Ok(Self {
            digest: Sha256::digest(said).into(),
            roots,
            names: model.names.clone(),
            config: OnceLock::new(),
        })
    }

    /// Settings of handshakes, made at the first one. `node`: the authorities of the node.
    pub fn config(&self, node: Option<&Arc<RootCertStore>>) -> Result<&ClientConfig, TrustError> {
        if let Some(config) = self.config.get() {
            return Ok(config);
        }
        let roots = match &self.roots {
            Roots::Node => node.ok_or(TrustError::NoRoots)?,
            Roots::Own(roots) => roots,
            Roots::Nobody(why) => return Err(TrustError::Nobody(Arc::clone(why))),
        };
        let provider = Arc::new(aws_lc_rs::default_provider());
        let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()?;
        let config = match self.names.is_empty() {
            true => builder
                .with_root_certificates(Arc::clone(roots))
                .with_no_client_auth(),
            false => builder
                .dangerous()
                .with_custom_certificate_verifier(Arc::new(ByNames::new(
                    roots,
                    &self.names,
                    &provider,
                )?))
                .with_no_client_auth(),
        };
        Ok(self.config.get_or_init(|| Arc::new(config)))
    }
}

impl std::fmt::Debug for UpstreamTrust {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("UpstreamTrust")
            .field("names", &self.names)
            .finish_non_exhaustive()
    }
}

same_by_digest!(UpstreamTrust);

/// What the router shows to upstreams that ask.
pub struct Identity {
    digest: [u8; 32],
    /// The one resolver of this identity: sessions are resumed only by the one that they began with.
    pub(crate) resolver: Arc<dyn ResolvesClientCert>,
}

impl Identity {
    /// A certificate with its key.
    pub fn new(key: &Arc<CertifiedKey>) -> Self {
        let mut digest = Sha256::new();
        for certificate in &key.cert {
            digest.update(certificate.len().to_be_bytes());
            digest.update(certificate);
        }
        Self {
            digest: digest.finalize().into(),
            resolver: Arc::new(SingleCertAndKey::from(Arc::clone(key))),
        }
    }
}

impl std::fmt::Debug for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Identity").finish_non_exhaustive()
    }
}

same_by_digest!(Identity);

/// A server that has a good certificate with one of these names; the server name that was sent plays no part
/// (Gateway API, `subjectAltNames`).
#[derive(Debug)]
struct ByNames {
    roots: Arc<RootCertStore>,
    names: Vec<SubjectName>,
    provider: Arc<CryptoProvider>,
    /// For the signatures of handshakes, which have nothing to do with names.
    inner: Arc<WebPkiServerVerifier>,
}

/// A good certificate of somebody else.
#[derive(thiserror::Error)]
#[error("it has none of the names that the policy lists")]
struct NoName;

/// As rustls shows it to people.
impl std::fmt::Debug for NoName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{self}")
    }
}

impl ByNames {
    fn new(
        roots: &Arc<RootCertStore>,
        names: &[SubjectName],
        provider: &Arc<CryptoProvider>,
    ) -> Result<Self, rustls::Error> {
        let (roots, provider) = (Arc::clone(roots), Arc::clone(provider));
        let inner =
            WebPkiServerVerifier::builder_with_provider(Arc::clone(&roots), Arc::clone(&provider))
                .build()
                .map_err(|error| rustls::Error::General(error.to_string()))?;
        Ok(Self {
            roots,
            names: names.to_vec(),
            provider,
            inner,
        })
    }

    fn named(&self, leaf: &CertificateDer<'_>, parsed: &ParsedCertificate<'_>) -> bool {
        // One whose names cannot be read has none that is wanted.
        let names = names(leaf).unwrap_or_default();
        self.names.iter().any(|wanted| match wanted {
            SubjectName::Uri(uri) => names.uris.iter().any(|own| own == uri),
            SubjectName::Host(HostPattern::Exact(host)) => ServerName::try_from(host.as_str())
                .is_ok_and(|host| verify_server_name(parsed, &host).is_ok()),
            SubjectName::Host(pattern) => names
                .hosts
                .iter()
                .any(|own| *own == pattern.to_string() || pattern.covers(own)),
        })
    }
}

impl ServerCertVerifier for ByNames {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let parsed = ParsedCertificate::try_from(end_entity)?;
        let algorithms = self.provider.signature_verification_algorithms.all;
        verify_server_cert_signed_by_trust_anchor(
            &parsed,
            &self.roots,
            intermediates,
            now,
            algorithms,
        )?;
        if self.named(end_entity, &parsed) {
            return Ok(ServerCertVerified::assertion());
        }
        let error = CertificateError::Other(OtherError(Arc::new(NoName)));
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

/// Names of a certificate (RFC 5280, sections 4.1.2.6 and 4.2.1.6).
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Names {
    /// Common names of the subject.
    pub(crate) common: Vec<String>,
    /// DNS names, in lower case.
    pub(crate) hosts: Vec<String>,
    pub(crate) uris: Vec<String>,
    pub(crate) emails: Vec<String>,
    pub(crate) addresses: Vec<IpAddr>,
}

/// An address (RFC 5280, section 4.2.1.6); none: it has another length.
fn address(octets: &[u8]) -> Option<IpAddr> {
    let v4 = <[u8; 4]>::try_from(octets).map(IpAddr::from);
    v4.or_else(|_| <[u8; 16]>::try_from(octets).map(IpAddr::from))
        .ok()
}

/// The names of a certificate; none if a part of it cannot be read.
pub(crate) fn names(certificate: &CertificateDer<'_>) -> Option<Names> {
    let (rest, parsed) = X509Certificate::from_der(certificate).ok()?;
    if !rest.is_empty() {
        return None;
    }
    let mut names = Names::default();
    for common in parsed.subject().iter_common_name() {
        names.common.push(common.as_str().ok()?.to_owned());
    }
    for extension in parsed.extensions() {
        match extension.parsed_extension() {
            ParsedExtension::SubjectAlternativeName(alternative) => {
                for name in &alternative.general_names {
                    match name {
                        GeneralName::DNSName(name) => names.hosts.push(name.to_ascii_lowercase()),
                        GeneralName::URI(uri) => names.uris.push((*uri).to_owned()),
                        GeneralName::RFC822Name(name) => names.emails.push((*name).to_owned()),
                        GeneralName::IPAddress(octets) => names.addresses.push(address(octets)?),
                        _ => {}
                    }
                }
            }
            ParsedExtension::ParseError { .. } => return None,
            _ => {}
        }
    }
    Some(names)
}
