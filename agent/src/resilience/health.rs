//! Health of an endpoint, as probes see it.

use std::sync::atomic::{AtomicU64, Ordering};

/// Probes in a row that change the state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Thresholds {
    /// Failed ones until an endpoint is unhealthy; 0 counts as 1.
    pub unhealthy: u32,
    /// Good ones until it is healthy again; 0 counts as 1.
    pub healthy: u32,
}

impl Thresholds {
    /// Each probe decides.
    pub const ONE: Self = Self {
        unhealthy: 1,
        healthy: 1,
    };
}

/// The state, which starts healthy. One word: unhealthy in the lowest bit, above it the probes in a row
/// that contradict the state.
#[derive(Debug, Default)]
pub struct Health(AtomicU64);

impl Health {
    /// Whether requests should go there.
    pub fn healthy(&self) -> bool {
        self.0.load(Ordering::Acquire) & 1 == 0
    }

    /// Takes the result of a probe. Returns the new state if it changed.
    pub fn observe(&self, good: bool, thresholds: Thresholds) -> Option<bool> {
        let next = |word: u64| {
            let (healthy, against) = (word & 1 == 0, word >> 1);
            if good == healthy {
                return word & 1;
            }
            let limit = if healthy {
                thresholds.unhealthy
            } else {
                thresholds.healthy
            };
            match against + 1 {
                enough if enough >= u64::from(limit) => u64::from(healthy),
                more => more << 1 | u64::from(!healthy),
            }
        };
        let before = self
            .0
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |word| Some(next(word)))
            // The closure never says no.
            .unwrap_or_else(|word| word);
        let after = next(before);
        ((before ^ after) & 1 == 1).then_some(after & 1 == 0)
    }
}

#[cfg(test)]
mod tests {
    use super::{Health, Thresholds};

    #[test]
    fn as_many_probes_in_a_row_as_the_threshold_change_the_state() {
        let thresholds = Thresholds {
            unhealthy: 3,
            healthy: 2,
        };
        let health = Health::default();
        for (at, (good, changed, healthy)) in [
            (false, None, true),
            (false, None, true),
            // One that is good starts the count again.
            (true, None, true),
            (false, None, true),
            (false, None, true),
            (false, Some(false), false),
            (false, None, false),
            (true, None, false),
            (false, None, false),
            (true, None, false),
            (true, Some(true), true),
        ]
        .into_iter()
        .enumerate()
        {
            assert_eq!(health.observe(good, thresholds), changed, "probe {at}");
            assert_eq!(health.healthy(), healthy, "probe {at}");
        }
    }

    #[test]
    fn with_threshold_one_each_probe_decides() {
        let health = Health::default();
        assert_eq!(health.observe(true, Thresholds::ONE), None);
        assert_eq!(health.observe(false, Thresholds::ONE), Some(false));
        assert_eq!(health.observe(true, Thresholds::ONE), Some(true));
    }
}
