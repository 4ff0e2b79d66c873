//! Endpoints that are left out for what became of requests (Envoy, outlier detection).
//!
//! An endpoint is left out for a time that grows with each time, and comes back when it is over: nobody has
//! to look.

use std::num::NonZeroU32;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use snapshot::model::{LocalFailures, PassiveCheck};

/// Longest time that an endpoint is left out, unless one time alone is longer (Envoy, `max_ejection_time`).
const LONGEST: Duration = Duration::from_secs(300);

/// What became of a try.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// An answer below 500.
    Good,
    /// Another one.
    ServerError,
    /// An answer 502, 503 or 504.
    GatewayError,
    /// No answer: no connection, one that broke, none in time.
    LocalFailure,
}

/// What is remembered of one endpoint. Two words. In a row: server errors in the lowest 21 bits, gateway errors
/// in the next 21, then local failures. Ejected: times in the lowest 16 bits, then the end of the last time in
/// milliseconds.
#[derive(Debug, Default)]
pub struct Outlier {
    runs: AtomicU64,
    ejected: AtomicU64,
}

const RUN_BITS: u32 = 21;
const MAX_RUN: u64 = (1 << RUN_BITS) - 1;
const TIMES_BITS: u32 = 16;
const MAX_TIMES: u64 = (1 << TIMES_BITS) - 1;

/// Failures in a row: of the server, of the gateway, without answer.
type Runs = [u64; 3];

fn unpack(word: u64) -> Runs {
    [0, 1, 2].map(|at| word >> (at * RUN_BITS) & MAX_RUN)
}

fn pack(runs: Runs) -> u64 {
    runs.into_iter()
        .rev()
        .fold(0, |word, run| word << RUN_BITS | run.min(MAX_RUN))
}

impl Outlier {
    /// Takes what became of a try. Says whether the endpoint is to be left out; the runs then start again.
    pub fn observe(&self, outcome: Outcome, settings: &PassiveCheck) -> bool {
        let before = self.runs.load(Ordering::Acquire);
        // Most tries are good and follow good ones.
        if outcome == Outcome::Good && before == 0 {
            return false;
        }
        let next = |word: u64| {
            let runs = counted(unpack(word), outcome, settings.local_failures);
            if due(runs, settings) { 0 } else { pack(runs) }
        };
        let update = |word| Some(next(word));
        let before = self
            .runs
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, update)
            // The closure never says no.
            .unwrap_or_else(|word| word);
        due(
            counted(unpack(before), outcome, settings.local_failures),
            settings,
        )
    }

    /// Leaves the endpoint out from now on. Returns until when.
    pub fn eject(&self, now: Duration, settings: &PassiveCheck) -> Duration {
        let now_ms = millis(now);
        let interval = millis(settings.interval).max(1);
        let next = |word: u64| {
            let (times, until) = (word & MAX_TIMES, word >> TIMES_BITS);
            // What it did well since its return is remembered too.
            let forgotten = now_ms.saturating_sub(until) / interval;
            let times = (times.saturating_sub(forgotten) + 1).min(MAX_TIMES);
            let longest = millis(LONGEST.max(settings.base_ejection));
            let time = millis(settings.base_ejection)
                .saturating_mul(times)
                .min(longest);
            (now_ms + time) << TIMES_BITS | times
        };
        let update = |word| Some(next(word));
        let before = self
            .ejected
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, update)
            .unwrap_or_else(|word| word);
        Duration::from_millis(next(before) >> TIMES_BITS)
    }

    /// Whether the endpoint is left out.
    pub fn ejected(&self, now: Duration) -> bool {
        let until = self.ejected.load(Ordering::Acquire) >> TIMES_BITS;
        until != 0 && millis(now) < until
    }
}

fn counted(runs: Runs, outcome: Outcome, local: LocalFailures) -> Runs {
    let [server, gateway, without] = runs;
    match (outcome, local) {
        (Outcome::Good, _) => [0; 3],
        (Outcome::ServerError, _) => [server + 1, 0, 0],
        (Outcome::GatewayError, _) | (Outcome::LocalFailure, LocalFailures::GatewayErrors) => {
            [server + 1, gateway + 1, 0]
        }
        // What the upstream itself answered last is not known to have changed.
        (Outcome::LocalFailure, LocalFailures::Apart(_)) => [server, gateway, without + 1],
    }
}

fn due(runs: Runs, settings: &PassiveCheck) -> bool {
    let local = match settings.local_failures {
        LocalFailures::GatewayErrors => None,
        LocalFailures::Apart(limit) => limit,
    };
    let reached =
        |run: u64, limit: Option<NonZeroU32>| limit.is_some_and(|limit| run >= limit.get().into());
    reached(runs[0], settings.server_errors)
        || reached(runs[1], settings.gateway_errors)
        || reached(runs[2], local)
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;
    use std::time::Duration;

    use snapshot::model::{LocalFailures, PassiveCheck};

    use super::{Outcome, Outlier};
    use Outcome::{GatewayError, Good, LocalFailure, ServerError};

    fn settings() -> PassiveCheck {
        PassiveCheck {
            server_errors: NonZeroU32::new(3),
            gateway_errors: NonZeroU32::new(2),
            local_failures: LocalFailures::GatewayErrors,
            base_ejection: Duration::from_secs(30),
            interval: Duration::from_secs(3),
            max_ejected: 10,
            always_one: false,
        }
    }

    /// Positions of the outcomes after which an endpoint is to be left out.
    fn due(settings: &PassiveCheck, outcomes: &[Outcome]) -> Vec<usize> {
        let outlier = Outlier::default();
        let outcomes = outcomes.iter().enumerate();
        outcomes
            .filter(|(_, outcome)| outlier.observe(**outcome, settings))
            .map(|(at, _)| at)
            .collect()
    }

    #[test]
    fn failures_in_a_row_count() {
        let settings = settings();
        for (outcomes, expected) in [
            (&[ServerError, ServerError, ServerError][..], &[2][..]),
            (&[ServerError, ServerError, Good, ServerError], &[]),
            (&[GatewayError, GatewayError], &[1]),
            (&[GatewayError, ServerError, GatewayError], &[2]),
            (&[GatewayError, LocalFailure], &[1]),
            // The runs start again.
            (&[GatewayError; 5], &[1, 3]),
            (&[Good; 5], &[]),
        ] {
            assert_eq!(due(&settings, outcomes), expected, "{outcomes:?}");
        }
        let only_server = PassiveCheck {
            gateway_errors: None,
            ..settings
        };
        assert_eq!(due(&only_server, &[GatewayError; 3]), [2]);
    }

    #[test]
    fn tries_without_an_answer_may_count_apart() {
        let apart = |limit| PassiveCheck {
            local_failures: LocalFailures::Apart(NonZeroU32::new(limit)),
            ..settings()
        };
        for (limit, outcomes, expected) in [
            (2, &[LocalFailure, LocalFailure][..], &[1][..]),
            (2, &[GatewayError, LocalFailure, GatewayError], &[2]),
            (2, &[LocalFailure, ServerError, LocalFailure], &[]),
            (0, &[LocalFailure; 9], &[]),
        ] {
            assert_eq!(due(&apart(limit), outcomes), expected, "{outcomes:?}");
        }
    }

    #[test]
    fn an_endpoint_is_left_out_longer_each_time_and_forgiven() {
        let settings = settings();
        let outlier = Outlier::default();
        let second = Duration::from_secs;
        assert!(!outlier.ejected(second(0)));
        assert_eq!(outlier.eject(second(10), &settings), second(40));
        assert!(outlier.ejected(second(39)));
        assert!(!outlier.ejected(second(40)));
        assert_eq!(outlier.eject(second(42), &settings), second(42 + 60));
        assert_eq!(outlier.eject(second(103), &settings), second(103 + 90));
        // Two intervals without a failure: twice is left of three times.
        assert_eq!(outlier.eject(second(199), &settings), second(199 + 60));
        assert_eq!(outlier.eject(second(1000), &settings), second(1030));
        for _ in 0..20 {
            outlier.eject(second(1000), &settings);
        }
        assert_eq!(outlier.eject(second(1000), &settings), second(1300));
    }
}
