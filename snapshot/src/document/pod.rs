//! `Pod`: its labels and addresses, for cells that select workloads.

use super::Meta;
use super::addresses::{Placed, network_address};
use super::selector::Labels;
use crate::reader::{Field, Object};
use crate::tree::Value;

/// A pod.
pub(crate) struct PodDraft {
    pub(crate) labels: Labels,
    /// Addresses of its own; none while it has not started, after it ended, and where it has those of its node.
    pub(crate) addresses: Vec<Placed>,
}

/// Reads the object.
pub(crate) fn read(object: &mut Object<'_>, meta: &Meta) -> Option<PodDraft> {
    let spec = object.optional("spec");
    let status = object.optional("status");
    object.any_others();
    let host_network = text_of(spec.as_ref(), "hostNetwork") == Some(&Value::Bool(true));
    let phase = text_of(status.as_ref(), "phase").and_then(Value::text);
    let ended = matches!(phase, Some("Succeeded" | "Failed"));
    let status = status.filter(|_| !host_network && !ended);
    let addresses = status.and_then(|status| pod_addresses(&status));
    Some(PodDraft {
        labels: meta.labels.clone(),
        addresses: addresses.unwrap_or_default(),
    })
}

fn text_of<'a>(field: Option<&Field<'a>>, name: &str) -> Option<&'a Value> {
    field?.value().get(name).map(|node| &node.value)
}

fn pod_addresses(status: &Field<'_>) -> Option<Vec<Placed>> {
    let mut object = status.object()?;
    let items = object.list("podIPs");
    object.any_others();
    let mut addresses = Vec::new();
    for item in items {
        let mut object = item.object()?;
        addresses.extend(
            object
                .required("ip")
                .and_then(|field| network_address(&field)),
        );
        object.any_others();
    }
    Some(addresses)
}
