//! `UDPRoute`: sessions of datagrams, one per client address.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use cardinal_agent::proxy::{ProxyConfig, Reason};
use snapshot::Snapshot;
use snapshot::model::Gate;
use tokio::net::UdpSocket;

use crate::support::{FOREVER, Router, SURELY, backend, cell, free_port, object, until};
use crate::tcp_routes::{gateway, route, weighted};

const MADE: &str = "2026-01-01T00:00:00Z";
/// What must not come would have come by then.
const NEVER: Duration = Duration::from_millis(300);

/// A server of datagrams, and by whom it was asked.
struct Oracle {
    at: SocketAddr,
    callers: Arc<Mutex<Vec<SocketAddr>>>,
}

impl Oracle {
    /// Answers each datagram with its own name and the datagram, after a while.
    async fn slow(called: &'static str, pause: Duration) -> Self {
        let socket = UdpSocket::bind("127.0.0.1:0").await.expect("a port");
        let at = socket.local_addr().expect("it is bound");
        let callers: Arc<Mutex<Vec<SocketAddr>>> = Arc::default();
        let seen = Arc::clone(&callers);
        tokio::spawn(async move {
            let mut buffer = [0; 65_535];
            while let Ok((length, from)) = socket.recv_from(&mut buffer).await {
                seen.lock().expect("nobody panicked").push(from);
                tokio::time::sleep(pause).await;
                let answer = [called.as_bytes(), &buffer[..length]].concat();
                socket
                    .send_to(&answer, from)
                    .await
                    .expect("loopback takes it");
            }
        });
        Self { at, callers }
    }

    async fn new(called: &'static str) -> Self {
        Self::slow(called, Duration::ZERO).await
    }

    fn callers(&self) -> Vec<SocketAddr> {
        self.callers.lock().expect("nobody panicked").clone()
    }
}

/// One UDP listener, and one route to these backends.
fn world(at: u16, backends: &[(&str, u32, SocketAddr)]) -> Snapshot {
    let refs: Vec<_> = backends
        .iter()
        .map(|(name, weight, _)| (*name, *weight))
        .collect();
    let spec = format!("rules: [{{ backendRefs: {} }}]", weighted(&refs));
    let mut text = gateway(&[format!("{{ name: udp, port: {at}, protocol: UDP }}")]);
    text.push_str(&route("UDPRoute", "r", MADE, &spec));
    for (name, _, address) in backends {
        text.push_str(&backend(name, &[*address]));
    }
    crate::documents::snapshot(&text)
}

/// A client that only hears the listener.
async fn client(at: u16) -> UdpSocket {
    let socket = UdpSocket::bind("127.0.0.1:0").await.expect("a port");
    socket
        .connect((Ipv4Addr::LOCALHOST, at))
        .await
        .expect("an address");
    socket
}

async fn heard(socket: &UdpSocket, within: Duration) -> Option<String> {
    let mut buffer = [0; 65_535];
    match tokio::time::timeout(within, socket.recv(&mut buffer)).await {
        Ok(Ok(length)) => Some(String::from_utf8_lossy(&buffer[..length]).into_owned()),
        _ => None,
    }
}

async fn ask(socket: &UdpSocket, text: &str) -> Option<String> {
    socket.send(text.as_bytes()).await.expect("it is sent");
    heard(socket, SURELY).await
}

/// Waits until the one datagram that is not passed on is counted.
async fn dropped(router: &Router, reason: &str) {
    let series = format!("proxy_datagrams_dropped_total{{reason=\"{reason}\"}}");
    until("it is dropped", || router.metric(&series) == 1.0).await;
}

fn config(idle: Duration) -> ProxyConfig {
    ProxyConfig {
        session_idle: idle,
        ..ProxyConfig::default()
    }
}

#[tokio::test]
async fn proxy_udp_route_gives_each_client_a_session() {
    let oracle = Oracle::new("a:").await;
    let at = free_port();
    let router = Router::with(&world(at, &[("a", 1, oracle.at)]), config(FOREVER));
    let mut clients = Vec::new();
    for n in 0..20 {
        let socket = client(at).await;
        let text = format!("one of {n}");
        assert_eq!(ask(&socket, &text).await, Some(format!("a:{text}")));
        clients.push(socket);
    }
    assert_eq!(router.metric("proxy_connections"), 20.0);
    for (n, socket) in clients.iter().enumerate() {
        let text = format!("two of {n}");
        assert_eq!(ask(socket, &text).await, Some(format!("a:{text}")));
    }
    let callers = oracle.callers();
    assert_eq!(callers.len(), 40);
    let distinct: BTreeSet<_> = callers.iter().collect();
    assert_eq!(
        distinct.len(),
        20,
        "a socket for each client, whatever core it came to"
    );
}

#[tokio::test]
async fn proxy_udp_route_ends_a_session_after_a_silence() {
    let oracle = Oracle::new("a:").await;
    let at = free_port();
    let silence = Duration::from_secs(4);
    let router = Router::with(&world(at, &[("a", 1, oracle.at)]), config(silence));
    let socket = client(at).await;
    for text in ["one", "two", &"x".repeat(20_000), ""] {
        assert_eq!(ask(&socket, text).await, Some(format!("a:{text}")));
    }
    let own = socket.local_addr().expect("it is bound").to_string();
    let record = router
        .record(|one| one.client.as_deref() == Some(own.as_str()))
        .await;
    assert_eq!(
        (record.protocol, record.reason),
        ("udp", Reason::Ok),
        "{record:?}"
    );
    assert_eq!(record.listener.as_deref(), Some("default/gw/udp"));
    assert_eq!(record.route.as_deref(), Some("default/r"));
    assert_eq!(
        record.upstream.as_deref(),
        Some(oracle.at.to_string().as_str())
    );
    assert_eq!(record.bytes_in, 3 + 3 + 20_000);
    assert_eq!(record.bytes_out, record.bytes_in + 4 * 2);
    // The next datagram after a silence is a session of its own.
    let before = oracle.callers().len();
    assert_eq!(ask(&socket, "again").await.as_deref(), Some("a:again"));
    assert_eq!(oracle.callers().len(), before + 1);
    router
        .record(|one| one.client.as_deref() == Some(own.as_str()) && one.bytes_in == 5)
        .await;
}

#[tokio::test]
async fn proxy_udp_route_shares_sessions_by_weight() {
    let (a, b, c) = (
        Oracle::new("a").await,
        Oracle::new("b").await,
        Oracle::new("c").await,
    );
    let at = free_port();
    let _router = Router::start(&world(
        at,
        &[("a", 3, a.at), ("b", 1, b.at), ("c", 0, c.at)],
    ));
    let mut counts = [0; 3];
    for _ in 0..400 {
        let answer = ask(&client(at).await, "").await.expect("an answer");
        counts[usize::from(answer.as_bytes()[0] - b'a')] += 1;
    }
    // 300 on average; seven standard deviations are 61.
    assert!((239..=361).contains(&counts[0]), "{counts:?}");
    assert_eq!(counts[2], 0, "{counts:?}");
}

#[tokio::test]
async fn proxy_udp_route_has_a_bound_of_sessions() {
    let oracle = Oracle::new("a:").await;
    let at = free_port();
    let limits = ProxyConfig {
        sessions: 3,
        ..config(FOREVER)
    };
    let router = Router::with(&world(at, &[("a", 1, oracle.at)]), limits);
    let mut clients = Vec::new();
    for _ in 0..3 {
        let socket = client(at).await;
        assert_eq!(ask(&socket, "x").await.as_deref(), Some("a:x"));
        clients.push(socket);
    }
    let late = client(at).await;
    late.send(b"x").await.expect("it is sent");
    dropped(&router, "sessions").await;
    assert_eq!(heard(&late, NEVER).await, None);
    // Those that have a session keep it.
    assert_eq!(ask(&clients[0], "y").await.as_deref(), Some("a:y"));

    // In time there is room.
    let at = free_port();
    let limits = ProxyConfig {
        sessions: 1,
        ..config(Duration::from_secs(1))
    };
    let _router = Router::with(&world(at, &[("a", 1, oracle.at)]), limits);
    assert_eq!(ask(&client(at).await, "x").await.as_deref(), Some("a:x"));
    let late = client(at).await;
    for _ in 0..600 {
        late.send(b"x").await.expect("it is sent");
        if heard(&late, Duration::from_millis(100)).await.is_some() {
            return;
        }
    }
    panic!("no session ever ended");
}

#[tokio::test]
async fn proxy_udp_route_keeps_a_session_at_its_backend_as_long_as_the_table_leads_there() {
    let (a, b) = (Oracle::new("a:").await, Oracle::new("b:").await);
    let at = free_port();
    let router = Router::start(&world(at, &[("a", 1, a.at)]));
    let socket = client(at).await;
    assert_eq!(ask(&socket, "1").await.as_deref(), Some("a:1"));
    router.publish(&world(at, &[("b", 100, b.at), ("a", 0, a.at)]), 2);
    for _ in 0..5 {
        assert_eq!(
            ask(&socket, "2").await.as_deref(),
            Some("a:2"),
            "its backend is still there"
        );
    }
    assert_eq!(
        ask(&client(at).await, "new").await.as_deref(),
        Some("b:new")
    );
    let sources: BTreeSet<_> = a.callers().into_iter().collect();
    assert_eq!(sources.len(), 1, "it is one session");
    router.publish(&world(at, &[("b", 1, b.at)]), 3);
    // At once, not once a second.
    assert_eq!(ask(&socket, "3").await.as_deref(), Some("b:3"));
    let record = router
        .record(|one| one.upstream.as_deref() == Some(a.at.to_string().as_str()))
        .await;
    assert_eq!((record.bytes_in, record.generation), (6, 2), "{record:?}");
}

#[tokio::test]
async fn proxy_udp_route_takes_another_address_when_one_is_dead() {
    let oracle = Oracle::new("a:").await;
    let dead = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()));
    let at = free_port();
    let mut snapshot = world(at, &[("a", 1, oracle.at)]);
    let upstream = |at: SocketAddr| snapshot::model::Upstream::Tcp {
        host: snapshot::model::UpstreamHost::Address(at.ip()),
        port: crate::support::port(at.port()),
        tls: None,
    };
    snapshot.l4_routes[0].backends[0].upstreams = vec![upstream(dead), upstream(oracle.at)];
    let router = Router::start(&snapshot);
    for _ in 0..4 {
        let socket = client(at).await;
        let mut answered = false;
        for _ in 0..300 {
            socket.send(b"x").await.expect("it is sent");
            answered = heard(&socket, Duration::from_millis(200)).await.is_some();
            if answered {
                break;
            }
        }
        assert!(answered, "the other address was never asked");
    }
    let record = router.reason(Reason::UpstreamConnect).await;
    assert_eq!(record.upstream.as_deref(), Some(dead.to_string().as_str()));
}

#[tokio::test]
async fn proxy_udp_route_passes_on_what_was_asked_before_it_went() {
    let oracle = Oracle::slow("a:", Duration::from_millis(400)).await;
    let at = free_port();
    let snapshot = world(at, &[("a", 1, oracle.at)]);
    let router = Router::start(&snapshot);
    let asking = client(at).await;
    asking.send(b"x").await.expect("it is sent");
    while oracle.callers().is_empty() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let mut gone = snapshot.clone();
    gone.gateways.clear();
    gone.l4_routes.clear();
    router.publish(&gone, 2);
    assert_eq!(heard(&asking, SURELY).await.as_deref(), Some("a:x"));
    // A second later nobody has the port any more.
    until("the socket is closed", || {
        std::net::UdpSocket::bind((Ipv4Addr::LOCALHOST, at)).is_ok()
    })
    .await;

    let router = Router::start(&snapshot);
    let asking = client(at).await;
    asking.send(b"y").await.expect("it is sent");
    while oracle.callers().len() < 2 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(router.proxy.shutdown(SURELY).await, 0);
    assert_eq!(heard(&asking, SURELY).await.as_deref(), Some("a:y"));
}

#[tokio::test]
async fn proxy_udp_route_goes_on_in_another_router_that_takes_its_sockets() {
    let oracle = Oracle::new("a:").await;
    let at = free_port();
    let snapshot = world(at, &[("a", 1, oracle.at)]);
    let mut router = Router::start(&snapshot);
    // Clients that stay, on both cores most likely, and one that is new each time.
    let mut kept = Vec::new();
    for _ in 0..8 {
        kept.push(client(at).await);
    }
    for cores in [1, 3, 2] {
        for socket in &kept {
            assert_eq!(ask(socket, "x").await.as_deref(), Some("a:x"));
        }
        let next = Router::after(&router, &snapshot, cores);
        let before = std::mem::replace(&mut router, next);
        let leaves = tokio::spawn(before.proxy.leave(SURELY));
        for socket in &kept {
            assert_eq!(ask(socket, "y").await.as_deref(), Some("a:y"));
        }
        let fresh = client(at).await;
        assert_eq!(ask(&fresh, "z").await.as_deref(), Some("a:z"));
        assert_eq!(leaves.await.expect("it ends"), 0);
    }
}

#[tokio::test]
async fn proxy_udp_route_answers_nobody_without_a_route_and_no_component_at_a_gate() {
    let oracle = Oracle::new("a:").await;
    let at = free_port();
    let mut lonely = world(at, &[("a", 1, oracle.at)]);
    lonely.l4_routes.clear();
    let router = Router::start(&lonely);
    let socket = client(at).await;
    socket.send(b"x").await.expect("it is sent");
    dropped(&router, "no_route").await;
    assert_eq!(heard(&socket, NEVER).await, None);

    let at = free_port();
    let mut snapshot = world(at, &[("a", 1, oracle.at)]);
    let cell = cell("shop", "orders", Ipv4Addr::new(127, 0, 0, 9).into(), 1);
    snapshot.cells.insert(cell.id.clone(), cell.into());
    let own = snapshot.gateways.get_mut(&object("gw")).expect("a gateway");
    own.gate = Some(Gate::External);
    let config = ProxyConfig {
        loopback: true,
        ..ProxyConfig::default()
    };
    let _router = Router::with(&snapshot, config);
    let pod = UdpSocket::bind("127.0.0.9:0")
        .await
        .expect("a loopback address");
    pod.connect((Ipv4Addr::LOCALHOST, at))
        .await
        .expect("an address");
    pod.send(b"x").await.expect("it is sent");
    assert_eq!(heard(&pod, NEVER).await, None);
    assert_eq!(ask(&client(at).await, "x").await.as_deref(), Some("a:x"));
}
