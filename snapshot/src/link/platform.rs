//! The platform: gates, and what is not a cell.

use std::net::IpAddr;

use super::Served;
use super::gateway::{Gateways, Place};
use crate::document::Table;
use crate::document::addresses::Placed;
use crate::document::platform::{NodeDraft, PlatformDraft};
use crate::model::{Gate, GateRef, Node, NodePorts, Platform};
use crate::reader::Sink;
use crate::status::ParentKind;

/// Links the platform; the gateways that it makes gates of are told.
pub(super) fn link(
    draft: Option<&PlatformDraft>,
    nodes: &Table<NodeDraft>,
    gateways: &mut Served,
    known: &Gateways,
    sink: &Sink,
) -> Platform {
    let nodes = all_nodes(draft, nodes).map(node).collect();
    let Some(draft) = draft else {
        return Platform {
            nodes,
            ..Platform::default()
        };
    };
    let mut gates: [Option<GateRef>; 2] = [None, None];
    for (slot, gate, draft) in [
        (0, Gate::External, &draft.external),
        (1, Gate::Internal, &draft.internal),
    ] {
        let Some(draft) = draft else { continue };
        if known.place(ParentKind::Gateway, &draft.gateway) == Place::Absent {
            sink.mistake(
                draft.source.clone(),
                format_args!("no `Gateway` {}", draft.gateway),
            );
            continue;
        }
        if let Some(gateway) = gateways.get_mut(&draft.gateway) {
            // Where a gate is, its address says; the nodes' say which node.
            if gateway.node_ports == NodePorts::Same {
                sink.mistake(
                    draft.source.clone(),
                    format_args!(
                        "gateway {} listens on the nodes' own addresses; a gate needs addresses of its own",
                        draft.gateway
                    ),
                );
                continue;
            }
            if let Some(other) = gateway.gate {
                sink.mistake(
                    draft.source.clone(),
                    format_args!(
                        "gateway {} is the {other} gate already; each gate needs a gateway of its own",
                        draft.gateway
                    ),
                );
                continue;
            }
            gateway.gate = Some(gate);
        }
        gates[slot] = Some(GateRef {
            gateway: draft.gateway.clone(),
            remote_addresses: plain(&draft.remote_addresses),
        });
    }
    let [external, mut internal] = gates;
    // By the address alone the kernel tells a packet of one gate from one of the other.
    let addresses = |gate: &Option<GateRef>| {
        gate.as_ref()
            .and_then(|gate| gateways.get(&gate.gateway))
            .map(|gateway| (gateway.declared.clone(), gateway.addresses.clone()))
    };
    if let (Some((_, north)), Some((declared, west))) = (addresses(&external), addresses(&internal))
        && let Some(shared) = west
            .iter()
            .find(|address| !address.is_loopback() && north.contains(address))
    {
        if let Some(gate) = internal.take()
            && let Some(gateway) = gateways.get_mut(&gate.gateway)
        {
            gateway.gate = None;
        }
        sink.mistake(
            declared.at("spec.addresses"),
            format_args!(
                "address {shared} is one of the external gateway; the two gates need addresses of their own"
            ),
        );
    }
    Platform {
        dns_prefixes: draft.dns_prefixes.clone(),
        virtual_hosts: draft.virtual_hosts.clone(),
        external,
        internal,
        jwt_providers: draft.jwt_providers.clone(),
        dns: plain(&draft.dns),
        dns_declared: draft.dns_declared.clone(),
        dns_service_addresses: plain(&draft.dns_service_addresses),
        nodes,
        other_nodes: draft.other_nodes,
        services: draft.services.clone(),
    }
}

/// All nodes. What the platform says of one goes before what its own document says.
pub(super) fn all_nodes<'a>(
    draft: Option<&'a PlatformDraft>,
    nodes: &'a Table<NodeDraft>,
) -> impl Iterator<Item = &'a NodeDraft> {
    let own = draft.map_or(&[][..], |draft| &draft.nodes);
    let others = nodes.values().filter_map(|(_, node)| node.as_deref());
    let others = others.filter(|node| own.iter().all(|one| one.name != node.name));
    own.iter().chain(others)
}

fn node(node: &NodeDraft) -> Node {
    Node {
        name: node.name.clone(),
        addresses: plain(&node.addresses),
        zone: node.zone.clone(),
        pod_networks: node.pod_networks.iter().map(|(one, _)| *one).collect(),
    }
}

fn plain(placed: &[Placed]) -> Vec<IpAddr> {
    placed.iter().map(|placed| placed.address).collect()
}
