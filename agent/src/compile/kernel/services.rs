//! Service addresses and who answers there: addresses of components, of `Service`s, and of the name servers. What a component
//! or the platform says of a port goes before what a `Service` with the same address does.
//!
//! All backends of a service have the same weight; documents have no word for another one. Which of them are the near
//! ones is decided here, for this node: what a client's own node and zone have comes before what others have, if the
//! component asks for that, and the rest is left to connections of clients elsewhere.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use snapshot::Snapshot;
use snapshot::model::{Cidr, ObjectName, Platform, TrafficDistribution};

use super::claims::Claims;
use super::endpoints::Here;
use super::{DNS_PORT, TCP, UDP, component, protocol};
use crate::datapath::{Backend, Discovery, Service, ServiceAddress, Table};

/// What decides who answers at a service address.
pub(super) struct Services<'a> {
    pub(super) snapshot: &'a Snapshot,
    /// Components by their service addresses.
    pub(super) declared: &'a Claims,
    pub(super) topology: Topology<'a>,
    /// `Service`s by their addresses.
    pub(super) cluster: &'a Table<IpAddr, ObjectName>,
    pub(super) here: &'a Here,
}

impl Services<'_> {
    /// Puts the services of one address right. `known` tells whether it may have had any.
    pub(super) fn set(
        &self,
        services: &mut Table<ServiceAddress, Service>,
        address: IpAddr,
        known: bool,
    ) {
        let at = |port, protocol| ServiceAddress {
            address,
            port,
            protocol,
        };
        let wanted = self.at(address);
        if known {
            let gone: Vec<ServiceAddress> = services
                .range(at(0, 0)..=at(u16::MAX, u8::MAX))
                .filter(|(known, _)| wanted.iter().all(|(at, _)| at != *known))
                .map(|(known, _)| *known)
                .collect();
            for gone in gone {
                services.remove(&gone);
            }
        }
        for (at, service) in wanted {
            // Nodes that stay as they are stay in common with the tables before.
            if services.get(&at) != Some(&service) {
                services.insert(at, service);
            }
        }
    }

    /// The services of one address, which are few: as many as a component or a `Service` has ports.
    fn at(&self, address: IpAddr) -> Vec<(ServiceAddress, Service)> {
        let mut services = self.of_cluster(address);
        let mut add = |port: u16, protocol: u8, to: &[IpAddr], affinity: Option<Duration>| {
            let at = ServiceAddress {
                address,
                port,
                protocol,
            };
            let backends = to.iter().map(|address| Backend {
                address: *address,
                port,
                weight: 1,
            });
            let backends = backends.collect();
            // Of two for one port the later one has it.
            services.retain(|(known, _)| *known != at);
            services.push((at, Service { backends, affinity }));
        };
        let declared = self.declared.all(&address);
        for component in declared.filter_map(|id| component(self.snapshot, id)) {
            let mut to = self.topology.near(
                family(component.workloads.addresses(), &address),
                component.traffic_distribution,
            );
            to.sort_unstable();
            for endpoint in component.endpoints.values() {
                add(
                    endpoint.port.get(),
                    protocol(endpoint.kind.transport()),
                    &to,
                    component.session_affinity,
                );
            }
        }
        let platform = &self.snapshot.platform;
        if platform.dns_service_addresses.contains(&address) {
            let mut to: Vec<IpAddr> = family(&platform.dns, &address).collect();
            to.sort_unstable();
            for protocol in [UDP, TCP] {
                add(DNS_PORT, protocol, &to, None);
            }
        }
        services
    }

    /// What the `Service` of an address says of its ports.
    fn of_cluster(&self, address: IpAddr) -> Vec<(ServiceAddress, Service)> {
        let name = self.cluster.get(&address);
        let service = name.and_then(|name| self.snapshot.services.get(name));
        let Some(service) = service.filter(|service| service.led) else {
            return Vec::new();
        };
        let ports = service.ports.iter();
        let ports = ports.map(|port| {
            let at = ServiceAddress {
                address,
                port: port.port.get(),
                protocol: protocol(port.transport),
            };
            let endpoints = &port.endpoints;
            let chosen = self.here.choose(endpoints, &address, service.node_only);
            let backends = chosen.into_iter().map(|one| Backend {
                address: one.address,
                port: one.port.get(),
                weight: 1,
            });
            let service = Service {
                backends: backends.collect(),
                affinity: service.affinity,
            };
            (at, service)
        });
        ports.collect()
    }

    /// Service addresses of components that look at where their workloads are, if that includes one of `moved`; without `moved`
    /// of all of them.
    pub(super) fn near(
        &self,
        workloads: &Claims,
        moved: Option<&BTreeSet<IpAddr>>,
    ) -> BTreeSet<IpAddr> {
        let looks = |distribution| distribution != TrafficDistribution::Anywhere;
        let mut addresses = BTreeSet::new();
        match moved {
            Some(moved) => {
                let ids = moved.iter().flat_map(|address| workloads.all(address));
                for component in ids.filter_map(|id| component(self.snapshot, id)) {
                    if looks(component.traffic_distribution) {
                        addresses.extend(&component.service_addresses);
                    }
                }
            }
            None => {
                let cells = self.snapshot.cells.values();
                for component in cells.flat_map(|cell| cell.components.values()) {
                    if looks(component.traffic_distribution) {
                        addresses.extend(&component.service_addresses);
                    }
                }
            }
        }
        addresses
    }
}

/// Addresses of one family: that of a service.
fn family(all: &[IpAddr], service: &IpAddr) -> impl Iterator<Item = IpAddr> {
    let v4 = service.is_ipv4();
    all.iter()
        .copied()
        .filter(move |address| address.is_ipv4() == v4)
}

/// Networks of pods in this node's zone, by their first address; none where no zone is declared. No network is inside of
/// another.
pub(super) type Zone = Option<BTreeMap<IpAddr, Cidr>>;

/// The zone of this node.
pub(super) fn zone(platform: &Platform, discovery: &Discovery) -> Zone {
    let own = platform.nodes.iter().find(|node| {
        let mut addresses = node.addresses.iter();
        addresses.any(|address| discovery.node_addresses.contains(address))
    });
    own.and_then(|node| node.zone.as_ref()).map(|zone| {
        let here = platform
            .nodes
            .iter()
            .filter(|node| node.zone.as_ref() == Some(zone));
        here.flat_map(|node| &node.pod_networks)
            .map(|network| (network.address(), *network))
            .collect()
    })
}

/// Where addresses are, seen from this node.
pub(super) struct Topology<'a> {
    /// Addresses of components whose pods are here.
    pub(super) local: &'a BTreeMap<IpAddr, u32>,
    pub(super) zone: &'a Zone,
}

impl Topology<'_> {
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
        let Some(networks) = self.zone else {
            return false;
        };
        let network = networks.range(..=address).next_back();
        self.local.contains_key(address)
            || network.is_some_and(|(_, network)| network.contains(&Cidr::host(*address)))
    }
}
