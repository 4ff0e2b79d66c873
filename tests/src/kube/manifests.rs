//! Objects that tests make, and what their status says.

use serde_json::{Value, json};

/// API version of the Gateway API.
const GATEWAY_API: &str = "gateway.networking.k8s.io/v1";

/// A `Gateway` of the class `cardinal` in `default`. Routes of all namespaces attach to it.
#[must_use]
pub fn gateway(name: &str, listeners: &[Value]) -> Value {
    json!({
        "apiVersion": GATEWAY_API,
        "kind": "Gateway",
        "metadata": { "name": name, "namespace": "default" },
        "spec": { "gatewayClassName": "cardinal", "listeners": listeners },
    })
}

/// A listener of plain HTTP.
#[must_use]
pub fn http(name: &str, port: u16) -> Value {
    json!({ "name": name, "port": port, "protocol": "HTTP" })
}

/// A listener of HTTPS for one host, with the certificate of a `Secret`.
#[must_use]
pub fn https(name: &str, host: &str, secret: &str) -> Value {
    json!({
        "name": name,
        "port": 443,
        "protocol": "HTTPS",
        "hostname": host,
        "tls": { "certificateRefs": [{ "name": secret }] },
    })
}

/// A `Service` of the pods with a label `app`; each port is that of its pods too.
#[must_use]
pub fn service(name: &str, app: &str, ports: &[u16]) -> Value {
    let ports = ports.iter();
    let ports = ports.map(|port| json!({ "name": format!("p{port}"), "port": port }));
    json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": { "name": name, "namespace": "default" },
        "spec": { "selector": { "app": app }, "ports": ports.collect::<Vec<_>>() },
    })
}

/// An `HTTPRoute` of a gateway: a host's requests below a path go to a port of a `Service`.
#[must_use]
pub fn route(name: &str, gateway: &str, host: &str, path: &str, to: (&str, u16)) -> Value {
    json!({
        "apiVersion": GATEWAY_API,
        "kind": "HTTPRoute",
        "metadata": { "name": name, "namespace": "default" },
        "spec": {
            "parentRefs": [{ "name": gateway }],
            "hostnames": [host],
            "rules": [{
                "matches": [{ "path": { "type": "PathPrefix", "value": path } }],
                "backendRefs": [{ "name": to.0, "port": to.1 }],
            }],
        },
    })
}

/// Many objects as one manifest: texts of JSON one after the other.
#[must_use]
pub fn together<'a>(objects: impl IntoIterator<Item = &'a Value>) -> String {
    let objects = objects.into_iter().map(ToString::to_string);
    objects.collect::<Vec<_>>().join("\n")
}

/// Whether all of these conditions hold and are about the object as it is. `of` is what has them: a status, or a part of one.
#[must_use]
pub fn holds(object: &Value, of: &Value, kinds: &[&str]) -> bool {
    let conditions = of["conditions"].as_array();
    let holds = |kind: &&str| {
        let mut conditions = conditions.into_iter().flatten();
        conditions.any(|one| {
            one["type"] == **kind
                && one["status"] == "True"
                && one["observedGeneration"] == object["metadata"]["generation"]
        })
    };
    kinds.iter().all(holds)
}

/// Whether a gateway is there and has an address.
#[must_use]
pub fn programmed(gateway: &Value) -> bool {
    let status = &gateway["status"];
    holds(gateway, status, &["Accepted", "Programmed"]) && status["addresses"][0].is_object()
}

/// Whether a route is taken by its parent, the only one.
#[must_use]
pub fn attached(route: &Value) -> bool {
    let parents = &route["status"]["parents"];
    holds(route, &parents[0], &["Accepted", "ResolvedRefs"])
}

/// A definition that takes everything: group, version, plural, kind, and whether objects are in namespaces.
#[must_use]
pub fn definition(
    (group, version, plural, kind, namespaced): (&str, &str, &str, &str, bool),
) -> Value {
    let any = json!({ "type": "object", "x-kubernetes-preserve-unknown-fields": true });
    json!({
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": { "name": format!("{plural}.{group}") },
        "spec": {
            "group": group,
            "names": { "plural": plural, "kind": kind },
            "scope": if namespaced { "Namespaced" } else { "Cluster" },
            "versions": [{
                "name": version,
                "served": true,
                "storage": true,
                "schema": { "openAPIV3Schema": any },
                "subresources": { "status": {} },
            }],
        },
    })
}
