//! `ClientTrafficPolicy`: what a listener asks of its clients, and what it grants them.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use cardinal_agent::proxy::Reason;
use http::{Request, Response, StatusCode};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::{CipherSuite, ProtocolVersion};
use rustls_pki_types::ServerName;
use snapshot::Snapshot;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsConnector;

use crate::access;
use crate::support::{
    Body, FOREVER, Reply, Router, SURELY, backend, connect, echo, free_port, full, get, http2, raw,
    refs, reply, send, serve, until, written,
};
use crate::tcp_routes::{gateway, parrot, route, weighted};
use crate::tls::Authority;

mod messages;

const FORWARDED: &str = "x-forwarded-for";
const MADE: &str = "2026-01-01T00:00:00Z";

/// A policy of gateway `gw`; `spec` is in the flow style of YAML.
pub(crate) fn policy(spec: &str) -> String {
    policy_of("p", "", spec)
}

/// The same with this name, and for one listener unless `section` is empty.
pub(crate) fn policy_of(name: &str, section: &str, spec: &str) -> String {
    let section = match section {
        "" => String::new(),
        section => format!(", sectionName: {section}"),
    };
    format!(
        "---
apiVersion: gateway.envoyproxy.io/v1alpha1
kind: ClientTrafficPolicy
metadata: {{ name: {name} }}
spec: {{ targetRefs: [{{ group: gateway.networking.k8s.io, kind: Gateway, name: gw{section} }}], {spec} }}
"
    )
}

/// A listener of HTTP with a policy, and one route to an upstream; `more` are further documents.
fn world(spec: &str, up: SocketAddr, more: &str) -> (Snapshot, SocketAddr) {
    let rule = format!("    - {{ name: main, {} }}", refs(&["up"]));
    written(&rule, &[("up", up)], &format!("{}{more}", policy(spec)))
}

/// The same with TLS terminated, for `a.example.com`.
fn secure(authority: &Authority, spec: &str, up: SocketAddr) -> (Snapshot, SocketAddr) {
    let at = free_port();
    let mut text = gateway(&[format!(
        "{{ name: https, port: {at}, protocol: HTTPS, tls: {{ certificateRefs: [{{ name: cert }}] }} }}"
    )]);
    text.push_str(&route(
        "HTTPRoute",
        "r",
        MADE,
        &format!("rules: [{{ {} }}]", refs(&["up"])),
    ));
    text.push_str(&backend("up", &[up]));
    text.push_str(&authority.secret("cert", &["a.example.com"]));
    text.push_str(&policy(spec));
    let snapshot = crate::documents::snapshot(&text);
    (snapshot, (Ipv4Addr::LOCALHOST, at).into())
}

/// A request with these headers.
fn with(headers: &[(&str, &str)]) -> Request<Body> {
    let mut request = get("http://x/");
    for (name, value) in headers {
        let name: http::HeaderName = name.parse().expect("a header");
        request
            .headers_mut()
            .append(name, value.parse().expect("a header value"));
    }
    request
}

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

#[tokio::test]
async fn proxy_client_policy_settles_what_an_escaped_slash_is() {
    let up = echo("up").await;
    for (spec, target, status, path) in [
        ("", "/a%2Fb", 400, ""),
        ("escapedSlashesAction: RejectRequest", "/a%5Cb", 400, ""),
        ("escapedSlashesAction: KeepUnchanged", "/a/..%2Fb", 400, ""),
        (
            "escapedSlashesAction: KeepUnchanged",
            "/a%2fb/c%5cd",
            200,
            "/a%2Fb/c%5Cd",
        ),
        (
            "escapedSlashesAction: KeepUnchanged",
            "/x//y/../%2F/",
            200,
            "/x/%2F/",
        ),
        (
            "escapedSlashesAction: UnescapeAndForward",
            "/a%2Fb%5Cc",
            200,
            "/a/b/c",
        ),
        (
            "escapedSlashesAction: UnescapeAndForward",
            "/a/%2E%2E%2Fb",
            200,
            "/b",
        ),
        (
            "escapedSlashesAction: UnescapeAndForward",
            "/%2E%2E%2Fb",
            400,
            "",
        ),
        (
            "escapedSlashesAction: UnescapeAndRedirect",
            "/a%2Fb?q=%2F",
            307,
            "/a/b?q=%2F",
        ),
        (
            "escapedSlashesAction: UnescapeAndRedirect",
            "/a/b",
            200,
            "/a/b",
        ),
        ("disableMergeSlashes: true", "/a//b///", 200, "/a//b///"),
        ("disableMergeSlashes: true", "//", 200, "//"),
        ("disableMergeSlashes: true", "/a//../b", 200, "/a/b"),
        ("disableMergeSlashes: false", "/a//b", 200, "/a/b"),
    ] {
        let (snapshot, at) = world(&format!("path: {{ {spec} }}"), up, "");
        let _router = Router::start(&snapshot);
        let answer = send(at, get(&format!("http://x{target}"))).await;
        assert_eq!(answer.status.as_u16(), status, "{spec} {target}");
        match status {
            200 => assert_eq!(answer.json()["path"], path, "{spec} {target}"),
            307 => assert_eq!(answer.header("location"), Some(path), "{spec} {target}"),
            _ => {}
        }
    }
}

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
    let mut answer = Vec::new();
    let read = tokio::time::timeout(SURELY, stream.read_to_end(&mut answer));
    // It may end with a reset.
    let _ended = read.await.expect("it is closed");
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
    let mut all = Vec::new();
    let read = tokio::time::timeout(SURELY, stream.read_to_end(&mut all));
    // It may end with a reset.
    let _ended = read.await.expect("it is closed");
    router.reason(Reason::IdleTimeout).await;
}

/// A handshake with one version and perhaps one suite; the suite that was agreed on, and the protocol.
async fn agreed(
    authority: &Authority,
    at: SocketAddr,
    version: &'static rustls::SupportedProtocolVersion,
    suite: Option<CipherSuite>,
    alpn: &[&str],
) -> Result<(ProtocolVersion, CipherSuite, Option<Vec<u8>>), String> {
    let mut provider = rustls::crypto::aws_lc_rs::default_provider();
    if let Some(suite) = suite {
        provider.cipher_suites.retain(|one| one.suite() == suite);
    }
    let mut config = rustls::ClientConfig::builder_with_provider(Arc::new(provider))
        .with_protocol_versions(&[version])
        .expect("a version")
        .with_root_certificates(authority.roots())
        .with_no_client_auth();
    config.alpn_protocols = alpn.iter().map(|one| one.as_bytes().to_vec()).collect();
    let name = ServerName::try_from("a.example.com").expect("a name");
    let stream = TcpStream::connect(at).await.expect("somebody listens");
    let stream = TlsConnector::from(Arc::new(config))
        .connect(name, stream)
        .await;
    let stream = stream.map_err(|error| error.to_string())?;
    let session = stream.get_ref().1;
    let version = session.protocol_version().expect("it is done");
    let suite = session
        .negotiated_cipher_suite()
        .expect("it is done")
        .suite();
    Ok((version, suite, session.alpn_protocol().map(<[u8]>::to_vec)))
}

#[tokio::test]
async fn proxy_client_policy_chooses_versions_suites_and_protocols_of_tls() {
    use rustls::version::{TLS12, TLS13};
    const AES_128: CipherSuite = CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256;
    const AES_256: CipherSuite = CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384;
    let authority = Authority::new();
    let up = echo("up").await;
    type Row = (
        &'static str,
        &'static rustls::SupportedProtocolVersion,
        Option<CipherSuite>,
        &'static [&'static str],
        Option<&'static [u8]>,
        bool,
    );
    let rows: [Row; 12] = [
        ("minVersion: '1.3'", &TLS13, None, &[], None, true),
        ("minVersion: '1.3'", &TLS12, None, &[], None, false),
        ("maxVersion: '1.2'", &TLS12, None, &[], None, true),
        ("maxVersion: '1.2'", &TLS13, None, &[], None, false),
        (
            "ciphers: [ECDHE-ECDSA-AES256-GCM-SHA384]",
            &TLS12,
            Some(AES_256),
            &[],
            None,
            true,
        ),
        (
            "ciphers: [ECDHE-ECDSA-AES256-GCM-SHA384]",
            &TLS12,
            Some(AES_128),
            &[],
            None,
            false,
        ),
        (
            "ciphers: [ECDHE-ECDSA-AES256-GCM-SHA384]",
            &TLS13,
            None,
            &[],
            None,
            true,
        ),
        (
            "alpnProtocols: [http/1.1]",
            &TLS13,
            None,
            &["h2", "http/1.1"],
            Some(b"http/1.1"),
            true,
        ),
        (
            "alpnProtocols: [http/1.1]",
            &TLS13,
            None,
            &["h2"],
            None,
            false,
        ),
        (
            "alpnProtocols: [http/1.1, h2]",
            &TLS13,
            None,
            &["h2", "http/1.1"],
            Some(b"http/1.1"),
            true,
        ),
        ("alpnProtocols: []", &TLS13, None, &["h2"], None, true),
        (
            "minVersion: Auto",
            &TLS12,
            None,
            &["h2", "http/1.1"],
            Some(b"h2"),
            true,
        ),
    ];
    for (spec, version, suite, offered, protocol, works) in rows {
        let (snapshot, at) = secure(&authority, &format!("tls: {{ {spec} }}"), up);
        let router = Router::start(&snapshot);
        let done = agreed(&authority, at, version, suite, offered).await;
        assert_eq!(done.is_ok(), works, "{spec} {version:?}: {done:?}");
        match done {
            Ok((spoken, agreed, chosen)) => {
                assert_eq!(spoken, version.version, "{spec}");
                assert!(suite.is_none_or(|one| one == agreed), "{spec} {agreed:?}");
                assert_eq!(chosen.as_deref(), protocol, "{spec} {offered:?}");
            }
            Err(_) => {
                router.reason(Reason::TlsHandshake).await;
            }
        }
    }
}

#[tokio::test]
async fn proxy_client_policy_of_a_listener_is_for_its_server_names_alone() {
    let authority = Authority::new();
    let at = free_port();
    let mut text = gateway(&[
        format!(
            "{{ name: wide, port: {at}, protocol: HTTPS, tls: {{ certificateRefs: [{{ name: cert }}] }} }}"
        ),
        format!(
            "{{ name: strict, port: {at}, protocol: HTTPS, hostname: a.example.com, tls: {{ certificateRefs: [{{ name: cert }}] }} }}"
        ),
    ]);
    text.push_str(&authority.secret("cert", &["a.example.com", "b.example.com"]));
    text.push_str(&policy_of("p", "strict", "tls: { minVersion: '1.3' }"));
    let _router = Router::start(&crate::documents::snapshot(&text));
    let at: SocketAddr = (Ipv4Addr::LOCALHOST, at).into();
    let old = &rustls::version::TLS12;
    agreed(&authority, at, old, None, &[])
        .await
        .expect_err("the strict one wants 1.3");
    let stream = connect(None, at).await;
    let stream = authority
        .handshake(stream, Some("b.example.com"), &["h2"])
        .await;
    let stream = stream.expect("the other one does not");
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
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
    let stream = TcpStream::connect(at).await.expect("somebody listens");
    let (mut sender, connection) = hyper::client::conn::http2::handshake::<_, _, Body>(
        TokioExecutor::new(),
        TokioIo::new(stream),
    )
    .await
    .expect("a connection");
    let ended = tokio::spawn(connection);
    for _ in 0..2 {
        let answer = sender
            .send_request(get("http://x/"))
            .await
            .expect("an answer");
        assert_eq!(reply(answer).await.status, StatusCode::OK);
    }
    let ended = tokio::time::timeout(SURELY, ended).await;
    ended
        .expect("it ends")
        .expect("no panic")
        .expect("with a goodbye");
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
    let stream = TcpStream::connect(at).await.expect("somebody listens");
    let (mut sender, connection) = hyper::client::conn::http2::handshake::<_, _, Body>(
        TokioExecutor::new(),
        TokioIo::new(stream),
    )
    .await
    .expect("a connection");
    let ended = tokio::spawn(connection);
    let answer = sender.send_request(get("http://x/")).await;
    assert_eq!(answer.expect("an answer").status(), StatusCode::OK);
    let ended = tokio::time::timeout(SURELY, ended).await;
    ended
        .expect("it ends")
        .expect("no panic")
        .expect("with a goodbye");

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
    let mut rest = Vec::new();
    let read = tokio::time::timeout(SURELY, stream.read_to_end(&mut rest));
    // It may end with a reset.
    let _ended = read.await.expect("it is closed");
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

#[tokio::test]
async fn proxy_client_policy_answers_health_checks() {
    let up = echo("up").await;
    let (snapshot, at) = world("healthCheck: { path: /healthz }", up, "");
    let router = Router::start(&snapshot);
    let answer = send(at, get("http://192.0.2.99/healthz?x")).await;
    assert_eq!((answer.status, answer.body.len()), (StatusCode::OK, 0));
    router.reason(Reason::Answered).await;
    assert_eq!(
        send(at, get("http://x/healthz/")).await.json()["path"],
        "/healthz/"
    );
    let mut post = get("http://x/healthz");
    *post.method_mut() = http::Method::POST;
    assert_eq!(send(at, post).await.json()["method"], "POST");
}

#[tokio::test]
async fn proxy_client_policy_is_that_of_the_table_for_each_request() {
    let up = echo("up").await;
    let (before, at) = world("headers: { withUnderscoresAction: Allow }", up, "");
    let router = Router::start(&before);
    let stream = connect(None, at).await;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .expect("a connection");
    tokio::spawn(connection);
    let asked = || {
        let mut request = with(&[("x_user", "1"), ("host", "x")]);
        *request.uri_mut() = "/".parse().expect("a path");
        request
    };
    let answer = sender.send_request(asked()).await.expect("an answer");
    assert_eq!(reply(answer).await.seen("x_user"), ["1"]);
    let mut after = before.clone();
    for gateway in after.gateways.values_mut() {
        gateway.listeners[0].policy = None;
    }
    router.publish(&after, 2);
    let answer = sender.send_request(asked()).await.expect("an answer");
    assert_eq!(answer.status(), StatusCode::BAD_REQUEST);
}
