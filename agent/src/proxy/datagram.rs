//! Datagrams: a session per client address, each with a socket of its own towards one backend.
//!
//! Flows in: datagrams of one listener on one core; the kernel brings those of one client to one core. Flows out:
//! answers from the listener's own address and port, one record per session and backend. A session stays with its
//! backend as long as the active table leads there, also by another weight; else one is chosen again.
//! What it deliberately does not do: it keeps no order, sends nothing twice, and drops what nobody takes.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use snapshot::model::{Gate, Upstream};
use tokio::net::UdpSocket;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::spawn_local;
use tokio::time::Instant;

use super::connection::canonical;
use super::exchange::Exchange;
use super::log::Reason;
use super::metrics::Dropped;
use super::respond::Refusal;
use super::stream::{self, chosen, mark, silence};
use super::worker::{Open, Queues, Worker};
use crate::route::{Listener, RouteTable};
use crate::upstream::{Place, datagram};

/// Bytes of the longest datagram (RFC 768).
const MAX: usize = 65_535;

/// Datagrams of one client that wait, while its session's socket is opened above all.
const QUEUE: usize = 64;

/// Bytes that wait at one listener on one core. Clients' addresses can be forged, so what each of them may have waiting is no
/// bound for all.
const ROOM: usize = 16 << 20;

/// Answers that are passed on before other sessions have their turn.
const BURST: usize = 32;

/// A session of a listener that takes no more ends after so long without an answer, and in the end with answers too.
const REST: Duration = Duration::from_secs(1);
const END: Duration = Duration::from_secs(10);

/// Wait after a receive that failed for lack of memory.
const PAUSE: Duration = Duration::from_millis(50);

/// Sessions that one listener may have, or connections of QUIC, counted over all cores.
#[derive(Clone, Debug)]
pub(super) struct Seats {
    taken: Arc<AtomicUsize>,
    most: usize,
}

/// A datagram that waits for its session. It counts until it is gone.
struct Waiting {
    bytes: Bytes,
    all: Rc<Cell<usize>>,
}

impl Waiting {
    /// None if too much waits already; `all` is how much.
    fn new(bytes: Bytes, all: &Rc<Cell<usize>>) -> Option<Self> {
        let sum = all.get() + bytes.len();
        (sum <= ROOM).then(|| {
            all.set(sum);
            Self {
                bytes,
                all: Rc::clone(all),
            }
        })
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.all.set(self.all.get() - self.bytes.len());
    }
}

/// A session's place among those of its listener.
pub(super) struct Seat(Arc<AtomicUsize>);

impl Seats {
    pub(super) fn new(most: usize) -> Self {
        Self {
            taken: Arc::default(),
            most,
        }
    }

    pub(super) fn take(&self) -> Option<Seat> {
        let before = self.taken.fetch_add(1, Ordering::Relaxed);
        let seat = Seat(Arc::clone(&self.taken));
        // Dropping it gives it back.
        (before < self.most).then_some(seat)
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// One listener on one core.
struct Port {
    worker: Rc<Worker>,
    socket: UdpSocket,
    local: SocketAddr,
    seats: Seats,
    /// Where each session waits for its client's datagrams.
    sessions: RefCell<HashMap<SocketAddr, mpsc::Sender<Waiting>>>,
    /// Bytes that wait for them.
    waiting: Rc<Cell<usize>>,
    /// What is being received; no session holds it over an await.
    buffer: RefCell<Box<[u8]>>,
}

/// Serves a listener until it is told to close. Its sessions then pass on answers that are under way.
pub(super) async fn listen(
    worker: Rc<Worker>,
    socket: std::net::UdpSocket,
    seats: Seats,
    mut closed: oneshot::Receiver<Queues>,
) {
    let bound = UdpSocket::from_std(socket).and_then(|one| Ok((one.local_addr()?, one)));
    let (local, socket) = match bound {
        Ok((local, socket)) => (canonical(local), socket),
        Err(error) => {
            tracing::error!(%error, "failed to watch a socket of datagrams");
            return;
        }
    };
    let port = Rc::new(Port {
        worker,
        socket,
        local,
        seats,
        sessions: RefCell::default(),
        waiting: Rc::default(),
        buffer: RefCell::new(vec![0; MAX].into()),
    });
    loop {
        let ready = tokio::select! {
            biased;
            _ = &mut closed => break,
            ready = port.socket.readable() => ready,
        };
        let received = ready.and_then(|()| port.receive());
        match received {
            Ok((client, bytes)) => port.take(client, bytes),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => {
                tracing::warn!(%error, "failed to receive datagrams; out of memory?");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
    // Sessions without a sender take nothing new.
    port.sessions.borrow_mut().clear();
}

impl Port {
    fn receive(&self) -> io::Result<(SocketAddr, Bytes)> {
        let mut buffer = self.buffer.borrow_mut();
        let (length, client) = self.socket.try_recv_from(&mut buffer)?;
        Ok((client, Bytes::copy_from_slice(&buffer[..length])))
    }

    fn dropped(&self, why: Dropped) {
        self.worker.metrics.dropped(why);
    }

    /// Gives a datagram to its client's session, which may have to be made.
    fn take(self: &Rc<Self>, client: SocketAddr, bytes: Bytes) {
        let Some(waiting) = Waiting::new(bytes, &self.waiting) else {
            return self.dropped(Dropped::Queue);
        };
        let mut sessions = self.sessions.borrow_mut();
        let waiting = match sessions.get(&client) {
            None => waiting,
            Some(known) => match known.try_send(waiting) {
                Ok(()) => return,
                Err(mpsc::error::TrySendError::Full(_)) => return self.dropped(Dropped::Queue),
                // It ended a moment ago.
                Err(mpsc::error::TrySendError::Closed(waiting)) => waiting,
            },
        };
        let Some(seat) = self.seats.take() else {
            return self.dropped(Dropped::Sessions);
        };
        let (sender, datagrams) = mpsc::channel(QUEUE);
        if sender.try_send(waiting).is_ok() {
            sessions.insert(client, sender);
            let session = Session {
                port: Rc::clone(self),
                client,
                generations: self.worker.generations(),
                datagrams,
                _seat: seat,
                _open: self.worker.opened(),
            };
            spawn_local(session.run());
        }
    }
}

/// The datagrams of one client address.
struct Session {
    port: Rc<Port>,
    client: SocketAddr,
    generations: watch::Receiver<u64>,
    datagrams: mpsc::Receiver<Waiting>,
    _seat: Seat,
    _open: Open,
}

/// How a session with one backend ended.
enum Ended {
    /// The session is over.
    Over,
    /// The table no longer leads there; what was to be sent next goes elsewhere.
    Moved(Option<Waiting>),
}

impl Session {
    /// From the first datagram to the end of the last answer.
    async fn run(mut self) {
        let mut next = self.datagrams.recv().await;
        while let Some(first) = next {
            next = match self.with_a_backend(first).await {
                Ended::Over => None,
                Ended::Moved(Some(unsent)) => Some(unsent),
                Ended::Moved(None) => {
                    let idle = self.port.worker.session_idle();
                    let waited = tokio::time::timeout(idle, self.datagrams.recv());
                    waited.await.unwrap_or(None)
                }
            };
        }
        // Another session of this client may have taken the place of one that no longer listens.
        self.datagrams.close();
        let mut sessions = self.port.sessions.borrow_mut();
        if sessions
            .get(&self.client)
            .is_some_and(mpsc::Sender::is_closed)
        {
            sessions.remove(&self.client);
        }
    }

    /// Chooses a backend and stays with it.
    async fn with_a_backend(&mut self, first: Waiting) -> Ended {
        let port = Rc::clone(&self.port);
        let worker = &port.worker;
        let table = worker.table.load_full();
        let Some(listener) = table.datagrams(port.local) else {
            port.dropped(Dropped::NoRoute);
            return Ended::Over;
        };
        let caller = worker.caller(&table, self.client.ip().to_canonical());
        let (route, target) = match chosen(worker, listener, None, caller) {
            Ok(chosen) => chosen,
            Err(refusal) => {
                // Each datagram of a client that is not served comes here: it is counted, not recorded.
                tracing::debug!(client = %self.client, detail = refusal.detail, "datagram is dropped");
                port.dropped(Dropped::NoRoute);
                return Ended::Over;
            }
        };
        let mut exchange =
            Exchange::begin(worker, "udp", canonical(self.client).to_string().into());
        exchange.record.generation = table.generation;
        exchange.listener(&listener.name);
        exchange.record.direction = listener.gate.map(Gate::direction);
        exchange.record.route = Some(Arc::clone(&route.name));
        exchange.record.caller = caller.map(|caller| Arc::clone(&caller.name));
        let turn = worker.turn(table.generation, target.id, target.upstreams.len());
        let upstream = target.upstreams.get(turn);
        let Some(upstream) = upstream.map(|one| one.upstream.clone()) else {
            exchange.refused(Reason::NoReadyEndpoint, "the backend has no address");
            return Ended::Over;
        };
        exchange.asks();
        let opened = open(worker, &table, listener, &upstream).await;
        drop(table);
        match opened {
            Ok((socket, peer)) => {
                exchange.record.upstream = Some(peer.to_string().into());
                self.pass(&mut exchange, &socket, &upstream, first).await
            }
            Err(refusal) => {
                exchange.refused(refusal.reason, refusal.detail);
                Ended::Over
            }
        }
    }

    /// Passes datagrams on both ways.
    async fn pass(
        &mut self,
        exchange: &mut Exchange,
        backend: &UdpSocket,
        upstream: &Upstream,
        first: Waiting,
    ) -> Ended {
        let port = Rc::clone(&self.port);
        let last = Rc::new(Cell::new(Instant::now()));
        let idle = silence(&last, port.worker.session_idle());
        tokio::pin!(idle);
        let mut next = Some(first);
        let ended = loop {
            if let Some(datagram) = next.take() {
                if !self.still(upstream, &mut exchange.record.generation) {
                    break Ended::Moved(Some(datagram));
                }
                last.set(Instant::now());
                match backend.send(&datagram.bytes).await {
                    Ok(_) => exchange.record.bytes_in += datagram.bytes.len() as u64,
                    Err(error) => {
                        exchange.failed(Reason::UpstreamConnect, &error);
                        return Ended::Over;
                    }
                }
            }
            tokio::select! {
                datagram = self.datagrams.recv() => match datagram {
                    Some(datagram) => next = Some(datagram),
                    None => {
                        // The listener takes no more; what was asked is still answered.
                        rest(&port, self.client, backend, exchange).await;
                        break Ended::Over;
                    }
                },
                ready = backend.readable() => {
                    let answered = ready.and_then(|()| port.answer(backend, self.client, exchange));
                    if let Err(error) = answered {
                        // An ICMP error: nothing listens at the backend's port.
                        exchange.failed(Reason::UpstreamConnect, &error);
                        return Ended::Over;
                    }
                    last.set(Instant::now());
                }
                changed = self.generations.changed() => {
                    if changed.is_err() || !self.still(upstream, &mut exchange.record.generation) {
                        break Ended::Moved(None);
                    }
                }
                () = &mut idle => break Ended::Over,
            }
        };
        exchange.complete();
        ended
    }

    /// Whether the active table still leads this session to its backend; looks again only when the table changed.
    fn still(&self, upstream: &Upstream, generation: &mut u64) -> bool {
        let worker = &self.port.worker;
        let table = worker.table.load();
        if table.generation == *generation {
            return true;
        }
        let leads = |listener: &Listener| {
            let caller = worker.caller(&table, self.client.ip().to_canonical());
            let route = listener.streams.as_ref().and_then(|one| one.route(None));
            caller.is_none_or(|caller| stream::admit(listener, caller).is_ok())
                && route.is_some_and(|route| {
                    let mut targets = route.targets.iter();
                    targets.any(|target| {
                        let mut own = target.upstreams.iter().map(|one| &one.upstream);
                        own.any(|one| one == upstream)
                    })
                })
        };
        let still = table
            .datagrams(self.port.local)
            .is_some_and(|one| leads(one));
        if still {
            *generation = table.generation;
        }
        still
    }
}

impl Port {
    /// Passes on what the backend has sent. An error is one of the backend's.
    fn answer(
        &self,
        backend: &UdpSocket,
        client: SocketAddr,
        exchange: &mut Exchange,
    ) -> io::Result<()> {
        let mut buffer = self.buffer.borrow_mut();
        for _ in 0..BURST {
            let length = match backend.try_recv(&mut buffer) {
                Ok(length) => length,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            };
            if exchange.record.upstream_us.is_none() {
                exchange.answered();
            }
            match self.socket.try_send_to(&buffer[..length], client) {
                Ok(_) => exchange.record.bytes_out += length as u64,
                // Of the client's way; the next answer may find it again.
                Err(_) => self.dropped(Dropped::Answer),
            }
        }
        Ok(())
    }
}

/// Passes answers on until there were none for a while.
async fn rest(port: &Port, client: SocketAddr, backend: &UdpSocket, exchange: &mut Exchange) {
    let end = Instant::now() + END;
    while Instant::now() < end
        && let Ok(Ok(())) = tokio::time::timeout(REST, backend.readable()).await
    {
        if port.answer(backend, client, exchange).is_err() {
            return;
        }
    }
}

async fn open(
    worker: &Worker,
    table: &RouteTable,
    listener: &Listener,
    upstream: &Upstream,
) -> Result<(UdpSocket, SocketAddr), Refusal> {
    let address = worker.client.address(&Place::from(upstream), table).await?;
    let socket = datagram::open(address, worker.mark(mark(listener)))?;
    Ok((socket, address))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_waits_is_bounded_and_counts_until_it_is_gone() {
        let all = Rc::default();
        let half = || Waiting::new(Bytes::from(vec![0; ROOM / 2]), &all);
        let (first, second) = (half(), half());
        assert!(first.is_some() && second.is_some());
        assert!(Waiting::new(Bytes::from_static(b"x"), &all).is_none());
        drop(first);
        assert!(half().is_some());
        drop(second);
        assert_eq!(all.get(), 0);
    }
}
