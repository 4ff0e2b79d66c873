//! Connections to upstreams: names, sockets, TLS, pools.
//!
//! Flows in: a request and the destinations that may serve it, in order. Flows out: the head of a
//! response, or an error that says which destination failed how. Everything here belongs to one
//! core's runtime; nothing is shared and nothing locks. Here a request is tried again only while no byte
//! of it was sent; rules that ask for more have their retries in `proxy/attempts.rs`.

use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU32;
use std::path::PathBuf;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use http::request::Parts;
use http::{HeaderName, HeaderValue};
use snapshot::model::{Hostname, Limit, Upstream, UpstreamHost};
use tokio::time::Instant;

use crate::route::trust::TrustError;
use crate::route::{RouteTable, TlsPeer};

mod alarm;
mod answer;
pub mod body;
pub mod budget;
mod client_body;
mod connect;
pub(crate) mod datagram;
mod host;
mod http1;
pub mod kept;
mod lifetime;
pub(crate) mod once;
mod pool;
pub mod resolve;

pub use answer::{Answer, AnswerBody, Break};
pub use body::{BodyBreak, BodyError, Progress, RequestBody};
pub use budget::Budgets;
pub(crate) use client_body::Upload;
pub use client_body::{ClientBody, ClientBreak};
pub(crate) use connect::open as connect;
pub use connect::{Stream, system_roots};
pub use host::{RequestHost, RequestHostError};
pub use http1::{Http1Error, Switched};
pub use pool::Client;

/// Where a request goes.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Destination {
    /// Host and port, or a socket's path.
    pub place: Place,
    /// Whether the connection is TLS, and who must be at its other end.
    pub tls: Option<TlsPeer>,
    /// HTTP/1.1 or HTTP/2 with prior knowledge (by ALPN under TLS).
    pub http2: bool,
    /// `SO_MARK` of the connection.
    pub mark: Option<u32>,
    /// Host that this destination is asked for; none: that of the request.
    pub host: Option<RequestHost>,
    /// Whether a name may only lead outside: not to this node, its links or the platform. Whoever
    /// answers for a declared name must not be able to point the router at the inside.
    pub outside: bool,
    /// For whom alone the connection is kept; none: whoever asks next may have it. What one caller did
    /// on a connection to the outside, such as logging in on it, is not another caller's to use.
    pub owner: Option<Arc<str>>,
    /// What a policy says of connections there; none: what holds for all.
    pub terms: Option<Arc<Terms>>,
}

/// What a policy says of connections. Those of other terms are kept apart.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Terms {
    /// Until a connection stands, TLS included; none: [`Timeouts::connect`].
    pub connect: Option<Duration>,
    /// How long a connection is kept without a request. Unset: [`Timeouts::idle`].
    pub idle: Limit,
    /// How long a connection gets requests; none: no limit.
    pub age: Option<Duration>,
    /// How many requests a connection gets; none: no limit.
    pub requests: Option<NonZeroU32>,
}

impl Destination {
    /// The host's name, if it is known by one.
    pub fn name(&self) -> Option<&str> {
        match &self.place {
            Place::Name(name, _) => Some(name.as_str()),
            Place::Address(_) | Place::Unix(_) => None,
        }
    }
}

/// Address of a destination.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Place {
    /// By address.
    Address(SocketAddr),
    /// By name, resolved when it is connected to.
    Name(Hostname, u16),
    /// A Unix socket.
    Unix(PathBuf),
}

impl Place {
    /// That of a host and port.
    pub fn new(host: &UpstreamHost, port: u16) -> Self {
        match host {
            UpstreamHost::Address(address) => Self::Address(SocketAddr::new(*address, port)),
            UpstreamHost::Name(name) => Self::Name(name.clone(), port),
        }
    }
}

impl From<&Upstream> for Place {
    fn from(upstream: &Upstream) -> Self {
        match upstream {
            Upstream::Tcp { host, port, .. } => Self::new(host, port.get()),
            Upstream::Unix(path) => Self::Unix(path.clone()),
        }
    }
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Address(address) => write!(f, "{address}"),
            Self::Name(name, port) => write!(f, "{name}:{port}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// A request on its way out. Its head stays where it is, however many hands it goes through.
#[derive(Debug)]
pub struct UpstreamRequest {
    /// Its head.
    pub parts: Box<Parts>,
    /// Fields that its head has besides.
    pub more: Vec<(HeaderName, HeaderValue)>,
    /// Its body.
    pub body: RequestBody,
}

/// Time limits of upstream connections.
#[derive(Clone, Copy, Debug)]
pub struct Timeouts {
    /// Until a connection stands, TLS included.
    pub connect: Duration,
    /// Without progress of the request's body until the head of the response.
    pub head: Duration,
    /// An idle connection is kept this long.
    pub idle: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(5),
            head: Duration::from_secs(10),
            idle: Duration::from_secs(90),
        }
    }
}

/// What a worker's client is made of.
#[derive(Clone)]
pub struct Settings {
    /// Time limits.
    pub timeouts: Timeouts,
    /// TLS towards upstreams; none: there are no roots to trust, and TLS upstreams are refused.
    pub tls: Option<Arc<rustls::ClientConfig>>,
    /// The roots themselves, for policies that build on them.
    pub roots: Option<Arc<rustls::RootCertStore>>,
    /// Where backends are.
    pub reach: Reach,
}

/// Where backends are. An address is what a document says; what a name says is decided by whoever answers for it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Reach {
    /// Wherever documents and names say.
    #[default]
    Anywhere,
    /// Not to what only programs of this node reach: loopback, the links, the instance metadata service. In a cluster documents
    /// are written by others than the node's owner.
    OffNode,
}

impl Reach {
    /// Whether a backend may be there.
    pub(crate) fn permits(self, address: IpAddr) -> bool {
        match self {
            Self::Anywhere => true,
            Self::OffNode => connect::off_node(address),
        }
    }
}

/// Why no response came.
#[derive(Debug, thiserror::Error)]
pub enum UpstreamError {
    /// The name has no address.
    #[error("failed to resolve `{name}`")]
    Resolve {
        /// The name.
        name: String,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// No connection.
    #[error("failed to connect to {place}")]
    Connect {
        /// Where to.
        place: String,
        /// Why; a refused connection usually means that nothing listens there.
        #[source]
        source: std::io::Error,
    },
    /// No connection in time.
    #[error(
        "{place} did not accept a connection within {limit:?}; a dropped packet looks like this"
    )]
    ConnectTimeout {
        /// Where to.
        place: String,
        /// The limit.
        limit: Duration,
    },
    /// TLS is asked for and nothing is trusted.
    #[error("nothing to check the certificate of {place} with")]
    Untrusted {
        /// Where to.
        place: String,
        /// Why.
        #[source]
        source: TrustError,
    },
    /// The connection broke before the head of the response.
    #[error("{place} broke off before it answered")]
    Broken {
        /// Where to.
        place: String,
        /// Why.
        #[source]
        source: Break,
    },
    /// The head of the response did not come in time.
    #[error("{place} did not answer within {limit:?}")]
    HeadTimeout {
        /// Where to.
        place: String,
        /// The limit.
        limit: Duration,
    },
    /// The head of the response did not come in the time of the rule.
    #[error("{place} did not answer in the time that the rule allows")]
    Deadline {
        /// Where to.
        place: String,
    },
    /// The client stopped sending its body.
    #[error("client sent no more of its request body for {limit:?}")]
    ClientStalled {
        /// The limit.
        limit: Duration,
    },
    /// The client broke off before its request was sent.
    #[error("client broke off its request body")]
    ClientGone,
    /// The body of the request is longer than its target takes.
    #[error("request body is longer than {limit} bytes")]
    BodyTooLong {
        /// The limit.
        limit: u64,
    },
    /// As many requests wait for a connection as may.
    #[error(
        "{place} has as many connections in use, and requests that wait for one, as it may have"
    )]
    Overloaded {
        /// Where to.
        place: String,
    },
    /// There was no destination to try.
    #[error("no destination")]
    Nowhere,
    /// Datagrams do not go there.
    #[error("{place} takes no datagrams")]
    NoDatagrams {
        /// Where to.
        place: String,
    },
}

/// Runs futures of one core: none of them crosses a thread.
#[derive(Clone, Copy, Debug)]
pub struct LocalExecutor;

impl<F> hyper::rt::Executor<F> for LocalExecutor
where
    F: Future + 'static,
    F::Output: 'static,
{
    fn execute(&self, future: F) {
        // Each stream of HTTP/2 is one, and is moved several times until it runs.
        const { assert!(size_of::<F>() <= 16 * 1024, "box what is rarely waited for") };
        tokio::task::spawn_local(future);
    }
}

impl UpstreamError {
    /// Whether the connection failed, or broke before the first byte of an answer.
    pub fn is_connection(&self) -> bool {
        matches!(
            self,
            Self::Connect { .. } | Self::ConnectTimeout { .. } | Self::Broken { .. }
        )
    }

    /// Whether the upstream said that it did nothing with the stream (RFC 9113, section 8.7).
    pub fn is_refused_stream(&self) -> bool {
        let mut cause = std::error::Error::source(self);
        while let Some(error) = cause {
            if let Some(error) = error.downcast_ref::<h2::Error>() {
                return error.reason() == Some(h2::Reason::REFUSED_STREAM);
            }
            cause = error.source();
        }
        false
    }
}

/// How long the head of a response is waited for.
#[derive(Clone, Copy, Debug)]
pub enum Patience {
    /// By the client's own setting: so long without progress of the request's body.
    Usual,
    /// The same, and not after this.
    UsualUntil(Instant),
    /// To the end.
    Endless,
    /// Until then.
    Until(Instant),
}

impl Client {
    /// Sends a request to the first destination that takes a connection and waits for the head of
    /// the answer. `progress` is the body's, whose clock was just started.
    pub async fn send(
        &self,
        destinations: &[Destination],
        request: Box<UpstreamRequest>,
        progress: &Rc<Progress>,
        patience: Patience,
        table: &RouteTable,
    ) -> Result<Box<Answer>, UpstreamError> {
        let first = destinations.first().ok_or(UpstreamError::Nowhere)?;
        let exchange = async {
            let answer = self.exchange(destinations, request, progress, table).await;
            // Whatever the upstream made of half a body is not its fault.
            match progress.broken() {
                Some(BodyBreak::TooLong(limit)) => Err(UpstreamError::BodyTooLong { limit }),
                Some(BodyBreak::Client) if answer.is_err() => Err(UpstreamError::ClientGone),
                _ => answer,
            }
        };
        tokio::pin!(exchange);
        let late = || UpstreamError::Deadline {
            place: first.place.to_string(),
        };
        match patience {
            Patience::Usual => self.usual(exchange, progress, first).await,
            Patience::UsualUntil(deadline) => {
                let usual = self.usual(exchange, progress, first);
                let answer = tokio::time::timeout_at(deadline, usual).await;
                answer.unwrap_or_else(|_| Err(late()))
            }
            Patience::Endless => exchange.await,
            Patience::Until(deadline) => {
                let answer = tokio::time::timeout_at(deadline, exchange).await;
                answer.unwrap_or_else(|_| Err(late()))
            }
        }
    }

    /// Waits for an answer as long as the request's body moves.
    async fn usual(
        &self,
        mut exchange: Pin<&mut impl Future<Output = Result<Box<Answer>, UpstreamError>>>,
        progress: &Rc<Progress>,
        first: &Destination,
    ) -> Result<Box<Answer>, UpstreamError> {
        let limit = self.settings().timeouts.head;
        let mut alarm = self.alarms().alarm();
        std::future::poll_fn(|context| {
            if let Poll::Ready(answer) = exchange.as_mut().poll(context) {
                return Poll::Ready(answer);
            }
            let until = || progress.last() + limit;
            while alarm.poll(until, context).is_ready() {
                // The body may have moved since the alarm was set.
                if until() > Instant::now() {
                    continue;
                }
                return Poll::Ready(Err(if progress.waits_for_client() {
                    UpstreamError::ClientStalled { limit }
                } else {
                    UpstreamError::HeadTimeout {
                        place: first.place.to_string(),
                        limit,
                    }
                }));
            }
            Poll::Pending
        })
        .await
    }
}
