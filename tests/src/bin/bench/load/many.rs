//! Many connections at a time, each with one request under way: a client and a server that wait for all of theirs with
//! epoll. Only what is ready is read, and what is written is smaller than any socket's buffer, so nothing else blocks.

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    time::Instant,
};

use anyhow::{Context as _, Result, bail};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};

/// Connections of a client.
pub(super) const CONNECTIONS: u64 = 64;
/// Bytes of a request and of its answer, which is the request with all bits turned.
const SIZE: usize = 1024;
/// How long all answers together may be away, in milliseconds.
const AWAY: u16 = 5000;

/// Open connections.
#[derive(Debug)]
pub(super) struct Client {
    epoll: Epoll,
    connections: Vec<Connection>,
}

#[derive(Debug)]
struct Connection {
    stream: TcpStream,
    message: Message,
    expected: [u8; SIZE],
    sent: u64,
}

/// Bytes of a message that have arrived.
#[derive(Debug)]
struct Message {
    bytes: [u8; SIZE],
    length: usize,
}

impl Message {
    const NONE: Self = Self {
        bytes: [0; SIZE],
        length: 0,
    };

    /// Takes what a ready stream has; gives the message when it is whole. Nothing is an error: the other end closed.
    fn read(&mut self, mut stream: &TcpStream) -> std::io::Result<Option<&mut [u8; SIZE]>> {
        match stream.read(&mut self.bytes[self.length..])? {
            0 => Err(std::io::ErrorKind::UnexpectedEof.into()),
            length => {
                self.length += length;
                if self.length < SIZE {
                    return Ok(None);
                }
                self.length = 0;
                Ok(Some(&mut self.bytes))
            }
        }
    }
}

impl Client {
    /// Connects.
    pub(super) fn connect(to: SocketAddr) -> Result<Self> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        let mut connections = Vec::new();
        for number in 0..CONNECTIONS {
            let stream =
                TcpStream::connect(to).with_context(|| format!("failed to connect to {to}"))?;
            stream.set_nodelay(true)?;
            epoll.add(&stream, EpollEvent::new(EpollFlags::EPOLLIN, number))?;
            connections.push(Connection {
                stream,
                message: Message::NONE,
                expected: [0; SIZE],
                sent: 0,
            });
        }
        Ok(Self { epoll, connections })
    }

    /// Keeps all connections busy until `end`, and then waits for the last answers. Gives the number of answers, of which
    /// every byte was right.
    pub(super) fn requests(&mut self, end: Instant) -> Result<u64> {
        let mut away = 0;
        for (number, connection) in (0..).zip(&mut self.connections) {
            connection.send(number)?;
            away += 1;
        }
        let mut events = [EpollEvent::empty(); CONNECTIONS as usize];
        let mut count = 0;
        while away > 0 {
            let ready = wait(&self.epoll, &mut events, AWAY.into())?;
            if ready.is_empty() {
                bail!("{away} answers do not come");
            }
            let more = Instant::now() < end;
            for event in ready {
                let number = event.data();
                let connection = usize::try_from(number)
                    .ok()
                    .and_then(|number| self.connections.get_mut(number))
                    .context("an event of no connection")?;
                if !connection.answered()? {
                    continue;
                }
                count += 1;
                if more {
                    connection.send(number)?;
                } else {
                    away -= 1;
                }
            }
        }
        Ok(count)
    }
}

impl Connection {
    /// No two requests are the same, so that neither an old answer nor another connection's is taken for the right one.
    fn send(&mut self, number: u64) -> Result<()> {
        self.sent += 1;
        let seed = (number << 48) | self.sent;
        let mut request = [0; SIZE];
        for (place, word) in (0_u64..).zip(request.chunks_exact_mut(8)) {
            word.copy_from_slice(&(seed ^ (place << 56)).to_ne_bytes());
        }
        self.expected = request.map(|byte| !byte);
        self.stream
            .write_all(&request)
            .context("failed to send a request")
    }

    /// Whether an answer is complete; an error, if it is wrong.
    fn answered(&mut self) -> Result<bool> {
        let answer = self.message.read(&self.stream);
        match answer.context("failed to receive an answer")? {
            None => Ok(false),
            Some(answer) if *answer == self.expected => Ok(true),
            Some(_) => bail!("an answer is not that of its request"),
        }
    }
}

/// Answers all connections of a listener; returns only with an error of the listener or of epoll.
pub(super) fn serve(listener: &TcpListener) -> Result<()> {
    const LISTENER: u64 = u64::MAX;
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
    epoll.add(listener, EpollEvent::new(EpollFlags::EPOLLIN, LISTENER))?;
    let mut connections: Vec<Option<(TcpStream, Message)>> = Vec::new();
    let mut events = [EpollEvent::empty(); CONNECTIONS as usize];
    loop {
        for event in wait(&epoll, &mut events, EpollTimeout::NONE)? {
            if event.data() == LISTENER {
                let (stream, _) = listener.accept()?;
                stream.set_nodelay(true)?;
                let number = connections.len() as u64;
                epoll.add(&stream, EpollEvent::new(EpollFlags::EPOLLIN, number))?;
                connections.push(Some((stream, Message::NONE)));
                continue;
            }
            let place = usize::try_from(event.data())
                .ok()
                .and_then(|number| connections.get_mut(number))
                .context("an event of no connection")?;
            if let Some((stream, message)) = place
                && answer(stream, message).is_err()
            {
                // It ended or broke, which is the client's error to report.
                *place = None;
            }
        }
    }
}

fn answer(mut stream: &TcpStream, message: &mut Message) -> std::io::Result<()> {
    if let Some(request) = message.read(stream)? {
        for byte in request.iter_mut() {
            *byte = !*byte;
        }
        stream.write_all(request)?;
    }
    Ok(())
}

/// Waits; a signal that does not end the process does not end the waiting.
pub(crate) fn wait<'a>(
    epoll: &Epoll,
    events: &'a mut [EpollEvent],
    timeout: EpollTimeout,
) -> Result<&'a [EpollEvent]> {
    loop {
        match epoll.wait(events, timeout) {
            Ok(count) => return Ok(&events[..count]),
            Err(nix::errno::Errno::EINTR) => {}
            Err(error) => return Err(error).context("failed to wait for connections"),
        }
    }
}
