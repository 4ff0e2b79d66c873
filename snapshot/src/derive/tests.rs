//! The rows of `tests/vectors/openchoreo.json` that are about what a cell derives. Each row becomes
//! documents, and the snapshot of these is brought into the shape of the row: once by the strict rules, once with
//! `compat`. Labels, and the objects that the original makes beside routes, have no counterpart and are not compared.

use std::panic::{AssertUnwindSafe, catch_unwind};

use serde::Deserialize;
use serde_json::{Value, json};

use crate::document::cell::Strictness;
use crate::model::{Gate, Origin, Route};
use crate::{Snapshot, SourceFile, naming, parse};

mod compat;
mod names;
mod routes;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Row {
    id: String,
    class: Class,
    #[serde(rename = "evidence")]
    _evidence: String,
    input: Value,
    expect: Value,
    #[serde(default)]
    instead: Value,
    #[serde(default)]
    compat: bool,
    #[serde(rename = "note")]
    _note: Option<String>,
}

#[derive(Clone, Copy, Deserialize, PartialEq)]
#[serde(rename_all = "lowercase")]
enum Class {
    Contract,
    Quirk,
    Defect,
}

impl Row {
    /// What binds by these rules; quirks bind a cell with `compat` only.
    fn wanted(&self, strictness: Strictness) -> Option<&Value> {
        match (self.class, strictness) {
            (Class::Contract, _) | (Class::Quirk, Strictness::Compat) => Some(&self.expect),
            (Class::Quirk, Strictness::Strict) => None,
            (Class::Defect, Strictness::Compat) if self.compat => Some(&self.expect),
            (Class::Defect, _) => Some(&self.instead["expect"]),
        }
    }
}

/// A row by the rules of one mode.
struct Case<'v> {
    id: &'v str,
    strictness: Strictness,
    input: &'v Value,
    expect: &'v Value,
}

const NOT_ASKED: &str = "what is not exposed has no rules: nobody asks the writer of this row";
const NOTHING_WRITTEN: &str =
    "the writer of token policies runs and has no operation to write one for: no request meets it";

/// Rows that do not hold in a cell with `compat`, and why. One that begins to hold leaves the list.
const UNMET: [(&str, &str); 8] = [
    (
        "http_routes/public-disabled-with-oauth-ops-wildcard-only",
        NOT_ASKED,
    ),
    ("http_routes/webapp-internal-gateway-host", NOT_ASKED),
    (
        "http_route_filters/enable-flag-not-consulted-by-generator",
        NOT_ASKED,
    ),
    (
        "visibility/service/public=disabled+ops/organization=enabled+nonoauth",
        NOTHING_WRITTEN,
    ),
    (
        "visibility/service/public=enabled+ops/organization=enabled+nonoauth",
        NOTHING_WRITTEN,
    ),
    (
        "visibility/service/public=enabled+ops/organization=enabled+emptyops",
        NOTHING_WRITTEN,
    ),
    (
        "visibility/webapplication/public=disabled+ops/organization=enabled+nonoauth",
        NOTHING_WRITTEN,
    ),
    (
        "visibility/webapplication/public=disabled+ops/organization=enabled+emptyops",
        NOTHING_WRITTEN,
    ),
];

fn vectors() -> Value {
    serde_json::from_str(include_str!(concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../tests/vectors/openchoreo.json"
    )))
    .expect("vectors are JSON")
}

/// Judges every row of a group by both rules.
fn rows(group: &str, test: impl Fn(&Case<'_>)) {
    let vectors = vectors();
    let rows: Vec<Row> = serde_json::from_value(vectors[group].clone()).expect("group has rows");
    assert_eq!(
        Some(rows.len() as u64),
        vectors["counts"][group].as_u64(),
        "{group}"
    );
    let mut wrong = Vec::new();
    for row in &rows {
        for strictness in [Strictness::Strict, Strictness::Compat] {
            let Some(expect) = row.wanted(strictness) else {
                continue;
            };
            let case = Case {
                id: &row.id,
                strictness,
                input: &row.input,
                expect,
            };
            let held = catch_unwind(AssertUnwindSafe(|| test(&case))).is_ok();
            let listed =
                strictness == Strictness::Compat && UNMET.iter().any(|(id, _)| *id == row.id);
            match (held, listed) {
                (true, true) => wrong.push(format!("{} holds and is listed", row.id)),
                (false, false) => wrong.push(format!("{} fails, {strictness:?}", row.id)),
                _ => {}
            }
        }
    }
    assert_eq!(wrong, Vec::<String>::new());
}

fn text<'v>(value: &'v Value, name: &str) -> &'v str {
    value[name]
        .as_str()
        .unwrap_or_else(|| panic!("{name} of {value} is a text"))
}

fn gate(input: &Value) -> Gate {
    match text(input, "gateway") {
        "gateway-external" => Gate::External,
        "gateway-internal" => Gate::Internal,
        other => panic!("{other}"),
    }
}

/// The section of a cell that says what a section of the original says. Policies of other types have
/// no place in a cell: they stay where they are, as a field that a cell does not know.
fn section(section: &Value) -> Value {
    let mut operations = Vec::new();
    let mut other = Vec::new();
    for policy in section["policies"].as_array().into_iter().flatten() {
        if policy["type"] != "oauth2" {
            other.push(policy.clone());
            continue;
        }
        for operation in policy["operations"].as_array().into_iter().flatten() {
            let mut own = json!({
                "method": operation["method"],
                "path": operation["target"],
                "scopes": operation["scopes"],
            });
            if let Some(claims) = policy.get("jwt_claims") {
                own["claims"] = claims.clone();
            }
            operations.push(own);
        }
    }
    let mut own = json!({ "enabled": section["enable"] });
    if !operations.is_empty() {
        own["jwt"] = json!({ "provider": "default" });
        own["operations"] = operations.into();
    }
    if !other.is_empty() {
        own["policies"] = other.into();
    }
    own
}

/// Names that the original gives its objects, in a row's own words.
struct Names<'v>(&'v Value);

impl Names<'_> {
    fn namespace(&self) -> String {
        let [organization, project, environment] =
            ["organization", "project", "environment"].map(|part| text(self.0, part));
        naming::joined(&["dp", organization, project, environment], 63)
    }

    fn service(&self) -> String {
        naming::joined(
            &[text(self.0, "component"), text(self.0, "deployment_track")],
            63,
        )
    }

    /// A route of an endpoint, or that of one of its operations (method and target).
    fn route(&self, operation: Option<(&str, &str)>) -> String {
        let mut parts = vec![text(self.0, "gateway"), text(self.0, "endpoint")];
        if let Some((method, target)) = operation {
            parts.extend([method, target]);
        }
        naming::joined(&parts, 253)
    }
}

/// Namespace of the original's gateways.
const GATEWAYS: &str = "choreo-system";

/// The cell of a row, with one endpoint.
fn cell(case: &Case<'_>) -> Value {
    let input = case.input;
    let given = |name: &str, default: &str| match &input[name] {
        Value::String(text) => text.clone(),
        _ => default.to_owned(),
    };
    let component_type = match given("component_type", "Service").as_str() {
        "WebApplication" => "WebApplication",
        _ => "Service",
    };
    let mut endpoint = json!({
        "name": given("endpoint", "test-endpoint"),
        "type": endpoint_type(&given("endpoint_type", "HTTP")),
        "port": input["port"].as_u64().unwrap_or(8080),
        "basePath": given("base_path", "/"),
    });
    if let Some(visibilities) = input["network_visibilities"].as_object() {
        endpoint["visibility"] = json!({});
        for (side, given) in visibilities {
            endpoint["visibility"][side] = section(given);
        }
    }
    json!({
        "apiVersion": "cardinal.dev/v1alpha1",
        "kind": "Cell",
        "metadata": { "name": "cell" },
        "spec": {
            "organization": given("organization", "default-org"),
            "project": given("project", "test-project"),
            "environment": given("environment", "test-env"),
            "compat": case.strictness == Strictness::Compat,
            "components": [{
                "name": given("component", "component"),
                "type": component_type,
                "workloads": { "addresses": ["10.0.0.1"] },
                "endpoints": [endpoint],
            }],
        },
    })
}

fn endpoint_type(given: &str) -> &str {
    match given {
        "Websocket" => "WebSocket",
        "REST" => "HTTP",
        other => other,
    }
}

/// The documents of a row; without keys the platform has no token provider.
fn documents(case: &Case<'_>, keys: bool) -> Vec<SourceFile> {
    let input = case.input;
    let cell = cell(case);
    let given = |name: &str, default: &str| match &input[name] {
        Value::String(text) => text.clone(),
        _ => default.to_owned(),
    };
    let jwks = json!({ "keys": [{
        "kty": "OKP", "crv": "Ed25519", "x": "MeSatYDspAyf5iMv4x2PluRGfOyWml7X2dc7bFOPFFk",
    }] });
    let providers = match keys {
        true => json!([{ "name": "default", "localJWKS": { "inline": jwks.to_string() } }]),
        false => json!([]),
    };
    let platform = json!({
        "apiVersion": "cardinal.dev/v1alpha1",
        "kind": "Platform",
        "metadata": { "name": "platform" },
        "spec": {
            "environments": [{
                "name": cell["spec"]["environment"],
                "dnsPrefix": given("dns_prefix", "dev"),
            }],
            "virtualHosts": {
                "public": given("public_virtual_host", "choreoapis.localhost"),
                "organization": given("organization_virtual_host", "internal.choreoapis.localhost"),
                "webApplications": "choreoapps.localhost",
            },
            "gateways": {
                "external": { "gatewayRef": { "namespace": GATEWAYS, "name": "gateway-external" } },
                "internal": { "gatewayRef": { "namespace": GATEWAYS, "name": "gateway-internal" } },
            },
            "jwtProviders": providers,
        },
    });
    let gateway = |name: &str, address: &str| {
        json!({
            "apiVersion": "gateway.networking.k8s.io/v1",
            "kind": "Gateway",
            "metadata": { "namespace": GATEWAYS, "name": name },
            "spec": {
                "gatewayClassName": "cardinal",
                "addresses": [{ "value": address }],
                "listeners": [{ "name": "http", "port": 80, "protocol": "HTTP" }],
            },
        })
    };
    [
        ("cell.json", cell),
        ("platform.json", platform),
        ("external.json", gateway("gateway-external", "192.0.2.1")),
        ("internal.json", gateway("gateway-internal", "192.0.2.2")),
    ]
    .into_iter()
    .map(|(path, document)| SourceFile {
        path: path.to_owned(),
        bytes: document.to_string().into_bytes(),
    })
    .collect()
}

/// The snapshot of a row.
fn taken(case: &Case<'_>) -> Snapshot {
    parse(&documents(case, true)).unwrap_or_else(|error| panic!("{}:\n{error}", case.id))
}

fn route(snapshot: &Snapshot, wanted: Gate) -> Option<&Route> {
    snapshot
        .routes
        .iter()
        .find(|route| matches!(&route.origin, Origin::Endpoint { gate, .. } if *gate == wanted))
}
<<<<<<< HEAD

/// The field of a cell that holds what the row calls `field`.
fn own_field(input: &Value, field: &str) -> String {
    if field == "remote_jwks_uri" {
        return format!("{ENDPOINT}.visibility.public.jwt.provider");
    }
    let mut rest = field
        .strip_prefix("network_visibilities.")
        .expect("refusals are about visibilities");
    let (side, policies) = rest.split_once('.').expect("a side and its policies");
    rest = policies;
    let numbers: Vec<usize> = rest
        .split(|c: char| !c.is_ascii_digit())
        .filter_map(|part| part.parse().ok())
        .collect();
    let section = format!("{ENDPOINT}.visibility.{side}");
    match numbers[..] {
        // Operations of all policies are one list in a cell.
        [policy, operation] => {
            let before: usize = input["network_visibilities"][side]["policies"]
                .as_array()
                .into_iter()
                .flatten()
                .take(policy)
                .filter(|policy| policy["type"] == "oauth2")
                .map(|policy| policy["operations"].as_array().map_or(0, Vec::len))
                .sum();
            format!("{section}.operations[{}]", before + operation)
        }
        _ => format!("{section}.policies"),
    }
}

fn refused(id: &str, input: &Value, field: &str, outcome: Result<Snapshot, Rejections>) {
    let own = own_field(input, field);
    match outcome {
        Ok(_) => panic!("{id}: is not refused"),
        Err(rejections) => assert!(
            rejections
                .mistakes
                .iter()
                .any(|mistake| *mistake.source.field == own),
            "{id}: expected a mistake at {own}, got\n{rejections}"
        ),
    }
}

fn shape(rule: &Rule, route: &Route) -> Value {
    let first = &rule.matches[0];
    let (path_type, path) = match &first.path {
        PathMatch::Prefix(path) => ("PathPrefix", path.as_str().to_owned()),
        PathMatch::Regex(pattern) => ("RegularExpression", pattern.text().to_owned()),
        PathMatch::Exact(path) => ("Exact", path.as_str().to_owned()),
        PathMatch::Call(_) => panic!("no endpoint makes a `GRPCRoute`"),
    };
    let mut matched = json!({ "path_type": path_type, "path": path });
    if let Some(method) = &first.method {
        matched["method"] = json!(method);
    }
    let hostnames: Vec<String> = route.hostnames.iter().map(ToString::to_string).collect();
    let mut shape = json!({ "hostnames": hostnames, "match": matched });
    let denies = rule.targets.is_empty()
        && rule.auth.as_ref().is_some_and(|auth| {
            auth.authorization.rules.is_empty() && auth.authorization.default == Decision::Deny
        });
    if denies {
        shape["deny"] = json!(true);
    }
    match rule.filters.first() {
        Some(Filter::Rewrite {
            path: Some(PathRewrite::Prefix(prefix)),
            ..
        }) => {
            shape["rewrite"] =
                json!({ "kind": "ReplacePrefixMatch", "replace_prefix_match": prefix });
        }
        Some(Filter::Rewrite {
            path: Some(PathRewrite::Strip(prefix)),
            ..
        }) => {
            shape["rewrite"] = json!({ "kind": "StripPrefix", "prefix": prefix.as_str() });
        }
        _ => {}
    }
    shape
}

#[test]
fn names_are_those_of_the_original() {
    rows("k8s_name", |id, input, expect| {
        let parts: Vec<&str> = input["parts"]
            .as_array()
            .expect("parts are a list")
            .iter()
            .filter_map(Value::as_str)
            .collect();
        let limit = input["limit"].as_u64().expect("limit is a number");
        let name = naming::joined(&parts, usize::try_from(limit).expect("limit is small"));
        assert_eq!(name, expect["name"], "{id}");
    });
    rows("cell_namespace", |id, input, expect| {
        let parts = ["organization", "project", "environment"].map(|part| text(input, part));
        let name = naming::joined(&["dp", parts[0], parts[1], parts[2]], 63);
        assert_eq!(name, expect["name"], "{id}");
    });
}

#[test]
fn addresses_are_host_and_prefix() {
    rows("endpoint_address", |id, input, expect| {
        let name = |field| Name::new(text(input, field)).expect("names of rows are names");
        let host =
            |field| Some(Hostname::new(text(input, field)).expect("hosts of rows are hosts"));
        let gateway = |name| {
            Some(GateRef {
                gateway: ObjectName::new("default", name).expect("is a name"),
                remote_addresses: Vec::new(),
            })
        };
        let platform = Platform {
            dns_prefixes: [(name("environment"), name("dns_prefix"))].into(),
            virtual_hosts: VirtualHosts {
                public: host("public_virtual_host"),
                organization: host("organization_virtual_host"),
                web_applications: Hostname::new("choreoapps.localhost").ok(),
            },
            external: gateway("gateway-external"),
            internal: gateway("gateway-internal"),
            ..Platform::default()
        };
        let exposure = ExposureDraft {
            endpoint: EndpointId {
                component: ComponentId {
                    cell: CellId {
                        organization: name("organization"),
                        project: name("project"),
                        environment: name("environment"),
                    },
                    component: name("component"),
                },
                endpoint: name("endpoint"),
            },
            component_kind: match text(input, "component_type") {
                "WebApplication" => ComponentKind::WebApplication,
                _ => ComponentKind::Service,
            },
            gate: gate(input),
            source: Source {
                file: "".into(),
                document: 1,
                object: "".into(),
                field: "".into(),
                line: 0,
            },
            base_path: Template::new(text(input, "base_path"), Parameters::Refused)
                .expect("base paths of rows are paths"),
            provider: None,
            operations: Vec::new(),
        };
        let site: Site = site(&exposure, &platform).expect("platform has all of it");
        assert_eq!(site.address(), expect["address"], "{id}");
    });
}

#[test]
fn visibility_decides_what_is_routed() {
    rows("visibility", |id, input, expect| {
        let mut input = input.clone();
        // Policies of other types are refused in a cell; the rows are about what is there without them.
        for side in ["public", "organization"] {
            let policies = input
                .pointer_mut(&format!("/network_visibilities/{side}/policies"))
                .and_then(Value::as_array_mut);
            if let Some(policies) = policies {
                policies.retain(|policy| policy["type"] == "oauth2");
            }
        }
        let snapshot =
            parse(&documents(&input, true)).unwrap_or_else(|error| panic!("{id}:\n{error}"));
        for (side, wanted) in [("public", Gate::External), ("organization", Gate::Internal)] {
            let route = route(&snapshot, wanted);
            let operations = route.is_some_and(|route| route.rules.len() > 1);
            let web = input["component_type"] == "WebApplication";
            let found = json!({
                "gateway": expect[side]["gateway"],
                "http_route": route.is_some(),
                // For a service the original runs the writer of filters also for none.
                "filter": if web { operations } else { route.is_some() },
                "security_policy": route.is_some_and(|route| route.rules.iter().any(|rule| rule.auth.is_some())),
            });
            assert_eq!(found, expect[side], "{id} {side}");
        }
    });
}

/// The path that is sent upstream.
fn upstream(rule: &Rule, path: &str) -> String {
    let Some(Filter::Rewrite {
        path: Some(PathRewrite::Strip(prefix)),
        ..
    }) = rule.filters.first()
    else {
        panic!("operations of a service strip their prefix");
    };
    let rest = path
        .strip_prefix(prefix.without_slash())
        .expect("path is below the prefix");
    if rest.is_empty() { "/" } else { rest }.to_owned()
}

#[test]
fn operations_match_by_the_original_pattern() {
    rows("regex", |id, input, expect| {
        let (base_path, operation) = (text(input, "base_path"), text(input, "operation"));
        if let Some(regex) = expect.get("regex") {
            let own = operation_pattern(base_path, operation, text(input, "path_match"));
            assert_eq!(own, *regex, "{id}");
            let pattern = Pattern::new(&own).expect("patterns compile");
            for path in expect["match"].as_array().into_iter().flatten() {
                assert!(
                    pattern.regex().is_match(path.as_str().expect("text")),
                    "{id} {path}"
                );
            }
            for path in expect["no_match"].as_array().into_iter().flatten() {
                assert!(
                    !pattern.regex().is_match(path.as_str().expect("text")),
                    "{id} {path}"
                );
            }
            if let Some(capture) = expect.get("capture") {
                let captures = pattern
                    .regex()
                    .captures(text(capture, "path"))
                    .expect("matches");
                assert_eq!(
                    captures.get(1).map(|group| group.as_str()),
                    capture["group1"].as_str(),
                    "{id}"
                );
            }
            if let Some(groups) = expect["capture_groups"].as_u64() {
                assert_eq!(pattern.regex().captures_len() as u64 - 1, groups, "{id}");
            }
        }
        for rewrite in expect["rewrites"].as_array().into_iter().flatten() {
            let mut parts = text(input, "prefix").split('/').skip(1);
            let input = json!({
                "component_type": "Service",
                "project": parts.next(),
                "component": parts.next(),
                "base_path": base_path,
                "network_visibilities": { "public": { "enable": true, "policies": [{
                    "type": "oauth2",
                    "operations": [{ "method": "GET", "target": operation, "scopes": [] }],
                }] } },
            });
            let snapshot =
                parse(&documents(&input, true)).unwrap_or_else(|error| panic!("{id}:\n{error}"));
            let route = route(&snapshot, Gate::External).expect("is public");
            let rule = &route.rules[1];
            let PathMatch::Regex(pattern) = &rule.matches[0].path else {
                panic!("{id}: operations match by pattern");
            };
            assert!(pattern.regex().is_match(text(rewrite, "path")), "{id}");
            assert_eq!(
                upstream(rule, text(rewrite, "path")),
                rewrite["upstream_path"],
                "{id}"
            );
        }
    });
}

#[test]
fn routes_are_those_of_the_original_without_its_open_doors() {
    rows("http_routes", |id, input, expect| {
        let outcome = parse(&documents(input, true));
        if expect["refused"] == true {
            return refused(id, input, text(expect, "field"), outcome);
        }
        let snapshot = outcome.unwrap_or_else(|error| panic!("{id}:\n{error}"));
        let route = route(&snapshot, gate(input)).unwrap_or_else(|| panic!("{id}: no route"));
        let wanted = expect["routes"].as_array().expect("routes are a list");
        assert_eq!(route.rules.len(), wanted.len(), "{id}");
        for (rule, wanted) in route.rules.iter().zip(wanted) {
            let mut wanted = wanted.clone();
            let object = wanted.as_object_mut().expect("a route is an object");
            // Names, labels and the gateway's namespace are about Kubernetes objects, which are not
            // made here; where requests go is the endpoint itself.
            for field in ["name", "namespace", "labels", "parent"] {
                object.remove(field);
            }
            let backend = object.remove("backend");
            let endpoint = snapshot
                .cells
                .values()
                .flat_map(|cell| cell.components.values())
                .flat_map(|component| component.endpoints.values())
                .next()
                .expect("the only endpoint");
            let target = rule.targets.first().map(|target| &target.target);
            match backend {
                None => assert!(target.is_none(), "{id}"),
                Some(backend) => {
                    assert!(
                        matches!(target, Some(crate::model::Target::Endpoint(id)) if *id == endpoint.id),
                        "{id}"
                    );
                    assert_eq!(
                        backend["port"].as_u64(),
                        Some(endpoint.port.get().into()),
                        "{id}"
                    );
                }
            }
            assert_eq!(shape(rule, route), wanted, "{id}");
        }
    });
}

#[test]
fn filters_have_the_original_patterns() {
    rows("http_route_filters", |id, input, expect| {
        let snapshot =
            parse(&documents(input, true)).unwrap_or_else(|error| panic!("{id}:\n{error}"));
        let rules: Vec<&Rule> = route(&snapshot, gate(input))
            .map(|route| route.rules.iter().skip(1).collect())
            .unwrap_or_default();
        let wanted = expect["filters"].as_array().expect("filters are a list");
        assert_eq!(rules.len(), wanted.len(), "{id}");
        for (rule, wanted) in rules.into_iter().zip(wanted) {
            let PathMatch::Regex(pattern) = &rule.matches[0].path else {
                panic!("{id}: operations match by pattern");
            };
            assert_eq!(pattern.text(), wanted["pattern"], "{id}");
            // Stripping the prefix is what the substitution does wherever it works.
            assert_eq!(wanted["substitution"], "\\1", "{id}");
            let path = pattern
                .text()
                .trim_matches(['^', '$'])
                .replace(['(', ')'], "")
                .replace("[^/]+", "7");
            let captures = pattern
                .regex()
                .captures(&path)
                .unwrap_or_else(|| panic!("{id} {path}"));
            assert_eq!(captures[1], upstream(rule, &path), "{id}");
        }
    });
}

#[test]
fn tokens_are_asked_for_every_operation() {
    rows("security_policies", |id, input, expect| {
        let keys = input.get("remote_jwks_uri").is_some();
        // One row leaves the keys out without being about them.
        let outcome = parse(&documents(input, keys || expect.get("refused").is_none()));
        if expect["refused"] == true {
            return refused(id, input, text(expect, "field"), outcome);
        }
        let snapshot = outcome.unwrap_or_else(|error| panic!("{id}:\n{error}"));
        let route = route(&snapshot, gate(input)).unwrap_or_else(|| panic!("{id}: no route"));
        let auths = route.rules.iter().skip(1).map(|rule| {
            let auth = rule.auth.as_ref().expect("operations have auth");
            assert_eq!(auth.authorization.default, Decision::Deny, "{id}");
            assert_eq!(auth.authorization.rules.len(), 1, "{id}");
            let allow = auth.authorization.rules[0]
                .token
                .as_ref()
                .expect("operations ask for a token");
            let tokens = auth.tokens.as_ref().expect("it asks for a token");
            assert_eq!(
                auth.authorization.rules[0].decision,
                Decision::Allow,
                "{id}"
            );
            assert_eq!(
                (tokens.providers.len(), &tokens.providers[0].name),
                (1, &allow.provider),
                "{id}"
            );
            (rule, allow)
        });
        if let Some(operations) = expect["operations"].as_array() {
            let found: Vec<Value> = auths
                .zip(operations)
                .map(|((rule, allow), wanted)| {
                    let mut found = json!({
                        "method": rule.matches[0].method,
                        "target": wanted["target"],
                        "requires_token": true,
                        "scopes": allow.scopes,
                    });
                    for claim in &allow.claims {
                        found["claims"][&claim.name] = json!(claim.values);
                    }
                    found
                })
                .collect();
            assert_eq!(json!(found), expect["operations"], "{id}");
            return;
        }
        let found: Vec<Value> = auths
            .map(|(_, allow)| json!({ "action": "Allow", "provider": allow.provider.as_str(), "scopes": allow.scopes }))
            .collect();
        let wanted: Vec<Value> = expect["policies"]
            .as_array()
            .expect("policies are a list")
            .iter()
            .map(|policy| {
                assert_eq!(policy["default_action"], "Deny", "{id}");
                policy["allow_rule"].clone()
            })
            .collect();
        assert_eq!(found, wanted, "{id}");
    });
}
=======
>>>>>>> choreo
