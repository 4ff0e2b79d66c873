//! `Service`s of Kubernetes, as connections to their addresses are led.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use super::{Declared, ObjectName, Port, Transport};

/// A service with addresses of its own (`spec.clusterIPs`). Headless ones and aliases have none, and are none here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// Its name.
    pub name: ObjectName,
    /// Its document and field.
    pub declared: Declared,
    /// Its addresses, at most one of each family; no other service has them.
    pub addresses: Vec<IpAddr>,
    /// How long a client keeps its endpoint after its last connection (`sessionAffinity: ClientIP`).
    pub affinity: Option<Duration>,
    /// Connections go to endpoints of the client's own node, or nowhere (`internalTrafficPolicy: Local`).
    pub node_only: bool,
    /// Connections to its addresses are led to its endpoints. Else another proxy does that, or there is no room for it.
    pub led: bool,
    /// Its ports; no two have one number and transport.
    pub ports: Vec<ServicePort>,
}

impl Service {
    /// How many ports at addresses all services have together, at most. What is more is left out ([`Snapshot::warnings`]). The
    /// kernel's maps have room for twice as many and some of cells: a generation is written beside the one before.
    ///
    /// [`Snapshot::warnings`]: super::Snapshot::warnings
    pub const ALL_PORTS: usize = 30_000;
    /// How many endpoints at these ports.
    pub const ALL_ENDPOINTS: usize = 120_000;
    /// How many endpoints at one port, of one family. Those of a port are side by side in the kernel's map, whose free room is in pieces.
    pub const PORT_ENDPOINTS: usize = 10_000;

    /// How many ports and endpoints at its addresses a node's tables hold for it.
    #[must_use]
    pub fn size(&self) -> (usize, usize) {
        let ports = self.addresses.len() * self.ports.len();
        let endpoints = self.ports.iter().flat_map(|port| &port.endpoints);
        let endpoints = endpoints.map(|one| {
            let same = |address: &&IpAddr| address.is_ipv4() == one.address.is_ipv4();
            self.addresses.iter().filter(same).count()
        });
        (ports, endpoints.sum())
    }
}

/// A port of a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServicePort {
    /// The number that clients name.
    pub port: Port,
    /// Its transport.
    pub transport: Transport,
    /// Endpoints that answer, in ascending order of their addresses.
    pub endpoints: Vec<ServiceEndpoint>,
}

impl ServicePort {
    /// How many endpoints it has of the family of which it has more.
    #[must_use]
    pub fn most(&self) -> usize {
        let v4 = self.endpoints.iter().filter(|one| one.address.is_ipv4());
        let v4 = v4.count();
        v4.max(self.endpoints.len() - v4)
    }
}

/// Who answers at a port of a service.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ServiceEndpoint {
    /// Its address.
    pub address: IpAddr,
    /// Its own port.
    pub port: Port,
    /// It ends and still answers: for when no other endpoint is ready.
    pub ending: bool,
    /// The node that it is on, if that is known.
    pub node: Option<Arc<str>>,
    /// Zones whose clients it is for (`hints.forZones`); empty: it does not say.
    pub zones: Vec<Arc<str>>,
    /// Nodes whose clients it is for (`hints.forNodes`); empty: it does not say.
    pub nodes: Vec<Arc<str>>,
}
