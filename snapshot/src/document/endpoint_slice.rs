//! `EndpointSlice` (`discovery.k8s.io`): where a service's pods are, and which of them are ready.

use std::net::IpAddr;
use std::sync::Arc;

use super::Meta;
use super::addresses::address;
use super::service::transport;
use crate::model::{ObjectName, Port, Transport};
use crate::reader::{Field, Object};
use crate::tree::Value;

/// The label that names the service (Kubernetes, well-known labels).
const SERVICE: &str = "kubernetes.io/service-name";

/// Endpoints of a service, or some of them.
pub(crate) struct SliceDraft {
    /// The service; none: nobody's.
    pub(crate) service: Option<ObjectName>,
    pub(crate) ports: Vec<SlicePort>,
    pub(crate) endpoints: Vec<EndpointDraft>,
}

/// A port that all endpoints of the slice have.
pub(crate) struct SlicePort {
    /// That of the service's port.
    pub(crate) name: String,
    pub(crate) port: Port,
    pub(crate) transport: Option<Transport>,
}

/// An endpoint.
pub(crate) struct EndpointDraft {
    pub(crate) address: IpAddr,
    pub(crate) state: State,
    /// The node that it is on.
    pub(crate) node: Option<Arc<str>>,
    pub(crate) hints: Hints,
}

/// Zones and nodes whose clients an endpoint is for; empty: it does not say.
#[derive(Default)]
pub(crate) struct Hints {
    pub(crate) zones: Vec<Arc<str>>,
    pub(crate) nodes: Vec<Arc<str>>,
}

/// Whether an endpoint gets requests (Kubernetes, `EndpointConditions`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    Ready,
    /// It ends, and still answers: for when no other does.
    Ending,
    No,
}

/// Reads the fields of the object beside `metadata`.
pub(crate) fn read(object: &mut Object<'_>, meta: &Meta) -> Option<SliceDraft> {
    let service = meta
        .labels
        .get(SERVICE)
        .and_then(|name| ObjectName::new(meta.name.namespace(), name).ok());
    let kind = object
        .required("addressType")
        .and_then(|field| field.choice(&[("IPv4", true), ("IPv6", true), ("FQDN", false)]));
    let ports = object.optional("ports");
    let endpoints = object.optional("endpoints");
    object.any_others();
    let ports: Option<Vec<Option<SlicePort>>> = listed(ports).iter().map(port).collect();
    // Names are resolved by nobody here (Kubernetes deprecates slices of them).
    let endpoints = match kind? {
        true => listed(endpoints).iter().map(endpoint).collect(),
        false => Some(Vec::new()),
    };
    Some(SliceDraft {
        service,
        ports: ports?.into_iter().flatten().collect(),
        endpoints: endpoints?,
    })
}

/// An API server writes null for a list that is empty.
fn listed(field: Option<Field<'_>>) -> Vec<Field<'_>> {
    let present = field.filter(|field| *field.value() != Value::Null);
    present.map(|field| field.list()).unwrap_or_default()
}

/// A port without number stands for all of them, which no route names.
#[expect(
    clippy::option_option,
    reason = "a port that is skipped and one with mistakes are two things"
)]
fn port(field: &Field<'_>) -> Option<Option<SlicePort>> {
    let mut object = field.object()?;
    let name = object.optional("name").map(|field| field.string());
    let port = object.optional("port");
    let transport = transport(&mut object);
    object.any_others();
    let name = match name {
        Some(name) => name?.to_owned(),
        None => String::new(),
    };
    let Some(port) = port else { return Some(None) };
    Some(Some(SlicePort {
        name,
        port: port.port()?,
        transport,
    }))
}

/// The first address of an endpoint: all of them are of one pod, and which is used says nothing.
fn endpoint(field: &Field<'_>) -> Option<EndpointDraft> {
    let mut object = field.object()?;
    let addresses = object.required("addresses").map(|field| field.some_list());
    let state = match object.optional("conditions") {
        Some(field) => state(&field)?,
        None => State::Ready,
    };
    let node = object.optional("nodeName").map(|field| field.string());
    let hints = match object.optional("hints") {
        Some(field) => hints(&field)?,
        None => Hints::default(),
    };
    object.any_others();
    let address = address(addresses?.first()?)?;
    Some(EndpointDraft {
        address: address.address,
        state,
        node: match node {
            Some(node) => Some(node?.into()),
            None => None,
        },
        hints,
    })
}

/// Zones and nodes (Kubernetes, `EndpointHints`).
fn hints(field: &Field<'_>) -> Option<Hints> {
    let mut object = field.object()?;
    let (zones, nodes) = (object.optional("forZones"), object.optional("forNodes"));
    object.any_others();
    Some(Hints {
        zones: named(zones)?,
        nodes: named(nodes)?,
    })
}

/// The `name` of each item.
fn named(field: Option<Field<'_>>) -> Option<Vec<Arc<str>>> {
    let items = listed(field);
    let items = items.iter().map(|item| {
        let mut object = item.object()?;
        let name = object
            .required("name")
            .and_then(|field| field.some_string());
        object.any_others();
        Some(name?.into())
    });
    items.collect()
}

fn state(field: &Field<'_>) -> Option<State> {
    let mut object = field.object()?;
    let mut condition = |name| object.optional(name).map(|field| field.boolean());
    let (ready, serving, terminating) = (
        condition("ready"),
        condition("serving"),
        condition("terminating"),
    );
    object.any_others();
    // Absent conditions are unknown, which consumers take for ready and not terminating.
    let ready = match ready {
        Some(ready) => ready?,
        None => true,
    };
    let serving = match serving {
        Some(serving) => serving?,
        None => ready,
    };
    let terminating = match terminating {
        Some(terminating) => terminating?,
        None => false,
    };
    Some(match (ready, serving, terminating) {
        (true, _, _) => State::Ready,
        (false, true, true) => State::Ending,
        _ => State::No,
    })
}
