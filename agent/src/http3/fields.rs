//! Fields of a head or of trailers (RFC 9204, section 4.5), all of which stand for themselves: the dynamic table has no size.

use std::borrow::Cow;

use bytes::{BufMut, BytesMut};

use super::huffman;
use super::table::STATIC;

/// What a field counts besides its name and value (RFC 9114, section 4.2.2).
const OVERHEAD: usize = 32;

/// Why fields cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unread {
    /// They are not written as they may be here.
    Malformed,
    /// They are more than may be.
    TooLarge,
}

/// Reads fields one after the other, up to a sum of their sizes; `take` gets names and values. An error of its own is passed
/// on inside.
pub(super) fn decode<E>(
    mut block: &[u8],
    most: usize,
    mut take: impl FnMut(&[u8], &[u8]) -> Result<(), E>,
) -> Result<Result<(), E>, Unread> {
    let input = &mut block;
    // Nothing that was said before is referred to.
    let required = number(input, 8)?;
    let _base = number(input, 7)?;
    if required != 0 {
        return Err(Unread::Malformed);
    }
    let mut size = 0;
    while let Some(first) = input.first().copied() {
        let (name, value) = match first {
            // The field of a number.
            0xc0.. => {
                let (name, value) = known(number(input, 6)?)?;
                (name.as_bytes().into(), value.as_bytes().into())
            }
            // The name of a number.
            0x40..0x80 if first & 0x10 != 0 => {
                let (name, _) = known(number(input, 4)?)?;
                (name.as_bytes().into(), text(input, 7)?)
            }
            // Both in full.
            0x20..0x40 => (text(input, 3)?, text(input, 7)?),
            // By what was said before.
            _ => return Err(Unread::Malformed),
        };
        let (name, value): (Cow<'_, [u8]>, Cow<'_, [u8]>) = (name, value);
        size += name.len() + value.len() + OVERHEAD;
        if size > most {
            return Err(Unread::TooLarge);
        }
        if let Err(error) = take(&name, &value) {
            return Ok(Err(error));
        }
    }
    Ok(Ok(()))
}

fn known(number: usize) -> Result<(&'static str, &'static str), Unread> {
    STATIC.get(number).copied().ok_or(Unread::Malformed)
}

/// A number of which the first byte has so many bits (RFC 7541, section 5.1).
fn number(input: &mut &[u8], bits: u32) -> Result<usize, Unread> {
    let (first, mut rest) = input.split_first().ok_or(Unread::Malformed)?;
    let mask = u8::MAX >> (8 - bits);
    let mut number = usize::from(first & mask);
    if number == usize::from(mask) {
        let mut shift = 0;
        loop {
            let (byte, behind) = rest.split_first().ok_or(Unread::Malformed)?;
            rest = behind;
            number += usize::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                break;
            }
            shift += 7;
            // Nothing here is as large.
            if shift > 28 {
                return Err(Unread::Malformed);
            }
        }
    }
    *input = rest;
    Ok(number)
}

/// A text of which the first byte has so many bits for its length, and above them the one that says whether it is coded.
fn text<'a>(input: &mut &'a [u8], bits: u32) -> Result<Cow<'a, [u8]>, Unread> {
    let coded = input.first().is_some_and(|first| first & (1 << bits) != 0);
    let length = number(input, bits)?;
    let (bytes, rest) = input.split_at_checked(length).ok_or(Unread::Malformed)?;
    *input = rest;
    match coded {
        true => Ok(huffman::decode(bytes).ok_or(Unread::Malformed)?.into()),
        false => Ok(bytes.into()),
    }
}

/// Begins a block of fields that refers to nothing.
pub(super) fn begin(out: &mut BytesMut) {
    out.put_slice(&[0, 0]);
}

/// Writes a field behind the others.
pub(super) fn encode(name: &str, value: &[u8], out: &mut BytesMut) {
    let mut same = STATIC.iter().enumerate().filter(|(_, one)| one.0 == name);
    let first = same.clone().next();
    if let Some((at, _)) = same.find(|(_, one)| one.1.as_bytes() == value) {
        return put_number(0xc0, 6, at, out);
    }
    match first {
        Some((at, _)) => put_number(0x50, 4, at, out),
        None => {
            put_number(0x20, 3, name.len(), out);
            out.put_slice(name.as_bytes());
        }
    }
    put_number(0, 7, value.len(), out);
    out.put_slice(value);
}

fn put_number(flags: u8, bits: u32, number: usize, out: &mut BytesMut) {
    let mask = u8::MAX >> (8 - bits);
    match u8::try_from(number) {
        Ok(small) if small < mask => return out.put_u8(flags | small),
        _ => out.put_u8(flags | mask),
    }
    let mut rest = number - usize::from(mask);
    while rest >= 0x80 {
        out.put_u8((rest & 0x7f) as u8 | 0x80);
        rest >>= 7;
    }
    out.put_u8(rest as u8);
}

#[cfg(test)]
mod tests {
    use super::*;

    type Fields = Vec<(String, String)>;

    fn read(block: &[u8], most: usize) -> Result<Fields, Unread> {
        let mut fields = Vec::new();
        let taken = decode(block, most, |name, value| {
            let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
            fields.push((text(name), text(value)));
            Ok::<_, ()>(())
        })?;
        assert_eq!(taken, Ok(()));
        Ok(fields)
    }

    #[test]
    fn what_is_written_is_read_again() {
        let long = "v".repeat(5000);
        let fields = [
            (":status", "200"),
            (":status", "431"),
            ("content-type", "application/json"),
            ("content-type", "text/html"),
            ("x-frame-options", "sameorigin"),
            ("x-own", ""),
            ("x-a-name-that-is-longer-than-a-few-bits", &long),
        ];
        let mut out = BytesMut::new();
        begin(&mut out);
        for (name, value) in fields {
            encode(name, value.as_bytes(), &mut out);
        }
        let expected: Fields = fields
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect();
        assert_eq!(read(&out, usize::MAX), Ok(expected));
        assert_eq!(out[2], 0xc0 | 25, "a field of a number is one byte");
        assert_eq!(read(&out, 5000), Err(Unread::TooLarge));
        for end in 0..out.len() {
            // Cut anywhere, it is read as less or not at all.
            if let Ok(fields) = read(&out[..end], usize::MAX) {
                assert!(fields.len() < 7);
            }
        }
    }

    #[test]
    fn literals_of_the_rfc_are_read() {
        // RFC 9204, appendix B.1.
        let block = b"\x00\x00\x51\x0b/index.html";
        let expected = [(":path".to_owned(), "/index.html".to_owned())];
        assert_eq!(read(block, 1000), Ok(expected.to_vec()));
    }

    #[test]
    fn what_refers_to_other_fields_is_refused() {
        for block in [
            // Inserts are required.
            &[0x02, 0x00, 0x80][..],
            // Of the dynamic table, by all four ways.
            &[0, 0, 0x80],
            &[0, 0, 0x40, 0x01, b'x'],
            &[0, 0, 0x10],
            &[0, 0, 0x00, 0x01, b'x'],
            // No field has this number.
            &[0, 0, 0xff, 0x24],
            // Numbers without an end, or without measure.
            &[0, 0, 0xff, 0x80],
            &[0, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01],
            // Texts without an end.
            &[0, 0, 0x51, 0x0b, b'/'],
            &[],
        ] {
            assert_eq!(read(block, 1000), Err(Unread::Malformed), "{block:?}");
        }
    }
}
