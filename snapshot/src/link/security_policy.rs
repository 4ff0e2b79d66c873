//! `SecurityPolicy` documents to the rules that they protect. What a cell declares for its own endpoints
//! counts as a policy of the rule.

use std::sync::Arc;

use super::attachment::{Known, Policies, Policy};
use super::credentials;
use crate::document::Table;
use crate::document::secret::SecretDraft;
use crate::document::security_policy::PolicyDraft;
use crate::model::Auth;

/// Policies by what they protect.
pub(super) fn policies(
    drafts: Table<PolicyDraft>,
    secrets: &Table<SecretDraft>,
    known: Known<'_, '_>,
) -> Policies<'static, Auth> {
    let policies = drafts
        .into_iter()
        .filter_map(|(name, (declared, draft))| {
            let mut draft = draft?;
            Some(Policy {
                name,
                declared: declared.clone(),
                created: draft.created,
                targets: std::mem::take(&mut draft.targets),
                what: Arc::new(credentials::auth(declared, draft, secrets, known.sink)),
            })
        })
        .collect();
    // The more specific one stands alone.
    Policies::new(
        policies,
        |rule| &mut rule.auth,
        Box::new(|own, _| own),
        known,
    )
}
