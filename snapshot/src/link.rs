//! Drafts to a snapshot: references are resolved, and what must be unique across documents is.
//!
//! A part that cannot be linked is left out where that closes it, and is closed where leaving it out would open
//! something. A folder's snapshot is only taken if there was no mistake anywhere; that of a cluster's objects as it is.

use std::collections::BTreeMap;
use std::sync::Arc;

use self::addresses::Foreign;
use self::attachment::{Closing, Known};
use self::authorities::Holders;
use self::backend::Backends;
use self::backend_tls::TlsPolicies;
use self::collect::{Collected, Placed};
use self::context::{Context, Fault};
use self::gateway::{Gateways, Giving, RefusedGateways};
use self::grants::{Grants, Namespaces};
use self::http_route::{Documents, References};
use self::report::Leads;
use crate::document::address_source::AddressSources;
use crate::document::platform::{CellSource, PlatformDraft};
use crate::document::policy::{Labelled, PolicyTarget};
use crate::document::secret::SecretDraft;
use crate::document::{Draft, Drafts, Kind, Read};
use crate::model::{Gateway, L7Kind, ObjectName, PolicyScope, Route, RouteName, Snapshot};
use crate::reader::Sink;
use crate::report::Mistake;
use crate::status::{Reason, Report};

mod addresses;
mod assembly;
mod attachment;
mod authorities;
mod awaited;
mod backend;
mod backend_tls;
mod balancer;
mod cells;
mod client_policy;
mod closed_cells;
mod collect;
mod context;
mod credentials;
mod gateway;
mod gateway_tls;
mod grants;
mod http_route;
mod l4_route;
mod listener;
mod memory;
mod merging;
mod network_policy;
mod openchoreo;
mod parent;
mod platform;
mod pool;
mod report;
mod routing_table;
mod rule;
mod security_policy;
mod service;
mod traffic_policy;
mod trespass;

pub(crate) use collect::Taking;
pub(crate) use memory::Memory;

/// Gateways as the router and the kernel get them.
type Served = BTreeMap<ObjectName, Gateway>;

/// What comes of documents.
pub(crate) struct Outcome {
    pub(crate) snapshot: Snapshot,
    pub(crate) report: Report,
    /// In the order of files and lines.
    pub(crate) mistakes: Vec<Mistake>,
}

/// Links what was read of all files together, which comes in the order of its paths. What is remembered saves work and is
/// not to be seen in what comes out.
pub(crate) fn link(reads: Vec<Arc<Read>>, taking: Taking, memory: &mut Memory) -> Outcome {
    let sink = Sink::default();
    let (mut collected, changes) = memory.assembly.collect(&reads, taking, &sink);
    let before = sink.mistakes();
    let stated = stated(&collected.drafts, &collected.documents);
    let derived = stated.is_some_and(|platform| platform.cells == CellSource::OpenChoreo);
    cells::unique(&collected.drafts, derived, &sink);
    let foreign = Foreign::of(&collected.drafts, &collected.documents, taking);
    addresses::unique(&collected.drafts, &foreign, &sink);
    addresses::pod_networks(&collected.drafts, &sink);
    if sink.mistakes() > before {
        collected.plain = false;
        if taking == Taking::Each {
            collected.refuse(&sink);
        }
    }
    let Collected {
        drafts,
        documents,
        plain,
    } = collected;
    let mut report = Report::default();
    memory.look(&changes, &documents);
    let snapshot = snapshot(
        &drafts,
        (&documents, &foreign),
        taking,
        memory,
        &mut report,
        &sink,
    );
    let (mistakes, warnings) = sink.finish();
    let assembly = &mut memory.assembly;
    (report.objects, report.nameless) =
        assembly.verdicts(&documents, &changes, &mistakes, &warnings);
    report::observe(&mut report);
    if plain {
        assembly.keep(drafts);
    }
    let digest = assembly.together();
    Outcome {
        snapshot: Snapshot {
            digest: digest.into(),
            warnings,
            ..snapshot
        },
        report,
        mistakes,
    }
}

/// Makes a snapshot without digest and warnings, and says of every part what the Gateway API wants to be said.
fn snapshot(
    drafts: &Drafts,
    (documents, foreign): (&[Placed<'_>], &Foreign),
    taking: Taking,
    memory: &mut Memory,
    report: &mut Report,
    sink: &Sink,
) -> Snapshot {
    let closing = Closing::of(documents);
    let grants = Grants::new(&drafts.grants);
    let holders = Holders {
        grants: &grants,
        config_maps: &drafts.config_maps,
        secrets: &drafts.secrets,
        sink,
    };
    let context = Context {
        taking,
        grants: &grants,
        namespaces: &Namespaces::new(&drafts.namespaces),
        holders: &holders,
        sink,
    };
    let platforms = drafts.platforms.values().next();
    let platform_draft = platforms.and_then(|(_, draft)| draft.as_deref());
    let gateways = Gateways::new(
        &drafts.gateways,
        &drafts.listener_sets,
        &drafts.classes,
        (&refused_gateways(documents, sink), &closing.sets),
        &Giving {
            pools: platform_draft.map_or(&[], |platform| &platform.pools),
            sources: platform_draft
                .map_or(&AddressSources::default(), |platform| &platform.sources),
            nodes: platform::all_nodes(platform_draft, &drafts.nodes)
                .flat_map(|node| &node.addresses)
                .map(|placed| placed.address)
                .collect(),
            services: &drafts.services,
        },
        &context,
    );
    let mut served = gateways.served();
    let no_routes = Documents::new();
    let known = Known {
        documents: &no_routes,
        gateways: &gateways,
        labelled: &labelled(documents),
        sink,
    };
    let clients = client_policy::apply(
        &drafts.client_policies,
        &closing.client,
        &mut served,
        known,
        &holders,
    );
    let platform = platform::link(platform_draft, &drafts.nodes, &mut served, &gateways, sink);
    // Without a readable platform nothing can be said about what it lacks.
    let readable = platforms.is_none_or(|(source, _)| !sink.tainted(source));
    let stated = stated(drafts, documents);
    let derived = stated.is_some_and(|platform| platform.cells == CellSource::OpenChoreo);
    let scope = stated.map_or_else(PolicyScope::default, |platform| platform.network_policies);
    let (cells, exposures) = cells::link(drafts, documents, foreign, derived, sink);
    // The pods of cells of labels are known now too.
    let network = network_policy::link(
        drafts,
        documents,
        &cells,
        context.namespaces,
        scope,
        &platform,
        sink,
    );
    let mut routes = Vec::new();
    if readable || taking == Taking::Each {
        routes = cells::routes(&exposures, &platform, &served, sink);
    }
    let tables = &drafts.routing_tables;
    let routing_tables = routing_table::link(tables, &gateways, sink);
    let trespasses = trespass::find(drafts, &cells, &exposures, taking);
    memory.trespass(&trespasses);
    let lists = std::mem::take(&mut memory.lists);
    let backends = Backends::new(
        &drafts.backends,
        &drafts.services,
        &drafts.slices,
        tables,
        lists,
        &trespasses,
    );
    let policies = TlsPolicies::new(&drafts.tls_policies, &closing.tls, &backends, &context);
    let references = References {
        gateways: &gateways,
        backends: &backends,
        policies: &policies,
        filters: &drafts.filters,
        context: &context,
    };
    let mut l4_routes = l4_route::routes(drafts, &closing.routes, &references, report);
    let of_documents = [
        (L7Kind::Http, &drafts.http_routes),
        (L7Kind::Grpc, &drafts.grpc_routes),
    ];
    let (mut linked, closed) =
        http_route::routes(of_documents, &closing.routes, &references, memory, report);
    let known = Known {
        documents: &linked,
        ..known
    };
    let security = security_policy::policies(
        &drafts.security_policies,
        &closing.security,
        &drafts.secrets,
        known,
    );
    let traffic = traffic_policy::policies(&drafts.traffic_policies, &closing.traffic, known);
    for route in &mut l4_routes {
        let named = closing.closes(route.kind, &route.name);
        route.parents.retain(|one| {
            let (gateway, listener) = (&one.gateway, &one.listener);
            let closes = clients.closes(gateway, listener)
                || security.closes(gateway, listener)
                || traffic.closes(gateway, listener);
            !named && !closes
        });
    }
    // What closes a rule comes last: nothing opens it again.
    security.on_documents(&mut linked);
    traffic.on_documents(&mut linked);
    routes.extend(linked.into_values().flatten().map(|linked| linked.route));
    routes.extend(closed);
    let routes = security.on_listeners(routes, &served);
    let routes = traffic.on_listeners(routes, &served);
    let mut routes = clients.on_listeners(routes, &served);
    traffic_policy::without_effect(&routes, sink);
    security_policy::without_effect(&security, &served, sink);
    routes.sort_by(|a, b| route_order(a).cmp(&route_order(b)));

    report::classes(&drafts.classes, &drafts.platforms, report);
    report::refused_routes(documents, &gateways, report, sink);
    report::gateways(&gateways, report);
    // Without a readable platform nothing is known of what gateways need.
    report.load_balancers =
        readable.then(|| balancer::wanted(&gateways, &served, &drafts.services));
    report::policies(Kind::SecurityPolicy, &security, report);
    report::policies(Kind::BackendTrafficPolicy, &traffic, report);
    report::policies(Kind::ClientTrafficPolicy, &clients, report);
    if !policies.verdicts.is_empty() {
        report::tls_policies(&policies, &Leads::new(drafts, &gateways), report);
    }
    memory.lists = backends.lists();
    Snapshot {
        digest: "".into(),
        platform: platform.into(),
        awaited: awaited::nodes(
            &drafts.pods,
            (&cells, &exposures),
            documents,
            derived.then_some(&drafts.namespaces),
            scope,
        ),
        cells,
        network,
        services: service::services(&drafts.services, &drafts.slices, sink),
        routing_tables,
        gateways: served,
        routes,
        l4_routes,
        certificates: drafts
            .secrets
            .iter()
            .filter_map(|(name, (_, secret))| match secret.as_deref()? {
                SecretDraft::Tls { certificate, .. } => {
                    Some((name.clone(), Arc::clone(certificate)))
                }
                SecretDraft::Opaque(_) => None,
            })
            .collect(),
        warnings: Vec::new(),
    }
}

/// Labels of what policies may select, if there are any.
fn labelled<'a>(documents: &'a [Placed<'_>]) -> Labelled<'a> {
    let selects = |placed: &Placed<'_>| {
        matches!(
            placed.document.draft.kind(),
            Kind::SecurityPolicy | Kind::BackendTrafficPolicy | Kind::ClientTrafficPolicy
        )
    };
    if !documents.iter().any(selects) {
        return Labelled::new();
    }
    let found = documents.iter().filter_map(|placed| {
        let meta = &placed.document.meta;
        let route = |kind| {
            let name = meta.name.clone();
            PolicyTarget::Route(RouteName { kind, name })
        };
        let target = match placed.document.draft.kind() {
            Kind::Gateway => PolicyTarget::Gateway(meta.name.clone()),
            Kind::HTTPRoute => route(L7Kind::Http),
            Kind::GRPCRoute => route(L7Kind::Grpc),
            _ => return None,
        };
        Some((target, &meta.labels))
    });
    found.collect()
}

/// The platform. What a refused one says of who is isolated, as far as it can be read, goes on: without it pods would be let alone.
fn stated<'a>(drafts: &'a Drafts, documents: &'a [Placed<'_>]) -> Option<&'a PlatformDraft> {
    let mut platforms = drafts.platforms.values();
    let read = platforms.find_map(|(_, draft)| draft.as_deref());
    let mut refused = documents.iter().filter(|placed| placed.refused);
    read.or_else(|| {
        refused.find_map(|placed| match &placed.document.draft {
            Draft::Platform(draft) => draft.as_deref(),
            _ => None,
        })
    })
}

/// What could be read of gateways that are refused, and why they are.
fn refused_gateways(documents: &[Placed<'_>], sink: &Sink) -> RefusedGateways {
    let refused = documents.iter().filter(|placed| placed.refused);
    let gateways = refused.filter_map(|placed| {
        let Draft::Gateway(Some(draft)) = &placed.document.draft else {
            return None;
        };
        let meta = &placed.document.meta;
        let why = sink.first(&meta.declared).unwrap_or_default();
        let fault = Fault::new(Reason::Invalid, why);
        Some((meta.name.clone(), (Arc::clone(draft), fault)))
    });
    gateways.collect()
}

/// Documents before cells, then the oldest, then by name (Gateway API, `HTTPRouteRule`).
fn route_order(route: &Route) -> impl Ord + '_ {
    let age = (route.created.is_none(), route.created);
    (&route.origin, age, &route.name, route.kind)
}
