//! What a generation means to the kernel, as plain data: made by `compile`, compared by tests, written by `write`.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use agent_common::{Backend as WireBackend, Endpoint, IdentityKey, IdentityValue};
use agent_common::{Identity, Listener, Rule, RuleKey, SocketKey, address_bytes};

/// Everything that one generation writes into the kernel's maps.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KernelTables {
    /// The generation's number, above 0.
    pub generation: u32,
    /// Identity by network, longest prefix wins. An address without entry is nobody's and denied.
    pub identities: BTreeMap<Network, Owner>,
    /// Rules of each component that has a pod on this node.
    pub policies: BTreeMap<Identity, Rules>,
    /// Local pods by host-side interface.
    pub endpoints: BTreeMap<u32, Pod>,
    /// Backends by service address. Without backends connections are refused.
    pub services: BTreeMap<ServiceAddress, Vec<Backend>>,
    /// Gateways' addresses and the gate that each plays ([`Identity::NONE`] for neither).
    pub listeners: BTreeMap<ServiceAddress, Identity>,
    /// Cells by the number under which the kernel counts their packets.
    pub cells: BTreeMap<u32, String>,
    /// What rule numbers in events mean.
    pub rules: BTreeMap<u32, String>,
}

/// Rules of one component.
pub type Rules = BTreeMap<RuleKey, Rule>;

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
    pub(super) fn around(&self, bits: u32) -> Self {
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
    /// The component that it runs.
    pub identity: Identity,
    /// Number of its cell in [`KernelTables::cells`].
    pub cell: u32,
    /// Its own hardware address.
    pub mac: [u8; 6],
}

impl Pod {
    /// The wire form, with the slots of the component's rules and of the pod's flows.
    pub(super) fn endpoint(&self, policy: u32, flows: u32) -> Endpoint {
        Endpoint::new(self.identity, self.cell, policy, flows, self.mac)
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

/// Where a service's connections go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Backend {
    /// The address, of the service's family.
    pub address: IpAddr,
    /// The port.
    pub port: u16,
}

impl From<Backend> for WireBackend {
    fn from(backend: Backend) -> Self {
        Self::new(address_bytes(backend.address), backend.port.to_be_bytes())
    }
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
