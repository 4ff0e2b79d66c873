//! Rows of `tests/vectors` that the router decides: every row of a group runs, or is named here with
//! the reason why it does not.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;

use cardinal_agent::compile::route::compile;
use cardinal_agent::route::credential::Carrier;
use cardinal_agent::route::gatekeeper::{Denied, Visitor};
use cardinal_agent::route::matching::Subject;
use cardinal_agent::route::token::{Provider, TokenError};
use cardinal_agent::route::{Placements, RouteRule, rewrite};
use cardinal_agent::route::{RouteFilter, RouteTable};
use http::{HeaderMap, HeaderValue, Method, Request, Response};
use serde_json::{Value, json};
use snapshot::model::{
    Algorithm, Filter, Gate, Hostname, JwtProvider, Key, KeyMaterial, KeySource, Origin,
    PathRewrite, Pattern, Placement, PlacementUrl, ProviderKeys, RequestMatch, RoutingTable,
    Target, UpstreamHost, WeightedTarget,
};

use crate::auth::{Issuer, now};
use crate::support::{
    Body, Reply, Router, echo, endpoint_id, full, get, host, name, object, path, plain, port,
    prefix, regex, route, rule, send, serve, source, to,
};

fn vectors(file: &str) -> Value {
    let path = format!("{}/../tests/vectors/{file}", env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(&path).expect("the vectors are in the tree");
    serde_json::from_str(&text).expect("the vectors are JSON")
}

fn group<'a>(file: &'a Value, called: &str) -> &'a [Value] {
    let rows = file[called].as_array().expect("a group is a list");
    assert_eq!(file["counts"][called], rows.len(), "{called} is complete");
    rows
}

fn text<'a>(value: &'a Value, field: &str) -> &'a str {
    value[field]
        .as_str()
        .unwrap_or_else(|| panic!("`{field}` of {value}"))
}

/// The row's own expectation, or the product's where the original is wrong.
fn expected(row: &Value) -> &Value {
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
    for filter in &matched.rule.filters {
        if let RouteFilter::Path(change) = filter {
            upstream = rewrite::path(&upstream, matched.prefix, change).expect("a path");
        }
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

/// A document of the older form. `cells` tells where each placement really is.
fn table(document: &Value, cells: &BTreeMap<String, SocketAddr>) -> RoutingTable {
    let map = |field: &str| document[field].as_object().cloned().unwrap_or_default();
    let placements = map("cellEndpoints").into_iter().map(|(placement, url)| {
        let authority = url
            .as_str()
            .and_then(|url| url.strip_prefix("http://"))
            .expect("http");
        let (host, number) = authority.split_once(':').expect("a port");
        let url = match cells.get(&placement) {
            Some(real) => PlacementUrl {
                tls: false,
                host: UpstreamHost::Address(real.ip()),
                port: port(real.port()),
            },
            None => PlacementUrl {
                tls: false,
                host: UpstreamHost::Name(Hostname::new(host).expect("a host")),
                port: port(number.parse().expect("a port")),
            },
        };
        let placement_value = Placement {
            url,
            fallback: None,
            health_check: None,
            breaker: None,
            concurrency_limit: None,
            max_request_body_bytes: None,
        };
        (placement, placement_value)
    });
    RoutingTable {
        name: object("routing"),
        declared: source(),
        version: "1".into(),
        key: KeySource::Header("x-routing-key".into()),
        keys: map("routingTable")
            .into_iter()
            .map(|(key, placement)| (key, placement.as_str().expect("text").to_owned()))
            .collect(),
        placements: placements.collect(),
        default: text(document, "defaultPlacement").to_owned(),
        tiers: ["tier1", "tier2", "tier3"].map(str::to_owned).into(),
    }
}

#[test]
fn proxy_vectors_router_decision() {
    let file = vectors("cell-routing.json");
    for row in group(&file, "router_decision") {
        let id = text(row, "id");
        let document = &file["fixtures"][text(row, "config")];
        let placements = Placements::new(&table(document, &BTreeMap::new())).expect("it compiles");
        let placed = placements.decide(text(row, "routing_key"));
        let want = expected(row);
        if want["error"] == "no_endpoint" {
            assert!(placed.endpoint.is_none(), "{id}");
            continue;
        }
        assert_eq!(**placed.placement, *text(want, "placement"), "{id}");
        assert_eq!(placed.reason.as_str(), text(want, "reason"), "{id}");
        let authority = placed
            .endpoint
            .expect("an endpoint")
            .authority
            .to_str()
            .expect("ASCII");
        assert_eq!(
            format!("http://{authority}"),
            text(want, "endpoint"),
            "{id}"
        );
    }
}

/// A router in front of one cell per placement; `answers` replaces what a cell says.
async fn routed(document: &Value, answers: &Value, without: &[&str]) -> (Router, SocketAddr) {
    let mut cells = BTreeMap::new();
    for placement in ["tier1", "tier2", "tier3", "visa"] {
        let answer = answers[placement].clone();
        let address = match answer.is_null() {
            true => echo(placement).await,
            false => {
                serve(move |_| {
                    let answer = answer.clone();
                    async move { told(&answer) }
                })
                .await
            }
        };
        cells.insert(placement.to_owned(), address);
    }
    let mut routing = table(document, &cells);
    routing
        .placements
        .retain(|placement, _| !without.contains(&placement.as_str()));
    let target = WeightedTarget {
        weight: 1,
        target: Target::RoutingTable(routing.name.clone()),
    };
    let (mut snapshot, at) = plain(vec![route(
        "r",
        &[],
        vec![rule(vec![prefix("/")], vec![target])],
    )]);
    snapshot
        .routing_tables
        .insert(routing.name.clone(), Arc::new(routing));
    (Router::start(&snapshot), at)
}

fn told(answer: &Value) -> Response<Body> {
    let mut response = Response::new(full(String::new()));
    let status = answer["answer"].as_u64().unwrap_or(200);
    *response.status_mut() = u16::try_from(status)
        .ok()
        .and_then(|code| code.try_into().ok())
        .expect("a status");
    for (name, value) in answer["headers"].as_object().into_iter().flatten() {
        let name: http::HeaderName = name.parse().expect("a header");
        let value: HeaderValue = value
            .as_str()
            .and_then(|value| value.parse().ok())
            .expect("a value");
        response.headers_mut().insert(name, value);
    }
    response
}

async fn asked(at: SocketAddr, method: &str, request: &Value) -> Reply {
    let path = request["path"].as_str().unwrap_or("/x");
    let mut builder = Request::builder()
        .method(method)
        .uri(format!("http://client.example{path}"));
    for (name, value) in request["headers"].as_object().into_iter().flatten() {
        builder = builder.header(name, value.as_str().expect("text"));
    }
    for line in request["header_lines"].as_array().into_iter().flatten() {
        builder = builder.header(text_at(line, 0), text_at(line, 1));
    }
    let body = "x".repeat(request["body_bytes"].as_u64().unwrap_or(0) as usize);
    send(at, builder.body(full(body)).expect("a request")).await
}

fn text_at(line: &Value, at: usize) -> &str {
    line[at].as_str().expect("text")
}

/// Compares status and headers; `X-Circuit-State` belongs to breakers, which this router does not have
/// yet.
fn compare(id: &str, reply: &Reply, want: &Value) {
    if let Some(status) = want["status"].as_u64() {
        assert_eq!(u64::from(reply.status.as_u16()), status, "{id}: {reply:?}");
    }
    for (name, value) in want["headers"].as_object().into_iter().flatten() {
        if name != "X-Circuit-State" {
            assert_eq!(reply.header(name), value.as_str(), "{id} {name}");
        }
    }
    for absent in want["absent_headers"].as_array().into_iter().flatten() {
        let absent = absent.as_str().expect("text");
        assert_eq!(reply.header(absent), None, "{id} {absent}");
    }
}

#[tokio::test]
async fn proxy_vectors_smoke_and_http() {
    let file = vectors("cell-routing.json");
    // HT17: an endpoint that is no URL is refused with the document. HT18: the request id is returned,
    // as the row itself suggests.
    let left_out = BTreeSet::from(["HT17", "HT18"]);
    let mut seen = BTreeSet::new();
    for row in group(&file, "smoke").iter().chain(group(&file, "http")) {
        let id = text(row, "id");
        if left_out.contains(id) {
            seen.insert(id);
            continue;
        }
        let without: &[&str] = if id == "HT16" { &["visa"] } else { &[] };
        let document = &file["fixtures"][text(row, "config")];
        let (_router, at) = routed(document, &row["cells"], without).await;
        let request = &row["request"];
        let methods: Vec<&str> = match request["methods"].as_array() {
            Some(list) => list.iter().filter_map(Value::as_str).collect(),
            None => vec![text(request, "method")],
        };
        for method in methods {
            let reply = asked(at, method, request).await;
            compare(id, &reply, expected(row));
        }
    }
    assert_eq!(seen, left_out, "rows that are left out exist");
}

#[tokio::test]
async fn proxy_vectors_forwarding() {
    let file = vectors("cell-routing.json");
    // FW10: an endpoint with a path is refused with the document.
    let left_out = BTreeSet::from(["FW10"]);
    for row in group(&file, "forwarding") {
        let id = text(row, "id");
        if left_out.contains(id) {
            continue;
        }
        let (_router, at) = routed(&file["fixtures"]["F1_routing_json"], &Value::Null, &[]).await;
        let mut request = row["request"].clone();
        let mut headers = request["headers"].as_object().cloned().unwrap_or_default();
        headers.entry("X-Routing-Key").or_insert("visa".into());
        if request["chunked"] == true {
            headers.insert("Transfer-Encoding".into(), "chunked".into());
        }
        request["headers"] = Value::Object(headers);
        let method = request["method"].as_str().unwrap_or("GET").to_owned();
        let reply = asked(at, &method, &request).await;
        let want = expected(row);
        compare(id, &reply, want);
        let Some(saw) = want["upstream_saw"].as_object() else {
            assert_eq!(want["forwarded"], false, "{id}");
            continue;
        };
        let told = reply.json();
        for (field, value) in saw {
            match field.as_str() {
                "headers" => {
                    for (name, value) in value.as_object().expect("an object") {
                        let seen = reply.seen(&name.to_lowercase());
                        if name == "Host" {
                            // Here cells have addresses; what counts is that it is the endpoint's.
                            assert_eq!(seen.len(), 1, "{id}");
                            assert!(seen[0].starts_with("127.0.0.1:"), "{id} {seen:?}");
                            assert_ne!(seen[0], at.to_string(), "{id}");
                        } else {
                            assert_eq!(seen, [value.as_str().expect("text")], "{id} {name}");
                        }
                    }
                }
                "absent_headers" => {
                    for absent in value.as_array().expect("a list") {
                        let absent = absent.as_str().expect("text").to_lowercase();
                        assert_eq!(reply.seen(&absent), [""; 0], "{id} {absent}");
                    }
                }
                "body_bytes" => assert_eq!(&told["bytes"], value, "{id}"),
                other => assert_eq!(&told[other], value, "{id} {other}"),
            }
        }
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
