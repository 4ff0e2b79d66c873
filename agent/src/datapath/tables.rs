//! What a generation means to the kernel, as plain data: made by `compile`, compared by tests, written by `write`.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use agent_common::{Endpoint, IdentityKey, IdentityValue};
use agent_common::{
    Identity, Listener, Lookups, Rule, RuleKey, SocketKey, address_bytes, address_ip,
};
use snapshot::Source;

/// A map in the order of its keys. A copy has all its nodes in common with the original, and a change takes copies of those
/// few that lead to it. So it costs as much as it changes to make the tables of the next generation, to keep those before, and to
/// find where two differ.
pub type Table<K, V> = imbl::OrdMap<K, V>;

/// Everything that one generation writes into the kernel's maps. What grows with the documents is in [`Table`]s, the rest with
/// the node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KernelTables {
    /// The generation's number, above 0.
    pub generation: u32,
    /// Identity by network, longest prefix wins. An address without entry is nobody's and denied.
    pub identities: Table<Network, Owner>,
    /// Rules of each component that has a pod on this node, and of pods here that network policies restrict.
    pub policies: Table<Identity, Rules>,
    /// Local pods by host-side interface.
    pub endpoints: BTreeMap<u32, Pod>,
    /// Services by address.
    pub services: Table<ServiceAddress, Service>,
    /// Gateways' addresses and the gate that each plays ([`Identity::NONE`] for neither).
    pub listeners: BTreeMap<ServiceAddress, Identity>,
    /// Cells by the number under which the kernel counts their packets.
    pub cells: Table<u32, String>,
    /// What rule numbers in events and hits mean.
    pub rules: Table<u32, RuleSource>,
}

/// Rules of one component.
pub type Rules = Table<RuleKey, Rule>;

/// What made a rule: one declaration, or several that come to the same rule. They are all of one document.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RuleSource {
    /// What was declared, such as `public acme/shop/prod/web/site`.
    text: String,
    /// Where, in the order of the document.
    sources: Vec<Source>,
}

impl RuleSource {
    /// A rule by what was declared, and where.
    pub fn new<'a>(declarations: impl IntoIterator<Item = (&'a str, Source)>) -> Self {
        let mut texts: Vec<&str> = Vec::new();
        let mut sources = Vec::new();
        for (text, source) in declarations {
            if !texts.contains(&text) {
                texts.push(text);
            }
            sources.push(source);
        }
        Self {
            text: few(&texts),
            sources,
        }
    }

    /// What was declared, such as `public acme/shop/prod/web/site`.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Every field that made the rule.
    #[must_use]
    pub fn sources(&self) -> &[Source] {
        &self.sources
    }

    /// File, line and document, as refusals name them: `shop.yaml:21 (Cell default/shop)`.
    #[must_use]
    pub fn document(&self) -> String {
        self.sources
            .first()
            .map_or_else(String::new, |source| source.at("").to_string())
    }

    /// The field, such as `spec.egress.south[2]`. Of several the first few are named.
    #[must_use]
    pub fn field(&self) -> String {
        let fields: Vec<&str> = self.sources.iter().map(|source| &*source.field).collect();
        few(&fields)
    }
}

/// Texts that an event has room for; a component may call hundreds of names through one port.
const NAMED: usize = 3;

fn few(texts: &[&str]) -> String {
    let named = &texts[..texts.len().min(NAMED)];
    match texts.len() - named.len() {
        0 => named.join(", "),
        more => format!("{} and {more} more", named.join(", ")),
    }
}

/// A network, ordered so that tables are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Network {
    /// Address in map form.
    address: [u8; 16],
    /// Bits of the map form: 96 more than an IPv4 prefix has.
    bits: u32,
}

impl Network {
    /// `length` in bits of the address' own family; longer ones are cut to it, and so are bits behind the prefix.
    #[must_use]
    pub fn new(address: IpAddr, length: u8) -> Self {
        let bits = match address {
            IpAddr::V4(_) => 96 + u32::from(length.min(32)),
            IpAddr::V6(_) => u32::from(length.min(128)),
        };
        Self {
            address: address_bytes(address),
            bits: 128,
        }
        .around(bits)
    }

    /// The network of one address.
    #[must_use]
    pub fn host(address: IpAddr) -> Self {
        Self {
            address: address_bytes(address),
            bits: 128,
        }
    }

    /// The address of a network of one address.
    #[must_use]
    pub fn host_address(&self) -> Option<IpAddr> {
        (self.bits == 128).then(|| address_ip(self.address))
    }

    /// Address in map form.
    #[must_use]
    pub fn address(&self) -> [u8; 16] {
        self.address
    }

    /// Prefix length in map form.
    #[must_use]
    pub fn bits(&self) -> u32 {
        self.bits
    }

    /// The network of `bits` bits around this one; bits behind its prefix are cut.
    #[must_use]
    pub fn around(&self, bits: u32) -> Self {
        let bits = bits.min(self.bits);
        let keep = u128::MAX.checked_shl(128 - bits).unwrap_or(0);
        Self {
            address: (u128::from_be_bytes(self.address) & keep).to_be_bytes(),
            bits,
        }
    }

    pub(super) fn key(&self) -> IdentityKey {
        IdentityKey::new(self.bits, self.address)
    }
}

impl From<IdentityKey> for Network {
    fn from(key: IdentityKey) -> Self {
        Self {
            address: key.address(),
            bits: key.bits(),
        }
    }
}

/// Who owns a network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Owner {
    /// Its identity.
    pub identity: Identity,
    /// Host-side interface of a local pod, [`IdentityValue::THIS_NODE`] for this node's own, 0 otherwise.
    pub ifindex: u32,
    /// Number of a component's cell in [`KernelTables::cells`], 0 for everything else.
    pub cell: u32,
}

impl From<Owner> for IdentityValue {
    fn from(owner: Owner) -> Self {
        Self::new(owner.identity, owner.ifindex, owner.cell)
    }
}

impl From<IdentityValue> for Owner {
    fn from(value: IdentityValue) -> Self {
        Self {
            identity: value.identity(),
            ifindex: value.ifindex(),
            cell: value.cell(),
        }
    }
}

/// A local pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pod {
    /// Name of its host-side interface.
    pub ifname: String,
    /// The component that it runs, or the part of one, or of an identity of no cell, that network policies tell from others.
    pub identity: Identity,
    /// What stays when network policies take the pod for another part: its component, or [`Identity::WORLD`] for a pod of no cell.
    /// None where an earlier agent left it, and the kernel does not tell.
    pub whole: Option<Identity>,
    /// Number of its cell in [`KernelTables::cells`].
    pub cell: u32,
    /// What its rules need to be found.
    pub lookups: Lookups,
    /// Its own hardware address.
    pub mac: [u8; 6],
}

impl Pod {
    /// The wire form, with the slots of the component's rules and of the pod's flows.
    pub(super) fn endpoint(&self, policy: u32, flows: u32) -> Endpoint {
        Endpoint::new(
            self.identity,
            self.cell,
            policy,
            flows,
            self.lookups,
            self.mac,
        )
    }
}

/// An address, port and protocol that something answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ServiceAddress {
    /// The address.
    pub address: IpAddr,
    /// The port.
    pub port: u16,
    /// IP protocol number (6 TCP, 17 UDP).
    pub protocol: u8,
}

impl ServiceAddress {
    /// The key of the router's socket for the address.
    #[must_use]
    pub fn socket_key(&self) -> SocketKey {
        SocketKey::new(
            address_bytes(self.address),
            self.port.to_be_bytes(),
            self.protocol,
        )
    }
}

/// Where connections to a service address go.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Service {
    /// Who answers. Without any connections are refused.
    pub backends: Vec<Backend>,
    /// How long a client keeps its backend after its last connection, in whole seconds (more is rounded up).
    pub affinity: Option<Duration>,
}

/// A backend of a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Backend {
    /// The address, of the service's family.
    pub address: IpAddr,
    /// The port.
    pub port: u16,
    /// Its share of new connections among the service's backends; none at 0.
    pub weight: u32,
}

impl KernelTables {
    /// The interfaces that must be guarded.
    #[must_use]
    pub fn interfaces(&self) -> BTreeSet<u32> {
        self.endpoints.keys().copied().collect()
    }

    /// The wire form of a listener.
    pub(super) fn listener(gate: Identity) -> Listener {
        Listener::new(gate)
    }
}
