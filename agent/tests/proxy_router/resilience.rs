//! Time limits and retries, as a rule's document says.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use cardinal_agent::proxy::{ProxyConfig, Reason};
use cardinal_agent::upstream::Timeouts;
use http::{Request, Response, StatusCode};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use snapshot::model::Target;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use crate::http::Channel;
use crate::support::{
    Body, FOREVER, Router, SURELY, full, get, http2, plain, prefix, refs, reply, route, rule, send,
    serve, written,
};

/// Rules `path: fields` that lead to backend `up`.
fn rules(list: &[(&str, &str)]) -> String {
    list.iter()
        .map(|(path, fields)| {
            format!(
                "    - matches: [{{ path: {{ value: {path} }} }}]
      {fields}
      {}
",
                refs(&["up"])
            )
        })
        .collect()
}

/// An upstream that never answers.
pub(crate) async fn silent() -> SocketAddr {
    slow(FOREVER).await
}

/// An upstream that answers 200 after a while.
pub(crate) async fn slow(after: Duration) -> SocketAddr {
    serve(move |_| async move {
        tokio::time::sleep(after).await;
        Response::new(full("late".into()))
    })
    .await
}

/// An upstream that answers late where `answers` says so of the path, and never elsewhere.
pub(crate) async fn late(answers: fn(&str) -> bool) -> SocketAddr {
    serve(move |request: Request<Incoming>| async move {
        let after = match answers(request.uri().path()) {
            true => Duration::from_millis(600),
            false => FOREVER,
        };
        tokio::time::sleep(after).await;
        Response::new(full("late".into()))
    })
    .await
}

#[tokio::test]
async fn proxy_waits_as_long_as_the_rule_says() {
    let up = late(|path| ["/long", "/off"].contains(&path)).await;
    let rules = rules(&[
        ("/request", "timeouts: { request: 150ms }"),
        ("/backend", "timeouts: { backendRequest: 150ms }"),
        ("/both", "timeouts: { request: 1h, backendRequest: 150ms }"),
        ("/long", "timeouts: { request: 1h }"),
        ("/off", "timeouts: { request: 0s }"),
        ("/usual", "name: usual"),
    ]);
    let (snapshot, at) = written(&rules, &[("up", up)], "");
    let config = ProxyConfig {
        timeouts: Timeouts {
            head: Duration::from_millis(300),
            ..Timeouts::default()
        },
        ..ProxyConfig::default()
    };
    let router = Router::with(&snapshot, config);
    for (path, status) in [
        ("/request", 504),
        ("/backend", 504),
        ("/both", 504),
        ("/usual", 504),
        ("/long", 200),
        ("/off", 200),
    ] {
        let begun = Instant::now();
        let answer = send(at, get(&format!("http://x{path}"))).await;
        assert_eq!(answer.status, status, "{path}");
        let least = if status == 200 { 600 } else { 150 };
        assert!(begun.elapsed() >= Duration::from_millis(least), "{path}");
    }
    router.reason(Reason::UpstreamTimeout).await;
}

#[tokio::test]
async fn proxy_cuts_answers_that_outlast_their_rule() {
    // The head comes at once, and then a byte from time to time.
    let up = serve(|_| async {
        let (frames, body) = tokio::sync::mpsc::channel(1);
        tokio::spawn(async move {
            while frames.send("x".into()).await.is_ok() {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        });
        let body: Body = Channel(body).boxed();
        Response::new(body)
    })
    .await;
    let rules = rules(&[("/", "timeouts: { request: 3s }")]);
    let (snapshot, at) = written(&rules, &[("up", up)], "");
    let router = Router::start(&snapshot);
    let mut sender = http2(at).await;
    let answer = sender.send_request(get("http://x/")).await;
    let answer = answer.expect("the head comes in time");
    assert_eq!(answer.status(), 200);
    let read = tokio::time::timeout(SURELY, answer.into_body().collect());
    read.await
        .expect("it ends")
        .expect_err("a part is not the whole");
    let record = router.reason(Reason::UpstreamTimeout).await;
    assert_eq!(record.status, 200);
    assert!(record.bytes_out > 0);
}

/// An upstream that answers a path's first requests with a status, `/<status>/<times>/..`, and then
/// with the length of the body that it got.
pub(crate) async fn failing() -> (SocketAddr, Arc<AtomicU32>) {
    let count = Arc::new(AtomicU32::new(0));
    let counted = Arc::clone(&count);
    let up = serve(move |request: Request<Incoming>| {
        let count = Arc::clone(&counted);
        async move {
            let path = request.uri().path().to_owned();
            let mut parts = path.split('/').skip(1);
            let mut number = || -> u16 {
                let part = parts.next().expect("a part");
                part.parse().expect("a number")
            };
            let (status, times) = (number(), number());
            let body = request.into_body().collect().await;
            let bytes = body.expect("the body arrives").to_bytes().len();
            let before = count.fetch_add(1, Ordering::SeqCst);
            let mut response = Response::new(full(bytes.to_string()));
            if before < u32::from(times) {
                *response.status_mut() = StatusCode::from_u16(status).expect("a status");
            }
            response
        }
    })
    .await;
    (up, count)
}

#[tokio::test]
async fn proxy_tries_again_as_the_rule_says() {
    let (up, count) = failing().await;
    let rules = rules(&[
        (
            "/503",
            "retry: { attempts: 2, codes: [503, 500], backoff: 20ms }",
        ),
        ("/502", "retry: { attempts: 2, codes: [503] }"),
        ("/504", "name: none"),
        ("/500", "retry: { codes: [500] }"),
    ]);
    let (snapshot, at) = written(&rules, &[("up", up)], "");
    let router = Router::start(&snapshot);
    let post = |path: &str, bytes: usize| {
        Request::post(format!("http://x{path}"))
            .body(full("x".repeat(bytes)))
            .expect("a request")
    };
    for (path, bytes, status, tries) in [
        ("/503/2/", 0, 200, 3),
        ("/503/1/", 0, 200, 2),
        ("/503/9/exhausted", 0, 503, 3),
        ("/502/9/other", 0, 502, 1),
        ("/504/9/none", 0, 504, 1),
        ("/500/9/default", 0, 500, 3),
        ("/503/2/small", 100_000, 200, 3),
        // What is too large to be kept is sent once.
        ("/503/1/large", 1_000_000, 503, 1),
    ] {
        count.store(0, Ordering::SeqCst);
        let begun = Instant::now();
        let answer = send(at, post(path, bytes)).await;
        assert_eq!(answer.status, status, "{path}");
        assert_eq!(count.load(Ordering::SeqCst), tries, "{path}");
        assert_eq!(answer.body, bytes.to_string(), "{path}");
        if path.starts_with("/503") && tries == 3 {
            // The least wait doubles.
            assert!(begun.elapsed() >= Duration::from_millis(60), "{path}");
        }
        let record = router.record(|one| one.path.as_deref() == Some(path)).await;
        assert_eq!(record.retries, tries - 1, "{path}");
        assert_eq!(record.bytes_in, bytes as u64, "{path}");
    }
}

/// An upstream that reads a request and resets the connection, so many times, and then answers.
pub(crate) async fn resetting(times: u32) -> (SocketAddr, Arc<AtomicU32>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("it is bound");
    let count = Arc::new(AtomicU32::new(0));
    let counted = Arc::clone(&count);
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut request = [0; 4096];
            let read = stream.read(&mut request).await;
            assert!(read.is_ok_and(|bytes| bytes > 0), "a request comes");
            if counted.fetch_add(1, Ordering::SeqCst) < times {
                // With a linger of zero the kernel resets.
                let reset = socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO));
                reset.expect("an option");
                continue;
            }
            let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok";
            stream.write_all(answer).await.expect("it is taken");
        }
    });
    (address, count)
}

#[tokio::test]
async fn proxy_tries_broken_connections_again_without_any_code() {
    for (times, status, tries) in [(2, 200, 3), (9, 503, 3)] {
        let (up, count) = resetting(times).await;
        let rules = rules(&[("/", "retry: { attempts: 2 }")]);
        let (snapshot, at) = written(&rules, &[("up", up)], "");
        let router = Router::start(&snapshot);
        let request = Request::post("http://x/").body(full("body".into()));
        let answer = send(at, request.expect("a request")).await;
        assert_eq!(answer.status, status);
        assert_eq!(count.load(Ordering::SeqCst), tries);
        if status == 503 {
            let record = router.reason(Reason::RetriesExhausted).await;
            let detail = record.detail.as_deref().expect("a detail");
            assert!(detail.contains("no try is left"), "{detail}");
        }
    }
}

#[tokio::test]
async fn proxy_retries_end_with_the_time_of_the_request() {
    let up = silent().await;
    let fields = "timeouts: { request: 4s, backendRequest: 150ms }\n      retry: { attempts: 100, backoff: 10ms }";
    let rules = rules(&[("/", fields)]);
    let (snapshot, at) = written(&rules, &[("up", up)], "");
    let router = Router::start(&snapshot);
    let begun = Instant::now();
    let answer = send(at, get("http://x/")).await;
    let took = begun.elapsed();
    assert_eq!(answer.status, 504);
    assert!(took >= Duration::from_millis(3500), "{took:?}");
    let record = router.reason(Reason::UpstreamTimeout).await;
    // A hundred take 15 s or more.
    assert!((1..100).contains(&record.retries), "{}", record.retries);
}

#[tokio::test]
async fn proxy_retries_cannot_storm() {
    let (up, count) = failing().await;
    let rules = rules(&[("/", "retry: { attempts: 3, codes: [503], backoff: 1ms }")]);
    let (snapshot, at) = written(&rules, &[("up", up)], "");
    let router = Router::start(&snapshot);
    // One connection is one core, and has one budget.
    let mut sender = http2(at).await;
    let asked = 300;
    let begun = Instant::now();
    for _ in 0..asked {
        let answer = sender.send_request(get("http://x/503/9999/"));
        assert_eq!(reply(answer.await.expect("an answer")).await.status, 503);
    }
    let tries = count.load(Ordering::SeqCst);
    // Ten a second over ten seconds are granted anyway, and more than that one in five; and again when those are over.
    assert!(tries >= asked + 100, "{tries}");
    let windows = 1 + u32::try_from(begun.elapsed().as_secs() / 9).expect("it is soon over");
    assert!(
        tries <= asked + 120 * windows,
        "{tries} tries of {asked} requests"
    );
    let mut text = String::new();
    let mut registry = prometheus_client::registry::Registry::with_prefix("cardinal");
    router.proxy.metrics().register(&mut registry);
    prometheus_client::encoding::text::encode(&mut text, &registry).expect("it encodes");
    let sent = format!(
        "cardinal_proxy_retries_total{{result=\"sent\"}} {}\n",
        tries - asked
    );
    assert!(text.contains(&sent), "{text}");
    assert!(
        text.contains("cardinal_proxy_retries_total{result=\"budget\"}"),
        "{text}"
    );
}

#[tokio::test]
async fn proxy_answers_503_where_no_endpoint_is() {
    let target = snapshot::model::WeightedTarget::new(1, Target::Upstreams([].into()));
    let rules = vec![rule(vec![prefix("/")], vec![target])];
    let (snapshot, at) = plain(vec![route("r", &[], rules)]);
    let router = Router::start(&snapshot);
    assert_eq!(send(at, get("http://x/")).await.status, 503);
    router.reason(Reason::NoReadyEndpoint).await;
}
