//! How connections of HTTP/3 end, and what they outlive.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use cardinal_agent::proxy::{ProxyConfig, Reason};
use http::{Request, Response, StatusCode};
use quinn::ConnectionError;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::sync::Notify;

use super::client::{Client, Stream, answer, connect, endpoint, settings, surely};
use super::{HOST, World, documents, url};
use crate::documents::snapshot;
use crate::support::{Router, echo, full, serve};

/// Closed without an error (RFC 9114, section 8.1).
const NO_ERROR: u64 = 0x100;

/// An upstream that answers when it is told to.
async fn slow() -> (SocketAddr, Arc<Notify>, Arc<AtomicUsize>) {
    let (go, asked) = (Arc::new(Notify::new()), Arc::new(AtomicUsize::new(0)));
    let (waits, counts) = (Arc::clone(&go), Arc::clone(&asked));
    let at = serve(move |_| {
        let (waits, counts) = (Arc::clone(&waits), Arc::clone(&counts));
        async move {
            counts.fetch_add(1, Ordering::Relaxed);
            waits.notified().await;
            Response::new(full("late".into()))
        }
    })
    .await;
    (at, go, asked)
}

async fn until(holds: impl Fn() -> bool) {
    surely(async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
}

/// A request that the slow upstream has as its `count`th, and does not answer yet.
async fn waiting(client: &Client, asked: &AtomicUsize, count: usize) -> Stream {
    let mut stream = client
        .begin(Request::get(url("/")).body(()).expect("a request"))
        .await
        .expect("a stream");
    stream.finish().await.expect("it ends");
    until(|| asked.load(Ordering::Relaxed) == count).await;
    stream
}

async fn closed(client: &Client) -> u64 {
    match surely(client.quic.closed()).await {
        ConnectionError::ApplicationClosed(close) => close.error_code.into_inner(),
        other => panic!("{other}"),
    }
}

#[tokio::test]
async fn proxy_http3_drains_what_is_under_way() {
    let (up, go, asked) = slow().await;
    let world = World::new("http3: {}", up);
    let (client, idle) = (world.client().await, world.client().await);
    let mut stream = waiting(&client, &asked, 1).await;
    let router = world.router;
    let stopping = tokio::spawn(router.proxy.shutdown(Duration::from_secs(60)));
    assert_eq!(closed(&idle).await, NO_ERROR, "nothing was under way");
    // What begins now is refused, and may be asked elsewhere.
    surely(async {
        while let Ok(refused) = client
            .begin(Request::get(url("/")).body(()).expect("a request"))
            .await
        {
            drop(refused);
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    go.notify_one();
    let (answer, _) = answer(&mut stream).await.expect("an answer");
    assert_eq!(answer.body, "late");
    assert_eq!(closed(&client).await, NO_ERROR);
    assert_eq!(stopping.await.expect("it ends"), 0, "nobody is cut off");
}

#[tokio::test]
async fn proxy_http3_listener_that_goes_says_goodbye() {
    let (up, go, asked) = slow().await;
    let world = World::new("http3: {}", up);
    let (client, idle) = (world.client().await, world.client().await);
    let mut stream = waiting(&client, &asked, 1).await;
    let without = documents(world.at.port(), &world.front, "http2: {}", up);
    world.router.publish(&snapshot(&without), 2);
    assert_eq!(closed(&idle).await, NO_ERROR);
    go.notify_one();
    let (answer, _) = answer(&mut stream).await.expect("an answer");
    assert_eq!(answer.body, "late");
    assert_eq!(closed(&client).await, NO_ERROR);
    let settings = settings(world.authority.roots(), None, b"h3");
    let refused = connect(&endpoint(), super::quick(settings), world.at, HOST).await;
    refused.expect_err("nobody is there");
    // Once the sockets are gone it can come back.
    let again = documents(world.at.port(), &world.front, "http3: {}", up);
    let again = cardinal_agent::compile::route::compile(&snapshot(&again), 3);
    let again = again.expect("it compiles").datagram_addresses();
    until(|| world.router.proxy.open_datagrams(&again).is_ok()).await;
}

#[tokio::test]
async fn proxy_http3_socket_that_is_given_away_is_read_a_moment_longer() {
    /// Above the quarter of a second, and below what a listener has that goes without a successor.
    const MOMENT: Duration = Duration::from_secs(5);
    let (up, go, asked) = slow().await;
    let world = World::new("http3: {}", up);
    let idle = world.client().await;
    let mut streams = Vec::new();
    for turn in 1..=2 {
        let client = world.client().await;
        let request = Request::get(url("/")).body(()).expect("a request");
        let mut stream = client.begin(request).await.expect("a stream");
        stream.finish().await.expect("it ends");
        until(|| asked.load(Ordering::Relaxed) == turn).await;
        streams.push((client, stream));
    }
    let [(quick, mut answered), (slow, _unanswered)] =
        <[_; 2]>::try_from(streams).unwrap_or_else(|_| panic!("there are two"));

    let text = documents(world.at.port(), &world.front, "http3: {}", up);
    let next = Router::after(&world.router, &snapshot(&text), 2);
    let leaves = tokio::spawn(world.router.proxy.leave(Duration::from_secs(20)));
    // What is answered at once is still answered, by the router that was asked.
    assert_eq!(closed(&idle).await, NO_ERROR);
    go.notify_one();
    let (reply, _) = answer(&mut answered).await.expect("an answer");
    assert_eq!(reply.body, "late");
    assert_eq!(closed(&quick).await, NO_ERROR);
    // What takes longer is cut: as long as two routers read one socket, each takes what is the other one's.
    let cut = tokio::time::timeout(MOMENT, closed(&slow)).await;
    assert_eq!(cut.expect("it reads no more"), NO_ERROR);
    assert_eq!(leaves.await.expect("it ends"), 0);

    // The socket is the next router's alone.
    for _ in 0..8 {
        let client = Client::new(&world.authority, world.at, HOST).await;
        let (request, answers) = (url("/"), async {
            loop {
                // Who was cut off may still wait upstream.
                go.notify_one();
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        });
        tokio::select! {
            reply = client.get(&request) => assert_eq!(reply.body, "late"),
            () = answers => unreachable!("it has no end"),
        }
    }
    until(|| next.proxy.log().since(0).len() == 8).await;
}

#[tokio::test]
async fn proxy_http3_connections_count_and_have_their_time() {
    let up = echo("up").await;
    let limit =
        "http3: {}, connection: { connectionLimit: { value: 2, maxRequestsPerConnection: 3 } }";
    let world = World::new(limit, up);
    let (one, two) = (world.client().await, world.client().await);
    let connect = || {
        let settings = settings(world.authority.roots(), None, b"h3");
        let at = world.at;
        async move { connect(&endpoint(), settings, at, HOST).await }
    };
    connect().await.expect_err("two are open");
    let record = world.router.reason(Reason::ConnectionLimit).await;
    assert_eq!(record.protocol, "quic");
    for _ in 0..3 {
        assert_eq!(one.get(&url("/")).await.status, StatusCode::OK);
    }
    assert_eq!(closed(&one).await, NO_ERROR, "three requests are all");
    surely(async {
        while connect().await.is_err() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
    assert_eq!(two.get(&url("/")).await.status, StatusCode::OK);

    for spec in [
        "http3: {}, timeout: { http: { idleTimeout: 2s } }",
        "http3: {}, connection: { connectionLimit: { maxConnectionDuration: 2s } }",
    ] {
        let world = World::new(spec, up);
        let client = world.client().await;
        assert_eq!(client.get(&url("/")).await.status, StatusCode::OK);
        assert_eq!(closed(&client).await, NO_ERROR, "{spec}");
    }
}

#[tokio::test]
async fn proxy_http3_connections_outlive_their_clients_addresses() {
    let world = World::new("http3: {}", echo("up").await);
    let clients = [world.client().await, world.client().await];
    for turn in 0..8 {
        for client in &clients {
            let socket = std::net::UdpSocket::bind("127.0.0.1:0").expect("a port");
            // The kernel's hash would bring about every second of them to the other core.
            client.endpoint.rebind(socket).expect("it is taken");
            assert_eq!(client.get(&url("/")).await.status, 200, "{turn}");
        }
    }
    assert_eq!(world.router.metric("proxy_connections"), 2.0);
}

/// An upstream that promises more than it says.
async fn broken() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let at = listener.local_addr().expect("it is bound");
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut asked = [0; 1024];
            let _read = stream.read(&mut asked).await;
            let said = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nbegun");
            said.await.expect("it is taken");
        }
    });
    at
}

#[tokio::test]
async fn proxy_http3_answer_that_breaks_off_has_no_end() {
    let world = World::new("http3: {}", broken().await);
    let client = world.client().await;
    let request = Request::get(url("/")).body(Bytes::new());
    let broken = client.ask(request.expect("a request")).await;
    broken.expect_err("the answer has no end");
    world.router.reason(Reason::UpstreamReset).await;
    assert_eq!(client.quic.close_reason(), None);
}

#[tokio::test]
async fn proxy_http3_client_that_gives_up_is_missed_upstream() {
    let (up, go, asked) = slow().await;
    let config = ProxyConfig::default();
    let world = World::with("http3: {}", up, "", config);
    let client = world.client().await;
    let mut kept = waiting(&client, &asked, 1).await;
    for count in 2..5 {
        let mut given_up = waiting(&client, &asked, count).await;
        given_up.stop_sending(h3::error::Code::H3_REQUEST_CANCELLED);
        drop(given_up);
    }
    let records = || {
        let records = world.router.proxy.log().since(0);
        let gone = records.iter();
        gone.filter(|one| one.reason == Reason::ClientClosed)
            .count()
    };
    until(|| records() == 3).await;
    go.notify_waiters();
    let (answer, _) = answer(&mut kept).await.expect("an answer");
    assert_eq!(answer.body, "late", "others go on");
}
