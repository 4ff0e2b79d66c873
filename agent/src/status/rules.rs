//! Rules of the kernel's tables: what made them, and how often they decided.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::{Status, plural, section, table};

/// A rule of the kernel's tables.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, Eq)]
pub struct RuleStatus {
    /// What was declared.
    pub rule: String,
    /// File, line and document of the declaration.
    pub document: String,
    /// Its field.
    pub field: String,
    /// How often the rule decided about a connection since some generation has it. A connection that lives on is decided
    /// again by the next generation.
    pub decisions: u64,
}

/// Rules that people are shown; JSON has all.
pub(super) const SHOWN_RULES: usize = 20;

impl Status {
    pub(super) fn write_rules(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        section(f, "rules", self.rules.len())?;
        let used = self.rules.iter().filter(|rule| rule.decisions > 0);
        let rows: Vec<_> = used
            .take(SHOWN_RULES)
            .map(|rule| {
                vec![
                    plural(rule.decisions, "decision"),
                    rule.rule.clone(),
                    rule.document.clone(),
                    rule.field.clone(),
                ]
            })
            .collect();
        let more = self.rules.len() - rows.len();
        table(f, rows)?;
        if more > 0 {
            writeln!(f, "  and {more} that decided less or nothing")?;
        }
        Ok(())
    }
}
