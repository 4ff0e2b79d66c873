//! What network policies say about pods, and whom they tell apart.
//!
//! A policy names pods by labels and addresses by networks. Here both are resolved: each address that a policy tells from
//! others has a class, and pods of one class are alike to every policy, as those who are isolated and as those who are named.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use super::{Cidr, Declared, Gate, Port, Transport};
use crate::shared::Shared;

/// Whose traffic `NetworkPolicy` documents restrict.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PolicyScope {
    /// That of pods which belong to a cell.
    #[default]
    Cells,
    /// That of all pods.
    All,
}

/// Everything that network policies say. Without policies it is empty.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NetworkPolicies {
    /// The classes of addresses, and what policies say of each.
    pub classes: Shared<Classes>,
    /// The class of each address that has one.
    pub members: Shared<BTreeMap<IpAddr, ClassId>>,
}

/// Classes of addresses.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Classes {
    /// By name.
    pub of: BTreeMap<ClassId, AddressClass>,
    /// Networks that rules name, each once. They also tell addresses apart that no pod has.
    pub blocks: Vec<IpBlock>,
    /// Selectors that select a gate, which policies take for a pod of its gateway.
    pub gates: BTreeMap<Gate, BTreeSet<PeerId>>,
}

impl Classes {
    /// The networks that rules name.
    pub fn blocks(&self) -> impl Iterator<Item = (BlockId, &IpBlock)> {
        let blocks = self.blocks.iter().enumerate();
        blocks.map(|(at, block)| (BlockId(at), block))
    }
}

/// The name of a class: what makes its members alike, in words. Another set of policies may give the same class.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ClassId(Arc<str>);

impl ClassId {
    pub(crate) fn new(text: &str) -> Self {
        Self(text.into())
    }

    /// The words.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ClassId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A selector of pods in the rules of this snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PeerId(pub(crate) usize);

/// A place in [`Classes::blocks`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct BlockId(pub(crate) usize);

/// Addresses that are alike to every policy.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AddressClass {
    /// Selectors that select these pods.
    pub peers: BTreeSet<PeerId>,
    /// Networks that hold these addresses.
    pub blocks: BTreeSet<BlockId>,
    /// Ports of these pods by the names that rules use.
    pub ports: BTreeMap<(Arc<str>, Transport), BTreeSet<Port>>,
    /// Who may open connections to these pods; none: no policy isolates them from anybody.
    pub ingress: Option<Vec<Arc<PolicyRule>>>,
    /// To whom these pods may open connections; none: no policy isolates them.
    pub egress: Option<Vec<Arc<PolicyRule>>>,
}

impl AddressClass {
    /// Whether a policy restricts these pods.
    pub fn is_isolated(&self) -> bool {
        self.ingress.is_some() || self.egress.is_some()
    }
}

/// One rule of a policy: connections with these peers to these ports are allowed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PolicyRule {
    /// Its document and field.
    pub declared: Declared,
    /// The policy, for events: `NetworkPolicy shop/orders`.
    pub policy: Arc<str>,
    /// The other sides; none: anybody.
    pub peers: Option<PolicyPeers>,
    /// Ports of the side that is called; none: everything that has ports or not.
    pub ports: Option<Vec<PolicyPort>>,
}

/// The other sides of a rule: what one of these names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PolicyPeers {
    /// Pods.
    pub pods: BTreeSet<PeerId>,
    /// Networks.
    pub blocks: BTreeSet<BlockId>,
    /// Parts of the platform.
    pub entities: BTreeSet<Entity>,
}

/// A part of the platform that a rule names (Cilium, entities).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Entity {
    /// The pod's own node.
    Host,
    /// Other nodes.
    RemoteNode,
    /// Everything outside of the cluster.
    World,
    /// Pods and nodes.
    Cluster,
}

/// A network without some of its parts.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct IpBlock {
    /// The network.
    pub cidr: Cidr,
    /// Parts of it that it does not stand for.
    pub except: Vec<Cidr>,
    /// Whether it stands for neither pods nor nodes, whose addresses may be inside (Cilium).
    pub outside: bool,
}

impl IpBlock {
    /// Whether it holds a network as a whole; `inside` tells that pods or nodes have it.
    pub fn holds(&self, network: &Cidr, inside: bool) -> bool {
        self.cidr.contains(network)
            && !self.except.iter().any(|part| part.contains(network))
            && !(inside && self.outside)
    }
}

impl fmt::Display for IpBlock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = if self.outside { "outside in" } else { "in" };
        write!(f, "{word} {}", self.cidr)?;
        for part in &self.except {
            write!(f, " but {part}")?;
        }
        Ok(())
    }
}

/// Ports of a rule.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PolicyPort {
    /// Their transport.
    pub transport: Transport,
    /// Which.
    pub numbers: PortNumbers,
}

/// Which ports of a transport.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum PortNumbers {
    /// All.
    All,
    /// From the first to the last.
    Range {
        /// The first.
        first: Port,
        /// The last, which is not below the first.
        last: Port,
    },
    /// Those that the called pod has under this name.
    Named(Arc<str>),
}
