//! One address is one thing.

use std::collections::BTreeMap;
use std::net::IpAddr;

use crate::document::Drafts;
use crate::document::addresses::Placed;
use crate::document::gateway::AddressDraft;
use crate::model::{Cidr, Timestamp};
use crate::reader::Sink;
use crate::report::Source;

/// A network, who has it, and where that is written.
struct Claim {
    rank: Rank,
    created: Option<Timestamp>,
    network: Cidr,
    owner: String,
    source: Source,
}

/// Who goes before whom: documents of a team take nothing from what is everybody's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Rank {
    Platform,
    Node,
    Gateway,
    Cell,
}

const GATEWAY: &str = "a gateway";

/// Addresses that are not cells'.
pub(super) struct Others(Vec<Cidr>);

impl Others {
    pub(super) fn of(drafts: &Drafts) -> Self {
        let claims = claims(drafts).into_iter();
        let others = claims.filter(|claim| claim.rank != Rank::Cell);
        Self(others.map(|claim| claim.network).collect())
    }

    pub(super) fn have(&self, address: IpAddr) -> bool {
        let address = Cidr::host(address);
        self.0.iter().any(|network| network.contains(&address))
    }
}

/// Reports every address that a second owner claims. The kernel judges a packet by its address: it
/// must mean one thing.
pub(super) fn unique(drafts: &Drafts, sink: &Sink) {
    let mut claims = claims(drafts);
    claims.sort_by(|a, b| {
        let order = |claim: &Claim| (claim.rank, claim.created.is_none(), claim.created);
        (order(a), a.source.position()).cmp(&(order(b), b.source.position()))
    });
    let mut taken: BTreeMap<Cidr, Claim> = BTreeMap::new();
    for claim in claims {
        // Nothing on loopback is ever on a wire.
        if claim.network.address().is_loopback() {
            continue;
        }
        match taken.get(&claim.network) {
            // Gateways may share an address as long as their ports differ.
            Some(first) if first.owner == GATEWAY && claim.owner == GATEWAY => {}
            Some(first) => sink.mistake(
                claim.source,
                format_args!(
                    "`{}` is the address of {} already, by {}",
                    shown(claim.network),
                    first.owner,
                    first.source
                ),
            ),
            None => {
                taken.insert(claim.network, claim);
            }
        }
    }
}

/// Reports every network of pods that lies inside of one before it: a pod is on one node.
pub(super) fn pod_networks(drafts: &Drafts, sink: &Sink) {
    let platforms = drafts.platforms.values();
    let platform = platforms.filter_map(|(_, draft)| draft.as_ref());
    let mut networks: Vec<(Cidr, &str, &Source)> = platform
        .flat_map(|platform| &platform.nodes)
        .chain(
            drafts
                .nodes
                .values()
                .filter_map(|(_, node)| node.as_deref())
                .filter(|node| !is_named(drafts, &node.name)),
        )
        .flat_map(|node| {
            let name = node.name.as_str();
            let own = node.pod_networks.iter();
            own.map(move |(network, source)| (*network, name, source))
        })
        .collect();
    // Networks are apart or one is inside the other, which then follows it with nothing wider between.
    networks.sort_by(|(a, _, one), (b, _, other)| {
        (a.address(), a.length(), one.position()).cmp(&(b.address(), b.length(), other.position()))
    });
    let mut outer: Option<(Cidr, &str, &Source)> = None;
    for (network, node, source) in networks {
        match outer {
            Some((wide, owner, first)) if wide.contains(&network) => sink.mistake(
                source.clone(),
                format_args!(
                    "`{network}` is inside of `{wide}`, the pods of node `{owner}`, by {first}"
                ),
            ),
            _ => outer = Some((network, node, source)),
        }
    }
}

/// Whether the platform says itself what a node is.
fn is_named(drafts: &Drafts, node: &str) -> bool {
    let platforms = drafts.platforms.values();
    let mut nodes = platforms
        .filter_map(|(_, platform)| platform.as_ref())
        .flat_map(|platform| &platform.nodes);
    nodes.any(|one| one.name == node)
}

fn claims(drafts: &Drafts) -> Vec<Claim> {
    let mut claims = Vec::new();
    let mut aged = |rank, created, placed: &[Placed], owner: &str| {
        claims.extend(placed.iter().map(|placed| Claim {
            rank,
            created,
            network: Cidr::host(placed.address),
            owner: owner.to_owned(),
            source: placed.source.clone(),
        }));
    };
    let mut hosts = |rank, placed: &[Placed], owner: &str| aged(rank, None, placed, owner);
    let platforms = drafts.platforms.values();
    let platform = platforms.filter_map(|(_, draft)| draft.as_ref());
    for platform in platform.clone() {
        hosts(Rank::Platform, &platform.dns, "a name server");
        hosts(
            Rank::Platform,
            &platform.dns_service_addresses,
            "the service of the name servers",
        );
        for (gate, owner) in [
            (&platform.external, "the external gate of another node"),
            (&platform.internal, "the internal gate of another node"),
        ] {
            if let Some(gate) = gate {
                hosts(Rank::Platform, &gate.remote_addresses, owner);
            }
        }
        for node in &platform.nodes {
            let owner = format!("node `{}`", node.name);
            hosts(Rank::Platform, &node.addresses, &owner);
        }
    }
    for node in drafts.nodes.values().filter_map(|(_, node)| node.as_ref()) {
        if !is_named(drafts, &node.name) {
            let owner = format!("node `{}`", node.name);
            hosts(Rank::Node, &node.addresses, &owner);
        }
    }
    for draft in drafts.gateways.values().filter_map(|(_, d)| d.as_ref()) {
        for address in &draft.addresses {
            if let AddressDraft::Fixed(placed) = address {
                aged(
                    Rank::Gateway,
                    draft.created,
                    std::slice::from_ref(placed),
                    GATEWAY,
                );
            }
        }
    }
    for draft in drafts.cells.values().filter_map(|(_, d)| d.as_ref()) {
        for (component, placed) in &draft.addresses {
            aged(
                Rank::Cell,
                draft.created,
                std::slice::from_ref(placed),
                &format!("component `{component}`"),
            );
        }
    }
    for service in platform.flat_map(|platform| &platform.services) {
        claims.extend(service.addresses.iter().map(|network| Claim {
            rank: Rank::Platform,
            created: None,
            network: *network,
            owner: format!("service `{}`", service.name),
            source: service.declared.clone(),
        }));
    }
    claims
}

/// A network; one address without its length.
fn shown(network: Cidr) -> String {
    if network == Cidr::host(network.address()) {
        network.address().to_string()
    } else {
        network.to_string()
    }
}
