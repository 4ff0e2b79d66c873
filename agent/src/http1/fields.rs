//! Header fields as they are on the wire, and what they say of the connection and the body.

use bytes::{Buf as _, Bytes, BytesMut};
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use httparse::Status;

use super::MessageError;
use super::decoder::MAX_TRAILERS;

/// Field lines of an answer, and of trailers.
pub(crate) const MAX_HEADERS: usize = 100;

/// Header lines that there is room for besides those of a head: the router adds some.
const MORE_HEADERS: usize = 8;

/// Whether an empty line ends the head, of which so many bytes were looked at before: a head that comes in many pieces is
/// not read from its beginning for each.
pub(crate) fn is_whole(input: &[u8], seen: usize) -> bool {
    let from = seen.saturating_sub(3);
    let new = &input[from..];
    new.windows(2).any(|two| two == b"\n\n") || new.windows(3).any(|three| three == b"\n\r\n")
}

/// Takes so many bytes away. When none is left, the memory is given back as well: also an empty part of it keeps all of it.
pub(crate) fn pass(input: &mut Bytes, count: usize) {
    match count == input.len() {
        true => *input = Bytes::new(),
        false => input.advance(count),
    }
}

/// Leaves out empty lines, which some put between messages (RFC 9112, section 2.2), and says how many bytes they had.
pub(crate) fn skip_blank(input: &mut Bytes) -> usize {
    let mut rest = &input[..];
    while let Some(behind) = rest.strip_prefix(b"\r\n").or(rest.strip_prefix(b"\n")) {
        rest = behind;
    }
    let count = input.len() - rest.len();
    if count > 0 {
        pass(input, count);
    }
    count
}

/// Takes trailers, if they are whole.
pub(super) fn trailers(input: &mut Bytes) -> Result<Option<HeaderMap>, MessageError> {
    let whole = input.clone();
    let mut lines = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let parsed = httparse::parse_headers(&whole, &mut lines).map_err(MessageError::Head)?;
    let Status::Complete((length, lines)) = parsed else {
        return Ok(None);
    };
    if length > MAX_TRAILERS {
        return Err(MessageError::Malformed("trailers are too long"));
    }
    // Whose lines end in nothing but a line feed, they are read in two ways.
    let mut bare = whole[..length].windows(2);
    if bare.any(|two| two[1] == b'\n' && two[0] != b'\r') {
        return Err(MessageError::Malformed("line of a trailer has no end"));
    }
    let (fields, _) = values(&whole, lines, HeaderMap::new())?;
    pass(input, length);
    Ok(Some(fields))
}

/// What the header lines say of its connection and its body.
#[derive(Default)]
pub(crate) struct Told {
    pub(crate) connection: bool,
    /// Whether the last coding is `chunked`, if there are any.
    pub(crate) coding: Option<bool>,
    /// The length, unless those that were told differ.
    pub(crate) length: Option<Option<u64>>,
    /// Whether the length was told more than once.
    pub(crate) listed: bool,
    /// Whether `Expect`, `Upgrade`, `TE`, are there.
    pub(crate) expects: bool,
    pub(crate) upgrades: bool,
    pub(crate) te: bool,
}

/// What a field is about, if it frames its message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Said {
    Connection,
    Coding,
    Length,
    Expect,
    Upgrade,
    Te,
    /// Something else.
    Other,
}

impl Said {
    pub(super) fn of(name: &HeaderName) -> Self {
        match *name {
            header::CONNECTION => Self::Connection,
            header::TRANSFER_ENCODING => Self::Coding,
            header::CONTENT_LENGTH => Self::Length,
            header::EXPECT => Self::Expect,
            header::UPGRADE => Self::Upgrade,
            header::TE => Self::Te,
            _ => Self::Other,
        }
    }
}

impl Told {
    /// Takes note of a field.
    pub(super) fn note(&mut self, said: Said, value: &[u8]) {
        match said {
            Said::Other => {}
            Said::Connection => self.connection = true,
            Said::Expect => self.expects = true,
            Said::Upgrade => self.upgrades = true,
            Said::Te => self.te = true,
            Said::Coding => self.coding = Some(is_chunked(value)),
            Said::Length => {
                self.listed |= self.length.is_some() || value.contains(&b',');
                let numbers = value.split(|byte| *byte == b',');
                for number in numbers.map(|one| number(one.trim_ascii())) {
                    self.length = match self.length {
                        None => Some(number),
                        Some(before) => Some(before.filter(|before| number == Some(*before))),
                    };
                }
            }
        }
    }
}

/// The values are parts of `whole`, in which the lines lie.
pub(crate) fn values(
    whole: &Bytes,
    lines: &[httparse::Header<'_>],
    mut headers: HeaderMap,
) -> Result<(HeaderMap, Told), MessageError> {
    let mut told = Told::default();
    headers.reserve(lines.len() + MORE_HEADERS);
    for line in lines {
        let name = HeaderName::from_bytes(line.name.as_bytes())
            .map_err(|_| MessageError::Malformed("header name"))?;
        told.note(Said::of(&name), line.value);
        let value = HeaderValue::from_maybe_shared(whole.slice_ref(line.value))
            .map_err(|_| MessageError::Malformed("header value"))?;
        headers.append(name, value);
    }
    Ok((headers, told))
}

fn is_chunked(codings: &[u8]) -> bool {
    let last = codings.rsplit(|byte| *byte == b',').next();
    last.is_some_and(|coding| coding.trim_ascii().eq_ignore_ascii_case(b"chunked"))
}

/// A number in digits and nothing else.
fn number(text: &[u8]) -> Option<u64> {
    let digit = |number: u64, byte: &u8| {
        let digit = byte.checked_sub(b'0').filter(|digit| *digit < 10)?;
        number.checked_mul(10)?.checked_add(digit.into())
    };
    text.iter().try_fold(0, digit).filter(|_| !text.is_empty())
}

pub(crate) fn lists(headers: &HeaderMap, name: &HeaderName, token: &str) -> bool {
    headers.get_all(name).iter().any(|value| {
        let mut tokens = value.as_bytes().split(|byte| *byte == b',');
        tokens.any(|one| one.trim_ascii().eq_ignore_ascii_case(token.as_bytes()))
    })
}

/// Writes one field.
pub(crate) fn field(name: &HeaderName, value: &HeaderValue, out: &mut BytesMut) {
    let (name, value) = (name.as_str().as_bytes(), value.as_bytes());
    let length = name.len() + value.len() + 4;
    out.reserve(length);
    let room = &mut out.spare_capacity_mut()[..length];
    let (named, room) = room.split_at_mut(name.len());
    let (colon, room) = room.split_at_mut(2);
    let (valued, end) = room.split_at_mut(value.len());
    named.write_copy_of_slice(name);
    colon.write_copy_of_slice(b": ");
    valued.write_copy_of_slice(value);
    end.write_copy_of_slice(b"\r\n");
    // SAFETY: as many bytes were written behind the others.
    unsafe { out.set_len(out.len() + length) };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trailers_are_not_longer_than_they_may_be() {
        let text = |length| Bytes::from(format!("x: {}\r\n\r\n", "y".repeat(length)));
        assert!(trailers(&mut text(10)).is_ok_and(|fields| fields.is_some()));
        assert!(trailers(&mut text(MAX_TRAILERS)).is_err());
    }
}
