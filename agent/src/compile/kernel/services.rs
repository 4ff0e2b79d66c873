//! Service addresses and who answers there.
//!
//! All backends of a service have the same weight; documents have no word for another one. Which of them are the near
//! ones is decided here, for this node: what a client's own node and zone have comes before what others have, if the
//! component asks for that, and the rest is left to connections of clients elsewhere.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use snapshot::model::{Cidr, Platform, Snapshot, TrafficDistribution};

use super::{DNS_PORT, TCP, UDP, protocol};
use crate::datapath::{Backend, Discovery, KernelTables, Service, ServiceAddress};

/// Adds the services of all cells and of the name servers. `local` has the addresses of components whose pods are here.
pub(super) fn add(
    tables: &mut KernelTables,
    snapshot: &Snapshot,
    discovery: &Discovery,
    local: &BTreeMap<IpAddr, u32>,
) {
    let map = Topology::of(&snapshot.platform, discovery, local);
    let mut add = |at: ServiceAddress, to: &[IpAddr], affinity| {
        let backends = to.iter().map(|address| Backend {
            address: *address,
            port: at.port,
            weight: 1,
        });
        let backends = backends.collect();
        tables.services.insert(at, Service { backends, affinity });
    };
    for component in snapshot
        .cells
        .values()
        .flat_map(|cell| cell.components.values())
    {
        for address in &component.service_addresses {
            let mut to = map.near(
                family(component.workloads.addresses(), address),
                component.traffic_distribution,
            );
            to.sort_unstable();
            for endpoint in component.endpoints.values() {
                let at = ServiceAddress {
                    address: *address,
                    port: endpoint.port.get(),
                    protocol: protocol(endpoint.kind.transport()),
                };
                add(at, &to, component.session_affinity);
            }
        }
    }
    for address in &snapshot.platform.dns_service_addresses {
        let mut to: Vec<IpAddr> = family(&snapshot.platform.dns, address).collect();
        to.sort_unstable();
        for protocol in [UDP, TCP] {
            let at = ServiceAddress {
                address: *address,
                port: DNS_PORT,
                protocol,
            };
            add(at, &to, None::<Duration>);
        }
    }
}

/// Addresses of one family: that of a service.
fn family(all: &[IpAddr], service: &IpAddr) -> impl Iterator<Item = IpAddr> {
    let v4 = service.is_ipv4();
    all.iter()
        .copied()
        .filter(move |address| address.is_ipv4() == v4)
}

/// Where addresses are, seen from this node.
struct Topology<'a> {
    local: &'a BTreeMap<IpAddr, u32>,
    /// Networks of pods in this node's zone, by their first address. None is inside of another.
    zone: Option<BTreeMap<IpAddr, Cidr>>,
}

impl<'a> Topology<'a> {
    fn of(platform: &Platform, discovery: &Discovery, local: &'a BTreeMap<IpAddr, u32>) -> Self {
        let own = platform.nodes.iter().find(|node| {
            let mut addresses = node.addresses.iter();
            addresses.any(|address| discovery.node_addresses.contains(address))
        });
        let zone = own.and_then(|node| node.zone.as_ref()).map(|zone| {
            let here = platform
                .nodes
                .iter()
                .filter(|node| node.zone.as_ref() == Some(zone));
            here.flat_map(|node| &node.pod_networks)
                .map(|network| (network.address(), *network))
                .collect()
        });
        Self { local, zone }
    }

    /// The nearest of these that there are, as far as it matters.
    fn near(
        &self,
        all: impl Iterator<Item = IpAddr>,
        distribution: TrafficDistribution,
    ) -> Vec<IpAddr> {
        let all: Vec<IpAddr> = all.collect();
        let pick = |fits: &dyn Fn(&IpAddr) -> bool| -> Vec<IpAddr> {
            all.iter()
                .copied()
                .filter(|address| fits(address))
                .collect()
        };
        let node = |address: &IpAddr| self.local.contains_key(address);
        let zone = |address: &IpAddr| self.in_zone(address);
        let candidates = match distribution {
            TrafficDistribution::Anywhere => return all,
            TrafficDistribution::PreferSameNode => vec![pick(&node), pick(&zone)],
            TrafficDistribution::PreferSameZone => vec![pick(&zone)],
        };
        let near = candidates.into_iter().find(|some| !some.is_empty());
        near.unwrap_or(all)
    }

    /// Whether an address is known to be in this node's zone. Where no zone is declared nothing is.
    fn in_zone(&self, address: &IpAddr) -> bool {
        let Some(networks) = &self.zone else {
            return false;
        };
        let network = networks.range(..=address).next_back();
        self.local.contains_key(address)
            || network.is_some_and(|(_, network)| network.contains(&Cidr::host(*address)))
    }
}
