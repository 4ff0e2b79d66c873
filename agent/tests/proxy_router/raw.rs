//! Bytes that two programs could read in two ways.

use std::sync::{Arc, Mutex};

use http::{Request, Response};
use http_body_util::BodyExt;

use crate::support::{Router, echo, full, get, plain, prefix, raw, route, rule, send, serve, to};

fn statuses(answer: &str) -> Vec<&str> {
    answer
        .split("\r\n")
        .filter_map(|line| line.strip_prefix("HTTP/1.1 "))
        .map(|line| &line[..3])
        .collect()
}

#[tokio::test]
async fn proxy_refuses_what_has_two_readings() {
    let up = echo("a").await;
    let (snapshot, at) = plain(vec![route(
        "r",
        &[],
        vec![rule(vec![prefix("/")], vec![to(up)])],
    )]);
    let _router = Router::start(&snapshot);
    for (request, expected) in [
        ("GET / HTTP/1.1\r\n\r\n", "400"),
        ("GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n", "400"),
        ("GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", "400"),
        ("GET / HTTP/1.1\r\nHost: u@a\r\n\r\n", "400"),
        ("GET http://b/ HTTP/1.1\r\nHost: a\r\n\r\n", "400"),
        ("GET http://a/ HTTP/1.1\r\nHost: a\r\n\r\n", "200"),
        ("GET http://u@a/ HTTP/1.1\r\nHost: u@a\r\n\r\n", "400"),
        ("GET /a%2Fb HTTP/1.1\r\nHost: a\r\n\r\n", "400"),
        ("GET /a%00 HTTP/1.1\r\nHost: a\r\n\r\n", "400"),
        ("GET /.. HTTP/1.1\r\nHost: a\r\n\r\n", "400"),
        ("GET /a\\b HTTP/1.1\r\nHost: a\r\n\r\n", "400"),
        ("OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n", "400"),
        ("CONNECT a:443 HTTP/1.1\r\nHost: a:443\r\n\r\n", "501"),
        ("GET / HTTP/1.1\r\nHost: a\r\nX_Y: 1\r\n\r\n", "400"),
        ("GET / HTTP/1.1\r\nHost : a\r\n\r\n", "400"),
        ("GET / HTTP/1.1\r\nHost: a\r\nX: 1\r\n Y: 2\r\n\r\n", "400"),
        (
            "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
            "400",
        ),
        (
            "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: +1\r\n\r\na",
            "400",
        ),
        (
            "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip\r\n\r\n",
            "400",
        ),
        (
            "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
            "400",
        ),
        (
            "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            "400",
        ),
        (
            "POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            "400",
        ),
        (
            "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            "200",
        ),
    ] {
        let answer = raw(at, request.as_bytes()).await;
        assert_eq!(statuses(&answer), [expected], "{request:?} gave {answer:?}");
    }
    let many = (0..101).map(|n| format!("x{n}: 1\r\n")).collect::<String>();
    let answer = raw(
        at,
        format!("GET / HTTP/1.1\r\nHost: a\r\n{many}\r\n").as_bytes(),
    )
    .await;
    assert_eq!(statuses(&answer), ["431"]);
    let long = "a".repeat(70 * 1024);
    let answer = raw(
        at,
        format!("GET / HTTP/1.1\r\nHost: a\r\nx: {long}\r\n\r\n").as_bytes(),
    )
    .await;
    assert_eq!(statuses(&answer), ["431"]);
}

#[tokio::test]
async fn proxy_passes_no_smuggled_request() {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let log = Arc::clone(&seen);
    let up = serve(move |request: Request<hyper::body::Incoming>| {
        let log = Arc::clone(&log);
        async move {
            let (parts, body) = request.into_parts();
            let bytes = body.collect().await.expect("the body arrives").to_bytes();
            let both = parts.headers.contains_key("content-length")
                && parts.headers.contains_key("transfer-encoding");
            let line = format!("{} {} {}", parts.method, parts.uri.path(), bytes.len());
            log.lock().expect("no panic").push((line, both));
            Response::new(full(String::new()))
        }
    })
    .await;
    let (snapshot, at) = plain(vec![route(
        "r",
        &[],
        vec![rule(vec![prefix("/")], vec![to(up)])],
    )]);
    let _router = Router::start(&snapshot);
    // Length and coding at once: read as chunked, passed on with one framing, and the connection
    // ends, so that what follows is nobody's request (RFC 9112, section 6.3).
    for headers in [
        "Content-Length: 44\r\nTransfer-Encoding: chunked",
        "Transfer-Encoding: chunked\r\nContent-Length: 44",
    ] {
        let request = format!(
            "POST /outer HTTP/1.1\r\nHost: a\r\n{headers}\r\n\r\n0\r\n\r\nGET /inner HTTP/1.1\r\nHost: a\r\n\r\n"
        );
        let answer = raw(at, request.as_bytes()).await;
        assert_eq!(statuses(&answer).len(), 1, "{answer}");
    }
    let seen = seen.lock().expect("no panic");
    for (line, both) in seen.iter() {
        assert_eq!((line.as_str(), *both), ("POST /outer 0", false));
    }
}

#[tokio::test]
async fn proxy_stops_fields_of_one_hop_and_forged_ones() {
    let up = echo("a").await;
    let (snapshot, at) = plain(vec![route(
        "r",
        &[],
        vec![rule(vec![prefix("/")], vec![to(up)])],
    )]);
    let _router = Router::start(&snapshot);
    let request = Request::get("http://a/")
        .header("connection", "X-Hop, close")
        .header("x-hop", "1")
        .header("te", "trailers")
        .header("keep-alive", "timeout=1")
        .header("proxy-authorization", "Basic x")
        .header("upgrade", "h2c")
        .header("x-routed-to", "gold")
        .header("x-route-reason", "tier")
        .header("x-failover-reason", "x")
        .header("x-circuit-state", "open")
        .header("x-forwarded-for", "10.0.0.1")
        .header("x-forwarded-for", "10.0.0.2")
        .header("x-forwarded-proto", "https")
        .header("x-forwarded-host", "evil")
        .header("x-forwarded-port", "1")
        .header("x-forwarded-user", "root")
        .header("x-forwarded-client-cert", "Subject=\"CN=root\"")
        .header("forwarded", "for=10.0.0.1")
        .header("x-real-ip", "10.0.0.1")
        .header("x-http-method-override", "DELETE")
        .header("x-request-id", "rid-1")
        .header("x-end", "1")
        .body(full(String::new()))
        .expect("a request");
    let answer = send(at, request).await;
    for gone in [
        "connection",
        "x-hop",
        "te",
        "keep-alive",
        "proxy-authorization",
        "upgrade",
        "x-routed-to",
        "x-route-reason",
        "x-failover-reason",
        "x-circuit-state",
        "x-forwarded-port",
        "x-forwarded-user",
        "x-forwarded-client-cert",
        "forwarded",
        "x-real-ip",
    ] {
        assert_eq!(answer.seen(gone), [""; 0], "{gone}");
    }
    assert_eq!(answer.seen("x-end"), ["1"]);
    assert_eq!(
        answer.seen("x-forwarded-for"),
        ["10.0.0.1, 10.0.0.2, 127.0.0.1"]
    );
    assert_eq!(answer.seen("x-forwarded-proto"), ["http"]);
    assert_eq!(answer.seen("x-forwarded-host"), ["a"]);
    // Nothing was decided by the method here.
    assert_eq!(answer.seen("x-http-method-override"), ["DELETE"]);
    assert_eq!(answer.seen("x-request-id"), ["rid-1"]);
    assert_eq!(answer.header("x-request-id"), Some("rid-1"));
    let request = Request::get("http://a/").header("x-request-id", "a b\"c");
    let answer = send(at, request.body(full(String::new())).expect("a request")).await;
    assert_eq!(answer.header("x-request-id").map(str::len), Some(32));
    let hops = serve(|_| async {
        let mut response = Response::new(full(String::new()));
        let headers = response.headers_mut();
        headers.insert("connection", "x-hop".parse().expect("a value"));
        headers.insert("x-hop", "1".parse().expect("a value"));
        headers.insert("x-end", "1".parse().expect("a value"));
        response
    })
    .await;
    let (snapshot, at) = plain(vec![route(
        "r",
        &[],
        vec![rule(vec![prefix("/")], vec![to(hops)])],
    )]);
    let _second = Router::start(&snapshot);
    let answer = send(at, get("http://a/")).await;
    assert_eq!(answer.header("x-hop"), None);
    assert_eq!(answer.header("x-end"), Some("1"));
}

#[tokio::test]
async fn proxy_answers_the_wait_for_100_continue() {
    let up = echo("a").await;
    let routes = vec![route("r", &[], vec![rule(vec![prefix("/")], vec![to(up)])])];
    let (snapshot, at) = plain(routes);
    let _router = Router::start(&snapshot);
    let head = "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n";
    let answer = raw(at, format!("{head}ab").as_bytes()).await;
    assert_eq!(statuses(&answer), ["100", "200"], "{answer}");
    assert!(
        !answer.contains("expect"),
        "the upstream does not see it: {answer}"
    );
    // An answer for a client of HTTP/1.0 says what the router speaks (RFC 9110, section 2.5), and ends with the connection.
    let answer = raw(at, b"GET / HTTP/1.0\r\nHost: a\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert!(!answer.contains("chunked"), "{answer}");
}
