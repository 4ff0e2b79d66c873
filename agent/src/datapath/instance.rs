//! One agent per node: an abstract Unix socket, whose name lives in the network namespace and dies with the process.

use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};

use nix::sys::socket::{Backlog, getsockopt, listen, sockopt::PeerCredentials};

use super::error::Error;

const NAME: &str = "cardinal-agent";

/// Held while this process is the node's agent, or while another that has the same socket is.
#[derive(Debug)]
pub struct Instance {
    socket: UnixListener,
}

impl Instance {
    /// Claims the node, or tells who has it.
    ///
    /// # Errors
    ///
    /// When another agent has it, or the kernel refuses.
    pub fn claim() -> Result<Self, Error> {
        let failed = || Error::kernel("claim the node for this agent");
        let name = SocketAddr::from_abstract_name(NAME).map_err(failed())?;
        match UnixListener::bind_addr(&name) {
            Ok(socket) => Ok(Self { socket }),
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

    /// Takes over the claim of another process that gave its socket. The name is never free in between.
    ///
    /// # Errors
    ///
    /// When the descriptor is none of a listening socket.
    pub fn inherit(socket: OwnedFd) -> io::Result<Self> {
        // Who asks the socket for its holder is told who listened on it last (unix(7), SO_PEERCRED).
        listen(&socket, Backlog::new(1)?)?;
        Ok(Self {
            socket: socket.into(),
        })
    }

    /// The socket once more, for another process. The node stays claimed until both have closed it.
    ///
    /// # Errors
    ///
    /// When there are no descriptors left.
    pub fn share(&self) -> io::Result<OwnedFd> {
        self.socket.as_fd().try_clone_to_owned()
    }
}
