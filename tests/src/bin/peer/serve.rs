//! Servers: HTTP that answers with what it saw, echoes by TCP and UDP, DNS from a table.

use std::{
    collections::BTreeMap,
    convert::Infallible,
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, Result};
use bytes::Bytes;
use clap::Args;
use http_body_util::{BodyExt as _, Full};
use hyper::{Request, Response, StatusCode, body::Incoming, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _};
use serde_json::json;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::{TcpListener, TcpStream, UdpSocket},
    task::JoinSet,
};
use tokio_rustls::TlsAcceptor;

use crate::{dns, print};

/// Sockets to serve on. Every option but the name may be given many times.
#[derive(Args)]
pub(crate) struct Options {
    /// The name that answers carry.
    #[arg(long)]
    name: String,
    /// HTTP/1.1 and HTTP/2 (prior knowledge) without TLS.
    #[arg(long, value_name = "ADDR:PORT")]
    http: Vec<SocketAddr>,
    /// The same with TLS.
    #[arg(long, value_name = "ADDR:PORT", requires_all = ["cert", "key"])]
    https: Vec<SocketAddr>,
    /// Certificate chain for --https, PEM.
    #[arg(long)]
    cert: Option<PathBuf>,
    /// Private key for --https, PEM.
    #[arg(long)]
    key: Option<PathBuf>,
    /// Echo by TCP.
    #[arg(long, value_name = "ADDR:PORT")]
    tcp: Vec<SocketAddr>,
    /// Echo by UDP.
    #[arg(long, value_name = "ADDR:PORT")]
    udp: Vec<SocketAddr>,
    /// DNS by UDP and TCP.
    #[arg(long, value_name = "ADDR:PORT", requires = "zone")]
    dns: Vec<SocketAddr>,
    /// The table for --dns: a JSON object from names to lists of addresses.
    #[arg(long)]
    zone: Option<PathBuf>,
}

/// Opens every socket, says that it is ready, and serves until one of them fails.
pub(crate) async fn run(options: Options) -> Result<()> {
    let name: Arc<str> = options.name.into();
    let mut servers: JoinSet<Result<()>> = JoinSet::new();
    for address in options.http {
        servers.spawn(http(name.clone(), listen(address).await?, None));
    }
    if let (Some(cert), Some(key)) = (&options.cert, &options.key) {
        let tls = acceptor(cert, key)?;
        for address in options.https {
            servers.spawn(http(
                name.clone(),
                listen(address).await?,
                Some(tls.clone()),
            ));
        }
    }
    for address in options.tcp {
        servers.spawn(tcp(listen(address).await?));
    }
    for address in options.udp {
        servers.spawn(udp(bind(address).await?));
    }
    if let Some(zone) = &options.zone {
        let text = fs::read_to_string(zone)
            .with_context(|| format!("failed to read {}", zone.display()))?;
        let zone: dns::Zone = serde_json::from_str(&text)
            .with_context(|| format!("{} is not a zone", zone.display()))?;
        let zone = Arc::new(zone);
        for address in options.dns {
            servers.spawn(dns::serve_udp(zone.clone(), bind(address).await?));
            servers.spawn(dns::serve_tcp(zone.clone(), listen(address).await?));
        }
    }
    print(&json!({"event": "ready"}));
    match servers.join_next().await {
        Some(ended) => ended.context("a server panicked")?,
        None => Ok(()),
    }
}

async fn listen(address: SocketAddr) -> Result<TcpListener> {
    TcpListener::bind(address)
        .await
        .with_context(|| format!("failed to listen on tcp {address}"))
}

async fn bind(address: SocketAddr) -> Result<UdpSocket> {
    UdpSocket::bind(address)
        .await
        .with_context(|| format!("failed to listen on udp {address}"))
}

fn acceptor(cert: &Path, key: &Path) -> Result<TlsAcceptor> {
    let chain = CertificateDer::pem_file_iter(cert)
        .and_then(Iterator::collect)
        .with_context(|| format!("failed to read certificates of {}", cert.display()))?;
    let key = PrivateKeyDer::from_pem_file(key)
        .with_context(|| format!("failed to read the key {}", key.display()))?;
    let mut config = rustls::ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(chain, key)?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(config)))
}

/// What the connection says of every request on it.
#[derive(Clone)]
struct Connection {
    name: Arc<str>,
    port: u16,
    from: SocketAddr,
    sni: Option<String>,
}

async fn http(name: Arc<str>, listener: TcpListener, tls: Option<TlsAcceptor>) -> Result<()> {
    let port = listener.local_addr()?.port();
    loop {
        let (stream, from) = listener.accept().await?;
        let tls = tls.clone();
        let mut connection = Connection {
            name: name.clone(),
            port,
            from,
            sni: None,
        };
        tokio::spawn(async move {
            match tls {
                None => requests(stream, connection).await,
                Some(tls) => match tls.accept(stream).await {
                    Ok(stream) => {
                        connection.sni = stream.get_ref().1.server_name().map(str::to_owned);
                        requests(stream, connection).await;
                    }
                    Err(error) => print(
                        &json!({"event": "tls-failed", "from": from.to_string(), "error": error.to_string()}),
                    ),
                },
            }
        });
    }
}

async fn requests(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    connection: Connection,
) {
    let from = connection.from;
    let service = service_fn(move |request| answer(connection.clone(), request));
    let served = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new())
        .serve_connection(TokioIo::new(stream), service)
        .await;
    if let Err(error) = served {
        print(
            &json!({"event": "connection-failed", "from": from.to_string(), "error": error.to_string()}),
        );
    }
}

/// Answers with what was seen. The query may ask for another status (`peer-status=503`) or for time (`peer-delay-ms=50`).
async fn answer(
    connection: Connection,
    request: Request<Incoming>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let (head, body) = request.into_parts();
    let body = match body.collect().await {
        Ok(body) => body.to_bytes(),
        Err(error) => {
            print(&json!({"event": "body-failed", "error": error.to_string()}));
            Bytes::new()
        }
    };
    let query = head.uri.query().unwrap_or_default();
    let asked = |name: &str| {
        query.split('&').find_map(|pair| {
            pair.strip_prefix(name)?
                .strip_prefix('=')?
                .parse::<u16>()
                .ok()
        })
    };
    if let Some(delay) = asked("peer-delay-ms") {
        tokio::time::sleep(Duration::from_millis(delay.into())).await;
    }
    let mut headers: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for (name, value) in &head.headers {
        headers
            .entry(name.as_str())
            .or_default()
            .push(String::from_utf8_lossy(value.as_bytes()).into_owned());
    }
    let host = head
        .uri
        .authority()
        .map(ToString::to_string)
        .or_else(|| headers.get("host")?.first().cloned());
    let seen = json!({
        "name": &*connection.name,
        "port": connection.port,
        "from": connection.from.to_string(),
        "sni": connection.sni,
        "method": head.method.as_str(),
        "path": head.uri.path(),
        "query": head.uri.query(),
        "host": host,
        "version": format!("{:?}", head.version),
        "headers": headers,
        "body": String::from_utf8_lossy(&body),
    });
    print(
        &json!({"event": "request", "path": head.uri.path(), "from": connection.from.to_string()}),
    );
    let mut response = Response::new(Full::new(Bytes::from(format!("{seen}\n"))));
    if let Some(status) = asked("peer-status").and_then(|status| StatusCode::from_u16(status).ok())
    {
        *response.status_mut() = status;
    }
    response.headers_mut().insert(
        "content-type",
        http::HeaderValue::from_static("application/json"),
    );
    Ok(response)
}

async fn tcp(listener: TcpListener) -> Result<()> {
    loop {
        let (stream, from) = listener.accept().await?;
        print(&json!({"event": "tcp", "from": from.to_string()}));
        tokio::spawn(async move {
            if let Err(error) = echo(stream).await {
                print(
                    &json!({"event": "tcp-failed", "from": from.to_string(), "error": error.to_string()}),
                );
            }
        });
    }
}

async fn echo(mut stream: TcpStream) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let mut buffer = vec![0; 16 * 1024];
    loop {
        match stream.read(&mut buffer).await? {
            0 => return Ok(()),
            n => stream.write_all(&buffer[..n]).await?,
        }
    }
}

async fn udp(socket: UdpSocket) -> Result<()> {
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let (n, from) = socket.recv_from(&mut buffer).await?;
        print(
            &json!({"event": "udp", "from": from.to_string(), "text": String::from_utf8_lossy(&buffer[..n])}),
        );
        // A reply that cannot be sent (a spoofed source has no route) is not the server's failure.
        if let Err(error) = socket.send_to(&buffer[..n], from).await {
            print(
                &json!({"event": "udp-failed", "from": from.to_string(), "error": error.to_string()}),
            );
        }
    }
}
