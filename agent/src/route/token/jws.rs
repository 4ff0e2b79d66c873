//! The compact form of a signed token (RFC 7515, section 7.1), taken apart.

use data_encoding::BASE64URL_NOPAD;
use serde::Deserialize;
use serde_json::{Map, Value};
use snapshot::model::Algorithm;

use super::TokenError;

/// A token whose signature nobody has checked yet.
pub(super) struct Jws<'a> {
    pub(super) algorithm: Algorithm,
    pub(super) key_id: Option<String>,
    /// What is signed: header and payload as they were sent.
    pub(super) message: &'a str,
    pub(super) signature: Vec<u8>,
    payload: &'a str,
}

#[derive(Deserialize)]
struct Header {
    alg: String,
    #[serde(default)]
    kid: Option<String>,
    #[serde(default)]
    crit: Option<Value>,
}

impl<'a> Jws<'a> {
    pub(super) fn read(token: &'a str) -> Result<Self, TokenError> {
        let (message, signature) = token
            .rsplit_once('.')
            .ok_or(TokenError::Invalid("token has no signature"))?;
        let (header, payload) = message
            .split_once('.')
            .filter(|(_, payload)| !payload.contains('.'))
            .ok_or(TokenError::Invalid("token has not three parts"))?;
        let header: Header = serde_json::from_slice(&decoded(header)?)
            .map_err(|_| TokenError::Invalid("header is malformed"))?;
        if header.crit.is_some() {
            return Err(TokenError::Invalid("`crit` extensions are not understood"));
        }
        let algorithm = Algorithm::ALL
            .into_iter()
            .find(|one| one.as_str() == header.alg)
            .ok_or(TokenError::Invalid("its algorithm is not known"))?;
        Ok(Self {
            algorithm,
            key_id: header.kid,
            message,
            signature: decoded(signature)?,
            payload,
        })
    }

    /// What it claims; to be believed once its signature holds.
    pub(super) fn claims(&self) -> Result<Map<String, Value>, TokenError> {
        serde_json::from_slice(&decoded(self.payload)?)
            .map_err(|_| TokenError::Invalid("claims cannot be read"))
    }
}

fn decoded(part: &str) -> Result<Vec<u8>, TokenError> {
    BASE64URL_NOPAD
        .decode(part.as_bytes())
        .map_err(|_| TokenError::Invalid("a part is not base64url"))
}
