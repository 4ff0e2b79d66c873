//! How a request names who it is for.

use http::HeaderValue;
use http::uri::Authority;

/// Host and port as a request names them: `Host` of HTTP/1.1, `:authority` of HTTP/2 (RFC 9110, section 7.2).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct RequestHost {
    authority: Authority,
    field: HeaderValue,
}

/// A text that is no `host[:port]`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected a host and port, got `{0}`")]
pub struct RequestHostError(String);

impl RequestHost {
    /// Reads `host[:port]`.
    pub fn new(text: &str) -> Result<Self, RequestHostError> {
        let invalid = || RequestHostError(text.to_owned());
        let authority = Authority::try_from(text).map_err(|_| invalid())?;
        // A user's name before the host is no part of it, and what is behind is a port.
        let host = authority.host();
        let sound = match text.strip_prefix(host) {
            Some("") => true,
            Some(port) => port.starts_with(':') && authority.port_u16().is_some(),
            None => false,
        };
        if host.is_empty() || !sound {
            return Err(invalid());
        }
        let field = HeaderValue::from_str(text).map_err(|_| invalid())?;
        Ok(Self { authority, field })
    }

    /// As it was read.
    pub fn as_str(&self) -> &str {
        self.authority.as_str()
    }

    /// `:authority`.
    pub fn authority(&self) -> &Authority {
        &self.authority
    }

    /// The value of `Host`.
    pub fn field(&self) -> &HeaderValue {
        &self.field
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_and_its_port_are_read_and_nothing_else_is() {
        for text in ["a", "a.test:8080", "10.0.0.1", "[fd00::1]", "[fd00::1]:443"] {
            let host = RequestHost::new(text).expect(text);
            assert_eq!(host.as_str(), text);
            assert_eq!(host.authority().as_str(), text);
            assert_eq!(host.field(), text);
        }
        for text in [
            "", ":80", "a b", "a/b", "http://a", "me@a", "me@a:80", "a@a:80", "a:", "a:x",
            "a:65536", "[::1", "ä",
        ] {
            assert!(RequestHost::new(text).is_err(), "{text}");
        }
    }
}
