//! `BackendTLSPolicy` documents to the endpoints that they are for.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::authorities::Holders;
use super::http_route::Backends;
use crate::document::Table;
use crate::document::backend_tls::{TlsPolicyDraft, TlsTarget};
use crate::model::{ObjectName, Port, Upstream, UpstreamTls};
use crate::report::Source;

/// Puts policies on the endpoints of backends. One of a port wins over one of the whole backend; of two for
/// one target the older wins, then the one whose name comes first (Gateway API, policy attachment).
pub(super) fn apply(
    drafts: Table<TlsPolicyDraft>,
    refused: &[(Source, Vec<(Source, TlsTarget)>)],
    backends: &mut Backends,
    holders: &Holders<'_>,
) {
    let mut drafts: Vec<(ObjectName, Source, Arc<TlsPolicyDraft>)> = drafts
        .into_iter()
        .filter_map(|(name, (declared, draft))| Some((name, declared, draft?)))
        .collect();
    drafts.sort_by_cached_key(|(name, _, draft)| {
        (draft.created.is_none(), draft.created, name.clone())
    });
    let mut policies: BTreeMap<TlsTarget, Arc<UpstreamTls>> = BTreeMap::new();
    for (_, declared, draft) in drafts {
        let authorities = draft.authorities.as_ref().map(|references| {
            holders.authorities(
                references,
                "requests to what the policy is for are answered with 502",
            )
        });
        let tls = Arc::new(UpstreamTls {
            declared,
            hostname: draft.hostname.clone(),
            names: draft.names.clone(),
            authorities,
        });
        for (source, target) in &draft.targets {
            if let Some(mistake) = mistake(target, backends) {
                holders.sink.mistake(source.clone(), mistake);
                continue;
            }
            match policies.get(target) {
                Some(first) => holders.sink.warning(
                    source.clone(),
                    format_args!(
                        "has no effect here: {} is for this target as well, and is older or comes first by name",
                        first.declared
                    ),
                ),
                None => {
                    policies.insert(target.clone(), Arc::clone(&tls));
                }
            }
        }
    }
    for (name, upstreams) in &mut *backends {
        for upstream in upstreams.iter_mut().flatten() {
            if let Upstream::Tcp { port, tls, .. } = upstream {
                let of = |port: Option<Port>| {
                    let backend = name.clone();
                    policies.get(&TlsTarget { backend, port })
                };
                *tls = of(Some(*port)).or_else(|| of(None)).cloned();
            }
        }
    }
    // Without the policy the requests would go there in the clear, or to whoever answers.
    for (declared, targets) in refused {
        for (_, target) in targets {
            if let Some(upstreams) = backends.get_mut(&target.backend) {
                *upstreams = Err(format!("{} has mistakes", declared.object));
            }
        }
    }
}

fn mistake(target: &TlsTarget, backends: &Backends) -> Option<String> {
    let name = &target.backend;
    let upstreams = match backends.get(name) {
        None => return Some(format!("no `Backend` {name}")),
        Some(upstreams) => upstreams.as_ref().ok()?,
    };
    match target.port {
        Some(port) => {
            let there = upstreams
                .iter()
                .any(|one| matches!(one, Upstream::Tcp { port: own, .. } if *own == port));
            (!there).then(|| format!("`Backend` {name} has no endpoint with port {port}"))
        }
        None => upstreams
            .iter()
            .any(|one| matches!(one, Upstream::Unix(_)))
            .then(|| {
                format!(
                    "`Backend` {name} has Unix sockets, over which no TLS is spoken; expected `sectionName` with the port of its other endpoints"
                )
            }),
    }
}
