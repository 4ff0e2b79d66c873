//! Rules and their hits, with the declarations behind them.

use std::collections::BTreeMap;

use crate::activate::Active;
use crate::datapath::Datapath;
use crate::status::RuleStatus;

/// Rules of the active generation, most used first. What cannot be read is said in `unread`.
pub(super) fn rows(
    datapath: &Datapath,
    active: &Active,
    unread: &mut Vec<String>,
) -> Vec<RuleStatus> {
    let hits = datapath.hits().unwrap_or_else(|error| {
        unread.push(format!(
            "unknown: the kernel's counts of rules cannot be read: {error}"
        ));
        BTreeMap::new()
    });
    let mut rows: Vec<_> = active
        .kernel
        .iter()
        .flat_map(|kernel| &kernel.rules)
        .map(|(number, rule)| RuleStatus {
            rule: rule.text().to_owned(),
            document: rule.document(),
            field: rule.field(),
            decisions: hits.get(number).copied().unwrap_or(0),
        })
        .collect();
    rows.sort_by(|a, b| {
        b.decisions
            .cmp(&a.decisions)
            .then_with(|| a.rule.cmp(&b.rule))
    });
    rows
}
