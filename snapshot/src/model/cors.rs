//! Which pages of other origins may read answers (Fetch, section 3.2; Gateway API, `HTTPCORSFilter`).

use crate::tree::shortened;

/// What browsers are told about requests from other origins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cors {
    /// Origins that may.
    pub origins: Vec<OriginPattern>,
    /// Methods beside those that need no permission.
    pub methods: Allowed,
    /// Request headers beside those that need no permission, lower case.
    pub headers: Allowed,
    /// Response headers that pages may read, lower case.
    pub expose: Allowed,
    /// Seconds for which a browser may remember the permission.
    pub max_age: u32,
    /// Whether requests may carry cookies and other credentials.
    pub credentials: bool,
}

/// A list of names, or all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Allowed {
    /// `*`.
    Any,
    /// These.
    Names(Vec<String>),
}

/// Origins: all, or those of a scheme, hosts and a port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OriginPattern {
    /// `*`.
    Any,
    /// `scheme://host[:port]`.
    Origin {
        /// Lower case.
        scheme: String,
        /// Hosts.
        host: OriginHost,
        /// Ports.
        port: OriginPort,
    },
}

/// Hosts of an origin, lower case.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OriginHost {
    /// `*`.
    Any,
    /// This one.
    Exact(String),
    /// `*.suffix`: one or more labels in front of the suffix.
    Below(String),
}

/// Ports of an origin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OriginPort {
    /// `*`.
    Any,
    /// This one; none: the well-known one of the scheme.
    Exact(Option<u16>),
}

impl OriginPattern {
    /// Reads a pattern of a route's filter (Gateway API, `HTTPCORSFilter`).
    ///
    /// # Errors
    ///
    /// What was expected.
    pub fn new(text: &str) -> Result<Self, String> {
        Self::read(text, |scheme, _, port| exact(scheme, port))
    }

    /// Reads a pattern of a policy (Envoy Gateway, `Origin`): there the port may be `*`, and is if every host is meant and
    /// no port given.
    ///
    /// # Errors
    ///
    /// What was expected.
    pub fn of_policy(text: &str) -> Result<Self, String> {
        Self::read(text, |scheme, host, port| match (host, port) {
            (OriginHost::Any, None) | (_, Some("*")) => Some(OriginPort::Any),
            _ => exact(scheme, port),
        })
    }

    fn read(
        text: &str,
        port: impl FnOnce(&str, &OriginHost, Option<&str>) -> Option<OriginPort>,
    ) -> Result<Self, String> {
        if text == "*" {
            return Ok(Self::Any);
        }
        let expected = || {
            format!(
                "expected `*` or an origin such as `https://shop.example.com`, `https://*.example.com` or `http://localhost:3000`, got `{}`",
                shortened(text)
            )
        };
        let (scheme, host, given) = parts(text).ok_or_else(expected)?;
        let host = match host.strip_prefix("*.") {
            _ if host == "*" => OriginHost::Any,
            Some(suffix) if is_host(suffix) => OriginHost::Below(suffix.to_owned()),
            None if is_host(&host) => OriginHost::Exact(host),
            _ => return Err(expected()),
        };
        let port = port(&scheme, &host, given.as_deref()).ok_or_else(expected)?;
        Ok(Self::Origin { scheme, host, port })
    }

    /// Whether an origin as browsers write it (RFC 6454, section 6.2) is covered. `null` is the origin
    /// of whoever hides his own, and covered by `*` alone.
    pub fn covers(&self, origin: &str) -> bool {
        let Self::Origin { scheme, host, port } = self else {
            return true;
        };
        let Some((given_scheme, given, given_port)) = parts(origin) else {
            return false;
        };
        let Some(given_port) = exact(&given_scheme, given_port.as_deref()) else {
            return false;
        };
        let same = match host {
            OriginHost::Any => true,
            OriginHost::Exact(name) => *name == given,
            OriginHost::Below(suffix) => given
                .strip_suffix(suffix.as_str())
                .and_then(|front| front.strip_suffix('.'))
                .is_some_and(|front| !front.is_empty()),
        };
        same && *scheme == given_scheme && (*port == OriginPort::Any || *port == given_port)
    }
}

/// Scheme, host and what is given as port, all in lower case.
fn parts(text: &str) -> Option<(String, String, Option<String>)> {
    let text = text.to_ascii_lowercase();
    let (scheme, rest) = text.split_once("://")?;
    let sound = scheme.starts_with(|one: char| one.is_ascii_alphabetic())
        && scheme
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte));
    // The colon of a port is behind the bracket of an IPv6 address.
    let (host, port) = match rest.rsplit_once(':') {
        Some((host, port)) if !port.contains(']') => (host, Some(port)),
        _ => (rest, None),
    };
    let plain = !host.is_empty() && !host.contains(['/', '?', '#', '@', ' ']);
    (sound && plain).then(|| (scheme.to_owned(), host.to_owned(), port.map(str::to_owned)))
}

/// One port of a scheme; none: what is given is no port.
fn exact(scheme: &str, given: Option<&str>) -> Option<OriginPort> {
    let Some(digits) = given else {
        return Some(OriginPort::Exact(None));
    };
    let plain = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
    let port = plain.then(|| digits.parse::<u16>().ok()).flatten()?;
    let known = match scheme {
        "http" => Some(80),
        "https" => Some(443),
        _ => None,
    };
    Some(OriginPort::Exact(
        Some(port).filter(|_| known != Some(port)),
    ))
}

fn is_host(text: &str) -> bool {
    let literal = text
        .strip_prefix('[')
        .and_then(|rest| rest.strip_suffix(']'))
        .is_some_and(|inside| inside.parse::<std::net::Ipv6Addr>().is_ok());
    let name = text.split('.').all(|label| {
        !label.is_empty()
            && label
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
    });
    literal || name
}

#[cfg(test)]
mod tests {
    use super::OriginPattern;

    #[test]
    fn origins_are_covered_by_scheme_host_and_port() {
        for (pattern, origin, covered) in [
            ("*", "https://any.test:8443", true),
            ("*", "null", true),
            ("https://a.test", "https://a.test", true),
            ("https://A.test:443", "https://a.TEST", true),
            ("https://a.test", "http://a.test", false),
            ("https://a.test", "https://a.test:8443", false),
            ("https://a.test", "https://a.test.evil", false),
            ("https://a.test", "https://eviala.test", false),
            ("https://a.test", "https://a.test@evil", false),
            ("https://a.test", "null", false),
            ("https://*.bar.com", "https://a.bar.com", true),
            ("https://*.bar.com", "https://a.b.bar.com", true),
            ("https://*.bar.com", "https://bar.com", false),
            ("https://*.bar.com", "https://evilbar.com", false),
            ("https://*.bar.com", "https://.bar.com", false),
            ("https://*.bar.com:8443", "https://a.bar.com:8443", true),
            ("https://*.bar.com:8443", "https://a.bar.com", false),
            ("http://*", "http://any.test", true),
            ("http://*", "https://any.test", false),
            ("http://[::1]:3000", "http://[::1]:3000", true),
            ("http://localhost:3000", "http://localhost:3000", true),
        ] {
            let read = OriginPattern::new(pattern).expect(pattern);
            assert_eq!(read.covers(origin), covered, "{pattern} {origin}");
        }
        for pattern in [
            "",
            "a.test",
            "https://",
            "https://a.test/",
            "https://a.test/b",
            "https://u@a.test",
            "https://a.*.test",
            "https://*a.test",
            "https://a.test:",
            "https://a.test:0x1",
            "https://a.test:65536",
            "://a.test",
            "null",
            "https://a.test:*",
        ] {
            assert!(OriginPattern::new(pattern).is_err(), "{pattern}");
        }
    }

    #[test]
    fn origins_of_policies_may_have_any_port() {
        for (pattern, origin, covered) in [
            ("https://localhost:*", "https://localhost", true),
            ("https://localhost:*", "https://localhost:8443", true),
            ("https://localhost:*", "https://localhost:x", false),
            ("https://localhost:*", "http://localhost", false),
            ("https://*.bar.com:*", "https://a.bar.com:8443", true),
            ("https://*.bar.com:*", "https://bar.com:8443", false),
            ("https://*.bar.com", "https://a.bar.com:8443", false),
            ("https://*", "https://any.test:8443", true),
            ("https://*", "http://any.test", false),
            ("http://*:8080", "http://any.test:8080", true),
            ("http://*:8080", "http://any.test", false),
            ("*", "http://any.test:1", true),
        ] {
            let read = OriginPattern::of_policy(pattern).expect(pattern);
            assert_eq!(read.covers(origin), covered, "{pattern} {origin}");
        }
        for pattern in ["https://a.test:", "https://a.test:8443:*", "a.test:*", ":*"] {
            assert!(OriginPattern::of_policy(pattern).is_err(), "{pattern}");
        }
    }
}
