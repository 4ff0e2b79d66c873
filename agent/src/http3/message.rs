//! Heads and trailers: from fields to what the stages take, and back (RFC 9114, sections 4.1.2 to 4.4).
//!
//! A request that could be read in two ways is no request: what makes it malformed is found here, once. What it asks for is
//! looked at later, as that of other versions is.

use bytes::{Bytes, BytesMut};
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::request::Parts;
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{Method, Request, StatusCode, Uri, Version, uri};

use super::fields::{self, Unread};
use super::{Code, Wrong, frames};

/// A request's head.
pub(crate) struct Head {
    pub(crate) parts: Box<Parts>,
    /// Bytes that its body is to have, if it says so.
    pub(crate) length: Option<u64>,
}

/// Fields that are said before all others.
#[derive(Default)]
struct Pseudo {
    method: Option<Method>,
    scheme: Option<Scheme>,
    authority: Option<Authority>,
    path: Option<PathAndQuery>,
    protocol: bool,
}

impl Pseudo {
    fn take(&mut self, name: &[u8], value: &[u8]) -> Result<(), &'static str> {
        fn once<T>(place: &mut Option<T>, value: Option<T>) -> Result<(), &'static str> {
            let value = value.ok_or("a pseudo-header field has a value that it cannot have")?;
            match place.replace(value) {
                None => Ok(()),
                Some(_) => Err("a pseudo-header field is there twice"),
            }
        }
        match name {
            b":method" => once(&mut self.method, Method::from_bytes(value).ok()),
            b":scheme" => once(&mut self.scheme, Scheme::try_from(value).ok()),
            b":authority" => once(&mut self.authority, Authority::try_from(value).ok()),
            b":path" => {
                let path = Some(value).filter(|path| path.starts_with(b"/") || *path == b"*");
                let path = path.and_then(|path| PathAndQuery::try_from(path).ok());
                once(&mut self.path, path)
            }
            // What it asks for is not served, whatever it is.
            b":protocol" if !self.protocol => {
                self.protocol = true;
                Ok(())
            }
            _ => Err("a pseudo-header field that requests do not have"),
        }
    }

    /// Method and target (RFC 9114, sections 4.3.1 and 4.4; RFC 9220).
    fn target(self, headers: &HeaderMap) -> Result<(Method, Uri), &'static str> {
        let method = self.method.ok_or("a request without a method")?;
        let mut parts = uri::Parts::default();
        if method == Method::CONNECT && !self.protocol {
            if self.scheme.is_some() || self.path.is_some() {
                return Err("a CONNECT with a scheme or a path");
            }
            let authority = self.authority.ok_or("a CONNECT without an authority")?;
            parts.authority = Some(authority);
            let uri = Uri::from_parts(parts).map_err(|_| "a target that is none")?;
            return Ok((method, uri));
        }
        if self.protocol && method != Method::CONNECT {
            return Err("a protocol without CONNECT");
        }
        let scheme = self.scheme.ok_or("a request without a scheme")?;
        if scheme != Scheme::HTTPS && scheme != Scheme::HTTP {
            return Err("a scheme that is not HTTP's");
        }
        parts.path_and_query = Some(self.path.ok_or("a request without a path")?);
        match self.authority {
            Some(authority) => {
                parts.scheme = Some(scheme);
                parts.authority = Some(authority);
            }
            None if headers.contains_key(header::HOST) => {}
            None => return Err("a request without an authority"),
        }
        let uri = Uri::from_parts(parts).map_err(|_| "a target that is none")?;
        Ok((method, uri))
    }
}

/// Reads the head of a request. `most`: what the sizes of its fields may sum up to (RFC 9114, section 4.2.2).
pub(crate) fn request(block: &[u8], most: usize) -> Result<Head, Wrong> {
    let mut pseudo = Pseudo::default();
    let mut headers = HeaderMap::new();
    decode(block, most, |name, value| {
        if !name.starts_with(b":") {
            return field(&mut headers, name, value);
        }
        match headers.is_empty() {
            true => pseudo.take(name, value),
            false => Err("a pseudo-header field behind others"),
        }
    })?;
    let length = length(&headers).map_err(Wrong::Message)?;
    let (method, target) = pseudo.target(&headers).map_err(Wrong::Message)?;
    let (mut parts, ()) = Request::new(()).into_parts();
    parts.method = method;
    parts.uri = target;
    parts.version = Version::HTTP_3;
    parts.headers = headers;
    Ok(Head {
        parts: Box::new(parts),
        length,
    })
}

/// Reads trailers.
pub(crate) fn trailers(block: &[u8], most: usize) -> Result<HeaderMap, Wrong> {
    let mut trailers = HeaderMap::new();
    decode(block, most, |name, value| match name.starts_with(b":") {
        true => Err("a pseudo-header field in trailers"),
        false => field(&mut trailers, name, value),
    })?;
    Ok(trailers)
}

fn decode(
    block: &[u8],
    most: usize,
    take: impl FnMut(&[u8], &[u8]) -> Result<(), &'static str>,
) -> Result<(), Wrong> {
    match fields::decode(block, most, take) {
        Ok(taken) => taken.map_err(Wrong::Message),
        Err(Unread::TooLarge) => Err(Wrong::TooLarge),
        Err(Unread::Malformed) => Err(Wrong::Connection(
            Code::DECOMPRESSION_FAILED,
            "fields that cannot be read",
        )),
    }
}

/// One of the other fields (RFC 9114, sections 4.2 and 10.3).
fn field(headers: &mut HeaderMap, name: &[u8], value: &[u8]) -> Result<(), &'static str> {
    let name = HeaderName::from_lowercase(name)
        .map_err(|_| "a field's name has characters that it cannot have")?;
    let value = HeaderValue::from_bytes(value)
        .map_err(|_| "a field's value has characters that it cannot have")?;
    let of_a_connection = match name {
        header::CONNECTION | header::TRANSFER_ENCODING | header::UPGRADE => true,
        header::TE => value != "trailers",
        _ => matches!(name.as_str(), "keep-alive" | "proxy-connection"),
    };
    if of_a_connection {
        return Err("a field of one connection");
    }
    headers
        .try_append(name, value)
        .map_err(|_| "more fields than can be kept")?;
    Ok(())
}

/// The one length that a head tells.
fn length(headers: &HeaderMap) -> Result<Option<u64>, &'static str> {
    let mut told = headers.get_all(header::CONTENT_LENGTH).iter();
    let Some(value) = told.next() else {
        return Ok(None);
    };
    let digits = value.as_bytes();
    let number = Some(digits).filter(|digits| digits.iter().all(u8::is_ascii_digit));
    let number = number.and_then(|digits| str::from_utf8(digits).ok()?.parse().ok());
    match (number, told.next()) {
        (Some(length), None) => Ok(Some(length)),
        _ => Err("a length that is none"),
    }
}

/// The head of an answer, as a frame.
pub(crate) fn response(status: StatusCode, headers: &HeaderMap) -> Bytes {
    let mut out = BytesMut::with_capacity(512);
    fields::begin(&mut out);
    fields::encode(":status", status.as_str().as_bytes(), &mut out);
    put(headers, &mut out)
}

/// The trailers of an answer, as a frame.
pub(crate) fn ending(trailers: &HeaderMap) -> Bytes {
    let mut out = BytesMut::with_capacity(128);
    fields::begin(&mut out);
    put(trailers, &mut out)
}

fn put(headers: &HeaderMap, out: &mut BytesMut) -> Bytes {
    for (name, value) in headers {
        fields::encode(name.as_str(), value.as_bytes(), out);
    }
    frames::block(out)
}

#[cfg(test)]
mod tests;
