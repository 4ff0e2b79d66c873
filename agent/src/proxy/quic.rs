//! QUIC (RFC 9000): connections of HTTP/3, over datagrams to the port of an HTTPS listener.
//!
//! Flows in: datagrams of one address on one core. Flows out: connections whose handshake is over, to [`http3::serve`].
//!
//! Each core has a socket of its own, as for TCP, and the connections that it brings stay with their core. A client whose address
//! changes would be brought to another one by the kernel's hash. So a connection's ids tell its core, and a program at the group of
//! sockets reads them (`listen.rs`): connections survive a change of their client's address. What a client is taken for, its
//! component and the address that rules see, stays what it was when it connected.

use std::cell::Cell;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use quinn::{
    ConnectionId, ConnectionIdGenerator, Endpoint, EndpointConfig, Incoming, ServerConfig,
    TokioRuntime, TransportConfig,
};
use tokio::sync::{oneshot, watch};
use tokio::task::spawn_local;

use self::handshake::{Handshake, Handshakes};
use super::connection::{Conn, Entry, KEEPALIVE, canonical};
use super::datagram::{Seat, Seats};
use super::entrance::Counted;
use super::exchange::Exchange;
use super::http3;
use super::log::Reason;
use super::metrics::Dropped;
use super::told_certificate;
use super::worker::{Queues, Worker};
use crate::http3::Code;

mod handshake;

/// Handshakes under way on one core, above which a client has to show first that its address is its own (RFC 9000,
/// section 8.1).
const BELIEVED: usize = 64;

/// From the first datagram to the end of the handshake.
const HANDSHAKE: Duration = Duration::from_secs(10);

/// Connections of a listener that takes no more have so long for the answers that are under way.
const END: Duration = Duration::from_secs(10);

/// The same where another router has the socket as well: each of the two reads datagrams that are the other one's.
const GIVEN: Duration = Duration::from_millis(250);

/// Silence after which a client is taken for gone. Those that are there answer to probes, which are sent twice as often.
const SILENCE: Duration = Duration::from_secs(60);

/// Bytes that a client may send on a stream, and on all of them, before somebody reads; and those that are kept until a client
/// has told that it got them.
const STREAM_WINDOW: u32 = 256 * 1024;
const CONNECTION_WINDOW: u32 = 1024 * 1024;
const SEND_WINDOW: u64 = 1024 * 1024;

/// Requests of a connection at a time, and streams of one direction, of which HTTP/3 has three.
const MAX_STREAMS: u32 = 256;
const MAX_ONE_WAY: u32 = 16;

/// Clients that wait to be let in on one core, and bytes of what they have said.
const MAX_WAITING: usize = 1024;
const MAX_WAITING_BYTES: u64 = 4 << 20;

/// Bytes of a connection's id. The first two tell its core.
const ID: usize = 12;

/// A core among those that share an address.
#[derive(Clone, Copy, Debug)]
pub(super) struct Core {
    pub(super) at: u16,
    /// How many there are, one at least.
    pub(super) of: u16,
}

impl Core {
    /// The same number again, or the nearest that the core has.
    fn own(self, number: u16) -> u16 {
        let own = u32::from(number - number % self.of) + u32::from(self.at);
        // The last numbers are too few for all cores.
        u16::try_from(own).unwrap_or(self.at)
    }
}

/// Ids of connections on a core. They are random but for that.
struct Ids(Core);

impl ConnectionIdGenerator for Ids {
    fn generate_cid(&mut self) -> ConnectionId {
        let mut id = [0; ID];
        aws_lc_rs::rand::fill(&mut id)
            .expect("the library ends the process where the system has no random numbers");
        let core = self.0.own(u16::from_be_bytes([id[0], id[1]]));
        id[..2].copy_from_slice(&core.to_be_bytes());
        ConnectionId::new(&id)
    }

    fn cid_len(&self) -> usize {
        ID
    }

    fn cid_lifetime(&self) -> Option<Duration> {
        None
    }
}

/// One address on one core.
struct Port {
    worker: Rc<Worker>,
    /// Where datagrams come.
    at: SocketAddr,
    seats: Seats,
    handshakes: Handshakes,
    settings: ServerConfig,
    /// Handshakes under way.
    shaking: Cell<usize>,
    /// Whether no more is taken.
    leaving: watch::Sender<bool>,
}

/// A handshake that is under way as long as this lives.
struct Shaking(Rc<Port>);

impl Shaking {
    fn new(port: &Rc<Port>) -> Self {
        port.shaking.set(port.shaking.get() + 1);
        Self(Rc::clone(port))
    }
}

impl Drop for Shaking {
    fn drop(&mut self) {
        self.0.shaking.set(self.0.shaking.get() - 1);
    }
}

/// Serves an address until it is told to close. Its connections then end as soon as nothing is under way.
pub(super) async fn listen(
    worker: Rc<Worker>,
    socket: std::net::UdpSocket,
    (at, seats): (SocketAddr, Seats),
    core: Core,
    mut closed: oneshot::Receiver<Queues>,
) {
    let handshakes = Handshakes::new();
    let opened = settings(&handshakes).and_then(|settings| {
        let mut config = EndpointConfig::default();
        config.cid_generator(move || Box::new(Ids(core)));
        let runtime = Arc::new(TokioRuntime);
        let endpoint = Endpoint::new(config, Some(settings.clone()), socket, runtime)?;
        Ok((endpoint, settings))
    });
    let (endpoint, settings) = match opened {
        Ok(opened) => opened,
        Err(error) => {
            tracing::error!(%error, %at, "failed to serve a socket of QUIC");
            return;
        }
    };
    let port = Rc::new(Port {
        worker,
        at,
        seats,
        handshakes,
        settings,
        shaking: Cell::new(0),
        leaving: watch::Sender::new(false),
    });
    let queues = loop {
        let incoming = tokio::select! {
            biased;
            queues = &mut closed => break queues.unwrap_or(Queues::Serve),
            incoming = endpoint.accept() => incoming,
        };
        match incoming {
            Some(incoming) => port.take(incoming),
            None => break Queues::Serve,
        }
    };
    endpoint.set_server_config(None);
    port.leaving.send_replace(true);
    // What is left then has had its time.
    let end = match queues {
        Queues::Serve => END,
        Queues::Leave => GIVEN,
    };
    let _left = tokio::time::timeout(end, endpoint.wait_idle()).await;
    endpoint.close(Code::NO_ERROR.into(), b"");
}

/// Settings of an address; handshakes have their own.
fn settings(handshakes: &Handshakes) -> io::Result<ServerConfig> {
    let nobody = handshakes.nobody().map_err(io::Error::other)?;
    let mut settings = ServerConfig::with_crypto(nobody);
    let mut transport = TransportConfig::default();
    transport
        .max_concurrent_bidi_streams(MAX_STREAMS.into())
        .max_concurrent_uni_streams(MAX_ONE_WAY.into())
        .stream_receive_window(STREAM_WINDOW.into())
        .receive_window(CONNECTION_WINDOW.into())
        .send_window(SEND_WINDOW)
        .max_idle_timeout(Some(SILENCE.try_into().map_err(io::Error::other)?))
        .keep_alive_interval(Some(KEEPALIVE))
        // Datagrams of their own are not for requests (RFC 9221).
        .datagram_receive_buffer_size(None);
    settings
        .transport_config(Arc::new(transport))
        // Whoever comes is let in or sent away at once.
        .max_incoming(MAX_WAITING)
        .incoming_buffer_size_total(MAX_WAITING_BYTES);
    Ok(settings)
}

impl Port {
    /// Lets a connection in, or not.
    fn take(self: &Rc<Self>, incoming: Incoming) {
        let worker = &self.worker;
        let table = worker.table.load_full();
        let peer = canonical(incoming.remote_address());
        let local = table
            .quic(self.at)
            .map(|tcp| SocketAddr::new(self.address(&incoming, tcp.ip()), tcp.port()));
        let Some((local, bind)) = local.and_then(|local| Some((local, table.bind(local)?))) else {
            tracing::debug!(%peer, at = %self.at, "no listener at this address; refused");
            return incoming.refuse();
        };
        if self.shaking.get() >= BELIEVED && incoming.may_retry() {
            // Fails for those alone that have shown it.
            let _shown = incoming.retry();
            return;
        }
        let Some(seat) = self.seats.take() else {
            worker.metrics.dropped(Dropped::Sessions);
            return incoming.refuse();
        };
        let Some(mut conn) = Conn::new(peer, local, Entry::Gateway) else {
            return incoming.refuse();
        };
        let limit = bind.policy.as_ref();
        let limit = limit.and_then(|one| one.policy.entrance.limit);
        if let Some(limit) = limit {
            let most = limit.value.get();
            match Counted::new(bind.open(), most) {
                Some(counted) => conn.counted = Some(Rc::new(counted)),
                None => {
                    let mut exchange = Exchange::begin(worker, "quic", Arc::clone(&conn.client));
                    exchange.record.generation = table.generation;
                    let detail = format!("{most} connections to {local} are open");
                    exchange.refused(Reason::ConnectionLimit, detail);
                    return incoming.refuse();
                }
            }
        }
        // Sessions are resumed where no client is asked who it is.
        let tickets = (!bind.asks).then(|| Arc::clone(&worker.tls().ticketer));
        let (crypto, handshake) = match self.handshakes.begin(table.clone(), local, tickets) {
            Ok(begun) => begun,
            Err(error) => {
                tracing::error!(%error, "failed to begin a handshake");
                return incoming.refuse();
            }
        };
        let mut settings = self.settings.clone();
        settings.crypto = crypto;
        let accepted = incoming.accept_with(Arc::new(settings));
        let mut exchange = Exchange::begin(worker, "quic", Arc::clone(&conn.client));
        exchange.record.generation = table.generation;
        match accepted {
            Ok(connecting) => {
                let shaking = Shaking::new(self);
                spawn_local(async move {
                    let _seat: Seat = seat;
                    let port = Rc::clone(&shaking.0);
                    let _open = port.worker.opened();
                    let connected = match tokio::time::timeout(HANDSHAKE, connecting).await {
                        Ok(connected) => connected.map_err(Error::from),
                        Err(late) => Err(late.into()),
                    };
                    drop(shaking);
                    if let Some((quic, conn)) = over(connected, (conn, handshake), exchange) {
                        port.serve(quic, conn).await;
                    }
                });
            }
            // What the first datagram says may be enough.
            Err(error) => {
                let _none = over(Err(error.into()), (conn, handshake), exchange);
            }
        }
    }

    /// Where a connection came to; a socket of all addresses is told by each datagram.
    fn address(&self, incoming: &Incoming, own: IpAddr) -> IpAddr {
        match own.is_unspecified() {
            true => incoming.local_ip().map_or(own, |ip| ip.to_canonical()),
            false => own,
        }
    }

    /// Serves a connection to its end.
    async fn serve(&self, quic: quinn::Connection, conn: Conn) {
        let mut leaving = self.leaving.subscribe();
        let leaving = async move {
            if leaving.wait_for(|leaving| *leaving).await.is_err() {
                // The listener's task is gone, and this one with it.
                std::future::pending::<()>().await;
            }
        };
        http3::serve(&self.worker, quic, conn, leaving).await;
    }
}

type Error = Box<dyn std::error::Error>;

/// What a connection is known by whose handshake is over; none: it failed, and `exchange` says why.
fn over(
    connected: Result<quinn::Connection, Error>,
    (mut conn, handshake): (Conn, Arc<Handshake>),
    mut exchange: Exchange,
) -> Option<(quinn::Connection, Conn)> {
    // A connection outlives many tables.
    let asked = handshake.over();
    conn.tls = true;
    conn.sni = asked.name;
    exchange.record.host = conn.sni.as_deref().map(Into::into);
    if let Some(listener) = &asked.listener {
        exchange.listener(&listener.name);
    }
    let (quic, listener) = match (connected, asked.listener, asked.refused) {
        (_, _, Some((reason, why))) => {
            exchange.refused(reason, why);
            return None;
        }
        (Err(error), _, None) => {
            exchange.failed(Reason::TlsHandshake, &*error);
            return None;
        }
        (Ok(_), None, None) => {
            exchange.refused(Reason::NoCertificate, "no listener was chosen");
            return None;
        }
        (Ok(quic), Some(listener), None) => (quic, listener),
    };
    conn.settings.clone_from(&listener.policy);
    if let Some(clients) = &listener.clients {
        let Some(shown) = listener.certificate(conn.sni.as_deref()) else {
            exchange.refused(Reason::NoCertificate, "no certificate was chosen");
            return None;
        };
        let chain = handshake::certificates(&quic);
        let asks = (&*listener, clients);
        told_certificate::note(&mut conn, asks, chain.as_deref(), &shown.key);
    }
    exchange.forget();
    Some((quic, conn))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_tell_their_core_and_nothing_else() {
        for of in [1, 2, 3, 7, 64, 1000] {
            for at in [0, of / 2, of - 1] {
                let core = Core { at, of };
                for number in [0, 1, of - 1, of, 12_345, u16::MAX - 1, u16::MAX] {
                    assert_eq!(core.own(number) % of, at, "{number} of {core:?}");
                }
                let mut ids = Ids(core);
                let (one, two) = (ids.generate_cid(), ids.generate_cid());
                assert_ne!(one, two);
                assert_eq!(one.len(), ids.cid_len());
                assert_eq!(u16::from_be_bytes([one[0], one[1]]) % of, at);
            }
        }
    }
}
