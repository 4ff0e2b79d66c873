//! The cluster that documents come from: how well it is heard, and what of it is refused.

use std::fmt;

use serde::{Deserialize, Serialize};

/// How well the cluster is heard.
#[derive(Clone, Debug, Default, Serialize, Deserialize, PartialEq, Eq)]
pub struct ClusterStatus {
    /// Every kind that is served was listed since the start; until then what was kept on disk serves.
    pub complete: bool,
    /// For how long the oldest part of what is known could not be confirmed; 0 is up to date.
    pub stale_seconds: u64,
    /// Why the API server as a whole cannot be asked; empty if it can.
    pub unreachable: String,
    /// Kinds that nothing is heard of.
    pub silent: Vec<SilentKind>,
    /// Objects that are known.
    pub objects: usize,
    /// This agent is the one that writes status.
    pub writes_status: bool,
    /// Objects with mistakes.
    pub refused: Vec<RefusedObject>,
}

/// A kind that nothing is heard of.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, Eq)]
pub struct SilentKind {
    /// Which.
    pub kind: String,
    /// For how long.
    pub seconds: u64,
    /// What was answered last.
    pub error: String,
}

/// An object with mistakes.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, Eq)]
pub struct RefusedObject {
    /// Kind and name.
    pub object: String,
    /// It has a part in what is active; only what its mistakes are in is closed.
    pub accepted: bool,
    /// The mistakes, each with its field.
    pub mistakes: Vec<String>,
}

impl fmt::Display for ClusterStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let writes = if self.writes_status {
            " · writes status"
        } else {
            ""
        };
        writeln!(f, "cluster     {} objects{writes}", self.objects)?;
        if !self.complete {
            writeln!(
                f,
                "            KEPT: not every kind was listed since the start; what was kept on disk serves meanwhile"
            )?;
        }
        if self.stale_seconds > 0 {
            writeln!(
                f,
                "            STALE: not confirmed for {} s; what was known last goes on serving",
                self.stale_seconds
            )?;
        }
        if !self.unreachable.is_empty() {
            writeln!(f, "              {}", self.unreachable)?;
        }
        for silent in &self.silent {
            writeln!(
                f,
                "              {}: {} ({} s)",
                silent.kind, silent.error, silent.seconds
            )?;
        }
        for object in &self.refused {
            let what = if object.accepted {
                "IN PART"
            } else {
                "REFUSED"
            };
            writeln!(f, "            {what} {}", object.object)?;
            for mistake in &object.mistakes {
                writeln!(f, "              {mistake}")?;
            }
        }
        Ok(())
    }
}
