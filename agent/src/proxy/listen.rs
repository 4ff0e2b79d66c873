//! Listening sockets: one per core and address, sharing the port (`SO_REUSEPORT`), or one that all cores share.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket};

use libc::{
    BPF_A, BPF_ABS, BPF_ALU, BPF_B, BPF_H, BPF_JMP, BPF_JSET, BPF_K, BPF_LD, BPF_MOD, BPF_RET,
    sock_filter, sock_fprog,
};
use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::AttachReusePortCbpf;
use socket2::{Domain, Socket, TcpKeepalive, Type};

use super::connection::KEEPALIVE;

/// How cores share an address.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Sharing {
    /// A socket per core with `SO_REUSEPORT`: each core has its own queue, and the kernel spreads connections.
    #[default]
    ReusePort,
    /// One socket without `SO_REUSEPORT`, whose descriptor every core has. Programs at tc may assign such a socket on
    /// every kernel; one with `SO_REUSEPORT` only from 6.6 on, before that `bpf_sk_assign` answers `ESOCKTNOSUPPORT`.
    OneSocket,
}

/// Connections that wait to be accepted, per socket.
const BACKLOG: i32 = 4096;

/// A socket that could not be opened.
#[derive(Debug, thiserror::Error)]
#[error("failed to listen on {address}: {hint}")]
pub struct ListenError {
    /// Where.
    pub address: SocketAddr,
    hint: &'static str,
    /// Why.
    #[source]
    pub source: io::Error,
}

impl ListenError {
    /// What is open there is for datagrams of another kind. Its sockets and the new ones cannot be told apart by the kernel.
    pub(super) fn of_another_kind(address: SocketAddr) -> Self {
        Self {
            address,
            hint: "the listener of UDP or HTTP/3 that is there has to be gone first, in a change of its own",
            source: io::ErrorKind::AddrInUse.into(),
        }
    }

    pub(super) fn new(address: SocketAddr, source: io::Error) -> Self {
        let hint = match source.kind() {
            io::ErrorKind::AddrInUse => "another process already listens there",
            io::ErrorKind::AddrNotAvailable => {
                "no interface has this address; a gateway's addresses must be the node's when nothing steers packets"
            }
            io::ErrorKind::PermissionDenied => {
                "not permitted; ports below 1024 need CAP_NET_BIND_SERVICE, transparent sockets CAP_NET_ADMIN"
            }
            _ => "the kernel refused",
        };
        Self {
            address,
            hint,
            source,
        }
    }
}

/// Sockets of all cores for one address. Port 0 becomes one free port for all of them.
pub(super) fn group(
    address: SocketAddr,
    cores: usize,
    transparent: bool,
    sharing: Sharing,
) -> Result<(SocketAddr, Vec<TcpListener>), ListenError> {
    let failed = |source| ListenError::new(address, source);
    if address.port() != 0 {
        // Sharing is between our cores only. A process of the same user that shares its port too
        // would get half of the connections; without sharing the kernel tells.
        let probe = socket(address, Type::STREAM).map_err(failed)?;
        probe.set_reuse_address(true).map_err(failed)?;
        probe.bind(&address.into()).map_err(failed)?;
        probe.listen(1).map_err(failed)?;
    }
    let mut at = address;
    let mut listeners = Vec::with_capacity(cores);
    for _ in 0..cores {
        let listener = match (sharing, listeners.first()) {
            (Sharing::OneSocket, Some(first)) => TcpListener::try_clone(first),
            _ => one(at, transparent, sharing),
        };
        let listener = listener.map_err(failed)?;
        at = listener.local_addr().map_err(failed)?;
        listeners.push(listener);
    }
    Ok((at, listeners))
}

/// Has the kernel bring what is QUIC to the core that the id of its connection tells, whatever address it comes from. What
/// begins a connection has no such id yet, and is spread as ever.
///
/// Datagrams of a connection have a short head (RFC 9000, section 17.3), which has the first bit of the first byte unset, and
/// the id behind this byte. In its first two bytes is a number that leaves the core over when it is divided by how many there
/// are: that of the sockets of the group. Whatever else the program answers has the kernel choose by its hash.
pub(super) fn steer(group: &[UdpSocket], address: SocketAddr) -> Result<(), ListenError> {
    const LONG_HEAD: u32 = 0x80;
    let line = |code: u32, yes, k| sock_filter {
        code: code as u16,
        jt: yes,
        jf: 0,
        k,
    };
    let cores = u32::try_from(group.len()).unwrap_or(u32::MAX);
    let mut lines = [
        line(BPF_LD | BPF_B | BPF_ABS, 0, 0),
        line(BPF_JMP | BPF_JSET | BPF_K, 3, LONG_HEAD),
        line(BPF_LD | BPF_H | BPF_ABS, 0, 1),
        line(BPF_ALU | BPF_MOD | BPF_K, 0, cores),
        line(BPF_RET | BPF_A, 0, 0),
        line(BPF_RET | BPF_K, 0, u32::MAX),
    ];
    let program = sock_fprog {
        len: lines.len() as u16,
        filter: lines.as_mut_ptr(),
    };
    let Some(one) = group.first() else {
        return Ok(());
    };
    // One program is for all sockets of a group.
    setsockopt(one, AttachReusePortCbpf, &program)
        .map_err(|error| ListenError::new(address, error.into()))
}

/// Sockets of all cores for the datagrams of one address: the kernel brings those of one client to one of them
/// (`SO_REUSEPORT`, by a hash of both addresses and ports). With `foreign` the address need not be the node's: the
/// kernel's programs steer there.
pub(super) fn datagrams(
    address: SocketAddr,
    cores: usize,
    foreign: bool,
) -> Result<Vec<UdpSocket>, ListenError> {
    let open = |shared: bool| {
        let socket = socket(address, Type::DGRAM)?;
        socket.set_reuse_port(shared)?;
        if foreign {
            match address {
                SocketAddr::V4(_) => socket.set_freebind_v4(true)?,
                SocketAddr::V6(_) => socket.set_freebind_v6(true)?,
            }
        }
        socket.bind(&address.into())?;
        Ok(UdpSocket::from(socket))
    };
    let failed = |source| ListenError::new(address, source);
    // As in `group`: whoever else shares the port would get half of the clients.
    drop(open(false).map_err(failed)?);
    (0..cores).map(|_| open(true).map_err(failed)).collect()
}

fn socket(address: SocketAddr, kind: Type) -> io::Result<Socket> {
    let kind = kind.nonblocking().cloexec();
    let socket = Socket::new(Domain::for_address(address), kind, None)?;
    if address.is_ipv6() {
        // IPv4 has sockets of its own.
        socket.set_only_v6(true)?;
    }
    Ok(socket)
}

fn one(address: SocketAddr, transparent: bool, sharing: Sharing) -> io::Result<TcpListener> {
    let socket = socket(address, Type::STREAM)?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(sharing == Sharing::ReusePort)?;
    if transparent {
        match address {
            SocketAddr::V4(_) => socket.set_ip_transparent_v4(true)?,
            SocketAddr::V6(_) => socket.set_ip_transparent_v6(true)?,
        }
    }
    // Accepted connections have these from their listening socket, which spares each of them several system calls.
    socket.set_tcp_nodelay(true)?;
    socket.set_tcp_keepalive(
        &TcpKeepalive::new()
            .with_time(KEEPALIVE)
            .with_interval(KEEPALIVE),
    )?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// Loopback with a port that the kernel chooses, of both families; the second is none on a node
/// without IPv6.
pub(super) fn loopback() -> (SocketAddr, SocketAddr) {
    (
        (Ipv4Addr::LOCALHOST, 0).into(),
        (Ipv6Addr::LOCALHOST, 0).into(),
    )
}

/// Whether an error says that the node has no IPv6.
pub(super) fn no_ipv6(error: &ListenError) -> bool {
    error.source.kind() == io::ErrorKind::AddrNotAvailable
        || error.source.raw_os_error() == Some(libc::EAFNOSUPPORT)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::io::ErrorKind;
    use std::net::TcpStream;

    use socket2::SockRef;

    use super::*;

    /// An address of loopback that no socket of UDP has.
    fn free_address() -> SocketAddr {
        UdpSocket::bind(loopback().0)
            .and_then(|socket| socket.local_addr())
            .expect("loopback has free ports")
    }

    #[test]
    fn datagrams_of_one_client_reach_one_core() {
        let address = free_address();
        let sockets = datagrams(address, 3, false).expect("the port is free");
        assert!(datagrams(address, 1, false).is_err(), "it is ours now");
        for _ in 0..8 {
            let client = UdpSocket::bind(loopback().0).expect("a port");
            for _ in 0..4 {
                client.send_to(b"x", address).expect("it is taken");
            }
            let mut buffer = [0; 1];
            let counts: Vec<usize> = sockets
                .iter()
                .map(|one| std::iter::from_fn(|| one.recv(&mut buffer).ok()).count())
                .collect();
            assert!(
                counts.contains(&4) && counts.iter().sum::<usize>() == 4,
                "{counts:?}"
            );
        }
    }

    #[test]
    fn datagrams_of_one_connection_reach_the_core_that_its_id_tells() {
        let address = free_address();
        let sockets = datagrams(address, 3, false).expect("the port is free");
        steer(&sockets, address).expect("the kernel takes it");
        let counts = || {
            let mut buffer = [0; 16];
            let mut count =
                |one: &UdpSocket| std::iter::from_fn(|| one.recv(&mut buffer).ok()).count();
            sockets.iter().map(&mut count).collect::<Vec<_>>()
        };
        for id in [0_u16, 1, 2, 3, 301, 1000, 65_534] {
            let [high, low] = id.to_be_bytes();
            for _ in 0..8 {
                // Each time from another address.
                let client = UdpSocket::bind(loopback().0).expect("a port");
                let sent = client.send_to(&[0x40, high, low, 7, 7], address);
                sent.expect("it is taken");
            }
            let mut expected = vec![0; 3];
            expected[usize::from(id % 3)] = 8;
            assert_eq!(counts(), expected, "{id}");
        }
        // Of long heads those of one client stay together, whatever their ids are.
        let client = UdpSocket::bind(loopback().0).expect("a port");
        for id in 0..8 {
            let sent = client.send_to(&[0xc0, 0, 0, 0, 1, 8, 0, id], address);
            sent.expect("it is taken");
        }
        assert!(counts().contains(&8));
    }

    #[test]
    fn cores_share_an_address_by_group_or_by_descriptor() {
        for (sharing, reuses) in [(Sharing::ReusePort, true), (Sharing::OneSocket, false)] {
            let (address, listeners) =
                group(loopback().0, 3, false, sharing).expect("loopback has free ports");
            assert_eq!(listeners.len(), 3);
            let cookies: BTreeSet<u64> = listeners
                .iter()
                .map(|listener| SockRef::from(listener).cookie().expect("a socket"))
                .collect();
            assert_eq!(cookies.len(), if reuses { 3 } else { 1 }, "{sharing:?}");
            for listener in &listeners {
                let socket = SockRef::from(listener);
                assert_eq!(socket.reuse_port().expect("a socket"), reuses);
                assert_eq!(listener.local_addr().expect("a socket"), address);
            }
            let _client = TcpStream::connect(address).expect("somebody listens");
            let accepted = listeners
                .iter()
                .map(TcpListener::accept)
                .filter(|accepted| match accepted {
                    Ok((stream, _)) => {
                        let socket = SockRef::from(stream);
                        assert!(socket.tcp_nodelay().expect("a socket"));
                        assert!(socket.keepalive().expect("a socket"));
                        true
                    }
                    Err(error) => {
                        assert_eq!(error.kind(), ErrorKind::WouldBlock);
                        false
                    }
                })
                .count();
            assert_eq!(accepted, 1, "{sharing:?}: one core gets the connection");
        }
    }
}
