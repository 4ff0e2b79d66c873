//! What the policy of a listener says of all its messages: hosts, ids, headers, and what is told of clients.

use cardinal_agent::proxy::Reason;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::{FORWARDED, policy, with, world};
use crate::support::{Reply, Router, connect, echo, full, get, raw, refs, send, written};

#[tokio::test]
async fn proxy_client_policy_settles_what_becomes_of_underscores() {
    let up = echo("up").await;
    for (action, status, seen) in [
        ("RejectRequest", 400, &[][..]),
        ("Allow", 200, &["1"]),
        ("DropHeader", 200, &[]),
    ] {
        let spec = format!("headers: {{ withUnderscoresAction: {action} }}");
        let (snapshot, at) = world(&spec, up, "");
        let _router = Router::start(&snapshot);
        let answer = send(at, with(&[("x_user", "1")])).await;
        assert_eq!(answer.status.as_u16(), status, "{action}");
        if status == 200 {
            assert_eq!(answer.seen("x_user"), seen, "{action}");
        }
    }
}

#[tokio::test]
async fn proxy_client_policy_says_which_request_id_is_told() {
    let up = echo("up").await;
    for (action, own, is_new) in [
        ("PreserveOrGenerate", true, true),
        ("Preserve", true, false),
        ("Generate", false, true),
        ("Disable", false, false),
    ] {
        let (snapshot, at) = world(&format!("headers: {{ requestID: {action} }}"), up, "");
        let _router = Router::start(&snapshot);
        let told = |answer: &Reply| {
            let seen = answer.seen("x-request-id");
            let told = answer.header("x-request-id").map(str::to_owned);
            assert_eq!(seen.first(), told.as_ref(), "{action}");
            told
        };
        let answer = send(at, with(&[("x-request-id", "mine-1")])).await;
        let kept = told(&answer).is_some_and(|id| id == "mine-1");
        assert_eq!(kept, own, "{action}");
        let none = told(&send(at, with(&[])).await);
        assert_eq!(none.is_some(), is_new, "{action}");
        // What is no id goes no further.
        let odd = told(&send(at, with(&[("x-request-id", "a b")])).await);
        assert_eq!(
            odd.as_ref().map(String::len),
            is_new.then_some(32),
            "{action}"
        );
    }
}

#[tokio::test]
async fn proxy_client_policy_edits_headers_before_and_behind_all_else() {
    let up = echo("up").await;
    let spec = "headers: {
      earlyRequestHeaders: { set: [{ name: x-version, value: two }], add: [{ name: x-a, value: b }], remove: [x-secret] },
      lateResponseHeaders: { set: [{ name: server, value: here }], remove: [x-cell-name] },
      disableRateLimitHeaders: true }";
    let more = "---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: { name: two }
spec:
  parentRefs: [{ name: gw }]
  rules:
    - matches: [{ headers: [{ name: x-version, value: two }] }]
      filters: [{ type: ResponseHeaderModifier, responseHeaderModifier: { set: [{ name: server, value: route }, { name: x-route, value: two }] } }]
      backendRefs: [{ group: gateway.envoyproxy.io, kind: Backend, name: up }]
---
apiVersion: gateway.envoyproxy.io/v1alpha1
kind: BackendTrafficPolicy
metadata: { name: rates }
spec:
  targetRefs: [{ group: gateway.networking.k8s.io, kind: Gateway, name: gw }]
  rateLimit: { local: { rules: [{ limit: { requests: 2, unit: Hour } }] } }
";
    let (snapshot, at) = world(spec, up, more);
    let router = Router::start(&snapshot);
    let asked = with(&[("x-a", "a"), ("x-secret", "s"), ("x-version", "one")]);
    let answer = send(at, asked).await;
    assert_eq!(answer.status, 200);
    // Routed by what it became.
    assert_eq!(answer.header("x-route"), Some("two"));
    assert_eq!(answer.seen("x-version"), ["two"]);
    assert_eq!(answer.seen("x-a"), ["a,b"]);
    assert_eq!(answer.seen("x-secret"), [""; 0]);
    assert_eq!(answer.header("server"), Some("here"));
    assert_eq!(answer.header("x-cell-name"), None);
    assert_eq!(answer.header("x-ratelimit-limit"), None);
    send(at, with(&[])).await;
    let refused = send(at, with(&[])).await;
    assert_eq!(refused.status, 429);
    assert_eq!(refused.header("server"), Some("here"));
    assert_eq!(refused.header("x-ratelimit-limit"), None);
    router.reason(Reason::RateLimited).await;
}

#[tokio::test]
async fn proxy_client_policy_edits_headers_by_how_their_names_look_and_sets_what_is_absent() {
    let up = echo("up").await;
    let spec = "headers: {
      earlyRequestHeaders: { removeOnMatch: [{ type: Prefix, value: X-Internal- }, { value: x-exact }, { type: Suffix, value: -debug }, { type: RegularExpression, value: 'x-[0-9]+|host|content-.*' }],
        set: [{ name: x-internal-user, value: nobody }], addIfAbsent: [{ name: x-default, value: ours }] },
      lateResponseHeaders: { removeOnMatch: [{ type: Prefix, value: x-cell- }], addIfAbsent: [{ name: x-frame-options, value: DENY }, { name: x-cell-name, value: ours }] } }";
    let (snapshot, at) = world(spec, up, "");
    let _router = Router::start(&snapshot);
    let gone = [
        "x-internal-user",
        "x-internal-role",
        "x-exact",
        "x-debug",
        "x-17",
    ];
    let stays = [
        "x-internal",
        "x-exactly",
        "x-debugged",
        "x-17a",
        "x-default",
    ];
    let headers: Vec<_> = gone
        .iter()
        .chain(&stays)
        .map(|name| (*name, "theirs"))
        .collect();
    let mut request = with(&headers);
    *request.method_mut() = http::Method::POST;
    *request.body_mut() = full("hello".to_owned());
    let answer = send(at, request).await;
    assert_eq!(answer.status, 200);
    // What is set comes after what goes.
    assert_eq!(answer.seen("x-internal-user"), ["nobody"]);
    for name in &gone[1..] {
        assert_eq!(answer.seen(name), [""; 0], "{name}");
    }
    for name in stays {
        assert_eq!(answer.seen(name), ["theirs"], "{name}");
    }
    // No pattern takes away what frames a message.
    assert_eq!(answer.seen("host"), ["x"]);
    assert_eq!(answer.seen("content-length"), ["5"]);
    // What went is absent.
    assert_eq!(answer.header("x-cell-name"), Some("ours"));
    assert_eq!(answer.header("x-frame-options"), Some("DENY"));
    let answer = send(at, with(&[])).await;
    assert_eq!(answer.seen("x-default"), ["ours"]);
}

#[tokio::test]
async fn proxy_client_policy_tells_the_way_without_the_client_if_it_says_so() {
    let up = echo("up").await;
    let networks = |rest: &str| {
        format!("clientIPDetection: {{ xForwardedFor: {{ trustedCIDRs: [10.0.0.0/8]{rest} }} }}")
    };
    for (spec, sent, told) in [
        (networks(""), vec![], vec!["127.0.0.1"]),
        (networks(", disableXForwardedForAppend: true"), vec![], vec![]),
        (
            "clientIPDetection: { xForwardedFor: { numTrustedHops: 1, disableXForwardedForAppend: true } }".to_owned(),
            vec![(FORWARDED, "6.6.6.6, 192.0.2.7")],
            vec!["192.0.2.7"],
        ),
    ] {
        let (snapshot, at) = world(&spec, up, "");
        let _router = Router::start(&snapshot);
        let answer = send(at, with(&sent)).await;
        assert_eq!(answer.seen(FORWARDED), told, "{spec}");
        assert_eq!(answer.seen("x-forwarded-proto"), ["http"]);
    }
}

#[tokio::test]
async fn proxy_client_policy_takes_the_dot_off_a_host() {
    let up = echo("up").await;
    for (spec, told) in [
        (
            "headers: { host: { stripTrailingHostDot: true } }",
            ["a.test", "a.test:8080"],
        ),
        ("headers: {}", ["a.test.", "a.test.:8080"]),
    ] {
        let (snapshot, at) = world(spec, up, "");
        let _router = Router::start(&snapshot);
        for (sent, told) in ["a.test.", "a.test.:8080"].iter().zip(told) {
            let answer = send(at, get(&format!("http://{sent}/"))).await;
            assert_eq!(answer.seen("host"), [told], "{spec}");
            assert_eq!(answer.seen("x-forwarded-host"), [told], "{spec}");
        }
    }
}

#[tokio::test]
async fn proxy_client_policy_has_a_host_for_clients_that_name_none() {
    let up = echo("up").await;
    let route = |name: &str, hosts: &str| {
        format!(
            "---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {{ name: {name} }}
spec: {{ parentRefs: [{{ name: gw }}], hostnames: [{hosts}], rules: [{{ {} }}] }}
",
            refs(&["up"])
        )
    };
    let spec = "http1: { http10: { useDefaultHost: true } }";
    let bare = b"GET /bare HTTP/1.0\r\n\r\n".as_slice();
    let ask = async |spec: &str, more: &str, bytes: &[u8]| {
        let (snapshot, at) = written(
            "    - {}",
            &[("up", up)],
            &format!("{}{more}", policy(spec)),
        );
        let _router = Router::start(&snapshot);
        let answer = raw(at, bytes).await;
        let head = answer.split("\r\n").next().unwrap_or_default().to_owned();
        (head, answer.contains(r#"["host","one.test"]"#))
    };
    let one = route("one", "one.test, '*.two.test'");
    let both = format!("{one}{}", route("three", "three.test"));
    for (spec, more, bytes, status, told) in [
        (spec, &one, bare, 200, true),
        (
            spec,
            &one,
            b"GET / HTTP/1.0\r\nHost: a.two.test\r\n\r\n".as_slice(),
            200,
            false,
        ),
        // Only HTTP/1.0 may leave it out (RFC 9112, section 3.2).
        (spec, &one, b"GET / HTTP/1.1\r\n\r\n".as_slice(), 400, false),
        // Nobody knows which of the two is meant.
        (spec, &both, bare, 400, false),
        ("http1: { http10: {} }", &one, bare, 400, false),
    ] {
        let (head, named) = ask(spec, more, bytes).await;
        assert!(head.starts_with(&format!("HTTP/1.1 {status} ")), "{head}");
        assert_eq!(named, told, "{head}");
    }
}

/// Frames of HTTP/2 that come until the connection ends or one of these types comes for a stream.
async fn frames(
    stream: &mut tokio::net::TcpStream,
    until: impl Fn(u8, u32) -> bool,
) -> Vec<(u8, u32)> {
    let mut found = Vec::new();
    let mut head = [0; 9];
    while stream.read_exact(&mut head).await.is_ok() {
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
        let mut payload = vec![0; usize::try_from(length).expect("it is short")];
        stream.read_exact(&mut payload).await.expect("a frame");
        let id = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
        found.push((head[3], id));
        if until(head[3], id) {
            break;
        }
    }
    found
}

#[tokio::test]
async fn proxy_client_policy_ends_the_stream_of_a_malformed_request_alone() {
    let up = echo("up").await;
    let (snapshot, at) = world("http2: { onInvalidMessage: TerminateStream }", up, "");
    let _router = Router::start(&snapshot);
    // Fields of the static table of HPACK (RFC 7541, appendix A): `:method: GET`, `:scheme: http`, `:path: /`, then
    // `:authority: x` and `x: y` as literals that are not indexed.
    const GOOD: &[u8] = &[0x82, 0x86, 0x84, 0x01, 1, b'x'];
    const FIELD: &[u8] = &[0x00, 1, b'x', 1, b'y'];
    let headers = |id: u8, block: &[u8]| {
        let length = u8::try_from(block.len()).expect("it is short");
        // The end of the headers and of the stream.
        [&[0, 0, length, 1, 5, 0, 0, 0, id], block].concat()
    };
    let mut stream = connect(None, at).await;
    let hello = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
    stream.write_all(hello).await.expect("it is taken");
    // A pseudo-header behind another field (RFC 9113, section 8.3).
    let bad = headers(1, &[FIELD, GOOD].concat());
    stream.write_all(&bad).await.expect("it is taken");
    let (reset, data, goodbye) = (3, 0, 7);
    let found = frames(&mut stream, |kind, id| {
        kind == goodbye || (kind, id) == (reset, 1)
    })
    .await;
    assert_eq!(found.last(), Some(&(reset, 1)), "{found:?}");
    let good = headers(3, &[GOOD, FIELD].concat());
    stream.write_all(&good).await.expect("it is taken");
    let found = frames(&mut stream, |kind, id| {
        kind == goodbye || (kind, id) == (data, 3)
    })
    .await;
    assert_eq!(found.last(), Some(&(data, 3)), "{found:?}");
}
