//! Policies as documents, and who passes by them: places of tokens, claims, rules, keys, users.

use std::net::SocketAddr;

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::KeySize;
use aws_lc_rs::signature::{
    self, EcdsaKeyPair, Ed25519KeyPair, KeyPair as _, RsaKeyPair, RsaPublicKeyComponents,
};
use cardinal_agent::proxy::Reason;
use serde_json::{Value, json};
use snapshot::Snapshot;

use crate::auth::{Issuer, base64url, now};
use crate::documents::snapshot;
use crate::support::{Reply, Router, echo, free_port, get, http_gateway, send};

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

type Sign = Box<dyn Fn(&str, &[u8]) -> Vec<u8>>;

/// Keys of every kind: the JWK without `alg`, its algorithms, and what signs.
fn every_kind() -> Vec<(Value, Vec<&'static str>, Sign)> {
    let random = SystemRandom::new();
    let rsa = RsaKeyPair::generate(KeySize::Rsa2048).expect("a key");
    let public = RsaPublicKeyComponents::<Vec<u8>>::from(rsa.public_key());
    let jwk = json!({"kty": "RSA", "n": base64url(&public.n), "e": base64url(&public.e)});
    let sign: Sign = Box::new(move |algorithm, message| {
        let encoding: &'static dyn signature::RsaEncoding = match algorithm {
            "RS256" => &signature::RSA_PKCS1_SHA256,
            "RS384" => &signature::RSA_PKCS1_SHA384,
            "RS512" => &signature::RSA_PKCS1_SHA512,
            "PS256" => &signature::RSA_PSS_SHA256,
            "PS384" => &signature::RSA_PSS_SHA384,
            _ => &signature::RSA_PSS_SHA512,
        };
        let mut bytes = vec![0; rsa.public_modulus_len()];
        rsa.sign(encoding, &SystemRandom::new(), message, &mut bytes)
            .expect("it signs");
        bytes
    });
    let mut all = vec![(
        jwk,
        vec!["RS256", "RS384", "RS512", "PS256", "PS384", "PS512"],
        sign,
    )];
    for (curve, algorithm, length, signing) in [
        (
            "P-256",
            "ES256",
            32,
            &signature::ECDSA_P256_SHA256_FIXED_SIGNING,
        ),
        (
            "P-384",
            "ES384",
            48,
            &signature::ECDSA_P384_SHA384_FIXED_SIGNING,
        ),
        (
            "P-521",
            "ES512",
            66,
            &signature::ECDSA_P521_SHA512_FIXED_SIGNING,
        ),
    ] {
        let key = EcdsaKeyPair::generate(signing).expect("a key");
        let point = key.public_key().as_ref().to_vec();
        let jwk = json!({
            "kty": "EC",
            "crv": curve,
            "x": base64url(&point[1..=length]),
            "y": base64url(&point[1 + length..]),
        });
        let random = random.clone();
        let sign: Sign = Box::new(move |_, message| {
            let made = key.sign(&random, message).expect("it signs");
            made.as_ref().to_vec()
        });
        all.push((jwk, vec![algorithm], sign));
    }
    let key = Ed25519KeyPair::generate().expect("a key");
    let jwk = json!({"kty": "OKP", "crv": "Ed25519", "x": base64url(key.public_key().as_ref())});
    let sign: Sign = Box::new(move |_, message| key.sign(message).as_ref().to_vec());
    all.push((jwk, vec!["EdDSA"], sign));
    all
}

#[tokio::test]
async fn proxy_takes_every_algorithm_that_a_key_fits_and_no_other() {
    let up = echo("a").await;
    let mut keys = Vec::new();
    let mut tokens = Vec::new();
    for (number, (mut jwk, algorithms, sign)) in every_kind().into_iter().enumerate() {
        let kid = format!("k{number}");
        jwk["kid"] = json!(kid);
        for algorithm in algorithms {
            let header = json!({"alg": algorithm, "kid": kid});
            let message = format!(
                "{}.{}",
                base64url(header.to_string().as_bytes()),
                base64url(json!({"exp": now() + 60}).to_string().as_bytes())
            );
            let made = sign(algorithm, message.as_bytes());
            tokens.push((algorithm, format!("{message}.{}", base64url(&made))));
        }
        keys.push(jwk);
    }
    assert_eq!(tokens.len(), 10);
    let provider = |keys: &[Value]| {
        let set = json!({"keys": keys});
        format!("  jwt: {{ providers: [{{ name: idp, localJWKS: {{ inline: '{set}' }} }}] }}")
    };
    let at = free_port();
    let _router = Router::start(&world(at, up, &policy("p", SHOP, &provider(&keys))));
    for (algorithm, token) in &tokens {
        let bearer = format!("bearer {token}");
        let answer = ask(at, "GET", "http://x/", &[("authorization", &bearer)]).await;
        assert_eq!(answer.status, 200, "{algorithm}: {answer:?}");
        let mut broken = token.clone().into_bytes();
        let last = broken.len() - 10;
        broken[last] = if broken[last] == b'A' { b'B' } else { b'A' };
        let bearer = format!("Bearer {}", String::from_utf8_lossy(&broken));
        let answer = ask(at, "GET", "http://x/", &[("authorization", &bearer)]).await;
        assert_eq!(answer.status, 401, "{algorithm}: {answer:?}");
    }
    // The same keys, each bound to another algorithm of its kind: what the token says does not count.
    let at = free_port();
    keys[0]["alg"] = json!("PS256");
    let _router = Router::start(&world(at, up, &policy("p", SHOP, &provider(&keys[..1]))));
    for (algorithm, token) in &tokens[..6] {
        let bearer = format!("Bearer {token}");
        let answer = ask(at, "GET", "http://x/", &[("authorization", &bearer)]).await;
        let expected = if *algorithm == "PS256" { 200 } else { 401 };
        assert_eq!(answer.status, expected, "{algorithm}");
    }
}

/// Providers `a` and `b`: `a` reads header `x-a` behind `Token `, cookie `a` and parameter `a`; `b` what
/// is usual.
fn two_providers(a: &Issuer, b: &Issuer, switch: &str) -> String {
    format!(
        "  jwt:
{switch}
    providers:
      - name: a
        issuer: https://a
        extractFrom:
          headers: [{{ name: X-A, valuePrefix: 'Token ' }}]
          cookies: [a]
          params: [a]
        localJWKS: {{ inline: '{}' }}
      - name: b
        localJWKS: {{ inline: '{}' }}",
        a.jwks(),
        b.jwks()
    )
}

#[tokio::test]
async fn proxy_reads_tokens_where_their_provider_says() {
    let up = echo("a").await;
    let (a, b) = (Issuer::new(None, &[]), Issuer::new(None, &[]));
    let at = free_port();
    let spec = two_providers(&a, &b, "    optional: false");
    let router = Router::start(&world(at, up, &policy("p", SHOP, &spec)));
    let of_a = a.token(json!({"iss": "https://a"}));
    let other_a = a.token(json!({"iss": "https://a", "sub": "other"}));
    let wrong = a.token(json!({"iss": "https://b"}));
    let of_b = b.token(json!({}));
    let (head_a, head_b) = (format!("Token {of_a}"), format!("Bearer {of_b}"));
    let (cookie, both) = (format!("s=1; a={of_a}"), format!("a={of_a}; a={other_a}"));
    let (wrong_head, expired) = (
        format!("Token {wrong}"),
        format!("Token {}", a.token(json!({"iss": "https://a", "exp": 1}))),
    );
    let bearer_a = format!("Bearer {of_a}");
    let query = format!("http://x/?q=1&a={of_a}");
    for (what, uri, headers, status, message) in [
        (
            "header",
            "http://x/",
            vec![("x-a", head_a.as_str())],
            200,
            "",
        ),
        (
            "cookie",
            "http://x/",
            vec![("cookie", cookie.as_str())],
            200,
            "",
        ),
        ("query", query.as_str(), vec![], 200, ""),
        (
            "other provider",
            "http://x/",
            vec![("authorization", head_b.as_str())],
            200,
            "",
        ),
        (
            "both",
            "http://x/",
            vec![("authorization", head_b.as_str()), ("x-a", head_a.as_str())],
            200,
            "",
        ),
        (
            "one of both is bad",
            "http://x/",
            vec![
                ("authorization", head_b.as_str()),
                ("x-a", wrong_head.as_str()),
            ],
            401,
            "Jwt verification fails",
        ),
        (
            "one of both is expired",
            "http://x/",
            vec![
                ("authorization", head_b.as_str()),
                ("x-a", expired.as_str()),
            ],
            401,
            "Jwt is expired",
        ),
        (
            "two of one",
            "http://x/",
            vec![("cookie", both.as_str())],
            401,
            "Jwt is ambiguous",
        ),
        (
            "without prefix",
            "http://x/",
            vec![("x-a", of_a.as_str())],
            401,
            "Jwt is missing",
        ),
        (
            "at the place of another",
            "http://x/",
            vec![("authorization", bearer_a.as_str())],
            401,
            "Jwt verification fails",
        ),
        ("none", "http://x/p?x=1", vec![], 401, "Jwt is missing"),
    ] {
        let answer = ask(at, "GET", uri, &headers).await;
        assert_eq!(answer.status, status, "{what}: {answer:?}");
        if status == 401 {
            assert_eq!(answer.json()["message"], message, "{what}");
            let challenge = answer
                .header("www-authenticate")
                .expect("it tells what to send");
            let code = if message == "Jwt is missing" {
                ""
            } else {
                ", error=\"invalid_token\""
            };
            let path = if what == "none" { "p" } else { "" };
            assert_eq!(
                challenge,
                format!("Bearer realm=\"http://x/{path}\"{code}"),
                "{what}"
            );
        }
    }
    // What is optional and what is open.
    for (switch, none, bad) in [
        ("    optional: true", 200, 401),
        ("    failOpen: true", 200, 200),
    ] {
        let at = free_port();
        let spec = two_providers(&a, &b, switch);
        let _router = Router::start(&world(at, up, &policy("p", SHOP, &spec)));
        assert_eq!(
            ask(at, "GET", "http://x/", &[]).await.status,
            none,
            "{switch}"
        );
        let answer = ask(at, "GET", "http://x/", &[("x-a", &wrong_head)]).await;
        assert_eq!(answer.status, bad, "{switch}");
        let answer = ask(at, "GET", "http://x/", &[("x-a", &head_a)]).await;
        assert_eq!(answer.status, 200, "{switch}");
    }
    // A token that the router has seen costs no signature, and is judged by its time all the same.
    // Half a minute is granted (`LEEWAY`), and so 8 s are left.
    let soon = b.token(json!({"exp": now() - 22}));
    let soon = format!("Bearer {soon}");
    assert_eq!(
        ask(at, "GET", "http://x/", &[("authorization", &soon)])
            .await
            .status,
        200
    );
    tokio::time::sleep(std::time::Duration::from_millis(9500)).await;
    let answer = ask(at, "GET", "http://x/", &[("authorization", &soon)]).await;
    assert_eq!(answer.json()["message"], "Jwt is expired");
    for _ in 0..20 {
        ask(at, "GET", "http://x/", &[("authorization", &head_b)]).await;
    }
    let counted = metrics(&router);
    let count = |by: &str| -> u64 {
        let name = format!("proxy_tokens_total{{by=\"{by}\"}} ");
        let line = counted.lines().find_map(|line| line.strip_prefix(&name));
        line.and_then(|value| value.parse().ok())
            .expect("it is counted")
    };
    assert!(count("memory") >= 18, "{counted}");
    assert!(count("signature") < count("memory"), "{counted}");
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
async fn proxy_tells_claims_and_routes_by_them_and_by_no_clients_word() {
    let (up, gold) = (echo("plain").await, echo("gold").await);
    let issuer = Issuer::new(None, &[]);
    let at = free_port();
    let jwt = |recompute: bool| {
        format!(
            "  jwt:
    providers:
      - name: idp
        localJWKS: {{ inline: '{}' }}
        recomputeRoute: {recompute}
        claimToHeaders:
          - {{ header: X-Tenant, claim: org.tenant }}
          - {{ header: X-Level, claim: level }}
          - {{ header: X-Admin, claim: admin }}
          - {{ header: X-Roles, claim: roles }}",
            issuer.jwks()
        )
    };
    let more = format!(
        "    - name: gold
      matches: [{{ headers: [{{ name: x-tenant, value: gold }}] }}]
      backendRefs: [{{ group: gateway.envoyproxy.io, kind: Backend, name: gold }}]
---
apiVersion: gateway.envoyproxy.io/v1alpha1
kind: Backend
metadata: {{ name: gold }}
spec:
  endpoints: [{{ ip: {{ address: {}, port: {} }} }}]
{}",
        gold.ip(),
        gold.port(),
        policy(
            "p",
            "kind: HTTPRoute, name: shop, sectionName: all",
            &jwt(true)
        ),
    );
    let router = Router::start(&world(at, up, &more));
    let bearer = |claims: Value| format!("Bearer {}", issuer.token(claims));
    let silver = bearer(json!({
        "org": {"tenant": "silver"}, "level": 7, "admin": true, "roles": ["a"],
    }));
    let answer = ask(
        at,
        "GET",
        "http://x/",
        &[
            ("authorization", &silver),
            ("x-tenant", "gold"),
            ("x-roles", "root"),
        ],
    )
    .await;
    assert_eq!(answer.json()["name"], "plain");
    assert_eq!(answer.seen("x-tenant"), ["silver"]);
    assert_eq!(answer.seen("x-level"), ["7"]);
    assert_eq!(answer.seen("x-admin"), ["true"]);
    assert_eq!(
        answer.seen("x-roles"),
        Vec::<String>::new(),
        "no list, and no client's own"
    );
    let golden = bearer(json!({"org": {"tenant": "gold"}}));
    let answer = ask(at, "GET", "http://x/", &[("authorization", &golden)]).await;
    assert_eq!(answer.json()["name"], "gold", "matched again");
    assert_eq!(answer.seen("x-tenant"), ["gold"]);
    let record = router.record(|one| one.rule == Some(1)).await;
    assert_eq!(record.status, 200);
    // Without a token the header leads nowhere, though the other rule asks for none.
    let answer = ask(at, "GET", "http://x/", &[("x-tenant", "gold")]).await;
    assert_eq!(answer.status, 401);
    // A claim cannot smuggle a second header.
    let evil = bearer(json!({"org": {"tenant": "a\r\nx-admin: yes"}}));
    let answer = ask(at, "GET", "http://x/", &[("authorization", &evil)]).await;
    assert_eq!(answer.status, 200);
    assert_eq!(answer.seen("x-tenant"), Vec::<String>::new());
    assert_eq!(answer.seen("x-admin"), Vec::<String>::new());

    // The rule that the claims lead to has a policy of its own: it is asked as well.
    let strict = "  authorization: { rules: [{ action: Allow, principal: { headers: [{ name: x-level, values: ['9'] }] } }] }";
    let more = format!(
        "{more}{}",
        policy(
            "q",
            "kind: HTTPRoute, name: shop, sectionName: gold",
            strict
        )
    );
    let at = free_port();
    let _router = Router::start(&world(at, up, &more));
    for (level, status) in [(9, 200), (8, 403)] {
        let token = bearer(json!({"org": {"tenant": "gold"}, "level": level}));
        let answer = ask(
            at,
            "GET",
            "http://x/",
            &[("authorization", &token), ("x-level", "9")],
        )
        .await;
        assert_eq!(answer.status, status, "{level}: {answer:?}");
    }
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
async fn proxy_knows_clients_by_their_keys_and_hides_the_keys() {
    let up = echo("a").await;
    let at = free_port();
    let secret = "---
apiVersion: v1
kind: Secret
metadata: { name: clients }
type: Opaque
stringData: { acme: key-of-acme-1, globex: key-of-globex-2 }
";
    let spec = "  apiKeyAuth:
    credentialRefs: [{ group: '', kind: Secret, name: clients }]
    extractFrom: [{ headers: [X-Api-Key], params: [key], cookies: [k] }]
    forwardClientIDHeader: X-Client
    sanitize: true";
    let more = policy("p", SHOP, spec) + secret;
    let world = world(at, up, &more);
    let shown = format!("{world:?}");
    assert!(!shown.contains("key-of-acme-1") && shown.contains("acme"));
    let router = Router::start(&world);
    let answer = ask(
        at,
        "GET",
        "http://x/?a=1&key=key-of-acme-1&b=2",
        &[("x-client", "root")],
    )
    .await;
    assert_eq!(answer.status, 200);
    assert_eq!(
        (answer.seen("x-client"), answer.json()["query"].clone()),
        (vec!["acme".into()], json!("a=1&b=2"))
    );
    let answer = ask(at, "GET", "http://x/?key=key-of-acme-1", &[]).await;
    assert_eq!(
        (answer.status.as_u16(), answer.json()["query"].clone()),
        (200, Value::Null)
    );
    let headers = [
        ("x-api-key", "key-of-globex-2"),
        ("cookie", "s=1; k=key-of-globex-2"),
    ];
    let answer = ask(at, "GET", "http://x/", &headers).await;
    assert_eq!(
        (answer.seen("x-client"), answer.seen("x-api-key")),
        (vec!["globex".into()], vec![])
    );
    assert_eq!(answer.seen("cookie"), ["s=1"]);
    for (what, uri, headers, reason) in [
        (
            "none",
            "http://x/",
            vec![("x-client", "acme")],
            "credential_missing",
        ),
        (
            "wrong",
            "http://x/?key=key-of-acme-2",
            vec![],
            "credential_invalid",
        ),
        (
            "the name",
            "http://x/?key=acme",
            vec![],
            "credential_invalid",
        ),
        (
            "two",
            "http://x/?key=key-of-acme-1",
            vec![("x-api-key", "key-of-globex-2")],
            "credential_invalid",
        ),
    ] {
        let answer = ask(at, "GET", uri, &headers).await;
        assert_eq!(
            (answer.status.as_u16(), answer.json()["error"].as_str()),
            (401, Some(reason)),
            "{what}"
        );
        assert_eq!(
            answer.json()["message"],
            "Client authentication failed.",
            "{what}"
        );
        assert_eq!(answer.header("www-authenticate"), None);
    }
    router.reason(Reason::CredentialInvalid).await;
    let shown = format!(
        "{:?} {:?}",
        router.proxy.log().since(0),
        router.table.load()
    );
    assert!(!shown.contains("key-of-"), "no key in records or tables");
}

#[tokio::test]
async fn proxy_knows_users_by_their_passwords() {
    let up = echo("a").await;
    let at = free_port();
    let more = policy(
        "p",
        "kind: Gateway, name: edge, sectionName: http",
        "  basicAuth: { users: { name: users }, forwardUsernameHeader: x-user }",
    ) + "---
apiVersion: v1
kind: Secret
metadata: { name: users }
type: Opaque
stringData:
  .htpasswd: |
    # `password`
    ann:{SHA}W6ph5Mm5Pz8GgiULbPgzG37mj9g=
";
    let _router = Router::start(&world(at, up, &more));
    for (value, status, message) in [
        // ann:password
        (Some("Basic YW5uOnBhc3N3b3Jk"), 200, ""),
        (Some("basic YW5uOnBhc3N3b3Jk"), 200, ""),
        // ann:passwort, bob:password, ann without colon
        (
            Some("Basic YW5uOnBhc3N3b3J0"),
            401,
            "User authentication failed. Invalid username/password combination.",
        ),
        (
            Some("Basic Ym9iOnBhc3N3b3Jk"),
            401,
            "User authentication failed. Invalid username/password combination.",
        ),
        (
            Some("Basic YW5u"),
            401,
            "User authentication failed. Invalid username/password combination.",
        ),
        (
            Some("Bearer x"),
            401,
            "User authentication failed. Missing username and password.",
        ),
        (
            None,
            401,
            "User authentication failed. Missing username and password.",
        ),
    ] {
        let headers: Vec<_> = value
            .map(|value| ("authorization", value))
            .into_iter()
            .collect();
        let answer = ask(at, "GET", "http://x/a", &headers).await;
        assert_eq!(answer.status, status, "{value:?}");
        if status == 401 {
            assert_eq!(answer.json()["message"], message, "{value:?}");
            assert_eq!(
                answer.header("www-authenticate"),
                Some("Basic realm=\"http://x/a\"")
            );
        } else {
            assert_eq!(answer.seen("x-user"), ["ann"]);
        }
    }
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

#[tokio::test]
async fn proxy_asks_a_preflight_for_no_token_also_where_claims_choose_the_route() {
    let up = echo("a").await;
    let issuer = Issuer::new(None, &[]);
    let at = free_port();
    let spec = format!(
        "  jwt: {{ providers: [{{ name: idp, recomputeRoute: true, claimToHeaders: [{{ header: x-tenant, claim: sub }}], localJWKS: {{ inline: '{}' }} }}] }}",
        issuer.jwks()
    );
    let cors = format!(
        "      filters: [{{ type: CORS, cors: {{ allowOrigins: ['https://app.example.com'] }} }}]\n{}",
        policy("p", SHOP, &spec)
    );
    let _router = Router::start(&world(at, up, &cors));
    let origin = ("origin", "https://app.example.com");
    let asked = [origin, ("access-control-request-method", "GET")];
    let answer = ask(at, "OPTIONS", "http://x/", &asked).await;
    assert_eq!(answer.status, 204, "{answer:?}");
    let allowed = answer.header("access-control-allow-origin");
    assert_eq!(allowed, Some("https://app.example.com"));
    // Any other request needs a token, and a page may read that it does.
    for method in ["OPTIONS", "GET"] {
        let answer = ask(at, method, "http://x/", &[origin]).await;
        assert_eq!(answer.status, 401, "{method}");
    }
    let token = format!("Bearer {}", issuer.token(json!({"sub": "a"})));
    let answer = ask(at, "GET", "http://x/", &[origin, ("authorization", &token)]).await;
    assert_eq!(
        (answer.status.as_u16(), answer.seen("x-tenant")),
        (200, vec!["a".to_owned()])
    );
}
