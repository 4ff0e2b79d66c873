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
    Auth, ClientPolicy, Declared, L7Kind, Name, ObjectName, Origin, PolicyId, RemoteKeys, Route,
    Rule, UpstreamTls,
};
use snapshot::{Mistake, Snapshot};

use super::kernel::endpoints::Here;
use super::traffic;
use crate::route::client::ClientSettings;
use crate::route::limiter::SharedRules;
use crate::route::token::Provider;
use crate::route::trust::Identity;
use crate::route::{
    Backend, Gatekeeper, HostRules, Limiter, Managed, Placements, RouteRule, RouteTable,
    ServerCertificate, TargetKind, TlsPeer,
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
    let mut compiler = Compiler::new(snapshot, node);
    let rules = compiler.rules();
    let streams = compiler.streams();
    let table = RouteTable {
        generation,
        binds: compiler.binds(&rules, &streams),
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
    mistakes: Vec<Mistake>,
    providers: HashMap<Name, Arc<Provider>>,
    gatekeepers: HashMap<*const Auth, Arc<Gatekeeper>>,
    remote_keys: HashSet<Arc<RemoteKeys>>,
    placements: BTreeMap<ObjectName, Arc<Placements>>,
    backends: BTreeMap<Arc<str>, Arc<Backend>>,
    managed: BTreeMap<ManagedKey, Arc<Managed>>,
    shown: BTreeMap<ManagedKey, Arc<Identity>>,
    limiters: BTreeMap<(PolicyId, L7Kind, Arc<str>), Arc<Limiter>>,
    shared_rules: BTreeMap<PolicyId, SharedRules>,
    certificates: BTreeMap<ObjectName, Arc<ServerCertificate>>,
    peers: HashMap<*const UpstreamTls, TlsPeer>,
    targets: u32,
    policies: HashMap<*const ClientPolicy, Arc<ClientSettings>>,
}

impl<'a> Compiler<'a> {
    fn new(snapshot: &'a Snapshot, node: &'a [IpAddr]) -> Self {
        let mut compiler = Self {
            snapshot,
            node,
            here: Here::of(&snapshot.platform, node),
            mistakes: Vec::new(),
            providers: HashMap::new(),
            gatekeepers: HashMap::new(),
            remote_keys: HashSet::new(),
            placements: BTreeMap::new(),
            backends: BTreeMap::new(),
            managed: BTreeMap::new(),
            shown: BTreeMap::new(),
            limiters: BTreeMap::new(),
            shared_rules: BTreeMap::new(),
            certificates: BTreeMap::new(),
            peers: HashMap::new(),
            targets: 0,
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
    fn rules(&mut self) -> Vec<Vec<Arc<RouteRule>>> {
        let snapshot = self.snapshot;
        snapshot
            .routes
            .iter()
            .map(|route| {
                let name: Arc<str> = route.name.to_string().into();
                route
                    .rules
                    .iter()
                    .enumerate()
                    .map(|(index, rule)| Arc::new(self.rule(route, &name, index, rule)))
                    .collect()
            })
            .collect()
    }

    fn rule(&mut self, route: &Route, name: &Arc<str>, index: usize, rule: &Rule) -> RouteRule {
        let auth = rule.auth.as_ref().map(|auth| self.gatekeeper(auth));
        let filters = self.filters(&rule.declared, &rule.filters);
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
            filters,
            buffer: rule.traffic.as_ref().and_then(|one| one.request_buffer),
            timeouts: traffic::timeouts(rule),
            retry: traffic::retry(rule),
            session: rule.session.clone(),
            weight: targets.iter().map(|target| u64::from(target.weight)).sum(),
            targets,
        }
    }

    /// Adds a route's matches. Order: routes as the snapshot lists them, then rules as written.
    fn add(&mut self, into: &mut HostRules, route: &Route, rules: &[Arc<RouteRule>], at: usize) {
        for (rule, compiled) in route.rules.iter().zip(rules) {
            let order = (at << 16) | compiled.index;
            for one in &rule.matches {
                if let Err(error) = into.add(one, compiled, order) {
                    self.mistake(&rule.declared, error);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
