//! Connections that nobody reads: from a listener of TCP or TLS to a backend of its route, byte by byte.
//!
//! A connection belongs to the table that it began with: a later one decides about later connections.

use std::cell::Cell;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use agent_common::Mark;
use snapshot::model::{Border, Gate};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::Instant;

use super::connection::Conn;
use super::exchange::Exchange;
use super::log::Reason;
use super::prefixed::Prefixed;
use super::respond::Refusal;
use super::target::in_turn;
use super::tunnel;
use super::worker::Worker;
use crate::route::stream::{StreamRoute, StreamTarget, Streams};
use crate::route::{Caller, Listener, RouteTable, TlsPeer};
use crate::upstream::{Destination, Stream};

/// Serves a connection of a TCP listener.
pub(super) async fn serve(worker: Rc<Worker>, stream: Prefixed<TcpStream>, conn: Conn) {
    let table = worker.table.load_full();
    let mut exchange = Exchange::begin(&worker, "tcp", Arc::clone(&conn.client));
    exchange.record.generation = table.generation;
    let listener = table
        .bind(conn.local)
        .and_then(|bind| bind.default_listener());
    let Some(listener) = listener.map(Arc::clone) else {
        return exchange.refused(Reason::NoListener, "no listener at this address");
    };
    relay(&worker, stream, &conn, table, &listener, &mut exchange).await;
}

/// Joins a client with a backend of the listener's route for its server name, until both have said all they had
/// to say, or neither says anything for a while.
pub(super) async fn relay<T: AsyncRead + AsyncWrite + Unpin>(
    worker: &Rc<Worker>,
    client: T,
    conn: &Conn,
    table: Arc<RouteTable>,
    listener: &Listener,
    exchange: &mut Exchange,
) {
    exchange.listener(&listener.name);
    exchange.record.direction = listener.gate.map(Gate::direction);
    let caller = worker.caller(&table, conn.peer.ip());
    exchange.record.caller = caller.map(|caller| Arc::clone(&caller.name));
    let opened = async {
        let (route, target) = chosen(worker, listener, conn.sni.as_deref(), caller)?;
        exchange.record.route = Some(Arc::clone(&route.name));
        exchange.asks();
        open(worker, &table, listener, target).await
    };
    let (upstream, peer) = match opened.await {
        Ok(opened) => opened,
        Err(refusal) => return exchange.refused(refusal.reason, refusal.detail),
    };
    exchange.answered();
    exchange.record.upstream = Some(peer.into());
    // A connection may outlive many tables.
    drop(table);
    let last = Rc::new(Cell::new(Instant::now()));
    let mut client = Watched::new(client, &last);
    let mut upstream = Watched::new(upstream, &last);
    let own = listener
        .policy
        .as_ref()
        .and_then(|one| one.policy.timeouts.tcp_idle);
    let idle = own.unwrap_or_else(|| worker.stream_idle());
    let ended = tokio::select! {
        copied = tokio::io::copy_bidirectional_with_sizes(
            &mut client,
            &mut upstream,
            tunnel::BUFFER,
            tunnel::BUFFER,
        ) => Some(copied),
        () = silence(&last, idle) => None,
    };
    exchange.record.bytes_in = client.bytes;
    exchange.record.bytes_out = upstream.bytes;
    match ended {
        Some(Ok(_)) => exchange.complete(),
        Some(Err(error)) => {
            let reason = match upstream.broken {
                true => Reason::UpstreamReset,
                false => Reason::ClientClosed,
            };
            exchange.failed(reason, &error);
        }
        None => exchange.refused(
            Reason::IdleTimeout,
            format!("nothing was sent in either direction for {idle:?}"),
        ),
    }
}

/// The route of a connection and one of its targets by weight, if its sender may come here.
pub(super) fn chosen<'a>(
    worker: &Worker,
    listener: &'a Listener,
    name: Option<&str>,
    caller: Option<&Arc<Caller>>,
) -> Result<(&'a Arc<StreamRoute>, &'a StreamTarget), Refusal> {
    if let Some(caller) = caller {
        admit(listener, caller)?;
    }
    let route = listener
        .streams
        .as_ref()
        .and_then(|streams| streams.route(name));
    let route = route.ok_or_else(|| Refusal::new(Reason::NoRoute, "the listener has no route"))?;
    let none = || Refusal::new(Reason::NoTarget, "the route has no backend with a weight");
    if route.weight == 0 {
        return Err(none());
    }
    let target = route.target(worker.random() % route.weight);
    Ok((route, target.ok_or_else(none)?))
}

/// Whether a component may use a gate: never the north one; the west one for endpoints that it declared, and a route
/// below HTTP leads to none. A cell that declares nothing about its egress may use both.
pub(super) fn admit(listener: &Listener, caller: &Caller) -> Result<(), Refusal> {
    let (reason, gate) = match listener.gate {
        _ if caller.egress == Border::Open => return Ok(()),
        None => return Ok(()),
        Some(Gate::External) => (Reason::NorthFromCell, "north"),
        Some(Gate::Internal) => (Reason::EastNotDeclared, "west"),
    };
    let detail = format!(
        "component {} came to the {gate} gate for what no cell declares",
        caller.name
    );
    Err(Refusal::new(reason, detail))
}

/// Connects to the target's upstream whose turn it is, or to the next one that takes a connection.
async fn open(
    worker: &Worker,
    table: &RouteTable,
    listener: &Listener,
    target: &StreamTarget,
) -> Result<(Stream, String), Refusal> {
    let mut last = Refusal::new(Reason::NoReadyEndpoint, "the backend has no address");
    // What is TLS already passes as it is.
    let passthrough = |streams: &Streams| streams.passthrough;
    let closed = listener.streams.as_ref().is_some_and(passthrough);
    for (place, tls) in in_turn(worker, table.generation, target.id, &target.upstreams) {
        let tls = tls.filter(|_| !closed);
        let destination = Destination {
            place,
            tls: tls.map(|tls| TlsPeer {
                http: false,
                identity: listener.identity.clone(),
                ..tls
            }),
            http2: false,
            terms: None,
            mark: worker.mark(mark(listener)),
            host: None,
            outside: false,
            owner: None,
        };
        match worker.client.tunnel(&destination, table).await {
            Ok(opened) => return Ok(opened),
            Err(error) => last = error.into(),
        }
    }
    Err(last)
}

/// As whom the router speaks to a listener's backends.
pub(super) fn mark(listener: &Listener) -> Mark {
    match listener.gate {
        Some(Gate::External) => Mark::NorthGate,
        Some(Gate::Internal) => Mark::WestGate,
        None => Mark::Upstream,
    }
}

/// Returns once `last` is longer ago than `limit`.
pub(super) async fn silence(last: &Cell<Instant>, limit: Duration) {
    loop {
        let end = last.get() + limit;
        if Instant::now() >= end {
            return;
        }
        tokio::time::sleep_until(end).await;
    }
}

/// A side of a connection: what it said, when, and whether it broke.
struct Watched<T> {
    inner: T,
    bytes: u64,
    broken: bool,
    last: Rc<Cell<Instant>>,
}

impl<T> Watched<T> {
    fn new(inner: T, last: &Rc<Cell<Instant>>) -> Self {
        Self {
            inner,
            bytes: 0,
            broken: false,
            last: Rc::clone(last),
        }
    }

    fn note<R>(&mut self, result: &io::Result<R>) {
        self.broken |= result.is_err();
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Watched<T> {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buffer.filled().len();
        let read = ready!(Pin::new(&mut this.inner).poll_read(context, buffer));
        this.note(&read);
        this.bytes += (buffer.filled().len() - before) as u64;
        this.last.set(Instant::now());
        Poll::Ready(read)
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Watched<T> {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = ready!(Pin::new(&mut this.inner).poll_write(context, bytes));
        this.note(&written);
        Poll::Ready(written)
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let flushed = ready!(Pin::new(&mut this.inner).poll_flush(context));
        this.note(&flushed);
        Poll::Ready(flushed)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let shut = ready!(Pin::new(&mut this.inner).poll_shutdown(context));
        this.note(&shut);
        Poll::Ready(shut)
    }
}
