//! Which fields of a head somebody looks for, found in one walk over its names: to hash a name only to find that it is not
//! there costs more than a look at each name that is.

use std::ops::BitOr;

use http::header::{self, HeaderMap, HeaderName};

/// What is there of a set of kinds of fields.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Seen(u16);

impl Seen {
    /// Fields of one connection (RFC 9110, section 7.6.1), `Connection` and the next ones among them.
    pub(super) const HOP: Self = Self(1);
    pub(super) const CONNECTION: Self = Self(1 << 1);
    pub(super) const TE: Self = Self(1 << 2);
    pub(super) const CODING: Self = Self(1 << 3);
    pub(super) const UPGRADE: Self = Self(1 << 4);
    pub(super) const COOKIE: Self = Self(1 << 5);
    pub(super) const EXPECT: Self = Self(1 << 6);
    /// What only the router may say of placements.
    pub(super) const OURS: Self = Self(1 << 7);
    /// Fields by which frameworks take another method or path than the request line's.
    pub(super) const OVERRIDE: Self = Self(1 << 8);
    /// Whatever tells of the way so far, besides `X-Forwarded-For`.
    pub(super) const WAY: Self = Self(1 << 9);
    pub(super) const FORWARDED_FOR: Self = Self(1 << 10);
    pub(super) const REQUEST_ID: Self = Self(1 << 11);
    /// A name with an underscore.
    pub(super) const UNDERSCORE: Self = Self(1 << 12);
    /// A name that is there more than once.
    pub(super) const REPEATED: Self = Self(1 << 13);

    pub(super) fn of(headers: &HeaderMap) -> Self {
        let repeated = match headers.len() == headers.keys_len() {
            true => Self::default(),
            false => Self::REPEATED,
        };
        headers
            .keys()
            .fold(repeated, |seen, name| seen | kind(name))
    }

    /// Whether any of these is there.
    pub(super) fn any(self, of: Self) -> bool {
        self.0 & of.0 != 0
    }
}

impl BitOr for Seen {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

/// What a name is.
pub(super) fn kind(name: &HeaderName) -> Seen {
    match *name {
        header::HOST | header::USER_AGENT | header::ACCEPT | header::ACCEPT_ENCODING => {
            Seen::default()
        }
        header::DATE | header::SERVER | header::CONTENT_TYPE | header::CONTENT_LENGTH => {
            Seen::default()
        }
        header::CONNECTION => Seen::HOP | Seen::CONNECTION,
        header::TE => Seen::HOP | Seen::TE,
        header::TRANSFER_ENCODING => Seen::HOP | Seen::CODING,
        header::UPGRADE => Seen::HOP | Seen::UPGRADE,
        header::PROXY_AUTHENTICATE | header::PROXY_AUTHORIZATION => Seen::HOP,
        header::COOKIE => Seen::COOKIE,
        header::EXPECT => Seen::EXPECT,
        header::FORWARDED => Seen::WAY,
        _ => other(name.as_str().as_bytes()),
    }
}

fn other(name: &[u8]) -> Seen {
    match name {
        [b'x', b'-', rest @ ..] => match rest {
            b"request-id" => Seen::REQUEST_ID,
            b"real-ip" => Seen::WAY,
            b"routed-to" | b"route-reason" | b"failover-reason" | b"circuit-state" => Seen::OURS,
            b"http-method-override"
            | b"http-method"
            | b"method-override"
            | b"original-url"
            | b"rewrite-url" => Seen::OVERRIDE,
            b"forwarded-for" => Seen::FORWARDED_FOR,
            rest => {
                let way = match rest.starts_with(b"forwarded-") {
                    true => Seen::WAY,
                    false => Seen::default(),
                };
                way | underscored(rest)
            }
        },
        b"keep-alive" | b"proxy-connection" => Seen::HOP,
        name => underscored(name),
    }
}

fn underscored(name: &[u8]) -> Seen {
    match name.contains(&b'_') {
        true => Seen::UNDERSCORE,
        false => Seen::default(),
    }
}

#[cfg(test)]
mod tests {
    use http::{HeaderMap, HeaderName, HeaderValue};

    use super::Seen;

    #[test]
    fn each_name_is_of_its_kind() {
        for (name, expected) in [
            ("accept", Seen::default()),
            ("content-length", Seen::default()),
            ("x-number", Seen::default()),
            ("connection", Seen::HOP | Seen::CONNECTION),
            ("te", Seen::HOP | Seen::TE),
            ("transfer-encoding", Seen::HOP | Seen::CODING),
            ("upgrade", Seen::HOP | Seen::UPGRADE),
            ("proxy-authenticate", Seen::HOP),
            ("proxy-authorization", Seen::HOP),
            ("proxy-connection", Seen::HOP),
            ("keep-alive", Seen::HOP),
            ("cookie", Seen::COOKIE),
            ("expect", Seen::EXPECT),
            ("forwarded", Seen::WAY),
            ("x-real-ip", Seen::WAY),
            ("x-forwarded-proto", Seen::WAY),
            ("x-forwarded-", Seen::WAY),
            ("x-forwarded-for", Seen::FORWARDED_FOR),
            ("x-forwarded-client_cert", Seen::WAY | Seen::UNDERSCORE),
            ("x-request-id", Seen::REQUEST_ID),
            ("x-routed-to", Seen::OURS),
            ("x-route-reason", Seen::OURS),
            ("x-failover-reason", Seen::OURS),
            ("x-circuit-state", Seen::OURS),
            ("x-http-method-override", Seen::OVERRIDE),
            ("x-http-method", Seen::OVERRIDE),
            ("x-method-override", Seen::OVERRIDE),
            ("x-original-url", Seen::OVERRIDE),
            ("x-rewrite-url", Seen::OVERRIDE),
            ("a_b", Seen::UNDERSCORE),
            ("x-a_b", Seen::UNDERSCORE),
        ] {
            let value = HeaderValue::from_static("1");
            let key = HeaderName::from_static(name);
            let mut headers = HeaderMap::from_iter([(key.clone(), value.clone())]);
            assert_eq!(Seen::of(&headers), expected, "{name}");
            headers.append(key, value);
            assert_eq!(Seen::of(&headers), expected | Seen::REPEATED, "{name}");
        }
    }
}
