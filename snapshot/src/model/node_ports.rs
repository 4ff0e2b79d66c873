//! Gateways at the addresses of nodes.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use super::{Gateway, Listener, ObjectName, Port, Transport};

/// Ports of every node's own addresses at which a gateway listens.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum NodePorts {
    /// None: it has addresses of its own only.
    #[default]
    None,
    /// Those of its listeners.
    Same,
    /// For ports of its listeners others, to which a load balancer brings what is for them.
    Mapped(BTreeMap<(Transport, Port), Port>),
}

/// Where load balancers ask a node whether it takes what they bring for a gateway (Kubernetes, `Service` with
/// `externalTrafficPolicy: Local`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeCheck {
    /// The gateway's service.
    pub service: ObjectName,
    /// The port of every node (`healthCheckNodePort`).
    pub port: Port,
}

impl NodePorts {
    /// The port for a listener's.
    pub fn of(&self, transport: Transport, port: Port) -> Option<Port> {
        match self {
            Self::None => None,
            Self::Same => Some(port),
            Self::Mapped(ports) => ports.get(&(transport, port)).copied(),
        }
    }
}

impl Gateway {
    /// Where a listener is on a node that has these addresses: at the gateway's own, then at the node's.
    pub fn sockets(&self, listener: &Listener, node: &[IpAddr]) -> Vec<SocketAddr> {
        self.sockets_of(listener, listener.protocol.transport(), node)
    }

    /// The same for one of the transports that it has.
    pub fn sockets_of(
        &self,
        listener: &Listener,
        transport: Transport,
        node: &[IpAddr],
    ) -> Vec<SocketAddr> {
        self.sockets_at(listener.port, transport, node)
    }

    /// The same for a port that listeners of it have or would have.
    pub fn sockets_at(&self, port: Port, transport: Transport, node: &[IpAddr]) -> Vec<SocketAddr> {
        let own = self.addresses.iter().map(|address| (*address, port));
        let port = self.node_ports.of(transport, port).into_iter();
        let node = port.flat_map(|port| node.iter().map(move |address| (*address, port)));
        let sockets = own.chain(node);
        sockets
            .map(|(address, port)| SocketAddr::new(address, port.get()))
            .collect()
    }
}
