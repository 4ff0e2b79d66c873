//! `BackendTrafficPolicy` documents to the rules whose traffic they are about.

use std::sync::Arc;

use super::attachment::{Effect, Policies, Policy, Refused};
use super::http_route::{Documents, Gateways};
use crate::document::Table;
use crate::document::traffic_policy::TrafficDraft;
use crate::model::{Route, Target, TrafficPolicy};
use crate::reader::Sink;

/// Policies by what they are for.
pub(super) fn policies(
    drafts: Table<TrafficDraft>,
    refused: &[Refused],
    documents: &Documents,
    gateways: &Gateways,
    sink: &Sink,
) -> Policies<TrafficPolicy> {
    let policies = drafts
        .into_iter()
        .filter_map(|(name, (declared, draft))| {
            let draft = draft?;
            Some(Policy {
                name,
                declared,
                created: draft.created,
                targets: draft.targets.clone(),
                what: Effect::Applies(Arc::new(draft.policy.clone())),
            })
        })
        .chain(refused.iter().map(Refused::policy))
        .collect();
    Policies::new(
        policies,
        |rule| &mut rule.traffic,
        documents,
        gateways,
        sink,
    )
}

/// Says where a policy is about endpoints and a rule leads to a routing table: placements have health, breakers
/// and limits of their own.
pub(super) fn without_effect(routes: &[Route], sink: &Sink) {
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
