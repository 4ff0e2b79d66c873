//! When a key set is fetched, and how long it serves. Knows no clock: `now` is an argument.

use std::time::{Duration, Instant};

/// Times of one key set.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Until a set is fetched again.
    pub cache: Duration,
    /// How long a set serves after that while it cannot be fetched.
    pub max_stale: Duration,
    /// After a fetch that failed; doubled for each one more.
    pub retry: Duration,
    /// The longest wait after fetches that failed.
    pub max_retry: Duration,
    /// Between fetches that tokens ask for.
    pub asked: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            cache: Duration::from_secs(300),
            max_stale: Duration::from_secs(24 * 60 * 60),
            retry: Duration::from_secs(1),
            max_retry: Duration::from_secs(60),
            asked: Duration::from_secs(5),
        }
    }
}

/// The state of one key set.
#[derive(Debug)]
pub struct Schedule {
    limits: Limits,
    next: Instant,
    begun: Option<Instant>,
    running: bool,
    good: Option<Instant>,
    failures: u32,
}

impl Schedule {
    /// A set that nobody has fetched: due at once.
    pub fn new(now: Instant, limits: Limits) -> Self {
        Self {
            limits,
            next: now,
            begun: None,
            running: false,
            good: None,
            failures: 0,
        }
    }

    /// Whether a fetch is to begin; there is never more than one.
    pub fn due(&self, now: Instant) -> bool {
        !self.running && now >= self.next
    }

    /// A fetch begins.
    pub fn begin(&mut self, now: Instant) {
        self.running = true;
        self.begun = Some(now);
    }

    /// The fetch brought a set. `random` spreads the next one over the last tenth of the cache's time.
    pub fn succeeded(&mut self, now: Instant, random: u64) {
        self.running = false;
        self.failures = 0;
        self.good = Some(now);
        self.next = now + self.limits.cache - part(self.limits.cache / 10, random);
    }

    /// The fetch failed. `random` adds up to a quarter.
    pub fn failed(&mut self, now: Instant, random: u64) {
        self.running = false;
        self.failures = self.failures.saturating_add(1);
        let doubled = self
            .limits
            .retry
            .saturating_mul(1 << (self.failures - 1).min(16));
        let wait = doubled.min(self.limits.max_retry);
        self.next = now + wait + part(wait / 4, random);
    }

    /// A token names a key that the set does not have. Fetches come no closer than [`Limits::asked`] by this.
    pub fn asked(&mut self, now: Instant) {
        let earliest = self
            .begun
            .map_or(now, |begun| (begun + self.limits.asked).max(now));
        self.next = self.next.min(earliest);
    }

    /// Whether the last set that was fetched may be used.
    pub fn usable(&self, now: Instant) -> bool {
        self.good
            .is_some_and(|good| now < good + self.limits.cache + self.limits.max_stale)
    }

    /// Fetches that failed since the last one that did not.
    pub fn failures(&self) -> u32 {
        self.failures
    }
}

/// A part of a time.
fn part(of: Duration, random: u64) -> Duration {
    of.mul_f64(f64::from((random >> 40) as u32) / f64::from(1_u32 << 24))
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::{Limits, Schedule};

    const SECOND: Duration = Duration::from_secs(1);

    fn limits() -> Limits {
        Limits {
            cache: 100 * SECOND,
            max_stale: 50 * SECOND,
            ..Limits::default()
        }
    }

    #[test]
    fn a_set_is_fetched_at_once_one_at_a_time_and_again_before_it_is_old() {
        let start = Instant::now();
        let mut one = Schedule::new(start, limits());
        assert!(one.due(start) && !one.usable(start));
        one.begin(start);
        assert!(!one.due(start + 1000 * SECOND), "single flight");
        for random in [0, u64::MAX] {
            one.succeeded(start, random);
            assert!(!one.due(start + 89 * SECOND));
            assert!(one.due(start + 100 * SECOND));
            one.begin(start);
        }
    }

    #[test]
    fn failures_wait_longer_each_time_and_the_last_good_set_serves_until_it_is_too_old() {
        let start = Instant::now();
        let mut one = Schedule::new(start, limits());
        one.begin(start);
        one.succeeded(start, 0);
        let mut now = start + 100 * SECOND;
        let mut waits = Vec::new();
        for _ in 0..9 {
            one.begin(now);
            one.failed(now, 0);
            let seconds = (0..=75).find(|wait| one.due(now + *wait * SECOND));
            waits.push(seconds.expect("it is tried again"));
            now += SECOND;
        }
        assert_eq!(waits, [1, 2, 4, 8, 16, 32, 60, 60, 60]);
        assert_eq!(one.failures(), 9);
        assert!(one.usable(start + 149 * SECOND));
        assert!(!one.usable(start + 150 * SECOND));
        one.begin(now);
        one.succeeded(now, 0);
        assert_eq!(one.failures(), 0);
        assert!(one.usable(start + 150 * SECOND));
    }

    #[test]
    fn tokens_with_unknown_keys_cause_few_fetches() {
        let start = Instant::now();
        let mut one = Schedule::new(start, limits());
        one.begin(start);
        one.succeeded(start, 0);
        one.asked(start + SECOND);
        assert!(!one.due(start + 4 * SECOND), "the last one just began");
        assert!(one.due(start + 5 * SECOND));
        let mut fetches = 0;
        for tenth in 0..600 {
            let now = start + tenth * SECOND / 10;
            one.asked(now);
            if one.due(now) {
                fetches += 1;
                one.begin(now);
                one.succeeded(now, 0);
            }
        }
        assert!((10..=12).contains(&fetches), "{fetches} in a minute");
        // A provider that is down is not asked more often by tokens than without them.
        one.begin(start);
        one.failed(start, 0);
        one.asked(start);
        assert!(!one.due(start));
    }
}
