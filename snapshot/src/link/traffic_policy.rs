//! `BackendTrafficPolicy` documents to the rules whose traffic they are about.

use std::sync::Arc;

use super::attachment::{Policies, Policy};
use super::http_route::{Documents, Gateways};
use crate::document::Table;
use crate::document::traffic_policy::TrafficDraft;
use crate::model::TrafficPolicy;
use crate::reader::Sink;

/// Policies by what they are for.
pub(super) fn policies(
    drafts: Table<TrafficDraft>,
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
                targets: draft.targets,
                what: Arc::new(draft.policy),
            })
        })
        .collect();
    Policies::new(
        policies,
        |rule| &mut rule.traffic,
        documents,
        gateways,
        sink,
    )
}
