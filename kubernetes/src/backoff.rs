//! How long to wait after failures.

use std::hash::{BuildHasher as _, RandomState};
use std::time::Duration;

/// First pause.
const FIRST: Duration = Duration::from_millis(250);
/// Longest pause.
const LONGEST: Duration = Duration::from_secs(30);

/// Pauses that double, each somewhere between a half and the whole: nodes that lost the API server at one moment do not come
/// back at one moment.
#[derive(Debug, Default)]
pub(crate) struct Backoff {
    failures: u32,
}

impl Backoff {
    /// The pause after one more failure.
    pub(crate) fn next(&mut self) -> Duration {
        let longest = FIRST
            .saturating_mul(1 << self.failures.min(16))
            .min(LONGEST);
        self.failures = self.failures.saturating_add(1);
        longest / 2 + (longest / 2).mul_f64(random())
    }

    /// Something went well.
    pub(crate) fn reset(&mut self) {
        self.failures = 0;
    }
}

/// A share of one, by the seed that each hash table gets.
pub(crate) fn random() -> f64 {
    let bits = RandomState::new().hash_one(0_u8);
    f64::from(u32::try_from(bits >> 32).unwrap_or(0)) / f64::from(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::{Backoff, FIRST, LONGEST};

    #[test]
    fn pauses_double_up_to_the_longest_and_begin_anew() {
        let mut backoff = Backoff::default();
        for failures in 0..40 {
            let longest = FIRST.saturating_mul(1 << failures.min(16)).min(LONGEST);
            let pause = backoff.next();
            assert!(pause >= longest / 2 && pause <= longest, "{pause:?}");
        }
        backoff.reset();
        assert!(backoff.next() <= FIRST);
    }
}
