//! From a snapshot to tables: pure, so that the same input gives the same bytes.

mod client;
mod filter;
pub mod kernel;
pub mod route;
mod traffic;

use std::net::IpAddr;

use snapshot::model::Platform;

use crate::datapath::Discovery;

/// Addresses that the platform knows this node by, and that its interfaces have.
pub(crate) fn node_addresses(platform: &Platform, discovery: &Discovery) -> Vec<IpAddr> {
    let addresses = platform.nodes.iter().flat_map(|node| &node.addresses);
    addresses
        .filter(|address| discovery.node_addresses.contains(address))
        .copied()
        .collect()
}
