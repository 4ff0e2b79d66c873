//! Where the routing key of a request is, and who may set it.
//!
//! A key is one value without two readings: whatever is there twice, has a comma or is not printable
//! ASCII is refused, since the cell would read another key than the router.

use std::borrow::Cow;
use std::net::IpAddr;
use std::sync::Arc;

use http::{HeaderMap, HeaderName, header};
use snapshot::model::{CertificateName, Cidr, KeySource, KeyTrust};
use snapshot::path::CanonicalPath;

use super::token::Verified;
use super::trust::Names;

/// Longest routing key in bytes.
pub const MAX_KEY: usize = 256;

/// What is wrong with the routing key of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// Not there, or blank.
    #[error("routing key is missing")]
    Missing,
    /// There twice: which one counts is anybody's guess.
    #[error("routing key is there more than once")]
    Several,
    /// A comma would be two keys for whoever joins header lines.
    #[error("routing key contains a comma")]
    Comma,
    /// Not printable ASCII, or its encoding is broken.
    #[error("routing key is not ASCII")]
    NotAscii,
    /// More than [`MAX_KEY`] bytes.
    #[error("routing key is longer than {MAX_KEY} bytes")]
    TooLong,
    /// Whoever sent it may not choose its placement.
    #[error("routing key is not this client's to set")]
    Untrusted,
}

/// What a key can be read from.
pub struct KeySubject<'a> {
    /// Headers of the request.
    pub headers: &'a HeaderMap,
    /// Its path.
    pub path: &'a CanonicalPath,
    /// Its query.
    pub query: Option<&'a str>,
    /// Its host, lower case and without port.
    pub host: &'a str,
    /// Server name of the connection.
    pub sni: Option<&'a str>,
    /// Tokens that were verified.
    pub tokens: Vec<&'a Verified>,
    /// Names of the client's certificate, if it was verified.
    pub(crate) certificate: Option<&'a Names>,
    /// `namespace/gateway/listener` by which it came; none: it was steered here.
    pub listener: Option<&'a str>,
    /// Address of the other end of the connection.
    pub client: IpAddr,
}

/// Reads the key of a request.
#[derive(Debug)]
pub struct Key {
    source: Source,
    trust: Vec<Trust>,
}

#[derive(Debug)]
enum Source {
    Header(HeaderName),
    Claim(String),
    Certificate(CertificateName),
    Sni,
    Host,
    Path(usize),
    Query(String),
    Cookie(String),
}

/// A listener, or all of a gateway, and from where its clients may set the key.
#[derive(Debug)]
struct Trust {
    listener: Arc<str>,
    sources: Vec<Cidr>,
}

impl Key {
    /// Compiles a table's source; an error is the text that is no header name.
    pub fn new(source: &KeySource, trust: &[KeyTrust]) -> Result<Self, String> {
        let source = match source {
            KeySource::Header(name) => {
                Source::Header(HeaderName::from_bytes(name.as_bytes()).map_err(|_| name.clone())?)
            }
            KeySource::Claim(path) => Source::Claim(path.clone()),
            KeySource::Certificate(name) => Source::Certificate(*name),
            KeySource::Sni => Source::Sni,
            KeySource::Host => Source::Host,
            KeySource::Path(at) => Source::Path(*at),
            KeySource::Query(name) => Source::Query(name.clone()),
            KeySource::Cookie(name) => Source::Cookie(name.clone()),
        };
        let trust = trust.iter().map(|one| Trust {
            // Names have no slash, so the one behind a gateway's name ends it.
            listener: match &one.listener {
                Some(listener) => format!("{}/{listener}", one.gateway).into(),
                None => format!("{}/", one.gateway).into(),
            },
            sources: one.sources.clone(),
        });
        Ok(Self {
            source,
            trust: trust.collect(),
        })
    }

    /// Whether the key is a claim: then every rule that leads here must ask for a token.
    pub fn needs_token(&self) -> bool {
        matches!(self.source, Source::Claim(_))
    }

    /// Whether the key is a name of the client's certificate: then every listener that leads here must ask for one.
    pub fn needs_certificate(&self) -> bool {
        matches!(self.source, Source::Certificate(_))
    }

    /// The key of a request.
    pub fn read<'a>(&self, from: &KeySubject<'a>) -> Result<Cow<'a, str>, KeyError> {
        if !self.trusted(from) {
            return Err(KeyError::Untrusted);
        }
        let key = match &self.source {
            Source::Header(name) => Cow::Borrowed(header_value(from.headers, name)?),
            Source::Claim(path) => {
                // Two tokens that say the same are of one mind.
                let mut told = from.tokens.iter().filter_map(|one| one.claim_text(path));
                let first = told.next().ok_or(KeyError::Missing)?;
                if told.any(|other| other != first) {
                    return Err(KeyError::Several);
                }
                first
            }
            Source::Certificate(name) => {
                let names = from.certificate.ok_or(KeyError::Missing)?;
                let list = match name {
                    CertificateName::Common => &names.common,
                    CertificateName::Dns => &names.hosts,
                    CertificateName::Uri => &names.uris,
                };
                Cow::Borrowed(one(list.iter())?.as_str())
            }
            Source::Sni => Cow::Borrowed(from.sni.ok_or(KeyError::Missing)?),
            Source::Host => Cow::Borrowed(from.host),
            Source::Path(at) => {
                let mut segments = from.path.as_str().split('/').skip(1);
                decoded(segments.nth(*at).ok_or(KeyError::Missing)?, false)?
            }
            Source::Query(name) => query_value(from.query.unwrap_or_default(), name)?,
            Source::Cookie(name) => Cow::Borrowed(cookie_value(from.headers, name)?),
        };
        checked(key)
    }

    /// Without rules everybody may set the key.
    fn trusted(&self, from: &KeySubject<'_>) -> bool {
        let fits = |trust: &Trust| {
            let here = from.listener.is_some_and(|name| {
                name == &*trust.listener
                    || (trust.listener.ends_with('/') && name.starts_with(&*trust.listener))
            });
            let host = Cidr::host(from.client);
            let sources = &trust.sources;
            here && (sources.is_empty() || sources.iter().any(|one| one.contains(&host)))
        };
        self.trust.is_empty() || self.trust.iter().any(fits)
    }
}

fn checked(key: Cow<'_, str>) -> Result<Cow<'_, str>, KeyError> {
    let key = match key {
        Cow::Borrowed(text) => Cow::Borrowed(trimmed(text)),
        Cow::Owned(text) => Cow::Owned(trimmed(&text).to_owned()),
    };
    match key.as_bytes() {
        [] => Err(KeyError::Missing),
        text if text.len() > MAX_KEY => Err(KeyError::TooLong),
        text if !text.iter().all(|byte| (b' '..=b'~').contains(byte)) => Err(KeyError::NotAscii),
        text if text.contains(&b',') => Err(KeyError::Comma),
        _ => Ok(key),
    }
}

/// Without blanks around it; most have none.
fn trimmed(text: &str) -> &str {
    let blank = |byte: &u8| matches!(byte, b' ' | b'\t');
    let bytes = text.as_bytes();
    match bytes.first().is_some_and(blank) || bytes.last().is_some_and(blank) {
        true => text.trim_matches([' ', '\t']),
        false => text,
    }
}

fn header_value<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Result<&'a str, KeyError> {
    // Where no name is there twice, the first value is the only one.
    let value = match headers.len() == headers.keys_len() {
        true => headers.get(name).ok_or(KeyError::Missing)?,
        false => one(headers.get_all(name).iter())?,
    };
    value.to_str().map_err(|_| KeyError::NotAscii)
}

fn query_value<'a>(query: &'a str, name: &str) -> Result<Cow<'a, str>, KeyError> {
    let pairs = query
        .split('&')
        .map(|pair| pair.split_once('=').unwrap_or((pair, "")));
    // A name that is encoded is the same name to whoever decodes it.
    let named = pairs.filter(|(found, _)| decoded(found, true).is_ok_and(|found| found == name));
    decoded(one(named)?.1, true)
}

fn cookie_value<'a>(headers: &'a HeaderMap, name: &str) -> Result<&'a str, KeyError> {
    let mut found = None;
    for line in headers.get_all(header::COOKIE) {
        let line = line.to_str().map_err(|_| KeyError::NotAscii)?;
        for pair in line.split(';') {
            let Some((one, value)) = pair.split_once('=') else {
                continue;
            };
            if one.trim() == name && found.replace(value.trim()).is_some() {
                return Err(KeyError::Several);
            }
        }
    }
    found.ok_or(KeyError::Missing)
}

fn one<T>(mut values: impl Iterator<Item = T>) -> Result<T, KeyError> {
    let value = values.next().ok_or(KeyError::Missing)?;
    match values.next() {
        Some(_) => Err(KeyError::Several),
        None => Ok(value),
    }
}

/// Percent-decodes (RFC 3986, section 2.1); in a query a plus is a blank, as forms write it.
fn decoded(text: &str, form: bool) -> Result<Cow<'_, str>, KeyError> {
    let encoded = text.contains('%') || (form && text.contains('+'));
    if !encoded {
        return Ok(Cow::Borrowed(text));
    }
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        let digit = |byte: Option<u8>| char::from(byte?).to_digit(16);
        bytes.push(match byte {
            b'%' => {
                let (high, low) = (digit(rest.next()), digit(rest.next()));
                let value = high.zip(low).map(|(high, low)| high * 16 + low);
                let value = value.and_then(|value| u8::try_from(value).ok());
                value.ok_or(KeyError::NotAscii)?
            }
            b'+' if form => b' ',
            other => other,
        });
    }
    let text = String::from_utf8(bytes).map_err(|_| KeyError::NotAscii)?;
    Ok(Cow::Owned(text))
}

#[cfg(test)]
mod tests;
