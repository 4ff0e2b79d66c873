//! Gates as filters of a clsact qdisc: what kernels below 6.6 have, and what stands within a fraction of a millisecond.
//!
//! A tcx link makes the kernel wait for all its readers while it holds the lock of network configuration (6 to 30 ms per
//! gate, `tcx_link_prog_attach` in 6.18); a filter does not. Interfaces are addressed by number here, never by name.

use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd};

use agent_common::Direction;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::{
    RouteNetlinkMessage,
    tc::{TcAttribute, TcBpfFlags, TcFilterBpfOption, TcHandle, TcHeader, TcMessage, TcOption},
};

use super::{filters, netlink::Netlink};

const HANDLE: TcHandle = TcHandle {
    major: 0,
    minor: filters::HANDLE,
};
/// `ETH_P_ALL` of the kernel's `linux/if_ether.h`.
const EVERY_PROTOCOL: u16 = 3;

/// A gate: the program, its name and which way the packets go that it judges.
pub(super) type Gate<'a> = (BorrowedFd<'a>, &'static str, Direction);

/// Adds our filters to an interface in this order, or replaces their programs. The qdisc is made if there is none; tells whether
/// it was.
pub(super) fn attach(ifindex: u32, gates: &[Gate<'_>]) -> io::Result<bool> {
    let mut qdisc = message(ifindex, TcHandle::CLSACT)?;
    qdisc.header.handle = TcHandle {
        major: TcHandle::CLSACT.major,
        minor: 0,
    };
    qdisc.attributes = vec![TcAttribute::Kind("clsact".to_owned())];
    let mut messages = vec![(
        RouteNetlinkMessage::NewQueueDiscipline(qdisc),
        NLM_F_CREATE | NLM_F_EXCL,
    )];
    for (program, name, direction) in gates {
        let mut filter = filter(ifindex, *direction)?;
        filter.attributes.push(TcAttribute::Options(vec![
            TcOption::Bpf(TcFilterBpfOption::ProgFd(program.as_raw_fd() as u32)),
            TcOption::Bpf(TcFilterBpfOption::ProgName((*name).to_owned())),
            TcOption::Bpf(TcFilterBpfOption::Flags(TcBpfFlags::DirectAction)),
        ]));
        messages.push((RouteNetlinkMessage::NewTrafficFilter(filter), NLM_F_CREATE));
    }
    let mut results = Netlink::open()?.batch(messages)?.into_iter();
    let made = match results.next() {
        // There is a qdisc already, ours or another's. If it is none that takes filters, they say so.
        Some(Err(error)) if error.raw_os_error() != Some(libc::EEXIST) => return Err(error),
        Some(Ok(())) => true,
        _ => false,
    };
    results.collect::<io::Result<()>>().map(|()| made)
}

/// Takes our filters off an interface. The qdisc is not this function's: another's filters may be in it by now. What is gone is fine.
pub(super) fn detach(ifindex: u32, directions: &[Direction]) -> io::Result<()> {
    let messages = directions
        .iter()
        .map(|direction| {
            filter(ifindex, *direction)
                .map(|filter| (RouteNetlinkMessage::DelTrafficFilter(filter), 0))
        })
        .collect::<io::Result<Vec<_>>>()?;
    for result in Netlink::open()?.batch(messages)? {
        match result {
            // The filter, its qdisc, or the interface is not there.
            Err(error)
                if !matches!(
                    error.raw_os_error(),
                    Some(libc::ENOENT | libc::EINVAL | libc::ENODEV)
                ) =>
            {
                return Err(error);
            }
            _ => {}
        }
    }
    Ok(())
}

fn message(ifindex: u32, parent: TcHandle) -> io::Result<TcMessage> {
    let index = i32::try_from(ifindex).map_err(io::Error::other)?;
    let mut message = TcMessage::with_index(index);
    message.header.parent = parent;
    Ok(message)
}

fn filter(ifindex: u32, direction: Direction) -> io::Result<TcMessage> {
    // What a pod sends comes in at the host side of its pair.
    let minor = match direction {
        Direction::Egress => TcHandle::MIN_INGRESS,
        Direction::Ingress => TcHandle::MIN_EGRESS,
    };
    let mut message = message(
        ifindex,
        TcHandle {
            major: TcHandle::CLSACT.major,
            minor,
        },
    )?;
    message.header = TcHeader {
        handle: HANDLE,
        info: u32::from(filters::PRIORITY) << 16 | u32::from(EVERY_PROTOCOL.to_be()),
        ..message.header
    };
    message.attributes = vec![TcAttribute::Kind("bpf".to_owned())];
    Ok(message)
}
