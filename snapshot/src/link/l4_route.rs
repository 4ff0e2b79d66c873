//! Routes of `TLSRoute`, `TCPRoute` and `UDPRoute` documents: attached to listeners, backends resolved.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::context::Fault;
use super::gateway::Built;
use super::http_route::References;
use super::listener::Entry;
use super::parent::Attachment;
use crate::document::http_route::BackendDraft;
use crate::document::l4_route::L4RouteDraft;
use crate::document::{Drafts, Kind, Table};
use crate::model::{
    HostPattern, L4Backend, L4Kind, L4Parent, L4Route, ObjectName, RouteKind, SectionName, Target,
    Transport, Upstream, effective_hosts,
};
use crate::report::Source;
use crate::status::{Reason, Report, RouteStatus};

/// Links the routes of all three kinds, the oldest first, then by kind and name.
pub(super) fn routes(drafts: &Drafts, to: &References<'_>, report: &mut Report) -> Vec<L4Route> {
    let mut all: Vec<(L4Kind, &ObjectName, &Source, &Arc<L4RouteDraft>)> = Vec::new();
    let mut add = |kind, table| {
        let table: &Table<L4RouteDraft> = table;
        all.extend(table.iter().filter_map(move |(name, (declared, draft))| {
            Some((kind, name, declared, draft.as_ref()?))
        }));
    };
    add(L4Kind::Tls, &drafts.tls_routes);
    add(L4Kind::Tcp, &drafts.tcp_routes);
    add(L4Kind::Udp, &drafts.udp_routes);
    all.sort_by_key(|(kind, name, _, draft)| {
        (draft.created.is_none(), draft.created, *kind, *name)
    });
    let mut taken = Taken::default();
    let routes = all.into_iter().map(|(kind, name, declared, draft)| {
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
                let same = |one: &L4Parent| one.gateway == built.name && one.listener == entry.id;
                if parents.iter().any(same) {
                    return Ok(());
                }
                let mut hosts = effective_hosts(entry.hostname.as_ref(), &draft.hostnames);
                hosts.retain(|host| {
                    let first = taken.of(built, entry, host, declared);
                    let own = *first == *declared;
                    if !own {
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
        L4Route {
            name: name.clone(),
            kind,
            declared: declared.clone(),
            parents,
            created: draft.created,
            backends,
        }
    });
    routes.collect()
}

/// The route that has a host of a listener: of two routes on a listener the older serves (Gateway API, `TCPRoute`).
#[derive(Default)]
struct Taken(BTreeMap<(ObjectName, SectionName, Option<HostPattern>), Source>);

impl Taken {
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
