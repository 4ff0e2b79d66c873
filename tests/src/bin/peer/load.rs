//! Requests one after the other until standard input ends: the witness that a change cost nobody anything.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use bytes::Bytes;
use clap::Args;
use http::Request;
use http_body_util::{BodyExt as _, Empty};
use hyper::client::conn::http1::SendRequest;
use hyper_util::rt::TokioIo;
use rustls_pki_types::{CertificateDer, ServerName, pem::PemObject as _};
use tests::peer::LoadReport;
use tokio::{
    io::{AsyncReadExt as _, stdin},
    net::TcpStream,
    time::timeout,
};
use tokio_rustls::TlsConnector;

/// What to request.
#[derive(Args)]
pub(crate) struct Options {
    /// The server.
    #[arg(long, value_name = "ADDR:PORT")]
    to: SocketAddr,
    /// The name of the host.
    #[arg(long)]
    host: String,
    /// The path, with a query if need be.
    #[arg(long, default_value = "/")]
    path: String,
    /// `name: value`
    #[arg(long)]
    header: Vec<String>,
    /// Use TLS and trust these certificates (PEM).
    #[arg(long)]
    ca: Option<PathBuf>,
    /// How long one request may take.
    #[arg(long, default_value_t = 30_000)]
    timeout_ms: u64,
    /// A connection serves this many requests, so that new ones are tried as well as old ones.
    #[arg(long, default_value_t = 25)]
    per_connection: u64,
    /// A field of the answer's JSON to count by.
    #[arg(long, default_value = "name")]
    by: String,
}

/// Requests until standard input ends, then prints a `LoadReport`.
pub(crate) async fn run(options: Options) -> Result<()> {
    let mut report = LoadReport {
        requests: 0,
        failed: 0,
        failures: BTreeMap::new(),
        answers: BTreeMap::new(),
        slowest_us: 0,
    };
    let mut connection = None;
    let mut ends = tokio::spawn(async {
        let mut rest = Vec::new();
        stdin().read_to_end(&mut rest).await
    });
    loop {
        if report.requests.is_multiple_of(options.per_connection) {
            connection = None;
        }
        let start = Instant::now();
        let request = timeout(
            Duration::from_millis(options.timeout_ms),
            once(&options, &mut connection),
        );
        let outcome = match request.await {
            Ok(outcome) => outcome,
            Err(_) => Err(anyhow::anyhow!("timeout")),
        };
        report.requests += 1;
        report.slowest_us = report
            .slowest_us
            .max(u64::try_from(start.elapsed().as_micros()).unwrap_or(u64::MAX));
        match outcome {
            Ok(answer) => *report.answers.entry(answer).or_default() += 1,
            Err(error) => {
                connection = None;
                report.failed += 1;
                *report.failures.entry(format!("{error:#}")).or_default() += 1;
            }
        }
        // A little air: the witness must not be what makes the machine slow.
        if timeout(Duration::from_millis(2), &mut ends).await.is_ok() {
            break;
        }
    }
    crate::print(&serde_json::to_value(report)?);
    Ok(())
}

async fn once(
    options: &Options,
    connection: &mut Option<SendRequest<Empty<Bytes>>>,
) -> Result<String> {
    let usable = match connection {
        // A server may close an idle connection at any time; the next request opens another one, as any client does.
        Some(open) => open.ready().await.is_ok(),
        None => false,
    };
    if !usable {
        *connection = Some(open(options).await?);
    }
    let Some(open) = connection else {
        bail!("no connection")
    };
    let mut request = Request::get(&options.path).header("host", &options.host);
    for header in &options.header {
        let (name, value) = header
            .split_once(':')
            .with_context(|| format!("`{header}` is no header"))?;
        request = request.header(name.trim(), value.trim());
    }
    let response = open.send_request(request.body(Empty::new())?).await?;
    let status = response.status();
    let body = response.into_body().collect().await?.to_bytes();
    if !status.is_success() {
        bail!("status {status}");
    }
    let answer: serde_json::Value = serde_json::from_slice(&body).unwrap_or_default();
    Ok(match &answer[&options.by] {
        serde_json::Value::String(text) => text.clone(),
        other => other.to_string(),
    })
}

async fn open(options: &Options) -> Result<SendRequest<Empty<Bytes>>> {
    let stream = TcpStream::connect(options.to).await?;
    stream.set_nodelay(true)?;
    match &options.ca {
        None => handshake(stream).await,
        Some(ca) => {
            let mut roots = rustls::RootCertStore::empty();
            for certificate in CertificateDer::pem_file_iter(ca)? {
                roots.add(certificate?)?;
            }
            let config = rustls::ClientConfig::builder()
                .with_root_certificates(roots)
                .with_no_client_auth();
            let name = ServerName::try_from(
                options
                    .host
                    .split(':')
                    .next()
                    .unwrap_or_default()
                    .to_owned(),
            )?;
            handshake(
                TlsConnector::from(Arc::new(config))
                    .connect(name, stream)
                    .await?,
            )
            .await
        }
    }
}

async fn handshake(
    stream: impl tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
) -> Result<SendRequest<Empty<Bytes>>> {
    let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    // The connection's own error is the request's error too, which is where it is counted.
    tokio::spawn(async move { drop(connection.await) });
    Ok(sender)
}
