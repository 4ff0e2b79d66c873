//! Rate limits of a `BackendTrafficPolicy`.

use std::sync::Arc;
use std::time::Duration;

use cardinal_agent::proxy::{ProxyConfig, Reason};
use cardinal_agent::resilience::Clock;
use http::HeaderValue;

use crate::client_policy;
use crate::support::{Router, echo, get, http2, refs, reply, send, written};
use crate::traffic_policy::{of_route, policy, rule};

fn limits(rules: &str) -> String {
    format!("rateLimit: {{ local: {{ rules: [{rules}] }} }}")
}

/// A router with a clock that a test sets.
fn timed(snapshot: &snapshot::Snapshot) -> (Router, Clock) {
    let clock = Clock::still();
    let config = ProxyConfig {
        clock: clock.clone(),
        ..ProxyConfig::default()
    };
    (Router::with(snapshot, config), clock)
}

#[tokio::test]
async fn proxy_refuses_what_is_more_than_the_limit() {
    let up = echo("up").await;
    let fields = limits("{ limit: { requests: 3, unit: Hour } }");
    let (snapshot, at) = written(&rule("/", "name: x"), &[("up", up)], &of_route(&fields));
    let (router, clock) = timed(&snapshot);
    for left in ["2", "1", "0"] {
        let answer = send(at, get("http://x/")).await;
        assert_eq!(answer.status, 200);
        assert_eq!(answer.header("x-ratelimit-limit"), Some("3"));
        assert_eq!(answer.header("x-ratelimit-remaining"), Some(left));
    }
    let refused = send(at, get("http://x/")).await;
    assert_eq!(refused.status, 429);
    assert_eq!(refused.body, "local_rate_limited");
    assert_eq!(refused.header("content-type"), Some("text/plain"));
    assert_eq!(refused.header("x-ratelimit-remaining"), Some("0"));
    let reset = refused.header("x-ratelimit-reset").expect("seconds");
    let reset: u64 = reset.parse().expect("a number");
    assert!((3500..=3600).contains(&reset), "{reset}");
    router.reason(Reason::RateLimited).await;
    // A third of the hour is one request.
    clock.advance(Duration::from_secs(1200));
    assert_eq!(send(at, get("http://x/")).await.status, 200);
    assert_eq!(send(at, get("http://x/")).await.status, 429);
    // gRPC clients read headers.
    let mut sender = http2(at).await;
    let mut request = get("http://x/");
    let grpc = HeaderValue::from_static("application/grpc");
    request.headers_mut().insert("content-type", grpc);
    let answer = reply(sender.send_request(request).await.expect("an answer")).await;
    assert_eq!(
        (answer.status.as_u16(), answer.header("grpc-status")),
        (200, Some("14"))
    );
}

#[tokio::test]
async fn proxy_limits_clients_as_selectors_say() {
    let up = echo("up").await;
    let rules = [
        "{ clientSelectors: [{ headers: [{ name: x-user, type: Distinct }] }], limit: { requests: 2, unit: Hour } }",
        "{ clientSelectors: [{ methods: [{ value: POST }], path: { value: /orders } }], limit: { requests: 1, unit: Day } }",
        "{ clientSelectors: [{ sourceCIDR: { value: 10.0.0.0/8 } }], limit: { requests: 1, unit: Day } }",
        "{ limit: { requests: 4, unit: Hour } }",
    ]
    .join(", ");
    let fields = limits(&rules);
    let (snapshot, at) = written(&rule("/", "name: x"), &[("up", up)], &of_route(&fields));
    let _router = Router::start(&snapshot);
    let ask = async |method: &str, path: &str, user: Option<&str>| {
        let mut request = get(&format!("http://x{path}"));
        *request.method_mut() = method.parse().expect("a method");
        if let Some(user) = user {
            let user = HeaderValue::from_str(user).expect("a value");
            request.headers_mut().insert("x-user", user);
        }
        let answer = send(at, request).await;
        (
            answer.status.as_u16(),
            answer.header("x-ratelimit-limit").map(str::to_owned),
        )
    };
    let limit = |text: &str| Some(text.to_owned());
    for user in ["a", "b"] {
        for status in [200, 200, 429] {
            assert_eq!(ask("GET", "/", Some(user)).await, (status, limit("2")));
        }
    }
    // The strictest of two is told, and decides.
    assert_eq!(ask("POST", "/orders/1", Some("c")).await, (200, limit("1")));
    assert_eq!(ask("POST", "/orders/2", Some("c")).await, (429, limit("1")));
    assert_eq!(ask("GET", "/orders/2", Some("c")).await, (200, limit("2")));
    for status in [200, 200, 200, 200, 429] {
        assert_eq!(ask("GET", "/", None).await, (status, limit("4")));
    }
}

#[tokio::test]
async fn proxy_limits_each_route_for_itself() {
    let up = echo("up").await;
    let route = |called: &str, path: &str| {
        format!(
            "---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {{ name: {called} }}
spec:
  parentRefs: [{{ name: gw }}]
  rules: [{{ matches: [{{ path: {{ value: {path} }} }}], {} }}]
",
            refs(&["up"])
        )
    };
    for (shared, passing) in [(false, 4), (true, 2)] {
        let fields = limits(&format!(
            "{{ limit: {{ requests: 2, unit: Day }}, shared: {shared} }}"
        ));
        let more = [
            route("other", "/b"),
            policy("p", "kind: Gateway, name: gw", &fields),
        ]
        .concat();
        let rules = [rule("/a", "name: a"), rule("/a/own", "name: own")].concat();
        let (snapshot, at) = written(&rules, &[("up", up)], &more);
        let router = Router::start(&snapshot);
        let passed = async || {
            let mut passed = 0;
            // Two rules of one route share its buckets.
            for path in ["/a", "/a/own", "/a", "/b", "/b", "/b"] {
                let answer = send(at, get(&format!("http://x{path}"))).await;
                passed += u32::from(answer.status == 200);
            }
            passed
        };
        assert_eq!(passed().await, passing, "shared: {shared}");
        let next = cardinal_agent::compile::route::compile(&snapshot, 2).expect("it compiles");
        next.adopt(&router.table.load());
        router.table.store(Arc::new(next));
        assert_eq!(passed().await, 0, "a new generation gives nothing back");
    }
}

/// Behind a proxy, clients are told apart by the address that a `ClientTrafficPolicy` finds.
#[tokio::test]
async fn proxy_limits_clients_behind_a_proxy_each_for_itself() {
    let up = echo("up").await;
    let each = "{ clientSelectors: [{ sourceCIDR: { value: 0.0.0.0/0, type: Distinct } }], limit: { requests: 1, unit: Day } }";
    let found =
        client_policy::policy("clientIPDetection: { xForwardedFor: { numTrustedHops: 1 } }");
    let more = format!("{}{found}", of_route(&limits(each)));
    let (snapshot, at) = written(&rule("/", "name: x"), &[("up", up)], &more);
    let _router = Router::start(&snapshot);
    for (client, expected) in [("192.0.2.1", 200), ("192.0.2.2", 200), ("192.0.2.1", 429)] {
        let mut request = get("http://x/");
        let client = HeaderValue::from_static(client);
        request.headers_mut().insert("x-forwarded-for", client);
        assert_eq!(send(at, request).await.status, expected);
    }
}
