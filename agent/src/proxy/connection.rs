//! One client connection: accept → TLS by server name → codec.

use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::pin::Pin;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use http::HeaderValue;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::Instant;

use super::aside::Aside;
use super::coalesce::Turns;
use super::linger::{Lingering, Unread};
use super::prefixed::Prefixed;
use super::worker::Worker;
use super::{request, steered, stream, tls};
use crate::route::ClientTrust;
use crate::route::Wire;
use crate::route::trust::Names;
use crate::upstream::{LocalExecutor, Progress};

/// What a client that knows HTTP/2 sends first (RFC 9113, section 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Bytes of a request's head, both codecs; more is answered with 431.
const MAX_HEAD: usize = 60 * 1024;

/// Header lines of a request; more is answered with 431. HTTP/1 stops reading there; over HTTP/2 they
/// are counted when they are read.
pub(super) const MAX_HEADERS: usize = 100;

/// First byte of an idle connection, after which keep-alive probes find dead peers.
const KEEPALIVE: Duration = Duration::from_secs(30);

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
    pub(super) peer: SocketAddr,
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
    /// When its last answer was complete, or since when it is open.
    pub(super) free: Cell<Instant>,
    /// How far the body of its last request is.
    pub(super) body: RefCell<Weak<Progress>>,
    /// Whether its client may still send what nobody reads.
    pub(super) unread: Unread,
}

/// Which codec a connection speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Codec {
    Http1,
    Http2,
    /// Its first bytes tell.
    Detect,
}

/// Serves a connection to its end.
pub(super) async fn accepted(worker: Rc<Worker>, stream: TcpStream, entry: Entry) {
    let _open = worker.opened();
    let addresses = stream
        .peer_addr()
        .and_then(|peer| Ok((peer, stream.local_addr()?)));
    let (peer, local) = match addresses {
        Ok((peer, local)) => (canonical(peer), canonical(local)),
        Err(error) => {
            // The peer reset it while it waited to be accepted.
            tracing::debug!(%error, "connection was gone before it was served");
            return;
        }
    };
    let Ok(address) = HeaderValue::from_str(&peer.ip().to_string()) else {
        // No address has a text that is no header's.
        return;
    };
    let socket = SockRef::from(&stream);
    let keepalive = TcpKeepalive::new()
        .with_time(KEEPALIVE)
        .with_interval(KEEPALIVE);
    if let Err(error) = stream
        .set_nodelay(true)
        .and_then(|()| socket.set_tcp_keepalive(&keepalive))
    {
        tracing::debug!(%error, %peer, "failed to set options of a connection");
    }
    let conn = Conn {
        peer,
        client: peer.to_string().into(),
        address,
        local,
        entry,
        tls: false,
        sni: None,
        clients: None,
        certificate: None,
        free: Cell::new(Instant::now()),
        body: RefCell::default(),
        unread: Unread::default(),
    };
    match entry {
        // What other connections wait for does not make those of plain HTTP larger.
        Entry::Steered => Box::pin(steered::serve(worker, stream, conn)).await,
        Entry::Gateway => {
            // A connection outlives many tables: each request loads its own, and none is kept here.
            let wire = worker.table.load().bind(local).map(|bind| bind.wire);
            let stream = Prefixed::new(stream);
            match wire {
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
    let conn = Rc::new(conn);
    let mut drain = worker.drain();
    let codec = match codec {
        Codec::Detect => {
            let detected = tokio::time::timeout(worker.idle(), detect(&mut stream));
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
    let service = {
        let (worker, conn) = (Rc::clone(&worker), Rc::clone(&conn));
        service_fn(move |request| {
            let (worker, conn) = (Rc::clone(&worker), Rc::clone(&conn));
            async move {
                Ok::<_, std::convert::Infallible>(request::handle(worker, conn, request).await)
            }
        })
    };
    let unread = conn.unread.clone();
    let stream = Lingering::new(stream, unread);
    let limit = worker.idle();
    let mut besides = Aside::new(async {
        tokio::select! {
            () = drain.begun() => Besides::Drain,
            () = idle(&conn, limit) => Besides::Idle,
        }
    });
    let ended = if codec == Codec::Http2 {
        let mut connection = Turns::new(stream, |held| {
            http2::Builder::new(LocalExecutor)
                .timer(TokioTimer::new())
                .max_header_list_size(MAX_HEAD as u32)
                .max_concurrent_streams(MAX_STREAMS)
                .initial_stream_window_size(STREAM_WINDOW)
                .initial_connection_window_size(CONNECTION_WINDOW)
                .keep_alive_interval(KEEPALIVE)
                .enable_connect_protocol()
                .serve_connection(TokioIo::new(held), service)
        });
        match first(Pin::new(&mut connection), &mut besides).await {
            Ok(ended) => ended,
            Err(Besides::Drain) => {
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
        }
    } else {
        let connection = http1::Builder::new()
            .max_headers(MAX_HEADERS)
            .max_buf_size(MAX_HEAD)
            .serve_connection(TokioIo::new(stream), service)
            .with_upgrades();
        tokio::pin!(connection);
        match first(connection.as_mut(), &mut besides).await {
            Ok(ended) => ended,
            Err(Besides::Drain) => {
                connection.as_mut().graceful_shutdown();
                tokio::select! {
                    ended = connection => ended,
                    () = idle(&conn, limit) => Ok(()),
                }
            }
            Err(Besides::Idle) => Ok(()),
        }
    };
    if let Err(error) = ended {
        tracing::debug!(peer = %conn.peer, %error, "connection ended");
    }
}

/// What ends a connection besides its client.
#[derive(Clone, Copy)]
enum Besides {
    Drain,
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

/// Returns once a connection had no request under way for `limit`.
async fn idle(conn: &Rc<Conn>, limit: Duration) {
    // One of the connection, one of its service; every request holds another to the end of its answer.
    const AT_REST: usize = 2;
    loop {
        let since = if Rc::strong_count(conn) > AT_REST {
            Instant::now()
        } else {
            // An answer may be complete before its request is.
            let body = conn.body.borrow().upgrade();
            let free = conn.free.get();
            body.map_or(free, |progress| progress.last().max(free))
        };
        let until = since + limit;
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
