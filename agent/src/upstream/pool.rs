//! Idle connections of one core, by destination.

use std::cell::RefCell;
use std::future::poll_fn;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};

use http::uri::{PathAndQuery, Scheme};
use http::{Request, Uri, header, request};
use hyper::client::conn::{TrySendError, http2};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::time::Instant;

use super::alarm::Alarms;
use super::answer::{AnswerBody, Break};
use super::http1::{self, Shelf};
use super::lifetime::{self, Limits};
use super::resolve::Resolver;
use super::{
    Answer, Destination, LocalExecutor, Place, Progress, RequestBody, RequestHost, Settings,
    Stream, UpstreamError, UpstreamRequest, connect,
};
use crate::route::{HashMap, RouteTable};

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
    http1: HashMap<Destination, Rc<Shelf>>,
    http2: HashMap<Destination, Shared>,
}

#[derive(Clone)]
struct Shared {
    sender: http2::SendRequest<RequestBody>,
    from: Arc<str>,
    limits: Limits,
    usage: Rc<lifetime::Shared>,
}

impl Shared {
    /// Whether it may have another request. One that may not ends with those that it has.
    fn may_serve(&self, now: Instant) -> bool {
        !self.sender.is_closed() && self.usage.may_serve(&self.limits, now)
    }
}

/// What a request can be sent over.
enum Way {
    Http1(Box<http1::Idle>, Rc<Shelf>),
    Http2(Shared),
}

/// A try that failed; the request comes back if no byte of it was sent.
struct Failed {
    request: Option<Box<UpstreamRequest>>,
    source: Break,
}

impl From<TrySendError<Request<RequestBody>>> for Failed {
    fn from(mut error: TrySendError<Request<RequestBody>>) -> Self {
        Self {
            request: error.take_message().map(|request| {
                let (parts, body) = request.into_parts();
                let parts = Box::new(parts);
                // What was added is among the others by now.
                let more = Vec::new();
                Box::new(UpstreamRequest { parts, more, body })
            }),
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
            Place::Address(address) => connect::reached(*address, &self.settings),
            Place::Name(name, port) => {
                let (settings, resolver) = (&self.settings, &self.resolver);
                let addresses = connect::resolve(name, *port, settings, resolver, table).await?;
                addresses.first().copied().ok_or(UpstreamError::Nowhere)
            }
            Place::Unix(_) => Err(UpstreamError::NoDatagrams {
                place: place.to_string(),
            }),
        }
    }

    /// Closes connections that idled too long; called from time to time.
    pub fn expire(&self, now: Instant) {
        let mut pool = self.pool.borrow_mut();
        // A connection that is in use comes back to its shelf.
        pool.http1
            .retain(|_, shelf| shelf.expire(now) || Rc::strong_count(shelf) > 1);
        pool.http2.retain(|_, shared| shared.may_serve(now));
    }

    pub(super) async fn exchange(
        &self,
        destinations: &[Destination],
        mut request: Box<UpstreamRequest>,
        progress: &Progress,
        table: &RouteTable,
    ) -> Result<Box<Answer>, UpstreamError> {
        let mut failure = UpstreamError::Nowhere;
        for (at, destination) in destinations.iter().enumerate() {
            // The request was made for one of them.
            if let Some(host) = &destination.host
                && destinations.len() > 1
            {
                name_host(&mut request.parts, host, destination);
            }
            let place = || destination.place.to_string();
            // Kept connections first. One that the server closed in the meantime gives the request
            // back, and the next one is tried.
            while let Some(way) = poll_fn(|context| {
                // There is one now or there is none.
                Poll::Ready(self.kept(destination, progress.last(), context))
            })
            .await
            {
                match over(way, at, request).await {
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
            match over(fresh, at, request).await {
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

    fn kept(
        &self,
        destination: &Destination,
        now: Instant,
        context: &mut Context<'_>,
    ) -> Option<Way> {
        if destination.http2 {
            let mut pool = self.pool.borrow_mut();
            let shared = pool.http2.get(destination)?;
            if shared.may_serve(now) {
                return Some(Way::Http2(shared.clone()));
            }
            pool.http2.remove(destination);
            return None;
        }
        let shelf = Rc::clone(self.pool.borrow().http1.get(destination)?);
        let idle = shelf.take(now, context)?;
        Some(Way::Http1(idle, shelf))
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
        let limits = Limits::new(destination, &self.settings.timeouts);
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
            let shared = Shared {
                sender,
                from,
                limits,
                usage: Rc::new(lifetime::Shared::new(Instant::now())),
            };
            let mut pool = self.pool.borrow_mut();
            pool.http2.insert(destination.clone(), shared.clone());
            return Ok(Way::Http2(shared));
        }
        let idle = http1::Idle::new(connected.stream, self.arena.clone(), from);
        let mut pool = self.pool.borrow_mut();
        let shelf = match pool.http1.get(destination) {
            Some(shelf) => Rc::clone(shelf),
            None => {
                let new = || Rc::new(Shelf::new(limits));
                let entry = pool.http1.entry(destination.clone());
                Rc::clone(entry.or_insert_with(new))
            }
        };
        Ok(Way::Http1(idle, shelf))
    }
}

async fn over(
    way: Way,
    at: usize,
    mut request: Box<UpstreamRequest>,
) -> Result<Box<Answer>, Failed> {
    match way {
        Way::Http2(mut shared) => {
            let under_way = shared.usage.begin();
            for (name, value) in std::mem::take(&mut request.more) {
                request.parts.headers.insert(name, value);
            }
            let UpstreamRequest { parts, body, .. } = *request;
            let request = Request::from_parts(*parts, body);
            let response = shared.sender.try_send_request(request).await?;
            let (parts, body) = response.into_parts();
            Ok(Box::new(Answer {
                status: parts.status,
                headers: parts.headers,
                body: AnswerBody::shared(body, under_way),
                switched: None,
                from: shared.from,
                at,
            }))
        }
        Way::Http1(idle, shelf) => {
            let from = Arc::clone(&idle.from);
            let head = http1::send(idle, request, &shelf).await;
            let head = head.map_err(|error| Failed {
                // Bytes of it were sent.
                request: None,
                source: error.into(),
            })?;
            let (parts, rest) = head.response.into_parts();
            Ok(Box::new(Answer {
                status: parts.status,
                headers: parts.headers,
                body: rest.into(),
                switched: head.switched.map(Box::new),
                from,
                at,
            }))
        }
    }
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client").finish_non_exhaustive()
    }
}

/// Asks another host for the same.
fn name_host(parts: &mut request::Parts, host: &RequestHost, destination: &Destination) {
    if !destination.http2 {
        if parts.headers.get(header::HOST) != Some(host.field()) {
            parts.headers.insert(header::HOST, host.field().clone());
        }
        return;
    }
    let mut uri = std::mem::take(&mut parts.uri).into_parts();
    let scheme = match destination.tls {
        Some(_) => Scheme::HTTPS,
        None => Scheme::HTTP,
    };
    uri.scheme.get_or_insert(scheme);
    uri.path_and_query
        .get_or_insert(PathAndQuery::from_static("/"));
    uri.authority = Some(host.authority().clone());
    parts.uri = Uri::from_parts(uri).expect("a scheme, an authority and a path are a URI");
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    #[test]
    fn another_host_is_asked_for_the_same() {
        let mut destination = Destination {
            place: Place::Address((Ipv4Addr::LOCALHOST, 80).into()),
            tls: None,
            http2: true,
            mark: None,
            host: None,
            outside: false,
            owner: None,
            terms: None,
        };
        let host = RequestHost::new("[fd00::1]:8080").expect("a host");
        for (asked, expected) in [
            ("https://a.test/p?q=1", "https://[fd00::1]:8080/p?q=1"),
            ("http://a.test", "http://[fd00::1]:8080/"),
            ("/p?q=1", "http://[fd00::1]:8080/p?q=1"),
        ] {
            let request = Request::get(asked).body(()).expect("a request");
            let (mut parts, ()) = request.into_parts();
            name_host(&mut parts, &host, &destination);
            assert_eq!(parts.uri, expected);
            assert_eq!(parts.headers.get(header::HOST), None);
        }
        destination.http2 = false;
        let request = Request::get("/p").header(header::HOST, "a.test");
        let (mut parts, ()) = request.body(()).expect("a request").into_parts();
        name_host(&mut parts, &host, &destination);
        assert_eq!(parts.uri, "/p");
        assert_eq!(parts.headers[header::HOST], "[fd00::1]:8080");
    }
}
