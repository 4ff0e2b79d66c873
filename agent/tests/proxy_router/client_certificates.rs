//! Certificates of clients: what listeners ask for, what they are believed, and what the gateway itself shows upstreams.

use std::net::SocketAddr;
use std::sync::Arc;

use cardinal_agent::compile::route::compile;
use cardinal_agent::proxy::Reason;
use http::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use snapshot::{SourceFile, parse};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::backends::until_healthy;
use crate::client_policy::{policy, policy_of};
use crate::documents::snapshot;
use crate::support::{Body, Reply, Router, backend, echo, free_port, full, refs, reply};
use crate::tls::{Authority, Issued};
use crate::traffic_policy::of_route;
use crate::upstream_tls::{config_map, server};

mod accepted;
mod told;

/// Authorities of a test: of the gateway's own certificate, and of its clients.
struct World {
    servers: Authority,
    clients: Authority,
}

const CA: &str = "caCertificateRefs: [{ group: '', kind: ConfigMap, name: clients }]";

impl World {
    fn new() -> Self {
        Self {
            servers: Authority::new(),
            clients: Authority::new(),
        }
    }

    /// A gateway with an HTTPS listener at each of these ports and `tls` in YAML, a route with these rules, and `more`.
    fn documents(&self, ports: &[u16], tls: &str, rules: &str, more: &str) -> String {
        let listeners: Vec<_> = ports
            .iter()
            .map(|port| format!("{{ name: https-{port}, port: {port}, protocol: HTTPS, tls: {{ certificateRefs: [{{ name: front }}] }} }}"))
            .collect();
        format!(
            "
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {{ name: gw }}
spec:
  gatewayClassName: cardinal
  addresses: [{{ value: 127.0.0.1 }}]
  listeners: [{}]
  tls: {{ {tls} }}
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {{ name: r }}
spec: {{ parentRefs: [{{ name: gw }}], rules: [{rules}] }}
{}{more}",
            listeners.join(", "),
            self.servers
                .issue("front", &["front.example", "spiffe://shop/front"])
                .secret("front")
        )
    }

    /// A client with a certificate or without.
    fn client(&self, own: Option<&Issued>) -> Arc<ClientConfig> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_root_certificates(self.servers.roots());
        Arc::new(match own {
            Some(own) => builder
                .with_client_auth_cert(own.chain(), own.key())
                .expect("a certificate"),
            None => builder.with_no_client_auth(),
        })
    }
}

async fn shake(port: u16, client: &Arc<ClientConfig>) -> Result<TlsStream<TcpStream>, String> {
    let stream = TcpStream::connect(("127.0.0.1", port)).await;
    let name = ServerName::try_from("front.example").expect("a name");
    TlsConnector::from(Arc::clone(client))
        .connect(name, stream.expect("somebody listens"))
        .await
        .map_err(|error| error.to_string())
}

type Sender = hyper::client::conn::http1::SendRequest<Body>;

async fn sender(port: u16, client: &Arc<ClientConfig>) -> Result<Sender, String> {
    let stream = shake(port, client).await?;
    let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|error| error.to_string())?;
    tokio::spawn(connection);
    Ok(sender)
}

async fn over(sender: &mut Sender) -> Result<Reply, String> {
    let request = Request::get("/")
        .header("host", "front.example")
        .header("x-forwarded-client-cert", "Subject=\"CN=admin\"")
        .body(full(String::new()))
        .expect("a request");
    // What the server makes of a certificate is heard with the first answer (RFC 8446, section 4.4.2.4).
    let answer = sender.send_request(request).await;
    Ok(reply(answer.map_err(|error| format!("{error:?}"))?).await)
}

async fn ask(port: u16, client: &Arc<ClientConfig>) -> Result<Reply, String> {
    over(&mut sender(port, client).await?).await
}

async fn status(port: u16, client: &Arc<ClientConfig>) -> Option<u16> {
    ask(port, client)
        .await
        .ok()
        .map(|reply| reply.status.as_u16())
}

fn to(up: SocketAddr) -> (String, String) {
    (format!("{{ {} }}", refs(&["up"])), backend("up", &[up]))
}

#[tokio::test]
async fn proxy_lets_only_clients_with_good_certificates_in() {
    let world = World::new();
    let (rules, more) = to(echo("up").await);
    let (asked, open) = (free_port(), free_port());
    let tls = format!(
        "frontend: {{ default: {{ validation: {{ {CA} }} }}, perPort: [{{ port: {open}, tls: {{}} }}] }}"
    );
    let more = more + &config_map("clients", &[&world.clients]);
    let documents = world.documents(&[asked, open], &tls, &rules, &more);
    let router = Router::start(&snapshot(&documents));
    let good = world.client(Some(&world.clients.issue("orders", &["orders.example"])));
    let stranger = world.client(Some(&Authority::new().issue("orders", &["orders.example"])));
    let nobody = world.client(None);
    let answer = ask(asked, &good).await.expect("it is let in");
    assert_eq!(answer.status, StatusCode::OK);
    // Who it is, is nobody's to say in a header.
    assert_eq!(answer.seen("x-forwarded-client-cert"), [""; 0]);
    assert_eq!(status(asked, &stranger).await, None);
    assert_eq!(status(asked, &nobody).await, None);
    let record = router.reason(Reason::TlsHandshake).await;
    assert!(record.detail.is_some(), "{record:?}");
    for client in [&good, &stranger, &nobody] {
        assert_eq!(status(open, client).await, Some(200));
        // What the port that asks for nothing gave to resume with is worth nothing here.
        let again = status(asked, client).await;
        assert_eq!(again.is_some(), Arc::ptr_eq(client, &good));
    }
}

#[tokio::test]
async fn proxy_asks_for_certificates_as_the_policy_of_a_listener_says() {
    let world = World::new();
    let (rules, more) = to(echo("up").await);
    let ports = [free_port(), free_port(), free_port()];
    let policy = |port: u16, fields: &str| {
        let spec = format!(
            "tls: {{ clientValidation: {{ caCertificateRefs: [{{ kind: ConfigMap, name: clients }}]{fields} }} }}"
        );
        policy_of(&format!("p{port}"), &format!("https-{port}"), &spec)
    };
    let more = [
        more,
        policy(ports[0], ""),
        policy(ports[1], ", optional: true"),
    ]
    .concat();
    let authorities = config_map("clients", &[&world.clients]);
    let documents = world.documents(&ports, "", &rules, &format!("{more}{authorities}"));
    let router = Router::start(&snapshot(&documents));
    let good = world.client(Some(&world.clients.issue("orders", &["orders.example"])));
    let stranger = world.client(Some(&Authority::new().issue("orders", &["orders.example"])));
    let nobody = world.client(None);
    for (port, client, expected) in [
        (ports[0], &good, Some(200)),
        (ports[0], &stranger, None),
        (ports[0], &nobody, None),
        (ports[1], &good, Some(200)),
        // One that is shown has to be good.
        (ports[1], &stranger, None),
        (ports[1], &nobody, Some(200)),
        (ports[2], &stranger, Some(200)),
    ] {
        assert_eq!(status(port, client).await, expected, "{port} of {ports:?}");
    }
    router.reason(Reason::TlsHandshake).await;
    drop(router);
    // As long as the authorities are not there, nobody is believed.
    let router = Router::start(&snapshot(&world.documents(&ports, "", &rules, &more)));
    for client in [&good, &stranger, &nobody] {
        assert_eq!(status(ports[0], client).await, None);
        assert_eq!(status(ports[1], client).await, None);
    }
    router.reason(Reason::TlsHandshake).await;
}

#[tokio::test]
async fn proxy_takes_routing_keys_of_verified_certificates_only() {
    let world = World::new();
    let (a, b) = (echo("a").await, echo("b").await);
    let spiffe = "spiffe://example.org/tenant/acme";
    let table = |source: &str| {
        format!(
            "---
apiVersion: cardinal.dev/v1alpha1
kind: RoutingTable
metadata: {{ name: t }}
spec:
  version: '1'
  key: {{ clientCertificate: {source} }}
  routingTable: {{ '{spiffe}': b, acme: b, acme.example: b }}
  placements: {{ a: {{ url: 'http://{a}' }}, b: {{ url: 'http://{b}' }} }}
  defaultPlacement: a
"
        )
    };
    let rules = "{ backendRefs: [{ group: cardinal.dev, kind: RoutingTable, name: t }] }";
    let names = ["acme.example", spiffe];
    let acme = world.client(Some(&world.clients.issue("acme", &names)));
    let other = world.client(Some(
        &world
            .clients
            .issue("other", &["other.example", "spiffe://x/y"]),
    ));
    let two = world.client(Some(&world.clients.issue(
        "two",
        &["acme.example", "x.example", spiffe, "spiffe://x/y"],
    )));
    let bare = world.client(Some(&world.clients.issue("bare", &[])));
    // The right names of the wrong authority.
    let forged = world.client(Some(&Authority::new().issue("acme", &names)));
    let nobody = world.client(None);
    for (source, several, without) in [
        ("uri", 400, 400),
        ("dns", 400, 400),
        ("commonName", 200, 200),
    ] {
        for mode in ["AllowValidOnly", "AllowInsecureFallback"] {
            let at = free_port();
            let tls =
                format!("frontend: {{ default: {{ validation: {{ {CA}, mode: {mode} }} }} }}");
            let more = table(source) + &config_map("clients", &[&world.clients]);
            let router = Router::start(&snapshot(&world.documents(&[at], &tls, rules, &more)));
            for (client, placement) in [(&acme, "b"), (&other, "a")] {
                let answer = ask(at, client).await.expect("it is let in");
                assert_eq!(
                    answer.header("x-routed-to"),
                    Some(placement),
                    "{source} {mode}"
                );
            }
            assert_eq!(status(at, &two).await, Some(several), "{source} {mode}");
            assert_eq!(status(at, &bare).await, Some(without), "{source} {mode}");
            let unverified = (mode == "AllowInsecureFallback").then_some(400);
            for client in [&forged, &nobody] {
                assert_eq!(status(at, client).await, unverified, "{source} {mode}");
            }
            if unverified.is_some() {
                router.reason(Reason::RoutingKeyMissing).await;
            }
        }
    }
    // A listener that asks for no certificate gives no key, and that is said before anybody asks.
    let documents = world.documents(&[free_port()], "", rules, &table("uri"));
    let mistakes = compile(&snapshot(&documents), 1).expect_err("no key");
    let text = mistakes[0].to_string();
    assert!(
        text.contains("takes its key from the client's certificate"),
        "{text}"
    );
}

#[tokio::test]
async fn proxy_believes_no_client_for_longer_than_its_authority() {
    let world = World::new();
    let other = Authority::new();
    let (rules, more) = to(echo("up").await);
    let at = free_port();
    let tls = format!("frontend: {{ default: {{ validation: {{ {CA} }} }} }}");
    let table = |authority: Option<&Authority>, generation| {
        let maps = authority.map_or(String::new(), |one| config_map("clients", &[one]));
        let documents = world.documents(&[at], &tls, &rules, &(more.clone() + &maps));
        let snapshot = snapshot(&documents);
        assert_eq!(snapshot.warnings.is_empty(), authority.is_some());
        Arc::new(compile(&snapshot, generation).expect("it compiles"))
    };
    let documents = more.clone() + &config_map("clients", &[&world.clients]);
    let router = Router::start(&snapshot(&world.documents(&[at], &tls, &rules, &documents)));
    let ours = world.client(Some(&world.clients.issue("ours", &[])));
    let theirs = world.client(Some(&other.issue("theirs", &[])));
    let mut open = sender(at, &ours).await.expect("it is let in");
    assert_eq!(
        over(&mut open).await.expect("an answer").status,
        StatusCode::OK
    );
    // The same again changes nothing for who is there.
    router.table.store(table(Some(&world.clients), 2));
    assert_eq!(
        over(&mut open).await.expect("an answer").status,
        StatusCode::OK
    );
    router.table.store(table(Some(&other), 3));
    let told = over(&mut open).await.expect("an answer");
    assert_eq!(told.status, StatusCode::MISDIRECTED_REQUEST);
    assert_eq!(status(at, &ours).await, None);
    assert_eq!(status(at, &theirs).await, Some(200));
    // Without authorities nobody is believed.
    router.table.store(table(None, 4));
    for client in [&ours, &theirs] {
        let refused = shake(at, client).await.expect_err("nobody gets in");
        assert!(refused.contains("AccessDenied"), "{refused}");
    }
    let gone = |one: &cardinal_agent::proxy::AccessRecord| {
        let detail = one.detail.as_deref().unwrap_or_default();
        one.reason == Reason::TlsHandshake && detail.contains("no `ConfigMap` default/clients")
    };
    router.record(gone).await;
}

/// A server that asks who comes, as rules and further documents: the backend, its `BackendTLSPolicy`, and the gateway's
/// own certificate.
async fn asking(world: &World) -> (String, String) {
    let backends = Authority::new();
    let up = server(
        &backends.issue("up", &["up.example"]),
        Some(world.clients.roots()),
    )
    .await;
    let (rules, more) = to(up);
    let more = [
        more,
        config_map("backends", &[&backends]),
        "---
apiVersion: gateway.networking.k8s.io/v1
kind: BackendTLSPolicy
metadata: { name: p }
spec:
  targetRefs: [{ group: gateway.envoyproxy.io, kind: Backend, name: up }]
  validation: { hostname: up.example, caCertificateRefs: [{ group: '', kind: ConfigMap, name: backends }] }
"
        .to_owned(),
        world.clients.issue("the-gateway", &[]).secret("own"),
    ]
    .concat();
    (rules, more)
}

const OWN: &str = "backend: { clientCertificateRef: { name: own } }";

#[tokio::test]
async fn proxy_asks_an_upstream_how_it_is_as_its_requests_ask() {
    let world = World::new();
    let at = free_port();
    let (rules, more) = asking(&world).await;
    let answer = "expectedResponse: { type: Text, text: '\"client\":\"the-gateway\"' }";
    let check = format!(
        "active: {{ interval: 20ms, unhealthyThreshold: 1, type: HTTP, http: {{ path: /, {answer} }} }}"
    );
    let fields = format!("healthCheck: {{ panicThreshold: 0, {check} }}");
    let more = more + &of_route(&fields);
    let client = world.client(None);
    let router = Router::start(&snapshot(&world.documents(&[at], "", &rules, &more)));
    until_healthy(&router, &[false]).await;
    assert_eq!(status(at, &client).await, Some(503));
    router.reason(Reason::NoReadyEndpoint).await;
    router.publish(&snapshot(&world.documents(&[at], OWN, &rules, &more)), 2);
    until_healthy(&router, &[true]).await;
    for _ in 0..3 {
        let answer = ask(at, &client).await.expect("an answer");
        assert_eq!(answer.json()["client"], "the-gateway");
    }
    router.publish(&snapshot(&world.documents(&[at], "", &rules, &more)), 3);
    until_healthy(&router, &[false]).await;
    assert_eq!(status(at, &client).await, Some(503));
}

#[tokio::test]
async fn proxy_shows_its_own_certificate_to_upstreams_that_ask() {
    let world = World::new();
    let at = free_port();
    let (rules, more) = asking(&world).await;
    let client = world.client(None);
    let router = Router::start(&snapshot(&world.documents(&[at], OWN, &rules, &more)));
    for _ in 0..3 {
        let answer = ask(at, &client).await.expect("an answer");
        assert_eq!(answer.json()["client"], "the-gateway");
    }
    // A gateway without one does not get the connections of one that has it.
    let table = compile(&snapshot(&world.documents(&[at], "", &rules, &more)), 2);
    router.table.store(Arc::new(table.expect("it compiles")));
    for _ in 0..6 {
        assert_eq!(status(at, &client).await, Some(502));
    }
    drop(router);
    let missing = world.documents(
        &[at],
        "backend: { clientCertificateRef: { name: gone } }",
        &rules,
        &more,
    );
    let file = SourceFile {
        path: "test.yaml".into(),
        bytes: missing.into_bytes(),
    };
    let rejections = parse(&[file]).expect_err("no such secret").to_string();
    assert!(
        rejections.contains("spec.tls.backend.clientCertificateRef: no `Secret` default/gone"),
        "{rejections}"
    );
}

#[tokio::test]
async fn proxy_asks_for_certificates_in_the_versions_that_the_policy_of_the_listener_leaves() {
    let world = World::new();
    let (rules, more) = to(echo("up").await);
    let port = free_port();
    let tls = format!("frontend: {{ default: {{ validation: {{ {CA} }} }} }}");
    let policy = policy("tls: { minVersion: '1.3' }");
    let more = more + &config_map("clients", &[&world.clients]) + &policy;
    let documents = world.documents(&[port], &tls, &rules, &more);
    let _router = Router::start(&snapshot(&documents));
    let own = world.clients.issue("orders", &["orders.example"]);
    assert_eq!(status(port, &world.client(Some(&own))).await, Some(200));
    assert_eq!(status(port, &world.client(None)).await, None);
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let old = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS12])
        .expect("a version")
        .with_root_certificates(world.servers.roots())
        .with_client_auth_cert(own.chain(), own.key())
        .expect("a certificate");
    let refused = shake(port, &Arc::new(old)).await;
    assert!(refused.is_err(), "1.2 is not spoken there");
}
