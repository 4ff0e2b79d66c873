use std::net::IpAddr;

use snapshot::{SourceFile, parse};

use super::Compiler;
use crate::route::TargetKind;

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

/// Endpoints that requests get on the node with this address.
fn endpoints(documents: &str, node: &str) -> Vec<String> {
    let file = SourceFile {
        path: "documents.yaml".to_owned(),
        bytes: documents.as_bytes().to_vec(),
    };
    let snapshot = parse(&[file]).expect("good documents");
    let node: IpAddr = node.parse().expect("an address");
    let node = [node];
    let mut compiler = Compiler::new(&snapshot, &node);
    let rules = compiler.rules();
    let TargetKind::Upstreams(upstreams) = &rules[0][0].targets[0].kind else {
        panic!("the route leads to a service");
    };
    let upstreams = upstreams.iter().map(|one| one.upstream.to_string());
    upstreams.collect()
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
}
