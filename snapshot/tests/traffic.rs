//! What `BackendTrafficPolicy` documents mean: which rules they are for, and what they say.

use std::num::NonZeroU32;
use std::time::Duration;

use snapshot::model::{
    Balance, ConsistentHash, Failures, HashCookie, HashKey, Hostname, Jitter, L7Kind, Limit,
    LocalFailures, Question, RatePath, RateText, RetryLimit, TrafficPolicy,
};
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
    let file = SourceFile::new("a.yaml", format!("{ROUTE}{}", policies.concat()));
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
    let file = SourceFile::new("a.yaml", format!("{http}{calls}{}", policies.concat()));
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

#[test]
fn a_policy_of_a_route_is_merged_into_the_one_above_if_it_asks_for_it() {
    let (gateway, route) = ("kind: Gateway, name: edge", "kind: HTTPRoute, name: shop");
    let above = "timeout: { http: { requestTimeout: 15s, streamIdleTimeout: 1m } }
  retry: { numRetries: 5, retryOn: { triggers: [reset] } }
  circuitBreaker: { maxConnections: 7, maxParallelRequests: 3, maxRequestsPerConnection: 2 }
  rateLimit: { type: Local, local: { rules: [{ limit: { requests: 1, unit: Hour } }] } }";
    let own = "timeout: { tcp: { connectTimeout: 2s }, http: { streamIdleTimeout: 3s } }
  circuitBreaker: { maxParallelRequests: 9 }";
    for kind in ["StrategicMerge", "JSONMerge"] {
        let merged = format!("mergeType: {kind}\n  {own}");
        let snapshot = read(&[
            policy("name: above", gateway, above),
            policy("name: own", route, &merged),
        ]);
        assert_eq!(snapshot.warnings, []);
        let found = snapshot.routes[0].rules[0].traffic.clone();
        let found = found.expect("a policy");
        assert_eq!(found.id().to_string(), "default/own in default/above");
        assert_eq!(found.rates_id().to_string(), "default/above");
        let after = |seconds| Limit::After(Duration::from_secs(seconds));
        assert_eq!(
            (found.request_timeout, found.stream_idle),
            (after(15), after(3))
        );
        assert_eq!(found.connect_timeout, Some(Duration::from_secs(2)));
        assert!(found.rate_limit.is_some());
        let retry = &found.retry.as_ref().expect("retries").retry;
        assert!(retry.attempts == 5 && retry.failures.reset);
        let breaker = found.circuit_breaker.as_ref().expect("limits");
        // What has a default in the API is said by whoever has the section.
        assert_eq!((breaker.max_requests, breaker.max_connections), (9, 1024));
        let requests = breaker.max_connection_requests.map(NonZeroU32::get);
        assert_eq!(requests, Some(2));
    }
    // Without it, and without anything above, it stands alone.
    let alone = read(&[
        policy("name: above", gateway, above),
        policy("name: own", route, own),
    ]);
    let nothing_above = read(&[policy(
        "name: own",
        route,
        &format!("mergeType: JSONMerge\n  {own}"),
    )]);
    for snapshot in [alone, nothing_above] {
        let found = snapshot.routes[0].rules[0].traffic.clone();
        let found = found.expect("a policy");
        assert_eq!(found.id().to_string(), "default/own");
        assert!(found.retry.is_none() && found.request_timeout == Limit::Unset);
    }
}

#[test]
fn a_policy_is_merged_into_that_of_each_listener() {
    let (gateway, route) = ("kind: Gateway, name: edge", "kind: HTTPRoute, name: shop");
    let limit = |seconds: u32| format!("timeout: {{ http: {{ requestTimeout: {seconds}s }} }}");
    let snapshot = read(&[
        policy("name: gateway", gateway, &limit(1)),
        policy(
            "name: two",
            &format!("{gateway}, sectionName: two"),
            &limit(2),
        ),
        policy(
            "name: rule",
            &format!("{route}, sectionName: own"),
            "mergeType: StrategicMerge\n  retry: {}",
        ),
        policy("name: route", route, "retry: {}"),
    ]);
    let found: Vec<_> = snapshot
        .routes
        .iter()
        .map(|route| {
            let listener = route.parents[0].listener.as_ref().map(ToString::to_string);
            let rules = route.rules.iter();
            let policies = rules.map(|rule| {
                let policy = rule.traffic.as_ref().expect("a policy");
                (policy.id().to_string(), policy.request_timeout)
            });
            (listener.expect("one of them"), policies.collect::<Vec<_>>())
        })
        .collect();
    let after = |seconds| Limit::After(Duration::from_secs(seconds));
    let plain = || ("default/route".to_owned(), Limit::Unset);
    let merged = |into: &str, seconds| (format!("default/rule in default/{into}"), after(seconds));
    let expected = [
        ("one".to_owned(), vec![merged("gateway", 1), plain()]),
        ("two".to_owned(), vec![merged("two", 2), plain()]),
    ];
    assert_eq!(found, expected);
}

#[test]
fn targets_are_selected_by_their_labels() {
    let labelled = ROUTE
        .replace(
            "metadata: { name: edge }",
            "metadata: { name: edge, labels: { tier: front, zone: a } }",
        )
        .replace(
            "kind: HTTPRoute\nmetadata: { name: shop }",
            "kind: HTTPRoute\nmetadata: { name: shop, labels: { app: shop } }",
        );
    let by = |selector: &str| {
        let policy = format!(
            "---
apiVersion: gateway.envoyproxy.io/v1alpha1
kind: BackendTrafficPolicy
metadata: {{ name: p }}
spec:
  targetSelectors: [{{ {selector} }}]
  retry: {{}}
"
        );
        let file = SourceFile::new("a.yaml", format!("{labelled}{policy}"));
        let snapshot = parse(&[file]).unwrap_or_else(|rejections| panic!("{rejections}"));
        let rules = &snapshot.routes[0].rules;
        let selected = rules.iter().all(|rule| rule.traffic.is_some());
        assert_eq!(snapshot.warnings.is_empty(), selected, "{selector}");
        selected
    };
    for (selector, selected) in [
        ("kind: HTTPRoute", true),
        ("kind: HTTPRoute, namespaces: { from: Same }", true),
        ("kind: GRPCRoute", false),
        ("kind: HTTPRoute, matchLabels: { app: shop }", true),
        ("kind: HTTPRoute, matchLabels: { app: bank }", false),
        (
            "kind: HTTPRoute, matchLabels: { app: shop, zone: a }",
            false,
        ),
        ("kind: Gateway, matchLabels: { tier: front, zone: a }", true),
        ("kind: Gateway, matchLabels: { app: shop }", false),
        (
            "kind: Gateway, matchExpressions: [{ key: zone, operator: In, values: [a, b] }]",
            true,
        ),
        (
            "kind: Gateway, matchExpressions: [{ key: zone, operator: NotIn, values: [a, b] }]",
            false,
        ),
        (
            "kind: Gateway, matchExpressions: [{ key: app, operator: NotIn, values: [shop] }]",
            true,
        ),
        (
            "kind: Gateway, matchExpressions: [{ key: zone, operator: Exists }]",
            true,
        ),
        (
            "kind: Gateway, matchExpressions: [{ key: zone, operator: DoesNotExist }]",
            false,
        ),
        (
            "kind: Gateway, matchLabels: { zone: a }, matchExpressions: [{ key: app, operator: DoesNotExist }]",
            true,
        ),
    ] {
        assert_eq!(by(selector), selected, "{selector}");
    }
}

#[test]
fn what_is_named_and_selected_is_one_target() {
    let policy = "---
apiVersion: gateway.envoyproxy.io/v1alpha1
kind: BackendTrafficPolicy
metadata: { name: p }
spec:
  targetRefs: [{ group: gateway.networking.k8s.io, kind: HTTPRoute, name: shop }]
  targetSelectors: [{ kind: HTTPRoute }, { kind: Gateway }]
  retry: {}
";
    let snapshot = read(&[policy.to_owned()]);
    assert_eq!(snapshot.warnings, []);
    assert_eq!(found(&snapshot)[0].1, [Some("p"), Some("p")]);
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
    let all = only(
        "timeout: { http: { streamIdleTimeout: 1s, maxStreamDuration: 2s, connectionIdleTimeout: 3s, maxConnectionDuration: 4s } }",
    );
    let after = |seconds| Limit::After(Duration::from_secs(seconds));
    assert_eq!((all.stream_idle, all.max_stream), (after(1), after(2)));
    assert_eq!(all.connection_idle, after(3));
    assert_eq!(all.connection_duration, Some(Duration::from_secs(4)));
    let off = only(
        "timeout: { http: { streamIdleTimeout: 0s, maxStreamDuration: 0s, connectionIdleTimeout: 0s } }",
    );
    assert_eq!((off.stream_idle, off.max_stream), (Limit::Off, Limit::Off));
    assert_eq!(off.connection_idle, Limit::Off);
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

#[test]
fn endpoints_are_chosen_as_written() {
    let minute = Some(Duration::from_secs(60));
    let texts = |list: &[&str]| {
        list.iter()
            .map(|text| (*text).to_owned())
            .collect::<Vec<_>>()
    };
    let hash = |key, table_size| Balance::ConsistentHash(ConsistentHash { key, table_size });
    for (fields, expected) in [
        ("type: LeastRequest", Balance::default()),
        (
            "type: LeastRequest, slowStart: { window: 1m }",
            Balance::LeastRequest { slow_start: minute },
        ),
        (
            "type: RoundRobin, slowStart: { window: 1m }",
            Balance::RoundRobin { slow_start: minute },
        ),
        ("type: Random", Balance::Random),
        (
            "type: ConsistentHash, consistentHash: { type: SourceIP }",
            hash(HashKey::SourceIp, 65_537),
        ),
        (
            "type: ConsistentHash, consistentHash: { type: Header, header: { name: X-User }, tableSize: 11 }",
            hash(HashKey::Headers(texts(&["x-user"])), 11),
        ),
        (
            "type: ConsistentHash, consistentHash: { type: Headers, headers: [{ name: A }, { name: b }] }",
            hash(HashKey::Headers(texts(&["a", "b"])), 65_537),
        ),
        (
            "type: ConsistentHash, consistentHash: { type: QueryParams, queryParams: [{ name: A }] }",
            hash(HashKey::QueryParams(texts(&["A"])), 65_537),
        ),
        (
            "type: ConsistentHash, consistentHash: { type: Cookie, cookie: { name: C, ttl: 1m, attributes: { Secure: \"\" } } }",
            hash(
                HashKey::Cookie(HashCookie {
                    name: "C".to_owned(),
                    ttl: minute,
                    attributes: vec![("Secure".to_owned(), String::new())],
                }),
                65_537,
            ),
        ),
    ] {
        let policy = only(&format!("loadBalancer: {{ {fields} }}"));
        assert_eq!(policy.balance, expected, "{fields}");
        assert_eq!(policy.is_about_endpoints(), expected != Balance::default());
    }
}

#[test]
fn limits_of_a_backend_are_as_written() {
    assert!(only("retry: {}").circuit_breaker.is_none());
    let some = |number| NonZeroU32::new(number).expect("above zero");
    for (fields, requests, retries) in [
        ("", 1024, RetryLimit::Number(1024)),
        (
            "maxParallelRequests: 0, maxParallelRetries: 7",
            0,
            RetryLimit::Number(7),
        ),
        (
            "retryBudget: { percent: { numerator: 20 } }, maxParallelRetries: 1024",
            1024,
            RetryLimit::Share {
                numerator: 20,
                denominator: some(100),
                least: 3,
            },
        ),
        (
            "retryBudget: { percent: { numerator: 1, denominator: 3 }, minRetryConcurrency: 1 }",
            1024,
            RetryLimit::Share {
                numerator: 1,
                denominator: some(3),
                least: 1,
            },
        ),
    ] {
        let breaker = only(&format!("circuitBreaker: {{ {fields} }}")).circuit_breaker;
        let breaker = breaker.expect("limits");
        assert_eq!((breaker.max_connections, breaker.max_pending), (1024, 1024));
        assert_eq!(breaker.max_requests, requests, "{fields}");
        assert_eq!(breaker.max_retries, retries, "{fields}");
    }
}

#[test]
fn connections_and_those_who_wait_are_limited_as_written() {
    let fields = "circuitBreaker: { maxConnections: 5, maxPendingRequests: 0 }";
    let breaker = only(fields).circuit_breaker.expect("limits");
    assert_eq!((breaker.max_connections, breaker.max_pending), (5, 0));
    assert_eq!(breaker.max_endpoint_connections, None);
    assert_eq!(breaker.max_connection_requests, None);
    let endpoint = |fields: &str| {
        let breaker = only(&format!("circuitBreaker: {{ {fields} }}")).circuit_breaker;
        let breaker = breaker.expect("limits");
        let requests = breaker.max_connection_requests;
        (
            breaker.max_endpoint_connections,
            requests.map(NonZeroU32::get),
        )
    };
    assert_eq!(endpoint("perEndpoint: {}"), (Some(1024), None));
    let both = "perEndpoint: { maxConnections: 0 }, maxRequestsPerConnection: 7";
    assert_eq!(endpoint(both), (Some(0), Some(7)));
    // As in Envoy.
    assert_eq!(endpoint("maxRequestsPerConnection: 0"), (None, None));
}

#[test]
fn health_is_asked_for_as_written() {
    let seconds = Duration::from_secs;
    let active = |fields: &str| {
        let policy = only(&format!("healthCheck: {{ active: {{ {fields} }} }}"));
        policy.active.expect("probes")
    };
    let usual = active("type: HTTP, http: { path: /health }");
    assert_eq!((usual.timeout, usual.interval), (seconds(1), seconds(3)));
    assert_eq!(usual.unhealthy_threshold.get(), 3);
    assert_eq!(usual.healthy_threshold.get(), 1);
    let http = Question::Http {
        host: None,
        method: "GET".to_owned(),
        path: "/health".to_owned(),
        statuses: [200].into(),
        body: None,
    };
    assert_eq!(usual.question, http);
    let all = active(
        "timeout: 5s, interval: 10s, unhealthyThreshold: 1, healthyThreshold: 2, type: HTTP, http: { path: \"/a?b\", method: POST, hostname: A.test, expectedStatuses: [200, 302], expectedResponse: { type: Binary, binary: aGk= } }",
    );
    assert_eq!((all.timeout, all.interval), (seconds(5), seconds(10)));
    assert_eq!(all.unhealthy_threshold.get(), 1);
    assert_eq!(all.healthy_threshold.get(), 2);
    let http = Question::Http {
        host: Some(Hostname::new("a.test").expect("a host")),
        method: "POST".to_owned(),
        path: "/a?b".to_owned(),
        statuses: [200, 302].into(),
        body: Some(b"hi".to_vec()),
    };
    assert_eq!(all.question, http);
    let tcp = Question::Tcp {
        send: b"hi".to_vec(),
        receive: Vec::new(),
    };
    assert_eq!(
        active("type: TCP, tcp: { send: { type: Text, text: hi } }").question,
        tcp
    );
    let grpc = |service: &str| Question::Grpc {
        service: service.to_owned(),
    };
    assert_eq!(active("type: GRPC").question, grpc(""));
    assert_eq!(
        active("type: GRPC, grpc: { service: a.B }").question,
        grpc("a.B")
    );
}

#[test]
fn endpoints_are_left_out_as_written() {
    let passive = |fields: &str| {
        let policy = only(&format!("healthCheck: {{ passive: {{ {fields} }} }}"));
        (policy.passive.expect("a check"), policy.panic_threshold)
    };
    let number = std::num::NonZeroU32::new;
    let (usual, threshold) = passive("");
    assert_eq!(threshold, 50);
    assert_eq!(usual.server_errors, number(5));
    assert_eq!(usual.gateway_errors, None);
    assert_eq!(usual.local_failures, LocalFailures::GatewayErrors);
    assert_eq!(usual.base_ejection, Duration::from_secs(30));
    assert_eq!(usual.interval, Duration::from_secs(3));
    assert_eq!((usual.max_ejected, usual.always_one), (10, false));
    let (all, _) = passive(
        "consecutive5XxErrors: 0, consecutiveGatewayErrors: 2, splitExternalLocalOriginErrors: true, consecutiveLocalOriginFailures: 4, baseEjectionTime: 1s, interval: 2s, maxEjectionPercent: 100, alwaysEjectOneEndpoint: true",
    );
    assert_eq!(all.server_errors, None);
    assert_eq!(all.gateway_errors, number(2));
    assert_eq!(all.local_failures, LocalFailures::Apart(number(4)));
    assert_eq!((all.max_ejected, all.always_one), (100, true));
    assert_eq!(
        only("healthCheck: { panicThreshold: 0 }").panic_threshold,
        0
    );
}

#[test]
fn what_is_said_of_endpoints_has_no_effect_on_routing_tables() {
    let table = "---
apiVersion: cardinal.dev/v1alpha1
kind: RoutingTable
metadata: { name: tenants }
spec:
  version: \"1\"
  placements: { one: { url: \"http://10.2.0.1:9001\" } }
  defaultPlacement: one
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: { name: tenants }
spec:
  parentRefs: [{ name: edge }]
  rules: [{ backendRefs: [{ group: cardinal.dev, kind: RoutingTable, name: tenants }] }]
";
    let target = "kind: HTTPRoute, name: tenants";
    for (fields, warnings) in [("retry: {}", 0), ("circuitBreaker: {}", 1)] {
        let snapshot = read(&[table.to_owned(), policy("name: p", target, fields)]);
        assert_eq!(
            snapshot.warnings.len(),
            warnings,
            "{fields}: {:?}",
            snapshot.warnings
        );
        if let Some(warning) = snapshot.warnings.first() {
            let text = warning.to_string();
            assert!(
                text.contains("no effect on `RoutingTable` default/tenants"),
                "{text}"
            );
        }
    }
}

#[test]
fn requests_are_taken_whole_up_to_what_is_written() {
    assert_eq!(only("retry: {}").request_buffer, None);
    for (limit, bytes) in [("1", 1), ("500Ki", 512_000), ("64Mi", 64 << 20)] {
        let policy = only(&format!("requestBuffer: {{ limit: {limit} }}"));
        assert_eq!(policy.request_buffer.map(|one| one.get()), Some(bytes));
    }
}

#[test]
fn rates_are_as_written() {
    let rules = |rules: &str| {
        let fields = format!("rateLimit: {{ type: Local, local: {{ rules: [{rules}] }} }}");
        only(&fields).rate_limit.expect("a limit").rules
    };
    for (unit, seconds) in [
        ("Second", 1),
        ("Minute", 60),
        ("Hour", 3600),
        ("Day", 86_400),
        ("Month", 30 * 86_400),
        ("Year", 365 * 86_400),
    ] {
        let rule = &rules(&format!("{{ limit: {{ requests: 7, unit: {unit} }} }}"))[0];
        assert_eq!(rule.requests.get(), 7);
        assert_eq!(rule.period, Duration::from_secs(seconds));
        assert_eq!((rule.cost, rule.shared), (1, false));
        assert!(rule.selectors.is_empty());
    }
    let all = "{ limit: { requests: 1, unit: Hour }, cost: { request: { from: Number, number: 5 } }, shared: true, clientSelectors: [
      { headers: [{ name: X-A, value: b }, { name: x-c, type: RegularExpression, value: 'd+', invert: true }, { name: e, type: Distinct }], queryParams: [{ name: F, value: g }] },
      { methods: [{ value: GET }, { value: PUT, invert: true }], path: { type: Exact, value: /h, invert: true }, sourceCIDR: { value: 192.0.2.0/24, type: Distinct } }] }";
    let rule = &rules(all)[0];
    assert_eq!((rule.cost, rule.shared), (5, true));
    let first = &rule.selectors[0];
    let names: Vec<&str> = first
        .headers
        .iter()
        .map(|(name, _)| name.as_str())
        .collect();
    assert_eq!(names, ["x-a", "x-c", "e"]);
    let inverted = |text: &RateText| match text {
        RateText::Like(like) => Some(like.invert),
        RateText::Distinct => None,
    };
    let texts: Vec<_> = first
        .headers
        .iter()
        .map(|(_, text)| inverted(text))
        .collect();
    assert_eq!(texts, [Some(false), Some(true), None]);
    assert_eq!(first.query[0].0, "F");
    let second = &rule.selectors[1];
    let methods: Vec<_> = second
        .methods
        .iter()
        .map(|one| (one.wanted.as_str(), one.invert))
        .collect();
    assert_eq!(methods, [("GET", false), ("PUT", true)]);
    let path = second.path.as_ref().expect("a path");
    assert!(path.invert && matches!(&path.wanted, RatePath::Exact(path) if path.as_str() == "/h"));
    let source = second.source.as_ref().expect("a network");
    assert_eq!(
        (source.network.to_string().as_str(), source.distinct),
        ("192.0.2.0/24", true)
    );
}
