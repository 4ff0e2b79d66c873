//! The documents of the agent's side: one gateway with and without TLS, routes to a routing table, and a route that
//! asks for a token.

use std::{fs, path::Path};

use anyhow::Result;
use serde_json::{Value, json};

use super::{
    HOST,
    side::{Ports, Stage},
};

/// Who signs tokens, and for whom.
pub(crate) const ISSUER: &str = "https://idp.example.test";
pub(crate) const AUDIENCE: &str = "bench";
/// Keys, or routes, of one document or file: a file is at most 4 MiB.
const BATCH: usize = 2000;

/// How many there are of what may be many.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Size {
    pub(crate) routes: usize,
    pub(crate) keys: usize,
}

/// Path of a route.
pub(crate) fn path(route: usize) -> String {
    format!("/route-{route:05}")
}

/// Writes the folder.
pub(crate) fn write(dir: &Path, stage: &Stage, ports: &Ports, size: Size) -> Result<()> {
    fs::create_dir_all(dir)?;
    let file = |name: &str, document: &Value| -> Result<()> {
        let file = dir.join(format!("{name}.json"));
        Ok(fs::write(file, serde_json::to_vec(document)?)?)
    };
    file("secret", &stage.secrets.secret("host", "default", &[HOST])?)?;
    file(
        "gateway",
        &json!({
            "apiVersion": "gateway.networking.k8s.io/v1",
            "kind": "Gateway",
            "metadata": {"name": "edge"},
            "spec": {
                "gatewayClassName": "cardinal",
                "addresses": [{"type": "IPAddress", "value": ports.plain.ip().to_string()}],
                "listeners": [
                    {"name": "http", "port": ports.plain.port(), "protocol": "HTTP"},
                    {"name": "https", "port": ports.tls.port(), "protocol": "HTTPS",
                     "tls": {"mode": "Terminate", "certificateRefs": [{"name": "host"}]}},
                ],
            },
        }),
    )?;
    let url = format!("http://{}", stage.backend);
    let keys: serde_json::Map<_, _> = (0..size.keys)
        .map(|key| (format!("key-{key}"), json!("placed")))
        .collect();
    file(
        "table",
        &json!({
            "apiVersion": "cardinal.dev/v1alpha1",
            "kind": "RoutingTable",
            "metadata": {"name": "keys"},
            "spec": {
                "version": "1",
                "routingTable": keys,
                "placements": {"placed": {"url": url}, "rest": {"url": url}},
                "defaultPlacement": "rest",
            },
        }),
    )?;
    let routes: Vec<_> = (0..size.routes)
        .map(|at| route(&format!("route-{at:05}"), &path(at)))
        .collect();
    for (number, batch) in routes.chunks(BATCH).enumerate() {
        let lines: Vec<_> = batch.iter().map(ToString::to_string).collect();
        // JSON is YAML, of which a file may hold many documents.
        let name = dir.join(format!("routes-{number}.yaml"));
        fs::write(name, lines.join("\n---\n"))?;
    }
    file("token", &route("token", "/token"))?;
    file(
        "policy",
        &json!({
            "apiVersion": "gateway.envoyproxy.io/v1alpha1",
            "kind": "SecurityPolicy",
            "metadata": {"name": "token"},
            "spec": {
                "targetRefs": [{"group": "gateway.networking.k8s.io", "kind": "HTTPRoute", "name": "token"}],
                "jwt": {"providers": [{
                    "name": "bench", "issuer": ISSUER, "audiences": [AUDIENCE],
                    "localJWKS": {"type": "Inline", "inline": stage.secrets.jwks()},
                }]},
            },
        }),
    )
}

fn route(name: &str, path: &str) -> Value {
    json!({
        "apiVersion": "gateway.networking.k8s.io/v1",
        "kind": "HTTPRoute",
        "metadata": {"name": name},
        "spec": {
            "parentRefs": [{"name": "edge"}],
            "hostnames": [HOST],
            "rules": [{
                "matches": [{"path": {"type": "PathPrefix", "value": path}}],
                "backendRefs": [{"group": "cardinal.dev", "kind": "RoutingTable", "name": "keys"}],
            }],
        },
    })
}
