//! Sockets between their opening and their service: what a generation wants is opened first, and served once it is active.

use std::collections::BTreeMap;
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::os::fd::{AsRawFd as _, RawFd};

use super::connection::Entry;
use super::datagram::Seats;
use super::quic::Core;
use super::sockets::{self, Group};
use super::worker::{Command, Taker};
use super::{Listeners, Proxy, lock};
use crate::route::Datagrams;

/// Sockets that are open and not yet served.
#[derive(Debug)]
#[must_use = "dropping it closes the new sockets again"]
pub struct Opened<'a> {
    pub(super) proxy: &'a Proxy,
    pub(super) new: BTreeMap<SocketAddr, Group<TcpListener>>,
    pub(super) unwanted: Vec<SocketAddr>,
}

impl Opened<'_> {
    /// Serves the new sockets and stops accepting on those that are no longer wanted; their
    /// connections finish.
    pub fn commit(self) {
        let mut held = lock(&self.proxy.held);
        let mut per_core: Vec<Listeners> = Vec::new();
        per_core.resize_with(self.proxy.cores, Vec::new);
        for (address, group) in self.new {
            held.listeners.insert(address, group.held);
            spread(&mut per_core, address, group.served, Entry::Gateway);
        }
        for address in &self.unwanted {
            // Before the cores close theirs: with the last one goes what waits in the queue, and they look there first.
            held.listeners.remove(address);
        }
        for (worker, listeners) in self.proxy.workers.iter().zip(per_core) {
            worker.tell(Command::Open(listeners));
            worker.tell(Command::Close(self.unwanted.clone()));
        }
    }
}

/// Sockets of datagrams that are open and not yet served.
#[derive(Debug)]
#[must_use = "dropping it closes the new sockets again"]
pub struct OpenedDatagrams<'a> {
    pub(super) proxy: &'a Proxy,
    pub(super) new: BTreeMap<SocketAddr, (Group<UdpSocket>, Datagrams)>,
    pub(super) unwanted: Vec<SocketAddr>,
}

impl OpenedDatagrams<'_> {
    /// Addresses that are no longer wanted.
    pub fn unwanted(&self) -> &[SocketAddr] {
        &self.unwanted
    }

    /// One socket of each group that is wanted, for the kernel's programs.
    pub fn sockets(&self) -> Vec<(SocketAddr, RawFd)> {
        let new = self.new.iter();
        let new = new
            .filter_map(|(address, (group, _))| Some((*address, group.held.first()?.as_raw_fd())));
        let mut sockets = self.proxy.datagram_sockets();
        sockets.retain(|(address, _)| !self.unwanted.contains(address));
        sockets.extend(new);
        sockets
    }

    /// Serves the new sockets and takes no more from those that are no longer wanted; answers that are under way are still
    /// passed on.
    pub fn commit(self) {
        let mut held = lock(&self.proxy.held);
        let mut per_core: Vec<Vec<_>> = Vec::new();
        per_core.resize_with(self.proxy.cores, Vec::new);
        let mut kinds = lock(&self.proxy.kinds);
        for (address, (group, kind)) in self.new {
            held.datagrams.insert(address, group.held);
            kinds.insert(address, kind);
            let seats = Seats::new(self.proxy.sessions);
            // A socket has one reader: a client's datagrams, or those of a connection, reach one core. The id of a connection of
            // QUIC tells the socket of its group, of which a core may have several.
            let of = u16::try_from(group.served.len()).unwrap_or(u16::MAX);
            let numbered = (0..of).zip(group.served);
            let dealt = sockets::deal(numbered, self.proxy.cores);
            for (core, sockets) in per_core.iter_mut().zip(dealt) {
                for (at, socket) in sockets {
                    let taker = match kind {
                        Datagrams::Sessions => Taker::Sessions(seats.clone()),
                        Datagrams::Quic => Taker::Quic(seats.clone(), Core { at, of }),
                    };
                    core.push((address, socket, taker));
                }
            }
        }
        for address in &self.unwanted {
            held.datagrams.remove(address);
            kinds.remove(address);
        }
        for (worker, sockets) in self.proxy.workers.iter().zip(per_core) {
            worker.tell(Command::CloseDatagrams(self.unwanted.clone()));
            worker.tell(Command::OpenDatagrams(sockets));
        }
    }
}

/// Gives the sockets of an address to the cores.
pub(super) fn spread(
    cores: &mut [Listeners],
    address: SocketAddr,
    group: Vec<TcpListener>,
    entry: Entry,
) {
    let dealt = sockets::deal(group, cores.len());
    for (core, listeners) in cores.iter_mut().zip(dealt) {
        core.extend(listeners.into_iter().map(|one| (address, one, entry)));
    }
}
