//! Routes of `TLSRoute`, `TCPRoute` and `UDPRoute` documents: attached to listeners, backends resolved.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::http_route::{References, attached};
use crate::document::http_route::BackendDraft;
use crate::document::l4_route::L4RouteDraft;
use crate::document::{Drafts, Table};
use crate::model::{
    HostPattern, L4Backend, L4Kind, L4Parent, L4Route, Name, ObjectName, RouteKind, Transport,
    Upstream, effective_hosts,
};
use crate::report::Source;

/// Routes of all three kinds as they were read.
pub(super) struct L4Drafts(Vec<(L4Kind, ObjectName, Source, Arc<L4RouteDraft>)>);

impl L4Drafts {
    /// Takes the routes that could be read, the oldest first, then by kind and name.
    pub(super) fn take(drafts: &mut Drafts) -> Self {
        let table = |kind: L4Kind, table: &mut Table<L4RouteDraft>| {
            std::mem::take(table)
                .into_iter()
                .filter_map(move |(name, (declared, draft))| Some((kind, name, declared, draft?)))
        };
        let mut all: Vec<_> = table(L4Kind::Tls, &mut drafts.tls_routes)
            .chain(table(L4Kind::Tcp, &mut drafts.tcp_routes))
            .chain(table(L4Kind::Udp, &mut drafts.udp_routes))
            .collect();
        all.sort_by(|(a_kind, a_name, _, a), (b_kind, b_name, _, b)| {
            let age = |draft: &L4RouteDraft| (draft.created.is_none(), draft.created);
            (age(a), a_kind, a_name).cmp(&(age(b), b_kind, b_name))
        });
        Self(all)
    }

    /// Links every route.
    pub(super) fn link(self, to: &References<'_>) -> Vec<L4Route> {
        let mut taken = Taken::default();
        let routes = self.0.into_iter().map(|(kind, name, declared, draft)| {
            let parents = parents(kind, &name, &declared, &draft, &mut taken, to);
            let backends = draft
                .backends
                .iter()
                .filter_map(|one| backend(kind, one, to))
                .collect();
            L4Route {
                name,
                kind,
                declared,
                parents,
                created: draft.created,
                backends,
            }
        });
        routes.collect()
    }
}

/// The route that has a host of a listener.
type Taken = BTreeMap<(ObjectName, Name, Option<HostPattern>), Source>;

/// Listeners of a route, with the hosts that no older one has (Gateway API, `TCPRoute`: of two routes on a listener the
/// older serves).
fn parents(
    kind: L4Kind,
    name: &ObjectName,
    declared: &Source,
    draft: &L4RouteDraft,
    taken: &mut Taken,
    to: &References<'_>,
) -> Vec<L4Parent> {
    let mut parents: Vec<L4Parent> = Vec::new();
    for reference in &draft.parents {
        let found = attached(reference, RouteKind::L4(kind), name, &draft.hostnames, to);
        for (listener, parent) in found {
            let known =
                |one: &L4Parent| one.gateway == parent.gateway && one.listener == listener.name;
            if parents.iter().any(known) {
                continue;
            }
            let mut hosts = effective_hosts(listener.hostname.as_ref(), &draft.hostnames);
            hosts.retain(|host| {
                let key = (parent.gateway.clone(), listener.name.clone(), host.clone());
                let first = taken.entry(key).or_insert_with(|| declared.clone());
                let own = *first == *declared;
                if !own {
                    let host = host
                        .as_ref()
                        .map(|host| format!(" for `{host}`"))
                        .unwrap_or_default();
                    to.sink.warning(
                        reference.source.clone(),
                        format_args!(
                            "serves nothing of listener `{}`{host}: {first} does, which is older or comes first by name",
                            listener.name
                        ),
                    );
                }
                own
            });
            if !hosts.is_empty() {
                parents.push(L4Parent {
                    gateway: parent.gateway,
                    listener: listener.name.clone(),
                    hosts,
                });
            }
        }
    }
    parents
}

fn backend(kind: L4Kind, draft: &BackendDraft, to: &References<'_>) -> Option<L4Backend> {
    let Some(upstreams) = to.backends.get(&draft.name) else {
        to.sink.mistake(
            draft.source.clone(),
            format_args!("no `Backend` {}", draft.name),
        );
        return None;
    };
    // A connection to nowhere is closed.
    let upstreams = upstreams.clone().unwrap_or_default();
    let unix = |one: &Upstream| matches!(one, Upstream::Unix(_));
    if kind.transport() == Transport::Udp && upstreams.iter().any(unix) {
        to.sink.mistake(
            draft.source.clone(),
            format_args!(
                "datagrams go to addresses and ports, and `Backend` {} has a Unix socket",
                draft.name
            ),
        );
        return None;
    }
    let tls = |one: &Upstream| matches!(one, Upstream::Tcp { tls: Some(_), .. });
    if kind.transport() == Transport::Udp && upstreams.iter().any(tls) {
        to.sink.mistake(
            draft.source.clone(),
            format_args!(
                "datagrams are not carried by TLS, and a `BackendTLSPolicy` asks for it towards `Backend` {}",
                draft.name
            ),
        );
        return None;
    }
    Some(L4Backend {
        weight: draft.weight,
        upstreams,
    })
}
