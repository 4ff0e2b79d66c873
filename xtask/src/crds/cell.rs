//! What a `Cell` looks like; `snapshot/src/document/cell.rs` reads it.

#![expect(dead_code, reason = "types of which only the schema is used")]

use std::collections::BTreeMap;

use schemars::JsonSchema;

use super::schema_types::{
    Address, Host, Labels, Name, Network, Port, Protocol, ServiceTraffic, Text,
};

/// `components`, `egress` or both.
#[derive(JsonSchema)]
#[schemars(rename_all = "camelCase", extend("x-kubernetes-validations" = [
    {
        "rule": "has(self.components) || has(self.egress)",
        "message": "expected `components`, `egress` or both",
    },
    {
        "rule": "has(self.components) || !has(self.intra) || self.intra == 'open'",
        "message": "`intra: declared` is about `connections` of components; expected `components` beside it",
    },
    {
        "rule": "has(self.components) || !has(self.compat) || !self.compat",
        "message": "`compat` is about endpoints; expected `components` beside it",
    },
]))]
pub(super) struct Cell {
    /// The organization; cells of one organization may call each other.
    organization: Name,
    /// The project.
    project: Name,
    /// The environment.
    environment: Name,
    /// What components of the cell may call in it: `open` (the default) is everything, `declared` only what `connections` say.
    intra: Option<Intra>,
    /// Expose endpoints as OpenChoreo would, open doors included: for a migration. What this opens is told in warnings.
    compat: Option<bool>,
    /// The components, one or more. Without it they are those that OpenChoreo's labels of the namespace's pods name.
    #[schemars(length(min = 1), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    components: Option<Vec<Component>>,
    /// What components may call outside of the cell.
    egress: Option<Egress>,
}

#[derive(JsonSchema)]
#[schemars(rename_all = "lowercase")]
enum Intra {
    Open,
    Declared,
}

/// A part of the project: pods or addresses, and what they serve.
#[derive(JsonSchema)]
#[schemars(rename_all = "camelCase")]
struct Component {
    /// Unique in the cell.
    name: Name,
    /// `Service` (the default), `WebApplication` or `Task`; a task has no endpoints.
    r#type: Option<ComponentType>,
    /// Which pods or addresses the component is.
    workloads: Workloads,
    /// Addresses at which Kubernetes or a load balancer offers the component as a whole.
    service_addresses: Option<Vec<Address>>,
    #[schemars(flatten)]
    traffic: ServiceTraffic,
    /// What the component serves.
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    endpoints: Option<Vec<Endpoint>>,
    /// Endpoints of other components of the cell that it calls; needed with `intra: declared`.
    connections: Option<Vec<Connection>>,
}

#[derive(JsonSchema)]
enum ComponentType {
    Service,
    WebApplication,
    Task,
}

/// Either `selector` or `addresses`.
#[derive(JsonSchema)]
#[schemars(extend("x-kubernetes-validations" = [{
    "rule": "has(self.selector) != has(self.addresses)",
    "message": "expected either `addresses` or `selector`",
}]))]
struct Workloads {
    /// Pods of the document's namespace with these labels.
    selector: Option<Selector>,
    /// Addresses that do not change.
    #[schemars(length(min = 1))]
    addresses: Option<Vec<Address>>,
}

#[derive(JsonSchema)]
#[schemars(rename_all = "camelCase")]
struct Selector {
    /// Labels that a pod has, all of them.
    match_labels: Labels,
}

#[derive(JsonSchema)]
struct Connection {
    /// A component of this cell.
    component: Name,
    /// One of its endpoints.
    endpoint: Name,
}

#[derive(JsonSchema)]
#[schemars(rename_all = "camelCase")]
struct Endpoint {
    /// Unique in the component.
    name: Name,
    /// What is spoken on the port.
    r#type: EndpointType,
    /// The port of the workloads.
    port: Port,
    /// Path below which an HTTP endpoint serves; routes lead there. `/` by default.
    base_path: Option<Text<2048>>,
    /// Who may reach the endpoint from outside of the cell. Without it an HTTP endpoint of a `WebApplication` is public, and with `compat` any
    /// HTTP endpoint; others nobody reaches.
    visibility: Option<Visibility>,
}

#[derive(JsonSchema)]
enum EndpointType {
    #[schemars(rename = "HTTP")]
    Http,
    #[schemars(rename = "GraphQL")]
    GraphQl,
    WebSocket,
    #[schemars(rename = "gRPC")]
    Grpc,
    #[schemars(rename = "TCP")]
    Tcp,
    #[schemars(rename = "UDP")]
    Udp,
}

#[derive(JsonSchema)]
struct Visibility {
    /// The internet, through the external gateway.
    public: Option<Section>,
    /// The organization and its other cells, through the internal gateway.
    organization: Option<Section>,
    /// The cell itself; says what is true anyway: it sees the endpoint as `intra` has it.
    project: Option<Project>,
}

#[derive(JsonSchema)]
struct Project {}

#[derive(JsonSchema)]
struct Section {
    /// `false` switches this visibility off. `true` by default.
    enabled: Option<bool>,
    /// Requests need a token.
    jwt: Option<Jwt>,
    /// What may be asked for, and with which scopes; needs `jwt`. What no operation matches is denied.
    #[schemars(length(min = 1, max = 1000))]
    operations: Option<Vec<Operation>>,
}

#[derive(JsonSchema)]
struct Jwt {
    /// A token provider of the platform.
    provider: Name,
}

#[derive(JsonSchema)]
struct Operation {
    /// The request's method.
    method: Method,
    /// Path below the base path; `{name}` stands for one segment.
    path: Text<2048>,
    /// Scopes that the token has, all of them.
    scopes: Option<Vec<Text<1024>>>,
    /// Claims that the token has, each with one of these values.
    claims: Option<BTreeMap<String, Values>>,
}

#[derive(JsonSchema)]
struct Values(#[schemars(length(min = 1))] Vec<Text<1024>>);

#[derive(JsonSchema)]
#[schemars(rename_all = "UPPERCASE")]
enum Method {
    Get,
    Head,
    Post,
    Put,
    Patch,
    Delete,
    Options,
}

#[derive(JsonSchema)]
struct Egress {
    /// Endpoints of other cells of the organization.
    east: Option<Vec<East>>,
    /// Services outside of the platform.
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    south: Option<Vec<South>>,
}

#[derive(JsonSchema)]
struct East {
    /// Components that may call; all of the cell without it.
    #[schemars(length(min = 1))]
    from: Option<Vec<Name>>,
    /// The other cell's project.
    project: Name,
    /// The other cell's environment; this cell's without it.
    environment: Option<Name>,
    /// The component that is called.
    component: Name,
    /// Its endpoint.
    endpoint: Name,
}

/// Either `hosts` or `cidrs`.
#[derive(JsonSchema)]
#[schemars(extend("x-kubernetes-validations" = [
    {
        "rule": "has(self.hosts) != has(self.cidrs)",
        "message": "expected either `hosts` or `cidrs`",
    },
    {
        "rule": "self.protocol in (has(self.hosts) ? ['TLS', 'HTTPS', 'HTTP'] : ['TCP', 'UDP'])",
        "message": "hosts are called by `TLS`, `HTTPS` or `HTTP`, networks by `TCP` or `UDP`",
    },
]))]
struct South {
    /// Unique in the cell.
    name: Name,
    /// Components that may call; all of the cell without it.
    #[schemars(length(min = 1))]
    from: Option<Vec<Name>>,
    /// Whole host names; the router checks SNI or Host.
    #[schemars(length(min = 1))]
    hosts: Option<Vec<Host>>,
    /// Networks with their prefix length.
    #[schemars(length(min = 1))]
    cidrs: Option<Vec<Network>>,
    /// The port.
    port: Port,
    /// How it is called.
    protocol: Protocol,
}
