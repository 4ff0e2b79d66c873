//! `BackendTrafficPolicy` documents to the rules whose traffic they are about.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::sync::Arc;

use super::attachment::{Effect, Known, Policies, Policy, Refused};
use crate::document::Table;
use crate::document::traffic_policy::{Spec, TrafficDraft, merged};
use crate::model::{Auth, PolicyId, Route, Target, TrafficPolicy};
use crate::reader::Sink;
use crate::report::Source;
use crate::shared::Shared;

/// Policies by what they are for.
pub(super) fn policies<'s>(
    drafts: &'s Table<TrafficDraft>,
    refused: &[Refused],
    known: Known<'_, 's>,
) -> Policies<'s, TrafficPolicy> {
    let policies = drafts
        .iter()
        .filter_map(|(name, (declared, draft))| {
            let draft = draft.as_ref()?;
            Some(Policy {
                name: name.clone(),
                declared: declared.clone(),
                created: draft.created,
                targets: draft.targets.clone(),
                what: Effect::Applies(Arc::new(draft.policy.clone())),
            })
        })
        .chain(refused.iter().map(Refused::policy))
        .collect();
    let merging = Merging {
        drafts,
        made: RefCell::default(),
        sink: known.sink,
    };
    let merge = Box::new(move |own: &Arc<_>, parent: &Arc<_>| merging.merge(own, parent));
    Policies::new(policies, Some(|rule| &mut rule.traffic), merge, known)
}

/// Policies as they are written, and what came of two of them.
struct Merging<'a> {
    drafts: &'a Table<TrafficDraft>,
    made: RefCell<BTreeMap<PolicyId, Effect<TrafficPolicy>>>,
    sink: &'a Sink,
}

impl Merging<'_> {
    /// The policy of a rule where `parent` is that of its listener or gateway.
    fn merge(
        &self,
        own: &Arc<TrafficPolicy>,
        parent: &Arc<TrafficPolicy>,
    ) -> Effect<TrafficPolicy> {
        let spec = |policy: &TrafficPolicy| {
            let (_, draft) = self.drafts.get(&policy.name)?;
            Some(&draft.as_ref()?.spec)
        };
        let alone = || Effect::Applies(Arc::clone(own));
        let (Some(patch), Some(original)) = (spec(own), spec(parent)) else {
            return alone();
        };
        let Some(asked) = &patch.merge else {
            return alone();
        };
        let id = PolicyId {
            name: own.name.clone(),
            parent: Some(parent.name.clone()),
        };
        let mut made = self.made.borrow_mut();
        let policy =
            made.entry(id)
                .or_insert_with(|| match self.read(patch, original, asked, parent) {
                    Some(policy) => Effect::Applies(Arc::new(policy)),
                    None => {
                        let declared = own.declared.clone();
                        let why = format!("{} cannot be merged", declared.object);
                        Effect::Closes(Arc::new(Auth::closed(declared, why)))
                    }
                });
        policy.clone()
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
pub(super) fn without_effect(routes: &[Shared<Route>], sink: &Sink) {
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
