//! Which declarations a rule comes from.
//!
//! The kernel looks a rule up by peer and port, and several declarations may come to the same one: two calls by name to
//! one port both lead to the router. Such a rule names all of them, so that nobody is sent to the wrong field.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use snapshot::Source;

use super::numbers::Numbered;
use crate::datapath::RuleSource;

/// What the declarations of a rule mean, in the order of their words. A rule's number comes from it, never from where it is
/// declared: it stays when lines move or a file gets another name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Meaning(Arc<[String]>);

impl Numbered for Meaning {
    fn parts(&self, part: &mut dyn FnMut(&str)) {
        for declaration in &*self.0 {
            part(declaration);
        }
    }
}

/// Something that a document says and that makes rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Declaration(usize);

/// One or more declarations.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Origin(usize);

/// The declarations of one component's rules.
#[derive(Default)]
pub(super) struct Origins {
    said: Vec<Said>,
    by_meaning: BTreeMap<String, Declaration>,
    /// An origin is another one, or none, and one declaration more: a long one shares its beginning with shorter ones.
    origins: Vec<(Option<Origin>, Declaration)>,
    known: BTreeMap<(Option<Origin>, Declaration), Origin>,
}

struct Said {
    meaning: String,
    text: String,
    source: Source,
}

impl Origins {
    /// A declaration. `callers` tells declarations of one text apart; of two that mean the same, the first is named.
    pub(super) fn declare(
        &mut self,
        text: String,
        callers: &[snapshot::model::Name],
        source: impl FnOnce() -> Source,
    ) -> Declaration {
        let mut meaning = text.clone();
        for (index, caller) in callers.iter().enumerate() {
            meaning.push_str(if index == 0 { " from " } else { "," });
            meaning.push_str(caller.as_str());
        }
        if let Some(known) = self.by_meaning.get(&meaning) {
            return *known;
        }
        let declaration = Declaration(self.said.len());
        self.by_meaning.insert(meaning.clone(), declaration);
        self.said.push(Said {
            meaning,
            text,
            source: source(),
        });
        declaration
    }

    /// What `before` comes from, if anything, and this declaration too.
    pub(super) fn and(&mut self, before: Option<Origin>, declaration: Declaration) -> Origin {
        if let Some(before) = before
            && self.origins[before.0].1 == declaration
        {
            return before;
        }
        let next = Origin(self.origins.len());
        let origin = *self.known.entry((before, declaration)).or_insert(next);
        if origin == next {
            self.origins.push((before, declaration));
        }
        origin
    }

    /// What the origins of rules mean, in order, and which of these meanings each origin has.
    pub(super) fn finish(
        &self,
        used: &BTreeSet<Origin>,
    ) -> (BTreeMap<Origin, usize>, Vec<(Meaning, RuleSource)>) {
        let mut meanings: BTreeMap<Meaning, (RuleSource, Vec<Origin>)> = BTreeMap::new();
        for origin in used {
            let declarations = self.declarations(*origin);
            let mut meaning: Vec<String> = declarations
                .iter()
                .map(|said| said.meaning.clone())
                .collect();
            meaning.sort_unstable();
            let source = || {
                let said = declarations.iter();
                RuleSource::new(said.map(|said| (said.text.as_str(), said.source.clone())))
            };
            let (_, origins) = meanings
                .entry(Meaning(meaning.into()))
                .or_insert_with(|| (source(), Vec::new()));
            origins.push(*origin);
        }
        let mut of = BTreeMap::new();
        let mut all = Vec::with_capacity(meanings.len());
        for (meaning, (source, origins)) in meanings {
            of.extend(origins.into_iter().map(|origin| (origin, all.len())));
            all.push((meaning, source));
        }
        (of, all)
    }

    /// Each once, in the order in which they were met.
    fn declarations(&self, origin: Origin) -> Vec<&Said> {
        let mut declarations = Vec::new();
        let mut next = Some(origin);
        while let Some(Origin(at)) = next {
            let (before, Declaration(said)) = self.origins[at];
            declarations.push(said);
            next = before;
        }
        declarations.reverse();
        let mut seen = BTreeSet::new();
        declarations.retain(|said| seen.insert(*said));
        declarations
            .into_iter()
            .map(|said| &self.said[said])
            .collect()
    }
}
