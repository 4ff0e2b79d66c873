//! What was seen, over all rounds.

use std::collections::BTreeMap;
use std::fmt;

use agent_common::{Path, Reason, Verdict};

/// What was seen, over all rounds.
#[derive(Default)]
pub(crate) struct Tally {
    pub(crate) frames: u64,
    pub(crate) rounds: u64,
    pub(crate) doubtful: u64,
    pub(crate) reasons: BTreeMap<(Reason, Verdict), u64>,
    pub(crate) codes: BTreeMap<Option<i32>, u64>,
    pub(crate) paths: BTreeMap<Path, u64>,
    /// Packets that began a connection which a rule about a range of ports decided, by what it said.
    pub(crate) ranges: BTreeMap<Verdict, u64>,
}

impl Tally {
    /// A run that never saw a packet live, or most of what can happen, proves nothing.
    pub(crate) fn assert_meaningful(&self) {
        // Rounds are played until enough frames were judged, however many end early.
        assert!(
            self.doubtful * 4 <= self.rounds * 3,
            "{} of {} rounds ended in doubt: this machine is too slow to tell when a flow ends",
            self.doubtful,
            self.rounds
        );
        if self.frames < 500_000 {
            return;
        }
        for verdict in [Verdict::Pass, Verdict::Drop] {
            assert!(
                self.ranges.contains_key(&verdict),
                "no rule about a range of ports ever said {verdict}"
            );
        }
        for reason in Reason::ALL {
            let seen = self.reasons.keys().any(|(seen, _)| seen == reason);
            assert!(
                seen != UNREACHABLE.contains(reason),
                "{reason}: seen is {seen}, and the other is expected"
            );
        }
    }
}

/// What no frame can provoke: tables evict instead of refusing.
const UNREACHABLE: [Reason; 2] = [Reason::FlowTable, Reason::FragmentTable];

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{} frames in {} rounds, {} of which ended early in doubt; codes {:?}, paths {:?}, ranges {:?}",
            self.frames, self.rounds, self.doubtful, self.codes, self.paths, self.ranges
        )?;
        for ((reason, verdict), count) in &self.reasons {
            writeln!(f, "{count:>9} {verdict} {reason}")?;
        }
        Ok(())
    }
}
