//! Calls that fail: tried again, past their deadline, cut in the middle, refused.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use bytes::Bytes;
use cardinal_agent::proxy::Reason;
use http::{HeaderMap, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use serde_json::json;
use tokio::net::TcpListener;
use tonic::Code;

use super::{Codec, client, documents, note, path, routed, rule, say, server, to, unary};
use crate::auth::Issuer;
use crate::documents::snapshot;
use crate::support::{Body, Router, SURELY, free_port, full, get, http2, send};
use crate::traffic_policy::policy;

/// One call by hand: a client of gRPC has a deadline of its own, and here it is the router's that counts.
async fn by_hand(
    at: SocketAddr,
    to: &str,
    headers: &[(&str, &str)],
) -> (HeaderMap, Option<HeaderMap>) {
    let mut request = Request::post(format!("http://grpc.example{to}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    // A frame of gRPC: not compressed, 4 bytes: `wait` as the first field.
    let message = "\0\0\0\0\u{6}\n\u{4}wait".to_owned();
    let request = request.body(full(message)).expect("a request");
    let answer = http2(at).await.send_request(request).await;
    let answer = answer.expect("an answer");
    assert_eq!(answer.status(), StatusCode::OK);
    assert_eq!(answer.headers()["content-type"], "application/grpc");
    let head = answer.headers().clone();
    let body = answer.into_body().collect().await.expect("it is whole");
    (head, body.trailers().cloned())
}

/// A server that resets so many calls before it answers one, and how many it got.
async fn resetting(reason: h2::Reason, times: u32) -> (SocketAddr, Arc<AtomicU32>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("it is bound");
    let count = Arc::new(AtomicU32::new(0));
    let counted = Arc::clone(&count);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let count = Arc::clone(&counted);
            tokio::spawn(async move {
                let mut calls = h2::server::handshake(stream).await.expect("HTTP/2");
                while let Some(Ok((_call, mut answer))) = calls.accept().await {
                    if count.fetch_add(1, Ordering::SeqCst) < times {
                        answer.send_reset(reason);
                        continue;
                    }
                    let head = Response::builder()
                        .header("content-type", "application/grpc")
                        .header("grpc-status", "0")
                        .body(())
                        .expect("a head");
                    answer.send_response(head, true).expect("it is taken");
                }
            });
        }
    });
    (address, count)
}

#[tokio::test]
async fn proxy_tries_again_what_an_upstream_refused_before_it_did_anything() {
    use h2::Reason as H2;
    let triggers = |list: &str| format!("retry: {{ retryOn: {{ triggers: [{list}] }} }}");
    for (reason, times, fields, status, tries) in [
        (H2::REFUSED_STREAM, 2, "retry: {}".to_owned(), "0", 3),
        (H2::REFUSED_STREAM, 1, triggers("refused-stream"), "0", 2),
        (H2::REFUSED_STREAM, 9, triggers("refused-stream"), "14", 3),
        // It may have begun.
        (H2::INTERNAL_ERROR, 1, triggers("refused-stream"), "14", 1),
        (H2::CANCEL, 1, triggers("refused-stream"), "14", 1),
        (H2::REFUSED_STREAM, 1, triggers("connect-failure"), "14", 1),
    ] {
        let (up, count) = resetting(reason, times).await;
        let more = policy("p", "kind: GRPCRoute, name: r", &fields);
        let (_router, at) = routed(&rule("{}", "a"), &[("a", up)], &more);
        let (head, _) = by_hand(at, "/shop.v1.Notes/Say", &[]).await;
        assert_eq!(head["grpc-status"], status, "{reason:?} {fields}");
        assert_eq!(count.load(Ordering::SeqCst), tries, "{reason:?} {fields}");
    }
}

#[tokio::test]
async fn proxy_ends_calls_at_their_deadline() {
    let up = server("a").await;
    let (router, at) = routed(&rule("{}", "a"), &[("a", up)], "");
    for given in ["200m", "200000u", "0n"] {
        let (head, trailers) = by_hand(at, "/shop.v1.Notes/Say", &[("grpc-timeout", given)]).await;
        assert_eq!(head["grpc-status"], "4", "{given}: {head:?}");
        let message = head["grpc-message"].to_str().expect("ASCII");
        assert!(message.starts_with("upstream_timeout"), "{message}");
        assert_eq!(trailers, None);
    }
    router
        .record(|one| {
            one.reason == Reason::UpstreamTimeout
                && one.path.as_deref() == Some("/shop.v1.Notes/Say")
        })
        .await;
    for bad in ["", "1", "1s", "123456789S", "-1S"] {
        let (head, _) = by_hand(at, "/shop.v1.Notes/Say", &[("grpc-timeout", bad)]).await;
        assert_eq!(head["grpc-status"], "13", "{bad}");
    }
    // A client that says so gives up as well; which of the two is first is not said.
    let mut client = client(at, "grpc.example").await;
    let mut request = tonic::Request::new(note("wait", 0));
    request.set_timeout(Duration::from_millis(200));
    let status = unary(&mut client, "/shop.v1.Notes/Say", request).await;
    let code = status.expect_err("nobody answers").code();
    assert!(
        matches!(code, Code::DeadlineExceeded | Code::Cancelled),
        "{code}"
    );
    // In time is in time.
    let mut request = tonic::Request::new(note("", 0));
    request.set_timeout(Duration::from_secs(60));
    let answer = unary(&mut client, "/shop.v1.Notes/Say", request).await;
    assert_eq!(answer.expect("an answer").into_inner().text, "a");
}

#[tokio::test]
async fn proxy_ends_a_stream_in_the_middle_with_trailers() {
    let up = server("a").await;
    let (router, at) = routed(&rule("{}", "a"), &[("a", up)], "");
    let mut request = Request::post("http://grpc.example/shop.v1.Notes/Count")
        .header("content-type", "application/grpc")
        .header("grpc-timeout", "3S");
    request = request.header("te", "trailers");
    // Field 2, a count of 2^21 - 1, at 5 ms each: hours.
    let message = Full::new(Bytes::from_static(b"\0\0\0\0\x04\x10\xff\xff\x7f"));
    let message: Body = message.map_err(|never| match never {}).boxed();
    let request = request.body(message).expect("a request");
    let answer = http2(at).await.send_request(request).await;
    let answer = answer.expect("an answer").into_body().collect().await;
    let answer = answer.expect("the stream is not reset");
    let trailers = answer.trailers().expect("they end it").clone();
    assert_eq!(trailers["grpc-status"], "4");
    assert_eq!(trailers["grpc-message"], "upstream_timeout");
    let bytes = answer.to_bytes().len();
    assert!(bytes > 0 && bytes % 9 == 0, "some messages came: {bytes}");
    router.reason(Reason::UpstreamTimeout).await;
    // The same by a rule's own limit.
    let rules = format!(
        "    - {{ timeouts: {{ request: 3s }}, backendRefs: [{}] }}\n",
        to("a")
    );
    let (text, at) = documents("HTTPRoute", &rules, &[("a", up)], "");
    let _router = Router::start(&snapshot(&text));
    let mut client = client(([127, 0, 0, 1], at).into(), "grpc.example").await;
    client.ready().await.expect("a connection");
    let request = tonic::Request::new(note("", 1 << 20));
    let counting = client.server_streaming(request, path("/a.B/Count"), Codec::default());
    let mut counting = counting.await.expect("a stream").into_inner();
    let end = loop {
        match counting.message().await {
            Ok(Some(_)) => {}
            Ok(None) => panic!("the stream ended well"),
            Err(status) => break status,
        }
    };
    assert_eq!(end.code(), Code::DeadlineExceeded, "{end:?}");
}

#[tokio::test]
async fn proxy_answers_calls_that_it_refuses_as_grpc_does() {
    let issuer = Issuer::new(None, &[]);
    let up = server("a").await;
    let nobody: SocketAddr = ([127, 0, 0, 1], free_port()).into();
    let one = |service: &str, name: &str, backends: &str| {
        format!(
            "    - {{ name: {name}, matches: [{{ method: {{ service: {service} }} }}], {backends} }}\n"
        )
    };
    let refs = |name: &str| format!("backendRefs: [{}]", to(name));
    let rules = [
        one("shop.Gone", "gone", &refs("nobody")),
        one(
            "shop.Weightless",
            "weightless",
            &refs("a").replace(" }]", ", weight: 0 }]"),
        ),
        one("shop.Secret", "secret", &refs("a")),
        one("shop.Mine", "mine", &refs("a")),
        one(
            "shop.Full",
            "full",
            "backendRefs: [{ group: cardinal.dev, kind: RoutingTable, name: t }]",
        ),
    ]
    .concat();
    let more = format!(
        "---
apiVersion: gateway.envoyproxy.io/v1alpha1
kind: SecurityPolicy
metadata: {{ name: all }}
spec:
  targetRefs:
    - {{ group: gateway.networking.k8s.io, kind: GRPCRoute, name: r, sectionName: secret }}
    - {{ group: gateway.networking.k8s.io, kind: GRPCRoute, name: r, sectionName: mine }}
  jwt: {{ providers: [{{ name: p, localJWKS: {{ inline: '{}' }} }}] }}
  authorization:
    rules: [{{ action: Allow, principal: {{ jwt: {{ provider: p, scopes: [call] }} }} }}]
---
apiVersion: cardinal.dev/v1alpha1
kind: RoutingTable
metadata: {{ name: t }}
spec:
  version: '1'
  placements: {{ tier1: {{ url: 'http://{up}', concurrency_limit: 1, max_request_body_bytes: 64 }} }}
  defaultPlacement: tier1
",
        issuer.jwks()
    );
    let (router, at) = routed(&rules, &[("a", up), ("nobody", nobody)], &more);
    let mut client = client(at, "grpc.example").await;
    let mut call = async |to: &str, headers: &[(&'static str, String)], text: &str| {
        let mut request = tonic::Request::new(note(text, 0));
        for (name, value) in headers {
            let value = value.parse().expect("a value");
            request.metadata_mut().insert(*name, value);
        }
        match unary(&mut client, to, request).await {
            Ok(_) => (Code::Ok, String::new()),
            Err(status) => (status.code(), status.message().to_owned()),
        }
    };
    let token = |scope: &str| format!("Bearer {}", issuer.token(json!({ "scope": scope })));
    let key = [("x-routing-key", "acme".to_owned())];
    let long = "x".repeat(100);
    for (to, headers, text, code, word) in [
        (
            "/shop.Unknown/Say",
            &[][..],
            "",
            Code::Unimplemented,
            "no_route (",
        ),
        (
            "/shop.Gone/Say",
            &[],
            "",
            Code::Unavailable,
            "upstream_connect (",
        ),
        (
            "/shop.Weightless/Say",
            &[],
            "",
            Code::Unavailable,
            "no_target (",
        ),
        (
            "/shop.Secret/Say",
            &[],
            "",
            Code::Unauthenticated,
            "jwt_missing: Jwt is missing (",
        ),
        (
            "/shop.Secret/Say",
            &[("authorization", token("other"))],
            "",
            Code::PermissionDenied,
            "scope: RBAC: access denied (",
        ),
        (
            "/shop.Mine/Say",
            &[("authorization", token("call"))],
            "",
            Code::Ok,
            "",
        ),
        (
            "/shop.Full/Say",
            &[],
            "",
            Code::Internal,
            "routing_key_missing: ",
        ),
        ("/shop.Full/Say", &key, "", Code::Ok, ""),
        (
            "/shop.Full/Say",
            &key,
            &long,
            Code::ResourceExhausted,
            "body_size_limit (",
        ),
    ] {
        let (given, message) = call(to, headers, text).await;
        assert_eq!(given, code, "{to}: {message}");
        assert!(message.starts_with(word), "{to}: {message}");
    }
    // One call has the only slot.
    let mut other = self::client(at, "grpc.example").await;
    let waiting = tokio::spawn(async move {
        // The calls below ask for the slot as well.
        loop {
            let mut request = tonic::Request::new(note("wait", 0));
            let key = "acme".parse().expect("a value");
            request.metadata_mut().insert("x-routing-key", key);
            let refused = unary(&mut other, "/shop.Full/Say", request).await;
            assert_eq!(
                refused.map_err(|status| status.code()).err(),
                Some(Code::Unavailable)
            );
        }
    });
    let full = async {
        loop {
            let (code, message) = call("/shop.Full/Say", &key, "").await;
            if code != Code::Ok {
                return (code, message);
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let full = tokio::time::timeout(SURELY, full).await;
    let (code, message) = full.expect("the slot is taken in the end");
    assert_eq!(code, Code::Unavailable);
    assert!(message.starts_with("concurrency_limit ("), "{message}");
    waiting.abort();
    router.reason(Reason::ConcurrencyLimit).await;
    // A host that nobody serves.
    let mut stranger = self::client(at, "stranger.example").await;
    assert_eq!(
        say(&mut stranger, "/shop.Mine/Say").await,
        Err(Code::Unimplemented)
    );
    // Whoever does not speak gRPC is answered in HTTP.
    let plain = send(at, get("http://grpc.example/shop.Unknown/Say")).await;
    assert_eq!(plain.status, StatusCode::NOT_FOUND);
    assert_eq!(plain.json()["error"], "no_route");
}
