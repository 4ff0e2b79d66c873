//! `Pod`: its labels, addresses and named ports, for cells and network policies that select pods.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::Meta;
use super::addresses::{Placed, cluster_address};
use super::labels::Labels;
use crate::lasting::common;
use crate::model::{Port, Transport};
use crate::reader::{Field, Object};
use crate::tree::{Node, Value};

/// A pod.
pub(crate) struct PodDraft {
    pub(crate) labels: Labels,
    /// Addresses of its own; none while it has not started, after it ended, and where it has those of its node.
    pub(crate) addresses: Vec<Placed>,
    /// The node on which it is to get some, while it has none.
    pub(crate) awaited_on: Option<Arc<str>>,
    /// Ports of its containers that have names.
    pub(crate) ports: BTreeMap<(Arc<str>, Transport), BTreeSet<Port>>,
}

/// Reads the object.
pub(crate) fn read(object: &mut Object<'_>, meta: &Meta) -> Option<PodDraft> {
    let spec = object.optional("spec");
    let status = object.optional("status");
    object.any_others();
    let host_network = text_of(spec.as_ref(), "hostNetwork") == Some(&Value::Bool(true));
    let phase = text_of(status.as_ref(), "phase").and_then(Value::text);
    let ended = matches!(phase, Some("Succeeded" | "Failed"));
    let node = text_of(spec.as_ref(), "nodeName").and_then(Value::text);
    let node = node.filter(|_| !host_network && !ended);
    let status = status.filter(|_| !host_network && !ended);
    let addresses = status.and_then(|status| pod_addresses(&status));
    let ports = spec.as_ref().map(named_ports);
    Some(PodDraft {
        labels: meta.labels.clone(),
        awaited_on: node
            .filter(|_| addresses.as_ref().is_none_or(Vec::is_empty))
            .map(common),
        addresses: addresses.unwrap_or_default(),
        ports: ports.unwrap_or_default(),
    })
}

fn text_of<'a>(field: Option<&Field<'a>>, name: &str) -> Option<&'a Value> {
    field?.value().get(name).map(|node| &node.value)
}

/// What is no such port, such as one of SCTP, is none: whoever serves pods has checked them.
fn named_ports(spec: &Field<'_>) -> BTreeMap<(Arc<str>, Transport), BTreeSet<Port>> {
    let mut ports: BTreeMap<_, BTreeSet<Port>> = BTreeMap::new();
    // Init containers may stay (Kubernetes, sidecar containers).
    let containers = ["containers", "initContainers"].map(|name| items(spec.value(), name));
    let containers = containers.into_iter().flatten();
    for port in containers.flat_map(|container| items(&container.value, "ports")) {
        let part = |name| port.value.get(name).map(|node| &node.value);
        let transport = match part("protocol").and_then(Value::text) {
            None | Some("TCP") => Transport::Tcp,
            Some("UDP") => Transport::Udp,
            Some(_) => continue,
        };
        let number = match part("containerPort") {
            Some(Value::Integer(number)) => u16::try_from(*number).ok().and_then(Port::new),
            _ => None,
        };
        if let (Some(name), Some(number)) = (part("name").and_then(Value::text), number) {
            let numbers = ports.entry((name.into(), transport)).or_default();
            numbers.insert(number);
        }
    }
    ports
}

/// The items of a list that may not be there.
fn items<'a>(value: &'a Value, name: &str) -> &'a [Node] {
    match value.get(name).map(|node| &node.value) {
        Some(Value::List(items)) => items,
        _ => &[],
    }
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
                .and_then(|field| cluster_address(&field)),
        );
        object.any_others();
    }
    Some(addresses)
}
