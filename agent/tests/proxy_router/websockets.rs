//! WebSockets over HTTP/2 (RFC 8441), towards upstreams that know HTTP/1.1.

use std::net::SocketAddr;

use http::{HeaderMap, Method, Request, Response, StatusCode};
use hyper::ext::Protocol;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::support::{Body, Router, full, get, http2, plain, prefix, route, rule, serve, to};

/// Switches for `/chat`, and answers what it was asked with; everything else gets a page.
async fn upstream() -> SocketAddr {
    serve(|mut request: Request<hyper::body::Incoming>| async move {
        let mut response = Response::new(full("a page".into()));
        if request.uri().path() != "/chat" {
            return response;
        }
        let headers: HeaderMap = request.headers().clone();
        assert_eq!(request.method(), Method::GET);
        assert_eq!(headers["connection"], "upgrade");
        assert_eq!(headers["upgrade"], "websocket");
        assert_eq!(headers["sec-websocket-key"].len(), 24);
        assert_eq!(headers["sec-websocket-version"], "13");
        let upgrade = hyper::upgrade::on(&mut request);
        tokio::spawn(async move {
            let upgraded = upgrade.await.expect("the router switches");
            let (mut read, mut write) = tokio::io::split(TokioIo::new(upgraded));
            let _ended = tokio::io::copy(&mut read, &mut write).await;
        });
        *response.body_mut() = full(String::new());
        *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        for (name, value) in [
            ("connection", "upgrade"),
            ("upgrade", "websocket"),
            ("sec-websocket-accept", "yes"),
            ("sec-websocket-protocol", "chat"),
        ] {
            let value = value.parse().expect("a value");
            response.headers_mut().insert(name, value);
        }
        response
    })
    .await
}

fn connect(path: &str, protocol: &'static str) -> Request<Body> {
    Request::builder()
        .method(Method::CONNECT)
        .uri(format!("http://a{path}"))
        .header("sec-websocket-version", "13")
        .extension(Protocol::from_static(protocol))
        .body(full(String::new()))
        .expect("a request")
}

#[tokio::test]
async fn proxy_joins_websockets_of_http2() {
    let (snapshot, at) = plain(vec![route(
        "r",
        &[],
        vec![rule(vec![prefix("/")], vec![to(upstream().await)])],
    )]);
    let _router = Router::start(&snapshot);
    let mut sender = http2(at).await;
    // The router's settings have arrived with the first answer.
    let page = sender.send_request(get("http://a/")).await;
    assert_eq!(page.expect("an answer").status(), 200);

    // Two of them share the connection with what else it carries.
    let mut joined = Vec::new();
    for _ in 0..2 {
        let answer = sender.send_request(connect("/chat", "websocket")).await;
        let mut answer = answer.expect("an answer");
        assert_eq!(answer.status(), 200);
        assert_eq!(answer.headers()["sec-websocket-protocol"], "chat");
        for gone in ["connection", "upgrade", "sec-websocket-accept"] {
            assert!(!answer.headers().contains_key(gone), "{gone}");
        }
        let upgraded = hyper::upgrade::on(&mut answer).await;
        joined.push(TokioIo::new(upgraded.expect("a tunnel")));
    }
    for (number, tunnel) in joined.iter_mut().enumerate() {
        let sent = [u8::try_from(number).expect("it is small"); 5];
        tunnel.write_all(&sent).await.expect("it is taken");
        let mut back = [9; 5];
        tunnel.read_exact(&mut back).await.expect("it comes back");
        assert_eq!(back, sent);
    }
    let page = sender.send_request(get("http://a/")).await;
    assert_eq!(page.expect("an answer").status(), 200);

    // An answer without a switch is none that opens a tunnel; and there is one protocol only.
    let answer = sender.send_request(connect("/", "websocket")).await;
    assert_eq!(answer.expect("an answer").status(), 502);
    let answer = sender.send_request(connect("/chat", "connect-udp")).await;
    assert_eq!(answer.expect("an answer").status(), 501);
}
