//! Rows of OpenChoreo's vectors about packets. Each becomes documents, and what the rules of both sides say is the row's
//! verdict. `compat` of a cell says nothing about packets, so every row is judged with it and without.
//!
//! What the original's policy objects pass is the row's `expect`, and binds here where the row is of class `contract`; the
//! objects themselves are judged in `originals`.

use std::collections::BTreeSet;

use serde_json::{Value, json};
use snapshot::{SourceFile, naming, parse};

use super::*;

const SERVER: &str = "10.1.0.1";
const CLIENT: &str = "10.1.0.2";
const STRANGER: &str = "10.1.0.3";
const WEST: &str = "192.0.2.21";
const NORTH: &str = "192.0.2.20";

pub(super) fn rows(group: &str) -> Vec<Value> {
    let text = include_str!("../../../../../tests/vectors/openchoreo.json");
    let file: Value = serde_json::from_str(text).expect("the vectors are JSON");
    let rows = file[group].as_array().expect("a group").clone();
    assert_eq!(file["counts"][group], rows.len(), "{group}");
    rows
}

/// What binds: packets have no second mode.
fn wanted(row: &Value) -> &Value {
    match row["class"].as_str() {
        Some("contract") => &row["expect"],
        Some("defect") => {
            assert_eq!(row["compat"], false, "{}", row["id"]);
            &row["instead"]["expect"]
        }
        other => panic!("{}: class {other:?}", row["id"]),
    }
}

pub(super) fn text<'v>(value: &'v Value, field: &str) -> &'v str {
    value[field]
        .as_str()
        .unwrap_or_else(|| panic!("`{field}` of {value}"))
}

/// A cell as (organization, project, environment); the vectors' short names are projects of `acme`.
fn tuple(cell: &str) -> [String; 3] {
    let parts: Vec<&str> = cell.split('/').collect();
    match parts[..] {
        [organization, project, environment] => {
            [organization, project, environment].map(str::to_owned)
        }
        _ => [
            "acme".into(),
            format!("cell-{}", cell.to_lowercase()),
            "dev".into(),
        ],
    }
}

/// A cell's document. Two cells of one tuple are one.
struct CellDocument {
    tuple: [String; 3],
    components: Vec<Value>,
    intra: &'static str,
    egress: Value,
}

impl CellDocument {
    fn new(tuple: [String; 3]) -> Self {
        Self {
            tuple,
            components: Vec::new(),
            intra: "open",
            egress: json!({}),
        }
    }

    fn component(&mut self, name: &str, address: &str, endpoints: Value) {
        self.components.push(json!({
            "name": name,
            "workloads": { "addresses": [address] },
            "endpoints": endpoints,
        }));
    }

    fn document(&self, compat: bool) -> Value {
        let [organization, project, environment] = &self.tuple;
        json!({
            "apiVersion": "cardinal.dev/v1alpha1",
            "kind": "Cell",
            "metadata": { "name": self.tuple.join(".") },
            "spec": {
                "organization": organization,
                "project": project,
                "environment": environment,
                "compat": compat,
                "intra": self.intra,
                "components": self.components,
                "egress": self.egress,
            },
        })
    }
}

fn tables(cells: &[&CellDocument], compat: bool) -> (Snapshot, KernelTables) {
    let gateway = |name: &str, address: &str| {
        json!({
            "apiVersion": "gateway.networking.k8s.io/v1",
            "kind": "Gateway",
            "metadata": { "name": name },
            "spec": {
                "gatewayClassName": "cardinal",
                "addresses": [{ "value": address }],
                "listeners": [{ "name": "http", "port": 443, "protocol": "HTTP" }],
            },
        })
    };
    let environments = ["dev", "staging", "development", "test-environment"]
        .map(|name| json!({ "name": name, "dnsPrefix": name }));
    let platform = json!({
        "apiVersion": "cardinal.dev/v1alpha1",
        "kind": "Platform",
        "metadata": { "name": "platform" },
        "spec": {
            "environments": environments,
            "virtualHosts": { "public": "apis.test", "organization": "internal.test" },
            "gateways": {
                "external": { "gatewayRef": { "name": "north" } },
                "internal": { "gatewayRef": { "name": "west" } },
            },
            "dns": { "addresses": ["10.9.0.53"] },
            "nodes": [{ "name": "other", "addresses": ["192.0.2.2"] }],
        },
    });
    let mut documents = vec![gateway("north", NORTH), gateway("west", WEST), platform];
    documents.extend(cells.iter().map(|cell| cell.document(compat)));
    let files: Vec<SourceFile> = documents
        .iter()
        .enumerate()
        .map(|(at, document)| SourceFile {
            path: format!("{at}.json"),
            bytes: document.to_string().into_bytes(),
        })
        .collect();
    let snapshot = parse(&files).unwrap_or_else(|rejections| panic!("{rejections}"));
    let discovery = Discovery {
        pods: vec![pod(11, &[SERVER]), pod(12, &[CLIENT]), pod(13, &[STRANGER])],
        unidentified: Vec::new(),
        node_addresses: vec![ip("192.0.2.1")],
    };
    let tables = compile(&snapshot, &discovery, 1);
    (snapshot, tables)
}

/// The visibilities that a set of the original's names opens.
fn visibility<'v>(names: impl Iterator<Item = &'v str>) -> Value {
    let mut own = json!({});
    for name in names {
        match name {
            "project" => {}
            "namespace" | "internal" | "organization" => own["organization"] = json!({}),
            "external" | "public" => own["public"] = json!({}),
            other => panic!("visibility {other}"),
        }
    }
    own
}

fn number(protocol: &str) -> u8 {
    match protocol {
        "TCP" => TCP,
        "UDP" => UDP,
        other => panic!("protocol {other}"),
    }
}

/// Whether packets of a row pass where `when` is declared.
fn passes(row: &Value, when: &Value, compat: bool) -> bool {
    let input = &row["input"];
    let (source, target) = (&input["source"], &input["target"]);
    let port = input["port"].as_u64().expect("a port");
    let declared = match when["port_declared"] {
        Value::Bool(false) => port + 1,
        _ => port,
    };
    let names: Vec<&str> = match (&when["endpoint_visibility"], &input["target_visibility"]) {
        (Value::String(only), _) => vec![only],
        (_, Value::Array(names)) => names.iter().filter_map(Value::as_str).collect(),
        _ => vec!["public", "organization"],
    };
    let endpoint = json!([{
        "name": "api",
        "type": when["endpoint_type"].as_str().unwrap_or("HTTP"),
        "port": declared,
        "visibility": visibility(names.into_iter()),
    }]);
    // Where nobody is called, the target is there all the same: another cell's endpoint, to have somebody to call.
    let server_cell = tuple(target["cell"].as_str().unwrap_or("B"));
    let client_cell = tuple(source["cell"].as_str().unwrap_or("elsewhere"));
    let server = target["component"].as_str().unwrap_or("server");
    let mut cells = vec![CellDocument::new(server_cell.clone())];
    cells[0].component(server, SERVER, endpoint);
    if client_cell != server_cell {
        cells.push(CellDocument::new(client_cell.clone()));
    }
    let caller = cells.last_mut().expect("there is one");
    let client = source["component"].as_str().unwrap_or("client");
    if source["cell"].is_string() {
        caller.component(client, CLIENT, json!([]));
        if when["east_declared"] == true {
            caller.egress["east"] = json!([{
                "project": server_cell[1], "component": server, "endpoint": "api",
            }]);
        }
        if when["south_declared"] == true {
            caller.egress["south"] = json!([{
                "name": "all", "cidrs": ["0.0.0.0/0", "::/0"], "port": port, "protocol": "TCP",
            }]);
        }
    }
    let cells: Vec<&CellDocument> = cells
        .iter()
        .filter(|cell| !cell.components.is_empty())
        .collect();
    let (_, tables) = tables(&cells, compat);
    let to = match (
        text(target, "kind"),
        target["gateway"].as_str(),
        target["family"].as_str(),
    ) {
        ("pod", ..) => SERVER,
        ("gateway", Some("gateway-external"), _) => NORTH,
        ("gateway", Some("gateway-internal"), _) => WEST,
        ("dns", ..) => "10.9.0.53",
        ("world", _, Some("ipv4")) => "198.51.100.1",
        ("world", _, Some("ipv6")) => "2001:db8::1",
        other => panic!("target {other:?}"),
    };
    let of = |address: &str| owner(&tables, address).identity;
    let from: Vec<Identity> = match (text(source, "kind"), source["gateway"].as_str()) {
        ("pod", _) if source["cell"].is_string() => vec![of(CLIENT)],
        ("pod", _) => vec![of("10.77.0.1")],
        ("gateway", Some("gateway-external")) => vec![Identity::NORTH_GATE],
        // Whichever gate the endpoint is visible at.
        ("gateway", Some("any")) => vec![Identity::NORTH_GATE, Identity::WEST_GATE],
        ("node", _) => match when["node"].as_str() {
            Some("this") => vec![Identity::NODE],
            Some("other") => vec![Identity::OTHER_NODE],
            other => panic!("node {other:?}"),
        },
        ("world", _) => ["198.51.100.1", "2001:db8::1"].map(of).to_vec(),
        other => panic!("source {other:?}"),
    };
    let port = u16::try_from(port).expect("a port");
    let protocol = number(text(input, "protocol"));
    let leaves =
        |to: &str, port: u16| verdict(&tables, CLIENT, of(to), port, protocol, Direction::Egress);
    let enters = |from: Identity| {
        verdict(&tables, SERVER, from, port, protocol, Direction::Ingress) == Action::Pass
    };
    if when["path"] == "west gate" {
        // To the gate itself, or to the endpoint's address, from where the router takes it.
        let steered = leaves(SERVER, port) == Action::Steer;
        let gate = leaves(WEST, 443) == Action::Pass;
        assert_eq!(steered, gate, "{}", row["id"]);
        return gate && enters(Identity::WEST_GATE);
    }
    let left = !source["cell"].is_string() || leaves(to, port) == Action::Pass;
    let entered = text(target, "kind") != "pod" || from.into_iter().any(enters);
    left && entered
}

#[test]
fn packets_pass_where_the_rows_say() {
    for row in rows("l4_allowed") {
        let want = wanted(&row);
        let cases = match want["cases"].as_array() {
            Some(cases) => cases.clone(),
            None => vec![json!({ "when": {}, "allowed": want["allowed"] })],
        };
        for case in cases {
            for compat in [false, true] {
                let passes = passes(&row, &case["when"], compat);
                assert_eq!(case["allowed"], passes, "{} {case}", row["id"]);
            }
        }
    }
}

/// The policy of a whole cell: with `intra: open` its components reach each other, and nobody else.
#[test]
fn a_cell_is_closed_around_its_components() {
    for row in rows("cell_network_policy") {
        let input = &row["input"];
        let tuple = ["organization", "project", "environment"].map(|part| text(input, part));
        for compat in [false, true] {
            let mut own = CellDocument::new(tuple.map(str::to_owned));
            own.component("server", SERVER, json!([]));
            own.component("client", CLIENT, json!([]));
            let mut other = CellDocument::new(self::tuple("B"));
            other.component("stranger", STRANGER, json!([]));
            let (_, tables) = tables(&[&own, &other], compat);
            let of = |address: &str| owner(&tables, address).identity;
            let others = [
                of(STRANGER),
                of("198.51.100.1"),
                of("2001:db8::1"),
                of("10.77.0.1"),
                Identity::NORTH_GATE,
                Identity::WEST_GATE,
                Identity::NODE,
                Identity::OTHER_NODE,
            ];
            for (own, sibling) in [(SERVER, CLIENT), (CLIENT, SERVER)] {
                for way in [Direction::Ingress, Direction::Egress] {
                    for (port, protocol) in [(1, TCP), (53, UDP), (8080, TCP), (65535, UDP)] {
                        let says = |peer| verdict(&tables, own, peer, port, protocol, way);
                        assert_eq!(says(of(sibling)), Action::Pass, "{own} {way:?} {port}");
                        for peer in others {
                            assert_eq!(says(peer), Action::Deny, "{own} {peer} {way:?} {port}");
                        }
                    }
                }
            }
            let rule = |side: &str| json!([{ side: "all-pods-in-same-namespace", "ports": "any" }]);
            let [organization, project, environment] = tuple;
            let mut found = json!({
                "name": "default-policy",
                "namespace": naming::joined(&["dp", organization, project, environment], 63),
                "subject": "all-pods-in-namespace",
                "default": "deny-both-directions",
                "ingress": rule("from"),
                "egress": rule("to"),
            });
            // Labels are on objects, which are not made here.
            found["labels"] = row["expect"]["labels"].clone();
            assert_eq!(found, *wanted(&row), "{}", row["id"]);
        }
    }
}

/// The policy of one component: declared ports for its own cell, which declares its connections, and for the gates that see
/// them. What no rule of the row lists is denied.
#[test]
fn a_component_has_the_rules_of_the_original() {
    for row in rows("head_component_policy") {
        for compat in [false, true] {
            component_policy(&row, compat);
        }
    }
}

fn component_policy(row: &Value, compat: bool) {
    let (id, input) = (&row["id"], &row["input"]);
    let component = text(input, "component");
    let given = input["endpoints"].as_object().expect("endpoints");
    let names = |endpoint: &'_ Value| -> Vec<String> {
        let names = endpoint["visibility"].as_array().expect("a list");
        names
            .iter()
            .filter_map(Value::as_str)
            .map(str::to_owned)
            .collect()
    };
    let endpoints: Vec<Value> = given
        .iter()
        .map(|(name, endpoint)| {
            json!({
                "name": name,
                "type": endpoint["type"],
                "port": endpoint["port"],
                "visibility": visibility(names(endpoint).iter().map(String::as_str)),
            })
        })
        .collect();
    let connections: Vec<Value> = given
        .keys()
        .map(|endpoint| json!({ "component": component, "endpoint": endpoint }))
        .collect();
    let mut own = CellDocument::new([
        "acme".into(),
        "shop".into(),
        text(input, "environment").into(),
    ]);
    own.intra = "declared";
    own.component(component, SERVER, endpoints.into());
    own.component("client", CLIENT, json!([]));
    own.components[1]["connections"] = connections.into();
    let mut other = CellDocument::new(tuple("B"));
    other.component("stranger", STRANGER, json!([]));
    let (snapshot, tables) = tables(&[&own, &other], compat);
    let of = |address: &str| owner(&tables, address).identity;

    let mut listed = BTreeSet::new();
    for rule in wanted(row)["ingress"].as_array().expect("a list") {
        for port in rule["ports"].as_array().expect("a list") {
            let number = port["port"].as_u64().expect("a port");
            let endpoint = given.values().find(|endpoint| endpoint["port"] == number);
            let names = names(endpoint.expect("each port is an endpoint's"));
            let peers = match text(&rule["from"], "kind") {
                "all-pods-same-namespace" => vec![of(CLIENT)],
                "west-gate" => vec![Identity::WEST_GATE],
                // Any gateway in the original; here the one that the endpoint is visible at.
                "any-namespace-pod-with-label-key" => [
                    ("external", Identity::NORTH_GATE),
                    ("internal", Identity::WEST_GATE),
                ]
                .into_iter()
                .filter(|(name, _)| names.iter().any(|one| one == name))
                .map(|(_, gate)| gate)
                .collect(),
                other => panic!("{id}: {other}"),
            };
            assert!(!peers.is_empty(), "{id}: {rule}");
            let protocol = self::number(text(port, "protocol"));
            for peer in peers {
                listed.insert((peer.raw(), number, protocol));
            }
            if let Some(l7) = port["l7_http"].as_bool() {
                let http = snapshot
                    .cells
                    .values()
                    .flat_map(|cell| cell.components.values())
                    .flat_map(|component| component.endpoints.values())
                    .filter(|endpoint| u64::from(endpoint.port.get()) == number)
                    .all(|endpoint| endpoint.kind.is_http());
                assert_eq!(http, l7, "{id}: {port}");
            }
        }
    }
    // The node is no part of such policies: its probes pass in the original whatever they say.
    for peer in [
        of(CLIENT),
        of(STRANGER),
        of("198.51.100.1"),
        of("10.77.0.1"),
        Identity::NORTH_GATE,
        Identity::WEST_GATE,
        Identity::OTHER_NODE,
    ] {
        for number in [22, 5432, 8080, 8443, 9090, 65535] {
            for protocol in [TCP, UDP] {
                let passes = verdict(&tables, SERVER, peer, number, protocol, Direction::Ingress);
                let wanted = match listed.contains(&(peer.raw(), u64::from(number), protocol)) {
                    true => Action::Pass,
                    false => Action::Deny,
                };
                assert_eq!(passes, wanted, "{id}: {peer} {number}/{protocol}");
            }
        }
    }
}
