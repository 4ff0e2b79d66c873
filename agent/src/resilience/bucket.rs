//! A token bucket: so many requests in a time, refilled all the time (the generic cell rate algorithm, ITU-T
//! I.371).

use std::num::NonZeroU32;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// A rate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// Requests, and tokens of a full bucket.
    pub requests: NonZeroU32,
    /// In this time, above zero; the bucket is full again after so long at most.
    pub period: Duration,
}

/// What a bucket says to a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Taken {
    /// Whether there were tokens enough; else nothing was taken.
    pub allowed: bool,
    /// Tokens that are left.
    pub remaining: u32,
    /// Until the bucket is full.
    pub full_in: Duration,
}

/// The bucket. One word: when it is full, in nanoseconds. A fresh one is.
#[derive(Debug, Default)]
pub struct Bucket(AtomicU64);

impl Bucket {
    /// Takes tokens, if there are enough.
    pub fn take(&self, tokens: u32, rate: Rate, now: Duration) -> Taken {
        let now = nanos(now);
        let period = nanos(rate.period);
        let each = (period / u64::from(rate.requests.get())).max(1);
        let cost = each.saturating_mul(tokens.into());
        let next = |full: u64| {
            let full = full.max(now).saturating_add(cost);
            (full - now <= period).then_some(full)
        };
        let before = self
            .0
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, next);
        let (allowed, full) = match before {
            Ok(before) => (true, next(before).unwrap_or(before)),
            Err(full) => (false, full),
        };
        let missing = full.saturating_sub(now);
        let remaining = period.saturating_sub(missing) / each;
        Taken {
            allowed,
            remaining: u32::try_from(remaining)
                .map_or(rate.requests.get(), |left| left.min(rate.requests.get())),
            full_in: Duration::from_nanos(missing),
        }
    }

    /// Whether it is as good as new.
    pub fn is_full(&self, now: Duration) -> bool {
        self.0.load(Ordering::Acquire) <= nanos(now)
    }
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;
    use std::time::Duration;

    use super::{Bucket, Rate};

    fn rate(requests: u32, seconds: u64) -> Rate {
        Rate {
            requests: NonZeroU32::new(requests).expect("not zero"),
            period: Duration::from_secs(seconds),
        }
    }

    #[test]
    fn a_full_bucket_is_spent_and_refilled_all_the_time() {
        let rate = rate(10, 60);
        let bucket = Bucket::default();
        let at = Duration::from_secs;
        for left in (0..10).rev() {
            let taken = bucket.take(1, rate, at(100));
            assert!(taken.allowed);
            assert_eq!(taken.remaining, left);
            assert_eq!(taken.full_in, at(6 * (10 - u64::from(left))));
        }
        let refused = bucket.take(1, rate, at(100));
        assert_eq!((refused.allowed, refused.remaining), (false, 0));
        assert_eq!(refused.full_in, at(60));
        assert!(!bucket.take(1, rate, at(105)).allowed);
        assert!(bucket.take(1, rate, at(106)).allowed);
        assert!(!bucket.take(1, rate, at(106)).allowed);
        // Never more than it holds.
        assert!(!bucket.is_full(at(165)) && bucket.is_full(at(166)));
        let spent = (0..100).filter(|_| bucket.take(1, rate, at(10_000)).allowed);
        assert_eq!(spent.count(), 10);
    }

    #[test]
    fn requests_may_cost_more_or_nothing() {
        let rate = rate(10, 1);
        let bucket = Bucket::default();
        let now = Duration::from_secs(5);
        assert_eq!(bucket.take(8, rate, now).remaining, 2);
        assert_eq!(bucket.take(3, rate, now).remaining, 2);
        let looked = bucket.take(0, rate, now);
        assert_eq!((looked.allowed, looked.remaining), (true, 2));
        assert!(bucket.take(2, rate, now).allowed);
        assert!(!bucket.take(11, rate, now + rate.period).allowed);
    }

    #[test]
    fn rates_of_all_sizes_hold() {
        for (requests, seconds) in [(1, 1), (3, 1), (1_000_000_000, 1), (1, 31_536_000)] {
            let rate = rate(requests, seconds);
            let bucket = Bucket::default();
            let now = Duration::from_secs(1);
            let first = bucket.take(1, rate, now);
            assert!(first.allowed);
            assert_eq!(first.remaining, requests - 1);
            let later = now + rate.period;
            assert!(bucket.is_full(later));
        }
    }
}
