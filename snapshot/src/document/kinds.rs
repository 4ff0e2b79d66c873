//! Kinds of documents: in which versions each is taken, what reads it, and where its drafts are.

use std::collections::{BTreeMap, btree_map::Entry};
use std::fmt;
use std::sync::Arc;

use super::{
    CARDINAL, CILIUM, Document, ENVOY_GATEWAY, GATEWAY_API, GATEWAY_API_ALPHA, GATEWAY_API_BETA,
    Meta, backend, backend_tls, cell, client_policy, config_map, endpoint_slice, filter, gateway,
    gateway_class, group, grpc_route, http_route, l4_route, labels, listener_set, namespace,
    network_policy, node, platform, pod, reference_grant, routing_table, secret, security_policy,
    service, traffic_policy,
};
use crate::model::{self, ObjectName};
use crate::reader::Object;
use crate::report::Source;

/// Objects of one kind by name, with the document of each. No draft: the document has mistakes.
pub(crate) type Table<T> = BTreeMap<ObjectName, (Source, Option<Arc<T>>)>;

macro_rules! kinds {
    ($($kind:ident: $versions:expr, $part:ident $read:path => $table:ident: $draft:ty;)*) => {
        /// Kinds of documents.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Kind {
            $(#[doc = concat!("`", stringify!($kind), "`.")] $kind,)*
        }

        impl Kind {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$kind),*];

            /// As documents name it.
            pub fn as_str(self) -> &'static str {
                match self {
                    $(Self::$kind => stringify!($kind),)*
                }
            }

            /// Values of `apiVersion` with which it is taken.
            pub fn versions(self) -> &'static [&'static str] {
                match self {
                    $(Self::$kind => $versions,)*
                }
            }

            /// Reads an object of this kind, whose `metadata` is read.
            pub(super) fn read(self, object: Object<'_>, meta: &Meta) -> Draft {
                match self {
                    $(Self::$kind => Draft::$kind($part(object, meta, $read).map(Arc::new)),)*
                }
            }
        }

        /// What was read of a document; none: too little to go on with.
        pub(crate) enum Draft {
            $($kind(Option<Arc<$draft>>),)*
        }

        impl Draft {
            pub(crate) fn kind(&self) -> Kind {
                match self {
                    $(Self::$kind(_) => Kind::$kind,)*
                }
            }
        }

        /// Everything that was read, by kind and name.
        #[derive(Default)]
        pub(crate) struct Drafts {
            $(pub(crate) $table: Table<$draft>,)*
        }

        impl Drafts {
            /// Puts a document where it belongs; whether there was room for it. Of two documents with one name the first
            /// counts.
            pub(crate) fn place(&mut self, document: &Document, refused: bool) -> bool {
                match &document.draft {
                    $(Draft::$kind(draft) => {
                        let draft = draft.as_ref().filter(|_| !refused);
                        place(&mut self.$table, &document.meta, draft)
                    })*
                }
            }

            /// Takes a document away that was placed.
            pub(crate) fn take_out(&mut self, document: &Document) {
                let name = &document.meta.name;
                match &document.draft {
                    $(Draft::$kind(_) => drop(self.$table.remove(name)),)*
                }
            }

            /// Where an object is declared.
            pub(crate) fn declared(&self, kind: Kind, name: &ObjectName) -> Option<&Source> {
                match kind {
                    $(Kind::$kind => self.$table.get(name).map(|(source, _)| source),)*
                }
            }

            /// Takes the drafts of documents away that were refused since they were placed.
            pub(crate) fn refuse(&mut self, refused: impl Fn(&Source) -> bool) {
                $(for (source, draft) in self.$table.values_mut() {
                    if draft.is_some() && refused(source) {
                        *draft = None;
                    }
                })*
            }
        }
    };
}

kinds! {
    Cell: &[CARDINAL], spec cell::read => cells: cell::CellDraft;
    RoutingTable: &[CARDINAL], spec routing_table::read => routing_tables: model::RoutingTable;
    Platform: &[CARDINAL], spec platform::read => platforms: platform::PlatformDraft;
    GatewayClass: &[GATEWAY_API, GATEWAY_API_BETA], spec gateway_class::read => classes: gateway_class::ClassDraft;
    Gateway: &[GATEWAY_API, GATEWAY_API_BETA], whole gateway::read => gateways: gateway::GatewayDraft;
    ListenerSet: &[GATEWAY_API], spec listener_set::read => listener_sets: listener_set::ListenerSetDraft;
    HTTPRoute: &[GATEWAY_API, GATEWAY_API_BETA], spec http_route::read => http_routes: http_route::RouteDraft;
    GRPCRoute: &[GATEWAY_API], spec grpc_route::read => grpc_routes: http_route::RouteDraft;
    TLSRoute: &[GATEWAY_API, GATEWAY_API_ALPHA, "gateway.networking.k8s.io/v1alpha3"], spec l4_route::tls => tls_routes: l4_route::L4RouteDraft;
    TCPRoute: &[GATEWAY_API, GATEWAY_API_ALPHA], spec l4_route::tcp => tcp_routes: l4_route::L4RouteDraft;
    UDPRoute: &[GATEWAY_API, GATEWAY_API_ALPHA], spec l4_route::udp => udp_routes: l4_route::L4RouteDraft;
    ReferenceGrant: &[GATEWAY_API, GATEWAY_API_BETA], spec reference_grant::read => grants: reference_grant::GrantDraft;
    BackendTLSPolicy: &[GATEWAY_API, "gateway.networking.k8s.io/v1alpha3"], spec backend_tls::read => tls_policies: backend_tls::TlsPolicyDraft;
    SecurityPolicy: &[ENVOY_GATEWAY], spec security_policy::read => security_policies: security_policy::PolicyDraft;
    ClientTrafficPolicy: &[ENVOY_GATEWAY], spec client_policy::read => client_policies: client_policy::ClientDraft;
    BackendTrafficPolicy: &[ENVOY_GATEWAY], spec traffic_policy::read => traffic_policies: traffic_policy::TrafficDraft;
    HTTPRouteFilter: &[ENVOY_GATEWAY], spec filter::read => filters: model::Filter;
    Backend: &[ENVOY_GATEWAY], spec backend::read => backends: Vec<model::Upstream>;
    NetworkPolicy: &["networking.k8s.io/v1"], spec network_policy::read => network_policies: network_policy::PolicyDraft;
    CiliumNetworkPolicy: &[CILIUM], spec network_policy::cilium::read => cilium_policies: network_policy::PolicyDraft;
    CiliumClusterwideNetworkPolicy: &[CILIUM], spec network_policy::cilium::clusterwide => clusterwide_policies: network_policy::PolicyDraft;
    Service: &["v1"], whole service::read => services: service::ServiceDraft;
    EndpointSlice: &["discovery.k8s.io/v1"], whole endpoint_slice::read => slices: endpoint_slice::SliceDraft;
    Namespace: &["v1"], whole namespace::read => namespaces: labels::Labels;
    Pod: &["v1"], whole pod::read => pods: pod::PodDraft;
    Node: &["v1"], whole node::read => nodes: platform::NodeDraft;
    Secret: &["v1"], whole secret::read => secrets: secret::SecretDraft;
    ConfigMap: &["v1"], whole config_map::read => config_maps: BTreeMap<String, Vec<u8>>;
}

impl Kind {
    /// The kind of this name.
    pub(crate) fn of(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|kind| kind.as_str() == name)
    }

    /// Its API group; empty for Kubernetes' own.
    pub fn group(self) -> &'static str {
        self.versions().first().map_or("", |version| group(version))
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Reads an object by its `spec`.
fn spec<'a, T>(
    mut object: Object<'a>,
    meta: &Meta,
    read: impl FnOnce(&mut Object<'a>, &Meta) -> Option<T>,
) -> Option<T> {
    let spec = object.required("spec").and_then(|field| field.object());
    object.finish();
    let mut spec = spec?;
    let draft = read(&mut spec, meta);
    spec.finish();
    draft
}

/// Reads an object that has no `spec`.
fn whole<'a, T>(
    mut object: Object<'a>,
    meta: &Meta,
    read: impl FnOnce(&mut Object<'a>, &Meta) -> Option<T>,
) -> Option<T> {
    let draft = read(&mut object, meta);
    object.finish();
    draft
}

fn place<T>(table: &mut Table<T>, meta: &Meta, draft: Option<&Arc<T>>) -> bool {
    let Entry::Vacant(free) = table.entry(meta.name.clone()) else {
        return false;
    };
    free.insert((meta.declared.clone(), draft.map(Arc::clone)));
    true
}
