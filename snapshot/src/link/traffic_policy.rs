//! `BackendTrafficPolicy` documents to the rules whose traffic they are about.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::sync::Arc;

use super::attachment::{Known, Policies, Policy};
use crate::document::Table;
use crate::document::traffic_policy::{Spec, TrafficDraft, merged};
use crate::model::{PolicyId, Route, Target, TrafficPolicy};
use crate::reader::Sink;
use crate::report::Source;

/// Policies by what they are for.
pub(super) fn policies<'s>(
    drafts: Table<TrafficDraft>,
    known: Known<'_, 's>,
) -> Policies<'s, TrafficPolicy> {
    let mut specs = BTreeMap::new();
    let policies = drafts
        .into_iter()
        .filter_map(|(name, (declared, draft))| {
            let draft = draft?;
            specs.insert(name.clone(), draft.spec);
            Some(Policy {
                name,
                declared,
                created: draft.created,
                targets: draft.targets,
                what: Arc::new(draft.policy),
            })
        })
        .collect();
    let merging = Merging {
        specs,
        made: RefCell::default(),
        sink: known.sink,
    };
    let merge = Box::new(move |own, parent: &_| merging.merge(own, parent));
    Policies::new(policies, |rule| &mut rule.traffic, merge, known)
}

/// Policies as they are written, and what came of two of them.
struct Merging<'a> {
    specs: BTreeMap<crate::model::ObjectName, Spec>,
    made: RefCell<BTreeMap<PolicyId, Arc<TrafficPolicy>>>,
    sink: &'a Sink,
}

impl Merging<'_> {
    /// The policy of a rule where `parent` is that of its listener or gateway.
    fn merge(&self, own: Arc<TrafficPolicy>, parent: &Arc<TrafficPolicy>) -> Arc<TrafficPolicy> {
        let spec = |policy: &TrafficPolicy| self.specs.get(&policy.name);
        let (Some(patch), Some(original)) = (spec(&own), spec(parent)) else {
            return own;
        };
        let Some(asked) = &patch.merge else {
            return own;
        };
        let id = PolicyId {
            name: own.name.clone(),
            parent: Some(parent.name.clone()),
        };
        let mut made = self.made.borrow_mut();
        let policy =
            made.entry(id)
                .or_insert_with(|| match self.read(patch, original, asked, parent) {
                    Some(policy) => Arc::new(policy),
                    // What was said about it refuses the documents.
                    None => own,
                });
        Arc::clone(policy)
    }

    /// Both may be right, and what comes of them not: each mistake is told at the field that asks for it.
    fn read(
        &self,
        patch: &Spec,
        original: &Spec,
        asked: &Source,
        parent: &TrafficPolicy,
    ) -> Option<TrafficPolicy> {
        let found = Sink::default();
        let policy = merged(patch, original, &found);
        let (mistakes, _) = found.finish();
        for mistake in &mistakes {
            let (field, message) = (&mistake.source.field, &mistake.message);
            self.sink.mistake(
                asked.clone(),
                format_args!(
                    "with what {} says, `{field}` is no good: {message}",
                    parent.declared.object
                ),
            );
        }
        policy.filter(|_| mistakes.is_empty())
    }
}

/// Says where a policy is about endpoints and a rule leads to a routing table: placements have health, breakers
/// and limits of their own.
pub(super) fn without_effect(routes: &[Route], sink: &Sink) {
    for rule in routes.iter().flat_map(|route| &route.rules) {
        let Some(policy) = rule.traffic.as_ref().filter(|one| one.is_about_endpoints()) else {
            continue;
        };
        for target in &rule.targets {
            if let Target::RoutingTable(table) = &target.target {
                sink.warning(
                    policy.declared.at("spec"),
                    format_args!(
                        "what it says of endpoints has no effect on `RoutingTable` {table}, whose placements say it themselves"
                    ),
                );
            }
        }
    }
}
