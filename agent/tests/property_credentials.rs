//! Whatever a client sends as a token, nobody passes by it who has no good one, and nothing panics.

use cardinal_agent::route::token::Provider;
use proptest::prelude::*;
use snapshot::model::{Algorithm, JwtProvider, Key, KeyMaterial, Name, ProviderKeys};

/// RFC 8037, appendix A.4: the key, and a token that it signed. Its payload is no claims.
const X: &str = "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo";
const TOKEN: &str = "eyJhbGciOiJFZERTQSJ9.RXhhbXBsZSBvZiBFZDI1NTE5IHNpZ25pbmc.hgyY0il_MGCjP0JzlnLWG1PPOt7-09PGcvMg3AIbQR6dWbhijcNR4ki4iylGjg5BhVsPt9g7sVvpAr_MuM0KAg";

fn provider() -> Provider {
    let declared = snapshot::Source::new("a.yaml", 1, "");
    Provider::new(&JwtProvider {
        declared,
        name: Name::new("idp").expect("a name"),
        issuer: None,
        audiences: Vec::new(),
        algorithms: Algorithm::ALL.to_vec(),
        keys: ProviderKeys::Local(vec![Key {
            id: None,
            algorithm: None,
            material: KeyMaterial::Ed25519 { x: X.into() },
        }]),
        places: JwtProvider::usual_places(),
        claim_headers: Vec::new(),
        recompute_route: false,
    })
    .expect("a good key")
}

#[test]
fn the_token_of_the_rfc_is_signed_and_claims_nothing() {
    let provider = provider();
    assert_eq!(provider.signature(TOKEN), Ok(()));
    assert!(provider.verify(TOKEN, &(), 0).is_err());
}

proptest! {
    #[test]
    fn property_no_text_is_a_signed_token(text in "\\PC{0,200}|[A-Za-z0-9_.=-]{0,300}") {
        let provider = provider();
        prop_assert!(provider.signature(&text).is_err());
        prop_assert!(provider.verify(&text, &(), 0).is_err());
    }

    #[test]
    fn property_no_changed_token_is_signed(at in 0..TOKEN.len(), by in prop::char::range('!', '~')) {
        let mut changed: Vec<char> = TOKEN.chars().collect();
        prop_assume!(changed[at] != by);
        changed[at] = by;
        let changed: String = changed.into_iter().collect();
        prop_assert!(provider().signature(&changed).is_err(), "{}", changed);
    }
}
