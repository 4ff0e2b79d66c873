//! Idle connections of one core, by destination.

use std::cell::RefCell;
use std::collections::HashMap;
use std::net::SocketAddr;
use std::rc::Rc;

use http::uri::Authority;
use http::{HeaderValue, Request, Uri, header};
use hyper::client::conn::{TrySendError, http1, http2};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::time::Instant;

use super::resolve::Resolver;
use super::{
    Answer, Destination, LocalExecutor, Place, RequestBody, Settings, Stream, UpstreamError,
    connect,
};
use crate::route::RouteTable;

/// Idle HTTP/1 connections kept per destination and core.
const IDLE_PER_DESTINATION: usize = 1024;

/// HTTP/2 flow control windows in bytes: large enough that one stream fills a fast link.
const STREAM_WINDOW: u32 = 1 << 20;
const CONNECTION_WINDOW: u32 = 4 << 20;

/// Sends requests, and keeps what can be used again.
pub struct Client {
    settings: Settings,
    resolver: Resolver,
    pool: Rc<RefCell<Pool>>,
}

#[derive(Default)]
struct Pool {
    http1: HashMap<Destination, Vec<Idle>>,
    http2: HashMap<Destination, Shared>,
}

struct Idle {
    sender: http1::SendRequest<RequestBody>,
    /// Address of the other side, as a text: every request on the connection is recorded with it.
    from: Rc<str>,
    since: Instant,
}

#[derive(Clone)]
struct Shared {
    sender: http2::SendRequest<RequestBody>,
    from: Rc<str>,
}

/// A try that failed; the request comes back if no byte of it was sent.
struct Failed {
    request: Option<Request<RequestBody>>,
    source: hyper::Error,
}

impl From<TrySendError<Request<RequestBody>>> for Failed {
    fn from(mut error: TrySendError<Request<RequestBody>>) -> Self {
        Self {
            request: error.take_message(),
            source: error.into_error(),
        }
    }
}

impl Client {
    /// A client without connections.
    pub fn new(settings: Settings) -> Self {
        Self {
            settings,
            resolver: Resolver::default(),
            pool: Rc::default(),
        }
    }

    pub(crate) fn settings(&self) -> &Settings {
        &self.settings
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
        pool.http1.retain(|_, idle| {
            idle.retain(|one| !one.sender.is_closed() && now.duration_since(one.since) < limit);
            !idle.is_empty()
        });
        pool.http2.retain(|_, shared| !shared.sender.is_closed());
    }

    pub(super) async fn exchange(
        &self,
        destinations: &[Destination],
        mut request: Request<RequestBody>,
        table: &RouteTable,
    ) -> Result<Answer, UpstreamError> {
        let mut failure = UpstreamError::Nowhere;
        for destination in destinations {
            if let Some(host) = &destination.host {
                // The request was made for one of them.
                name_host(&mut request, host, destination.http2);
            }
            let place = || destination.place.to_string();
            // Kept connections first. One that the server closed in the meantime gives the request
            // back, and the next one is tried.
            while let Some(kept) = self.kept(destination) {
                match self.over(kept, destination, request).await {
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
            let fresh = match self.connect(destination, table).await {
                Ok(fresh) => fresh,
                Err(error) => {
                    failure = error;
                    continue;
                }
            };
            match self.over(fresh, destination, request).await {
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

    fn kept(&self, destination: &Destination) -> Option<Kept> {
        let mut pool = self.pool.borrow_mut();
        if destination.http2 {
            let shared = pool.http2.get(destination)?;
            if !shared.sender.is_closed() {
                return Some(Kept::Http2(shared.clone()));
            }
            pool.http2.remove(destination);
            return None;
        }
        let idle = pool.http1.get_mut(destination)?;
        while let Some(one) = idle.pop() {
            if one.sender.is_ready() {
                return Some(Kept::Http1(one));
            }
        }
        None
    }

    async fn connect(
        &self,
        destination: &Destination,
        table: &RouteTable,
    ) -> Result<Kept, UpstreamError> {
        let connected = connect::open(destination, &self.settings, &self.resolver, table).await?;
        let from: Rc<str> = match connected.peer {
            Some(peer) => peer.to_string().into(),
            None => destination.place.to_string().into(),
        };
        let io = TokioIo::new(connected.stream);
        let broken = |source| UpstreamError::Broken {
            place: destination.place.to_string(),
            source,
        };
        if destination.http2 {
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
            return Ok(Kept::Http2(shared));
        }
        let (sender, connection) = http1::handshake(io).await.map_err(broken)?;
        let place = destination.place.to_string();
        tokio::task::spawn_local(async move {
            if let Err(error) = connection.with_upgrades().await {
                tracing::debug!(%place, %error, "upstream connection ended");
            }
        });
        Ok(Kept::Http1(Idle {
            sender,
            from,
            since: Instant::now(),
        }))
    }

    async fn over(
        &self,
        kept: Kept,
        destination: &Destination,
        request: Request<RequestBody>,
    ) -> Result<Answer, Failed> {
        match kept {
            Kept::Http2(mut shared) => {
                let response = shared.sender.try_send_request(request).await?;
                Ok(Answer {
                    response,
                    from: shared.from,
                    place: destination.place.clone(),
                })
            }
            Kept::Http1(mut idle) => {
                let response = idle.sender.try_send_request(request).await?;
                let from = Rc::clone(&idle.from);
                self.give_back(destination.clone(), idle);
                let place = destination.place.clone();
                Ok(Answer {
                    response,
                    from,
                    place,
                })
            }
        }
    }

    /// Keeps a connection once its response is read to the end.
    fn give_back(&self, destination: Destination, mut idle: Idle) {
        let pool = Rc::clone(&self.pool);
        tokio::task::spawn_local(async move {
            if idle.sender.ready().await.is_err() {
                return;
            }
            idle.since = Instant::now();
            let mut pool = pool.borrow_mut();
            let list = pool.http1.entry(destination).or_default();
            if list.len() < IDLE_PER_DESTINATION {
                list.push(idle);
            }
        });
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
        request.headers_mut().insert(header::HOST, host.clone());
        return;
    }
    let mut parts = request.uri().clone().into_parts();
    parts.authority = Authority::try_from(host.as_bytes()).ok();
    // Without an authority the parts make no URI, and the request keeps the one that it has.
    if let Ok(uri) = Uri::from_parts(parts) {
        *request.uri_mut() = uri;
    }
}

enum Kept {
    Http1(Idle),
    Http2(Shared),
}
