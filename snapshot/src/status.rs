//! What became of every object: whether it is taken, what is wrong with it, and what the Gateway API wants to be
//! said in its status.
//!
//! Flows in: what linking found out. Flows out: plain data, in the API's own words, for whoever writes status. What it
//! deliberately does not know: whether the data plane took the snapshot. `Programmed` here means that the snapshot holds
//! what the object asks for; whoever activates it takes that back where activation fails.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use imbl::OrdMap;

use crate::document::Kind;
use crate::model::{ObjectName, Port, RouteKind, SectionName, Transport};
use crate::report::{Mistake, Warning};

mod condition;

pub use condition::{Condition, ConditionKind, Reason};

/// What became of a set of objects.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Every object that has a name. Of nearly all the same is to be said.
    pub objects: OrdMap<ObjectKey, Arc<Verdict>>,
    /// What is wrong with objects that have none.
    pub nameless: Vec<Mistake>,
    /// Classes that name Cardinal as their controller.
    pub classes: BTreeMap<String, ClassStatus>,
    /// Gateways of these classes.
    pub gateways: BTreeMap<ObjectName, GatewayStatus>,
    /// Sets of listeners for these gateways.
    pub listener_sets: BTreeMap<ObjectName, ListenerSetStatus>,
    /// Routes that name at least one of these gateways or sets. Of most the same is to be said.
    pub routes: OrdMap<(RouteKind, ObjectName), Arc<RouteStatus>>,
    /// `Service`s that gateways need, by name; none: that is not known, since the `Platform` cannot be read. One of a gateway that is
    /// refused, or of which no listener is valid, is none and stays as it is: with it the gateway's address would go.
    pub load_balancers: Option<BTreeMap<ObjectName, Option<LoadBalancer>>>,
    /// Policies that have to do with at least one of these gateways, by kind and name.
    pub policies: BTreeMap<(Kind, ObjectName), PolicyStatus>,
}

/// Kind and name of an object.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectKey {
    /// Its kind.
    pub kind: Kind,
    /// Its name. Kinds without namespaces have the namespace `default` here.
    pub name: ObjectName,
}

impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}` {}", self.kind, self.name)
    }
}

/// What is to be said of one object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// `metadata.generation` of what was read; status that is written about it observed this one.
    pub generation: Option<i64>,
    /// Whether it has a part in the snapshot. One that does not is as if it were not there, except that what depends on
    /// it is closed.
    pub accepted: bool,
    /// What is wrong with it, in the order of its lines. An object that is accepted can have mistakes in parts that are
    /// closed for them.
    pub mistakes: Vec<Mistake>,
    /// What is without effect, or has less than its author may think.
    pub warnings: Vec<Warning>,
}

/// Status of a `GatewayClass`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClassStatus {
    /// `metadata.generation` of what was read.
    pub generation: Option<i64>,
    /// `Accepted`.
    pub conditions: Vec<Condition>,
}

/// Status of a `Gateway`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GatewayStatus {
    /// `metadata.generation` of what was read.
    pub generation: Option<i64>,
    /// `Accepted`, `Programmed`, and `ResolvedRefs` and `InsecureFrontendValidationMode` where it has what these are about.
    pub conditions: Vec<Condition>,
    /// Where its clients reach it; at most 16.
    pub addresses: Vec<GatewayAddress>,
    /// Its own listeners, in the order of its `spec`.
    pub listeners: Vec<ListenerStatus>,
    /// Sets of listeners that are accepted.
    pub attached_listener_sets: usize,
}

/// Where a gateway is reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GatewayAddress {
    /// At an address.
    Ip(IpAddr),
    /// At the addresses of a name, which its load balancer has.
    Hostname(String),
}

/// A `Service` of type `LoadBalancer` for a gateway.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoadBalancer {
    /// The gateway.
    pub gateway: ObjectName,
    /// The gateway's class.
    pub gateway_class: String,
    /// `spec.loadBalancerClass`.
    pub class: Option<String>,
    /// Labels beside those that tell whose it is.
    pub labels: BTreeMap<String, String>,
    /// Annotations.
    pub annotations: BTreeMap<String, String>,
    /// `externalTrafficPolicy: Local`.
    pub local: bool,
    /// Its ports, at least one.
    pub ports: Vec<BalancedPort>,
}

/// A port of such a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BalancedPort {
    /// The listeners' port.
    pub port: Port,
    /// Its transport.
    pub transport: Transport,
    /// The port of every node where the router listens for it; none: the cluster has not set one apart yet.
    pub target: Option<Port>,
}

/// Status of a `ListenerSet`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListenerSetStatus {
    /// `metadata.generation` of what was read.
    pub generation: Option<i64>,
    /// `Accepted` and `Programmed`.
    pub conditions: Vec<Condition>,
    /// Its listeners, in the order of its `spec`; none while it is not allowed.
    pub listeners: Vec<ListenerStatus>,
}

/// Status of a listener.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListenerStatus {
    /// Its name, as it is written.
    pub name: String,
    /// Kinds of routes that it takes, out of those that it could.
    pub supported_kinds: Vec<RouteKind>,
    /// Accepted routes that are attached to it, whatever its own state is.
    pub attached_routes: usize,
    /// `Accepted`, `Conflicted`, `ResolvedRefs` and `Programmed`.
    pub conditions: Vec<Condition>,
}

/// Status of a route.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RouteStatus {
    /// `metadata.generation` of what was read.
    pub generation: Option<i64>,
    /// One for each of its references to gateways that are ours, in the order of its `spec`.
    pub parents: Arc<[ParentStatus]>,
}

/// A parent and the conditions towards it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParentStatus {
    /// The reference.
    pub parent: ParentRef,
    /// `Accepted` and `ResolvedRefs`, and `PartiallyInvalid` where it is.
    pub conditions: Vec<Condition>,
}

/// A reference to a gateway, a set of listeners, or a part of either (Gateway API, `ParentReference`).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ParentRef {
    /// Which of the two.
    pub kind: ParentKind,
    /// The namespace, if it was written; else it is that of the object which refers.
    pub namespace: Option<Arc<str>>,
    /// The name.
    pub name: Arc<str>,
    /// A listener of it.
    pub section: Option<SectionName>,
    /// Listeners of this port.
    pub port: Option<Port>,
}

/// What routes attach to. Both are of group `gateway.networking.k8s.io`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ParentKind {
    /// A `Gateway`.
    Gateway,
    /// A `ListenerSet`.
    ListenerSet,
}

impl ParentKind {
    /// As a document names it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Gateway => "Gateway",
            Self::ListenerSet => "ListenerSet",
        }
    }
}

impl fmt::Display for ParentKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Status of a policy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PolicyStatus {
    /// `metadata.generation` of what was read.
    pub generation: Option<i64>,
    /// What the policy is judged for, at most 16 (Gateway API, `PolicyStatus.ancestors`).
    pub ancestors: Vec<AncestorStatus>,
}

/// An ancestor of a policy's target, and the conditions towards it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AncestorStatus {
    /// The gateway or set of listeners; its namespace is always written.
    pub ancestor: ParentRef,
    /// `Accepted`, and `ResolvedRefs` where the policy has references.
    pub conditions: Vec<Condition>,
}
