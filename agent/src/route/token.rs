//! Tokens: verification (RFC 7515, 7519) and what they say.
//!
//! Flows in: a compact JWS, keys, a time. Flows out: its claims, or why it is not good. Algorithms and
//! keys come from the provider's configuration, never from the token. A token must carry `exp`; `exp` and
//! `nbf` are checked with a leeway of [`LEEWAY`] seconds for clocks that disagree. Claims are believed only
//! after the signature holds; before that `iss` alone is read, to tell whose keys to ask.
//! What it deliberately does not do: no clock of its own, and no fetching of keys.

use std::borrow::Cow;
use std::sync::Arc;

use serde_json::{Map, Value};
use snapshot::model::{
    Algorithm, ClaimRequirement, ClaimShape, CredentialPlace, JwtProvider, Name, ProviderKeys,
    RemoteKeys, ScopeClaims, TokenRequirement,
};

mod jws;
mod keys;

pub use keys::{KeyError, KeySet};

use jws::Jws;

/// Seconds that clocks may disagree.
pub const LEEWAY: u64 = 30;

/// Longest token in bytes; longer ones are refused unread.
pub const MAX_TOKEN: usize = 16 * 1024;

/// Where the keys of providers are found that are fetched.
pub trait FetchedKeys {
    /// The keys of a provider, if there are any that may still be used.
    fn find(&self, remote: &RemoteKeys) -> Option<Arc<KeySet>>;
}

/// Where nothing is fetched: providers have their keys out of the documents, or none.
impl FetchedKeys for () {
    fn find(&self, _: &RemoteKeys) -> Option<Arc<KeySet>> {
        None
    }
}

/// A token provider, ready to verify.
#[derive(Debug)]
pub struct Provider {
    pub(crate) name: Name,
    issuer: Option<String>,
    audiences: Vec<String>,
    algorithms: Vec<Algorithm>,
    keys: Keys,
    pub(crate) places: Vec<CredentialPlace>,
}

#[derive(Debug)]
enum Keys {
    Local(Arc<KeySet>),
    Remote(Arc<RemoteKeys>),
}

/// A provider whose keys cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("provider `{provider}` cannot be used")]
pub struct ProviderError {
    provider: Name,
    #[source]
    source: KeyError,
}

/// Why a request carries no good token. The texts are Envoy's, which clients know.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// No token at all.
    #[error("Jwt is missing")]
    Missing,
    /// Tokens that differ at the places of one provider, or more than one line of one header.
    #[error("Jwt is ambiguous")]
    Ambiguous,
    /// Its `exp` is over.
    #[error("Jwt is expired")]
    Expired,
    /// Anything else; the reason is for the log only.
    #[error("Jwt verification fails")]
    Invalid(&'static str),
    /// The signature cannot be checked: the keys were never fetched, or are too old.
    #[error("Jwks remote fetch is failed")]
    NoKeys,
    /// No key has its `kid`; perhaps the provider has new ones.
    #[error("Jwt verification fails")]
    UnknownKey,
}

/// A verified token.
pub struct Verified {
    provider: Name,
    claims: Map<String, Value>,
    /// Seconds since 1970 from which on it is no longer good.
    until: f64,
    keys: Arc<KeySet>,
}

impl std::fmt::Debug for Verified {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Claims are about people.
        f.debug_struct("Verified")
            .field("provider", &self.provider)
            .finish_non_exhaustive()
    }
}

impl Provider {
    /// Takes a provider of the snapshot.
    pub fn new(provider: &JwtProvider) -> Result<Self, ProviderError> {
        let keys = match &provider.keys {
            ProviderKeys::Local(keys) => {
                let keys = KeySet::new(keys).map_err(|source| ProviderError {
                    provider: provider.name.clone(),
                    source,
                })?;
                Keys::Local(Arc::new(keys))
            }
            ProviderKeys::Remote(remote) => Keys::Remote(Arc::clone(remote)),
        };
        Ok(Self {
            name: provider.name.clone(),
            issuer: provider.issuer.clone(),
            audiences: provider.audiences.clone(),
            algorithms: provider.algorithms.clone(),
            keys,
            places: provider.places.clone(),
        })
    }

    /// Its fetched key set, if its keys are not in the documents.
    pub fn remote(&self) -> Option<&Arc<RemoteKeys>> {
        match &self.keys {
            Keys::Local(_) => None,
            Keys::Remote(remote) => Some(remote),
        }
    }

    /// The keys that count now.
    pub(crate) fn current(&self, fetched: &dyn FetchedKeys) -> Option<Arc<KeySet>> {
        match &self.keys {
            Keys::Local(keys) => Some(Arc::clone(keys)),
            Keys::Remote(remote) => fetched.find(remote),
        }
    }

    /// Verifies a token; `now` is in seconds since 1970.
    pub fn verify(
        &self,
        token: &str,
        fetched: &dyn FetchedKeys,
        now: u64,
    ) -> Result<Verified, TokenError> {
        let jws = Jws::read(token)?;
        let claims: Map<String, Value> = jws.claims()?;
        // Somebody else's token: this provider's keys need not be asked.
        if let Some(issuer) = &self.issuer
            && claims.get("iss").and_then(Value::as_str) != Some(issuer)
        {
            return Err(TokenError::Invalid("wrong issuer"));
        }
        let keys = self.current(fetched).ok_or(TokenError::NoKeys)?;
        keys.check(&jws, &self.algorithms)?;
        let until = self.check(&claims, now)?;
        Ok(Verified {
            provider: self.name.clone(),
            claims,
            until,
            keys,
        })
    }

    /// Checks the signature of a compact JWS with the keys that fit its algorithm and `kid`; claims
    /// are not looked at. For providers whose keys are in the documents.
    pub fn signature(&self, token: &str) -> Result<(), TokenError> {
        match &self.keys {
            Keys::Local(keys) => keys.check(&Jws::read(token)?, &self.algorithms),
            Keys::Remote(_) => Err(TokenError::NoKeys),
        }
    }

    /// Checks the claims; answers with the end of the token's life.
    fn check(&self, claims: &Map<String, Value>, now: u64) -> Result<f64, TokenError> {
        let time = |name: &str| match claims.get(name) {
            None => Ok(None),
            // RFC 7519, section 2: NumericDate may have a fraction.
            Some(value) => value
                .as_f64()
                .filter(|seconds| seconds.is_finite())
                .map(Some)
                .ok_or(TokenError::Invalid("a time claim is not a number")),
        };
        let until = time("exp")?.ok_or(TokenError::Invalid("`exp` is missing"))? + LEEWAY as f64;
        if now as f64 >= until {
            return Err(TokenError::Expired);
        }
        if time("nbf")?.is_some_and(|at| at > (now + LEEWAY) as f64) {
            return Err(TokenError::Invalid("not valid yet"));
        }
        let ours = |value: &Value| {
            value
                .as_str()
                .is_some_and(|text| self.audiences.iter().any(|one| one == text))
        };
        let named = match claims.get("aud") {
            Some(Value::Array(list)) => list.iter().any(ours),
            Some(value) => ours(value),
            None => false,
        };
        if !self.audiences.is_empty() && !named {
            return Err(TokenError::Invalid("wrong audience"));
        }
        Ok(until)
    }
}

impl AsRef<Self> for Verified {
    fn as_ref(&self) -> &Self {
        self
    }
}

impl Verified {
    /// The provider that it is from.
    pub fn provider(&self) -> &Name {
        &self.provider
    }

    /// Subject of the token.
    pub fn subject(&self) -> Option<&str> {
        self.claims.get("sub").and_then(Value::as_str)
    }

    /// Whether it is good at a time, if it was verified before; `keys` are those of its provider now.
    pub(crate) fn still_good(&self, keys: Option<&Arc<KeySet>>, now: u64) -> bool {
        (now as f64) < self.until && keys.is_some_and(|keys| Arc::ptr_eq(keys, &self.keys))
    }

    /// Whether it says all that is asked.
    pub(crate) fn meets(&self, wanted: &TokenRequirement) -> bool {
        wanted.provider == self.provider
            && wanted
                .scopes
                .iter()
                .all(|scope| self.has_scope(scope, wanted.scope_claims))
            && wanted.claims.iter().all(|claim| self.has_claim(claim))
    }

    /// A claim by its dotted path.
    fn claim(&self, path: &str) -> Option<&Value> {
        // A claim may have dots in its own name, such as a URL.
        self.claims.get(path).or_else(|| {
            let mut parts = path.split('.');
            let first = self.claims.get(parts.next()?)?;
            parts.try_fold(first, |value, part| value.get(part))
        })
    }

    /// The text of a claim that is a text or a whole number.
    pub fn claim_text(&self, path: &str) -> Option<Cow<'_, str>> {
        match self.claim(path)? {
            Value::String(text) => Some(Cow::Borrowed(text)),
            Value::Number(number) if number.is_i64() || number.is_u64() => {
                Some(Cow::Owned(number.to_string()))
            }
            _ => None,
        }
    }

    /// Each claim is a list or separated by blanks.
    fn has_scope(&self, wanted: &str, claims: ScopeClaims) -> bool {
        let names: &[&str] = match claims {
            ScopeClaims::ScopeAndScp => &["scope", "scp"],
            ScopeClaims::Scope => &["scope"],
        };
        names
            .iter()
            .filter_map(|name| self.claims.get(*name))
            .any(|value| match value {
                Value::String(text) => text.split(' ').any(|scope| scope == wanted),
                Value::Array(list) => list.iter().any(|scope| scope.as_str() == Some(wanted)),
                _ => false,
            })
    }

    fn has_claim(&self, wanted: &ClaimRequirement) -> bool {
        let accepted = |value: &Value| {
            value
                .as_str()
                .is_some_and(|text| wanted.values.iter().any(|one| one == text))
        };
        match (self.claim(&wanted.name), wanted.shape) {
            (Some(Value::Array(list)), ClaimShape::List | ClaimShape::Either) => {
                list.iter().any(accepted)
            }
            (Some(value), ClaimShape::Text | ClaimShape::Either) => accepted(value),
            _ => false,
        }
    }

    /// A claim as text, if it is a text, a number or a truth value.
    pub(crate) fn text(&self, name: &str) -> Option<String> {
        match self.claim(name)? {
            Value::String(text) => Some(text.clone()),
            Value::Number(number) => Some(number.to_string()),
            Value::Bool(value) => Some(value.to_string()),
            Value::Null | Value::Array(_) | Value::Object(_) => None,
        }
    }
}
