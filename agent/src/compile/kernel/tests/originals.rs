//! Rows of OpenChoreo's vectors about packets, judged by the original's own policies, unchanged, in every class of rows: what these
//! objects say comes out, between pods of no cell and gateways that are pods, and as a data plane is: between pods of cells that
//! their labels make, and gates.

use serde_json::{Value, json};
use snapshot::take;

use super::isolation::{document, found};
use super::vectors::{rows, text};
use super::*;

const NODE: &str = "192.0.2.1";
/// The gateways of a data plane, each with its address.
const GATEWAYS: [(&str, &str); 2] = [
    ("gateway-external", "192.0.2.10"),
    ("gateway-internal", "192.0.2.11"),
];
const GATEWAYS_NAMESPACE: &str = "openchoreo-data-plane";

fn fixtures() -> Value {
    let text = include_str!("../../../../../tests/vectors/openchoreo.json");
    let file: Value = serde_json::from_str(text).expect("the vectors are JSON");
    file["fixtures"].clone()
}

/// Pods, each with an address of its own.
#[derive(Default)]
struct World {
    objects: Vec<Value>,
    pods: BTreeMap<String, String>,
}

impl World {
    fn pod(&mut self, name: &str, namespace: &str, labels: &Value) {
        let address = format!("10.1.0.{}", self.pods.len() + 1);
        self.objects.push(json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": { "namespace": namespace, "name": format!("pod-{}", self.pods.len()), "labels": labels },
            "status": { "phase": "Running", "podIPs": [{ "ip": address }] },
        }));
        self.pods.insert(name.to_owned(), address);
    }

    fn namespace(&mut self, name: &str, labels: &Value) {
        self.objects.push(json!({
            "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": name, "labels": labels },
        }));
    }

    /// The labels of namespaces, and the policies of the mode that a row is about.
    fn originals(&mut self, fixtures: &Value, row: &Value) {
        for (name, labels) in fixtures["namespace_labels"].as_object().expect("labels") {
            self.namespace(name, labels);
        }
        let policies = fixtures["policies"][text(&row["input"], "mode")].as_array();
        let policies = policies.expect("policies").iter().cloned();
        self.objects.extend(policies);
    }

    /// Gateways that are gates.
    fn gates(&mut self) {
        self.objects.push(json!({
            "apiVersion": "gateway.networking.k8s.io/v1", "kind": "GatewayClass", "metadata": { "name": "cardinal" },
            "spec": { "controllerName": "cardinal.dev/gateway-controller" },
        }));
        for (name, address) in GATEWAYS {
            self.objects.push(json!({
                "apiVersion": "gateway.networking.k8s.io/v1", "kind": "Gateway",
                "metadata": { "name": name, "namespace": GATEWAYS_NAMESPACE },
                "spec": {
                    "gatewayClassName": "cardinal",
                    "addresses": [{ "value": address }],
                    "listeners": [{ "name": "http", "port": 80, "protocol": "HTTP" }],
                },
            }));
        }
    }

    /// The tables of pods of no cell.
    fn tables(&self) -> KernelTables {
        self.tables_with(json!({ "networkPolicies": "all" }))
    }

    /// The tables of pods that are of cells by their labels.
    fn tables_of_cells(&self) -> KernelTables {
        let gate =
            |name: &str| json!({ "gatewayRef": { "name": name, "namespace": GATEWAYS_NAMESPACE } });
        self.tables_with(json!({
            "cells": { "derivedFrom": "OpenChoreo" },
            "gateways": {
                "external": gate("gateway-external"),
                "internal": gate("gateway-internal"),
            },
        }))
    }

    fn tables_with(&self, mut spec: Value) -> KernelTables {
        spec["nodes"] = json!([{ "name": "other", "addresses": ["192.0.2.2"] }]);
        let platform = json!({
            "apiVersion": "cardinal.dev/v1alpha1", "kind": "Platform", "metadata": { "name": "platform" },
            "spec": spec,
        });
        let objects = self.objects.iter().chain([&platform]);
        let taken = take(objects.map(document));
        let verdicts = taken.report.objects.values();
        let mistakes: Vec<_> = verdicts.flat_map(|verdict| &verdict.mistakes).collect();
        assert!(mistakes.is_empty(), "{mistakes:?}");
        let pods = self.pods.values().zip(11..);
        let discovery = Discovery {
            pods: pods
                .map(|(address, ifindex)| pod(ifindex, &[address]))
                .collect(),
            unidentified: Vec::new(),
            node_addresses: vec![ip(NODE)],
        };
        compile(&taken.snapshot, &discovery, 1)
    }
}

/// Whether a connection passes at both ends, as far as these have gates.
fn passes(tables: &KernelTables, from: &str, to: &str, port: u16, protocol: u8) -> bool {
    let gate = |own: &str, peer: &str, way| {
        let own = owner(tables, own).ifindex;
        let Some(pod) = tables.endpoints.get(&own) else {
            return true;
        };
        let peer = match way {
            Direction::Ingress if peer == NODE => Identity::NODE,
            _ => owner(tables, peer).identity,
        };
        found(tables, pod, peer, port, protocol, way)
    };
    gate(from, to, Direction::Egress) && gate(to, from, Direction::Ingress)
}

fn number(protocol: &str) -> u8 {
    match protocol {
        "TCP" => TCP,
        "UDP" => UDP,
        other => panic!("protocol {other}"),
    }
}

/// The addresses of one end of a row. `gateways` has those of gateways that are no pods.
fn ends(world: &World, end: &Value, gateways: &[(&str, &str)]) -> Vec<String> {
    let pod = |name: &str| vec![world.pods[name].clone()];
    let word = |field: &str| end[field].as_str();
    let gates = |name: &str| -> Vec<String> {
        let all = gateways.iter();
        let named = all.filter(|(gate, _)| name == "any" || *gate == name);
        named.map(|(_, address)| (*address).to_owned()).collect()
    };
    match (text(end, "kind"), word("cell"), word("component")) {
        ("pod", Some(cell), Some(component)) => pod(&format!("{cell} {component}")),
        ("pod", Some(cell), None) => pod(&format!("cell {cell}")),
        ("pod", None, _) => pod("no cell"),
        ("gateway", ..) if !gateways.is_empty() => gates(text(end, "gateway")),
        ("gateway", ..) if word("gateway") == Some("any") => pod("gateway any"),
        ("gateway", ..) => pod(text(end, "gateway")),
        ("dns", ..) => pod("dns"),
        ("node", ..) => vec![NODE.to_owned(), "192.0.2.2".to_owned()],
        ("world", ..) => match word("family") {
            Some("ipv4") => vec!["198.51.100.1".to_owned()],
            Some("ipv6") => vec!["2001:db8::1".to_owned()],
            _ => vec!["198.51.100.1".to_owned(), "2001:db8::1".to_owned()],
        },
        other => panic!("{other:?}"),
    }
}

/// Whether the connections of a row pass, each with its two ends.
fn row(
    row: &Value,
    world: &World,
    tables: &KernelTables,
    gateways: &[(&str, &str)],
) -> Vec<(bool, String)> {
    let input = &row["input"];
    let port = input["port"]
        .as_u64()
        .and_then(|port| u16::try_from(port).ok());
    let port = port.expect("a port");
    let protocol = number(text(input, "protocol"));
    let mut all = Vec::new();
    for from in ends(world, &input["source"], gateways) {
        for to in ends(world, &input["target"], gateways) {
            let passes = passes(tables, &from, &to, port, protocol);
            all.push((passes, format!("{} {from} {to}", row["id"])));
        }
    }
    assert!(!all.is_empty(), "{} has no connection", row["id"]);
    all
}

#[test]
fn the_originals_policies_pass_what_the_rows_say() {
    let fixtures = fixtures();
    for row in rows("l4_allowed") {
        let mut world = World::default();
        for (name, pod) in fixtures["pods"].as_object().expect("pods") {
            world.pod(name, text(pod, "namespace"), &pod["labels"]);
        }
        world.originals(&fixtures, &row);
        for (passes, what) in self::row(&row, &world, &world.tables(), &[]) {
            assert_eq!(row["expect"]["allowed"], passes, "{what}");
        }
    }
}

/// The labels that the first controllers put on the namespace of a pod: those of the pod that say which cell it is of.
fn namespace_labels(pod: &Value) -> Option<Value> {
    let names = ["organization-name", "project-name", "environment-name"];
    let mut labels = json!({ "managed-by": "choreo-deployment-controller" });
    for name in names {
        labels[name] = pod["labels"].get(name)?.clone();
    }
    Some(labels)
}

#[test]
fn the_originals_policies_hold_between_cells_of_labels_and_gates() {
    // What a gateway of ours leads to is for its routes to say, and OpenChoreo makes none to an endpoint of the project alone.
    const ROUTES: &str = "l4_allowed/head/gateway-project-endpoint";
    let fixtures = fixtures();
    let mut by_routes = 0;
    for row in rows("l4_allowed") {
        let mut world = World::default();
        world.gates();
        for (name, pod) in fixtures["pods"].as_object().expect("pods") {
            if name.starts_with("gateway") {
                continue;
            }
            world.pod(name, text(pod, "namespace"), &pod["labels"]);
            if let Some(labels) = namespace_labels(pod) {
                world.namespace(text(pod, "namespace"), &labels);
            }
        }
        world.originals(&fixtures, &row);
        let tables = world.tables_of_cells();
        let cells: BTreeSet<u32> = tables.endpoints.values().map(|pod| pod.cell).collect();
        assert!(cells.len() > 2 && !cells.contains(&0), "{cells:?}");
        for (passes, what) in self::row(&row, &world, &tables, &GATEWAYS) {
            if row["id"] == ROUTES {
                assert!(passes, "{what}");
                by_routes += 1;
            } else {
                assert_eq!(row["expect"]["allowed"], passes, "{what}");
            }
        }
    }
    assert_eq!(by_routes, GATEWAYS.len());
}

/// The object that a row describes.
fn policy(expect: &Value) -> Value {
    let cilium = expect["kind"] == "CiliumNetworkPolicy";
    let namespace = "k8s:io.kubernetes.pod.namespace";
    let has = |key: &str| json!({ "key": key, "operator": "Exists" });
    let rules = expect["ingress"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|rule| {
            let from = &rule["from"];
            let peer = match (text(from, "kind"), cilium) {
                ("all-pods-same-namespace", false) => json!({ "podSelector": {} }),
                ("all-pods-same-namespace", true) => json!({}),
                ("any-namespace-with-labels", false) => {
                    json!({ "namespaceSelector": { "matchLabels": from["labels"] } })
                }
                ("any-namespace-with-labels", true) => {
                    json!({ "matchLabels": from["labels"], "matchExpressions": [has(namespace)] })
                }
                ("any-namespace-pod-with-label-key", false) => json!({
                    "namespaceSelector": {},
                    "podSelector": { "matchExpressions": [has(text(from, "key"))] },
                }),
                ("any-namespace-pod-with-label-key", true) => {
                    json!({ "matchExpressions": [has(text(from, "key")), has(namespace)] })
                }
                other => panic!("{other:?}"),
            };
            let ports = rule["ports"].as_array().expect("a list").iter();
            match cilium {
                false => json!({ "from": [peer], "ports": rule["ports"] }),
                true => {
                    let groups = ports.map(|port| {
                        let number = port["port"].to_string();
                        let mut group =
                            json!({ "ports": [{ "port": number, "protocol": port["protocol"] }] });
                        if port["l7_http"] == true {
                            group["rules"] = json!({ "http": [{}] });
                        }
                        group
                    });
                    json!({ "fromEndpoints": [peer], "toPorts": groups.collect::<Vec<_>>() })
                }
            }
        });
    let rules: Vec<Value> = rules.collect();
    let selector = json!({ "matchLabels": expect["selector"] });
    let (version, spec) = match cilium {
        true => (
            "cilium.io/v2",
            json!({ "endpointSelector": selector, "ingress": rules }),
        ),
        false => (
            "networking.k8s.io/v1",
            json!({ "podSelector": selector, "policyTypes": ["Ingress"], "ingress": rules }),
        ),
    };
    json!({
        "apiVersion": version, "kind": expect["kind"],
        "metadata": { "namespace": expect["namespace"], "name": expect["name"] },
        "spec": spec,
    })
}

#[test]
fn a_components_policy_of_the_original_passes_what_it_lists() {
    let tenant = json!({
        "openchoreo.dev/namespace": "cp-ns", "openchoreo.dev/environment": "development",
    });
    for row in rows("head_component_policy") {
        let expect = &row["expect"];
        let mut world = World::default();
        world.pod("server", "dp-ns", &expect["selector"]);
        world.pod("same namespace", "dp-ns", &json!({}));
        world.pod("tenant", "dp-other", &tenant);
        world.pod(
            "gateway",
            "gateways",
            &json!({ "openchoreo.dev/system-component": "gateway" }),
        );
        world.pod("stranger", "elsewhere", &json!({}));
        world.namespace("dp-other", &tenant);
        world.objects.push(policy(expect));
        let tables = world.tables();
        for (name, address) in &world.pods {
            for port in [22, 5432, 8080, 8443, 9090] {
                let mut rules = expect["ingress"].as_array().expect("a list").iter();
                let wanted = rules.any(|rule| {
                    let from = match text(&rule["from"], "kind") {
                        "all-pods-same-namespace" => {
                            ["same namespace", "server"].contains(&&**name)
                        }
                        "any-namespace-with-labels" => name == "tenant",
                        "any-namespace-pod-with-label-key" => name == "gateway",
                        other => panic!("{other}"),
                    };
                    let mut ports = rule["ports"].as_array().expect("a list").iter();
                    from && ports.any(|one| one["port"] == port)
                });
                let port = u16::try_from(port).expect("a port");
                let passes = passes(&tables, address, &world.pods["server"], port, TCP);
                assert_eq!(passes, wanted, "{} {name} {port}", row["id"]);
                assert!(!self::passes(
                    &tables,
                    address,
                    &world.pods["server"],
                    port,
                    UDP
                ));
            }
        }
    }
}
