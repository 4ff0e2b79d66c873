//! Who owns an address, the later line winning over the earlier:
//! world, networks of declared south calls, networks of platform services, other nodes, this node, name servers, gates,
//! the metadata service (but where it is a name server), components. A network of a south call therefore never reaches a node, gate or pod inside it,
//! and a network of the platform only if the call names that network or one inside it. Whom network policies tell apart has a
//! part of what stands here (`parts`).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use agent_common::{Identity, IdentityValue};
use imbl::ordmap::DiffItem;
use snapshot::Snapshot;
use snapshot::model::{Gate, METADATA};

use super::claims::Claims;
use super::names::{Names, Networks};
use super::parts::Parts;
use super::places::Places;
use crate::datapath::{Discovery, Network, Owner, Table};

/// Everybody but the components.
pub(super) fn others(
    snapshot: &Snapshot,
    networks: &Networks,
    discovery: &Discovery,
) -> Table<Network, Owner> {
    let mut owners = Table::new();
    let mut own = |network: Network, identity: Identity, ifindex: u32| {
        let owner = Owner {
            identity,
            ifindex,
            cell: 0,
        };
        owners.insert(network, owner);
    };
    for all in [
        IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    ] {
        own(Network::new(all, 0), Identity::WORLD, 0);
    }
    for (cidr, identity) in networks.external.iter().chain(&networks.platform) {
        own(Network::new(cidr.address(), cidr.length()), *identity, 0);
    }
    let platform = &snapshot.platform;
    for address in platform.nodes.iter().flat_map(|node| &node.addresses) {
        own(Network::host(*address), Identity::OTHER_NODE, 0);
    }
    for address in &discovery.node_addresses {
        own(Network::host(*address), Identity::NODE, 0);
    }
    for address in &platform.dns {
        own(Network::host(*address), Identity::DNS, 0);
    }
    // An address that plays both gates counts as the west one: calls to it are judged by what the caller declared.
    for (reference, gate) in [
        (&platform.external, Identity::NORTH_GATE),
        (&platform.internal, Identity::WEST_GATE),
    ] {
        for address in reference
            .iter()
            .flat_map(|reference| &reference.remote_addresses)
        {
            own(Network::host(*address), gate, 0);
        }
    }
    for kind in [Gate::External, Gate::Internal] {
        for gateway in snapshot
            .gateways
            .values()
            .filter(|gateway| gateway.gate == Some(kind))
        {
            for address in &gateway.addresses {
                own(
                    Network::host(*address),
                    super::gate(kind),
                    IdentityValue::THIS_NODE,
                );
            }
        }
    }
    // On some clouds one is a name server too: of one that the platform lists, port 53 is open and nothing else.
    for address in METADATA {
        if !platform.dns.contains(&address) {
            own(Network::host(address), Identity::METADATA, 0);
        }
    }
    // Whatever else an address of this node is, as that of a name server which runs on every node: what goes there ends here, and
    // who calls from there is the node.
    for address in &discovery.node_addresses {
        if let Some(owner) = owners.get_mut(&Network::host(*address)) {
            owner.ifindex = IdentityValue::THIS_NODE;
        }
    }
    owners
}

/// What decides who owns an address.
pub(super) struct Owners<'a> {
    pub(super) names: &'a Names,
    pub(super) workloads: &'a Claims,
    pub(super) places: &'a Places,
    pub(super) parts: &'a Parts,
    /// Everybody but the components.
    pub(super) others: &'a Table<Network, Owner>,
}

impl Owners<'_> {
    /// Puts `identities`, which are those of `before` as others, right where others are not as before.
    pub(super) fn others_changed(
        &self,
        identities: &mut Table<Network, Owner>,
        before: &Table<Network, Owner>,
    ) {
        for change in before.diff(self.others) {
            let (DiffItem::Add(network, _)
            | DiffItem::Remove(network, _)
            | DiffItem::Update {
                new: (network, _), ..
            }) = change;
            match network.host_address() {
                Some(address) => self.set(identities, address),
                None => self.set_other(identities, *network),
            }
        }
    }

    /// Puts the entry of one address right.
    pub(super) fn set(&self, identities: &mut Table<Network, Owner>, address: IpAddr) {
        let network = Network::host(address);
        let part = self.parts.members.get(&address).copied();
        let here = self.places.owned.get(&address).copied();
        let owner = match (self.workloads.owner(&address), part) {
            (Some(id), part) => Owner {
                identity: part.unwrap_or_else(|| self.names.component(id)),
                ifindex: here.unwrap_or(0),
                cell: self.names.cell(&id.cell),
            },
            (None, Some(identity)) => {
                let other = self.others.get(&network);
                Owner {
                    identity,
                    ifindex: here.or(other.map(|owner| owner.ifindex)).unwrap_or(0),
                    cell: 0,
                }
            }
            (None, None) => return self.set_other(identities, network),
        };
        set(identities, network, Some(owner));
    }

    fn set_other(&self, identities: &mut Table<Network, Owner>, network: Network) {
        set(identities, network, self.others.get(&network).copied());
    }
}

/// Nodes that stay as they are stay in common with the tables before.
fn set(identities: &mut Table<Network, Owner>, network: Network, owner: Option<Owner>) {
    match owner {
        Some(owner) if identities.get(&network) == Some(&owner) => {}
        Some(owner) => drop(identities.insert(network, owner)),
        None => drop(identities.remove(&network)),
    }
}
