//! `SecurityPolicy` (Envoy Gateway): who may pass, by key, user, token and what these may do.

use super::Meta;
use super::policy::{Targets, targets};
use crate::model::{Authorization, Decision, Timestamp, Tokens};
use crate::reader::Object;

mod authorization;
mod credentials;
mod jwt;

pub(crate) use credentials::{ApiKeyDraft, BasicDraft};

/// A policy whose targets and Secrets are not resolved.
pub(crate) struct PolicyDraft {
    pub(crate) created: Option<Timestamp>,
    pub(crate) targets: Targets,
    pub(crate) api_keys: Option<ApiKeyDraft>,
    pub(crate) users: Option<BasicDraft>,
    pub(crate) tokens: Option<Tokens>,
    pub(crate) authorization: Authorization,
}

/// Reads the `spec`.
pub(crate) fn read(spec: &mut Object<'_>, meta: &Meta) -> Option<PolicyDraft> {
    spec.unsupported(&["mergeType", "cors", "oidc", "extAuth"]);
    let targets = targets(spec, meta);
    let api_keys = spec.optional("apiKeyAuth");
    let users = spec.optional("basicAuth");
    let jwt = spec.optional("jwt");
    let authorization = spec.optional("authorization");
    if api_keys.is_none() && users.is_none() && jwt.is_none() && authorization.is_none() {
        spec.field().mistake(
            "expected at least one of `jwt`, `apiKeyAuth`, `basicAuth` and `authorization`: a policy without them protects nothing",
        );
        return None;
    }
    let api_keys = api_keys.map(|field| credentials::api_keys(&field, meta));
    let users = users.map(|field| credentials::users(&field, meta));
    let tokens = jwt.map(|field| jwt::read(&field));
    let authorization = match authorization {
        Some(field) => {
            let names = tokens.as_ref().map(|(names, _)| &names[..]);
            authorization::read(&field, names)
        }
        // Without rules a good credential is enough.
        None => Some(Authorization {
            rules: Vec::new(),
            default: Decision::Allow,
        }),
    };
    Some(PolicyDraft {
        created: meta.created,
        targets,
        api_keys: present(api_keys)?,
        users: present(users)?,
        tokens: present(tokens.map(|(_, tokens)| tokens))?,
        authorization: authorization?,
    })
}

/// None at all is a part that the document does not have; none inside is one that has mistakes.
#[expect(
    clippy::option_option,
    reason = "absent and unreadable are two things here, and both end at this function"
)]
fn present<T>(part: Option<Option<T>>) -> Option<Option<T>> {
    match part {
        None => Some(None),
        Some(read) => read.map(Some),
    }
}
