//! The load generator for HTTP/1.1: one thread, one epoll, plain or over TLS. It reads every answer to its end and
//! compares it with what was asked for: status, length, the request's own number, and each byte of the body.

use std::{
    net::{SocketAddr, TcpStream},
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use nix::{
    sys::{
        time::TimeSpec,
        timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags},
    },
    unistd::read,
};
use rustls::{ClientConfig, ClientConnection};
use rustls_pki_types::ServerName;

use super::{
    poll::{self, Io, Poll},
    wire::{self, BODY, DIGITS, KEY, NUMBER},
};

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// What is asked for and how.
#[derive(Clone, Debug)]
pub(crate) struct Load {
    /// Connections.
    pub(crate) connections: usize,
    /// Requests per second; else each connection sends its next one when the answer to the last is there.
    pub(crate) rate: Option<u32>,
    /// Bytes of the request's body: a `POST` if there are any.
    pub(crate) body: usize,
    /// Path, which says how long the answer is.
    pub(crate) path: String,
    /// Bytes of the answer.
    pub(crate) size: usize,
    /// Whether every request has a connection of its own.
    pub(crate) fresh: bool,
    /// TLS; every connection is a full handshake.
    pub(crate) tls: Option<Arc<ClientConfig>>,
    /// Header lines, of which each request takes the next.
    pub(crate) fields: Arc<Vec<String>>,
}

/// What was done in a slice.
#[derive(Debug, Default)]
pub(crate) struct Done {
    /// Answers.
    pub(crate) count: u64,
    /// Time of each in nanoseconds, from when it was due.
    pub(crate) times: Vec<u32>,
}

/// A generator with its connections, which stay open between slices.
pub(crate) struct Client {
    load: Load,
    to: SocketAddr,
    poll: Poll,
    conns: Vec<Conn>,
    idle: Vec<usize>,
    timer: Option<TimerFd>,
    next: u64,
    scratch: Vec<u8>,
}

struct Conn {
    socket: Option<TcpStream>,
    tls: Option<ClientConnection>,
    output: Vec<u8>,
    input: Vec<u8>,
    /// Of the answer's body, once its head is there.
    left: Option<usize>,
    busy: bool,
    due: Instant,
    number: u64,
}

impl Client {
    pub(crate) fn new(load: Load, to: SocketAddr) -> Result<Self> {
        let poll = Poll::new()?;
        let timer = match load.rate {
            Some(_) => {
                let timer = TimerFd::new(ClockId::CLOCK_MONOTONIC, TimerFlags::TFD_NONBLOCK)?;
                poll.watch_level(&timer, load.connections)?;
                Some(timer)
            }
            None => None,
        };
        let conns = (0..load.connections).map(|_| Conn {
            socket: None,
            tls: None,
            output: Vec::new(),
            input: Vec::new(),
            left: None,
            busy: false,
            due: Instant::now(),
            number: 0,
        });
        Ok(Self {
            conns: conns.collect(),
            idle: (0..load.connections).collect(),
            load,
            to,
            poll,
            timer,
            next: 1,
            scratch: vec![0; 64 << 10],
        })
    }

    /// Sends for a while, and waits for all answers.
    pub(crate) fn run(&mut self, time: Duration) -> Result<Done> {
        let mut done = Done::default();
        let start = Instant::now();
        let period = self.load.rate.map(|rate| Duration::from_secs(1) / rate);
        match (&self.timer, period) {
            (Some(timer), Some(period)) => timer.set(
                Expiration::Interval(TimeSpec::from_duration(period)),
                TimerSetTimeFlags::empty(),
            )?,
            _ => {
                for number in std::mem::take(&mut self.idle) {
                    self.send(number, Instant::now())?;
                }
            }
        }
        let (mut issued, mut missed) = (0_u32, std::collections::VecDeque::new());
        let mut last = Instant::now();
        while start.elapsed() < time || self.idle.len() < self.conns.len() || !missed.is_empty() {
            let events = self.poll.wait(Some(100))?;
            let open = start.elapsed() < time;
            ensure!(
                last.elapsed() < PATIENCE || self.idle.len() == self.conns.len(),
                "no answer for {PATIENCE:?}"
            );
            for number in events {
                if number < self.conns.len() {
                    if self.take(number, &mut done)? {
                        last = Instant::now();
                        match (missed.pop_front(), open && period.is_none()) {
                            (Some(due), _) => self.send(number, due)?,
                            (None, true) => self.send(number, Instant::now())?,
                            (None, false) => self.idle.push(number),
                        }
                    }
                    continue;
                }
                let (Some(timer), Some(period)) = (&self.timer, period) else {
                    continue;
                };
                let mut ticks = [0; 8];
                read(timer, &mut ticks).context("failed to read the timer")?;
                if !open {
                    continue;
                }
                for _ in 0..u64::from_ne_bytes(ticks) {
                    issued += 1;
                    let due = start + period * issued;
                    match self.idle.pop() {
                        Some(number) => self.send(number, due)?,
                        None => missed.push_back(due),
                    }
                }
            }
            if !open && let Some(timer) = &self.timer {
                timer.unset()?;
            }
        }
        Ok(done)
    }

    /// Begins a request, on a new connection where there is none.
    fn send(&mut self, number: usize, due: Instant) -> Result<()> {
        let load = &self.load;
        let conn = &mut self.conns[number];
        if conn.socket.is_none() {
            let socket = poll::connect(self.to)?;
            self.poll.watch(&socket, number)?;
            conn.socket = Some(socket);
            if let Some(config) = &load.tls {
                let name = ServerName::try_from(super::HOST)?;
                conn.tls = Some(ClientConnection::new(Arc::clone(config), name)?);
            }
        }
        conn.number = self.next;
        self.next += 1;
        (conn.due, conn.busy, conn.left) = (due, true, None);
        conn.input.clear();
        let method = if load.body > 0 { "POST" } else { "GET" };
        let field = match load.fields.len() {
            0 => "",
            count => &load.fields[conn.number as usize % count],
        };
        let mut head = format!(
            "{method} {} HTTP/1.1\r\nhost: {}\r\nuser-agent: bench\r\naccept: */*\r\n{KEY}: key-{}\r\n{NUMBER}: {:0DIGITS$x}\r\n{field}",
            load.path,
            super::HOST,
            conn.number % 1000,
            conn.number,
        );
        if load.body > 0 {
            head += &format!("content-length: {}\r\n", load.body);
        }
        if load.fresh {
            head += "connection: close\r\n";
        }
        head += "\r\n";
        conn.output.extend_from_slice(head.as_bytes());
        conn.output.extend_from_slice(&BODY[..load.body]);
        conn.flush()
    }

    /// Goes on with a connection; true when its answer is there to the end.
    fn take(&mut self, number: usize, done: &mut Done) -> Result<bool> {
        let conn = &mut self.conns[number];
        if conn.socket.is_none() {
            return Ok(false);
        }
        conn.flush()?;
        loop {
            match conn.read(&mut self.scratch)? {
                Io::Blocked => return Ok(false),
                Io::Closed => {
                    ensure!(!conn.busy, "a connection ended before its answer did");
                    // It idled too long, or was never to be used again.
                    (conn.socket, conn.tls) = (None, None);
                    return Ok(false);
                }
                Io::Done(count) => {
                    ensure!(conn.busy, "an answer to no request");
                    if conn.answered(&self.scratch[..count], self.load.size)? {
                        break;
                    }
                }
            }
        }
        conn.busy = false;
        done.count += 1;
        let time = conn.due.elapsed().as_nanos();
        done.times.push(u32::try_from(time).unwrap_or(u32::MAX));
        if self.load.fresh {
            (conn.socket, conn.tls) = (None, None);
        }
        Ok(true)
    }
}

impl Conn {
    fn flush(&mut self) -> Result<()> {
        let Some(socket) = &self.socket else {
            return Ok(());
        };
        if let Some(tls) = &mut self.tls {
            if !self.output.is_empty() {
                std::io::Write::write_all(&mut tls.writer(), &self.output)?;
                self.output.clear();
            }
            let mut socket = socket;
            while tls.wants_write() {
                match tls.write_tls(&mut socket) {
                    Ok(_) => {}
                    Err(error) if blocked(&error) => break,
                    Err(error) => return Err(error).context("failed to write"),
                }
            }
            return Ok(());
        }
        let mut sent = 0;
        while sent < self.output.len() {
            match poll::write(socket, &self.output[sent..]) {
                Io::Done(count) => sent += count,
                Io::Blocked => break,
                Io::Closed => bail!("a connection ended before its request did"),
            }
        }
        self.output.drain(..sent);
        Ok(())
    }

    fn read(&mut self, buffer: &mut [u8]) -> Result<Io> {
        let Some(socket) = &self.socket else {
            return Ok(Io::Closed);
        };
        let Some(tls) = &mut self.tls else {
            return Ok(poll::read(socket, buffer));
        };
        loop {
            match std::io::Read::read(&mut tls.reader(), buffer) {
                Ok(0) => return Ok(Io::Closed),
                Ok(count) => return Ok(Io::Done(count)),
                Err(error) if blocked(&error) => {}
                Err(_) => return Ok(Io::Closed),
            }
            let mut socket = socket;
            match tls.read_tls(&mut socket) {
                Ok(0) => return Ok(Io::Closed),
                Ok(_) => {}
                Err(error) if blocked(&error) => return Ok(Io::Blocked),
                Err(_) => return Ok(Io::Closed),
            }
            tls.process_new_packets().context("TLS failed")?;
            while tls.wants_write() {
                match tls.write_tls(&mut socket) {
                    Ok(_) => {}
                    Err(error) if blocked(&error) => break,
                    Err(error) => return Err(error).context("failed to write"),
                }
            }
        }
    }

    /// Takes a part of the answer, which is to be `size` long; true at its end.
    fn answered(&mut self, bytes: &[u8], size: usize) -> Result<bool> {
        let left = match self.left {
            Some(left) => self.body(left, bytes, size)?,
            None => {
                self.input.extend_from_slice(bytes);
                let Some(head) = wire::answer(&self.input, None)? else {
                    return Ok(false);
                };
                ensure!(
                    head.status == 200,
                    "answered {}: {}",
                    head.status,
                    String::from_utf8_lossy(&self.input)
                );
                ensure!(head.body == size, "an answer of {} bytes", head.body);
                let number = head.number.context("an answer without a number")?;
                let number = std::str::from_utf8(&self.input[number])?;
                ensure!(
                    u64::from_str_radix(number, 16)? == self.number,
                    "the answer of another request"
                );
                let input = std::mem::take(&mut self.input);
                let left = self.body(size, &input[head.length..], size)?;
                self.input = input;
                left
            }
        };
        self.left = Some(left);
        Ok(left == 0)
    }

    fn body(&self, left: usize, bytes: &[u8], size: usize) -> Result<usize> {
        let at = size - left;
        ensure!(
            bytes.len() <= left && BODY[at..].starts_with(bytes),
            "the body of an answer is not what was asked for"
        );
        Ok(left - bytes.len())
    }
}

fn blocked(error: &std::io::Error) -> bool {
    matches!(
        error.kind(),
        std::io::ErrorKind::WouldBlock | std::io::ErrorKind::NotConnected
    )
}
