//! How many retries a backend gets: a share of its requests, so that retries cannot storm.
//!
//! Flows in: requests and wishes to retry, with the time of each. Flows out: yes or no. Counted per
//! core and kept by the backend's name from one generation to the next.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use snapshot::model::RetryBudget;
use tokio::time::Instant;

/// Seconds that are looked back at.
const WINDOW: usize = 10;

/// Budgets of one core by backend.
#[derive(Debug, Default)]
pub struct Budgets(HashMap<Arc<str>, Budget>);

impl Budgets {
    /// Notes a request to a backend.
    pub fn request(&mut self, backend: &Arc<str>, now: Instant) {
        self.of(backend, now).slot(now).requests += 1;
    }

    /// Takes one retry, or says that there is none left.
    pub fn retry(&mut self, backend: &Arc<str>, limits: RetryBudget, now: Instant) -> bool {
        self.of(backend, now).retry(limits, now)
    }

    /// Forgets backends that had no request for a while; called from time to time.
    pub fn expire(&mut self, now: Instant) {
        self.0.retain(|_, budget| budget.is_used(now));
    }

    fn of(&mut self, backend: &Arc<str>, now: Instant) -> &mut Budget {
        if !self.0.contains_key(backend) {
            self.0.insert(Arc::clone(backend), Budget::new(now));
        }
        self.0
            .get_mut(backend)
            .expect("the entry was made if it was not there")
    }
}

/// Requests and retries of one backend by second.
#[derive(Debug)]
struct Budget {
    start: Instant,
    slots: [Slot; WINDOW],
}

#[derive(Clone, Copy, Debug, Default)]
struct Slot {
    /// Seconds since the start.
    second: u64,
    requests: u64,
    retries: u64,
}

impl Budget {
    fn new(start: Instant) -> Self {
        Self {
            start,
            slots: [Slot::default(); WINDOW],
        }
    }

    fn second(&self, now: Instant) -> u64 {
        now.saturating_duration_since(self.start).as_secs()
    }

    fn slot(&mut self, now: Instant) -> &mut Slot {
        let second = self.second(now);
        let slot = &mut self.slots[(second % WINDOW as u64) as usize];
        if slot.second != second {
            *slot = Slot {
                second,
                ..Slot::default()
            };
        }
        slot
    }

    /// Requests and retries of the last seconds.
    fn recent(&self, now: Instant) -> (u64, u64) {
        let second = self.second(now);
        self.slots
            .iter()
            .filter(|slot| slot.second + WINDOW as u64 > second)
            .fold((0, 0), |(requests, retries), slot| {
                (requests + slot.requests, retries + slot.retries)
            })
    }

    fn retry(&mut self, limits: RetryBudget, now: Instant) -> bool {
        let (requests, retries) = self.recent(now);
        let share = requests * u64::from(limits.percent) / 100;
        let least = u64::from(limits.least) * WINDOW as u64;
        if retries >= share.max(least) {
            return false;
        }
        self.slot(now).retries += 1;
        true
    }

    fn is_used(&self, now: Instant) -> bool {
        let window = Duration::from_secs(WINDOW as u64);
        self.recent(now).0 > 0 || now.saturating_duration_since(self.start) < window
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use snapshot::model::RetryBudget;
    use tokio::time::Instant;

    use super::Budgets;

    #[test]
    fn retries_are_a_share_of_recent_requests() {
        let limits = RetryBudget {
            percent: 20,
            least: 1,
        };
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let (mut budgets, backend) = (Budgets::default(), Arc::from("a"));
        let granted = |budgets: &mut Budgets, second| {
            let asked = 0..1000;
            asked
                .filter(|_| budgets.retry(&backend, limits, at(second)))
                .count()
        };
        // Without requests: what is granted anyway, once in ten seconds.
        assert_eq!(granted(&mut budgets, 0), 10);
        assert_eq!(granted(&mut budgets, 9), 0);
        assert_eq!(granted(&mut budgets, 10), 10);
        for second in 20..30 {
            for _ in 0..100 {
                budgets.request(&Arc::from("a"), at(second));
            }
        }
        assert_eq!(granted(&mut budgets, 29), 200);
        // Half of the requests are forgotten, and so are no retries.
        assert_eq!(granted(&mut budgets, 34), 0);
        // Another backend has a budget of its own.
        assert!(budgets.retry(&Arc::from("b"), limits, at(34)));
        budgets.expire(at(35));
        assert_eq!(budgets.0.len(), 2);
        budgets.expire(at(100));
        assert_eq!(budgets.0.len(), 0);
    }
}
