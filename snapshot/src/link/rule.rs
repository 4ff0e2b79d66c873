//! Rules of routes: filters and targets, each reference followed.
//!
//! A rule of which a part cannot be had is not left out: its requests would go to another rule, which asks for less. It
//! answers 500, as the Gateway API wants it.

use std::sync::Arc;

use super::backend::Resolved;
use super::context::Fault;
use super::http_route::References;
use crate::document::Kind;
use crate::document::http_route::{BackendDraft, FilterDraft, RuleDraft};
use crate::lasting::exact;
use crate::model::{
    Filter, L7Kind, Mirror, ObjectName, RequestMatch, RouteName, Rule, Target, Transport,
    WeightedTarget,
};
use crate::report::Source;
use crate::status::Reason;

/// Rules of one route, and what was wrong with them.
pub(super) struct Rules<'a> {
    kind: Kind,
    namespace: &'a str,
    to: &'a References<'a>,
    /// Why a reference leads nowhere, the first of them.
    pub(super) resolved: Option<Fault>,
    /// Why a rule answers 500 only, the first of them.
    pub(super) closed: Option<Fault>,
    /// Why the whole route is refused.
    pub(super) refused: Option<Fault>,
}

impl<'a> Rules<'a> {
    pub(super) fn new(route: &'a RouteName, to: &'a References<'a>) -> Self {
        Self {
            kind: match route.kind {
                L7Kind::Http => Kind::HTTPRoute,
                L7Kind::Grpc => Kind::GRPCRoute,
            },
            namespace: route.name.namespace(),
            to,
            resolved: None,
            closed: None,
            refused: None,
        }
    }

    pub(super) fn rule(&mut self, draft: &RuleDraft) -> Rule {
        let sink = self.to.context.sink;
        let at = |field: &str| draft.source.at(format!("{}.{field}", draft.source.field));
        let filters = match self.filters(&draft.filters, at("filters")) {
            Ok(filters) => filters,
            Err(why) => return Self::closed(&draft.source, &draft.matches, &why),
        };
        let answered = filters.iter().find_map(|filter| match filter {
            Filter::Redirect(_) => Some(true),
            Filter::Respond(_) => Some(false),
            _ => None,
        });
        match (answered, draft.backends.is_empty()) {
            (None, true) => sink.warning(
                draft.source.clone(),
                "has no `backendRefs`: every request that it matches is answered with 500",
            ),
            (Some(true), false) => self.contradicts(
                at("backendRefs"),
                "`RequestRedirect` answers every request of the rule; expected no backends",
            ),
            (Some(false), false) => sink.warning(
                at("backendRefs"),
                "the rule's `directResponse` answers every request; its backends get none",
            ),
            _ => {}
        }
        let targets = draft.backends.iter().map(|backend| self.weighted(backend));
        Rule {
            targets: targets.collect(),
            filters,
            timeouts: draft.timeouts.clone(),
            retry: draft.retry.clone(),
            session: draft.session.clone(),
            ..Rule::new(draft.source.clone(), Arc::clone(&draft.matches))
        }
    }

    /// A rule whose requests go nowhere: 500.
    pub(super) fn closed(declared: &Source, matches: &Arc<[RequestMatch]>, why: &str) -> Rule {
        Rule {
            targets: vec![WeightedTarget::new(1, Target::Unresolved(why.to_owned()))],
            ..Rule::new(declared.clone(), Arc::clone(matches))
        }
    }

    fn weighted(&mut self, draft: &BackendDraft) -> WeightedTarget {
        let at = draft.source.at(format!("{}.filters", draft.source.field));
        let filters = self.filters(&draft.filters, at);
        let Resolved {
            target,
            name,
            http2,
            ..
        } = self.target(draft);
        match filters {
            Ok(filters) => WeightedTarget {
                backend: name,
                http2,
                filters,
                ..WeightedTarget::new(draft.weight, target)
            },
            Err(why) => WeightedTarget::new(draft.weight, Target::Unresolved(why)),
        }
    }

    fn target(&mut self, draft: &BackendDraft) -> Resolved {
        let from = (self.kind, self.namespace);
        let to = self.to;
        let resolved = to
            .backends
            .resolve(draft, from, Transport::Tcp, to.policies, to.context);
        if let Some(fault) = &resolved.fault {
            self.resolved.get_or_insert_with(|| fault.clone());
        }
        resolved
    }

    /// The filters of one list, which must not contradict each other; or why requests cannot pass them.
    fn filters(&mut self, drafts: &[FilterDraft], source: Source) -> Result<Vec<Filter>, String> {
        let mut filters = Vec::new();
        let mut absent = None;
        for draft in drafts {
            match draft {
                FilterDraft::Here(filter) => filters.push(filter.clone()),
                FilterDraft::Extension { source, name } => match self.extension(source, name) {
                    Ok(filter) => filters.push(filter),
                    Err(why) => {
                        absent.get_or_insert(why);
                    }
                },
                FilterDraft::Mirror { backend, share, of } => {
                    let resolved = self.target(backend);
                    // Copies that lead nowhere are not made (Gateway API, `HTTPRequestMirrorFilter.backendRef`).
                    if resolved.fault.is_none() {
                        filters.push(Filter::Mirror(Arc::new(Mirror {
                            target: resolved.target,
                            share: *share,
                            of: *of,
                        })));
                    }
                }
            }
        }
        if let Some(why) = absent {
            return Err(why);
        }
        match contradiction(&filters) {
            None => Ok(exact(filters)),
            Some(complaint) => {
                self.contradicts(source, complaint);
                Err(complaint.to_owned())
            }
        }
    }

    fn contradicts(&mut self, source: Source, complaint: &str) {
        self.refused
            .get_or_insert_with(|| Fault::new(Reason::IncompatibleFilters, complaint));
        self.to.context.sink.mistake(source, complaint);
    }

    fn extension(&mut self, source: &Source, name: &ObjectName) -> Result<Filter, String> {
        let why = match self.to.filters.get(name) {
            Some((_, Some(filter))) => return Ok(Filter::clone(filter)),
            Some((_, None)) => format!("`HTTPRouteFilter` {name} has mistakes"),
            None => {
                let why = format!("no `HTTPRouteFilter` {name}");
                self.to.context.sink.mistake(source.clone(), &why);
                why
            }
        };
        let fault = Fault::new(Reason::InvalidFilter, &why);
        self.closed.get_or_insert_with(|| fault.clone());
        self.resolved.get_or_insert(fault);
        Err(why)
    }
}

fn contradiction(filters: &[Filter]) -> Option<&'static str> {
    let count = |fits: fn(&Filter) -> bool| filters.iter().filter(|one| fits(one)).count();
    let paths = count(|one| matches!(one, Filter::Rewrite(change) if change.path.is_some()));
    let hosts = count(|one| matches!(one, Filter::Rewrite(change) if change.hostname.is_some()));
    let answers = count(|one| matches!(one, Filter::Redirect(_) | Filter::Respond(_)));
    if paths > 1 {
        Some("expected at most one filter that rewrites the path, got more")
    } else if hosts > 1 {
        Some("expected at most one filter that rewrites the host, got more")
    } else if answers > 1 {
        Some("expected at most one filter that answers, got more")
    } else if answers > 0 && paths + hosts > 0 {
        Some("a request that is answered here is sent nowhere; expected no filter that rewrites it")
    } else {
        None
    }
}
