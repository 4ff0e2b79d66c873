//! HTTP/3: clients of another implementation, and what the router makes of their requests.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use cardinal_agent::proxy::{AccessRecord, ProxyConfig, Reason};
use http::{Request, StatusCode};
use http_body_util::BodyExt;
use hyper_util::rt::TokioIo;
use quinn::ConnectionError;
use serde_json::json;
use tokio::net::TcpStream;

use self::client::{Client, answer, connect, endpoint, settings, surely};
use crate::auth::Issuer;
use crate::client_policy::policy;
use crate::documents::snapshot;
use crate::support::{Router, backend, echo, free_port, full, get, refs, reply, serve};
use crate::tcp_routes::{gateway, route};
use crate::tls::{Authority, Issued};

pub(crate) mod client;
mod ends;
mod hostile;

pub(crate) const HOST: &str = "a.example.com";
const MADE: &str = "2026-01-01T00:00:00Z";

/// A listener of HTTPS for [`HOST`] with a policy, `spec` in the flow style of YAML, and one route to an upstream.
pub(crate) fn documents(at: u16, front: &Issued, spec: &str, up: SocketAddr) -> String {
    let https = format!(
        "{{ name: https, port: {at}, protocol: HTTPS, tls: {{ certificateRefs: [{{ name: front }}] }} }}"
    );
    let rules = format!("rules: [{{ name: main, {} }}]", refs(&["up"]));
    [
        gateway(&[https]),
        route("HTTPRoute", "r", MADE, &rules),
        backend("up", &[up]),
        front.secret("front"),
        policy(spec),
    ]
    .concat()
}

/// The same as it runs.
pub(crate) struct World {
    pub(crate) authority: Authority,
    pub(crate) front: Issued,
    pub(crate) router: Router,
    pub(crate) at: SocketAddr,
    pub(crate) up: SocketAddr,
}

impl World {
    pub(crate) fn new(spec: &str, up: SocketAddr) -> Self {
        Self::with(spec, up, "", ProxyConfig::default())
    }

    /// With further documents.
    pub(crate) fn with(spec: &str, up: SocketAddr, more: &str, config: ProxyConfig) -> Self {
        let authority = Authority::new();
        let front = authority.issue("front", &[HOST, "b.example.com"]);
        let at = free_port();
        let text = documents(at, &front, spec, up) + more;
        Self {
            authority,
            front,
            router: Router::with(&snapshot(&text), config),
            at: (Ipv4Addr::LOCALHOST, at).into(),
            up,
        }
    }

    pub(crate) async fn client(&self) -> Client {
        Client::new(&self.authority, self.at, HOST).await
    }
}

pub(crate) fn url(path: &str) -> String {
    format!("https://{HOST}{path}")
}

/// Bytes that are not alike.
fn much() -> Bytes {
    (0..1 << 20).map(|at: u32| (at / 7 % 251) as u8).collect()
}

/// An upstream that gives back what it gets.
async fn mirror() -> SocketAddr {
    serve(|request| async move {
        let body = request.into_body().collect().await;
        let body = body.expect("the body arrives").to_bytes();
        let body = http_body_util::Full::new(body).map_err(|never| match never {});
        http::Response::new(body.boxed())
    })
    .await
}

#[tokio::test]
async fn proxy_http3_carries_requests_and_their_answers() {
    let world = World::new("http3: {}", echo("up").await);
    let client = world.client().await;
    for turn in 0..20 {
        let answer = client.get(&url("/x/y?z=1")).await;
        assert_eq!(answer.status, StatusCode::OK, "{turn}");
        let told = answer.json();
        assert_eq!(
            (&told["path"], &told["query"]),
            (&json!("/x/y"), &json!("z=1"))
        );
        assert_eq!(
            (&told["version"], &told["bytes"]),
            (&json!("HTTP/1.1"), &json!(0))
        );
        assert_eq!(answer.seen("host"), [HOST]);
        assert_eq!(answer.seen("x-forwarded-proto"), ["https"]);
        assert_eq!(answer.seen("x-forwarded-for"), ["127.0.0.1"]);
        assert!(
            answer.seen("transfer-encoding").is_empty(),
            "there is no body"
        );
        assert!(answer.header("date").is_some() && answer.header("x-request-id").is_some());
        assert_eq!(
            answer.header("alt-svc"),
            None,
            "the client is there already"
        );
    }
    let record = world.router.record(|one| one.status == 200).await;
    assert_eq!(record.protocol, "http/3");
    assert_eq!(record.listener.as_deref(), Some("default/gw/https"));
    assert_eq!(world.router.metric("proxy_connections"), 1.0);

    // Many at once, and one whose answer has no body.
    let client = Arc::new(client);
    let mut asked = tokio::task::JoinSet::new();
    for _ in 0..100 {
        let client = Arc::clone(&client);
        asked.spawn(async move { client.get(&url("/")).await.status });
    }
    assert!(asked.join_all().await.iter().all(|one| *one == 200));
    let request = Request::head(url("/")).body(Bytes::new());
    let answer = client.ask(request.expect("a request")).await;
    let answer = answer.expect("an answer");
    assert_eq!((answer.status, answer.body.len()), (StatusCode::OK, 0));
    assert!(answer.header("content-length").is_some());
}

#[tokio::test]
async fn proxy_http3_carries_bodies_both_ways() {
    let world = World::new("http3: {}", mirror().await);
    let client = world.client().await;
    let body = much();
    for length in [None, Some(body.len())] {
        let mut request = Request::post(url("/"));
        if let Some(length) = length {
            request = request.header("content-length", length);
        }
        let request = request.body(body.clone()).expect("a request");
        let answer = client.ask(request).await.expect("an answer");
        assert_eq!(answer.status, StatusCode::OK);
        assert!(answer.body == body, "{} bytes", answer.body.len());
    }
    let record = world.router.record(|one| one.bytes_out > 0).await;
    assert_eq!(record.bytes_in, 1 << 20);
    assert_eq!(record.bytes_out, 1 << 20);

    // In pieces, each sent when the one before is back.
    let stream = client
        .begin(Request::post(url("/")).body(()).expect("a request"))
        .await;
    let mut stream = stream.expect("a stream");
    for _ in 0..100 {
        let sent = stream.send_data(Bytes::from_static(b"a")).await;
        sent.expect("it is taken");
    }
    stream.finish().await.expect("it ends");
    let (answer, _) = answer(&mut stream).await.expect("an answer");
    assert_eq!(answer.body, "a".repeat(100));
}

#[tokio::test]
async fn proxy_http3_carries_calls_and_their_trailers() {
    let up = crate::grpc::server("up").await;
    let authority = Authority::new();
    let at = free_port();
    let front = authority.issue("front", &[HOST]);
    let text = documents(at, &front, "http3: {}", up).replace("HTTPRoute", "GRPCRoute");
    let _router = Router::start(&snapshot(&text));
    let client = Client::new(&authority, (Ipv4Addr::LOCALHOST, at).into(), HOST).await;
    let call = |text: &str| {
        let note = crate::grpc::note(text, 41);
        let message = prost::Message::encode_to_vec(&note);
        let head = [&[0][..], &(message.len() as u32).to_be_bytes()].concat();
        let request = Request::post(url("/shop.v1.Notes/Say"))
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .body(());
        (
            request.expect("a request"),
            Bytes::from([head, message].concat()),
        )
    };
    for (text, status) in [("", "0"), ("deny", "7")] {
        let (head, message) = call(text);
        let mut stream = client.begin(head).await.expect("a stream");
        stream.send_data(message).await.expect("it is taken");
        stream.finish().await.expect("it ends");
        let (answer, trailers) = answer(&mut stream).await.expect("an answer");
        assert_eq!(answer.status, StatusCode::OK, "{text}");
        // A call without messages says all in its head.
        let ending = trailers.unwrap_or(answer.headers);
        assert_eq!(ending["grpc-status"], status, "{text}");
        assert_eq!(answer.body.is_empty(), text == "deny");
    }
}

/// The value of `Alt-Svc` over TCP.
async fn told(world: &World, alpn: &[&str]) -> Option<String> {
    let stream = TcpStream::connect(world.at).await.expect("it listens");
    let tls = world.authority.handshake(stream, Some(HOST), alpn).await;
    let io = TokioIo::new(tls.expect("it shakes hands"));
    let answer = match alpn {
        ["h2"] => {
            let executor = hyper_util::rt::TokioExecutor::new();
            let http = hyper::client::conn::http2::handshake(executor, io).await;
            let (mut sender, connection) = http.expect("a connection");
            tokio::spawn(connection);
            sender.send_request(get(&url("/"))).await
        }
        _ => {
            let http = hyper::client::conn::http1::handshake(io).await;
            let (mut sender, connection) = http.expect("a connection");
            tokio::spawn(connection);
            let mut request = get("/");
            let host = http::HeaderValue::from_static(HOST);
            request.headers_mut().insert("host", host);
            sender.send_request(request).await
        }
    };
    let answer = reply(answer.expect("an answer")).await;
    assert_eq!(answer.status, StatusCode::OK);
    answer.header("alt-svc").map(str::to_owned)
}

#[tokio::test]
async fn proxy_http3_is_told_to_clients_over_tcp() {
    let up = serve(|_| async {
        let mut answer = http::Response::new(full("x".into()));
        let value = http::HeaderValue::from_static("h3=\":1\"");
        answer.headers_mut().insert("alt-svc", value);
        answer
    })
    .await;
    let own = World::new("http3: {}", up);
    let other = World::new("http3: { advertisedPort: 8443 }", up);
    let none = World::new("http2: {}", up);
    let port = own.at.port();
    for alpn in [&["h2"][..], &["http/1.1"]] {
        let expected = format!("h3=\":{port}\"; ma=86400");
        assert_eq!(told(&own, alpn).await, Some(expected));
        let expected = "h3=\":8443\"; ma=86400".to_owned();
        assert_eq!(told(&other, alpn).await, Some(expected));
        assert_eq!(told(&none, alpn).await, Some("h3=\":1\"".to_owned()));
    }
    // Without the policy nobody answers datagrams.
    let endpoint = endpoint();
    let settings = quick(settings(none.authority.roots(), None, b"h3"));
    let refused = connect(&endpoint, settings, none.at, HOST).await;
    refused.expect_err("nobody is there");
}

/// A client that waits a second for the first answer.
fn quick(mut settings: quinn::ClientConfig) -> quinn::ClientConfig {
    let mut transport = quinn::TransportConfig::default();
    let second = Duration::from_secs(1).try_into().expect("it is short");
    transport.max_idle_timeout(Some(second));
    settings.transport_config(Arc::new(transport));
    settings
}

#[tokio::test]
async fn proxy_http3_chooses_listeners_by_server_name() {
    let authority = Authority::new();
    let up = echo("up").await;
    let at = free_port();
    let names = ["a.example.com", "b.example.com", "c.example.com"];
    let listeners: Vec<_> = names
        .iter()
        .map(|name| {
            let short = &name[..1];
            format!("{{ name: {short}, port: {at}, hostname: {name}, protocol: HTTPS, tls: {{ certificateRefs: [{{ name: {short} }}] }} }}")
        })
        .collect();
    let of = |called: &str, section: &str| {
        policy("http3: {}")
            .replace("name: p ", &format!("name: {called} "))
            .replace(
                "name: gw }",
                &format!("name: gw, sectionName: {section} }}"),
            )
    };
    let mut text = gateway(&listeners);
    text += &route(
        "HTTPRoute",
        "r",
        MADE,
        &format!("rules: [{{ {} }}]", refs(&["up"])),
    );
    text += &backend("up", &[up]);
    for name in names {
        text += &authority.secret(&name[..1], &[name]);
    }
    // The third has none.
    text += &of("p", "a");
    text += &of("q", "b");
    let router = Router::start(&snapshot(&text));
    let at = (Ipv4Addr::LOCALHOST, at).into();
    for name in &names[..2] {
        let client = Client::new(&authority, at, name).await;
        let identity = client.quic.peer_identity().expect("it showed one");
        let chain = identity.downcast::<Vec<rustls_pki_types::CertificateDer<'static>>>();
        let shown = chain.expect("certificates")[0].to_vec();
        let shown = String::from_utf8_lossy(&shown).into_owned();
        assert!(shown.contains(name), "the certificate is of that name");
        assert_eq!(client.get(&format!("https://{name}/")).await.status, 200);
        for other in names.iter().filter(|other| *other != name) {
            let answer = client.get(&format!("https://{other}/")).await;
            assert_eq!(answer.status, StatusCode::MISDIRECTED_REQUEST);
        }
    }
    for name in ["c.example.com", "nobody.example.com"] {
        let settings = settings(authority.roots(), None, b"h3");
        let refused = connect(&endpoint(), settings, at, name).await;
        refused.expect_err("there is no listener for it");
        let told = |one: &AccessRecord| one.protocol == "quic" && one.host.as_deref() == Some(name);
        let record = router.record(told).await;
        assert_eq!(record.reason, Reason::NoCertificate);
    }
    let wrong = settings(authority.roots(), None, b"h2");
    let refused = connect(&endpoint(), wrong, at, names[0]).await;
    refused.expect_err("HTTP/3 is all that is spoken");
    router.reason(Reason::TlsHandshake).await;
}

#[tokio::test]
async fn proxy_http3_renews_certificates_under_handshakes() {
    let world = World::new("http3: {}", echo("up").await);
    let stop = Arc::new(AtomicBool::new(false));
    let count = Arc::new(AtomicUsize::new(0));
    let mut clients = Vec::new();
    for _ in 0..3 {
        let (stop, count) = (Arc::clone(&stop), Arc::clone(&count));
        let settings = settings(world.authority.roots(), None, b"h3");
        let at = world.at;
        clients.push(tokio::spawn(async move {
            while !stop.load(Ordering::Relaxed) {
                let client = Client::with(settings.clone(), at, HOST).await;
                let client = client.expect("no handshake fails");
                assert_eq!(client.get(&url("/")).await.status, 200);
                count.fetch_add(1, Ordering::Relaxed);
            }
        }));
    }
    let kept = world.client().await;
    for generation in 2..8 {
        let before = count.load(Ordering::Relaxed);
        let front = world.authority.issue("front", &[HOST]);
        let text = documents(world.at.port(), &front, "http3: {}", world.up);
        world.router.publish(&snapshot(&text), generation);
        surely(async {
            while count.load(Ordering::Relaxed) < before + 6 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
        .await;
        let client = world.client().await;
        let shown = client.quic.peer_identity().expect("it showed one");
        let shown = shown.downcast::<Vec<rustls_pki_types::CertificateDer<'static>>>();
        assert_eq!(*shown.expect("certificates"), front.chain());
        assert_eq!(kept.get(&url("/")).await.status, 200);
    }
    stop.store(true, Ordering::Relaxed);
    for client in clients {
        client.await.expect("it was served");
    }
}

#[tokio::test]
async fn proxy_http3_asks_for_tokens_as_ever() {
    let issuer = Issuer::named("one");
    let jwt = format!(
        "---
apiVersion: gateway.envoyproxy.io/v1alpha1
kind: SecurityPolicy
metadata: {{ name: s }}
spec:
  targetRefs: [{{ group: gateway.networking.k8s.io, kind: HTTPRoute, name: r }}]
  jwt: {{ providers: [{{ name: idp, localJWKS: {{ inline: '{}' }} }}] }}
",
        issuer.jwks()
    );
    let up = echo("up").await;
    let world = World::with("http3: {}", up, &jwt, ProxyConfig::default());
    let client = world.client().await;
    let refused = client.get(&url("/")).await;
    assert_eq!(refused.status, StatusCode::UNAUTHORIZED);
    world.router.reason(Reason::JwtMissing).await;
    let request = Request::post(url("/"))
        .header("authorization", "Bearer x.y.z")
        .body(much())
        .expect("a request");
    let refused = client.ask(request).await;
    // The body is not wanted: an answer, or a client that minds.
    if let Ok(refused) = refused {
        assert_eq!(refused.status, StatusCode::UNAUTHORIZED);
    }
    world.router.reason(Reason::JwtInvalid).await;
    let token = issuer.token(json!({ "sub": "somebody" }));
    let request = Request::get(url("/"))
        .header("authorization", format!("Bearer {token}"))
        .body(Bytes::new())
        .expect("a request");
    let answer = client.ask(request).await.expect("an answer");
    assert_eq!(answer.status, StatusCode::OK);
}

#[tokio::test]
async fn proxy_http3_asks_clients_for_certificates() {
    let clients = Authority::new();
    let authorities = crate::upstream_tls::config_map("clients", &[&clients]);
    let spec = "http3: {}, tls: { clientValidation: { caCertificateRefs: [{ kind: ConfigMap, group: '', name: clients }] } }";
    let up = echo("up").await;
    let world = World::with(spec, up, &authorities, ProxyConfig::default());
    let own = clients.issue("somebody", &["somebody.example"]);
    let strange = Authority::new().issue("somebody", &["somebody.example"]);
    let roots = || world.authority.roots();
    let client = Client::with(settings(roots(), Some(&own), b"h3"), world.at, HOST).await;
    let client = client.expect("it is believed");
    assert_eq!(client.get(&url("/")).await.status, 200);
    for other in [None, Some(&strange)] {
        let endpoint = endpoint();
        let settings = settings(roots(), other, b"h3");
        let connected = connect(&endpoint, settings, world.at, HOST).await;
        // The client is told once it is done with its own part.
        let error = match connected {
            Ok(quic) => surely(quic.closed()).await,
            Err(error) => error,
        };
        assert!(
            matches!(error, ConnectionError::ConnectionClosed(_)),
            "{error}"
        );
    }
    world.router.reason(Reason::TlsHandshake).await;
}
