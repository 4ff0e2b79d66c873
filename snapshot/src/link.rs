//! Drafts to a snapshot: references are resolved, and what must be unique across documents is.
//!
//! A part that cannot be linked is left out where that closes it, and is closed where leaving it out would open
//! something. A folder's snapshot is only taken if there was no mistake anywhere; that of a cluster's objects as it is.

use std::collections::BTreeMap;
use std::sync::Arc;

use self::attachment::Closing;
use self::authorities::Holders;
use self::collect::{Collected, Placed, collect};
use self::http_route::Backends;
use crate::derive::{self, Hosts};
use crate::document::cell::{CellDraft, ExposureDraft};
use crate::document::gateway::GatewayDraft;
use crate::document::platform::PlatformDraft;
use crate::document::secret::SecretDraft;
use crate::document::{Drafts, Read, content};
use crate::model::{
    Cell, CellId, East, EndpointId, Gate, GateRef, Gateway, L7Kind, Listener, Node, ObjectName,
    Platform, Route, Snapshot,
};
use crate::reader::Sink;
use crate::report::{Mistake, Source, Warning};
use crate::shared::Shared;
use crate::status::{ObjectKey, Report, Verdict};

mod addresses;
mod attachment;
mod authorities;
mod backend_tls;
mod client_policy;
mod collect;
mod credentials;
mod gateway_tls;
mod http_route;
mod l4_route;
mod routing_table;
mod security_policy;
mod traffic_policy;

pub(crate) use collect::Taking;

/// What comes of documents.
pub(crate) struct Outcome {
    pub(crate) snapshot: Snapshot,
    pub(crate) report: Report,
    /// In the order of files and lines.
    pub(crate) mistakes: Vec<Mistake>,
}

/// Links what was read of all files together.
pub(crate) fn link<'a>(reads: impl Iterator<Item = &'a Arc<Read>>, taking: Taking) -> Outcome {
    let sink = Sink::default();
    let mut collected = collect(reads, taking, &sink);
    addresses::unique(&collected.drafts, &sink);
    addresses::pod_networks(&collected.drafts, &sink);
    if taking == Taking::Each {
        collected.refuse(&sink);
    }
    let Collected { drafts, documents } = collected;
    let closing = Closing::of(&documents);
    let snapshot = snapshot(drafts, &closing, &sink);
    let digests = documents.iter().map(|placed| placed.document.digest);
    let digest = content::together(digests.collect());
    let (mistakes, warnings) = sink.finish();
    let mut report = Report::default();
    verdicts(&documents, &mistakes, &warnings, &mut report);
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

/// Says of every object what was said of its document.
fn verdicts(
    documents: &[Placed<'_>],
    mistakes: &[Mistake],
    warnings: &[Warning],
    report: &mut Report,
) {
    type Document = (Arc<str>, usize);
    let document = |source: &Source| -> Document { (Arc::clone(&source.file), source.document) };
    let mut of: BTreeMap<Document, Verdict> = BTreeMap::new();
    for placed in documents {
        let meta = &placed.document.meta;
        let verdict = Verdict {
            source: meta.declared.clone(),
            generation: meta.generation,
            accepted: !placed.refused,
            mistakes: Vec::new(),
            warnings: Vec::new(),
        };
        of.insert(document(&meta.declared), verdict);
    }
    for mistake in mistakes {
        match of.get_mut(&document(&mistake.source)) {
            Some(verdict) => verdict.mistakes.push(mistake.clone()),
            None => report.nameless.push(mistake.clone()),
        }
    }
    for warning in warnings {
        if let Some(verdict) = of.get_mut(&document(&warning.source)) {
            verdict.warnings.push(warning.clone());
        }
    }
    for placed in documents {
        let meta = &placed.document.meta;
        let key = ObjectKey {
            kind: placed.document.draft.kind(),
            name: meta.name.clone(),
        };
        if let Some(verdict) = of.remove(&document(&meta.declared)) {
            // Of two documents with one name the first was taken, and the second has said so.
            match report.objects.get_mut(&key) {
                Some(first) => first.mistakes.extend(verdict.mistakes),
                None => {
                    report.objects.insert(key, verdict);
                }
            }
        }
    }
}

/// Makes a snapshot without digest and warnings.
fn snapshot(mut drafts: Drafts, closing: &Closing, sink: &Sink) -> Snapshot {
    let l4_routes = l4_route::L4Drafts::take(&mut drafts);
    let secrets = drafts.secrets;
    let holders = Holders {
        config_maps: &drafts.config_maps,
        secrets: &secrets,
        sink,
    };
    let (platform_source, platform_draft) = match drafts.platforms.pop_first() {
        Some((_, (source, draft))) => (Some(source), draft),
        None => (None, None),
    };
    let mut gateways = BTreeMap::new();
    let mut attach: BTreeMap<ObjectName, Option<Arc<GatewayDraft>>> = BTreeMap::new();
    for (name, (declared, draft)) in drafts.gateways {
        if let Some(draft) = &draft {
            for listener in &draft.listeners {
                certificates(listener, &secrets, sink);
            }
            let mut gateway = Gateway {
                name: name.clone(),
                declared,
                addresses: draft
                    .addresses
                    .iter()
                    .map(|placed| placed.address)
                    .collect(),
                listeners: draft
                    .listeners
                    .iter()
                    .map(|draft| draft.listener.clone())
                    .collect(),
                gate: None,
                identity: None,
            };
            gateway_tls::apply(&mut gateway, draft, &holders);
            gateways.insert(name.clone(), gateway);
        }
        attach.insert(name, draft);
    }
    sockets(&gateways, sink);
    let clients = client_policy::apply(
        drafts.client_policies,
        &closing.client,
        &mut gateways,
        &attach,
        sink,
    );
    let platform = platform(platform_draft, &mut gateways, &attach, sink);
    // Without a readable platform nothing can be said about what it lacks.
    let readable = platform_source
        .as_ref()
        .is_none_or(|source| !sink.tainted(source));
    let mut cells: Vec<(Source, Arc<CellDraft>)> = Vec::new();
    for (source, draft) in drafts.cells.into_values() {
        cells.extend(draft.map(|draft| (source, draft)));
    }
    cells.sort_by(|a, b| a.0.position().cmp(&b.0.position()));
    let mut linked: BTreeMap<CellId, Shared<Cell>> = BTreeMap::new();
    let mut exposures = Vec::new();
    for (source, draft) in cells {
        if let Some(first) = linked.get(&draft.cell.id) {
            sink.mistake(
                source.at("spec"),
                format_args!(
                    "cell `{}` is declared before, in {}",
                    draft.cell.id, first.declared
                ),
            );
            continue;
        }
        linked.insert(draft.cell.id.clone(), draft.cell.clone());
        exposures.push(draft);
    }
    easts(&mut linked, sink);
    let mut routes = Vec::new();
    if readable {
        let mut hosts = Hosts::default();
        for (draft, exposure) in exposures
            .iter()
            .flat_map(|draft| draft.exposures.iter().map(move |one| (draft, one)))
        {
            routes.extend(exposed(
                exposure,
                &draft.namespace,
                &platform,
                &gateways,
                &mut hosts,
                sink,
            ));
        }
    }
    let routing_tables = drafts.routing_tables;
    let unread = |name: &ObjectName| attach.contains_key(name);
    routing_table::trusted(&routing_tables, &gateways, unread, sink);
    let mut backends: Backends = drafts
        .backends
        .into_iter()
        .map(|(name, (_, draft))| {
            let mistakes = || format!("`Backend` {name} has mistakes");
            let endpoints = draft.as_deref().cloned().ok_or_else(mistakes);
            (name, endpoints)
        })
        .collect();
    backend_tls::apply(drafts.tls_policies, &closing.tls, &mut backends, &holders);
    let references = http_route::References {
        gateways: &attach,
        tables: &routing_tables,
        backends: &backends,
        filters: &drafts.filters,
        sink,
    };
    let l4_routes = l4_routes.link(&references);
    let routes_of_documents = [
        (L7Kind::Http, drafts.http_routes),
        (L7Kind::Grpc, drafts.grpc_routes),
    ];
    let mut documents = http_route::routes(routes_of_documents, &references);
    let security = drafts.security_policies;
    let security = security_policy::policies(
        security,
        &closing.security,
        &documents,
        &attach,
        &secrets,
        sink,
    );
    let traffic = drafts.traffic_policies;
    let traffic = traffic_policy::policies(traffic, &closing.traffic, &documents, &attach, sink);
    security.on_documents(&mut documents);
    traffic.on_documents(&mut documents);
    routes.extend(documents.into_values().flatten().map(|linked| linked.route));
    let routes = security.on_listeners(routes, &attach);
    let routes = traffic.on_listeners(routes, &attach);
    let mut routes = clients.on_listeners(routes, &attach);
    traffic_policy::without_effect(&routes, sink);
    routes.sort_by(|a, b| route_order(a).cmp(&route_order(b)));
    Snapshot {
        digest: "".into(),
        platform: platform.into(),
        cells: linked,
        routing_tables: routing_tables
            .into_iter()
            .filter_map(|(name, (_, table))| Some((name, table?)))
            .collect(),
        gateways,
        routes,
        l4_routes,
        certificates: secrets
            .into_iter()
            .filter_map(|(name, (_, secret))| match &*secret? {
                SecretDraft::Tls { certificate, .. } => Some((name, Arc::clone(certificate))),
                SecretDraft::Opaque(_) => None,
            })
            .collect(),
        warnings: Vec::new(),
    }
}

/// Documents before cells, then the oldest, then by name (Gateway API, `HTTPRouteRule`).
fn route_order(route: &Route) -> impl Ord + '_ {
    let age = (route.created.is_none(), route.created);
    (&route.origin, age, &route.name, route.kind)
}

fn certificates(
    draft: &crate::document::gateway::ListenerDraft,
    secrets: &crate::document::Table<SecretDraft>,
    sink: &Sink,
) {
    let certificates = draft.listener.protocol.certificates();
    for (name, source) in certificates.iter().zip(&draft.certificate_sources) {
        match secrets.get(name) {
            None => sink.mistake(source.clone(), format_args!("no `Secret` {name}")),
            Some((_, None)) => {}
            Some((_, Some(secret))) => match &**secret {
                SecretDraft::Tls { certificate, .. } => {
                    host_is_named(&draft.listener, certificate, source, sink);
                }
                SecretDraft::Opaque(_) => sink.mistake(
                    source.clone(),
                    format_args!(
                        "`Secret` {name} holds no certificate; expected type `kubernetes.io/tls`"
                    ),
                ),
            },
        }
    }
}

/// A certificate that names none of a listener's hosts is accepted: another one of the list may.
fn host_is_named(
    listener: &Listener,
    certificate: &crate::model::Certificate,
    source: &Source,
    sink: &Sink,
) {
    let Some(host) = &listener.hostname else {
        return;
    };
    let host = host.to_string();
    let named = certificate.names.iter().any(|name| {
        let below = |suffix: &str, host: &str| {
            host.strip_suffix(suffix)
                .and_then(|front| front.strip_suffix('.'))
                .is_some_and(|label| !label.is_empty() && !label.contains('.'))
        };
        *name == host
            || name
                .strip_prefix("*.")
                .is_some_and(|suffix| below(suffix, &host))
            || host
                .strip_prefix("*.")
                .is_some_and(|suffix| below(suffix, name))
    });
    if !named && !certificate.names.is_empty() {
        sink.warning(
            source.clone(),
            format_args!(
                "certificate {} does not name the listener's host `{host}`",
                certificate.name
            ),
        );
    }
}

/// Two gateways cannot have one socket.
fn sockets(gateways: &BTreeMap<ObjectName, Gateway>, sink: &Sink) {
    let mut listeners: Vec<(&Gateway, &Listener)> = gateways
        .values()
        .flat_map(|gateway| {
            gateway
                .listeners
                .iter()
                .map(move |listener| (gateway, listener))
        })
        .collect();
    listeners.sort_by(|a, b| a.1.declared.position().cmp(&b.1.declared.position()));
    let mut taken: BTreeMap<_, &Gateway> = BTreeMap::new();
    for (gateway, listener) in listeners {
        for address in &gateway.addresses {
            let socket = (*address, listener.protocol.transport(), listener.port);
            let first = taken.entry(socket).or_insert(gateway);
            if first.name != gateway.name {
                sink.mistake(
                    listener
                        .declared
                        .at(format!("{}.port", listener.declared.field)),
                    format_args!(
                        "port {} of address {address} belongs to {}",
                        listener.port, first.declared
                    ),
                );
            }
        }
    }
}

fn platform(
    draft: Option<Arc<PlatformDraft>>,
    gateways: &mut BTreeMap<ObjectName, Gateway>,
    known: &BTreeMap<ObjectName, Option<Arc<GatewayDraft>>>,
    sink: &Sink,
) -> Platform {
    let Some(draft) = draft else {
        return Platform::default();
    };
    let mut gates: [Option<GateRef>; 2] = [None, None];
    for (slot, gate, draft) in [
        (0, Gate::External, &draft.external),
        (1, Gate::Internal, &draft.internal),
    ] {
        let Some(draft) = draft else { continue };
        if !known.contains_key(&draft.gateway) {
            sink.mistake(
                draft.source.clone(),
                format_args!("no `Gateway` {}", draft.gateway),
            );
            continue;
        }
        if let Some(gateway) = gateways.get_mut(&draft.gateway) {
            if let Some(other) = gateway.gate {
                sink.mistake(
                    draft.source.clone(),
                    format_args!(
                        "gateway {} is the {other} gate already; each gate needs a gateway of its own",
                        draft.gateway
                    ),
                );
                continue;
            }
            gateway.gate = Some(gate);
        }
        gates[slot] = Some(GateRef {
            gateway: draft.gateway.clone(),
            remote_addresses: plain(&draft.remote_addresses),
        });
    }
    let [external, internal] = gates;
    // By the address alone the kernel tells a packet of one gate from one of the other.
    let addresses = |gate: &Option<GateRef>| {
        gate.as_ref()
            .and_then(|gate| gateways.get(&gate.gateway))
            .map(|gateway| (gateway.declared.clone(), gateway.addresses.clone()))
    };
    if let (Some((_, north)), Some((declared, west))) = (addresses(&external), addresses(&internal))
        && let Some(shared) = west
            .iter()
            .find(|address| !address.is_loopback() && north.contains(address))
    {
        sink.mistake(
            declared.at("spec.addresses"),
            format_args!(
                "address {shared} is one of the external gateway; the two gates need addresses of their own"
            ),
        );
    }
    Platform {
        dns_prefixes: draft.dns_prefixes.clone(),
        virtual_hosts: draft.virtual_hosts.clone(),
        external,
        internal,
        jwt_providers: draft.jwt_providers.clone(),
        dns: plain(&draft.dns),
        dns_declared: draft.dns_declared.clone(),
        dns_service_addresses: plain(&draft.dns_service_addresses),
        nodes: draft
            .nodes
            .iter()
            .map(|node| Node {
                name: node.name.clone(),
                addresses: plain(&node.addresses),
                zone: node.zone.clone(),
                pod_networks: node.pod_networks.iter().map(|(one, _)| *one).collect(),
            })
            .collect(),
        services: draft.services.clone(),
    }
}

fn plain(placed: &[crate::document::addresses::Placed]) -> Vec<std::net::IpAddr> {
    placed.iter().map(|placed| placed.address).collect()
}

/// Drops calls that nobody grants. They are no mistake: the other cell is another team's document.
fn easts(cells: &mut BTreeMap<CellId, Shared<Cell>>, sink: &Sink) {
    let refusal = |to: &EndpointId| -> Option<String> {
        let Some(cell) = cells.get(&to.component.cell) else {
            return Some(format!("there is no cell `{}`", to.component.cell));
        };
        let Some(component) = cell.components.get(&to.component.component) else {
            return Some(format!(
                "cell `{}` has no component `{}`",
                cell.id, to.component.component
            ));
        };
        let Some(endpoint) = component.endpoints.get(&to.endpoint) else {
            return Some(format!(
                "component `{}` has no endpoint `{}`",
                component.id, to.endpoint
            ));
        };
        endpoint.organization.is_none().then(|| {
            format!(
                "endpoint `{}` has no visibility `organization`",
                endpoint.id
            )
        })
    };
    let mut granted: BTreeMap<CellId, Vec<East>> = BTreeMap::new();
    for cell in cells.values() {
        let list = granted.entry(cell.id.clone()).or_default();
        for east in &cell.east {
            match refusal(&east.to) {
                Some(why) => {
                    sink.warning(east.declared.clone(), format_args!("grants nothing: {why}"))
                }
                None => list.push(east.clone()),
            }
        }
    }
    for (id, list) in granted {
        if let Some(cell) = cells.get_mut(&id) {
            cell.east = list;
        }
    }
}

/// The route of one exposure.
fn exposed(
    exposure: &ExposureDraft,
    namespace: &str,
    platform: &Platform,
    gateways: &BTreeMap<ObjectName, Gateway>,
    hosts: &mut Hosts,
    sink: &Sink,
) -> Option<Route> {
    let refuse = |message: String| sink.mistake(exposure.source.clone(), message);
    let provider = match &exposure.provider {
        None => None,
        Some((name, source)) => match platform.jwt_providers.get(name) {
            Some(provider) => Some(provider),
            None => {
                sink.mistake(
                    source.clone(),
                    format_args!(
                        "no token provider `{name}` in `spec.jwtProviders` of the `Platform`"
                    ),
                );
                return None;
            }
        },
    };
    let site = derive::site(exposure, platform).map_err(refuse).ok()?;
    let path = derive::wildcard_path(exposure, &site)
        .map_err(refuse)
        .ok()?;
    hosts.claim(exposure, &site, &path).map_err(refuse).ok()?;
    // A gateway that is named and not there has mistakes of its own.
    let gateway = gateways.get(&site.gateway)?;
    let parents = derive::parents(&site, gateway.listeners.iter());
    if parents.is_empty() && !sink.tainted(&gateway.declared) {
        refuse(format!(
            "no listener of gateway {} takes its host `{}`",
            gateway.name, site.host
        ));
        return None;
    }
    derive::route(exposure, &site, namespace, parents, provider)
        .map_err(refuse)
        .ok()
}
