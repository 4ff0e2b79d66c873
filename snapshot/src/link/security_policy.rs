//! `SecurityPolicy` documents to the rules that they protect.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::http_route::{Gateways, Linked};
use crate::document::Table;
use crate::document::security_policy::{PolicyDraft, PolicyTarget};
use crate::model::{Auth, ObjectName, Route};
use crate::reader::Sink;
use crate::report::Source;

type Policies = BTreeMap<PolicyTarget, (Source, Arc<Auth>)>;

/// Puts policies on rules: the one of a rule wins over that of its route, and that over the one of the
/// gateway. What a cell declares for its own endpoints counts as a policy of the rule.
pub(super) fn apply(
    drafts: Table<PolicyDraft>,
    documents: BTreeMap<ObjectName, Option<Linked>>,
    derived: Vec<Route>,
    gateways: &Gateways,
    sink: &Sink,
) -> Vec<Route> {
    let policies = targets(drafts, &documents, gateways, sink);
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
        .flat_map(|route| by_gateway(route, &policies))
        .collect()
}

fn targets(
    drafts: Table<PolicyDraft>,
    documents: &BTreeMap<ObjectName, Option<Linked>>,
    gateways: &Gateways,
    sink: &Sink,
) -> Policies {
    let mut drafts: Vec<_> = drafts.into_values().collect();
    drafts.sort_by(|a, b| a.0.position().cmp(&b.0.position()));
    let mut policies = Policies::new();
    for (declared, draft) in drafts {
        let Some(draft) = draft else { continue };
        for (source, target) in draft.targets {
            let missing = match &target {
                PolicyTarget::Gateway(name) => {
                    (!gateways.contains_key(name)).then(|| format!("no `Gateway` {name}"))
                }
                PolicyTarget::Route(name) => {
                    (!documents.contains_key(name)).then(|| format!("no `HTTPRoute` {name}"))
                }
                PolicyTarget::Rule(name, rule) => match documents.get(name) {
                    None => Some(format!("no `HTTPRoute` {name}")),
                    Some(Some(linked))
                        if !linked
                            .rule_names
                            .iter()
                            .flatten()
                            .any(|known| known == rule)
                            && !sink.tainted(&linked.route.declared) =>
                    {
                        Some(format!("`HTTPRoute` {name} has no rule `{rule}`"))
                    }
                    Some(_) => None,
                },
            };
            if let Some(missing) = missing {
                sink.mistake(source, missing);
                continue;
            }
            match policies.get(&target) {
                Some((first, _)) => sink.mistake(
                    source,
                    format_args!("this target has a policy already, by {first}"),
                ),
                None => {
                    policies.insert(target, (declared.clone(), draft.auth.clone()));
                }
            }
        }
    }
    policies
}

/// One route for each policy of the gateways that it is attached to: a rule has one answer to who may
/// pass, and two gateways may give two.
fn by_gateway(route: Route, policies: &Policies) -> Vec<Route> {
    let mut groups: Vec<(Option<&Arc<Auth>>, Route)> = Vec::new();
    for parent in &route.parents {
        let policy = policies
            .get(&PolicyTarget::Gateway(parent.gateway.clone()))
            .map(|(_, auth)| auth);
        let same = |other: &Option<&Arc<Auth>>| match (other, policy) {
            (Some(a), Some(b)) => Arc::ptr_eq(a, b),
            (None, None) => true,
            _ => false,
        };
        match groups.iter_mut().find(|(other, _)| same(other)) {
            Some((_, group)) => group.parents.push(parent.clone()),
            None => {
                let mut group = Route {
                    parents: vec![parent.clone()],
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
