//! Which endpoints of a service a client of this node is led to, or a request that the node's router has.
//!
//! As kube-proxy chooses (Kubernetes 1.36, `pkg/proxy/topology.go`), so that a service means the same with it and without:
//! ready endpoints before those that end, of the ready ones those that are hinted to this node or else to its zone, if every
//! one has such a hint. `trafficDistribution` is in the hints: who writes the slices has looked at it.

use std::net::IpAddr;

use snapshot::model::{Platform, Service, ServiceEndpoint};

/// Where this node is, as far as it is declared.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(in crate::compile) struct Here {
    node: Option<String>,
    zone: Option<String>,
}

impl Here {
    /// This node is the one that has one of these addresses.
    pub(in crate::compile) fn of(platform: &Platform, own_addresses: &[IpAddr]) -> Self {
        let own = platform.nodes.iter().find(|node| {
            let mut addresses = node.addresses.iter();
            addresses.any(|address| own_addresses.contains(address))
        });
        Self {
            node: own.map(|node| node.name.clone()),
            zone: own.and_then(|node| node.zone.clone()),
        }
    }

    /// Whether a service's endpoints are chosen by where this node is.
    pub(super) fn matters(service: &Service) -> bool {
        let mut endpoints = service.ports.iter().flat_map(|port| &port.endpoints);
        service.node_only || endpoints.any(|one| !one.zones.is_empty() || !one.nodes.is_empty())
    }

    /// The endpoints of one port for clients of a service address, in the order of `all`.
    pub(in crate::compile) fn choose<'a>(
        &self,
        all: &'a [ServiceEndpoint],
        address: &IpAddr,
        node_only: bool,
    ) -> Vec<&'a ServiceEndpoint> {
        let here = |one: &ServiceEndpoint| is(one.node.as_deref(), self.node.as_deref());
        let fits = |one: &&ServiceEndpoint| {
            one.address.is_ipv4() == address.is_ipv4() && (!node_only || here(one))
        };
        let (ready, ending): (Vec<_>, Vec<_>) =
            all.iter().filter(fits).partition(|one| !one.ending);
        if ready.is_empty() {
            return ending;
        }
        if node_only {
            return ready;
        }
        let hinted = |hints: fn(&ServiceEndpoint) -> &[std::sync::Arc<str>],
                      own: &Option<String>| {
            let own = own.as_deref()?;
            let all = ready.iter().all(|one| !hints(one).is_empty());
            let near = ready.iter().copied();
            let near = near.filter(|one| hints(one).iter().any(|name| **name == *own));
            let near: Vec<_> = near.collect();
            (all && !near.is_empty()).then_some(near)
        };
        hinted(|one| &one.nodes, &self.node)
            .or_else(|| hinted(|one| &one.zones, &self.zone))
            .unwrap_or(ready)
    }
}

/// Whether both are known and the same.
fn is(one: Option<&str>, other: Option<&str>) -> bool {
    one.is_some() && one == other
}

#[cfg(test)]
mod tests;
