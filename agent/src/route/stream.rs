//! Routes below HTTP, compiled: where connections go that nobody reads, and sessions of datagrams.

use std::sync::Arc;

use super::{HostIndex, RouteUpstream};

/// What a listener does with connections that are not HTTP, or with datagrams.
#[derive(Debug, Default)]
pub struct Streams {
    /// Whether TLS stays closed on the way.
    pub passthrough: bool,
    /// Routes by server name; a listener of TCP or UDP has at most one, for all names.
    pub routes: HostIndex<Arc<StreamRoute>>,
}

impl Streams {
    /// The route for a server name, if there is one; without a name, the route of all names.
    pub fn route(&self, name: Option<&str>) -> Option<&Arc<StreamRoute>> {
        match name {
            Some(name) => self.routes.find(name),
            None => self.routes.any.as_ref(),
        }
    }
}

/// A `TLSRoute`, `TCPRoute` or `UDPRoute`.
#[derive(Debug)]
pub struct StreamRoute {
    /// Its name, for logs.
    pub name: Arc<str>,
    /// Where to.
    pub targets: Vec<StreamTarget>,
    /// Sum of the targets' weights.
    pub weight: u64,
}

impl StreamRoute {
    /// The target for a number below [`StreamRoute::weight`].
    pub fn target(&self, mut at: u64) -> Option<&StreamTarget> {
        self.targets.iter().find(|target| {
            let inside = at < u64::from(target.weight);
            at = at.saturating_sub(u64::from(target.weight));
            inside
        })
    }
}

/// A backend and its share.
#[derive(Debug)]
pub struct StreamTarget {
    /// Number of the target, unique in its table; round robin is counted under it.
    pub id: u64,
    /// Share among the route's targets.
    pub weight: u32,
    /// Addresses, in turn; never empty.
    pub upstreams: Vec<RouteUpstream>,
}
