//! `Node` of Kubernetes: its addresses, its zone and the networks of its pods.

use super::Meta;
use super::addresses::{Placed, cluster_address, network};
use super::platform::NodeDraft;
use crate::reader::{Field, Object};

/// The label that names the zone (Kubernetes, well-known labels).
const ZONE: &str = "topology.kubernetes.io/zone";

/// Reads the object.
pub(crate) fn read(object: &mut Object<'_>, meta: &Meta) -> Option<NodeDraft> {
    let spec = object.optional("spec");
    let status = object.optional("status");
    object.any_others();
    let mut pod_networks = Vec::new();
    if let Some(mut spec) = spec.and_then(|field| field.object()) {
        for field in spec.list("podCIDRs") {
            pod_networks.push((network(&field)?, field.source().clone()));
        }
    }
    Some(NodeDraft {
        name: meta.name.name().to_owned(),
        addresses: status
            .and_then(|status| internal(&status))
            .unwrap_or_default(),
        zone: meta.labels.get(ZONE).map(str::to_owned),
        pod_networks,
    })
}

/// Addresses that other nodes and pods know it by.
fn internal(status: &Field<'_>) -> Option<Vec<Placed>> {
    let mut object = status.object()?;
    let mut addresses = Vec::new();
    for item in object.list("addresses") {
        let mut object = item.object()?;
        let kind = object.optional("type");
        let value = object.required("address")?;
        if kind.is_some_and(|kind| kind.value().text() == Some("InternalIP")) {
            addresses.extend(cluster_address(&value));
        }
    }
    Some(addresses)
}
