//! One client connection: accept → TLS by server name → codec.

use std::cell::{Cell, RefCell};
use std::convert::Infallible;
use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::pin::Pin;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use http::{HeaderValue, Method, Request};
use hyper::body::Incoming;
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use snapshot::model::{ClientHttp2, ClientTimeouts, Http1End};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::aside::Aside;
use super::coalesce::Turns;
use super::entrance::{self, Counted};
use super::lent::{Lending, Offer};
use super::linger::{Lingering, Unread};
use super::prefixed::Prefixed;
use super::tunnel::OnUpgrade;
use super::worker::{Drain, Worker};
use super::{http1, normalise, request, steered, stream, tls};
use crate::route::ClientTrust;
use crate::route::Wire;
use crate::route::client::ClientSettings;
use crate::route::trust::Names;
use crate::upstream::{ClientBody, LocalExecutor, Progress};

/// What a client that knows HTTP/2 sends first (RFC 9113, section 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Bytes of a request's head, both codecs; more is answered with 431.
pub(super) const MAX_HEAD: usize = 60 * 1024;

/// Header lines of a request; more is answered with 431. HTTP/1 stops reading there; over HTTP/2 they
/// are counted when they are read.
pub(super) const MAX_HEADERS: usize = 100;

/// First byte of an idle connection, after which keep-alive probes find dead peers.
pub(super) const KEEPALIVE: Duration = Duration::from_secs(30);

/// Who holds [`Conn`] besides requests, each of which does to the end of its answer: whoever serves it.
const AT_REST: usize = 1;

const STREAM_WINDOW: u32 = 256 * 1024;
const CONNECTION_WINDOW: u32 = 1024 * 1024;
const MAX_STREAMS: u32 = 256;

/// By which kind of socket a connection came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Entry {
    /// To a gateway's listener.
    Gateway,
    /// Steered here by the kernel; the local address is where its sender wanted to go.
    Steered,
}

/// What requests know of their connection.
#[derive(Debug)]
pub(super) struct Conn {
    /// The other end.
    pub(super) peer: SocketAddr,
    /// Whose it is: the other end's, or that of whom a proxy there speaks for.
    pub(super) source: SocketAddr,
    /// The same as a text: every request is recorded with it.
    pub(super) client: Arc<str>,
    /// Its address, as a header tells it.
    pub(super) address: HeaderValue,
    pub(super) local: SocketAddr,
    pub(super) entry: Entry,
    pub(super) tls: bool,
    /// Server name of the `ClientHello`, lower case.
    pub(super) sni: Option<String>,
    /// What the handshake asked of the client.
    pub(super) clients: Option<Arc<ClientTrust>>,
    /// Names of the client's certificate, if that is good.
    pub(super) certificate: Option<Names>,
    /// What upstreams are told of it, if they are.
    pub(super) told: Option<HeaderValue>,
    /// When it was accepted.
    pub(super) begun: Instant,
    /// When its last answer was complete, or since when it is open.
    pub(super) free: Cell<Instant>,
    /// Since when its client takes nothing of the answer that is there for it, over HTTP/1.1.
    pub(super) held: Cell<Option<Instant>>,
    /// How far the body of its last request is.
    pub(super) body: RefCell<Weak<Progress>>,
    /// Whether its client may still send what nobody reads.
    pub(super) unread: Unread,
    /// The policy that it began with.
    pub(super) settings: Option<Arc<ClientSettings>>,
    /// Its place among those of its port, if these are limited.
    pub(super) counted: Option<Rc<Counted>>,
    /// Requests so far, where they are limited, and the end of those that it may have.
    pub(super) requests: Cell<u32>,
    pub(super) spent: Notify,
}

impl Conn {
    /// A connection of which nothing is known but its ends; none: an address has no text, which all have.
    pub(super) fn new(peer: SocketAddr, local: SocketAddr, entry: Entry) -> Option<Self> {
        // No address has a text that is no header's.
        let address = HeaderValue::from_str(&peer.ip().to_string()).ok()?;
        let now = Instant::now();
        Some(Self {
            peer,
            source: peer,
            client: peer.to_string().into(),
            address,
            local,
            entry,
            tls: false,
            sni: None,
            clients: None,
            certificate: None,
            told: None,
            begun: now,
            free: Cell::new(now),
            held: Cell::default(),
            body: RefCell::default(),
            unread: Unread::default(),
            settings: None,
            counted: None,
            requests: Cell::default(),
            spent: Notify::default(),
        })
    }

    /// A proxy at the other end tells whose it is.
    pub(super) fn comes_from(&mut self, source: SocketAddr) {
        // No address has a text that is no header's.
        if let Ok(address) = HeaderValue::from_str(&source.ip().to_string()) {
            self.address = address;
            self.source = source;
            self.client = source.to_string().into();
        }
    }

    pub(super) fn timeouts(&self) -> ClientTimeouts {
        let settings = self.settings.as_ref();
        settings.map_or_else(Default::default, |one| one.policy.timeouts)
    }

    /// Returns once it is too old for another request; never, if it has all the time.
    pub(super) async fn old(&self) {
        let settings = self.settings.as_ref();
        match settings.and_then(|one| one.policy.max_age) {
            Some(most) => tokio::time::sleep_until(self.begun + most).await,
            None => std::future::pending().await,
        }
    }

    /// As [`Self::old`], of a connection of HTTP/1.1 that is to end then without another request.
    async fn over(&self) {
        let settings = self.settings.as_ref();
        match settings.map(|one| one.policy.http1_end) {
            Some(Http1End::AtRest) => self.old().await,
            Some(Http1End::NextAnswer) | None => std::future::pending().await,
        }
    }

    fn http2(&self) -> ClientHttp2 {
        let settings = self.settings.as_ref();
        settings.map_or_else(Default::default, |one| one.policy.http2)
    }
}

/// Which codec a connection speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Codec {
    Http1,
    Http2,
    /// Its first bytes tell.
    Detect,
}

/// Serves a connection to its end. `local`: the address that it came to, if its listener has only one.
pub(super) async fn accepted(
    worker: Rc<Worker>,
    (stream, peer): (TcpStream, SocketAddr),
    local: Option<SocketAddr>,
    entry: Entry,
) {
    let _open = worker.opened();
    let peer = canonical(peer);
    let local = match local.map_or_else(|| stream.local_addr(), Ok) {
        Ok(local) => canonical(local),
        Err(error) => {
            // The peer reset it while it waited to be accepted.
            tracing::debug!(%error, "connection was gone before it was served");
            return;
        }
    };
    let Some(mut conn) = Conn::new(peer, local, entry) else {
        return;
    };
    match entry {
        // What other connections wait for does not make those of plain HTTP larger.
        Entry::Steered => Box::pin(steered::serve(worker, stream, conn)).await,
        Entry::Gateway => {
            // A connection outlives many tables: each request loads its own, and none is kept here.
            let found = worker.table.load().bind(local).map(|bind| {
                let settings = bind.policy.clone();
                (
                    bind.wire,
                    settings.map(|one| (one, Arc::clone(bind.open()))),
                )
            });
            let mut stream = Prefixed::new(stream);
            if let Some((_, Some((settings, open)))) = &found
                && !entrance::enter(&worker, settings, open, &mut stream, &mut conn).await
            {
                return;
            }
            match found.map(|(wire, _)| wire) {
                None => tracing::debug!(%peer, %local, "no listener at this address; closed"),
                Some(Wire::Tls) => Box::pin(tls::serve(worker, stream, conn)).await,
                Some(Wire::Http) => http(worker, stream, conn, Codec::Detect).await,
                Some(Wire::Any) => Box::pin(stream::serve(worker, stream, conn)).await,
            }
        }
    }
}

/// IPv4 clients of an IPv6 socket are IPv4 clients.
pub(super) fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

/// Serves requests until the client leaves or the worker drains.
pub(super) async fn http<T>(worker: Rc<Worker>, mut stream: Prefixed<T>, conn: Conn, codec: Codec)
where
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let limit = conn.timeouts().idle.unwrap_or_else(|| worker.idle());
    let conn = Rc::new(conn);
    let mut drain = worker.drain();
    let codec = match codec {
        Codec::Detect => {
            let detected = tokio::time::timeout(limit, detect(&mut stream));
            let detected = tokio::select! {
                detected = detected => detected,
                // Nothing was asked yet, so nothing is cut off.
                () = drain.begun() => return,
            };
            match detected {
                Ok(Ok(codec)) => codec,
                Ok(Err(_)) | Err(_) => return,
            }
        }
        known => known,
    };
    match codec {
        Codec::Http2 => http2(&worker, stream, &conn, limit, drain).await,
        _ => {
            let closing = Cell::new(false);
            let limits = (limit, worker.idle());
            let idle = Aside::new(async {
                tokio::select! {
                    () = drain.begun() => {}
                    () = conn.over() => {}
                    () = idle(&conn, AT_REST, limits) => return,
                }
                closing.set(true);
                idle(&conn, AT_REST, limits).await;
            });
            let mut watch = http1::Watch {
                idle,
                closing: &closing,
            };
            let (ahead, stream) = stream.into_parts();
            http1::serve(&worker, stream, ahead.freeze(), &conn, &mut watch).await;
        }
    }
}

/// Serves streams until the client leaves or the worker drains.
async fn http2<T>(
    worker: &Rc<Worker>,
    stream: Prefixed<T>,
    conn: &Rc<Conn>,
    limit: Duration,
    mut drain: Drain,
) where
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let limits = conn.http2();
    let offer = Offer::default();
    let service = {
        let (worker, conn, offer) = (Rc::clone(worker), Rc::clone(conn), offer.clone());
        service_fn(move |mut request: Request<Incoming>| {
            let (worker, conn, offer) = (Rc::clone(&worker), Rc::clone(&conn), offer.clone());
            // Other streams become nothing else.
            let upgrade = (*request.method() == Method::CONNECT)
                .then(|| OnUpgrade::Http2(hyper::upgrade::on(&mut request)));
            let (parts, body) = request.into_parts();
            let body = ClientBody::http2(body, normalise::strip_trailers);
            let request = (Box::new(parts), body);
            // A stream is handed on several times before it is served, and its stages are large. Memory comes first: they would
            // be moved there otherwise, most of them still empty.
            let served = Box::write(Box::new_uninit(), async move {
                let response = request::handle(worker, conn, request, upgrade).await;
                Ok::<_, Infallible>(response.map(|body| Lending::new(body, &offer)))
            });
            Box::into_pin(served)
        })
    };
    let mut besides = Aside::new(async {
        tokio::select! {
            () = drain.begun() => Besides::Last,
            () = idle(conn, AT_REST + 1, (limit, worker.idle())) => Besides::Idle,
            () = conn.spent.notified() => Besides::Last,
            () = conn.old() => Besides::Last,
        }
    });
    let stream = Lingering::new(stream, conn.unread.clone());
    let mut connection = Turns::new(stream, offer, |held| {
        http2::Builder::new(LocalExecutor)
            .timer(TokioTimer::new())
            .max_header_list_size(MAX_HEAD as u32)
            .max_concurrent_streams(limits.max_streams.map_or(MAX_STREAMS, NonZeroU32::get))
            .initial_stream_window_size(limits.stream_window.unwrap_or(STREAM_WINDOW))
            .initial_connection_window_size(limits.connection_window.unwrap_or(CONNECTION_WINDOW))
            .keep_alive_interval(KEEPALIVE)
            .enable_connect_protocol()
            .serve_connection(TokioIo::new(held), service)
    });
    let ended = match first(Pin::new(&mut connection), &mut besides).await {
        Ok(ended) => ended,
        Err(Besides::Last) => {
            connection.connection().graceful_shutdown();
            connection.await
        }
        Err(Besides::Idle) => {
            connection.connection().graceful_shutdown();
            // A client that does not say goodbye has had its time.
            tokio::time::timeout(limit, connection)
                .await
                .unwrap_or(Ok(()))
        }
    };
    if let Err(error) = ended {
        tracing::debug!(peer = %conn.peer, %error, "connection ended");
    }
}

/// What ends a connection besides its client.
#[derive(Clone, Copy)]
enum Besides {
    /// The worker drains, or it has had the requests or the time that it may have.
    Last,
    /// No request came in time, or no head of one to its end.
    Idle,
}

/// What comes first: the end of the connection, or something besides.
async fn first<C: Future, F: Future>(
    mut connection: Pin<&mut C>,
    besides: &mut Aside<F>,
) -> Result<C::Output, F::Output> {
    std::future::poll_fn(|context| match connection.as_mut().poll(context) {
        Poll::Ready(ended) => Poll::Ready(Ok(ended)),
        Poll::Pending => besides.poll(context).map(Err),
    })
    .await
}

/// Returns once a connection had no request under way for the first limit, or its client took nothing of an answer and sent
/// nothing of a request for the second one. `at_rest`: how many hold it without a request.
pub(super) async fn idle(conn: &Rc<Conn>, at_rest: usize, (limit, patience): (Duration, Duration)) {
    loop {
        // An answer may be complete before its request is.
        let body = conn.body.borrow().upgrade();
        let moved = |since: Instant| {
            let last = body.as_ref().map(|progress| progress.last());
            last.map_or(since, |last| last.max(since))
        };
        let until = if let Some(held) = conn.held.get() {
            moved(held) + patience
        } else if Rc::strong_count(conn) > at_rest {
            Instant::now() + limit.min(patience)
        } else {
            moved(conn.free.get()) + limit
        };
        // It is looked at, and not kept.
        drop(body);
        if until <= Instant::now() {
            return;
        }
        tokio::time::sleep_until(until).await;
    }
}

/// Reads ahead until the bytes are, or are not, HTTP/2's preface.
async fn detect<T: AsyncRead + Unpin>(stream: &mut Prefixed<T>) -> std::io::Result<Codec> {
    loop {
        let ahead = stream.ahead();
        let common = ahead.len().min(PREFACE.len());
        if ahead[..common] != PREFACE[..common] {
            return Ok(Codec::Http1);
        }
        if common == PREFACE.len() {
            return Ok(Codec::Http2);
        }
        if stream.read_ahead().await? == 0 {
            return Ok(Codec::Http1);
        }
    }
}
