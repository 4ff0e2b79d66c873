//! `Service`s of type `LoadBalancer` that bring clients to gateways: what they are to be like, and which address each was given.
//!
//! Such a service is in the agents' namespace and selects the agents' pods, which have their nodes' addresses. Each of its ports
//! leads to the port that the cluster set apart for it on every node (`nodePort`), where the router listens for the gateway.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use sha2::{Digest, Sha256};

use super::Served;
use super::gateway::Gateways;
use super::listener::Entry;
use crate::document::Table;
use crate::document::address_source::LoadBalancerDraft;
use crate::document::service::{Ingress, ServiceDraft};
use crate::model::{NodeCheck, NodePorts, ObjectName};
use crate::status::{BalancedPort, LoadBalancer};

/// Longest name of a service (RFC 1035 label), and what of it is for telling gateways apart.
const LONGEST: usize = 63;
const DIGEST: usize = 8;

/// What a service says.
#[derive(Default)]
pub(super) struct Given {
    pub(super) addresses: Vec<IpAddr>,
    pub(super) hostnames: Vec<String>,
    pub(super) node_ports: NodePorts,
    pub(super) health_check: Option<NodeCheck>,
}

/// What the service of a gateway has been given; none: nothing yet.
pub(super) fn given(
    gateway: &ObjectName,
    draft: &LoadBalancerDraft,
    services: &Table<ServiceDraft>,
) -> Option<Given> {
    let name = name(gateway, draft)?;
    let (_, service) = services.get(&name)?;
    let service = service.as_deref()?;
    let mut given = Given::default();
    for ingress in &service.ingress {
        match ingress {
            // One address may be listed more than once, with other ports each time.
            Ingress::Address(address) if given.addresses.contains(address) => {}
            Ingress::Address(address) => given.addresses.push(*address),
            Ingress::Hostname(name) => given.hostnames.push(name.clone()),
        }
    }
    if given.addresses.is_empty() && given.hostnames.is_empty() {
        return None;
    }
    let ports = service.ports.iter();
    let ports = ports.filter_map(|one| Some(((one.transport?, one.port), one.node_port?)));
    given.node_ports = NodePorts::Mapped(ports.collect());
    given.health_check = service.health_check.map(|port| NodeCheck {
        service: name,
        port,
    });
    Some(given)
}

/// The services that all gateways need, by their names.
pub(super) fn wanted(
    gateways: &Gateways,
    served: &Served,
    services: &Table<ServiceDraft>,
) -> BTreeMap<ObjectName, Option<LoadBalancer>> {
    let mut wanted = BTreeMap::new();
    for built in gateways.built.values() {
        let Some(draft) = &built.balancer else {
            continue;
        };
        let Some(name) = name(&built.name, draft) else {
            continue;
        };
        let known = services.get(&name).and_then(|(_, known)| known.as_deref());
        // A certificate that is missing for a moment takes no port away.
        let mut sockets: BTreeSet<_> = built.entries.iter().filter_map(Entry::socket).collect();
        // What policies say of listeners is known of those that work: datagrams besides, for HTTP/3.
        let working = served.get(&built.name).into_iter();
        for one in working.flat_map(|gateway| &gateway.listeners) {
            sockets.extend(one.transports().map(|transport| (transport, one.port)));
        }
        let ports = sockets.into_iter().map(|(transport, port)| {
            let mut known = known.into_iter().flat_map(|known| &known.ports);
            let same = known.find(|one| one.port == port && one.transport == Some(transport));
            BalancedPort {
                port,
                transport,
                target: same.and_then(|one| one.node_port),
            }
        });
        let ports: Vec<_> = ports.collect();
        // A service has a port at least.
        if ports.is_empty() || built.accepted.is_some() {
            wanted.insert(name, None);
            continue;
        }
        let infrastructure = &built.draft.infrastructure;
        let mut annotations = draft.annotations.clone();
        annotations.extend(infrastructure.annotations.clone());
        let balancer = LoadBalancer {
            gateway: built.name.clone(),
            gateway_class: built.draft.class.clone(),
            class: draft.class.clone(),
            labels: infrastructure.labels.clone(),
            annotations,
            local: draft.local,
            ports,
        };
        wanted.insert(name, Some(balancer));
    }
    wanted
}

/// The name of a gateway's service: what can be read of the gateway's, and a number that no other has.
fn name(gateway: &ObjectName, draft: &LoadBalancerDraft) -> Option<ObjectName> {
    let digest = Sha256::digest(gateway.to_string());
    let digest: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
    let readable = format!("gateway-{}-{}", gateway.namespace(), gateway.name());
    let readable = readable.replace('.', "-");
    let end = readable.len().min(LONGEST - DIGEST - 1);
    let name = format!("{}-{}", &readable[..end], &digest[..DIGEST]);
    ObjectName::new(&draft.namespace, &name).ok()
}
