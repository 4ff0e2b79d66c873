//! Tokens that one core has verified, so that one seen before costs a digest and not a signature.
//!
//! A token is known by its SHA-256 and by what was asked of it; whoever finds one still asks whether its
//! time is over and whether its provider has the same keys as then. Two halves bound the memory: when the
//! young one is full, it becomes the old one, and what nobody asked for since is gone.

use std::collections::HashMap;
use std::rc::Rc;

use aws_lc_rs::digest::{SHA256, digest};

use crate::route::token::Verified;

/// Tokens in one half. With claims of a kilobyte both halves take about eight megabytes per core.
const HALF: usize = 2048;

/// Digests of a token and of what is asked of it.
type Key = ([u8; 32], [u8; 32]);

/// Verified tokens, as rules take them.
#[derive(Clone, Debug)]
pub(super) struct Known(pub(super) Rc<Verified>);

impl AsRef<Verified> for Known {
    fn as_ref(&self) -> &Verified {
        &self.0
    }
}

/// The name of a token, which tells nothing of it.
pub(super) fn key(token: &str, asked: &[u8; 32]) -> Option<Key> {
    let digest = digest(&SHA256, token.as_bytes());
    Some((digest.as_ref().try_into().ok()?, *asked))
}

#[derive(Debug)]
pub(super) struct TokenCache<T = Known> {
    young: HashMap<Key, T>,
    old: HashMap<Key, T>,
}

impl<T> Default for TokenCache<T> {
    fn default() -> Self {
        Self {
            young: HashMap::new(),
            old: HashMap::new(),
        }
    }
}

impl<T: Clone> TokenCache<T> {
    pub(super) fn get(&mut self, key: &Key) -> Option<T> {
        if let Some(found) = self.young.get(key) {
            return Some(found.clone());
        }
        let found = self.old.remove(key)?;
        self.put(*key, found.clone());
        Some(found)
    }

    pub(super) fn put(&mut self, key: Key, token: T) {
        if self.young.len() >= HALF {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(key, token);
    }

    pub(super) fn forget(&mut self, key: &Key) {
        self.young.remove(key);
        self.old.remove(key);
    }

    #[cfg(test)]
    fn len(&self) -> usize {
        self.young.len() + self.old.len()
    }
}

#[cfg(test)]
mod tests {
    use super::{HALF, TokenCache, key};

    #[test]
    fn memory_is_bounded_and_what_is_in_use_stays() {
        let mut cache = TokenCache::default();
        let named = |text: &str| key(text, &[7; 32]).expect("a digest");
        cache.put(named("used"), 0);
        for number in 1..HALF * 5 {
            cache.put(named(&number.to_string()), number);
            if number % 100 == 0 {
                assert_eq!(cache.get(&named("used")), Some(0), "after {number}");
            }
        }
        assert!(cache.len() <= 2 * HALF, "{}", cache.len());
        assert_eq!(cache.get(&named("1")), None);
        let elsewhere = key("used", &[8; 32]).expect("a digest");
        assert_eq!(cache.get(&elsewhere), None, "asked for something else");
        cache.forget(&named("used"));
        assert_eq!(cache.get(&named("used")), None);
    }
}
