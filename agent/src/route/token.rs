//! Tokens: extraction, verification (RFC 7515, 7519) and authorisation.
//!
//! Algorithms and keys come from the provider's configuration, never from the token. A token must
//! carry `exp`; `exp` and `nbf` are checked with a leeway of [`LEEWAY`] seconds for clocks that
//! disagree. Claims beyond these are read only after the signature holds.

use std::borrow::Cow;
use std::sync::Arc;

use http::{HeaderMap, header};
use jsonwebtoken::DecodingKey;
use serde_json::{Map, Value};
use snapshot::model::{
    Algorithm, Auth, AuthRule, ClaimRequirement, Decision, JwtProvider, Key, KeyMaterial, Name,
};

/// Seconds that clocks may disagree.
pub const LEEWAY: u64 = 30;

/// Longest token in bytes; longer ones are refused unread.
pub const MAX_TOKEN: usize = 16 * 1024;

/// A token provider, ready to verify.
#[derive(Debug)]
pub struct Provider {
    name: Name,
    issuer: Option<String>,
    audiences: Vec<String>,
    keys: Vec<VerifyKey>,
}

struct VerifyKey {
    id: Option<String>,
    algorithms: Vec<jsonwebtoken::Algorithm>,
    key: DecodingKey,
}

impl std::fmt::Debug for VerifyKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("VerifyKey")
            .field("id", &self.id)
            .field("algorithms", &self.algorithms)
            .finish_non_exhaustive()
    }
}

/// A provider whose keys cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("key {position} of provider `{provider}` cannot be used: {reason}")]
pub struct ProviderError {
    provider: Name,
    position: usize,
    reason: String,
}

/// Why a request carries no good token. The texts are Envoy's, which clients know.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// No token at all.
    #[error("Jwt is missing")]
    Missing,
    /// More than one token, and they differ, or more than one `Authorization`.
    #[error("Jwt is ambiguous")]
    Ambiguous,
    /// Its `exp` is over.
    #[error("Jwt is expired")]
    Expired,
    /// Anything else; the reason is for the log only.
    #[error("Jwt verification fails")]
    Invalid(&'static str),
}

/// A verified token.
#[derive(Clone, Debug)]
pub struct Verified {
    provider: Name,
    claims: Map<String, Value>,
}

/// Why a good token does not suffice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Denied {
    /// No rule could ever allow: the request matched no declared operation.
    NoOperation,
    /// Scopes or claims are missing, or a rule denies.
    Scope,
}

impl Provider {
    /// Takes the keys of a provider of the snapshot.
    pub fn new(provider: &JwtProvider) -> Result<Self, ProviderError> {
        let mut keys = Vec::with_capacity(provider.keys.len());
        for (position, key) in provider.keys.iter().enumerate() {
            keys.push(VerifyKey::new(key, &provider.algorithms).map_err(|reason| {
                ProviderError {
                    provider: provider.name.clone(),
                    position,
                    reason: reason.to_string(),
                }
            })?);
        }
        Ok(Self {
            name: provider.name.clone(),
            issuer: provider.issuer.clone(),
            audiences: provider.audiences.clone(),
            keys,
        })
    }

    fn verify(&self, token: &str, now: u64) -> Result<Verified, TokenError> {
        self.signature(token)?;
        // The signature holds, so its claims may be read.
        let claims: Map<String, Value> = jsonwebtoken::dangerous::insecure_decode_claims(token)
            .map_err(|_| TokenError::Invalid("claims cannot be read"))?;
        self.check(&claims, now)?;
        Ok(Verified {
            provider: self.name.clone(),
            claims,
        })
    }

    /// Checks the signature of a compact JWS with the keys that fit its algorithm and `kid`; claims
    /// are not looked at.
    pub fn signature(&self, token: &str) -> Result<(), TokenError> {
        let header = jsonwebtoken::decode_header(token)
            .map_err(|_| TokenError::Invalid("header is malformed or its algorithm unknown"))?;
        if header.crit.is_some() {
            return Err(TokenError::Invalid("`crit` extensions are not understood"));
        }
        let (message, signature) = token
            .rsplit_once('.')
            .ok_or(TokenError::Invalid("token has no signature"))?;
        let mut fitting = self.keys.iter().filter(|key| {
            let kid = header.kid.as_ref();
            key.algorithms.contains(&header.alg)
                && kid.is_none_or(|kid| key.id.as_ref() == Some(kid))
        });
        let holds = |key: &VerifyKey| {
            jsonwebtoken::crypto::verify(signature, message.as_bytes(), &key.key, header.alg)
                .unwrap_or(false)
        };
        match fitting.next() {
            None => Err(TokenError::Invalid("no key fits its algorithm and `kid`")),
            Some(first) if holds(first) || fitting.any(holds) => Ok(()),
            Some(_) => Err(TokenError::Invalid("signature does not hold")),
        }
    }

    fn check(&self, claims: &Map<String, Value>, now: u64) -> Result<(), TokenError> {
        let time = |name: &str, missing| match claims.get(name) {
            None => missing,
            // RFC 7519, section 2: NumericDate may have a fraction.
            Some(value) => value
                .as_f64()
                .filter(|seconds| seconds.is_finite())
                .map(Some)
                .ok_or(TokenError::Invalid("a time claim is not a number")),
        };
        let expires = time("exp", Err(TokenError::Invalid("`exp` is missing")))?;
        if expires.is_some_and(|at| now as f64 >= at + LEEWAY as f64) {
            return Err(TokenError::Expired);
        }
        if time("nbf", Ok(None))?.is_some_and(|at| at > (now + LEEWAY) as f64) {
            return Err(TokenError::Invalid("not valid yet"));
        }
        if let Some(issuer) = &self.issuer
            && claims.get("iss").and_then(Value::as_str) != Some(issuer)
        {
            return Err(TokenError::Invalid("wrong issuer"));
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
        Ok(())
    }
}

impl VerifyKey {
    fn new(key: &Key, accepted: &[Algorithm]) -> Result<Self, jsonwebtoken::errors::Error> {
        let decoding = match &key.material {
            KeyMaterial::Rsa { n, e } => DecodingKey::from_rsa_components(n, e)?,
            KeyMaterial::P256 { x, y } | KeyMaterial::P384 { x, y } => {
                DecodingKey::from_ec_components(x, y)?
            }
            KeyMaterial::Ed25519 { x } => DecodingKey::from_ed_components(x)?,
        };
        let algorithms = accepted
            .iter()
            .copied()
            .filter(|one| key.material.fits(*one) && key.algorithm.is_none_or(|own| own == *one))
            .map(algorithm)
            .collect();
        Ok(Self {
            id: key.id.clone(),
            algorithms,
            key: decoding,
        })
    }
}

fn algorithm(model: Algorithm) -> jsonwebtoken::Algorithm {
    match model {
        Algorithm::Rs256 => jsonwebtoken::Algorithm::RS256,
        Algorithm::Rs384 => jsonwebtoken::Algorithm::RS384,
        Algorithm::Rs512 => jsonwebtoken::Algorithm::RS512,
        Algorithm::Ps256 => jsonwebtoken::Algorithm::PS256,
        Algorithm::Ps384 => jsonwebtoken::Algorithm::PS384,
        Algorithm::Ps512 => jsonwebtoken::Algorithm::PS512,
        Algorithm::Es256 => jsonwebtoken::Algorithm::ES256,
        Algorithm::Es384 => jsonwebtoken::Algorithm::ES384,
        Algorithm::EdDsa => jsonwebtoken::Algorithm::EdDSA,
    }
}

/// Who may pass a rule.
#[derive(Debug)]
pub struct Gatekeeper {
    providers: Vec<Arc<Provider>>,
    rules: Vec<AuthRule>,
    default: Decision,
}

impl Gatekeeper {
    /// Joins a rule's `auth` with its compiled providers.
    pub fn new(auth: &Auth, providers: Vec<Arc<Provider>>) -> Self {
        Self {
            providers,
            rules: auth.authorization.rules.clone(),
            default: auth.authorization.default,
        }
    }

    /// Verifies the token of a request; `now` is in seconds since 1970.
    pub fn authenticate(
        &self,
        headers: &HeaderMap,
        query: Option<&str>,
        now: u64,
    ) -> Result<Verified, TokenError> {
        let token = extract(headers, query)?;
        if token.len() > MAX_TOKEN {
            return Err(TokenError::Invalid("token is too long"));
        }
        let mut failure = TokenError::Invalid("no provider");
        for provider in &self.providers {
            match provider.verify(token, now) {
                Ok(verified) => return Ok(verified),
                // Expiry is said only of tokens whose signature holds, so it says most.
                Err(error) if failure != TokenError::Expired => failure = error,
                Err(_) => {}
            }
        }
        Err(failure)
    }

    /// What the rules say of a verified token.
    pub fn authorise(&self, token: &Verified) -> Result<(), Denied> {
        let decision = self
            .rules
            .iter()
            .find(|rule| token.fits(rule))
            .map_or(self.default, |rule| rule.decision);
        match decision {
            Decision::Allow => Ok(()),
            Decision::Deny if self.rules.is_empty() => Err(Denied::NoOperation),
            Decision::Deny => Err(Denied::Scope),
        }
    }
}

impl Verified {
    /// Subject of the token.
    pub fn subject(&self) -> Option<&str> {
        self.claims.get("sub").and_then(Value::as_str)
    }

    fn fits(&self, rule: &AuthRule) -> bool {
        rule.provider == self.provider
            && rule.scopes.iter().all(|scope| self.has_scope(scope))
            && rule.claims.iter().all(|claim| self.has_claim(claim))
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

    /// In `scope` or `scp`, each a list or separated by blanks.
    fn has_scope(&self, wanted: &str) -> bool {
        ["scope", "scp"]
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
        match self.claim(&wanted.name) {
            Some(Value::Array(list)) => list.iter().any(accepted),
            Some(value) => accepted(value),
            None => false,
        }
    }
}

/// The one token of a request: `Authorization: Bearer` or the query's `access_token`.
fn extract<'a>(headers: &'a HeaderMap, query: Option<&'a str>) -> Result<&'a str, TokenError> {
    let mut lines = headers.get_all(header::AUTHORIZATION).iter();
    let line = lines.next();
    if lines.next().is_some() {
        return Err(TokenError::Ambiguous);
    }
    let bearer = match line {
        Some(value) => value
            .to_str()
            .map_err(|_| TokenError::Invalid("authorization is not ASCII"))?
            .split_once(' ')
            .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"))
            .map(|(_, token)| token.trim()),
        None => None,
    };
    let tokens = query
        .unwrap_or_default()
        .split('&')
        .filter_map(|pair| pair.strip_prefix("access_token="));
    let mut found = bearer;
    for token in tokens {
        if found.is_some_and(|known| known != token) {
            return Err(TokenError::Ambiguous);
        }
        found = Some(token);
    }
    found
        .filter(|token| !token.is_empty())
        .ok_or(TokenError::Missing)
}
