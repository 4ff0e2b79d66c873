//! The thread that handles the kernel's messages about links and addresses, one after the other.

use std::collections::BTreeSet;
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::Arc;
use std::time::Instant;

use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    link::{LinkAttribute, LinkMessage},
};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::{
    super::{
        discovery::{self, Pair},
        gates::Gates,
        netlink::{Listener, Netlink},
    },
    Board, Hold, Met,
    holders::{Holders, Job},
};

/// Handles the kernel's messages.
pub(super) struct Watcher {
    gates: Arc<Gates>,
    board: Arc<Board>,
    netlink: Netlink,
    /// None if new interfaces are not held.
    holders: Option<Holders>,
}

impl Watcher {
    /// What is there now is no new interface, unless another watch tells. A listener that was opened before misses nothing after
    /// it.
    pub(super) fn new(gates: Arc<Gates>, board: Arc<Board>, hold: Hold) -> io::Result<Self> {
        let mut watcher = Self {
            gates,
            board,
            netlink: Netlink::open()?,
            holders: None,
        };
        if let Hold::Since(Met(before)) = &hold {
            for ifindex in before {
                watcher.gates.met(*ifindex);
            }
            watcher.holders = Some(Holders::start(&watcher.gates)?);
        }
        watcher.resynchronise()?;
        if hold == Hold::New {
            watcher.holders = Some(Holders::start(&watcher.gates)?);
        }
        Ok(watcher)
    }

    /// Handles messages until the other end of `stopped` is closed, and those that came until then.
    pub(super) fn run(mut self, mut listener: Listener, stopped: &OwnedFd) {
        before_others();
        loop {
            let mut fds = [
                PollFd::new(listener.fd(), PollFlags::POLLIN),
                PollFd::new(stopped.as_fd(), PollFlags::POLLIN),
            ];
            match poll(&mut fds, PollTimeout::NONE) {
                Ok(_) | Err(nix::errno::Errno::EINTR) => {}
                Err(error) => {
                    tracing::error!(%error, "new interfaces are held no more; pods are still looked for");
                    return;
                }
            }
            let ended = fds[1].any() == Some(true);
            self.handle_all(&mut listener);
            if ended {
                return;
            }
        }
    }

    fn handle_all(&mut self, listener: &mut Listener) {
        loop {
            match listener.next() {
                Ok(None) => return,
                Ok(Some(events)) => {
                    for event in events {
                        self.handle(event.namespace, event.message);
                    }
                }
                Err(error) => {
                    tracing::warn!(%error, "messages about interfaces were lost; all interfaces are looked at");
                    if let Err(error) = self.resynchronise() {
                        tracing::error!(%error, "interfaces cannot be listed; a new one may not be held");
                        return;
                    }
                }
            }
        }
    }

    fn handle(&mut self, namespace: Option<i32>, message: RouteNetlinkMessage) {
        use RouteNetlinkMessage::{DelAddress, DelLink, NewAddress, NewLink};
        match (namespace, message) {
            (Some(number), _) => self.board.tell(|changed| {
                changed.namespaces.insert(number);
            }),
            // A bridge tells of its ports with the same kinds of message, in a family of its own.
            (None, NewLink(link)) if link.header.interface_family == AddressFamily::Unspec => {
                self.link(&link);
            }
            (None, DelLink(link)) if link.header.interface_family == AddressFamily::Unspec => {
                self.gone(&link);
            }
            (None, NewAddress(address)) => self.address(discovery::address(&address), true),
            (None, DelAddress(address)) => self.address(discovery::address(&address), false),
            (None, _) => {}
        }
    }

    fn address(&self, address: Option<(u32, IpAddr)>, there: bool) {
        if let Some(address) = address {
            self.board.tell(|changed| {
                changed.addresses.insert(address, there);
            });
        }
    }

    fn link(&mut self, link: &LinkMessage) {
        if !discovery::is_pair(link) {
            return;
        }
        let ifindex = link.header.index;
        let told = Instant::now();
        let (_, new) = self.gates.met(ifindex);
        match Pair::of(link) {
            Some(_) => self.keep(ifindex, new, told, false),
            // The message of the end that is made first does not name the other one yet.
            None if new && !discovery::has_peer(link) => self.keep(ifindex, new, told, true),
            None => {}
        }
        self.board.tell(|changed| {
            changed.interfaces.insert(ifindex);
        });
    }

    fn keep(&self, ifindex: u32, new: bool, told: Instant, ask: bool) {
        if let Some(holders) = self.holders.as_ref().filter(|_| new) {
            holders.give(Job { ifindex, told, ask });
        }
    }

    fn gone(&mut self, link: &LinkMessage) {
        let ifindex = link.header.index;
        let (mut other, mut elsewhere, mut moved) = (None, false, false);
        for attribute in &link.attributes {
            match attribute {
                LinkAttribute::Link(index) => other = Some(*index),
                LinkAttribute::LinkNetNsId(_) => elsewhere = true,
                LinkAttribute::NewNetnsId(_) => moved = true,
                _ => {}
            }
        }
        match self.gates.departed(ifindex) {
            Ok(true) => tracing::debug!(ifindex, "interface gone, and its pod with it"),
            Ok(false) => {}
            Err(error) => tracing::error!(
                ifindex,
                error = &error as &dyn std::error::Error,
                "what is known of an interface that is gone stays until the next generation"
            ),
        }
        self.board.tell(|changed| {
            changed.interfaces.insert(ifindex);
        });
        // One end of a pair went from here to another namespace: the other one leads there now.
        if let Some(other) = other.filter(|_| moved && !elsewhere && discovery::is_pair(link)) {
            self.gates.met(other);
            self.keep(other, true, Instant::now(), false);
            self.board.tell(|changed| {
                changed.interfaces.insert(other);
            });
        }
    }

    /// Meets the interfaces that are there, and forgets those that are not.
    fn resynchronise(&mut self) -> io::Result<()> {
        let told = Instant::now();
        let links = discovery::links(&mut self.netlink)?;
        let there: BTreeSet<u32> = links.iter().map(|link| link.header.index).collect();
        for ifindex in self
            .gates
            .numbers()
            .keys()
            .filter(|known| !there.contains(known))
        {
            if let Err(error) = self.gates.departed(*ifindex) {
                tracing::error!(
                    ifindex,
                    error = &error as &dyn std::error::Error,
                    "what is known of an interface that is gone stays until the next generation"
                );
            }
        }
        for link in links.iter().filter(|link| discovery::is_pair(link)) {
            let (_, new) = self.gates.met(link.header.index);
            if Pair::of(link).is_some() {
                self.keep(link.header.index, new, told, false);
            }
        }
        self.board.tell(|changed| changed.all = true);
        Ok(())
    }
}

/// Gives the calling thread the lowest real-time priority, so that it runs before every ordinary process.
pub(super) fn before_others() {
    // The kernel's `struct sched_param` has this one number. Not by the C library's function: musl's does nothing.
    let priority: libc::c_int = 1;
    // SAFETY: the kernel reads the number during the call; 0 is the calling thread.
    let failed = unsafe {
        libc::syscall(
            libc::SYS_sched_setscheduler,
            0,
            libc::SCHED_FIFO,
            &raw const priority,
        )
    };
    if failed != 0 {
        tracing::warn!(
            error = %io::Error::last_os_error(),
            "a thread that holds new interfaces has no priority; under load a pod may send before it is held"
        );
    }
}
