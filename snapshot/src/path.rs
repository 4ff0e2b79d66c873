//! One canonical path per request and per document field.
//!
//! Matching, authorisation, rewriting, logs and the upstream all see this form, so that no two of
//! them can disagree about what a path means.

use std::fmt;
use std::sync::Arc;

/// A path in canonical form: starts with `/`, no dot segments, no doubled slashes unless a listener's rules keep them,
/// percent-encoding only where it is needed and in upper case (RFC 3986, section 6.2.2).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CanonicalPath(Arc<str>);

/// Why a path has no canonical form.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PathError {
    /// It does not start with `/`.
    #[error("path does not start with `/`")]
    NotAbsolute,
    /// `%2F` or `%5C`: what is one segment here would be two elsewhere.
    #[error("path has an encoded slash or backslash")]
    EncodedSlash,
    /// NUL, another control character, a backslash, or a byte outside of RFC 3986 that is not encoded.
    #[error("path has a character that is not allowed")]
    Forbidden,
    /// `%` without two hexadecimal digits.
    #[error("path has a broken percent-encoding")]
    BrokenEncoding,
    /// A dot segment with parameters, such as `..;x`: servers that take parameters off before they
    /// resolve a path read `..`, others a name.
    #[error("path has a dot segment with parameters")]
    DotParameters,
    /// A dot segment between encoded slashes: a server that decodes them first would follow it.
    #[error("path has a dot segment beside an encoded slash")]
    EscapedDots,
    /// More `..` than segments.
    #[error("path leaves the root")]
    AboveRoot,
}

/// What a listener may allow in its paths beyond what is safe everywhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PathRules {
    /// `%2F` and `%5C` stay, as a part of their segment. Else a path with one is refused.
    pub keep_escaped_slashes: bool,
    /// Slashes in a row are one. Else they stay.
    pub merge_slashes: bool,
}

impl Default for PathRules {
    fn default() -> Self {
        Self {
            keep_escaped_slashes: false,
            merge_slashes: true,
        }
    }
}

impl CanonicalPath {
    /// The root.
    pub fn root() -> Self {
        Self("/".into())
    }

    /// Brings a path (no query) into canonical form, or says why there is none.
    pub fn new(path: &str) -> Result<Self, PathError> {
        Self::with(path, PathRules::default())
    }

    /// The same by rules of a listener.
    pub fn with(path: &str, rules: PathRules) -> Result<Self, PathError> {
        if !path.starts_with('/') {
            return Err(PathError::NotAbsolute);
        }
        // Whatever the rules are: it has nothing that they are about.
        if is_canonical(path.as_bytes()) {
            return Ok(Self(path.into()));
        }
        let decoded = unreserved_decoded(path, rules.keep_escaped_slashes)?;
        let mut segments: Vec<&str> = Vec::new();
        let mut open = false;
        let mut rest = decoded.split('/').skip(1).peekable();
        while let Some(segment) = rest.next() {
            open = false;
            match segment {
                "" if !rules.merge_slashes && rest.peek().is_some() => segments.push(segment),
                "" | "." => open = true,
                ".." => {
                    segments.pop().ok_or(PathError::AboveRoot)?;
                    open = true;
                }
                _ if dots_with_parameters(segment) => return Err(PathError::DotParameters),
                _ if rules.keep_escaped_slashes && dots_between_slashes(segment) => {
                    return Err(PathError::EscapedDots);
                }
                _ => segments.push(segment),
            }
        }
        let mut canonical = String::with_capacity(decoded.len());
        for segment in &segments {
            canonical.push('/');
            canonical.push_str(segment);
        }
        if open || segments.is_empty() {
            canonical.push('/');
        }
        Ok(Self(canonical.into()))
    }

    /// The path as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The rules that let through what this path has: what is made of it may have the same.
    pub fn rules(&self) -> PathRules {
        PathRules {
            keep_escaped_slashes: self.0.contains("%2F") || self.0.contains("%5C"),
            merge_slashes: !self.0.contains("//"),
        }
    }

    /// Whether this path, read as a prefix of whole segments, covers `path`.
    pub fn covers(&self, path: &Self) -> bool {
        path.0
            .strip_prefix(self.without_slash())
            .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    }

    /// The path without a trailing slash; empty for the root.
    pub fn without_slash(&self) -> &str {
        self.0.strip_suffix('/').unwrap_or(&self.0)
    }
}

impl From<CanonicalPath> for Arc<str> {
    fn from(path: CanonicalPath) -> Self {
        path.0
    }
}

impl fmt::Display for CanonicalPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Whether a path, which begins with a slash, is canonical at first sight, as most are.
fn is_canonical(path: &[u8]) -> bool {
    /// What a byte is: 0 is not plain, 1 is, 3 behind a slash may change the path.
    const KINDS: [u8; 256] = {
        let mut kinds = [0; 256];
        let mut byte = 0;
        while byte < kinds.len() {
            kinds[byte] = match byte as u8 {
                b'/' | b'.' => 3,
                plain if unreserved(plain) => 1,
                _ => 0,
            };
            byte += 1;
        }
        kinds
    };
    let mut slash = false;
    path.iter().all(|byte| {
        let kind = KINDS[usize::from(*byte)];
        let folds = slash && kind == 3;
        slash = *byte == b'/';
        kind != 0 && !folds
    })
}

/// Decodes what needs no encoding (RFC 3986, section 2.3) and folds the digits of the rest.
fn unreserved_decoded(path: &str, keep_slashes: bool) -> Result<String, PathError> {
    let bytes = path.as_bytes();
    let mut decoded = String::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let byte = bytes[at];
        if byte != b'%' {
            if !allowed(byte) {
                return Err(PathError::Forbidden);
            }
            decoded.push(char::from(byte));
            at += 1;
            continue;
        }
        let value = bytes
            .get(at + 1..at + 3)
            .and_then(|digits| std::str::from_utf8(digits).ok())
            .filter(|digits| digits.bytes().all(|digit| digit.is_ascii_hexdigit()))
            .and_then(|digits| u8::from_str_radix(digits, 16).ok())
            .ok_or(PathError::BrokenEncoding)?;
        match value {
            b'/' | b'\\' if !keep_slashes => return Err(PathError::EncodedSlash),
            0..=31 | 127 => return Err(PathError::Forbidden),
            _ if unreserved(value) => decoded.push(char::from(value)),
            _ => decoded.push_str(&format!("%{value:02X}")),
        }
        at += 3;
    }
    Ok(decoded)
}

fn dots_with_parameters(segment: &str) -> bool {
    let rest = segment.strip_prefix("..").or(segment.strip_prefix('.'));
    rest.is_some_and(|rest| rest.starts_with(';') || rest.starts_with("%3B"))
}

/// Whether a segment with encoded slashes would have a dot segment if they were slashes. Their digits are upper case here.
fn dots_between_slashes(segment: &str) -> bool {
    let parts = segment.split("%2F").flat_map(|part| part.split("%5C"));
    let mut parts = parts.filter(|part| *part != segment);
    parts.any(|part| matches!(part, "." | "..") || dots_with_parameters(part))
}

const fn unreserved(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~')
}

/// `pchar` and `/` (RFC 3986, section 3.3), and the few bytes more that clients send and Hyper takes.
fn allowed(byte: u8) -> bool {
    unreserved(byte)
        || matches!(
            byte,
            b'/' | b'!'
                | b'$'
                | b'&'
                | b'\''
                | b'('
                | b')'
                | b'*'
                | b'+'
                | b','
                | b';'
                | b'='
                | b':'
                | b'@'
                | b'|'
                | b'['
                | b']'
                | b'{'
                | b'}'
                | b'"'
                | b'^'
                | b'`'
                | b'<'
                | b'>'
        )
}

#[cfg(test)]
mod tests {
    use super::{CanonicalPath, PathError, PathRules};

    #[test]
    fn a_listener_may_let_more_through() {
        let rules = |keep_escaped_slashes, merge_slashes| PathRules {
            keep_escaped_slashes,
            merge_slashes,
        };
        let (keep, apart) = (rules(true, true), rules(false, false));
        for (rules, given, expected) in [
            (keep, "/a%2fb%5cc/d", Ok("/a%2Fb%5Cc/d")),
            (keep, "/a%2F..b", Ok("/a%2F..b")),
            (keep, "/a//%2F", Ok("/a/%2F")),
            (keep, "/a/..%2Fb", Err(PathError::EscapedDots)),
            (keep, "/a%2F%2e%2E/b", Err(PathError::EscapedDots)),
            (keep, "/a%5C.%5Cb", Err(PathError::EscapedDots)),
            (keep, "/a%2F..;x", Err(PathError::EscapedDots)),
            (keep, "/a%00", Err(PathError::Forbidden)),
            (apart, "/a//b", Ok("/a//b")),
            (apart, "//", Ok("//")),
            (apart, "///a", Ok("///a")),
            (apart, "/a//", Ok("/a//")),
            (apart, "/a/", Ok("/a/")),
            (apart, "/a//..", Ok("/a/")),
            (apart, "/a//./b", Ok("/a//b")),
            (apart, "/a%2Fb", Err(PathError::EncodedSlash)),
        ] {
            let got = CanonicalPath::with(given, rules);
            let text = got
                .as_ref()
                .map(CanonicalPath::as_str)
                .map_err(|error| *error);
            assert_eq!(text, expected, "{given}");
            if let Ok(path) = got {
                assert_eq!(
                    CanonicalPath::with(path.as_str(), path.rules()),
                    Ok(path.clone())
                );
            }
        }
    }

    #[test]
    fn paths_have_one_form() {
        let table: &[(&str, Result<&str, PathError>)] = &[
            ("/", Ok("/")),
            ("/a/b", Ok("/a/b")),
            ("/a//b/", Ok("/a/b/")),
            ("/a/./b/../c", Ok("/a/c")),
            ("/a/..", Ok("/")),
            ("/a/b/..", Ok("/a/")),
            ("/a/.", Ok("/a/")),
            ("/%61%2e%2E/b", Ok("/a../b")),
            ("/a/%2e%2e/b", Ok("/b")),
            ("/a%20b%c3%a4", Ok("/a%20b%C3%A4")),
            ("/..", Err(PathError::AboveRoot)),
            ("/%2e%2e/a", Err(PathError::AboveRoot)),
            ("/a%2fb", Err(PathError::EncodedSlash)),
            ("/a%5Cb", Err(PathError::EncodedSlash)),
            ("/a\\b", Err(PathError::Forbidden)),
            ("/a%00", Err(PathError::Forbidden)),
            ("/a%0d%0ab", Err(PathError::Forbidden)),
            ("/a/..;/b", Err(PathError::DotParameters)),
            ("/a/%2e.;x=y/b", Err(PathError::DotParameters)),
            ("/a/.;/b", Err(PathError::DotParameters)),
            ("/a/..%3b/b", Err(PathError::DotParameters)),
            ("/a;x=y/...;/b", Ok("/a;x=y/...;/b")),
            ("/a%", Err(PathError::BrokenEncoding)),
            ("/a%4", Err(PathError::BrokenEncoding)),
            ("/a%+1", Err(PathError::BrokenEncoding)),
            ("a", Err(PathError::NotAbsolute)),
            ("", Err(PathError::NotAbsolute)),
        ];
        for (given, expected) in table {
            let got = CanonicalPath::new(given);
            assert_eq!(
                got.as_ref().map(CanonicalPath::as_str).map_err(|e| *e),
                *expected,
                "{given}"
            );
        }
    }

    #[test]
    fn prefixes_cover_whole_segments() {
        let path = |text: &str| CanonicalPath::new(text).expect("table entry is a path");
        for (prefix, given, covered) in [
            ("/a/b", "/a/b", true),
            ("/a/b", "/a/b/", true),
            ("/a/b", "/a/b/c", true),
            ("/a/b", "/a/bc", false),
            ("/a/b/", "/a/b", true),
            ("/", "/anything", true),
        ] {
            assert_eq!(
                path(prefix).covers(&path(given)),
                covered,
                "{prefix} {given}"
            );
        }
    }
}
