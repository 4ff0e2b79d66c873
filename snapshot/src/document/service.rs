//! `Service`: ports by which routes name its endpoints. Only what routes need is read; the rest is for whoever gives
//! the service its address.

use super::Meta;
use crate::model::{Port, Transport};
use crate::reader::{Field, Object};

/// A service.
pub(crate) struct ServiceDraft {
    /// It is an alias of a name outside of the cluster.
    pub(crate) external: bool,
    /// Whether IPv6 comes first, if it says so.
    pub(crate) prefers_v6: Option<bool>,
    pub(crate) ports: Vec<ServicePort>,
}

/// A port.
pub(crate) struct ServicePort {
    /// Empty: the only port.
    pub(crate) name: String,
    pub(crate) port: Port,
    pub(crate) transport: Option<Transport>,
    /// What is spoken there, as `appProtocol` has it.
    pub(crate) speaks: Option<String>,
}

/// Reads the `spec`.
pub(crate) fn read(spec: &mut Object<'_>, _meta: &Meta) -> Option<ServiceDraft> {
    let external = spec
        .optional("type")
        .is_some_and(|field| field.value().text() == Some("ExternalName"));
    let families = spec.list("ipFamilies");
    let prefers_v6 = families
        .first()
        .map(|first| first.value().text() == Some("IPv6"));
    let ports: Option<Vec<ServicePort>> = spec.list("ports").iter().map(port).collect();
    spec.any_others();
    Some(ServiceDraft {
        external,
        prefers_v6,
        ports: ports?,
    })
}

fn port(field: &Field<'_>) -> Option<ServicePort> {
    let mut object = field.object()?;
    let name = object.optional("name").map(|field| field.string());
    let port = object.required("port").and_then(|field| field.port());
    let transport = transport(&mut object);
    let speaks = object.optional("appProtocol").map(|field| field.string());
    object.any_others();
    Some(ServicePort {
        name: match name {
            Some(name) => name?.to_owned(),
            None => String::new(),
        },
        port: port?,
        transport,
        speaks: match speaks {
            Some(speaks) => Some(speaks?.to_owned()),
            None => None,
        },
    })
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
