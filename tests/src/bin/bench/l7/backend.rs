//! The backend: a thread that answers every request with as many bytes as its path asks for.

use std::{
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    thread,
};

use anyhow::{Context as _, Result, ensure};

use super::{
    poll::{self, Io, Poll},
    wire::{self, BODY, NUMBER},
};
use crate::load::pin;

/// Bytes of a body that leave together with its head.
const FIRST: usize = 64 << 10;
/// The listener's number; connections follow.
const LISTENER: usize = 0;

/// Starts the backend on a core; it ends with the process.
pub(crate) fn start(core: usize) -> Result<SocketAddr> {
    let listener = poll::listen((Ipv4Addr::LOCALHOST, 0).into())?;
    let at = listener.local_addr()?;
    thread::Builder::new()
        .name("backend".to_owned())
        .spawn(move || {
            let served = pin(core).and_then(|()| serve(&listener));
            eprintln!("bench: the backend ended: {served:?}");
        })
        .context("failed to start the backend")?;
    Ok(at)
}

/// Bytes that a path asks for. Nothing for `/health`, which placements of routing tables are asked unless they say otherwise.
pub(crate) fn size(path: &str) -> Option<usize> {
    if path == "/health" {
        return Some(0);
    }
    let size = path.strip_prefix('/')?;
    let (number, unit) = size.split_at_checked(size.len().checked_sub(1)?)?;
    let number: usize = number.parse().ok()?;
    match unit {
        "k" => Some(number << 10),
        "m" => Some(number << 20),
        _ => None,
    }
}

struct Conn {
    socket: TcpStream,
    input: Vec<u8>,
    /// Bytes of a request's body that are still to come, and those that came.
    left: usize,
    came: usize,
    /// Head of the answer and the beginning of its body, then the body from there to its end; what was sent of both.
    first: Vec<u8>,
    rest: std::ops::Range<usize>,
    sent: usize,
}

impl Conn {
    fn new(socket: TcpStream) -> Self {
        Self {
            socket,
            input: Vec::new(),
            left: 0,
            came: 0,
            first: Vec::new(),
            rest: 0..0,
            sent: 0,
        }
    }

    /// Reads and answers as far as it goes; false when the connection is over.
    fn go(&mut self, scratch: &mut [u8]) -> Result<bool> {
        loop {
            if !self.flush() {
                return Ok(false);
            }
            if self.sent < self.whole() {
                return Ok(true);
            }
            match poll::read(&self.socket, scratch) {
                Io::Blocked => return Ok(true),
                Io::Closed => return Ok(false),
                Io::Done(count) => self.take(&scratch[..count])?,
            }
        }
    }

    fn take(&mut self, bytes: &[u8]) -> Result<()> {
        if self.left == 0 {
            self.input.extend_from_slice(bytes);
            let Some(head) = wire::request(&self.input, None)? else {
                return Ok(());
            };
            let path = std::str::from_utf8(&self.input[head.path.clone()])?;
            let path = path
                .rsplit_once('/')
                .map_or(path, |(before, _)| &path[before.len()..]);
            let size = size(path).with_context(|| format!("no such path: {path}"))?;
            let number = head.number.clone().map_or(&[][..], |at| &self.input[at]);
            self.first.clear();
            let line = format!(
                "HTTP/1.1 200 OK\r\ndate: Thu, 01 Jan 2026 00:00:00 GMT\r\nserver: backend\r\ncontent-type: application/octet-stream\r\ncontent-length: {}\r\n{NUMBER}: ",
                size
            );
            self.first.extend_from_slice(line.as_bytes());
            self.first.extend_from_slice(number);
            self.first.extend_from_slice(b"\r\n\r\n");
            let with = size.min(FIRST);
            self.first.extend_from_slice(&BODY[..with]);
            self.rest = with..size;
            // Nothing is sent before the request is there to its end.
            self.sent = self.whole();
            (self.left, self.came) = (head.body, 0);
            let rest = self.input.split_off(head.length);
            self.input.clear();
            self.body(&rest)?;
        } else {
            self.body(bytes)?;
        }
        if self.left == 0 {
            self.sent = 0;
        }
        Ok(())
    }

    fn body(&mut self, bytes: &[u8]) -> Result<()> {
        ensure!(bytes.len() <= self.left, "a request before its turn");
        ensure!(
            BODY[self.came..].starts_with(bytes),
            "the body of a request is not what was sent"
        );
        self.came += bytes.len();
        self.left -= bytes.len();
        Ok(())
    }

    fn whole(&self) -> usize {
        self.first.len() + self.rest.len()
    }

    fn flush(&mut self) -> bool {
        while self.sent < self.whole() {
            let part = match self.sent.checked_sub(self.first.len()) {
                None => &self.first[self.sent..],
                Some(at) => &BODY[self.rest.start + at..self.rest.end],
            };
            match poll::write(&self.socket, part) {
                Io::Done(count) => self.sent += count,
                Io::Blocked => return true,
                Io::Closed => return false,
            }
        }
        true
    }
}

fn serve(listener: &TcpListener) -> Result<()> {
    let mut poll = Poll::new()?;
    poll.watch(listener, LISTENER)?;
    let mut conns: Vec<Option<Conn>> = Vec::from([None]);
    let mut free = Vec::new();
    let mut scratch = vec![0; 64 << 10];
    loop {
        for number in poll.wait(None)? {
            if number == LISTENER {
                while let Some(socket) = poll::accept(listener)? {
                    let number = free.pop().unwrap_or_else(|| {
                        conns.push(None);
                        conns.len() - 1
                    });
                    poll.watch(&socket, number)?;
                    conns[number] = Some(Conn::new(socket));
                }
                continue;
            }
            let Some(conn) = &mut conns[number] else {
                continue;
            };
            let lives = conn.go(&mut scratch).unwrap_or_else(|error| {
                // Whoever waits for the answer finds out and says so.
                eprintln!("bench: the backend refused a request: {error:#}");
                false
            });
            if !lives {
                conns[number] = None;
                free.push(number);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::size;

    #[test]
    fn a_path_says_how_much_it_asks_for() {
        assert_eq!(size("/4k"), Some(4096));
        assert_eq!(size("/2m"), Some(2 << 20));
        assert_eq!(size("/health"), Some(0));
        for path in ["/", "/k", "/4", "/4g", "/healthy", "4k", ""] {
            assert_eq!(size(path), None, "{path}");
        }
    }
}
