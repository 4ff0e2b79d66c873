//! `GRPCRoute`, and calls of gRPC however they are routed: a client and a server of gRPC with the router between them.

use std::net::SocketAddr;

use cardinal_agent::proxy::Reason;
use http::StatusCode;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Code;
use tonic::client::Grpc as Client;
use tonic::transport::Channel;

use crate::documents::snapshot;
use crate::support::{Router, backend, free_port, get, http_gateway, send, until};

mod failures;
mod notes;

use notes::{Codec, path};
pub(crate) use notes::{client, note, server, tls_server, unary};

async fn say(client: &mut Client<Channel>, to: &str) -> Result<String, Code> {
    match unary(client, to, tonic::Request::new(note("", 0))).await {
        Ok(answer) => Ok(answer.into_inner().text),
        Err(status) => Err(status.code()),
    }
}

/// A gateway and one route, of a kind, with `rules` in YAML; `more` are further documents.
fn documents(
    kind: &str,
    rules: &str,
    backends: &[(&str, SocketAddr)],
    more: &str,
) -> (String, u16) {
    let at = free_port();
    let edge = http_gateway("gw", at);
    let mut text = format!(
        "
{edge}apiVersion: gateway.networking.k8s.io/v1
kind: {kind}
metadata: {{ name: r }}
spec:
  parentRefs: [{{ name: gw }}]
  hostnames: [grpc.example]
  rules:
{rules}
"
    );
    for (called, address) in backends {
        text.push_str(&backend(called, &[*address]));
    }
    text.push_str(more);
    (text, at)
}

fn routed(rules: &str, backends: &[(&str, SocketAddr)], more: &str) -> (Router, SocketAddr) {
    let (text, at) = documents("GRPCRoute", rules, backends, more);
    (Router::start(&snapshot(&text)), ([127, 0, 0, 1], at).into())
}

fn to(backend: &str) -> String {
    format!("{{ group: gateway.envoyproxy.io, kind: Backend, name: {backend} }}")
}

fn rule(matches: &str, backend: &str) -> String {
    format!(
        "    - {{ matches: [{matches}], backendRefs: [{}] }}\n",
        to(backend)
    )
}

#[tokio::test]
async fn proxy_carries_calls_of_every_shape() {
    let up = server("a").await;
    // By a route of either kind.
    let (text, http) = documents("HTTPRoute", &rule("", "a"), &[("a", up)], "");
    let _by_path = Router::start(&snapshot(&text));
    let (_router, at) = routed(
        &rule("{ method: { service: shop.v1.Notes } }", "a"),
        &[("a", up)],
        "",
    );
    for at in [at, ([127, 0, 0, 1], http).into()] {
        let mut client = client(at, "grpc.example").await;
        let request = tonic::Request::new(note("", 41));
        let answer = unary(&mut client, "/shop.v1.Notes/Say", request).await;
        let answer = answer.expect("an answer");
        assert_eq!(
            answer.metadata().get("x-path").expect("it is told"),
            "/shop.v1.Notes/Say"
        );
        assert_eq!(answer.into_inner(), note("a", 42));

        let refused = unary(
            &mut client,
            "/shop.v1.Notes/Say",
            tonic::Request::new(note("deny", 0)),
        );
        let refused = refused.await.expect_err("a status");
        assert_eq!(refused.code(), Code::PermissionDenied);
        assert_eq!(refused.message(), "für 100 % of you");
        assert_eq!(
            refused.metadata().get("x-why").expect("metadata"),
            "because"
        );

        let request = tonic::Request::new(note("over", 9));
        client.ready().await.expect("a connection");
        let counting = client
            .server_streaming(request, path("/shop.v1.Notes/Count"), Codec::default())
            .await;
        let mut counting = counting.expect("a stream").into_inner();
        for count in (0..9).rev() {
            let one = counting.message().await.expect("no error yet");
            assert_eq!(one, Some(note("", count)));
        }
        let end = counting.message().await.expect_err("trailers say so");
        assert_eq!((end.code(), end.message()), (Code::DataLoss, "over"));
        assert_eq!(end.metadata().get("x-end").expect("metadata"), "trailer");

        // Each message is answered before the next one is sent.
        let (say, said) = mpsc::channel(1);
        client.ready().await.expect("a connection");
        let request = tonic::Request::new(ReceiverStream::new(said));
        say.send(note("", 0)).await.expect("somebody reads");
        let talk = client
            .streaming(request, path("/shop.v1.Notes/Talk"), Codec::default())
            .await;
        let mut talk = talk.expect("a stream").into_inner();
        let first = talk.message().await.expect("no error");
        assert_eq!(first, Some(note("", 0)));
        for count in 1..20 {
            say.send(note("n", count)).await.expect("somebody reads");
            let back = talk.message().await.expect("no error");
            assert_eq!(back, Some(note("n", count * 2)));
        }
        drop(say);
        assert_eq!(talk.message().await.expect("a good end"), None);
        let trailers = talk.trailers().await.expect("no error");
        assert!(trailers.is_some(), "a stream ends with trailers");
    }
}

#[tokio::test]
async fn proxy_finds_calls_by_service_then_method_then_headers() {
    let names = [
        "exact", "service", "tenant", "method", "word", "words", "rest",
    ];
    let mut backends = Vec::new();
    for name in names {
        backends.push((name, server(name).await));
    }
    // The order of documents is not the order of precedence.
    let rules = [
        ("{}", "rest"),
        ("{ method: { method: Say } }", "method"),
        (
            "{ method: { type: RegularExpression, service: 'shop[.].*' } }",
            "words",
        ),
        (
            "{ method: { type: RegularExpression, service: 'shop[.]v1[.]No.*', method: '.*' } }",
            "word",
        ),
        ("{ method: { service: shop.v1.Notes } }", "service"),
        (
            "{ method: { service: shop.v1.Notes }, headers: [{ name: x-tenant, value: acme }] }",
            "tenant",
        ),
        (
            "{ method: { service: shop.v1.Notes, method: Say } }",
            "exact",
        ),
    ];
    let rules: String = rules.iter().map(|(one, to)| rule(one, to)).collect();
    let (_router, at) = routed(&rules, &backends, "");
    let mut client = client(at, "grpc.example").await;
    for (to, expected) in [
        ("/shop.v1.Notes/Say", Ok("exact")),
        ("/shop.v1.Notes/Tell", Ok("service")),
        ("/shop.v1.Nobody/Say", Ok("word")),
        ("/shop.v2.Notes/Say", Ok("words")),
        ("/shop.v2.Notes/Tell", Ok("words")),
        ("/other.Notes/Say", Ok("method")),
        ("/other.Notes/Tell", Ok("rest")),
        ("/Shop.v1.Notes/Say", Ok("method")),
        // Not what a call looks like.
        ("/shop.v1.Notes/Say/More", Err(Code::Unimplemented)),
        ("/shop.v1.Notes", Err(Code::Unimplemented)),
        ("/shop.v1.Notes/", Err(Code::Unimplemented)),
    ] {
        let found = say(&mut client, to).await;
        assert_eq!(found.as_deref(), expected.as_deref(), "{to}");
    }
    let mut request = tonic::Request::new(note("", 0));
    let tenant = "acme".parse().expect("a value");
    request.metadata_mut().insert("x-tenant", tenant);
    let found = unary(&mut client, "/shop.v1.Notes/Tell", request).await;
    assert_eq!(found.expect("an answer").into_inner().text, "tenant");
    // What is not posted is no call, and this host has nothing else.
    let plain = send(at, get("http://grpc.example/shop.v1.Notes/Say")).await;
    assert_eq!(plain.status, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn proxy_filters_and_spreads_calls() {
    let (a, b, copy) = (server("a").await, server("b").await, server("copy").await);
    let rules = format!(
        "    - name: notes
      filters:
        - {{ type: RequestHeaderModifier, requestHeaderModifier: {{ set: [{{ name: x-set, value: rule }}] }} }}
        - {{ type: ResponseHeaderModifier, responseHeaderModifier: {{ remove: [x-gone], add: [{{ name: x-added, value: 'yes' }}] }} }}
        - {{ type: RequestMirror, requestMirror: {{ backendRef: {} }} }}
      sessionPersistence: {{ sessionName: x-keep, type: Header }}
      backendRefs: [{}, {}, {}]
",
        to("copy"),
        to("a").replace('}', ", weight: 1 }"),
        to("b").replace('}', ", weight: 3 }"),
        to("copy").replace('}', ", weight: 0 }"),
    );
    let (router, at) = routed(&rules, &[("a", a), ("b", b), ("copy", copy)], "");
    let mut client = client(at, "grpc.example").await;
    let mut count = [0; 2];
    let mut kept = None;
    for _ in 0..200 {
        let request = tonic::Request::new(note("", 0));
        let answer = unary(&mut client, "/shop.v1.Notes/Say", request).await;
        let answer = answer.expect("an answer");
        let metadata = answer.metadata();
        assert_eq!(metadata.get("x-seen").expect("it was set"), "rule");
        assert_eq!(metadata.get("x-added").expect("it was added"), "yes");
        assert_eq!(metadata.get("x-gone"), None);
        let session = metadata.get("x-keep").expect("a session").clone();
        let by = answer.into_inner().text;
        count[usize::from(by == "b")] += 1;
        kept = Some((session, by));
    }
    assert!((20..80).contains(&count[0]), "{count:?}");
    let (session, by) = kept.expect("there were calls");
    for _ in 0..20 {
        let mut request = tonic::Request::new(note("", 0));
        request.metadata_mut().insert("x-keep", session.clone());
        let answer = unary(&mut client, "/shop.v1.Notes/Say", request).await;
        assert_eq!(answer.expect("an answer").into_inner().text, by);
    }
    let record = router.reason(Reason::Ok).await;
    assert_eq!(record.route.as_deref(), Some("default/r"));
    // Copies are calls too.
    let sent = || {
        let mut registry = prometheus_client::registry::Registry::default();
        router.proxy.register(&mut registry);
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).expect("it is text");
        text.lines()
            .find(|line| line.contains("mirror") && line.contains("sent"))
            .and_then(|line| line.rsplit(' ').next()?.parse::<u64>().ok())
            .unwrap_or_default()
    };
    until("220 copies", || sent() >= 220).await;
}

#[tokio::test]
async fn proxy_gives_a_host_to_the_older_kind_of_route() {
    let (call, up) = (server("call").await, crate::support::echo("path").await);
    for (http, grpc, winner) in [
        ("2026-01-01T00:00:00Z", "2026-01-02T00:00:00Z", "HTTPRoute"),
        ("2026-01-02T00:00:00Z", "2026-01-01T00:00:00Z", "GRPCRoute"),
    ] {
        let other = format!(
            "---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {{ name: other, creationTimestamp: '{http}' }}
spec:
  parentRefs: [{{ name: gw }}]
  hostnames: ['*.example', else.where]
  rules: [{{ backendRefs: [{}] }}]
",
            to("b")
        );
        let (text, at) = documents(
            "GRPCRoute",
            &rule("{}", "a"),
            &[("a", call), ("b", up)],
            &other,
        );
        let text = text.replace(
            "{ name: r }",
            &format!("{{ name: r, creationTimestamp: '{grpc}' }}"),
        );
        let snapshot = snapshot(&text);
        let warnings: Vec<String> = snapshot.warnings.iter().map(ToString::to_string).collect();
        assert_eq!(warnings.len(), 1, "{warnings:?}");
        assert!(warnings[0].contains("parentRefs[0]"), "{warnings:?}");
        assert!(
            warnings[0].contains(&format!("`{winner}` default/")),
            "{warnings:?}"
        );
        let _router = Router::start(&snapshot);
        let at: SocketAddr = ([127, 0, 0, 1], at).into();
        let mut client = client(at, "grpc.example").await;
        let called = say(&mut client, "/shop.v1.Notes/Say").await;
        let plain = send(at, get("http://else.where/")).await.status;
        if winner == "GRPCRoute" {
            assert_eq!(called.as_deref(), Ok("call"));
            // One host of it is taken, so that none of the other is served.
            assert_eq!(plain, StatusCode::NOT_FOUND);
        } else {
            assert!(called.is_err(), "{called:?}");
            assert_eq!(plain, StatusCode::OK);
        }
    }
}
