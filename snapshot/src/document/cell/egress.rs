//! What the components of a cell may call.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::{CellReader, unique};
use crate::document::addresses::network;
use crate::document::name;
use crate::document::platform::transport;
use crate::model::{
    CellId, ComponentId, East, EndpointId, Hostname, Name, South, SouthDestination, SouthProtocol,
};
use crate::reader::{Field, Object, quoted};

impl CellReader {
    /// Names of own components.
    fn from(&self, object: &mut Object<'_>) -> Vec<Name> {
        let Some(field) = object.optional("from") else {
            return Vec::new();
        };
        let mut names = Vec::new();
        let mut seen = BTreeSet::new();
        for item in field.some_list() {
            let Some(name) = name(&item) else { continue };
            if !self.labelled && !self.endpoints.contains_key(name.as_str()) {
                item.mistake(format_args!("no component `{name}` in this cell"));
            } else if !seen.insert(name.clone()) {
                item.mistake(format_args!("`{name}` is in the list already"));
            } else {
                names.push(name);
            }
        }
        names
    }

    pub(super) fn east(&self, field: &Field<'_>) -> Option<East> {
        let mut object = field.object()?;
        let from = self.from(&mut object);
        let project = object.required("project").as_ref().and_then(name);
        let component = object.required("component").as_ref().and_then(name);
        let endpoint = object.required("endpoint").as_ref().and_then(name);
        let environment = match object.optional("environment") {
            Some(field) => name(&field),
            None => Some(self.id.environment.clone()),
        };
        object.refused(
            &["organization"],
            "cells call cells of their own organization only; expected no such field",
        );
        object.finish();
        let cell = CellId {
            organization: self.id.organization.clone(),
            project: project?,
            environment: environment?,
        };
        if cell == self.id {
            field.mistake(
                "leads into the cell itself; calls inside of a cell belong into `connections` of the component",
            );
            return None;
        }
        Some(East {
            declared: field.source().clone(),
            from,
            to: EndpointId {
                component: ComponentId {
                    cell,
                    component: component?,
                },
                endpoint: endpoint?,
            },
        })
    }

    pub(super) fn souths(&self, items: Vec<Field<'_>>) -> Vec<South> {
        let mut seen = BTreeMap::new();
        items
            .iter()
            .filter_map(|field| {
                let mut object = field.object()?;
                let south = self.south(&mut object, &mut seen);
                object.finish();
                south
            })
            .collect()
    }

    fn south(&self, object: &mut Object<'_>, seen: &mut BTreeMap<Name, Arc<str>>) -> Option<South> {
        let declared = object.field().source().clone();
        let name = object
            .required("name")
            .and_then(|field| unique(&field, "south call", &declared, seen));
        let from = self.from(object);
        let hosts = object.optional("hosts");
        let cidrs = object.optional("cidrs");
        let port = object.required("port").and_then(|field| field.port());
        let protocol = object.required("protocol");
        let destination = match (hosts, cidrs) {
            (Some(hosts), None) => {
                let protocol = protocol.and_then(|field| {
                    field.choice(&[
                        ("TLS", SouthProtocol::Tls),
                        // TLS is passed through unopened: there is no HTTP to be seen in HTTPS.
                        ("HTTPS", SouthProtocol::Tls),
                        ("HTTP", SouthProtocol::Http),
                    ])
                });
                let hosts = hosts.some_list().iter().filter_map(host).collect();
                Some(SouthDestination::Hosts {
                    hosts,
                    protocol: protocol?,
                })
            }
            (None, Some(cidrs)) => {
                let transport = protocol.and_then(|field| transport(&field));
                let cidrs = cidrs.some_list().iter().filter_map(network).collect();
                Some(SouthDestination::Networks {
                    cidrs,
                    transport: transport?,
                })
            }
            (Some(_), Some(_)) => {
                object
                    .field()
                    .mistake("expected either `hosts` or `cidrs`, got both");
                None
            }
            (None, None) => {
                object
                    .field()
                    .mistake("expected either `hosts` or `cidrs`, got neither");
                None
            }
        };
        Some(South {
            declared,
            name: name?,
            from,
            destination: destination?,
            port: port?,
        })
    }
}

fn host(field: &Field<'_>) -> Option<Hostname> {
    let text = field.string()?;
    if text.contains('*') {
        field.mistake(format_args!(
            "expected a whole host name, got the wildcard {}; wildcards are not supported in egress",
            quoted(text)
        ));
        return None;
    }
    if text.parse::<std::net::IpAddr>().is_ok() {
        field.mistake(format_args!(
            "expected a host name, got the address `{text}`; addresses belong into `cidrs`"
        ));
        return None;
    }
    field.parse(Hostname::new)
}
