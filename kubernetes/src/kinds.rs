//! The kinds of objects that documents are made of, and which of their versions is read.

use std::fmt;

use snapshot::model::{L4Kind, L7Kind, RouteKind};

/// API group of the Gateway API.
const GATEWAY: &str = "gateway.networking.k8s.io";
/// API group of Envoy Gateway.
const ENVOY: &str = "gateway.envoyproxy.io";
/// API group of Cilium.
const CILIUM: &str = "cilium.io";
/// API group of Cardinal's own kinds.
const CARDINAL: &str = "cardinal.dev";

/// A kind of object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[expect(missing_docs, reason = "each is named after the kind that it is")]
pub enum Kind {
    Namespace,
    Node,
    Pod,
    Service,
    EndpointSlice,
    Secret,
    ConfigMap,
    GatewayClass,
    Gateway,
    ListenerSet,
    HttpRoute,
    GrpcRoute,
    TlsRoute,
    TcpRoute,
    UdpRoute,
    ReferenceGrant,
    BackendTlsPolicy,
    SecurityPolicy,
    ClientTrafficPolicy,
    BackendTrafficPolicy,
    HttpRouteFilter,
    Backend,
    NetworkPolicy,
    CiliumNetworkPolicy,
    CiliumClusterwideNetworkPolicy,
    Platform,
    Cell,
    RoutingTable,
}

/// Secrets that Kubernetes and package managers keep for themselves, which no document names.
const SECRETS: &str = "type!=kubernetes.io/service-account-token,type!=kubernetes.io/dockercfg,\
    type!=kubernetes.io/dockerconfigjson,type!=bootstrap.kubernetes.io/token,type!=helm.sh/release.v1";
/// A pod that has ended keeps its address in its status while another pod has it already.
const PODS: &str = "status.phase!=Succeeded,status.phase!=Failed";

impl Kind {
    /// All of them.
    pub const ALL: [Self; 28] = [
        Self::Namespace,
        Self::Node,
        Self::Pod,
        Self::Service,
        Self::EndpointSlice,
        Self::Secret,
        Self::ConfigMap,
        Self::GatewayClass,
        Self::Gateway,
        Self::ListenerSet,
        Self::HttpRoute,
        Self::GrpcRoute,
        Self::TlsRoute,
        Self::TcpRoute,
        Self::UdpRoute,
        Self::ReferenceGrant,
        Self::BackendTlsPolicy,
        Self::SecurityPolicy,
        Self::ClientTrafficPolicy,
        Self::BackendTrafficPolicy,
        Self::HttpRouteFilter,
        Self::Backend,
        Self::NetworkPolicy,
        Self::CiliumNetworkPolicy,
        Self::CiliumClusterwideNetworkPolicy,
        Self::Platform,
        Self::Cell,
        Self::RoutingTable,
    ];

    /// Its name, as documents spell it.
    #[must_use]
    pub fn name(self) -> &'static str {
        self.facts().0
    }

    /// Its API group; empty for Kubernetes' first one.
    #[must_use]
    pub fn group(self) -> &'static str {
        self.facts().1
    }

    /// The kind of this name in this group.
    #[must_use]
    pub fn find(group: &str, name: &str) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|kind| kind.group() == group && kind.name() == name)
    }

    /// Versions that are understood, the preferred one first.
    pub(crate) fn versions(self) -> &'static [&'static str] {
        self.facts().2
    }

    /// Which objects of the kind are asked for; all if none.
    pub(crate) fn selector(self) -> Option<&'static str> {
        match self {
            Self::Secret => Some(SECRETS),
            Self::Pod => Some(PODS),
            _ => None,
        }
    }

    /// Objects on a page of a list. One may be as large as a request may be (1 MiB), and those that hold whole files often are.
    pub(crate) fn page(self) -> u32 {
        match self {
            Self::Secret | Self::ConfigMap => 50,
            _ => 500,
        }
    }

    /// Whether its objects restrict what would be open without them. As long as those that there are cannot be read nothing is
    /// begun.
    pub(crate) fn restricts(self) -> bool {
        matches!(
            self,
            Self::Cell
                | Self::NetworkPolicy
                | Self::CiliumNetworkPolicy
                | Self::CiliumClusterwideNetworkPolicy
                | Self::SecurityPolicy
                | Self::BackendTlsPolicy
                | Self::ClientTrafficPolicy
        )
    }

    /// Whether what becomes of an object is written into its status.
    #[must_use]
    pub fn is_answered(self) -> bool {
        !matches!(
            self,
            Self::Namespace
                | Self::Node
                | Self::Pod
                | Self::Service
                | Self::EndpointSlice
                | Self::Secret
                | Self::ConfigMap
                | Self::ReferenceGrant
                | Self::HttpRouteFilter
                | Self::Backend
                | Self::NetworkPolicy
        )
    }

    /// Whether its objects may name Secrets.
    pub(crate) fn refers_to_secrets(self) -> bool {
        matches!(
            self,
            Self::Gateway
                | Self::ListenerSet
                | Self::BackendTlsPolicy
                | Self::SecurityPolicy
                | Self::ClientTrafficPolicy
                | Self::BackendTrafficPolicy
                | Self::HttpRouteFilter
                | Self::Backend
                | Self::Platform
                | Self::RoutingTable
        )
    }

    /// Whether documents have this kind.
    #[must_use]
    pub fn is_document(self) -> bool {
        self.document().is_some()
    }

    /// What reports call it; none if it is in no report.
    pub(crate) fn document(self) -> Option<snapshot::Kind> {
        let kinds = snapshot::Kind::ALL.iter().copied();
        kinds
            .filter(|kind| kind.group() == self.group())
            .find(|kind| kind.as_str() == self.name())
    }

    /// The kind of route; none for others.
    pub(crate) fn route(self) -> Option<RouteKind> {
        match self {
            Self::HttpRoute => Some(RouteKind::L7(L7Kind::Http)),
            Self::GrpcRoute => Some(RouteKind::L7(L7Kind::Grpc)),
            Self::TlsRoute => Some(RouteKind::L4(L4Kind::Tls)),
            Self::TcpRoute => Some(RouteKind::L4(L4Kind::Tcp)),
            Self::UdpRoute => Some(RouteKind::L4(L4Kind::Udp)),
            _ => None,
        }
    }

    fn facts(self) -> (&'static str, &'static str, &'static [&'static str]) {
        const V1: &[&str] = &["v1"];
        const ALPHA1: &[&str] = &["v1alpha1"];
        const V2: &[&str] = &["v2"];
        match self {
            Self::Namespace => ("Namespace", "", V1),
            Self::Node => ("Node", "", V1),
            Self::Pod => ("Pod", "", V1),
            Self::Service => ("Service", "", V1),
            Self::EndpointSlice => ("EndpointSlice", "discovery.k8s.io", V1),
            Self::Secret => ("Secret", "", V1),
            Self::ConfigMap => ("ConfigMap", "", V1),
            Self::GatewayClass => ("GatewayClass", GATEWAY, V1),
            Self::Gateway => ("Gateway", GATEWAY, V1),
            Self::ListenerSet => ("ListenerSet", GATEWAY, V1),
            Self::HttpRoute => ("HTTPRoute", GATEWAY, V1),
            Self::GrpcRoute => ("GRPCRoute", GATEWAY, V1),
            Self::TlsRoute => ("TLSRoute", GATEWAY, V1),
            Self::TcpRoute => ("TCPRoute", GATEWAY, &["v1", "v1alpha2"]),
            Self::UdpRoute => ("UDPRoute", GATEWAY, &["v1", "v1alpha2"]),
            Self::ReferenceGrant => ("ReferenceGrant", GATEWAY, &["v1", "v1beta1"]),
            Self::BackendTlsPolicy => ("BackendTLSPolicy", GATEWAY, &["v1", "v1alpha3"]),
            Self::SecurityPolicy => ("SecurityPolicy", ENVOY, ALPHA1),
            Self::ClientTrafficPolicy => ("ClientTrafficPolicy", ENVOY, ALPHA1),
            Self::BackendTrafficPolicy => ("BackendTrafficPolicy", ENVOY, ALPHA1),
            Self::HttpRouteFilter => ("HTTPRouteFilter", ENVOY, ALPHA1),
            Self::Backend => ("Backend", ENVOY, ALPHA1),
            Self::NetworkPolicy => ("NetworkPolicy", "networking.k8s.io", V1),
            Self::CiliumNetworkPolicy => ("CiliumNetworkPolicy", CILIUM, V2),
            Self::CiliumClusterwideNetworkPolicy => ("CiliumClusterwideNetworkPolicy", CILIUM, V2),
            Self::Platform => ("Platform", CARDINAL, ALPHA1),
            Self::Cell => ("Cell", CARDINAL, ALPHA1),
            Self::RoutingTable => ("RoutingTable", CARDINAL, ALPHA1),
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::Kind;

    #[test]
    fn every_kind_is_listed_once_and_found_by_its_name() {
        let mut sorted = Kind::ALL.to_vec();
        sorted.sort();
        sorted.dedup();
        assert_eq!(sorted.len(), Kind::ALL.len());
        for kind in Kind::ALL {
            assert_eq!(Kind::find(kind.group(), kind.name()), Some(kind));
            assert!(!kind.versions().is_empty());
        }
        assert_eq!(Kind::find("apps", "Service"), None);
    }

    #[test]
    fn every_kind_that_documents_have_is_watched_in_a_version_that_they_have() {
        for document in snapshot::Kind::ALL {
            let kind = Kind::find(document.group(), document.as_str());
            let kind = kind.unwrap_or_else(|| panic!("{document} is not watched"));
            for version in kind.versions() {
                let version = match kind.group() {
                    "" => (*version).to_owned(),
                    group => format!("{group}/{version}"),
                };
                assert!(
                    document.versions().contains(&&*version),
                    "{document} is not read in {version}"
                );
            }
        }
    }
}
