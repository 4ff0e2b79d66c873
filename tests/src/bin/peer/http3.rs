//! A client of HTTP/3 that asks once.

use std::{
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use bytes::Buf as _;
use clap::Args;
use quinn::crypto::rustls::QuicClientConfig;
use rustls_pki_types::{CertificateDer, pem::PemObject as _};
use tests::peer::Outcome;
use tokio::time::timeout;

/// Whom to ask for what.
#[derive(Args)]
pub(crate) struct Options {
    /// The server.
    #[arg(long, value_name = "ADDR:PORT")]
    to: SocketAddr,
    /// Its name.
    #[arg(long)]
    host: String,
    /// Whom to believe that it has the name, PEM.
    #[arg(long)]
    ca: PathBuf,
    /// What is asked for.
    #[arg(long, default_value = "/")]
    path: String,
    /// How long to wait for all of it.
    #[arg(long, default_value_t = 3000)]
    timeout_ms: u64,
}

/// Prints an [`Outcome`]: the status is its detail, and the body the answer.
pub(crate) async fn ask(options: Options) -> Result<()> {
    let settings = settings(&options.ca)?;
    let start = Instant::now();
    let patience = Duration::from_millis(options.timeout_ms);
    let outcome = match timeout(patience, get(&options, settings)).await {
        Err(_) => Outcome::new("timeout", start.elapsed()),
        Ok(Err(error)) => Outcome {
            detail: format!("{error:#}"),
            ..Outcome::new("error", start.elapsed())
        },
        Ok(Ok((status, answer))) => Outcome {
            detail: status.to_string(),
            answer,
            ..Outcome::new("answer", start.elapsed())
        },
    };
    crate::print(&serde_json::to_value(outcome)?);
    Ok(())
}

fn settings(ca: &Path) -> Result<quinn::ClientConfig> {
    let mut roots = rustls::RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(ca)? {
        roots.add(certificate?)?;
    }
    let mut config =
        rustls::ClientConfig::builder_with_protocol_versions(&[&rustls::version::TLS13])
            .with_root_certificates(roots)
            .with_no_client_auth();
    config.alpn_protocols = vec![b"h3".to_vec()];
    let config = QuicClientConfig::try_from(config)?;
    Ok(quinn::ClientConfig::new(Arc::new(config)))
}

async fn get(options: &Options, settings: quinn::ClientConfig) -> Result<(u16, String)> {
    let any = match options.to {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    let endpoint = quinn::Endpoint::client(any)?;
    let connecting = endpoint.connect_with(settings, options.to, &options.host)?;
    let quic = connecting.await.context("no connection of QUIC")?;
    let http = h3_quinn::Connection::new(quic);
    let (mut driver, mut send) = h3::client::new(http).await?;
    let asked = async {
        let url = format!("https://{}{}", options.host, options.path);
        let mut stream = send.send_request(http::Request::get(url).body(())?).await?;
        stream.finish().await?;
        let status = stream.recv_response().await?.status().as_u16();
        let mut body = Vec::new();
        while let Some(mut part) = stream.recv_data().await? {
            let length = part.remaining();
            body.extend_from_slice(&part.copy_to_bytes(length));
        }
        Ok((status, String::from_utf8_lossy(&body).into_owned()))
    };
    tokio::select! {
        answer = asked => answer,
        error = std::future::poll_fn(|context| driver.poll_close(context)) => {
            Err(error).context("the connection ended")
        }
    }
}
