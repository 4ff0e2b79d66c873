//! Sockets towards backends of datagrams: one per session, connected, so that only the backend's answers come back.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::UdpSocket;

use super::{Place, UpstreamError};

/// Opens a socket that talks to an address; `mark` is read by the kernel's programs.
pub(crate) fn open(address: SocketAddr, mark: Option<u32>) -> Result<UdpSocket, UpstreamError> {
    let opened = || {
        let socket = Socket::new(
            Domain::for_address(address),
            Type::DGRAM.nonblocking().cloexec(),
            Some(Protocol::UDP),
        )?;
        if let Some(mark) = mark {
            socket.set_mark(mark)?;
        }
        let any: SocketAddr = match address {
            SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
            SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
        };
        socket.bind(&any.into())?;
        socket.connect(&address.into())?;
        UdpSocket::from_std(socket.into())
    };
    opened().map_err(|source| UpstreamError::Connect {
        place: Place::Address(address).to_string(),
        source,
    })
}
