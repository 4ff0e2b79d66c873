//! What `BackendTrafficPolicy` documents mean: which rules they are for, and what they say.

use std::time::Duration;

use snapshot::model::{Failures, Jitter, L7Kind, Limit, TrafficPolicy};
use snapshot::{Snapshot, SourceFile, parse};

/// A gateway with two listeners, and a route on it with a rule `own` and one without a name.
const ROUTE: &str = "---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: { name: edge }
spec:
  gatewayClassName: cardinal
  addresses: [{ value: 192.0.2.10 }]
  listeners:
    - { name: one, port: 80, protocol: HTTP }
    - { name: two, port: 81, protocol: HTTP }
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: { name: shop }
spec:
  parentRefs: [{ name: edge }]
  rules:
    - { name: own, matches: [{ method: POST }], backendRefs: [{ group: gateway.envoyproxy.io, kind: Backend, name: shop }] }
    - { backendRefs: [{ group: gateway.envoyproxy.io, kind: Backend, name: shop }] }
---
apiVersion: gateway.envoyproxy.io/v1alpha1
kind: Backend
metadata: { name: shop }
spec:
  endpoints: [{ ip: { address: 10.3.0.1, port: 8080 } }]
";

fn policy(metadata: &str, target: &str, fields: &str) -> String {
    format!(
        "---
apiVersion: gateway.envoyproxy.io/v1alpha1
kind: BackendTrafficPolicy
metadata: {{ {metadata} }}
spec:
  targetRefs: [{{ group: gateway.networking.k8s.io, {target} }}]
  {fields}
"
    )
}

fn read(policies: &[String]) -> Snapshot {
    let file = SourceFile {
        path: "a.yaml".to_owned(),
        bytes: format!("{ROUTE}{}", policies.concat()).into_bytes(),
    };
    parse(&[file]).unwrap_or_else(|rejections| panic!("{rejections}"))
}

/// Listeners of each route, and the names of its rules' policies.
fn found(snapshot: &Snapshot) -> Vec<(Vec<&str>, Vec<Option<&str>>)> {
    let routes = snapshot.routes.iter();
    routes
        .map(|route| {
            let parents = route.parents.iter();
            let listeners = parents.filter_map(|one| Some(one.listener.as_ref()?.as_str()));
            let rules = route.rules.iter();
            let policies = rules.map(|one| one.traffic.as_ref().map(|policy| policy.name.name()));
            (listeners.collect(), policies.collect())
        })
        .collect()
}

#[test]
fn the_most_specific_policy_wins_as_a_whole() {
    let section = |of: &str, section: &str| format!("{of}, sectionName: {section}");
    let (gateway, route) = ("kind: Gateway, name: edge", "kind: HTTPRoute, name: shop");
    let snapshot = read(&[
        policy("name: gateway", gateway, "retry: {}"),
        policy("name: listener", &section(gateway, "two"), "retry: {}"),
        policy("name: rule", &section(route, "own"), "timeout: {}"),
    ]);
    assert_eq!(
        found(&snapshot),
        [
            (vec!["one"], vec![Some("rule"), Some("gateway")]),
            (vec!["two"], vec![Some("rule"), Some("listener")]),
        ]
    );
    let own = snapshot.routes[0].rules[0].traffic.as_ref();
    assert!(own.is_some_and(|policy| policy.retry.is_none()));
    assert_eq!(snapshot.warnings, []);

    let snapshot = read(&[
        policy("name: gateway", gateway, "retry: {}"),
        policy("name: route", route, "retry: {}"),
    ]);
    assert_eq!(
        found(&snapshot),
        [(vec!["one", "two"], vec![Some("route"), Some("route")])]
    );
}

#[test]
fn a_route_is_a_target_by_its_kind_and_name() {
    let calls = "---
apiVersion: gateway.networking.k8s.io/v1
kind: GRPCRoute
metadata: { name: shop }
spec:
  parentRefs: [{ name: edge }]
  hostnames: [calls.example.com]
  rules:
    - { backendRefs: [{ group: gateway.envoyproxy.io, kind: Backend, name: shop }] }
";
    let http = ROUTE.replace(
        "  parentRefs: [{ name: edge }]\n",
        "  parentRefs: [{ name: edge }]\n  hostnames: [shop.example.com]\n",
    );
    let policies = [
        policy("name: requests", "kind: HTTPRoute, name: shop", "retry: {}"),
        policy("name: calls", "kind: GRPCRoute, name: shop", "retry: {}"),
    ];
    let file = SourceFile {
        path: "a.yaml".to_owned(),
        bytes: format!("{http}{calls}{}", policies.concat()).into_bytes(),
    };
    let snapshot = parse(&[file]).unwrap_or_else(|rejections| panic!("{rejections}"));
    assert_eq!(snapshot.warnings, []);
    let kinds: Vec<_> = snapshot.routes.iter().map(|route| route.kind).collect();
    assert_eq!(kinds, [L7Kind::Http, L7Kind::Grpc]);
    assert_eq!(
        found(&snapshot),
        [
            (vec!["one", "two"], vec![Some("requests"), Some("requests")]),
            (vec!["one", "two"], vec![Some("calls")]),
        ]
    );
}

#[test]
fn of_two_policies_for_one_target_the_older_wins_and_the_other_is_told_of() {
    let target = "kind: HTTPRoute, name: shop";
    for (a, b, winner) in [
        ("name: a", "name: b", "a"),
        (
            "name: a",
            "name: b, creationTimestamp: \"2026-01-01T00:00:00Z\"",
            "b",
        ),
        (
            "name: a, creationTimestamp: \"2026-01-02T00:00:00Z\"",
            "name: b, creationTimestamp: \"2026-01-01T00:00:00Z\"",
            "b",
        ),
    ] {
        let snapshot = read(&[
            policy(a, target, "retry: {}"),
            policy(b, target, "retry: {}"),
        ]);
        let found = found(&snapshot);
        assert_eq!(found[0].1, [Some(winner), Some(winner)], "{a} {b}");
        assert_eq!(snapshot.warnings.len(), 1);
        let warning = snapshot.warnings[0].to_string();
        assert!(warning.contains("has no effect here"), "{warning}");
    }
}

fn only(fields: &str) -> TrafficPolicy {
    let snapshot = read(&[policy("name: p", "kind: Gateway, name: edge", fields)]);
    let policy = snapshot.routes[0].rules[0].traffic.as_ref();
    TrafficPolicy::clone(policy.expect("the rule has the policy"))
}

#[test]
fn time_limits_are_as_written() {
    let policy = only("timeout: { tcp: { connectTimeout: 3s }, http: { requestTimeout: 1m } }");
    assert_eq!(policy.connect_timeout, Some(Duration::from_secs(3)));
    let minute = Duration::from_secs(60);
    assert_eq!(policy.request_timeout, Limit::After(minute));
    let off = only("timeout: { http: { requestTimeout: 0s } }");
    assert_eq!(off.request_timeout, Limit::Off);
    assert_eq!(only("retry: {}").request_timeout, Limit::Unset);
}

#[test]
fn triggers_are_those_of_envoy() {
    let usual = only("retry: {}").retry.expect("retries");
    assert_eq!(usual.timeout, Limit::Unset);
    let retry = &usual.retry;
    assert_eq!(retry.attempts, 2);
    assert_eq!(retry.codes, [503].into());
    assert_eq!(retry.grpc_codes, [1, 14].into());
    let expected = Failures {
        connect: true,
        refused: true,
        ..Failures::default()
    };
    assert_eq!(retry.failures, expected);
    let millis = Duration::from_millis;
    assert_eq!(
        (retry.backoff, retry.max_backoff, retry.jitter),
        (millis(25), millis(250), Jitter::Full)
    );

    let ignored = "retry: { retryOn: { triggers: [reset], httpStatusCodes: [500] } }";
    let snapshot = read(&[policy("name: p", "kind: Gateway, name: edge", ignored)]);
    let warning = snapshot.warnings[0].to_string();
    assert!(
        warning.contains("httpStatusCodes: has no effect without"),
        "{warning}"
    );

    let all = "[retriable-status-codes, retriable-4xx, gateway-error, internal, deadline-exceeded]";
    let fields = format!(
        "retry: {{ numRetries: 5, retryOn: {{ triggers: {all}, httpStatusCodes: [418, 200] }}, perRetry: {{ timeout: 1s, backOff: {{ baseInterval: 10ms, maxInterval: 20ms }} }} }}"
    );
    let policy = only(&fields).retry.expect("retries");
    assert_eq!(policy.timeout, Limit::After(millis(1000)));
    let retry = &policy.retry;
    assert_eq!(retry.attempts, 5);
    assert_eq!(retry.codes, [200, 409, 418, 502, 503, 504].into());
    assert_eq!(retry.grpc_codes, [4, 13].into());
    assert_eq!(retry.failures, Failures::ALL);
    assert_eq!((retry.backoff, retry.max_backoff), (millis(10), millis(20)));
}
