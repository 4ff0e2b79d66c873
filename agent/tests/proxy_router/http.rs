//! Requests: codecs, streaming, rewrites, weights, headers, failures.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use cardinal_agent::proxy::{ProxyConfig, Reason};
use cardinal_agent::upstream::{Reach, Timeouts};
use http::{Request, Response, StatusCode};
use http_body::Frame;
use http_body_util::BodyExt;
use snapshot::model::{
    Filter, HeaderEdits, HostRewrite, PathRewrite, Pattern, Rewrite, Target, Upstream,
    UpstreamHost, WeightedTarget,
};
use tokio::sync::mpsc;

use crate::support::{
    FOREVER, Router, addresses, echo, exact, free_port, full, get, http2, plain, port, prefix,
    regex, reply, route, rule, send, serve, to, weighted,
};

#[tokio::test]
async fn proxy_speaks_both_codecs_on_one_port() {
    let up = echo("a").await;
    let (snapshot, at) = plain(vec![route(
        "r",
        &[],
        vec![rule(vec![prefix("/")], vec![to(up)])],
    )]);
    let router = Router::start(&snapshot);
    let one = send(at, get("http://Example.org:80/x?y=%20z&q")).await;
    assert_eq!(one.status, 200);
    assert_eq!(one.json()["uri"], "/x?y=%20z&q");
    assert_eq!(
        one.seen("host"),
        ["Example.org:80"],
        "the host stays as sent"
    );
    assert_eq!(one.seen("x-forwarded-proto"), ["http"]);
    assert_eq!(one.seen("x-forwarded-for"), ["127.0.0.1"]);
    let id = one.header("x-request-id").expect("an id").to_owned();
    assert_eq!(one.seen("x-request-id"), [id.as_str()]);
    assert!(id.len() == 32 && id.bytes().all(|byte| byte.is_ascii_hexdigit()));

    let mut sender = http2(at).await;
    let request = Request::post("http://example.org/y").body(full("12345".into()));
    let two = reply(
        sender
            .send_request(request.expect("a request"))
            .await
            .expect("an answer"),
    )
    .await;
    assert_eq!(two.json()["bytes"], 5);
    assert_eq!(two.json()["version"], "HTTP/1.1");
    assert_eq!(two.seen("host"), ["example.org"]);

    let record = router.record(|one| one.path.as_deref() == Some("/y")).await;
    assert_eq!(record.status, 200);
    assert_eq!(record.reason, Reason::Ok);
    assert_eq!(record.bytes_in, 5);
    assert_eq!(record.bytes_out, two.body.len() as u64);
    assert_eq!(record.route.as_deref(), Some("default/r"));
    assert_eq!(record.listener.as_deref(), Some("default/gw/http"));
    assert_eq!(record.upstream.as_deref(), Some(up.to_string().as_str()));
    let mut text = String::new();
    let mut registry = prometheus_client::registry::Registry::with_prefix("cardinal");
    router.proxy.metrics().register(&mut registry);
    prometheus_client::encoding::text::encode(&mut text, &registry).expect("it encodes");
    assert!(
        text.contains("cardinal_proxy_requests_total{listener=\"default/gw/http\",status=\"2xx\",reason=\"ok\"} 2"),
        "{text}"
    );
}

#[tokio::test]
async fn proxy_streams_bodies_before_they_end() {
    // The upstream echoes each frame as it comes.
    let up = serve(|request: Request<hyper::body::Incoming>| async move {
        Response::new(request.into_body().boxed())
    })
    .await;
    let (snapshot, at) = plain(vec![route(
        "r",
        &[],
        vec![rule(vec![prefix("/")], vec![to(up)])],
    )]);
    let router = Router::start(&snapshot);
    let (frames, outgoing) = mpsc::channel::<Bytes>(1);
    let mut sender = http2(at).await;
    let request = Request::post("http://x/")
        .body(Channel(outgoing).boxed())
        .expect("a request");
    let response = sender.send_request(request);
    let chunk = Bytes::from(vec![7; 256 * 1024]);
    frames.send(chunk.clone()).await.expect("it is wanted");
    let mut response = response
        .await
        .expect("the head comes while the body is open");
    let mut read = 0;
    for _ in 0..16 {
        while read < chunk.len() {
            let frame = response.frame().await.expect("a frame").expect("no error");
            read += frame.data_ref().map_or(0, Bytes::len);
        }
        read -= chunk.len();
        frames.send(chunk.clone()).await.expect("it is wanted");
    }
    drop(frames);
    while let Some(frame) = response.frame().await {
        read += frame.expect("no error").data_ref().map_or(0, Bytes::len);
    }
    assert_eq!(read, chunk.len(), "the last chunk");
    let record = router.record(|one| one.status == 200).await;
    assert_eq!(record.bytes_in, 17 * 256 * 1024);
    assert_eq!(record.bytes_out, 17 * 256 * 1024);
}

/// A body that ends when its sender is dropped.
pub(crate) struct Channel(pub(crate) mpsc::Receiver<Bytes>);

impl http_body::Body for Channel {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        self: std::pin::Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let received = self.get_mut().0.poll_recv(context);
        received.map(|bytes| bytes.map(|bytes| Ok(Frame::data(bytes))))
    }
}

#[tokio::test]
async fn proxy_holds_back_a_sender_whose_reader_waits() {
    // The upstream takes the head and then reads nothing.
    let up = serve(|request: Request<hyper::body::Incoming>| async move {
        tokio::time::sleep(FOREVER).await;
        Response::new(request.into_body().boxed())
    })
    .await;
    let (snapshot, at) = plain(vec![route(
        "r",
        &[],
        vec![rule(vec![prefix("/")], vec![to(up)])],
    )]);
    let _router = Router::start(&snapshot);
    let (frames, outgoing) = mpsc::channel::<Bytes>(1);
    let mut sender = http2(at).await;
    let request = Request::post("http://x/").body(Channel(outgoing).boxed());
    let _response = tokio::spawn(sender.send_request(request.expect("a request")));
    let chunk = Bytes::from(vec![7; 1 << 20]);
    let mut taken = 0;
    while tokio::time::timeout(Duration::from_secs(1), frames.send(chunk.clone()))
        .await
        .is_ok()
    {
        taken += 1;
        assert!(taken < 64, "64 MiB were taken that nobody reads");
    }
}

#[tokio::test]
async fn proxy_rewrites_paths_hosts_and_headers() {
    let up = echo("a").await;
    let with = |mut rule: snapshot::model::Rule, filters| {
        rule.filters = filters;
        rule
    };
    let regex_change = PathRewrite::Regex {
        pattern: Pattern::new("^/r/([a-z]+)/(.*)$").expect("a pattern"),
        substitution: "/${2}/$1".into(),
    };
    let edits = |set: &[(&str, &str)], add: &[(&str, &str)], remove: &[&str]| {
        let pairs = |list: &[(&str, &str)]| {
            list.iter()
                .map(|(a, b)| ((*a).to_owned(), (*b).to_owned()))
                .collect()
        };
        HeaderEdits {
            set: pairs(set),
            add: pairs(add),
            remove: remove.iter().map(|one| (*one).to_owned()).collect(),
        }
    };
    let (snapshot, at) = plain(vec![route(
        "r",
        &[],
        vec![
            with(
                rule(vec![prefix("/p")], vec![to(up)]),
                vec![PathRewrite::Prefix("/q".into()).into()],
            ),
            with(
                rule(vec![regex("/r/.*")], vec![to(up)]),
                vec![regex_change.into()],
            ),
            with(
                rule(vec![exact("/h")], vec![to(up)]),
                vec![
                    Filter::RequestHeaders(
                        edits(&[("x-set", "s")], &[("x-add", "b")], &["x-gone"]).into(),
                    ),
                    Filter::ResponseHeaders(edits(&[("x-cell-name", "hidden")], &[], &[]).into()),
                    Filter::Rewrite(Arc::new(Rewrite {
                        path: None,
                        hostname: Some(HostRewrite::Name(
                            snapshot::model::Hostname::new("other.example").expect("a host"),
                        )),
                    })),
                ],
            ),
        ],
    )]);
    let router = Router::start(&snapshot);
    assert_eq!(
        send(at, get("http://x/p/1//2?a=%2F")).await.json()["uri"],
        "/q/1/2?a=%2F"
    );
    assert_eq!(
        send(at, get("http://x/r/ab/c%20d")).await.json()["uri"],
        "/c%20d/ab"
    );
    let request = Request::get("http://x/h")
        .header("x-add", "a")
        .header("x-gone", "1")
        .body(full(String::new()));
    let edited = send(at, request.expect("a request")).await;
    assert_eq!(edited.seen("x-set"), ["s"]);
    assert_eq!(edited.seen("x-add"), ["a,b"]);
    assert_eq!(edited.seen("x-gone"), [""; 0]);
    assert_eq!(edited.seen("host"), ["other.example"]);
    assert_eq!(edited.seen("x-forwarded-host"), ["x"]);
    assert_eq!(edited.header("x-cell-name"), Some("hidden"));
    let record = router
        .record(|one| one.path.as_deref() == Some("/p/1/2"))
        .await;
    assert_eq!(record.upstream_path.as_deref(), Some("/q/1/2"));
}

#[tokio::test]
async fn proxy_splits_by_weight_and_gives_broken_shares_500() {
    let (a, b) = (echo("a").await, echo("b").await);
    let gone = Target::Unresolved("no Service default/gone".into());
    let unresolved = WeightedTarget::new(1, gone);
    let (snapshot, at) = plain(vec![route(
        "r",
        &[],
        vec![
            rule(
                vec![prefix("/")],
                vec![weighted(3, a), weighted(1, b), weighted(0, b)],
            ),
            rule(vec![prefix("/half")], vec![to(a), unresolved]),
            rule(vec![prefix("/none")], vec![weighted(0, a)]),
            rule(vec![prefix("/nothing")], vec![]),
        ],
    )]);
    let router = Router::start(&snapshot);
    let mut sender = http2(at).await;
    let mut count = std::collections::BTreeMap::<String, u32>::new();
    for _ in 0..400 {
        let answer = reply(
            sender
                .send_request(get("http://x/"))
                .await
                .expect("an answer"),
        )
        .await;
        *count.entry(answer.json()["name"].to_string()).or_default() += 1;
    }
    let share = f64::from(count["\"a\""]) / 400.0;
    assert!((share - 0.75).abs() < 0.1, "{count:?}");
    let mut broken = 0;
    for _ in 0..100 {
        let answer = reply(
            sender
                .send_request(get("http://x/half"))
                .await
                .expect("an answer"),
        )
        .await;
        broken += u32::from(answer.status == 500);
    }
    assert!((20..80).contains(&broken), "{broken} of 100");
    assert_eq!(send(at, get("http://x/none")).await.status, 500);
    assert_eq!(send(at, get("http://x/nothing")).await.status, 500);
    router.reason(Reason::Unresolved).await;
    router.reason(Reason::NoTarget).await;
}

#[tokio::test]
async fn proxy_tells_failures_of_upstreams_apart() {
    let dead = (std::net::Ipv4Addr::LOCALHOST, free_port()).into();
    let slow = serve(|_| async {
        tokio::time::sleep(FOREVER).await;
        Response::new(full(String::new()))
    })
    .await;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0")
        .await
        .expect("a port");
    let rude = listener.local_addr().expect("it is bound");
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            stream.readable().await.expect("a request comes");
            drop(stream);
        }
    });
    let alive = echo("a").await;
    let named = |text: &str| {
        let upstream = Upstream::Tcp {
            host: UpstreamHost::Name(snapshot::model::Hostname::new(text).expect("a host")),
            port: port(alive.port()),
            tls: None,
        };
        WeightedTarget::new(1, Target::Upstreams([upstream].into()))
    };
    let both = Target::Upstreams([upstream(dead), upstream(alive)].into());
    let two = WeightedTarget::new(1, both);
    let (snapshot, at) = plain(vec![route(
        "r",
        &[],
        vec![
            rule(vec![prefix("/dead")], vec![to(dead)]),
            rule(vec![prefix("/slow")], vec![to(slow)]),
            rule(vec![prefix("/rude")], vec![to(rude)]),
            rule(vec![prefix("/named")], vec![named("api.localhost")]),
            rule(vec![prefix("/two")], vec![two]),
        ],
    )]);
    let config = ProxyConfig {
        timeouts: Timeouts {
            head: Duration::from_secs(2),
            ..Timeouts::default()
        },
        ..ProxyConfig::default()
    };
    let router = Router::with(&snapshot, config);
    for (path, status, reason) in [
        ("/dead", StatusCode::BAD_GATEWAY, Reason::UpstreamConnect),
        (
            "/slow",
            StatusCode::GATEWAY_TIMEOUT,
            Reason::UpstreamTimeout,
        ),
        ("/rude", StatusCode::BAD_GATEWAY, Reason::UpstreamReset),
        ("/other", StatusCode::NOT_FOUND, Reason::NoRoute),
    ] {
        let answer = send(at, get(&format!("http://x{path}"))).await;
        assert_eq!(answer.status, status, "{path}");
        let record = router.reason(reason).await;
        assert_eq!(answer.json()["error"], reason.as_str());
        assert_eq!(answer.json()["request_id"], record.request_id.to_string());
        assert!(record.detail.is_some(), "{path}");
    }
    assert_eq!(send(at, get("http://x/named")).await.status, 200);
    // A dead upstream of a list costs nothing: no byte was sent to it.
    for _ in 0..4 {
        assert_eq!(send(at, get("http://x/two")).await.status, 200);
    }
}

#[tokio::test]
async fn proxy_of_a_cluster_leads_nobody_to_its_own_node() {
    let alive = echo("a").await;
    let named = Upstream::Tcp {
        host: UpstreamHost::Name(snapshot::model::Hostname::new("api.localhost").expect("a host")),
        port: port(alive.port()),
        tls: None,
    };
    let target = WeightedTarget::new(1, Target::Upstreams([named].into()));
    let (snapshot, at) = plain(vec![route(
        "r",
        &[],
        vec![
            rule(vec![prefix("/")], vec![target]),
            rule(vec![prefix("/literal")], vec![to(alive)]),
        ],
    )]);
    let config = ProxyConfig {
        reach: Reach::OffNode,
        ..ProxyConfig::default()
    };
    let router = Router::with(&snapshot, config);
    let answer = send(at, get("http://x/")).await;
    assert_eq!(answer.status, StatusCode::BAD_GATEWAY);
    let record = router.reason(Reason::UpstreamResolve).await;
    let detail = record.detail.as_deref().unwrap_or_default();
    assert!(detail.contains("the node's loopback"), "{detail}");
    let answer = send(at, get("http://x/literal")).await;
    assert_eq!(answer.status, StatusCode::BAD_GATEWAY);
    let record = router.reason(Reason::UpstreamConnect).await;
    let detail = record.detail.as_deref().unwrap_or_default();
    assert!(detail.contains("the node's loopback"), "{detail}");
}

fn upstream(address: std::net::SocketAddr) -> Upstream {
    Upstream::Tcp {
        host: UpstreamHost::Address(address.ip()),
        port: port(address.port()),
        tls: None,
    }
}

#[tokio::test]
async fn proxy_joins_websockets() {
    let up = serve(|mut request: Request<hyper::body::Incoming>| async move {
        assert_eq!(request.headers()["upgrade"], "websocket");
        let upgrade = hyper::upgrade::on(&mut request);
        tokio::spawn(async move {
            let upgraded = upgrade.await.expect("the client switches");
            let (mut read, mut write) = tokio::io::split(hyper_util::rt::TokioIo::new(upgraded));
            let _ended = tokio::io::copy(&mut read, &mut write).await;
        });
        let mut response = Response::new(full(String::new()));
        *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        let headers = response.headers_mut();
        headers.insert("connection", "upgrade".parse().expect("a value"));
        headers.insert("upgrade", "websocket".parse().expect("a value"));
        headers.insert("sec-websocket-accept", "yes".parse().expect("a value"));
        response
    })
    .await;
    let (snapshot, at) = plain(vec![route(
        "r",
        &[],
        vec![rule(vec![prefix("/")], vec![to(up)])],
    )]);
    let _router = Router::start(&snapshot);
    let answer = crate::support::raw_until(
        at,
        b"GET / HTTP/1.1\r\nHost: x\r\nConnection: keep-alive, Upgrade\r\nUpgrade: websocket\r\n\r\nping",
        |told| told.ends_with(b"ping"),
        Duration::ZERO,
    )
    .await;
    assert!(answer.starts_with("HTTP/1.1 101"), "{answer}");
    assert!(
        answer.to_lowercase().contains("sec-websocket-accept: yes"),
        "{answer}"
    );
    assert!(answer.ends_with("\r\n\r\nping"), "{answer}");
}

#[tokio::test]
async fn proxy_serves_unix_sockets_and_reuses_connections() {
    let folder = tempfile::tempdir().expect("a folder");
    let socket = folder.path().join("up");
    let listener = tokio::net::UnixListener::bind(&socket).expect("a socket");
    let connections = std::sync::Arc::new(std::sync::atomic::AtomicU32::new(0));
    let counted = std::sync::Arc::clone(&connections);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            counted.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            tokio::spawn(async move {
                let service = hyper::service::service_fn(|_| async {
                    Ok::<_, std::convert::Infallible>(Response::new(full("unix".into())))
                });
                let io = hyper_util::rt::TokioIo::new(stream);
                let http = hyper::server::conn::http1::Builder::new();
                let _ended = http.serve_connection(io, service).await;
            });
        }
    });
    let target = WeightedTarget::new(1, Target::Upstreams([Upstream::Unix(socket)].into()));
    let (snapshot, at) = plain(vec![route(
        "r",
        &[],
        vec![rule(vec![prefix("/")], vec![target])],
    )]);
    let _router = Router::start(&snapshot);
    let mut sender = http2(at).await;
    for _ in 0..20 {
        let answer = reply(
            sender
                .send_request(get("http://x/"))
                .await
                .expect("an answer"),
        )
        .await;
        assert_eq!(answer.body, "unix");
    }
    let used = connections.load(std::sync::atomic::Ordering::Relaxed);
    assert!(
        used <= 2,
        "{used} connections for requests one after the other"
    );
}

#[tokio::test]
async fn proxy_says_why_a_port_is_not_free() {
    let (snapshot, at) = plain(vec![]);
    let router = Router::start(&snapshot);
    let taken = tokio::net::TcpListener::bind("127.0.0.1:0")
        .await
        .expect("a port");
    let other = taken.local_addr().expect("it is bound");
    let error = router
        .proxy
        .open(&addresses(&[at, other]))
        .expect_err("it is taken");
    let text = error.to_string();
    assert!(
        text.contains(&other.to_string()) && text.contains("already listens"),
        "{text}"
    );
    // The refused change changed nothing.
    assert_eq!(send(at, get("http://x/")).await.status, 404);
    let foreign = "192.0.2.1:80".parse().expect("an address");
    let error = router
        .proxy
        .open(&addresses(&[at, foreign]))
        .expect_err("not ours");
    assert!(
        error.to_string().contains("no interface has this address"),
        "{error}"
    );
}

#[tokio::test]
async fn proxy_carries_grpc_with_trailers() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0")
        .await
        .expect("a port");
    let up = listener.local_addr().expect("it is bound");
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let service =
                hyper::service::service_fn(|request: Request<hyper::body::Incoming>| async {
                    assert_eq!(request.headers()["te"], "trailers");
                    assert_eq!(
                        request.uri().to_string(),
                        "http://grpc.example/pkg.Service/Call"
                    );
                    let mut trailers = http::HeaderMap::new();
                    trailers.insert("grpc-status", http::HeaderValue::from_static("0"));
                    let body = request
                        .into_body()
                        .with_trailers(async { Some(Ok(trailers)) });
                    Ok::<_, std::convert::Infallible>(Response::new(body))
                });
            let io = hyper_util::rt::TokioIo::new(stream);
            let http =
                hyper::server::conn::http2::Builder::new(hyper_util::rt::TokioExecutor::new());
            tokio::spawn(http.serve_connection(io, service));
        }
    });
    let (snapshot, at) = plain(vec![route(
        "r",
        &[],
        vec![rule(vec![prefix("/pkg.Service")], vec![to(up)])],
    )]);
    let _router = Router::start(&snapshot);
    let mut sender = http2(at).await;
    let call = |path: &str| {
        Request::post(format!("http://grpc.example{path}"))
            .header("content-type", "application/grpc+proto")
            .header("te", "trailers")
            .body(full("message".into()))
            .expect("a request")
    };
    for _ in 0..3 {
        let answer = sender
            .send_request(call("/pkg.Service/Call"))
            .await
            .expect("an answer");
        let collected = answer
            .into_body()
            .collect()
            .await
            .expect("the body arrives");
        assert_eq!(collected.trailers().expect("trailers")["grpc-status"], "0");
        assert_eq!(collected.to_bytes(), "message");
    }
    let unknown = sender
        .send_request(call("/other.Service/Call"))
        .await
        .expect("an answer");
    assert_eq!(unknown.status(), 200);
    assert_eq!(unknown.headers()["grpc-status"], "12", "unimplemented");
}

#[tokio::test]
async fn proxy_serves_ipv6_like_ipv4() {
    let listener = tokio::net::TcpListener::bind("[::1]:0")
        .await
        .expect("a port");
    let up = listener.local_addr().expect("it is bound");
    crate::support::serve_on(
        listener,
        |request: Request<hyper::body::Incoming>| async move {
            let seen = request.headers()["x-forwarded-for"]
                .to_str()
                .expect("ASCII")
                .to_owned();
            Response::new(full(seen))
        },
    );
    let (mut snapshot, at) = plain(vec![route(
        "r",
        &[],
        vec![rule(vec![prefix("/")], vec![to(up)])],
    )]);
    for gateway in snapshot.gateways.values_mut() {
        gateway.addresses.push(std::net::Ipv6Addr::LOCALHOST.into());
    }
    let _router = Router::start(&snapshot);
    let stream = tokio::net::TcpStream::connect(("::1", at.port()))
        .await
        .expect("it listens");
    let io = hyper_util::rt::TokioIo::new(stream);
    let (mut sender, connection) = hyper::client::conn::http1::handshake(io)
        .await
        .expect("a connection");
    tokio::spawn(connection);
    let request = Request::get("/").header("host", format!("[::1]:{}", at.port()));
    let request = request.body(full(String::new())).expect("a request");
    let answer = reply(sender.send_request(request).await.expect("an answer")).await;
    assert_eq!(answer.body, "::1");
    assert_eq!(send(at, get("http://x/")).await.body, "127.0.0.1");
}

#[tokio::test]
async fn proxy_records_who_broke_off() {
    let asked = std::sync::Arc::new(tokio::sync::Notify::new());
    let told = std::sync::Arc::clone(&asked);
    let slow = serve(move |_| {
        told.notify_one();
        async {
            tokio::time::sleep(FOREVER).await;
            Response::new(full(String::new()))
        }
    })
    .await;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0")
        .await
        .expect("a port");
    let cut = listener.local_addr().expect("it is bound");
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut request = [0; 4096];
            let read = tokio::io::AsyncReadExt::read(&mut stream, &mut request).await;
            assert!(read.is_ok_and(|bytes| bytes > 0), "a request comes");
            let half = b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf";
            tokio::io::AsyncWriteExt::write_all(&mut stream, half)
                .await
                .expect("it is taken");
        }
    });
    let rules = vec![
        rule(vec![prefix("/slow")], vec![to(slow)]),
        rule(vec![prefix("/cut")], vec![to(cut)]),
    ];
    let (snapshot, at) = plain(vec![route("r", &[], rules)]);
    let router = Router::start(&snapshot);
    let mut sender = http2(at).await;
    let given_up = sender.send_request(get("http://x/slow"));
    tokio::select! {
        answer = given_up => panic!("the upstream is slow: {answer:?}"),
        () = asked.notified() => {}
    }
    let record = router.reason(Reason::ClientClosed).await;
    assert_eq!((record.status, record.path.as_deref()), (0, Some("/slow")));
    let answer = sender
        .send_request(get("http://x/cut"))
        .await
        .expect("a head");
    assert_eq!(answer.status(), 200);
    answer
        .into_body()
        .collect()
        .await
        .expect_err("a short body is no whole one");
    let record = router.reason(Reason::UpstreamReset).await;
    assert_eq!((record.status, record.bytes_out), (200, 4));
}
