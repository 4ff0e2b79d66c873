//! Filters of documents: redirects, rewrites, headers and answers, of rules and of their backends.

use cardinal_agent::proxy::Reason;
use http::{Method, Request};
use snapshot::model::Filter;

use crate::support::{
    Reply, Router, echo, full, get, http2, plain, prefix, raw, refs, reply, route, rule, send, to,
    written,
};

#[tokio::test]
async fn proxy_redirects_as_gateway_api_says() {
    let rule = |path: &str, redirect: &str| {
        format!(
            "    - matches: [{{ path: {{ value: {path} }} }}]
      filters: [{{ type: RequestRedirect, requestRedirect: {{ {redirect} }} }}]
"
        )
    };
    let replace = |kind: &str, field: &str, value: &str| {
        format!("path: {{ type: {kind}, {field}: {value} }}")
    };
    let prefix = |value: &str| replace("ReplacePrefixMatch", "replacePrefixMatch", value);
    let whole = |value: &str| replace("ReplaceFullPath", "replaceFullPath", value);
    let rules = [
        rule("/host", "hostname: other.test"),
        rule("/scheme", "scheme: https, statusCode: 301"),
        rule("/port", "port: 8083, statusCode: 308"),
        rule("/both", "scheme: https, port: 444, statusCode: 307"),
        rule("/plain", "scheme: http, hostname: other.test"),
        rule("/prefix", &prefix("/new")),
        rule("/root", &prefix("/")),
        rule(
            "/whole",
            &format!("{}, statusCode: 303", whole("/all/of/it")),
        ),
    ];
    let (snapshot, at) = written(&rules.concat(), &[], "");
    let router = Router::start(&snapshot);
    let port = at.port();
    for (path, status, location) in [
        (
            "/host/a?b=1",
            302,
            format!("http://other.test:{port}/host/a?b=1"),
        ),
        ("/scheme", 301, "https://x.test/scheme".to_owned()),
        ("/port/", 308, "http://x.test:8083/port/".to_owned()),
        ("/both", 307, "https://x.test:444/both".to_owned()),
        ("/plain", 302, "http://other.test/plain".to_owned()),
        ("/prefix", 302, format!("http://x.test:{port}/new")),
        ("/prefix/", 302, format!("http://x.test:{port}/new/")),
        (
            "/prefix/a//b?c",
            302,
            format!("http://x.test:{port}/new/a/b?c"),
        ),
        ("/root/a", 302, format!("http://x.test:{port}/a")),
        ("/root", 302, format!("http://x.test:{port}/")),
        (
            "/whole/a?c=d",
            303,
            format!("http://x.test:{port}/all/of/it?c=d"),
        ),
    ] {
        // The port of `Host` is not that of the listener.
        let answer = send(at, get(&format!("http://X.test:99{path}"))).await;
        assert_eq!(answer.status, status, "{path}");
        assert_eq!(answer.header("location"), Some(&*location), "{path}");
        assert_eq!(answer.header("content-length"), Some("0"), "{path}");
    }
    let record = router.reason(Reason::Answered).await;
    assert_eq!(record.upstream, None);
}

#[tokio::test]
async fn proxy_applies_filters_of_the_chosen_backend_only() {
    let (a, b) = (echo("a").await, echo("b").await);
    let filters = "
            - { type: RequestHeaderModifier, requestHeaderModifier: { set: [{ name: x-set, value: backend }], add: [{ name: x-add, value: second }] } }
            - { type: ResponseHeaderModifier, responseHeaderModifier: { set: [{ name: x-from, value: a }] } }
            - { type: URLRewrite, urlRewrite: { hostname: a.internal, path: { type: ReplacePrefixMatch, replacePrefixMatch: /of-backend } } }";
    let one = |name: &str, filters: &str| {
        format!(
            "        - group: gateway.envoyproxy.io
          kind: Backend
          name: {name}
          filters: {filters}
"
        )
    };
    let redirect =
        "[{ type: RequestRedirect, requestRedirect: { hostname: moved.test, port: 80 } }]";
    let rules = format!(
        "    - matches: [{{ path: {{ value: /both }} }}]
      filters:
        - {{ type: RequestHeaderModifier, requestHeaderModifier: {{ set: [{{ name: X-Set, value: rule }}], add: [{{ name: x-add, value: first }}] }} }}
        - {{ type: URLRewrite, urlRewrite: {{ hostname: rule.internal, path: {{ type: ReplacePrefixMatch, replacePrefixMatch: /of-rule }} }} }}
      backendRefs:
{}{}    - matches: [{{ path: {{ value: /moved }} }}]
      backendRefs:
{}",
        one("a", filters),
        one("b", "[]"),
        one("a", redirect),
    );
    let (snapshot, at) = written(&rules, &[("a", a), ("b", b)], "");
    let _router = Router::start(&snapshot);
    let (mut of_a, mut of_b) = (0, 0);
    let mut sender = http2(at).await;
    for _ in 0..60 {
        let answer = sender.send_request(get("http://x.test/both/1?q"));
        let answer = reply(answer.await.expect("an answer")).await;
        let seen = |name: &str| answer.seen(name).join("|");
        let told = (
            answer.json()["uri"].as_str().expect("a path").to_owned(),
            seen("host"),
            seen("x-set"),
            seen("x-add"),
            answer.header("x-from").map(str::to_owned),
        );
        let expect = |path: &str, host: &str, set: &str, add: &str, from: Option<&str>| {
            let [path, host, set, add] = [path, host, set, add].map(str::to_owned);
            assert_eq!(told, (path, host, set, add, from.map(str::to_owned)));
        };
        if answer.json()["name"] == "a" {
            of_a += 1;
            let path = "/of-backend/1?q";
            expect(path, "a.internal", "backend", "first,second", Some("a"));
        } else {
            of_b += 1;
            expect("/of-rule/1?q", "rule.internal", "rule", "first", None);
        }
    }
    assert!(of_a > 5 && of_b > 5, "{of_a} {of_b}");
    let moved = send(at, get("http://x.test/moved")).await;
    assert_eq!(moved.status, 302);
    assert_eq!(moved.header("location"), Some("http://moved.test/moved"));
}

const EXTENSIONS: &str = "
---
apiVersion: gateway.envoyproxy.io/v1alpha1
kind: HTTPRouteFilter
metadata: { name: regex }
spec:
  urlRewrite:
    path:
      type: ReplaceRegexMatch
      replaceRegexMatch: { pattern: '([a-z])([0-9])', substitution: '\\2\\1-\\0' }
---
apiVersion: gateway.envoyproxy.io/v1alpha1
kind: HTTPRouteFilter
metadata: { name: header }
spec:
  urlRewrite: { hostname: { type: Header, header: X-Wanted } }
---
apiVersion: gateway.envoyproxy.io/v1alpha1
kind: HTTPRouteFilter
metadata: { name: path }
spec:
  urlRewrite:
    hostname:
      type: PathRegex
      pathRegex: { pattern: '^/path/([^/]+).*$', substitution: '\\1.internal' }
---
apiVersion: gateway.envoyproxy.io/v1alpha1
kind: HTTPRouteFilter
metadata: { name: sorry }
spec:
  directResponse:
    statusCode: 503
    contentType: text/html
    body: { type: Inline, inline: <p>sorry</p> }
    header: { set: [{ name: retry-after, value: '60' }] }
";

#[tokio::test]
async fn proxy_applies_referenced_filters() {
    let up = echo("a").await;
    let rule = |path: &str, filters: &[&str], backends: &str| {
        let refs: Vec<_> = filters
            .iter()
            .map(|name| {
                format!(
                    "{{ type: ExtensionRef, extensionRef: {{ group: gateway.envoyproxy.io, kind: HTTPRouteFilter, name: {name} }} }}"
                )
            })
            .collect();
        format!(
            "    - matches: [{{ path: {{ value: {path} }} }}]
      filters: [{}]
      {backends}
",
            refs.join(", ")
        )
    };
    let to_up = refs(&["up"]);
    let rules = [
        rule("/regex", &["regex", "header"], &to_up),
        rule("/path", &["path"], &to_up),
        rule("/sorry", &["sorry"], ""),
    ];
    let (snapshot, at) = written(&rules.concat(), &[("up", up)], EXTENSIONS);
    let _router = Router::start(&snapshot);
    let ask = async |path: &str, wanted: Option<&str>| -> Reply {
        let mut request = get(&format!("http://x.test{path}"));
        if let Some(wanted) = wanted {
            let value = wanted.parse().expect("a value");
            request.headers_mut().insert("x-wanted", value);
        }
        send(at, request).await
    };
    let one = ask("/regex/a1/b2?a1", Some("wanted.test")).await;
    assert_eq!(one.json()["uri"], "/regex/1a-a1/2b-b2?a1");
    assert_eq!(one.seen("host"), ["wanted.test"]);
    assert_eq!(ask("/regex", None).await.seen("host"), ["x.test"]);
    assert_eq!(ask("/regex", Some("a b")).await.status, 500);
    assert_eq!(
        ask("/path/shop/1", None).await.seen("host"),
        ["shop.internal"]
    );
    // What the pattern leaves is no host.
    assert_eq!(ask("/path", None).await.status, 500);

    let sorry = ask("/sorry/x", None).await;
    assert_eq!(sorry.status, 503);
    assert_eq!(sorry.body, "<p>sorry</p>");
    assert_eq!(sorry.header("content-type"), Some("text/html"));
    assert_eq!(sorry.header("retry-after"), Some("60"));
    for request in [
        Request::builder().method(Method::HEAD),
        Request::builder().method(Method::GET),
    ] {
        let request = request.uri("http://x.test/sorry").body(full(String::new()));
        let request = request.expect("a request");
        let wanted = if request.method() == Method::HEAD {
            0
        } else {
            12
        };
        let answer = http2(at).await.send_request(request);
        let answer = reply(answer.await.expect("an answer")).await;
        assert_eq!(answer.body.len(), wanted);
        assert_eq!(answer.header("content-length"), Some("12"));
    }
}

#[tokio::test]
async fn proxy_answers_500_for_a_filter_that_cannot_be_applied() {
    let up = echo("a").await;
    let broken = || vec![Filter::Broken("no HTTPRouteFilter default/gone".into())];
    let mut of_rule = rule(vec![prefix("/rule")], vec![to(up)]);
    of_rule.filters = broken();
    let mut bad = to(up);
    bad.filters = broken();
    let of_backend = rule(vec![prefix("/backend")], vec![bad, to(up)]);
    let (snapshot, at) = plain(vec![route("r", &[], vec![of_rule, of_backend])]);
    let router = Router::start(&snapshot);
    assert_eq!(send(at, get("http://x/rule")).await.status, 500);
    router.reason(Reason::Filter).await;
    let mut sender = http2(at).await;
    let mut failed = 0;
    for _ in 0..60 {
        let answer = sender.send_request(get("http://x/backend"));
        failed += u32::from(answer.await.expect("an answer").status() == 500);
    }
    assert!((10..50).contains(&failed), "{failed} of 60");
}

/// A filter may say it, and the router has the last word.
#[tokio::test]
async fn proxy_tells_the_id_of_a_request_once_whatever_filters_say() {
    let up = echo("a").await;
    let rules = format!(
        "    - filters:
        - {{ type: RequestHeaderModifier, requestHeaderModifier: {{ set: [{{ name: X-Request-Id, value: of-filter }}] }} }}
        - {{ type: ResponseHeaderModifier, responseHeaderModifier: {{ set: [{{ name: X-Request-Id, value: of-filter }}] }} }}
      {}
",
        refs(&["a"])
    );
    let (snapshot, at) = written(&rules, &[("a", up)], "");
    let _router = Router::start(&snapshot);
    let answer = raw(at, b"GET / HTTP/1.1\r\nHost: x.test\r\n\r\n").await;
    let head = answer.split("\r\n\r\n").next().unwrap_or_default();
    assert!(head.starts_with("HTTP/1.1 200"), "{answer}");
    assert_eq!(head.matches("x-request-id: ").count(), 1, "{answer}");
    assert!(!head.contains("of-filter"), "{answer}");
}
