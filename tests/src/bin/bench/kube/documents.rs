//! Documents of a big cluster: one gateway, many routes to few services, and cells.

use serde_json::{Value, json};

/// Services that routes lead to.
pub(crate) const SERVICES: u32 = 50;

/// The namespace of everything.
pub(crate) const NAMESPACE: &str = "big";

/// The gateway of all routes.
pub(crate) fn gateway(class: &str, address: Option<&str>) -> Value {
    let mut spec = json!({
        "gatewayClassName": class,
        "listeners": [{ "name": "http", "port": 80, "protocol": "HTTP" }],
    });
    if let Some(address) = address {
        spec["addresses"] = json!([{ "type": "IPAddress", "value": address }]);
    }
    json!({
        "apiVersion": "gateway.networking.k8s.io/v1",
        "kind": "Gateway",
        "metadata": { "name": class, "namespace": NAMESPACE },
        "spec": spec,
    })
}

/// The name of a route, which is the first label of its host too.
pub(crate) fn route_name(number: u32) -> String {
    format!("r{number}")
}

/// The host of a route.
pub(crate) fn host(number: u32) -> String {
    format!("{}.big.example", route_name(number))
}

/// A route of its own host. `mark` is what its answers carry in `x-mark`, and the service that it leads to.
pub(crate) fn route(gateways: &[&str], number: u32, mark: u32) -> Value {
    let parents: Vec<Value> = gateways
        .iter()
        .map(|name| json!({ "name": name }))
        .collect();
    json!({
        "apiVersion": "gateway.networking.k8s.io/v1",
        "kind": "HTTPRoute",
        "metadata": { "name": route_name(number), "namespace": NAMESPACE },
        "spec": {
            "parentRefs": parents,
            "hostnames": [host(number)],
            "rules": [{
                "matches": [{ "path": { "type": "PathPrefix", "value": "/" } }],
                "filters": [{
                    "type": "ResponseHeaderModifier",
                    "responseHeaderModifier": { "set": [{ "name": "x-mark", "value": mark.to_string() }] },
                }],
                "backendRefs": [{ "name": service_name(mark % SERVICES), "port": 80 }],
            }],
        },
    })
}

/// The name of a service.
pub(crate) fn service_name(number: u32) -> String {
    format!("s{number}")
}

/// A service without selector, and the slice that says where it is.
pub(crate) fn service(number: u32, address: &str, port: u16) -> [Value; 2] {
    let name = service_name(number);
    [
        json!({
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": { "name": name, "namespace": NAMESPACE },
            "spec": { "ports": [{ "name": "http", "port": 80, "targetPort": port, "protocol": "TCP" }] },
        }),
        json!({
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {
                "name": format!("{name}-1"),
                "namespace": NAMESPACE,
                "labels": { "kubernetes.io/service-name": name },
            },
            "addressType": "IPv4",
            "ports": [{ "name": "http", "port": port, "protocol": "TCP" }],
            "endpoints": [{ "addresses": [address], "conditions": { "ready": true } }],
        }),
    ]
}
