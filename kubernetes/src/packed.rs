//! Many texts that are nearly alike, in little memory: of each only what differs from a pattern is kept.
//!
//! Objects of one kind that were made together say the same but for names and a value or two. The text that comes first is the
//! pattern of those that follow it.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

use lz4_flex::block::{compress_prepend_size_with_dict, decompress_size_prepended_with_dict};

/// A text.
#[derive(Clone)]
pub struct Packed {
    /// None: the text is there as it is.
    pattern: Option<Arc<[u8]>>,
    /// The text, or its length and what makes it of the pattern.
    kept: Arc<[u8]>,
}

impl From<&[u8]> for Packed {
    fn from(text: &[u8]) -> Self {
        Self {
            pattern: None,
            kept: text.into(),
        }
    }
}

impl Packed {
    /// The text.
    #[must_use]
    pub fn text(&self) -> Cow<'_, [u8]> {
        match &self.pattern {
            None => Cow::Borrowed(&self.kept),
            Some(pattern) => {
                let text = decompress_size_prepended_with_dict(&self.kept, pattern);
                Cow::Owned(text.expect("it was packed here with this pattern"))
            }
        }
    }

    /// The same beside `neighbour`: by the difference if that is much shorter, and as it is otherwise.
    pub(crate) fn beside(self, neighbour: &Self) -> Self {
        let pattern = neighbour.pattern.as_ref().unwrap_or(&neighbour.kept);
        let large = self.kept.len().saturating_mul(2);
        // A pattern stays for as long as somebody needs it: what is small must not hold what is large.
        if self.pattern.is_some() || Arc::ptr_eq(&self.kept, pattern) || pattern.len() > large {
            return self;
        }
        let kept = compress_prepend_size_with_dict(&self.kept, pattern);
        if kept.len() > self.kept.len() / 2 {
            return self;
        }
        Self {
            pattern: Some(Arc::clone(pattern)),
            kept: kept.into(),
        }
    }

    /// Whether both are one, not only equal.
    pub(crate) fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.kept, &other.kept)
    }
}

impl PartialEq for Packed {
    fn eq(&self, other: &Self) -> bool {
        self.is(other) || self.text() == other.text()
    }
}

impl fmt::Debug for Packed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // It may be a secret.
        f.debug_tuple("Packed").field(&self.kept.len()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::Packed;

    fn route(number: u32) -> Packed {
        let text = format!(
            r#"{{"kind":"HTTPRoute","metadata":{{"name":"r{number}"}},"spec":{{"hostnames":["r{number}.example"],"rules":[{{"backendRefs":[{{"name":"web","port":80}}]}}]}}}}"#
        );
        Packed::from(text.as_bytes())
    }

    fn rest(packed: &Packed) -> Option<usize> {
        packed.pattern.as_ref().map(|_| packed.kept.len())
    }

    #[test]
    fn what_is_alike_is_kept_as_its_difference_and_says_the_same() {
        let first = route(1);
        let mut last = first.clone();
        for number in 2..1_000 {
            let packed = route(number).beside(&last);
            let rest = rest(&packed).expect("it is like the one before");
            assert!(rest < 48, "{rest} bytes for a number that is there twice");
            assert_eq!(packed, route(number));
            assert_ne!(packed, last);
            assert_eq!(packed.text(), route(number).text());
            last = packed;
        }
        // The pattern goes only with the last that needs it.
        drop(first);
        assert_eq!(last, route(999));
    }

    #[test]
    fn what_is_not_alike_is_kept_as_it_is() {
        let other =
            Packed::from(&br#"{"kind":"Secret","data":{"key":"MIGHAgEAMBMGByqGSM49"}}"#[..]);
        for text in [&b""[..], b"{", &[0; 3]] {
            let packed = Packed::from(text).beside(&other);
            assert_eq!(packed.text(), text);
        }
        assert_eq!(rest(&other.clone().beside(&route(1))), None);
        assert_eq!(other.clone().beside(&Packed::from(&b""[..])), other);
    }

    #[test]
    fn what_is_small_holds_no_large_pattern() {
        let small = route(1);
        let large = Packed::from(&*small.text().repeat(3));
        let packed = small.clone().beside(&large);
        assert_eq!(rest(&packed), None);
        assert!(packed.is(&small));
    }

    #[test]
    fn one_text_is_the_same_whatever_it_is_beside() {
        let (first, second) = (route(1), Packed::from(&*route(3).text()));
        let (own, other) = (route(2).beside(&first), route(2).beside(&second));
        assert!(rest(&own).is_some() && rest(&other).is_some());
        assert_eq!(own, other);
        assert!(!own.is(&other));
        assert!(own.is(&own.clone()));
    }
}
