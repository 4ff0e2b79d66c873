//! What the router remembers of those it sends requests to: breakers, slots, health.
//!
//! Flows in: results, probes and the time. Flows out: whether a request may go there. One state per
//! node, shared by all cores without a lock: each machine is one atomic word. They have no clock and
//! no settings of their own, since both outlive no configuration: `now` and settings are arguments.
//! When configuration changes, the next table takes the states over by key
//! ([`crate::route::RouteTable::adopt`]).

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

mod breaker;
mod bucket;
mod health;
mod outlier;
mod queue;
mod slots;

pub use breaker::{Admission, Breaker, Change, CircuitState, Counted};
pub use bucket::{Bucket, Rate, Taken};
pub use health::{Health, Thresholds};
pub use outlier::{Outcome, Outlier};
pub use queue::{Overflow, Queue, Seat};
pub use slots::{Slot, Slots};

/// The clock of the states: time since it was made, never backwards.
#[derive(Clone, Debug)]
pub struct Clock {
    /// None if it stands still.
    start: Option<Instant>,
    ahead_ms: Arc<AtomicU64>,
}

impl Default for Clock {
    fn default() -> Self {
        Self {
            start: Some(Instant::now()),
            ahead_ms: Arc::default(),
        }
    }
}

impl Clock {
    /// Time since the clock was made.
    pub fn now(&self) -> Duration {
        self.at(Instant::now())
    }

    /// The same at a moment that is known.
    pub fn at(&self, moment: Instant) -> Duration {
        let ahead = Duration::from_millis(self.ahead_ms.load(Ordering::Relaxed));
        let since = |start| moment.saturating_duration_since(start);
        self.start.map_or(Duration::ZERO, since) + ahead
    }

    /// A clock that stands still between one [`Clock::advance`] and the next. For tests, whose machine may be slow.
    pub fn still() -> Self {
        Self {
            start: None,
            ahead_ms: Arc::default(),
        }
    }

    /// Sets all copies of the clock ahead. For tests, which cannot wait until a breaker's time is over.
    pub fn advance(&self, by: Duration) {
        let ms = u64::try_from(by.as_millis()).unwrap_or(u64::MAX);
        self.ahead_ms.fetch_add(ms, Ordering::Relaxed);
    }
}
