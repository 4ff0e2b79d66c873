//! What the kernel tells of new interfaces and of the gates at them, with the moment at which it was told.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use netlink_packet_core::{NetlinkMessage, NetlinkPayload};
use netlink_packet_route::{
    RouteNetlinkMessage, link::LinkAttribute, link::LinkMessage, tc::TcHandle, tc::TcMessage,
};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};

use super::world::inside;

/// `RTMGRP_LINK` and `RTMGRP_TC` of `linux/rtnetlink.h`.
const GROUPS: u32 = 1 | 8;
/// The handle of the agent's filters.
const HANDLE: u16 = 0xca5;
/// How long it may take until the thread hears that it is to end.
const PAUSE: Duration = Duration::from_millis(50);

/// An interface of the node.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Seen {
    pub(crate) ifindex: u32,
    pub(crate) born: Instant,
    /// The gates for what the pod sends, and for what it is sent.
    pub(crate) gates: [Option<Instant>; 2],
}

impl Seen {
    /// From the interface to both of its gates.
    pub(crate) fn guarded_after(&self) -> Option<Duration> {
        let [Some(one), Some(other)] = self.gates else {
            return None;
        };
        Some(one.max(other) - self.born)
    }
}

/// Listens until dropped.
pub(crate) struct Witness {
    seen: Arc<Mutex<BTreeMap<String, Seen>>>,
    end: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Witness {
    pub(crate) fn open(node: &str) -> Self {
        let socket = inside(node, || {
            let mut socket = Socket::new(NETLINK_ROUTE)?;
            socket.set_rx_buf_sz(8_i32 << 20)?;
            socket.bind(&SocketAddr::new(0, GROUPS))?;
            let timeout = nix::sys::time::TimeVal::new(0, PAUSE.as_micros() as i64);
            nix::sys::socket::setsockopt(
                &socket,
                nix::sys::socket::sockopt::ReceiveTimeout,
                &timeout,
            )?;
            std::io::Result::Ok(socket)
        })
        .expect("the kernel tells everybody");
        let (seen, end) = (
            Arc::<Mutex<BTreeMap<_, _>>>::default(),
            Arc::<AtomicBool>::default(),
        );
        let (of, ended) = (Arc::clone(&seen), Arc::clone(&end));
        let thread = thread::spawn(move || {
            at_once();
            while !ended.load(Ordering::Relaxed) {
                match socket.recv_from_full() {
                    Ok((bytes, _)) => {
                        let mut seen = of.lock().unwrap_or_else(PoisonError::into_inner);
                        note(&mut seen, &bytes, Instant::now());
                    }
                    Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                    Err(error) => panic!("the kernel's messages are lost: {error}"),
                }
            }
        });
        Self {
            seen,
            end,
            thread: Some(thread),
        }
    }

    /// The last interface that had this name.
    pub(crate) fn seen(&self, ifname: &str) -> Option<Seen> {
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.get(ifname).copied()
    }
}

impl Drop for Witness {
    fn drop(&mut self) {
        self.end.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // What it missed would be taken for what did not happen.
            let heard = thread.join().is_ok();
            assert!(heard || thread::panicking(), "the witness failed");
        }
    }
}

fn note(seen: &mut BTreeMap<String, Seen>, bytes: &[u8], now: Instant) {
    let mut rest = bytes;
    while !rest.is_empty() {
        let message = NetlinkMessage::<RouteNetlinkMessage>::deserialize(rest)
            .expect("the kernel's messages can be read");
        let length = (message.header.length as usize).next_multiple_of(4);
        rest = rest.get(length..).unwrap_or(&[]);
        match message.payload {
            NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewLink(link)) => {
                interface(seen, &link, now);
            }
            NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewTrafficFilter(filter)) => {
                gate(seen, &filter, now);
            }
            _ => {}
        }
    }
}

fn interface(seen: &mut BTreeMap<String, Seen>, link: &LinkMessage, now: Instant) {
    let name = link
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            LinkAttribute::IfName(name) => Some(name),
            _ => None,
        });
    let (Some(name), ifindex) = (name, link.header.index) else {
        return;
    };
    let new = Seen {
        ifindex,
        born: now,
        gates: [None; 2],
    };
    let known = seen.entry(name.clone()).or_insert(new);
    if known.ifindex != ifindex {
        *known = new;
    }
}

fn gate(seen: &mut BTreeMap<String, Seen>, filter: &TcMessage, now: Instant) {
    if filter.header.handle.minor != HANDLE {
        return;
    }
    let ifindex = u32::try_from(filter.header.index).expect("indices of interfaces are positive");
    let gate = match filter.header.parent.minor {
        TcHandle::MIN_INGRESS => 0,
        TcHandle::MIN_EGRESS => 1,
        _ => return,
    };
    if let Some(seen) = seen.values_mut().find(|seen| seen.ifindex == ifindex) {
        seen.gates[gate].get_or_insert(now);
    }
}

/// Gives the calling thread a priority above the agent's threads: what it reads late would look as if it had happened late.
fn at_once() {
    // As in `before_others` of the agent.
    let priority: libc::c_int = 2;
    // SAFETY: the kernel reads the number during the call; 0 is the calling thread.
    let failed = unsafe {
        libc::syscall(
            libc::SYS_sched_setscheduler,
            0,
            libc::SCHED_FIFO,
            &raw const priority,
        )
    };
    assert_eq!(failed, 0, "root may: {}", std::io::Error::last_os_error());
}
