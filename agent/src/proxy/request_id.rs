//! The number by which a client, logs and upstreams speak of the same request.

use bytes::Bytes;
use http::header::{HeaderMap, HeaderName, HeaderValue};
use snapshot::model::RequestIds;

pub(super) const HEADER: HeaderName = HeaderName::from_static("x-request-id");

/// Longest id that is taken from a client, in bytes.
const MAX: usize = 128;

/// An id, or none. It is good for logs and headers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RequestId(Id);

#[derive(Clone, Debug, Default, PartialEq, Eq)]
enum Id {
    #[default]
    None,
    /// 128 bits, told as 32 hexadecimal digits.
    Own([u64; 2]),
    /// Only ASCII gets in.
    Received(HeaderValue),
}

impl RequestId {
    /// One of the router's own.
    pub(super) fn new(numbers: [u64; 2]) -> Self {
        Self(Id::Own(numbers))
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
        sane.then(|| Self(Id::Received(id.clone())))
    }

    /// The value of its header; `keep` keeps bytes in memory that others share.
    pub(super) fn value(&self, keep: impl FnOnce(&[u8]) -> Bytes) -> Option<HeaderValue> {
        let mut value = match &self.0 {
            Id::None => return None,
            Id::Own(numbers) => {
                let text = keep(&digits(*numbers));
                // SAFETY: hexadecimal digits are visible ASCII.
                unsafe { HeaderValue::from_maybe_shared_unchecked(text) }
            }
            Id::Received(value) => value.clone(),
        };
        // No id comes twice: HTTP/2 is not to keep it in its table, in the place of fields that do (RFC 7541, section 7.1.3).
        value.set_sensitive(true);
        Some(value)
    }

    /// Whether it is the router's own, which no header has yet.
    pub(super) fn is_own(&self) -> bool {
        matches!(self.0, Id::Own(_))
    }

    pub(super) fn is_none(&self) -> bool {
        matches!(self.0, Id::None)
    }
}

/// Both numbers in hexadecimal digits.
fn digits(numbers: [u64; 2]) -> [u8; 32] {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let bytes = numbers.map(u64::to_be_bytes);
    let mut text = [0; 32];
    let (pairs, _) = text.as_chunks_mut::<2>();
    for (pair, byte) in pairs.iter_mut().zip(bytes.as_flattened()) {
        *pair = [
            DIGITS[usize::from(byte >> 4)],
            DIGITS[usize::from(byte & 15)],
        ];
    }
    text
}

impl std::fmt::Display for RequestId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.0 {
            Id::None => Ok(()),
            Id::Own([high, low]) => write!(f, "{high:016x}{low:016x}"),
            Id::Received(value) => f.write_str(value.to_str().unwrap_or_default()),
        }
    }
}

impl serde::Serialize for RequestId {
    fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use http::{HeaderMap, HeaderValue};

    use super::RequestId;

    #[test]
    fn ids_are_digits_of_both_numbers() {
        let id = RequestId::new([0x0123_4567_89ab_cdef, 0xfedc_ba98]);
        let text = "0123456789abcdef00000000fedcba98";
        assert_eq!(id.to_string(), text);
        assert_eq!(id.value(Bytes::copy_from_slice).expect("an id"), text);
    }

    #[test]
    fn ids_take_no_place_in_the_table_of_a_connection() {
        let headers = HeaderMap::from_iter([(super::HEADER, HeaderValue::from_static("a-1"))]);
        let received = RequestId::received(&headers).expect("an id");
        for id in [RequestId::new([1, 2]), received] {
            let value = id.value(Bytes::copy_from_slice).expect("an id");
            assert!(value.is_sensitive(), "{id}");
        }
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
            let id = id.map(|id| id.to_string());
            assert_eq!(id.as_deref(), expected, "{values:?}");
        }
        let long = HeaderValue::from_str(&"a".repeat(129)).expect("a value");
        let headers = HeaderMap::from_iter([(super::HEADER, long)]);
        assert_eq!(RequestId::received(&headers), None);
    }
}
