//! Tables and listeners that change under load.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use cardinal_agent::compile::route::compile;
use cardinal_agent::route::RouteTable;
use http::{Request, Response};
use tokio::sync::Semaphore;

use crate::documents::snapshot;
use crate::support::{
    Router, SURELY, addresses, connect, echo, empty, free_port, full, gateway, get, http2,
    listener, object, plain, prefix, reply, route, rule, send, serve, shared, to, until,
};
use crate::tls::{Authority, https};

/// Configuration `generation` as documents. Every part of its rule says which one it is: what the upstream is told, where the
/// path leads, which upstream that is, what the client is told; and one route is there in this generation alone.
fn documents_of(generation: u64, at: SocketAddr, upstreams: &[SocketAddr]) -> String {
    let upstream = upstreams[generation as usize % upstreams.len()];
    let modified = format!("{{ set: [{{ name: x-generation, value: '{generation}' }}] }}");
    let route = |name: &str, prefix: &str| {
        format!(
            "
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {{ name: {name} }}
spec:
  parentRefs: [{{ name: front }}]
  rules:
    - matches: [{{ path: {{ type: PathPrefix, value: {prefix} }} }}]
      filters:
        - {{ type: RequestHeaderModifier, requestHeaderModifier: {modified} }}
        - {{ type: ResponseHeaderModifier, responseHeaderModifier: {modified} }}
        - type: URLRewrite
          urlRewrite: {{ path: {{ type: ReplacePrefixMatch, replacePrefixMatch: /{generation} }} }}
      backendRefs: [{{ group: gateway.envoyproxy.io, kind: Backend, name: up }}]"
        )
    };
    format!(
        "
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {{ name: front }}
spec:
  gatewayClassName: cardinal
  addresses: [{{ value: {ip} }}]
  listeners: [{{ name: http, port: {port}, protocol: HTTP }}]
---
apiVersion: gateway.envoyproxy.io/v1alpha1
kind: Backend
metadata: {{ name: up }}
spec: {{ endpoints: [{{ ip: {{ address: {}, port: {} }} }}] }}{}{}",
        upstream.ip(),
        upstream.port(),
        route("always", "/app"),
        route(
            &format!("only-{generation}"),
            &format!("/only-{generation}")
        ),
        ip = at.ip(),
        port = at.port(),
    )
}

/// An upstream that tells its number, and takes its time for some: their requests outlive a change.
async fn numbered(number: usize) -> SocketAddr {
    serve(move |request: Request<hyper::body::Incoming>| async move {
        if request.uri().path().ends_with("/slow") {
            tokio::time::sleep(Duration::from_millis(40)).await;
        }
        let told = request.headers()["x-generation"].to_str().expect("ASCII");
        let told = format!("{number} {told} {}", request.uri().path());
        Response::new(full(told))
    })
    .await
}

/// The generation of an answer, if all its parts agree on it.
async fn generation_of(answer: Response<hyper::body::Incoming>, upstreams: usize) -> u64 {
    let answer = reply(answer).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    let generation: u64 = answer
        .header("x-generation")
        .and_then(|text| text.parse().ok())
        .expect("the answer tells its generation");
    let body = String::from_utf8_lossy(&answer.body).into_owned();
    let told: Vec<&str> = body.split(' ').collect();
    let number = (generation as usize % upstreams).to_string();
    assert_eq!(
        told[..2],
        [number, generation.to_string()],
        "{generation}: {body}"
    );
    assert!(
        told[2].starts_with(&format!("/{generation}/")),
        "{generation}: {body}"
    );
    generation
}

enum Client {
    One(hyper::client::conn::http1::SendRequest<crate::support::Body>),
    Two(hyper::client::conn::http2::SendRequest<crate::support::Body>),
}

impl Client {
    /// Asks until told to stop, and notes the newest generation that answered; all over one connection.
    async fn run(mut self, stop: Arc<AtomicBool>, newest: Arc<AtomicU64>, upstreams: usize) -> u64 {
        let mut asked = 0;
        while !stop.load(Ordering::Relaxed) {
            asked += 1;
            let path = if asked % 4 == 0 {
                "/app/slow"
            } else {
                "/app/x"
            };
            let answer = match &mut self {
                Self::One(sender) => {
                    sender.ready().await.expect("the connection stays");
                    let request = Request::get(path)
                        .header("host", "x")
                        .body(full(String::new()));
                    sender.send_request(request.expect("a request")).await
                }
                Self::Two(sender) => sender.send_request(get(&format!("http://x{path}"))).await,
            };
            let generation = generation_of(answer.expect("an answer"), upstreams).await;
            let before = newest.fetch_max(generation, Ordering::Relaxed);
            assert!(generation >= before, "{generation} after {before}");
        }
        asked
    }
}

/// Twenty changes of what every route does, under load over connections that stay: no request fails, each is served by one
/// generation from its first byte to its last, and none is served by an older one than the request before it.
#[tokio::test]
async fn proxy_changes_twenty_times_and_each_request_is_of_one_generation() {
    const UPSTREAMS: usize = 3;
    const CHANGES: u64 = 20;
    let mut upstreams = Vec::new();
    for number in 0..UPSTREAMS {
        upstreams.push(numbered(number).await);
    }
    let at: SocketAddr = ([127, 0, 0, 1], free_port()).into();
    let snapshot_of = |generation| snapshot(&documents_of(generation, at, &upstreams));
    let router = Router::start(&snapshot_of(1));
    let stop = Arc::new(AtomicBool::new(false));
    let (mut clients, mut newest) = (Vec::new(), Vec::new());
    // Three connections of HTTP/1.1, and three streams at a time of one of HTTP/2.
    let streams = http2(at).await;
    for number in 0..6 {
        let client = match number % 2 {
            0 => Client::One(kept(connect(None, at).await).await),
            _ => Client::Two(streams.clone()),
        };
        let seen = Arc::new(AtomicU64::new(0));
        newest.push(Arc::clone(&seen));
        clients.push(tokio::spawn(client.run(Arc::clone(&stop), seen, UPSTREAMS)));
    }
    let seen_by_all = async |generation: u64| {
        let newest = || newest.iter().map(|one| one.load(Ordering::Relaxed));
        until("all are answered by the new generation", || {
            newest().all(|one| one >= generation)
        })
        .await;
    };
    seen_by_all(1).await;
    for generation in 2..2 + CHANGES {
        let table = compile(&snapshot_of(generation), generation).expect("it compiles");
        let opened = router
            .proxy
            .open(&table.addresses())
            .expect("nothing is new");
        table.adopt(&router.table.load());
        router.table.store(Arc::new(table));
        opened.commit();
        router.proxy.published();
        // From here on a new request meets the new routes and not one of the old.
        let only = |generation| get(&format!("http://x/only-{generation}/x"));
        assert_eq!(send(at, only(generation)).await.status, 200, "{generation}");
        assert_eq!(
            send(at, only(generation - 1)).await.status,
            404,
            "{generation}"
        );
        seen_by_all(generation).await;
    }
    stop.store(true, Ordering::Relaxed);
    for client in clients {
        let asked = client.await.expect("no request failed");
        assert!(asked > CHANGES, "{asked} requests");
    }
}

#[tokio::test]
async fn proxy_opens_and_closes_listeners_and_drains() {
    let (gate, asked) = (Arc::new(Semaphore::new(0)), Arc::new(AtomicU64::new(0)));
    let (waits, counts) = (Arc::clone(&gate), Arc::clone(&asked));
    let up = serve(move |_: Request<hyper::body::Incoming>| {
        let (waits, counts) = (Arc::clone(&waits), Arc::clone(&counts));
        async move {
            counts.fetch_add(1, Ordering::SeqCst);
            waits.acquire().await.expect("it stays open").forget();
            Response::new(full("slow".into()))
        }
    })
    .await;
    let under_way =
        async |count| until("it is asked", || asked.load(Ordering::SeqCst) == count).await;
    let (mut snapshot, at) = plain(vec![route(
        "r",
        &[],
        vec![rule(vec![prefix("/")], vec![to(up)])],
    )]);
    let router = Router::start(&snapshot);
    let running = tokio::spawn(send(at, get("http://x/")));
    under_way(1).await;
    let other = free_port();
    let gateway = snapshot
        .gateways
        .get_mut(&object("gw"))
        .expect("it is there");
    gateway.listeners = vec![listener("http", other, None)];
    let table = compile(&snapshot, 2).expect("it compiles");
    let dropped = router.proxy.open(&table.addresses()).expect("it is free");
    drop(dropped);
    let now = (at.ip(), other).into();
    tokio::net::TcpStream::connect(now)
        .await
        .expect_err("the change was undone");
    let opened = router.proxy.open(&table.addresses()).expect("it is free");
    router.table.store(Arc::new(table));
    opened.commit();
    until("the old address is closed", || {
        std::net::TcpStream::connect(at).is_err()
    })
    .await;
    gate.add_permits(2);
    assert_eq!(running.await.expect("it runs on").body, "slow");
    let answer = send(now, get("http://x/")).await;
    assert_eq!(answer.body, "slow");
    let last = tokio::spawn(send(now, get("http://x/")));
    under_way(3).await;
    let drained = tokio::spawn(router.proxy.shutdown(SURELY));
    until("it drains", || std::net::TcpStream::connect(now).is_err()).await;
    gate.add_permits(1);
    assert_eq!(drained.await.expect("it ends"), 0);
    assert_eq!(last.await.expect("it was finished").body, "slow");
    assert!(addresses(&[at]).contains(&at));
}

/// Publishes a table and waits until nobody holds the one before.
async fn replace(router: &Router, snapshot: &snapshot::Snapshot, generation: u64) {
    let table = compile(snapshot, generation).expect("it compiles");
    let old: Weak<RouteTable> = Arc::downgrade(&router.table.swap(Arc::new(table)));
    until("nobody holds a table that was replaced", || {
        old.upgrade().is_none()
    })
    .await;
}

#[tokio::test]
async fn proxy_keeps_no_table_for_a_connection() {
    let up = echo("a").await;
    let authority = Authority::new();
    let (plain_at, tls_at) = (free_port(), free_port());
    let mut snapshot = empty();
    let certificate = authority.certificate("main", &["x.org"]);
    let listeners = vec![
        listener("http", plain_at, None),
        https("https", tls_at, None, "main"),
    ];
    snapshot
        .certificates
        .insert(certificate.name.clone(), Arc::new(certificate));
    let made = gateway("gw", None, listeners);
    snapshot.gateways.insert(made.name.clone(), made);
    snapshot.routes = shared(vec![route(
        "r",
        &[],
        vec![rule(vec![prefix("/")], vec![to(up)])],
    )]);
    let router = Router::start(&snapshot);
    let mut plain = kept(connect(None, ([127, 0, 0, 1], plain_at).into()).await).await;
    let stream = connect(None, ([127, 0, 0, 1], tls_at).into()).await;
    let shaken = authority
        .handshake(stream, Some("x.org"), &["http/1.1"])
        .await;
    let mut tls = kept(shaken.expect("it shakes hands")).await;
    for generation in 2..4 {
        for sender in [&mut plain, &mut tls] {
            assert_eq!(asked(sender).await, 200);
        }
        replace(&router, &snapshot, generation).await;
    }
    // The port that spoke HTTP speaks HTTPS from now on, and the other way round: an old connection is
    // not what the listener is for.
    let made = snapshot
        .gateways
        .get_mut(&object("gw"))
        .expect("it is there");
    made.listeners = vec![
        https("https", plain_at, None, "main"),
        listener("http", tls_at, None),
    ];
    replace(&router, &snapshot, 4).await;
    for sender in [&mut plain, &mut tls] {
        assert_eq!(asked(sender).await, 421);
        sender.ready().await.expect_err("the connection ends");
    }
    let answer = send(([127, 0, 0, 1], tls_at).into(), get("http://x.org/")).await;
    assert_eq!(answer.status, 200);
}

type Sender = hyper::client::conn::http1::SendRequest<crate::support::Body>;

async fn kept<T>(stream: T) -> Sender
where
    T: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
{
    let io = hyper_util::rt::TokioIo::new(stream);
    let (sender, connection) = hyper::client::conn::http1::handshake(io)
        .await
        .expect("a connection");
    tokio::spawn(connection);
    sender
}

async fn asked(sender: &mut Sender) -> u16 {
    sender.ready().await.expect("the connection stays");
    let request = Request::get("/")
        .header("host", "x.org")
        .body(full(String::new()));
    let answer = sender
        .send_request(request.expect("a request"))
        .await
        .expect("an answer");
    reply(answer).await.status.as_u16()
}
