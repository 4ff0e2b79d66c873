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
    let mut routes = snapshot.routes.iter().map(|route| &**route);
    routes.find(|route| matches!(&route.origin, Origin::Endpoint { gate, .. } if *gate == wanted))
}
