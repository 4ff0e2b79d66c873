//! What a listener's policy asks of a connection before anything is read of it: that there is room, and whose it is.

use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use snapshot::model::Keepalive;
use socket2::{SockRef, TcpKeepalive};
use tokio::net::TcpStream;

use super::connection::Conn;
use super::exchange::Exchange;
use super::log::Reason;
use super::prefixed::Prefixed;
use super::proxy_header;
use super::worker::Worker;
use crate::route::client::ClientSettings;

/// A connection that counts among those of its port as long as this lives.
#[derive(Debug)]
pub(super) struct Counted(Arc<AtomicUsize>);

impl Counted {
    /// Counts one more, unless there are `most` already.
    pub(super) fn new(open: &Arc<AtomicUsize>, most: usize) -> Option<Self> {
        let before = open.fetch_add(1, Ordering::Relaxed);
        // Dropping it takes it back.
        let counted = Self(Arc::clone(open));
        (before < most).then_some(counted)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Lets a connection in, or says in the log why not. `open` counts those of its port.
pub(super) async fn enter(
    worker: &Rc<Worker>,
    settings: &Arc<ClientSettings>,
    open: &Arc<AtomicUsize>,
    stream: &mut Prefixed<TcpStream>,
    conn: &mut Conn,
) -> bool {
    let entrance = &settings.policy.entrance;
    let generation = worker.table.load().generation;
    let refused = |conn: &Conn, reason, detail: String| {
        let mut exchange = Exchange::begin(worker, "tcp", Arc::clone(&conn.client));
        exchange.record.generation = generation;
        exchange.refused(reason, detail);
    };
    if let Some(limit) = entrance.limit {
        let most = limit.value.get();
        match Counted::new(open, most) {
            Some(counted) => conn.counted = Some(Rc::new(counted)),
            None => {
                let detail = format!("{most} connections to {} are open", conn.local);
                refused(conn, Reason::ConnectionLimit, detail);
                tokio::time::sleep(limit.close_delay).await;
                return false;
            }
        }
    }
    if let Some(keepalive) = &entrance.keepalive {
        let set = SockRef::from(stream.get_ref()).set_tcp_keepalive(&probes(keepalive));
        if let Err(error) = set {
            tracing::debug!(%error, peer = %conn.peer, "failed to set keep-alive of a connection");
        }
    }
    if entrance.proxy_protocol {
        match proxy_header::read(stream).await {
            Ok(Some(source)) => conn.comes_from(source),
            Ok(None) => {}
            Err(error) => {
                refused(conn, Reason::ProxyHeader, crate::causes::chain(&error));
                return false;
            }
        }
    }
    conn.settings = Some(Arc::clone(settings));
    true
}

fn probes(keepalive: &Keepalive) -> TcpKeepalive {
    let mut probes = TcpKeepalive::new();
    if let Some(idle) = keepalive.idle {
        probes = probes.with_time(idle);
    }
    if let Some(interval) = keepalive.interval {
        probes = probes.with_interval(interval);
    }
    if let Some(count) = keepalive.probes {
        probes = probes.with_retries(count.get());
    }
    probes
}
