//! Policies that are merged into those of listeners and gateways, alike for all kinds that have `mergeType`.

use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::Arc;

use super::attachment::{Effect, Merge};
use crate::document::policy::merge::Spec;
use crate::model::Auth;
use crate::reader::Sink;

/// Policies as they are written, and what came of two of them.
struct Merging<'s, T> {
    /// By address: each is kept, so that no other one gets it.
    policies: HashMap<*const T, (Arc<T>, &'s Spec)>,
    made: RefCell<HashMap<[*const T; 2], Effect<T>>>,
    sink: &'s Sink,
}

/// What becomes of these policies where a listener or gateway has one as well. `read` makes one policy of a policy and the one
/// above it, or tells its sink of mistakes.
pub(super) fn merge<'s, T: 's>(
    policies: Vec<(Arc<T>, &'s Spec)>,
    sink: &'s Sink,
    read: impl Fn(&Spec, &Spec, &Sink) -> Option<T> + 's,
) -> Merge<'s, T> {
    let by_address = policies.into_iter();
    let merging = Merging {
        policies: by_address
            .map(|(policy, spec)| (Arc::as_ptr(&policy), (policy, spec)))
            .collect(),
        made: RefCell::default(),
        sink,
    };
    Box::new(move |own, above| merging.merge(own, above, &read))
}

impl<T> Merging<'_, T> {
    /// The policy of a rule where `above` is that of its listener or gateway.
    fn merge(
        &self,
        own: &Arc<T>,
        above: &Effect<T>,
        read: &impl Fn(&Spec, &Spec, &Sink) -> Option<T>,
    ) -> Effect<T> {
        let spec = |policy: &Arc<T>| {
            self.policies
                .get(&Arc::as_ptr(policy))
                .map(|(_, spec)| *spec)
        };
        let alone = || Effect::Applies(Arc::clone(own));
        let Some(patch) = spec(own) else {
            return alone();
        };
        let Some(asked) = &patch.merge else {
            return alone();
        };
        let parent = match above {
            Effect::Applies(parent) => parent,
            // Nobody knows what it would have asked.
            Effect::Closes(auth) => return Effect::Closes(Arc::clone(auth)),
        };
        let Some(original) = spec(parent) else {
            return alone();
        };
        let mut made = self.made.borrow_mut();
        let pair = [Arc::as_ptr(own), Arc::as_ptr(parent)];
        let policy = made.entry(pair).or_insert_with(|| {
            // Both may be right, and what comes of them not: each mistake is told at the field that asks for it.
            let found = Sink::default();
            let policy = read(patch, original, &found);
            let (mistakes, _) = found.finish();
            for mistake in &mistakes {
                let (field, message) = (&mistake.source.field, &mistake.message);
                self.sink.mistake(
                    asked.clone(),
                    format_args!(
                        "with what {} says, `{field}` is no good: {message}",
                        original.declared.object
                    ),
                );
            }
            match policy.filter(|_| mistakes.is_empty()) {
                Some(policy) => Effect::Applies(Arc::new(policy)),
                None => {
                    let declared = patch.declared.clone();
                    let why = format!("{} cannot be merged", declared.object);
                    Effect::Closes(Arc::new(Auth::closed(declared, why)))
                }
            }
        });
        policy.clone()
    }
}
