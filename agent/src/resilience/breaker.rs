//! A circuit breaker: closed until enough failures in a row, open for a while, then one probe at a
//! time until one succeeds.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use snapshot::model::BreakerSettings;

/// State of a breaker as `X-Circuit-State` tells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum CircuitState {
    /// Requests pass.
    Closed,
    /// Requests are refused.
    Open,
    /// One request at a time passes, and its result decides.
    HalfOpen,
}

impl CircuitState {
    /// As in `X-Circuit-State`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::Open => "open",
            Self::HalfOpen => "half_open",
        }
    }
}

/// A request that a breaker let through. Its end is told by [`Breaker::count`] or [`Breaker::cancel`].
#[derive(Debug, PartialEq, Eq)]
pub struct Admission {
    probe: bool,
    /// Whether the breaker became half open by this request.
    pub opened_half: bool,
}

/// What a result did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Counted {
    /// State before the result.
    pub before: CircuitState,
    /// What the result changed.
    pub change: Option<Change>,
}

/// A change of state that a result caused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// As many failures in a row as the threshold.
    Opened,
    /// A probe failed; open for the full time again.
    Reopened,
    /// A probe succeeded.
    Closed,
}

/// The breaker. One word: kind in the lowest 2 bits, then 22 bits of failures in a row, then the time of
/// opening in milliseconds (40 bits are 34 years).
#[derive(Debug, Default)]
pub struct Breaker(AtomicU64);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Word {
    kind: Kind,
    failures: u32,
    opened_ms: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Closed,
    Open,
    /// Half open, and nobody probes.
    Waiting,
    /// Half open, and the probe is under way.
    Probing,
}

const KIND_BITS: u32 = 2;
const FAILURE_BITS: u32 = 22;
const MAX_FAILURES: u32 = (1 << FAILURE_BITS) - 1;

impl Word {
    fn unpack(word: u64) -> Self {
        Self {
            kind: match word & 0b11 {
                0 => Kind::Closed,
                1 => Kind::Open,
                2 => Kind::Waiting,
                _ => Kind::Probing,
            },
            failures: (word >> KIND_BITS) as u32 & MAX_FAILURES,
            opened_ms: word >> (KIND_BITS + FAILURE_BITS),
        }
    }

    fn pack(self) -> u64 {
        let kind = match self.kind {
            Kind::Closed => 0,
            Kind::Open => 1,
            Kind::Waiting => 2,
            Kind::Probing => 3,
        };
        kind | u64::from(self.failures) << KIND_BITS | self.opened_ms << (KIND_BITS + FAILURE_BITS)
    }

    fn state(self) -> CircuitState {
        match self.kind {
            Kind::Closed => CircuitState::Closed,
            Kind::Open => CircuitState::Open,
            Kind::Waiting | Kind::Probing => CircuitState::HalfOpen,
        }
    }

    fn failed(self) -> Self {
        Self {
            failures: (self.failures + 1).min(MAX_FAILURES),
            ..self
        }
    }

    fn opened(self, now: Duration) -> Self {
        Self {
            kind: Kind::Open,
            opened_ms: millis(now),
            ..self
        }
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

impl Breaker {
    /// Lets a request through, or says no. Only here an open breaker whose time is over becomes half
    /// open: no timer does it.
    pub fn allow(&self, now: Duration, settings: &BreakerSettings) -> Option<Admission> {
        let mut current = self.0.load(Ordering::Acquire);
        loop {
            let word = Word::unpack(current);
            let opened_half = match word.kind {
                Kind::Closed => {
                    return Some(Admission {
                        probe: false,
                        opened_half: false,
                    });
                }
                Kind::Probing => return None,
                Kind::Open => {
                    let over = word.opened_ms.saturating_add(millis(settings.timeout));
                    if millis(now) < over {
                        return None;
                    }
                    true
                }
                Kind::Waiting => false,
            };
            let probing = Word {
                kind: Kind::Probing,
                ..word
            };
            match self.swap(current, probing) {
                Ok(()) => {
                    return Some(Admission {
                        probe: true,
                        opened_half,
                    });
                }
                Err(changed) => current = changed,
            }
        }
    }

    /// Counts the result of a request. While the breaker is half open only the probe's counts: what
    /// began before it opened tells of a time that is over.
    pub fn count(
        &self,
        admission: Admission,
        success: bool,
        now: Duration,
        settings: &BreakerSettings,
    ) -> Counted {
        let threshold = settings.failure_threshold.get().min(MAX_FAILURES);
        let mut current = self.0.load(Ordering::Acquire);
        loop {
            let word = Word::unpack(current);
            let (next, change) = match (word.kind, success) {
                (Kind::Closed, true) => (
                    Word {
                        failures: 0,
                        ..word
                    },
                    None,
                ),
                (Kind::Closed, false) => {
                    let failed = word.failed();
                    if failed.failures >= threshold {
                        (failed.opened(now), Some(Change::Opened))
                    } else {
                        (failed, None)
                    }
                }
                (Kind::Open, true) => (word, None),
                (Kind::Open, false) => (word.failed(), None),
                (Kind::Probing, true) if admission.probe => {
                    let closed = Word {
                        kind: Kind::Closed,
                        failures: 0,
                        opened_ms: 0,
                    };
                    (closed, Some(Change::Closed))
                }
                (Kind::Probing, false) if admission.probe => {
                    (word.failed().opened(now), Some(Change::Reopened))
                }
                (Kind::Probing | Kind::Waiting, _) => (word, None),
            };
            let counted = Counted {
                before: word.state(),
                change,
            };
            // Most results change nothing; writing them would move the word between cores.
            if next == word {
                return counted;
            }
            match self.swap(current, next) {
                Ok(()) => return counted,
                Err(changed) => current = changed,
            }
        }
    }

    /// A request ended without a result, since its client gave up or it was never sent. If it was the
    /// probe, the next request is.
    pub fn cancel(&self, admission: Admission) {
        if !admission.probe {
            return;
        }
        let mut current = self.0.load(Ordering::Acquire);
        while Word::unpack(current).kind == Kind::Probing {
            let waiting = Word {
                kind: Kind::Waiting,
                ..Word::unpack(current)
            };
            match self.swap(current, waiting) {
                Ok(()) => return,
                Err(changed) => current = changed,
            }
        }
    }

    /// State and failures in a row.
    pub fn state(&self) -> (CircuitState, u32) {
        let word = Word::unpack(self.0.load(Ordering::Acquire));
        (word.state(), word.failures)
    }

    fn swap(&self, current: u64, next: Word) -> Result<(), u64> {
        let (set, fetch) = (Ordering::AcqRel, Ordering::Acquire);
        self.0
            .compare_exchange_weak(current, next.pack(), set, fetch)
            .map(|_| ())
    }
}

#[cfg(test)]
mod tests;
