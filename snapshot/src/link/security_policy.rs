//! `SecurityPolicy` documents to the rules that they protect. What a cell declares for its own endpoints
//! counts as a policy of the rule.

use std::sync::Arc;

use super::attachment::{Effect, Policies, Policy, Refused};
use super::credentials;
use super::http_route::{Documents, Gateways};
use crate::document::Table;
use crate::document::secret::SecretDraft;
use crate::document::security_policy::PolicyDraft;
use crate::model::Auth;
use crate::reader::Sink;

/// Policies by what they protect.
pub(super) fn policies(
    drafts: Table<PolicyDraft>,
    refused: &[Refused],
    documents: &Documents,
    gateways: &Gateways,
    secrets: &Table<SecretDraft>,
    sink: &Sink,
) -> Policies<Auth> {
    let policies = drafts
        .into_iter()
        .filter_map(|(name, (declared, draft))| {
            let draft = draft?;
            Some(Policy {
                name,
                declared: declared.clone(),
                created: draft.created,
                targets: draft.targets.clone(),
                what: Effect::Applies(Arc::new(credentials::auth(declared, &draft, secrets, sink))),
            })
        })
        .chain(refused.iter().map(Refused::policy))
        .collect();
    Policies::new(policies, |rule| &mut rule.auth, documents, gateways, sink)
}
