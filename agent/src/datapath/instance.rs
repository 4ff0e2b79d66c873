//! One agent per node: an abstract Unix socket, whose name lives in the network namespace and dies with the process.

use std::io;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};

use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};

use super::error::Error;

const NAME: &str = "cardinal-agent";

/// Held while this process is the node's agent.
#[derive(Debug)]
pub(super) struct Instance {
    _socket: UnixListener,
}

impl Instance {
    /// Claims the node, or tells who has it.
    pub(super) fn claim() -> Result<Self, Error> {
        let failed = || Error::kernel("claim the node for this agent");
        let name = SocketAddr::from_abstract_name(NAME).map_err(failed())?;
        match UnixListener::bind_addr(&name) {
            Ok(socket) => Ok(Self { _socket: socket }),
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
                // The holder may be gone by now; then its process id is unknown, and trying again will do.
                let holder = UnixStream::connect_addr(&name)
                    .ok()
                    .and_then(|stream| getsockopt(&stream, PeerCredentials).ok())
                    .map(|credentials| credentials.pid());
                Err(Error::AlreadyRunning { holder })
            }
            Err(error) => Err(failed()(error)),
        }
    }
}
