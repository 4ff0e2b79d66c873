//! `SecurityPolicy` documents to the rules that they protect. What a cell declares for its own endpoints
//! counts as a policy of the rule.

use std::sync::Arc;

use super::attachment::{Effect, Known, Policies, Policy, Refused};
use super::credentials;
use crate::document::Table;
use crate::document::secret::SecretDraft;
use crate::document::security_policy::PolicyDraft;
use crate::model::Auth;

/// Policies by what they protect.
pub(super) fn policies(
    drafts: &Table<PolicyDraft>,
    refused: &[Refused],
    secrets: &Table<SecretDraft>,
    known: Known<'_, '_>,
) -> Policies<'static, Auth> {
    let policies = drafts
        .iter()
        .filter_map(|(name, (declared, draft))| {
            let draft = draft.as_ref()?;
            Some(Policy {
                name: name.clone(),
                declared: declared.clone(),
                created: draft.created,
                targets: draft.targets.clone(),
                what: Effect::Applies(Arc::new(credentials::auth(
                    declared.clone(),
                    draft,
                    secrets,
                    known.sink,
                ))),
            })
        })
        .chain(refused.iter().map(Refused::policy))
        .collect();
    // The more specific one stands alone.
    Policies::new(
        policies,
        Some(|rule| &mut rule.auth),
        Box::new(|own, _| Effect::Applies(Arc::clone(own))),
        known,
    )
}
