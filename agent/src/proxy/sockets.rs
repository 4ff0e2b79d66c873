//! Sockets that outlive the agent that opened them.
//!
//! What waits in a listening socket's queue is lost when the last descriptor of the socket closes, whoever has it. So the router
//! holds each socket once more beside the one that a core serves, and an agent that takes another's place gets these: the kernel
//! sees the same sockets before and after.

use std::collections::BTreeMap;
use std::io;
use std::net::{SocketAddr, TcpListener, UdpSocket};

use super::SocketKind;

/// What a router listens on, for the one that takes its place.
#[derive(Debug, Default)]
pub struct Sockets {
    /// Those that the kernel's programs steer to.
    pub fixed: BTreeMap<SocketKind, Vec<TcpListener>>,
    /// Those on gateways' own addresses.
    pub listeners: BTreeMap<SocketAddr, Vec<TcpListener>>,
    /// Those of datagrams.
    pub datagrams: BTreeMap<SocketAddr, Vec<UdpSocket>>,
}

/// The sockets of one address: those that cores serve, and each of them once more.
#[derive(Debug)]
pub(super) struct Group<S> {
    pub(super) served: Vec<S>,
    pub(super) held: Vec<S>,
}

impl<S> Group<S> {
    /// Holds what is to be served.
    pub(super) fn hold(served: Vec<S>, again: impl Fn(&S) -> io::Result<S>) -> io::Result<Self> {
        let held = served.iter().map(again).collect::<io::Result<_>>()?;
        Ok(Self { served, held })
    }
}

/// At least one descriptor for each core. Another router may have had fewer cores; what it queued in a socket any core may serve.
pub(super) fn for_each_core(
    mut listeners: Vec<TcpListener>,
    cores: usize,
) -> io::Result<Vec<TcpListener>> {
    for core in listeners.len()..cores {
        let Some(shared) = listeners.get(core % listeners.len().max(1)) else {
            break;
        };
        listeners.push(shared.try_clone()?);
    }
    Ok(listeners)
}

/// Deals sockets out to cores, in turn. A router with more cores may have left more sockets than there are cores now: each is
/// served, or what the kernel puts into its queue would wait for ever.
pub(super) fn deal<S>(sockets: impl IntoIterator<Item = S>, cores: usize) -> Vec<Vec<S>> {
    let mut dealt: Vec<Vec<S>> = Vec::new();
    dealt.resize_with(cores.max(1), Vec::new);
    for (turn, socket) in sockets.into_iter().enumerate() {
        dealt[turn % cores.max(1)].push(socket);
    }
    dealt
}

/// Every socket once more.
pub(super) fn again<K: Clone + Ord, S>(
    sockets: &BTreeMap<K, Vec<S>>,
    again: impl Fn(&S) -> io::Result<S>,
) -> io::Result<BTreeMap<K, Vec<S>>> {
    let copies = sockets.iter().map(|(key, sockets)| {
        let copies: io::Result<Vec<S>> = sockets.iter().map(&again).collect();
        copies.map(|copies| (key.clone(), copies))
    });
    copies.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_socket_is_served_and_every_core_has_one() {
        let listener = || TcpListener::bind("127.0.0.1:0").expect("a port");
        for (left, cores, served) in [(3, 2, vec![2, 1]), (2, 3, vec![1, 1, 1]), (1, 1, vec![1])] {
            let sockets = (0..left).map(|_| listener()).collect();
            let sockets = for_each_core(sockets, cores).expect("descriptors");
            let dealt: Vec<_> = deal(sockets, cores).iter().map(Vec::len).collect();
            assert_eq!(dealt, served, "{left} sockets, {cores} cores");
        }
        assert!(for_each_core(Vec::new(), 2).expect("nothing").is_empty());
    }
}
