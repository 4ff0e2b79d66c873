//! `BackendTrafficPolicy` documents to the rules whose traffic they are about.

use std::sync::Arc;

use super::attachment::{Effect, Known, Policies, Policy, Refused};
use super::merging::merge;
use crate::document::Table;
use crate::document::traffic_policy::{TrafficDraft, merged};
use crate::model::{Route, Target, TrafficPolicy};
use crate::reader::Sink;
use crate::shared::Shared;

/// Policies by what they are for.
pub(super) fn policies<'s>(
    drafts: &'s Table<TrafficDraft>,
    refused: &[Refused],
    known: Known<'_, 's>,
) -> Policies<'s, TrafficPolicy> {
    let mut written = Vec::new();
    let policies = drafts.iter().filter_map(|(name, (declared, draft))| {
        let draft = draft.as_ref()?;
        let policy = Arc::new(draft.policy.clone());
        written.push((Arc::clone(&policy), &draft.spec));
        Some(Policy {
            name: name.clone(),
            declared: declared.clone(),
            created: draft.created,
            targets: draft.targets.clone(),
            what: Effect::Applies(policy),
        })
    });
    let policies = policies
        .chain(refused.iter().map(Refused::policy))
        .collect();
    let merge = merge(written, known.sink, merged);
    Policies::new(policies, Some(|rule| &mut rule.traffic), merge, known)
}

/// Says where a policy is about endpoints and a rule leads to a routing table: placements have health, breakers
/// and limits of their own.
pub(super) fn without_effect(routes: &[Shared<Route>], sink: &Sink) {
    for rule in routes.iter().flat_map(|route| &route.rules) {
        let Some(policy) = rule.traffic.as_ref().filter(|one| one.is_about_endpoints()) else {
            continue;
        };
        for target in &rule.targets {
            if let Target::RoutingTable(table) = &target.target {
                sink.warning(
                    policy.declared.at("spec"),
                    format_args!(
                        "what it says of endpoints has no effect on `RoutingTable` {table}, whose placements say it themselves"
                    ),
                );
            }
        }
    }
}
