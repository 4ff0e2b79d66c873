//! Backends under a `BackendTrafficPolicy`: who gets a request, how many at a time, and who is left out.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, AtomicU32, Ordering};
use std::time::Duration;

use cardinal_agent::proxy::{ProxyConfig, Reason};
use cardinal_agent::resilience::Clock;
use http::{HeaderValue, Response, StatusCode};
use tokio::sync::Semaphore;

use crate::support::{
    Router, backend, echo, free_port, full, get, refs, send, serve, until, written,
};
use crate::traffic_policy::{of_route, policy, rule};

/// One route to backend `up` with these endpoints, and a policy for it.
fn routed(endpoints: &[SocketAddr], fields: &str) -> (snapshot::Snapshot, SocketAddr) {
    let more = [backend("up", endpoints), of_route(fields)].concat();
    written(&rule("/", "name: x"), &[], &more)
}

/// Who answers so many requests, by name.
async fn shares(at: SocketAddr, requests: usize) -> BTreeMap<String, usize> {
    let mut shares = BTreeMap::new();
    for _ in 0..requests {
        let answer = send(at, get("http://x/")).await;
        assert_eq!(answer.status, 200);
        let name = answer.header("x-cell-name").expect("an echo").to_owned();
        *shares.entry(name).or_default() += 1;
    }
    shares
}

async fn three() -> [SocketAddr; 3] {
    [echo("a").await, echo("b").await, echo("c").await]
}

/// An upstream that holds each request until it is let go, and how many it got.
async fn holding() -> (SocketAddr, Arc<Semaphore>, Arc<AtomicU32>) {
    let gate = Arc::new(Semaphore::new(0));
    let held = Arc::new(AtomicU32::new(0));
    let (waits, counts) = (Arc::clone(&gate), Arc::clone(&held));
    let at = serve(move |_| {
        let (waits, counts) = (Arc::clone(&waits), Arc::clone(&counts));
        async move {
            counts.fetch_add(1, Ordering::SeqCst);
            waits.acquire().await.expect("it stays open").forget();
            Response::new(full("held".into()))
        }
    })
    .await;
    (at, gate, held)
}

#[tokio::test]
async fn proxy_spreads_requests_as_the_policy_says() {
    let endpoints = three().await;
    for kind in ["RoundRobin", "Random", "LeastRequest"] {
        let (snapshot, at) = routed(&endpoints, &format!("loadBalancer: {{ type: {kind} }}"));
        let _router = Router::start(&snapshot);
        let shares = shares(at, 90).await;
        assert_eq!(shares.len(), 3, "{kind} {shares:?}");
        assert!(
            shares.values().all(|count| *count >= 10),
            "{kind} {shares:?}"
        );
    }
}

#[tokio::test]
async fn proxy_keeps_away_from_busy_endpoints() {
    // The first holds what it gets, until it is let go.
    let (busy, gate, held) = holding().await;
    let idle = echo("idle").await;
    let (snapshot, at) = routed(&[busy, idle], "timeout: {}");
    let router = Router::start(&snapshot);
    let mut waiting = Vec::new();
    while held.load(Ordering::SeqCst) == 0 {
        let one = tokio::spawn(send(at, get("http://x/held")));
        until("it is held or answered", || {
            held.load(Ordering::SeqCst) > 0 || one.is_finished()
        })
        .await;
        waiting.push(one);
    }
    // Of two, the one without a request gets all.
    assert_eq!(shares(at, 30).await["idle"], 30);
    assert_eq!(held.load(Ordering::SeqCst), 1);
    gate.add_permits(100);
    for one in waiting {
        assert_eq!(one.await.expect("it ends").status, 200);
    }
    router
        .record(|one| one.path.as_deref() == Some("/held"))
        .await;
}

/// Who answers a request with these headers, and the cookie that comes with it.
async fn asked(
    at: SocketAddr,
    path: &str,
    headers: &[(&'static str, &str)],
) -> (String, Option<String>) {
    let mut request = get(&format!("http://x{path}"));
    for (name, value) in headers {
        let value = HeaderValue::from_str(value).expect("a value");
        request.headers_mut().insert(*name, value);
    }
    let answer = send(at, request).await;
    assert_eq!(answer.status, 200);
    let name = answer.header("x-cell-name").expect("an echo").to_owned();
    (name, answer.header("set-cookie").map(str::to_owned))
}

#[tokio::test]
async fn proxy_leads_the_same_request_to_the_same_endpoint() {
    let endpoints = three().await;
    let hash = |fields: &str| {
        format!("loadBalancer: {{ type: ConsistentHash, consistentHash: {{ {fields} }} }}")
    };
    for (fields, path, header) in [
        ("type: Header, header: { name: x-user }", "/", "x-user"),
        (
            "type: Headers, headers: [{ name: x-user }, { name: x-other }]",
            "/",
            "x-user",
        ),
        (
            "type: QueryParams, queryParams: [{ name: user }]",
            "/?user=",
            "",
        ),
        (
            "type: Cookie, cookie: { name: user }, tableSize: 4099",
            "/",
            "cookie",
        ),
    ] {
        let (snapshot, at) = routed(&endpoints, &hash(fields));
        let _router = Router::start(&snapshot);
        let mut found = BTreeSet::new();
        for user in 0..30 {
            let (path, headers) = match header {
                "" => (format!("{path}{user}"), vec![]),
                "cookie" => (path.to_owned(), vec![("cookie", format!("user={user}"))]),
                name => (path.to_owned(), vec![(name, user.to_string())]),
            };
            let headers: Vec<(&'static str, &str)> = headers
                .iter()
                .map(|(name, value)| (*name, value.as_str()))
                .collect();
            let (first, _) = asked(at, &path, &headers).await;
            for _ in 0..3 {
                assert_eq!(asked(at, &path, &headers).await.0, first, "{fields} {user}");
            }
            found.insert(first);
        }
        assert_eq!(found.len(), 3, "{fields}");
    }
    // One client is one address.
    let (snapshot, at) = routed(&endpoints, &hash("type: SourceIP"));
    let _router = Router::start(&snapshot);
    assert_eq!(shares(at, 20).await.len(), 1);
}

#[tokio::test]
async fn proxy_gives_a_cookie_to_whom_has_none() {
    let endpoints = three().await;
    let fields = "loadBalancer: { type: ConsistentHash, consistentHash: { type: Cookie, cookie: { name: stay, ttl: 60s, attributes: { SameSite: Lax } } } }";
    let (snapshot, at) = routed(&endpoints, fields);
    let _router = Router::start(&snapshot);
    for _ in 0..10 {
        let (first, given) = asked(at, "/", &[]).await;
        let given = given.expect("a cookie");
        let (pair, attributes) = given.split_once(';').expect("attributes");
        assert_eq!(attributes, " Max-Age=60; Path=/; HttpOnly; SameSite=Lax");
        for _ in 0..3 {
            let (again, given) = asked(at, "/", &[("cookie", pair)]).await;
            assert_eq!((again, given), (first.clone(), None));
        }
    }
}

#[tokio::test]
async fn proxy_lets_as_many_requests_through_as_the_policy_says() {
    let (up, gate, held) = holding().await;
    // Two rules of one backend share its places.
    let rules = [rule("/a", "name: a"), rule("/b", "name: b")].concat();
    let more = [
        backend("up", &[up]),
        of_route("circuitBreaker: { maxParallelRequests: 2 }"),
    ]
    .concat();
    let (snapshot, at) = written(&rules, &[], &more);
    let router = Router::start(&snapshot);
    let waiting = ["/a", "/b"].map(|path| tokio::spawn(send(at, get(&format!("http://x{path}")))));
    while held.load(Ordering::SeqCst) < 2 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    for path in ["/a", "/b"] {
        let answer = send(at, get(&format!("http://x{path}"))).await;
        assert_eq!(answer.status, 503);
        assert_eq!(answer.header("x-envoy-overloaded"), Some("true"));
        assert_eq!(answer.json()["error"], "backend_overloaded");
    }
    router.reason(Reason::BackendOverloaded).await;
    gate.add_permits(100);
    for one in waiting {
        assert_eq!(one.await.expect("it ends").status, 200);
    }
    // Their places are free as soon as the answers were read.
    for _ in 0..6000 {
        if send(at, get("http://x/a")).await.status == 200 {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("the places are never given back");
}

#[tokio::test]
async fn proxy_retries_as_many_at_a_time_as_the_policy_says() {
    let count = Arc::new(AtomicU32::new(0));
    let counted = Arc::clone(&count);
    let up = serve(move |_| {
        let count = Arc::clone(&counted);
        async move {
            count.fetch_add(1, Ordering::SeqCst);
            let mut response = Response::new(full(String::new()));
            *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
            response
        }
    })
    .await;
    for (breaker, tries) in [
        ("maxParallelRetries: 0", 1),
        ("maxParallelRetries: 1", 3),
        (
            "retryBudget: { percent: { numerator: 0 }, minRetryConcurrency: 0 }",
            1,
        ),
        (
            "retryBudget: { percent: { numerator: 1, denominator: 1 } }",
            3,
        ),
    ] {
        let fields = format!("circuitBreaker: {{ {breaker} }}\n  retry: {{ numRetries: 2 }}");
        let (snapshot, at) = routed(&[up], &fields);
        let _router = Router::start(&snapshot);
        count.store(0, Ordering::SeqCst);
        assert_eq!(send(at, get("http://x/")).await.status, 503);
        assert_eq!(count.load(Ordering::SeqCst), tries, "{breaker}");
    }
}

/// An upstream that answers with the status that it is told.
async fn settable(called: &'static str) -> (SocketAddr, Arc<AtomicU16>) {
    let status = Arc::new(AtomicU16::new(200));
    let told = Arc::clone(&status);
    let up = serve(move |_| {
        let status = told.load(Ordering::SeqCst);
        async move {
            let mut response = Response::new(full(String::new()));
            *response.status_mut() = StatusCode::from_u16(status).expect("a status");
            let name = HeaderValue::from_static(called);
            response.headers_mut().insert("x-cell-name", name);
            response
        }
    })
    .await;
    (up, status)
}

#[tokio::test]
async fn proxy_leaves_out_endpoints_that_fail() {
    let (a, status) = settable("a").await;
    let b = echo("b").await;
    let passive = "consecutive5XxErrors: 3, maxEjectionPercent: 50, baseEjectionTime: 300s";
    let fields = format!(
        "loadBalancer: {{ type: RoundRobin }}\n  healthCheck: {{ passive: {{ {passive} }} }}"
    );
    let (snapshot, at) = routed(&[a, b], &fields);
    let clock = Clock::still();
    let config = ProxyConfig {
        clock: clock.clone(),
        ..ProxyConfig::default()
    };
    let _router = Router::with(&snapshot, config);
    status.store(500, Ordering::SeqCst);
    let mut failures = 0;
    for _ in 0..40 {
        failures += u32::from(send(at, get("http://x/")).await.status == 500);
    }
    assert_eq!(failures, 3);
    status.store(200, Ordering::SeqCst);
    assert_eq!(shares(at, 10).await.len(), 1);
    clock.advance(Duration::from_secs(300));
    assert_eq!(shares(at, 40).await.len(), 2);
}

#[tokio::test]
async fn proxy_leaves_out_endpoints_that_take_no_connection() {
    let dead = SocketAddr::from(([127, 0, 0, 1], free_port()));
    let b = echo("b").await;
    let passive = "consecutiveGatewayErrors: 2, consecutive5XxErrors: 0, maxEjectionPercent: 50, baseEjectionTime: 300s";
    let fields = format!("healthCheck: {{ passive: {{ {passive} }} }}");
    let (snapshot, at) = routed(&[dead, b], &fields);
    let router = Router::start(&snapshot);
    // Requests go to the other one meanwhile.
    assert_eq!(shares(at, 30).await["b"], 30);
    let table = router.table.load();
    let managed = table.managed().next().expect("a backend with a policy");
    let now = Clock::default().now() + Duration::from_secs(1);
    assert!(managed.ejected(0, now) && !managed.ejected(1, now));
}

#[tokio::test]
async fn proxy_treats_backends_of_a_gateway_by_its_policy() {
    let (a, status) = settable("a").await;
    let b = echo("b").await;
    let rules = format!(
        "    - {{ matches: [{{ path: {{ value: /a }} }}], {} }}\n    - {{ {} }}\n",
        refs(&["a"]),
        refs(&["b"])
    );
    let more = policy("p", "kind: Gateway, name: gw", "circuitBreaker: {}");
    let (snapshot, at) = written(&rules, &[("a", a), ("b", b)], &more);
    let router = Router::start(&snapshot);
    status.store(418, Ordering::SeqCst);
    assert_eq!(send(at, get("http://x/a")).await.status, 418);
    assert_eq!(send(at, get("http://x/b")).await.status, 200);
    let table = router.table.load();
    let names: Vec<&str> = table.managed().map(|one| &*one.backend.name).collect();
    assert_eq!(names, ["backend default/a", "backend default/b"]);
}

/// Waits until the probes of the only policy's endpoints say this.
pub(crate) async fn until_healthy(router: &Router, expected: &[bool]) {
    let mut found = Vec::new();
    for _ in 0..6000 {
        let table = router.table.load();
        let managed = table.managed().next().expect("a backend with a policy");
        found = (0..expected.len()).map(|at| managed.healthy(at)).collect();
        if found == expected {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("{found:?}, not {expected:?}");
}

fn checked(question: &str) -> String {
    format!(
        "loadBalancer: {{ type: RoundRobin }}\n  healthCheck: {{ active: {{ interval: 20ms, timeout: 60s, unhealthyThreshold: 2, {question} }} }}"
    )
}

#[tokio::test]
async fn proxy_asks_endpoints_by_http() {
    let seen = Arc::new(std::sync::Mutex::new(None));
    let (a, status) = settable("a").await;
    let noted = Arc::clone(&seen);
    let b = serve(move |request: http::Request<hyper::body::Incoming>| {
        let host = request.headers().get("host").cloned();
        let asked = (request.method().clone(), request.uri().to_string(), host);
        if request.uri().path() == "/ready" {
            *noted.lock().expect("nobody panics") = Some(asked);
        }
        async {
            let mut response = Response::new(full("{\"state\": \"ready\"}".into()));
            let name = HeaderValue::from_static("b");
            response.headers_mut().insert("x-cell-name", name);
            response
        }
    })
    .await;
    let question = "type: HTTP, http: { path: \"/ready?deep\", method: HEAD, hostname: health.test, expectedStatuses: [200, 204] }";
    let (snapshot, at) = routed(&[a, b], &checked(question));
    let router = Router::start(&snapshot);
    assert_eq!(shares(at, 20).await.len(), 2);
    status.store(302, Ordering::SeqCst);
    until_healthy(&router, &[false, true]).await;
    assert_eq!(shares(at, 20).await["b"], 20);
    status.store(204, Ordering::SeqCst);
    until_healthy(&router, &[true, true]).await;
    let asked = seen
        .lock()
        .expect("nobody panics")
        .take()
        .expect("b was asked");
    let host = HeaderValue::from_static("health.test");
    let expected = (http::Method::HEAD, "/ready?deep".to_owned(), Some(host));
    assert_eq!(asked, expected);
    drop(router);

    let question =
        "type: HTTP, http: { path: /ready, expectedResponse: { type: Text, text: ready } }";
    let (snapshot, _) = routed(&[a, b], &checked(question));
    status.store(200, Ordering::SeqCst);
    let router = Router::start(&snapshot);
    // The first one's answer is empty.
    until_healthy(&router, &[false, true]).await;
}

#[tokio::test]
async fn proxy_asks_endpoints_by_tcp() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await;
    let listener = listener.expect("a port");
    let speaks = listener.local_addr().expect("it is bound");
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut asked = [0; 4];
                let read = stream.read_exact(&mut asked).await;
                let answer = if read.is_ok() && asked == *b"ping" {
                    "+pong\r\n"
                } else {
                    "no"
                };
                stream.write_all(answer.as_bytes()).await
            });
        }
    });
    let silent = echo("silent").await;
    let dead = SocketAddr::from(([127, 0, 0, 1], free_port()));
    let endpoints = [speaks, silent, dead];
    let connect = "type: TCP, tcp: {}";
    let (snapshot, _) = routed(&endpoints, &checked(connect));
    let router = Router::start(&snapshot);
    until_healthy(&router, &[true, true, false]).await;
    // `cGluZw==` is "ping".
    let words = "type: TCP, tcp: { send: { type: Binary, binary: cGluZw== }, receive: { type: Text, text: pong } }";
    let fields = checked(words).replace("timeout: 60s", "timeout: 200ms");
    let (snapshot, _) = routed(&endpoints, &fields);
    let router = Router::start(&snapshot);
    until_healthy(&router, &[true, false, false]).await;
}

/// A server that speaks the gRPC health checking protocol by hand; the service `up` serves, `down` does not,
/// and others are unknown.
async fn grpc_health() -> SocketAddr {
    use http_body_util::{BodyExt, Full};
    use hyper_util::rt::{TokioExecutor, TokioIo};
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await;
    let listener = listener.expect("a port");
    let address = listener.local_addr().expect("it is bound");
    let answer = |request: http::Request<hyper::body::Incoming>| async move {
        assert_eq!(request.uri().path(), "/grpc.health.v1.Health/Check");
        assert_eq!(request.headers()["content-type"], "application/grpc");
        assert_eq!(request.headers()["te"], "trailers");
        let body = request.into_body().collect().await?.to_bytes();
        assert_eq!(
            body[..5],
            [0, 0, 0, 0, u8::try_from(body.len() - 5).expect("short")]
        );
        // Field 1, a text; absent: the whole server.
        let service = body.get(7..).unwrap_or_default();
        let (status, code) = match service {
            b"" | b"up" => (1, "0"),
            b"down" => (2, "0"),
            _ => (0, "5"),
        };
        let message = if code == "0" {
            vec![0, 0, 0, 0, 2, 8, status]
        } else {
            vec![]
        };
        let mut trailers = http::HeaderMap::new();
        trailers.insert("grpc-status", HeaderValue::from_static(code));
        let body =
            Full::new(bytes::Bytes::from(message)).with_trailers(async { Some(Ok(trailers)) });
        Ok::<_, hyper::Error>(Response::new(body))
    };
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let service = hyper::service::service_fn(answer);
            tokio::spawn(
                hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                    .serve_connection(TokioIo::new(stream), service),
            );
        }
    });
    address
}

#[tokio::test]
async fn proxy_asks_endpoints_by_grpc() {
    let speaks = grpc_health().await;
    // Something else than gRPC is not healthy.
    let plain = echo("plain").await;
    for (question, expected) in [
        ("type: GRPC", [true, false]),
        ("type: GRPC, grpc: { service: up }", [true, false]),
        ("type: GRPC, grpc: { service: down }", [false, false]),
        ("type: GRPC, grpc: { service: unknown }", [false, false]),
    ] {
        let (snapshot, _) = routed(&[speaks, plain], &checked(question));
        let router = Router::start(&snapshot);
        until_healthy(&router, &expected).await;
    }
}

#[tokio::test]
async fn proxy_uses_all_endpoints_when_too_few_are_healthy() {
    let (a, status) = settable("a").await;
    let (b, other) = settable("b").await;
    let question = "type: HTTP, http: { path: / }";
    for (threshold, answer) in [(50, 500), (0, 503)] {
        [&status, &other]
            .into_iter()
            .for_each(|one| one.store(200, Ordering::SeqCst));
        let fields = checked(question).replace(
            "healthCheck: {",
            &format!("healthCheck: {{ panicThreshold: {threshold},"),
        );
        let (snapshot, at) = routed(&[a, b], &fields);
        let router = Router::start(&snapshot);
        [&status, &other]
            .into_iter()
            .for_each(|one| one.store(500, Ordering::SeqCst));
        until_healthy(&router, &[false, false]).await;
        assert_eq!(send(at, get("http://x/")).await.status, answer);
        if answer == 503 {
            let record = router.reason(Reason::NoReadyEndpoint).await;
            let detail = record.detail.as_deref().expect("a detail");
            assert!(
                detail.contains("no endpoint of backend default/up is healthy"),
                "{detail}"
            );
        }
    }
}

#[tokio::test]
async fn proxy_tells_of_backends_and_remembers_them() {
    let (a, status) = settable("a").await;
    let b = echo("b").await;
    let fields = "circuitBreaker: {}\n  loadBalancer: { type: RoundRobin }\n  healthCheck: { passive: { consecutive5XxErrors: 1, maxEjectionPercent: 50, baseEjectionTime: 300s } }";
    let (snapshot, at) = routed(&[a, b], fields);
    let router = Router::start(&snapshot);
    status.store(500, Ordering::SeqCst);
    while send(at, get("http://x/")).await.status == 200 {}
    // Another generation of the same backend.
    let next = cardinal_agent::compile::route::compile(&snapshot, 2).expect("it compiles");
    next.adopt(&router.table.load());
    router.table.store(Arc::new(next));
    assert_eq!(shares(at, 20).await["b"], 20);
    let text = || {
        let mut text = String::new();
        let mut registry = prometheus_client::registry::Registry::with_prefix("cardinal");
        router.proxy.register(&mut registry);
        prometheus_client::encoding::text::encode(&mut text, &registry).expect("it encodes");
        text
    };
    let endpoint = |name: &str, at: SocketAddr, value: u8| {
        format!(
            "cardinal_proxy_backend_endpoint_{name}{{backend=\"backend default/up\",policy=\"default/of-route\",endpoint=\"{at}\"}} {value}\n"
        )
    };
    for line in [
        "cardinal_proxy_backend_requests{backend=\"backend default/up\"} 0\n",
        "cardinal_proxy_backend_retries{backend=\"backend default/up\"} 0\n",
        "cardinal_proxy_backend_connections{backend=\"backend default/up\"} 0\n",
        "cardinal_proxy_backend_pending{backend=\"backend default/up\"} 0\n",
        &endpoint("healthy", a, 1),
        &endpoint("ejected", a, 1),
        &endpoint("ejected", b, 0),
    ] {
        // A request is over a little after its answer.
        until(line, || text().contains(line)).await;
    }
}

#[tokio::test]
async fn proxy_lets_requests_wait_for_a_connection() {
    let (up, gate, held) = holding().await;
    let fields = "circuitBreaker: { maxConnections: 2, maxPendingRequests: 2 }\n  timeout: { http: { requestTimeout: 1h } }";
    let (snapshot, at) = routed(&[up], fields);
    let router = Router::start(&snapshot);
    let table = router.table.load_full();
    let backend = table.backends().next().expect("a backend with a policy");
    let connections = &backend.state().connections;
    let mut asked = Vec::new();
    for expected in [(1, 0), (2, 0), (2, 1), (2, 2)] {
        asked.push(tokio::spawn(send(at, get("http://x/"))));
        while (connections.taken(), connections.waiting()) != expected {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
    let answer = send(at, get("http://x/")).await;
    assert_eq!(answer.status, 503);
    assert_eq!(answer.header("x-envoy-overloaded"), Some("true"));
    let record = router.reason(Reason::BackendOverloaded).await;
    let detail = record.detail.as_deref().expect("a detail");
    assert!(detail.contains("requests that wait"), "{detail}");
    // Each answer lets one that waits go on.
    for served in 1..=4 {
        while held.load(Ordering::SeqCst) < u32::min(served + 1, 4) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert!(connections.taken() <= 2);
        gate.add_permits(1);
    }
    for one in asked {
        assert_eq!(one.await.expect("it ends").status, 200);
    }
    // Waiting ends with the request's time.
    drop(router);
    let fields = fields
        .replace("1h", "200ms")
        .replace("maxConnections: 2", "maxConnections: 1");
    let (snapshot, at) = routed(&[up], &fields);
    let router = Router::start(&snapshot);
    let both = [0, 1].map(|_| tokio::spawn(send(at, get("http://x/"))));
    for one in both {
        assert_eq!(one.await.expect("it ends").status, 504);
    }
    router.reason(Reason::UpstreamTimeout).await;
}
