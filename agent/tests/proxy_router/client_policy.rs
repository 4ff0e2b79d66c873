//! `ClientTrafficPolicy`: what a listener asks of its clients, and what it grants them.

use std::net::{Ipv4Addr, SocketAddr};

use cardinal_agent::proxy::Reason;
use http::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use snapshot::Snapshot;

use crate::support::{
    Body, Router, backend, connect, echo, free_port, get, refs, reply, send, written,
};
use crate::tcp_routes::{gateway, route};
use crate::tls::Authority;

mod addresses;
mod connections;
mod messages;
mod tls;

const FORWARDED: &str = "x-forwarded-for";
const MADE: &str = "2026-01-01T00:00:00Z";

/// A policy of gateway `gw`; `spec` is in the flow style of YAML.
pub(crate) fn policy(spec: &str) -> String {
    policy_of("p", "", spec)
}

/// The same with this name, and for one listener unless `section` is empty.
pub(crate) fn policy_of(name: &str, section: &str, spec: &str) -> String {
    let section = match section {
        "" => String::new(),
        section => format!(", sectionName: {section}"),
    };
    format!(
        "---
apiVersion: gateway.envoyproxy.io/v1alpha1
kind: ClientTrafficPolicy
metadata: {{ name: {name} }}
spec: {{ targetRefs: [{{ group: gateway.networking.k8s.io, kind: Gateway, name: gw{section} }}], {spec} }}
"
    )
}

/// A listener of HTTP with a policy, and one route to an upstream; `more` are further documents.
fn world(spec: &str, up: SocketAddr, more: &str) -> (Snapshot, SocketAddr) {
    let rule = format!("    - {{ name: main, {} }}", refs(&["up"]));
    written(&rule, &[("up", up)], &format!("{}{more}", policy(spec)))
}

/// The same with TLS terminated, for `a.example.com`.
fn secure(authority: &Authority, spec: &str, up: SocketAddr) -> (Snapshot, SocketAddr) {
    let at = free_port();
    let mut text = gateway(&[format!(
        "{{ name: https, port: {at}, protocol: HTTPS, tls: {{ certificateRefs: [{{ name: cert }}] }} }}"
    )]);
    text.push_str(&route(
        "HTTPRoute",
        "r",
        MADE,
        &format!("rules: [{{ {} }}]", refs(&["up"])),
    ));
    text.push_str(&backend("up", &[up]));
    text.push_str(&authority.secret("cert", &["a.example.com"]));
    text.push_str(&policy(spec));
    let snapshot = crate::documents::snapshot(&text);
    (snapshot, (Ipv4Addr::LOCALHOST, at).into())
}

/// A request with these headers.
fn with(headers: &[(&str, &str)]) -> Request<Body> {
    let mut request = get("http://x/");
    for (name, value) in headers {
        let name: http::HeaderName = name.parse().expect("a header");
        request
            .headers_mut()
            .append(name, value.parse().expect("a header value"));
    }
    request
}

#[tokio::test]
async fn proxy_client_policy_settles_what_an_escaped_slash_is() {
    let up = echo("up").await;
    for (spec, target, status, path) in [
        ("", "/a%2Fb", 400, ""),
        ("escapedSlashesAction: RejectRequest", "/a%5Cb", 400, ""),
        ("escapedSlashesAction: KeepUnchanged", "/a/..%2Fb", 400, ""),
        (
            "escapedSlashesAction: KeepUnchanged",
            "/a%2fb/c%5cd",
            200,
            "/a%2Fb/c%5Cd",
        ),
        (
            "escapedSlashesAction: KeepUnchanged",
            "/x//y/../%2F/",
            200,
            "/x/%2F/",
        ),
        (
            "escapedSlashesAction: UnescapeAndForward",
            "/a%2Fb%5Cc",
            200,
            "/a/b/c",
        ),
        (
            "escapedSlashesAction: UnescapeAndForward",
            "/a/%2E%2E%2Fb",
            200,
            "/b",
        ),
        (
            "escapedSlashesAction: UnescapeAndForward",
            "/%2E%2E%2Fb",
            400,
            "",
        ),
        (
            "escapedSlashesAction: UnescapeAndRedirect",
            "/a%2Fb?q=%2F",
            307,
            "/a/b?q=%2F",
        ),
        (
            "escapedSlashesAction: UnescapeAndRedirect",
            "/a/b",
            200,
            "/a/b",
        ),
        ("disableMergeSlashes: true", "/a//b///", 200, "/a//b///"),
        ("disableMergeSlashes: true", "//", 200, "//"),
        ("disableMergeSlashes: true", "/a//../b", 200, "/a/b"),
        ("disableMergeSlashes: false", "/a//b", 200, "/a/b"),
    ] {
        let (snapshot, at) = world(&format!("path: {{ {spec} }}"), up, "");
        let _router = Router::start(&snapshot);
        let answer = send(at, get(&format!("http://x{target}"))).await;
        assert_eq!(answer.status.as_u16(), status, "{spec} {target}");
        match status {
            200 => assert_eq!(answer.json()["path"], path, "{spec} {target}"),
            307 => assert_eq!(answer.header("location"), Some(path), "{spec} {target}"),
            _ => {}
        }
    }
}

#[tokio::test]
async fn proxy_client_policy_answers_health_checks() {
    let up = echo("up").await;
    let (snapshot, at) = world("healthCheck: { path: /healthz }", up, "");
    let router = Router::start(&snapshot);
    let answer = send(at, get("http://192.0.2.99/healthz?x")).await;
    assert_eq!((answer.status, answer.body.len()), (StatusCode::OK, 0));
    router.reason(Reason::Answered).await;
    assert_eq!(
        send(at, get("http://x/healthz/")).await.json()["path"],
        "/healthz/"
    );
    let mut post = get("http://x/healthz");
    *post.method_mut() = http::Method::POST;
    assert_eq!(send(at, post).await.json()["method"], "POST");
}

#[tokio::test]
async fn proxy_client_policy_is_that_of_the_table_for_each_request() {
    let up = echo("up").await;
    let (before, at) = world("headers: { withUnderscoresAction: Allow }", up, "");
    let router = Router::start(&before);
    let stream = connect(None, at).await;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .expect("a connection");
    tokio::spawn(connection);
    let asked = || {
        let mut request = with(&[("x_user", "1"), ("host", "x")]);
        *request.uri_mut() = "/".parse().expect("a path");
        request
    };
    let answer = sender.send_request(asked()).await.expect("an answer");
    assert_eq!(reply(answer).await.seen("x_user"), ["1"]);
    let mut after = before.clone();
    for gateway in after.gateways.values_mut() {
        gateway.listeners[0].policy = None;
    }
    router.publish(&after, 2);
    let answer = sender.send_request(asked()).await.expect("an answer");
    assert_eq!(answer.status(), StatusCode::BAD_REQUEST);
}
