//! Rewriting of paths and headers.

use http::uri::Authority;
use http::{HeaderMap, HeaderValue};
use snapshot::model::PathRewrite;
use snapshot::path::{CanonicalPath, PathError};

use super::Edits;
use super::filter::Host;

/// The path sent upstream: canonical again, so that a substitution cannot smuggle dot segments.
///
/// `prefix` is the matched prefix without trailing slash.
pub fn path(
    given: &CanonicalPath,
    prefix: Option<&str>,
    rewrite: &PathRewrite,
) -> Result<CanonicalPath, PathError> {
    let text = match rewrite {
        PathRewrite::Full(full) => rooted(full.clone()),
        PathRewrite::Prefix(replacement) => {
            // Only prefix matches carry this filter; without one nothing was matched to replace.
            let rest = given.as_str().strip_prefix(prefix.unwrap_or_default());
            let replacement = replacement.strip_suffix('/').unwrap_or(replacement);
            rooted(format!("{replacement}{}", rest.unwrap_or(given.as_str())))
        }
        PathRewrite::Strip(strip) => {
            if !strip.covers(given) {
                return Ok(given.clone());
            }
            rooted(given.as_str()[strip.without_slash().len()..].to_owned())
        }
        PathRewrite::Regex {
            pattern,
            substitution,
        } => rooted(
            pattern
                .regex()
                .replace_all(given.as_str(), substitution.as_str())
                .into_owned(),
        ),
    };
    CanonicalPath::with(&text, given.rules())
}

/// A host that is no authority of RFC 9110, section 7.2.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("the rewritten host is not a host")]
pub struct HostError;

/// The host sent upstream, or none if it stays: `path` is the request's, `backend` the name of the
/// endpoint that is asked.
pub fn host(
    change: &Host,
    headers: &HeaderMap,
    path: &CanonicalPath,
    backend: Option<&str>,
) -> Result<Option<HeaderValue>, HostError> {
    let given = match change {
        Host::Name(name) => return Ok(Some(name.clone())),
        Host::Header(name) => match headers.get(name) {
            Some(value) => value.to_str().map_err(|_| HostError)?.to_owned(),
            None => return Ok(None),
        },
        Host::Backend => match backend {
            Some(name) => name.to_owned(),
            None => return Ok(None),
        },
        Host::Path(pattern, substitution) => pattern
            .regex()
            .replace_all(path.as_str(), substitution.as_str())
            .into_owned(),
    };
    let sound = Authority::try_from(given.as_str())
        .is_ok_and(|authority| !authority.host().is_empty() && !given.contains('@'));
    if !sound {
        return Err(HostError);
    }
    HeaderValue::from_str(&given)
        .map(Some)
        .map_err(|_| HostError)
}

fn rooted(path: String) -> String {
    if path.starts_with('/') {
        path
    } else {
        format!("/{path}")
    }
}

impl Edits {
    /// Applies the edits: set, then add, then remove. Added values join the existing one by a comma
    /// (Gateway API, `HTTPHeaderFilter`), except cookies, which cannot be joined (RFC 6265, section 3).
    pub fn apply(&self, headers: &mut HeaderMap) {
        for (name, value) in &self.set {
            headers.insert(name.clone(), value.clone());
        }
        for (name, value) in &self.add {
            if name == http::header::SET_COOKIE || !headers.contains_key(name) {
                headers.append(name.clone(), value.clone());
                continue;
            }
            let mut joined = Vec::new();
            for known in headers.get_all(name) {
                joined.extend_from_slice(known.as_bytes());
                joined.push(b',');
            }
            joined.extend_from_slice(value.as_bytes());
            match HeaderValue::from_bytes(&joined) {
                Ok(joined) => headers.insert(name.clone(), joined),
                // Valid values joined by a comma are valid; a second line means the same.
                Err(_) => headers
                    .append(name.clone(), value.clone())
                    .then(|| value.clone()),
            };
        }
        for name in &self.remove {
            headers.remove(name);
        }
    }
}

#[cfg(test)]
mod tests {
    use http::{HeaderMap, HeaderName, HeaderValue};
    use snapshot::model::{PathRewrite, Pattern};
    use snapshot::path::CanonicalPath;

    use super::{HostError, host, path};
    use crate::route::Edits;
    use crate::route::filter::Host;

    fn canonical(text: &str) -> CanonicalPath {
        CanonicalPath::new(text).expect("table entry is a path")
    }

    #[test]
    fn what_a_listener_lets_through_stays_behind_a_new_prefix() {
        for (given, expected) in [
            ("/foo/a%2Fb", Ok("/xyz/a%2Fb")),
            ("/foo//a", Ok("/xyz//a")),
            ("/foo/a", Ok("/xyz/a")),
        ] {
            let rules = snapshot::path::PathRules {
                keep_escaped_slashes: true,
                merge_slashes: false,
            };
            let given = CanonicalPath::with(given, rules).expect("table entry is a path");
            let rewrite = PathRewrite::Prefix("/xyz".into());
            let got = path(&given, Some("/foo"), &rewrite);
            assert_eq!(
                got.map(|path| path.to_string()),
                expected.map(str::to_owned)
            );
        }
    }

    #[test]
    fn prefixes_are_replaced_by_the_gateway_api_table() {
        for (prefix, replacement, given, expected) in [
            ("/foo", "/xyz", "/foo/bar", "/xyz/bar"),
            ("/foo", "/xyz/", "/foo/bar", "/xyz/bar"),
            ("/foo", "/xyz", "/foo", "/xyz"),
            ("/foo", "/xyz", "/foo/", "/xyz/"),
            ("/foo", "", "/foo/bar", "/bar"),
            ("/foo", "/", "/foo/bar", "/bar"),
            ("/foo", "", "/foo", "/"),
            ("/foo", "/", "/foo/", "/"),
            ("", "/xyz", "/bar", "/xyz/bar"),
            ("/a/b", "/c", "/a/b/b", "/c/b"),
        ] {
            let got = path(
                &canonical(given),
                Some(prefix),
                &PathRewrite::Prefix(replacement.into()),
            );
            assert_eq!(
                got.map(|path| path.to_string()),
                Ok(expected.to_owned()),
                "{prefix} -> {replacement}, {given}"
            );
        }
    }

    #[test]
    fn other_rewrites_stay_canonical() {
        let strip = |prefix: &str| PathRewrite::Strip(canonical(prefix));
        let regex = |pattern: &str, substitution: &str| PathRewrite::Regex {
            pattern: Pattern::new(pattern).expect("table entry compiles"),
            substitution: substitution.into(),
        };
        for (rewrite, given, expected) in [
            (strip("/p/c"), "/p/c/api/x", Ok("/api/x")),
            (strip("/p/c"), "/p/c", Ok("/")),
            (strip("/p/c"), "/p/cat", Ok("/p/cat")),
            (strip("/"), "/p", Ok("/p")),
            (PathRewrite::Full("/all".into()), "/p", Ok("/all")),
            (regex("^/p/c(/api/.+)$", "${1}"), "/p/c/api/9", Ok("/api/9")),
            (regex("a", "b"), "/a/xa", Ok("/b/xb")),
            (regex("^/x", ""), "/xy", Ok("/y")),
            (regex("/-/", "/../"), "/a/-/b", Ok("/b")),
            (
                regex("^/-", "/.."),
                "/-/b",
                Err(snapshot::path::PathError::AboveRoot),
            ),
        ] {
            let got = path(&canonical(given), None, &rewrite);
            assert_eq!(
                got.map(|path| path.to_string()),
                expected.map(str::to_owned),
                "{rewrite:?} {given}"
            );
        }
    }

    #[test]
    fn hosts_come_from_where_the_filter_says() {
        let mut headers = HeaderMap::new();
        headers.insert("x-host", HeaderValue::from_static("a.test:81"));
        headers.insert("x-bad", HeaderValue::from_static("u@a.test/b"));
        let pattern = |text: &str| Pattern::new(text).expect("table entry compiles");
        let header = |name: &'static str| Host::Header(HeaderName::from_static(name));
        for (change, backend, expected) in [
            (
                Host::Name(HeaderValue::from_static("b")),
                None,
                Ok(Some("b")),
            ),
            (header("x-host"), None, Ok(Some("a.test:81"))),
            (header("x-none"), None, Ok(None)),
            (header("x-bad"), None, Err(HostError)),
            (Host::Backend, Some("up.test"), Ok(Some("up.test"))),
            (Host::Backend, None, Ok(None)),
            (
                Host::Path(pattern("^/([a-z]+)/.*$"), "${1}.test".into()),
                None,
                Ok(Some("shop.test")),
            ),
            (
                Host::Path(pattern("x"), String::new()),
                None,
                Err(HostError),
            ),
        ] {
            let got = host(&change, &headers, &canonical("/shop/1"), backend);
            let expected = expected.map(|text| text.map(HeaderValue::from_static));
            assert_eq!(got, expected, "{change:?}");
        }
    }

    #[test]
    fn headers_are_set_added_and_removed() {
        let mut headers = HeaderMap::new();
        headers.append("x-old", HeaderValue::from_static("old"));
        headers.append("x-set", HeaderValue::from_static("a"));
        headers.append("x-set", HeaderValue::from_static("b"));
        headers.append("x-gone", HeaderValue::from_static("1"));
        let pair = |name: &'static str, value: &'static str| {
            (
                HeaderName::from_static(name),
                HeaderValue::from_static(value),
            )
        };
        Edits {
            set: vec![pair("x-set", "c")],
            add: vec![pair("x-old", "new"), pair("x-new", "1")],
            remove: vec![HeaderName::from_static("x-gone")],
        }
        .apply(&mut headers);
        let all = |name: &str| -> Vec<_> { headers.get_all(name).iter().collect() };
        assert_eq!(all("x-set"), ["c"]);
        assert_eq!(all("x-old"), ["old,new"]);
        assert_eq!(all("x-new"), ["1"]);
        assert!(all("x-gone").is_empty());
    }
}
