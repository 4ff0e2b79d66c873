//! What a `Platform` looks like; `snapshot/src/document/platform.rs` reads it.

#![expect(dead_code, reason = "types of which only the schema is used")]

use schemars::JsonSchema;

use super::schema_types::{
    Address, AddressOrNetwork, Duration, Host, Name, Network, ObjectName, Port, Text, Transport,
};

#[derive(JsonSchema)]
#[schemars(rename_all = "camelCase")]
pub(super) struct Platform {
    /// The environments whose cells have routes.
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    environments: Option<Vec<Environment>>,
    /// Hosts below which endpoints are exposed.
    virtual_hosts: Option<VirtualHosts>,
    /// The gateways that cells are exposed through.
    gateways: Option<Gateways>,
    /// Where cells come from beside documents.
    cells: Option<Cells>,
    /// Who issues tokens.
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    jwt_providers: Option<Vec<JwtProvider>>,
    /// The name servers that all cells may ask.
    dns: Option<Dns>,
    /// Nodes, where no cluster says which there are.
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    nodes: Option<Vec<Node>>,
    /// Pods that network policies restrict.
    network_policies: Option<PolicyScope>,
    /// What may reach ports of every component, such as monitoring.
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    services: Option<Vec<Service>>,
}

#[derive(JsonSchema)]
#[schemars(rename_all = "camelCase")]
enum PolicyScope {
    Cells,
    All,
}

#[derive(JsonSchema)]
#[schemars(rename_all = "camelCase")]
struct Cells {
    /// `OpenChoreo`: namespaces and pods with its labels are cells and components. Both borders of such a cell are open; a `Cell` of its
    /// namespace that has `egress` and no `components` closes the one.
    derived_from: Option<CellSource>,
}

#[derive(JsonSchema)]
enum CellSource {
    OpenChoreo,
}

#[derive(JsonSchema)]
#[schemars(rename_all = "camelCase")]
struct Environment {
    /// The environment that cells name.
    name: Name,
    /// First label of the hosts of its services.
    dns_prefix: Name,
}

#[derive(JsonSchema)]
#[schemars(rename_all = "camelCase")]
struct VirtualHosts {
    /// For endpoints that are visible to the internet.
    public: Option<Host>,
    /// For endpoints that are visible to the organization.
    organization: Option<Host>,
    /// For web applications.
    web_applications: Option<Host>,
}

#[derive(JsonSchema)]
#[schemars(rename_all = "camelCase")]
struct Gateways {
    /// Networks whose addresses lead to the nodes, for gateways that name no address.
    address_pools: Option<Vec<Network>>,
    /// Where gateways that name no address get theirs; out of the pools without it.
    addresses: Option<AddressSource>,
    /// The services of gateways; with `addresses: LoadBalancer` only.
    load_balancer: Option<LoadBalancer>,
    /// The same for gateways of single classes.
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    classes: Option<Vec<GatewayClass>>,
    /// The gateway of the internet (north).
    external: Option<Gate>,
    /// The gateway of the organization (west).
    internal: Option<Gate>,
    /// Who calls pods from the addresses of other nodes; programs without it, which reach no component.
    other_nodes: Option<OtherNodes>,
}

#[derive(JsonSchema)]
enum OtherNodes {
    Programs,
    Gateways,
}

#[derive(JsonSchema)]
enum AddressSource {
    Pools,
    Nodes,
    LoadBalancer,
}

#[derive(JsonSchema)]
#[schemars(rename_all = "camelCase")]
struct GatewayClass {
    /// The `GatewayClass`.
    name: ObjectName,
    /// Where its gateways that name no address get theirs; out of the pools without it.
    addresses: Option<AddressSource>,
    /// The services of its gateways; with `addresses: LoadBalancer` only.
    load_balancer: Option<LoadBalancer>,
}

#[derive(JsonSchema)]
#[schemars(rename_all = "camelCase")]
struct LoadBalancer {
    /// The `loadBalancerClass`; the cluster's usual one without it.
    class: Option<Text<253>>,
    /// Annotations.
    annotations: Option<std::collections::BTreeMap<String, String>>,
    /// Whether nodes bring connections to their own agents only, which leaves the client's address as it is; `Local` without it.
    external_traffic_policy: Option<TrafficPolicy>,
    /// The agents' namespace; `cardinal-system` without it.
    namespace: Option<Name>,
}

#[derive(JsonSchema)]
enum TrafficPolicy {
    Local,
    Cluster,
}

#[derive(JsonSchema)]
#[schemars(rename_all = "camelCase")]
struct Gate {
    /// The `Gateway` that routes attach to.
    gateway_ref: GatewayRef,
    /// Addresses from which other nodes' gateways send.
    remote_addresses: Option<Vec<Address>>,
}

#[derive(JsonSchema)]
struct GatewayRef {
    /// Its namespace; `default` without it.
    namespace: Option<Name>,
    /// Its name.
    name: ObjectName,
}

/// Exactly one of `remoteJWKS` and `localJWKS`.
#[derive(JsonSchema)]
#[schemars(extend("x-kubernetes-validations" = [{
    "rule": "has(self.remoteJWKS) != has(self.localJWKS)",
    "message": "expected exactly one of `remoteJWKS` and `localJWKS`",
}]))]
struct JwtProvider {
    /// What visibilities of endpoints call it.
    name: Name,
    /// The token's `iss`.
    issuer: Option<Text<2048>>,
    /// Values of the token's `aud`, one of which it has.
    audiences: Option<Vec<Text<2048>>>,
    /// Algorithms of signatures that are taken; those of the keys without it.
    #[schemars(length(min = 1))]
    algorithms: Option<Vec<Algorithm>>,
    /// Keys that are fetched.
    #[schemars(rename = "remoteJWKS")]
    remote_jwks: Option<RemoteJwks>,
    /// Keys that are here.
    #[schemars(rename = "localJWKS")]
    local_jwks: Option<LocalJwks>,
}

#[derive(JsonSchema)]
#[schemars(rename_all = "UPPERCASE")]
enum Algorithm {
    Rs256,
    Rs384,
    Rs512,
    Ps256,
    Ps384,
    Ps512,
    Es256,
    Es384,
    Es512,
    #[schemars(rename = "EdDSA")]
    EdDsa,
}

#[derive(JsonSchema)]
#[schemars(rename_all = "camelCase")]
struct RemoteJwks {
    /// Where the key set is.
    #[schemars(length(max = 2048), regex(pattern = "^https?://"))]
    uri: String,
    /// How long fetched keys serve; 5 minutes without it, and at least a second.
    cache_duration: Option<Duration>,
    /// How long they serve when they cannot be fetched again; a day without it.
    max_stale: Option<Duration>,
    /// Authorities of the server's certificate in PEM; without it those of the agent's own file system, which are its image's.
    #[schemars(length(min = 1))]
    ca_certificates: Option<String>,
}

#[derive(JsonSchema)]
struct LocalJwks {
    /// `Inline`, the only one.
    r#type: Option<LocalType>,
    /// A JSON Web Key Set (RFC 7517).
    #[schemars(length(min = 1))]
    inline: String,
}

#[derive(JsonSchema)]
enum LocalType {
    Inline,
}

#[derive(JsonSchema)]
#[schemars(rename_all = "camelCase")]
struct Dns {
    /// The name servers themselves.
    #[schemars(length(min = 1))]
    addresses: Vec<Address>,
    /// Addresses of services before them.
    service_addresses: Option<Vec<Address>>,
}

#[derive(JsonSchema)]
struct Node {
    /// Its name.
    name: Name,
    /// Its own addresses.
    #[schemars(length(min = 1))]
    addresses: Vec<Address>,
    /// The zone that it is in.
    zone: Option<Text<253>>,
    /// Networks of its pods.
    #[schemars(rename = "podCIDRs")]
    pod_cidrs: Option<Vec<Network>>,
}

#[derive(JsonSchema)]
struct Service {
    /// Its name.
    name: Name,
    /// Where it calls from.
    #[schemars(length(min = 1))]
    addresses: Vec<AddressOrNetwork>,
    /// Ports of components that it may reach.
    #[schemars(length(min = 1))]
    ports: Vec<ServicePort>,
}

#[derive(JsonSchema)]
struct ServicePort {
    /// The port.
    port: Port,
    /// `TCP` without it.
    protocol: Option<Transport>,
}
