//! `SecurityPolicy` (Envoy Gateway): tokens and what they may do.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::cell::scope;
use super::{Meta, jwks, name};
use crate::model::{
    Auth, AuthRule, Authorization, ClaimRequirement, Decision, JwtProvider, Name, ObjectName,
};
use crate::reader::{Field, Object};
use crate::report::Source;

/// Envoy Gateway: at most 16 providers and 8 audiences.
const MAX_PROVIDERS: usize = 16;
const MAX_AUDIENCES: usize = 8;
/// Gateway API, policy attachment: at most 16 targets.
const MAX_TARGETS: usize = 16;

/// A policy whose targets are not resolved.
pub(crate) struct PolicyDraft {
    pub(crate) targets: Vec<(Source, PolicyTarget)>,
    pub(crate) auth: Arc<Auth>,
}

/// What a policy is for, from the most specific on.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum PolicyTarget {
    Rule(ObjectName, Name),
    Route(ObjectName),
    Gateway(ObjectName),
}

/// Reads the `spec`.
pub(crate) fn read(spec: &mut Object<'_>, meta: &Meta) -> Option<PolicyDraft> {
    spec.unsupported(&[
        "targetSelectors",
        "mergeType",
        "cors",
        "basicAuth",
        "apiKeyAuth",
        "oidc",
        "extAuth",
    ]);
    let targets = targets(spec, meta);
    let providers = spec
        .required("jwt")
        .and_then(|field| field.object())
        .map(|mut jwt| {
            jwt.unsupported(&["optional", "failOpen"]);
            let field = jwt.required("providers");
            jwt.finish();
            field.map(|field| providers(&field)).unwrap_or_default()
        })
        .unwrap_or_default();
    let names: Vec<&Name> = providers.iter().map(|(name, _)| name).collect();
    let authorization = match spec.optional("authorization") {
        Some(field) => authorization(&field, &names),
        // Without rules a valid token is enough.
        None => Some(Authorization {
            rules: Vec::new(),
            default: Decision::Allow,
        }),
    };
    let authorization = authorization?;
    let providers: Vec<Arc<JwtProvider>> = providers
        .into_iter()
        .filter_map(|(_, provider)| provider.map(Arc::new))
        .collect();
    if providers.is_empty() {
        return None;
    }
    Some(PolicyDraft {
        targets,
        auth: Arc::new(Auth {
            providers,
            authorization,
        }),
    })
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
    let gateway = object
        .required("kind")
        .and_then(|field| field.choice(&[("HTTPRoute", false), ("Gateway", true)]));
    let target = object
        .required("name")
        .and_then(|field| field.parse(|text| ObjectName::new(meta.name.namespace(), text)));
    let section = object.optional("sectionName");
    object.finish();
    let (gateway, target) = (gateway?, target?);
    match (gateway, section) {
        (true, Some(section)) => {
            section.mistake("a policy for one listener of a gateway is not supported yet");
            None
        }
        (true, None) => Some(PolicyTarget::Gateway(target)),
        (false, Some(section)) => Some(PolicyTarget::Rule(target, name(&section)?)),
        (false, None) => Some(PolicyTarget::Route(target)),
    }
}

/// Providers by name; those that have mistakes leave their name.
fn providers(field: &Field<'_>) -> Vec<(Name, Option<JwtProvider>)> {
    let mut providers: Vec<(Name, Option<JwtProvider>)> = Vec::new();
    for item in field.some_limited_list(MAX_PROVIDERS) {
        let Some(mut object) = item.object() else {
            continue;
        };
        let name_field = object.required("name");
        let name = name_field.as_ref().and_then(name);
        let provider = provider(&mut object, name.as_ref());
        object.finish();
        let (Some(name), Some(field)) = (name, name_field) else {
            continue;
        };
        if providers.iter().any(|(other, _)| *other == name) {
            field.mistake(format_args!("provider `{name}` is in the list already"));
            continue;
        }
        providers.push((name, provider));
    }
    providers
}

fn provider(object: &mut Object<'_>, name: Option<&Name>) -> Option<JwtProvider> {
    let declared = object.field().source().clone();
    let issuer = object
        .optional("issuer")
        .and_then(|field| field.some_string().map(str::to_owned));
    let audiences = match object.optional("audiences") {
        Some(field) => field
            .limited_list(MAX_AUDIENCES)
            .iter()
            .filter_map(|field| field.some_string().map(str::to_owned))
            .collect(),
        None => Vec::new(),
    };
    object.unsupported(&["extractFrom", "claimToHeaders", "recomputeRoute"]);
    let keys = jwks::key_source(object);
    let (keys, algorithms) = jwks::agree(keys?, None, object)?;
    Some(JwtProvider {
        declared,
        name: name?.clone(),
        issuer,
        audiences,
        algorithms,
        keys,
    })
}

const DECISIONS: [(&str, Decision); 2] = [("Allow", Decision::Allow), ("Deny", Decision::Deny)];

fn authorization(field: &Field<'_>, providers: &[&Name]) -> Option<Authorization> {
    let mut object = field.object()?;
    let default = match object.optional("defaultAction") {
        Some(field) => field.choice(&DECISIONS),
        None => Some(Decision::Deny),
    };
    let mut names = BTreeSet::new();
    let mut rules = Vec::new();
    for item in object.list("rules") {
        let Some(mut rule) = item.object() else {
            continue;
        };
        if let Some(field) = rule.optional("name")
            && let Some(name) = field.some_string()
            && !names.insert(name)
        {
            field.mistake("a rule before has this name");
        }
        let decision = rule
            .required("action")
            .and_then(|field| field.choice(&DECISIONS));
        rule.unsupported(&["operation", "cel", "when"]);
        let principal = rule
            .required("principal")
            .and_then(|field| principal(&field, providers));
        rule.finish();
        if let (Some(decision), Some((provider, scopes, claims))) = (decision, principal) {
            rules.push(AuthRule {
                decision,
                provider,
                scopes,
                claims,
            });
        }
    }
    object.finish();
    Some(Authorization {
        rules,
        default: default?,
    })
}

fn principal(
    field: &Field<'_>,
    providers: &[&Name],
) -> Option<(Name, Vec<String>, Vec<ClaimRequirement>)> {
    let mut object = field.object()?;
    object.unsupported(&["clientCIDRs", "headers", "methods", "sourceCIDR"]);
    let jwt = object.required("jwt");
    object.finish();
    let mut jwt = jwt?.object()?;
    let provider = jwt.required("provider").and_then(|field| {
        let name = name(&field)?;
        if !providers.contains(&&name) {
            field.mistake(format_args!("no provider `{name}` in `jwt.providers`"));
            return None;
        }
        Some(name)
    });
    let scopes: Vec<String> = jwt.list("scopes").iter().filter_map(scope).collect();
    let claims: Vec<ClaimRequirement> = jwt
        .list("claims")
        .iter()
        .filter_map(|field| {
            let mut object = field.object()?;
            let name = object
                .required("name")
                .and_then(|field| field.some_string().map(str::to_owned));
            if let Some(field) = object.optional("valueType") {
                field.choice(&[("String", ()), ("StringArray", ())]);
            }
            let values: Vec<String> = object
                .required("values")
                .map(|field| field.some_list())
                .unwrap_or_default()
                .iter()
                .filter_map(|field| field.some_string().map(str::to_owned))
                .collect();
            object.finish();
            Some(ClaimRequirement {
                name: name?,
                values,
            })
        })
        .collect();
    jwt.finish();
    Some((provider?, scopes, claims))
}
