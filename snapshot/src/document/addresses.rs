//! Addresses and networks in documents.

use std::net::{IpAddr, Ipv4Addr};

use crate::model::{Cidr, METADATA};
use crate::reader::Field;
use crate::report::Source;
use crate::tree::shortened;

/// An address and where it was written.
#[derive(Clone, Debug)]
pub(crate) struct Placed {
    pub(crate) address: IpAddr,
    pub(crate) source: Source,
}

/// Any unicast address. IPv4-mapped IPv6 is refused: it would be a second spelling of an IPv4 address.
pub(crate) fn address(field: &Field<'_>) -> Option<Placed> {
    let text = field.string()?;
    let Ok(address) = text.parse::<IpAddr>() else {
        let hint = if text.contains('/') {
            " without prefix length"
        } else {
            ""
        };
        field.expected(format_args!(
            "an IPv4 or IPv6 address{hint} such as `10.1.0.5` or `fd00::5`"
        ));
        return None;
    };
    let wrong = if address.is_unspecified() {
        Some("is the unspecified address")
    } else if address.is_multicast() || address == IpAddr::V4(Ipv4Addr::BROADCAST) {
        Some("is a multicast or broadcast address")
    } else if matches!(address, IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some()) {
        Some("is an IPv4-mapped address; write it as IPv4")
    } else {
        None
    };
    if let Some(wrong) = wrong {
        field.mistake(format_args!(
            "expected a unicast address, but `{address}` {wrong}"
        ));
        return None;
    }
    Some(Placed {
        address,
        source: field.source().clone(),
    })
}

/// What an address is that leads a program on a node's network to the node itself, or to what only the node is to reach; none: it
/// leads elsewhere.
pub(crate) fn of_node(address: IpAddr) -> Option<&'static str> {
    let address = address.to_canonical();
    let link_local = match address {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    };
    if address.is_loopback() || address.is_unspecified() {
        // A connection to no address goes to the loopback one.
        Some("a loopback address")
    } else if METADATA.contains(&address) {
        Some("the address of the instance metadata service")
    } else {
        link_local.then_some("an address of the link")
    }
}

/// An address that a pod, a node or a service has on a network, as the cluster says: not loopback. It may be one of the metadata
/// service of another cloud.
pub(crate) fn cluster_address(field: &Field<'_>) -> Option<Placed> {
    let placed = address(field)?;
    if placed.address.is_loopback() {
        field.mistake(format_args!(
            "expected an address of a network, but `{}` is a loopback address",
            placed.address
        ));
        return None;
    }
    Some(placed)
}

/// An address of a network that somebody may claim: not the metadata service either.
pub(crate) fn network_address(field: &Field<'_>) -> Option<Placed> {
    let placed = cluster_address(field)?;
    if METADATA.contains(&placed.address) {
        field.mistake(format_args!(
            "`{}` is the address of the instance metadata service",
            placed.address
        ));
        return None;
    }
    Some(placed)
}

/// Addresses of a list, each once.
pub(crate) fn addresses(
    items: Vec<Field<'_>>,
    read: impl Fn(&Field<'_>) -> Option<Placed>,
) -> Vec<Placed> {
    let mut placed: Vec<Placed> = Vec::new();
    let mut seen = std::collections::BTreeMap::new();
    for item in items {
        let Some(new) = read(&item) else { continue };
        match seen.get(&new.address) {
            Some(first) => item.mistake(format_args!("`{}` is in {first} already", new.address)),
            None => {
                seen.insert(new.address, new.source.field.clone());
                placed.push(new);
            }
        }
    }
    placed
}

/// A network. A single address is refused: whether `/32` was meant is for the author to say.
pub(crate) fn network(field: &Field<'_>) -> Option<Cidr> {
    let text = field.string()?;
    if let Ok(address) = text.parse::<IpAddr>() {
        field.mistake(format_args!(
            "expected a network with its prefix length; for this one address write `{}`",
            Cidr::host(address)
        ));
        return None;
    }
    let network: Cidr = field.parse(str::parse)?;
    if let IpAddr::V6(v6) = network.address()
        && v6.to_ipv4_mapped().is_some()
        && network.length() >= 96
    {
        field.mistake(format_args!(
            "`{}` is a network of IPv4-mapped addresses; write it as IPv4",
            shortened(text)
        ));
        return None;
    }
    Some(network)
}

#[cfg(test)]
mod tests {
    use super::of_node;

    #[test]
    fn what_is_the_nodes_is_told_however_it_is_written() {
        for (text, own) in [
            ("10.1.0.1", false),
            ("2001:db8::1", false),
            ("::ffff:10.1.0.1", false),
            ("127.0.0.1", true),
            ("0.0.0.0", true),
            ("::", true),
            ("::1", true),
            ("::ffff:127.0.0.1", true),
            ("::ffff:0.0.0.0", true),
            ("::ffff:169.254.169.254", true),
            ("fd00:ec2::254", true),
            ("fd20:ce::254", true),
            ("100.100.100.200", true),
            ("::ffff:168.63.129.16", true),
            ("fe80::1", true),
        ] {
            let address = text.parse().expect("table entry is an address");
            assert_eq!(of_node(address).is_some(), own, "{text}");
        }
    }
}
