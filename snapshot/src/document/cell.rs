//! `Cell`: components, endpoints and what a cell may call.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::addresses::{Placed, addresses, network_address};
use super::template::{Parameters, Template};
use super::{Meta, name};
use crate::model::{
    Border, Borders, Cell, CellId, Component, ComponentId, ComponentKind, Connection, Endpoint,
    EndpointId, EndpointKind, Exposure, Gate, Intra, Name, Operation, Port, Timestamp, Transport,
    Workloads,
};
use crate::reader::{Field, Object};
use crate::report::Source;
use crate::shared::Shared;

mod egress;
pub(crate) mod remains;
pub(super) mod service;
mod visibility;

use visibility::{Exposed, Section, visibility};
pub(crate) use visibility::{Strictness, scope};

/// A cell whose references to other documents are not resolved.
pub(crate) struct CellDraft {
    /// `east` may still lead nowhere.
    pub(crate) cell: Shared<Cell>,
    pub(crate) created: Option<Timestamp>,
    /// Namespace of the document: generated routes get it.
    pub(crate) namespace: String,
    /// Its components are those that labels of OpenChoreo name.
    pub(crate) labelled: bool,
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
    /// By whose rules it becomes a route.
    pub(crate) strictness: Strictness,
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
    let intra_field = spec.optional("intra");
    let intra_declared = intra_field
        .as_ref()
        .map_or_else(|| spec.at("intra"), |field| field.source().clone());
    let intra = match intra_field {
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
    let compat_field = spec.optional("compat");
    let compat = match &compat_field {
        Some(field) => field.boolean(),
        None => Some(false),
    };
    let components_field = spec.optional("components");
    let egress_field = spec.optional("egress");
    let labelled = components_field.is_none();
    if labelled {
        without_components(
            spec,
            &egress_field,
            intra,
            compat,
            &intra_declared,
            &compat_field,
        );
    }
    let items = components_field
        .map(|field| field.some_list())
        .unwrap_or_default();
    let mut reader = CellReader {
        id: id.clone(),
        namespace: meta.name.namespace().to_owned(),
        strictness: match compat {
            Some(true) => Strictness::Compat,
            _ => Strictness::Strict,
        },
        endpoints: declared_endpoints(&items),
        labelled,
        addresses: Vec::new(),
        exposures: Vec::new(),
    };
    let components = reader.components(items);
    let (mut east, mut south) = (Vec::new(), Vec::new());
    if let Some(mut egress) = egress_field.and_then(|field| field.object()) {
        east = egress
            .list("east")
            .iter()
            .filter_map(|field| reader.east(field))
            .collect();
        south = reader.souths(egress.list("south"));
        egress.finish();
    }
    (organization.is_some() && project.is_some() && environment.is_some()).then_some(())?;
    Some(CellDraft {
        created: meta.created,
        cell: Shared::from(Cell {
            id,
            declared: meta.declared.clone(),
            intra: intra?,
            intra_declared,
            components,
            borders: Borders {
                ingress: match labelled {
                    true => Border::Open,
                    false => Border::Declared,
                },
                egress: Border::Declared,
            },
            east,
            south,
        }),
        labelled,
        namespace: reader.namespace,
        addresses: reader.addresses,
        exposures: reader.exposures,
    })
}

/// Says what has no meaning where labels of pods name the components.
fn without_components(
    spec: &Object<'_>,
    egress: &Option<Field<'_>>,
    intra: Option<Intra>,
    compat: Option<bool>,
    intra_declared: &Source,
    compat_field: &Option<Field<'_>>,
) {
    let sink = spec.field().sink();
    if egress.is_none() {
        spec.field()
            .mistake("expected `components`, `egress` or both, got neither");
    }
    if intra == Some(Intra::Declared) {
        sink.mistake(
            intra_declared.clone(),
            "is about `connections` of components; expected `components` beside it",
        );
    }
    if let (Some(true), Some(field)) = (compat, compat_field) {
        field.mistake("is about endpoints; expected `components` beside it");
    }
}

/// Names of components and their endpoints, whatever else is wrong with them.
fn declared_endpoints(items: &[Field<'_>]) -> BTreeMap<String, BTreeSet<String>> {
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
                _ => BTreeSet::new(),
            };
            Some((name(item.value())?, endpoints))
        })
        .collect()
}

struct CellReader {
    id: CellId,
    namespace: String,
    strictness: Strictness,
    endpoints: BTreeMap<String, BTreeSet<String>>,
    /// Which components there are is not known here.
    labelled: bool,
    addresses: Vec<(ComponentId, Placed)>,
    exposures: Vec<ExposureDraft>,
}

impl CellReader {
    fn components(&mut self, items: Vec<Field<'_>>) -> BTreeMap<Name, Shared<Component>> {
        let mut components: BTreeMap<Name, Shared<Component>> = BTreeMap::new();
        let mut seen: BTreeMap<Name, Arc<str>> = BTreeMap::new();
        for item in items {
            let Some(mut object) = item.object() else {
                continue;
            };
            let exposures = self.exposures.len();
            let component = self.component(&mut object, &mut seen);
            object.finish();
            match component {
                Some(component) => {
                    components.insert(component.id.component.clone(), component.into());
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
        seen: &mut BTreeMap<Name, Arc<str>>,
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
        let traffic = service::traffic(object, !service_addresses.is_empty());
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
            session_affinity: traffic.session_affinity,
            traffic_distribution: traffic.distribution,
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
                    addresses: Vec::new(),
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

    fn connection(&self, field: &Field<'_>) -> Option<Connection> {
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
        if !endpoints.contains(endpoint.as_str()) {
            endpoint_field.mistake(format_args!(
                "component `{component}` has no endpoint `{endpoint}`"
            ));
            return None;
        }
        Some(Connection {
            declared: field.source().clone(),
            to: EndpointId {
                component: ComponentId {
                    cell: self.id.clone(),
                    component,
                },
                endpoint,
            },
        })
    }

    fn endpoints(
        &mut self,
        items: Vec<Field<'_>>,
        component: &ComponentId,
        kind: ComponentKind,
    ) -> BTreeMap<Name, Endpoint> {
        let mut seen = BTreeMap::new();
        let mut ports: BTreeMap<(Port, Transport), (Name, bool)> = BTreeMap::new();
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
            let (rival, http) = ports
                .entry((endpoint.port, endpoint.kind.transport()))
                .or_insert_with(|| (endpoint.id.endpoint.clone(), endpoint.kind.is_http()));
            if *http != endpoint.kind.is_http() {
                item.sink().mistake(
                    object_field(&endpoint.declared, "port"),
                    format_args!(
                        "port {} is endpoint `{rival}` already, and one of the two is HTTP and the other is not",
                        endpoint.port
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
        seen: &mut BTreeMap<Name, Arc<str>>,
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
        let visibility = visibility(object, layer4, self.strictness);
        let id = EndpointId {
            component: component.clone(),
            endpoint: endpoint?,
        };
        let (kind, port, base_path) = (kind?, port?, base_path?);
        let strictness = self.strictness;
        let (public, organization) = visibility?.exposed(&Exposed {
            component_kind,
            http: kind.is_http(),
            strictness,
            endpoint: &declared,
            sink: object.field().sink(),
        });
        let mut expose = |section: Option<Section>, gate: Gate| -> Option<Exposure> {
            let section = section?;
            let exposure = Exposure {
                declared: section.source.clone(),
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
                    strictness,
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
}

fn object_field(source: &Source, field: &str) -> Source {
    source.at(format!("{}.{field}", source.field))
}

/// A name that nothing before has in this list.
fn unique(
    field: &Field<'_>,
    what: &str,
    item: &Source,
    seen: &mut BTreeMap<Name, Arc<str>>,
) -> Option<Name> {
    let name = name(field)?;
    if let Some(first) = seen.get(&name) {
        field.mistake(format_args!("{what} `{name}` is in {first} already"));
        return None;
    }
    seen.insert(name.clone(), item.field.clone());
    Some(name)
}
