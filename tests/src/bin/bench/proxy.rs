//! A plain proxy, as a process of its own on the node: one thread, one connection to the server for each of its clients', and
//! bytes that go from one to the other. It parses nothing, so that its row shows what sockets cost.
//!
//! It reads what is ready, and blocks on writing alone. That is enough for callers with one small message under way on each
//! connection, and for nobody else.

use std::{
    io::{Read as _, Write as _, stdin},
    net::{SocketAddr, TcpListener, TcpStream},
};

use anyhow::{Context as _, Result};
use clap::Args;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};

use crate::load::{pin, wait};

/// What the process says when it listens.
pub(crate) const READY: &str = "ready";
/// Bytes that are read at a time.
const CHUNK: usize = 16 * 1024;
/// Events that are taken at a time.
const EVENTS: usize = 64;
/// Numbers of events that are not a connection's.
const LISTENER: u64 = u64::MAX;
const INPUT: u64 = LISTENER - 1;

/// How the proxy is started.
#[derive(Args)]
pub(crate) struct Options {
    /// The core for everything that this process does.
    #[arg(long)]
    core: usize,
    /// Where it listens.
    #[arg(long, value_name = "ADDRESS")]
    listen: SocketAddr,
    /// The server.
    #[arg(long, value_name = "ADDRESS")]
    to: SocketAddr,
}

/// Relays until standard input ends.
pub(crate) fn run(options: &Options) -> Result<()> {
    pin(options.core)?;
    let listener = TcpListener::bind(options.listen)
        .with_context(|| format!("failed to listen at {}", options.listen))?;
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
    epoll.add(&listener, EpollEvent::new(EpollFlags::EPOLLIN, LISTENER))?;
    epoll.add(stdin(), EpollEvent::new(EpollFlags::EPOLLIN, INPUT))?;
    println!("{READY}");
    let mut relay = Relay {
        epoll,
        ends: Vec::new(),
        chunk: vec![0; CHUNK],
    };
    let mut events = [EpollEvent::empty(); EVENTS];
    loop {
        // The events are copies: connections that they name may be gone when their turn comes.
        let ready = wait(&relay.epoll, &mut events, EpollTimeout::NONE)?.to_vec();
        for event in ready {
            match event.data() {
                INPUT => return Ok(()),
                LISTENER => {
                    let (client, _) = listener.accept().context("failed to accept")?;
                    relay.begin(client, options.to)?;
                }
                number => relay.pass(usize::try_from(number)?),
            }
        }
    }
}

struct Relay {
    epoll: Epoll,
    /// Both ends of each pair are neighbours: a client's has an even number, the server's the odd one after it.
    ends: Vec<Option<TcpStream>>,
    chunk: Vec<u8>,
}

impl Relay {
    fn begin(&mut self, client: TcpStream, to: SocketAddr) -> Result<()> {
        let server =
            TcpStream::connect(to).with_context(|| format!("failed to connect to {to}"))?;
        for stream in [client, server] {
            stream.set_nodelay(true)?;
            let number = self.ends.len() as u64;
            self.epoll
                .add(&stream, EpollEvent::new(EpollFlags::EPOLLIN, number))?;
            self.ends.push(Some(stream));
        }
        Ok(())
    }

    /// Passes on what one end has. The end of one is the end of both, which their peers notice.
    fn pass(&mut self, number: usize) {
        let [Some(from), Some(to)] = [number, number ^ 1].map(|end| self.ends[end].as_ref()) else {
            return;
        };
        let (mut from, mut to) = (from, to);
        let passed = match from.read(&mut self.chunk) {
            Ok(length) if length > 0 => to.write_all(&self.chunk[..length]).is_ok(),
            _ => false,
        };
        if !passed {
            self.ends[number] = None;
            self.ends[number ^ 1] = None;
        }
    }
}
