//! `cors` of a `SecurityPolicy`, beside tokens, beside a route's own filter, and merged into what a gateway asks.

use serde_json::json;

use crate::access::{SHOP, ask, policy, world};
use crate::auth::Issuer;
use crate::support::{Reply, Router, echo, free_port, refs, written};

const PAGE: &str = "https://app.shop.test";

/// What an answer says of other origins, by the last part of the headers' names.
fn said(answer: &Reply) -> Vec<(&str, &str)> {
    let mut said: Vec<_> = answer
        .headers
        .iter()
        .filter_map(|(name, value)| {
            let name = name.as_str().strip_prefix("access-control-")?;
            Some((name, value.to_str().expect("ASCII")))
        })
        .collect();
    said.sort_unstable();
    said
}

#[tokio::test]
async fn proxy_answers_preflights_by_a_policy_before_it_asks_for_a_token() {
    let up = echo("a").await;
    let issuer = Issuer::new(None, &[]);
    let at = free_port();
    let spec = format!(
        "  cors:
    allowOrigins: ['https://*.shop.test', 'http://localhost:*']
    allowMethods: [PUT, PURGE]
    allowHeaders: [X-One]
    exposeHeaders: [X-Seen]
    maxAge: 10m
    allowCredentials: true
  jwt: {{ providers: [{{ name: idp, localJWKS: {{ inline: '{}' }} }}] }}",
        issuer.jwks()
    );
    let _router = Router::start(&world(at, up, &policy("p", SHOP, &spec)));
    let preflight = async |origin| {
        let headers = [("origin", origin), ("access-control-request-method", "PUT")];
        ask(at, "OPTIONS", "http://x/", &headers).await
    };
    for origin in [PAGE, "http://localhost:3000", "http://localhost"] {
        let answer = preflight(origin).await;
        assert_eq!((answer.status.as_u16(), answer.body.len()), (204, 0));
        let expected = [
            ("allow-credentials", "true"),
            ("allow-headers", "x-one"),
            ("allow-methods", "PUT, PURGE"),
            ("allow-origin", origin),
            ("expose-headers", "x-seen"),
            ("max-age", "600"),
        ];
        assert_eq!(said(&answer), expected);
    }
    for origin in ["https://shop.test", "https://app.shop.test:8443", "null"] {
        let answer = preflight(origin).await;
        assert_eq!((answer.status.as_u16(), said(&answer)), (204, vec![]));
    }
    // Everything else needs a token, and a page may read that it does.
    let read = vec![
        ("allow-credentials", "true"),
        ("allow-origin", PAGE),
        ("expose-headers", "x-seen"),
    ];
    let origin = ("origin", PAGE);
    let answer = ask(at, "PUT", "http://x/", &[origin]).await;
    assert_eq!((answer.status.as_u16(), said(&answer)), (401, read.clone()));
    let token = format!("Bearer {}", issuer.token(json!({"sub": "a"})));
    let headers = [origin, ("authorization", &token)];
    let answer = ask(at, "PUT", "http://x/", &headers).await;
    assert_eq!((answer.status.as_u16(), said(&answer)), (200, read));
}

#[tokio::test]
async fn proxy_lets_everybody_pass_a_policy_that_is_about_other_origins_alone() {
    let up = echo("up").await;
    let up_refs = refs(&["up"]);
    let rules = format!(
        "    - matches: [{{ path: {{ value: /policy }} }}]
      {up_refs}
    - matches: [{{ path: {{ value: /filter }} }}]
      filters: [{{ type: CORS, cors: {{ allowOrigins: ['https://other.test'] }} }}]
      {up_refs}
"
    );
    let cors = "  cors: { allowOrigins: ['*'], allowMethods: ['*', PUT] }";
    let (snapshot, at) = written(
        &rules,
        &[("up", up)],
        &policy("p", "kind: Gateway, name: gw", cors),
    );
    let _router = Router::start(&snapshot);
    for (path, origin, allowed) in [
        ("/policy", PAGE, vec![("allow-origin", "*")]),
        // What a rule says itself goes before.
        ("/filter", PAGE, vec![]),
        (
            "/filter",
            "https://other.test",
            vec![("allow-origin", "https://other.test")],
        ),
    ] {
        let uri = format!("http://x{path}");
        let answer = ask(at.port(), "GET", &uri, &[("origin", origin)]).await;
        assert_eq!((answer.status.as_u16(), said(&answer)), (200, allowed));
    }
    let asked = [("origin", PAGE), ("access-control-request-method", "PATCH")];
    let answer = ask(at.port(), "OPTIONS", "http://x/policy", &asked).await;
    assert_eq!(answer.header("access-control-allow-methods"), Some("*"));
    assert_eq!(answer.header("access-control-max-age"), Some("5"));
}

#[tokio::test]
async fn proxy_asks_what_both_policies_ask_where_one_is_merged() {
    let up = echo("up").await;
    let up_refs = refs(&["up"]);
    let rules = ["merged", "alone"].map(|name| {
        format!("    - name: {name}\n      matches: [{{ path: {{ value: /{name} }} }}]\n      {up_refs}\n")
    });
    let section = |rule: &str| format!("kind: HTTPRoute, name: r, sectionName: {rule}");
    let cors = format!("  cors: {{ allowOrigins: ['{PAGE}'] }}");
    let more = [
        policy(
            "above",
            "kind: Gateway, name: gw",
            "  cors: { allowOrigins: ['*'], maxAge: 7s }
  apiKeyAuth: { credentialRefs: [{ name: partners }], extractFrom: [{ headers: [x-api-key] }] }",
        ),
        policy(
            "own",
            &section("merged"),
            &format!("  mergeType: StrategicMerge\n{cors}"),
        ),
        policy("alone", &section("alone"), &cors),
        "---
apiVersion: v1
kind: Secret
metadata: { name: partners }
type: Opaque
stringData: { acme: 0123456789abcdef0123456789abcdef }
"
        .to_owned(),
    ];
    let (snapshot, at) = written(&rules.concat(), &[("up", up)], &more.concat());
    let _router = Router::start(&snapshot);
    let key = ("x-api-key", "0123456789abcdef0123456789abcdef");
    let origin = ("origin", PAGE);
    for (uri, headers, status) in [
        ("http://x/merged", &[origin][..], 401),
        ("http://x/merged", &[origin, key][..], 200),
        ("http://x/alone", &[origin][..], 200),
    ] {
        let answer = ask(at.port(), "GET", uri, headers).await;
        let expected = (status, vec![("allow-origin", PAGE)]);
        assert_eq!((answer.status.as_u16(), said(&answer)), expected, "{uri}");
    }
    for (uri, age) in [("http://x/merged", "7"), ("http://x/alone", "5")] {
        let asked = [origin, ("access-control-request-method", "PUT")];
        let answer = ask(at.port(), "OPTIONS", uri, &asked).await;
        assert_eq!(answer.header("access-control-max-age"), Some(age), "{uri}");
    }
}
