//! `Service`: its addresses, and ports by which clients and routes name its endpoints. Addresses that lead into the cluster
//! from outside are for whoever gives them to the service.

use std::net::IpAddr;
use std::time::Duration;

use super::Meta;
use super::addresses::{Placed, cluster_address};
use super::cell::service::{DEFAULT, timeout};
use crate::model::{Port, Transport};
use crate::reader::{Field, Object};
use crate::tree::Value;

/// The label of a service whose addresses another proxy than the node's leads somewhere (kube-proxy leaves such a service out).
const PROXY_NAME: &str = "service.kubernetes.io/service-proxy-name";

/// A service.
pub(crate) struct ServiceDraft {
    /// It is an alias of a name outside of the cluster.
    pub(crate) external: bool,
    /// Whether IPv6 comes first, if it says so.
    pub(crate) prefers_v6: Option<bool>,
    /// Its addresses in the cluster; none: it is headless, or an alias, or nobody gave it one.
    pub(crate) addresses: Vec<Placed>,
    /// Another proxy than the node's leads what connects there.
    pub(crate) led_by_another: bool,
    /// How long a client keeps its endpoint.
    pub(crate) affinity: Option<Duration>,
    /// Only endpoints of a client's own node are for it.
    pub(crate) node_only: bool,
    pub(crate) ports: Vec<ServicePort>,
    /// The port of every node at which a load balancer asks whether the node has an endpoint.
    pub(crate) health_check: Option<Port>,
    /// What a load balancer gave it.
    pub(crate) ingress: Vec<Ingress>,
}

/// Where a load balancer takes connections for a service.
pub(crate) enum Ingress {
    Address(IpAddr),
    Hostname(String),
}

/// A port.
pub(crate) struct ServicePort {
    /// Empty: the only port.
    pub(crate) name: String,
    pub(crate) port: Port,
    pub(crate) transport: Option<Transport>,
    /// The port of every node that is set apart for it.
    pub(crate) node_port: Option<Port>,
    /// What is spoken there, as `appProtocol` has it.
    pub(crate) speaks: Option<String>,
}

/// Reads the object.
pub(crate) fn read(object: &mut Object<'_>, meta: &Meta) -> Option<ServiceDraft> {
    let ingress = object.optional("status").map(|field| ingress(&field));
    let spec = object.required("spec").and_then(|field| field.object());
    object.any_others();
    let draft = spec_of(&mut spec?)?;
    Some(ServiceDraft {
        led_by_another: meta.labels.has(PROXY_NAME),
        ingress: ingress.unwrap_or_default(),
        ..draft
    })
}

/// `loadBalancer.ingress` of a status. What is none there is nobody's mistake.
fn ingress(status: &Field<'_>) -> Vec<Ingress> {
    let balancer = status.value().get("loadBalancer").map(|node| &node.value);
    let ingress = balancer.and_then(|value| value.get("ingress"));
    let Some(Value::List(items)) = ingress.map(|node| &node.value) else {
        return Vec::new();
    };
    let text = |value: &Value, name: &str| {
        let text = value.get(name)?.value.text()?;
        (!text.is_empty()).then(|| text.to_owned())
    };
    let items = items.iter().filter_map(|item| {
        let address = text(&item.value, "ip").and_then(|address| address.parse().ok());
        let name = || text(&item.value, "hostname").map(Ingress::Hostname);
        address.map(Ingress::Address).or_else(name)
    });
    items.collect()
}

fn spec_of(spec: &mut Object<'_>) -> Option<ServiceDraft> {
    let external = spec
        .optional("type")
        .is_some_and(|field| field.value().text() == Some("ExternalName"));
    let families = spec.list("ipFamilies");
    let prefers_v6 = families
        .first()
        .map(|first| first.value().text() == Some("IPv6"));
    let addresses = match external {
        true => Some(Vec::new()),
        false => cluster_addresses(spec),
    };
    let affinity = affinity(spec);
    let node_only = match spec.optional("internalTrafficPolicy") {
        Some(field) => field.choice(&[("Cluster", false), ("Local", true)]),
        None => Some(false),
    };
    let ports: Option<Vec<ServicePort>> = spec.list("ports").iter().map(port).collect();
    let health_check = node_port(spec.optional("healthCheckNodePort"));
    spec.any_others();
    Some(ServiceDraft {
        led_by_another: false,
        external,
        prefers_v6,
        addresses: addresses?,
        affinity: affinity?,
        node_only: node_only?,
        ports: ports?,
        health_check: health_check?,
        ingress: Vec::new(),
    })
}

/// `clusterIPs`, or `clusterIP` where only that is said. `None` says that there is none.
fn cluster_addresses(spec: &mut Object<'_>) -> Option<Vec<Placed>> {
    let first = spec.optional("clusterIP");
    let mut fields = spec.list("clusterIPs");
    if fields.is_empty() {
        fields.extend(first);
    }
    let given = |field: &&Field<'_>| !matches!(field.value().text(), Some("" | "None"));
    fields.iter().filter(given).map(cluster_address).collect()
}

/// How long a client keeps its endpoint; the outer none: that could not be read.
#[expect(
    clippy::option_option,
    reason = "a client that keeps nothing and a mistake are two things"
)]
fn affinity(spec: &mut Object<'_>) -> Option<Option<Duration>> {
    let kept = spec.optional("sessionAffinity");
    let config = spec.optional("sessionAffinityConfig");
    let kept = match kept {
        Some(field) => field.choice(&[("None", false), ("ClientIP", true)])?,
        None => false,
    };
    if !kept {
        return Some(None);
    }
    let given = match config {
        Some(field) => timeout(&field),
        None => None,
    };
    Some(Some(given.unwrap_or(DEFAULT)))
}

fn port(field: &Field<'_>) -> Option<ServicePort> {
    let mut object = field.object()?;
    let name = object.optional("name").map(|field| field.string());
    let port = object.required("port").and_then(|field| field.port());
    let transport = transport(&mut object);
    let node_port = node_port(object.optional("nodePort"));
    let speaks = object.optional("appProtocol").map(|field| field.string());
    object.any_others();
    Some(ServicePort {
        name: match name {
            Some(name) => name?.to_owned(),
            None => String::new(),
        },
        port: port?,
        transport,
        node_port: node_port?,
        speaks: match speaks {
            Some(speaks) => Some(speaks?.to_owned()),
            None => None,
        },
    })
}

/// A port of every node, of which 0 stands for none; the outer none: that could not be read.
#[expect(
    clippy::option_option,
    reason = "a service without a port of nodes and a mistake are two things"
)]
fn node_port(field: Option<Field<'_>>) -> Option<Option<Port>> {
    match field.filter(|field| *field.value() != Value::Integer(0)) {
        Some(field) => field.port().map(Some),
        None => Some(None),
    }
}

/// The `protocol` of a port; none: one that is not supported, such as SCTP.
pub(super) fn transport(object: &mut Object<'_>) -> Option<Transport> {
    match object.optional("protocol") {
        None => Some(Transport::Tcp),
        Some(field) => match field.value().text() {
            Some("TCP") => Some(Transport::Tcp),
            Some("UDP") => Some(Transport::Udp),
            _ => None,
        },
    }
}
