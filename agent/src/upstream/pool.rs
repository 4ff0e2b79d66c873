//! Idle connections of one core, by destination.

use std::cell::RefCell;
use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

use http::uri::Authority;
use http::{HeaderValue, Request, Uri, header};
use hyper::client::conn::{TrySendError, http2};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::time::Instant;

use super::alarm::Alarms;
use super::answer::{AnswerBody, Break};
use super::http1::{self, Exchange, Shelf};
use super::resolve::Resolver;
use super::{
    Answer, Destination, LocalExecutor, Place, RequestBody, Settings, Stream, UpstreamError,
    connect,
};
use crate::route::RouteTable;

/// HTTP/2 flow control windows in bytes: large enough that one stream fills a fast link.
const STREAM_WINDOW: u32 = 1 << 20;
const CONNECTION_WINDOW: u32 = 4 << 20;

/// Sends requests, and keeps what can be used again.
pub struct Client {
    settings: Settings,
    resolver: Resolver,
    arena: crate::http1::Arena,
    alarms: Alarms,
    pool: RefCell<Pool>,
}

#[derive(Default)]
struct Pool {
    http1: HashMap<Destination, Rc<Shelf>, Quick>,
    http2: HashMap<Destination, Shared, Quick>,
}

/// Destinations are what the configuration says, so nobody can choose them for their hashes.
type Quick = BuildHasherDefault<QuickHasher>;

/// A multiplication for each eight bytes (as FxHash has it).
#[derive(Default)]
struct QuickHasher(u64);

impl QuickHasher {
    fn add(&mut self, word: u64) {
        const FACTOR: u64 = 0x517c_c1b7_2722_0a95;
        self.0 = (self.0.rotate_left(5) ^ word).wrapping_mul(FACTOR);
    }
}

impl Hasher for QuickHasher {
    fn write(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.add(u64::from_le_bytes(word));
        }
    }

    fn write_u8(&mut self, number: u8) {
        self.add(number.into());
    }

    fn write_u16(&mut self, number: u16) {
        self.add(number.into());
    }

    fn write_u32(&mut self, number: u32) {
        self.add(number.into());
    }

    fn write_u64(&mut self, number: u64) {
        self.add(number);
    }

    fn write_usize(&mut self, number: usize) {
        self.add(number as u64);
    }

    fn write_isize(&mut self, number: isize) {
        self.add(number as u64);
    }

    fn finish(&self) -> u64 {
        // Tables take the upper bits and the lower ones.
        self.0 ^ (self.0 >> 32)
    }
}

#[derive(Clone)]
struct Shared {
    sender: http2::SendRequest<RequestBody>,
    from: Arc<str>,
}
/// What a request can be sent over.
enum Way {
    Http1(Box<http1::Idle>, Rc<Shelf>),
    Http2(Shared),
}

/// A try that failed; the request comes back if no byte of it was sent.
struct Failed {
    request: Option<Box<Request<RequestBody>>>,
    source: Break,
}

impl From<TrySendError<Request<RequestBody>>> for Failed {
    fn from(mut error: TrySendError<Request<RequestBody>>) -> Self {
        Self {
            request: error.take_message().map(Box::new),
            source: error.into_error().into(),
        }
    }
}

impl Client {
    /// Memory that all connections of the core share.
    pub(crate) fn arena(&self) -> &crate::http1::Arena {
        &self.arena
    }

    /// A client without connections.
    pub fn new(settings: Settings) -> Self {
        Self {
            settings,
            resolver: Resolver::default(),
            arena: crate::http1::Arena::default(),
            alarms: Alarms::default(),
            pool: RefCell::default(),
        }
    }

    pub(crate) fn settings(&self) -> &Settings {
        &self.settings
    }

    pub(super) fn alarms(&self) -> &Alarms {
        &self.alarms
    }

    /// A plain connection that carries whatever its user sends, and where it ended.
    pub async fn tunnel(
        &self,
        destination: &Destination,
        table: &RouteTable,
    ) -> Result<(Stream, String), UpstreamError> {
        let open = connect::tunnel(destination, &self.settings, &self.resolver, table);
        tokio::time::timeout(connect::TUNNEL_LIMIT, open)
            .await
            .map_err(|_| UpstreamError::ConnectTimeout {
                place: destination.place.to_string(),
                limit: connect::TUNNEL_LIMIT,
            })?
    }

    /// The address that a place is asked at; the first one of a name.
    pub(crate) async fn address(
        &self,
        place: &Place,
        table: &RouteTable,
    ) -> Result<SocketAddr, UpstreamError> {
        match place {
            Place::Address(address) => Ok(*address),
            Place::Name(name, port) => {
                let addresses = self.resolver.resolve(name, *port, table.dns()).await?;
                addresses.first().copied().ok_or(UpstreamError::Nowhere)
            }
            Place::Unix(_) => Err(UpstreamError::NoDatagrams {
                place: place.to_string(),
            }),
        }
    }

    /// Closes connections that idled too long; called from time to time.
    pub fn expire(&self, now: Instant) {
        let limit = self.settings.timeouts.idle;
        let mut pool = self.pool.borrow_mut();
        // A connection that is in use comes back to its shelf.
        pool.http1
            .retain(|_, shelf| shelf.expire(now, limit) || Rc::strong_count(shelf) > 1);
        pool.http2.retain(|_, shared| !shared.sender.is_closed());
    }

    pub(super) async fn exchange(
        &self,
        destinations: &[Destination],
        request: Request<RequestBody>,
        table: &RouteTable,
    ) -> Result<Answer, UpstreamError> {
        // It is handed on several times.
        let mut request = Box::new(request);
        let mut failure = UpstreamError::Nowhere;
        for destination in destinations {
            if let Some(host) = &destination.host {
                // The request was made for one of them.
                name_host(&mut request, host, destination.http2);
            }
            let place = || destination.place.to_string();
            // Kept connections first. One that the server closed in the meantime gives the request
            // back, and the next one is tried.
            while let Some(way) = self.kept(destination).await {
                match over(way, destination, request).await {
                    Ok(answer) => return Ok(answer),
                    Err(Failed {
                        request: Some(unsent),
                        ..
                    }) => request = unsent,
                    Err(Failed {
                        request: None,
                        source,
                    }) => {
                        return Err(UpstreamError::Broken {
                            place: place(),
                            source,
                        });
                    }
                }
            }
            // What is rarely waited for has memory of its own: every request is moved with all that it may wait for.
            let fresh = match Box::pin(self.connect(destination, table)).await {
                Ok(fresh) => fresh,
                Err(error) => {
                    failure = error;
                    continue;
                }
            };
            match over(fresh, destination, request).await {
                Ok(answer) => return Ok(answer),
                Err(Failed {
                    request: unsent,
                    source,
                }) => {
                    failure = UpstreamError::Broken {
                        place: place(),
                        source,
                    };
                    match unsent {
                        Some(unsent) => request = unsent,
                        None => return Err(failure),
                    }
                }
            }
        }
        Err(failure)
    }

    async fn kept(&self, destination: &Destination) -> Option<Way> {
        if destination.http2 {
            let mut pool = self.pool.borrow_mut();
            let shared = pool.http2.get(destination)?;
            if !shared.sender.is_closed() {
                return Some(Way::Http2(shared.clone()));
            }
            pool.http2.remove(destination);
            return None;
        }
        let shelf = Rc::clone(self.pool.borrow().http1.get(destination)?);
        let idle = shelf.take().await?;
        Some(Way::Http1(Box::new(idle), shelf))
    }

    async fn connect(
        &self,
        destination: &Destination,
        table: &RouteTable,
    ) -> Result<Way, UpstreamError> {
        let connected = connect::open(destination, &self.settings, &self.resolver, table).await?;
        let from: Arc<str> = match connected.peer {
            Some(peer) => peer.to_string().into(),
            None => destination.place.to_string().into(),
        };
        if destination.http2 {
            let broken = |source: hyper::Error| UpstreamError::Broken {
                place: destination.place.to_string(),
                source: source.into(),
            };
            let io = TokioIo::new(connected.stream);
            let (sender, connection) = http2::Builder::new(LocalExecutor)
                .timer(TokioTimer::new())
                .initial_stream_window_size(STREAM_WINDOW)
                .initial_connection_window_size(CONNECTION_WINDOW)
                .handshake(io)
                .await
                .map_err(broken)?;
            let place = destination.place.to_string();
            tokio::task::spawn_local(async move {
                if let Err(error) = connection.await {
                    tracing::debug!(%place, %error, "upstream connection ended");
                }
            });
            let shared = Shared { sender, from };
            let mut pool = self.pool.borrow_mut();
            pool.http2.insert(destination.clone(), shared.clone());
            return Ok(Way::Http2(shared));
        }
        let idle = http1::Idle::new(connected.stream, self.arena.clone(), from);
        let mut pool = self.pool.borrow_mut();
        let shelf = match pool.http1.get(destination) {
            Some(shelf) => Rc::clone(shelf),
            None => Rc::clone(pool.http1.entry(destination.clone()).or_default()),
        };
        Ok(Way::Http1(Box::new(idle), shelf))
    }
}

async fn over(
    way: Way,
    destination: &Destination,
    request: Box<Request<RequestBody>>,
) -> Result<Answer, Failed> {
    let place = destination.place.clone();
    match way {
        Way::Http2(mut shared) => {
            let response = shared.sender.try_send_request(*request).await?;
            Ok(Answer {
                response: response.map(AnswerBody::from),
                switched: None,
                from: shared.from,
                place,
            })
        }
        Way::Http1(idle, shelf) => {
            let from = Arc::clone(&idle.from);
            let head = Exchange::new(*idle, *request).head(&shelf).await;
            let head = head.map_err(|error| Failed {
                // Bytes of it were sent.
                request: None,
                source: error.into(),
            })?;
            Ok(Answer {
                response: head.response.map(AnswerBody::from),
                switched: head.switched,
                from,
                place,
            })
        }
    }
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client").finish_non_exhaustive()
    }
}

/// Asks another host for the same.
fn name_host(request: &mut Request<RequestBody>, host: &HeaderValue, http2: bool) {
    if !http2 {
        let headers = request.headers_mut();
        if headers.get(header::HOST) != Some(host) {
            headers.insert(header::HOST, host.clone());
        }
        return;
    }
    let mut parts = request.uri().clone().into_parts();
    parts.authority = Authority::try_from(host.as_bytes()).ok();
    // Without an authority the parts make no URI, and the request keeps the one that it has.
    if let Ok(uri) = Uri::from_parts(parts) {
        *request.uri_mut() = uri;
    }
}
