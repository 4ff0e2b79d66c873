//! Upstreams and clients that break the rules: what one of them sends never becomes another's message.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use cardinal_agent::proxy::ProxyConfig;
use http_body_util::BodyExt;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use crate::support::{
    Router, SURELY, get, http2, patient, plain, prefix, raw, route, rule, send, to,
};

/// An upstream that answers the first request of its first connection with these bytes, and every other
/// request with `good`.
async fn upstream(first: &'static [u8]) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let at = listener.local_addr().expect("it is bound");
    let answers = Arc::new(AtomicUsize::new(0));
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let answers = Arc::clone(&answers);
            tokio::spawn(async move {
                let mut buffer = [0; 8192];
                while let Ok(read) = stream.read(&mut buffer).await
                    && read > 0
                {
                    let answer: &[u8] = match answers.fetch_add(1, Ordering::Relaxed) {
                        0 => first,
                        _ => b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\ngood",
                    };
                    if stream.write_all(answer).await.is_err() {
                        return;
                    }
                }
            });
        }
    });
    at
}

#[tokio::test]
async fn proxy_gives_nobody_the_answer_of_another() {
    const BAD: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nbad";
    let after = |head: &str| -> &'static [u8] { [head.as_bytes(), BAD].concat().leak() };
    for (request, first) in [
        (
            "GET",
            after("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"),
        ),
        ("GET", after("HTTP/1.1 204 No Content\r\n\r\n")),
        (
            "GET",
            after("HTTP/1.1 304 Not Modified\r\nContent-Length: 45\r\n\r\n"),
        ),
        (
            "HEAD",
            after("HTTP/1.1 200 OK\r\nContent-Length: 45\r\n\r\n"),
        ),
        (
            "GET",
            after("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n"),
        ),
        (
            "GET",
            after(
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 2\r\n\r\n0\r\n\r\n",
            ),
        ),
        ("GET", after("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")),
    ] {
        let up = upstream(first).await;
        let (snapshot, at) = plain(vec![route(
            "r",
            &[],
            vec![rule(vec![prefix("/")], vec![to(up)])],
        )]);
        let _router = Router::start(&snapshot);
        for _ in 0..8 {
            let mut asked = get("http://a/");
            *asked.method_mut() = request.parse().expect("a method");
            let told = send(at, asked).await;
            let told = String::from_utf8_lossy(&told.body).into_owned();
            assert!(
                !told.contains("bad"),
                "{request} {:?}",
                String::from_utf8_lossy(first)
            );
        }
    }
}

#[tokio::test]
async fn proxy_passes_no_answer_with_two_readings() {
    for (first, expected) in [
        (
            "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nok!",
            "502",
        ),
        ("HTTP/1.1 200 OK\r\nContent-Length: +2\r\n\r\nok", "502"),
        ("HTTP/1.1 200 OK\r\nContent-Length: 2, 3\r\n\r\nok!", "502"),
        ("HTTP/1.1 200 OK\r\nContent-Length : 2\r\n\r\nok", "502"),
        (
            "HTTP/1.1 200 OK\r\nX: 1\r\n folded: 2\r\nContent-Length: 2\r\n\r\nok",
            "502",
        ),
        (
            "HTTP/1.1 200 OK\r\nX: a\rb\r\nContent-Length: 2\r\n\r\nok",
            "502",
        ),
        (
            "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n",
            "502",
        ),
        ("nonsense\r\n\r\n", "502"),
        (
            "HTTP/1.1 200 OK\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
            "200",
        ),
        (
            "HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
            "200",
        ),
    ] {
        let up = upstream(first.as_bytes()).await;
        let (snapshot, at) = plain(vec![route(
            "r",
            &[],
            vec![rule(vec![prefix("/")], vec![to(up)])],
        )]);
        let _router = Router::start(&snapshot);
        let answer = raw(at, b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
        assert_eq!(
            answer.get(9..12),
            Some(expected),
            "{first:?} gave {answer:?}"
        );
        let lower = answer.to_ascii_lowercase();
        let framings =
            lower.matches("content-length:").count() + lower.matches("transfer-encoding:").count();
        assert_eq!(framings, 1, "{first:?} gave {answer:?}");
        if first.contains("hello") {
            assert!(answer.contains("hello"), "{answer:?}");
        }
    }
    // A chunk that is none: what came before it is passed, and then nothing more.
    let up =
        upstream(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\nzz\r\n").await;
    let (snapshot, at) = plain(vec![route(
        "r",
        &[],
        vec![rule(vec![prefix("/")], vec![to(up)])],
    )]);
    let _router = Router::start(&snapshot);
    let answer = raw(at, b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
    assert!(
        !answer.ends_with("0\r\n\r\n"),
        "it does not look complete: {answer:?}"
    );
}

#[tokio::test]
async fn proxy_limits_header_lines_of_both_codecs() {
    let up = crate::support::echo("a").await;
    let (snapshot, at) = plain(vec![route(
        "r",
        &[],
        vec![rule(vec![prefix("/")], vec![to(up)])],
    )]);
    let _router = Router::start(&snapshot);
    let mut sender = http2(at).await;
    for (name, lines, status) in [("x-a", 90, 200), ("x-a", 101, 431), ("cookie", 300, 200)] {
        let mut request = get("http://a/");
        for line in 0..lines {
            let value = format!("c{line}=1").parse().expect("a value");
            request.headers_mut().append(name, value);
        }
        let answer = sender.send_request(request).await.expect("an answer");
        assert_eq!(answer.status(), status, "{lines} lines of {name}");
    }
}

#[tokio::test]
async fn proxy_ends_idle_connections_of_both_codecs() {
    let up = crate::support::serve(|_| async {
        tokio::time::sleep(Duration::from_millis(2500)).await;
        http::Response::new(crate::support::full("slow".into()))
    })
    .await;
    let (snapshot, at) = plain(vec![route(
        "r",
        &[],
        vec![rule(vec![prefix("/")], vec![to(up)])],
    )]);
    let config = ProxyConfig {
        idle: Duration::from_secs(2),
        ..patient()
    };
    let _router = Router::with(&snapshot, config);
    // What is under way is not idle.
    let mut sender = http2(at).await;
    let answer = sender
        .send_request(get("http://a/"))
        .await
        .expect("an answer");
    let body = answer.into_body().collect().await.expect("its body");
    assert_eq!(body.to_bytes(), "slow");
    // The preface and nothing more; settings and nothing more; half a head.
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".as_slice();
    let settings = [preface, &[0, 0, 0, 4, 0, 0, 0, 0, 0]].concat();
    for bytes in [preface, &settings, b"GET / HTTP/1.1\r\nHost:", b"P"] {
        let mut stream = crate::support::connect(None, at).await;
        stream.write_all(bytes).await.expect("it is taken");
        let mut rest = Vec::new();
        let ended = tokio::time::timeout(SURELY, stream.read_to_end(&mut rest));
        let _either_way = ended.await.expect("the router ends it");
    }
}
