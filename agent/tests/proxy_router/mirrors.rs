//! Copies of requests, and answers to pages of other origins.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use cardinal_agent::proxy::{ProxyConfig, Reason};
use cardinal_agent::upstream::Timeouts;
use http::{Method, Request, Response};
use http_body_util::BodyExt;
use hyper::body::Incoming;

use crate::support::{
    Body, FOREVER, Reply, Router, SURELY, echo, free_port, full, get, http2, refs, reply, send,
    serve, until, written,
};

type Seen = Arc<Mutex<Vec<String>>>;

/// An upstream that notes what it got, `path header bytes`, and answers as slowly as it is told.
async fn mirror(after: Duration) -> (SocketAddr, Seen) {
    let seen = Seen::default();
    let noted = Arc::clone(&seen);
    let up = serve(move |request: Request<Incoming>| {
        let noted = Arc::clone(&noted);
        async move {
            let (parts, body) = request.into_parts();
            let body = body.collect().await.map(|body| body.to_bytes().len());
            let header = parts.headers.get("x-set");
            let line = format!(
                "{} {} {}",
                parts.uri,
                header.map_or("none", |value| value.to_str().expect("ASCII")),
                body.expect("the body arrives")
            );
            noted.lock().expect("no panic").push(line);
            tokio::time::sleep(after).await;
            Response::new(full("nobody reads this".into()))
        }
    })
    .await;
    (up, seen)
}

async fn count(seen: &Seen, least: usize) -> usize {
    let counted = || seen.lock().expect("no panic").len();
    until("enough copies", || counted() >= least).await;
    // Whoever came too often had the time.
    let mut count = 0;
    while count != counted() {
        count = counted();
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    count
}

fn copy_to(name: &str, share: &str) -> String {
    format!(
        "{{ type: RequestMirror, requestMirror: {{ backendRef: {{ group: gateway.envoyproxy.io, kind: Backend, name: {name} }}{share} }} }}"
    )
}

fn rule(path: &str, filters: &[String]) -> String {
    format!(
        "    - matches: [{{ path: {{ value: {path} }} }}]
      filters: [{}]
      {}
",
        filters.join(", "),
        refs(&["up"])
    )
}

#[tokio::test]
async fn proxy_copies_requests_to_every_mirror_and_waits_for_none() {
    let up = echo("a").await;
    let (one, of_one) = mirror(FOREVER).await;
    let (two, of_two) = mirror(Duration::ZERO).await;
    let dead: SocketAddr = ([127, 0, 0, 1], free_port()).into();
    let edits = "{ type: RequestHeaderModifier, requestHeaderModifier: { set: [{ name: x-set, value: edited }] } }";
    let rules = [
        rule(
            "/all",
            &[
                edits.to_owned(),
                copy_to("one", ""),
                copy_to("two", ", percent: 100"),
                copy_to("dead", ""),
            ],
        ),
        rule("/never", &[copy_to("one", ", percent: 0")]),
        rule(
            "/half",
            &[copy_to(
                "two",
                ", fraction: { numerator: 1, denominator: 2 }",
            )],
        ),
    ];
    let backends = [("up", up), ("one", one), ("two", two), ("dead", dead)];
    let (snapshot, at) = written(&rules.concat(), &backends, "");
    let config = ProxyConfig {
        timeouts: Timeouts {
            head: FOREVER,
            ..Timeouts::default()
        },
        ..ProxyConfig::default()
    };
    let _router = Router::with(&snapshot, config);
    let post = |path: &str, bytes: usize| {
        let request = Request::post(format!("http://x{path}"));
        request.body(full("x".repeat(bytes))).expect("a request")
    };
    for (path, bytes) in [("/all/1?q", 0), ("/all/2", 50_000)] {
        let answer = tokio::time::timeout(SURELY, send(at, post(path, bytes))).await;
        let answer = answer.expect("no mirror is waited for");
        assert_eq!(answer.json()["name"], "a");
        assert_eq!(answer.json()["bytes"], bytes);
        assert_eq!(answer.seen("x-set"), ["edited"]);
    }
    for seen in [&of_one, &of_two] {
        assert_eq!(count(seen, 2).await, 2);
        let mut lines = seen.lock().expect("no panic").clone();
        lines.sort();
        assert_eq!(lines, ["/all/1?q edited 0", "/all/2 edited 50000"]);
    }
    // What is too large to be kept reaches its upstream, and no mirror.
    let large = send(at, post("/all/large", 1_000_000)).await;
    assert_eq!(large.json()["bytes"], 1_000_000);
    assert_eq!(send(at, get("http://x/never")).await.status, 200);
    send(at, post("/all/last", 0)).await;
    assert_eq!(count(&of_one, 3).await, 3);

    assert_eq!(count(&of_two, 3).await, 3);
    of_two.lock().expect("no panic").clear();
    let mut sender = http2(at).await;
    for _ in 0..200 {
        let answer = sender.send_request(get("http://x/half")).await;
        assert_eq!(reply(answer.expect("an answer")).await.status, 200);
    }
    let copies = count(&of_two, 60).await;
    assert!((60..140).contains(&copies), "{copies} of 200");
}

#[tokio::test]
async fn proxy_bounds_the_copies_under_way() {
    let up = echo("a").await;
    let (slow, seen) = mirror(FOREVER).await;
    let rules = rule("/", &[copy_to("slow", "")]);
    let (snapshot, at) = written(&rules, &[("up", up), ("slow", slow)], "");
    let router = Router::start(&snapshot);
    let mut sender = http2(at).await;
    for _ in 0..300 {
        let answer = sender.send_request(get("http://x/")).await;
        assert_eq!(reply(answer.expect("an answer")).await.status, 200);
    }
    assert_eq!(count(&seen, 128).await, 128);
    let left_out = "proxy_mirrors_total{result=\"left_out\"}";
    until("the others are left out", || {
        router.metric(left_out) == 172.0
    })
    .await;
}

#[tokio::test]
async fn proxy_answers_pages_of_other_origins() {
    // An upstream that is more generous than its rule, and knows nothing of preflights.
    let up = serve(|request: Request<Incoming>| async move {
        assert_ne!(
            request
                .headers()
                .get("access-control-request-method")
                .map(|_| ()),
            Some(())
        );
        let mut response: Response<Body> = Response::new(full("answer".into()));
        let star = "*".parse().expect("a value");
        response
            .headers_mut()
            .insert("access-control-allow-origin", star);
        response
    })
    .await;
    let cors = |fields: &str| format!("{{ type: CORS, cors: {{ {fields} }} }}");
    let only = cors(
        "allowOrigins: ['https://*.shop.test'], allowMethods: [PUT], allowHeaders: [X-One], exposeHeaders: [X-Seen], allowCredentials: true, maxAge: 60",
    );
    let all = cors("allowOrigins: ['*'], allowMethods: ['*']");
    let put = format!(
        "    - matches: [{{ path: {{ value: /put }}, method: PUT }}]
      filters: [{only}]
      {}
",
        refs(&["up"])
    );
    let dead = ("dead", SocketAddr::from(([127, 0, 0, 1], free_port())));
    let broken = format!(
        "    - matches: [{{ path: {{ value: /dead }} }}]
      filters: [{all}]
      {}
",
        refs(&["dead"])
    );
    let rules = [rule("/only", &[only]), rule("/all", &[all]), put, broken];
    let (snapshot, at) = written(&rules.concat(), &[("up", up), dead], "");
    let router = Router::start(&snapshot);
    let ask = async |method: Method, path: &str, origin: &str, asked: Option<&str>| -> Reply {
        let mut request = get(&format!("http://x{path}"));
        *request.method_mut() = method;
        let headers = request.headers_mut();
        headers.insert("origin", origin.parse().expect("a value"));
        if let Some(asked) = asked {
            let asked = asked.parse().expect("a value");
            headers.insert("access-control-request-method", asked);
        }
        send(at, request).await
    };
    let allowed = |reply: &Reply| {
        reply
            .header("access-control-allow-origin")
            .map(str::to_owned)
    };
    let good = "https://a.b.shop.test";
    for (path, origin, expected) in [
        ("/only", good, Some(good)),
        ("/only", "https://evil.test", None),
        ("/put", good, Some(good)),
        ("/all", "https://evil.test", Some("*")),
    ] {
        let answer = ask(Method::OPTIONS, path, origin, Some("PUT")).await;
        assert_eq!(answer.status, 204, "{path}");
        assert_eq!(allowed(&answer).as_deref(), expected, "{path} {origin}");
        if expected == Some(good) {
            assert_eq!(answer.header("access-control-allow-methods"), Some("PUT"));
            assert_eq!(answer.header("access-control-allow-headers"), Some("x-one"));
            assert_eq!(
                answer.header("access-control-allow-credentials"),
                Some("true")
            );
            assert_eq!(
                answer.header("access-control-expose-headers"),
                Some("x-seen")
            );
            assert_eq!(answer.header("access-control-max-age"), Some("60"));
        }
    }
    router.reason(Reason::Answered).await;
    let read = ask(Method::GET, "/only", good, None).await;
    assert_eq!(
        (read.status.as_u16(), allowed(&read).as_deref()),
        (200, Some(good))
    );
    assert_eq!(read.header("access-control-expose-headers"), Some("x-seen"));
    assert_eq!(read.header("vary"), Some("origin"));
    let evil = ask(Method::GET, "/only", "https://evil.test", None).await;
    assert_eq!((evil.status.as_u16(), allowed(&evil)), (200, None));
    // OPTIONS that ask for nothing are the upstream's.
    assert_eq!(
        ask(Method::OPTIONS, "/all", good, None).await.body,
        "answer"
    );
    let failed = ask(Method::GET, "/dead", good, None).await;
    assert_eq!(
        (failed.status.as_u16(), allowed(&failed).as_deref()),
        (502, Some("*"))
    );
}
