//! What receives: one thread per port and family in the server's namespace.

use std::{
    fs::File,
    io::{Read as _, Write as _},
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::fd::AsFd as _,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
        mpsc::{Receiver, SyncSender, sync_channel},
    },
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result};
use nix::sched::{CloneFlags, setns, unshare};
use socket2::{Domain, Socket, Type};

use super::{MESSAGE, many, port};

/// Bytes that one read of a stream may take.
const CHUNK: usize = 256 * 1024;
/// How long a batch of datagrams may take to arrive before what is missing counts as lost.
const ARRIVAL: Duration = Duration::from_millis(100);

/// What a client needs to know of the servers of its process.
#[derive(Debug)]
pub(super) struct Servers {
    pub(super) stream: Arc<Meter>,
    pub(super) stream_done: Receiver<()>,
    /// Counters of datagrams: of IPv4 and of IPv6.
    pub(super) counters: [Counter; 2],
}

/// What the servers of streams tell the client beside the network.
#[derive(Debug, Default)]
pub(super) struct Meter {
    /// Bytes that arrived.
    pub(super) received: AtomicU64,
    /// At how many of them the client wants to be told.
    pub(super) expected: AtomicU64,
}

/// A server of datagrams. It waits for a word instead of a datagram: one that slept on its socket would be woken by
/// every datagram, and a sender that shares its core with it would measure the scheduler.
#[derive(Debug)]
pub(super) struct Counter {
    go: SyncSender<()>,
    counted: Receiver<u64>,
}

impl Counter {
    /// Has a batch counted that was sent before.
    pub(super) fn count(&self) -> Result<u64> {
        self.go.send(()).context("the server of datagrams ended")?;
        self.counted.recv().context("the server of datagrams ended")
    }
}

/// Opens all servers in a namespace; they run until the process ends.
pub(super) fn start(namespace: &Path) -> Result<Servers> {
    let file =
        File::open(namespace).with_context(|| format!("failed to open {}", namespace.display()))?;
    let sockets = thread::spawn(move || {
        setns(file.as_fd(), CloneFlags::CLONE_NEWNET).context("failed to enter a namespace")?;
        open()
    })
    .join()
    .map_err(|_| anyhow::anyhow!("the thread that opens sockets panicked"))??;
    let stream = Arc::new(Meter::default());
    let (stream_tell, stream_done) = sync_channel(1);
    for listener in sockets.rr {
        serve("rr", move || {
            connections(&listener, |stream| {
                stays(stream, |mut stream| echo(&mut stream))
            });
        })?;
    }
    for listener in sockets.crr {
        serve("crr", move || {
            connections(&listener, |mut stream| answer_once(&mut stream))
        })?;
    }
    for listener in sockets.bulk {
        let (meter, tell) = (Arc::clone(&stream), stream_tell.clone());
        serve("bulk", move || {
            connections(&listener, |stream| {
                let (meter, tell) = (Arc::clone(&meter), tell.clone());
                stays(stream, move |mut stream| {
                    swallow(&mut stream, &meter, &tell)
                })
            });
        })?;
    }
    for listener in sockets.many {
        serve("many", move || {
            if let Err(error) = many::serve(&listener) {
                eprintln!("bench: a server of many connections ended: {error:#}");
            }
        })?;
    }
    let counter = |socket: UdpSocket| -> Result<Counter> {
        let (go, wait) = sync_channel(1);
        let (tell, counted) = sync_channel(1);
        socket.set_read_timeout(Some(ARRIVAL))?;
        serve("udp", move || {
            while wait.recv().is_ok() && tell.send(batch(&socket)).is_ok() {}
        })?;
        Ok(Counter { go, counted })
    };
    let [v4, v6] = sockets.udp;
    Ok(Servers {
        stream,
        stream_done,
        counters: [counter(v4)?, counter(v6)?],
    })
}

struct Sockets {
    rr: Vec<TcpListener>,
    crr: Vec<TcpListener>,
    bulk: Vec<TcpListener>,
    many: Vec<TcpListener>,
    /// Of IPv4 and of IPv6.
    udp: [UdpSocket; 2],
}

/// Each family has sockets of its own: an IPv6 socket that speaks IPv4 is a longer way.
fn open() -> Result<Sockets> {
    let any = |port| -> [SocketAddr; 2] {
        [
            (Ipv4Addr::UNSPECIFIED, port).into(),
            (Ipv6Addr::UNSPECIFIED, port).into(),
        ]
    };
    let listeners = |port| -> Result<Vec<TcpListener>> {
        any(port)
            .into_iter()
            .map(|address| {
                let socket = only(address, Type::STREAM)?;
                socket.listen(1024)?;
                Ok(socket.into())
            })
            .collect()
    };
    let [v4, v6] = any(port::UDP);
    Ok(Sockets {
        rr: listeners(port::RR)?,
        crr: listeners(port::CRR)?,
        bulk: listeners(port::BULK)?,
        many: listeners(port::MANY)?,
        udp: [only(v4, Type::DGRAM)?.into(), only(v6, Type::DGRAM)?.into()],
    })
}

fn only(address: SocketAddr, kind: Type) -> Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), kind, None)?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    // An earlier process' connections may still be remembered here.
    socket.set_reuse_address(true)?;
    socket
        .bind(&address.into())
        .with_context(|| format!("failed to bind {address}"))?;
    Ok(socket)
}

/// A server's thread has descriptors of its own, as a process of its own would: shared ones are counted with each call.
fn serve(name: &str, work: impl FnOnce() + Send + 'static) -> Result<()> {
    thread::Builder::new()
        .name(name.to_owned())
        .spawn(move || {
            if let Err(error) = unshare(CloneFlags::CLONE_FILES) {
                eprintln!("bench: a server shares its descriptors: {error}");
            }
            work();
        })?;
    Ok(())
}

/// Serves connections one after the other. A connection that breaks is the client's error to report.
pub(crate) fn connections(
    listener: &TcpListener,
    mut each: impl FnMut(TcpStream) -> std::io::Result<()>,
) {
    for stream in listener.incoming() {
        match stream {
            Ok(stream) => {
                let _broken = each(stream);
            }
            // A listener that was shut down is at its end.
            Err(error) if error.kind() == std::io::ErrorKind::InvalidInput => return,
            Err(error) => {
                eprintln!("bench: a server cannot accept: {error}");
                return;
            }
        }
    }
}

/// Gives a connection that stays open a thread of its own.
fn stays(
    stream: TcpStream,
    work: impl FnOnce(TcpStream) -> std::io::Result<()> + Send + 'static,
) -> std::io::Result<()> {
    thread::Builder::new()
        .name("connection".to_owned())
        .spawn(move || work(stream))
        .map(drop)
}

fn echo(stream: &mut TcpStream) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let mut message = [0; MESSAGE];
    loop {
        stream.read_exact(&mut message)?;
        stream.write_all(&message)?;
    }
}

/// Answers one message; the caller closes.
pub(crate) fn answer_once(stream: &mut TcpStream) -> std::io::Result<()> {
    let mut message = [0; MESSAGE];
    stream.read_exact(&mut message)?;
    stream.write_all(&message)
}

fn swallow(stream: &mut TcpStream, meter: &Meter, done: &SyncSender<()>) -> std::io::Result<()> {
    let mut chunk = vec![0; CHUNK];
    loop {
        let length = stream.read(&mut chunk)? as u64;
        if length == 0 {
            return Ok(());
        }
        let received = meter.received.fetch_add(length, Ordering::SeqCst) + length;
        if received == meter.expected.load(Ordering::SeqCst) {
            // The client is gone only when the process ends.
            let _gone = done.send(());
        }
    }
}

/// Takes a batch off the socket; the last datagram of one begins with a one.
fn batch(socket: &UdpSocket) -> u64 {
    let (mut datagram, mut count) = ([0; MESSAGE], 0);
    // An error is the time after which the rest of the batch counts as lost.
    while socket.recv(&mut datagram).is_ok() {
        count += 1;
        if datagram[0] == 1 {
            break;
        }
    }
    count
}
