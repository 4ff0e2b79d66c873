//! Rows of `tests/vectors` that the router decides: every row of a group runs, or is named here with
//! the reason why it does not.

use cardinal_agent::compile::route::compile;
use cardinal_agent::route::credential::Carrier;
use cardinal_agent::route::gatekeeper::{Denied, Visitor};
use cardinal_agent::route::matching::Subject;
use cardinal_agent::route::token::Provider;
use http::{HeaderMap, Method};
use serde_json::{Value, json};
use snapshot::model::{Algorithm, JwtProvider, Key, KeyMaterial, ProviderKeys};

use crate::auth::{Issuer, now};
use crate::support::{name, path, plain, prefix, route, rule, source};

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
