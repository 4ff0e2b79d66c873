//! `BackendTrafficPolicy`: from its document to what happens to requests.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use cardinal_agent::proxy::Reason;
use http::{HeaderValue, Response};

use crate::resilience::{failing, late, resetting};
use crate::support::{Router, full, get, refs, send, serve, written};

/// A policy for a target, with fields of its `spec` in the flow style of YAML.
pub(crate) fn policy(called: &str, target: &str, fields: &str) -> String {
    format!(
        "---
apiVersion: gateway.envoyproxy.io/v1alpha1
kind: BackendTrafficPolicy
metadata: {{ name: {called} }}
spec:
  targetRefs: [{{ group: gateway.networking.k8s.io, {target} }}]
  {fields}
"
    )
}

/// The same for the one route.
pub(crate) fn of_route(fields: &str) -> String {
    policy("of-route", "kind: HTTPRoute, name: r", fields)
}

/// A rule for a path that leads to `up`.
pub(crate) fn rule(path: &str, fields: &str) -> String {
    format!(
        "    - matches: [{{ path: {{ value: {path} }} }}]
      {fields}
      {}
",
        refs(&["up"])
    )
}

#[tokio::test]
async fn proxy_waits_as_long_as_the_most_specific_policy_says() {
    let up = late(|path| path != "/route").await;
    let rules = [
        rule("/rule", "name: own"),
        rule("/route", "name: other"),
        rule("/own-timeout", "timeouts: { request: 1h }"),
    ]
    .concat();
    let timeout = |limit: &str| format!("timeout: {{ http: {{ requestTimeout: {limit} }} }}");
    let more = [
        policy("a", "kind: Gateway, name: gw", &timeout("50ms")),
        policy("b", "kind: HTTPRoute, name: r", &timeout("150ms")),
        policy(
            "c",
            "kind: HTTPRoute, name: r, sectionName: own",
            &timeout("0s"),
        ),
    ]
    .concat();
    let (snapshot, at) = written(&rules, &[("up", up)], &more);
    let router = Router::start(&snapshot);
    for (path, status, least) in [
        ("/rule", 200, 600),
        ("/route", 504, 150),
        ("/own-timeout", 200, 600),
    ] {
        let begun = Instant::now();
        let answer = send(at, get(&format!("http://x{path}"))).await;
        assert_eq!(answer.status, status, "{path}");
        assert!(begun.elapsed() >= Duration::from_millis(least), "{path}");
    }
    router.reason(Reason::UpstreamTimeout).await;
}

#[tokio::test]
async fn proxy_tries_again_as_the_policy_says() {
    let (up, count) = failing().await;
    let rules = [
        rule("/503", "name: usual"),
        rule("/502", "name: gateway"),
        rule("/409", "name: conflict"),
        rule("/500", "name: none"),
        rule("/504", "name: listed"),
    ]
    .concat();
    let section = |rule: &str| format!("kind: HTTPRoute, name: r, sectionName: {rule}");
    let policies = [
        ("usual", "retry: {}"),
        (
            "gateway",
            "retry: { numRetries: 3, retryOn: { triggers: [gateway-error] } }",
        ),
        (
            "conflict",
            "retry: { retryOn: { triggers: [retriable-4xx] } }",
        ),
        (
            "none",
            "retry: { numRetries: 0, retryOn: { triggers: [5xx] } }",
        ),
        (
            "listed",
            "retry: { numRetries: 1, retryOn: { triggers: [retriable-status-codes], httpStatusCodes: [504] } }",
        ),
    ];
    let more: String = policies
        .iter()
        .map(|(rule, fields)| policy(rule, &section(rule), fields))
        .collect();
    let (snapshot, at) = written(&rules, &[("up", up)], &more);
    let _router = Router::start(&snapshot);
    for (path, status, tries) in [
        ("/503/2/", 200, 3),
        ("/503/9/", 503, 3),
        ("/502/3/", 200, 4),
        ("/409/1/", 200, 2),
        ("/500/1/", 500, 1),
        ("/504/1/", 200, 2),
        ("/504/2/", 504, 2),
    ] {
        count.store(0, Ordering::SeqCst);
        let answer = send(at, get(&format!("http://x{path}"))).await;
        assert_eq!(answer.status, status, "{path}");
        assert_eq!(count.load(Ordering::SeqCst), tries, "{path}");
    }
}

#[tokio::test]
async fn proxy_tries_again_what_broke_only_if_the_policy_says_so() {
    for (triggers, status, tries) in [
        ("reset", 200, 2),
        ("5xx", 200, 2),
        // There was a connection, and a request on it.
        ("connect-failure", 503, 1),
        ("retriable-status-codes", 503, 1),
    ] {
        let (up, count) = resetting(1).await;
        let fields = format!("retry: {{ retryOn: {{ triggers: [{triggers}] }} }}");
        let (snapshot, at) = written(&rule("/", "name: x"), &[("up", up)], &of_route(&fields));
        let _router = Router::start(&snapshot);
        assert_eq!(
            send(at, get("http://x/")).await.status,
            status,
            "{triggers}"
        );
        assert_eq!(count.load(Ordering::SeqCst), tries, "{triggers}");
    }
}

#[tokio::test]
async fn proxy_tries_again_what_a_grpc_status_says() {
    let up = serve(|request| async move {
        let mut response = Response::new(full(String::new()));
        let status = request.headers().get("x-status").cloned();
        let status = status.unwrap_or(HeaderValue::from_static("0"));
        response.headers_mut().insert("grpc-status", status);
        response
    })
    .await;
    let fields =
        "retry: { numRetries: 1, retryOn: { triggers: [unavailable, resource-exhausted] } }";
    let (snapshot, at) = written(&rule("/", "name: x"), &[("up", up)], &of_route(fields));
    let router = Router::start(&snapshot);
    for (status, retries) in [("14", 1), ("8", 1), ("13", 0), ("0", 0), ("nonsense", 0)] {
        let path = format!("/{status}");
        let mut request = get(&format!("http://x{path}"));
        let value = HeaderValue::from_static(status);
        request.headers_mut().insert("x-status", value);
        assert_eq!(send(at, request).await.header("grpc-status"), Some(status));
        let record = router
            .record(|one| one.path.as_deref() == Some(&*path))
            .await;
        assert_eq!(record.retries, retries, "{status}");
    }
}

#[tokio::test]
async fn proxy_gives_up_on_a_connection_when_the_policy_says_so() {
    // A socket whose queue is full takes no connection, and refuses none.
    let socket = tokio::net::TcpSocket::new_v4().expect("a socket");
    socket
        .bind((Ipv4Addr::LOCALHOST, 0).into())
        .expect("a port");
    let listener = socket.listen(0).expect("it listens");
    let full: SocketAddr = listener.local_addr().expect("it is bound");
    let mut held = Vec::new();
    for _ in 0..4 {
        let connect = tokio::net::TcpStream::connect(full);
        match tokio::time::timeout(Duration::from_millis(100), connect).await {
            Ok(stream) => held.push(stream.expect("the queue has room")),
            Err(_) => break,
        }
    }
    let fields = "timeout: { tcp: { connectTimeout: 200ms } }";
    let (snapshot, at) = written(&rule("/", "name: x"), &[("up", full)], &of_route(fields));
    let router = Router::start(&snapshot);
    assert_eq!(send(at, get("http://x/")).await.status, 502);
    let record = router.reason(Reason::UpstreamConnect).await;
    let detail = record.detail.as_deref().expect("a detail");
    assert!(detail.contains("within 200ms"), "{detail}");
}

#[tokio::test]
async fn proxy_does_what_both_policies_say_where_one_is_merged() {
    let (up, count) = failing().await;
    let rules = [rule("/503", "name: merged"), rule("/504", "name: alone")].concat();
    let retry = |status: u16| {
        format!(
            "retry: {{ retryOn: {{ triggers: [retriable-status-codes], httpStatusCodes: [{status}] }} }}"
        )
    };
    let above = format!(
        "circuitBreaker: {{ maxParallelRequests: 1000 }}\n  {}",
        retry(503)
    );
    let section = |rule: &str| format!("kind: HTTPRoute, name: r, sectionName: {rule}");
    let more = [
        policy("above", "kind: Gateway, name: gw", &above),
        policy(
            "own",
            &section("merged"),
            "mergeType: StrategicMerge\n  retry: { numRetries: 1 }",
        ),
        policy("alone", &section("alone"), "retry: { numRetries: 1 }"),
    ]
    .concat();
    let (snapshot, at) = written(&rules, &[("up", up)], &more);
    let router = Router::start(&snapshot);
    for (path, status, tries) in [
        // Once more, as its own says, and for the status that the one above says.
        ("/503/1/", 200, 2),
        ("/503/2/", 503, 2),
        // The usual triggers, of which this status is none.
        ("/504/1/", 504, 1),
    ] {
        count.store(0, Ordering::SeqCst);
        let answer = send(at, get(&format!("http://x{path}"))).await;
        assert_eq!(answer.status, status, "{path}");
        assert_eq!(count.load(Ordering::SeqCst), tries, "{path}");
    }
    let table = router.table.load();
    let managed = table.managed().map(|one| one.policy.id().to_string());
    let managed: Vec<String> = managed.collect();
    assert_eq!(managed, ["default/alone", "default/own in default/above"]);
}

#[tokio::test]
async fn proxy_asks_for_keys_where_labels_say_so() {
    let up = crate::support::echo("up").await;
    let (snapshot, at) = {
        let rules = rule("/", "name: x");
        let more = "---
apiVersion: gateway.envoyproxy.io/v1alpha1
kind: SecurityPolicy
metadata: { name: keys }
spec:
  targetSelectors: [{ kind: HTTPRoute, matchLabels: { protect: by-key } }]
  apiKeyAuth: { credentialRefs: [{ name: partners }], extractFrom: [{ headers: [x-api-key] }] }
---
apiVersion: v1
kind: Secret
metadata: { name: partners }
type: Opaque
stringData: { acme: 0123456789abcdef0123456789abcdef }
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: { name: closed, labels: { protect: by-key } }
spec:
  parentRefs: [{ name: gw }]
  rules:
    - matches: [{ path: { value: /closed } }]
      backendRefs: [{ group: gateway.envoyproxy.io, kind: Backend, name: up }]
";
        written(&rules, &[("up", up)], more)
    };
    let _router = Router::start(&snapshot);
    assert_eq!(send(at, get("http://x/open")).await.status, 200);
    assert_eq!(send(at, get("http://x/closed")).await.status, 401);
    let mut request = get("http://x/closed");
    let key = HeaderValue::from_static("0123456789abcdef0123456789abcdef");
    request.headers_mut().insert("x-api-key", key);
    assert_eq!(send(at, request).await.status, 200);
}
