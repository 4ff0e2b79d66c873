//! Key sets of token providers (RFC 7517).

use std::collections::BTreeSet;

use data_encoding::BASE64URL_NOPAD;

use crate::model::{Algorithm, Key, KeyMaterial, ProviderKeys};
use crate::reader::{Field, Object, Sink};
use crate::report::Source;
use crate::tree::{self, Form, Node, Value};

mod source;

pub(crate) use source::{RemoteOptions, key_source};

/// RSA moduli, in bytes without leading zeros: 2048 bits is what RFC 7518 (section 3.3) asks for at
/// least, 8192 bits is the largest key that the router's cryptography takes.
const RSA_BYTES: std::ops::RangeInclusive<usize> = 256..=1024;

/// Makes algorithms and keys agree: declared algorithms need a key each; without a declaration the
/// keys say which. Keys that are fetched are not known here, and are used for what they fit.
pub(crate) fn agree(
    keys: ProviderKeys,
    declared: Option<Vec<(Algorithm, Source)>>,
    object: &Object<'_>,
) -> Option<(ProviderKeys, Vec<Algorithm>)> {
    let served = |algorithm: Algorithm| match &keys {
        ProviderKeys::Local(keys) => keys.iter().any(|key| serves(key, algorithm)),
        ProviderKeys::Remote(_) => true,
    };
    let algorithms: Vec<Algorithm> = match declared {
        None => Algorithm::ALL
            .into_iter()
            .filter(|algorithm| served(*algorithm))
            .collect(),
        Some(declared) => declared
            .into_iter()
            .filter_map(|(algorithm, source)| {
                if served(algorithm) {
                    return Some(algorithm);
                }
                object.field().sink().mistake(
                    source,
                    format_args!("no key of the key set can check `{algorithm}`"),
                );
                None
            })
            .collect(),
    };
    (!algorithms.is_empty()).then_some((keys, algorithms))
}

fn serves(key: &Key, algorithm: Algorithm) -> bool {
    key.material.fits(algorithm) && key.algorithm.is_none_or(|bound| bound == algorithm)
}

/// Keys of a set at most: a fetched one is somebody else's text.
const MAX_KEYS: usize = 256;

/// What is wrong with a key set that was fetched.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeySetError {
    /// Not JSON, or not a key set.
    #[error("expected a JSON Web Key Set with a list `keys`")]
    Malformed,
    /// More keys than anybody has.
    #[error("expected at most {MAX_KEYS} keys, got {0}")]
    TooMany(usize),
    /// No key checks signatures.
    #[error("none of its {0} keys checks signatures")]
    Useless(usize),
}

/// Reads a key set that was fetched (RFC 7517, section 5). Unlike one in a document it is not refused
/// for a key that cannot be used: that key is left out.
pub fn fetched(bytes: &[u8]) -> Result<Vec<Key>, KeySetError> {
    let tree = tree::read(Form::Json, bytes)
        .into_iter()
        .next()
        .ok_or(KeySetError::Malformed)?;
    let root = tree.root.ok_or(KeySetError::Malformed)?;
    let Some(Value::List(items)) = root.value.get("keys").map(|node| &node.value) else {
        return Err(KeySetError::Malformed);
    };
    if items.len() > MAX_KEYS {
        return Err(KeySetError::TooMany(items.len()));
    }
    let keys: Vec<Key> = items.iter().filter_map(|item| key(item).ok()).collect();
    if keys.is_empty() {
        return Err(KeySetError::Useless(items.len()));
    }
    Ok(keys)
}

fn keys(text: &str, source: &Source, sink: &Sink) -> Option<Vec<Key>> {
    let tree = tree::read(Form::Json, text.as_bytes()).into_iter().next()?;
    for fault in &tree.faults {
        let field = match fault.field.as_str() {
            "" => source.field.to_string(),
            field => format!("{} {field}", source.field),
        };
        sink.mistake(
            source.at(field),
            format_args!("expected a JSON Web Key Set: {}", fault.message),
        );
    }
    let root = tree.root?;
    let root = Field::root(&root, source.clone(), sink);
    let Some(Value::List(items)) = root.value().get("keys").map(|node| &node.value) else {
        root.mistake("expected a JSON Web Key Set with a list `keys`");
        return None;
    };
    let mut ids = BTreeSet::new();
    let mut keys = Vec::new();
    for (index, item) in items.iter().enumerate() {
        let at = source.at(format!("{} keys[{index}]", source.field));
        match key(item) {
            Ok(key) => {
                if let Some(id) = &key.id
                    && !ids.insert(id.clone())
                {
                    sink.mistake(
                        at,
                        format_args!("`kid` {} is there twice", tree::shortened(id)),
                    );
                    continue;
                }
                keys.push(key);
            }
            Err(Refusal::Skipped(why)) => sink.warning(at, format_args!("key is not used: {why}")),
            Err(Refusal::Mistake(why)) => sink.mistake(at, why),
        }
    }
    Some(keys)
}

/// Numbers may be written with zeros in front; the router's cryptography refuses those.
fn without_zeros(bytes: &[u8]) -> &[u8] {
    let zeros = bytes.iter().take_while(|byte| **byte == 0).count();
    &bytes[zeros..]
}

enum Refusal {
    /// RFC 7517, section 5: sets may hold keys that a reader does not understand.
    Skipped(String),
    Mistake(String),
}

fn mistake<T>(why: impl Into<String>) -> Result<T, Refusal> {
    Err(Refusal::Mistake(why.into()))
}

fn key(node: &Node) -> Result<Key, Refusal> {
    let text = |name: &str| -> Result<Option<&str>, Refusal> {
        match node.value.get(name).map(|node| &node.value) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => mistake(format!("expected a text as `{name}`, got {other}")),
        }
    };
    let Value::Mapping(_) = node.value else {
        return mistake(format!("expected a key, got {}", node.value));
    };
    let Some(kind) = text("kty")? else {
        return mistake("`kty` is missing, and required");
    };
    if kind == "oct" {
        return mistake(
            "is a symmetric key: whoever checks tokens with it could also issue them; expected a public key",
        );
    }
    // RFC 7518, section 6: parameters of private keys.
    if ["d", "p", "q", "dp", "dq", "qi", "oth", "k"]
        .iter()
        .any(|name| node.value.get(name).is_some())
    {
        return mistake("contains a private key; expected the public part only");
    }
    if let Some(usage) = text("use")?
        && usage != "sig"
    {
        return Err(Refusal::Skipped(format!(
            "its `use` is `{}`, not `sig`",
            tree::shortened(usage)
        )));
    }
    let id = text("kid")?.map(str::to_owned);
    let bytes = |name: &str| -> Result<Vec<u8>, Refusal> {
        let Some(text) = text(name)? else {
            return mistake(format!("`{name}` is missing, and required"));
        };
        BASE64URL_NOPAD.decode(text.as_bytes()).map_err(|_| {
            Refusal::Mistake(format!("expected base64url without padding as `{name}`"))
        })
    };
    let coordinate = |name: &str, length: usize| -> Result<String, Refusal> {
        let given = bytes(name)?;
        if given.len() != length {
            return mistake(format!(
                "expected {length} bytes as `{name}`, got {}",
                given.len()
            ));
        }
        Ok(BASE64URL_NOPAD.encode(&given))
    };
    let material = match (kind, text("crv")?) {
        ("RSA", _) => {
            let (n, e) = (bytes("n")?, bytes("e")?);
            let (n, e) = (without_zeros(&n), without_zeros(&e));
            // A modulus of 256 bytes may still have fewer than 2048 bits.
            let short = n.len() == *RSA_BYTES.start() && n[0] < 0x80;
            if !RSA_BYTES.contains(&n.len()) || short {
                return mistake("expected an RSA modulus of 2048 to 8192 bits as `n`");
            }
            let odd = e.last().is_some_and(|last| last % 2 == 1);
            if !odd || e == [1] || e.len() > 4 {
                return mistake("expected an odd RSA exponent from 3 to 2^32 - 1 as `e`");
            }
            KeyMaterial::Rsa {
                n: BASE64URL_NOPAD.encode(n),
                e: BASE64URL_NOPAD.encode(e),
            }
        }
        ("EC", Some("P-256")) => KeyMaterial::P256 {
            x: coordinate("x", 32)?,
            y: coordinate("y", 32)?,
        },
        ("EC", Some("P-384")) => KeyMaterial::P384 {
            x: coordinate("x", 48)?,
            y: coordinate("y", 48)?,
        },
        ("EC", Some("P-521")) => KeyMaterial::P521 {
            x: coordinate("x", 66)?,
            y: coordinate("y", 66)?,
        },
        ("OKP", Some("Ed25519")) => KeyMaterial::Ed25519 {
            x: coordinate("x", 32)?,
        },
        (kind, curve) => {
            let curve = curve.map(|curve| format!(" on curve `{}`", tree::shortened(curve)));
            return Err(Refusal::Skipped(format!(
                "type `{}`{} is none of RSA, EC on P-256, P-384 or P-521, OKP on Ed25519",
                tree::shortened(kind),
                curve.unwrap_or_default()
            )));
        }
    };
    let algorithm = match text("alg")? {
        None => None,
        Some(given) => match Algorithm::ALL.iter().find(|known| known.as_str() == given) {
            Some(algorithm) if material.fits(*algorithm) => Some(*algorithm),
            Some(algorithm) => return mistake(format!("`alg` {algorithm} does not fit the key")),
            None => {
                return Err(Refusal::Skipped(format!(
                    "its `alg` `{}` is not known",
                    tree::shortened(given)
                )));
            }
        },
    };
    Ok(Key {
        id,
        algorithm,
        material,
    })
}
