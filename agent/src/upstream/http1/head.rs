//! Heads: that of the request as bytes, that of the answer as values.

use std::mem::MaybeUninit;

use bytes::{Buf as _, Bytes, BytesMut};
use http::header::{self, HeaderMap};
use http::request::Parts;
use http::{Method, StatusCode};
use httparse::Status;

use super::{Http1Error, MAX_HEAD};
use crate::http1::{Chunks, Decoder, MessageError, Told, field, is_whole, lists, values};

/// Header lines of an answer.
const MAX_HEADERS: usize = 100;

/// The head of an answer.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    pub(super) decoder: Decoder,
    /// Whether the connection can be used again after the body.
    pub(super) reusable: bool,
}

/// Takes a head, if it is whole; so many bytes of it were looked at before. `headers` is empty and becomes that of the
/// answer.
pub(super) fn read(
    input: &mut Bytes,
    seen: usize,
    method: &Method,
    headers: impl FnOnce() -> HeaderMap,
) -> Result<Option<Answer>, Http1Error> {
    if input.is_empty() || (seen > 0 && !is_whole(input, seen)) {
        return Ok(None);
    }
    let whole = input.clone();
    let mut lines = [const { MaybeUninit::uninit() }; MAX_HEADERS];
    let mut parsed = httparse::Response::new(&mut []);
    let config = httparse::ParserConfig::default();
    let status = config.parse_response_with_uninit_headers(&mut parsed, &whole, &mut lines);
    let Status::Complete(length) = status.map_err(MessageError::Head)? else {
        return Ok(None);
    };
    if length > MAX_HEAD {
        return Err(Http1Error::TooLong);
    }
    let status = parsed.code.and_then(|code| StatusCode::from_u16(code).ok());
    let status = status.ok_or(MessageError::Malformed("status is out of range"))?;
    let newer = parsed.version == Some(1);
    let (mut headers, told) = values(&whole, parsed.headers, headers())?;
    input.advance(length);
    // What was told more than once is passed on as one number, and not at all if nobody knows which (RFC 9110, section 8.6).
    if told.listed || told.length == Some(None) {
        headers.remove(header::CONTENT_LENGTH);
        if let Some(Some(length)) = told.length {
            headers.insert(header::CONTENT_LENGTH, length.into());
        }
    }
    let connection = |token| told.connection && lists(&headers, &header::CONNECTION, token);
    let stays = !connection("close") && (newer || connection("keep-alive"));
    let decoder = framing(status, method, newer, &told)?;
    // Both told where the body ends, so somebody on the way may have believed the other one.
    let twice = told.coding.is_some() && told.length.is_some();
    // It has no body, and says how long that is (RFC 9110, section 8.6): it may come after all.
    let odd = status == StatusCode::NO_CONTENT
        && (told.coding.is_some() || !matches!(told.length, None | Some(Some(0))));
    Ok(Some(Answer {
        status,
        reusable: stays && !twice && !odd && !matches!(decoder, Decoder::Close),
        decoder,
        headers,
    }))
}

/// Where the body ends (RFC 9112, section 6.3).
fn framing(
    status: StatusCode,
    method: &Method,
    newer: bool,
    told: &Told,
) -> Result<Decoder, MessageError> {
    let bodiless = status.is_informational()
        || status == StatusCode::NO_CONTENT
        || status == StatusCode::NOT_MODIFIED
        || *method == Method::HEAD;
    match (told.coding, told.length) {
        _ if bodiless => Ok(Decoder::Ended),
        (Some(_), _) if !newer => Err(MessageError::Malformed("HTTP/1.0 has no transfer codings")),
        (Some(true), _) => Ok(Decoder::Chunked(Chunks::default())),
        (Some(false), _) | (None, None) => Ok(Decoder::Close),
        (None, Some(Some(length))) => Ok(Decoder::length(length)),
        (None, Some(None)) => Err(MessageError::Malformed("length has no one reading")),
    }
}

/// Bytes that a head takes at most.
pub(super) fn room(parts: &Parts) -> usize {
    /// What [`write`] and the framing add.
    const MORE: usize = 80;
    let fields = parts.headers.iter();
    let fields = fields.map(|(name, value)| name.as_str().len() + value.len() + 4);
    MORE + fields.sum::<usize>() + parts.method.as_str().len() + target(parts).len()
}

/// Writes the head of a request without what frames its body, and without the empty line.
pub(super) fn write(parts: &Parts, out: &mut BytesMut) {
    out.extend_from_slice(parts.method.as_str().as_bytes());
    out.extend_from_slice(b" ");
    let target = target(parts);
    if !target.starts_with(['/', '*']) {
        // A query behind an authority (RFC 9112, section 3.2.1).
        out.extend_from_slice(b"/");
    }
    out.extend_from_slice(target.as_bytes());
    out.extend_from_slice(b" HTTP/1.1\r\n");
    for (name, value) in &parts.headers {
        // Told once, by whoever frames.
        if !matches!(*name, header::TRANSFER_ENCODING | header::CONTENT_LENGTH) {
            field(name, value, out);
        }
    }
}

fn target(parts: &Parts) -> &str {
    parts.uri.path_and_query().map_or("/", |one| one.as_str())
}
