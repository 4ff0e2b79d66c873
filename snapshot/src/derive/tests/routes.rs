//! Which routes an endpoint has, whom they take, and whom they ask.

use serde_json::{Value, json};

use super::{
    Case, GATEWAYS, Names, documents, endpoint_type, gate, naming, route, rows, taken, text,
};
use crate::derive::operation_pattern;
use crate::document::cell::Strictness;
use crate::model::{Decision, Filter, Gate, PathMatch, PathRewrite, Pattern, Route, Rule, Target};
use crate::{Rejections, Snapshot, parse};

const ENDPOINT: &str = "spec.components[0].endpoints[0]";

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

fn refused(case: &Case<'_>, outcome: Result<Snapshot, Rejections>) {
    let (id, own) = (case.id, own_field(case.input, text(case.expect, "field")));
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

/// A rule as the original tells it; `name` is that of the object.
fn shape(rule: &Rule, route: &Route, name: &str, strictness: Strictness) -> Value {
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
    match rewritten(rule) {
        Some(PathRewrite::Prefix(prefix)) => {
            shape["rewrite"] =
                json!({ "kind": "ReplacePrefixMatch", "replace_prefix_match": prefix });
        }
        // What the filter of that name does is the group `http_route_filters`.
        Some(PathRewrite::Strip(_)) if strictness == Strictness::Compat => {
            shape["rewrite"] = json!({
                "kind": "ExtensionRef",
                "group": "gateway.envoyproxy.io",
                "ref_kind": "HTTPRouteFilter",
                "ref_name": name,
            });
        }
        Some(PathRewrite::Strip(prefix)) => {
            shape["rewrite"] = json!({ "kind": "StripPrefix", "prefix": prefix.as_str() });
        }
        _ => {}
    }
    shape
}

#[test]
fn visibility_decides_what_is_routed() {
    rows("visibility", |case| {
        let mut input = case.input.clone();
        // Policies of other types are refused in a cell; the rows are about what is there without them.
        for side in ["public", "organization"] {
            let policies = input
                .pointer_mut(&format!("/network_visibilities/{side}/policies"))
                .and_then(Value::as_array_mut);
            if let Some(policies) = policies {
                policies.retain(|policy| policy["type"] == "oauth2");
            }
        }
        let snapshot = taken(&Case {
            input: &input,
            ..*case
        });
        for (side, wanted) in [("public", Gate::External), ("organization", Gate::Internal)] {
            let route = route(&snapshot, wanted);
            let operations = route.is_some_and(|route| route.rules.len() > 1);
            let web = input["component_type"] == "WebApplication";
            let said = !input["network_visibilities"].is_null();
            let found = json!({
                "gateway": case.expect[side]["gateway"],
                "http_route": route.is_some(),
                // For a service the original runs the writer of filters also for none, but not without a word.
                "filter": if web { operations } else { route.is_some() && said },
                "security_policy": route.is_some_and(|route| route.rules.iter().any(|rule| rule.auth.is_some())),
            });
            assert_eq!(found, case.expect[side], "{side}");
        }
    });
}

/// Method and target of each operation that the row's gateway has, in order.
fn operations(input: &Value) -> impl Iterator<Item = (&str, &str)> {
    let side = match gate(input) {
        Gate::External => "public",
        Gate::Internal => "organization",
    };
    input["network_visibilities"][side]["policies"]
        .as_array()
        .into_iter()
        .flatten()
        .filter(|policy| policy["type"] == "oauth2")
        .flat_map(|policy| policy["operations"].as_array().into_iter().flatten())
        .map(|operation| (text(operation, "method"), text(operation, "target")))
}

/// How the first filter of a rule changes the path.
fn rewritten(rule: &Rule) -> Option<&PathRewrite> {
    match rule.filters.first() {
        Some(Filter::Rewrite(change)) => change.path.as_ref(),
        _ => None,
    }
}

/// The path that is sent upstream.
fn upstream(rule: &Rule, path: &str) -> String {
    let Some(PathRewrite::Strip(prefix)) = rewritten(rule) else {
        panic!("operations of a service strip their prefix");
    };
    let rest = path
        .strip_prefix(prefix.without_slash())
        .expect("path is below the prefix");
    if rest.is_empty() { "/" } else { rest }.to_owned()
}

#[test]
fn operations_match_by_the_original_pattern() {
    rows("regex", |case| {
        let (id, input, expect) = (case.id, case.input, case.expect);
        let (base_path, operation) = (text(input, "base_path"), text(input, "operation"));
        if let Some(regex) = expect.get("regex") {
            let own = operation_pattern(
                base_path,
                operation,
                text(input, "path_match"),
                case.strictness,
            );
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
            let snapshot = taken(&Case {
                input: &input,
                ..*case
            });
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
    rows("http_routes", |case| {
        let (id, input, expect) = (case.id, case.input, case.expect);
        let outcome = parse(&documents(case, true));
        if expect["refused"] == true {
            return refused(case, outcome);
        }
        let snapshot = outcome.unwrap_or_else(|error| panic!("{id}:\n{error}"));
        let route = route(&snapshot, gate(input)).unwrap_or_else(|| panic!("{id}: no route"));
        let wanted = expect["routes"].as_array().expect("routes are a list");
        assert_eq!(route.rules.len(), wanted.len(), "{id}");
        let names = Names(input);
        // The wildcard is first and has no operation.
        let mut operations = std::iter::once(None).chain(operations(input).map(Some));
        for (rule, wanted) in route.rules.iter().zip(wanted) {
            let mut wanted = wanted.clone();
            let object = wanted.as_object_mut().expect("a route is an object");
            // Labels are on Kubernetes objects, which are not made here.
            object.remove("labels");
            let endpoint = snapshot
                .cells
                .values()
                .flat_map(|cell| cell.components.values())
                .flat_map(|component| component.endpoints.values())
                .next()
                .expect("the only endpoint");
            let operation = operations.next();
            let name = names.route(operation.flatten());
            let mut found = shape(rule, route, &name, case.strictness);
            found["name"] = json!(name);
            found["namespace"] = json!(names.namespace());
            let gateway = &route.parents[0].gateway;
            found["parent"] = json!({ "name": gateway.name(), "namespace": gateway.namespace() });
            if let Some(target) = rule.targets.first() {
                assert!(
                    matches!(&target.target, Target::Endpoint(id) if **id == endpoint.id),
                    "{id}"
                );
                found["backend"] =
                    json!({ "service": names.service(), "port": endpoint.port.get() });
            }
            assert_eq!(found, wanted, "{id}");
        }
    });
}

#[test]
fn filters_have_the_original_patterns() {
    rows("http_route_filters", |case| {
        let (id, input, expect) = (case.id, case.input, case.expect);
        let snapshot = taken(case);
        let rules: Vec<&Rule> = route(&snapshot, gate(input))
            .map(|route| route.rules.iter().skip(1).collect())
            .unwrap_or_default();
        let wanted = expect["filters"].as_array().expect("filters are a list");
        assert_eq!(rules.len(), wanted.len(), "{id}");
        let names = Names(input);
        for ((rule, wanted), operation) in rules.into_iter().zip(wanted).zip(operations(input)) {
            let PathMatch::Regex(pattern) = &rule.matches[0].path else {
                panic!("{id}: operations match by pattern");
            };
            assert_eq!(names.route(Some(operation)), wanted["name"], "{id}");
            assert_eq!(names.namespace(), wanted["namespace"], "{id}");
            assert_eq!(wanted["rewrite_type"], "ReplaceRegexMatch", "{id}");
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
    rows("security_policies", |case| {
        let (id, input, expect) = (case.id, case.input, case.expect);
        let keys = input.get("remote_jwks_uri").is_some();
        // One row leaves the keys out without being about them.
        let outcome = parse(&documents(case, keys || expect.get("refused").is_none()));
        if expect["refused"] == true {
            return refused(case, outcome);
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

/// A binding of the second generation as the cell that says the same: its levels are a list that is always there, and its
/// hosts are built in.
#[test]
fn a_service_binding_is_a_cell_that_says_the_same() {
    rows("service_binding_routes", |case| {
        let input = case.input;
        let levels: Vec<&str> = input["expose_levels"]
            .as_array()
            .expect("levels are a list")
            .iter()
            .filter_map(Value::as_str)
            .collect();
        let mut visibilities = json!({});
        for level in &levels {
            visibilities[level.to_lowercase()] = json!({ "enable": true });
        }
        let mut own = input.clone();
        own["endpoint"] = input["api"].clone();
        own["endpoint_type"] = json!(endpoint_type(text(input, "type")));
        own["network_visibilities"] = visibilities;
        own["dns_prefix"] = input["environment"].clone();
        own["organization_virtual_host"] = json!("choreoapis.internal");
        let snapshot = taken(&Case {
            input: &own,
            ..*case
        });
        let name = |parts: &[&str]| naming::joined(parts, 63);
        let (binding, api) = (text(input, "service_binding"), text(input, "api"));
        let (mut routes, mut policies) = (Vec::new(), Vec::new());
        for level in &levels {
            let (level, wanted) = match *level {
                "Public" => ("public", Gate::External),
                "Organization" => ("organization", Gate::Internal),
                other => panic!("level {other}"),
            };
            let route = route(&snapshot, wanted).expect("the level is exposed");
            assert_eq!(route.rules.len(), 1, "a binding has no operations");
            let shape = shape(&route.rules[0], route, "", case.strictness);
            let route_name = name(&[binding, api, level, "httproute"]);
            assert_eq!(route.parents[0].gateway.namespace(), GATEWAYS);
            routes.push(json!({
                "name": route_name,
                "namespace": Names(input).namespace(),
                "gateway": route.parents[0].gateway.name(),
                // That of the binding's gateways; here the test's platform says where they are.
                "gateway_namespace": "openchoreo-data-plane",
                "hostname": shape["hostnames"][0],
                "match": shape["match"],
                "replace_prefix_match": shape["rewrite"]["replace_prefix_match"],
                "backend": { "service": name(&[binding]), "port": input["port"] },
            }));
            policies.push(json!({
                "security_policy": name(&[binding, api, level]),
                "backend_traffic_policy": name(&[binding, api, level, "btp"]),
                "targets_route": route_name,
            }));
        }
        assert!(!levels.is_empty() || snapshot.routes.is_empty());
        assert_eq!(json!(routes), case.expect["routes"]);
        assert_eq!(json!(policies), case.expect["policies"]);
    });
}
