//! Heads: that of the request as values, that of the answer as bytes.

use std::mem::MaybeUninit;

use bytes::{Bytes, BytesMut};
use http::header::{self, HeaderMap, HeaderValue};
use http::request::Parts;
use http::{Method, Request, StatusCode, Uri, Version};
use http_body::Body as _;
use httparse::Status;

use crate::http1::{
    Arena, Chunks, Decoder, Framing, MessageError, Told, announced, field, is_whole, lists, pass,
    values,
};
use crate::proxy::body::ResponseBody;
use crate::proxy::connection::{MAX_HEAD, MAX_HEADERS};

/// Bytes that most heads of answers take.
pub(super) const ROOM: usize = 1024;

/// A request as far as its head says.
#[derive(Debug)]
pub(super) struct Head {
    pub(super) parts: Box<Parts>,
    pub(super) decoder: Decoder,
    pub(super) terms: Terms,
    /// Whether its client waits for `100 Continue` before it sends the body.
    pub(super) expects: bool,
    /// Whether it may ask for another protocol.
    pub(super) upgrades: bool,
}

/// What the answer has to know of its request.
#[derive(Clone, Copy, Debug)]
pub(super) struct Terms {
    /// The method is `HEAD`.
    pub(super) head: bool,
    /// The client speaks HTTP/1.1, and not 1.0.
    pub(super) newer: bool,
    /// The client wants to ask more on the connection.
    pub(super) stays: bool,
    /// The client takes trailers.
    pub(super) trailers: bool,
}

/// A head as it came.
struct Read {
    length: usize,
    method: Method,
    target: Uri,
    /// Whether it is of HTTP/1.1.
    newer: bool,
    headers: HeaderMap,
    told: Told,
}

/// Takes the head of a request, if it is whole; so many bytes of it were looked at before.
///
/// # Errors
///
/// The status that says what is wrong; nothing behind it on the connection can be trusted.
pub(super) fn read(
    input: &mut Bytes,
    seen: usize,
    arena: &Arena,
) -> Result<Option<Head>, StatusCode> {
    if input.is_empty() || (seen > 0 && !is_whole(input, seen)) {
        return match input.len() > MAX_HEAD {
            true => Err(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE),
            false => Ok(None),
        };
    }
    let read = match plain(input, arena) {
        Some(plain) => plain,
        None => match any(input, arena)? {
            Some(read) => read,
            None => return Ok(None),
        },
    };
    let Read {
        length,
        method,
        target,
        newer,
        headers,
        told,
    } = read;
    pass(input, length);
    // What differs has no one reading, and what has a coding that is not understood no end (RFC 9112, section 6.3).
    let decoder = match (told.coding, told.length) {
        (Some(true), _) if newer => Decoder::Chunked(Chunks::default()),
        (Some(_), _) | (None, Some(None)) => return Err(StatusCode::BAD_REQUEST),
        // Told twice, even if alike (RFC 9112, section 6.3): who is behind may read a list in another way.
        _ if told.listed => return Err(StatusCode::BAD_REQUEST),
        (None, Some(Some(length))) => Decoder::length(length),
        (None, None) => Decoder::Ended,
    };
    let connection = |token| told.connection && lists(&headers, &header::CONNECTION, token);
    let terms = Terms {
        head: method == Method::HEAD,
        newer,
        stays: !connection("close") && (newer || connection("keep-alive")),
        trailers: told.te && lists(&headers, &header::TE, "trailers"),
    };
    let expects = told.expects
        && newer
        && !decoder.ended()
        && lists(&headers, &header::EXPECT, "100-continue");
    let (mut parts, ()) = Request::new(()).into_parts();
    parts.method = method;
    parts.uri = target;
    parts.headers = headers;
    parts.version = match newer {
        true => Version::HTTP_11,
        false => Version::HTTP_10,
    };
    Ok(Some(Head {
        parts: Box::new(parts),
        decoder,
        terms,
        expects,
        upgrades: told.upgrades && newer,
    }))
}

/// Reads a head of the plain form, as most are; none: it is not, or not whole.
fn plain(head: &Bytes, arena: &Arena) -> Option<Read> {
    /// Bytes of the longest method, with its blank.
    const METHOD: usize = 16;
    /// Which bytes nobody can argue about in a target.
    const TARGET: [bool; 256] = {
        let mut all = [false; 256];
        let mut byte = 0;
        while byte < all.len() {
            all[byte] = (byte as u8).is_ascii_alphanumeric()
                || matches!(
                    byte as u8,
                    b'/' | b'?'
                        | b'='
                        | b'&'
                        | b'%'
                        | b'-'
                        | b'.'
                        | b'_'
                        | b'~'
                        | b'+'
                        | b','
                        | b';'
                        | b':'
                        | b'@'
                );
            byte += 1;
        }
        all
    };
    let blank = head.iter().take(METHOD).position(|byte| *byte == b' ')?;
    let method = Method::from_bytes(&head[..blank]).ok()?;
    let start = blank + 1;
    let behind = &head[start..];
    let target = behind.iter().position(|byte| !TARGET[usize::from(*byte)])?;
    let end = start + target;
    if !behind.starts_with(b"/") || !head[end..].starts_with(b" HTTP/1.1\r\n") {
        return None;
    }
    let target = Uri::from_maybe_shared(head.slice(start..end)).ok()?;
    let mut headers = arena.map();
    let found = arena.names().read(head, end + 11, &mut headers);
    let Some((length, told)) = found.filter(|(length, _)| *length <= MAX_HEAD) else {
        arena.give(headers);
        return None;
    };
    Some(Read {
        length,
        method,
        target,
        newer: true,
        headers,
        told,
    })
}

/// Reads any head.
fn any(head: &Bytes, arena: &Arena) -> Result<Option<Read>, StatusCode> {
    let mut lines = [const { MaybeUninit::uninit() }; MAX_HEADERS];
    let mut parsed = httparse::Request::new(&mut []);
    let length = match parsed.parse_with_uninit_headers(head, &mut lines) {
        Ok(Status::Complete(length)) if length <= MAX_HEAD => length,
        Ok(Status::Partial) if head.len() <= MAX_HEAD => return Ok(None),
        Ok(_) | Err(httparse::Error::TooManyHeaders) => {
            return Err(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE);
        }
        Err(_) => return Err(StatusCode::BAD_REQUEST),
    };
    let bad = |_: MessageError| StatusCode::BAD_REQUEST;
    // A whole head has both; one without is refused like any other that cannot be read.
    let (Some(method), Some(target)) = (parsed.method, parsed.path) else {
        return Err(StatusCode::BAD_REQUEST);
    };
    let method = method.as_bytes();
    let method = Method::from_bytes(method).map_err(|_| StatusCode::BAD_REQUEST)?;
    let target = head.slice_ref(target.as_bytes());
    let target = Uri::from_maybe_shared(target).map_err(|_| StatusCode::BAD_REQUEST)?;
    let (headers, told) = values(head, parsed.headers, arena.map()).map_err(bad)?;
    Ok(Some(Read {
        length,
        method,
        target,
        newer: parsed.version == Some(1),
        headers,
        told,
    }))
}

/// What an answer's head becomes.
pub(super) struct Answered {
    /// How its body is framed; none: it has none.
    pub(super) framing: Option<Framing>,
    /// Whether the connection stays open behind it.
    pub(super) stays: bool,
}

/// Frames an answer and writes its head. `date` is asked if the answer has none.
pub(super) fn write(
    status: StatusCode,
    headers: &HeaderMap,
    body: &ResponseBody,
    terms: Terms,
    date: impl FnOnce() -> HeaderValue,
    out: &mut BytesMut,
) -> Answered {
    // RFC 9110, section 6.4.1. Lengths stay where they tell of what a `GET` would have given.
    let switches = status.is_informational();
    let empty = switches || status == StatusCode::NO_CONTENT;
    let told = !empty && (terms.head || status == StatusCode::NOT_MODIFIED);
    let mut stays = terms.stays;
    let framing = match body.size_hint().exact() {
        _ if empty || told => None,
        Some(length) => Some(Framing::Length(length)),
        None if !terms.newer => Some(Framing::Close),
        None if terms.trailers => Some(Framing::Chunked(announced(headers))),
        None => Some(Framing::Chunked(Vec::new())),
    };
    stays &= !matches!(framing, Some(Framing::Close));
    status_line(status, out);
    let (mut dated, mut connection) = (false, false);
    for (name, value) in headers {
        match *name {
            header::CONTENT_LENGTH if !told => continue,
            header::TRANSFER_ENCODING => continue,
            header::DATE => dated = true,
            header::CONNECTION => {
                connection = true;
                stays &= !value.as_bytes().eq_ignore_ascii_case(b"close");
            }
            _ => {}
        }
        field(name, value, out);
    }
    body.told(|name, value| field(&name, value, out));
    if let Some(framing) = &framing {
        framing.write(out);
    }
    if !dated && !switches {
        field(&header::DATE, &date(), out);
    }
    match stays {
        _ if connection => {}
        false => out.extend_from_slice(b"connection: close\r\n"),
        true if !terms.newer => out.extend_from_slice(b"connection: keep-alive\r\n"),
        true => {}
    }
    out.extend_from_slice(b"\r\n");
    Answered { framing, stays }
}

/// The whole answer to what is no request.
pub(super) fn refusal(status: StatusCode, date: &HeaderValue) -> Bytes {
    let mut out = BytesMut::with_capacity(128);
    status_line(status, &mut out);
    field(&header::DATE, date, &mut out);
    out.extend_from_slice(b"connection: close\r\ncontent-length: 0\r\n\r\n");
    out.freeze()
}

fn status_line(status: StatusCode, out: &mut BytesMut) {
    if status == StatusCode::OK {
        out.extend_from_slice(b"HTTP/1.1 200 OK\r\n");
        return;
    }
    out.extend_from_slice(b"HTTP/1.1 ");
    out.extend_from_slice(status.as_str().as_bytes());
    out.extend_from_slice(b" ");
    // The phrase may be empty, the space before it may not be left out (RFC 9112, section 4).
    out.extend_from_slice(status.canonical_reason().unwrap_or_default().as_bytes());
    out.extend_from_slice(b"\r\n");
}
