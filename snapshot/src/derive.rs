//! What a cell's endpoints become at the gates: hosts, paths and rules.
//!
//! The rules are OpenChoreo's with its open doors closed: an endpoint with operations refuses what no
//! operation matches, each visibility reads its own section, and a rewrite takes the prefix away
//! whatever a pattern captured. A cell with `compat` has these doors open again, for a migration.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::document::cell::{ExposureDraft, Strictness};
use crate::document::template::Template;
use crate::model::{
    Auth, AuthRule, Authorization, ComponentId, ComponentKind, Decision, DocumentPath, Filter,
    Gate, HostPattern, Hostname, JwtProvider, L7Kind, Listener, ListenerProtocol, Name, ObjectName,
    Operation, Origin, Parent, PathMatch, PathRewrite, Pattern, Platform, RequestMatch, Route,
    Rule, ScopeClaims, Target, TokenRequirement, WeightedTarget,
};
use crate::naming;
use crate::report::Source;

mod pattern;

use pattern::clean;
pub(crate) use pattern::{expand, operation_pattern};

/// Longest name of a route (Kubernetes: a DNS subdomain).
const MAX_ROUTE_NAME: usize = 253;

/// Where an endpoint is at a gate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Site {
    /// The gateway that plays the gate.
    pub(crate) gateway: ObjectName,
    /// The only host.
    pub(crate) host: Hostname,
    /// `/`, or `/{project}/{component}`.
    pub(crate) prefix: DocumentPath,
}

impl Site {
    /// The address that people use; no port, no base path.
    #[cfg(test)]
    pub(crate) fn address(&self) -> String {
        format!("https://{}{}", self.host, self.prefix)
    }
}

/// Finds host and prefix of an exposure, or says what the platform lacks.
pub(crate) fn site(exposure: &ExposureDraft, platform: &Platform) -> Result<Site, String> {
    let component = &exposure.endpoint.component;
    let cell = &component.cell;
    let missing = |field: &str| {
        format!(
            "is exposed through the {} gate, which needs `{field}` of the `Platform`",
            exposure.gate
        )
    };
    let gate = match exposure.gate {
        Gate::External => (&platform.external, "spec.gateways.external"),
        Gate::Internal => (&platform.internal, "spec.gateways.internal"),
    };
    let gateway = gate.0.as_ref().ok_or_else(|| missing(gate.1))?;
    let hosts = &platform.virtual_hosts;
    let (front, suffix) = if exposure.component_kind == ComponentKind::WebApplication {
        let suffix = hosts
            .web_applications
            .as_ref()
            .ok_or_else(|| missing("spec.virtualHosts.webApplications"))?;
        (
            format!("{}-{}", component.component, cell.environment),
            suffix,
        )
    } else {
        let (suffix, field) = match exposure.gate {
            Gate::External => (&hosts.public, "spec.virtualHosts.public"),
            Gate::Internal => (&hosts.organization, "spec.virtualHosts.organization"),
        };
        let suffix = suffix.as_ref().ok_or_else(|| missing(field))?;
        let prefix = platform
            .dns_prefixes
            .get(&cell.environment)
            .ok_or_else(|| {
                missing(&format!(
                    "spec.environments` with `name: {}` and `dnsPrefix",
                    cell.environment
                ))
            })?;
        (prefix.to_string(), suffix)
    };
    let host = Hostname::new(&format!("{front}.{suffix}"))
        .map_err(|error| format!("its host `{front}.{suffix}` is not valid: {error}"))?;
    let prefix = match exposure.component_kind {
        ComponentKind::WebApplication => "/".to_owned(),
        _ => format!("/{}/{}", cell.project, component.component),
    };
    Ok(Site {
        gateway: gateway.gateway.clone(),
        host,
        prefix: DocumentPath::new(&prefix).map_err(|error| error.to_string())?,
    })
}

/// The path that the wildcard rule of an exposure matches.
pub(crate) fn wildcard_path(exposure: &ExposureDraft, site: &Site) -> Result<DocumentPath, String> {
    let path = clean(&format!("{}/{}", site.prefix, exposure.base_path.text));
    DocumentPath::new(&path).map_err(|error| error.to_string())
}

/// The route of an exposure: the wildcard rule, then one rule for each operation in their order.
pub(crate) fn route(
    exposure: &ExposureDraft,
    site: &Site,
    namespace: &str,
    parents: Vec<Parent>,
    provider: Option<&Arc<JwtProvider>>,
) -> Result<Route, String> {
    let target = || {
        let target = Target::Endpoint(exposure.endpoint.clone().into());
        vec![WeightedTarget::new(1, target)]
    };
    let path = wildcard_path(exposure, site)?;
    let matches = vec![RequestMatch::new(PathMatch::Prefix(path))];
    // With operations it refuses whatever it matches, and so leads nowhere; `compat` leaves it open.
    let wildcard = match (exposure.operations.is_empty(), exposure.strictness) {
        (false, Strictness::Strict) => Rule {
            auth: provider.map(|provider| wildcard_auth(exposure, provider, Decision::Deny)),
            ..Rule::new(exposure.source.clone(), matches)
        },
        (without, strictness) => Rule {
            auth: provider
                .filter(|_| without)
                .map(|provider| wildcard_auth(exposure, provider, Decision::Allow)),
            filters: vec![Filter::from(PathRewrite::Prefix(match strictness {
                Strictness::Strict => exposure.base_path.path.as_str().to_owned(),
                Strictness::Compat => exposure.base_path.text.clone(),
            }))],
            targets: target(),
            ..Rule::new(exposure.source.clone(), matches)
        },
    };
    let mut rules = vec![wildcard];
    for (operation, matches) in operations(exposure, site) {
        let auth =
            provider.map(|provider| operation_auth(operation, provider, exposure.strictness));
        rules.push(Rule {
            auth,
            filters: strip(site),
            targets: target(),
            ..Rule::new(operation.declared.clone(), matches?)
        });
    }
    named(exposure, site, namespace, parents, rules)
}

/// What the requests of each operation look like, or why nobody can tell.
fn operations<'a>(
    exposure: &'a ExposureDraft,
    site: &Site,
) -> impl Iterator<Item = (&'a Operation, Result<Arc<[RequestMatch]>, String>)> {
    let anonymous =
        |template: &Template| expand(template.path.without_slash(), exposure.strictness);
    let heads: BTreeSet<String> = exposure
        .operations
        .iter()
        .filter(|(operation, _)| operation.method == "HEAD")
        .map(|(_, template)| anonymous(template))
        .collect();
    exposure
        .operations
        .iter()
        .map(move |(operation, template)| {
            let compiled = Pattern::new(&pattern(exposure, site, template)).map_err(|error| {
                // Parameters and literals are escaped: what is left is the size of the pattern.
                let error = error.to_string();
                format!(
                    "path does not compile: {}",
                    error.lines().last().unwrap_or_default()
                )
            });
            let methods = match exposure.strictness {
                Strictness::Strict => methods(operation, &anonymous(template), &heads),
                Strictness::Compat => vec![operation.method.clone()],
            };
            let matches = compiled.map(|compiled| {
                let matches = methods.into_iter().map(|method| RequestMatch {
                    method: Some(method),
                    ..RequestMatch::new(PathMatch::Regex(compiled.clone()))
                });
                matches.collect()
            });
            (operation, matches)
        })
}

/// The route of an exposure of which something cannot be enforced: nobody passes where it would be, for this reason. Without it an
/// endpoint beside it whose base path is shorter would have the requests, or one whose operations match those of this one.
pub(crate) fn closed(
    exposure: &ExposureDraft,
    site: &Site,
    namespace: &str,
    parents: Vec<Parent>,
    why: &str,
) -> Result<Route, String> {
    let path = wildcard_path(exposure, site)?;
    let matches = vec![RequestMatch::new(PathMatch::Prefix(path))];
    let mut rules = vec![Rule::new(exposure.source.clone(), matches)];
    // One that does not compile is below the base path, and may be why this is closed.
    let of_operations = operations(exposure, site).filter_map(|(operation, matches)| {
        Some(Rule::new(operation.declared.clone(), matches.ok()?))
    });
    rules.extend(of_operations);
    for rule in &mut rules {
        close(rule, why);
    }
    named(exposure, site, namespace, parents, rules)
}

/// Lets nobody pass a rule, for this reason.
pub(crate) fn close(rule: &mut Rule, why: &str) {
    rule.auth = Some(Arc::new(Auth::closed(
        rule.declared.clone(),
        why.to_owned(),
    )));
    rule.targets.clear();
}

fn named(
    exposure: &ExposureDraft,
    site: &Site,
    namespace: &str,
    parents: Vec<Parent>,
    rules: Vec<Rule>,
) -> Result<Route, String> {
    let gate = match exposure.gate {
        Gate::External => "gateway-external",
        Gate::Internal => "gateway-internal",
    };
    let component = &exposure.endpoint.component;
    // OpenChoreo names a route by gateway and endpoint, so that endpoints of two components of one
    // cell delete each other's; the component is part of ours.
    let name = naming::joined(
        &[
            gate,
            component.component.as_str(),
            exposure.endpoint.endpoint.as_str(),
        ],
        MAX_ROUTE_NAME,
    );
    Ok(Route {
        kind: L7Kind::Http,
        name: ObjectName::new(namespace, &name).map_err(|error| error.to_string())?,
        origin: Origin::Endpoint {
            endpoint: exposure.endpoint.clone().into(),
            gate: exposure.gate,
        },
        declared: exposure.source.clone(),
        parents,
        hostnames: [HostPattern::Exact(site.host.clone())].into(),
        created: None,
        rules,
    })
}

/// A rule that only asks for a token: any valid one passes, or not even that.
fn wildcard_auth(
    exposure: &ExposureDraft,
    provider: &Arc<JwtProvider>,
    default: Decision,
) -> Arc<Auth> {
    Arc::new(Auth::of_tokens(
        exposure.source.clone(),
        vec![provider.clone()],
        Authorization {
            rules: Vec::new(),
            default,
        },
    ))
}

fn operation_auth(
    operation: &Operation,
    provider: &Arc<JwtProvider>,
    strictness: Strictness,
) -> Arc<Auth> {
    let token = TokenRequirement {
        provider: provider.name.clone(),
        scopes: operation.scopes.clone(),
        scope_claims: match strictness {
            Strictness::Strict => ScopeClaims::ScopeAndScp,
            Strictness::Compat => ScopeClaims::Scope,
        },
        claims: operation.claims.clone(),
    };
    Arc::new(Auth::of_tokens(
        operation.declared.clone(),
        vec![provider.clone()],
        Authorization {
            rules: vec![AuthRule::of_token(Decision::Allow, token)],
            default: Decision::Deny,
        },
    ))
}

/// HEAD is judged as GET (RFC 9110, section 9.3.2), unless an operation says something about HEAD
/// on the same path. OpenChoreo takes it for a method that no operation names.
fn methods(operation: &Operation, path: &str, heads: &BTreeSet<String>) -> Vec<String> {
    if operation.method == "GET" && !heads.contains(path) {
        vec!["GET".to_owned(), "HEAD".to_owned()]
    } else {
        vec![operation.method.clone()]
    }
}

fn pattern(exposure: &ExposureDraft, site: &Site, target: &Template) -> String {
    let (base_path, target) = (&exposure.base_path.text, &target.text);
    let full = clean(&format!("{}/{base_path}/{target}", site.prefix));
    operation_pattern(base_path, target, &full, exposure.strictness)
}

/// Takes the prefix away; a web application has none.
fn strip(site: &Site) -> Vec<Filter> {
    if site.prefix == DocumentPath::root() {
        return Vec::new();
    }
    vec![Filter::from(PathRewrite::Strip(site.prefix.clone()))]
}

/// Where to attach: every listener of the gateway that takes the host.
pub(crate) fn parents<'a>(
    site: &Site,
    listeners: impl Iterator<Item = &'a Listener>,
) -> Vec<Parent> {
    listeners
        .filter(|listener| {
            matches!(
                listener.protocol,
                ListenerProtocol::Http | ListenerProtocol::Https { .. }
            )
        })
        .filter(|listener| {
            listener
                .hostname
                .as_ref()
                .is_none_or(|pattern| pattern.covers(site.host.as_str()))
        })
        .map(|listener| Parent {
            gateway: site.gateway.clone(),
            listener: Some(listener.name.clone()),
            port: None,
        })
        .collect()
}

/// Which component has which part of which host.
#[derive(Default)]
pub(crate) struct Hosts {
    claims: BTreeMap<(ObjectName, Hostname), BTreeMap<DocumentPath, Claim>>,
}

/// Who has a part of a host already.
pub(crate) enum Rival {
    /// Another component, to say so: no endpoint of this one is there.
    Component(String),
    /// An endpoint of the same component.
    Endpoint(Name),
}

struct Claim {
    component: ComponentId,
    source: Source,
    /// Endpoints by the path of their wildcard rule, without a trailing slash.
    paths: BTreeMap<String, Name>,
}

impl Hosts {
    /// Takes a part of a host for an endpoint, or says who has it.
    pub(crate) fn claim(
        &mut self,
        exposure: &ExposureDraft,
        site: &Site,
        path: &DocumentPath,
    ) -> Result<(), Rival> {
        let component = &exposure.endpoint.component;
        let host = self
            .claims
            .entry((site.gateway.clone(), site.host.clone()))
            .or_default();
        let root = DocumentPath::root();
        // A web application has the whole host, and so has nobody else a part of it.
        let rival = match host.get(&site.prefix).or_else(|| host.get(&root)) {
            None if site.prefix == root => host.first_key_value().map(|(_, claim)| claim),
            claim => claim,
        };
        if let Some(rival) = rival.filter(|rival| rival.component != *component) {
            return Err(Rival::Component(format!(
                "path `{}` of host `{}` belongs to component `{}` already, by {}",
                site.prefix, site.host, rival.component, rival.source
            )));
        }
        let claim = host.entry(site.prefix.clone()).or_insert_with(|| Claim {
            component: component.clone(),
            source: exposure.source.clone(),
            paths: BTreeMap::new(),
        });
        let endpoint = &exposure.endpoint.endpoint;
        let first = claim
            .paths
            .entry(path.without_slash().to_owned())
            .or_insert_with(|| endpoint.clone());
        if first != endpoint {
            return Err(Rival::Endpoint(first.clone()));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
