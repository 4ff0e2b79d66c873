//! The router: from sockets to upstreams, one thread per core.
//!
//! Flows in: connections, by ordinary sockets on gateways' addresses ([`Ingress::Bind`]) or by fixed
//! sockets that the kernel's programs steer to ([`Ingress::Lookup`]), and a [`RouteTable`] per
//! generation. Flows out: requests to upstreams, records in the [`RequestLog`], counters.
//! The stages of a request are `request.rs`; those of a connection are `connection.rs`.
//! What it deliberately does not do: it decides nothing that the table does not say, and it shares
//! nothing between cores that a request would have to lock.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket};
use std::os::fd::{AsRawFd, RawFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use agent_common::Mark;
use arc_swap::ArcSwap;
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;
use prometheus_client::registry::Registry;
use serde::{Deserialize, Serialize};
use tokio::runtime::{Builder, LocalOptions};
use tokio::sync::{mpsc, oneshot};

use crate::keys::{self, Fetcher, KeyStore, Limits};
use crate::resilience::Clock;
use crate::route::{Datagrams, RouteTable};
use crate::telemetry::{self, Telemetry, TelemetrySettings};
use crate::upstream::{Reach, Settings, Timeouts};

mod access;
mod answer;
mod aside;
mod attempts;
mod backend_metrics;
mod body;
mod buffer;
mod client_hello;
mod clients;
mod coalesce;
mod connection;
mod datagram;
mod entrance;
mod exchange;
mod forward;
mod gate;
mod grpc;
mod http1;
mod http3;
mod inbound;
mod lent;
mod linger;
mod listen;
mod log;
mod managed;
mod metrics;
mod mirror;
mod normalise;
mod opened;
mod outbound;
mod placed;
mod placement_metrics;
mod prefixed;
mod prober;
mod proxy_header;
mod quic;
mod request;
mod request_id;
mod respond;
mod seen;
mod send;
mod session;
mod sockets;
mod south;
mod steered;
mod stream;
mod tallies;
mod target;
mod tls;
mod tokens;
mod told_certificate;
mod trace;
mod tunnel;
mod websocket;
mod worker;

pub use listen::{ListenError, Sharing};
pub use log::{AccessRecord, KEPT, Reason, RequestLog};
pub use metrics::Metrics;
pub use opened::{Opened, OpenedDatagrams};
pub use request_id::RequestId;
pub use sockets::Sockets;
pub use trace::TraceContext;

use backend_metrics::BackendMetrics;
use connection::Entry;
use opened::spread;
use placement_metrics::PlacementMetrics;
use prober::Prober;
use sockets::Group;
use worker::{Command, Queues, Shared};

/// Sockets with news that are looked at in one turn. Of many that are ready at once those of the next turn wait in the kernel:
/// what one turn works on is then still in the core's cache when an upstream's answer comes for it.
const EVENTS: usize = 64;

/// How connections reach the router.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ingress {
    /// By sockets on the gateways' own addresses; see [`Proxy::open`].
    Bind,
    /// By fixed sockets that programs in the kernel choose; see [`Proxy::sockets`].
    Lookup,
}

/// What a router is started with.
#[derive(Clone, Debug)]
pub struct ProxyConfig {
    /// Threads; each has a core of its own as long as there are enough.
    pub cores: usize,
    /// How connections come.
    pub ingress: Ingress,
    /// How cores share the transparent sockets of [`Ingress::Lookup`]; [`crate::datapath::Facts::assigns_groups`] tells
    /// which the kernel takes.
    pub transparent: Sharing,
    /// Whether upstream connections carry [`agent_common::Mark`]s; needs `CAP_NET_ADMIN`.
    pub node_mark: bool,
    /// Whether loopback sources may be components. For tests; on a node every process has these
    /// addresses.
    pub loopback: bool,
    /// Whether declared names may lead inside: to this node, its links and the platform. For tests; elsewhere
    /// whoever answers for a declared name could point the router at the inside.
    pub inside: bool,
    /// Where backends are.
    pub reach: Reach,
    /// Addresses whose connections are served as if the kernel had steered them here. For tests
    /// without a kernel that steers.
    pub steered: Vec<SocketAddr>,
    /// Certificates that TLS upstreams are checked with; none: those of the node.
    pub roots: Option<Arc<rustls::RootCertStore>>,
    /// Time limits towards upstreams.
    pub timeouts: Timeouts,
    /// Until the head of the next request is there: so long may a client's connection idle, and so long may a client of HTTP/1.1
    /// take nothing of an answer while it sends nothing of its request.
    pub idle: Duration,
    /// So long may both sides of a TCP or TLS route's connection be silent.
    pub stream_idle: Duration,
    /// So long may a client of a UDP route and its backend be silent.
    pub session_idle: Duration,
    /// Sessions of one listener of UDP, and connections of QUIC to one address and port, over all cores.
    pub sessions: usize,
    /// Times of key sets that are fetched; those that a document tells replace them.
    pub keys: Limits,
    /// What is told of requests, and to whom.
    pub telemetry: TelemetrySettings,
    /// Time of breakers and limits.
    pub clock: Clock,
}

impl Default for ProxyConfig {
    fn default() -> Self {
        Self {
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            ingress: Ingress::Bind,
            transparent: Sharing::default(),
            node_mark: false,
            loopback: false,
            inside: false,
            reach: Reach::Anywhere,
            steered: Vec::new(),
            roots: None,
            timeouts: Timeouts::default(),
            idle: Duration::from_secs(60),
            stream_idle: Duration::from_secs(3600),
            session_idle: Duration::from_secs(60),
            sessions: 16_384,
            keys: Limits::default(),
            telemetry: TelemetrySettings::default(),
            clock: Clock::default(),
        }
    }
}

/// Why the router does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A socket of [`Ingress::Lookup`] or of a test.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// TLS could not be set up.
    #[error("failed to set up TLS")]
    Tls(#[from] rustls::Error),
    /// The node's certificates could not be read.
    #[error("failed to read the node's root certificates")]
    Roots(#[source] std::io::Error),
    /// The access log's file, or a thread of the telemetry.
    #[error("failed to open the access log, or to start telling of requests")]
    Telemetry(#[source] std::io::Error),
    /// A thread, its runtime or its sockets.
    #[error("failed to start a worker")]
    Worker(#[source] std::io::Error),
}

/// A running router. Dropping it stops it at once; [`Proxy::shutdown`] lets requests finish.
#[derive(Debug)]
pub struct Proxy {
    cores: usize,
    workers: Vec<WorkerHandle>,
    prober: Prober,
    table: Arc<ArcSwap<RouteTable>>,
    log: Arc<RequestLog>,
    metrics: Metrics,
    keys: Arc<KeyStore>,
    clock: Clock,
    fetcher: Option<Fetcher>,
    telemetry: Option<Telemetry>,
    /// What is open, each socket once more than where it is served. Locked when a generation changes, never by a request.
    held: Mutex<Sockets>,
    /// What becomes of the datagrams of open sockets.
    kinds: Mutex<BTreeMap<SocketAddr, Datagrams>>,
    /// What an earlier agent had open and no generation here has asked for yet.
    inherited: Mutex<Sockets>,
    /// Fixed sockets of each core, until there is a table to serve by.
    waiting: Mutex<Vec<Listeners>>,
    /// Whether sockets of datagrams are opened for addresses that need not be the node's.
    foreign: bool,
    /// Sessions of one listener of datagrams.
    sessions: usize,
}

/// Listening sockets of one core, with the addresses that they stand for.
type Listeners = Vec<(SocketAddr, TcpListener, Entry)>;

#[derive(Debug)]
struct WorkerHandle {
    commands: mpsc::UnboundedSender<Command>,
    thread: Option<JoinHandle<()>>,
}

/// What a fixed socket is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum SocketKind {
    /// Connections to gateways over IPv4.
    GatewayV4,
    /// Connections to gateways over IPv6.
    GatewayV6,
    /// Steered connections over IPv4; transparent.
    SteeredV4,
    /// Steered connections over IPv6; transparent.
    SteeredV6,
}

impl Proxy {
    /// Starts the threads, and in [`Ingress::Lookup`] opens the fixed sockets.
    pub fn start(config: ProxyConfig, table: Arc<ArcSwap<RouteTable>>) -> Result<Self, StartError> {
        Self::start_with(config, table, Sockets::default())
    }

    /// As [`Proxy::start`], with what another router listens on. Its sockets take the place of new ones for the same addresses;
    /// nothing is accepted there before the first table is [`Proxy::published`], and what no generation wants is let go of then.
    pub fn start_with(
        config: ProxyConfig,
        table: Arc<ArcSwap<RouteTable>>,
        mut inherited: Sockets,
    ) -> Result<Self, StartError> {
        let cores = config.cores.max(1);
        let metrics = Metrics::default();
        let roots = roots(&config)?;
        let upstream = Settings {
            timeouts: config.timeouts,
            tls: roots.as_ref().map(upstream_tls).transpose()?,
            roots,
            reach: config.reach,
        };
        let (sinks, telemetry) =
            telemetry::start(&config.telemetry, &upstream).map_err(StartError::Telemetry)?;
        let log = Arc::new(RequestLog::new(sinks));
        let mark = config.node_mark.then_some(Mark::Upstream.raw());
        let (keys, fetcher) = keys::start(Arc::clone(&table), upstream.clone(), mark, config.keys)
            .map_err(StartError::Worker)?;
        let shared = Shared {
            table: Arc::clone(&table),
            tls: Arc::new(tls::settings()?),
            upstream,
            keys: Arc::clone(&keys),
            log: Arc::clone(&log),
            metrics: metrics.clone(),
            node_mark: config.node_mark,
            loopback: config.loopback,
            inside: config.inside,
            idle: config.idle,
            stream_idle: config.stream_idle,
            session_idle: config.session_idle,
            clock: config.clock.clone(),
        };
        let mut opening: Vec<Listeners> = Vec::new();
        opening.resize_with(cores, Vec::new);
        for address in &config.steered {
            let (at, group) = listen::group(*address, cores, false, Sharing::ReusePort)?;
            spread(&mut opening, at, group, Entry::Steered);
        }
        let mut held = Sockets::default();
        let mut waiting: Vec<Listeners> = Vec::new();
        waiting.resize_with(cores, Vec::new);
        if config.ingress == Ingress::Lookup {
            for (kind, entry) in [
                (SocketKind::GatewayV4, Entry::Gateway),
                (SocketKind::GatewayV6, Entry::Gateway),
                (SocketKind::SteeredV4, Entry::Steered),
                (SocketKind::SteeredV6, Entry::Steered),
            ] {
                let left = inherited.fixed.remove(&kind).unwrap_or_default();
                let Some((at, group)) = fixed(kind, cores, config.transparent, left)? else {
                    continue;
                };
                held.fixed.insert(kind, group.held);
                // Wherever the socket is bound, the kernel's programs bring it connections to any address.
                let everywhere: IpAddr = match at {
                    SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
                    SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
                };
                let at = SocketAddr::new(everywhere, at.port());
                spread(&mut waiting, at, group.served, entry);
            }
        }
        let mark = config
            .node_mark
            .then_some(agent_common::Mark::Upstream.raw());
        let prober = Prober::start(Arc::clone(&table), shared.upstream.clone(), mark);
        let mut proxy = Self {
            cores,
            workers: Vec::with_capacity(cores),
            prober: prober.map_err(StartError::Worker)?,
            table,
            log,
            metrics,
            keys,
            clock: config.clock,
            fetcher: Some(fetcher),
            telemetry: Some(telemetry),
            held: Mutex::new(held),
            kinds: Mutex::default(),
            inherited: Mutex::new(inherited),
            waiting: Mutex::new(waiting),
            foreign: config.ingress == Ingress::Lookup,
            sessions: config.sessions,
        };
        for (core, listeners) in opening.into_iter().enumerate() {
            let worker = spawn(core, shared.clone()).map_err(StartError::Worker)?;
            worker.tell(Command::Open(listeners));
            proxy.workers.push(worker);
        }
        Ok(proxy)
    }

    /// Opens what is new of `wanted`, on all cores, so that connections already wait there. Nothing is
    /// accepted and nothing is closed before [`Opened::commit`]; dropping the result closes it again.
    pub fn open(&self, wanted: &BTreeSet<SocketAddr>) -> Result<Opened<'_>, ListenError> {
        let current: BTreeSet<SocketAddr> = lock(&self.held).listeners.keys().copied().collect();
        let mut new = BTreeMap::new();
        for address in wanted.difference(&current) {
            let failed = |source| ListenError::new(*address, source);
            let left = lock(&self.inherited).listeners.remove(address);
            let served = match left {
                Some(left) => sockets::for_each_core(left, self.cores).map_err(failed)?,
                None => listen::group(*address, self.cores, false, Sharing::ReusePort)?.1,
            };
            let group = Group::hold(served, TcpListener::try_clone).map_err(failed)?;
            new.insert(*address, group);
        }
        Ok(Opened {
            proxy: self,
            new,
            unwanted: current.difference(wanted).copied().collect(),
        })
    }

    /// Opens what is new of `wanted` for datagrams. They have sockets of their own in [`Ingress::Lookup`] too, since answers
    /// leave by the address and port of their socket. As with [`Proxy::open`], nothing is received before the commit. What
    /// becomes of the datagrams of a port does not change while it is open.
    pub fn open_datagrams(
        &self,
        wanted: &BTreeMap<SocketAddr, Datagrams>,
    ) -> Result<OpenedDatagrams<'_>, ListenError> {
        let current = lock(&self.kinds).clone();
        let mut new = BTreeMap::new();
        for (address, kind) in wanted {
            match current.get(address) {
                Some(known) if known == kind => continue,
                Some(_) => return Err(ListenError::of_another_kind(*address)),
                None => {}
            }
            let left = lock(&self.inherited).datagrams.remove(address);
            let served = match left {
                Some(left) => Ok(left),
                None => listen::datagrams(*address, self.cores, self.foreign),
            };
            match served {
                Ok(served) => {
                    if *kind == Datagrams::Quic {
                        listen::steer(&served, *address)?;
                    }
                    let group = Group::hold(served, UdpSocket::try_clone)
                        .map_err(|source| ListenError::new(*address, source))?;
                    new.insert(*address, (group, *kind));
                }
                Err(error) if self.foreign && address.is_ipv6() && listen::no_ipv6(&error) => {
                    tracing::warn!(%address, "the node has no IPv6; nobody answers there");
                }
                Err(error) => return Err(error),
            }
        }
        let unwanted = current.into_keys();
        Ok(OpenedDatagrams {
            proxy: self,
            new,
            unwanted: unwanted.filter(|at| !wanted.contains_key(at)).collect(),
        })
    }

    /// One socket of each group of datagrams that is served, for the kernel's programs. The descriptors live until another
    /// set of addresses is committed.
    pub fn datagram_sockets(&self) -> Vec<(SocketAddr, RawFd)> {
        let held = lock(&self.held);
        let sockets = held.datagrams.iter();
        sockets
            .filter_map(|(address, group)| Some((*address, group.first()?.as_raw_fd())))
            .collect()
    }

    /// One of the fixed sockets of each kind of [`Ingress::Lookup`]: of a group one is enough for the kernel's programs. The
    /// descriptors live as long as the proxy.
    pub fn sockets(&self) -> Vec<(SocketKind, RawFd)> {
        let held = lock(&self.held);
        let sockets = held.fixed.iter();
        sockets
            .filter_map(|(kind, group)| Some((*kind, group.first()?.as_raw_fd())))
            .collect()
    }

    /// Every socket once more, for a router in another process. This one goes on serving them.
    ///
    /// # Errors
    ///
    /// When there are no descriptors left.
    pub fn share(&self) -> io::Result<Sockets> {
        let held = lock(&self.held);
        Ok(Sockets {
            fixed: sockets::again(&held.fixed, TcpListener::try_clone)?,
            listeners: sockets::again(&held.listeners, TcpListener::try_clone)?,
            datagrams: sockets::again(&held.datagrams, UdpSocket::try_clone)?,
        })
    }

    /// A new table is published: its endpoints are probed at once. With the first one the fixed sockets are served, and what an
    /// earlier agent had open and nobody wants is let go of.
    pub fn published(&self) {
        self.prober.wake();
        let waiting = std::mem::take(&mut *lock(&self.waiting));
        for (worker, listeners) in self.workers.iter().zip(waiting) {
            worker.tell(Command::Open(listeners));
        }
        *lock(&self.inherited) = Sockets::default();
    }

    /// The table that requests are served from.
    pub fn table(&self) -> &Arc<ArcSwap<RouteTable>> {
        &self.table
    }

    /// The last requests.
    pub fn log(&self) -> &Arc<RequestLog> {
        &self.log
    }

    /// Key sets of token providers.
    pub fn keys(&self) -> &Arc<KeyStore> {
        &self.keys
    }

    /// Time of breakers, limits and health.
    pub fn clock(&self) -> &Clock {
        &self.clock
    }

    /// The router's counters.
    pub fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// Adds everything that the router counts and remembers to a registry, under its own prefix.
    pub fn register(&self, registry: &mut Registry) {
        self.metrics.register(registry);
        let table = Arc::clone(&self.table);
        registry.register_collector(Box::new(PlacementMetrics { table }));
        let (table, clock) = (Arc::clone(&self.table), self.clock.clone());
        registry.register_collector(Box::new(BackendMetrics { table, clock }));
    }

    /// Accepts no more, lets requests finish until the deadline, and stops. Returns how many connections
    /// were cut off.
    pub async fn shutdown(self, deadline: Duration) -> usize {
        self.drain(deadline, Queues::Serve).await
    }

    /// As [`Proxy::shutdown`], when another router serves the same sockets ([`Proxy::share`]): what waits in them is left to it,
    /// and clients that are connected here have until the deadline for one more request each, whose answer sends them there.
    pub async fn leave(self, deadline: Duration) -> usize {
        self.drain(deadline, Queues::Leave).await
    }

    async fn drain(mut self, deadline: Duration, queues: Queues) -> usize {
        *lock(&self.held) = Sockets::default();
        let mut draining = Vec::new();
        for worker in &self.workers {
            let (done, drained) = oneshot::channel();
            worker.tell(Command::Drain(deadline, queues, done));
            draining.push(drained);
        }
        let mut left = 0;
        for drained in draining {
            // A worker that is gone has nothing left.
            left += drained.await.unwrap_or(0);
        }
        self.stop();
        left
    }

    fn stop(&mut self) {
        for worker in &mut self.workers {
            // Without a sender the worker's loop ends.
            let (closed, _) = mpsc::unbounded_channel();
            worker.commands = closed;
            if let Some(thread) = worker.thread.take()
                && thread.join().is_err()
            {
                tracing::error!("a worker of the router panicked");
            }
        }
        self.fetcher.take();
        // After the workers: their last records are told.
        self.telemetry.take();
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.stop();
    }
}

impl WorkerHandle {
    fn tell(&self, command: Command) {
        if self.commands.send(command).is_err() {
            tracing::error!("a worker of the router is gone");
        }
    }
}

/// The fixed sockets of a kind, and where they are bound: those that are left of another router, or new ones. None on a node that
/// lacks the address family.
fn fixed(
    kind: SocketKind,
    cores: usize,
    transparent: Sharing,
    left: Vec<TcpListener>,
) -> Result<Option<(SocketAddr, Group<TcpListener>)>, StartError> {
    let (at, served) = match left.first() {
        Some(first) => {
            let at = first.local_addr().map_err(StartError::Worker)?;
            let served = sockets::for_each_core(left, cores).map_err(StartError::Worker)?;
            (at, served)
        }
        None => {
            let (v4, v6) = listen::loopback();
            let (address, steered) = match kind {
                SocketKind::GatewayV4 => (v4, false),
                SocketKind::GatewayV6 => (v6, false),
                SocketKind::SteeredV4 => (v4, true),
                SocketKind::SteeredV6 => (v6, true),
            };
            let sharing = if steered {
                transparent
            } else {
                Sharing::ReusePort
            };
            match listen::group(address, cores, steered, sharing) {
                Ok(group) => group,
                Err(error) if address.is_ipv6() && listen::no_ipv6(&error) => {
                    tracing::warn!(%error, "node has no IPv6; its gateways are IPv4 only");
                    return Ok(None);
                }
                Err(error) => return Err(error.into()),
            }
        }
    };
    let group = Group::hold(served, TcpListener::try_clone).map_err(StartError::Worker)?;
    Ok(Some((at, group)))
}

fn lock<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    // Each change is one insertion or removal: a panic elsewhere leaves it valid.
    of.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Authorities that upstreams are checked with; none: the node has none.
fn roots(config: &ProxyConfig) -> Result<Option<Arc<rustls::RootCertStore>>, StartError> {
    match &config.roots {
        Some(roots) => Ok(Some(Arc::clone(roots))),
        None => Ok(crate::upstream::system_roots()
            .map_err(StartError::Roots)?
            .map(Arc::new)),
    }
}

fn upstream_tls(
    roots: &Arc<rustls::RootCertStore>,
) -> Result<Arc<rustls::ClientConfig>, rustls::Error> {
    let config = rustls::ClientConfig::builder_with_provider(tls::provider())
        .with_safe_default_protocol_versions()?
        .with_root_certificates(Arc::clone(roots))
        .with_no_client_auth();
    Ok(Arc::new(config))
}

fn spawn(core: usize, shared: Shared) -> std::io::Result<WorkerHandle> {
    let (commands, received) = mpsc::unbounded_channel();
    let (started, start) = std::sync::mpsc::channel();
    let thread = std::thread::Builder::new()
        .name(format!("router-{core}"))
        .spawn(move || {
            let mut builder = Builder::new_current_thread();
            builder.enable_all().max_io_events_per_tick(EVENTS);
            let runtime = match builder.build_local(LocalOptions::default()) {
                Ok(runtime) => runtime,
                Err(error) => {
                    // The other side waits for exactly one word.
                    let _ = started.send(Err(error));
                    return;
                }
            };
            pin(core);
            let _ = started.send(Ok(()));
            runtime.block_on(worker::run(shared, received));
        })?;
    start
        .recv()
        .unwrap_or_else(|_| Err(std::io::Error::other("worker ended before it started")))?;
    Ok(WorkerHandle {
        commands,
        thread: Some(thread),
    })
}

/// Keeps this thread on one of the cores that the process may use.
fn pin(core: usize) {
    let this = Pid::from_raw(0);
    let pinned = sched_getaffinity(this).and_then(|allowed| {
        let cores: Vec<_> = (0..CpuSet::count())
            .filter(|at| allowed.is_set(*at).unwrap_or(false))
            .collect();
        let Some(at) = cores.get(core % cores.len().max(1)) else {
            return Ok(());
        };
        let mut set = CpuSet::new();
        set.set(*at)?;
        sched_setaffinity(this, &set)
    });
    if let Err(error) = pinned {
        tracing::warn!(%error, core, "failed to pin a worker to its core; it runs on any");
    }
}
