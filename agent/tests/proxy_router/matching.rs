//! Which rule gets a request: the tables of Gateway API precedence.

use std::net::SocketAddr;
use std::time::Duration;

use cardinal_agent::compile::route::compile;
use cardinal_agent::route::RouteTable;
use cardinal_agent::route::matching::Subject;
use http::{HeaderMap, HeaderName, HeaderValue, Method};
use nix::time::{ClockId, clock_gettime};
use snapshot::model::{PathMatch, Pattern, RequestMatch, Route, TextMatch};

use crate::support::{
    empty, exact, gateway, listener, path, port, prefix, regex, route, rule, section, shared, to,
};

fn nowhere() -> Vec<snapshot::model::WeightedTarget> {
    vec![to(([127, 0, 0, 1], 9).into())]
}

/// Values that start with `~` are patterns.
fn texts(wanted: &[(&str, &str)]) -> Vec<(String, TextMatch)> {
    let text = |value: &str| match value.strip_prefix('~') {
        Some(pattern) => TextMatch::Regex(Pattern::whole(pattern).expect("a pattern")),
        None => TextMatch::Exact(value.to_owned()),
    };
    let pair = |(name, value): &(&str, &str)| ((*name).to_owned(), text(value));
    wanted.iter().map(pair).collect()
}

fn headers(mut one: RequestMatch, wanted: &[(&str, &str)]) -> RequestMatch {
    one.headers = texts(wanted);
    one
}

fn query(mut one: RequestMatch, wanted: &[(&str, &str)]) -> RequestMatch {
    one.query = texts(wanted);
    one
}

fn method(mut one: RequestMatch, wanted: &str) -> RequestMatch {
    one.method = Some(wanted.to_owned());
    one
}

/// One rule per match; the rule's position is what a row expects.
fn rules(called: &str, hosts: &[&str], matches: Vec<RequestMatch>) -> Route {
    let rules = matches
        .into_iter()
        .map(|one| rule(vec![one], nowhere()))
        .collect();
    route(called, hosts, rules)
}

/// `method path?query name:value ..` to `route rule`.
fn find(table: &RouteTable, at: SocketAddr, host: &str, request: &str) -> Option<String> {
    let mut parts = request.split(' ');
    let method: Method = parts.next().expect("a method").parse().expect("a method");
    let target = parts.next().expect("a path");
    let (target, query) = match target.split_once('?') {
        Some((target, query)) => (target, Some(query)),
        None => (target, None),
    };
    let path = path(target);
    let mut headers = HeaderMap::new();
    for header in parts {
        let (name, value) = header.split_once(':').expect("a header");
        headers.append(
            name.parse::<HeaderName>().expect("a name"),
            value.parse::<HeaderValue>().expect("a value"),
        );
    }
    let subject = Subject {
        path: &path,
        method: &method,
        headers: &headers,
        query,
    };
    let matched = table.bind(at)?.listener(host)?.rules(host)?.find(subject)?;
    let route = matched.rule.route.strip_prefix("default/")?;
    Some(format!("{route} {}", matched.rule.index))
}

#[test]
fn proxy_matching_follows_gateway_api_precedence() {
    let mut snapshot = empty();
    let gateway = gateway("gw", None, vec![listener("http", 80, None)]);
    snapshot.gateways.insert(gateway.name.clone(), gateway);
    snapshot.routes = shared(vec![
        rules(
            "a",
            &[],
            vec![
                prefix("/"),                                      // 0
                prefix("/v2/"),                                   // 1
                prefix("/v2/long"),                               // 2
                exact("/v2/long"),                                // 3
                regex("/v2/[a-z]+"),                              // 4
                regex("/v2/[a-z]+/[0-9]+"),                       // 5
                headers(prefix("/h"), &[("x", "1")]),             // 6
                headers(prefix("/h"), &[("x", "1"), ("y", "2")]), // 7
                method(prefix("/h"), "POST"),                     // 8
                headers(prefix("/h"), &[("x", "1"), ("X", "3")]), // 9
                headers(exact("/joined"), &[("x", "1,2")]),       // 10
                method(prefix("/only"), "GET"),                   // 11
                prefix("/v2/longer"),                             // 12
                query(prefix("/q"), &[("a", "1")]),               // 13
                query(prefix("/q"), &[("a", "1"), ("b", "x y")]), // 14
                headers(prefix("/q"), &[("x", "1")]),             // 15
                query(prefix("/q/long"), &[("a", "1")]),          // 16
                query(prefix("/q"), &[("a", "~[2-4]+")]),         // 17
                headers(prefix("/r"), &[("x", "~v[0-9]")]),       // 18
                headers(prefix("/r"), &[("x", "~(1|2),3")]),      // 19
            ],
        ),
        rules("b", &[], vec![prefix("/v2/long"), exact("/b")]),
    ]);
    let table = compile(&snapshot, 1).expect("it compiles");
    let at = ([127, 0, 0, 1], 80).into();
    for (request, expected) in [
        ("GET /", "a 0"),
        ("GET /v2example", "a 0"),
        ("GET /v2", "a 1"),
        ("GET /v2/", "a 1"),
        ("GET /v2/9", "a 1"),
        // Exact, then regular expressions by length, then prefixes by length.
        ("GET /v2/long", "a 3"),
        ("GET /v2/other", "a 4"),
        ("GET /v2/other/7", "a 5"),
        ("GET /v2/long/", "a 2"),
        ("GET /v2/long/x/y", "a 2"),
        ("GET /v2/LONG", "a 1"),
        ("GET /v2/longer/x", "a 12"),
        // Method, then more headers, then more parameters, then order; equal names count once, joined values as one.
        ("GET /h", "a 0"),
        ("GET /h x:1", "a 6"),
        ("GET /h X:1 y:2", "a 7"),
        ("POST /h x:1 y:2", "a 8"),
        ("GET /h x:2", "a 0"),
        ("GET /joined x:1 x:2", "a 10"),
        ("GET /joined x:2 x:1", "a 0"),
        ("GET /only", "a 11"),
        ("HEAD /only", "a 0"),
        // A header beats parameters, the path both; names are exact, of equal ones the first counts.
        ("GET /q", "a 0"),
        ("GET /q?a=1", "a 13"),
        ("GET /q?A=1", "a 0"),
        ("GET /q?a=1&b=x%20y", "a 14"),
        ("GET /q?b=x+y&a=%31", "a 14"),
        ("GET /q?b=z&a=1&b=x+y", "a 13"),
        ("GET /q?a=1&b=x+y x:1", "a 15"),
        ("GET /q/long?a=1&b=x+y x:1", "a 16"),
        ("GET /q?a=0&a=1", "a 0"),
        // Patterns are for the whole value.
        ("GET /q?a=23", "a 17"),
        ("GET /q?a=235", "a 0"),
        ("GET /r x:v1", "a 18"),
        ("GET /r x:v12", "a 0"),
        ("GET /r x:1 x:3", "a 19"),
        ("GET /b", "b 1"),
        ("GET /b/", "a 0"),
    ] {
        assert_eq!(
            find(&table, at, "any.org", request).as_deref(),
            Some(expected),
            "{request}"
        );
    }
}

#[test]
fn proxy_matching_isolates_listeners_and_hosts() {
    let mut snapshot = empty();
    let listeners = vec![
        listener("all", 80, None),
        listener("wild", 80, Some("*.example.com")),
        listener("foo", 80, Some("*.foo.example.com")),
        listener("abc", 80, Some("abc.foo.example.com")),
        listener("other", 81, None),
    ];
    let gateway = gateway("gw", None, listeners);
    snapshot.gateways.insert(gateway.name.clone(), gateway);
    let on = |listener: &str, mut route: Route| {
        route.parents[0].listener = Some(section(listener));
        route
    };
    let mut by_port = rules("by-port", &[], vec![prefix("/p81")]);
    by_port.parents[0].port = Some(port(81));
    snapshot.routes = shared(vec![
        on("all", rules("all", &[], vec![prefix("/all")])),
        on(
            "all",
            rules(
                "narrow",
                &["*.narrow.org", "x.narrow.org"],
                vec![prefix("/narrow")],
            ),
        ),
        on("wild", rules("wild", &[], vec![prefix("/wild")])),
        on("wild", rules("apex", &["example.com"], vec![prefix("/")])),
        on(
            "foo",
            rules(
                "foo",
                &["*.foo.example.com", "bar.foo.example.com"],
                vec![prefix("/foo")],
            ),
        ),
        on(
            "foo",
            rules("bar", &["bar.foo.example.com"], vec![exact("/bar")]),
        ),
        on(
            "abc",
            rules("abc", &["*.example.com"], vec![prefix("/abc")]),
        ),
        by_port,
    ]);
    let table = compile(&snapshot, 1).expect("it compiles");
    for (at, host, request, expected) in [
        (80, "other.org", "GET /all", Some("all 0")),
        (80, "other.org", "GET /wild", None),
        (80, "example.com", "GET /all", Some("all 0")),
        (80, "a.example.com", "GET /wild", Some("wild 0")),
        (80, "a.b.example.com", "GET /wild", Some("wild 0")),
        (80, "a.example.com", "GET /all", None),
        (80, "x.foo.example.com", "GET /foo", Some("foo 0")),
        (80, "x.foo.example.com", "GET /wild", None),
        (80, "bar.foo.example.com", "GET /foo", Some("foo 0")),
        (80, "bar.foo.example.com", "GET /bar", Some("bar 0")),
        (80, "abc.foo.example.com", "GET /abc", Some("abc 0")),
        (80, "abc.foo.example.com", "GET /foo", None),
        (80, "foo.example.com", "GET /wild", Some("wild 0")),
        // A more specific host of a listener takes all of its requests.
        (80, "x.narrow.org", "GET /narrow", Some("narrow 0")),
        (80, "x.narrow.org", "GET /all", None),
        (80, "narrow.org", "GET /all", Some("all 0")),
        (81, "any.org", "GET /p81", Some("by-port 0")),
        (80, "any.org", "GET /p81", None),
        (82, "any.org", "GET /", None),
    ] {
        let at: SocketAddr = ([127, 0, 0, 1], at).into();
        assert_eq!(
            find(&table, at, host, request).as_deref(),
            expected,
            "{at} {host} {request}"
        );
    }
}

#[test]
fn proxy_matching_counts_patterns_as_they_were_written() {
    // A cell's operations are patterns with anchors of their own; those of an `HTTPRoute` get theirs
    // when they are compiled, which makes them no longer.
    let anchored = |text: &str| RequestMatch {
        path: PathMatch::Regex(Pattern::new(text).expect("a pattern")),
        ..regex("/")
    };
    let mut snapshot = empty();
    let gateway = gateway("gw", None, vec![listener("http", 80, None)]);
    snapshot.gateways.insert(gateway.name.clone(), gateway);
    snapshot.routes = shared(vec![
        rules("written", &[], vec![regex("/shop/[^/]+")]),
        rules("operation", &[], vec![anchored("^/shop/[a-z]+$")]),
    ]);
    let table = compile(&snapshot, 1).expect("it compiles");
    let found = find(
        &table,
        ([127, 0, 0, 1], 80).into(),
        "any.org",
        "GET /shop/x",
    );
    assert_eq!(found.as_deref(), Some("operation 0"));
}

#[test]
fn proxy_matching_takes_no_longer_for_many_segments() {
    let mut snapshot = empty();
    let gateway = gateway("gw", None, vec![listener("http", 80, None)]);
    snapshot.gateways.insert(gateway.name.clone(), gateway);
    snapshot.routes = shared(vec![rules("r", &[], vec![prefix("/a/a/a"), prefix("/")])]);
    let table = compile(&snapshot, 1).expect("it compiles");
    let at = ([127, 0, 0, 1], 80).into();
    let long = "/a".repeat(30_000);
    // The processor's time of this thread, whoever else is busy.
    let spent = || {
        let spent = clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).expect("a clock");
        Duration::from(spent)
    };
    let before = spent();
    let found = find(&table, at, "any.org", &format!("GET {long}"));
    let took = spent() - before;
    assert_eq!(found.as_deref(), Some("r 0"));
    // With a look-up for each prefix of the path it is seconds.
    assert!(took < Duration::from_millis(500), "{took:?}");
}

#[test]
fn proxy_matching_keeps_the_order_of_patterns_that_begin_alike_or_not() {
    let mut snapshot = empty();
    let gateway = gateway("gw", None, vec![listener("http", 80, None)]);
    snapshot.gateways.insert(gateway.name.clone(), gateway);
    snapshot.routes = shared(vec![rules(
        "r",
        &[],
        vec![
            regex("/[a-z]+/[a-z]+/[a-z]+/any|/any"),          // 0
            regex("/shop/orders/[a-z]+"),                     // 1
            regex("/shop/orders/[a-z]+/any"),                 // 2
            regex("/shop/[a-z]+/[a-z]+"),                     // 3
            regex("/shop/orders"),                            // 4
            regex("/shop/.*"),                                // 5
            regex("(/shop)?/orders/+"),                       // 6
            method(regex("/.{1,1}hop/orders/[a-z]+"), "PUT"), // 7
        ],
    )]);
    let table = compile(&snapshot, 1).expect("it compiles");
    for (request, expected) in [
        ("GET /shop/orders/a/any", "r 0"),
        ("GET /bank/ledger/a/any", "r 0"),
        ("GET /any", "r 0"),
        ("GET /shop/orders/a", "r 1"),
        ("GET /shop/ledger/a", "r 3"),
        ("GET /shop/orders", "r 4"),
        ("GET /shop/orders/", "r 6"),
        ("GET /orders/", "r 6"),
        ("GET /shop/orders/9", "r 5"),
        ("GET /shop/", "r 5"),
        ("PUT /shop/orders/a", "r 7"),
    ] {
        let found = find(&table, ([127, 0, 0, 1], 80).into(), "any.org", request);
        assert_eq!(found.as_deref(), Some(expected), "{request}");
    }
}
