//! `TLSRoute`: by server name, closed or terminated, beside HTTPS on one port.

use std::net::{Ipv4Addr, SocketAddr};

use cardinal_agent::proxy::Reason;
use http::StatusCode;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::client::TlsStream;

use crate::support::{
    Router, SURELY, backend, connect, echo, free_port, get, raw, refs, reply, until,
};
use crate::tcp_routes::{gateway, parrot, route, weighted};
use crate::tls::Authority;

const MADE: &str = "2026-01-01T00:00:00Z";

/// A server that ends TLS itself and says its name in it.
async fn secure(authority: &Authority, called: &'static str, names: &[&str]) -> SocketAddr {
    let acceptor = authority.acceptor(names);
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let at = listener.local_addr().expect("it is bound");
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                let mut stream = acceptor.accept(stream).await?;
                stream.write_all(called.as_bytes()).await?;
                stream.shutdown().await
            });
        }
    });
    at
}

fn routed(called: &str, hosts: &str, backends: &[(&str, u32)]) -> String {
    let spec = format!(
        "hostnames: [{hosts}], rules: [{{ backendRefs: {} }}]",
        weighted(backends)
    );
    route("TLSRoute", called, MADE, &spec)
}

/// What the other end says, or the error of the handshake.
async fn told(authority: &Authority, at: SocketAddr, name: Option<&str>) -> Result<String, String> {
    let stream = connect(None, at).await;
    let mut stream = authority
        .handshake(stream, name, &[])
        .await
        .map_err(|error| error.to_string())?;
    let mut all = String::new();
    stream
        .read_to_string(&mut all)
        .await
        .map_err(|error| error.to_string())?;
    Ok(all)
}

#[tokio::test]
async fn proxy_tls_route_passes_closed_tls_by_its_server_name() {
    let authority = Authority::new();
    let one = secure(&authority, "one", &["one.example.com"]).await;
    let wide = secure(&authority, "wide", &["*.example.com", "a.b.example.com"]).await;
    let at = free_port();
    let mut text = gateway(&[format!(
        "{{ name: tls, port: {at}, protocol: TLS, hostname: \"*.example.com\", tls: {{ mode: Passthrough }} }}"
    )]);
    // What the listener does not take is left out of the route.
    text.push_str(&routed(
        "one",
        "one.example.com, one.example.org",
        &[("one", 1)],
    ));
    text.push_str(&routed("wide", "\"*.example.com\"", &[("wide", 1)]));
    text.push_str(&backend("one", &[one]));
    text.push_str(&backend("wide", &[wide]));
    let router = Router::start(&crate::documents::snapshot(&text));
    let at: SocketAddr = (Ipv4Addr::LOCALHOST, at).into();
    for (name, expected) in [
        ("one.example.com", "one"),
        ("two.example.com", "wide"),
        ("a.b.example.com", "wide"),
        ("ONE.example.com", "one"),
    ] {
        let told = told(&authority, at, Some(name)).await;
        assert_eq!(told.as_deref(), Ok(expected), "{name}");
    }
    let record = router
        .record(|one| one.route.as_deref() == Some("default/one"))
        .await;
    assert_eq!(
        (record.protocol, record.reason),
        ("tls", Reason::Ok),
        "{record:?}"
    );
    assert_eq!(record.host.as_deref(), Some("one.example.com"));
    assert_eq!(record.listener.as_deref(), Some("default/gw/tls"));
    assert_eq!(record.upstream.as_deref(), Some(one.to_string().as_str()));
    assert!(record.bytes_in > 0 && record.bytes_out > 0);
    for name in [Some("one.example.org"), Some("example.com"), None] {
        let told = told(&authority, at, name).await;
        let error = told.expect_err("nobody takes the name");
        assert!(error.contains("eof"), "{name:?}: {error}");
    }
    let record = router
        .record(|one| one.host.as_deref() == Some("one.example.org"))
        .await;
    assert_eq!(record.reason, Reason::NoRoute, "{record:?}");
}

#[tokio::test]
async fn proxy_tls_route_terminates_and_goes_on_in_the_clear() {
    let authority = Authority::new();
    let at = free_port();
    let mut text = gateway(&[format!(
        "{{ name: tls, port: {at}, protocol: TLS, tls: {{ mode: Terminate, certificateRefs: [{{ name: cert }}] }} }}"
    )]);
    text.push_str(&routed(
        "r",
        "db.example.com, \"*.dbs.example.com\"",
        &[("a", 1)],
    ));
    text.push_str(&backend("a", &[parrot("plain:").await]));
    text.push_str(&authority.secret(
        "cert",
        &["db.example.com", "*.dbs.example.com", "x.example.com"],
    ));
    let router = Router::start(&crate::documents::snapshot(&text));
    let at: SocketAddr = (Ipv4Addr::LOCALHOST, at).into();
    for name in ["db.example.com", "one.dbs.example.com"] {
        let stream = connect(None, at).await;
        let mut stream = authority
            .handshake(stream, Some(name), &["h2"])
            .await
            .expect("a handshake");
        assert_eq!(
            stream.get_ref().1.alpn_protocol(),
            None,
            "what is inside is not known"
        );
        stream.write_all(b"select 1").await.expect("it is taken");
        stream.shutdown().await.expect("it closes");
        let mut all = String::new();
        stream.read_to_string(&mut all).await.expect("an end");
        assert_eq!(all, "plain:select 1");
    }
    let record = router
        .record(|one| one.host.as_deref() == Some("db.example.com"))
        .await;
    assert_eq!(record.reason, Reason::Ok, "{record:?}");
    assert_eq!(record.route.as_deref(), Some("default/r"));
    assert_eq!((record.bytes_in, record.bytes_out), (8, 14));
    let error = told(&authority, at, Some("x.example.com"))
        .await
        .expect_err("no route");
    assert!(error.to_lowercase().contains("unrecogni"), "{error}");
    router.reason(Reason::NoRoute).await;
}

async fn asked(stream: TlsStream<TcpStream>) -> StatusCode {
    let io = hyper_util::rt::TokioIo::new(stream);
    let (mut sender, connection) = hyper::client::conn::http1::handshake(io)
        .await
        .expect("a connection");
    tokio::spawn(connection);
    let mut request = get("/");
    request
        .headers_mut()
        .insert("host", "web.example.com".parse().expect("a host"));
    reply(sender.send_request(request).await.expect("an answer"))
        .await
        .status
}

#[tokio::test]
async fn proxy_tls_route_shares_a_port_in_both_modes_and_with_https() {
    let authority = Authority::new();
    let at = free_port();
    let mut text = gateway(&[
        format!(
            "{{ name: closed, port: {at}, protocol: TLS, hostname: closed.example.com, tls: {{ mode: Passthrough }} }}"
        ),
        format!(
            "{{ name: open, port: {at}, protocol: TLS, hostname: open.example.com, tls: {{ mode: Terminate, certificateRefs: [{{ name: cert }}] }} }}"
        ),
        format!(
            "{{ name: web, port: {at}, protocol: HTTPS, hostname: web.example.com, tls: {{ certificateRefs: [{{ name: cert }}] }} }}"
        ),
    ]);
    text.push_str(&routed("closed", "closed.example.com", &[("closed", 1)]));
    text.push_str(&routed("open", "open.example.com", &[("open", 1)]));
    text.push_str(&route(
        "HTTPRoute",
        "web",
        MADE,
        &format!("rules: [{{ {} }}]", refs(&["web"])),
    ));
    let closed = secure(&authority, "closed", &["closed.example.com"]).await;
    text.push_str(&backend("closed", &[closed]));
    text.push_str(&backend("open", &[parrot("open").await]));
    text.push_str(&backend("web", &[echo("web").await]));
    text.push_str(&authority.secret("cert", &["open.example.com", "web.example.com"]));
    let _router = Router::start(&crate::documents::snapshot(&text));
    let at: SocketAddr = (Ipv4Addr::LOCALHOST, at).into();
    assert_eq!(
        told(&authority, at, Some("closed.example.com"))
            .await
            .as_deref(),
        Ok("closed")
    );
    let mut stream = authority
        .handshake(connect(None, at).await, Some("open.example.com"), &[])
        .await
        .expect("a handshake");
    stream.shutdown().await.expect("it closes");
    let mut all = String::new();
    stream.read_to_string(&mut all).await.expect("an end");
    assert_eq!(all, "open");
    let error = told(&authority, at, Some("none.example.com")).await;
    let error = error.expect_err("nobody takes the name").to_lowercase();
    assert!(error.contains("unrecogni"), "{error}");
    let stream = authority
        .handshake(
            connect(None, at).await,
            Some("web.example.com"),
            &["http/1.1"],
        )
        .await;
    assert_eq!(asked(stream.expect("a handshake")).await, StatusCode::OK);
}

#[tokio::test]
async fn proxy_tls_route_of_a_narrow_listener_never_falls_back_to_a_wide_one() {
    let authority = Authority::new();
    let wide = secure(&authority, "wide", &["*.example.com"]).await;
    let at = free_port();
    let mut text = gateway(&[
        format!(
            "{{ name: wide, port: {at}, protocol: TLS, hostname: \"*.example.com\", tls: {{ mode: Passthrough }} }}"
        ),
        format!(
            "{{ name: narrow, port: {at}, protocol: TLS, hostname: one.example.com, tls: {{ mode: Passthrough }} }}"
        ),
    ]);
    let only_wide = routed("wide", "\"*.example.com\"", &[("wide", 1)])
        .replace("name: gw }", "name: gw, sectionName: wide }");
    text.push_str(&only_wide);
    text.push_str(&backend("wide", &[wide]));
    let router = Router::start(&crate::documents::snapshot(&text));
    let at: SocketAddr = (Ipv4Addr::LOCALHOST, at).into();
    assert_eq!(
        told(&authority, at, Some("two.example.com"))
            .await
            .as_deref(),
        Ok("wide")
    );
    told(&authority, at, Some("one.example.com"))
        .await
        .expect_err("the narrow listener has no route");
    let record = router.reason(Reason::NoRoute).await;
    assert_eq!(record.listener.as_deref(), Some("default/gw/narrow"));
}

#[tokio::test]
async fn proxy_tls_route_reads_no_more_than_a_client_hello_may_have() {
    let at = free_port();
    let mut text = gateway(&[format!(
        "{{ name: tls, port: {at}, protocol: TLS, tls: {{ mode: Passthrough }} }}"
    )]);
    text.push_str(&routed("r", "one.example.com", &[("a", 1)]));
    text.push_str(&backend("a", &[parrot("a").await]));
    let router = Router::start(&crate::documents::snapshot(&text));
    let at: SocketAddr = (Ipv4Addr::LOCALHOST, at).into();
    // An alert, and no byte of the backend's.
    let answer = raw(at, b"GET / HTTP/1.1\r\nhost: one.example.com\r\n\r\n").await;
    assert!(!answer.contains('a'), "{answer:?}");
    router.reason(Reason::NotTls).await;
    // A message of handshake that says it has 65,535 bytes, in records of 1,024 that never end.
    let mut stream = connect(None, at).await;
    let mut record = vec![22, 3, 1, 4, 0];
    record.resize(5 + 1024, 0);
    let mut first = record.clone();
    first[5..9].copy_from_slice(&[1, 0, 0xff, 0xff]);
    stream.write_all(&first).await.expect("it is taken");
    for _ in 0..20 {
        // It is cut off after 16 KiB.
        if stream.write_all(&record).await.is_err() {
            break;
        }
    }
    let mut rest = Vec::new();
    let cut = tokio::time::timeout(SURELY, stream.read_to_end(&mut rest)).await;
    let _either_way = cut.expect("the router ends it");
    let refused = || {
        let records = router.proxy.log().since(0);
        let refused = records.iter().filter(|one| one.reason == Reason::NotTls);
        refused.count()
    };
    until("both are refused", || refused() == 2).await;
}

#[tokio::test]
async fn proxy_tls_route_shares_connections_by_weight() {
    let authority = Authority::new();
    let at = free_port();
    let mut text = gateway(&[format!(
        "{{ name: tls, port: {at}, protocol: TLS, tls: {{ mode: Passthrough }} }}"
    )]);
    text.push_str(&routed(
        "r",
        "one.example.com",
        &[("a", 1), ("b", 1), ("c", 0)],
    ));
    for called in ["a", "b", "c"] {
        let at = secure(&authority, called, &["one.example.com"]).await;
        text.push_str(&backend(called, &[at]));
    }
    let _router = Router::start(&crate::documents::snapshot(&text));
    let at: SocketAddr = (Ipv4Addr::LOCALHOST, at).into();
    let mut names = String::new();
    for _ in 0..40 {
        names.push_str(
            &told(&authority, at, Some("one.example.com"))
                .await
                .expect("a name"),
        );
    }
    // The other one of two would be left out once in 2^39 runs.
    assert!(
        names.contains('a') && names.contains('b') && !names.contains('c'),
        "{names}"
    );
}
