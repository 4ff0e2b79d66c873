//! The rows of `tests/vectors/openchoreo.json` that are about what a cell derives. Each row becomes
//! documents, and the snapshot of these is brought into the shape of the row.

use serde::Deserialize;
use serde_json::{Value, json};

use super::{Site, operation_pattern, site};
use crate::document::cell::ExposureDraft;
use crate::document::template::{Parameters, Template};
use crate::model::{
    CellId, ComponentId, ComponentKind, Decision, EndpointId, Filter, Gate, GateRef, Hostname,
    Name, ObjectName, Origin, PathMatch, PathRewrite, Pattern, Platform, Route, Rule, VirtualHosts,
};
use crate::report::Source;
use crate::{Rejections, Snapshot, SourceFile, naming, parse};

const ENDPOINT: &str = "spec.components[0].endpoints[0]";

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
    #[serde(rename = "compat")]
    _compat: Option<bool>,
    #[serde(rename = "note")]
    _note: Option<String>,
}

#[derive(Deserialize, PartialEq)]
#[serde(rename_all = "lowercase")]
enum Class {
    Contract,
    Quirk,
    Defect,
}

/// Every row of a group with what binds by default; quirks bind nothing.
fn rows(group: &str, mut test: impl FnMut(&str, &Value, &Value)) {
    let vectors: Value = serde_json::from_str(include_str!(concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../tests/vectors/openchoreo.json"
    )))
    .expect("vectors are JSON");
    let rows: Vec<Row> = serde_json::from_value(vectors[group].clone()).expect("group has rows");
    assert_eq!(
        Some(rows.len() as u64),
        vectors["counts"][group].as_u64(),
        "{group}"
    );
    for row in rows {
        match row.class {
            Class::Quirk => {}
            Class::Contract => test(&row.id, &row.input, &row.expect),
            Class::Defect => test(&row.id, &row.input, &row.instead["expect"]),
        }
    }
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

/// The documents of a row; without keys the platform has no token provider.
fn documents(input: &Value, keys: bool) -> Vec<SourceFile> {
    let given = |name: &str, default: &str| match &input[name] {
        Value::String(text) => text.clone(),
        _ => default.to_owned(),
    };
    let component_type = match text(input, "component_type") {
        "WebApplication" => "WebApplication",
        _ => "Service",
    };
    let endpoint_type = match given("endpoint_type", "HTTP").as_str() {
        "Websocket" => "WebSocket".to_owned(),
        "REST" => "HTTP".to_owned(),
        other => other.to_owned(),
    };
    let mut visibility = json!({});
    for side in ["public", "organization"] {
        if let Some(given) = input["network_visibilities"].get(side) {
            visibility[side] = section(given);
        }
    }
    let environment = given("environment", "test-env");
    let cell = json!({
        "apiVersion": "cardinal.dev/v1alpha1",
        "kind": "Cell",
        "metadata": { "name": "cell" },
        "spec": {
            "organization": given("organization", "default-org"),
            "project": given("project", "test-project"),
            "environment": environment,
            "components": [{
                "name": given("component", "component"),
                "type": component_type,
                "workloads": { "addresses": ["10.0.0.1"] },
                "endpoints": [{
                    "name": given("endpoint", "test-endpoint"),
                    "type": endpoint_type,
                    "port": input["port"].as_u64().unwrap_or(8080),
                    "basePath": given("base_path", "/"),
                    "visibility": visibility,
                }],
            }],
        },
    });
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
            "environments": [{ "name": environment, "dnsPrefix": given("dns_prefix", "dev") }],
            "virtualHosts": {
                "public": given("public_virtual_host", "choreoapis.localhost"),
                "organization": given("organization_virtual_host", "internal.choreoapis.localhost"),
                "webApplications": "choreoapps.localhost",
            },
            "gateways": {
                "external": { "gatewayRef": { "name": "gateway-external" } },
                "internal": { "gatewayRef": { "name": "gateway-internal" } },
            },
            "jwtProviders": providers,
        },
    });
    let gateway = |name: &str, address: &str| {
        json!({
            "apiVersion": "gateway.networking.k8s.io/v1",
            "kind": "Gateway",
            "metadata": { "name": name },
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

fn route(snapshot: &Snapshot, wanted: Gate) -> Option<&Route> {
    snapshot
        .routes
        .iter()
        .find(|route| matches!(&route.origin, Origin::Endpoint { gate, .. } if *gate == wanted))
}

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
