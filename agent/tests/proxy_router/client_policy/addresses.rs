//! Whose address a request has: behind proxies that tell it in a header, or in front of the connection's bytes.

use std::net::{Ipv4Addr, SocketAddr};

use cardinal_agent::proxy::Reason;
use http::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::{FORWARDED, MADE, policy, secure, with, world};
use crate::access;
use crate::support::{
    Body, Reply, Router, backend, connect, echo, free_port, raw, refs, reply, send, until, written,
};
use crate::tcp_routes::{gateway, parrot, route, weighted};
use crate::tls::Authority;

#[tokio::test]
async fn proxy_client_policy_finds_the_client_behind_proxies() {
    let up = echo("up").await;
    // Clients of 192.0.2.0/24 alone are let through.
    let allow = access::policy(
        "s",
        "kind: HTTPRoute, name: r",
        "  authorization: { rules: [{ action: Allow, principal: { clientCIDRs: [192.0.2.0/24] } }] }",
    );
    let hops = "clientIPDetection: { xForwardedFor: { numTrustedHops: 2 } }";
    let networks =
        "clientIPDetection: { xForwardedFor: { trustedCIDRs: [127.0.0.0/8, 10.0.0.0/8] } }";
    let strangers = "clientIPDetection: { xForwardedFor: { trustedCIDRs: [10.0.0.0/8] } }";
    let header = "clientIPDetection: { customHeader: { name: X-Real-Client, failClosed: true } }";
    let open = "clientIPDetection: { customHeader: { name: X-Real-Client } }";
    type Row = (
        &'static str,
        &'static [(&'static str, &'static str)],
        Result<&'static str, Reason>,
    );
    let rows: [Row; 10] = [
        (
            hops,
            &[(FORWARDED, "6.6.6.6, 192.0.2.7, 10.1.1.1")],
            Ok("192.0.2.7, 10.1.1.1, 127.0.0.1"),
        ),
        (hops, &[(FORWARDED, "192.0.2.7")], Err(Reason::AccessDenied)),
        (
            networks,
            &[(FORWARDED, "6.6.6.6, 192.0.2.7, 10.1.1.1")],
            Ok("192.0.2.7, 10.1.1.1, 127.0.0.1"),
        ),
        (
            networks,
            &[(FORWARDED, "192.0.2.7, 6.6.6.6, 10.1.1.1")],
            Err(Reason::AccessDenied),
        ),
        (
            strangers,
            &[(FORWARDED, "192.0.2.7, 10.1.1.1")],
            Err(Reason::AccessDenied),
        ),
        (
            header,
            &[("x-real-client", "192.0.2.7"), (FORWARDED, "6.6.6.6")],
            Ok("192.0.2.7, 127.0.0.1"),
        ),
        (header, &[], Err(Reason::ClientUnknown)),
        (
            header,
            &[("x-real-client", "unknown")],
            Err(Reason::ClientUnknown),
        ),
        (open, &[], Err(Reason::AccessDenied)),
        ("", &[(FORWARDED, "192.0.2.7")], Err(Reason::AccessDenied)),
    ];
    for (spec, headers, expected) in rows {
        let (snapshot, at) = match spec {
            "" => {
                let rule = format!("    - {{ {} }}", refs(&["up"]));
                written(&rule, &[("up", up)], &allow)
            }
            spec => world(spec, up, &allow),
        };
        let router = Router::start(&snapshot);
        let answer = send(at, with(headers)).await;
        match expected {
            Ok(way) => {
                assert_eq!(answer.status, StatusCode::OK, "{spec} {headers:?}");
                assert_eq!(answer.seen(FORWARDED), [way], "{spec} {headers:?}");
                let record = router.reason(Reason::Ok).await;
                assert_eq!(
                    record.client.as_deref(),
                    Some("192.0.2.7"),
                    "{spec} {headers:?}"
                );
            }
            Err(reason) => {
                assert_eq!(answer.status, StatusCode::FORBIDDEN, "{spec} {headers:?}");
                router.reason(reason).await;
            }
        }
    }
}

#[tokio::test]
async fn proxy_client_policy_detection_decides_who_may_set_a_routing_key() {
    let (alpha, beta) = (echo("alpha").await, echo("beta").await);
    let at = free_port();
    let mut text = gateway(&[format!("{{ name: http, port: {at}, protocol: HTTP }}")]);
    text.push_str(&route(
        "HTTPRoute",
        "r",
        MADE,
        "rules: [{ backendRefs: [{ group: cardinal.dev, kind: RoutingTable, name: tenants }] }]",
    ));
    text.push_str(&format!(
        "---
apiVersion: cardinal.dev/v1alpha1
kind: RoutingTable
metadata: {{ name: tenants }}
spec:
  version: '1'
  key: {{ trust: [{{ gateway: gw, sources: [192.0.2.0/24] }}] }}
  routingTable: {{ acme: beta }}
  placements: {{ alpha: {{ url: 'http://{alpha}' }}, beta: {{ url: 'http://{beta}' }} }}
  defaultPlacement: alpha
"
    ));
    text.push_str(&policy(
        "clientIPDetection: { xForwardedFor: { numTrustedHops: 1 } }",
    ));
    let _router = Router::start(&crate::documents::snapshot(&text));
    let at: SocketAddr = (Ipv4Addr::LOCALHOST, at).into();
    let key = ("x-routing-key", "acme");
    let trusted = send(at, with(&[key, ("x-forwarded-for", "192.0.2.7")])).await;
    assert_eq!(trusted.json()["name"], "beta");
    for headers in [&[key][..], &[key, ("x-forwarded-for", "198.51.100.7")]] {
        assert_eq!(send(at, with(headers)).await.status, StatusCode::FORBIDDEN);
    }
}

/// A header of version 2 for a connection of 192.0.2.7, port 4660.
fn binary_header() -> Vec<u8> {
    let mut bytes = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c".to_vec();
    bytes.extend_from_slice(&[192, 0, 2, 7, 127, 0, 0, 1, 0x12, 0x34, 0, 80]);
    bytes
}

#[tokio::test]
async fn proxy_client_policy_reads_proxy_headers_where_it_is_told_to_and_only_there() {
    const TEXT: &[u8] = b"PROXY TCP4 192.0.2.7 127.0.0.1 4660 80\r\n";
    const ASKED: &[u8] = b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
    let up = echo("up").await;
    let (snapshot, at) = world("enableProxyProtocol: true", up, "");
    let router = Router::start(&snapshot);
    for header in [TEXT.to_vec(), binary_header()] {
        let answer = raw(at, &[&header, ASKED].concat()).await;
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        assert!(
            answer.contains("[\"x-forwarded-for\",\"192.0.2.7\"]"),
            "{answer}"
        );
        let record = router
            .record(|one| one.client.as_deref() == Some("192.0.2.7:4660"))
            .await;
        assert_eq!(record.reason, Reason::Ok);
    }
    // The proxy's own connections, such as health checks.
    let own = raw(at, &[b"PROXY UNKNOWN\r\n", ASKED].concat()).await;
    assert!(own.contains("[\"x-forwarded-for\",\"127.0.0.1\"]"), "{own}");
    for bytes in [
        ASKED.to_vec(),
        b"PROXY TCP4 x y 1 2\r\n".to_vec(),
        vec![b'P'; 500],
    ] {
        assert_eq!(raw(at, &bytes).await, "", "no header, no answer");
    }
    let refused = || {
        let records = router.proxy.log().since(0);
        let refused = records.iter();
        refused
            .filter(|one| one.reason == Reason::ProxyHeader)
            .count()
    };
    until("all are refused", || refused() == 3).await;
    // Where nobody asked for it, it is no HTTP.
    let (snapshot, at) = world("enableProxyProtocol: false", up, "");
    let _router = Router::start(&snapshot);
    let answer = raw(at, &[TEXT, ASKED].concat()).await;
    assert!(
        answer.starts_with("HTTP/1.1 400") || answer.is_empty(),
        "{answer}"
    );

    // In front of TLS, and of plain TCP.
    let authority = Authority::new();
    let (snapshot, at) = secure(&authority, "proxyProtocol: {}", up);
    let _router = Router::start(&snapshot);
    let mut stream = connect(None, at).await;
    stream.write_all(TEXT).await.expect("it is taken");
    let stream = authority
        .handshake(stream, Some("a.example.com"), &["http/1.1"])
        .await;
    let answer = over(stream.expect("a handshake"), with(&[])).await;
    assert_eq!(answer.seen("x-forwarded-for"), ["192.0.2.7"]);

    let at = free_port();
    let mut text = gateway(&[format!("{{ name: tcp, port: {at}, protocol: TCP }}")]);
    let spec = format!("rules: [{{ backendRefs: {} }}]", weighted(&[("a", 1)]));
    text.push_str(&route("TCPRoute", "r", MADE, &spec));
    text.push_str(&backend("a", &[parrot("a:").await]));
    text.push_str(&policy("enableProxyProtocol: true"));
    let router = Router::start(&crate::documents::snapshot(&text));
    let mut stream = connect(None, (Ipv4Addr::LOCALHOST, at).into()).await;
    let bytes = [&binary_header()[..], b"hello"].concat();
    stream.write_all(&bytes).await.expect("it is taken");
    stream.shutdown().await.expect("it closes");
    let mut all = String::new();
    stream.read_to_string(&mut all).await.expect("an end");
    assert_eq!(all, "a:hello", "the header ends here");
    router
        .record(|one| one.client.as_deref() == Some("192.0.2.7:4660"))
        .await;
}

/// One request over a stream that is open already.
async fn over<T>(stream: T, mut request: Request<Body>) -> Reply
where
    T: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
{
    *request.uri_mut() = "/".parse().expect("a path");
    request
        .headers_mut()
        .insert("host", "a.example.com".parse().expect("a host"));
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .expect("a connection");
    tokio::spawn(connection);
    reply(sender.send_request(request).await.expect("an answer")).await
}
