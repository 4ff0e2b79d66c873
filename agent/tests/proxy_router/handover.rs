//! A router takes the sockets of another one under requests, and none of them fails.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use http_body_util::BodyExt as _;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;

use crate::support::{Body, Router, echo, get, http2, plain, prefix, raw, route, rule, serve, to};

/// Longer than anything takes on a busy machine.
const SURELY: Duration = Duration::from_secs(60);

/// Requests under way while routers change places.
struct Load {
    stop: Arc<AtomicBool>,
    answered: Arc<[AtomicU64; 3]>,
    clients: Vec<JoinHandle<()>>,
}

impl Load {
    /// Of each kind of client some: a connection for each request, one connection of HTTP/1.1, and one of HTTP/2.
    fn start(at: SocketAddr) -> Self {
        let (stop, answered) = (
            Arc::<AtomicBool>::default(),
            Arc::<[AtomicU64; 3]>::default(),
        );
        let mut clients = Vec::new();
        for kind in [0, 0, 0, 1, 1, 2, 2] {
            let (stop, answered) = (Arc::clone(&stop), Arc::clone(&answered));
            clients.push(tokio::spawn(async move {
                let mut kept = None;
                while !stop.load(Ordering::Relaxed) {
                    match kind {
                        0 => once(at).await,
                        1 => http1(at, &mut kept).await,
                        _ => streams(at).await,
                    }
                    answered[kind].fetch_add(1, Ordering::Relaxed);
                }
            }));
        }
        Self {
            stop,
            answered,
            clients,
        }
    }

    fn counts(&self) -> [u64; 3] {
        [0, 1, 2].map(|kind| self.answered[kind].load(Ordering::Relaxed))
    }

    /// Waits until each kind of client had so many answers more.
    async fn more(&self, answers: u64) {
        let before = self.counts();
        let enough = async {
            while (0..3).any(|kind| self.counts()[kind] < before[kind] + answers) {
                assert!(
                    self.clients.iter().all(|one| !one.is_finished()),
                    "a client failed"
                );
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let enough = tokio::time::timeout(SURELY, enough).await;
        enough.expect("requests are answered");
    }

    async fn end(self) -> [u64; 3] {
        self.stop.store(true, Ordering::Relaxed);
        let counts = self.counts();
        for client in self.clients {
            client.await.expect("no request failed");
        }
        counts
    }
}

/// A request on a connection of its own.
async fn once(at: SocketAddr) {
    let answer = raw(
        at,
        b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
    )
    .await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer:?}");
}

/// A request on a connection that is kept until the router says that it ends. Whoever was told nothing may use it.
async fn http1(at: SocketAddr, kept: &mut Option<hyper::client::conn::http1::SendRequest<Body>>) {
    let usable = match kept {
        Some(open) => open.ready().await.is_ok(),
        None => false,
    };
    if !usable {
        let stream = TcpStream::connect(at).await.expect("somebody listens");
        let handshake = hyper::client::conn::http1::handshake(TokioIo::new(stream));
        let (sender, connection) = handshake.await.expect("HTTP/1.1");
        tokio::spawn(connection);
        *kept = Some(sender);
    }
    let open = kept.as_mut().expect("it was just opened");
    let mut request = get("/");
    let host = http::HeaderValue::from_static("a");
    request.headers_mut().insert(http::header::HOST, host);
    let answer = open.send_request(request).await.expect("an answer");
    assert_eq!(answer.status(), 200);
    answer.into_body().collect().await.expect("its body");
}

/// Streams of one connection, until that one takes no more.
async fn streams(at: SocketAddr) {
    let mut sender = http2(at).await;
    for _ in 0..5 {
        if sender.ready().await.is_err() {
            return;
        }
        match sender.try_send_request(get("http://a/")).await {
            Ok(answer) => {
                assert_eq!(answer.status(), 200);
                answer.into_body().collect().await.expect("its body");
            }
            // It was told to go away just before, and sent nothing.
            Err(mut error) => {
                let unsent = error.take_message().is_some() || is_told_to_go(error.error());
                assert!(unsent, "{error:?}");
                return;
            }
        }
    }
}

/// Whether a stream was not begun because the router said that the connection ends: h2 says so of the connection, and hyper has let
/// go of the request by then. Of streams that were begun, `leave` counts those that were cut.
fn is_told_to_go(error: &hyper::Error) -> bool {
    let cause = std::error::Error::source(error);
    let cause = cause.and_then(|cause| cause.downcast_ref::<h2::Error>());
    cause.is_some_and(|cause| {
        cause.is_go_away() && cause.is_remote() && cause.reason() == Some(h2::Reason::NO_ERROR)
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn proxy_no_request_fails_when_routers_change_places() {
    let up = echo("up").await;
    let (snapshot, at) = plain(vec![route(
        "r",
        &[],
        vec![rule(vec![prefix("/")], vec![to(up)])],
    )]);
    let mut router = Router::start(&snapshot);
    let load = Load::start(at);
    let mut leaving = Vec::new();
    // More cores and fewer: whatever is queued in a socket is served by somebody.
    for cores in [3, 1, 2, 1, 4, 2, 2, 3, 1, 2] {
        load.more(20).await;
        let next = Router::after(&router, &snapshot, cores);
        let before = std::mem::replace(&mut router, next);
        leaving.push(tokio::spawn(before.proxy.leave(SURELY)));
    }
    load.more(20).await;
    for left in leaving {
        assert_eq!(left.await.expect("it ends"), 0, "connections were cut");
    }
    load.more(20).await;
    let counts = load.end().await;
    println!("connections of one request, requests on kept ones, streams: {counts:?}");
}

#[tokio::test]
async fn proxy_that_leaves_answers_once_more_and_says_that_it_ends() {
    let up = echo("up").await;
    let (snapshot, at) = plain(vec![route(
        "r",
        &[],
        vec![rule(vec![prefix("/")], vec![to(up)])],
    )]);
    let first = Router::start(&snapshot);
    let mut rests = TcpStream::connect(at).await.expect("it listens");
    rests
        .write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        .await
        .expect("it is sent");
    let mut buffer = [0; 4096];
    let length = rests.read(&mut buffer).await.expect("an answer");
    let told = String::from_utf8_lossy(&buffer[..length]).to_ascii_lowercase();
    assert!(!told.contains("connection: close"), "{told}");
    // Connected, and nothing asked yet.
    let mut silent = TcpStream::connect(at).await.expect("it listens");
    first.record(|_| true).await;
    while first.metric("proxy_connections") < 2.0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }

    let second = Router::after(&first, &snapshot, 1);
    let leaves = tokio::spawn(first.proxy.leave(SURELY));
    tokio::time::sleep(Duration::from_millis(300)).await;
    for one in [&mut rests, &mut silent] {
        one.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
            .await
            .expect("it is sent");
        let mut answer = Vec::new();
        one.read_to_end(&mut answer).await.expect("to the end");
        let told = String::from_utf8_lossy(&answer).to_ascii_lowercase();
        assert!(told.starts_with("http/1.1 200"), "{told}");
        assert!(told.contains("connection: close"), "{told}");
    }
    assert_eq!(leaves.await.expect("it ends"), 0);
    assert_eq!(second.proxy.log().since(0).len(), 0);
}

#[tokio::test]
async fn proxy_that_takes_sockets_accepts_nothing_before_its_first_table() {
    let up = serve(|_| async { http::Response::new(crate::support::full("ok".into())) }).await;
    let (snapshot, at) = plain(vec![route(
        "r",
        &[],
        vec![rule(vec![prefix("/")], vec![to(up)])],
    )]);
    let first = Router::start(&snapshot);
    // What another process would do that dies half-way: it had the sockets, and is gone.
    drop(first.proxy.share().expect("descriptors"));
    once(at).await;
    // One that wants none of them lets them go when it serves, which does not close them for the other one.
    let empty = Arc::default();
    let config = cardinal_agent::proxy::ProxyConfig::default();
    let sockets = first.proxy.share().expect("descriptors");
    let other = cardinal_agent::proxy::Proxy::start_with(config, empty, sockets);
    let other = other.expect("the router starts");
    for _ in 0..20 {
        once(at).await;
    }
    other.published();
    for _ in 0..20 {
        once(at).await;
    }
    assert_eq!(other.log().since(0).len(), 0, "it served nothing");
}
