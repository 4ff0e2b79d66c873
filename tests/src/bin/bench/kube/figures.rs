//! What was seen in a world.

use std::{collections::BTreeMap, fs, time::Duration};

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};

/// Changes of single routes.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Changes {
    /// Milliseconds from the API server's answer until each served.
    pub(crate) from_answer: Vec<f64>,
    /// Milliseconds from the call.
    pub(crate) from_call: Vec<f64>,
    /// Answers that were neither as before nor as wanted.
    pub(crate) wrong: u32,
}

/// All figures of an implementation.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Figures {
    /// By the number of routes.
    pub(crate) changes: BTreeMap<u32, Changes>,
    /// Writes of a route's status for each change of it.
    pub(crate) status_writes: Option<f64>,
    /// Requests that failed while weights and backends changed, and all of them.
    pub(crate) errors: Option<(u64, u64)>,
    /// Requests that failed beside all routes and cells, and all of them.
    pub(crate) together: Option<(u64, u64)>,
    /// Resident memory of the agent, by what was there.
    pub(crate) memory: Vec<(String, Resident)>,
    /// Milliseconds from the last of many changes of cells until the kernel went by all of them.
    pub(crate) enforced: Vec<f64>,
    /// Milliseconds of processor for each second in which nothing changed.
    pub(crate) rest: Option<f64>,
}

/// Resident memory in MiB (proc(5), `/proc/PID/status`).
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct Resident {
    /// All of it.
    pub(crate) all: f64,
    /// What the process allocated.
    pub(crate) own: f64,
    /// Pages of files: the program, and what is mapped of the kernel's tables.
    pub(crate) files: f64,
    /// The most that was seen of all of it; the other figures are of the median.
    pub(crate) most: f64,
}

impl Resident {
    fn of(process: u32) -> Result<Self> {
        let status =
            fs::read_to_string(format!("/proc/{process}/status")).context("the agent has ended")?;
        let figure = |name: &str| -> Result<f64> {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            let kib = line.and_then(|line| line.trim().strip_suffix(" kB"));
            let kib: f64 = kib.with_context(|| format!("no `{name}`"))?.parse()?;
            Ok(kib / 1024.0)
        };
        let all = figure("VmRSS:")?;
        Ok(Self {
            all,
            most: all,
            own: figure("RssAnon:")?,
            files: figure("RssFile:")? + figure("RssShmem:")?,
        })
    }
}

/// What is over when something settles is given back within so long.
const TIDY: Duration = Duration::from_secs(12);
/// How often is looked then, once a second: pages of the program come and go while its few instructions at rest are run.
const LOOKS: usize = 11;

impl Figures {
    /// Notes the agent's resident memory, once what was there for a moment only is gone.
    pub(crate) async fn memory(&mut self, agent: Option<u32>, with: &str) -> Result<()> {
        let Some(agent) = agent else { return Ok(()) };
        tokio::time::sleep(TIDY).await;
        let mut seen = vec![Resident::of(agent)?];
        while seen.len() < LOOKS {
            tokio::time::sleep(Duration::from_secs(1)).await;
            seen.push(Resident::of(agent)?);
        }
        seen.sort_by(|one, other| one.all.total_cmp(&other.all));
        let most = seen[LOOKS - 1].all;
        let median = seen[LOOKS / 2];
        self.memory
            .push((with.to_owned(), Resident { most, ..median }));
        Ok(())
    }

    /// Notes what the agent uses of a processor while nothing changes.
    pub(crate) async fn rest(&mut self, agent: Option<u32>, time: Duration) -> Result<()> {
        let Some(agent) = agent else { return Ok(()) };
        let before = ticks(agent)?;
        tokio::time::sleep(time).await;
        // USER_HZ is 100 on every platform of Linux that the agent runs on.
        let used = (ticks(agent)? - before) as f64 * 10.0;
        self.rest = Some(used / time.as_secs_f64());
        Ok(())
    }
}

/// User and system time of a process (proc(5), fields 14 and 15 of `stat`).
fn ticks(pid: u32) -> Result<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).context("the agent has ended")?;
    let (_, rest) = stat.rsplit_once(") ").context("an odd stat")?;
    let fields: Vec<&str> = rest.split(' ').collect();
    let field = |at: usize| -> Result<u64> { Ok(fields.get(at).context("a short stat")?.parse()?) };
    Ok(field(11)? + field(12)?)
}
