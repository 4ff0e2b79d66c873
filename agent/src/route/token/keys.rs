//! Public keys that are ready to check signatures (RFC 7518, section 3).

use aws_lc_rs::signature::{self, ParsedPublicKey, RsaPublicKeyComponents};
use data_encoding::BASE64URL_NOPAD;
use snapshot::model::{Algorithm, Key, KeyMaterial};

use super::TokenError;
use super::jws::Jws;

/// Keys of a provider.
pub struct KeySet {
    keys: Vec<VerifyKey>,
}

/// A key that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("key {position} cannot check `{algorithm}`: {reason}")]
pub struct KeyError {
    position: usize,
    algorithm: Algorithm,
    reason: String,
}

struct VerifyKey {
    id: Option<String>,
    /// One for each algorithm that the key fits and is not bound away from.
    parsed: Vec<(Algorithm, ParsedPublicKey)>,
}

impl std::fmt::Debug for KeySet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list()
            .entries(self.keys.iter().map(|key| &key.id))
            .finish()
    }
}

impl KeySet {
    /// Takes every key, or says which one cannot be used.
    pub fn new(keys: &[Key]) -> Result<Self, KeyError> {
        keys.iter()
            .enumerate()
            .map(|(position, key)| VerifyKey::new(position, key))
            .collect::<Result<_, _>>()
            .map(|keys| Self { keys })
    }

    /// Takes the keys that can be used of a set that is somebody else's.
    pub fn usable(keys: &[Key]) -> Self {
        let keys = keys.iter().enumerate();
        Self {
            keys: keys
                .filter_map(|(position, key)| VerifyKey::new(position, key).ok())
                .collect(),
        }
    }

    /// How many keys.
    pub fn len(&self) -> usize {
        self.keys.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    pub(super) fn check(&self, jws: &Jws<'_>, accepted: &[Algorithm]) -> Result<(), TokenError> {
        if !accepted.contains(&jws.algorithm) {
            return Err(TokenError::Invalid("its algorithm is not accepted"));
        }
        let named = |key: &&VerifyKey| jws.key_id.is_none() || key.id == jws.key_id;
        let mut tried = false;
        for key in self.keys.iter().filter(named) {
            let fitting = key.parsed.iter().find(|(one, _)| *one == jws.algorithm);
            if let Some((_, parsed)) = fitting {
                tried = true;
                if parsed
                    .verify_sig(jws.message.as_bytes(), &jws.signature)
                    .is_ok()
                {
                    return Ok(());
                }
            }
        }
        Err(match (tried, &jws.key_id) {
            (true, Some(_)) => TokenError::Invalid("signature does not hold"),
            // A token without `kid` may be of a key that is new, like one whose `kid` is not known.
            _ => TokenError::UnknownKey,
        })
    }
}

impl VerifyKey {
    fn new(position: usize, key: &Key) -> Result<Self, KeyError> {
        let mut parsed = Vec::new();
        for algorithm in Algorithm::ALL {
            let bound = key.algorithm.is_none_or(|own| own == algorithm);
            if bound && key.material.fits(algorithm) {
                let one = parse(&key.material, algorithm).map_err(|reason| KeyError {
                    position,
                    algorithm,
                    reason,
                })?;
                parsed.push((algorithm, one));
            }
        }
        Ok(Self {
            id: key.id.clone(),
            parsed,
        })
    }
}

fn parse(material: &KeyMaterial, algorithm: Algorithm) -> Result<ParsedPublicKey, String> {
    let bytes = |text: &str| {
        BASE64URL_NOPAD
            .decode(text.as_bytes())
            .map_err(|_| "expected base64url".to_owned())
    };
    let rejected = |error: aws_lc_rs::error::KeyRejected| error.to_string();
    match material {
        KeyMaterial::Rsa { n, e } => {
            let components = RsaPublicKeyComponents {
                n: bytes(n)?,
                e: bytes(e)?,
            };
            let parameters = match algorithm {
                Algorithm::Rs256 => &signature::RSA_PKCS1_2048_8192_SHA256,
                Algorithm::Rs384 => &signature::RSA_PKCS1_2048_8192_SHA384,
                Algorithm::Rs512 => &signature::RSA_PKCS1_2048_8192_SHA512,
                Algorithm::Ps256 => &signature::RSA_PSS_2048_8192_SHA256,
                Algorithm::Ps384 => &signature::RSA_PSS_2048_8192_SHA384,
                Algorithm::Ps512 => &signature::RSA_PSS_2048_8192_SHA512,
                other => return Err(format!("`{other}` is not of RSA")),
            };
            components
                .to_parsed_public_key(parameters)
                .map_err(rejected)
        }
        KeyMaterial::P256 { x, y } => {
            point(&bytes(x)?, &bytes(y)?, &signature::ECDSA_P256_SHA256_FIXED)
        }
        KeyMaterial::P384 { x, y } => {
            point(&bytes(x)?, &bytes(y)?, &signature::ECDSA_P384_SHA384_FIXED)
        }
        KeyMaterial::P521 { x, y } => {
            point(&bytes(x)?, &bytes(y)?, &signature::ECDSA_P521_SHA512_FIXED)
        }
        KeyMaterial::Ed25519 { x } => {
            ParsedPublicKey::new(&signature::ED25519, bytes(x)?).map_err(rejected)
        }
    }
}

/// A point in the uncompressed form of SEC 1, section 2.3.3.
fn point(
    x: &[u8],
    y: &[u8],
    algorithm: &'static signature::EcdsaVerificationAlgorithm,
) -> Result<ParsedPublicKey, String> {
    let mut bytes = vec![4];
    bytes.extend_from_slice(x);
    bytes.extend_from_slice(y);
    ParsedPublicKey::new(algorithm, bytes).map_err(|error| error.to_string())
}
