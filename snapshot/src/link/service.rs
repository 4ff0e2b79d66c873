//! Services that have addresses, with the endpoints that their slices tell.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use crate::document::Table;
use crate::document::addresses::Placed;
use crate::document::endpoint_slice::{SliceDraft, State};
use crate::document::service::{ServiceDraft, ServicePort as PortDraft};
use crate::model::{ObjectName, Service, ServiceEndpoint, ServicePort, Transport};
use crate::reader::Sink;
use crate::report::Source;
use crate::shared::Shared;

/// Links them. An address is the first one's in the order of names; a port of a transport that is not known is nobody's. What
/// nodes have no room for is left out.
pub(super) fn services(
    drafts: &Table<ServiceDraft>,
    slices: &Table<SliceDraft>,
    sink: &Sink,
) -> BTreeMap<ObjectName, Shared<Service>> {
    let mut of: BTreeMap<&ObjectName, Vec<&SliceDraft>> = BTreeMap::new();
    for (_, slice) in slices.values() {
        if let Some(slice) = slice.as_deref()
            && let Some(service) = &slice.service
        {
            of.entry(service).or_default().push(slice);
        }
    }
    let mut taken: BTreeMap<IpAddr, &Source> = BTreeMap::new();
    let mut services = BTreeMap::new();
    for (name, (declared, draft)) in drafts {
        let Some(draft) = draft else { continue };
        let mut free = |placed: &&Placed| match taken.get(&placed.address) {
            None => {
                taken.insert(placed.address, declared);
                true
            }
            Some(first) => {
                sink.mistake(
                    placed.source.clone(),
                    format_args!("`{}` is the address of {first} already", placed.address),
                );
                false
            }
        };
        let addresses = draft.addresses.iter().filter(|placed| free(placed));
        let addresses: Vec<IpAddr> = addresses.map(|placed| placed.address).collect();
        if addresses.is_empty() {
            continue;
        }
        let slices = of.get(name).map_or(&[][..], Vec::as_slice);
        let mut known = BTreeSet::new();
        let ports = draft.ports.iter();
        let ports = ports.filter_map(|port| {
            let transport = port.transport?;
            known.insert((port.port, transport)).then(|| ServicePort {
                port: port.port,
                transport,
                endpoints: endpoints(port, transport, slices),
            })
        });
        let service = Service {
            name: name.clone(),
            declared: declared.clone(),
            addresses,
            affinity: draft.affinity,
            node_only: draft.node_only,
            led: !draft.led_by_another,
            ports: ports.collect(),
        };
        services.insert(name.clone(), service);
    }
    leave_out(&mut services, sink);
    let services = services.into_iter();
    services
        .map(|(name, service)| (name, service.into()))
        .collect()
}

/// Leads nothing to the largest services, until the others fit: one that is larger than all others must not keep them from being led.
fn leave_out(services: &mut BTreeMap<ObjectName, Service>, sink: &Sink) {
    let mut led: Vec<&mut Service> = services.values_mut().filter(|one| one.led).collect();
    for service in &mut led {
        let most = service.ports.iter().map(ServicePort::most).max();
        if let Some(most) = most.filter(|most| *most > Service::PORT_ENDPOINTS) {
            service.led = false;
            sink.warning(
                service.declared.clone(),
                format_args!(
                    "{most} endpoints at one of its ports are more than nodes have room for, which is {}; connections to its \
                     addresses are left alone",
                    Service::PORT_ENDPOINTS
                ),
            );
        }
    }
    led.retain(|one| one.led);
    let sizes = led.iter().map(|one| one.size());
    let (mut ports, mut endpoints) = sizes.fold((0, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1));
    let fits =
        |ports, endpoints| ports <= Service::ALL_PORTS && endpoints <= Service::ALL_ENDPOINTS;
    if fits(ports, endpoints) {
        return;
    }
    // By the larger of the two shares.
    led.sort_by_cached_key(|service| {
        let (ports, endpoints) = service.size();
        Reverse((ports * Service::ALL_ENDPOINTS).max(endpoints * Service::ALL_PORTS))
    });
    for service in led {
        let own = service.size();
        service.led = false;
        sink.warning(
            service.declared.clone(),
            format_args!(
                "its {} ports with {} endpoints at its addresses are more than nodes have room for: all services together have {} \
                 ports and {} endpoints at most; connections to its addresses are left alone",
                own.0,
                own.1,
                Service::ALL_PORTS,
                Service::ALL_ENDPOINTS
            ),
        );
        (ports, endpoints) = (ports - own.0, endpoints - own.1);
        if fits(ports, endpoints) {
            break;
        }
    }
}

/// The endpoints of a port: pods of one service may have it at numbers that differ, each slice says at which.
fn endpoints(
    port: &PortDraft,
    transport: Transport,
    slices: &[&SliceDraft],
) -> Vec<ServiceEndpoint> {
    let mut endpoints = Vec::new();
    for slice in slices {
        let mut ports = slice.ports.iter();
        let Some(own) = ports.find(|one| one.name == port.name && one.transport == Some(transport))
        else {
            continue;
        };
        for endpoint in &slice.endpoints {
            let ending = match endpoint.state {
                State::Ready => false,
                State::Ending => true,
                State::No => continue,
            };
            endpoints.push(ServiceEndpoint {
                address: endpoint.address,
                port: own.port,
                ending,
                node: endpoint.node.clone(),
                zones: endpoint.hints.zones.clone(),
                nodes: endpoint.hints.nodes.clone(),
            });
        }
    }
    endpoints.sort_unstable();
    // While an endpoint moves from one slice to another both have it (Kubernetes, `EndpointSlice`); the ready one comes first.
    endpoints.dedup_by(|one, first| (one.address, one.port) == (first.address, first.port));
    endpoints
}
