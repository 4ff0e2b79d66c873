//! Messages between two agents of a node, with descriptors: sequenced packets of a Unix socket (unix(7)), each with one message as
//! JSON and the descriptors that it names.

use std::fs;
use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd, RawFd};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use nix::cmsg_space;
use nix::sys::socket::{
    ControlMessage, ControlMessageOwned, MsgFlags, getsockopt, recvmsg, sendmsg,
    sockopt::PeerCredentials,
};
use nix::unistd::geteuid;
use socket2::{Domain, SockAddr, Socket, Type};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::Message;

/// Descriptors of one message. The kernel takes up to 253 (`SCM_MAX_FD`).
pub(super) const DESCRIPTORS: usize = 64;

/// Bytes of one message.
const LARGEST: usize = 64 << 10;

/// Where an agent waits for its successor.
#[derive(Debug)]
pub(super) struct Listener(AsyncFd<Socket>);

impl Listener {
    /// Opens the socket, in the place of one that an earlier agent left. Whoever has the lock of the folder may do so.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let socket = socket()?;
        socket.bind(&SockAddr::unix(path)?)?;
        fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
        socket.listen(4)?;
        Ok(Self(watched(socket)?))
    }

    /// The next one who connects, if it is a process of this user.
    pub(super) async fn accept(&self) -> io::Result<Line> {
        loop {
            let accepted = self
                .0
                .async_io(Interest::READABLE, |socket| socket.accept())
                .await;
            let (socket, _) = accepted?;
            socket.set_nonblocking(true)?;
            if getsockopt(&socket, PeerCredentials)?.uid() == geteuid().as_raw() {
                return Ok(Line(watched(socket)?));
            }
            tracing::warn!("a process of another user asked for the sockets of this agent");
        }
    }
}

/// One of two ends.
#[derive(Debug)]
pub(super) struct Line(AsyncFd<Socket>);

impl Line {
    /// To the agent that waits there.
    pub(super) fn connect(path: &Path) -> io::Result<Self> {
        let socket = socket()?;
        socket.connect(&SockAddr::unix(path)?)?;
        Ok(Self(watched(socket)?))
    }

    /// Sends a message and the descriptors that it names, at most [`DESCRIPTORS`].
    pub(super) async fn send(
        &self,
        message: &Message,
        descriptors: &[BorrowedFd<'_>],
    ) -> io::Result<()> {
        let text = serde_json::to_vec(message)?;
        let descriptors: Vec<RawFd> = descriptors.iter().map(|one| one.as_raw_fd()).collect();
        let rights = [ControlMessage::ScmRights(&descriptors)];
        let rights = if descriptors.is_empty() {
            &[][..]
        } else {
            &rights[..]
        };
        let send = |socket: &Socket| {
            let parts = [IoSlice::new(&text)];
            let flags = MsgFlags::MSG_NOSIGNAL;
            Ok(sendmsg::<()>(
                socket.as_raw_fd(),
                &parts,
                rights,
                flags,
                None,
            )?)
        };
        self.0.async_io(Interest::WRITABLE, send).await.map(drop)
    }

    /// The next message and its descriptors; none when the other process has ended.
    pub(super) async fn receive(&self) -> io::Result<Option<(Message, Vec<OwnedFd>)>> {
        let received = self.0.async_io(Interest::READABLE, receive).await;
        let (text, descriptors) = match received {
            Ok(received) => received,
            // It ended with messages of ours unread.
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Ok(None),
            Err(error) => return Err(error),
        };
        if text.is_empty() {
            return Ok(None);
        }
        Ok(Some((serde_json::from_slice(&text)?, descriptors)))
    }
}

fn receive(socket: &Socket) -> io::Result<(Vec<u8>, Vec<OwnedFd>)> {
    let mut text = vec![0; LARGEST];
    let mut control = cmsg_space!([RawFd; DESCRIPTORS]);
    let mut parts = [IoSliceMut::new(&mut text)];
    let flags = MsgFlags::MSG_CMSG_CLOEXEC;
    let message = recvmsg::<()>(socket.as_raw_fd(), &mut parts, Some(&mut control), flags)?;
    let mut descriptors = Vec::new();
    for part in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(raw) = part {
            // SAFETY: the kernel made these descriptors for this message, and nobody else has them.
            descriptors.extend(
                raw.into_iter()
                    .map(|raw| unsafe { OwnedFd::from_raw_fd(raw) }),
            );
        }
    }
    let whole = !message
        .flags
        .intersects(MsgFlags::MSG_TRUNC | MsgFlags::MSG_CTRUNC);
    let length = message.bytes;
    if !whole {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "a message of another agent was cut; are there descriptors left?",
        ));
    }
    text.truncate(length);
    Ok((text, descriptors))
}

fn socket() -> io::Result<Socket> {
    let kind = Type::from(libc::SOCK_SEQPACKET).nonblocking().cloexec();
    Socket::new(Domain::UNIX, kind, None)
}

fn watched(socket: Socket) -> io::Result<AsyncFd<Socket>> {
    // SAFETY: the descriptor is the socket's, which owns it and never replaces it.
    unsafe { AsyncFd::register(socket) }.map_err(io::Error::from)
}
