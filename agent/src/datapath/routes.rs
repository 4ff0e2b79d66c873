//! The policy route of steered packets: what carries the steering mark is delivered to this host, whatever its
//! destination. Steering breaks without it, so it is ensured again whenever the agent looks after the node.
//!
//! It is there only while a generation steers: with any policy rule the kernel has to walk the rules for each route that it
//! looks up, which costs every routed packet of the node several percent.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;

use agent_common::Mark;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    route::{RouteAttribute, RouteMessage, RouteProtocol, RouteScope, RouteType},
    rule::{RuleAction, RuleAttribute, RuleMessage},
};

use super::{error::Error, netlink::Netlink};

/// Before the rules that people add, after the local table (0).
const PRIORITY: u32 = 101;
/// The loopback interface is the first of every network namespace (`LOOPBACK_IFINDEX`).
const LOOPBACK: u32 = 1;

/// Installs rule and route for each family that the node speaks; what is there already stays.
pub(super) fn ensure() -> Result<(), Error> {
    let mut netlink = open()?;
    for family in families() {
        let rule = RouteNetlinkMessage::NewRule(rule(family));
        match netlink.request(rule, NLM_F_CREATE | NLM_F_EXCL) {
            Err(error) if error.raw_os_error() == Some(libc::EEXIST) => {}
            result => {
                drop(result.map_err(Error::kernel("install the policy rule of steered packets"))?)
            }
        }
        let route = RouteNetlinkMessage::NewRoute(route(family));
        netlink
            .request(route, NLM_F_CREATE | NLM_F_REPLACE)
            .map_err(Error::kernel(
                "install the local route of steered packets (is the loopback interface up?)",
            ))?;
    }
    Ok(())
}

/// Takes rule and route away; what is gone already is fine.
pub(super) fn remove() -> Result<(), Error> {
    let mut netlink = open()?;
    for family in families() {
        for message in [
            RouteNetlinkMessage::DelRule(rule(family)),
            RouteNetlinkMessage::DelRoute(route(family)),
        ] {
            match netlink.request(message, 0) {
                Err(error) if is_gone(&error) => {}
                result => drop(
                    result.map_err(Error::kernel("remove the policy route of steered packets"))?,
                ),
            }
        }
    }
    Ok(())
}

fn open() -> Result<Netlink, Error> {
    Netlink::open().map_err(Error::kernel("open a netlink socket"))
}

fn is_gone(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ESRCH))
}

fn families() -> impl Iterator<Item = AddressFamily> {
    // Absent when IPv6 is compiled out or disabled at boot.
    let ipv6 = Path::new("/proc/thread-self/net/if_inet6").exists();
    [AddressFamily::Inet]
        .into_iter()
        .chain(ipv6.then_some(AddressFamily::Inet6))
}

fn rule(family: AddressFamily) -> RuleMessage {
    let mut rule = RuleMessage::default();
    rule.header.family = family;
    rule.header.action = RuleAction::ToTable;
    rule.attributes = vec![
        RuleAttribute::Table(Mark::STEER_TABLE),
        RuleAttribute::Priority(PRIORITY),
        RuleAttribute::FwMark(Mark::Steer.raw()),
        RuleAttribute::FwMask(Mark::MASK),
    ];
    rule
}

fn route(family: AddressFamily) -> RouteMessage {
    let any: IpAddr = match family {
        AddressFamily::Inet6 => Ipv6Addr::UNSPECIFIED.into(),
        _ => Ipv4Addr::UNSPECIFIED.into(),
    };
    let mut route = RouteMessage::default();
    route.header.address_family = family;
    route.header.protocol = RouteProtocol::Static;
    route.header.kind = RouteType::Local;
    route.header.scope = if any.is_ipv4() {
        RouteScope::Host
    } else {
        RouteScope::Universe
    };
    route.attributes = vec![
        RouteAttribute::Table(Mark::STEER_TABLE),
        RouteAttribute::Oif(LOOPBACK),
    ];
    route
}
