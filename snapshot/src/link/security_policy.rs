//! `SecurityPolicy` documents to the rules that they protect. What a cell declares for its own endpoints
//! counts as a policy of the rule.

use std::sync::Arc;

use super::attachment::{Effect, Known, Policies, Policy, Refused};
use super::credentials;
use super::merging::merge;
use crate::document::Table;
use crate::document::secret::SecretDraft;
use crate::document::security_policy::{PolicyDraft, merged};
use crate::model::Auth;

/// Policies by what they protect.
pub(super) fn policies<'s>(
    drafts: &'s Table<PolicyDraft>,
    refused: &[Refused],
    secrets: &'s Table<SecretDraft>,
    known: Known<'_, 's>,
) -> Policies<'s, Auth> {
    let mut written = Vec::new();
    let policies = drafts.iter().filter_map(|(name, (declared, draft))| {
        let draft = draft.as_ref()?;
        let auth = credentials::auth(declared.clone(), draft, secrets, known.sink);
        let auth = Arc::new(auth);
        written.push((Arc::clone(&auth), &draft.spec));
        Some(Policy {
            name: name.clone(),
            declared: declared.clone(),
            created: draft.created,
            targets: draft.targets.clone(),
            what: Effect::Applies(auth),
        })
    });
    let policies = policies
        .chain(refused.iter().map(Refused::policy))
        .collect();
    // What a Secret lacks is said where the policy that names it stands alone.
    let merge = merge(written, known.sink, move |own, above, found| {
        let draft = merged(own, above, found)?;
        Some(credentials::auth(
            own.declared.clone(),
            &draft,
            secrets,
            found,
        ))
    });
    Policies::new(policies, Some(|rule| &mut rule.auth), merge, known)
}
