//! `BackendTLSPolicy`: TLS towards upstreams, whom the router believes there, and that it never does without.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use cardinal_agent::compile::route::compile;
use cardinal_agent::proxy::{ProxyConfig, Reason};
use http::{Request, Response, StatusCode};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use rustls::RootCertStore;
use rustls::server::WebPkiClientVerifier;
use serde_json::json;
use tokio::io::AsyncReadExt;
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::documents::snapshot;
use crate::grpc::{client, note, unary};
use crate::support::{
    Body, Reply, Router, backend, echo, free_port, full, get, http_gateway, raw, refs, send, until,
    written,
};
use crate::tcp_routes::{gateway, route, weighted};
use crate::tls::{Authority, Issued, quoted};

/// What a server saw of a connection: server name, protocol, and the common name of who came.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Seen {
    sni: Option<String>,
    alpn: Option<String>,
    client: Option<String>,
}

/// Accepts TLS with a certificate and tells each stream to `serve`.
pub(crate) async fn accept<F>(
    issued: &Issued,
    clients: Option<RootCertStore>,
    serve: F,
) -> SocketAddr
where
    F: Fn(tokio_rustls::server::TlsStream<tokio::net::TcpStream>, Seen) + Send + 'static,
{
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = rustls::ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .expect("versions");
    let builder = match clients {
        Some(roots) => {
            let verifier = WebPkiClientVerifier::builder_with_provider(roots.into(), provider);
            builder.with_client_cert_verifier(verifier.build().expect("roots"))
        }
        None => builder.with_no_client_auth(),
    };
    let mut config = builder
        .with_single_cert(issued.chain(), issued.key())
        .expect("a certificate");
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("it is bound");
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            // Whoever does not believe it hangs up.
            let Ok(stream) = acceptor.accept(stream).await else {
                continue;
            };
            let session = stream.get_ref().1;
            let client = session.peer_certificates().map(|chain| {
                let (_, parsed) = X509Certificate::from_der(&chain[0]).expect("a certificate");
                let common = parsed.subject().iter_common_name().next().expect("a name");
                common.as_str().expect("text").to_owned()
            });
            let seen = Seen {
                sni: session.server_name().map(str::to_owned),
                alpn: session
                    .alpn_protocol()
                    .map(|name| String::from_utf8_lossy(name).into_owned()),
                client,
            };
            serve(stream, seen);
        }
    });
    address
}

/// A server over HTTP/1.1 that answers with what it saw.
pub(crate) async fn server(issued: &Issued, clients: Option<RootCertStore>) -> SocketAddr {
    accept(issued, clients, |stream, seen| {
        let service = hyper::service::service_fn(move |request: Request<Incoming>| {
            let told = json!({
                "sni": seen.sni,
                "alpn": seen.alpn,
                "client": seen.client,
                "host": request.headers()["host"].to_str().expect("ASCII"),
            });
            let answer: Response<Body> = Response::new(full(told.to_string()));
            async move { Ok::<_, std::convert::Infallible>(answer) }
        });
        let http = hyper::server::conn::http1::Builder::new();
        tokio::spawn(http.serve_connection(TokioIo::new(stream), service));
    })
    .await
}

pub(crate) fn config_map(called: &str, authorities: &[&Authority]) -> String {
    let pem: String = authorities.iter().map(|one| one.pem()).collect();
    format!(
        "---
apiVersion: v1
kind: ConfigMap
metadata: {{ name: {called} }}
data: {{ ca.crt: {} }}
",
        quoted(&pem)
    )
}

/// A policy for a backend; `validation` in YAML. `more` of its target and of its metadata.
fn policy(called: &str, backend: &str, validation: &str) -> String {
    format!(
        "---
apiVersion: gateway.networking.k8s.io/v1
kind: BackendTLSPolicy
metadata: {{ name: {called} }}
spec:
  targetRefs: [{{ group: gateway.envoyproxy.io, kind: Backend, name: {backend} }}]
  validation: {{ {validation} }}
"
    )
}

const CA: &str = "caCertificateRefs: [{ group: '', kind: ConfigMap, name: ca }]";

fn rules(backends: &[&str]) -> String {
    backends
        .iter()
        .map(|name| {
            format!(
                "    - {{ matches: [{{ path: {{ value: /{name} }} }}], {} }}\n",
                refs(&[name])
            )
        })
        .collect()
}

async fn ask(at: SocketAddr, path: &str) -> Reply {
    send(at, get(&format!("http://front.example/{path}"))).await
}

#[tokio::test]
async fn proxy_checks_the_certificates_of_upstreams() {
    let (ours, theirs) = (Authority::new(), Authority::new());
    let good = server(&ours.issue("good", &["up.example"]), None).await;
    let other = server(&ours.issue("other", &["other.example"]), None).await;
    let stranger = server(&theirs.issue("stranger", &["up.example"]), None).await;
    let plain = echo("plain").await;
    let names = ["good", "other", "stranger", "plain"];
    let backends = [
        ("good", good),
        ("other", other),
        ("stranger", stranger),
        ("plain", plain),
    ];
    let mut more = config_map("ca", &[&ours]);
    for name in names {
        more += &policy(name, name, &format!("hostname: up.example, {CA}"));
    }
    let (snapshot, at) = written(&rules(&names), &backends, &more);
    assert!(snapshot.warnings.is_empty(), "{:?}", snapshot.warnings);
    let router = Router::start(&snapshot);
    for _ in 0..3 {
        let answer = ask(at, "good").await;
        assert_eq!(answer.status, StatusCode::OK);
        assert_eq!(
            answer.json(),
            json!({ "sni": "up.example", "alpn": "http/1.1", "client": null, "host": "front.example" })
        );
    }
    for (name, why) in [
        ("other", "not valid for name \"up.example\""),
        ("stranger", "UnknownIssuer"),
        ("plain", ""),
    ] {
        let answer = ask(at, name).await;
        assert_eq!(answer.status, StatusCode::BAD_GATEWAY, "{name}");
        assert_eq!(answer.json()["error"], "upstream_connect");
        let path = format!("/{name}");
        let record = router
            .record(|one| one.path.as_deref() == Some(&*path))
            .await;
        assert_eq!(record.reason, Reason::UpstreamConnect);
        let detail = record.detail.as_deref().expect("a reason");
        assert!(detail.contains(why), "{name}: {detail}");
    }
}

#[tokio::test]
async fn proxy_says_nothing_to_an_upstream_before_tls() {
    let ours = Authority::new();
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let up = listener.local_addr().expect("it is bound");
    let said = Arc::new(Mutex::new(Vec::new()));
    let heard = Arc::clone(&said);
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut buffer = [0; 4096];
            let read = stream.read(&mut buffer).await.expect("it says something");
            heard
                .lock()
                .expect("no panic")
                .push(buffer[..read].to_vec());
        }
    });
    let more =
        config_map("ca", &[&ours]) + &policy("p", "up", &format!("hostname: up.example, {CA}"));
    // Copies go the same way.
    let rules = format!(
        "    - {{ filters: [{{ type: RequestMirror, requestMirror: {{ backendRef: {{ group: gateway.envoyproxy.io, kind: Backend, name: up }} }} }}], {} }}\n",
        refs(&["up"])
    );
    let (snapshot, at) = written(&rules, &[("up", up)], &more);
    let _router = Router::start(&snapshot);
    let secret = get("http://front.example/secret-path");
    assert_eq!(send(at, secret).await.status, StatusCode::BAD_GATEWAY);
    until("the request and its copy", || {
        said.lock().expect("no panic").len() >= 2
    })
    .await;
    let said = said.lock().expect("no panic");
    for bytes in said.iter() {
        // A record of a handshake (RFC 8446, section 5.1).
        assert_eq!(bytes[0], 22);
        let text = String::from_utf8_lossy(bytes);
        assert!(!text.contains("secret-path"), "{text}");
    }
}

#[tokio::test]
async fn proxy_compares_the_names_that_a_policy_lists() {
    let ours = Authority::new();
    let spiffe = "spiffe://example.org/ns/shop/sa/orders";
    let up = server(
        &ours.issue("up", &["real.example", "a.wild.example", spiffe]),
        None,
    )
    .await;
    let named = |names: &str| format!("hostname: sni.example, {CA}, subjectAltNames: [{names}]");
    let table = [
        ("host", "{ type: Hostname, hostname: real.example }", true),
        (
            "uri",
            "{ type: URI, uri: 'spiffe://example.org/ns/shop/sa/orders' }",
            true,
        ),
        (
            "wild",
            "{ type: Hostname, hostname: '*.wild.example' }",
            true,
        ),
        (
            "one",
            "{ type: Hostname, hostname: x.example }, { type: URI, uri: 'spiffe://example.org/ns/shop/sa/orders' }",
            true,
        ),
        // What is sent as server name is no identity any more.
        ("sni", "{ type: Hostname, hostname: sni.example }", false),
        (
            "prefix",
            "{ type: URI, uri: 'spiffe://example.org/ns/shop/sa/order' }",
            false,
        ),
        (
            "case",
            "{ type: URI, uri: 'spiffe://example.org/ns/shop/SA/orders' }",
            false,
        ),
        (
            "host-as-uri",
            "{ type: URI, uri: 'https://real.example' }",
            false,
        ),
        (
            "below",
            "{ type: Hostname, hostname: '*.real.example' }",
            false,
        ),
    ];
    let mut more = config_map("ca", &[&ours]);
    let mut backends = Vec::new();
    for (name, names, _) in table {
        more += &policy(name, name, &named(names));
        backends.push((name, up));
    }
    let names = table.map(|(name, ..)| name);
    let (snapshot, at) = written(&rules(&names), &backends, &more);
    let router = Router::start(&snapshot);
    for (name, _, good) in table {
        let answer = ask(at, name).await;
        if good {
            assert_eq!(answer.status, StatusCode::OK, "{name}");
            assert_eq!(answer.json()["sni"], "sni.example");
        } else {
            assert_eq!(answer.status, StatusCode::BAD_GATEWAY, "{name}");
            let path = format!("/{name}");
            let record = router
                .record(|one| one.path.as_deref() == Some(&*path))
                .await;
            let detail = record.detail.as_deref().expect("a reason");
            assert!(detail.contains("none of the names"), "{detail}");
        }
    }
    // A certificate with the right name of somebody else's authority is nobody's.
    let theirs = server(&Authority::new().issue("up", &[spiffe]), None).await;
    let more = config_map("ca", &[&ours])
        + &policy(
            "p",
            "up",
            &named("{ type: URI, uri: 'spiffe://example.org/ns/shop/sa/orders' }"),
        );
    let (snapshot, at) = written(&rules(&["up"]), &[("up", theirs)], &more);
    let router = Router::start(&snapshot);
    assert_eq!(ask(at, "up").await.status, StatusCode::BAD_GATEWAY);
    let record = router.reason(Reason::UpstreamConnect).await;
    let detail = record.detail.as_deref().expect("a reason");
    assert!(detail.contains("UnknownIssuer"), "{detail}");
}

#[tokio::test]
async fn proxy_believes_nobody_where_authorities_are_missing() {
    let ours = Authority::new();
    let up = server(&ours.issue("up", &["up.example"]), None).await;
    let host = |rest: &str| format!("hostname: up.example, {rest}");
    let of = |kind: &str, name: &str| {
        host(&format!(
            "caCertificateRefs: [{{ group: '', kind: {kind}, name: {name} }}]"
        ))
    };
    let map = |data: &str| {
        format!(
            "---\napiVersion: v1\nkind: ConfigMap\nmetadata: {{ name: ca }}\ndata: {{ {data} }}\n"
        )
    };
    let opaque = format!(
        "---\napiVersion: v1\nkind: Secret\nmetadata: {{ name: ca }}\ntype: Opaque\nstringData: {{ ca.crt: {} }}\n",
        quoted(&ours.pem())
    );
    let with_leaf =
        ours.issue("x", &["x"]).secret("ca") + &format!("  ca.crt: {}\n", quoted(&ours.pem()));
    let broken = quoted("-----BEGIN CERTIFICATE-----\n!\n-----END CERTIFICATE-----\n");
    for (validation, more, warning) in [
        (of("ConfigMap", "ca"), config_map("ca", &[&ours]), None),
        (of("Secret", "ca"), opaque.clone(), None),
        (of("Secret", "ca"), with_leaf, None),
        (host("wellKnownCACertificates: System"), String::new(), None),
        (
            of("ConfigMap", "ca"),
            String::new(),
            Some("no `ConfigMap` default/ca"),
        ),
        (
            of("Secret", "ca"),
            String::new(),
            Some("no `Secret` default/ca"),
        ),
        (of("ConfigMap", "ca"), map(""), Some("has no key `ca.crt`")),
        (
            of("ConfigMap", "ca"),
            map("ca.crt: ''"),
            Some("holds no PEM block"),
        ),
        (
            of("ConfigMap", "ca"),
            map(&format!("ca.crt: {broken}")),
            Some("broken PEM"),
        ),
        (
            host(
                "caCertificateRefs: [{ group: '', kind: ConfigMap, name: gone }, { group: '', kind: Secret, name: ca }]",
            ),
            opaque,
            Some("no `ConfigMap` default/gone"),
        ),
    ] {
        let more = more + &policy("p", "up", &validation);
        let (snapshot, at) = written(&rules(&["up"]), &[("up", up)], &more);
        let warnings: Vec<String> = snapshot.warnings.iter().map(ToString::to_string).collect();
        let config = ProxyConfig {
            roots: Some(Arc::new(ours.roots())),
            ..ProxyConfig::default()
        };
        let router = Router::with(&snapshot, config);
        let status = ask(at, "up").await.status;
        let Some(warning) = warning else {
            assert_eq!(status, StatusCode::OK, "{validation}");
            assert!(warnings.is_empty(), "{warnings:?}");
            continue;
        };
        assert_eq!(status, StatusCode::BAD_GATEWAY, "{validation}");
        assert!(
            warnings.len() == 1 && warnings[0].contains(warning),
            "{warnings:?}"
        );
        assert!(
            warnings[0].contains("spec.validation.caCertificateRefs[0]"),
            "{warnings:?}"
        );
        let record = router.reason(Reason::UpstreamConnect).await;
        let detail = record.detail.as_deref().expect("a reason");
        assert!(detail.contains(warning), "{detail}");
    }
}

#[tokio::test]
async fn proxy_takes_the_more_specific_and_then_the_older_policy() {
    let ours = Authority::new();
    let a = server(
        &ours.issue("up", &["a.example", "b.example", "c.example"]),
        None,
    )
    .await;
    let b = server(
        &ours.issue("up", &["a.example", "b.example", "c.example"]),
        None,
    )
    .await;
    let policy = |called: &str, created: &str, section: Option<u16>| {
        let section = section.map_or(String::new(), |port| format!(", sectionName: '{port}'"));
        policy(called, "up", &format!("hostname: {called}.example, {CA}"))
            .replace(
                &format!("{{ name: {called} }}"),
                &format!("{{ name: {called}, creationTimestamp: '{created}' }}"),
            )
            .replace("name: up }", &format!("name: up{section} }}"))
    };
    let endpoints = format!(
        "---
apiVersion: gateway.envoyproxy.io/v1alpha1
kind: Backend
metadata: {{ name: up }}
spec:
  endpoints: [{{ ip: {{ address: 127.0.0.1, port: {} }} }}, {{ ip: {{ address: 127.0.0.1, port: {} }} }}]
",
        a.port(),
        b.port()
    );
    let more = [
        config_map("ca", &[&ours]),
        endpoints,
        policy("a", "2026-01-03T00:00:00Z", None),
        policy("b", "2026-01-02T00:00:00Z", None),
        policy("c", "2026-01-09T00:00:00Z", Some(b.port())),
    ]
    .concat();
    let (snapshot, at) = written(&rules(&["up"]), &[], &more);
    let warnings: Vec<String> = snapshot.warnings.iter().map(ToString::to_string).collect();
    assert_eq!(warnings.len(), 1, "{warnings:?}");
    assert!(
        warnings[0].contains("BackendTLSPolicy default/a"),
        "{warnings:?}"
    );
    assert!(
        warnings[0].contains("`BackendTLSPolicy` default/b"),
        "{warnings:?}"
    );
    let _router = Router::start(&snapshot);
    let mut seen = std::collections::BTreeSet::new();
    for _ in 0..16 {
        let answer = ask(at, "up").await.json();
        seen.insert(answer["sni"].as_str().expect("a name").to_owned());
    }
    let expected = ["b.example", "c.example"].map(str::to_owned);
    assert_eq!(seen, expected.into());
}

#[tokio::test]
async fn proxy_keeps_no_connection_for_those_who_would_not_have_made_it() {
    let (ours, theirs) = (Authority::new(), Authority::new());
    let up = server(&ours.issue("up", &["up.example"]), None).await;
    let documents = |authority: &Authority| {
        let more = config_map("ca", &[authority])
            + &policy("p", "up", &format!("hostname: up.example, {CA}"));
        written(&rules(&["up"]), &[("up", up)], &more)
    };
    let (snapshot, at) = documents(&ours);
    let router = Router::start(&snapshot);
    // Both cores have a connection.
    for _ in 0..20 {
        assert_eq!(ask(at, "up").await.status, StatusCode::OK);
    }
    let (changed, _) = documents(&theirs);
    let mut next = snapshot.clone();
    next.routes = changed.routes;
    let table = compile(&next, 2).expect("it compiles");
    router.table.store(Arc::new(table));
    for _ in 0..20 {
        assert_eq!(ask(at, "up").await.status, StatusCode::BAD_GATEWAY);
    }
    let table = compile(&snapshot, 3).expect("it compiles");
    router.table.store(Arc::new(table));
    assert_eq!(ask(at, "up").await.status, StatusCode::OK);
}

#[tokio::test]
async fn proxy_carries_calls_over_tls() {
    let ours = Authority::new();
    let up = crate::grpc::tls_server("secure", &ours.issue("up", &["up.example"])).await;
    let at = free_port();
    let edge = http_gateway("gw", at);
    let text = format!(
        "
{edge}apiVersion: gateway.networking.k8s.io/v1
kind: GRPCRoute
metadata: {{ name: r }}
spec:
  parentRefs: [{{ name: gw }}]
  rules: [{{ {} }}]
---
apiVersion: gateway.envoyproxy.io/v1alpha1
kind: Backend
metadata: {{ name: up }}
spec: {{ endpoints: [{{ ip: {{ address: 127.0.0.1, port: {} }} }}] }}
{}{}",
        refs(&["up"]),
        up.port(),
        config_map("ca", &[&ours]),
        policy("p", "up", &format!("hostname: up.example, {CA}"))
    );
    let _router = Router::start(&snapshot(&text));
    let mut client = client(([127, 0, 0, 1], at).into(), "front.example").await;
    for _ in 0..3 {
        let answer = unary(
            &mut client,
            "/shop.v1.Notes/Say",
            tonic::Request::new(note("", 0)),
        )
        .await;
        assert_eq!(answer.expect("an answer").into_inner().text, "secure");
    }
}

#[tokio::test]
async fn proxy_puts_tls_around_streams() {
    let ours = Authority::new();
    let up = server(&ours.issue("up", &["up.example"]), None).await;
    let at = free_port();
    let documents = |hostname: &str| {
        [
            gateway(&[format!("{{ name: tcp, port: {at}, protocol: TCP }}")]),
            backend("up", &[up]),
            route(
                "TCPRoute",
                "r",
                "2026-01-01T00:00:00Z",
                &format!("rules: [{{ backendRefs: {} }}]", weighted(&[("up", 1)])),
            ),
            config_map("ca", &[&ours]),
            policy("p", "up", &format!("hostname: {hostname}, {CA}")),
        ]
        .concat()
    };
    let router = Router::start(&snapshot(&documents("up.example")));
    let request = b"GET / HTTP/1.1\r\nHost: any\r\nConnection: close\r\n\r\n";
    let address: SocketAddr = ([127, 0, 0, 1], at).into();
    let answer = raw(address, request).await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    // What is inside is the client's to say.
    assert!(answer.contains("\"alpn\":null"), "{answer}");
    assert!(answer.contains("\"sni\":\"up.example\""), "{answer}");
    drop(router);
    let router = Router::start(&snapshot(&documents("other.example")));
    assert_eq!(raw(address, request).await, "");
    let record = router.reason(Reason::UpstreamConnect).await;
    let detail = record.detail.as_deref().expect("a reason");
    assert!(detail.contains("not valid for name"), "{detail}");
}
