//! Rows of `tests/vectors` that the router decides: every row of a group runs, or is named here with
//! the reason why it does not.

use std::net::SocketAddr;

use cardinal_agent::compile::route::compile;
use cardinal_agent::route::credential::Carrier;
use cardinal_agent::route::gatekeeper::{Denied, Visitor};
use cardinal_agent::route::matching::Subject;
use cardinal_agent::route::token::{Provider, TokenError};
use cardinal_agent::route::{RouteRule, RouteTable, rewrite};
use http::{HeaderMap, Method};
use serde_json::{Value, json};
use snapshot::model::{
    Algorithm, Filter, Gate, JwtProvider, Key, KeyMaterial, Origin, PathRewrite, Pattern,
    ProviderKeys, RequestMatch,
};

use crate::auth::{Issuer, now};
use crate::support::{
    Router, echo, endpoint_id, get, host, name, path, plain, prefix, regex, route, rule, send,
    source, to,
};

pub(crate) fn vectors(file: &str) -> Value {
    let path = format!("{}/../tests/vectors/{file}", env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(&path).expect("the vectors are in the tree");
    serde_json::from_str(&text).expect("the vectors are JSON")
}

pub(crate) fn group<'a>(file: &'a Value, called: &str) -> &'a [Value] {
    let rows = file[called].as_array().expect("a group is a list");
    assert_eq!(file["counts"][called], rows.len(), "{called} is complete");
    rows
}

pub(crate) fn text<'a>(value: &'a Value, field: &str) -> &'a str {
    value[field]
        .as_str()
        .unwrap_or_else(|| panic!("`{field}` of {value}"))
}

/// The row's own expectation, or the product's where the original is wrong.
pub(crate) fn expected(row: &Value) -> &Value {
    match text(row, "class") {
        "defect" => &row["instead"]["expect"],
        _ => &row["expect"],
    }
}

#[tokio::test]
async fn proxy_vectors_authorize() {
    let file = vectors("openchoreo.json");
    let up = echo("a").await;
    for row in group(&file, "authorize") {
        let id = text(row, "id");
        let input = &row["input"];
        let list = |value: &Value| -> Vec<String> {
            let list = value.as_array().map(Vec::as_slice).unwrap_or_default();
            list.iter()
                .filter_map(Value::as_str)
                .map(str::to_owned)
                .collect()
        };
        let scopes = list(&input["required_scopes"]);
        let audiences = list(&input["provider"]["audiences"]);
        let audiences: Vec<&str> = audiences.iter().map(String::as_str).collect();
        let issuer = Issuer::new(input["provider"]["issuer"].as_str(), &audiences);
        let mut one = rule(vec![prefix("/")], vec![to(up)]);
        one.auth = Some(issuer.auth(&scopes.iter().map(String::as_str).collect::<Vec<_>>()));
        let (snapshot, at) = plain(vec![route("r", &[], vec![one])]);
        let _router = Router::start(&snapshot);
        let mut request = get("http://x/");
        if let Some(token) = input["token"].as_object() {
            let mut claims = json!({});
            let mut signer = &issuer;
            let other = Issuer::new(None, &[]);
            for (claim, value) in token {
                match claim.as_str() {
                    "signature" if value == "invalid" => signer = &other,
                    "signature" => {}
                    "expired" if value == true => claims["exp"] = json!(now() - 3600),
                    "expired" => {}
                    _ => claims[claim] = value.clone(),
                }
            }
            let value = format!("Bearer {}", signer.token(claims));
            request
                .headers_mut()
                .insert("authorization", value.parse().expect("a value"));
        }
        let answer = send(at, request).await;
        assert_eq!(answer.status.as_u16(), expected(row)["status"], "{id}");
    }
}

/// Matching, auth and the upstream's path of one request, as a row tells them.
fn judge(table: &RouteTable, at: SocketAddr, input: &Value) -> Value {
    let host = input["host"].as_str().unwrap_or("any.example");
    let path = path(text(input, "path"));
    let method = Method::from_bytes(text(input, "method").as_bytes()).expect("a method");
    let headers = HeaderMap::new();
    let subject = Subject {
        path: &path,
        method: &method,
        headers: &headers,
        query: None,
    };
    let rules = table
        .bind(at)
        .and_then(|bind| bind.listener(host))
        .and_then(|listener| listener.rules(host));
    let Some(matched) = rules.and_then(|rules| rules.find(subject)) else {
        return json!({"route": null, "status": 404});
    };
    if matched.rule.targets.is_empty() {
        return denied(matched.rule);
    }
    let mut upstream = path.clone();
    if let Some(change) = &matched.rule.filters.path {
        upstream = rewrite::path(&upstream, matched.prefix, change).expect("a path");
    }
    json!({
        "route": matched.rule.route.strip_prefix("default/"),
        "auth": if matched.rule.auth.is_some() { "jwt" } else { "none" },
        "upstream_path": upstream.as_str(),
    })
}

/// What a rule answers that only refuses.
fn denied(rule: &RouteRule) -> Value {
    let auth = rule
        .auth
        .as_ref()
        .expect("a rule that refuses asks for a token");
    let headers = HeaderMap::new();
    let carrier = Carrier {
        headers: &headers,
        query: None,
    };
    let missing = auth.authenticate(carrier, &(), now());
    assert_eq!(missing.err(), Some(TokenError::Missing));
    json!({"forwarded": false, "status_without_token": 401, "status_with_valid_token": 403})
}

fn routes_of(fixture: &Value, issuer: &Issuer, own: bool) -> Vec<snapshot::model::Route> {
    let mut routes = Vec::new();
    for given in fixture.as_array().expect("a list") {
        let change = match text(&given["rewrite"], "kind") {
            "ReplacePrefixMatch" => {
                PathRewrite::Prefix(text(&given["rewrite"], "replace_prefix_match").into())
            }
            _ if own => {
                // A cell's operations strip the prefix; it is what precedes the captured part.
                let pattern = text(&given["rewrite"], "pattern");
                let stripped = pattern[1..].split('(').next().expect("a group");
                PathRewrite::Strip(path(stripped))
            }
            _ => PathRewrite::Regex {
                pattern: Pattern::new(text(&given["rewrite"], "pattern")).expect("a pattern"),
                substitution: text(&given["rewrite"], "substitution").replace("\\1", "${1}"),
            },
        };
        let wildcard = text(given, "path_type") == "PathPrefix";
        let mut one: RequestMatch = match wildcard {
            true => prefix(text(given, "path")),
            false => regex(text(given, "path")),
        };
        one.method = given["method"].as_str().map(str::to_owned);
        let mut made = rule(vec![one], vec![to(([127, 0, 0, 1], 9).into())]);
        made.filters.push(Filter::Rewrite {
            path: Some(change),
            hostname: None,
        });
        if let Some(scopes) = given["scopes_all_of"].as_array() {
            let scopes: Vec<&str> = scopes.iter().filter_map(Value::as_str).collect();
            made.auth = Some(issuer.auth(&scopes));
        }
        // An endpoint with operations has no open wildcard.
        if own && wildcard {
            made.auth = Some(issuer.deny());
            made.targets.clear();
        }
        let mut route = route(text(given, "name"), &[], vec![made]);
        if let Some(hosts) = given["hostnames"].as_array() {
            route.hostnames = hosts.iter().filter_map(Value::as_str).map(host).collect();
        }
        if own {
            route.origin = Origin::Endpoint {
                endpoint: endpoint_id("p", "c"),
                gate: Gate::External,
            };
        }
        routes.push(route);
    }
    routes
}

#[test]
fn proxy_vectors_request() {
    let file = vectors("openchoreo.json");
    let issuer = Issuer::new(None, &[]);
    // The original's objects unchanged mean what they say; a cell's routes mean what the product says.
    for own in [false, true] {
        for row in group(&file, "request") {
            let input = &row["input"];
            let fixture = &file["fixtures"]["routes"][text(input, "routes_from")];
            let (snapshot, at) = plain(routes_of(fixture, &issuer, own));
            let table = compile(&snapshot, 1).expect("it compiles");
            let got = judge(&table, at, input);
            let want = if own { expected(row) } else { &row["expect"] };
            for (field, value) in want.as_object().expect("an object") {
                // Scopes are judged by group `authorize`.
                if field != "scopes_all_of" {
                    assert_eq!(
                        &got[field], value,
                        "{} `{field}`, own {own}: {got}",
                        row["id"]
                    );
                }
            }
        }
    }
}

#[test]
fn proxy_denies_differ_by_what_is_missing() {
    let issuer = Issuer::new(None, &[]);
    let mut guarded = rule(vec![prefix("/scope")], Vec::new());
    guarded.auth = Some(issuer.auth(&["a"]));
    let mut closed = rule(vec![prefix("/none")], Vec::new());
    closed.auth = Some(issuer.deny());
    let (snapshot, at) = plain(vec![route("r", &[], vec![guarded, closed])]);
    let table = compile(&snapshot, 1).expect("it compiles");
    let mut headers = HeaderMap::new();
    let token = format!("Bearer {}", issuer.token(json!({})));
    headers.insert("authorization", token.parse().expect("a value"));
    for (given, denied) in [("/scope", Denied::Scope), ("/none", Denied::NoOperation)] {
        let path = path(given);
        let subject = Subject {
            path: &path,
            method: &Method::GET,
            headers: &headers,
            query: None,
        };
        let rules = table
            .bind(at)
            .and_then(|bind| bind.listener("x"))
            .and_then(|one| one.rules("x"));
        let found = rules.and_then(|rules| rules.find(subject)).expect("a rule");
        let auth = found.rule.auth.as_ref().expect("it asks");
        let carrier = Carrier {
            headers: &headers,
            query: None,
        };
        let verified = auth
            .authenticate(carrier, &(), now())
            .expect("a good token");
        let visitor = Visitor {
            method: &Method::GET,
            path: given,
            headers: &headers,
            client: at.ip(),
        };
        assert_eq!(auth.authorise(visitor, &verified), Err(denied), "{given}");
    }
}

fn material(jwk: &Value) -> Option<KeyMaterial> {
    let field = |name: &str| text(jwk, name).to_owned();
    match (jwk["kty"].as_str()?, jwk["crv"].as_str()) {
        ("RSA", _) => Some(KeyMaterial::Rsa {
            n: field("n"),
            e: field("e"),
        }),
        ("EC", Some("P-256")) => Some(KeyMaterial::P256 {
            x: field("x"),
            y: field("y"),
        }),
        ("EC", Some("P-384")) => Some(KeyMaterial::P384 {
            x: field("x"),
            y: field("y"),
        }),
        ("EC", Some("P-521")) => Some(KeyMaterial::P521 {
            x: field("x"),
            y: field("y"),
        }),
        _ => None,
    }
}

#[test]
fn proxy_vectors_wycheproof_signatures() {
    let file = vectors("wycheproof/json_web_signature_test.json");
    let (mut verified, mut refused) = (0, 0);
    for group in file["testGroups"].as_array().expect("groups") {
        let jwk = &group["public"];
        // Keys for other uses, and kinds that a gateway does not take, are refused with the document.
        let signs = jwk["use"].as_str().is_none_or(|one| one == "sig")
            && jwk["key_ops"]
                .as_array()
                .is_none_or(|list| list.contains(&json!("verify")));
        let algorithm = Algorithm::ALL
            .into_iter()
            .find(|one| jwk["alg"] == one.as_str());
        let (Some(material), true, Some(algorithm)) = (material(jwk), signs, algorithm) else {
            continue;
        };
        let provider = Provider::new(&JwtProvider {
            declared: source(),
            name: name("wycheproof"),
            issuer: None,
            audiences: Vec::new(),
            algorithms: Algorithm::ALL.to_vec(),
            keys: ProviderKeys::Local(vec![Key {
                id: jwk["kid"].as_str().map(str::to_owned),
                algorithm: Some(algorithm),
                material,
            }]),
            places: JwtProvider::usual_places(),
            claim_headers: Vec::new(),
            recompute_route: false,
        })
        .expect("the key is good");
        for test in group["tests"].as_array().expect("tests") {
            let id = &test["tcId"];
            let got = provider.signature(text(test, "jws"));
            // The key says PS256 and the token PS384; a key's algorithm binds.
            let bound = matches!(id.as_u64(), Some(346 | 350));
            if test["result"] == "valid" && !bound {
                assert_eq!(got, Ok(()), "{id} {}", test["comment"]);
                verified += 1;
            } else {
                assert!(got.is_err(), "{id} {}", test["comment"]);
                refused += 1;
            }
        }
    }
    assert!(
        verified >= 30 && refused >= 300,
        "{verified} verified, {refused} refused"
    );
}
