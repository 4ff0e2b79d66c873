//! `requestBuffer`: requests that are taken whole before their upstream hears of them.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use cardinal_agent::proxy::{ProxyConfig, Reason};
use cardinal_agent::upstream::Timeouts;
use http::{HeaderMap, Request, Response};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc;

use crate::http::Channel;
use crate::resilience::failing;
use crate::support::{Body, Router, full, http2, raw, reply, send, serve, written};
use crate::traffic_policy::{of_route, rule};

const LIMIT: &str = "requestBuffer: { limit: 1Mi }";

/// An upstream that tells how many requests it heard of, and what each had.
async fn counting() -> (std::net::SocketAddr, Arc<AtomicU32>) {
    let heard = Arc::new(AtomicU32::new(0));
    let counted = Arc::clone(&heard);
    let up = serve(move |request: Request<Incoming>| {
        counted.fetch_add(1, Ordering::SeqCst);
        async move {
            let (parts, body) = request.into_parts();
            let body = body.collect().await.expect("it is whole");
            let trailers = body.trailers().map_or(0, HeaderMap::len);
            let length = parts.headers.get("content-length");
            let told = json!({
                "length": length.map(|length| length.to_str().expect("ASCII")),
                "bytes": body.to_bytes().len(),
                "trailers": trailers,
            });
            let answer: Response<Body> = Response::new(full(told.to_string()));
            answer
        }
    })
    .await;
    (up, heard)
}

#[tokio::test]
async fn proxy_takes_a_request_whole_before_it_is_sent() {
    let (up, heard) = counting().await;
    let (snapshot, at) = written(&rule("/", "name: x"), &[("up", up)], &of_route(LIMIT));
    let router = Router::start(&snapshot);
    let mut client = TcpStream::connect(at).await.expect("somebody listens");
    let head =
        "POST / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n";
    let part = format!("{head}3\r\nabc\r\n");
    client
        .write_all(part.as_bytes())
        .await
        .expect("it is taken");
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(heard.load(Ordering::SeqCst), 0, "it is not whole");
    client
        .write_all(b"2\r\nde\r\n0\r\n\r\n")
        .await
        .expect("it is taken");
    let mut answer = String::new();
    client.read_to_string(&mut answer).await.expect("an answer");
    assert!(answer.contains("\"bytes\":5,\"length\":\"5\""), "{answer}");
    let record = router.record(|one| one.status == 200).await;
    assert_eq!(record.bytes_in, 5);

    // The same over HTTP/2, and without a body.
    let (frames, outgoing) = mpsc::channel(4);
    let request = Request::post("http://a/").body(Channel(outgoing).boxed());
    let answer = http2(at).await.send_request(request.expect("a request"));
    for _ in 0..4 {
        let part = bytes::Bytes::from(vec![7; 100_000]);
        frames.send(part).await.expect("it is wanted");
    }
    drop(frames);
    let answer = reply(answer.await.expect("an answer")).await;
    assert_eq!(answer.json()["bytes"], 400_000);
    let request = crate::support::get("http://a/");
    assert_eq!(send(at, request).await.json()["bytes"], 0);
}

#[tokio::test]
async fn proxy_refuses_requests_that_are_larger_than_their_buffer() {
    let (up, heard) = counting().await;
    let fields = "requestBuffer: { limit: 10 }";
    let (snapshot, at) = written(&rule("/", "name: x"), &[("up", up)], &of_route(fields));
    let router = Router::start(&snapshot);
    let head = "POST / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n";
    for (rest, status) in [
        ("Content-Length: 10\r\n\r\n0123456789", 200),
        ("Content-Length: 11\r\n\r\n", 413),
        (
            "Transfer-Encoding: chunked\r\n\r\n5\r\n01234\r\n6\r\n012345\r\n0\r\n\r\n",
            413,
        ),
        (
            "Transfer-Encoding: chunked\r\n\r\n5\r\n01234\r\n5\r\n01234\r\n0\r\n\r\n",
            200,
        ),
    ] {
        let answer = raw(at, format!("{head}{rest}").as_bytes()).await;
        assert!(
            answer.starts_with(&format!("HTTP/1.1 {status}")),
            "{answer}"
        );
    }
    router.reason(Reason::BodySizeLimit).await;
    assert_eq!(heard.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn proxy_sends_a_buffered_request_again_however_large_it_is() {
    let (up, count) = failing().await;
    let fields = format!(
        "{LIMIT}\n  retry: {{ numRetries: 1, retryOn: {{ triggers: [retriable-status-codes] }} }}"
    );
    let (snapshot, at) = written(&rule("/", "name: x"), &[("up", up)], &of_route(&fields));
    let _router = Router::start(&snapshot);
    let body = "x".repeat(1 << 20);
    let request = Request::post("http://a/503/1/").body(full(body));
    let answer = send(at, request.expect("a request")).await;
    assert_eq!(
        (answer.status.as_u16(), &answer.body[..]),
        (200, &b"1048576"[..])
    );
    assert_eq!(count.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn proxy_gives_up_on_a_client_whose_request_does_not_become_whole() {
    let (up, heard) = counting().await;
    let (snapshot, at) = written(&rule("/", "name: x"), &[("up", up)], &of_route(LIMIT));
    let config = ProxyConfig {
        timeouts: Timeouts {
            head: Duration::from_millis(200),
            ..Timeouts::default()
        },
        ..ProxyConfig::default()
    };
    let router = Router::with(&snapshot, config);
    let part = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\nabc";
    let mut client = TcpStream::connect(at).await.expect("somebody listens");
    client.write_all(part).await.expect("it is taken");
    let mut answer = [0; 12];
    client.read_exact(&mut answer).await.expect("an answer");
    assert_eq!(&answer, b"HTTP/1.1 408");
    router.reason(Reason::RequestTimeout).await;
    // One that goes away leaves nothing behind.
    let (snapshot, at) = written(&rule("/", "name: x"), &[("up", up)], &of_route(LIMIT));
    let router = Router::start(&snapshot);
    let mut client = TcpStream::connect(at).await.expect("somebody listens");
    client.write_all(part).await.expect("it is taken");
    drop(client);
    router.reason(Reason::ClientClosed).await;
    assert_eq!(heard.load(Ordering::SeqCst), 0);
}
