//! Listening sockets: one per core and address, sharing the port (`SO_REUSEPORT`).

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};

use socket2::{Domain, Protocol, Socket, Type};

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
    fn new(address: SocketAddr, source: io::Error) -> Self {
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
) -> Result<(SocketAddr, Vec<TcpListener>), ListenError> {
    let failed = |source| ListenError::new(address, source);
    if address.port() != 0 {
        // Sharing is between our cores only. A process of the same user that shares its port too
        // would get half of the connections; without sharing the kernel tells.
        let probe = socket(address).map_err(failed)?;
        probe.set_reuse_address(true).map_err(failed)?;
        probe.bind(&address.into()).map_err(failed)?;
        probe.listen(1).map_err(failed)?;
    }
    let mut at = address;
    let mut listeners = Vec::with_capacity(cores);
    for _ in 0..cores {
        let listener = one(at, transparent).map_err(failed)?;
        at = listener.local_addr().map_err(failed)?;
        listeners.push(listener);
    }
    Ok((at, listeners))
}

fn socket(address: SocketAddr) -> io::Result<Socket> {
    let kind = Type::STREAM.nonblocking().cloexec();
    let socket = Socket::new(Domain::for_address(address), kind, Some(Protocol::TCP))?;
    if address.is_ipv6() {
        // IPv4 has sockets of its own.
        socket.set_only_v6(true)?;
    }
    Ok(socket)
}

fn one(address: SocketAddr, transparent: bool) -> io::Result<TcpListener> {
    let socket = socket(address)?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    if transparent {
        match address {
            SocketAddr::V4(_) => socket.set_ip_transparent_v4(true)?,
            SocketAddr::V6(_) => socket.set_ip_transparent_v6(true)?,
        }
    }
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
