//! What could not be written, and when it is tried again.
//!
//! Flows in: failures and the time. Flows out: how long to wait. What changes all the time would be tried all the time without that, and
//! take the place of what can be written. No clock.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::backoff::Backoff;

/// How long something else waits that is wanted of the same after a failure: it may go well, or change all the time.
const HASTE: Duration = Duration::from_secs(1);

/// Failures, each of one thing that was wanted.
#[derive(Debug)]
pub(crate) struct Failures<K>(BTreeMap<K, Failure>);

#[derive(Debug)]
struct Failure {
    /// What was wanted, as a number.
    wish: u64,
    error: String,
    at: Instant,
    /// When the same is tried again.
    due: Instant,
    backoff: Backoff,
}

impl<K> Default for Failures<K> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

impl<K: Ord + Clone> Failures<K> {
    /// How long this waits because it failed; none if it may be tried.
    pub(crate) fn wait(&self, key: &K, wish: u64, now: Instant) -> Option<Duration> {
        let failure = self.0.get(key)?;
        let due = match failure.wish == wish {
            true => failure.due,
            false => failure.due.min(failure.at + HASTE),
        };
        (due > now).then(|| due - now)
    }

    /// It failed; whether that is news, and how long it waits.
    pub(crate) fn failed(
        &mut self,
        key: &K,
        wish: u64,
        error: &str,
        now: Instant,
    ) -> (bool, Duration) {
        let failure = self.0.entry(key.clone()).or_insert_with(|| Failure {
            wish,
            error: String::new(),
            at: now,
            due: now,
            backoff: Backoff::default(),
        });
        let news = failure.error != error;
        if news {
            error.clone_into(&mut failure.error);
        }
        let pause = failure.backoff.next();
        (failure.wish, failure.at, failure.due) = (wish, now, now + pause);
        (news, pause)
    }

    /// It went well, or is wanted no more.
    pub(crate) fn forget(&mut self, key: &K) {
        self.0.remove(key);
    }

    /// Only these are wanted still.
    pub(crate) fn retain(&mut self, is_wanted: impl Fn(&K) -> bool) {
        self.0.retain(|key, _| is_wanted(key));
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::{Failures, HASTE};

    #[test]
    fn what_fails_again_and_again_waits_longer_and_something_else_does_not() {
        let mut now = Instant::now();
        let mut failures = Failures::default();
        assert_eq!(failures.wait(&"a", 1, now), None);
        let (news, _) = failures.failed(&"a", 1, "refused", now);
        assert!(news && failures.wait(&"a", 1, now).is_some());
        assert_eq!(failures.wait(&"b", 1, now), None);
        for _ in 0..12 {
            let (news, pause) = failures.failed(&"a", 1, "refused", now);
            assert!(!news);
            assert_eq!(failures.wait(&"a", 1, now), Some(pause));
            now += pause;
            assert_eq!(failures.wait(&"a", 1, now), None);
        }
        let (news, pause) = failures.failed(&"a", 1, "forbidden", now);
        assert!(news && pause > Duration::from_secs(10));
        assert_eq!(failures.wait(&"a", 2, now), Some(HASTE));
        assert_eq!(failures.wait(&"a", 2, now + HASTE), None);
        failures.forget(&"a");
        assert_eq!(failures.wait(&"a", 1, now), None);
    }
}
