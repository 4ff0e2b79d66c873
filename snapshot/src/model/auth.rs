//! Who may pass a rule.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use super::{Cidr, Cors, Declared, JwtProvider, Name, StringMatch};

/// Who may pass a rule: credentials first, then what they are good for.
#[derive(Clone, Debug)]
pub struct Auth {
    /// Its document.
    pub declared: Declared,
    /// Why nobody may pass: something that it refers to is not there. Its rules answer 500.
    pub closed: Option<String>,
    /// Which pages of other origins may ask, if the rule does not say so itself. Preflights are answered before anything else
    /// is asked.
    pub cors: Option<Arc<Cors>>,
    /// One of these keys is needed.
    pub api_keys: Option<ApiKeys>,
    /// One of these users is needed.
    pub users: Option<BasicUsers>,
    /// A token is needed.
    pub tokens: Option<Tokens>,
    /// What whoever got here may do.
    pub authorization: Authorization,
}

impl Auth {
    /// Nobody passes, for this reason.
    pub(crate) fn closed(declared: Declared, why: String) -> Self {
        Self {
            declared,
            closed: Some(why),
            cors: None,
            api_keys: None,
            users: None,
            tokens: None,
            authorization: Authorization {
                rules: Vec::new(),
                default: Decision::Deny,
            },
        }
    }

    /// Whether everybody passes, whatever he brings.
    pub fn is_open(&self) -> bool {
        self.closed.is_none()
            && self.api_keys.is_none()
            && self.users.is_none()
            && self.tokens.is_none()
            && self.authorization.rules.is_empty()
            && self.authorization.default == Decision::Allow
    }

    /// A token of one of these providers is needed, and nothing else.
    pub fn of_tokens(
        declared: Declared,
        providers: Vec<Arc<JwtProvider>>,
        authorization: Authorization,
    ) -> Self {
        Self {
            declared,
            closed: None,
            cors: None,
            api_keys: None,
            users: None,
            tokens: Some(Tokens {
                providers,
                leniency: Leniency::None,
            }),
            authorization,
        }
    }
}

/// Tokens that are accepted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tokens {
    /// A token of one of these; never empty.
    pub providers: Vec<Arc<JwtProvider>>,
    /// Who passes without one.
    pub leniency: Leniency,
}

/// Who passes without a good token (Envoy Gateway, `jwt.optional` and `jwt.failOpen`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Leniency {
    /// Nobody.
    #[default]
    None,
    /// Requests without a token; a bad one is refused.
    Optional,
    /// Requests without a token, and those with a bad one.
    FailOpen,
}

/// Where a credential is read from.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum CredentialPlace {
    /// A header, whose value begins with a prefix that may be empty.
    Header {
        /// Lower-case name.
        name: String,
        /// What stands before the credential.
        prefix: String,
    },
    /// A cookie.
    Cookie(String),
    /// A parameter of the query.
    Query(String),
}

/// Keys of clients. Only their digests are kept, so that nothing here can show one.
#[derive(Clone, PartialEq, Eq)]
pub struct ApiKeys {
    /// Where a request has its key, in this order; never empty.
    pub places: Vec<CredentialPlace>,
    /// Header that tells the upstream who the client is.
    pub forward: Option<String>,
    /// Whether the key is taken out of the request.
    pub sanitize: bool,
    /// Names of clients by the SHA-256 of their key.
    pub clients: BTreeMap<[u8; 32], String>,
}

impl fmt::Debug for ApiKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ApiKeys")
            .field("places", &self.places)
            .field("clients", &self.clients.values())
            .finish_non_exhaustive()
    }
}

/// Users with passwords (RFC 7617), as an `htpasswd` file of `{SHA}` lines has them.
#[derive(Clone, PartialEq, Eq)]
pub struct BasicUsers {
    /// Header that tells the upstream who the user is.
    pub forward: Option<String>,
    /// SHA-1 of passwords by user.
    pub passwords: BTreeMap<String, [u8; 20]>,
}

impl fmt::Debug for BasicUsers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Digests of passwords can be guessed at.
        f.debug_struct("BasicUsers")
            .field("users", &self.passwords.keys())
            .finish_non_exhaustive()
    }
}

/// Rules in order; the first that fits decides.
#[derive(Clone, Debug)]
pub struct Authorization {
    /// The rules.
    pub rules: Vec<AuthRule>,
    /// When none fits.
    pub default: Decision,
}

impl Authorization {
    /// Whoever got here may do everything.
    pub fn open() -> Self {
        Self {
            rules: Vec::new(),
            default: Decision::Allow,
        }
    }
}

/// One rule of authorization. All its parts must fit.
#[derive(Clone, Debug)]
pub struct AuthRule {
    /// What happens to requests that fit.
    pub decision: Decision,
    /// Methods in upper case, one of which the request has; empty: any.
    pub methods: Vec<String>,
    /// What the path looks like.
    pub path: Option<StringMatch>,
    /// Networks, one of which the client is in; empty: any.
    pub clients: Vec<Cidr>,
    /// Headers that the request has, all of them.
    pub headers: Vec<HeaderRequirement>,
    /// What its token says.
    pub token: Option<TokenRequirement>,
}

impl AuthRule {
    /// A rule that asks for a token only.
    pub fn of_token(decision: Decision, token: TokenRequirement) -> Self {
        Self {
            decision,
            methods: Vec::new(),
            path: None,
            clients: Vec::new(),
            headers: Vec::new(),
            token: Some(token),
        }
    }
}

/// A header and its accepted values.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeaderRequirement {
    /// Lower-case name.
    pub name: String,
    /// One of these.
    pub values: Vec<String>,
}

/// What a token must say. Another token of the same request does not add to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenRequirement {
    /// The token must come from this provider.
    pub provider: Name,
    /// The token must have all of these.
    pub scopes: Vec<String>,
    /// Where it has them.
    pub scope_claims: ScopeClaims,
    /// The token must have all of these.
    pub claims: Vec<ClaimRequirement>,
}

/// Claims in which scopes of a token are read; each is a list, or a text in which blanks separate them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ScopeClaims {
    /// `scope` (RFC 8693, section 4.2), and `scp`, in which some providers have them.
    #[default]
    ScopeAndScp,
    /// `scope` alone.
    Scope,
}

/// A claim and its accepted values.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClaimRequirement {
    /// Dotted path of the claim.
    pub name: String,
    /// What the claim is.
    pub shape: ClaimShape,
    /// One of these.
    pub values: Vec<String>,
}

/// What a claim is (Envoy Gateway, `valueType`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClaimShape {
    /// A text that is one of the values.
    Text,
    /// A list of texts, one of which is one of the values.
    List,
    /// Either of them: what a cell's operations ask for.
    Either,
}

/// Allow or deny.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Let through.
    Allow,
    /// Answer 403.
    Deny,
}
