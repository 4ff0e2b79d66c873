//! Routes of `TLSRoute`, `TCPRoute` and `UDPRoute` documents: attached to listeners, backends resolved.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::attachment::RefusedRoute;
use super::context::Fault;
use super::gateway::Built;
use super::http_route::References;
use super::listener::Entry;
use super::parent::Attachment;
use crate::document::http_route::BackendDraft;
use crate::document::l4_route::L4RouteDraft;
use crate::document::policy::ClosedRoute;
use crate::document::{Drafts, Kind, Table};
use crate::model::{
    HostPattern, L4Backend, L4Kind, L4Parent, L4Route, ObjectName, RouteKind, SectionName, Target,
    Transport, Upstream, effective_hosts,
};
use crate::report::Source;
use crate::status::{Reason, Report, RouteStatus};

/// Links the routes of all three kinds, the oldest first, then by kind and name. What is left of those that are `refused` leads
/// nowhere, and no younger route has it.
pub(super) fn routes(
    drafts: &Drafts,
    refused: &[RefusedRoute],
    to: &References<'_>,
    report: &mut Report,
) -> Vec<L4Route> {
    let mut all: Vec<Found<'_>> = Vec::new();
    let mut add = |kind, table| {
        let table: &Table<L4RouteDraft> = table;
        all.extend(table.iter().filter_map(move |(name, (declared, draft))| {
            Some(Found {
                kind,
                name,
                declared,
                draft: draft.as_deref()?,
                refused: false,
            })
        }));
    };
    add(L4Kind::Tls, &drafts.tls_routes);
    add(L4Kind::Tcp, &drafts.tcp_routes);
    add(L4Kind::Udp, &drafts.udp_routes);
    all.extend(refused.iter().filter_map(|one| match &one.route {
        ClosedRoute::L4(kind, draft) => Some(Found {
            kind: *kind,
            name: &one.name,
            declared: &one.declared,
            draft,
            refused: true,
        }),
        ClosedRoute::L7(..) => None,
    }));
    all.sort_by_key(|one| {
        let created = one.draft.created;
        (created.is_none(), created, one.kind, one.name)
    });
    let mut taken = Taken::default();
    let routes = all.iter().map(|one| match one.refused {
        true => closing(one, to, &mut taken),
        false => route(one, to, &mut taken, report),
    });
    routes.collect()
}

/// A route whose document was read, or what is left of one that was refused.
struct Found<'a> {
    kind: L4Kind,
    name: &'a ObjectName,
    declared: &'a Source,
    draft: &'a L4RouteDraft,
    refused: bool,
}

impl Found<'_> {
    fn model(&self, parents: Vec<L4Parent>, backends: Vec<L4Backend>) -> L4Route {
        L4Route {
            name: self.name.clone(),
            kind: self.kind,
            declared: self.declared.clone(),
            parents,
            created: self.draft.created,
            backends,
        }
    }
}

/// A route without targets where a refused one would attach.
fn closing(found: &Found<'_>, to: &References<'_>, taken: &mut Taken) -> L4Route {
    let draft = found.draft;
    let kind = RouteKind::L4(found.kind);
    let attachment = Attachment::new(kind, found.name, &draft.hostnames, to);
    let mut parents: Vec<L4Parent> = Vec::new();
    let references = draft.parents.iter();
    for (built, entry) in references.flat_map(|one| attachment.would_take(one)) {
        taken.attach(&mut parents, (built, entry), found, |_, _| {});
    }
    found.model(parents, Vec::new())
}

/// Links a route, and says what its status is if it has one.
fn route(
    found: &Found<'_>,
    to: &References<'_>,
    taken: &mut Taken,
    report: &mut Report,
) -> L4Route {
    let Found {
        kind, name, draft, ..
    } = *found;
    let mut resolved = None;
    let backends = draft
        .backends
        .iter()
        .map(|one| backend(kind, name, one, &mut resolved, to))
        .collect();
    let route = RouteKind::L4(kind);
    let mut attachment = Attachment::new(route, name, &draft.hostnames, to);
    let mut parents: Vec<L4Parent> = Vec::new();
    for reference in &draft.parents {
        attachment.attach(reference, None, |built, entry| {
            taken.attach(&mut parents, (built, entry), found, |host, first| {
                let host = host
                    .as_ref()
                    .map(|host| format!(" for `{host}`"))
                    .unwrap_or_default();
                to.context.sink.warning(
                    reference.source.clone(),
                    format_args!(
                        "serves nothing of listener `{}`{host}: {first} does, which is older or comes first by name",
                        entry.name
                    ),
                );
            });
            // A route that serves nothing as an older one does is attached all the same.
            Ok(())
        });
    }
    let (statuses, _) = attachment.finish(resolved.as_ref(), None);
    if !statuses.is_empty() {
        let status = RouteStatus {
            generation: draft.generation,
            parents: statuses.into(),
        };
        report
            .routes
            .insert((route, name.clone()), Arc::new(status));
    }
    found.model(parents, backends)
}

/// The route that has a host of a listener: of two routes on a listener the older serves (Gateway API, `TCPRoute`).
#[derive(Default)]
struct Taken(BTreeMap<(ObjectName, SectionName, Option<HostPattern>), Source>);

impl Taken {
    /// Gives a route what nobody has of a listener; `lost` hears of every host that somebody has, and who.
    fn attach(
        &mut self,
        parents: &mut Vec<L4Parent>,
        (built, entry): (&Built, &Entry),
        route: &Found<'_>,
        lost: impl Fn(&Option<HostPattern>, &Source),
    ) {
        let same = |one: &L4Parent| one.gateway == built.name && one.listener == entry.id;
        if parents.iter().any(same) {
            return;
        }
        let mut hosts = effective_hosts(entry.hostname.as_ref(), &route.draft.hostnames);
        hosts.retain(|host| {
            let first = self.of(built, entry, host, route.declared);
            let own = first == route.declared;
            if !own {
                lost(host, first);
            }
            own
        });
        if let Some(parent) = built.parent(entry).filter(|_| !hosts.is_empty()) {
            parents.push(L4Parent {
                gateway: parent.gateway,
                listener: entry.id.clone(),
                hosts,
            });
        }
    }

    fn of(
        &mut self,
        built: &Built,
        entry: &Entry,
        host: &Option<HostPattern>,
        declared: &Source,
    ) -> &Source {
        let key = (built.name.clone(), entry.id.clone(), host.clone());
        self.0.entry(key).or_insert_with(|| declared.clone())
    }
}

/// Where a share of the connections goes; nowhere: they are closed.
fn backend(
    kind: L4Kind,
    route: &ObjectName,
    draft: &BackendDraft,
    first: &mut Option<Fault>,
    to: &References<'_>,
) -> L4Backend {
    let from = match kind {
        L4Kind::Tls => Kind::TLSRoute,
        L4Kind::Tcp => Kind::TCPRoute,
        L4Kind::Udp => Kind::UDPRoute,
    };
    let transport = kind.transport();
    let resolved = to.backends.resolve(
        draft,
        (from, route.namespace()),
        transport,
        to.policies,
        to.context,
    );
    let mut upstreams = match resolved.target {
        Target::Upstreams(upstreams) => upstreams.to_vec(),
        _ => Vec::new(),
    };
    let mut fault = resolved.fault;
    if transport == Transport::Udp
        && let Some(why) = undeliverable(&upstreams, draft)
    {
        to.context.sink.mistake(draft.source.clone(), &why);
        fault = Some(Fault::new(Reason::UnsupportedProtocol, why));
        upstreams.clear();
    }
    if let Some(fault) = fault {
        first.get_or_insert(fault);
    }
    L4Backend {
        weight: draft.weight,
        upstreams,
    }
}

/// Why datagrams cannot go there.
fn undeliverable(upstreams: &[Upstream], draft: &BackendDraft) -> Option<String> {
    let unix = |one: &Upstream| matches!(one, Upstream::Unix(_));
    let tls = |one: &Upstream| matches!(one, Upstream::Tcp { tls: Some(_), .. });
    if upstreams.iter().any(unix) {
        return Some(format!(
            "datagrams go to addresses and ports, and `Backend` {} has a Unix socket",
            draft.name
        ));
    }
    upstreams.iter().any(tls).then(|| {
        format!(
            "datagrams are not carried by TLS, and a `BackendTLSPolicy` asks for it towards `Backend` {}",
            draft.name
        )
    })
}
