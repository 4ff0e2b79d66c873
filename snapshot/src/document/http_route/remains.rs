//! What is left of a route that is refused: whose requests no other route may serve in its place.

use super::matches::{self, remaining};
use super::{MAX_PARENTS, ParentDraft, RouteDraft, RuleDraft, parent_target};
use crate::document::{Meta, gateway, grpc_route};
use crate::lasting::exact;
use crate::model::{HostPattern, L7Kind, RequestMatch, SectionName};
use crate::reader::{Field, Object};
use crate::tree::Value;

/// What a refused route is about, as far as that can be read; none: nothing. Its one rule has the matches of all. A match whose path
/// cannot be read has every path. Where no hostname can be read, such a match is left out: it would take all that the listener has.
pub(in crate::document) fn closed(
    spec: &mut Object<'_>,
    meta: &Meta,
    kind: L7Kind,
) -> Option<RouteDraft> {
    let hostnames = hostnames(spec);
    let of_item: fn(&Field<'_>) -> Vec<RequestMatch> = match kind {
        L7Kind::Http => remaining,
        L7Kind::Grpc => grpc_route::remaining,
    };
    let rules = spec.list("rules");
    let mut matches: Vec<RequestMatch> = Vec::new();
    // Whether something takes every request, or nobody can read which.
    let mut broad = rules.is_empty();
    for rule in rules {
        let items = rule.object().map(|mut rule| rule.list("matches"));
        let items: Vec<_> = items.unwrap_or_default().iter().map(of_item).collect();
        broad |= items.is_empty() || items.iter().any(Vec::is_empty);
        matches.extend(items.into_iter().flatten());
    }
    if broad && hostnames.is_some() {
        matches.push(match kind {
            L7Kind::Http => matches::every(),
            L7Kind::Grpc => grpc_route::any_call(),
        });
    }
    let parents = parents(spec, meta);
    if matches.is_empty() || parents.is_empty() {
        return None;
    }
    let rule = RuleDraft {
        source: meta.declared.lasting(),
        name: None,
        matches: matches.into(),
        filters: Box::default(),
        timeouts: None,
        retry: None,
        session: None,
        backends: Box::default(),
    };
    Some(RouteDraft {
        parents,
        hostnames: hostnames.unwrap_or_default().into(),
        created: meta.created,
        generation: meta.generation,
        rules: vec![rule],
    })
}

/// Hostnames that can be read, each once, however many there are; empty: there are none, which are all. None: there are, and nobody
/// can read them.
pub(in crate::document) fn hostnames(spec: &mut Object<'_>) -> Option<Vec<HostPattern>> {
    let Some(field) = spec.optional("hostnames") else {
        return Some(Vec::new());
    };
    let items = field.list();
    let mut hostnames: Vec<_> = items.iter().filter_map(gateway::pattern).collect();
    hostnames.sort();
    hostnames.dedup();
    let none = matches!(field.value(), Value::List(items) if items.is_empty());
    (none || !hostnames.is_empty()).then_some(hostnames)
}

/// What it would attach to. A section or port that cannot be read is every one.
pub(in crate::document) fn parents(spec: &mut Object<'_>, meta: &Meta) -> Vec<ParentDraft> {
    let parents = spec.list("parentRefs").into_iter().take(MAX_PARENTS);
    let parents = parents.filter_map(|field| {
        let mut object = field.object()?;
        Some(ParentDraft {
            source: field.source().lasting(),
            to: parent_target(&mut object, meta)?,
            section: object
                .optional("sectionName")
                .and_then(|field| field.parse(SectionName::new)),
            port: object.optional("port").and_then(|field| field.port()),
        })
    });
    exact(parents.collect())
}
