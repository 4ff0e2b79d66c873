//! What upstreams are told of a client's certificate in `X-Forwarded-Client-Cert`.

use data_encoding::{BASE64, HEXLOWER};

use super::{CA, World, ask, to};
use crate::client_policy::policy;
use crate::documents::snapshot;
use crate::support::{Router, echo, free_port};
use crate::upstream_tls::config_map;

/// What every client of these tests says of itself.
const SAID: &str = "Subject=\"CN=admin\"";

#[tokio::test]
async fn proxy_tells_upstreams_of_certificates_as_the_policy_of_the_listener_says() {
    let world = World::new();
    let names = [
        "orders.example",
        "www.orders.example",
        "spiffe://shop/orders",
    ];
    let issued = world.clients.issue("orders, \"ltd\"", &names);
    let client = world.client(Some(&issued));
    let nobody = world.client(None);
    let hash = HEXLOWER.encode(&issued.hashes()[0]);
    let own = format!("By=spiffe://shop/front;Hash={hash}");
    let all = "certDetailsToAdd: [DNS, URI, Subject]";
    let details = r#"Subject="CN=orders\, \"ltd\"";URI=spiffe://shop/orders;DNS=orders.example;DNS=www.orders.example"#;
    for (fields, told, told_of_nobody) in [
        ("", None, None),
        ("mode: Sanitize", None, None),
        ("mode: ForwardOnly", Some(SAID.to_owned()), None),
        ("mode: AlwaysForwardOnly", Some(SAID.to_owned()), Some(SAID)),
        ("mode: SanitizeSet", Some(own.clone()), None),
        (
            &format!("mode: SanitizeSet, {all}"),
            Some(format!("{own};{details}")),
            None,
        ),
        (
            &format!("mode: AppendForward, {all}"),
            Some(format!("{SAID},{own};{details}")),
            None,
        ),
    ] {
        let (rules, more) = to(echo("up").await);
        let at = free_port();
        let policy = policy(&format!(
            "tls: {{ clientValidation: {{ optional: true, {CA} }} }}, headers: {{ xForwardedClientCert: {{ {fields} }} }}"
        ));
        let more = [more, config_map("clients", &[&world.clients]), policy].concat();
        let _router = Router::start(&snapshot(&world.documents(&[at], "", &rules, &more)));
        let answer = ask(at, &client).await.expect("it is let in");
        let expected: Vec<String> = told.into_iter().collect();
        assert_eq!(answer.seen("x-forwarded-client-cert"), expected, "{fields}");
        let answer = ask(at, &nobody).await.expect("it is let in");
        let expected: Vec<&str> = told_of_nobody.into_iter().collect();
        assert_eq!(answer.seen("x-forwarded-client-cert"), expected, "{fields}");
    }
}

#[tokio::test]
async fn proxy_tells_upstreams_all_of_a_certificate() {
    let world = World::new();
    let issued = world.clients.issue("orders", &["orders.example"]);
    let client = world.client(Some(&issued));
    let (rules, more) = to(echo("up").await);
    let at = free_port();
    let policy = policy(&format!(
        "tls: {{ clientValidation: {{ {CA} }} }}, headers: {{ xForwardedClientCert: {{ mode: SanitizeSet, certDetailsToAdd: [Cert, Chain] }} }}"
    ));
    let more = [more, config_map("clients", &[&world.clients]), policy].concat();
    let _router = Router::start(&snapshot(&world.documents(&[at], "", &rules, &more)));
    let told = ask(at, &client)
        .await
        .expect("it is let in")
        .seen("x-forwarded-client-cert");
    let told = told.first().expect("it is told");
    for key in ["Cert", "Chain"] {
        let (_, value) = told.split_once(&format!(";{key}=\"")).expect(key);
        let (value, _) = value.split_once('"').expect("it ends");
        let text = value
            .replace("%0A", "\n")
            .replace("%20", " ")
            .replace("%2B", "+");
        let text = text.replace("%2F", "/").replace("%3D", "=");
        let lines: Vec<&str> = text.lines().collect();
        let [first, base64 @ .., last] = &lines[..] else {
            panic!("{text}");
        };
        assert_eq!(*first, "-----BEGIN CERTIFICATE-----");
        assert_eq!(*last, "-----END CERTIFICATE-----");
        let bytes = BASE64.decode(base64.concat().as_bytes()).expect("base64");
        assert_eq!(bytes, issued.chain()[0].as_ref(), "{key}");
    }
}
