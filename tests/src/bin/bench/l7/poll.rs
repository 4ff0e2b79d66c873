//! What the bench's own programs share: sockets that never block, watched edge by edge.

use std::{
    io::{self, Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    os::fd::AsFd,
};

use anyhow::{Context as _, Result};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use socket2::{Domain, Socket, Type};

/// Events taken at once.
const EVENTS: usize = 512;

/// A set of watched sockets, each under a number.
pub(crate) struct Poll {
    epoll: Epoll,
    events: Vec<EpollEvent>,
}

impl Poll {
    pub(crate) fn new() -> Result<Self> {
        Ok(Self {
            epoll: Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)
                .context("failed to make an epoll")?,
            events: vec![EpollEvent::empty(); EVENTS],
        })
    }

    /// Tells of everything new of a socket, until it is closed.
    pub(crate) fn watch(&self, socket: impl AsFd, number: usize) -> Result<()> {
        let flags = EpollFlags::EPOLLIN
            | EpollFlags::EPOLLOUT
            | EpollFlags::EPOLLRDHUP
            | EpollFlags::EPOLLET;
        self.epoll
            .add(socket, EpollEvent::new(flags, number as u64))
            .context("failed to watch a socket")
    }

    /// Tells, for as long as it lasts, that something can be read, and takes turns among the watchers.
    pub(crate) fn watch_level(&self, socket: impl AsFd, number: usize) -> Result<()> {
        self.epoll
            .add(socket, EpollEvent::new(EpollFlags::EPOLLIN, number as u64))
            .context("failed to watch a socket")
    }

    /// Numbers of the sockets with news; none after `millis` without any.
    pub(crate) fn wait(&mut self, millis: Option<u16>) -> Result<Vec<usize>> {
        let timeout = millis.map_or(EpollTimeout::NONE, EpollTimeout::from);
        match self.epoll.wait(&mut self.events, timeout) {
            Ok(count) => Ok(self.events[..count]
                .iter()
                .map(|event| event.data() as usize)
                .collect()),
            Err(nix::errno::Errno::EINTR) => Ok(Vec::new()),
            Err(error) => Err(error).context("failed to wait for sockets"),
        }
    }
}

/// What became of a read or write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Io {
    Done(usize),
    Blocked,
    Closed,
}

impl Io {
    fn of(result: io::Result<usize>) -> Self {
        match result {
            Ok(0) => Self::Closed,
            Ok(count) => Self::Done(count),
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::WouldBlock | io::ErrorKind::NotConnected
                ) =>
            {
                Self::Blocked
            }
            Err(_) => Self::Closed,
        }
    }
}

/// Reads what is there.
pub(crate) fn read(mut socket: &TcpStream, buffer: &mut [u8]) -> Io {
    loop {
        match socket.read(buffer) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => return Io::of(result),
        }
    }
}

/// Writes what fits.
pub(crate) fn write(mut socket: &TcpStream, bytes: &[u8]) -> Io {
    loop {
        match socket.write(bytes) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => return Io::of(result),
        }
    }
}

/// Begins a connection.
pub(crate) fn connect(to: SocketAddr) -> Result<TcpStream> {
    let socket = Socket::new(Domain::for_address(to), Type::STREAM.nonblocking(), None)?;
    socket.set_tcp_nodelay(true)?;
    match socket.connect(&to.into()) {
        Ok(()) => {}
        Err(error) if error.raw_os_error() == Some(nix::libc::EINPROGRESS) => {}
        Err(error) => return Err(error).with_context(|| format!("failed to connect to {to}")),
    }
    Ok(socket.into())
}

/// The next connection that waits, if any.
pub(crate) fn accept(listener: &TcpListener) -> Result<Option<TcpStream>> {
    match listener.accept() {
        Ok((socket, _)) => {
            socket.set_nonblocking(true)?;
            socket.set_nodelay(true)?;
            Ok(Some(socket))
        }
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::WouldBlock
                    | io::ErrorKind::ConnectionAborted
                    | io::ErrorKind::Interrupted
            ) =>
        {
            Ok(None)
        }
        Err(error) => Err(error).context("failed to accept"),
    }
}

/// A listener that never blocks, with room for all connections of a scenario.
pub(crate) fn listen(at: SocketAddr) -> Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(at), Type::STREAM.nonblocking(), None)?;
    socket.set_reuse_address(true)?;
    socket
        .bind(&at.into())
        .and_then(|()| socket.listen(4096))
        .with_context(|| format!("failed to listen at {at}"))?;
    Ok(socket.into())
}
