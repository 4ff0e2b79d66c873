//! Connections that the kernel steered here: east to HTTP endpoints addressed directly, south to
//! services by name. The local address is the original destination, the peer is the caller.

use std::rc::Rc;
use std::sync::Arc;

use agent_common::Mark;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use super::client_hello::{self, NoHello};
use super::connection::{self, Codec, Conn};
use super::exchange::Exchange;
use super::log::Reason;
use super::prefixed::Prefixed;
use super::worker::Worker;
use super::{tls, tunnel};
use crate::route::{Caller, RouteTable};
use crate::upstream::{Destination, Place};

/// First byte of a TLS record that carries a handshake (RFC 8446, section 5.1).
const HANDSHAKE_RECORD: u8 = 22;

/// Decides by caller and original destination what a connection may be, and serves it.
pub(super) async fn serve(worker: Rc<Worker>, stream: TcpStream, conn: Conn) {
    let table = worker.table.load_full();
    let mut exchange = Exchange::begin(&worker, "tcp", Arc::clone(&conn.client));
    exchange.record.generation = table.generation;
    let Some(caller) = worker.caller(&table, conn.peer.ip()) else {
        let detail = format!("source of a connection to {} is no component", conn.local);
        exchange.refused(Reason::CallerUnknown, detail);
        return;
    };
    exchange.record.caller = Some(Arc::clone(&caller.name));
    exchange.record.cell = Some(Arc::clone(&caller.cell));
    let mut stream = Prefixed::new(stream);
    if table.steered(conn.local).is_some() {
        exchange.forget();
        return connection::http(worker, stream, conn, Codec::Detect).await;
    }
    exchange.record.listener = Some(worker.south_label());
    exchange.record.direction = Some("south");
    let Some(hosts) = caller.south(conn.local.port()) else {
        let detail = format!(
            "{} declared nothing by name for {}",
            caller.name, conn.local
        );
        exchange.refused(Reason::SouthNotDeclared, detail);
        return;
    };
    if hosts.tls.is_empty() {
        exchange.forget();
        return connection::http(worker, stream, conn, Codec::Detect).await;
    }
    // With plain HTTP declared for the same port the first byte tells which of the two it is.
    if !hosts.http.is_empty() {
        match tokio::time::timeout(client_hello::PATIENCE, stream.read_ahead()).await {
            Ok(Ok(read)) if read > 0 => {}
            _ => return exchange.refused(Reason::NotTls, "no first byte in time"),
        }
        if stream.ahead().first() != Some(&HANDSHAKE_RECORD) {
            exchange.forget();
            return connection::http(worker, stream, conn, Codec::Detect).await;
        }
    }
    exchange.record.protocol = "tls";
    let caller = Arc::clone(caller);
    passthrough(&worker, stream, &conn, table, caller, &mut exchange).await;
}

/// TLS that stays closed: only its server name is read.
async fn passthrough(
    worker: &Rc<Worker>,
    mut stream: Prefixed<TcpStream>,
    conn: &Conn,
    table: Arc<RouteTable>,
    caller: Arc<Caller>,
    exchange: &mut Exchange,
) {
    let port = conn.local.port();
    let hello = client_hello::read(&mut stream).await;
    let (ahead, mut client) = stream.into_parts();
    let name = match hello {
        Ok(Some(name)) => name,
        Ok(None) => {
            exchange.refused(Reason::SniNotDeclared, "ClientHello names no server");
            return tls::say(&mut client, &tls::UNRECOGNIZED_NAME).await;
        }
        Err(NoHello::Refused(why, alert)) => {
            exchange.refused(Reason::NotTls, why);
            return tls::say(&mut client, &alert).await;
        }
        Err(NoHello::Gone(error)) => return exchange.failed(Reason::ClientClosed, &error),
    };
    exchange.record.host = Some(name.as_str().into());
    let declared = caller
        .south(port)
        .and_then(|hosts| hosts.tls.get(name.as_str()));
    let Some(declared) = declared else {
        let detail = format!("{} did not declare {name}:{port}", caller.name);
        exchange.refused(Reason::SniNotDeclared, detail);
        return tls::say(&mut client, &tls::UNRECOGNIZED_NAME).await;
    };
    let destination = Destination {
        place: Place::Name(declared.clone(), port),
        tls: None,
        http2: false,
        mark: worker.mark(Mark::Upstream),
        host: None,
        outside: worker.outside(),
        owner: None,
        terms: None,
    };
    let (mut upstream, peer) = match worker.client.tunnel(&destination, &table).await {
        Ok(connected) => connected,
        Err(error) => {
            let refusal = super::respond::Refusal::from(error);
            return exchange.refused(refusal.reason, refusal.detail);
        }
    };
    // A tunnel may outlive many tables.
    drop((table, caller));
    exchange.record.upstream = Some(peer.into());
    let sent = ahead.len() as u64;
    if let Err(error) = upstream.write_all(&ahead).await {
        return exchange.failed(Reason::UpstreamReset, &error);
    }
    let copied = tokio::io::copy_bidirectional_with_sizes(
        &mut client,
        &mut upstream,
        tunnel::BUFFER,
        tunnel::BUFFER,
    );
    exchange.record.bytes_in = sent;
    let source = conn.peer.ip();
    let declared = |table: &RouteTable| {
        worker
            .caller(table, source)
            .and_then(|caller| caller.south(port))
            .is_some_and(|hosts| hosts.tls.contains_key(name.as_str()))
    };
    let copied = tokio::select! {
        copied = copied => copied,
        () = worker.forbidden(declared) => {
            let detail = format!("{name}:{port} is no longer declared");
            return exchange.refused(Reason::SniNotDeclared, detail);
        }
    };
    match copied {
        Ok((up, down)) => {
            exchange.record.bytes_in += up;
            exchange.record.bytes_out = down;
            exchange.complete();
        }
        Err(error) => exchange.failed(Reason::ClientClosed, &error),
    }
}
