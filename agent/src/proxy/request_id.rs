//! The number by which a client, logs and upstreams speak of the same request.

use bytes::Bytes;
use http::header::{HeaderMap, HeaderName, HeaderValue};
use snapshot::model::RequestIds;

const HEADER: HeaderName = HeaderName::from_static("x-request-id");

/// Longest id that is taken from a client, in bytes.
const MAX: usize = 128;

/// An id, or none. It is good for logs and headers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RequestId(Option<HeaderValue>);

impl RequestId {
    /// 32 hexadecimal digits.
    pub(super) fn new(numbers: [u64; 2]) -> Self {
        const DIGITS: &[u8; 16] = b"0123456789abcdef";
        let mut text = [0; 32];
        for (half, number) in text.chunks_exact_mut(16).zip(numbers) {
            for (at, digit) in half.iter_mut().rev().enumerate() {
                *digit = DIGITS[(number >> (4 * at)) as usize % 16];
            }
        }
        Self(HeaderValue::from_maybe_shared(Bytes::copy_from_slice(&text)).ok())
    }

    /// That of a request, as the policy of its listener has it.
    pub(super) fn of(ids: RequestIds, headers: &mut HeaderMap, new: impl FnOnce() -> Self) -> Self {
        match ids {
            RequestIds::PreserveOrGenerate => Self::received(headers).unwrap_or_else(new),
            RequestIds::Preserve => {
                let id = Self::received(headers).unwrap_or_default();
                if id.is_none() {
                    // What a log cannot bear goes no further.
                    headers.remove(HEADER);
                }
                id
            }
            RequestIds::Generate => new(),
            RequestIds::Disable => {
                headers.remove(HEADER);
                Self::default()
            }
        }
    }

    /// The client's, if there is one that a log can bear.
    pub(super) fn received(headers: &HeaderMap) -> Option<Self> {
        let mut values = headers.get_all(HEADER).iter();
        let id = values.next()?;
        let sane = values.next().is_none()
            && !id.is_empty()
            && id.len() <= MAX
            && id
                .as_bytes()
                .iter()
                .all(|byte| byte.is_ascii_alphanumeric() || b"-_.:+/=".contains(byte));
        sane.then(|| Self(Some(id.clone())))
    }

    /// Sets the header.
    pub(super) fn tell(&self, headers: &mut HeaderMap) {
        if let Some(value) = &self.0 {
            headers.insert(HEADER, value.clone());
        }
    }

    /// As a text; empty if there is none.
    pub fn as_str(&self) -> &str {
        let value = self.0.as_ref();
        // Only ASCII gets in.
        value.map_or("", |value| value.to_str().unwrap_or_default())
    }

    pub(super) fn is_none(&self) -> bool {
        self.0.is_none()
    }
}

impl serde::Serialize for RequestId {
    fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use http::{HeaderMap, HeaderValue};

    use super::RequestId;

    #[test]
    fn ids_are_digits_of_both_numbers() {
        let id = RequestId::new([0x0123_4567_89ab_cdef, 0xfedc_ba98]);
        assert_eq!(id.as_str(), "0123456789abcdef00000000fedcba98");
    }

    #[test]
    fn what_a_log_cannot_bear_is_no_id() {
        for (values, expected) in [
            (&["a-1"][..], Some("a-1")),
            (&[""], None),
            (&["a b"], None),
            (&["a\"b"], None),
            (&["a", "b"], None),
            (&[], None),
        ] {
            let mut headers = HeaderMap::new();
            for value in values {
                headers.append("x-request-id", HeaderValue::from_static(value));
            }
            let id = RequestId::received(&headers);
            assert_eq!(id.as_ref().map(RequestId::as_str), expected, "{values:?}");
        }
        let long = HeaderValue::from_str(&"a".repeat(129)).expect("a value");
        let headers = HeaderMap::from_iter([(super::HEADER, long)]);
        assert_eq!(RequestId::received(&headers), None);
    }
}
