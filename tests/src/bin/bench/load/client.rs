//! What sends.

use std::{
    collections::{BTreeMap, btree_map::Entry},
    io::{Read as _, Write as _},
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket},
    sync::atomic::Ordering,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use nix::time::{ClockId, clock_gettime};
use socket2::{Domain, Protocol, Socket, Type};

use super::{BATCH, Done, Kind, MESSAGE, Order, many, port, server::Servers};

/// Transactions between two looks at the clock.
const STRIDE: u64 = 16;
/// Bytes that one write of a stream gives.
const CHUNK: usize = 128 * 1024;
/// How long a stream may take to arrive after its last byte was written.
const DRAIN: Duration = Duration::from_secs(5);

/// Connections that stay open, and the servers of the same process.
pub(super) struct Client {
    servers: Servers,
    open: BTreeMap<(Kind, SocketAddr), TcpStream>,
    many: BTreeMap<SocketAddr, many::Client>,
    sockets: BTreeMap<(Kind, SocketAddr), UdpSocket>,
}

/// What was counted, and what got lost.
type Count = (u64, u64);

impl Client {
    pub(super) fn new(servers: Servers) -> Self {
        Self {
            servers,
            open: BTreeMap::new(),
            many: BTreeMap::new(),
            sockets: BTreeMap::new(),
        }
    }

    /// Does what is ordered.
    pub(super) fn run(&mut self, order: &Order) -> Result<Done> {
        let to = order.to;
        // A connection is opened before the clock starts.
        match order.kind {
            Kind::Rr | Kind::Bulk => {
                self.connected(order.kind, to)?;
            }
            Kind::Udp | Kind::UdpTo => {
                self.socket(order.kind, to)?;
            }
            Kind::Many => {
                self.many(to)?;
            }
            Kind::Crr | Kind::Flows => {}
        }
        let (start, cpu) = (Instant::now(), cpu_nanos()?);
        let end = start + Duration::from_micros(order.amount);
        let (count, lost) = match order.kind {
            Kind::Rr => self.requests(to, end),
            Kind::Crr => connections(to, end),
            Kind::Many => self.many(to)?.requests(end).map(|count| (count, 0)),
            Kind::Udp | Kind::UdpTo => self.datagrams(order.kind, to, end),
            Kind::Bulk => self.stream(to, end),
            Kind::Flows => flows(to, order.amount),
        }
        .with_context(|| format!("{:?} to {to}", order.kind))?;
        Ok(Done {
            count,
            nanos: u64::try_from(start.elapsed().as_nanos())?,
            cpu_nanos: cpu_nanos()? - cpu,
            lost,
        })
    }

    fn connected(&mut self, kind: Kind, to: SocketAddr) -> Result<&mut TcpStream> {
        Ok(match self.open.entry((kind, to)) {
            Entry::Occupied(open) => open.into_mut(),
            Entry::Vacant(place) => {
                let stream =
                    TcpStream::connect(to).with_context(|| format!("failed to connect to {to}"))?;
                stream.set_nodelay(true)?;
                place.insert(stream)
            }
        })
    }

    fn many(&mut self, to: SocketAddr) -> Result<&mut many::Client> {
        Ok(match self.many.entry(to) {
            Entry::Occupied(open) => open.into_mut(),
            Entry::Vacant(place) => place.insert(many::Client::connect(to)?),
        })
    }

    fn socket(&mut self, kind: Kind, to: SocketAddr) -> Result<&UdpSocket> {
        Ok(match self.sockets.entry((kind, to)) {
            Entry::Occupied(open) => open.into_mut(),
            Entry::Vacant(place) => {
                let socket = unbound(to)?;
                if kind == Kind::Udp {
                    socket.connect(to)?;
                }
                place.insert(socket)
            }
        })
    }

    fn requests(&mut self, to: SocketAddr, end: Instant) -> Result<Count> {
        let stream = self.connected(Kind::Rr, to)?;
        let mut message = [7; MESSAGE];
        let mut count = 0;
        loop {
            for _ in 0..STRIDE {
                stream.write_all(&message)?;
                stream.read_exact(&mut message)?;
            }
            count += STRIDE;
            if Instant::now() >= end {
                return Ok((count, 0));
            }
        }
    }

    fn datagrams(&mut self, kind: Kind, to: SocketAddr, end: Instant) -> Result<Count> {
        self.socket(kind, to)?;
        let socket = self
            .sockets
            .get(&(kind, to))
            .context("the socket was just made")?;
        let counter = &self.servers.counters[usize::from(to.is_ipv6())];
        let send = |last: bool| {
            let message = [u8::from(last); MESSAGE];
            match kind {
                Kind::Udp => socket.send(&message),
                _ => socket.send_to(&message, to),
            }
        };
        let (mut sent, mut count) = (0, 0);
        while Instant::now() < end {
            for number in 1..=BATCH {
                send(number == BATCH)?;
            }
            sent += BATCH;
            count += counter.count()?;
        }
        if count == 0 {
            bail!("no datagram arrived");
        }
        // What fills a flow table may have left some in the server's queue.
        Ok((count, sent.saturating_sub(count)))
    }

    fn stream(&mut self, to: SocketAddr, end: Instant) -> Result<Count> {
        self.connected(Kind::Bulk, to)?;
        let stream = self
            .open
            .get_mut(&(Kind::Bulk, to))
            .context("the connection was just opened")?;
        let servers = &self.servers;
        let chunk = vec![7; CHUNK];
        let before = servers.stream.received.load(Ordering::SeqCst);
        let mut sent = 0;
        while Instant::now() < end {
            stream.write_all(&chunk)?;
            sent += CHUNK as u64;
        }
        // Written before the last chunk, so that the server can reach it only after it was told.
        sent += CHUNK as u64;
        servers
            .stream
            .expected
            .store(before + sent, Ordering::SeqCst);
        stream.write_all(&chunk)?;
        servers
            .stream_done
            .recv_timeout(DRAIN)
            .context("a stream did not arrive")?;
        Ok((sent, 0))
    }
}

fn unbound(to: SocketAddr) -> Result<UdpSocket> {
    let any: SocketAddr = match to {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    UdpSocket::bind(any).context("failed to make a UDP socket")
}

/// The server closes first: what remains of a connection for a while remains at its side, and the client's ports are free
/// again at once.
fn connections(to: SocketAddr, end: Instant) -> Result<Count> {
    let mut message = [7; MESSAGE];
    let mut count = 0;
    while Instant::now() < end {
        let mut stream = TcpStream::connect(to)?;
        stream.write_all(&message)?;
        stream.read_exact(&mut message)?;
        if stream.read(&mut message)? != 0 {
            bail!("the server said more than it should");
        }
        count += 1;
    }
    Ok((count, 0))
}

/// Half of them by UDP, half by TCP. Most ports answer a datagram that nobody listens, which a socket that is not connected does
/// not hear; a segment without a checksum is answered by nobody.
fn flows(to: SocketAddr, amount: u64) -> Result<Count> {
    let raw = Socket::new(Domain::for_address(to), Type::RAW, Some(Protocol::TCP))
        .context("failed to open a raw socket")?;
    let mut sent = 0;
    while sent < amount / 2 {
        for port in 1..=u16::MAX {
            let mut opening = [0; 20];
            opening[..2].copy_from_slice(&port.to_be_bytes());
            opening[2..4].copy_from_slice(&port::CRR.to_be_bytes());
            // The header's length in words, and SYN.
            opening[12..14].copy_from_slice(&[0x50, 0x02]);
            raw.send_to(&opening, &to.into())?;
            sent += 1;
            if sent == amount / 2 {
                break;
            }
        }
    }
    while sent < amount {
        let socket = unbound(to)?;
        for port in 1..=u16::MAX {
            socket.send_to(&[0; MESSAGE], SocketAddr::new(to.ip(), port))?;
            sent += 1;
            if sent == amount {
                break;
            }
        }
    }
    Ok((sent, 0))
}

/// CPU time of all threads of this process.
fn cpu_nanos() -> Result<u64> {
    let time = clock_gettime(ClockId::CLOCK_PROCESS_CPUTIME_ID)?;
    Ok(u64::try_from(
        time.tv_sec() * 1_000_000_000 + time.tv_nsec(),
    )?)
}
