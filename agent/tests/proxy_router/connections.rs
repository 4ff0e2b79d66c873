//! Connections to backends: how long they are kept, for how many requests, and how many there are to one endpoint.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use cardinal_agent::proxy::Reason;
use http::{Request, Response};
use http_body_util::BodyExt;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, mpsc};

use crate::documents::snapshot;
use crate::grpc::{client, note, unary};
use crate::http::Channel;
use crate::support::{
    Body, Router, SURELY, backend, free_port, full, get, http_gateway, http2, refs, send, serve,
    until, written,
};
use crate::traffic_policy::{of_route, policy, rule};

/// Connections that a server has taken, and those of them that have ended.
#[derive(Clone, Default)]
struct Seen {
    opened: Arc<AtomicU32>,
    closed: Arc<AtomicU32>,
}

impl Seen {
    fn opened(&self) -> u32 {
        self.opened.load(Ordering::SeqCst)
    }

    async fn all_closed(&self) {
        let ended = async {
            while self.closed.load(Ordering::SeqCst) < self.opened() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        let ended = tokio::time::timeout(SURELY, ended).await;
        ended.expect("the router closes them");
    }
}

/// A server that answers on every connection with the number that it has, by HTTP/1.1 or HTTP/2.
async fn numbered(http2: bool) -> (SocketAddr, Seen) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("it is bound");
    let seen = Seen::default();
    let noted = seen.clone();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let number = noted.opened.fetch_add(1, Ordering::SeqCst);
            let closed = Arc::clone(&noted.closed);
            let service = hyper::service::service_fn(move |_| async move {
                let mut response: Response<Body> = Response::new(full(number.to_string()));
                let grpc = [("content-type", "application/grpc"), ("grpc-status", "0")];
                for (name, value) in grpc.into_iter().filter(|_| http2) {
                    let value = http::HeaderValue::from_static(value);
                    response.headers_mut().insert(name, value);
                }
                Ok::<_, std::convert::Infallible>(response)
            });
            tokio::spawn(async move {
                let stream = TokioIo::new(stream);
                if http2 {
                    let http = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
                    let _ended = http.serve_connection(stream, service).await;
                } else {
                    let http = hyper::server::conn::http1::Builder::new();
                    let _ended = http.serve_connection(stream, service).await;
                }
                closed.fetch_add(1, Ordering::SeqCst);
            });
        }
    });
    (address, seen)
}

/// So many requests one after the other, over one connection of a client, and so by one core.
async fn ask(at: SocketAddr, times: u32) -> Vec<String> {
    let mut sender = http2(at).await;
    let mut told = Vec::new();
    for _ in 0..times {
        let answer = sender.send_request(get("http://x/")).await;
        let answer = answer.expect("an answer").into_body().collect().await;
        let body = answer.expect("it is whole").to_bytes();
        told.push(String::from_utf8_lossy(&body).into_owned());
    }
    told
}

#[tokio::test]
async fn proxy_gives_a_connection_as_many_requests_as_the_policy_says() {
    for (fields, expected) in [
        ("{}", ["0", "0", "0", "0", "0"]),
        ("{ maxRequestsPerConnection: 0 }", ["0", "0", "0", "0", "0"]),
        ("{ maxRequestsPerConnection: 2 }", ["0", "0", "1", "1", "2"]),
        ("{ maxRequestsPerConnection: 1 }", ["0", "1", "2", "3", "4"]),
    ] {
        let (up, _) = numbered(false).await;
        let fields = of_route(&format!("circuitBreaker: {fields}"));
        let (snapshot, at) = written(&rule("/", "name: x"), &[("up", up)], &fields);
        let _router = Router::start(&snapshot);
        assert_eq!(ask(at, 5).await, expected, "{fields}");
    }
}

#[tokio::test]
async fn proxy_ends_connections_that_are_old_or_without_requests() {
    for (fields, pause, opened) in [
        ("connectionIdleTimeout: 100ms", 1500, 3),
        ("connectionIdleTimeout: 0s", 300, 1),
        ("maxConnectionDuration: 100ms", 1500, 3),
        ("maxConnectionDuration: 1h", 1, 1),
    ] {
        let (up, seen) = numbered(false).await;
        let more = of_route(&format!("timeout: {{ http: {{ {fields} }} }}"));
        let (snapshot, at) = written(&rule("/", "name: x"), &[("up", up)], &more);
        let _router = Router::start(&snapshot);
        let mut sender = http2(at).await;
        for _ in 0..3 {
            let answer = sender.send_request(get("http://x/")).await;
            let body = answer.expect("an answer").into_body().collect().await;
            body.expect("it is whole");
            tokio::time::sleep(Duration::from_millis(pause)).await;
        }
        assert_eq!(seen.opened(), opened, "{fields}");
        // Without another request as well.
        if opened > 1 {
            seen.all_closed().await;
        }
    }
}

#[tokio::test]
async fn proxy_ends_shared_connections_by_the_same_limits() {
    for (fields, pause, opened) in [
        ("circuitBreaker: { maxRequestsPerConnection: 2 }", 1, 3),
        (
            "timeout: { http: { connectionIdleTimeout: 100ms } }",
            1500,
            5,
        ),
        (
            "timeout: { http: { maxConnectionDuration: 100ms } }",
            1500,
            5,
        ),
        ("timeout: { http: { connectionIdleTimeout: 1h } }", 1, 1),
    ] {
        let (up, seen) = numbered(true).await;
        let at = free_port();
        let edge = http_gateway("gw", at);
        let text = format!(
            "
{edge}apiVersion: gateway.networking.k8s.io/v1
kind: GRPCRoute
metadata: {{ name: r }}
spec: {{ parentRefs: [{{ name: gw }}], rules: [{{ {} }}] }}
{}{}",
            refs(&["up"]),
            backend("up", &[up]),
            policy("p", "kind: GRPCRoute, name: r", fields)
        );
        let _router = Router::start(&snapshot(&text));
        let mut client = client(([127, 0, 0, 1], at).into(), "a.example").await;
        for _ in 0..5 {
            // The answer has a body that is no message; that there is one tells enough.
            let request = tonic::Request::new(note("", 0));
            let _answer = unary(&mut client, "/shop.v1.Notes/Say", request).await;
            tokio::time::sleep(Duration::from_millis(pause)).await;
        }
        assert_eq!(seen.opened(), opened, "{fields}");
    }
}

#[tokio::test]
async fn proxy_limits_connections_to_one_endpoint() {
    let gate = Arc::new(Semaphore::new(0));
    let waits = Arc::clone(&gate);
    let up = serve(move |_| {
        let waits = Arc::clone(&waits);
        async move {
            waits.acquire().await.expect("it stays open").forget();
            Response::new(full("held".into()))
        }
    })
    .await;
    let fields = "circuitBreaker: { maxPendingRequests: 1, perEndpoint: { maxConnections: 2 } }";
    let (snapshot, at) = written(&rule("/", "name: x"), &[("up", up)], &of_route(fields));
    let router = Router::start(&snapshot);
    let asked: Vec<_> = (0..3)
        .map(|_| tokio::spawn(send(at, get("http://x/"))))
        .collect();
    let waiting = || {
        let table = router.table.load();
        let managed = table.managed().next().expect("a backend with a policy");
        let queue = &managed.backend.endpoints[0].state().connections;
        (queue.taken(), queue.waiting())
    };
    until("two connections", || waiting() == (2, 1)).await;
    let refused = send(at, get("http://x/")).await;
    assert_eq!(refused.status, 503);
    assert_eq!(refused.header("x-envoy-overloaded"), Some("true"));
    router.reason(Reason::BackendOverloaded).await;
    gate.add_permits(3);
    for one in asked {
        assert_eq!(one.await.expect("no panic").status, 200);
    }
    until("they are given back", || waiting() == (0, 0)).await;
}

/// A server that answers at once, and goes on with a byte from time to time.
async fn dripping(every: Duration, length: Option<u64>) -> SocketAddr {
    serve(move |_| async move {
        let (frames, body) = mpsc::channel(1);
        tokio::spawn(async move {
            while frames.send("x".into()).await.is_ok() {
                tokio::time::sleep(every).await;
            }
        });
        let body: Body = Channel(body).boxed();
        let mut response = Response::new(body);
        if let Some(length) = length {
            response
                .headers_mut()
                .insert("content-length", length.into());
        }
        response
    })
    .await
}

#[tokio::test]
async fn proxy_ends_streams_when_the_policy_says_so() {
    let millis = Duration::from_millis;
    for (fields, every, length, whole) in [
        ("maxStreamDuration: 2s", 20, None, false),
        // What has a length is no stream.
        ("maxStreamDuration: 2s", 100, Some(25), true),
        ("maxStreamDuration: 0s", 20, Some(30), true),
        ("streamIdleTimeout: 2s", 600_000, None, false),
        ("streamIdleTimeout: 2s", 600_000, Some(3), false),
        ("streamIdleTimeout: 1h", 20, Some(30), true),
    ] {
        let up = dripping(millis(every), length).await;
        let more = of_route(&format!("timeout: {{ http: {{ {fields} }} }}"));
        let (snapshot, at) = written(&rule("/", "name: x"), &[("up", up)], &more);
        let router = Router::start(&snapshot);
        let answer = http2(at).await.send_request(get("http://x/")).await;
        let body = answer.expect("a head").into_body().collect();
        let body = tokio::time::timeout(SURELY, body).await;
        assert_eq!(body.expect("it ends").is_ok(), whole, "{fields} {length:?}");
        if !whole {
            router.reason(Reason::UpstreamTimeout).await;
        }
    }
}

#[tokio::test]
async fn proxy_waits_by_the_rule_and_not_by_the_listener() {
    let late = crate::resilience::slow(Duration::from_millis(600)).await;
    let silent = crate::resilience::silent().await;
    let listener = crate::client_policy::policy("timeout: { http: { streamIdleTimeout: 200ms } }");
    for (up, fields, status) in [
        (silent, "requestTimeout: 0s", 504),
        (late, "streamIdleTimeout: 1h", 200),
        (late, "streamIdleTimeout: 0s", 200),
        (silent, "streamIdleTimeout: 100ms", 504),
    ] {
        let more = listener.clone() + &of_route(&format!("timeout: {{ http: {{ {fields} }} }}"));
        let (snapshot, at) = written(&rule("/", "name: x"), &[("up", up)], &more);
        let _router = Router::start(&snapshot);
        let answer = send(at, get("http://x/")).await;
        assert_eq!(answer.status, status, "{fields}");
    }
}

#[tokio::test]
async fn proxy_ends_uploads_that_never_end() {
    let up = crate::support::echo("up").await;
    let more = of_route("timeout: { http: { maxStreamDuration: 300ms } }");
    let (snapshot, at) = written(&rule("/", "name: x"), &[("up", up)], &more);
    let router = Router::start(&snapshot);
    let (frames, outgoing) = mpsc::channel(1);
    let request = Request::post("http://x/").body(Channel(outgoing).boxed());
    let answer = http2(at).await.send_request(request.expect("a request"));
    tokio::spawn(async move {
        while frames.send("x".into()).await.is_ok() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    assert_eq!(answer.await.expect("an answer").status(), 504);
    router.reason(Reason::UpstreamTimeout).await;
}
