//! TLS beyond the certificates of listeners: whom the router believes at the other end, clients and upstreams.

use rustls_pki_types::{CertificateDer, CertificateRevocationListDer};

use super::{Declared, HostPattern, Hostname, StringMatch};

/// Authorities that a document names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Authorities {
    /// Their certificates; never empty, and each can be an anchor of trust.
    These(Vec<CertificateDer<'static>>),
    /// They are not to be had, and the text says why: nobody is believed.
    Missing(String),
}

/// How an upstream is reached over TLS (Gateway API, `BackendTLSPolicy`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UpstreamTls {
    /// The policy.
    pub declared: Declared,
    /// Server name that is sent. Without `names` also the name that the certificate must carry.
    pub hostname: Hostname,
    /// Names of which the certificate must carry one.
    pub names: Vec<SubjectName>,
    /// Who may have signed the certificate; none: the authorities of the node.
    pub authorities: Option<Authorities>,
}

/// A name in a certificate (RFC 5280, section 4.2.1.6).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SubjectName {
    /// A DNS name. A wildcard stands for itself and for every name that it covers.
    Host(HostPattern),
    /// A URI, compared byte for byte; SPIFFE names are such.
    Uri(String),
}

/// What listeners ask of their clients (Gateway API, `FrontendTLSValidation`; Envoy Gateway, `ClientValidationContext`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientValidation {
    /// Its document and field.
    pub declared: Declared,
    /// Who may have signed a client's certificate.
    pub authorities: Authorities,
    /// What becomes of those that have none.
    pub demand: ClientDemand,
    /// Which of the certificates that they signed are good.
    pub accepted: AcceptedCertificates,
    /// What they revoked; none: nobody looks.
    pub revocations: Option<Revocations>,
}

/// Which certificates are good; what is empty asks for nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AcceptedCertificates {
    /// SHA-256 of certificates and ..
    pub certificates: Vec<[u8; 32]>,
    /// .. of public keys (RFC 5280, section 4.1.2.7), of all of which one has to be the certificate's.
    pub keys: Vec<[u8; 32]>,
    /// Names of which it has to have one.
    pub names: Vec<NameMatch>,
}

impl AcceptedCertificates {
    /// Whether every certificate is.
    pub fn is_every(&self) -> bool {
        *self == Self::default()
    }
}

/// How an alternative name of a certificate looks (RFC 5280, section 4.2.1.6).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NameMatch {
    /// What kind of name.
    pub kind: NameKind,
    /// Its text: DNS names in lower case, addresses as they are usually written (RFC 5952).
    pub text: StringMatch,
}

/// Kinds of alternative names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NameKind {
    /// `dNSName`.
    Dns,
    /// `rfc822Name`.
    Email,
    /// `iPAddress`.
    Address,
    /// `uniformResourceIdentifier`.
    Uri,
}

/// Lists of revoked certificates (RFC 5280, section 5). A certificate whose issuer has none, and one that is out of date, is good
/// for nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Revocations {
    /// The lists; never empty.
    pub lists: Vec<CertificateRevocationListDer<'static>>,
    /// Whether a client's own certificate is looked for alone, and not those of authorities between it and the trusted one.
    pub leaf_only: bool,
}

/// What becomes of clients without a good certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClientDemand {
    /// They are turned away.
    Required,
    /// One that shows a bad certificate is turned away; one that shows none is served without.
    IfGiven,
    /// They are served as those that have none.
    Fallback,
}
