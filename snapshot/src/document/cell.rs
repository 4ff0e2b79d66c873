//! `Cell`: components, endpoints and what a cell may call.

use std::collections::BTreeMap;

use super::addresses::{Placed, addresses, network, network_address};
use super::platform::transport;
use super::template::{Parameters, Template};
use super::{Meta, name};
use crate::model::{
    Cell, CellId, ClaimRequirement, Component, ComponentId, ComponentKind, East, Endpoint,
    EndpointId, EndpointKind, Exposure, Gate, Hostname, Intra, Name, Operation, South,
    SouthDestination, SouthProtocol, Workloads,
};
use crate::reader::{Field, Object};
use crate::report::Source;

/// A cell whose references to other documents are not resolved.
pub(crate) struct CellDraft {
    /// `east` may still lead nowhere.
    pub(crate) cell: Cell,
    /// Namespace of the document: generated routes get it.
    pub(crate) namespace: String,
    /// Addresses of components, workloads first.
    pub(crate) addresses: Vec<(ComponentId, Placed)>,
    /// What is exposed through the gates.
    pub(crate) exposures: Vec<ExposureDraft>,
}

/// An endpoint at one gate.
pub(crate) struct ExposureDraft {
    pub(crate) endpoint: EndpointId,
    pub(crate) component_kind: ComponentKind,
    pub(crate) gate: Gate,
    /// The section of this visibility, or the endpoint if it is exposed without one.
    pub(crate) source: Source,
    pub(crate) base_path: Template,
    pub(crate) provider: Option<(Name, Source)>,
    /// Operations with their path as it was written.
    pub(crate) operations: Vec<(Operation, Template)>,
}

/// Reads the `spec`.
pub(crate) fn read(spec: &mut Object<'_>, meta: &Meta) -> Option<CellDraft> {
    let organization = spec.required("organization").as_ref().and_then(name);
    let project = spec.required("project").as_ref().and_then(name);
    let environment = spec.required("environment").as_ref().and_then(name);
    let intra = match spec.optional("intra") {
        Some(field) => field.choice(&[("open", Intra::Open), ("declared", Intra::Declared)]),
        None => Some(Intra::Open),
    };
    // Without its identity the rest is still read, for its mistakes. The stand-in goes nowhere: the
    // draft is dropped below.
    let stand_in = || Name::new("unknown").ok();
    let id = CellId {
        organization: organization.clone().or_else(stand_in)?,
        project: project.clone().or_else(stand_in)?,
        environment: environment.clone().or_else(stand_in)?,
    };
    let items = spec
        .required("components")
        .map(|field| field.some_list())
        .unwrap_or_default();
    let mut reader = CellReader {
        id: id.clone(),
        namespace: meta.name.namespace().to_owned(),
        endpoints: declared_endpoints(&items),
        addresses: Vec::new(),
        exposures: Vec::new(),
    };
    let components = reader.components(items);
    let (mut east, mut south) = (Vec::new(), Vec::new());
    if let Some(mut egress) = spec.optional("egress").and_then(|field| field.object()) {
        east = egress
            .list("east")
            .iter()
            .filter_map(|field| reader.east(field))
            .collect();
        south = reader.souths(egress.list("south"));
        egress.finish();
    }
    spec.refused(
        &["compat"],
        "is not supported yet: a cell is exposed by the strict rules only",
    );
    (organization.is_some() && project.is_some() && environment.is_some()).then_some(())?;
    Some(CellDraft {
        cell: Cell {
            id,
            declared: meta.declared.clone(),
            intra: intra?,
            components,
            east,
            south,
        },
        namespace: reader.namespace,
        addresses: reader.addresses,
        exposures: reader.exposures,
    })
}

/// Names of components and their endpoints, whatever else is wrong with them.
fn declared_endpoints(items: &[Field<'_>]) -> BTreeMap<String, Vec<String>> {
    let name = |value: &crate::tree::Value| {
        value
            .get("name")
            .and_then(|node| node.value.text())
            .map(str::to_owned)
    };
    items
        .iter()
        .filter_map(|item| {
            let endpoints = match item.value().get("endpoints").map(|node| &node.value) {
                Some(crate::tree::Value::List(items)) => {
                    items.iter().filter_map(|item| name(&item.value)).collect()
                }
                _ => Vec::new(),
            };
            Some((name(item.value())?, endpoints))
        })
        .collect()
}

struct CellReader {
    id: CellId,
    namespace: String,
    endpoints: BTreeMap<String, Vec<String>>,
    addresses: Vec<(ComponentId, Placed)>,
    exposures: Vec<ExposureDraft>,
}

impl CellReader {
    fn components(&mut self, items: Vec<Field<'_>>) -> BTreeMap<Name, Component> {
        let mut components: BTreeMap<Name, Component> = BTreeMap::new();
        let mut seen: BTreeMap<Name, String> = BTreeMap::new();
        for item in items {
            let Some(mut object) = item.object() else {
                continue;
            };
            let exposures = self.exposures.len();
            let component = self.component(&mut object, &mut seen);
            object.finish();
            match component {
                Some(component) => {
                    components.insert(component.id.component.clone(), component);
                }
                // What is wrong is said; its routes would only say it again.
                None => self.exposures.truncate(exposures),
            }
        }
        components
    }

    fn component(
        &mut self,
        object: &mut Object<'_>,
        seen: &mut BTreeMap<Name, String>,
    ) -> Option<Component> {
        let declared = object.field().source().clone();
        let component = object
            .required("name")
            .and_then(|field| unique(&field, "component", &declared, seen));
        let kind = match object.optional("type") {
            Some(field) => field.choice(&[
                ("Service", ComponentKind::Service),
                ("WebApplication", ComponentKind::WebApplication),
                ("Task", ComponentKind::Task),
            ]),
            None => Some(ComponentKind::Service),
        };
        let id = ComponentId {
            cell: self.id.clone(),
            component: component.clone().or_else(|| Name::new("unknown").ok())?,
        };
        let workloads = object
            .required("workloads")
            .and_then(|field| self.workloads(&field, &id));
        let service_addresses = addresses(object.list("serviceAddresses"), network_address);
        let endpoints = object.list("endpoints");
        if kind == Some(ComponentKind::Task)
            && let Some(first) = endpoints.first()
        {
            first.mistake("a component of type `Task` serves nothing; expected no endpoints");
        }
        let endpoints = self.endpoints(endpoints, &id, kind.unwrap_or(ComponentKind::Service));
        let connections = object
            .list("connections")
            .iter()
            .filter_map(|field| self.connection(field))
            .collect();
        component?;
        let service_addresses = service_addresses
            .into_iter()
            .map(|placed| {
                let address = placed.address;
                self.addresses.push((id.clone(), placed));
                address
            })
            .collect();
        Some(Component {
            id,
            declared,
            kind: kind?,
            workloads: workloads?,
            service_addresses,
            endpoints,
            connections,
        })
    }

    fn workloads(&mut self, field: &Field<'_>, id: &ComponentId) -> Option<Workloads> {
        let mut object = field.object()?;
        let static_addresses = object.optional("addresses");
        let selector = object.optional("selector");
        object.finish();
        match (static_addresses, selector) {
            (Some(field), None) => {
                let placed = addresses(field.some_list(), network_address);
                let plain = placed.iter().map(|placed| placed.address).collect();
                self.addresses
                    .extend(placed.into_iter().map(|placed| (id.clone(), placed)));
                Some(Workloads::Addresses(plain))
            }
            (None, Some(field)) => {
                let mut object = field.object()?;
                object.unsupported(&["matchExpressions"]);
                let labels = object.required("matchLabels");
                object.finish();
                let labels = labels?;
                let match_labels: BTreeMap<String, String> = labels
                    .entries()
                    .into_iter()
                    .filter_map(|(key, value)| Some((key.to_owned(), value.string()?.to_owned())))
                    .collect();
                if match_labels.is_empty() {
                    labels.mistake("expected at least one label; none would select every pod");
                    return None;
                }
                Some(Workloads::Selector {
                    namespace: self.namespace.clone(),
                    match_labels,
                })
            }
            (Some(_), Some(_)) => {
                field.mistake("expected either `addresses` or `selector`, got both");
                None
            }
            (None, None) => {
                field.mistake("expected either `addresses` or `selector`, got neither");
                None
            }
        }
    }

    fn connection(&self, field: &Field<'_>) -> Option<EndpointId> {
        let mut object = field.object()?;
        let component_field = object.required("component");
        let endpoint_field = object.required("endpoint");
        object.finish();
        let (component_field, endpoint_field) = (component_field?, endpoint_field?);
        let (component, endpoint) = (name(&component_field)?, name(&endpoint_field)?);
        let Some(endpoints) = self.endpoints.get(component.as_str()) else {
            component_field.mistake(format_args!(
                "no component `{component}` in this cell; calls to other cells belong into `egress.east`"
            ));
            return None;
        };
        if !endpoints.iter().any(|known| known == endpoint.as_str()) {
            endpoint_field.mistake(format_args!(
                "component `{component}` has no endpoint `{endpoint}`"
            ));
            return None;
        }
        Some(EndpointId {
            component: ComponentId {
                cell: self.id.clone(),
                component,
            },
            endpoint,
        })
    }

    fn endpoints(
        &mut self,
        items: Vec<Field<'_>>,
        component: &ComponentId,
        kind: ComponentKind,
    ) -> BTreeMap<Name, Endpoint> {
        let mut seen = BTreeMap::new();
        let mut endpoints: BTreeMap<Name, Endpoint> = BTreeMap::new();
        for item in items {
            let Some(mut object) = item.object() else {
                continue;
            };
            let exposures = self.exposures.len();
            let endpoint = self.endpoint(&mut object, component, kind, &mut seen);
            object.finish();
            let Some(endpoint) = endpoint else { continue };
            // Layer 4 goes around the gate: on the port of a gated endpoint it would open that too.
            let rival = endpoints.values().find(|other| {
                other.port == endpoint.port
                    && other.kind.transport() == endpoint.kind.transport()
                    && other.kind.is_http() != endpoint.kind.is_http()
            });
            if let Some(rival) = rival {
                item.sink().mistake(
                    object_field(&endpoint.declared, "port"),
                    format_args!(
                        "port {} is endpoint `{}` already, and one of the two is HTTP and the other is not",
                        endpoint.port, rival.id.endpoint
                    ),
                );
                self.exposures.truncate(exposures);
                continue;
            }
            endpoints.insert(endpoint.id.endpoint.clone(), endpoint);
        }
        endpoints
    }

    fn endpoint(
        &mut self,
        object: &mut Object<'_>,
        component: &ComponentId,
        component_kind: ComponentKind,
        seen: &mut BTreeMap<Name, String>,
    ) -> Option<Endpoint> {
        let declared = object.field().source().clone();
        let endpoint = object
            .required("name")
            .and_then(|field| unique(&field, "endpoint", &declared, seen));
        let kind = object.required("type").and_then(|field| {
            field.choice(&[
                ("HTTP", EndpointKind::Http),
                ("GraphQL", EndpointKind::GraphQl),
                ("WebSocket", EndpointKind::WebSocket),
                ("gRPC", EndpointKind::Grpc),
                ("TCP", EndpointKind::Tcp),
                ("UDP", EndpointKind::Udp),
            ])
        });
        let port = object.required("port").and_then(|field| field.port());
        let base_field = object.optional("basePath");
        let layer4 = kind.is_some_and(|kind| !kind.is_http());
        if layer4 && let Some(field) = &base_field {
            field.mistake("a TCP or UDP endpoint has no paths; expected no base path");
        }
        let base_path = match &base_field {
            Some(field) => field.parse(|text| Template::new(text, Parameters::Refused)),
            None => Template::new("/", Parameters::Refused).ok(),
        };
        let visibility = self.visibility(object, layer4);
        let id = EndpointId {
            component: component.clone(),
            endpoint: endpoint?,
        };
        let (kind, port, base_path) = (kind?, port?, base_path?);
        let Visibility {
            mut public,
            organization,
        } = visibility?;
        // A web application is there to be seen: without a word it is public.
        if component_kind == ComponentKind::WebApplication && kind.is_http() && public.is_none() {
            public = Some(Section::On(ExposureSection {
                source: declared.clone(),
                provider: None,
                operations: Vec::new(),
            }));
        }
        let mut expose = |section: Option<Section>, gate: Gate| -> Option<Exposure> {
            let Some(Section::On(section)) = section else {
                return None;
            };
            let exposure = Exposure {
                jwt: section.provider.as_ref().map(|(name, _)| name.clone()),
                operations: section
                    .operations
                    .iter()
                    .map(|(operation, _)| operation.clone())
                    .collect(),
            };
            let routed = kind.is_http()
                && (component_kind, gate) != (ComponentKind::WebApplication, Gate::Internal);
            if routed {
                self.exposures.push(ExposureDraft {
                    endpoint: id.clone(),
                    component_kind,
                    gate,
                    source: section.source,
                    base_path: base_path.clone(),
                    provider: section.provider,
                    operations: section.operations,
                });
            } else if kind.is_http() {
                object.field().sink().warning(
                    section.source,
                    "a web application has a public host only; it gets no route of the organization",
                );
            } else if gate == Gate::External {
                object.field().sink().warning(
                    section.source,
                    "a TCP or UDP endpoint gets no route of the external gateway",
                );
            }
            Some(exposure)
        };
        let public = expose(public, Gate::External);
        let organization = expose(organization, Gate::Internal);
        Some(Endpoint {
            id,
            declared,
            kind,
            port,
            base_path: base_path.path,
            public,
            organization,
        })
    }

    fn visibility(&self, object: &mut Object<'_>, layer4: bool) -> Option<Visibility> {
        let Some(field) = object.optional("visibility") else {
            return Some(Visibility::default());
        };
        let mut sections = field.object()?;
        let public = sections.optional("public").map(|f| section(&f, layer4));
        let organization = sections
            .optional("organization")
            .map(|f| section(&f, layer4));
        // Inside of its cell an endpoint is always visible; the section may say so.
        if let Some(project) = sections.optional("project").and_then(|f| f.object()) {
            project.finish();
        }
        sections.finish();
        Some(Visibility {
            public: public.flatten(),
            organization: organization.flatten(),
        })
    }

    /// Names of own components.
    fn from(&self, object: &mut Object<'_>) -> Vec<Name> {
        let Some(field) = object.optional("from") else {
            return Vec::new();
        };
        let mut names = Vec::new();
        for item in field.some_list() {
            let Some(name) = name(&item) else { continue };
            if !self.endpoints.contains_key(name.as_str()) {
                item.mistake(format_args!("no component `{name}` in this cell"));
            } else if names.contains(&name) {
                item.mistake(format_args!("`{name}` is in the list already"));
            } else {
                names.push(name);
            }
        }
        names
    }

    fn east(&self, field: &Field<'_>) -> Option<East> {
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

    fn souths(&self, items: Vec<Field<'_>>) -> Vec<South> {
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

    fn south(&self, object: &mut Object<'_>, seen: &mut BTreeMap<Name, String>) -> Option<South> {
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

fn object_field(source: &Source, field: &str) -> Source {
    source.at(format!("{}.{field}", source.field))
}

/// A name that nothing before has in this list.
fn unique(
    field: &Field<'_>,
    what: &str,
    item: &Source,
    seen: &mut BTreeMap<Name, String>,
) -> Option<Name> {
    let name = name(field)?;
    if let Some(first) = seen.get(&name) {
        field.mistake(format_args!("{what} `{name}` is in {first} already"));
        return None;
    }
    seen.insert(name.clone(), item.field.clone());
    Some(name)
}

fn host(field: &Field<'_>) -> Option<Hostname> {
    let text = field.string()?;
    if text.contains('*') {
        field.mistake(format_args!(
            "expected a whole host name, got the wildcard {}; wildcards are not supported in egress",
            crate::reader::quoted(text)
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

#[derive(Default)]
struct Visibility {
    public: Option<Section>,
    organization: Option<Section>,
}

enum Section {
    /// `enabled: false`.
    Off,
    On(ExposureSection),
}

struct ExposureSection {
    source: Source,
    provider: Option<(Name, Source)>,
    operations: Vec<(Operation, Template)>,
}

fn section(field: &Field<'_>, layer4: bool) -> Option<Section> {
    let mut object = field.object()?;
    let enabled = match object.optional("enabled") {
        Some(field) => field.boolean(),
        None => Some(true),
    };
    if layer4 {
        object.refused(
            &["jwt", "operations"],
            "a TCP or UDP endpoint has no requests to check; expected no such field",
        );
    }
    let jwt = object.optional("jwt");
    let provider = jwt.as_ref().map(|field| {
        let mut object = field.object()?;
        let provider = object.required("provider");
        object.finish();
        let provider = provider?;
        Some((name(&provider)?, provider.source().clone()))
    });
    let items = object.optional("operations");
    if let Some(items) = &items
        && jwt.is_none()
        && !layer4
    {
        items.mistake("operations need `jwt` beside them: without a token nobody has scopes");
    }
    let mut seen: BTreeMap<(String, String), String> = BTreeMap::new();
    let mut operations = Vec::new();
    for item in items.map(|field| field.some_list()).unwrap_or_default() {
        let Some((operation, template)) = operation(&item) else {
            continue;
        };
        // Two spellings of one template are one operation: names of parameters say nothing.
        let key = (operation.method.clone(), anonymous(&template));
        if let Some(first) = seen.get(&key) {
            item.mistake(format_args!(
                "operation {} {} is in {first} already",
                operation.method, operation.path
            ));
            continue;
        }
        seen.insert(key, item.source().field.clone());
        operations.push((operation, template));
    }
    object.finish();
    if !enabled? {
        return Some(Section::Off);
    }
    let provider = match provider {
        Some(provider) => Some(provider?),
        None => None,
    };
    Some(Section::On(ExposureSection {
        source: field.source().clone(),
        provider,
        operations,
    }))
}

/// A template with parameters without their names and without a trailing slash.
fn anonymous(template: &Template) -> String {
    let mut text = String::new();
    let mut rest = template.path.without_slash();
    while let Some((front, behind)) = rest.split_once('{') {
        text.push_str(front);
        text.push_str("{}");
        rest = behind.split_once('}').map_or("", |(_, rest)| rest);
    }
    text.push_str(rest);
    text
}

/// Methods of operations (RFC 9110, section 9; RFC 5789). `CONNECT` and `TRACE` are for proxies.
pub(crate) const METHODS: [&str; 7] = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"];

fn operation(field: &Field<'_>) -> Option<(Operation, Template)> {
    let mut object = field.object()?;
    let choices: Vec<_> = METHODS.iter().map(|method| (*method, *method)).collect();
    let method = object
        .required("method")
        .and_then(|field| field.choice(&choices));
    let template = object
        .required("path")
        .and_then(|field| field.parse(|text| Template::new(text, Parameters::Allowed)));
    let scopes = object.list("scopes").iter().filter_map(scope).collect();
    let claims = object
        .optional("claims")
        .map(|field| field.entries())
        .unwrap_or_default()
        .into_iter()
        .map(|(name, values)| ClaimRequirement {
            name: name.to_owned(),
            values: values
                .some_list()
                .iter()
                .filter_map(|field| field.some_string().map(str::to_owned))
                .collect(),
        })
        .collect();
    object.finish();
    let template = template?;
    Some((
        Operation {
            declared: field.source().clone(),
            method: method?.to_owned(),
            path: template.path.as_str().to_owned(),
            scopes,
            claims,
        },
        template,
    ))
}

/// A scope: blanks separate scopes in a token (RFC 6749, section 3.3), so no scope has one.
pub(crate) fn scope(field: &Field<'_>) -> Option<String> {
    let text = field.some_string()?;
    if text.contains(char::is_whitespace) {
        field.expected("one scope without blanks; each scope is an item of the list");
        return None;
    }
    Some(text.to_owned())
}
