//! Heads: that of the request as bytes, that of the answer as values.

use std::mem::MaybeUninit;

use bytes::{Bytes, BytesMut};
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::request::Parts;
use http::{Method, StatusCode};
use httparse::Status;

use super::{Http1Error, MAX_HEAD};
use crate::http1::{
    Arena, Chunks, Decoder, MessageError, Names, Told, field, is_whole, lists, pass, values,
};

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

/// A head as it came.
struct Read {
    length: usize,
    status: StatusCode,
    /// Whether it is of HTTP/1.1.
    newer: bool,
    headers: HeaderMap,
    told: Told,
}

/// Takes a head, if it is whole; so many bytes of it were looked at before. `names` are those of answers before.
pub(super) fn read(
    input: &mut Bytes,
    seen: usize,
    method: &Method,
    arena: &Arena,
    names: &mut Names,
) -> Result<Option<Answer>, Http1Error> {
    if input.is_empty() || (seen > 0 && !is_whole(input, seen)) {
        return Ok(None);
    }
    let read = match plain(input, arena, names) {
        Some(plain) => plain,
        None => match any(input, arena)? {
            Some(read) => read,
            None => return Ok(None),
        },
    };
    let Read {
        length,
        status,
        newer,
        mut headers,
        told,
    } = read;
    if length > MAX_HEAD {
        return Err(Http1Error::TooLong);
    }
    pass(input, length);
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

/// Reads a head of the plain form, as most are; none: it is not, or not whole.
fn plain(head: &Bytes, arena: &Arena, names: &mut Names) -> Option<Read> {
    let rest = head.strip_prefix(b"HTTP/1.1 ")?;
    let status = StatusCode::from_bytes(rest.get(..3)?).ok()?;
    let reason = rest.get(3..)?;
    // A reason is of no use, and is passed over if nobody can argue about it.
    let end = reason
        .iter()
        .position(|byte| !(b' '..=b'~').contains(byte))?;
    if end == 0 || reason[0] != b' ' || !reason[end..].starts_with(b"\r\n") {
        return None;
    }
    let at = head.len() - reason.len() + end + 2;
    let mut headers = arena.map();
    let Some((length, told)) = names.read(head, at, &mut headers) else {
        arena.give(headers);
        return None;
    };
    Some(Read {
        length,
        status,
        newer: true,
        headers,
        told,
    })
}

/// Reads any head.
fn any(head: &Bytes, arena: &Arena) -> Result<Option<Read>, Http1Error> {
    let mut lines = [const { MaybeUninit::uninit() }; MAX_HEADERS];
    let mut parsed = httparse::Response::new(&mut []);
    let config = httparse::ParserConfig::default();
    let status = config.parse_response_with_uninit_headers(&mut parsed, head, &mut lines);
    let Status::Complete(length) = status.map_err(MessageError::Head)? else {
        return Ok(None);
    };
    let status = parsed.code.and_then(|code| StatusCode::from_u16(code).ok());
    let status = status.ok_or(MessageError::Malformed("status is out of range"))?;
    let (headers, told) = values(head, parsed.headers, arena.map())?;
    Ok(Some(Read {
        length,
        status,
        newer: parsed.version == Some(1),
        headers,
        told,
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

/// Bytes that most heads of requests take.
pub(super) const ROOM: usize = 1024;

/// Writes the head of a request, with more fields behind its own, without what frames its body, and without the empty line.
pub(super) fn write(parts: &Parts, more: &[(HeaderName, HeaderValue)], out: &mut BytesMut) {
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
    for (name, value) in more {
        field(name, value, out);
    }
}

fn target(parts: &Parts) -> &str {
    parts.uri.path_and_query().map_or("/", |one| one.as_str())
}
