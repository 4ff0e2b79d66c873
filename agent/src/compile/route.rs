//! From a snapshot to a [`RouteTable`]. Pure: no clock, no I/O, no randomness.
//!
//! What the snapshot cannot know is found here and reported as a mistake with its field: keys that
//! do not sign, keys that do not verify, gateways that claim one address and port twice.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use rustls::crypto::aws_lc_rs::sign::any_supported_type;
use rustls::sign::CertifiedKey;
use snapshot::model::{
    self, Auth, BackendName, ClientPolicy, Declared, Filter, L7Kind, Name, ObjectName, Origin,
    PolicyId, RemoteKeys, Route, Rule, Service, Target, Upstream, UpstreamTls,
};
use snapshot::{Mistake, Shared, Snapshot};

use super::Here;
use super::traffic;
use crate::route::client::ClientSettings;
use crate::route::cors::Cors;
use crate::route::limiter::SharedRules;
use crate::route::token::Provider;
use crate::route::trust::Identity;
use crate::route::{
    Backend, Gatekeeper, HostRules, Kept, Limiter, Managed, Placements, RouteRule, RouteRules,
    RouteTable, ServerCertificate, TargetKind, TlsPeer,
};

mod components;
mod listeners;
mod policies;
mod targets;

use components::{callers, inside, labelled};

/// Compiles the router's table of a generation, or lists everything that cannot be compiled.
///
/// Gateways that listen on nodes' addresses do so nowhere: [`compile_on`] is told those of a node.
pub fn compile(snapshot: &Snapshot, generation: u64) -> Result<RouteTable, Vec<Mistake>> {
    compile_on(snapshot, &[], generation)
}

/// The same for a node that has these addresses.
pub fn compile_on(
    snapshot: &Snapshot,
    node: &[IpAddr],
    generation: u64,
) -> Result<RouteTable, Vec<Mistake>> {
    next(snapshot, node, generation, &RouteTable::default())
}

/// The same, taking over from the table of an earlier generation what would be made anew as it is there.
pub fn next(
    snapshot: &Snapshot,
    node: &[IpAddr],
    generation: u64,
    before: &RouteTable,
) -> Result<RouteTable, Vec<Mistake>> {
    let mut compiler = Compiler::new(snapshot, node, generation, before);
    let rules = compiler.rules();
    let streams = compiler.streams();
    let table = RouteTable {
        generation,
        binds: compiler.binds(&rules, &streams),
        quic: compiler.quic(),
        datagrams: compiler.datagrams(&rules, &streams),
        has_clients: !compiler.policies.is_empty(),
        callers: callers(snapshot),
        steered: compiler.steered(&rules),
        labelled: labelled(snapshot),
        dns: snapshot.platform.dns.clone(),
        inside: inside(snapshot),
        remote_keys: compiler.remote_keys,
        placements: compiler.placements,
        backends: compiler.backends,
        managed: compiler.managed,
        limiters: compiler.limiters,
        kept: compiler.kept,
    };
    if compiler.mistakes.is_empty() {
        return Ok(table);
    }
    compiler.mistakes.sort();
    compiler.mistakes.dedup();
    Err(compiler.mistakes)
}

/// A backend and a policy that is about it.
type ManagedKey = (Arc<str>, PolicyId);

struct Compiler<'a> {
    snapshot: &'a Snapshot,
    /// Addresses of the node, and which one it is.
    node: &'a [IpAddr],
    here: Here,
    /// The table before, and what the next one can take over.
    before: &'a RouteTable,
    kept: Kept,
    mistakes: Vec<Mistake>,
    providers: HashMap<Name, Arc<Provider>>,
    gatekeepers: HashMap<*const Auth, Arc<Gatekeeper>>,
    cors: HashMap<*const model::Cors, Arc<Cors>>,
    remote_keys: HashSet<Arc<RemoteKeys>>,
    placements: BTreeMap<ObjectName, Arc<Placements>>,
    backends: BTreeMap<Arc<str>, Arc<Backend>>,
    managed: BTreeMap<ManagedKey, Arc<Managed>>,
    shown: BTreeMap<ManagedKey, Arc<Identity>>,
    limiters: BTreeMap<(PolicyId, L7Kind, Arc<str>), Arc<Limiter>>,
    shared_rules: BTreeMap<PolicyId, SharedRules>,
    certificates: BTreeMap<ObjectName, Arc<ServerCertificate>>,
    peers: HashMap<*const UpstreamTls, TlsPeer>,
    /// The number of the last target. Its upper half is the generation's, so that no table gives it again.
    targets: u64,
    policies: HashMap<*const ClientPolicy, Arc<ClientSettings>>,
}

impl<'a> Compiler<'a> {
    fn new(
        snapshot: &'a Snapshot,
        node: &'a [IpAddr],
        generation: u64,
        before: &'a RouteTable,
    ) -> Self {
        let here = Here::of(&snapshot.platform, node);
        let mut compiler = Self {
            snapshot,
            node,
            before,
            kept: Kept::with_room(
                here.clone(),
                snapshot.services.values(),
                snapshot.routes.len(),
            ),
            here,
            mistakes: Vec::new(),
            providers: HashMap::new(),
            gatekeepers: HashMap::new(),
            cors: HashMap::new(),
            remote_keys: HashSet::new(),
            placements: BTreeMap::new(),
            backends: BTreeMap::new(),
            managed: BTreeMap::new(),
            shown: BTreeMap::new(),
            limiters: BTreeMap::new(),
            shared_rules: BTreeMap::new(),
            certificates: BTreeMap::new(),
            peers: HashMap::new(),
            targets: generation << 32,
            policies: HashMap::new(),
        };
        for table in snapshot.routing_tables.values() {
            match Placements::new(table) {
                Ok(placements) => {
                    compiler
                        .placements
                        .insert(table.name.clone(), Arc::new(placements));
                }
                Err(error) => compiler.mistake(&table.declared, error),
            }
        }
        compiler.kept.take_over(&before.kept);
        compiler.certificates();
        compiler.shown = compiler.shown();
        compiler
    }

    fn mistake(&mut self, source: &Declared, message: impl std::fmt::Display) {
        self.mistakes.push(Mistake {
            source: source.clone(),
            message: message.to_string(),
        });
    }

    fn certificates(&mut self) {
        for certificate in self.snapshot.certificates.values() {
            let key = match any_supported_type(&certificate.key) {
                Ok(key) => CertifiedKey::new(certificate.chain.clone(), key),
                Err(error) => {
                    self.mistake(
                        &certificate.declared,
                        format!("private key cannot sign: {error}"),
                    );
                    continue;
                }
            };
            match key.keys_match() {
                Ok(())
                | Err(rustls::Error::InconsistentKeys(rustls::InconsistentKeys::Unknown)) => {}
                Err(_) => self.mistake(
                    &certificate.declared,
                    "private key does not belong to the certificate",
                ),
            }
            self.certificates.insert(
                certificate.name.clone(),
                Arc::new(ServerCertificate {
                    name: certificate.name.to_string().into(),
                    not_after: certificate.not_after,
                    key: Arc::new(key),
                }),
            );
        }
    }

    /// All rules by route, compiled once however many listeners they are attached to.
    fn rules(&mut self) -> Vec<RouteRules> {
        let snapshot = self.snapshot;
        let unmoved = self.before.kept.has_services_of(&self.kept);
        let routes = snapshot.routes.iter();
        routes
            .map(|route| {
                let services = || services(snapshot, route);
                let moved = (!unmoved).then(services);
                if let Some(kept) = self.before.kept.of(&self.here, route, moved) {
                    self.kept.keep_on(route, kept);
                    return Arc::clone(&kept.rules);
                }
                let name: Arc<str> = route.name.to_string().into();
                let rules = route.rules.iter().enumerate();
                let rules: RouteRules = rules
                    .map(|(index, rule)| Arc::new(self.rule(route, &name, index, rule)))
                    .collect();
                if route.rules.iter().all(stands_alone) {
                    self.kept.keep(route, services(), &rules);
                }
                rules
            })
            .collect()
    }

    fn rule(&mut self, route: &Route, name: &Arc<str>, index: usize, rule: &Rule) -> RouteRule {
        let asks = rule.auth.as_ref().filter(|auth| !auth.is_open());
        let auth = asks.map(|auth| self.gatekeeper(auth));
        let mut filters = self.filters(&rule.declared, &rule.filters);
        // What a route says itself goes before what a policy says (Envoy Gateway, `CORS`).
        if filters.cors.is_none()
            && let Some(policy) = &rule.auth
            && let Some(cors) = &policy.cors
        {
            filters.cors = self.cors(&policy.declared, cors);
        }
        let targets: Vec<_> = rule
            .targets
            .iter()
            .map(|target| {
                let target = self.route_target(&rule.declared, target);
                match &rule.traffic {
                    Some(policy) => self.treated(target, policy),
                    None => target,
                }
            })
            .collect();
        for target in &targets {
            if let (TargetKind::Placements(table), None) = (&target.kind, &auth)
                && table.key().needs_token()
            {
                let message = format!(
                    "routing table `{}` takes its key from a token, and no SecurityPolicy of this rule asks for one",
                    table.name
                );
                self.mistake(&rule.declared, message);
            }
        }
        RouteRule {
            kind: route.kind,
            route: Arc::clone(name),
            index,
            origin: route.origin.clone(),
            cell: match &route.origin {
                Origin::Endpoint { endpoint, .. } => {
                    Some(endpoint.component.cell.to_string().into())
                }
                Origin::Document => None,
            },
            auth,
            limiter: rule
                .traffic
                .as_ref()
                .and_then(|policy| self.limiter(policy, (route.kind, name))),
            filters: filters.into(),
            buffer: rule.traffic.as_ref().and_then(|one| one.request_buffer),
            timeouts: traffic::timeouts(rule),
            retry: traffic::retry(rule),
            session: rule.session.clone(),
            weight: targets.iter().map(|target| u64::from(target.weight)).sum(),
            targets,
        }
    }

    /// Adds a route's matches. Order: routes as the snapshot lists them, then rules as written.
    fn add(&mut self, into: &mut HostRules, route: &Route, rules: &RouteRules, at: usize) {
        into.begin(rules);
        for (rule, compiled) in route.rules.iter().zip(&**rules) {
            let order = (at << 16) | compiled.index;
            for one in &*rule.matches {
                if let Err(error) = into.add(one, compiled, order) {
                    self.mistake(&rule.declared, error);
                }
            }
        }
    }
}

/// Whether what a rule is compiled to depends on nothing outside of its route but the services that it leads to: no policy, no
/// table, no component, and no certificate.
fn stands_alone(rule: &Rule) -> bool {
    let plain = |target: &Target| match target {
        Target::Upstreams(list) => list
            .iter()
            .all(|one| !matches!(one, Upstream::Tcp { tls: Some(_), .. })),
        Target::Unresolved(_) => true,
        Target::Endpoint(_) | Target::RoutingTable(_) => false,
    };
    let filters = |list: &[Filter]| {
        list.iter().all(|filter| match filter {
            Filter::Mirror(mirror) => plain(&mirror.target),
            _ => true,
        })
    };
    rule.auth.is_none()
        && rule.traffic.is_none()
        && filters(&rule.filters)
        && rule
            .targets
            .iter()
            .all(|one| plain(&one.target) && filters(&one.filters))
}

/// The services that a route's targets name, in their order; none: it has no address, so that no endpoint is chosen by it.
fn services<'a>(
    snapshot: &'a Snapshot,
    route: &'a Route,
) -> impl Iterator<Item = Option<&'a Shared<Service>>> {
    let targets = route.rules.iter().flat_map(|rule| &rule.targets);
    targets.filter_map(|target| match &target.backend {
        Some(BackendName::Service(name, _)) => Some(snapshot.services.get(name)),
        _ => None,
    })
}

#[cfg(test)]
mod tests;
