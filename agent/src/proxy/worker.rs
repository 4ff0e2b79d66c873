//! One core: a thread with its own runtime, sockets, pools and timers.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr, TcpListener, UdpSocket};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use agent_common::Mark;
use arc_swap::ArcSwap;
use bytes::{Bytes, BytesMut};
use http::HeaderValue;
use rustls::ServerConfig;
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio::task::spawn_local;
use tokio::time::Instant;

use super::connection::{self, Entry};
use super::datagram::{self, Seats};
use super::log::RequestLog;
use super::metrics::{CoreMetrics, Metrics};
use super::mirror::Copies;
use super::quic::{self, Core};
use super::request_id::RequestId;
use super::tokens::TokenCache;
use crate::keys::KeyStore;
use crate::resilience::Clock;
use crate::route::{Caller, RouteTable};
use crate::upstream::kept::Room;
use crate::upstream::{Budgets, Client, Settings};

/// Time between looks at idle upstream connections.
const HOUSEKEEPING: Duration = Duration::from_secs(10);

/// Time between looks for a new table, after which tunnels are judged again.
const WATCH: Duration = Duration::from_secs(1);

/// From the end of connections at rest to the end of a drain.
const LAST: Duration = Duration::from_secs(1);

/// Wait after an accept that failed for lack of descriptors or memory.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Bytes of a block of texts. Whoever keeps one of them keeps its block.
const TEXTS: usize = 1024;

/// How long the system's clock is not asked for its time again: it may be set while the router runs.
const WALL: Duration = Duration::from_secs(1);

/// What a worker is told.
pub(super) enum Command {
    /// Accept on these.
    Open(Vec<(SocketAddr, TcpListener, Entry)>),
    /// Accept no more on these.
    Close(Vec<SocketAddr>),
    /// Take datagrams of these.
    OpenDatagrams(Vec<(SocketAddr, UdpSocket, Taker)>),
    /// Take no more datagrams of these.
    CloseDatagrams(Vec<SocketAddr>),
    /// Accept nothing, finish what runs until the deadline, and say how many connections were left.
    Drain(Duration, Queues, oneshot::Sender<usize>),
}

/// What becomes of connections that wait in the queues of sockets when the worker drains.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Queues {
    /// Nobody else has the sockets: what the kernel already took is served here.
    Serve,
    /// Another router serves the same sockets.
    Leave,
}

/// Who takes the datagrams of a socket.
#[derive(Clone)]
pub(super) enum Taker {
    /// Sessions of a UDP route.
    Sessions(Seats),
    /// Connections of HTTP/3.
    Quic(Seats, Core),
}

/// What all workers share.
#[derive(Clone)]
pub(super) struct Shared {
    pub(super) table: Arc<ArcSwap<RouteTable>>,
    pub(super) tls: Arc<ServerConfig>,
    pub(super) upstream: Settings,
    pub(super) keys: Arc<KeyStore>,
    pub(super) log: Arc<RequestLog>,
    pub(super) metrics: Metrics,
    pub(super) node_mark: bool,
    pub(super) loopback: bool,
    pub(super) inside: bool,
    pub(super) idle: Duration,
    pub(super) stream_idle: Duration,
    pub(super) session_idle: Duration,
    pub(super) clock: Clock,
}

/// State of one core.
pub(super) struct Worker {
    pub(super) table: Arc<ArcSwap<RouteTable>>,
    pub(super) client: Client,
    pub(super) log: Arc<RequestLog>,
    pub(super) metrics: CoreMetrics,
    /// Retries that backends may still have.
    pub(super) budgets: RefCell<Budgets>,
    /// Room for bodies that may be sent again.
    pub(super) room: Room,
    /// For bodies that are read to their end before they are sent.
    pub(super) buffers: Room,
    /// Copies of requests under way.
    pub(super) copies: Copies,
    pub(super) keys: Arc<KeyStore>,
    /// Tokens that this core has verified.
    pub(super) tokens: RefCell<TokenCache>,
    tls: Arc<ServerConfig>,
    node_mark: bool,
    loopback: bool,
    inside: bool,
    idle: Duration,
    stream_idle: Duration,
    session_idle: Duration,
    clock: Clock,
    random: Cell<u64>,
    /// A moment, and its time since 1970.
    wall: Cell<(std::time::Instant, Duration)>,
    /// Room for short texts of requests.
    texts: RefCell<BytesMut>,
    /// Next turn of each target of the table with this generation.
    turns: RefCell<(u64, HashMap<u64, usize>)>,
    drain: watch::Sender<Option<Draining>>,
    /// Generation of the table as last seen by [`run`].
    generation: watch::Sender<u64>,
    open: Rc<OpenConnections>,
    /// Of which second it is, and the value of `Date`.
    date: RefCell<(u64, HeaderValue)>,
    east: Arc<str>,
    south: Arc<str>,
}

#[derive(Default)]
struct OpenConnections {
    count: Cell<usize>,
    changed: Notify,
}

/// A connection that is open as long as this lives.
pub(super) struct Open {
    connections: Rc<OpenConnections>,
    metrics: Metrics,
}

impl Drop for Open {
    fn drop(&mut self) {
        self.metrics.connections().dec();
        let count = &self.connections.count;
        count.set(count.get() - 1);
        self.connections.changed.notify_waiters();
    }
}

/// When a draining worker ends connections that are at rest. Where nobody else serves, that is at once: they keep the agent.
/// Otherwise a client may just send its next request, and is told by the answer to connect anew.
#[derive(Clone, Copy, Debug)]
struct Draining {
    rest: Instant,
}

/// Hears of the drain.
pub(super) struct Drain(watch::Receiver<Option<Draining>>);

impl Drain {
    /// Returns once the worker drains.
    pub(super) async fn begun(&mut self) {
        self.draining().await;
    }

    /// Returns once the worker drains and connections at rest are to end.
    pub(super) async fn rest(&mut self) {
        let draining = self.draining().await;
        tokio::time::sleep_until(draining.rest).await;
    }

    async fn draining(&mut self) -> Draining {
        if let Ok(draining) = self.0.wait_for(Option::is_some).await
            && let Some(draining) = *draining
        {
            return draining;
        }
        // The worker is gone, and this task with it.
        std::future::pending().await
    }
}

impl Worker {
    fn new(shared: Shared) -> Self {
        Self {
            generation: watch::Sender::new(shared.table.load().generation),
            table: shared.table,
            client: Client::new(shared.upstream),
            log: shared.log,
            metrics: CoreMetrics::new(shared.metrics),
            budgets: RefCell::default(),
            room: Room::default(),
            buffers: Room::default(),
            copies: Copies::default(),
            keys: shared.keys,
            tokens: RefCell::default(),
            tls: shared.tls,
            node_mark: shared.node_mark,
            loopback: shared.loopback,
            inside: shared.inside,
            idle: shared.idle,
            stream_idle: shared.stream_idle,
            session_idle: shared.session_idle,
            clock: shared.clock,
            random: Cell::new(seed()),
            wall: Cell::new(wall()),
            texts: RefCell::default(),
            turns: RefCell::default(),
            drain: watch::Sender::new(None),
            open: Rc::default(),
            date: RefCell::new((0, HeaderValue::from_static(""))),
            east: "east".into(),
            south: "south".into(),
        }
    }

    pub(super) fn tls(&self) -> &ServerConfig {
        &self.tls
    }

    /// The mark for a connection, where the kernel reads marks.
    pub(super) fn mark(&self, mark: Mark) -> Option<u32> {
        self.node_mark.then_some(mark.raw())
    }

    /// Whether declared names must lead outside.
    pub(super) fn outside(&self) -> bool {
        !self.inside
    }

    /// Time of breakers and limits.
    pub(super) fn now(&self) -> Duration {
        self.clock.now()
    }

    /// The same at a moment that is known.
    pub(super) fn at(&self, moment: std::time::Instant) -> Duration {
        self.clock.at(moment)
    }

    /// Time since 1970 at a moment of now. The system is asked for it once a second.
    pub(super) fn wall(&self, moment: std::time::Instant) -> Duration {
        let (before, then) = self.wall.get();
        let since = moment.saturating_duration_since(before);
        if since < WALL {
            return then + since;
        }
        let (before, then) = wall();
        self.wall.set((before, then));
        then
    }

    /// Keeps a short text in memory that others share.
    pub(super) fn keep(&self, text: &[u8]) -> Bytes {
        let mut texts = self.texts.borrow_mut();
        if texts.capacity() < text.len() {
            *texts = BytesMut::with_capacity(TEXTS.max(text.len()));
        }
        texts.extend_from_slice(text);
        texts.split().freeze()
    }

    /// How long a client connection may wait for its next request.
    pub(super) fn idle(&self) -> Duration {
        self.idle
    }

    /// How long a connection that nobody reads may be silent.
    pub(super) fn stream_idle(&self) -> Duration {
        self.stream_idle
    }

    /// How long a session of datagrams may be silent.
    pub(super) fn session_idle(&self) -> Duration {
        self.session_idle
    }

    /// Tells of new generations, at most [`WATCH`] after they are published.
    pub(super) fn generations(&self) -> watch::Receiver<u64> {
        self.generation.subscribe()
    }

    /// The component of a source address. Loopback belongs to every process of the node, so it is none.
    pub(super) fn caller<'a>(
        &self,
        table: &'a RouteTable,
        source: IpAddr,
    ) -> Option<&'a Arc<Caller>> {
        if source.is_loopback() && !self.loopback {
            return None;
        }
        table.caller(source)
    }

    pub(super) fn east_label(&self) -> Arc<str> {
        Arc::clone(&self.east)
    }

    pub(super) fn south_label(&self) -> Arc<str> {
        Arc::clone(&self.south)
    }

    /// Counts a connection while the result lives.
    pub(super) fn opened(&self) -> Open {
        self.open.count.set(self.open.count.get() + 1);
        let metrics = self.metrics.shared().clone();
        metrics.connections().inc();
        Open {
            connections: Rc::clone(&self.open),
            metrics,
        }
    }

    pub(super) fn drain(&self) -> Drain {
        Drain(self.drain.subscribe())
    }

    /// Waits until a table forbids what a tunnel does.
    pub(super) async fn forbidden(&self, allowed: impl Fn(&RouteTable) -> bool) {
        let mut generations = self.generation.subscribe();
        while allowed(&self.table.load()) {
            if generations.changed().await.is_err() {
                // The worker is gone, and this task with it.
                std::future::pending::<()>().await;
            }
        }
    }

    /// A number for weights: fast, and no secret (xorshift64*).
    pub(super) fn random(&self) -> u64 {
        let mut state = self.random.get();
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        self.random.set(state);
        state.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// When an answer that does not say so itself was made (RFC 9110, section 6.6.1).
    pub(super) fn date(&self) -> HeaderValue {
        let now = SystemTime::now();
        let second = now
            .duration_since(UNIX_EPOCH)
            .map_or(0, |since| since.as_secs());
        let mut last = self.date.borrow_mut();
        // A date is characters of a header's value.
        if last.0 != second
            && let Ok(value) = HeaderValue::from_str(&httpdate::fmt_http_date(now))
        {
            *last = (second, value);
        }
        last.1.clone()
    }

    /// A new request id.
    pub(super) fn request_id(&self) -> RequestId {
        RequestId::new([self.random(), self.random()])
    }

    /// Round robin over `count` places of a target of the generation that a request has; 0 of none.
    pub(super) fn turn(&self, generation: u64, target: u64, count: usize) -> usize {
        let mut turns = self.turns.borrow_mut();
        if turns.0 != generation {
            *turns = (generation, HashMap::new());
        }
        let next = turns
            .1
            .entry(target)
            // Cores start at different places.
            .or_insert_with(|| self.random() as usize);
        *next = next.wrapping_add(1);
        next.checked_rem(count).unwrap_or(0)
    }
}

/// This moment, and its time since 1970.
fn wall() -> (std::time::Instant, Duration) {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    (std::time::Instant::now(), now.unwrap_or_default())
}

fn seed() -> u64 {
    let mut bytes = [0; 8];
    let provider = rustls::crypto::aws_lc_rs::default_provider();
    if provider.secure_random.fill(&mut bytes).is_err() {
        // Ids and weights only have to differ; the clock and this stack do.
        let clock = std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .map_or(0, |since| since.as_nanos() as u64);
        bytes = (clock ^ std::ptr::from_ref(&bytes) as u64).to_ne_bytes();
    }
    // Zero is the one state that xorshift never leaves.
    u64::from_ne_bytes(bytes) | 1
}

/// Serves until drained, or until nobody can tell it to.
pub(super) async fn run(shared: Shared, mut commands: mpsc::UnboundedReceiver<Command>) {
    let worker = Rc::new(Worker::new(shared));
    // Of an address there may be several: another router that had more cores left them.
    let mut listeners: HashMap<SocketAddr, Vec<oneshot::Sender<Queues>>> = HashMap::new();
    let mut datagrams: HashMap<SocketAddr, Vec<oneshot::Sender<Queues>>> = HashMap::new();
    let mut housekeeping = tokio::time::interval(HOUSEKEEPING);
    let mut watch = tokio::time::interval(WATCH);
    loop {
        let command = tokio::select! {
            command = commands.recv() => command,
            _ = housekeeping.tick() => {
                let now = Instant::now();
                worker.client.expire(now);
                worker.budgets.borrow_mut().expire(now);
                continue;
            }
            _ = watch.tick() => {
                let now = worker.table.load().generation;
                worker.generation.send_if_modified(|seen| std::mem::replace(seen, now) != now);
                continue;
            }
        };
        match command {
            Some(Command::Open(opened)) => {
                for (address, listener, entry) in opened {
                    let (close, closed) = oneshot::channel();
                    listeners.entry(address).or_default().push(close);
                    spawn_local(listen(Rc::clone(&worker), listener, address, entry, closed));
                }
            }
            Some(Command::Close(addresses)) => {
                for address in addresses {
                    // Dropping the sender tells the listener.
                    listeners.remove(&address);
                }
            }
            Some(Command::OpenDatagrams(opened)) => {
                for (address, socket, taker) in opened {
                    let (close, closed) = oneshot::channel();
                    datagrams.entry(address).or_default().push(close);
                    let worker = Rc::clone(&worker);
                    match taker {
                        Taker::Sessions(seats) => {
                            spawn_local(datagram::listen(worker, socket, seats, closed))
                        }
                        Taker::Quic(seats, core) => {
                            let port = (address, seats);
                            spawn_local(quic::listen(worker, socket, port, core, closed))
                        }
                    };
                }
            }
            Some(Command::CloseDatagrams(addresses)) => {
                for address in addresses {
                    datagrams.remove(&address);
                }
            }
            Some(Command::Drain(deadline, queues, done)) => {
                let all = listeners.drain().chain(datagrams.drain());
                for close in all.flat_map(|(_, all)| all) {
                    // One that ended by itself has nothing to close.
                    let _ = close.send(queues);
                }
                let left = drain(&worker, deadline, queues).await;
                // Whoever asked may have stopped waiting.
                let _ = done.send(left);
                return;
            }
            None => return,
        }
    }
}

async fn drain(worker: &Worker, deadline: Duration, queues: Queues) -> usize {
    let rest = match queues {
        Queues::Serve => Duration::ZERO,
        // What is asked at the last moment is still answered.
        Queues::Leave => deadline.saturating_sub(LAST.min(deadline / 2)),
    };
    worker.drain.send_replace(Some(Draining {
        rest: Instant::now() + rest,
    }));
    let empty = async {
        loop {
            let changed = worker.open.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            // Listeners that were just closed may still hand over what waits in their queues.
            tokio::task::yield_now().await;
            if worker.open.count.get() == 0 {
                return;
            }
            changed.await;
        }
    };
    // What is left at the deadline is told by the count.
    let _ = tokio::time::timeout(deadline, empty).await;
    worker.open.count.get()
}

async fn listen(
    worker: Rc<Worker>,
    listener: TcpListener,
    address: SocketAddr,
    entry: Entry,
    mut closed: oneshot::Receiver<Queues>,
) {
    let listener = match tokio::net::TcpListener::from_std(listener) {
        Ok(listener) => listener,
        Err(error) => {
            tracing::error!(%error, "failed to watch a listening socket");
            return;
        }
    };
    // Where connections of all addresses come, or those to elsewhere, each is asked.
    let local = (entry == Entry::Gateway && !address.ip().is_unspecified()).then_some(address);
    let serve = |accepted| {
        spawn_local(connection::accepted(
            Rc::clone(&worker),
            accepted,
            local,
            entry,
        ))
    };
    let queues = loop {
        let accepted = tokio::select! {
            biased;
            // First: another router may serve the socket, and this one would never get to the end of the queue.
            queues = &mut closed => break queues.unwrap_or(Queues::Serve),
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok(accepted) => {
                serve(accepted);
            }
            Err(error) if transient(&error) => {}
            Err(error) => {
                tracing::warn!(%error, "failed to accept; out of descriptors?");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    };
    // Connections that the kernel already took are served: closing the socket would reset them.
    if queues == Queues::Serve
        && let Ok(listener) = listener.into_std()
    {
        while let Ok((stream, peer)) = listener.accept() {
            let nonblocking = stream.set_nonblocking(true);
            match nonblocking.and_then(|()| tokio::net::TcpStream::from_std(stream)) {
                Ok(stream) => {
                    serve((stream, peer));
                }
                Err(error) => tracing::debug!(%error, "failed to take over a connection"),
            }
        }
    }
}

/// Errors of the connection that was to be accepted, not of the listener (accept(2)).
fn transient(error: &std::io::Error) -> bool {
    matches!(
        error.kind(),
        std::io::ErrorKind::ConnectionAborted
            | std::io::ErrorKind::ConnectionReset
            | std::io::ErrorKind::Interrupted
    )
}
