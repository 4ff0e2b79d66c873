//! Requests whose answer begins before their end: neither direction waits for the other.

use std::net::SocketAddr;
use std::time::Duration;

use cardinal_agent::proxy::Reason;
use http::Request;
use http_body_util::BodyExt;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};

use crate::http::Channel;
use crate::support::{Router, http2, plain, prefix, route, rule, to};

/// More than all buffers on the way hold.
const LARGE: usize = 64 << 20;
/// What the answer has behind that, sent when the request is there to its end.
const TAIL: &[u8] = b"the end";

/// An upstream that answers at the head of a request of so many bytes: with more than anybody buffers, and with a few
/// bytes more when it has all of the request. Tells how many it has.
async fn talkative(upload: usize) -> (SocketAddr, watch::Receiver<usize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let at = listener.local_addr().expect("it is bound");
    let (told, heard) = watch::channel(0);
    tokio::spawn(async move {
        let (stream, _) = listener.accept().await.expect("the router comes");
        let (mut from, mut to) = stream.into_split();
        let mut begin = Vec::new();
        while !begin.ends_with(b"\r\n\r\n") {
            begin.push(from.read_u8().await.expect("a head"));
        }
        let (complete, whole) = tokio::sync::oneshot::channel();
        tokio::spawn(async move {
            let length = LARGE + TAIL.len();
            let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n");
            to.write_all(head.as_bytes()).await.expect("it is taken");
            // Whoever hangs up has had enough.
            if to.write_all(&vec![b'a'; LARGE]).await.is_ok() && whole.await.is_ok() {
                to.write_all(TAIL).await.expect("it is taken");
            }
        });
        let mut buffer = vec![0; 1 << 16];
        let mut count = 0;
        while count < upload {
            match from.read(&mut buffer).await {
                Ok(0) | Err(_) => return,
                Ok(some) => count += buffer[..some].iter().filter(|one| **one == b'x').count(),
            }
            told.send_replace(count);
        }
        // The other half may be gone.
        let _ = complete.send(());
        // Bytes that are not read when a socket is closed take back what was sent: the end of a body in chunks is such.
        while from.read(&mut buffer).await.is_ok_and(|count| count > 0) {}
    });
    (at, heard)
}

fn router(up: SocketAddr) -> (Router, SocketAddr) {
    let targets = vec![to(up)];
    let (snapshot, at) = plain(vec![route(
        "r",
        &[],
        vec![rule(vec![prefix("/")], targets)],
    )]);
    (Router::start(&snapshot), at)
}

async fn reaches(heard: &mut watch::Receiver<usize>, bytes: usize) {
    let all = heard.wait_for(|count| *count >= bytes);
    let all = tokio::time::timeout(Duration::from_secs(60), all).await;
    all.expect("the upload goes on")
        .expect("the upstream lives");
}

#[tokio::test]
async fn proxy_takes_an_upload_whose_client_reads_nothing() {
    let upload = 2 * LARGE;
    let (up, mut heard) = talkative(upload).await;
    let (_router, at) = router(up);
    let mut client = TcpStream::connect(at).await.expect("somebody listens");
    let head = format!("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {upload}\r\n\r\n");
    let asked = client.write_all(head.as_bytes()).await;
    asked.expect("it is taken");
    client
        .write_all(&vec![b'x'; upload])
        .await
        .expect("so is the body");
    reaches(&mut heard, upload).await;
    let mut answer = vec![0; LARGE];
    client.read_exact(&mut answer).await.expect("the answer");
    assert!(answer.starts_with(b"HTTP/1.1 200 OK\r\n"));
    while !answer.ends_with(TAIL) {
        answer.push(client.read_u8().await.expect("its end"));
    }
}

#[tokio::test]
async fn proxy_takes_an_upload_in_chunks_over_http2() {
    let upload = 2 * LARGE;
    let (up, mut heard) = talkative(upload).await;
    let (router, at) = router(up);
    let (frames, outgoing) = mpsc::channel(1);
    let request = Request::post("http://a/").body(Channel(outgoing).boxed());
    let answer = http2(at).await.send_request(request.expect("a request"));
    let answer = tokio::spawn(answer);
    let chunk = bytes::Bytes::from(vec![b'x'; 1 << 20]);
    for _ in 0..upload / chunk.len() {
        frames.send(chunk.clone()).await.expect("it is wanted");
    }
    drop(frames);
    reaches(&mut heard, upload).await;
    let answer = answer.await.expect("no panic").expect("an answer");
    let body = answer.into_body().collect().await.expect("it is whole");
    let body = body.to_bytes();
    assert_eq!(body.len(), LARGE + TAIL.len());
    assert!(body.ends_with(TAIL));
    router.reason(Reason::Ok).await;
}

#[tokio::test]
async fn proxy_ends_an_upload_with_the_client_who_breaks_off() {
    let (up, mut heard) = talkative(LARGE).await;
    let (router, at) = router(up);
    let mut client = TcpStream::connect(at).await.expect("somebody listens");
    let head = format!("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {LARGE}\r\n\r\n");
    let asked = client.write_all(head.as_bytes()).await;
    asked.expect("it is taken");
    client
        .write_all(&vec![b'x'; 1 << 20])
        .await
        .expect("so is a part");
    reaches(&mut heard, 1 << 20).await;
    drop(client);
    // The upstream hears of it: it gets no half of a request for a whole one.
    let closed = async { while heard.changed().await.is_ok() {} };
    let closed = tokio::time::timeout(Duration::from_secs(60), closed).await;
    closed.expect("its connection ends");
    assert_eq!(*heard.borrow(), 1 << 20);
    router.reason(Reason::ClientClosed).await;
}
