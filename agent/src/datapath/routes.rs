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

/// Installs rule and route for each family that the node speaks; what is there already stays. Gives how many there are, and how
/// many were missing.
pub(super) fn ensure() -> Result<(usize, usize), Error> {
    let mut netlink = open()?;
    let (mut pieces, mut missing) = (0, 0);
    for family in families() {
        pieces += 2;
        let rule = RouteNetlinkMessage::NewRule(rule(family));
        match netlink.request(rule, NLM_F_CREATE | NLM_F_EXCL) {
            Err(error) if error.raw_os_error() == Some(libc::EEXIST) => {}
            result => {
                drop(result.map_err(Error::kernel("install the policy rule of steered packets"))?);
                missing += 1;
            }
        }
        let failed = || {
            Error::kernel(
                "install the local route of steered packets (is the loopback interface up?)",
            )
        };
        let wanted = || RouteNetlinkMessage::NewRoute(route(family));
        match netlink.request(wanted(), NLM_F_CREATE | NLM_F_EXCL) {
            // Another route to everywhere may have taken its place.
            Err(error) if error.raw_os_error() == Some(libc::EEXIST) => {
                netlink
                    .request(wanted(), NLM_F_CREATE | NLM_F_REPLACE)
                    .map_err(failed())?;
            }
            result => {
                drop(result.map_err(failed())?);
                missing += 1;
            }
        }
    }
    Ok((pieces, missing))
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

/// A part of the policy route that is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Piece {
    family: AddressFamily,
    rule: bool,
}

impl std::fmt::Display for Piece {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let family = match self.family {
            AddressFamily::Inet6 => "IPv6",
            _ => "IPv4",
        };
        if self.rule {
            write!(
                f,
                "{family} rule {PRIORITY}: mark {:#x}/{:#x} to table {:#x}",
                Mark::Steer.raw(),
                Mark::MASK,
                Mark::STEER_TABLE
            )
        } else {
            write!(f, "{family} local route of table {:#x}", Mark::STEER_TABLE)
        }
    }
}

impl Piece {
    /// Takes it away; gone already is fine.
    pub(super) fn remove(self) -> Result<(), Error> {
        let message = if self.rule {
            RouteNetlinkMessage::DelRule(rule(self.family))
        } else {
            RouteNetlinkMessage::DelRoute(route(self.family))
        };
        match open()?.request(message, 0) {
            Err(error) if is_gone(&error) => Ok(()),
            result => result
                .map(drop)
                .map_err(Error::kernel("remove the policy route of steered packets")),
        }
    }
}

/// What of the rules and routes is there, exactly as [`ensure`] makes it; others that look similar are somebody else's.
pub(super) fn find() -> Result<Vec<Piece>, Error> {
    let mut netlink = open()?;
    let mut found = Vec::new();
    for family in families() {
        let mut dump = |message| {
            netlink
                .dump(message)
                .map_err(Error::kernel("list the policy routes of this node"))
        };
        let mut asked = RuleMessage::default();
        asked.header.family = family;
        let rules = dump(RouteNetlinkMessage::GetRule(asked))?;
        let own = rule(family).attributes;
        if rules.iter().any(|message| {
            matches!(message, RouteNetlinkMessage::NewRule(rule)
                if rule.header.action == RuleAction::ToTable
                    && own.iter().all(|attribute| rule.attributes.contains(attribute)))
        }) {
            found.push(Piece { family, rule: true });
        }
        let mut asked = RouteMessage::default();
        asked.header.address_family = family;
        let routes = dump(RouteNetlinkMessage::GetRoute(asked))?;
        let own = route(family).attributes;
        if routes.iter().any(|message| {
            matches!(message, RouteNetlinkMessage::NewRoute(route)
                if route.header.kind == RouteType::Local
                    && route.header.destination_prefix_length == 0
                    && own.iter().all(|attribute| route.attributes.contains(attribute)))
        }) {
            found.push(Piece {
                family,
                rule: false,
            });
        }
    }
    Ok(found)
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
