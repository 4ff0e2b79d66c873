//! Credentials in a request: where they stand, and those that are no tokens.

use std::collections::HashMap;

use aws_lc_rs::constant_time::verify_slices_are_equal;
use aws_lc_rs::digest::{SHA1_FOR_LEGACY_USE_ONLY, SHA256, digest};
use data_encoding::BASE64;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use snapshot::model::{ApiKeys, BasicUsers, CredentialPlace};

use super::token::TokenError;

/// What of a request may hold credentials.
#[derive(Clone, Copy, Debug)]
pub struct Carrier<'a> {
    /// Its headers.
    pub headers: &'a HeaderMap,
    /// Its query, without the question mark.
    pub query: Option<&'a str>,
}

impl<'a> Carrier<'a> {
    /// Everything at a place.
    ///
    /// # Errors
    /// More than one line of a header, or one that is not ASCII: two readers could take two values.
    pub(crate) fn at(&self, place: &CredentialPlace) -> Result<Vec<&'a str>, TokenError> {
        match place {
            CredentialPlace::Header { name, prefix } => {
                let mut lines = self.headers.get_all(name).iter();
                let line = lines.next();
                if lines.next().is_some() {
                    return Err(TokenError::Ambiguous);
                }
                let Some(line) = line else {
                    return Ok(Vec::new());
                };
                let text = line
                    .to_str()
                    .map_err(|_| TokenError::Invalid("a credential is not ASCII"))?;
                // Schemes are compared without case (RFC 9110, section 11.1).
                Ok(text
                    .get(..prefix.len())
                    .filter(|start| start.eq_ignore_ascii_case(prefix))
                    .map(|_| text[prefix.len()..].trim())
                    .filter(|rest| !rest.is_empty())
                    .into_iter()
                    .collect())
            }
            CredentialPlace::Cookie(name) => {
                let mut found = Vec::new();
                for line in self.headers.get_all(header::COOKIE) {
                    let text = line
                        .to_str()
                        .map_err(|_| TokenError::Invalid("a cookie is not ASCII"))?;
                    found.extend(text.split(';').filter_map(|pair| {
                        let (key, value) = pair.trim().split_once('=')?;
                        (key == name && !value.is_empty()).then_some(value)
                    }));
                }
                Ok(found)
            }
            CredentialPlace::Query(name) => Ok(self
                .query
                .unwrap_or_default()
                .split('&')
                .filter_map(|pair| {
                    let (key, value) = pair.split_once('=')?;
                    (key == name && !value.is_empty()).then_some(value)
                })
                .collect()),
        }
    }
}

/// Why a request has no good key or user. The texts are Envoy's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CredentialError {
    /// No key.
    #[error("Client authentication failed.")]
    KeyMissing,
    /// A key that nobody has, or several.
    #[error("Client authentication failed.")]
    KeyInvalid,
    /// No user.
    #[error("User authentication failed. Missing username and password.")]
    UserMissing,
    /// Not a user with this password.
    #[error("User authentication failed. Invalid username/password combination.")]
    UserInvalid,
}

/// Clients by key.
#[derive(Debug)]
pub struct KeyRing {
    pub(crate) places: Vec<CredentialPlace>,
    pub(crate) forward: Option<HeaderName>,
    pub(crate) sanitize: bool,
    /// By the SHA-256 of the key. How long a lookup takes tells of the digest of what was sent, which
    /// tells nothing of any key.
    clients: HashMap<[u8; 32], HeaderValue>,
}

impl KeyRing {
    /// Takes the clients of a policy. None: a name is no header text, which the snapshot excludes.
    pub fn new(keys: &ApiKeys) -> Option<Self> {
        Some(Self {
            places: keys.places.clone(),
            forward: match &keys.forward {
                Some(name) => Some(HeaderName::from_bytes(name.as_bytes()).ok()?),
                None => None,
            },
            sanitize: keys.sanitize,
            clients: keys
                .clients
                .iter()
                .map(|(digest, client)| Some((*digest, HeaderValue::from_str(client).ok()?)))
                .collect::<Option<_>>()?,
        })
    }

    /// The client whose key a request carries.
    pub(crate) fn client(&self, carrier: Carrier<'_>) -> Result<&HeaderValue, CredentialError> {
        let mut found = None;
        for place in &self.places {
            let at = carrier.at(place).map_err(|_| CredentialError::KeyInvalid)?;
            for key in at {
                if found.is_some_and(|known| known != key) {
                    return Err(CredentialError::KeyInvalid);
                }
                found = Some(key);
            }
        }
        let key = found.ok_or(CredentialError::KeyMissing)?;
        let digest = digest(&SHA256, key.as_bytes());
        let digest: [u8; 32] = digest
            .as_ref()
            .try_into()
            .map_err(|_| CredentialError::KeyInvalid)?;
        self.clients.get(&digest).ok_or(CredentialError::KeyInvalid)
    }
}

/// Users by name.
pub struct Users {
    pub(crate) forward: Option<HeaderName>,
    passwords: HashMap<String, [u8; 20]>,
}

impl std::fmt::Debug for Users {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Users")
            .field("users", &self.passwords.len())
            .finish_non_exhaustive()
    }
}

impl Users {
    /// Takes the users of a policy. None: the header is none, which the snapshot excludes.
    pub fn new(users: &BasicUsers) -> Option<Self> {
        Some(Self {
            forward: match &users.forward {
                Some(name) => Some(HeaderName::from_bytes(name.as_bytes()).ok()?),
                None => None,
            },
            passwords: users
                .passwords
                .iter()
                .map(|(user, digest)| (user.clone(), *digest))
                .collect(),
        })
    }

    /// The user of a request (RFC 7617, section 2).
    pub(crate) fn user(&self, carrier: Carrier<'_>) -> Result<HeaderValue, CredentialError> {
        let basic = CredentialPlace::Header {
            name: header::AUTHORIZATION.as_str().to_owned(),
            prefix: "Basic ".to_owned(),
        };
        let found = carrier
            .at(&basic)
            .map_err(|_| CredentialError::UserInvalid)?;
        let encoded = found.first().ok_or(CredentialError::UserMissing)?;
        let invalid = CredentialError::UserInvalid;
        let decoded = BASE64.decode(encoded.as_bytes()).map_err(|_| invalid)?;
        let pair = String::from_utf8(decoded).map_err(|_| invalid)?;
        let (user, password) = pair.split_once(':').ok_or(invalid)?;
        let given = digest(&SHA1_FOR_LEGACY_USE_ONLY, password.as_bytes());
        // A user who is not there takes as long as one who is.
        let known = self.passwords.get(user);
        let expected = known.copied().unwrap_or_default();
        let equal = verify_slices_are_equal(given.as_ref(), &expected).is_ok();
        if known.is_none() || !equal {
            return Err(invalid);
        }
        HeaderValue::from_str(user).map_err(|_| invalid)
    }
}

/// A query without some of its parameters.
pub(crate) fn without(query: &str, names: &[&str]) -> String {
    let kept: Vec<&str> = query
        .split('&')
        .filter(|pair| {
            let key = pair.split_once('=').map_or(*pair, |(key, _)| key);
            !names.contains(&key)
        })
        .collect();
    kept.join("&")
}
