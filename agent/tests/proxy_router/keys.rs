//! Routing keys from other places than a header, over real sockets and from documents.

use std::net::SocketAddr;

use http::Request;
use serde_json::json;

use crate::access::policy;
use crate::auth::Issuer;
use crate::documents::snapshot;
use crate::support::{Body, Router, echo, free_port, full, get, http_gateway, send};

/// Documents with a table whose `spec.key` is `key`, and more documents behind them.
fn documents(at: u16, key: &str, alpha: SocketAddr, beta: SocketAddr, more: &str) -> String {
    let edge = http_gateway("edge", at);
    format!(
        "
apiVersion: cardinal.dev/v1alpha1
kind: RoutingTable
metadata: {{ name: tenants }}
spec:
  version: '1'
  key: {key}
  routingTable: {{ acme: beta, '7': beta }}
  placements:
    alpha: {{ url: 'http://{alpha}' }}
    beta: {{ url: 'http://{beta}' }}
  defaultPlacement: alpha
---
{edge}apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {{ name: r }}
spec:
  parentRefs: [{{ name: edge }}]
  rules: [{{ backendRefs: [{{ group: cardinal.dev, kind: RoutingTable, name: tenants }}] }}]{more}"
    )
}

/// `spec.key`, target, headers, status and who serves.
type Row = (
    &'static str,
    &'static str,
    &'static [(&'static str, &'static str)],
    u16,
    Option<&'static str>,
);

fn request(target: &str, headers: &[(&str, &str)]) -> Request<Body> {
    let mut builder = Request::get(target);
    for (name, value) in headers {
        builder = builder.header(*name, *value);
    }
    builder.body(full(String::new())).expect("a request")
}

#[tokio::test]
async fn proxy_reads_routing_keys_where_the_table_says() {
    let (alpha, beta) = (echo("alpha").await, echo("beta").await);
    let rows: [Row; 12] = [
        ("{ host: true }", "http://acme/", &[], 200, Some("beta")),
        ("{ host: true }", "http://other/", &[], 200, Some("alpha")),
        ("{ path: 2 }", "http://x/t/acme/y", &[], 200, Some("beta")),
        ("{ path: 2 }", "http://x/t", &[], 400, None),
        (
            "{ query: tenant }",
            "http://x/?tenant=ac%6De",
            &[],
            200,
            Some("beta"),
        ),
        (
            "{ query: tenant }",
            "http://x/?tenant=a&tenant=b",
            &[],
            400,
            None,
        ),
        (
            "{ cookie: tenant }",
            "http://x/",
            &[("cookie", "tenant=acme")],
            200,
            Some("beta"),
        ),
        (
            "{ header: x-tenant }",
            "http://x/",
            &[("x-tenant", "acme")],
            200,
            Some("beta"),
        ),
        (
            "{ header: x-tenant }",
            "http://x/",
            &[("x-routing-key", "acme")],
            400,
            None,
        ),
        // The server name of a connection without TLS.
        ("{ sni: true }", "http://acme/", &[], 400, None),
        (
            "{ trust: [{ gateway: edge, sources: [127.0.0.0/8] }] }",
            "http://x/",
            &[("x-routing-key", "acme")],
            200,
            Some("beta"),
        ),
        (
            "{ trust: [{ gateway: edge, sources: [192.0.2.0/24] }] }",
            "http://x/",
            &[("x-routing-key", "acme")],
            403,
            None,
        ),
    ];
    for (key, target, headers, status, served) in rows {
        let at = free_port();
        let _router = Router::start(&snapshot(&documents(at, key, alpha, beta, "")));
        let reply = send(([127, 0, 0, 1], at).into(), request(target, headers)).await;
        assert_eq!(reply.status, status, "{key} {target}: {reply:?}");
        assert_eq!(reply.header("x-routed-to"), served, "{key} {target}");
    }
}

#[tokio::test]
async fn proxy_takes_a_claim_as_key_only_from_a_verified_token() {
    let (alpha, beta) = (echo("alpha").await, echo("beta").await);
    let issuer = Issuer::new(None, &[]);
    let at = free_port();
    let open = documents(at, "{ claim: org.tenant }", alpha, beta, "");
    let mistakes = cardinal_agent::compile::route::compile(&snapshot(&open), 1);
    let mistakes = mistakes.expect_err("nobody asks for a token");
    assert!(
        mistakes[0].message.contains("takes its key from a token"),
        "{mistakes:?}"
    );
    let jwt = format!(
        "  jwt: {{ providers: [{{ name: default, localJWKS: {{ type: Inline, inline: '{}' }} }}] }}",
        issuer.jwks()
    );
    let policy = format!("\n{}", policy("p", "kind: HTTPRoute, name: r", &jwt));
    let text = documents(at, "{ claim: org.tenant }", alpha, beta, &policy);
    let _router = Router::start(&snapshot(&text));
    let at: SocketAddr = ([127, 0, 0, 1], at).into();
    assert_eq!(send(at, get("http://x/")).await.status, 401);
    for (claims, status, served) in [
        (json!({"org": {"tenant": "acme"}}), 200, Some("beta")),
        (json!({"org": {"tenant": 7}}), 200, Some("beta")),
        (json!({"org": {"tenant": "other"}}), 200, Some("alpha")),
        (json!({"org": {"tenant": ["acme"]}}), 400, None),
        (json!({"tenant": "acme"}), 400, None),
    ] {
        let token = format!("Bearer {}", issuer.token(claims.clone()));
        let headers = [("authorization", token.as_str()), ("x-routing-key", "acme")];
        let reply = send(at, request("http://x/", &headers)).await;
        assert_eq!(reply.status, status, "{claims}: {reply:?}");
        assert_eq!(reply.header("x-routed-to"), served, "{claims}");
    }
}
