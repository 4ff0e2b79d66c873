//! `Platform`: what is not a cell.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::address_source::{self, AddressSources};
use super::addresses::{Placed, address, addresses, network, network_address};
use super::{Meta, jwks, name, reference};
use crate::model::{
    Algorithm, Cidr, Hostname, JwtProvider, Name, ObjectName, OtherNodes, PlatformPort,
    PlatformService, PolicyScope, Transport, VirtualHosts,
};
use crate::reader::{Field, Object};
use crate::report::Source;

/// A platform whose references are not resolved.
pub(crate) struct PlatformDraft {
    pub(crate) dns_prefixes: BTreeMap<Name, Name>,
    pub(crate) virtual_hosts: VirtualHosts,
    pub(crate) external: Option<GateDraft>,
    pub(crate) internal: Option<GateDraft>,
    pub(crate) jwt_providers: BTreeMap<Name, Arc<JwtProvider>>,
    pub(crate) dns: Vec<Placed>,
    pub(crate) dns_declared: Option<Source>,
    pub(crate) dns_service_addresses: Vec<Placed>,
    pub(crate) nodes: Vec<NodeDraft>,
    pub(crate) other_nodes: OtherNodes,
    pub(crate) services: Vec<PlatformService>,
    /// Whose traffic network policies restrict.
    pub(crate) network_policies: PolicyScope,
    pub(crate) cells: CellSource,
    /// Networks that gateways without addresses get one of.
    pub(crate) pools: Vec<Cidr>,
    /// Whether they do.
    pub(crate) sources: AddressSources,
}

/// Where cells come from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum CellSource {
    /// From documents.
    #[default]
    Documents,
    /// From documents, and from the labels that OpenChoreo puts on namespaces and pods.
    OpenChoreo,
}

/// A node.
pub(crate) struct NodeDraft {
    pub(crate) name: String,
    pub(crate) addresses: Vec<Placed>,
    pub(crate) zone: Option<String>,
    pub(crate) pod_networks: Vec<(Cidr, Source)>,
}

/// A gate.
pub(crate) struct GateDraft {
    pub(crate) source: Source,
    pub(crate) gateway: ObjectName,
    pub(crate) remote_addresses: Vec<Placed>,
}

/// Reads the `spec`.
pub(crate) fn read(spec: &mut Object<'_>, meta: &Meta) -> Option<PlatformDraft> {
    let dns_prefixes = named(spec.list("environments"), "environment", |object| {
        object.required("dnsPrefix").as_ref().and_then(name)
    });
    let virtual_hosts = spec
        .optional("virtualHosts")
        .and_then(|field| field.object())
        .map(|mut hosts| {
            let mut host = |name| {
                hosts
                    .optional(name)
                    .and_then(|field| field.parse(Hostname::new))
            };
            let virtual_hosts = VirtualHosts {
                public: host("public"),
                organization: host("organization"),
                web_applications: host("webApplications"),
            };
            hosts.finish();
            virtual_hosts
        })
        .unwrap_or_default();
    let (mut external, mut internal) = (None, None);
    let mut pools = Vec::new();
    let mut sources = AddressSources::default();
    let mut other_nodes = None;
    if let Some(mut gateways) = spec.optional("gateways").and_then(|field| field.object()) {
        external = gateways
            .optional("external")
            .and_then(|field| gate(&field, meta));
        internal = gateways
            .optional("internal")
            .and_then(|field| gate(&field, meta));
        pools = gateways
            .list("addressPools")
            .iter()
            .filter_map(network)
            .collect();
        sources = address_source::read(&mut gateways);
        other_nodes = gateways.optional("otherNodes").and_then(|field| {
            field.choice(&[
                ("Programs", OtherNodes::Programs),
                ("Gateways", OtherNodes::Gateways),
            ])
        });
        gateways.finish();
    }
    let jwt_providers = named(spec.list("jwtProviders"), "token provider", |object| {
        jwt_provider(object)
    });
    let (mut dns, mut dns_service_addresses) = (Vec::new(), Vec::new());
    let mut dns_declared = None;
    if let Some(mut object) = spec.optional("dns").and_then(|field| field.object()) {
        if let Some(field) = object.required("addresses") {
            dns = addresses(field.some_list(), address);
            dns_declared = Some(field.source().clone());
        }
        dns_service_addresses = addresses(object.list("serviceAddresses"), address);
        object.finish();
    }
    let cells = spec.optional("cells").and_then(|field| {
        let mut object = field.object()?;
        let source = object
            .optional("derivedFrom")
            .and_then(|field| field.choice(&[("OpenChoreo", CellSource::OpenChoreo)]));
        object.finish();
        source
    });
    let nodes = named(spec.list("nodes"), "node", node);
    let network_policies = spec.optional("networkPolicies").and_then(|field| {
        field.choice(&[("cells", PolicyScope::Cells), ("all", PolicyScope::All)])
    });
    let services = named(spec.list("services"), "service", service);
    Some(PlatformDraft {
        dns_prefixes,
        virtual_hosts,
        external,
        internal,
        jwt_providers: jwt_providers
            .into_iter()
            .map(|(name, provider)| (name, Arc::new(provider)))
            .collect(),
        dns,
        dns_declared,
        dns_service_addresses,
        nodes: nodes
            .into_iter()
            .map(|(name, node)| NodeDraft {
                name: name.to_string(),
                ..node
            })
            .collect(),
        other_nodes: other_nodes.unwrap_or_default(),
        services: services.into_values().collect(),
        network_policies: network_policies.unwrap_or_default(),
        cells: cells.unwrap_or_default(),
        pools,
        sources,
    })
}

/// Items with a unique `name` each.
fn named<'a, T>(
    items: Vec<Field<'a>>,
    what: &str,
    mut read: impl FnMut(&mut Object<'a>) -> Option<T>,
) -> BTreeMap<Name, T> {
    let mut seen: BTreeMap<Name, Arc<str>> = BTreeMap::new();
    let mut values = BTreeMap::new();
    for item in items {
        let Some(mut object) = item.object() else {
            continue;
        };
        let field = object.required("name");
        let value = read(&mut object);
        object.finish();
        let Some((name, field)) = field.and_then(|field| Some((name(&field)?, field))) else {
            continue;
        };
        if let Some(first) = seen.get(&name) {
            field.mistake(format_args!("{what} `{name}` is in {first} already"));
            continue;
        }
        seen.insert(name.clone(), item.source().field.clone());
        if let Some(value) = value {
            values.insert(name, value);
        }
    }
    values
}

/// A node, whose name the caller knows.
fn node(object: &mut Object<'_>) -> Option<NodeDraft> {
    let zone = object
        .optional("zone")
        .and_then(|field| field.some_string().map(str::to_owned));
    let pod_networks = object
        .list("podCIDRs")
        .iter()
        .filter_map(|field| Some((network(field)?, field.source().clone())))
        .collect();
    let field = object.required("addresses")?;
    Some(NodeDraft {
        name: String::new(),
        addresses: addresses(field.some_list(), network_address),
        zone,
        pod_networks,
    })
}

fn gate(field: &Field<'_>, meta: &Meta) -> Option<GateDraft> {
    let mut object = field.object()?;
    let gateway = object.required("gatewayRef").and_then(|field| {
        let mut object = field.object()?;
        let reference = reference(&mut object, meta);
        object.finish();
        Some((reference?, field.source().clone()))
    });
    let remote_addresses = addresses(object.list("remoteAddresses"), network_address);
    object.finish();
    let (gateway, source) = gateway?;
    Some(GateDraft {
        source,
        gateway,
        remote_addresses,
    })
}

fn jwt_provider(object: &mut Object<'_>) -> Option<JwtProvider> {
    let declared = object.field().source().clone();
    let name = object.optional("name").and_then(|field| {
        // Whether it is a name is said by the caller.
        Name::new(field.value().text()?).ok()
    });
    let issuer = object
        .optional("issuer")
        .and_then(|field| field.some_string().map(str::to_owned));
    let audiences = object
        .list("audiences")
        .iter()
        .filter_map(|field| field.some_string().map(str::to_owned))
        .collect();
    let algorithms = object.optional("algorithms").map(|field| {
        let all: Vec<_> = Algorithm::ALL.iter().map(|a| (a.as_str(), *a)).collect();
        let algorithms: Vec<(Algorithm, Source)> = field
            .some_list()
            .iter()
            .filter_map(|field| Some((field.choice(&all)?, field.source().clone())))
            .collect();
        algorithms
    });
    let keys = jwks::key_source(object, jwks::RemoteOptions::Ours);
    let (keys, algorithms) = jwks::agree(keys?, algorithms, object)?;
    Some(JwtProvider {
        declared,
        name: name?,
        issuer,
        audiences,
        algorithms,
        keys,
        places: JwtProvider::usual_places(),
        claim_headers: Vec::new(),
        recompute_route: false,
    })
}

fn service(object: &mut Object<'_>) -> Option<PlatformService> {
    let declared = object.field().source().clone();
    let name = object
        .optional("name")
        .and_then(|field| Name::new(field.value().text()?).ok());
    let mut seen = BTreeSet::new();
    let addresses: Vec<Cidr> = object
        .required("addresses")
        .map(|field| field.some_list())
        .unwrap_or_default()
        .iter()
        .filter_map(|field| {
            let slash = field.value().text().is_some_and(|text| text.contains('/'));
            let network = if slash {
                network(field)
            } else {
                network_address(field).map(|placed| Cidr::host(placed.address))
            }?;
            if !seen.insert(network) {
                field.mistake(format_args!("`{network}` is in the list already"));
                return None;
            }
            Some(network)
        })
        .collect();
    let mut ports: BTreeSet<PlatformPort> = BTreeSet::new();
    for field in object
        .required("ports")
        .map(|field| field.some_list())
        .unwrap_or_default()
    {
        let Some(mut item) = field.object() else {
            continue;
        };
        let port = item.required("port").and_then(|field| field.port());
        let transport = match item.optional("protocol") {
            Some(field) => transport(&field),
            None => Some(Transport::Tcp),
        };
        item.finish();
        if let (Some(port), Some(transport)) = (port, transport) {
            let port = PlatformPort { port, transport };
            if !ports.insert(port) {
                field.mistake("this port is in the list already");
            }
        }
    }
    Some(PlatformService {
        declared,
        name: name?,
        addresses,
        ports: ports.into_iter().collect(),
    })
}

/// `TCP` or `UDP`.
pub(crate) fn transport(field: &Field<'_>) -> Option<Transport> {
    field.choice(&[("TCP", Transport::Tcp), ("UDP", Transport::Udp)])
}
