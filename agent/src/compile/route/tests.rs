use std::net::IpAddr;
use std::sync::Arc;

use snapshot::{Snapshot, SourceFile, parse};

use super::{Compiler, compile_on};
use crate::route::{RouteRules, RouteTable, TargetKind};

const DOCUMENTS: &str = "
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: { name: web }
spec:
  gatewayClassName: cardinal
  addresses: [{ value: 203.0.113.1 }]
  listeners: [{ name: http, port: 80, protocol: HTTP }]
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: { name: web }
spec:
  parentRefs: [{ name: web }]
  rules: [{ backendRefs: [{ name: app, port: 80 }] }]
---
apiVersion: v1
kind: Service
metadata: { name: app }
spec: { clusterIP: 10.96.0.1, ports: [{ port: 80 }] }
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: { name: app-1, labels: { kubernetes.io/service-name: app } }
addressType: IPv4
ports: [{ port: 8080 }]
endpoints:
  - { addresses: [10.1.0.1], hints: { forZones: [{ name: east }] } }
  - { addresses: [10.1.0.2], hints: { forZones: [{ name: west }] } }
---
apiVersion: v1
kind: Node
metadata: { name: a, labels: { topology.kubernetes.io/zone: east } }
status: { addresses: [{ type: InternalIP, address: 192.0.2.1 }] }
---
apiVersion: v1
kind: Node
metadata: { name: b, labels: { topology.kubernetes.io/zone: north } }
status: { addresses: [{ type: InternalIP, address: 192.0.2.2 }] }
";

fn read(documents: &str) -> Snapshot {
    let file = SourceFile {
        path: "documents.yaml".to_owned(),
        bytes: documents.as_bytes().to_vec(),
    };
    parse(&[file]).expect("good documents")
}

/// The only route's rules on the node with this address, when this was the table before.
fn rules(snapshot: &Snapshot, node: &str, before: &RouteTable) -> RouteRules {
    let node: IpAddr = node.parse().expect("an address");
    let node = [node];
    let mut compiler = Compiler::new(snapshot, &node, 2, before);
    compiler.rules().remove(0)
}

/// Endpoints that requests get.
fn endpoints_of(rules: &RouteRules) -> Vec<String> {
    let TargetKind::Upstreams(upstreams) = &rules[0].targets[0].kind else {
        panic!("the route leads to a service");
    };
    let upstreams = upstreams.iter().map(|one| one.upstream.to_string());
    upstreams.collect()
}

/// Endpoints that requests get on the node with this address.
fn endpoints(documents: &str, node: &str) -> Vec<String> {
    endpoints_of(&rules(&read(documents), node, &RouteTable::default()))
}

#[test]
fn requests_go_to_the_endpoints_that_are_hinted_to_the_node() {
    let (east, both) = (["10.1.0.1:8080"], ["10.1.0.1:8080", "10.1.0.2:8080"]);
    assert_eq!(endpoints(DOCUMENTS, "192.0.2.1"), east);
    // No endpoint is for its zone, or nobody knows which node it is.
    assert_eq!(endpoints(DOCUMENTS, "192.0.2.2"), both);
    assert_eq!(endpoints(DOCUMENTS, "192.0.2.3"), both);
    let headless = DOCUMENTS.replace("10.96.0.1", "None");
    assert_eq!(endpoints(&headless, "192.0.2.1"), both);
    // Another proxy leads what connects to its address.
    let label = "name: app, labels: { service.kubernetes.io/service-proxy-name: mesh } }";
    let other = DOCUMENTS.replacen(
        "kind: Service\nmetadata: { name: app }",
        &format!("kind: Service\nmetadata: {{ {label}"),
        1,
    );
    assert_ne!(other, DOCUMENTS);
    assert_eq!(endpoints(&other, "192.0.2.1"), east);
}

#[test]
fn rules_are_taken_over_only_where_their_endpoints_would_be_chosen_again() {
    const EAST: &str = "192.0.2.1";
    let before = read(DOCUMENTS);
    let node = EAST.parse().expect("an address");
    let table = compile_on(&before, &[node], 1).expect("it compiles");
    let (first, second) = ("10.1.0.1:8080", "10.1.0.2:8080");
    // What becomes of the documents and of the node, whether the rules stay, and the endpoints.
    let other = format!(
        "{DOCUMENTS}---\napiVersion: v1\nkind: Service\nmetadata: {{ name: other }}\nspec: {{ clusterIP: 10.96.0.2, ports: [{{ port: 80 }}] }}\n"
    );
    let moved = DOCUMENTS.replace("zone: east", "zone: west");
    let hinted = DOCUMENTS.replace("name: east", "name: south");
    let headless = DOCUMENTS.replace("10.96.0.1", "None");
    let cases = [
        (DOCUMENTS, EAST, true, vec![first]),
        (&other, EAST, true, vec![first]),
        (&moved, EAST, false, vec![second]),
        (&hinted, EAST, false, vec![first, second]),
        (&headless, EAST, false, vec![first, second]),
        (DOCUMENTS, "192.0.2.2", false, vec![first, second]),
        (DOCUMENTS, "192.0.2.3", false, vec![first, second]),
    ];
    let known = rules(&before, EAST, &table);
    for (documents, node, stays, expected) in cases {
        // The route is the value that it was, as if linking had found nothing new about it.
        let after = Snapshot {
            routes: before.routes.clone(),
            ..read(documents)
        };
        let rules = rules(&after, node, &table);
        assert_eq!(Arc::ptr_eq(&rules, &known), stays, "{node} {documents}");
        assert_eq!(endpoints_of(&rules), expected, "{node} {documents}");
    }
}

#[test]
fn hosts_of_a_listener_that_does_not_work_fall_to_no_broader_one() {
    let gateway = "apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: { name: web }
spec:
  gatewayClassName: cardinal
  addresses: [{ value: 203.0.113.1 }]
  listeners:
    - { name: all, port: 80, protocol: HTTP, hostname: \"*.example.com\" }
    - { name: admin, port: 80, protocol: HTTP, hostname: admin.example.com, unheardOf: 1 }
    - { name: alone, port: 81, protocol: HTTP, hostname: admin.example.com, unheardOf: 1 }
    - { name: first, port: 80, protocol: HTTP, hostname: twice.example.com }
    - { name: second, port: 80, protocol: HTTP, hostname: twice.example.com }
";
    // It has the same address, and no port of it: whoever's name comes first.
    let others = ["another", "zebra"].map(|name| {
        format!(
            "apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {{ name: {name} }}
spec:
  gatewayClassName: cardinal
  addresses: [{{ value: 203.0.113.1 }}]
  listeners:
    - {{ name: taken, port: 80, protocol: HTTP, hostname: shop.example.com, unheardOf: 1 }}
    - {{ name: own, port: 82, protocol: HTTP }}
"
        )
    });
    let class = "apiVersion: gateway.networking.k8s.io/v1
kind: GatewayClass
metadata: { name: cardinal }
spec: { controllerName: cardinal.dev/gateway-controller }
";
    let route = "apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: { name: web }
spec:
  parentRefs: [{ name: web, sectionName: all }]
  rules: [{}]
";
    let [another, zebra] = &others;
    let texts = [class, gateway, route, another, zebra]
        .into_iter()
        .enumerate();
    let files = texts.map(|(at, text)| SourceFile::new(format!("{at}"), text));
    let taken = snapshot::take(files);
    let table = compile_on(&taken.snapshot, &[], 1).expect("it compiles");
    let bind = |port: u16| table.bind(([203, 0, 113, 1], port).into());
    let http = bind(80).expect("a listener works");
    // Who has a host, and whether there are rules for it.
    for (host, listener, routed) in [
        ("shop.example.com", "all", true),
        ("admin.example.com", "admin", false),
        // Two that are alike are no listener at all.
        ("twice.example.com", "all", true),
    ] {
        let found = http.listener(host).expect("a listener");
        assert_eq!(&*found.name, format!("default/web/{listener}"), "{host}");
        assert_eq!(found.rules(host).is_some(), routed, "{host}");
    }
    // Nothing listens where nothing works.
    assert!(bind(81).is_none());
}
