//! `SecurityPolicy` (Envoy Gateway): who may pass, by key, user, token and what these may do.

use super::{Meta, name};
use crate::model::{
    Authorization, Decision, Name, ObjectName, RouteKind, RouteName, Timestamp, Tokens,
};
use crate::reader::{Field, Object};
use crate::report::Source;

mod authorization;
mod credentials;
mod jwt;

pub(crate) use credentials::{ApiKeyDraft, BasicDraft};

/// Gateway API, policy attachment: at most 16 targets.
const MAX_TARGETS: usize = 16;

/// A policy whose targets and Secrets are not resolved.
pub(crate) struct PolicyDraft {
    pub(crate) created: Option<Timestamp>,
    pub(crate) targets: Vec<(Source, PolicyTarget)>,
    pub(crate) api_keys: Option<ApiKeyDraft>,
    pub(crate) users: Option<BasicDraft>,
    pub(crate) tokens: Option<Tokens>,
    pub(crate) authorization: Authorization,
}

/// What a policy is for, from the most specific on.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum PolicyTarget {
    Rule(RouteName, Name),
    Route(RouteName),
    Listener(ObjectName, Name),
    Gateway(ObjectName),
}

/// Reads the `spec`.
pub(crate) fn read(spec: &mut Object<'_>, meta: &Meta) -> Option<PolicyDraft> {
    spec.unsupported(&["targetSelectors", "mergeType", "cors", "oidc", "extAuth"]);
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

fn targets(spec: &mut Object<'_>, meta: &Meta) -> Vec<(Source, PolicyTarget)> {
    let single = spec.optional("targetRef");
    let several = spec.optional("targetRefs");
    let items = match (single, several) {
        (Some(field), None) => vec![field],
        (None, Some(field)) => field.some_limited_list(MAX_TARGETS),
        (Some(_), Some(field)) => {
            field.mistake("expected either `targetRef` or `targetRefs`, got both");
            Vec::new()
        }
        (None, None) => {
            spec.field().sink().mistake(
                spec.at("targetRefs"),
                "is missing, and required: a policy without target protects nothing",
            );
            Vec::new()
        }
    };
    let mut targets: Vec<(Source, PolicyTarget)> = Vec::new();
    for item in items {
        let Some(target) = target(&item, meta) else {
            continue;
        };
        if targets.iter().any(|(_, other)| *other == target) {
            item.mistake("this target is in the list already");
        } else {
            targets.push((item.source().clone(), target));
        }
    }
    targets
}

fn target(field: &Field<'_>, meta: &Meta) -> Option<PolicyTarget> {
    let mut object = field.object()?;
    if let Some(field) = object.required("group") {
        field.choice(&[("gateway.networking.k8s.io", ())]);
    }
    let kind = object.required("kind").and_then(|field| {
        let routes = [RouteKind::Http, RouteKind::Grpc].map(|kind| (kind.as_str(), Some(kind)));
        field.choice(&[routes[0], routes[1], ("Gateway", None)])
    });
    let target = object
        .required("name")
        .and_then(|field| field.parse(|text| ObjectName::new(meta.name.namespace(), text)));
    let section = object.optional("sectionName");
    object.finish();
    let (kind, target) = (kind?, target?);
    let section = match section {
        Some(field) => Some(name(&field)?),
        None => None,
    };
    let route = |kind, name| RouteName { kind, name };
    Some(match (kind, section) {
        (None, Some(listener)) => PolicyTarget::Listener(target, listener),
        (None, None) => PolicyTarget::Gateway(target),
        (Some(kind), Some(rule)) => PolicyTarget::Rule(route(kind, target), rule),
        (Some(kind), None) => PolicyTarget::Route(route(kind, target)),
    })
}
