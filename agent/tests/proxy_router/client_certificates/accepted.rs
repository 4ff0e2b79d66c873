//! Which of the certificates that an authority signed are good: by hash, by name, and until they are revoked.

use std::sync::Arc;

use cardinal_agent::compile::route::compile;
use cardinal_agent::proxy::Reason;
use data_encoding::{BASE64, HEXUPPER};
use http::StatusCode;
use rustls::ClientConfig;

use super::{World, over, sender, status, to};
use crate::client_policy::policy;
use crate::documents::snapshot;
use crate::support::{Router, echo, free_port};
use crate::tls::{Authority, quoted};
use crate::upstream_tls::config_map;

/// A policy of the gateway whose `clientValidation` has these fields beside its authorities.
fn validation(fields: &str) -> String {
    policy(&format!(
        "tls: {{ clientValidation: {{ caCertificateRefs: [{{ kind: ConfigMap, name: clients }}], {fields} }} }}"
    ))
}

/// Which of the clients are let in.
async fn let_in(world: &World, fields: &str, clients: &[&Arc<ClientConfig>]) -> Vec<bool> {
    let (rules, more) = to(echo("up").await);
    let at = free_port();
    let more = [
        more,
        config_map("clients", &[&world.clients]),
        validation(fields),
    ]
    .concat();
    let _router = Router::start(&snapshot(&world.documents(&[at], "", &rules, &more)));
    let mut found = Vec::new();
    for client in clients {
        let answer = status(at, client).await;
        assert!(matches!(answer, None | Some(200)), "{answer:?}");
        found.push(answer.is_some());
    }
    found
}

#[tokio::test]
async fn proxy_lets_only_clients_in_whose_certificates_a_policy_lists() {
    let world = World::new();
    let names = [
        "orders.shop.example",
        "ops@shop.example",
        "spiffe://shop/orders",
        "192.0.2.7",
        "2001:DB8::1",
    ];
    let [one, two] =
        [&names[..], &["other.example"]].map(|names| world.clients.issue("one", names));
    // The certificate of the list, from an authority that is none.
    let forged = world.client(Some(&Authority::new().issue("one", &names)));
    let [[hash, key], [_, other_key]] = [one.hashes(), two.hashes()];
    let colons: Vec<String> = hash.iter().map(|byte| format!("{byte:02X}")).collect();
    let (one, two) = (world.client(Some(&one)), world.client(Some(&two)));
    let nobody = world.client(None);
    let clients = [&one, &two, &forged, &nobody];
    let (key, other_key) = (BASE64.encode(&key), BASE64.encode(&other_key));
    let alone = [true, false, false, false];
    for (fields, expected) in [
        (format!("certificateHashes: ['{}']", HEXUPPER.encode(&hash)), alone),
        (format!("certificateHashes: ['{}']", colons.join(":")), alone),
        (format!("spkiHashes: ['{key}']"), alone),
        // One of all hashes is enough.
        (
            format!("certificateHashes: ['{}'], spkiHashes: ['{other_key}']", HEXUPPER.encode(&hash)),
            [true, true, false, false],
        ),
        ("subjectAltNames: { dnsNames: [{ value: Orders.shop.example }] }".to_owned(), alone),
        ("subjectAltNames: { dnsNames: [{ value: shop.example }] }".to_owned(), [false; 4]),
        ("subjectAltNames: { dnsNames: [{ type: Suffix, value: .shop.example }] }".to_owned(), alone),
        ("subjectAltNames: { emailAddresses: [{ value: ops@shop.example }] }".to_owned(), alone),
        ("subjectAltNames: { ipAddresses: [{ value: '2001:DB8::1' }] }".to_owned(), alone),
        ("subjectAltNames: { ipAddresses: [{ type: Prefix, value: 192.0.2. }] }".to_owned(), alone),
        ("subjectAltNames: { uris: [{ type: RegularExpression, value: 'spiffe://shop/[a-z]+' }] }".to_owned(), alone),
        // A name and a hash, not one of them.
        (
            format!("spkiHashes: ['{key}'], subjectAltNames: {{ dnsNames: [{{ value: other.example }}] }}"),
            [false; 4],
        ),
        (
            format!("optional: true, spkiHashes: ['{key}']"),
            [true, false, false, true],
        ),
    ] {
        assert_eq!(let_in(&world, &fields, &clients).await, expected, "{fields}");
    }
}

#[tokio::test]
async fn proxy_lets_nobody_in_whose_certificate_was_revoked() {
    let world = World::new();
    let [good, bad] = ["good", "bad"].map(|name| world.clients.issue(name, &["x.example"]));
    let list = |revoked: &[&super::Issued], until| world.clients.revoked(revoked, until);
    let lists = |pem: &str| {
        format!(
            "---
apiVersion: v1
kind: Secret
metadata: {{ name: revoked }}
type: Opaque
stringData: {{ ca.crl: {} }}
",
            quoted(pem)
        )
    };
    let (rules, more) = to(echo("up").await);
    let at = free_port();
    let documents = |list: &str| {
        let fields = "crl: { refs: [{ name: revoked }], onlyVerifyLeafCertificate: true }";
        let authorities = config_map("clients", &[&world.clients]);
        let more = format!("{more}{authorities}{}{list}", validation(fields));
        snapshot(&world.documents(&[at], "", &rules, &more))
    };
    let table = |list: &str, generation| {
        Arc::new(compile(&documents(list), generation).expect("it compiles"))
    };
    let router = Router::start(&documents(&lists(&list(&[], 2999))));
    let (good_client, bad_client) = (world.client(Some(&good)), world.client(Some(&bad)));
    let mut open = sender(at, &bad_client).await.expect("it is let in");
    assert_eq!(
        over(&mut open).await.expect("an answer").status,
        StatusCode::OK
    );
    // Who is there already is asked for the next request.
    router.table.store(table(&lists(&list(&[&bad], 2999)), 2));
    let told = over(&mut open).await.expect("an answer");
    assert_eq!(told.status, StatusCode::MISDIRECTED_REQUEST);
    assert_eq!(status(at, &good_client).await, Some(200));
    assert_eq!(status(at, &bad_client).await, None);
    let revoked = router.reason(Reason::TlsHandshake).await;
    let detail = revoked.detail.as_deref().unwrap_or_default();
    assert!(detail.contains("Revoked"), "{detail}");
    // A list that is out of date, one of another authority, none at all, and what is none: nobody knows who is good.
    let others = Authority::new().revoked(&[], 2999);
    let broken = "-----BEGIN X509 CRL-----\nAAAA\n-----END X509 CRL-----\n";
    for (generation, list) in [
        (3, lists(&list(&[], 2021))),
        (4, lists(&others)),
        (5, String::new()),
        (6, lists("")),
        (7, lists(broken)),
    ] {
        let warned = documents(&list).warnings;
        let named = |one: &snapshot::Warning| {
            one.to_string()
                .contains("spec.tls.clientValidation.crl.refs[0]")
        };
        assert_eq!(
            warned.iter().any(named),
            generation > 4,
            "{generation}: {warned:?}"
        );
        router.table.store(table(&list, generation));
        assert_eq!(status(at, &good_client).await, None, "{generation}");
    }
    router.table.store(table(&lists(&list(&[&bad], 2999)), 8));
    assert_eq!(status(at, &good_client).await, Some(200));
}
