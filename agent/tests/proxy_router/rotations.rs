//! Certificates of a listener, renewed under handshakes that never stop. `CARDINAL_ROTATIONS` sets how often; `cargo xtask
//! test --long` has a thousand.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use cardinal_agent::compile::route::compile;
use http::StatusCode;
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls::client::Resumption;
use rustls_pki_types::{CertificateDer, ServerName};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::documents::snapshot;
use crate::support::{Router, backend, echo, free_port, get, refs, reply};
use crate::tls::{Authority, Issued};

/// Rounds unless the environment says otherwise.
const ROUNDS: u64 = 8;

const CLIENTS: usize = 4;

fn rounds() -> u64 {
    match std::env::var("CARDINAL_ROTATIONS") {
        Ok(text) => text.parse().expect("CARDINAL_ROTATIONS is a number"),
        Err(_) => ROUNDS,
    }
}

fn documents(port: u16, up: SocketAddr, certificate: &Issued) -> String {
    format!(
        "
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {{ name: gw }}
spec:
  gatewayClassName: cardinal
  addresses: [{{ value: 127.0.0.1 }}]
  listeners: [{{ name: https, port: {port}, protocol: HTTPS, tls: {{ certificateRefs: [{{ name: front }}] }} }}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {{ name: r }}
spec: {{ parentRefs: [{{ name: gw }}], rules: [{{ {} }}] }}
{}{}",
        refs(&["up"]),
        backend("up", &[up]),
        certificate.secret("front")
    )
}

/// Clients that take what was given them to resume with, or do without.
fn client(authority: &Authority, resumes: bool) -> Arc<ClientConfig> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_root_certificates(authority.roots())
        .with_no_client_auth();
    if !resumes {
        config.resumption = Resumption::disabled();
    }
    Arc::new(config)
}

async fn shake(port: u16, config: &Arc<ClientConfig>) -> TlsStream<TcpStream> {
    let stream = TcpStream::connect(("127.0.0.1", port)).await;
    let name = ServerName::try_from("front.example").expect("a name");
    let shaken = TlsConnector::from(Arc::clone(config))
        .connect(name, stream.expect("it listens"))
        .await;
    shaken.expect("no handshake fails")
}

/// Shakes hands and asks, over and over.
async fn run(port: u16, config: Arc<ClientConfig>, stop: Arc<AtomicBool>, count: Arc<AtomicU64>) {
    while !stop.load(Ordering::Relaxed) {
        let stream = shake(port, &config).await;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .expect("a connection");
        tokio::spawn(connection);
        let mut request = get("/");
        let host = http::HeaderValue::from_static("front.example");
        request.headers_mut().insert("host", host);
        let answer = sender.send_request(request).await.expect("an answer");
        assert_eq!(reply(answer).await.status, StatusCode::OK);
        count.fetch_add(1, Ordering::Relaxed);
    }
}

#[tokio::test]
async fn proxy_renews_certificates_without_a_failed_handshake() {
    let authority = Authority::new();
    let (port, up) = (free_port(), echo("up").await);
    let issue = || authority.issue("front", &["front.example"]);
    let first = snapshot(&documents(port, up, &issue()));
    let router = Router::start(&first);
    let stop = Arc::new(AtomicBool::new(false));
    let (mut clients, mut counts) = (Vec::new(), Vec::new());
    for number in 0..CLIENTS {
        let count = Arc::new(AtomicU64::new(0));
        counts.push(Arc::clone(&count));
        let config = client(&authority, number % 2 == 0);
        clients.push(tokio::spawn(run(port, config, Arc::clone(&stop), count)));
    }
    let fresh = client(&authority, false);
    for round in 0..rounds() {
        let next = issue();
        let table = compile(&snapshot(&documents(port, up, &next)), round + 2);
        let table = table.expect("it compiles");
        table.adopt(&router.table.load());
        let before: Vec<u64> = counts
            .iter()
            .map(|one| one.load(Ordering::Relaxed))
            .collect();
        router.table.store(Arc::new(table));
        // Whoever comes now is shown the new one.
        let stream = shake(port, &fresh).await;
        let shown: &[CertificateDer<'_>] = stream.get_ref().1.peer_certificates().expect("one");
        assert_eq!(shown, next.chain(), "round {round}");
        // Everybody shook hands in this round, or its task ended with what went wrong.
        let all = || {
            let pairs = counts.iter().zip(&before);
            pairs
                .into_iter()
                .all(|(now, then)| now.load(Ordering::Relaxed) > *then)
        };
        while !all() && !clients.iter().any(|one| one.is_finished()) {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        assert!(all(), "a client gave up in round {round}");
    }
    stop.store(true, Ordering::Relaxed);
    for client in clients {
        client.await.expect("no handshake failed");
    }
}
