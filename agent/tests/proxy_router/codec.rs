//! HTTP/1.1 towards clients, byte by byte.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use cardinal_agent::proxy::Reason;
use http::header::{CONTENT_LENGTH, HeaderMap, HeaderName, HeaderValue};
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::{Frame, Incoming};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use crate::support::{Body, Router, echo, full, http2, plain, prefix, raw, route, rule, serve, to};

/// A router in front of one upstream.
fn router(up: SocketAddr) -> (Router, SocketAddr) {
    let routes = vec![route("r", &[], vec![rule(vec![prefix("/")], vec![to(up)])])];
    let (snapshot, at) = plain(routes);
    (Router::start(&snapshot), at)
}

/// Head and body of each answer that has a length.
fn answers(mut text: &str) -> Vec<(&str, &str)> {
    let mut found = Vec::new();
    while let Some((head, rest)) = text.split_once("\r\n\r\n") {
        let length = head
            .lines()
            .find_map(|line| line.strip_prefix("content-length: "));
        let length = length.map_or(0, |length| length.parse().expect("a number"));
        let (body, next) = rest.split_at(length);
        found.push((head, body));
        text = next;
    }
    assert_eq!(text, "", "what is behind the last answer");
    found
}

/// An upstream that says what body it got, and answers by path.
async fn upstream() -> SocketAddr {
    serve(|request: Request<Incoming>| async move {
        let (parts, body) = request.into_parts();
        let body = body.collect().await.expect("the body arrives").to_bytes();
        let text = format!("{} {}", parts.uri.path(), body.len());
        let mut response = Response::new(full(text));
        if parts.uri.path() == "/204" {
            *response.status_mut() = StatusCode::NO_CONTENT;
            *response.body_mut() = full(String::new());
        }
        if parts.method == Method::HEAD {
            *response.body_mut() = full(String::new());
            let length = HeaderValue::from_static("55");
            response.headers_mut().insert(CONTENT_LENGTH, length);
        }
        response
    })
    .await
}

/// An upstream that answers whatever it reads with these bytes.
async fn says(answer: &'static [u8]) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let at = listener.local_addr().expect("it is bound");
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut request = [0; 8192];
                while stream.read(&mut request).await.is_ok_and(|read| read > 0) {
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
async fn proxy_answers_requests_that_wait_behind_each_other() {
    let (_router, at) = router(upstream().await);
    let requests = "GET /a HTTP/1.1\r\nHost: a\r\n\r\n\
         POST /b HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello\
         \r\nPOST /c HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3;x=y\r\nabc\r\n1\r\nd\r\n0\r\nx-t: 1\r\n\r\n\
         GET /d HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n\
         GET /never HTTP/1.1\r\nHost: a\r\n\r\n";
    let answer = raw(at, requests.as_bytes()).await;
    let bodies: Vec<&str> = answers(&answer).into_iter().map(|(_, body)| body).collect();
    assert_eq!(bodies, ["/a 0", "/b 5", "/c 4", "/d 0"], "{answer}");

    // The same, however it is cut into packets.
    let mut stream = TcpStream::connect(at).await.expect("somebody listens");
    stream.set_nodelay(true).expect("an option");
    let (mut reading, mut writing) = stream.split();
    let mut seen = Vec::new();
    let write = async {
        for byte in requests.as_bytes() {
            // The last request is behind the end.
            if writing.write_all(&[*byte]).await.is_err() {
                break;
            }
            tokio::task::yield_now().await;
        }
    };
    let (_, read) = tokio::join!(write, reading.read_to_end(&mut seen));
    // What came behind the last answer may have reset the connection.
    let _ = read;
    let seen = String::from_utf8(seen).expect("text");
    let bodies: Vec<&str> = answers(&seen).into_iter().map(|(_, body)| body).collect();
    assert_eq!(bodies, ["/a 0", "/b 5", "/c 4", "/d 0"], "{seen}");
}

#[tokio::test]
async fn proxy_frames_every_answer_once_as_its_client_reads_it() {
    let (_router, at) = router(upstream().await);
    let ask = async |request: &str| {
        let answer = raw(at, format!("{request}\r\n\r\n").as_bytes()).await;
        answer.to_ascii_lowercase()
    };
    let answer = ask("HEAD /x HTTP/1.1\r\nHost: a").await;
    assert!(answer.contains("content-length: 55\r\n"), "{answer}");
    assert!(answer.ends_with("\r\n\r\n"), "{answer}");
    let answer = ask("GET /204 HTTP/1.1\r\nHost: a").await;
    assert!(
        answer.starts_with("http/1.1 204 no content\r\n"),
        "{answer}"
    );
    assert!(!answer.contains("content-length"), "{answer}");
    // Where there can be no body, no length is told (RFC 9110, section 8.6).
    let empty = b"HTTP/1.1 204 No Content\r\nContent-Length: 5\r\n\r\n";
    let (_empties, empties) = router(says(empty).await);
    let answer = raw(empties, b"HEAD /204 HTTP/1.1\r\nHost: a\r\n\r\n").await;
    assert!(!answer.contains("content-length"), "{answer}");
    // Trailers go to who takes them.
    let streamed = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: x-sum\r\n\r\n3\r\none\r\n3\r\ntwo\r\n0\r\nx-sum: 1\r\nx-more: 1\r\n\r\n";
    let (_streams, streams) = router(says(streamed).await);
    let ask = async |request: &str| {
        let answer = raw(streams, format!("{request}\r\n\r\n").as_bytes()).await;
        answer.to_ascii_lowercase()
    };
    let answer = ask("GET /stream HTTP/1.1\r\nHost: a\r\nTE: trailers").await;
    assert!(
        answer.contains("transfer-encoding: chunked\r\n"),
        "{answer}"
    );
    assert!(answer.ends_with("0\r\nx-sum: 1\r\n\r\n"), "{answer}");
    let answer = ask("GET /stream HTTP/1.1\r\nHost: a").await;
    assert!(answer.ends_with("\r\n0\r\n\r\n"), "{answer}");
    // A client of HTTP/1.0 knows no chunks: the end of the connection is that of the body.
    let answer = ask("GET /stream HTTP/1.0\r\nHost: a\r\nConnection: keep-alive").await;
    assert!(answer.contains("connection: close\r\n"), "{answer}");
    assert!(answer.ends_with("\r\n\r\nonetwo"), "{answer}");
    let twice = "GET /x HTTP/1.0\r\nHost: a\r\nConnection: keep-alive\r\n\r\n".repeat(2);
    let answer = raw(at, twice.as_bytes()).await;
    assert_eq!(
        answer.matches("connection: keep-alive").count(),
        2,
        "{answer}"
    );
    for head in [answers(&answer)[0].0, answers(&answer)[1].0] {
        assert_eq!(head.matches("date: ").count(), 1, "{head}");
    }
}

/// Some upstreams put trailers and header fields together.
#[tokio::test]
async fn proxy_passes_no_trailers_that_say_who_a_client_is() {
    let up = serve(|request: Request<Incoming>| async move {
        let body = request.into_body().collect().await;
        let body = body.expect("the body arrives");
        let names = body.trailers().into_iter().flat_map(HeaderMap::keys);
        let names: Vec<&str> = names.map(HeaderName::as_str).collect();
        Response::new(full(names.join(" ")))
    })
    .await;
    let (_router, at) = router(up);
    let names = [
        "x-sum",
        "x-forwarded-user",
        "x-forwarded-for",
        "forwarded",
        "x-real-ip",
        "cookie",
        "x-routed-to",
        "proxy-authorization",
        "x_forwarded_user",
    ];
    let trailers: String = names.map(|name| format!("{name}: root\r\n")).concat();
    let request = format!(
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTrailer: {}\r\n\r\n1\r\na\r\n0\r\n{trailers}\r\n",
        names.join(", ")
    );
    let answer = raw(at, request.as_bytes()).await;
    assert_eq!(answers(&answer)[0].1, "x-sum", "{answer}");
    // The same over HTTP/2.
    let mut trailers = HeaderMap::new();
    for name in names {
        let value = HeaderValue::from_static("root");
        trailers.insert(HeaderName::from_static(name), value);
    }
    // Without a length: behind one HTTP/1.1 has no trailers.
    let frames = [Frame::data("a".into()), Frame::trailers(trailers)];
    let frames = frames.map(Ok::<_, hyper::Error>);
    let body = StreamBody::new(tokio_stream::iter(frames));
    let request = Request::post("http://a/").header("trailer", names.join(", "));
    let request = request.body(body.boxed()).expect("a request");
    let answer = http2(at).await.send_request(request).await;
    let answer = answer.expect("an answer").into_body().collect().await;
    assert_eq!(answer.expect("its body").to_bytes(), "x-sum");
}

/// An answer comes before the body was read, and with it goes the connection, unless the rest is there.
#[tokio::test]
async fn proxy_keeps_what_was_not_read_apart_from_the_next_request() {
    let (snapshot, at) = plain(Vec::new());
    let _router = Router::start(&snapshot);
    let next = "GET /next HTTP/1.1\r\nHost: a\r\n\r\n";
    // No route: both are refused, the second as a request of its own.
    for body in [
        "Content-Length: 5\r\n\r\nhello",
        "Transfer-Encoding: chunked\r\n\r\n2\r\nab\r\n0\r\n\r\n",
    ] {
        let answer = raw(
            at,
            format!("POST / HTTP/1.1\r\nHost: a\r\n{body}{next}").as_bytes(),
        )
        .await;
        let heads: Vec<&str> = answers(&answer).into_iter().map(|(head, _)| head).collect();
        assert_eq!(heads.len(), 2, "{answer}");
        assert!(
            heads.iter().all(|head| head.starts_with("HTTP/1.1 404")),
            "{answer}"
        );
    }
    // The rest is not there: what comes later is nobody's request.
    for body in [
        "Content-Length: 500\r\n\r\n",
        "Transfer-Encoding: chunked\r\n\r\n1f4\r\n",
    ] {
        let answer = raw(
            at,
            format!("POST / HTTP/1.1\r\nHost: a\r\n{body}{next}").as_bytes(),
        )
        .await;
        assert_eq!(answers(&answer).len(), 1, "{answer}");
    }
    // A client that waits to be told is not, and may not believe that what it sends is a request.
    let expects = "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n";
    let answer = raw(at, format!("{expects}hello{next}").as_bytes()).await;
    assert!(!answer.contains("100 Continue"), "{answer}");
    assert_eq!(answers(&answer).len(), 1, "{answer}");
}

#[tokio::test]
async fn proxy_asks_nobody_for_a_client_that_left() {
    let asked = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&asked);
    let up = serve(move |_: Request<Incoming>| {
        count.fetch_add(1, Ordering::SeqCst);
        std::future::pending::<Response<Body>>()
    })
    .await;
    let (router, at) = router(up);
    let mut stream = TcpStream::connect(at).await.expect("somebody listens");
    let request = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n";
    stream.write_all(request).await.expect("it is taken");
    while asked.load(Ordering::SeqCst) == 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    drop(stream);
    router.reason(Reason::ClientClosed).await;
}

#[tokio::test]
async fn proxy_refuses_heads_that_are_none() {
    let (_router, at) = router(echo("a").await);
    for (bytes, status) in [
        (
            &b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n"[..],
            400,
        ),
        (b"GET / HTTP/3.0\r\nHost: a\r\n\r\n", 400),
        (b"GET  / HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        (b"GET /\x00 HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        (b"G(T / HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\nx: a\x00b\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\nx\xff: a\r\n\r\n", 400),
        (
            b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 5, 5\r\n\r\nhello",
            400,
        ),
        (
            b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: \r\n\r\n",
            400,
        ),
        (
            b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 18446744073709551616\r\n\r\n",
            400,
        ),
        (
            b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked, identity\r\n\r\n",
            400,
        ),
    ] {
        let answer = raw(at, bytes).await;
        let shown = String::from_utf8_lossy(bytes);
        assert!(
            answer.starts_with(&format!("HTTP/1.1 {status}")),
            "{shown:?} gave {answer:?}"
        );
        assert!(answer.contains("connection: close\r\n"), "{answer}");
    }
    // A chunk without a size is found out when the body is read.
    let answer = raw(
        at,
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    )
    .await;
    assert!(!answer.contains(" 200 "), "{answer}");
    // An end in the middle of a head is no request.
    for part in [&b""[..], b"GET / HTTP/1.1\r\nHost"] {
        let mut stream = TcpStream::connect(at).await.expect("somebody listens");
        stream.write_all(part).await.expect("it is taken");
        stream.shutdown().await.expect("it ends");
        let mut told = String::new();
        stream.read_to_string(&mut told).await.expect("an end");
        assert_eq!(told, "");
    }
}
