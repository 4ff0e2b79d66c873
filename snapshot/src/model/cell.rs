//! A cell: the runtime of one project in one environment.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use super::{
    CellId, Cidr, ClaimRequirement, ComponentId, Declared, DocumentPath, EndpointId, Hostname,
    Name, Port, Transport,
};
use crate::shared::Shared;

/// A cell and everything it declares.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cell {
    /// Its identity.
    pub id: CellId,
    /// Its document.
    pub declared: Declared,
    /// What its components may do among themselves.
    pub intra: Intra,
    /// Document and field of `intra`, also where the default holds.
    pub intra_declared: Declared,
    /// Its components by name.
    pub components: BTreeMap<Name, Shared<Component>>,
    /// What it lets in and out beside that.
    pub borders: Borders,
    /// Calls to endpoints of other cells.
    pub east: Vec<East>,
    /// Calls to services outside the platform.
    pub south: Vec<South>,
}

/// The two directions of a cell's border. Those of a cell whose document names its components are `Declared`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Borders {
    /// From outside to its components.
    pub ingress: Border,
    /// From its components to outside.
    pub egress: Border,
}

/// What passes a border.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Border {
    /// Only what documents declare.
    #[default]
    Declared,
    /// Everything: nothing was declared about this direction, and its components are known by labels alone.
    Open,
}

/// What components of one cell may do among themselves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Intra {
    /// Everything.
    Open,
    /// Only declared connections.
    Declared,
}

/// One component.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Component {
    /// Its identity.
    pub id: ComponentId,
    /// Its document and field.
    pub declared: Declared,
    /// What it is; only web applications differ in their routes.
    pub kind: ComponentKind,
    /// Which pods it runs in.
    pub workloads: Workloads,
    /// Service addresses: a connection to one of these addresses and an endpoint's port goes to one of
    /// the component's workloads, at connect time.
    pub service_addresses: Vec<IpAddr>,
    /// How long a client of a service address keeps its workload after its last connection.
    pub session_affinity: Option<Duration>,
    /// Which workloads a service address prefers.
    pub traffic_distribution: TrafficDistribution,
    /// Its endpoints by name.
    pub endpoints: BTreeMap<Name, Endpoint>,
    /// Endpoints of the same cell that it calls; they matter when `intra` is `declared`.
    pub connections: Vec<Connection>,
}

impl Component {
    /// All addresses that lead to it: those of its workloads, and of its service.
    pub fn addresses(&self) -> impl Iterator<Item = &IpAddr> {
        let workloads = self.workloads.addresses().iter();
        workloads.chain(&self.service_addresses)
    }
}

/// A declared call to an endpoint of the same cell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Connection {
    /// Its document and field.
    pub declared: Declared,
    /// The endpoint called; it exists.
    pub to: EndpointId,
}

/// Which workloads a connection to a service address goes to. Those that are not preferred are taken when none is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TrafficDistribution {
    /// Any.
    #[default]
    Anywhere,
    /// Those on the client's node, else those in its zone.
    PreferSameNode,
    /// Those in the zone of the client's node.
    PreferSameZone,
}

/// Type of a component.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ComponentKind {
    /// A service; its routes have the prefix `/{project}/{component}`.
    Service,
    /// A web application; it has a host of its own.
    WebApplication,
    /// A task; it serves nothing.
    Task,
}

/// The pods of a component.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Workloads {
    /// By address, for nodes without Kubernetes.
    Addresses(Vec<IpAddr>),
    /// By labels of pods in a namespace.
    Selector {
        /// Namespace of the pods: the document's own.
        namespace: String,
        /// All of these labels.
        match_labels: BTreeMap<String, String>,
        /// Addresses of the pods that have them, in ascending order; none without a source that knows pods.
        addresses: Vec<IpAddr>,
    },
}

impl Workloads {
    /// The addresses that are known.
    pub fn addresses(&self) -> &[IpAddr] {
        match self {
            Self::Addresses(addresses) | Self::Selector { addresses, .. } => addresses,
        }
    }
}

/// A port of a component, and who may reach it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// Its identity.
    pub id: EndpointId,
    /// Its document and field.
    pub declared: Declared,
    /// What is spoken on the port.
    pub kind: EndpointKind,
    /// The container's port.
    pub port: Port,
    /// Where its operations start.
    pub base_path: DocumentPath,
    /// Reachable through the north gate.
    pub public: Option<Exposure>,
    /// Reachable through the west gate and, for layer 4, by callers that declare `east`.
    pub organization: Option<Exposure>,
}

/// What is spoken on an endpoint's port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EndpointKind {
    /// HTTP.
    Http,
    /// GraphQL over HTTP.
    GraphQl,
    /// WebSocket over HTTP.
    WebSocket,
    /// gRPC over HTTP/2.
    Grpc,
    /// Plain TCP.
    Tcp,
    /// Plain UDP.
    Udp,
}

impl EndpointKind {
    /// Whether the router speaks it; the others are layer 4.
    pub fn is_http(self) -> bool {
        !matches!(self, Self::Tcp | Self::Udp)
    }

    /// The transport of the port.
    pub fn transport(self) -> Transport {
        if self == Self::Udp {
            Transport::Udp
        } else {
            Transport::Tcp
        }
    }
}

/// One visibility of an endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exposure {
    /// Document and field of the visibility; the endpoint's if it is exposed without a word.
    pub declared: Declared,
    /// Name of the platform's token provider; every request needs a token of it, or, in a cell with `compat`,
    /// requests of its operations do.
    pub jwt: Option<Name>,
    /// Operations; when there are any, everything else under the base path is refused, unless the cell
    /// has `compat`.
    pub operations: Vec<Operation>,
}

/// One operation: a method, a path and the scopes it needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Operation {
    /// Its document and field.
    pub declared: Declared,
    /// Method, upper case.
    pub method: String,
    /// Path template under the base path, such as `/books/{id}`.
    pub path: String,
    /// All of these are needed; none means any valid token.
    pub scopes: Vec<String>,
    /// All of these are needed as well.
    pub claims: Vec<ClaimRequirement>,
}

/// A declared call to an endpoint of another cell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct East {
    /// Its document and field.
    pub declared: Declared,
    /// Calling components: all of the cell if the document names none.
    pub from: Vec<Name>,
    /// The endpoint called; it exists and has visibility `organization`.
    pub to: EndpointId,
}

/// A declared call to a service outside the platform.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct South {
    /// Its document and field.
    pub declared: Declared,
    /// Its name, for logs and counters.
    pub name: Name,
    /// Calling components: all of the cell if the document names none.
    pub from: Vec<Name>,
    /// Where to.
    pub destination: SouthDestination,
    /// Port there.
    pub port: Port,
}

/// Destination of a south call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SouthDestination {
    /// By name: steered through the router, which checks the name.
    Hosts {
        /// The names, exact.
        hosts: Vec<Hostname>,
        /// How the name is read from the bytes.
        protocol: SouthProtocol,
    },
    /// By address: judged in the kernel.
    Networks {
        /// The networks.
        cidrs: Vec<Cidr>,
        /// Transport.
        transport: Transport,
    },
}

/// How the router reads the name of a governed south connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SouthProtocol {
    /// From the SNI of the TLS `ClientHello` (RFC 6066, section 3); bytes pass unopened.
    Tls,
    /// From the authority of plain HTTP requests.
    Http,
}
