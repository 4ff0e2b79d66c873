//! Who may pass a rule, compiled.

use std::net::IpAddr;
use std::sync::Arc;

use http::{HeaderMap, HeaderName, Method};
use snapshot::model::{Auth, AuthRule, Cidr, Decision, HeaderRequirement, Leniency, Name};

use super::credential::{Carrier, KeyRing, Users};
use super::token::{FetchedKeys, MAX_TOKEN, Provider, TokenError, Verified};

/// Tokens of one request, at most: each costs a signature.
const MAX_TOKENS: usize = 4;

/// Why whoever is known may not pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Denied {
    /// No rule could ever allow: the request matched no declared operation.
    NoOperation,
    /// Scopes or claims are missing.
    Scope,
    /// A rule that asks for no token denies, or none allows.
    Rule,
}

/// Who may pass a rule.
#[derive(Debug)]
pub struct Gatekeeper {
    /// Why nobody may, whatever he brings.
    pub(crate) closed: Option<Arc<str>>,
    pub(crate) keys: Option<KeyRing>,
    pub(crate) users: Option<Users>,
    pub(crate) tokens: Option<TokenCheck>,
    rules: Vec<AuthRule>,
    default: Decision,
}

/// Tokens that are accepted.
#[derive(Debug)]
pub struct TokenCheck {
    /// Tells what is asked of tokens from what other policies ask; the same in every generation.
    pub(crate) fingerprint: [u8; 32],
    pub(crate) providers: Vec<Arc<Provider>>,
    pub(crate) leniency: Leniency,
    /// Headers that tell claims, by provider.
    pub(crate) claim_headers: Vec<(Name, HeaderName, String)>,
    pub(crate) recompute: bool,
}

/// What of a request rules look at.
#[derive(Clone, Copy, Debug)]
pub struct Visitor<'a> {
    /// Method.
    pub method: &'a Method,
    /// The one path.
    pub path: &'a str,
    /// Headers, as the client sent them.
    pub headers: &'a HeaderMap,
    /// Address of the client.
    pub client: IpAddr,
}

impl Gatekeeper {
    /// Joins a rule's `auth` with its compiled parts.
    pub fn new(
        auth: &Auth,
        keys: Option<KeyRing>,
        users: Option<Users>,
        tokens: Option<TokenCheck>,
    ) -> Self {
        Self {
            closed: auth.closed.as_deref().map(Into::into),
            keys,
            users,
            tokens,
            rules: auth.authorization.rules.clone(),
            default: auth.authorization.default,
        }
    }

    /// Verifies the tokens of a request, each anew; `now` is in seconds since 1970. None are asked for:
    /// there are none.
    pub fn authenticate(
        &self,
        carrier: Carrier<'_>,
        fetched: &dyn FetchedKeys,
        now: u64,
    ) -> Result<Vec<Verified>, TokenError> {
        match &self.tokens {
            None => Ok(Vec::new()),
            Some(check) => check.good(carrier, |token, providers| {
                first_good(token, providers, fetched, now, |_, _| {})
            }),
        }
    }

    /// What the rules say of a request and its verified tokens: the first that fits decides.
    pub fn authorise<T: AsRef<Verified>>(
        &self,
        visitor: Visitor<'_>,
        tokens: &[T],
    ) -> Result<(), Denied> {
        let found = self.rules.iter().find(|rule| fits(rule, visitor, tokens));
        match found.map_or(self.default, |rule| rule.decision) {
            Decision::Allow => Ok(()),
            Decision::Deny if self.rules.is_empty() && self.tokens.is_some() => {
                Err(Denied::NoOperation)
            }
            Decision::Deny
                if found.is_none() && self.rules.iter().any(|one| one.token.is_some()) =>
            {
                Err(Denied::Scope)
            }
            Decision::Deny => Err(Denied::Rule),
        }
    }

    /// Names of headers that only the router may set where this decides.
    pub(crate) fn own_headers(&self) -> impl Iterator<Item = &HeaderName> {
        let claims = self.tokens.iter().flat_map(|tokens| &tokens.claim_headers);
        let claims = claims.map(|(_, header, _)| header);
        let client = self.keys.iter().filter_map(|keys| keys.forward.as_ref());
        let user = self.users.iter().filter_map(|users| users.forward.as_ref());
        claims.chain(client).chain(user)
    }
}

fn fits<T: AsRef<Verified>>(rule: &AuthRule, visitor: Visitor<'_>, tokens: &[T]) -> bool {
    let method = visitor.method.as_str();
    let client = Cidr::host(visitor.client.to_canonical());
    (rule.methods.is_empty() || rule.methods.iter().any(|one| one == method))
        && rule
            .path
            .as_ref()
            .is_none_or(|path| path.fits(visitor.path))
        && (rule.clients.is_empty() || rule.clients.iter().any(|one| one.contains(&client)))
        && rule
            .headers
            .iter()
            .all(|header| has(header, visitor.headers))
        && rule
            .token
            .as_ref()
            .is_none_or(|wanted| tokens.iter().any(|token| token.as_ref().meets(wanted)))
}

/// Several lines of one header are one value, joined by a comma (RFC 9110, section 5.3).
fn has(wanted: &HeaderRequirement, headers: &HeaderMap) -> bool {
    let lines: Vec<&[u8]> = headers
        .get_all(&wanted.name)
        .iter()
        .map(http::HeaderValue::as_bytes)
        .collect();
    if lines.is_empty() {
        return false;
    }
    let joined = lines.join(&b',');
    wanted.values.iter().any(|one| one.as_bytes() == joined)
}

/// What the first provider makes of a token that finds it good; `failed` hears of the others.
pub(crate) fn first_good(
    token: &str,
    providers: &[&Arc<Provider>],
    fetched: &dyn FetchedKeys,
    now: u64,
    mut failed: impl FnMut(&Provider, &TokenError),
) -> Result<Verified, TokenError> {
    let mut failure = TokenError::Invalid("no provider");
    for provider in providers {
        match provider.verify(token, fetched, now) {
            Ok(good) => return Ok(good),
            Err(error) => {
                failed(provider, &error);
                if rank(&error) >= rank(&failure) {
                    failure = error;
                }
            }
        }
    }
    Err(failure)
}

/// Which of several failures says most: expiry is said only of tokens whose signature holds, and a
/// provider without keys might have known the token.
fn rank(error: &TokenError) -> u8 {
    match error {
        TokenError::Expired => 3,
        TokenError::NoKeys => 2,
        TokenError::UnknownKey => 1,
        TokenError::Missing | TokenError::Ambiguous | TokenError::Invalid(_) => 0,
    }
}

/// A token, and the providers at whose places it stands.
type Found<'t, 'p> = (&'t str, Vec<&'p Arc<Provider>>);

impl TokenCheck {
    /// The good tokens of a request, as `verify` finds them. One that is bad spoils the others.
    pub(crate) fn good<'a, T>(
        &self,
        carrier: Carrier<'a>,
        mut verify: impl FnMut(&'a str, &[&Arc<Provider>]) -> Result<T, TokenError>,
    ) -> Result<Vec<T>, TokenError> {
        let lenient = self.leniency == Leniency::FailOpen;
        let found = match self.extract(carrier) {
            Ok(found) => found,
            Err(_) if lenient => Vec::new(),
            Err(error) => return Err(error),
        };
        if found.is_empty() && self.leniency == Leniency::None {
            return Err(TokenError::Missing);
        }
        let mut tokens = Vec::with_capacity(found.len());
        for (token, providers) in found {
            match verify(token, &providers) {
                Ok(good) => tokens.push(good),
                Err(_) if lenient => {}
                Err(error) => return Err(error),
            }
        }
        Ok(tokens)
    }

    /// The tokens of a request, each with the providers at whose places it stands.
    fn extract<'a>(&self, carrier: Carrier<'a>) -> Result<Vec<Found<'a, '_>>, TokenError> {
        let mut found: Vec<Found<'_, '_>> = Vec::new();
        for provider in &self.providers {
            let mut own: Option<&str> = None;
            for place in &provider.places {
                for token in carrier.at(place)? {
                    if own.is_some_and(|known| known != token) {
                        return Err(TokenError::Ambiguous);
                    }
                    own = Some(token);
                }
            }
            let Some(token) = own else { continue };
            if token.len() > MAX_TOKEN {
                return Err(TokenError::Invalid("token is too long"));
            }
            match found.iter().position(|(known, _)| *known == token) {
                Some(at) => found[at].1.push(provider),
                None if found.len() == MAX_TOKENS => {
                    return Err(TokenError::Invalid("too many tokens"));
                }
                None => found.push((token, vec![provider])),
            }
        }
        Ok(found)
    }
}
