//! What is not a cell.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use super::{Cidr, Declared, Hostname, JwtProvider, Name, ObjectName, Port, Transport};

/// Addresses of the metadata services of clouds, which give a node's credentials to whoever reaches them: never a pod's, a
/// gateway's or a backend's, and part of no network that a cell declares. Azure's is a name server as well.
pub const METADATA: [IpAddr; 5] = [
    // Most clouds; the name server of Google's too.
    IpAddr::V4(Ipv4Addr::new(169, 254, 169, 254)),
    // Amazon, by IPv6.
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254)),
    // Google, by IPv6.
    IpAddr::V6(Ipv6Addr::new(0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254)),
    // Alibaba.
    IpAddr::V4(Ipv4Addr::new(100, 100, 100, 200)),
    // Azure.
    IpAddr::V4(Ipv4Addr::new(168, 63, 129, 16)),
];

/// The platform around the cells.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Platform {
    /// First label of gateways' hosts, by environment.
    pub dns_prefixes: BTreeMap<Name, Name>,
    /// Host suffixes of generated routes.
    pub virtual_hosts: VirtualHosts,
    /// The north gate.
    pub external: Option<GateRef>,
    /// The west gate.
    pub internal: Option<GateRef>,
    /// Token providers by name.
    pub jwt_providers: BTreeMap<Name, Arc<JwtProvider>>,
    /// Addresses of the name servers that every component may ask.
    pub dns: Vec<IpAddr>,
    /// Document and field of `dns`; none if there are none.
    pub dns_declared: Option<Declared>,
    /// Service addresses of the name servers: connections to port 53 there go to one of `dns`.
    pub dns_service_addresses: Vec<IpAddr>,
    /// Nodes; this one may be among them.
    pub nodes: Vec<Node>,
    /// Who calls pods from the addresses of other nodes.
    pub other_nodes: OtherNodes,
    /// Services of the platform that may reach components, such as monitoring.
    pub services: Vec<PlatformService>,
}

/// Who calls pods of this node from the addresses of other nodes. Gateways do so, and nothing in a packet tells them from other programs
/// there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OtherNodes {
    /// Programs, which reach no component.
    #[default]
    Programs,
    /// Gateways, which reach what those of this node do.
    Gateways,
}

/// Host suffixes of generated routes; a component that needs one that is missing is a mistake.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct VirtualHosts {
    /// For visibility `public`.
    pub public: Option<Hostname>,
    /// For visibility `organization`.
    pub organization: Option<Hostname>,
    /// For web applications.
    pub web_applications: Option<Hostname>,
}

/// A gate: the gateway that plays it, and the same gate on other nodes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GateRef {
    /// A gateway of the snapshot.
    pub gateway: ObjectName,
    /// Addresses of this gate on other nodes.
    pub remote_addresses: Vec<IpAddr>,
}

/// A node of the platform.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// Its name.
    pub name: String,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// The zone that it stands in.
    pub zone: Option<String>,
    /// Networks of its pods; no two nodes share an address.
    pub pod_networks: Vec<Cidr>,
}

/// A service of the platform that may reach components.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlatformService {
    /// Its document and field.
    pub declared: Declared,
    /// Its name.
    pub name: Name,
    /// Where it calls from.
    pub addresses: Vec<Cidr>,
    /// Ports of every component that it may reach.
    pub ports: Vec<PlatformPort>,
}

/// A port that a platform service may reach.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PlatformPort {
    /// The port.
    pub port: Port,
    /// Its transport.
    pub transport: Transport,
}
