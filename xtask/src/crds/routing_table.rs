//! What a `RoutingTable` looks like; `snapshot/src/document/routing_table.rs` reads it. The spelling of placements is that of the
//! reference router's own file.

#![expect(dead_code, reason = "types of which only the schema is used")]

use std::collections::BTreeMap;

use schemars::JsonSchema;

use super::schema_types::{Duration, Name, Network, ObjectName, Text, Url};

#[derive(JsonSchema)]
#[schemars(
    rename_all = "camelCase",
    extend("x-kubernetes-validations" = [{
        "rule": "!(has(self.cellEndpoints) && has(self.placements))",
        "message": "expected either `cellEndpoints` or `placements`",
    }])
)]
pub(super) struct RoutingTable {
    /// The author's word for this state of the table; `kubectl get` shows it.
    version: Text<1024>,
    /// Where a request's routing key is; in the header `x-routing-key` without it.
    key: Option<Key>,
    /// Placements that are shared by many keys; `tier1`, `tier2` and `tier3` without it.
    tiers: Option<Vec<Text<1024>>>,
    /// The placement of each routing key.
    routing_table: Option<BTreeMap<String, String>>,
    /// The placements by name, each with the URL of its one endpoint.
    cell_endpoints: Option<BTreeMap<String, Url>>,
    /// The placements by name.
    placements: Option<BTreeMap<String, Placement>>,
    /// The placement of keys that are not in the table.
    default_placement: String,
}

/// Exactly one source; `trust` alone stands for the header `x-routing-key`.
#[derive(JsonSchema)]
#[schemars(
    rename_all = "camelCase",
    extend("x-kubernetes-validations" = [
        {
            "rule": "[has(self.header), has(self.claim), has(self.clientCertificate), has(self.sni), has(self.host), \
                     has(self.path), has(self.query), has(self.cookie)].filter(given, given).size() <= 1",
            "message": "expected exactly one source of the key",
        },
        {
            "rule": "has(self.trust) || has(self.header) || has(self.claim) || has(self.clientCertificate) || has(self.sni) || \
                     has(self.host) || has(self.path) || has(self.query) || has(self.cookie)",
            "message": "expected exactly one source of the key",
        },
        {
            "rule": "!(has(self.trust) && has(self.claim))",
            "message": "a claim is set by who issues the token; there is nobody else to trust",
        },
    ])
)]
struct Key {
    /// A header.
    header: Option<Text<256>>,
    /// A claim of the verified token.
    claim: Option<Text<1024>>,
    /// A name in the client's certificate.
    client_certificate: Option<CertificateName>,
    /// The server name of the TLS handshake; `true`.
    #[schemars(extend("enum" = [true]))]
    sni: Option<bool>,
    /// The request's host; `true`.
    #[schemars(extend("enum" = [true]))]
    host: Option<bool>,
    /// A segment of the path, counted from 1.
    #[schemars(range(min = 1, max = 32))]
    path: Option<u8>,
    /// A parameter of the query.
    query: Option<Text<1024>>,
    /// A cookie.
    cookie: Option<Text<256>>,
    /// Who may set the key; everybody without it.
    #[schemars(length(min = 1, max = 64))]
    trust: Option<Vec<Trust>>,
}

#[derive(JsonSchema)]
enum CertificateName {
    #[schemars(rename = "commonName")]
    Common,
    #[schemars(rename = "dns")]
    Dns,
    #[schemars(rename = "uri")]
    Uri,
}

#[derive(JsonSchema)]
struct Trust {
    /// A gateway of the table's namespace.
    gateway: ObjectName,
    /// One of its listeners; all without it.
    listener: Option<Name>,
    /// Networks of clients; all without it.
    #[schemars(length(min = 1))]
    sources: Option<Vec<Network>>,
}

/// Either `url` or `endpoints`.
#[derive(JsonSchema)]
#[schemars(extend("x-kubernetes-validations" = [{
    "rule": "has(self.url) != has(self.endpoints)",
    "message": "expected either `url` or `endpoints`",
}]))]
struct Placement {
    /// The one endpoint.
    url: Option<Url>,
    /// The endpoints, between which requests are spread.
    #[schemars(length(min = 1, max = 256))]
    endpoints: Option<Vec<Url>>,
    /// Endpoints that one key is served by; all without it.
    #[schemars(range(min = 1, max = 256))]
    shard_size: Option<u16>,
    /// The placement that serves when this one cannot.
    fallback: Option<String>,
    /// How the endpoints are probed.
    health_check: Option<HealthCheck>,
    /// When requests are no longer sent.
    circuit_breaker: Option<CircuitBreaker>,
    /// Requests at a time; 0 is no limit, the default.
    #[schemars(range(min = 0, max = 4294967295_i64))]
    concurrency_limit: Option<i64>,
    /// Longest body of a request in bytes; 0 is no limit, the default.
    #[schemars(range(min = 0))]
    max_request_body_bytes: Option<i64>,
}

#[derive(JsonSchema)]
struct HealthCheck {
    /// Path that is asked for.
    #[schemars(length(min = 1, max = 2048), regex(pattern = "^/[!-~]*$"))]
    path: String,
    /// Time between two probes.
    interval: Duration,
    /// Time until a probe has failed.
    timeout: Duration,
}

#[derive(JsonSchema)]
struct CircuitBreaker {
    /// Failures in a row after which it opens.
    #[schemars(range(min = 1, max = 4294967295_i64))]
    failure_threshold: i64,
    /// Time until one request tries again.
    timeout: Duration,
}
