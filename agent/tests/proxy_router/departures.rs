//! Clients that leave, stop, or wait in the middle of an exchange: nothing of theirs stays behind.

use std::net::SocketAddr;
use std::time::Duration;

use cardinal_agent::proxy::ProxyConfig;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;

use crate::support::{Router, plain, prefix, route, rule, to};

/// Longer than anything here takes if it ends at all.
const LONG: Duration = Duration::from_secs(60);

/// A router in front of one upstream, whose clients may idle for a short while.
fn router(up: SocketAddr, idle: Duration) -> (Router, SocketAddr) {
    let routes = vec![route("r", &[], vec![rule(vec![prefix("/")], vec![to(up)])])];
    let (snapshot, at) = plain(routes);
    let config = ProxyConfig {
        idle,
        ..ProxyConfig::default()
    };
    (Router::with(&snapshot, config), at)
}

/// An upstream for one connection: it answers the head of the first request with these bytes, and reads to the end, of which
/// the receiver hears.
async fn answers(answer: &'static [u8]) -> (SocketAddr, oneshot::Receiver<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let at = listener.local_addr().expect("it is bound");
    let (ended, end) = oneshot::channel();
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.expect("the router comes");
        let mut seen = Vec::new();
        while !seen.windows(4).any(|four| four == b"\r\n\r\n") {
            let read = stream.read_buf(&mut seen).await.expect("a request");
            assert_ne!(read, 0, "the head arrives");
        }
        stream.write_all(answer).await.expect("it is taken");
        let mut rest = [0; 1024];
        while stream.read(&mut rest).await.is_ok_and(|read| read > 0) {}
        let _ = ended.send(());
    });
    (at, end)
}

async fn read_until(stream: &mut TcpStream, end: &str) -> String {
    let mut seen = Vec::new();
    while !seen.ends_with(end.as_bytes()) {
        let read = stream.read_buf(&mut seen).await.expect("the answer");
        assert_ne!(read, 0, "{end:?} comes");
    }
    String::from_utf8(seen).expect("text")
}

/// The answer is complete, the request is not, and its client says no more.
#[tokio::test]
async fn proxy_leaves_a_client_that_never_ends_its_request_after_the_answer() {
    let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
    let (up, end) = answers(answer).await;
    let (_router, at) = router(up, Duration::from_secs(2));
    let mut client = TcpStream::connect(at).await.expect("somebody listens");
    let request = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1000\r\n\r\nabc";
    client.write_all(request).await.expect("it is taken");
    read_until(&mut client, "ok").await;
    let mut rest = [0; 16];
    let closed = tokio::time::timeout(LONG, client.read(&mut rest)).await;
    let read = closed.expect("the router closes").unwrap_or(0);
    assert_eq!(read, 0, "nothing follows");
    let told = tokio::time::timeout(LONG, end).await;
    told.expect("the upstream is left as well").expect("it ran");
}

/// Another task read the request to its end while the answer was under way.
#[tokio::test]
async fn proxy_notes_that_a_client_left_whose_request_ended_after_its_answer_began() {
    let answer = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\none\r\n";
    let (up, end) = answers(answer).await;
    let (_router, at) = router(up, Duration::from_secs(60));
    let mut client = TcpStream::connect(at).await.expect("somebody listens");
    let head = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\n";
    client.write_all(head).await.expect("it is taken");
    read_until(&mut client, "one\r\n").await;
    client.write_all(b"hello").await.expect("it is taken");
    // The router has read it, unless this machine is slow: then the test shows less.
    tokio::time::sleep(Duration::from_millis(300)).await;
    drop(client);
    let told = tokio::time::timeout(LONG, end).await;
    told.expect("the upstream is left as well").expect("it ran");
}

/// An empty line behind a request's body is of old clients (RFC 9112, section 2.2), and no beginning of a request.
#[tokio::test]
async fn proxy_does_not_wait_for_a_request_behind_an_empty_line_when_it_drains() {
    let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
    let (up, _end) = answers(answer).await;
    let (router, at) = router(up, Duration::from_secs(60));
    let mut client = TcpStream::connect(at).await.expect("somebody listens");
    let request = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc\r\n";
    client.write_all(request).await.expect("it is taken");
    read_until(&mut client, "ok").await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    let cut = router.proxy.shutdown(LONG).await;
    assert_eq!(cut, 0, "nothing was under way");
}

/// It asks for much, and reads nothing of it.
#[tokio::test]
async fn proxy_leaves_a_client_that_does_not_read_its_answer() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let up = listener.local_addr().expect("it is bound");
    let (ended, end) = oneshot::channel();
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.expect("the router comes");
        let mut head = [0; 4096];
        let _head = stream.read(&mut head).await.expect("a request");
        let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", 1_u64 << 40);
        let sent = stream.write_all(head.as_bytes()).await;
        sent.expect("it is taken");
        let part = vec![7; 1 << 16];
        while stream.write_all(&part).await.is_ok() {}
        let _ = ended.send(());
    });
    let (_router, at) = router(up, Duration::from_secs(2));
    let mut client = TcpStream::connect(at).await.expect("somebody listens");
    let asked = client.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    asked.await.expect("it is taken");
    let told = tokio::time::timeout(LONG, end).await;
    told.expect("the upstream is left").expect("it ran");
}
