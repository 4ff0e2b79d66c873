//! Token providers and their keys.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use rustls_pki_types::CertificateDer;

use super::{CredentialPlace, Declared, Name, Port, UpstreamHost};

/// Who issues tokens, and how they are checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JwtProvider {
    /// Its document and field.
    pub declared: Declared,
    /// Its name.
    pub name: Name,
    /// Expected `iss`; not checked when absent.
    pub issuer: Option<String>,
    /// `aud` must be one of these; not checked when empty.
    pub audiences: Vec<String>,
    /// Accepted algorithms; never taken from the token, never empty.
    pub algorithms: Vec<Algorithm>,
    /// Its public keys.
    pub keys: ProviderKeys,
    /// Where its tokens are read from; never empty.
    pub places: Vec<CredentialPlace>,
    /// Headers that tell the upstream what a token says.
    pub claim_headers: Vec<ClaimHeader>,
    /// Whether the route is chosen again once these headers are set.
    pub recompute_route: bool,
}

impl JwtProvider {
    /// Where tokens are read from when nothing is said about it (RFC 6750, sections 2.1 and 2.3).
    pub fn usual_places() -> Vec<CredentialPlace> {
        vec![
            CredentialPlace::Header {
                name: "authorization".into(),
                prefix: "Bearer ".into(),
            },
            CredentialPlace::Query("access_token".into()),
        ]
    }
}

/// A header that is set to a claim. A client's own header of the name never passes.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ClaimHeader {
    /// Lower-case name.
    pub header: String,
    /// Dotted path of the claim.
    pub claim: String,
}

/// Where a provider's keys come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ProviderKeys {
    /// Out of the document; never empty.
    Local(Vec<Key>),
    /// Fetched and kept fresh by the agent. Providers that say the same share what is fetched.
    Remote(Arc<RemoteKeys>),
}

/// A key set that is fetched (RFC 7517, section 5).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct RemoteKeys {
    /// Where it is.
    pub uri: KeyUri,
    /// How long it is used before it is fetched again.
    pub cache: Duration,
    /// How long it is used while it cannot be fetched again.
    pub max_stale: Duration,
    /// Authorities that the server's certificate is checked with; none: those of the node.
    pub authorities: Option<Arc<[CertificateDer<'static>]>>,
}

/// An `http` or `https` URI without user information.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct KeyUri {
    /// Whether it is `https`.
    pub tls: bool,
    /// Host.
    pub host: UpstreamHost,
    /// Port.
    pub port: Port,
    /// Value of `Host`.
    pub authority: String,
    /// Path and query.
    pub target: String,
}

impl fmt::Display for KeyUri {
    /// Without the query, which may hold a key.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.tls { "https" } else { "http" };
        let path = self.target.split('?').next().unwrap_or_default();
        write!(f, "{scheme}://{}{path}", self.authority)
    }
}

/// Signature algorithms (RFC 7518, section 3.1; RFC 8037). Symmetric ones are no option for a
/// gateway, which would then hold the key that signs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Algorithm {
    /// RSASSA-PKCS1-v1_5 with SHA-256.
    Rs256,
    /// RSASSA-PKCS1-v1_5 with SHA-384.
    Rs384,
    /// RSASSA-PKCS1-v1_5 with SHA-512.
    Rs512,
    /// RSASSA-PSS with SHA-256.
    Ps256,
    /// RSASSA-PSS with SHA-384.
    Ps384,
    /// RSASSA-PSS with SHA-512.
    Ps512,
    /// ECDSA on P-256 with SHA-256.
    Es256,
    /// ECDSA on P-384 with SHA-384.
    Es384,
    /// ECDSA on P-521 with SHA-512.
    Es512,
    /// Ed25519.
    EdDsa,
}

impl Algorithm {
    /// All of them, for messages.
    pub const ALL: [Self; 10] = [
        Self::Rs256,
        Self::Rs384,
        Self::Rs512,
        Self::Ps256,
        Self::Ps384,
        Self::Ps512,
        Self::Es256,
        Self::Es384,
        Self::Es512,
        Self::EdDsa,
    ];

    /// The name in `alg`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Rs256 => "RS256",
            Self::Rs384 => "RS384",
            Self::Rs512 => "RS512",
            Self::Ps256 => "PS256",
            Self::Ps384 => "PS384",
            Self::Ps512 => "PS512",
            Self::Es256 => "ES256",
            Self::Es384 => "ES384",
            Self::Es512 => "ES512",
            Self::EdDsa => "EdDSA",
        }
    }
}

impl fmt::Display for Algorithm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// One public key of a provider (RFC 7517).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Key {
    /// `kid`; a token that names one is checked against that key only.
    pub id: Option<String>,
    /// `alg`, if the key is bound to one.
    pub algorithm: Option<Algorithm>,
    /// The key.
    pub material: KeyMaterial,
}

/// Parameters of a public key, each in base64url without padding as in the document, checked for
/// alphabet and length.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeyMaterial {
    /// RSA, at least 2048 bits.
    Rsa {
        /// Modulus.
        n: String,
        /// Exponent.
        e: String,
    },
    /// Curve P-256.
    P256 {
        /// Coordinate.
        x: String,
        /// Coordinate.
        y: String,
    },
    /// Curve P-384.
    P384 {
        /// Coordinate.
        x: String,
        /// Coordinate.
        y: String,
    },
    /// Curve P-521.
    P521 {
        /// Coordinate.
        x: String,
        /// Coordinate.
        y: String,
    },
    /// Ed25519.
    Ed25519 {
        /// Public key.
        x: String,
    },
}

impl KeyMaterial {
    /// Whether a signature of this algorithm can be checked with this key.
    pub fn fits(&self, algorithm: Algorithm) -> bool {
        use Algorithm::{EdDsa, Es256, Es384, Es512, Ps256, Ps384, Ps512, Rs256, Rs384, Rs512};
        match self {
            Self::Rsa { .. } => matches!(algorithm, Rs256 | Rs384 | Rs512 | Ps256 | Ps384 | Ps512),
            Self::P256 { .. } => algorithm == Es256,
            Self::P384 { .. } => algorithm == Es384,
            Self::P521 { .. } => algorithm == Es512,
            Self::Ed25519 { .. } => algorithm == EdDsa,
        }
    }
}
