//! Field lines of heads that look like those before them.
//!
//! Whoever is at the other end sends the same names in the same order again and again, so they are compared instead of read.
//! Only the plain form is known here: a name, a colon, a value without tabs, and both characters of a line's end. Whatever
//! else a head may have is for the parser of all heads, which then reads it from its beginning.

use bytes::Bytes;
use http::header::{HeaderMap, HeaderName, HeaderValue};

use super::fields::{MAX_HEADERS, Said, Told};

/// Names that are remembered, and bytes of the longest one.
const MOST: usize = 32;
const LONGEST: usize = 64;

/// The names of the last head, in its order.
#[derive(Debug, Default)]
pub(crate) struct Names(Vec<Known>);

#[derive(Debug)]
struct Known {
    /// As it was sent, with its colon.
    sent: Box<[u8]>,
    name: HeaderName,
    said: Said,
}

impl Names {
    /// Reads the field lines of `head` behind its first line, which ends at `at`, and adds them to the map. Gives the length
    /// of the head and what it tells; none: it is not plain, or not whole, and what was added is of no use.
    pub(crate) fn read(
        &mut self,
        head: &Bytes,
        mut at: usize,
        headers: &mut HeaderMap,
    ) -> Option<(usize, Told)> {
        let mut told = Told::default();
        for line in 0..=MAX_HEADERS {
            let rest = head.get(at..)?;
            if rest.starts_with(b"\r\n") {
                return Some((at + 2, told));
            }
            let value_at = match self.0.get(line) {
                Some(known) if rest.starts_with(&known.sent) => at + known.sent.len(),
                _ => at + self.learn(line, rest)?,
            };
            let (start, end) = value(head, value_at)?;
            // One that is beyond what is remembered was put behind the others.
            let known = self.0.get(line).or(self.0.last())?;
            told.note(known.said, &head[start..end]);
            // SAFETY: `value` found nothing but visible bytes, blanks and bytes above ASCII.
            let value = unsafe { HeaderValue::from_maybe_shared_unchecked(head.slice(start..end)) };
            headers.append(known.name.clone(), value);
            at = end + 2;
        }
        None
    }

    /// Reads a name that was not expected, and expects it at this place the next time. Gives its length with the colon.
    fn learn(&mut self, line: usize, rest: &[u8]) -> Option<usize> {
        let colon = rest.iter().take(LONGEST).position(|byte| *byte == b':')?;
        let name = HeaderName::from_bytes(&rest[..colon]).ok()?;
        let known = Known {
            sent: rest[..=colon].into(),
            said: Said::of(&name),
            name,
        };
        let line = line.min(MOST);
        match self.0.get_mut(line) {
            Some(place) => *place = known,
            None => self.0.push(known),
        }
        Some(colon + 1)
    }
}

/// Where a value begins and ends, blanks around it left out; none: its line is not plain, or does not end here.
fn value(head: &[u8], at: usize) -> Option<(usize, usize)> {
    let blanks = head[at..].iter().take_while(|byte| **byte == b' ').count();
    let start = at + blanks;
    let stop = start + visible(&head[start..]);
    if !head[stop..].starts_with(b"\r\n") {
        return None;
    }
    let behind = head[start..stop].iter().rev();
    let behind = behind.take_while(|byte| **byte == b' ').count();
    // The blanks behind a value are between it and the end of its line.
    (behind == 0).then_some((start, stop))
}

/// Bytes until the first control character, tabs included.
fn visible(bytes: &[u8]) -> usize {
    const ONES: u64 = u64::MAX / 0xff;
    let (words, rest) = bytes.as_chunks::<8>();
    for (at, word) in words.iter().enumerate() {
        let word = u64::from_le_bytes(*word);
        // The highest bit of each byte that is below a blank, or DEL. A borrow goes up only, so the lowest one is true.
        let low = word.wrapping_sub(ONES * 0x20) & !word;
        let del = word ^ (ONES * 0x7f);
        let del = del.wrapping_sub(ONES) & !del;
        let found = (low | del) & (ONES * 0x80);
        if found != 0 {
            return 8 * at + found.trailing_zeros() as usize / 8;
        }
    }
    let control = |byte: &u8| byte.is_ascii_control();
    let behind = rest.iter().position(control).unwrap_or(rest.len());
    bytes.len() - rest.len() + behind
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::http1::fields::values;

    /// What the parser of all heads makes of field lines.
    fn parsed(lines: &[u8]) -> Option<(usize, HeaderMap)> {
        let mut room = [httparse::EMPTY_HEADER; MAX_HEADERS];
        let Ok(httparse::Status::Complete((length, lines_read))) =
            httparse::parse_headers(lines, &mut room)
        else {
            return None;
        };
        let whole = Bytes::copy_from_slice(lines);
        let inside = |part: &[u8]| part.as_ptr() as usize - lines.as_ptr() as usize;
        let moved: Vec<_> = lines_read
            .iter()
            .map(|line| httparse::Header {
                name: line.name,
                value: match line.value {
                    [] => &whole[..0],
                    value => &whole[inside(value)..][..value.len()],
                },
            })
            .collect();
        let (map, _) = values(&whole, &moved, HeaderMap::new()).ok()?;
        Some((length, map))
    }

    fn read(names: &mut Names, lines: &[u8]) -> Option<(usize, HeaderMap)> {
        let mut map = HeaderMap::new();
        let (length, _) = names.read(&Bytes::copy_from_slice(lines), 0, &mut map)?;
        Some((length, map))
    }

    #[test]
    fn heads_are_read_whatever_the_one_before_was() {
        let mut names = Names::default();
        for lines in [
            &b"\r\n"[..],
            b"Date: now\r\nX-A: 1\r\n\r\nbody",
            b"date:now\r\nX-A:  2\r\nX-A: 3\r\n\r\n",
            b"X-A: \r\nDate:\r\n\r\n",
            b"X-A: caf\xc3\xa9 \xff\r\n\r\n",
        ] {
            let expected = parsed(lines);
            assert!(expected.is_some());
            assert_eq!(read(&mut names, lines), expected);
            assert_eq!(read(&mut names, lines), expected);
        }
        let many: String = (0..60).map(|at| format!("x-{at}: {at}\r\n")).collect();
        let many = format!("{many}\r\n");
        assert_eq!(read(&mut names, many.as_bytes()), parsed(many.as_bytes()));
        assert!(names.0.len() <= MOST + 1);
        let more: String = (0..=MAX_HEADERS).map(|_| "x: 1\r\n").collect();
        assert_eq!(read(&mut names, format!("{more}\r\n").as_bytes()), None);
    }

    #[test]
    fn what_is_not_plain_is_left_to_the_parser() {
        for lines in [
            &b"X-A: 1\n\n"[..],
            b"X-A: 1\r\n folded\r\n\r\n",
            b"X-A : 1\r\n\r\n",
            b"X-A: a\tb\r\n\r\n",
            b"X-A: 1 \r\n\r\n",
            b"X-A: a\x7fb\r\n\r\n",
            b"X-A: a\0b\r\n\r\n",
            b"X-A: a\rb\r\n\r\n",
            b"X A: 1\r\n\r\n",
            b": 1\r\n\r\n",
            b"X-A: 1\r\n",
            b"X-A: 1\r",
            b"X-A: 1",
            b"X-A",
            b"",
        ] {
            assert_eq!(read(&mut Names::default(), lines), None, "{lines:?}");
        }
    }

    #[test]
    fn told_is_what_the_lines_say() {
        let mut map = HeaderMap::new();
        let head = Bytes::from_static(
            b"Content-Length: 12\r\nconnection: close\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
        );
        let told = Names::default().read(&head, 0, &mut map);
        let (length, told) = told.expect("a plain head");
        assert_eq!(length, head.len());
        assert_eq!(told.length, Some(Some(12)));
        assert!(told.connection && told.coding == Some(true) && !told.listed);
    }

    proptest! {
        #[test]
        fn nothing_is_read_otherwise_than_by_the_parser(
            lines in proptest::collection::vec(
                ("[a-cA-C -]{0,3}", "[: ]{0,2}", "[a-b \t\r\n\x7f\u{e9}]{0,9}", "\r?\n?"), 0..4),
            end in "(\r\n)?b?",
        ) {
            let mut text = String::new();
            for (name, colon, value, over) in lines {
                text += &format!("{name}{colon}{value}{over}");
            }
            text += &end;
            let mut names = Names::default();
            for _ in 0..2 {
                if let Some(found) = read(&mut names, text.as_bytes()) {
                    prop_assert_eq!(Some(found), parsed(text.as_bytes()));
                }
            }
        }
    }
}
