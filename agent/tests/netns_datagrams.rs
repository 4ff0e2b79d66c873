//! Datagrams to a gateway's address, steered by the kernel to the router's sockets of it. Needs root; fails without it.

#[path = "netns/node.rs"]
#[allow(dead_code, reason = "each test binary uses its part of the node")]
mod node;
#[path = "netns/world.rs"]
#[allow(dead_code, reason = "each test binary uses its part of the world")]
mod world;

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;

use bytes::Bytes;
use node::{Agent, SURELY, until};
use world::{World, echo_udp, inside, udp, udp_is_lost};

const BACKEND: &str = "127.0.0.1:5300";
/// Bytes of a request of which half is sent before its listener goes: more than QUIC sends without hearing of it.
const LENGTH: usize = 4 << 20;

/// A gateway with a UDP listener on each of `ports`, all leading to [`BACKEND`].
fn documents(ports: &[u16]) -> String {
    let listeners: Vec<_> = ports
        .iter()
        .map(|port| format!("{{ name: udp-{port}, port: {port}, protocol: UDP }}"))
        .collect();
    format!(
        "apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {{ name: edge }}
spec:
  gatewayClassName: cardinal
  addresses: [{{ value: 192.0.2.10 }}, {{ value: \"2001:db8:a::10\" }}]
  listeners: [{{ name: http, port: 80, protocol: HTTP }}, {}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: UDPRoute
metadata: {{ name: r }}
spec:
  parentRefs: [{{ name: edge }}]
  rules: [{{ backendRefs: [{{ group: gateway.envoyproxy.io, kind: Backend, name: up }}] }}]
---
apiVersion: gateway.envoyproxy.io/v1alpha1
kind: Backend
metadata: {{ name: up }}
spec: {{ endpoints: [{{ ip: {{ address: 127.0.0.1, port: 5300 }} }}] }}
",
        listeners.join(", ")
    )
}

fn gateways(port: u16) -> [SocketAddr; 2] {
    ["192.0.2.10", "2001:db8:a::10"].map(|address| {
        let address = address.parse().expect("an address");
        SocketAddr::new(address, port)
    })
}

#[test]
fn netns_datagrams_to_a_gateway_lead_to_the_routers_sockets() {
    let world = World::new(1);
    world.node_address("192.0.2.10/32");
    world.node_address("2001:db8:a::10/128");
    echo_udp(&world.node, BACKEND.parse().expect("an address"));
    let agent = Agent::start(&world, &documents(&[53, 5353]), &[]);
    for to in gateways(53).into_iter().chain(gateways(5353)) {
        assert!(udp(&world.node, to, 1200), "{to}");
        // Answers come from the address and port that were asked: a connected socket hears nothing else.
        let answer = inside(&world.node, move || {
            let any = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
            let socket = UdpSocket::bind(any)?;
            socket.set_read_timeout(Some(SURELY))?;
            socket.connect(to)?;
            let mut buffer = [0; 8];
            for _ in 0..20 {
                socket.send(b"hello")?;
                socket.recv(&mut buffer)?;
            }
            Ok::<_, std::io::Error>(buffer)
        });
        assert_eq!(&answer.expect("an answer")[..5], b"hello");
    }
    // What the agent finds in the kernel is what it put there.
    until("looking after the sockets", &agent, || {
        let metrics = agent.metrics();
        let drift: Vec<_> = metrics
            .lines()
            .filter(|line| line.starts_with("cardinal_datapath_drift{table=\"sockets\"}"))
            .collect();
        assert!(drift.iter().all(|line| line.ends_with(" 0")), "{drift:?}");
        !drift.is_empty()
    });
    agent.publish(&documents(&[5353]));
    for to in gateways(53) {
        assert!(udp_is_lost(&world.node, to, 8), "the listener is gone");
    }
    for to in gateways(5353) {
        assert!(
            udp(&world.node, to, 8),
            "{to}: the other one is still there"
        );
    }
    // Without the router its address is nobody's: not the stack's, and not of who binds it meanwhile.
    drop(agent);
    for to in gateways(5353) {
        let received = inside(&world.node, move || {
            let thief = UdpSocket::bind(to)?;
            thief.set_read_timeout(Some(Duration::from_millis(500)))?;
            let any = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
            UdpSocket::bind(any)?.send_to(b"x", to)?;
            thief.recv(&mut [0; 8])
        });
        let error = received.expect_err("the kernel's program drops it");
        assert!(
            matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut),
            "{error}"
        );
    }
}

/// A gateway with an HTTPS listener that answers a path itself, and a policy with these fields besides.
fn https(fields: &str, secret: &str) -> String {
    format!(
        "apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {{ name: edge }}
spec:
  gatewayClassName: cardinal
  addresses: [{{ value: 192.0.2.10 }}, {{ value: \"2001:db8:a::10\" }}]
  listeners: [{{ name: https, port: 443, protocol: HTTPS, tls: {{ certificateRefs: [{{ name: front }}] }} }}]
---
apiVersion: gateway.envoyproxy.io/v1alpha1
kind: ClientTrafficPolicy
metadata: {{ name: p }}
spec:
  targetRefs: [{{ group: gateway.networking.k8s.io, kind: Gateway, name: edge }}]
  healthCheck: {{ path: /healthz }}
  {fields}
{secret}"
    )
}

/// A certificate for `front.example` as a document, and in whom a client has to trust for it.
fn certificate() -> (String, rustls::RootCertStore) {
    let made = rcgen::generate_simple_self_signed(["front.example".to_owned()]);
    let made = made.expect("a certificate");
    let mut roots = rustls::RootCertStore::empty();
    roots.add(made.cert.der().clone()).expect("a root");
    let text = |pem: String| serde_json::to_string(&pem).expect("it is text");
    let secret = format!(
        "---
apiVersion: v1
kind: Secret
metadata: {{ name: front }}
type: kubernetes.io/tls
stringData: {{ tls.crt: {}, tls.key: {} }}
",
        text(made.cert.pem()),
        text(made.signing_key.serialize_pem())
    );
    (secret, roots)
}

/// A connection of HTTP/3 from a free port.
struct Client {
    endpoint: quinn::Endpoint,
    quic: quinn::Connection,
    send: h3::client::SendRequest<h3_quinn::OpenStreams, Bytes>,
    driving: tokio::task::JoinHandle<()>,
}

impl Drop for Client {
    fn drop(&mut self) {
        self.driving.abort();
    }
}

/// None: nobody is there who answers in time.
async fn connect(
    to: SocketAddr,
    roots: rustls::RootCertStore,
    patience: Duration,
) -> Option<Client> {
    let any: SocketAddr = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" }
        .parse()
        .expect("an address");
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut tls = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("versions")
        .with_root_certificates(roots)
        .with_no_client_auth();
    tls.alpn_protocols = vec![b"h3".to_vec()];
    let tls = quinn::crypto::rustls::QuicClientConfig::try_from(tls).expect("TLS 1.3");
    let mut settings = quinn::ClientConfig::new(Arc::new(tls));
    let mut transport = quinn::TransportConfig::default();
    transport.max_idle_timeout(Some(patience.try_into().expect("it is short")));
    settings.transport_config(Arc::new(transport));
    let endpoint = quinn::Endpoint::client(any).expect("a port");
    let connecting = endpoint.connect_with(settings, to, "front.example");
    let quic = connecting.expect("a handshake begins").await.ok()?;
    let (mut driver, send) = h3::client::new(h3_quinn::Connection::new(quic.clone()))
        .await
        .expect("streams are granted");
    let driving = tokio::spawn(async move {
        std::future::poll_fn(|context| driver.poll_close(context)).await;
    });
    Some(Client {
        endpoint,
        quic,
        send,
        driving,
    })
}

/// The status of an answer by HTTP/3, asked for again from another port each time; none: nobody is there who answers in time.
async fn status(
    to: SocketAddr,
    roots: rustls::RootCertStore,
    times: u32,
    patience: Duration,
) -> Option<u16> {
    let mut client = connect(to, roots, patience).await?;
    let any = client.endpoint.local_addr().expect("it is bound").ip();
    let mut status = None;
    for _ in 0..times {
        let socket = UdpSocket::bind((any, 0)).expect("a port");
        client.endpoint.rebind(socket).expect("it is taken");
        let request = http::Request::get("https://front.example/healthz").body(());
        let stream = client.send.send_request(request.expect("a request")).await;
        let mut stream = stream.expect("a stream");
        stream.finish().await.expect("it ends");
        let answer = stream.recv_response().await.expect("an answer");
        status = Some(answer.status().as_u16());
    }
    status
}

/// Sends a request of [`LENGTH`] bytes, of which the last half only when `go_on` says so and others are refused meanwhile. Gives the
/// status of its answer, and with which code the connection ended.
async fn upload(
    to: SocketAddr,
    roots: rustls::RootCertStore,
    half: mpsc::Sender<()>,
    go_on: tokio::sync::oneshot::Receiver<()>,
) -> (u16, u64) {
    let mut client = connect(to, roots, SURELY).await.expect("it is there");
    let request = http::Request::post("https://front.example/").header("content-length", LENGTH);
    let stream = client
        .send
        .send_request(request.body(()).expect("a request"));
    let mut stream = stream.await.expect("a stream");
    let part = Bytes::from(vec![7; LENGTH / 2]);
    let sent = stream.send_data(part.clone()).await;
    sent.expect("it is taken");
    half.send(()).expect("somebody waits for it");
    go_on.await.expect("somebody says so");
    loop {
        let request = http::Request::get("https://front.example/").body(());
        let more = client.send.send_request(request.expect("a request")).await;
        if more.is_err() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    stream.send_data(part).await.expect("it is taken");
    stream.finish().await.expect("it ends");
    let answer = stream.recv_response().await.expect("an answer");
    let status = answer.status().as_u16();
    while stream.recv_data().await.expect("a body").is_some() {}
    match client.quic.closed().await {
        quinn::ConnectionError::ApplicationClosed(close) => (status, close.error_code.into_inner()),
        other => panic!("{other}"),
    }
}

/// An upstream that answers each request of [`LENGTH`] bytes once it has all of it.
fn taker(world: &World) {
    let at: SocketAddr = BACKEND.parse().expect("an address");
    let listener = inside(&world.node, move || TcpListener::bind(at)).expect("the port is free");
    thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { continue };
            thread::spawn(move || {
                let (mut taken, mut head) = (Vec::new(), None);
                let mut buffer = vec![0; 1 << 16];
                while head.is_none_or(|head| taken.len() < head + LENGTH) {
                    match stream.read(&mut buffer) {
                        Ok(0) | Err(_) => return,
                        Ok(length) => taken.extend_from_slice(&buffer[..length]),
                    }
                    let end = taken.windows(4).position(|four| four == b"\r\n\r\n");
                    head = head.or(end.map(|end| end + 4));
                }
                // The router has the answer, or the test fails.
                let _ = stream.write_all(b"HTTP/1.1 201 Created\r\ncontent-length: 2\r\n\r\nok");
            });
        }
    });
}

#[test]
fn netns_http3_listener_that_goes_ends_what_is_under_way() {
    /// Closed without an error (RFC 9114, section 8.1).
    const NO_ERROR: u64 = 0x100;
    let route = "---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: { name: r }
spec:
  parentRefs: [{ name: edge }]
  rules: [{ backendRefs: [{ group: gateway.envoyproxy.io, kind: Backend, name: up }] }]
---
apiVersion: gateway.envoyproxy.io/v1alpha1
kind: Backend
metadata: { name: up }
spec: { endpoints: [{ ip: { address: 127.0.0.1, port: 5300 } }] }
";
    let world = World::new(1);
    world.node_address("192.0.2.10/32");
    world.node_address("2001:db8:a::10/128");
    taker(&world);
    let (secret, roots) = certificate();
    let with = https("http3: {}", &secret) + route;
    let agent = Agent::start(&world, &with, &[]);
    let moved = with.replace("port: 443", "port: 8443");
    for without in [https("http2: {}", &secret) + route, moved] {
        for to in gateways(443) {
            let ((half, waits), (go_on, told)) = (mpsc::channel(), tokio::sync::oneshot::channel());
            let (netns, roots) = (world.node.clone(), roots.clone());
            let client = thread::spawn(move || {
                inside(&netns, move || {
                    let runtime = tokio::runtime::Builder::new_current_thread()
                        .enable_all()
                        .build();
                    let all = upload(to, roots, half, told);
                    runtime.expect("a runtime").block_on(all)
                })
            });
            waits.recv().expect("half of it is sent");
            agent.publish(&without);
            go_on.send(()).expect("it waits for that");
            let ended = client.join().expect("it ends");
            assert_eq!(ended, (201, NO_ERROR), "{to}: {}", agent.log());
            agent.publish(&with);
        }
    }
}

#[test]
fn netns_http3_of_a_gateway_leads_to_the_routers_sockets() {
    let world = World::new(1);
    world.node_address("192.0.2.10/32");
    world.node_address("2001:db8:a::10/128");
    let (secret, roots) = certificate();
    let ask = |to, times, patience| {
        let roots = roots.clone();
        inside(&world.node, move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build();
            runtime
                .expect("a runtime")
                .block_on(status(to, roots, times, patience))
        })
    };
    let agent = Agent::start(&world, &https("http3: {}", &secret), &[]);
    for to in gateways(443) {
        // Whatever core a port leads to, the connection stays where it is.
        assert_eq!(ask(to, 8, SURELY), Some(200), "{to}");
    }
    agent.publish(&https("http2: {}", &secret));
    for to in gateways(443) {
        let gone = ask(to, 1, Duration::from_secs(3));
        assert_eq!(gone, None, "{to}: it is there over TCP alone");
    }
}
