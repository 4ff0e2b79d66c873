//! Filters become links, where the kernel has links, when there is time for it.

use std::collections::BTreeSet;
use std::sync::PoisonError;
use std::time::{Duration, Instant};

use super::Gates;

/// How long nothing must have come or gone before filters are replaced by links: that takes time from those who come.
const QUIET: Duration = Duration::from_millis(200);
/// Pause before what failed is tried again.
const AGAIN: Duration = Duration::from_secs(5);

impl Gates {
    /// Replaces filters by links where the kernel has them, one interface at a time and while nothing else happens.
    /// Returns when [`Self::end`] says so.
    pub(in super::super) fn settle(&self) {
        let mut failed = BTreeSet::new();
        let mut rest = Duration::ZERO;
        loop {
            let state = self.lock();
            if state.ended {
                return;
            }
            let preferred = self.links.preferred();
            let next = state
                .gates
                .iter()
                .find(|(ifindex, gate)| {
                    gate.held.is_none() && gate.by != preferred && !failed.contains(*ifindex)
                })
                .map(|(ifindex, _)| *ifindex);
            let quiet = QUIET
                .saturating_sub(state.last_event.elapsed())
                .max(std::mem::take(&mut rest));
            let (Some(ifindex), true) = (next, quiet.is_zero()) else {
                if next.is_none() {
                    failed.clear();
                }
                let pause = next.map_or(AGAIN, |_| quiet);
                let (_state, _) = self
                    .changed
                    .wait_timeout(state, pause)
                    .unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            if state.busy.contains(&ifindex) {
                drop(
                    self.changed
                        .wait(state)
                        .unwrap_or_else(PoisonError::into_inner),
                );
                continue;
            }
            let begun = Instant::now();
            let settled = self.work(
                state,
                ifindex,
                || self.links.attach(&self.programs, ifindex, preferred),
                |state, _| {
                    if let Some(gate) = state.gates.get_mut(&ifindex) {
                        gate.by = preferred;
                    }
                },
            );
            // As long as it kept the kernel's lock, others may have it.
            rest = begun.elapsed();
            if let Err(error) = settled {
                failed.insert(ifindex);
                tracing::warn!(
                    ifindex,
                    error = &error as &dyn std::error::Error,
                    "gates stay filters; it is tried again"
                );
            }
        }
    }

    /// Says whether [`Self::settle`] is to end.
    pub(in super::super) fn end(&self, ended: bool) {
        self.lock().ended = ended;
        self.changed.notify_all();
    }
}
