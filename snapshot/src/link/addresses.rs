//! One address is one thing.

use std::collections::{BTreeMap, HashSet};
use std::net::IpAddr;

use super::collect::{self, Taking};
use crate::document::addresses::Placed;
use crate::document::cell::CellDraft;
use crate::document::gateway::AddressDraft;
use crate::document::service::Ingress;
use crate::document::{Draft, Drafts};
use crate::model::{Cell, Cidr, Timestamp, Workloads};
use crate::reader::Sink;
use crate::report::Source;
use crate::shared::Shared;

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
        let claims = claims(drafts, &Foreign::default()).into_iter();
        let others = claims.filter(|claim| claim.rank != Rank::Cell);
        Self(others.map(|claim| claim.network).collect())
    }

    pub(super) fn have(&self, address: IpAddr) -> bool {
        let address = Cidr::host(address);
        self.0.iter().any(|network| network.contains(&address))
    }
}

/// Addresses that cells of a cluster list and that are pods' or services' of other namespaces, by the namespaces of these cells.
///
/// Who has an address is what the cluster says of its pods and services, whatever was there first. One that comes into
/// other hands, as those of pods do, is no mistake of whoever listed it: the cell is without it, and stays what it is otherwise.
#[derive(Default)]
pub(super) struct Foreign(BTreeMap<IpAddr, BTreeMap<String, &'static str>>);

impl Foreign {
    /// In a folder everything is one author's.
    pub(super) fn of(drafts: &Drafts, documents: &[collect::Placed<'_>], taking: Taking) -> Self {
        let mut foreign = Self::default();
        if taking == Taking::Whole {
            return foreign;
        }
        let listed: Vec<(&str, IpAddr)> = documents.iter().flat_map(listed).collect();
        let wanted: HashSet<IpAddr> = listed.iter().map(|(_, address)| *address).collect();
        if wanted.is_empty() {
            return foreign;
        }
        let mut held: Vec<(IpAddr, &str, &'static str)> = Vec::new();
        let mut hold = |address: IpAddr, namespace, what| {
            if wanted.contains(&address) {
                held.push((address, namespace, what));
            }
        };
        for (name, (_, pod)) in &drafts.pods {
            for placed in pod.iter().flat_map(|pod| &pod.addresses) {
                hold(placed.address, name.namespace(), "pod");
            }
        }
        for (name, (_, service)) in &drafts.services {
            let Some(service) = service else { continue };
            let given = service.ingress.iter().filter_map(|one| match one {
                Ingress::Address(address) => Some(*address),
                Ingress::Hostname(_) => None,
            });
            let own = service.addresses.iter().map(|placed| placed.address);
            for address in own.chain(given) {
                hold(address, name.namespace(), "`Service`");
            }
        }
        held.sort_unstable();
        for (namespace, address) in listed {
            let first = held.partition_point(|(one, ..)| *one < address);
            let mut holders = held[first..].iter().take_while(|(one, ..)| *one == address);
            let Some((_, _, what)) = holders.clone().next() else {
                continue;
            };
            // Of a pod that is gone its object may stay for a while: what a namespace has itself is not another one's.
            if !holders.any(|(_, own, _)| *own == namespace) {
                let of = foreign.0.entry(address).or_default();
                of.insert(namespace.to_owned(), *what);
            }
        }
        foreign
    }

    /// What an address is of another namespace than this one; none: nothing.
    pub(super) fn what(&self, address: IpAddr, namespace: &str) -> Option<&'static str> {
        self.0.get(&address)?.get(namespace).copied()
    }

    /// Leaves out of a cell what is not its own, and says so.
    pub(super) fn leave_out(&self, draft: &CellDraft, cell: &mut Shared<Cell>, sink: &Sink) {
        if self.0.is_empty() {
            return;
        }
        for (component, placed) in &draft.addresses {
            let address = placed.address;
            let Some(what) = self.what(address, &draft.namespace) else {
                continue;
            };
            sink.warning(
                placed.source.clone(),
                format_args!(
                    "`{address}` is left out: it is the address of a {what} of another namespace"
                ),
            );
            if let Some(component) = cell.components.get_mut(&component.component) {
                if let Workloads::Addresses(addresses) = &mut component.workloads {
                    addresses.retain(|one| *one != address);
                }
                component.service_addresses.retain(|one| *one != address);
            }
        }
    }
}

/// Addresses that a document of a cell lists, refused or not, each with its namespace.
fn listed<'d>(placed: &collect::Placed<'d>) -> impl Iterator<Item = (&'d str, IpAddr)> {
    let document = placed.document;
    let own = match &document.draft {
        Draft::Cell(draft) => draft.as_deref(),
        _ => None,
    };
    let own = own.into_iter().flat_map(|draft| &draft.addresses);
    let own = own.map(|(_, placed)| placed.address);
    let closes = document.closes.iter();
    let remains = closes.filter_map(|closes| closes.cell.as_ref());
    let left = remains.flat_map(|remains| &remains.workloads);
    let left = left.flat_map(|(_, workloads)| workloads.addresses());
    let namespace = document.meta.name.namespace();
    let all = own.chain(left.copied());
    all.map(move |address| (namespace, address))
}

/// Reports every address that a second owner claims. The kernel judges a packet by its address: it
/// must mean one thing.
pub(super) fn unique(drafts: &Drafts, foreign: &Foreign, sink: &Sink) {
    let mut claims = claims(drafts, foreign);
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

/// Who claims what. To list what is foreign is no claim.
fn claims(drafts: &Drafts, foreign: &Foreign) -> Vec<Claim> {
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
        let own =
            |(_, placed): &&(_, Placed)| foreign.what(placed.address, &draft.namespace).is_none();
        for (component, placed) in draft.addresses.iter().filter(own) {
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
