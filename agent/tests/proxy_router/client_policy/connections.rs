//! What the policy of a listener says of its clients' connections: how many, how long, and when they end.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use cardinal_agent::proxy::Reason;
use http::{Request, Response, StatusCode};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::{MADE, policy, world};
use crate::support::{
    FOREVER, Router, SURELY, backend, connect, echo, free_port, full, get, http2, http2_with_end,
    raw, reply, send, serve, until,
};
use crate::tcp_routes::{gateway, parrot, route, weighted};

/// An upstream that sends `parts` of its answer, each after a pause.
async fn halting(parts: usize, pause: Duration) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let at = listener.local_addr().expect("it is bound");
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                if stream.read(&mut [0; 4096]).await? == 0 {
                    return Ok(());
                }
                let head = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n";
                stream.write_all(head).await?;
                for _ in 0..parts {
                    stream.write_all(b"5\r\npart \r\n").await?;
                    tokio::time::sleep(pause).await;
                }
                stream.write_all(b"0\r\n\r\n").await
            });
        }
    });
    at
}

/// What still comes before the connection ends, with or without a reset.
async fn rest(stream: &mut TcpStream) -> Vec<u8> {
    let mut rest = Vec::new();
    let read = tokio::time::timeout(SURELY, stream.read_to_end(&mut rest));
    let _ended = read.await.expect("it is closed");
    rest
}

#[tokio::test]
async fn proxy_client_policy_has_times_of_its_own() {
    let up = echo("up").await;
    // The rest of a request.
    let spec = "timeout: { http: { requestReceivedTimeout: 2s } }";
    let (snapshot, at) = world(spec, up, "");
    let router = Router::start(&snapshot);
    let mut stream = connect(None, at).await;
    let head = b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 100000\r\n\r\n";
    stream.write_all(head).await.expect("it is taken");
    let mut answer = vec![0; 12];
    // Progress alone is not enough.
    for _ in 0..2000 {
        let read = stream.read_exact(&mut answer);
        if let Ok(read) = tokio::time::timeout(Duration::from_millis(50), read).await {
            read.expect("an answer");
            break;
        }
        stream.write_all(b"x").await.expect("it is taken");
    }
    assert_eq!(answer, b"HTTP/1.1 408");
    router.reason(Reason::RequestTimeout).await;
    let quick = send(at, get("http://x/")).await;
    assert_eq!(quick.status, StatusCode::OK);

    // The next request of a connection.
    let spec = "timeout: { http: { idleTimeout: 2s } }";
    let (snapshot, at) = world(spec, up, "");
    let _router = Router::start(&snapshot);
    let mut stream = connect(None, at).await;
    stream
        .write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
        .await
        .expect("it is taken");
    let mut all = String::new();
    let read = tokio::time::timeout(SURELY, stream.read_to_string(&mut all));
    read.await.expect("it is closed").expect("an end");
    assert!(all.starts_with("HTTP/1.1 200"), "{all}");

    // The next part of an answer.
    let spec = "timeout: { http: { streamIdleTimeout: 2s } }";
    let steady = halting(6, Duration::from_millis(500)).await;
    let (snapshot, at) = world(spec, steady, "");
    let _router = Router::start(&snapshot);
    assert_eq!(
        send(at, get("http://x/")).await.body.len(),
        30,
        "each part came in time"
    );
    let stuck = halting(2, FOREVER).await;
    let (snapshot, at) = world(spec, stuck, "");
    let router = Router::start(&snapshot);
    let mut stream = connect(None, at).await;
    stream
        .write_all(b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
        .await
        .expect("it is taken");
    let answer = rest(&mut stream).await;
    let answer = String::from_utf8_lossy(&answer);
    assert!(
        answer.contains("part ") && !answer.ends_with("0\r\n\r\n"),
        "{answer}"
    );
    router.reason(Reason::UpstreamTimeout).await;
    let silent = serve(|_: Request<hyper::body::Incoming>| async {
        tokio::time::sleep(FOREVER).await;
        Response::new(full(String::new()))
    })
    .await;
    let (snapshot, at) = world(spec, silent, "");
    let _router = Router::start(&snapshot);
    let answer = send(at, get("http://x/")).await;
    assert_eq!(answer.status, StatusCode::GATEWAY_TIMEOUT);

    // The next byte of what nobody reads.
    let at = free_port();
    let mut text = gateway(&[format!("{{ name: tcp, port: {at}, protocol: TCP }}")]);
    let to = format!("rules: [{{ backendRefs: {} }}]", weighted(&[("a", 1)]));
    text.push_str(&route("TCPRoute", "r", MADE, &to));
    text.push_str(&backend("a", &[parrot("a").await]));
    text.push_str(&policy("timeout: { tcp: { idleTimeout: 200ms } }"));
    let router = Router::start(&crate::documents::snapshot(&text));
    let mut stream = connect(None, (Ipv4Addr::LOCALHOST, at).into()).await;
    rest(&mut stream).await;
    router.reason(Reason::IdleTimeout).await;
}

#[tokio::test]
async fn proxy_client_policy_limits_connections() {
    let up = echo("up").await;
    let spec = "connection: { connectionLimit: { value: 2, closeDelay: 100ms } }";
    let (snapshot, at) = world(spec, up, "");
    let router = Router::start(&snapshot);
    let (mut one, two) = (http2(at).await, http2(at).await);
    for sender in [&mut one, &mut two.clone()] {
        let answer = sender.send_request(get("http://x/")).await;
        assert_eq!(answer.expect("an answer").status(), StatusCode::OK);
    }
    let asked = b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
    assert_eq!(raw(at, asked).await, "", "there is no room");
    router.reason(Reason::ConnectionLimit).await;
    // What is open counts in the next generation as well.
    router.publish(&snapshot, 2);
    assert_eq!(raw(at, asked).await, "", "there is no room");
    drop(one);
    let mut answer = String::new();
    for _ in 0..200 {
        answer = raw(at, asked).await;
        if !answer.is_empty() {
            break;
        }
    }
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    drop(two);
}

async fn says_goodbye(ended: tokio::task::JoinHandle<hyper::Result<()>>) {
    let ended = tokio::time::timeout(SURELY, ended).await;
    ended
        .expect("it ends")
        .expect("no panic")
        .expect("with a goodbye");
}

#[tokio::test]
async fn proxy_client_policy_ends_a_connection_with_its_last_request() {
    let up = echo("up").await;
    let spec = "connection: { connectionLimit: { value: 9, maxRequestsPerConnection: 2 } }";
    let (snapshot, at) = world(spec, up, "");
    let _router = Router::start(&snapshot);
    let three = b"GET / HTTP/1.1\r\nhost: x\r\n\r\n".repeat(3);
    let answer = raw(at, &three).await;
    assert_eq!(answer.matches("HTTP/1.1 200").count(), 2, "{answer}");
    assert_eq!(answer.matches("connection: close").count(), 1, "{answer}");
    let (mut sender, ended) = http2_with_end(at).await;
    for _ in 0..2 {
        let answer = sender
            .send_request(get("http://x/"))
            .await
            .expect("an answer");
        assert_eq!(reply(answer).await.status, StatusCode::OK);
    }
    says_goodbye(ended).await;
}

/// A request on a connection that stays open, and the answer as far as it has come.
async fn ask(stream: &mut TcpStream) -> String {
    let asked = b"GET / HTTP/1.1\r\nhost: x\r\n\r\n";
    stream.write_all(asked).await.expect("it is taken");
    let mut answer = vec![0; 4096];
    let read = stream.read(&mut answer).await.expect("an answer");
    String::from_utf8_lossy(&answer[..read]).into_owned()
}

async fn end(stream: &mut TcpStream) -> usize {
    let mut rest = Vec::new();
    let read = tokio::time::timeout(SURELY, stream.read_to_end(&mut rest));
    read.await.expect("it is closed").expect("without a reset")
}

#[tokio::test]
async fn proxy_client_policy_ends_connections_that_are_old() {
    let up = echo("up").await;
    let age = "connection: { connectionLimit: { maxConnectionDuration: 2s } }";
    let (snapshot, at) = world(age, up, "");
    let _router = Router::start(&snapshot);
    // Whoever asks too late is told with the answer.
    let mut stream = connect(None, at).await;
    let answer = ask(&mut stream).await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert!(!answer.contains("connection: close"), "{answer}");
    tokio::time::sleep(Duration::from_millis(2200)).await;
    let answer = ask(&mut stream).await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert!(answer.contains("connection: close"), "{answer}");
    end(&mut stream).await;
    // HTTP/2 has a word for it.
    let (mut sender, ended) = http2_with_end(at).await;
    let answer = sender.send_request(get("http://x/")).await;
    assert_eq!(answer.expect("an answer").status(), StatusCode::OK);
    says_goodbye(ended).await;

    // Without waiting for another request; one under way comes to its end.
    let steady = halting(10, Duration::from_millis(250)).await;
    let at_once = format!("{age}, http1: {{ disableSafeMaxConnectionDuration: true }}");
    for (up, parts) in [(up, 0), (steady, 10)] {
        let (snapshot, at) = world(&at_once, up, "");
        let _router = Router::start(&snapshot);
        let mut stream = connect(None, at).await;
        let first = ask(&mut stream).await;
        assert!(first.starts_with("HTTP/1.1 200"), "{first}");
        let mut rest = String::new();
        let read = tokio::time::timeout(SURELY, stream.read_to_string(&mut rest));
        read.await.expect("it is closed").expect("without a reset");
        assert_eq!((first + &rest).matches("part ").count(), parts);
    }
}

#[tokio::test]
async fn proxy_client_policy_ends_streams_that_take_too_long() {
    let spec = "connection: { connectionLimit: { maxStreamDuration: 2s } }";
    let long = halting(1000, Duration::from_millis(50)).await;
    let (snapshot, at) = world(spec, long, "");
    let router = Router::start(&snapshot);
    let mut stream = connect(None, at).await;
    let first = ask(&mut stream).await;
    assert!(first.starts_with("HTTP/1.1 200"), "{first}");
    let rest = rest(&mut stream).await;
    let rest = String::from_utf8_lossy(&rest);
    assert!(
        rest.contains("part ") && !rest.ends_with("0\r\n\r\n"),
        "{rest}"
    );
    router.reason(Reason::UpstreamTimeout).await;
    // What is over in time is whole, and the shorter limit of the two counts.
    let short = halting(3, Duration::from_millis(20)).await;
    for (policy, given) in [("1h", "2s"), ("2s", "1h")] {
        let spec = format!("connection: {{ connectionLimit: {{ maxStreamDuration: {given} }} }}");
        let more = crate::traffic_policy::policy(
            "t",
            "kind: HTTPRoute, name: r",
            &format!("timeout: {{ http: {{ maxStreamDuration: {policy} }} }}"),
        );
        let (snapshot, at) = world(&spec, short, &more);
        let _router = Router::start(&snapshot);
        assert_eq!(send(at, get("http://x/")).await.body.len(), 15);
        let (snapshot, at) = world(&spec, long, &more);
        let router = Router::start(&snapshot);
        let asked = b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
        let answer = raw(at, asked).await;
        assert!(!answer.ends_with("0\r\n\r\n"), "{answer}");
        router.reason(Reason::UpstreamTimeout).await;
    }
}

/// Settings of HTTP/2 that the router begins with, and the increment of the connection's window.
async fn settings(at: SocketAddr) -> (Vec<(u16, u32)>, u32) {
    let mut stream = connect(None, at).await;
    let hello = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
    stream.write_all(hello).await.expect("it is taken");
    let (mut told, mut window) = (Vec::new(), 0);
    while told.is_empty() || window == 0 {
        let mut head = [0; 9];
        stream.read_exact(&mut head).await.expect("a frame");
        let length = usize::from(head[1]) << 8 | usize::from(head[2]);
        let mut payload = vec![0; length];
        stream.read_exact(&mut payload).await.expect("a frame");
        match head[3] {
            4 => told.extend(payload.chunks_exact(6).map(|one| {
                let name = u16::from_be_bytes([one[0], one[1]]);
                (name, u32::from_be_bytes([one[2], one[3], one[4], one[5]]))
            })),
            8 => window = u32::from_be_bytes(payload.try_into().expect("four bytes")),
            _ => {}
        }
    }
    (told, window)
}

#[tokio::test]
async fn proxy_client_policy_sets_the_limits_of_http2() {
    let up = echo("up").await;
    let spec = "http2: { initialStreamWindowSize: 128Ki, initialConnectionWindowSize: 200000, maxConcurrentStreams: 7 }";
    let (snapshot, at) = world(spec, up, "");
    let _router = Router::start(&snapshot);
    let (told, window) = settings(at).await;
    assert!(told.contains(&(3, 7)), "{told:?}");
    assert!(told.contains(&(4, 128 << 10)), "{told:?}");
    // A connection begins with 65,535 (RFC 9113, section 6.9.2).
    assert_eq!(window, 200_000 - 65_535);
}

/// Until the kernel's next keep-alive probe of the server's end of a connection, in hundredths of a second; none while it
/// waits for something else.
fn probe_after(at: SocketAddr, client: SocketAddr) -> Option<u64> {
    let hex = |address: SocketAddr| match address {
        SocketAddr::V4(v4) => format!(
            "{:08X}:{:04X}",
            u32::from_ne_bytes(v4.ip().octets()),
            v4.port()
        ),
        SocketAddr::V6(_) => unreachable!("the tests listen on IPv4"),
    };
    let table = std::fs::read_to_string("/proc/net/tcp").expect("procfs");
    let line = table
        .lines()
        .map(|line| line.split_ascii_whitespace().collect::<Vec<_>>())
        .find(|fields| fields[1] == hex(at) && fields[2] == hex(client))
        .expect("the connection is there");
    // Timer 2 is that of keep-alive (proc(5)).
    let (timer, after) = line[5].split_once(':').expect("a timer and its time");
    (timer == "02").then(|| u64::from_str_radix(after, 16).expect("a number"))
}

#[tokio::test]
async fn proxy_client_policy_sets_keep_alive() {
    let up = echo("up").await;
    let spec = "tcpKeepalive: { idleTime: 1000s, interval: 10s, probes: 3 }";
    let (snapshot, at) = world(spec, up, "");
    let _router = Router::start(&snapshot);
    let mut stream = connect(None, at).await;
    stream
        .write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
        .await
        .expect("it is taken");
    stream.read_exact(&mut [0; 12]).await.expect("an answer");
    let client = stream.local_addr().expect("it is bound");
    // Until the answer is acknowledged, the timer is that of sending again.
    until("a probe in a thousand seconds", || {
        probe_after(at, client).is_some_and(|left| (90_000..=100_100).contains(&left))
    })
    .await;
}
