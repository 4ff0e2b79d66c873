//! TLS of listeners: the certificate is chosen by server name before the handshake goes on.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use rustls::ServerConfig;
use rustls::server::{Acceptor, ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio_rustls::LazyConfigAcceptor;

use super::connection::{self, Codec, Conn};
use super::exchange::Exchange;
use super::log::Reason;
use super::prefixed::Prefixed;
use super::worker::Worker;
use crate::clock;
use crate::route::ServerCertificate;

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

/// Shakes hands and serves what follows.
pub(super) async fn serve(worker: Rc<Worker>, stream: TcpStream, mut conn: Conn) {
    let mut exchange = Exchange::begin(&worker, "tls", conn.peer.to_string());
    let shaken = tokio::time::timeout(
        HANDSHAKE,
        handshake(&worker, stream, &mut exchange, &mut conn),
    );
    let shaken = match shaken.await {
        Ok(shaken) => shaken,
        Err(_) => {
            exchange.refused(Reason::TlsHandshake, "handshake took too long");
            return;
        }
    };
    let Some(stream) = shaken else {
        return;
    };
    // From here on requests are what is recorded.
    exchange.forget();
    let codec = match stream.get_ref().1.alpn_protocol() {
        Some(b"h2") => Codec::Http2,
        Some(_) => Codec::Http1,
        None => Codec::Detect,
    };
    connection::http(worker, Prefixed::new(stream), conn, codec).await;
}

async fn handshake(
    worker: &Worker,
    stream: TcpStream,
    exchange: &mut Exchange,
    conn: &mut Conn,
) -> Option<tokio_rustls::server::TlsStream<TcpStream>> {
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
    exchange.record.host.clone_from(&conn.sni);
    let table = worker.table.load_full();
    exchange.record.generation = table.generation;
    let bind = table.bind(conn.local).filter(|bind| bind.tls);
    let listener = bind.and_then(|bind| match conn.sni.as_deref() {
        Some(name) => bind.listener(name),
        None => bind.default_listener(),
    });
    if let Some(listener) = listener {
        exchange.listener(&listener.name);
    }
    let certificate = listener.and_then(|listener| listener.certificate(conn.sni.as_deref()));
    let refused = match certificate {
        None => {
            let name = conn.sni.as_deref().unwrap_or("none");
            exchange.refused(
                Reason::NoCertificate,
                format!("no listener with a certificate for server name {name}"),
            );
            UNRECOGNIZED_NAME
        }
        Some(certificate) if expired(certificate) => {
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
        Some(certificate) => {
            let mut config = ServerConfig::clone(worker.tls());
            config.cert_resolver = Arc::new(Fixed(Some(Arc::clone(&certificate.key))));
            drop(table);
            return match start.into_stream(Arc::new(config)).await {
                Ok(stream) => Some(stream),
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

fn expired(certificate: &ServerCertificate) -> bool {
    clock::unix_now() > certificate.not_after
}

/// Sends an alert to a client that is turned away.
pub(super) async fn say(stream: &mut TcpStream, alert: &[u8]) {
    let sent = async {
        stream.write_all(alert).await?;
        stream.shutdown().await
    };
    if let Err(error) = sent.await {
        tracing::debug!(%error, "client left before its alert");
    }
}
