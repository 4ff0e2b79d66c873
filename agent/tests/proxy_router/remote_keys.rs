//! Key sets that are fetched while requests are served: rotation, failures, TLS, and who waits for nothing.

use std::sync::Arc;
use std::sync::atomic::{AtomicU16, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use cardinal_agent::compile::route::compile;
use cardinal_agent::keys::Limits;
use cardinal_agent::proxy::{ProxyConfig, Reason};
use http::{Request, Response};
use rcgen::{CertificateParams, KeyPair};
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use serde_json::{Value, json};
use snapshot::model::{
    Auth, Authorization, Decision, JwtProvider, KeyUri, ProviderKeys, RemoteKeys, UpstreamHost,
};
use std::sync::Mutex;

use crate::access::{SHOP, metrics, policy, world};
use crate::auth::Issuer;
use crate::support::{
    Body, Reply, Router, echo, free_port, full, get, plain, port, prefix, route, rule, send, serve,
    to,
};

/// A server of a key set that counts, and whose set and status change.
#[derive(Clone)]
struct KeyServer {
    set: Arc<Mutex<Value>>,
    status: Arc<AtomicU16>,
    asked: Arc<AtomicUsize>,
    delay: Arc<AtomicUsize>,
}

impl KeyServer {
    fn new(set: Value) -> Self {
        Self {
            set: Arc::new(Mutex::new(set)),
            status: Arc::new(AtomicU16::new(200)),
            asked: Arc::default(),
            delay: Arc::default(),
        }
    }

    fn turn(&self, set: Value) {
        *self.set.lock().expect("nobody panicked") = set;
    }

    fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }

    async fn answer(self, request: Request<hyper::body::Incoming>) -> Response<Body> {
        assert_eq!(
            request.uri(),
            "/keys?api-key=s3cret",
            "path and query are sent"
        );
        self.asked.fetch_add(1, Ordering::SeqCst);
        let delay = self.delay.load(Ordering::SeqCst) as u64;
        tokio::time::sleep(Duration::from_millis(delay)).await;
        let set = self.set.lock().expect("nobody panicked").to_string();
        let mut response = Response::new(full(set));
        let status = self.status.load(Ordering::SeqCst);
        *response.status_mut() = http::StatusCode::from_u16(status).expect("a status");
        response
    }

    async fn start(&self) -> u16 {
        let this = self.clone();
        serve(move |request| this.clone().answer(request))
            .await
            .port()
    }
}

fn config() -> ProxyConfig {
    ProxyConfig {
        keys: Limits {
            retry: Duration::from_millis(100),
            max_retry: Duration::from_millis(400),
            asked: Duration::from_millis(500),
            ..Limits::default()
        },
        ..ProxyConfig::default()
    }
}

fn spec(at: u16, cache: &str) -> String {
    format!(
        "  jwt: {{ providers: [{{ name: idp, remoteJWKS: {{ uri: 'http://127.0.0.1:{at}/keys?api-key=s3cret', cacheDuration: {cache} }} }}] }}"
    )
}

async fn bearer(at: u16, token: &str) -> Reply {
    let mut request = get("http://x/");
    let value = format!("Bearer {token}").parse().expect("a value");
    request.headers_mut().insert("authorization", value);
    send(([127, 0, 0, 1], at).into(), request).await
}

async fn until(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    for _ in 0..2400 {
        if holds().await {
            return;
        }
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
    panic!("{what}: not within a minute");
}

#[tokio::test]
async fn proxy_fetches_keys_in_the_background_and_follows_their_rotation() {
    let up = echo("a").await;
    let (first, second) = (Issuer::new(None, &[]), Issuer::named("k2"));
    let server = KeyServer::new(first.jwks());
    let keys_at = server.start().await;
    server.status.store(500, Ordering::SeqCst);
    let at = free_port();
    let snapshot = world(at, up, &policy("p", SHOP, &spec(keys_at, "300s")));
    let router = Router::with(&snapshot, config());
    let token = first.token(json!({}));
    // Nothing was ever fetched: not the client's fault, and nobody waits.
    until("a failed fetch", async || server.asked() >= 2).await;
    let answer = bearer(at, &token).await;
    assert_eq!(
        (answer.status.as_u16(), answer.json()["error"].as_str()),
        (503, Some("keys_unavailable"))
    );
    assert_eq!(answer.header("www-authenticate"), None);
    let status = router.proxy.keys().status();
    assert_eq!((status.len(), status[0].state.as_str()), (1, "missing"));
    assert!(
        status[0].last_error.contains("500") && status[0].failures > 0,
        "{status:?}"
    );
    assert!(!format!("{status:?}").contains("s3cret"), "{status:?}");

    server.status.store(200, Ordering::SeqCst);
    until("keys", async || bearer(at, &token).await.status == 200).await;
    let status = router.proxy.keys().status();
    assert_eq!(
        (status[0].state.as_str(), status[0].keys, status[0].failures),
        ("fresh", 1, 0)
    );
    let (begun, before) = (Instant::now(), server.asked());
    for _ in 0..20 {
        assert_eq!(bearer(at, &token).await.status, 200);
    }
    assert_eq!(server.asked(), before, "requests fetch nothing");

    // New keys: an unknown `kid` asks for one refetch, and the old key's tokens end with it.
    server.turn(second.jwks());
    let other = second.token(json!({}));
    let refused = bearer(at, &other).await;
    assert_eq!(refused.json()["message"], "Jwt verification fails");
    until("rotation", async || bearer(at, &other).await.status == 200).await;
    assert_eq!(
        bearer(at, &token).await.status,
        401,
        "remembered, and its key is gone"
    );
    // Half a second is between them.
    let most = |begun: Instant| 2 + begun.elapsed().as_millis() as usize / 500;
    let fetches = server.asked() - before;
    assert!(fetches <= most(begun), "{fetches} fetches");

    // Tokens with made-up keys cannot make the router ask again and again.
    let bogus = Issuer::named("nobody").token(json!({}));
    let (begun, before) = (Instant::now(), server.asked());
    while begun.elapsed() < Duration::from_millis(1500) || server.asked() == before {
        assert_eq!(bearer(at, &bogus).await.status, 401);
    }
    let fetches = server.asked() - before;
    assert!(fetches <= most(begun), "{fetches} fetches");

    // A provider that stopped answering: the last good keys serve, and a slow one holds nobody up.
    server.status.store(503, Ordering::SeqCst);
    bearer(at, &bogus).await;
    until("a failure", async || {
        router.proxy.keys().status()[0].state == "stale"
    })
    .await;
    server.delay.store(3_600_000, Ordering::SeqCst);
    let before = server.asked();
    until("a fetch without an answer", async || {
        server.asked() > before
    })
    .await;
    let begun = Instant::now();
    for _ in 0..20 {
        assert_eq!(bearer(at, &other).await.status, 200);
    }
    // Each would wait ten seconds, until that fetch is given up.
    assert!(begun.elapsed() < Duration::from_secs(100));
    let text = metrics(&router);
    let uri = format!("uri=\"http://127.0.0.1:{keys_at}/keys\"");
    assert!(text.contains(&format!("jwks_keys{{{uri}}} 1")), "{text}");
    assert!(
        text.contains(&format!("jwks_fetches_total{{{uri},result=\"failed\"}}")),
        "{text}"
    );
    assert!(!text.contains("s3cret"), "{text}");

    // A configuration that says the same keeps the keys, although nobody could fetch them now.
    let next = compile(&snapshot, 2).expect("it compiles");
    router.table.store(Arc::new(next));
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(bearer(at, &other).await.status, 200);
    // One that wants no keys forgets them.
    let none = compile(&world(at, up, ""), 3).expect("it compiles");
    router.table.store(Arc::new(none));
    until("forgotten", async || {
        router.proxy.keys().status().is_empty()
    })
    .await;
}

#[tokio::test]
async fn proxy_takes_keys_that_are_fresh_again_and_refuses_what_is_no_set() {
    let up = echo("a").await;
    let (first, second) = (Issuer::new(None, &[]), Issuer::new(None, &[]));
    let server = KeyServer::new(first.jwks());
    let keys_at = server.start().await;
    let at = free_port();
    let router = Router::with(
        &world(at, up, &policy("p", SHOP, &spec(keys_at, "1s"))),
        config(),
    );
    let (old, new) = (first.token(json!({})), second.token(json!({})));
    until("keys", async || bearer(at, &old).await.status == 200).await;
    // What is no key set, or too large, changes nothing.
    for rubbish in [
        json!({"keys": []}),
        json!({"keys": [{"kty": "oct", "k": "AAAA"}]}),
        json!("keys"),
        json!({"keys": [], "filler": "x".repeat(2 << 20)}),
    ] {
        server.turn(rubbish);
        let before = server.asked();
        until("two fetches", async || server.asked() >= before + 2).await;
        assert_eq!(bearer(at, &old).await.status, 200);
    }
    // The same `kid`, other keys: found because the set is fetched again by itself.
    server.turn(second.jwks());
    until("new keys", async || bearer(at, &new).await.status == 200).await;
    assert_eq!(bearer(at, &old).await.status, 401);
    router.reason(Reason::JwtInvalid).await;
}

#[tokio::test]
async fn proxy_ends_with_keys_that_are_too_old() {
    let up = echo("a").await;
    let issuer = Issuer::new(None, &[]);
    let server = KeyServer::new(issuer.jwks());
    let keys_at = server.start().await;
    let remote = RemoteKeys {
        uri: uri(keys_at, false),
        cache: Duration::from_secs(1),
        max_stale: Duration::from_millis(500),
        authorities: None,
    };
    let (snapshot, at) = guarded(&issuer, remote, up);
    let _router = Router::with(&snapshot, config());
    let token = issuer.token(json!({}));
    until("keys", async || bearer(at, &token).await.status == 200).await;
    server.status.store(500, Ordering::SeqCst);
    until("too old", async || bearer(at, &token).await.status == 503).await;
    server.status.store(200, Ordering::SeqCst);
    until("back", async || bearer(at, &token).await.status == 200).await;
}

fn uri(at: u16, tls: bool) -> KeyUri {
    KeyUri {
        tls,
        host: UpstreamHost::Address([127, 0, 0, 1].into()),
        port: port(at),
        authority: format!("127.0.0.1:{at}"),
        target: "/keys?api-key=s3cret".into(),
    }
}

/// A route that asks for tokens of an issuer whose keys are fetched.
fn guarded(
    issuer: &Issuer,
    remote: RemoteKeys,
    up: std::net::SocketAddr,
) -> (snapshot::Snapshot, u16) {
    let provider = JwtProvider {
        keys: ProviderKeys::Remote(Arc::new(remote)),
        ..JwtProvider::clone(&issuer.provider)
    };
    let mut guarded = rule(vec![prefix("/")], vec![to(up)]);
    guarded.auth = Some(Arc::new(Auth::of_tokens(
        provider.declared.clone(),
        vec![Arc::new(provider)],
        Authorization {
            rules: Vec::new(),
            default: Decision::Allow,
        },
    )));
    let (snapshot, at) = plain(vec![route("r", &[], vec![guarded])]);
    (snapshot, at.port())
}

#[tokio::test]
async fn proxy_fetches_keys_over_tls_from_who_is_trusted_only() {
    let up = echo("a").await;
    let issuer = Issuer::new(None, &[]);
    let key = KeyPair::generate().expect("a key");
    let certificate = CertificateParams::new(vec!["127.0.0.1".to_owned()])
        .expect("a name")
        .self_signed(&key)
        .expect("a certificate");
    let private = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let tls = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_no_client_auth()
        .with_single_cert(vec![certificate.der().clone()], private)
        .expect("they fit");
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(tls));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0")
        .await
        .expect("a port");
    let keys_at = listener.local_addr().expect("it is bound").port();
    let server = KeyServer::new(issuer.jwks());
    let answering = server.clone();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (acceptor, server) = (acceptor.clone(), answering.clone());
            tokio::spawn(async move {
                let Ok(stream) = acceptor.accept(stream).await else {
                    return;
                };
                let service = hyper::service::service_fn(move |request| {
                    let answer = server.clone().answer(request);
                    async move { Ok::<_, std::convert::Infallible>(answer.await) }
                });
                let _ended = hyper::server::conn::http1::Builder::new()
                    .serve_connection(hyper_util::rt::TokioIo::new(stream), service)
                    .await;
            });
        }
    });
    let remote = RemoteKeys {
        uri: uri(keys_at, true),
        cache: Duration::from_secs(300),
        max_stale: Duration::from_secs(60),
        authorities: Some(vec![certificate.der().clone()].into()),
    };
    let token = issuer.token(json!({}));
    let (snapshot, at) = guarded(&issuer, remote.clone(), up);
    let _router = Router::with(&snapshot, config());
    until("keys over TLS", async || {
        bearer(at, &token).await.status == 200
    })
    .await;

    // Roots that do not know the server.
    let stranger = CertificateParams::new(vec!["127.0.0.1".to_owned()])
        .expect("a name")
        .self_signed(&KeyPair::generate().expect("a key"))
        .expect("a certificate");
    let remote = RemoteKeys {
        authorities: Some(vec![stranger.der().clone()].into()),
        ..remote
    };
    let (snapshot, at) = guarded(&issuer, remote, up);
    let router = Router::with(&snapshot, config());
    until("a refusal", async || {
        let status = router.proxy.keys().status();
        status.first().is_some_and(|one| one.failures > 0)
    })
    .await;
    let status = router.proxy.keys().status();
    assert!(status[0].last_error.contains("certificate"), "{status:?}");
    assert_eq!(bearer(at, &token).await.status, 503);
}
