//! Tokens, scopes, operations, and paths that try to get around them.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use cardinal_agent::proxy::Reason;
use http::Request;
use jsonwebtoken::{EncodingKey, Header, encode};
use rcgen::KeyPair;
use serde_json::{Value, json};
use snapshot::model::{
    Algorithm, Auth, AuthRule, Authorization, ClaimRequirement, ClaimShape, Decision, Filter, Gate,
    JwtProvider, Key, KeyMaterial, Origin, PathRewrite, ProviderKeys, Rule, ScopeClaims,
    TokenRequirement,
};

use crate::support::{
    Router, echo, endpoint_id, full, get, name, path, plain, prefix, raw, regex, route, rule, send,
    source, to,
};

/// A provider and the key that signs for it.
pub(crate) struct Issuer {
    pub(crate) provider: Arc<JwtProvider>,
    key: KeyPair,
    kid: String,
}

impl Issuer {
    pub(crate) fn new(issuer: Option<&str>, audiences: &[&str]) -> Self {
        Self::made("k1", issuer, audiences)
    }

    /// One whose key has this `kid`.
    pub(crate) fn named(kid: &str) -> Self {
        Self::made(kid, None, &[])
    }

    fn made(kid: &str, issuer: Option<&str>, audiences: &[&str]) -> Self {
        let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).expect("a key");
        // SEC 1: 4, then both coordinates.
        let point = key.public_key_raw();
        let material = KeyMaterial::P256 {
            x: base64url(&point[1..33]),
            y: base64url(&point[33..]),
        };
        let provider = JwtProvider {
            declared: source(),
            name: name("default"),
            issuer: issuer.map(str::to_owned),
            audiences: audiences.iter().map(|one| (*one).to_owned()).collect(),
            algorithms: vec![Algorithm::Es256, Algorithm::Rs256],
            keys: ProviderKeys::Local(vec![Key {
                id: Some(kid.into()),
                algorithm: Some(Algorithm::Es256),
                material,
            }]),
            places: JwtProvider::usual_places(),
            claim_headers: Vec::new(),
            recompute_route: false,
        };
        Self {
            provider: Arc::new(provider),
            key,
            kid: kid.into(),
        }
    }

    /// The public key as a key set (RFC 7517).
    pub(crate) fn jwks(&self) -> Value {
        let ProviderKeys::Local(keys) = &self.provider.keys else {
            panic!("the key is in the document");
        };
        let KeyMaterial::P256 { x, y } = &keys[0].material else {
            panic!("the key is of P-256");
        };
        json!({"keys": [
            {"kty": "EC", "crv": "P-256", "alg": "ES256", "use": "sig", "kid": self.kid, "x": x, "y": y}
        ]})
    }

    /// A token with these claims; `exp` is an hour ahead unless they say otherwise.
    pub(crate) fn token(&self, mut claims: Value) -> String {
        let claims_map = claims.as_object_mut().expect("an object");
        claims_map.entry("exp").or_insert(json!(now() + 3600));
        claims_map.retain(|_, value| !value.is_null());
        self.signed(json!({"alg": "ES256", "kid": self.kid}), &claims)
    }

    /// A token with any header, signed with the issuer's key as ES256.
    pub(crate) fn signed(&self, header: Value, claims: &Value) -> String {
        let message = format!(
            "{}.{}",
            base64url(header.to_string().as_bytes()),
            base64url(claims.to_string().as_bytes())
        );
        let signature = jsonwebtoken::crypto::sign(
            message.as_bytes(),
            &EncodingKey::from_ec_der(self.key.serialized_der()),
            jsonwebtoken::Algorithm::ES256,
        );
        format!("{message}.{}", signature.expect("it signs"))
    }

    /// Auth that asks for these scopes.
    pub(crate) fn auth(&self, scopes: &[&str]) -> Arc<Auth> {
        self.rules(vec![self.allow(scopes, Vec::new())])
    }

    /// Auth that lets nobody pass: what no operation matches.
    pub(crate) fn deny(&self) -> Arc<Auth> {
        self.rules(Vec::new())
    }

    fn allow(&self, scopes: &[&str], claims: Vec<ClaimRequirement>) -> AuthRule {
        let token = TokenRequirement {
            provider: name("default"),
            scopes: scopes.iter().map(|one| (*one).to_owned()).collect(),
            scope_claims: ScopeClaims::ScopeAndScp,
            claims,
        };
        AuthRule::of_token(Decision::Allow, token)
    }

    fn rules(&self, rules: Vec<AuthRule>) -> Arc<Auth> {
        Arc::new(Auth::of_tokens(
            source(),
            vec![Arc::clone(&self.provider)],
            Authorization {
                rules,
                default: Decision::Deny,
            },
        ))
    }
}

pub(crate) fn now() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .expect("after 1970")
        .as_secs()
}

/// Base64url without padding (RFC 4648, section 5).
pub(crate) fn base64url(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let mut text = String::new();
    for chunk in bytes.chunks(3) {
        let mut group = [0; 3];
        group[..chunk.len()].copy_from_slice(chunk);
        let bits = u32::from_be_bytes([0, group[0], group[1], group[2]]);
        for at in 0..=chunk.len() {
            let digit = bits >> (18 - 6 * at) & 63;
            text.push(char::from(DIGITS[digit as usize]));
        }
    }
    text
}

fn secured(mut rule: Rule, auth: Arc<Auth>) -> Rule {
    rule.auth = Some(auth);
    rule
}

fn bearer(uri: &str, token: &str) -> Request<crate::support::Body> {
    Request::get(uri)
        .header("authorization", format!("Bearer {token}"))
        .body(full(String::new()))
        .expect("a request")
}

#[tokio::test]
async fn proxy_checks_tokens_before_anything_is_forwarded() {
    let up = echo("a").await;
    let issuer = Issuer::new(Some("https://issuer"), &["api", "other"]);
    let (snapshot, at) = plain(vec![route(
        "r",
        &[],
        vec![secured(
            rule(vec![prefix("/")], vec![to(up)]),
            issuer.auth(&["a", "b"]),
        )],
    )]);
    let router = Router::start(&snapshot);
    let good = json!({"iss": "https://issuer", "aud": "api", "scope": "b a c"});
    let with = |change: Value| {
        let mut claims = good.clone();
        for (name, value) in change.as_object().expect("an object") {
            claims[name] = value.clone();
        }
        issuer.token(claims)
    };
    for (what, token, status, reason) in [
        ("good", with(json!({})), 200, Reason::Ok),
        (
            "aud list",
            with(json!({"aud": ["x", "other"]})),
            200,
            Reason::Ok,
        ),
        (
            "scp",
            with(json!({"scope": null, "scp": ["a", "b"]})),
            200,
            Reason::Ok,
        ),
        (
            "within leeway",
            with(json!({"exp": now() - 5})),
            200,
            Reason::Ok,
        ),
        ("no scope", with(json!({"scope": null})), 403, Reason::Scope),
        (
            "one scope",
            with(json!({"scope": "a ab"})),
            403,
            Reason::Scope,
        ),
        (
            "expired",
            with(json!({"exp": now() - 3600})),
            401,
            Reason::JwtInvalid,
        ),
        (
            "no exp",
            issuer.token({
                let mut claims = good.clone();
                claims["exp"] = Value::Null;
                claims
            }),
            401,
            Reason::JwtInvalid,
        ),
        (
            "exp text",
            with(json!({"exp": "9999999999"})),
            401,
            Reason::JwtInvalid,
        ),
        (
            "not yet",
            with(json!({"nbf": now() + 3600})),
            401,
            Reason::JwtInvalid,
        ),
        (
            "issuer",
            with(json!({"iss": "https://evil"})),
            401,
            Reason::JwtInvalid,
        ),
        (
            "no issuer",
            with(json!({"iss": null})),
            401,
            Reason::JwtInvalid,
        ),
        (
            "audience",
            with(json!({"aud": "x"})),
            401,
            Reason::JwtInvalid,
        ),
        (
            "no audience",
            with(json!({"aud": null})),
            401,
            Reason::JwtInvalid,
        ),
        (
            "other key",
            Issuer::new(None, &[]).token(good.clone()),
            401,
            Reason::JwtInvalid,
        ),
        (
            "other kid",
            issuer.signed(json!({"alg": "ES256", "kid": "k2"}), &{
                let mut claims = good.clone();
                claims["exp"] = json!(now() + 60);
                claims
            }),
            401,
            Reason::JwtInvalid,
        ),
        (
            "crit",
            issuer.signed(
                json!({"alg": "ES256", "kid": "k1", "crit": ["b64"], "b64": false}),
                &good,
            ),
            401,
            Reason::JwtInvalid,
        ),
        (
            "none",
            format!(
                "{}.{}.",
                base64url(b"{\"alg\":\"none\"}"),
                base64url(good.to_string().as_bytes())
            ),
            401,
            Reason::JwtInvalid,
        ),
        (
            "key confusion",
            encode(
                &Header::new(jsonwebtoken::Algorithm::HS256),
                &good,
                &EncodingKey::from_secret(issuer.key.public_key_raw()),
            )
            .expect("it signs"),
            401,
            Reason::JwtInvalid,
        ),
        ("rubbish", "a.b".into(), 401, Reason::JwtInvalid),
    ] {
        let answer = send(
            at,
            bearer(&format!("http://x/{}", what.replace(' ', "-")), &token),
        )
        .await;
        assert_eq!(answer.status, status, "{what}: {answer:?}");
        let path = format!("/{}", what.replace(' ', "-"));
        let record = router
            .record(|one| one.path.as_deref() == Some(path.as_str()))
            .await;
        assert_eq!(record.reason, reason, "{what}");
        if status == 401 {
            let challenge = answer.header("www-authenticate");
            let expected = format!("Bearer realm=\"http://x{path}\", error=\"invalid_token\"");
            assert_eq!(challenge, Some(expected.as_str()), "{what}");
        }
        if status == 200 {
            let seen = answer.seen("authorization");
            assert_eq!(seen, [format!("Bearer {token}")], "the token is forwarded");
        }
    }
    // No kid: every key that fits is tried.
    let mut claims = good.clone();
    claims["exp"] = json!(now() + 60);
    let token = issuer.signed(json!({"alg": "ES256"}), &claims);
    assert_eq!(send(at, bearer("http://x/", &token)).await.status, 200);
    let answer = send(at, get("http://x/")).await;
    assert_eq!(
        (answer.status.as_u16(), answer.header("www-authenticate")),
        (401, Some("Bearer realm=\"http://x/\""))
    );
    assert_eq!(answer.json()["message"], "Jwt is missing");
    let expired = send(at, bearer("http://x/", &with(json!({"exp": 1})))).await;
    assert_eq!(expired.json()["message"], "Jwt is expired");
    let scope = send(at, bearer("http://x/", &with(json!({"scope": "a"})))).await;
    assert_eq!(scope.json()["message"], "RBAC: access denied");
    // In the query, and ambiguous.
    let (one, two) = (with(json!({})), with(json!({"sub": "2"})));
    assert_eq!(
        send(at, get(&format!("http://x/?access_token={one}")))
            .await
            .status,
        200
    );
    assert_eq!(
        send(at, bearer(&format!("http://x/?access_token={one}"), &one))
            .await
            .status,
        200
    );
    assert_eq!(
        send(at, bearer(&format!("http://x/?access_token={one}"), &two))
            .await
            .status,
        401
    );
    let twice = Request::get("http://x/")
        .header("authorization", format!("Bearer {one}"))
        .header("authorization", format!("Bearer {one}"));
    assert_eq!(
        send(at, twice.body(full(String::new())).expect("a request"))
            .await
            .status,
        401
    );
    let basic = Request::get("http://x/").header("authorization", "Basic eA==");
    let answer = send(at, basic.body(full(String::new())).expect("a request")).await;
    assert_eq!(answer.json()["error"], "jwt_missing");
}

#[tokio::test]
async fn proxy_asks_for_claims() {
    let up = echo("a").await;
    let issuer = Issuer::new(None, &[]);
    let claim = |name: &str, values: &[&str]| ClaimRequirement {
        name: name.into(),
        shape: ClaimShape::Either,
        values: values.iter().map(|one| (*one).to_owned()).collect(),
    };
    let needed = vec![
        claim("org.role", &["admin", "ops"]),
        claim("https://x/y.z", &["1"]),
    ];
    let rules = issuer.rules(vec![issuer.allow(&[], needed)]);
    let (snapshot, at) = plain(vec![route(
        "r",
        &[],
        vec![secured(rule(vec![prefix("/")], vec![to(up)]), rules)],
    )]);
    let _router = Router::start(&snapshot);
    for (claims, status) in [
        (
            json!({"org": {"role": "ops"}, "https://x/y.z": ["0", "1"]}),
            200,
        ),
        (
            json!({"org": {"role": ["dev", "admin"]}, "https://x/y.z": "1"}),
            200,
        ),
        (json!({"org": {"role": "dev"}, "https://x/y.z": "1"}), 403),
        (json!({"org": {"role": "ops"}}), 403),
        (json!({}), 403),
    ] {
        let token = issuer.token(claims.clone());
        assert_eq!(
            send(at, bearer("http://x/", &token)).await.status,
            status,
            "{claims}"
        );
    }
}

/// The routes of a cell's endpoint with one operation, as a snapshot has them.
fn operations(issuer: &Issuer, up: std::net::SocketAddr) -> snapshot::model::Route {
    let strip = Filter::from(PathRewrite::Strip(path("/p/c")));
    let mut operation = regex("/p/c(/api/books/[^/]+)");
    operation.method = Some("GET".into());
    let mut head = operation.clone();
    head.method = Some("HEAD".into());
    let allowed = rule(vec![operation, head], vec![to(up)]);
    let mut allowed = secured(allowed, issuer.auth(&["read"]));
    allowed.filters.push(strip.clone());
    let mut public = regex("/p/c(/api/open)");
    public.method = Some("GET".into());
    let mut open = rule(vec![public], vec![to(up)]);
    open.filters.push(strip);
    let denied = secured(rule(vec![prefix("/p/c/api")], Vec::new()), issuer.deny());
    let mut route = route("orders", &[], vec![denied, allowed, open]);
    route.origin = Origin::Endpoint {
        endpoint: endpoint_id("p", "c").into(),
        gate: Gate::External,
    };
    route
}

#[tokio::test]
async fn proxy_lets_no_path_trick_past_the_operations() {
    let up = echo("a").await;
    let issuer = Issuer::new(None, &[]);
    let (snapshot, at) = plain(vec![operations(&issuer, up)]);
    let router = Router::start(&snapshot);
    let reader = issuer.token(json!({"scope": "read"}));
    let nobody = issuer.token(json!({"scope": "nothing"}));
    let ask = |method: &'static str, target: &'static str, token: Option<String>| async move {
        let token = token.map(|token| format!("Authorization: Bearer {token}\r\n"));
        let request = format!(
            "{method} {target} HTTP/1.1\r\nHost: x\r\n{}Connection: close\r\n\r\n",
            token.unwrap_or_default()
        );
        let answer = raw(at, request.as_bytes()).await;
        let status: u16 = answer[9..12].parse().expect("a status");
        (status, answer)
    };
    for (method, target, none, wrong, right) in [
        ("GET", "/p/c/api/books/1", 401, 403, 200),
        ("HEAD", "/p/c/api/books/1", 401, 403, 200),
        ("GET", "/p/c/api/open", 200, 200, 200),
        ("GET", "/p/c/api/./books//1", 401, 403, 200),
        ("GET", "/p/c/api/x/../books/1", 401, 403, 200),
        ("GET", "/p/c/api/%62ooks/1", 401, 403, 200),
        ("DELETE", "/p/c/api/books/1", 401, 403, 403),
        ("GET", "/p/c/api/books/1/", 401, 403, 403),
        ("GET", "/p/c/api/books/1/2", 401, 403, 403),
        ("GET", "/p/c/api/Books/1", 401, 403, 403),
        ("GET", "/p/c/api", 401, 403, 403),
        ("GET", "/p/c/api/open/..", 401, 403, 403),
        ("GET", "/p/c/api/open/%2e%2e/books/1", 401, 403, 200),
        ("GET", "/p/c/api/open/%2e%2e/secret", 401, 403, 403),
        ("GET", "/p/c/api/open%2f..%2fbooks/1", 400, 400, 400),
        ("GET", "/p/c/api/open/..%5cbooks/1", 400, 400, 400),
        ("GET", "/p/c/api/open%00", 400, 400, 400),
        ("GET", "/p/c/api/open;/../books/1", 401, 403, 200),
        ("GET", "/p/c/other", 404, 404, 404),
        ("GET", "/p/c/api/../other", 404, 404, 404),
        ("GET", "/p/cat/api/books/1", 404, 404, 404),
    ] {
        for (token, status) in [
            (None, none),
            (Some(nobody.clone()), wrong),
            (Some(reader.clone()), right),
        ] {
            let with = token.is_some();
            let (got, answer) = ask(method, target, token).await;
            assert_eq!(got, status, "{method} {target}, token {with}: {answer}");
        }
    }
    let (_, answer) = ask("GET", "/p/c/api/x/../books/1?q=%2F", Some(reader.clone())).await;
    assert!(
        answer.contains("\"uri\":\"/api/books/1?q=%2F\""),
        "{answer}"
    );
    let (_, answer) = ask("DELETE", "/p/c/api/books/1", Some(reader)).await;
    assert!(
        answer.contains("\"error\":\"operation_not_declared\""),
        "{answer}"
    );
    router.reason(Reason::OperationNotDeclared).await;
}
