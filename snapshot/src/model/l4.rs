//! Routes below HTTP: what connections of TLS and TCP listeners, and datagrams of UDP listeners, lead to.

use std::fmt;

use super::{Declared, HostPattern, ObjectName, SectionName, Timestamp, Transport, Upstream};

/// A `TLSRoute`, `TCPRoute` or `UDPRoute`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct L4Route {
    /// Its name.
    pub name: ObjectName,
    /// Which of the three it is.
    pub kind: L4Kind,
    /// Its document.
    pub declared: Declared,
    /// Listeners that it serves; each exists, takes routes of this kind, and has no older route for the same
    /// connections.
    pub parents: Vec<L4Parent>,
    /// When its document was first made (`metadata.creationTimestamp`).
    pub created: Option<Timestamp>,
    /// Where to; weights that sum to zero refuse.
    pub backends: Vec<L4Backend>,
}

/// A listener that a route serves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct L4Parent {
    /// A gateway of the snapshot.
    pub gateway: ObjectName,
    /// One listener of it.
    pub listener: SectionName,
    /// Server names that lead to the route there, never empty; none in the list is everything that no other name takes.
    /// Listeners of TCP and UDP know no names.
    pub hosts: Vec<Option<HostPattern>>,
}

/// Kind of a route below HTTP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum L4Kind {
    /// By server name.
    Tls,
    /// By listener.
    Tcp,
    /// By listener.
    Udp,
}

impl L4Kind {
    /// What its listeners are asked by.
    pub fn transport(self) -> Transport {
        match self {
            Self::Tls | Self::Tcp => Transport::Tcp,
            Self::Udp => Transport::Udp,
        }
    }

    /// As a document names it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Tls => "TLSRoute",
            Self::Tcp => "TCPRoute",
            Self::Udp => "UDPRoute",
        }
    }
}

impl fmt::Display for L4Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A backend and its share.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct L4Backend {
    /// Share of the connections, or of the sessions of datagrams; 0 gets none.
    pub weight: u32,
    /// Addresses of the `Backend`, one or more; none of them is a Unix socket if the route is one of datagrams.
    pub upstreams: Vec<Upstream>,
}
