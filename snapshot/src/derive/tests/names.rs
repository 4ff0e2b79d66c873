//! Names and ports that the original derives, and addresses that people use.

use serde_json::{Value, json};

use super::{Case, Names, cell, documents, endpoint_type, gate, naming, rows, text};
use crate::derive::{Site, site};
use crate::document::cell::{ExposureDraft, Strictness};
use crate::document::template::{Parameters, Template};
use crate::model::{
    CellId, ComponentId, ComponentKind, EndpointId, GateRef, Hostname, Name, ObjectName, Platform,
    Transport, VirtualHosts,
};
use crate::report::Source;
use crate::{SourceFile, parse};

#[test]
fn names_are_those_of_the_original() {
    rows("k8s_name", |case| {
        let parts = |input: &Value| -> Vec<String> {
            let parts = input["parts"].as_array().expect("parts are a list");
            let parts = parts.iter().filter_map(Value::as_str);
            parts.map(str::to_owned).collect()
        };
        let name = |parts: &[String]| {
            let limit = case.input["limit"].as_u64().expect("limit is a number");
            let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
            naming::joined(&parts, usize::try_from(limit).expect("limit is small"))
        };
        let own = parts(case.input);
        assert_eq!(name(&own), case.expect["name"]);
        if let Some(other) = case.expect["distinct_cell_from"].as_str() {
            let vectors = super::vectors();
            let other = vectors["k8s_name"]
                .as_array()
                .and_then(|rows| rows.iter().find(|row| row["id"] == other))
                .expect("the other row is in the group");
            let other = parts(&other["input"]);
            assert_eq!(name(&own), name(&other));
            two_cells(case.strictness, &own, &other);
        }
    });
    rows("cell_namespace", |case| {
        assert_eq!(Names(case.input).namespace(), case.expect["name"]);
    });
    rows("head_component_policy_name", |case| {
        let component = text(case.input, "component");
        let plain = format!("openchoreo-{component}");
        let name = match plain.len() {
            ..=253 => plain,
            _ => naming::joined(&["openchoreo", component], 253),
        };
        assert_eq!(name, case.expect["name"]);
    });
}

/// One name, two tuples, two cells.
fn two_cells(strictness: Strictness, one: &[String], other: &[String]) {
    let document = |parts: &[String], address: &str| {
        let input =
            json!({ "organization": parts[1], "project": parts[2], "environment": parts[3] });
        let case = Case {
            id: "",
            strictness,
            input: &input,
            expect: &Value::Null,
        };
        let mut cell = cell(&case);
        cell["metadata"]["name"] = json!(parts.join("."));
        let component = &mut cell["spec"]["components"][0];
        component["workloads"]["addresses"] = json!([address]);
        // Visible inside only: nothing is asked of a platform.
        component["endpoints"][0]["visibility"] = json!({});
        SourceFile {
            path: format!("{address}.json"),
            bytes: cell.to_string().into_bytes(),
        }
    };
    let snapshot = parse(&[document(one, "10.0.0.1"), document(other, "10.0.0.2")])
        .unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(snapshot.cells.len(), 2);
}

/// The ports of a component with the endpoints of a row, as the original writes them.
fn ports(case: &Case<'_>) -> Value {
    let mut documents = documents(case, true);
    let mut document = cell(case);
    let endpoints: Vec<Value> = case.input["endpoints"]
        .as_array()
        .expect("endpoints are a list")
        .iter()
        .enumerate()
        .map(|(at, given)| {
            json!({
                "name": format!("e{at}"),
                "type": endpoint_type(text(given, "type")),
                "port": given["port"],
                "visibility": {},
            })
        })
        .collect();
    document["spec"]["components"][0]["endpoints"] = endpoints.into();
    documents[0].bytes = document.to_string().into_bytes();
    let snapshot = parse(&documents).unwrap_or_else(|error| panic!("{}:\n{error}", case.id));
    let mut ports: Vec<Value> = Vec::new();
    let components = snapshot
        .cells
        .values()
        .flat_map(|one| one.components.values());
    for endpoint in components.flat_map(|one| one.endpoints.values()) {
        let (suffix, protocol) = match endpoint.kind.transport() {
            Transport::Tcp => ("tcp", "TCP"),
            Transport::Udp => ("udp", "UDP"),
        };
        let port = json!({
            "name": format!("ep-{}-{suffix}", endpoint.port),
            "port": endpoint.port.get(),
            "protocol": protocol,
        });
        if !ports.contains(&port) {
            ports.push(port);
        }
    }
    ports.into()
}

#[test]
fn a_component_has_each_of_its_ports_once() {
    rows("unique_ports", |case| {
        assert_eq!(ports(case), case.expect["ports"]);
    });
    for group in ["cell_service", "cell_deployment"] {
        rows(group, |case| {
            let names = Names(case.input);
            assert_eq!(ports(case), case.expect["ports"]);
            assert_eq!(names.service(), case.expect["name"]);
            assert_eq!(names.namespace(), case.expect["namespace"]);
        });
    }
}

#[test]
fn addresses_are_host_and_prefix() {
    rows("endpoint_address", |case| {
        let input = case.input;
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
            strictness: case.strictness,
            source: Source::new("", 1, ""),
            base_path: Template::new(text(input, "base_path"), Parameters::Refused)
                .expect("base paths of rows are paths"),
            provider: None,
            operations: Vec::new(),
        };
        let site: Site = site(&exposure, &platform).expect("platform has all of it");
        assert_eq!(site.address(), case.expect["address"]);
    });
}
