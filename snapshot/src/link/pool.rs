//! Addresses for gateways that ask for none of their own.

use std::collections::BTreeSet;
use std::net::IpAddr;

use sha2::{Digest, Sha256};

use crate::model::{Cidr, ObjectName};

/// Addresses that are looked at before a pool counts as full.
const TRIES: u128 = 1 << 16;

/// Networks whose addresses lead to the nodes, and what of them is given away.
pub(super) struct Pool<'a> {
    networks: &'a [Cidr],
    taken: BTreeSet<IpAddr>,
}

impl<'a> Pool<'a> {
    pub(super) fn new(networks: &'a [Cidr]) -> Self {
        Self {
            networks,
            taken: BTreeSet::new(),
        }
    }

    /// Whether a gateway can have this address. Without networks nobody says which it cannot have.
    pub(super) fn has(&self, address: IpAddr) -> bool {
        let address = Cidr::host(address);
        self.networks.is_empty() || self.networks.iter().any(|one| one.contains(&address))
    }

    /// Gives this one away.
    pub(super) fn take(&mut self, address: IpAddr) -> bool {
        self.taken.insert(address)
    }

    /// Gives back to a gateway what it had before, if it can have it still.
    pub(super) fn keep(&mut self, address: IpAddr) -> bool {
        !self.networks.is_empty() && self.has(address) && self.take(address)
    }

    /// Gives away one of each family that there are networks of. Where it begins to look depends on the name, so that
    /// gateways seldom meet, and one that goes moves nobody.
    pub(super) fn assign(&mut self, name: &ObjectName, family: Family) -> Option<IpAddr> {
        let digest = Sha256::digest(name.to_string());
        let mut start = [0; 16];
        start.copy_from_slice(&digest[..16]);
        let start = u128::from_be_bytes(start);
        let networks = self.networks.iter().filter(|one| family.has(one.address()));
        for network in networks {
            let (first, count) = hosts(network);
            for step in 0..TRIES.min(count) {
                let offset = (start % count + step) % count;
                let address = match network.address() {
                    IpAddr::V4(v4) => {
                        let offset = u32::try_from(first + offset).unwrap_or_default();
                        IpAddr::V4((u32::from(v4) | offset).into())
                    }
                    IpAddr::V6(v6) => IpAddr::V6((u128::from(v6) | (first + offset)).into()),
                };
                if self.taken.insert(address) {
                    return Some(address);
                }
            }
        }
        None
    }

    /// Families that there are networks of.
    pub(super) fn families(&self) -> impl Iterator<Item = Family> + use<'_> {
        [Family::V4, Family::V6]
            .into_iter()
            .filter(|family| self.networks.iter().any(|one| family.has(one.address())))
    }
}

/// A family of addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Family {
    V4,
    V6,
}

impl Family {
    pub(super) fn has(self, address: IpAddr) -> bool {
        address.is_ipv4() == (self == Self::V4)
    }
}

/// The first address of a network that a host can have, relative to it, and how many there are: without that of the
/// network itself and, in IPv4, the broadcast address.
fn hosts(network: &Cidr) -> (u128, u128) {
    let v4 = network.address().is_ipv4();
    let width = if v4 { 32 } else { 128 };
    let bits = u32::from(width - network.length()).min(64);
    let all = 1u128 << bits;
    match (bits, v4) {
        (0, _) | (1, true) => (0, all),
        (_, true) => (1, all - 2),
        (_, false) => (1, all - 1),
    }
}

#[cfg(test)]
mod tests {
    use super::{Family, Pool};
    use crate::model::{Cidr, ObjectName};

    fn name(text: &str) -> ObjectName {
        ObjectName::new("shop", text).expect("a name")
    }

    #[test]
    fn a_pool_gives_each_address_once_and_says_when_it_is_empty() {
        let networks: Vec<Cidr> = ["10.0.0.0/29", "2001:db8::/126"]
            .iter()
            .map(|text| text.parse().expect("a network"))
            .collect();
        let mut pool = Pool::new(&networks);
        assert_eq!(
            pool.families().collect::<Vec<_>>(),
            [Family::V4, Family::V6]
        );
        assert!(pool.keep("10.0.0.3".parse().expect("an address")));
        assert!(!pool.keep("10.0.0.3".parse().expect("an address")));
        assert!(!pool.keep("10.0.1.3".parse().expect("an address")));
        let mut given: Vec<String> = (0..5)
            .filter_map(|n| pool.assign(&name(&format!("g{n}")), Family::V4))
            .map(|address| address.to_string())
            .collect();
        given.sort();
        assert_eq!(
            given,
            ["10.0.0.1", "10.0.0.2", "10.0.0.4", "10.0.0.5", "10.0.0.6"]
        );
        assert_eq!(pool.assign(&name("last"), Family::V4), None);
        assert!(pool.assign(&name("last"), Family::V6).is_some());
    }

    #[test]
    fn the_same_name_gets_the_same_address() {
        let networks = ["198.19.0.0/19".parse::<Cidr>().expect("a network")];
        let first = Pool::new(&networks).assign(&name("web"), Family::V4);
        assert_eq!(first, Pool::new(&networks).assign(&name("web"), Family::V4));
    }
}
