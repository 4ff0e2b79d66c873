//! Filters and qdiscs of interfaces, as the kernel shows them: which are the agent's, and what else is there.

use std::io;

use agent_common::Direction;
use netlink_packet_route::{
    RouteNetlinkMessage,
    link::{LinkAttribute, LinkMessage},
    tc::{TcAttribute, TcFilterBpfOption, TcHandle, TcMessage, TcOption},
};

use super::netlink::Netlink;

/// Priority and handle of the agent's filters; others keep theirs.
pub(super) const PRIORITY: u16 = 0xca5;
pub(super) const HANDLE: u16 = 0xca5;

/// A filter at one side of an interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Filter {
    /// Whether it is at the agent's priority and handle, and runs a gate.
    pub(super) ours: bool,
    /// The program that it runs, if it is one of eBPF.
    pub(super) program: Option<u32>,
}

/// Every interface of this network namespace, by number and name.
pub(super) fn interfaces(netlink: &mut Netlink) -> io::Result<Vec<(u32, String)>> {
    let links = netlink.dump(RouteNetlinkMessage::GetLink(LinkMessage::default()))?;
    Ok(links
        .into_iter()
        .filter_map(|message| match message {
            RouteNetlinkMessage::NewLink(link) => {
                let name = link
                    .attributes
                    .into_iter()
                    .find_map(|attribute| match attribute {
                        LinkAttribute::IfName(name) => Some(name),
                        _ => None,
                    });
                Some((link.header.index, name.unwrap_or_default()))
            }
            _ => None,
        })
        .collect())
}

fn message(ifindex: u32, parent: TcHandle) -> io::Result<TcMessage> {
    let index = i32::try_from(ifindex).map_err(io::Error::other)?;
    let mut message = TcMessage::with_index(index);
    message.header.parent = parent;
    Ok(message)
}

fn side(direction: Direction) -> TcHandle {
    TcHandle {
        major: TcHandle::CLSACT.major,
        // What a pod sends comes in at the host side of its pair.
        minor: match direction {
            Direction::Egress => TcHandle::MIN_INGRESS,
            Direction::Ingress => TcHandle::MIN_EGRESS,
        },
    }
}

/// The filters of an interface for packets that go `direction`, seen from the pod. None where there is no such qdisc.
pub(super) fn list(
    netlink: &mut Netlink,
    ifindex: u32,
    direction: Direction,
) -> io::Result<Vec<Filter>> {
    let asked = RouteNetlinkMessage::GetTrafficFilter(message(ifindex, side(direction))?);
    let answers = match netlink.dump(asked) {
        // No qdisc, or no interface.
        Err(error) if matches!(error.raw_os_error(), Some(libc::EINVAL | libc::ENODEV)) => {
            return Ok(Vec::new());
        }
        answers => answers?,
    };
    Ok(answers
        .into_iter()
        .filter_map(|answer| match answer {
            RouteNetlinkMessage::NewTrafficFilter(filter) => read(filter),
            _ => None,
        })
        .collect())
}

/// One filter; `None` for the chain and the priority around it, which are told as messages of their own.
fn read(message: TcMessage) -> Option<Filter> {
    let handle = message.header.handle;
    let (mut program, mut name, mut options) = (None, None, false);
    for attribute in message.attributes {
        if let TcAttribute::Options(all) = attribute {
            options = true;
            for option in all {
                match option {
                    TcOption::Bpf(TcFilterBpfOption::ProgId(id)) => program = Some(id),
                    TcOption::Bpf(TcFilterBpfOption::ProgName(text)) => name = Some(text),
                    _ => {}
                }
            }
        }
    }
    if !options && handle == TcHandle::UNSPEC {
        return None;
    }
    let priority = (message.header.info >> 16) as u16;
    let at_ours = priority == PRIORITY && (handle.major, handle.minor) == (0, HANDLE);
    let gate = name
        .is_some_and(|name| name.starts_with("cell_egress") || name.starts_with("cell_ingress"));
    Some(Filter {
        ours: at_ours && gate,
        program,
    })
}

/// Takes the agent's filter off one side of an interface. What is gone is as good.
pub(super) fn remove(netlink: &mut Netlink, ifindex: u32, direction: Direction) -> io::Result<()> {
    /// `ETH_P_ALL` of the kernel's `linux/if_ether.h`.
    const EVERY_PROTOCOL: u16 = 3;
    let mut filter = message(ifindex, side(direction))?;
    filter.header.handle = TcHandle {
        major: 0,
        minor: HANDLE,
    };
    filter.header.info = u32::from(PRIORITY) << 16 | u32::from(EVERY_PROTOCOL.to_be());
    filter.attributes = vec![TcAttribute::Kind("bpf".to_owned())];
    gone(netlink.request(RouteNetlinkMessage::DelTrafficFilter(filter), 0))
}

/// Whether an interface has a clsact qdisc without any filter in it.
pub(super) fn is_empty(netlink: &mut Netlink, ifindex: u32) -> io::Result<bool> {
    for direction in [Direction::Egress, Direction::Ingress] {
        if !list(netlink, ifindex, direction)?.is_empty() {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Takes the clsact qdisc off an interface, with all that is in it.
pub(super) fn remove_qdisc(netlink: &mut Netlink, ifindex: u32) -> io::Result<()> {
    let mut qdisc = message(ifindex, TcHandle::CLSACT)?;
    qdisc.header.handle = TcHandle {
        major: TcHandle::CLSACT.major,
        minor: 0,
    };
    qdisc.attributes = vec![TcAttribute::Kind("clsact".to_owned())];
    gone(netlink.request(RouteNetlinkMessage::DelQueueDiscipline(qdisc), 0))
}

fn gone(result: io::Result<Vec<RouteNetlinkMessage>>) -> io::Result<()> {
    match result {
        // The filter, its qdisc, or the interface is not there.
        Err(error)
            if matches!(
                error.raw_os_error(),
                Some(libc::ENOENT | libc::EINVAL | libc::ENODEV)
            ) =>
        {
            Ok(())
        }
        result => result.map(drop),
    }
}
