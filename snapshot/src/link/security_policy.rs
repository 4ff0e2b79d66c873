//! `SecurityPolicy` documents to the rules that they protect.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::credentials;
use super::http_route::{Documents, Gateways};
use crate::document::Table;
use crate::document::secret::SecretDraft;
use crate::document::security_policy::{PolicyDraft, PolicyTarget};
use crate::model::{Auth, ObjectName, Parent, Route};
use crate::reader::Sink;
use crate::report::Source;

type Policies = BTreeMap<PolicyTarget, (Source, Arc<Auth>)>;

/// Puts policies on rules. The most specific one wins whole: that of a rule over that of its route, that
/// over the one of a listener, and that over the one of the gateway. What a cell declares for its own
/// endpoints counts as a policy of the rule.
pub(super) fn apply(
    drafts: Table<PolicyDraft>,
    documents: Documents,
    derived: Vec<Route>,
    gateways: &Gateways,
    secrets: &Table<SecretDraft>,
    sink: &Sink,
) -> Vec<Route> {
    let policies = targets(drafts, &documents, gateways, secrets, sink);
    let auth = |target: PolicyTarget| policies.get(&target).map(|(_, auth)| auth.clone());
    let mut routes = derived;
    for (name, linked) in documents {
        let Some(mut linked) = linked else { continue };
        for (rule, rule_name) in linked.route.rules.iter_mut().zip(&linked.rule_names) {
            let own = rule_name
                .as_ref()
                .and_then(|rule| auth(PolicyTarget::Rule(name.clone(), rule.clone())));
            rule.auth = own.or_else(|| auth(PolicyTarget::Route(name.clone())));
        }
        routes.push(linked.route);
    }
    routes
        .into_iter()
        .flat_map(|route| by_parent(route, &policies, gateways))
        .collect()
}

/// Policies by target. Of two for one target the older wins, then the one whose name comes first
/// (Gateway API, policy attachment, conflict resolution).
fn targets(
    drafts: Table<PolicyDraft>,
    documents: &Documents,
    gateways: &Gateways,
    secrets: &Table<SecretDraft>,
    sink: &Sink,
) -> Policies {
    let mut drafts: Vec<(ObjectName, Source, PolicyDraft)> = drafts
        .into_iter()
        .filter_map(|(name, (declared, draft))| Some((name, declared, draft?)))
        .collect();
    drafts.sort_by(|(a_name, _, a), (b_name, _, b)| {
        let age = |draft: &PolicyDraft| (draft.created.is_none(), draft.created);
        (age(a), a_name).cmp(&(age(b), b_name))
    });
    let mut policies = Policies::new();
    for (_, declared, mut draft) in drafts {
        let wanted = std::mem::take(&mut draft.targets);
        let auth = Arc::new(credentials::auth(declared.clone(), draft, secrets, sink));
        for (source, target) in wanted {
            if let Some(missing) = missing(&target, documents, gateways, sink) {
                sink.mistake(source, missing);
                continue;
            }
            match policies.get(&target) {
                Some((first, _)) => sink.warning(
                    source,
                    format_args!(
                        "has no effect here: {first} is for this target as well, and is older or comes first by name"
                    ),
                ),
                None => {
                    policies.insert(target, (declared.clone(), auth.clone()));
                }
            }
        }
    }
    policies
}

fn missing(
    target: &PolicyTarget,
    documents: &Documents,
    gateways: &Gateways,
    sink: &Sink,
) -> Option<String> {
    match target {
        PolicyTarget::Gateway(name) => {
            (!gateways.contains_key(name)).then(|| format!("no `Gateway` {name}"))
        }
        PolicyTarget::Listener(name, listener) => match gateways.get(name) {
            None => Some(format!("no `Gateway` {name}")),
            Some(Some(gateway))
                if !gateway
                    .listeners
                    .iter()
                    .any(|one| one.listener.name == *listener)
                    && !gateway
                        .listeners
                        .iter()
                        .any(|one| sink.tainted(&one.listener.declared)) =>
            {
                Some(format!("`Gateway` {name} has no listener `{listener}`"))
            }
            Some(_) => None,
        },
        PolicyTarget::Route(name) => (!documents.contains_key(name)).then(|| format!("no {name}")),
        PolicyTarget::Rule(name, rule) => match documents.get(name) {
            None => Some(format!("no {name}")),
            Some(Some(linked))
                if !linked
                    .rule_names
                    .iter()
                    .flatten()
                    .any(|known| known == rule)
                    && !sink.tainted(&linked.route.declared) =>
            {
                Some(format!("{name} has no rule `{rule}`"))
            }
            Some(_) => None,
        },
    }
}

/// One route for each policy of the listeners that it is attached to: a rule has one answer to who may
/// pass, and two listeners may give two.
fn by_parent(route: Route, policies: &Policies, gateways: &Gateways) -> Vec<Route> {
    let mut groups: Vec<(Option<&Arc<Auth>>, Route)> = Vec::new();
    let parents = route
        .parents
        .iter()
        .flat_map(|parent| by_listener(parent, policies, gateways));
    for parent in parents {
        let own = parent.listener.as_ref().and_then(|listener| {
            policies.get(&PolicyTarget::Listener(
                parent.gateway.clone(),
                listener.clone(),
            ))
        });
        let policy = own
            .or_else(|| policies.get(&PolicyTarget::Gateway(parent.gateway.clone())))
            .map(|(_, auth)| auth);
        let same = |other: &Option<&Arc<Auth>>| match (other, policy) {
            (Some(a), Some(b)) => Arc::ptr_eq(a, b),
            (None, None) => true,
            _ => false,
        };
        match groups.iter_mut().find(|(other, _)| same(other)) {
            Some((_, group)) => group.parents.push(parent),
            None => {
                let mut group = Route {
                    parents: vec![parent],
                    ..route.clone()
                };
                for rule in &mut group.rules {
                    rule.auth = rule.auth.take().or_else(|| policy.cloned());
                }
                groups.push((policy, group));
            }
        }
    }
    groups.into_iter().map(|(_, group)| group).collect()
}

/// A parent as it is, or, if listeners of its gateway have policies of their own, one for each listener.
fn by_listener(parent: &Parent, policies: &Policies, gateways: &Gateways) -> Vec<Parent> {
    let differ = policies.keys().any(
        |target| matches!(target, PolicyTarget::Listener(gateway, _) if *gateway == parent.gateway),
    );
    let gateway = gateways.get(&parent.gateway).and_then(Option::as_ref);
    match gateway {
        Some(gateway) if differ && parent.listener.is_none() => gateway
            .listeners
            .iter()
            .map(|one| Parent {
                listener: Some(one.listener.name.clone()),
                ..parent.clone()
            })
            .collect(),
        _ => vec![parent.clone()],
    }
}
