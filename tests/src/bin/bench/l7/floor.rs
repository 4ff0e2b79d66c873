//! The floor: the least that a proxy in user space can do. One thread and one epoll; the request's head is parsed, a
//! key is looked up, headers are copied, and connections to the backend are kept. Bodies pass through one buffer of
//! [`BUFFER`] bytes. There are no timers, no limits, no log, and of HTTP no more than the bench's own programs speak.

use std::{
    collections::HashMap,
    net::{SocketAddr, TcpListener, TcpStream},
};

use anyhow::{Context as _, Result};
use clap::Args;

use super::{
    poll::{self, Io, Poll},
    wire::{self, Copy},
};

/// Bytes read at a time.
pub(crate) const BUFFER: usize = 16 << 10;
/// Keys in the table that each request is looked up in.
const KEYS: u32 = 1000;
/// The listener's number; connections follow.
const LISTENER: usize = 0;

/// How the floor is started.
#[derive(Args)]
pub(crate) struct Options {
    /// Where it listens.
    #[arg(long)]
    pub(crate) listen: SocketAddr,
    /// Where every key leads to.
    #[arg(long)]
    pub(crate) backend: SocketAddr,
    /// Certificate and key, PEM, of a listener with TLS; that one is the same thing by tokio and rustls.
    #[arg(long, num_args = 2)]
    pub(crate) tls: Option<Vec<std::path::PathBuf>>,
}

/// The table that every floor looks keys up in.
pub(crate) fn table(backend: SocketAddr) -> HashMap<Vec<u8>, SocketAddr> {
    (0..KEYS)
        .map(|number| (format!("key-{number}").into_bytes(), backend))
        .collect()
}

/// Serves until it is killed.
pub(crate) fn run(options: &Options) -> Result<()> {
    if let Some(files) = &options.tls {
        return super::floor_tls::run(options, files);
    }
    let mut floor = Floor {
        poll: Poll::new()?,
        listener: poll::listen(options.listen)?,
        table: table(options.backend),
        conns: Vec::from([None]),
        free: Vec::new(),
        kept: Vec::new(),
    };
    floor.poll.watch(&floor.listener, LISTENER)?;
    let mut scratch = vec![0; BUFFER];
    loop {
        for number in floor.poll.wait(None)? {
            if number == LISTENER {
                while let Some(socket) = poll::accept(&floor.listener)? {
                    floor.add(socket, Role::Client)?;
                }
            } else if floor.turn(number, &mut scratch).is_err() {
                floor.end(number);
            }
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Role {
    Client,
    Upstream,
}

struct Conn {
    socket: TcpStream,
    role: Role,
    /// The other side, while there is one.
    peer: Option<usize>,
    /// A head that is not there to its end.
    input: Vec<u8>,
    /// What the socket did not take yet.
    output: Vec<u8>,
    /// Bytes of the body that are still to come.
    left: usize,
}

struct Floor {
    poll: Poll,
    listener: TcpListener,
    table: HashMap<Vec<u8>, SocketAddr>,
    conns: Vec<Option<Conn>>,
    free: Vec<usize>,
    kept: Vec<usize>,
}

impl Floor {
    fn add(&mut self, socket: TcpStream, role: Role) -> Result<usize> {
        let number = self.free.pop().unwrap_or_else(|| {
            self.conns.push(None);
            self.conns.len() - 1
        });
        self.poll.watch(&socket, number)?;
        self.conns[number] = Some(Conn {
            socket,
            role,
            peer: None,
            input: Vec::new(),
            output: Vec::new(),
            left: 0,
        });
        Ok(number)
    }

    /// Ends a connection and the other side of it.
    fn end(&mut self, number: usize) {
        if let Some(conn) = self.conns[number].take() {
            self.free.push(number);
            self.kept.retain(|kept| *kept != number);
            if let Some(peer) = conn.peer {
                self.end(peer);
            }
        }
    }

    fn conn(&mut self, number: usize) -> Result<&mut Conn> {
        self.conns[number].as_mut().context("a connection is gone")
    }

    /// Something happened to a socket.
    fn turn(&mut self, number: usize, scratch: &mut [u8]) -> Result<()> {
        // News of a connection that ended a moment ago.
        let Some(conn) = &mut self.conns[number] else {
            return Ok(());
        };
        let peer = conn.peer;
        if !conn.output.is_empty() {
            let output = std::mem::take(&mut conn.output);
            self.send(number, &output)?;
            // The other side waited for this.
            if let Some(peer) = peer
                && self.conn(number)?.output.is_empty()
            {
                self.pump(peer, scratch)?;
            }
        }
        self.pump(number, scratch)
    }

    /// Reads until nothing is there, or until the other side takes no more.
    fn pump(&mut self, number: usize, scratch: &mut [u8]) -> Result<()> {
        loop {
            let Some(conn) = &self.conns[number] else {
                return Ok(());
            };
            let blocked = |at: usize| {
                self.conns[at]
                    .as_ref()
                    .is_some_and(|one| !one.output.is_empty())
            };
            if conn.peer.is_some_and(blocked) {
                return Ok(());
            }
            match poll::read(&conn.socket, scratch) {
                Io::Blocked => return Ok(()),
                Io::Closed => {
                    self.end(number);
                    return Ok(());
                }
                Io::Done(count) => {
                    self.take(number, &scratch[..count])?;
                    // Less than was asked for: nothing more is there (epoll(7)).
                    if count < scratch.len() {
                        return Ok(());
                    }
                }
            }
        }
    }

    fn take(&mut self, number: usize, bytes: &[u8]) -> Result<()> {
        let conn = self.conn(number)?;
        if conn.left > 0 {
            conn.left = conn
                .left
                .checked_sub(bytes.len())
                .context("more than was announced")?;
            let (left, role) = (conn.left, conn.role);
            let peer = conn.peer.context("a body without the other side")?;
            self.send(peer, bytes)?;
            if left == 0 && role == Role::Upstream {
                self.done(number, peer)?;
            }
            return Ok(());
        }
        if conn.input.is_empty() {
            return self.head(number, bytes);
        }
        let mut input = std::mem::take(&mut conn.input);
        input.extend_from_slice(bytes);
        self.head(number, &input)
    }

    fn head(&mut self, number: usize, bytes: &[u8]) -> Result<()> {
        let role = self.conn(number)?.role;
        let mut out = Vec::with_capacity(bytes.len() + 64);
        let copy = |more, out| Some(Copy { more, out });
        let head = match role {
            Role::Client => wire::request(bytes, copy(b"x-forwarded-proto: http\r\n", &mut out))?,
            Role::Upstream => wire::answer(bytes, copy(b"", &mut out))?,
        };
        let Some(head) = head else {
            self.conn(number)?.input = bytes.to_vec();
            return Ok(());
        };
        let body = &bytes[head.length..];
        let left = head
            .body
            .checked_sub(body.len())
            .context("more than was announced")?;
        self.conn(number)?.left = left;
        let peer = match role {
            Role::Client => {
                let key = head.key.context("no routing key")?;
                let to = *self.table.get(&bytes[key]).context("no such key")?;
                let peer = match self.kept.pop() {
                    Some(kept) => kept,
                    None => self.add(poll::connect(to)?, Role::Upstream)?,
                };
                self.conn(peer)?.peer = Some(number);
                self.conn(number)?.peer = Some(peer);
                peer
            }
            Role::Upstream => self.conn(number)?.peer.context("an answer to nobody")?,
        };
        out.extend_from_slice(body);
        self.send(peer, &out)?;
        if role == Role::Upstream && left == 0 {
            self.done(number, peer)?;
        }
        Ok(())
    }

    /// The answer is there to its end: both sides part.
    fn done(&mut self, upstream: usize, client: usize) -> Result<()> {
        self.conn(client)?.peer = None;
        self.conn(upstream)?.peer = None;
        self.kept.push(upstream);
        Ok(())
    }

    fn send(&mut self, number: usize, bytes: &[u8]) -> Result<()> {
        let conn = self.conn(number)?;
        let mut sent = 0;
        while conn.output.is_empty() && sent < bytes.len() {
            match poll::write(&conn.socket, &bytes[sent..]) {
                Io::Done(count) => sent += count,
                Io::Blocked => break,
                Io::Closed => anyhow::bail!("the other side is gone"),
            }
        }
        conn.output.extend_from_slice(&bytes[sent..]);
        Ok(())
    }
}
