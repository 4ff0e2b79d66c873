//! `TCPRoute`: any bytes, to the backends of the one route of a listener.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use cardinal_agent::proxy::{ProxyConfig, Reason};
use snapshot::Snapshot;
use snapshot::model::Gate;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::support::{Router, SURELY, backend, cell, connect, free_port, object, until};

/// References to backends with weights, in the flow style of YAML.
pub(crate) fn weighted(backends: &[(&str, u32)]) -> String {
    let refs: Vec<_> = backends
        .iter()
        .map(|(name, weight)| {
            format!(
                "{{ group: gateway.envoyproxy.io, kind: Backend, name: {name}, weight: {weight} }}"
            )
        })
        .collect();
    format!("[{}]", refs.join(", "))
}

/// A `Gateway` on loopback with these listeners, in the flow style of YAML.
pub(crate) fn gateway(listeners: &[String]) -> String {
    format!(
        "---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {{ name: gw }}
spec:
  gatewayClassName: cardinal
  addresses: [{{ value: 127.0.0.1 }}]
  listeners: [{}]
",
        listeners.join(", ")
    )
}

pub(crate) fn route(kind: &str, called: &str, created: &str, spec: &str) -> String {
    format!(
        "---
apiVersion: gateway.networking.k8s.io/v1
kind: {kind}
metadata: {{ name: {called}, creationTimestamp: \"{created}\" }}
spec: {{ parentRefs: [{{ name: gw }}], {spec} }}
"
    )
}

const OLD: &str = "2026-01-01T00:00:00Z";
const NEW: &str = "2026-02-01T00:00:00Z";

/// One TCP listener, and one route to these backends.
fn world(backends: &[(&str, u32, SocketAddr)]) -> (Snapshot, SocketAddr) {
    let at = free_port();
    let refs: Vec<_> = backends
        .iter()
        .map(|(name, weight, _)| (*name, *weight))
        .collect();
    let spec = format!("rules: [{{ backendRefs: {} }}]", weighted(&refs));
    let mut text = gateway(&[format!("{{ name: tcp, port: {at}, protocol: TCP }}")]);
    text.push_str(&route("TCPRoute", "r", OLD, &spec));
    for (name, _, address) in backends {
        text.push_str(&backend(name, &[*address]));
    }
    let snapshot = crate::documents::snapshot(&text);
    (snapshot, (Ipv4Addr::LOCALHOST, at).into())
}

/// A server that says its name, then what it is told until the client has said all.
pub(crate) async fn parrot(called: &'static str) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let at = listener.local_addr().expect("it is bound");
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let (mut from, mut to) = stream.split();
                to.write_all(called.as_bytes()).await?;
                tokio::io::copy(&mut from, &mut to).await?;
                to.shutdown().await
            });
        }
    });
    at
}

/// Says something, closes its side, and reads to the end.
pub(crate) async fn said(stream: &mut TcpStream, text: &str) -> String {
    stream
        .write_all(text.as_bytes())
        .await
        .expect("they are taken");
    stream.shutdown().await.expect("it closes");
    let mut all = String::new();
    stream.read_to_string(&mut all).await.expect("an end");
    all
}

/// The first byte of a connection, none if it is closed.
async fn first(at: SocketAddr) -> Option<u8> {
    let mut stream = connect(None, at).await;
    let mut byte = [0];
    // Closing may reach the client as a reset.
    match stream.read(&mut byte).await {
        Ok(1) => Some(byte[0]),
        _ => None,
    }
}

#[tokio::test]
async fn proxy_tcp_route_carries_bytes_and_the_end_of_either_side() {
    let (snapshot, at) = world(&[("a", 1, parrot("a").await)]);
    let router = Router::start(&snapshot);
    let mut stream = connect(None, at).await;
    // More than any buffer on the way holds.
    let text = "0123456789".repeat(200_000);
    let (mut from, mut to) = stream.split();
    let mut all = String::new();
    let (sent, read) = tokio::join!(
        async {
            to.write_all(text.as_bytes()).await?;
            to.shutdown().await
        },
        from.read_to_string(&mut all)
    );
    sent.expect("all was sent");
    read.expect("an end");
    assert!(all.len() == text.len() + 1 && all.starts_with('a') && all.ends_with(&text));
    let record = router.record(|one| one.protocol == "tcp").await;
    assert_eq!(record.reason, Reason::Ok, "{record:?}");
    assert_eq!(record.listener.as_deref(), Some("default/gw/tcp"));
    assert_eq!(record.route.as_deref(), Some("default/r"));
    assert_eq!(record.bytes_in, text.len() as u64);
    assert_eq!(record.bytes_out, text.len() as u64 + 1);
    assert!(
        record
            .upstream
            .as_deref()
            .is_some_and(|one| one.starts_with("127.0.0.1:"))
    );

    // The other way round: the server says all first, and still hears its client.
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let (snapshot, at) = world(&[("b", 1, listener.local_addr().expect("it is bound"))]);
    let _router = Router::start(&snapshot);
    let server = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.expect("a connection");
        stream.write_all(b"bye").await.expect("room");
        stream.shutdown().await.expect("it closes");
        let mut all = String::new();
        stream.read_to_string(&mut all).await.expect("an end");
        all
    });
    let mut stream = connect(None, at).await;
    let mut all = String::new();
    stream.read_to_string(&mut all).await.expect("an end");
    assert_eq!(all, "bye");
    stream
        .write_all(b"and one thing more")
        .await
        .expect("it is taken");
    stream.shutdown().await.expect("it closes");
    assert_eq!(server.await.expect("it ends"), "and one thing more");
}

#[tokio::test]
async fn proxy_tcp_route_shares_connections_by_weight() {
    let (a, b, c) = (parrot("a").await, parrot("b").await, parrot("c").await);
    let (snapshot, at) = world(&[("a", 3, a), ("b", 1, b), ("c", 0, c)]);
    let _router = Router::start(&snapshot);
    let mut counts = [0; 3];
    for _ in 0..400 {
        let name = first(at).await.expect("a name");
        counts[usize::from(name - b'a')] += 1;
    }
    // 300 on average; seven standard deviations are 61.
    assert!((239..=361).contains(&counts[0]), "{counts:?}");
    assert_eq!(counts[2], 0, "{counts:?}");
    let (snapshot, at) = world(&[("c", 0, c)]);
    let router = Router::start(&snapshot);
    assert_eq!(first(at).await, None);
    router.reason(Reason::NoTarget).await;
}

#[tokio::test]
async fn proxy_tcp_route_of_two_the_older_serves() {
    let (a, b) = (parrot("a").await, parrot("b").await);
    let at = free_port();
    let to = |name| format!("rules: [{{ backendRefs: {} }}]", weighted(&[(name, 1)]));
    let mut text = gateway(&[format!("{{ name: tcp, port: {at}, protocol: TCP }}")]);
    text.push_str(&route("TCPRoute", "a-younger", NEW, &to("b")));
    text.push_str(&route("TCPRoute", "z-older", OLD, &to("a")));
    text.push_str(&backend("a", &[a]));
    text.push_str(&backend("b", &[b]));
    let snapshot = crate::documents::snapshot(&text);
    let warnings: Vec<_> = snapshot.warnings.iter().map(ToString::to_string).collect();
    assert!(
        matches!(&warnings[..], [one] if one.contains("a-younger") && one.contains("serves nothing of listener `tcp`")),
        "{warnings:?}"
    );
    let _router = Router::start(&snapshot);
    let at = (Ipv4Addr::LOCALHOST, at).into();
    for _ in 0..10 {
        assert_eq!(first(at).await, Some(b'a'));
    }
}

#[tokio::test]
async fn proxy_tcp_route_ends_what_is_silent() {
    let (snapshot, at) = world(&[("a", 1, parrot("a").await)]);
    let config = ProxyConfig {
        stream_idle: Duration::from_secs(2),
        ..ProxyConfig::default()
    };
    let router = Router::with(&snapshot, config);
    let mut stream = connect(None, at).await;
    let mut all = [0; 16];
    assert_eq!(stream.read(&mut all).await.expect("a name"), 1);
    for _ in 0..4 {
        tokio::time::sleep(Duration::from_millis(750)).await;
        stream.write_all(b"x").await.expect("it is taken");
        assert_eq!(stream.read(&mut all).await.expect("an echo"), 1);
    }
    let ended = stream.read(&mut all).await;
    assert!(matches!(ended, Ok(0) | Err(_)), "{ended:?}");
    let record = router.reason(Reason::IdleTimeout).await;
    assert_eq!((record.bytes_in, record.bytes_out), (4, 5));
}

#[tokio::test]
async fn proxy_tcp_route_tries_the_next_address_and_closes_without_one() {
    let dead = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()));
    let live = parrot("a").await;
    let (mut snapshot, at) = world(&[("a", 1, live)]);
    let upstream = |at: SocketAddr| snapshot::model::Upstream::Tcp {
        host: snapshot::model::UpstreamHost::Address(at.ip()),
        port: crate::support::port(at.port()),
        tls: None,
    };
    snapshot.l4_routes[0].backends[0].upstreams = vec![upstream(dead), upstream(live)];
    let _router = Router::start(&snapshot);
    for _ in 0..8 {
        assert_eq!(first(at).await, Some(b'a'));
    }
    let (snapshot, at) = world(&[("gone", 1, dead)]);
    let router = Router::start(&snapshot);
    assert_eq!(first(at).await, None);
    router.reason(Reason::UpstreamConnect).await;
}

#[tokio::test]
async fn proxy_tcp_route_lets_connections_end_when_it_goes_or_the_router_does() {
    let (snapshot, at) = world(&[("a", 1, parrot("a").await)]);
    let router = Router::start(&snapshot);
    let mut open = connect(None, at).await;
    let mut name = [0];
    open.read_exact(&mut name).await.expect("a name");
    let mut gone = snapshot.clone();
    gone.gateways.clear();
    gone.l4_routes.clear();
    router.publish(&gone, 2);
    until("the listener is closed", || {
        std::net::TcpStream::connect(at).is_err()
    })
    .await;
    assert_eq!(said(&mut open, "still here").await, "still here");

    let router = Router::start(&snapshot);
    let mut open = connect(None, at).await;
    open.read_exact(&mut name).await.expect("a name");
    let stop = tokio::spawn(router.proxy.shutdown(SURELY));
    until("it drains", || std::net::TcpStream::connect(at).is_err()).await;
    assert_eq!(said(&mut open, "to the end").await, "to the end");
    assert_eq!(stop.await.expect("it stops"), 0);

    let router = Router::start(&snapshot);
    let mut open = connect(None, at).await;
    open.read_exact(&mut name).await.expect("a name");
    assert_eq!(router.proxy.shutdown(Duration::from_millis(200)).await, 1);
    let ended = open.read(&mut name).await;
    assert!(matches!(ended, Ok(0) | Err(_)), "{ended:?}");
}

#[tokio::test]
async fn proxy_tcp_route_is_no_way_around_a_gate() {
    for (gate, reason) in [
        (Some(Gate::External), Some(Reason::NorthFromCell)),
        (Some(Gate::Internal), Some(Reason::EastNotDeclared)),
        (None, None),
    ] {
        let (mut snapshot, at) = world(&[("a", 1, parrot("a").await)]);
        let pod = Ipv4Addr::new(127, 0, 0, 9).into();
        let cell = cell("shop", "orders", pod, 1);
        snapshot.cells.insert(cell.id.clone(), cell.into());
        let own = snapshot.gateways.get_mut(&object("gw")).expect("a gateway");
        own.gate = gate;
        let config = ProxyConfig {
            loopback: true,
            ..ProxyConfig::default()
        };
        let router = Router::with(&snapshot, config);
        let mut stream = connect(Some(pod), at).await;
        let mut all = [0];
        let read = stream.read(&mut all).await;
        match reason {
            Some(reason) => {
                assert!(matches!(read, Ok(0) | Err(_)), "{read:?}");
                router.reason(reason).await;
            }
            None => assert_eq!(read.expect("a name"), 1),
        }
        // Who is no component passes.
        assert_eq!(first(at).await, Some(b'a'));
    }
}
