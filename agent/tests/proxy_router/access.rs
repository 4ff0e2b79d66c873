//! Policies as documents, and who passes by them: places of tokens, claims, rules, keys, users.

use std::net::SocketAddr;

use cardinal_agent::proxy::Reason;
use serde_json::json;
use snapshot::Snapshot;

use crate::auth::Issuer;
use crate::documents::snapshot;
use crate::support::{Reply, Router, echo, free_port, get, http_gateway, send};

mod credentials;
mod tokens;

/// A http_gateway with a listener `http`, the backend `up`, a route `shop` with one rule `all`, and more documents.
pub(crate) fn world(at: u16, up: SocketAddr, more: &str) -> Snapshot {
    let edge = http_gateway("edge", at);
    snapshot(&format!(
        "
{edge}apiVersion: gateway.envoyproxy.io/v1alpha1
kind: Backend
metadata: {{ name: up }}
spec:
  endpoints: [{{ ip: {{ address: {}, port: {} }} }}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {{ name: shop }}
spec:
  parentRefs: [{{ name: edge }}]
  rules:
    - name: all
      backendRefs: [{{ group: gateway.envoyproxy.io, kind: Backend, name: up }}]
{more}",
        up.ip(),
        up.port(),
    ))
}

/// A policy for the route `shop`; `spec` is indented by two.
pub(crate) fn policy(name: &str, target: &str, spec: &str) -> String {
    format!(
        "---
apiVersion: gateway.envoyproxy.io/v1alpha1
kind: SecurityPolicy
metadata: {{ name: {name} }}
spec:
  targetRefs: [{{ group: gateway.networking.k8s.io, {target} }}]
{spec}
"
    )
}

pub(crate) const SHOP: &str = "kind: HTTPRoute, name: shop";

fn local(at: u16) -> SocketAddr {
    ([127, 0, 0, 1], at).into()
}

/// A request with headers to a port of loopback.
pub(crate) async fn ask(at: u16, method: &str, uri: &str, headers: &[(&str, &str)]) -> Reply {
    let mut request = get(uri);
    *request.method_mut() = method.parse().expect("a method");
    for (name, value) in headers {
        let name: http::HeaderName = name.parse().expect("a name");
        request
            .headers_mut()
            .append(name, value.parse().expect("a value"));
    }
    send(local(at), request).await
}

/// The router's series as text.
pub(crate) fn metrics(router: &Router) -> String {
    let mut registry = prometheus_client::registry::Registry::default();
    router.proxy.metrics().register(&mut registry);
    router.proxy.keys().register(&mut registry);
    router.proxy.log().register(&mut registry);
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, &registry).expect("it encodes");
    text
}

#[tokio::test]
async fn proxy_authorises_by_the_first_rule_that_fits() {
    let up = echo("a").await;
    let issuer = Issuer::new(None, &[]);
    let at = free_port();
    let spec = format!(
        "  jwt: {{ optional: true, providers: [{{ name: idp, localJWKS: {{ inline: '{}' }} }}] }}
  authorization:
    rules:
      - action: Deny
        principal: {{ headers: [{{ name: X-Blocked, values: ['1', 'yes'] }}] }}
      - action: Allow
        operation: {{ methods: [GET, HEAD], path: {{ type: Prefix, value: /public/ }} }}
      - action: Deny
        operation: {{ path: {{ type: RegularExpression, value: '/secret(/.*)?' }} }}
      - action: Allow
        operation: {{ methods: [POST] }}
        principal:
          jwt: {{ provider: idp, scopes: [write, more], claims: [{{ name: org.role, values: [admin, ops] }}] }}
      - action: Allow
        principal:
          clientCIDRs: [192.0.2.0/24]
      - action: Allow
        operation: {{ path: {{ value: /list }} }}
        principal:
          clientCIDRs: [10.0.0.0/8, 127.0.0.0/8]
          jwt: {{ provider: idp, claims: [{{ name: 'https://x/y.roles', valueType: StringArray, values: [a] }}] }}",
        issuer.jwks()
    );
    let router = Router::start(&world(at, up, &policy("p", SHOP, &spec)));
    let writer = json!({"scope": "write more", "org": {"role": "ops"}});
    let lister = json!({"https://x/y.roles": ["b", "a"]});
    for (method, path, claims, blocked, status) in [
        ("GET", "/public/x", None, None, 200),
        ("POST", "/public/x", None, None, 403),
        ("GET", "/public", None, None, 403),
        ("GET", "/public/x", None, Some("yes"), 403),
        ("GET", "/public/x", None, Some("no"), 200),
        ("GET", "/public/../secret", None, None, 403),
        ("POST", "/x", Some(writer.clone()), None, 200),
        ("POST", "/secret/x", Some(writer.clone()), None, 403),
        ("POST", "/secrets", Some(writer.clone()), None, 200),
        ("PUT", "/x", Some(writer.clone()), None, 403),
        (
            "POST",
            "/x",
            Some(json!({"scope": "write", "org": {"role": "ops"}})),
            None,
            403,
        ),
        (
            "POST",
            "/x",
            Some(json!({"scp": ["write", "more"], "org": {"role": "ops"}})),
            None,
            200,
        ),
        (
            "POST",
            "/x",
            Some(json!({"scope": "write more", "org": {"role": ["ops"]}})),
            None,
            403,
        ),
        (
            "POST",
            "/x",
            Some(json!({"scope": "write more", "org": {"role": "dev"}})),
            None,
            403,
        ),
        ("GET", "/list", Some(lister.clone()), None, 200),
        ("GET", "/list/", Some(lister), None, 403),
        (
            "GET",
            "/list",
            Some(json!({"https://x/y.roles": "a"})),
            None,
            403,
        ),
        ("GET", "/list", None, None, 403),
        ("HEAD", "/list", None, None, 403),
    ] {
        let mut headers = Vec::new();
        let token = claims
            .as_ref()
            .map(|claims| format!("Bearer {}", issuer.token(claims.clone())));
        headers.extend(token.as_deref().map(|token| ("authorization", token)));
        headers.extend(blocked.map(|value| ("x-blocked", value)));
        let uri = format!("http://x{path}");
        let answer = ask(at, method, &uri, &headers).await;
        assert_eq!(
            answer.status, status,
            "{method} {path} {claims:?} {blocked:?}"
        );
        if status == 403 && method == "HEAD" {
            assert!(answer.body.is_empty(), "{path}");
            assert_eq!(
                answer.header("content-type"),
                None,
                "no content has no type"
            );
        } else if status == 403 {
            assert_eq!(answer.json()["message"], "RBAC: access denied");
        }
    }
    router.reason(Reason::AccessDenied).await;
    router.reason(Reason::Scope).await;
}

#[tokio::test]
async fn proxy_answers_500_where_a_policy_lacks_what_it_refers_to() {
    let up = echo("a").await;
    for (what, secret) in [
        ("no Secret", ""),
        (
            "a hash of another kind",
            "---
apiVersion: v1
kind: Secret
metadata: { name: users }
type: Opaque
stringData: { .htpasswd: 'ann:$2y$05$abcdefghijklmnopqrstuv' }
",
        ),
    ] {
        let at = free_port();
        let spec = "  basicAuth: { users: { name: users } }";
        let world = world(at, up, &(policy("p", SHOP, spec) + secret));
        assert_eq!(world.warnings.len(), 1, "{what}: {:?}", world.warnings);
        let router = Router::start(&world);
        let headers = [("authorization", "Basic YW5uOnBhc3N3b3Jk")];
        let answer = ask(at, "GET", "http://x/", &headers).await;
        assert_eq!(
            (answer.status.as_u16(), answer.json()["error"].as_str()),
            (500, Some("policy_unusable")),
            "{what}"
        );
        router.reason(Reason::PolicyUnusable).await;
    }
}

#[tokio::test]
async fn proxy_follows_the_most_specific_policy_and_of_two_the_older() {
    let up = echo("a").await;
    let deny = "  authorization: { defaultAction: Deny }";
    let allow = "  authorization: { defaultAction: Allow }";
    let dated = |name: &str, created: &str, spec: &str| {
        policy(name, SHOP, spec).replace(
            &format!("name: {name} }}"),
            &format!("name: {name}, creationTimestamp: '{created}' }}"),
        )
    };
    let rule = "kind: HTTPRoute, name: shop, sectionName: all";
    let listener = "kind: Gateway, name: edge, sectionName: http";
    let gateway = "kind: Gateway, name: edge";
    for (what, policies, status) in [
        (
            "rule over route",
            policy("a", SHOP, deny) + &policy("b", rule, allow),
            200,
        ),
        (
            "route over listener",
            policy("a", listener, deny) + &policy("b", SHOP, allow),
            200,
        ),
        (
            "listener over gateway",
            policy("a", gateway, deny) + &policy("b", listener, allow),
            200,
        ),
        ("gateway alone", policy("a", gateway, deny), 403),
        (
            "by name",
            policy("b", SHOP, allow) + &policy("a", SHOP, deny),
            403,
        ),
        (
            "by age",
            dated("b", "2025-01-01T00:00:00Z", deny) + &dated("a", "2026-01-01T00:00:00Z", allow),
            403,
        ),
    ] {
        let at = free_port();
        let _router = Router::start(&world(at, up, &policies));
        assert_eq!(
            ask(at, "GET", "http://x/", &[]).await.status,
            status,
            "{what}"
        );
    }
}
