//! Which listeners take a route, and what its status says of each of its parents.

use super::context::{Fault, condition};
use super::gateway::{Built, Place};
use super::http_route::References;
use super::listener::Entry;
use super::{Taking, report};
use crate::document::http_route::{ParentDraft, ParentTarget};
use crate::lasting::exact;
use crate::model::{HostPattern, ObjectName, RouteKind, SectionName};
use crate::status::{Condition, ConditionKind, ParentKind, ParentRef, ParentStatus, Reason};

/// A route on its way to listeners.
pub(super) struct Attachment<'a> {
    kind: RouteKind,
    route: &'a ObjectName,
    hostnames: &'a [HostPattern],
    to: &'a References<'a>,
    /// Parents that are Cardinal's, and why one does not take the route.
    parents: Vec<(ParentRef, Option<Fault>)>,
    /// Listeners that count the route already.
    counted: Vec<(ObjectName, SectionName)>,
}

impl<'a> Attachment<'a> {
    pub(super) fn new(
        kind: RouteKind,
        route: &'a ObjectName,
        hostnames: &'a [HostPattern],
        to: &'a References<'a>,
    ) -> Self {
        Self {
            kind,
            route,
            hostnames,
            to,
            parents: Vec::new(),
            counted: Vec::new(),
        }
    }

    /// Follows one of the route's references. `refused` is why the route attaches to nothing; `each` takes a listener, or
    /// says why the route has no part in it.
    pub(super) fn attach(
        &mut self,
        reference: &ParentDraft,
        refused: Option<&Fault>,
        mut each: impl FnMut(&Built, &Entry) -> Result<(), String>,
    ) {
        let sink = self.to.context.sink;
        let (kind, name) = match &reference.to {
            ParentTarget::Listeners { kind, name, .. } => (*kind, name),
            ParentTarget::Foreign(expected) => {
                // In a cluster there may be somebody who knows it.
                if self.to.context.taking == Taking::Whole {
                    sink.mistake(reference.source.clone(), expected);
                }
                return;
            }
        };
        match self.to.gateways.place(kind, name) {
            Place::Ours => {}
            Place::Absent => {
                sink.mistake(reference.source.clone(), format_args!("no `{kind}` {name}"));
                return;
            }
            Place::Unread | Place::Foreign => return,
        }
        let Some(parent) = report::reference(reference, self.to.gateways) else {
            return;
        };
        let fault = match refused {
            Some(fault) => Some(fault.clone()),
            None => match self.listeners(kind, name, reference) {
                Ok((built, entries)) => self.take(built, entries, reference, &mut each),
                Err(fault) => {
                    if !self.excused(kind, name) {
                        sink.mistake(
                            reference.source.clone(),
                            format_args!("{} ({})", fault.message, fault.reason),
                        );
                    }
                    Some(fault)
                }
            },
        };
        self.parents.push((parent, fault));
    }

    /// The listeners that would take the route, and that do not count it.
    pub(super) fn would_take(&self, reference: &ParentDraft) -> Vec<(&'a Built, &'a Entry)> {
        let ParentTarget::Listeners { kind, name, .. } = &reference.to else {
            return Vec::new();
        };
        let Ok((built, entries)) = self.listeners(*kind, name, reference) else {
            return Vec::new();
        };
        entries.into_iter().map(|entry| (built, entry)).collect()
    }

    fn take(
        &mut self,
        built: &Built,
        entries: Vec<&Entry>,
        reference: &ParentDraft,
        each: &mut impl FnMut(&Built, &Entry) -> Result<(), String>,
    ) -> Option<Fault> {
        let mut lost = None;
        let mut taken = false;
        for entry in entries {
            match each(built, entry) {
                Ok(()) => {
                    taken = true;
                    let counted = (built.name.clone(), entry.id.clone());
                    if !self.counted.contains(&counted) {
                        self.counted.push(counted);
                        entry.count();
                    }
                }
                Err(why) => {
                    self.to.context.sink.warning(reference.source.clone(), &why);
                    lost.get_or_insert(why);
                }
            }
        }
        let lost = lost.filter(|_| !taken)?;
        Some(Fault::new(Reason::NotAllowedByListeners, lost))
    }

    /// Whether a folder's mistake in a listener, which is told, is why no listener takes the route.
    fn excused(&self, kind: ParentKind, name: &ObjectName) -> bool {
        let entries = self.to.gateways.listeners(kind, name);
        self.to.context.taking == Taking::Whole
            && entries.is_some_and(|(_, entries)| entries.iter().any(|one| !one.is_accepted()))
    }

    /// The listeners that take the route by a reference; reasons are those of the Gateway API, in its order.
    fn listeners(
        &self,
        kind: ParentKind,
        name: &ObjectName,
        reference: &ParentDraft,
    ) -> Result<(&'a Built, Vec<&'a Entry>), Fault> {
        let gateways = self.to.gateways;
        let Some((built, entries)) = gateways.listeners(kind, name) else {
            let why = format!("the gateway of `{kind}` {name} is not there");
            return Err(Fault::new(Reason::NoMatchingParent, why));
        };
        // The router's words for a gateway are older than sets.
        let owner = match kind {
            ParentKind::Gateway => format!("gateway {name}"),
            ParentKind::ListenerSet => format!("`ListenerSet` {name}"),
        };
        let names: Vec<&str> = entries.iter().map(|entry| entry.name.as_str()).collect();
        let wanted: Vec<&Entry> = entries
            .into_iter()
            .filter(|entry| {
                let section = reference.section.as_ref();
                section.is_none_or(|name| *name == entry.name)
                    && reference.port.is_none_or(|port| entry.port == Some(port))
            })
            .collect();
        if wanted.is_empty() {
            let why = match names.is_empty() {
                true => format!("{owner} has no listeners"),
                false => format!(
                    "{owner} has no such listener; it has `{}`",
                    names.join("`, `")
                ),
            };
            return Err(Fault::new(Reason::NoMatchingParent, why));
        }
        let allowed: Vec<&Entry> = wanted
            .into_iter()
            .filter(|entry| {
                let namespaces = self.to.context.namespaces;
                entry.kinds.contains(&self.kind)
                    && namespaces.allow(&entry.from, name.namespace(), self.route.namespace())
            })
            .collect();
        if allowed.is_empty() {
            let why = format!(
                "the listeners of {owner} take no `{}` of namespace `{}`; one whose `allowedRoutes` have this kind and namespace would",
                self.kind,
                self.route.namespace()
            );
            return Err(Fault::new(Reason::NotAllowedByListeners, why));
        }
        let hostnames = self.hostnames;
        let taken: Vec<&Entry> = allowed
            .into_iter()
            .filter(|entry| match &entry.hostname {
                None => true,
                Some(own) => {
                    hostnames.is_empty()
                        || hostnames.iter().any(|host| own.intersect(host).is_some())
                }
            })
            .collect();
        if taken.is_empty() {
            let why = format!("no listener of {owner} takes one of the route's hostnames");
            return Err(Fault::new(Reason::NoMatchingListenerHostname, why));
        }
        Ok((built, taken))
    }

    /// What is to be said of every parent, and the listeners that count the route. `resolved` is why a reference of the route leads nowhere, `closed` why some of
    /// its rules answer 500 only.
    pub(super) fn finish(
        self,
        resolved: Option<&Fault>,
        closed: Option<&Fault>,
    ) -> (Vec<ParentStatus>, Vec<(ObjectName, SectionName)>) {
        let parents = self.parents.into_iter().map(|(parent, fault)| {
            let mut conditions = vec![
                condition(ConditionKind::Accepted, Reason::Accepted, fault.as_ref()),
                condition(ConditionKind::ResolvedRefs, Reason::ResolvedRefs, resolved),
            ];
            if let Some(closed) = closed {
                conditions.push(Condition::holds(
                    ConditionKind::PartiallyInvalid,
                    closed.reason,
                    &closed.message,
                ));
            }
            ParentStatus {
                parent,
                conditions: exact(conditions),
            }
        });
        (parents.collect(), self.counted)
    }
}
