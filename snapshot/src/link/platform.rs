//! The platform: gates, and what is not a cell.

use std::net::IpAddr;

use super::Served;
use super::gateway::{Gateways, Place};
use crate::document::addresses::Placed;
use crate::document::platform::PlatformDraft;
use crate::model::{Gate, GateRef, Node, Platform};
use crate::reader::Sink;
use crate::status::ParentKind;

/// Links the platform; the gateways that it makes gates of are told.
pub(super) fn link(
    draft: Option<&PlatformDraft>,
    gateways: &mut Served,
    known: &Gateways,
    sink: &Sink,
) -> Platform {
    let Some(draft) = draft else {
        return Platform::default();
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
        nodes: draft
            .nodes
            .iter()
            .map(|node| Node {
                name: node.name.clone(),
                addresses: plain(&node.addresses),
                zone: node.zone.clone(),
                pod_networks: node.pod_networks.iter().map(|(one, _)| *one).collect(),
            })
            .collect(),
        services: draft.services.clone(),
    }
}

fn plain(placed: &[Placed]) -> Vec<IpAddr> {
    placed.iter().map(|placed| placed.address).collect()
}
