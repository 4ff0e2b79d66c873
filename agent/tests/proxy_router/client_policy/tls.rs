//! How the policy of a listener has TLS begin.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use cardinal_agent::proxy::Reason;
use rustls::{CipherSuite, ProtocolVersion};
use rustls_pki_types::ServerName;

use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::{policy_of, secure};
use crate::support::{Router, connect, echo, free_port};
use crate::tcp_routes::gateway;
use crate::tls::Authority;

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
