//! TLS of listeners: the certificate is chosen by server name before the handshake goes on.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use rustls::ServerConfig;
use rustls::server::{Acceptor, ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use tokio::io::{AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::LazyConfigAcceptor;
use tokio_rustls::server::TlsStream;

use super::client_hello::{self, NoHello};
use super::connection::{self, Codec, Conn};
use super::exchange::Exchange;
use super::log::Reason;
use super::prefixed::Prefixed;
use super::stream;
use super::told_certificate;
use super::worker::Worker;
use crate::clock;
use crate::route::{Listener, RouteTable, ServerCertificate, Wire};

/// From the first byte to the end of the handshake.
const HANDSHAKE: Duration = Duration::from_secs(10);

/// The record of a fatal alert (RFC 8446, section 6): 21, version, length 2, level fatal, description.
const fn alert(description: u8) -> [u8; 7] {
    [21, 3, 3, 0, 2, 2, description]
}

/// "unrecognized_name", for server names that lead nowhere (RFC 6066, section 3).
pub(super) const UNRECOGNIZED_NAME: [u8; 7] = alert(112);

/// "certificate_expired": ours is, and we know.
const CERTIFICATE_EXPIRED: [u8; 7] = alert(45);

/// "access_denied": nobody gets in.
const ACCESS_DENIED: [u8; 7] = alert(49);

/// Settings of all handshakes of a process: sessions are resumed by tickets, without a shared cache.
pub(super) fn settings() -> Result<ServerConfig, rustls::Error> {
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(Fixed(None)));
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    config.ticketer = rustls::crypto::aws_lc_rs::Ticketer::new()?;
    config.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
    Ok(config)
}

/// The one provider of cryptography.
pub(super) fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

/// One certificate, chosen already.
#[derive(Debug)]
struct Fixed(Option<Arc<CertifiedKey>>);

impl ResolvesServerCert for Fixed {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.0.clone()
    }
}

/// What a listener's connection becomes.
enum Shaken {
    /// Requests follow. It is passed on from hand to hand, and is large.
    Http(Box<TlsStream<Prefixed<TcpStream>>>),
    /// Plain bytes follow, for a backend of the listener.
    Plain(Box<TlsStream<Prefixed<TcpStream>>>, Arc<Listener>),
    /// TLS goes on to a backend of the listener.
    Closed(Prefixed<TcpStream>, Arc<Listener>),
}

/// Shakes hands, or finds out with whom the client wants to, and serves what follows.
pub(super) async fn serve(worker: Rc<Worker>, stream: Prefixed<TcpStream>, mut conn: Conn) {
    let mut exchange = Exchange::begin(&worker, "tls", Arc::clone(&conn.client));
    let table = worker.table.load_full();
    let shaken = tokio::time::timeout(
        HANDSHAKE,
        handshake(&worker, &table, stream, &mut exchange, &mut conn),
    );
    let shaken = match shaken.await {
        Ok(shaken) => shaken,
        Err(_) => {
            exchange.refused(Reason::TlsHandshake, "handshake took too long");
            return;
        }
    };
    match shaken {
        None => {}
        Some(Shaken::Http(stream)) => {
            // From here on requests are what is recorded.
            exchange.forget();
            // A connection outlives many tables: each request loads its own.
            drop(table);
            let codec = match stream.get_ref().1.alpn_protocol() {
                Some(b"h2") => Codec::Http2,
                Some(_) => Codec::Http1,
                None => Codec::Detect,
            };
            connection::http(worker, Prefixed::new(stream), conn, codec).await;
        }
        Some(Shaken::Plain(client, listener)) => {
            stream::relay(&worker, client, &conn, table, &listener, &mut exchange).await;
        }
        Some(Shaken::Closed(client, listener)) => {
            stream::relay(&worker, client, &conn, table, &listener, &mut exchange).await;
        }
    }
}

async fn handshake(
    worker: &Worker,
    table: &RouteTable,
    mut stream: Prefixed<TcpStream>,
    exchange: &mut Exchange,
    conn: &mut Conn,
) -> Option<Shaken> {
    exchange.record.generation = table.generation;
    let bind = table.bind(conn.local).filter(|bind| bind.wire == Wire::Tls);
    // Where some TLS stays closed, the name is known before anything is answered. What leads to a listener of closed TLS, or
    // could lead to such ones only, is none of ours: without a route its connection is ended without a word of TLS.
    if bind.is_some_and(|bind| bind.passthrough) {
        let name = match client_hello::read(&mut stream).await {
            Ok(name) => name,
            Err(NoHello::Refused(why, alert)) => {
                exchange.refused(Reason::NotTls, why);
                say(&mut stream, &alert).await;
                return None;
            }
            Err(NoHello::Gone(error)) => {
                exchange.failed(Reason::ClientClosed, &error);
                return None;
            }
        };
        conn.sni = name;
        exchange.record.host = conn.sni.as_deref().map(Into::into);
        let listener = bind.and_then(|bind| bind.named(conn.sni.as_deref()));
        if listener.is_none() && bind.is_some_and(|bind| !bind.terminates) {
            exchange.refused(Reason::NoRoute, "no listener for the server name");
            return None;
        }
        if let Some(listener) = listener
            && let Some(streams) = listener.streams.as_ref().filter(|one| one.passthrough)
        {
            exchange.listener(&listener.name);
            if streams.route(conn.sni.as_deref()).is_none() {
                exchange.refused(Reason::NoRoute, "no route for the server name");
                return None;
            }
            return Some(Shaken::Closed(stream, Arc::clone(listener)));
        }
    }
    let start = match LazyConfigAcceptor::new(Acceptor::default(), stream).await {
        Ok(start) => start,
        Err(error) => {
            exchange.failed(Reason::TlsHandshake, &error);
            return None;
        }
    };
    conn.tls = true;
    conn.sni = start
        .client_hello()
        .server_name()
        .map(str::to_ascii_lowercase);
    exchange.record.host = conn.sni.as_deref().map(Into::into);
    let listener = bind.and_then(|bind| bind.named(conn.sni.as_deref()));
    if let Some(listener) = listener {
        exchange.listener(&listener.name);
    }
    let certificate =
        listener.and_then(|listener| Some((listener, listener.certificate(conn.sni.as_deref())?)));
    let refused = match certificate {
        None => {
            let name = conn.sni.as_deref().unwrap_or("none");
            exchange.refused(
                Reason::NoCertificate,
                format!("no listener with a certificate for server name {name}"),
            );
            UNRECOGNIZED_NAME
        }
        Some((_, certificate)) if expired(certificate) => {
            exchange.refused(
                Reason::CertificateExpired,
                format!(
                    "certificate {} expired at {}",
                    certificate.name,
                    clock::rfc3339(certificate.not_after)
                ),
            );
            CERTIFICATE_EXPIRED
        }
        Some((listener, _)) if unrouted(listener, conn.sni.as_deref()) => {
            exchange.refused(Reason::NoRoute, "no route for the server name");
            UNRECOGNIZED_NAME
        }
        Some((listener, certificate)) => {
            let own = listener.policy.as_ref().and_then(|one| one.tls.as_ref());
            let settings = match &listener.clients {
                Some(clients) => clients.settings(),
                None => Ok(own.unwrap_or_else(|| worker.tls())),
            };
            let mut config = match settings {
                Ok(settings) => settings.clone(),
                Err(why) => {
                    let why = format!("no client can be believed: {why}");
                    exchange.refused(Reason::TlsHandshake, why);
                    let mut stream = start.io;
                    say(&mut stream, &ACCESS_DENIED).await;
                    return None;
                }
            };
            if own.is_some() && listener.clients.is_none() {
                config.ticketer = Arc::clone(&worker.tls().ticketer);
                config.session_storage = Arc::clone(&worker.tls().session_storage);
            }
            config.cert_resolver = Arc::new(Fixed(Some(Arc::clone(&certificate.key))));
            let plain = listener.streams.is_some();
            let named = listener
                .policy
                .as_ref()
                .is_some_and(|one| one.policy.tls.alpn.is_some());
            if plain && !named {
                // What is inside is not known here.
                config.alpn_protocols.clear();
            }
            conn.settings.clone_from(&listener.policy);
            return match start.into_stream(Arc::new(config)).await {
                Ok(stream) if plain => Some(Shaken::Plain(Box::new(stream), Arc::clone(listener))),
                Ok(stream) => {
                    if let Some(clients) = &listener.clients {
                        let chain = stream.get_ref().1.peer_certificates();
                        let asks = (&**listener, clients);
                        told_certificate::note(conn, asks, chain, &certificate.key);
                    }
                    Some(Shaken::Http(Box::new(stream)))
                }
                Err(error) => {
                    exchange.failed(Reason::TlsHandshake, &error);
                    None
                }
            };
        }
    };
    let mut stream = start.io;
    say(&mut stream, &refused).await;
    None
}

/// Whether what comes to a listener that is not HTTP has nowhere to go.
fn unrouted(listener: &Listener, name: Option<&str>) -> bool {
    let streams = listener.streams.as_ref();
    streams.is_some_and(|streams| streams.route(name).is_none())
}

pub(super) fn expired(certificate: &ServerCertificate) -> bool {
    clock::unix_now() > certificate.not_after
}

/// Sends an alert to a client that is turned away.
pub(super) async fn say<T: AsyncWrite + Unpin>(stream: &mut T, alert: &[u8]) {
    let sent = async {
        stream.write_all(alert).await?;
        stream.shutdown().await
    };
    if let Err(error) = sent.await {
        tracing::debug!(%error, "client left before its alert");
    }
}
