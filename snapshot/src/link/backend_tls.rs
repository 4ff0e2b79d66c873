//! `BackendTLSPolicy` documents to the endpoints that they are for.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::attachment::RefusedTls;
use super::backend::Backends;
use super::context::{Context, Fault};
use crate::document::backend_tls::{TlsPolicyDraft, TlsTarget};
use crate::document::{Kind, Table};
use crate::model::{ObjectName, Timestamp, Upstream, UpstreamTls};
use crate::report::Source;
use crate::status::Reason;

/// Policies by target. One of a port wins over one of the whole backend; of two for one target the older wins, then the
/// one whose name comes first (Gateway API, policy attachment).
#[derive(Default)]
pub(super) struct TlsPolicies {
    /// With why what the policy is for is closed, if it has mistakes.
    by_target: BTreeMap<TlsTarget, (ObjectName, Result<Arc<UpstreamTls>, String>)>,
    /// What is to be said of each policy.
    pub(super) verdicts: BTreeMap<ObjectName, TlsVerdict>,
}

/// What became of a policy.
#[derive(Default)]
pub(super) struct TlsVerdict {
    pub(super) accepted: Option<Fault>,
    pub(super) resolved: Option<Fault>,
    pub(super) targets: Vec<TlsTarget>,
}

struct Candidate<'a> {
    name: &'a ObjectName,
    declared: &'a Source,
    created: Option<Timestamp>,
    targets: &'a [(Source, TlsTarget)],
    draft: Option<&'a TlsPolicyDraft>,
}

impl TlsPolicies {
    pub(super) fn new(
        drafts: &Table<TlsPolicyDraft>,
        refused: &[RefusedTls],
        backends: &Backends<'_>,
        to: &Context<'_>,
    ) -> Self {
        let read = drafts.iter().filter_map(|(name, (declared, draft))| {
            let draft = draft.as_deref()?;
            Some(Candidate {
                name,
                declared,
                created: draft.created,
                targets: &draft.targets,
                draft: Some(draft),
            })
        });
        let refused = refused.iter().map(|one| Candidate {
            name: &one.name,
            declared: &one.declared,
            created: one.created,
            targets: &one.targets,
            draft: None,
        });
        let mut candidates: Vec<_> = read.chain(refused).collect();
        candidates.sort_by_key(|one| (one.created.is_none(), one.created, one.name));
        let mut policies = Self::default();
        for candidate in candidates {
            policies.add(&candidate, backends, to);
        }
        policies
    }

    /// What a target has, and whether it is closed.
    pub(super) fn of(&self, target: &TlsTarget) -> Option<Result<&Arc<UpstreamTls>, &String>> {
        self.by_target.get(target).map(|(_, what)| what.as_ref())
    }

    fn add(&mut self, candidate: &Candidate<'_>, backends: &Backends<'_>, to: &Context<'_>) {
        let mut verdict = TlsVerdict::default();
        let what = match candidate.draft {
            Some(draft) => Ok(tls(candidate, draft, &mut verdict, to)),
            None => {
                // Without the policy requests would go there in the clear, or to whoever answers.
                let why = format!("{} has mistakes", candidate.declared.object);
                verdict.accepted = Some(Fault::new(Reason::Invalid, &why));
                Err(why)
            }
        };
        for (source, target) in candidate.targets {
            verdict.targets.push(target.clone());
            if let Some(why) = missing(target, backends) {
                to.sink.mistake(source.clone(), &why);
                verdict
                    .accepted
                    .get_or_insert(Fault::new(Reason::TargetNotFound, why));
                continue;
            }
            match self.by_target.get(target) {
                Some((first, _)) => {
                    let why = format!(
                        "has no effect here: `BackendTLSPolicy` {first} is for this target as well, and is older or comes first by name"
                    );
                    to.sink.warning(source.clone(), &why);
                    verdict
                        .accepted
                        .get_or_insert(Fault::new(Reason::Conflicted, why));
                }
                None => {
                    let what = (candidate.name.clone(), what.clone());
                    self.by_target.insert(target.clone(), what);
                }
            }
        }
        self.verdicts.insert(candidate.name.clone(), verdict);
    }
}

fn tls(
    candidate: &Candidate<'_>,
    draft: &TlsPolicyDraft,
    verdict: &mut TlsVerdict,
    to: &Context<'_>,
) -> Arc<UpstreamTls> {
    let authorities = draft.authorities.as_ref().map(|references| {
        let found = to.holders.authorities(
            references,
            (Kind::BackendTLSPolicy, candidate.name.namespace()),
            "requests to what the policy is for are answered with 502",
        );
        if let Some(fault) = found.fault {
            // The API has a name of its own for it here.
            let reason = match fault.reason {
                Reason::InvalidCACertificateKind => Reason::InvalidKind,
                other => other,
            };
            verdict.accepted = Some(Fault::new(Reason::NoValidCACertificate, &fault.message));
            verdict.resolved = Some(Fault { reason, ..fault });
        }
        found.authorities
    });
    Arc::new(UpstreamTls {
        declared: candidate.declared.clone(),
        hostname: draft.hostname.clone(),
        names: draft.names.clone(),
        authorities,
    })
}

/// Why a target is none.
fn missing(target: &TlsTarget, backends: &Backends<'_>) -> Option<String> {
    match target {
        TlsTarget::Backend(name, port) => {
            let upstreams = match backends.backend(name) {
                None => return Some(format!("no `Backend` {name}")),
                Some(upstreams) => upstreams?,
            };
            match port {
                Some(port) => {
                    let there = upstreams
                        .iter()
                        .any(|one| matches!(one, Upstream::Tcp { port: own, .. } if own == port));
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
        TlsTarget::Service(name, section) => {
            let service = match backends.service(name) {
                None => return Some(format!("no `Service` {name}")),
                Some(service) => service?,
            };
            let section = section.as_ref()?;
            let there = service.ports.iter().any(|port| port.name == *section);
            (!there).then(|| format!("`Service` {name} has no port with the name `{section}`"))
        }
    }
}
