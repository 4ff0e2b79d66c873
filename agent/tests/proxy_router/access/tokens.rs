//! Tokens of a policy: the algorithms of their keys, where they stand, and what their claims decide.

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::KeySize;
use aws_lc_rs::signature::{
    self, EcdsaKeyPair, Ed25519KeyPair, KeyPair as _, RsaKeyPair, RsaPublicKeyComponents,
};
use serde_json::{Value, json};

use super::{SHOP, ask, metrics, policy, world};
use crate::auth::{Issuer, base64url, now};
use crate::support::{Router, echo, free_port};

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
