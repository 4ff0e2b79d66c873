//! HTTP/1.1 as far as the bench's own programs speak it: heads, and bodies with a length. Chunked bodies are none of it.

use std::sync::LazyLock;

use anyhow::{Result, bail, ensure};

/// Header lines of a head.
const LINES: usize = 64;
/// The header by which an answer is known to belong to its request: 16 hexadecimal digits.
pub(crate) const NUMBER: &str = "x-number";
/// The header with the routing key.
pub(crate) const KEY: &str = "x-routing-key";
/// Digits of [`NUMBER`].
pub(crate) const DIGITS: usize = 16;

/// The bytes that bodies are made of: every length is a beginning of them.
pub(crate) static BODY: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let mut state: u32 = 1;
    (0..1 << 20)
        .map(|_| {
            // Not compressible, and no two pages alike (xorshift32).
            state ^= state << 13;
            state ^= state >> 17;
            state ^= state << 5;
            state as u8
        })
        .collect()
});

/// A head that has arrived whole.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Head {
    /// Its bytes.
    pub(crate) length: usize,
    /// Bytes of the body behind it.
    pub(crate) body: usize,
    /// Of an answer; 0 of a request.
    pub(crate) status: u16,
    /// Where the path is, of a request.
    pub(crate) path: std::ops::Range<usize>,
    /// Where the value of [`NUMBER`] is.
    pub(crate) number: Option<std::ops::Range<usize>>,
    /// Where the value of [`KEY`] is.
    pub(crate) key: Option<std::ops::Range<usize>>,
    /// Whether the connection ends with this message.
    pub(crate) close: bool,
}

/// A copy of a head for the next hop: its first line and all fields but those of this hop, then `more`, then the empty
/// line.
pub(crate) struct Copy<'a> {
    /// Fields that are added.
    pub(crate) more: &'a [u8],
    /// Where it goes to.
    pub(crate) out: &'a mut Vec<u8>,
}

/// Reads a request's head, if all of it is there.
pub(crate) fn request(bytes: &[u8], copy: Option<Copy<'_>>) -> Result<Option<Head>> {
    let mut lines = [httparse::EMPTY_HEADER; LINES];
    let mut parsed = httparse::Request::new(&mut lines);
    let httparse::Status::Complete(length) = parsed.parse(bytes)? else {
        return Ok(None);
    };
    let path = place(bytes, parsed.path.unwrap_or_default().as_bytes());
    head(bytes, length, 0, path, parsed.headers, copy).map(Some)
}

/// Reads an answer's head, if all of it is there.
pub(crate) fn answer(bytes: &[u8], copy: Option<Copy<'_>>) -> Result<Option<Head>> {
    let mut lines = [httparse::EMPTY_HEADER; LINES];
    let mut parsed = httparse::Response::new(&mut lines);
    let httparse::Status::Complete(length) = parsed.parse(bytes)? else {
        return Ok(None);
    };
    let status = parsed.code.unwrap_or_default();
    head(bytes, length, status, 0..0, parsed.headers, copy).map(Some)
}

fn head(
    bytes: &[u8],
    length: usize,
    status: u16,
    path: std::ops::Range<usize>,
    lines: &[httparse::Header<'_>],
    mut copy: Option<Copy<'_>>,
) -> Result<Head> {
    let mut head = Head {
        length,
        body: 0,
        status,
        path,
        number: None,
        key: None,
        close: false,
    };
    if let Some(copy) = &mut copy {
        let line = bytes
            .iter()
            .position(|byte| *byte == b'\n')
            .unwrap_or_default();
        copy.out.extend_from_slice(&bytes[..=line]);
    }
    for line in lines {
        let is = |name: &str| line.name.eq_ignore_ascii_case(name);
        if is("content-length") {
            head.body = std::str::from_utf8(line.value)?.parse()?;
        } else if is("transfer-encoding") {
            bail!("a body without a length");
        } else if is("connection") {
            head.close = line.value.eq_ignore_ascii_case(b"close");
            continue;
        } else if is("keep-alive") || is("upgrade") || is("te") {
            continue;
        } else if is(NUMBER) {
            ensure!(line.value.len() == DIGITS, "a number is not {DIGITS} long");
            head.number = Some(place(bytes, line.value));
        } else if is(KEY) {
            head.key = Some(place(bytes, line.value));
        }
        if let Some(copy) = &mut copy {
            copy.out.extend_from_slice(line.name.as_bytes());
            copy.out.extend_from_slice(b": ");
            copy.out.extend_from_slice(line.value);
            copy.out.extend_from_slice(b"\r\n");
        }
    }
    if let Some(copy) = copy {
        copy.out.extend_from_slice(copy.more);
        copy.out.extend_from_slice(b"\r\n");
    }
    Ok(head)
}

/// Where `part`, which lies in `whole`, begins and ends.
fn place(whole: &[u8], part: &[u8]) -> std::ops::Range<usize> {
    let start = part.as_ptr().addr() - whole.as_ptr().addr();
    start..start + part.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads_are_read_whole_and_copied_without_the_fields_of_one_hop() {
        let sent = b"POST /1k HTTP/1.1\r\nX-Routing-Key: a\r\nX-Number: 0123456789abcdef\r\nConnection: close\r\nContent-Length: 3\r\n\r\nabc";
        assert_eq!(request(&sent[..20], None).expect("it may go on"), None);
        let mut out = Vec::new();
        let copy = Copy {
            more: b"x-more: 1\r\n",
            out: &mut out,
        };
        let head = request(sent, Some(copy)).expect("it is a head");
        let head = head.expect("it is whole");
        assert_eq!(
            (head.length, head.body, head.close),
            (sent.len() - 3, 3, true)
        );
        assert_eq!(&sent[head.path.clone()], b"/1k");
        let number = head.number.clone().map(|at| &sent[at]);
        assert_eq!(number, Some(&b"0123456789abcdef"[..]));
        assert_eq!(head.key.clone().map(|at| &sent[at]), Some(&b"a"[..]));
        assert_eq!(
            out,
            b"POST /1k HTTP/1.1\r\nX-Routing-Key: a\r\nX-Number: 0123456789abcdef\r\nContent-Length: 3\r\nx-more: 1\r\n\r\n"
        );
        let chunked = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n";
        assert!(answer(chunked, None).is_err());
    }
}
