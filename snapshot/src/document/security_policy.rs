//! `SecurityPolicy` (Envoy Gateway): which pages may ask, and who may pass, by key, user, token and what these may do.

use std::sync::Arc;

use super::Meta;
use super::http_route::cors_of_policy;
use super::policy::merge::{self, Spec, entry, merge_type};
use super::policy::{Targets, targets};
use crate::model::{Authorization, Cors, Timestamp, Tokens};
use crate::reader::{Object, Sink};
use crate::tree::{Node, Value};

mod authorization;
mod credentials;
mod jwt;

use credentials::References;
pub(crate) use credentials::{ApiKeyDraft, BasicDraft};

/// A policy whose targets and Secrets are not resolved.
pub(crate) struct PolicyDraft {
    pub(crate) created: Option<Timestamp>,
    pub(crate) targets: Targets,
    pub(crate) cors: Option<Arc<Cors>>,
    pub(crate) api_keys: Option<ApiKeyDraft>,
    pub(crate) users: Option<BasicDraft>,
    pub(crate) tokens: Option<Tokens>,
    pub(crate) authorization: Authorization,
    pub(crate) spec: Spec,
}

/// Reads the `spec`.
pub(crate) fn read(spec: &mut Object<'_>, meta: &Meta) -> Option<PolicyDraft> {
    whole(spec, meta, References::Own)
}

/// The policy that comes of one and the one above it; none: it has mistakes, of which `sink` is told.
pub(crate) fn merged(patch: &Spec, original: &Spec, sink: &Sink) -> Option<PolicyDraft> {
    merge::merged(patch, &original.node, &[], sink, |spec, meta| {
        whole(spec, meta, References::OfBoth)
    })
}

fn whole(spec: &mut Object<'_>, meta: &Meta, references: References) -> Option<PolicyDraft> {
    spec.unsupported(&["oidc", "extAuth"]);
    let targets = targets(spec, meta);
    let merge = merge_type(spec, &targets);
    let cors = spec.optional("cors");
    let api_keys = spec.optional("apiKeyAuth");
    let users = spec.optional("basicAuth");
    let jwt = spec.optional("jwt");
    let authorization = spec.optional("authorization");
    let parts = [&cors, &api_keys, &users, &jwt, &authorization];
    if parts.iter().all(|part| part.is_none()) {
        spec.field().mistake(
            "expected at least one of `jwt`, `apiKeyAuth`, `basicAuth`, `authorization` and `cors`: a policy without them does nothing",
        );
        return None;
    }
    let cors = cors.map(|field| cors_of_policy(&field));
    let api_keys = api_keys.map(|field| credentials::api_keys(&field, meta, references));
    let users = users.map(|field| credentials::users(&field, meta, references));
    let tokens = jwt.map(|field| jwt::read(&field));
    let authorization = match authorization {
        Some(field) => {
            let names = tokens.as_ref().map(|(names, _)| &names[..]);
            authorization::read(&field, names)
        }
        // Without rules a good credential is enough.
        None => Some(Authorization::open()),
    };
    let mut written = Spec::new(spec, meta, merge?);
    qualify(&mut written.node, meta.name.namespace());
    Some(PolicyDraft {
        created: meta.created,
        targets,
        cors: present(cors)?.map(Arc::new),
        api_keys: present(api_keys)?,
        users: present(users)?,
        tokens: present(tokens.map(|(_, tokens)| tokens))?,
        authorization: authorization?,
        spec: written,
    })
}

/// Gives references their namespace, which is that of the policy that has them also where it is merged into another one.
fn qualify(spec: &mut Node, namespace: &str) {
    let qualify = |reference: &mut Node| {
        let line = reference.line;
        if reference.value.get("namespace").is_none()
            && let Value::Mapping(entries) = &mut reference.value
        {
            let namespace = Value::String(namespace.to_owned());
            entries.push(entry(line, "namespace", namespace));
        }
    };
    for (section, field) in [("apiKeyAuth", "credentialRefs"), ("basicAuth", "users")] {
        let section = spec.value.get_mut(section);
        let Some(given) = section.and_then(|section| section.value.get_mut(field)) else {
            continue;
        };
        if let Value::List(references) = &mut given.value {
            references.iter_mut().for_each(qualify);
        } else {
            qualify(given);
        }
    }
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
