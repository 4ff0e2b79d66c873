//! Where the time goes: how often each program ran and how long it took, as the kernel counts it.
//!
//! The kernel counts only while somebody asks for it, since the counting itself takes time. So it is never on while a
//! ratio is measured.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
};

use anyhow::{Context as _, Result};
use aya::{
    programs::loaded_programs,
    sys::{Stats, enable_stats},
};

/// The programs of one datapath.
#[derive(Clone, Debug)]
pub(crate) struct Profiler {
    names: BTreeMap<u32, String>,
}

/// How often and how long a program ran.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Runs {
    count: u64,
    nanos: u64,
}

impl Profiler {
    /// Programs that this process holds now.
    pub(crate) fn programs() -> Result<BTreeSet<u32>> {
        Ok(runs()?.into_keys().collect())
    }

    /// Those that this process holds now and did not hold `before`.
    pub(crate) fn since(before: &BTreeSet<u32>) -> Result<Self> {
        let own = Self::programs()?;
        let mut names = BTreeMap::new();
        for program in loaded_programs() {
            // Programs of others come and go while they are listed.
            let Ok(program) = program else { continue };
            let id = program.id();
            if own.contains(&id) && !before.contains(&id) {
                let name = program.name_as_str().unwrap_or("unnamed").to_owned();
                names.insert(id, name);
            }
        }
        Ok(Self { names })
    }

    /// Counts during `work`, which gives a number of transactions, and says in words what each of them cost.
    pub(crate) fn during(&self, work: impl FnOnce() -> Result<u64>) -> Result<String> {
        let before = runs()?;
        let counting = enable_stats(Stats::RunTime).context("the kernel counts no run times")?;
        let transactions = work();
        drop(counting);
        let transactions = transactions?.max(1) as f64;
        let after = runs()?;
        let mut words: Vec<_> = self
            .names
            .iter()
            .filter_map(|(id, name)| {
                let (before, after) = (before.get(id)?, after.get(id)?);
                let count = after.count - before.count;
                let nanos = after.nanos - before.nanos;
                // A program that ran for somebody else once in a while is not part of a transaction.
                let times = count as f64 / transactions;
                (times >= 0.01).then(|| {
                    let each = nanos as f64 / count as f64;
                    format!("{name} {times:.2} × {each:.0} ns")
                })
            })
            .collect();
        words.sort();
        Ok(words.join(", "))
    }
}

/// What the kernel has counted of each program that this process holds.
fn runs() -> Result<BTreeMap<u32, Runs>> {
    let mut all = BTreeMap::new();
    for entry in fs::read_dir("/proc/self/fdinfo").context("failed to list descriptors")? {
        // The descriptor of this very listing is gone when it is read.
        let Ok(text) = fs::read_to_string(entry?.path()) else {
            continue;
        };
        let field = |name: &str| -> Option<u64> {
            text.lines()
                .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?
                .trim()
                .parse()
                .ok()
        };
        // Links name a program too, and count nothing.
        if let (Some(id), Some(count), Some(nanos)) =
            (field("prog_id"), field("run_cnt"), field("run_time_ns"))
        {
            all.insert(u32::try_from(id)?, Runs { count, nanos });
        }
    }
    Ok(all)
}
