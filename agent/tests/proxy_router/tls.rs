//! TLS of listeners: certificates by server name, both codecs, misdirected requests.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use cardinal_agent::compile::route::compile;
use cardinal_agent::proxy::Reason;
use http::StatusCode;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rcgen::{
    CertificateParams, CertificateRevocationListParams, CertifiedIssuer, KeyPair,
    RevokedCertParams, SerialNumber, date_time_ymd,
};
use rustls::RootCertStore;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use sha2::{Digest, Sha256};
use snapshot::Snapshot;
use snapshot::model::{Certificate, Listener, ListenerProtocol};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::support::{
    Reply, Router, echo, empty, free_port, gateway, get, listener, object, prefix, reply, route,
    rule, shared, source, to,
};

/// An authority of a test.
pub(crate) struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
}

impl Authority {
    pub(crate) fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).expect("no names");
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        // No two have one name.
        static NUMBER: AtomicUsize = AtomicUsize::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("authority {number}");
        params
            .distinguished_name
            .push(rcgen::DnType::CommonName, name);
        let key = KeyPair::generate().expect("a key");
        Self {
            issuer: CertifiedIssuer::self_signed(params, key).expect("it signs itself"),
        }
    }

    pub(crate) fn roots(&self) -> RootCertStore {
        let mut roots = RootCertStore::empty();
        roots.add(self.issuer.der().clone()).expect("a root");
        roots
    }

    /// Its own certificate in PEM form.
    pub(crate) fn pem(&self) -> String {
        self.issuer.pem()
    }

    /// A list in PEM form of what it revoked, good until the year `until`.
    pub(crate) fn revoked(&self, certificates: &[&Issued], until: i32) -> String {
        let revoked = certificates.iter().map(|one| RevokedCertParams {
            serial_number: one.serial(),
            revocation_time: date_time_ymd(2020, 1, 2),
            reason_code: None,
            invalidity_date: None,
        });
        let params = CertificateRevocationListParams {
            this_update: date_time_ymd(2020, 1, 3),
            next_update: date_time_ymd(until, 1, 1),
            crl_number: 1u64.into(),
            issuing_distribution_point: None,
            revoked_certs: revoked.collect(),
            key_identifier_method: rcgen::KeyIdMethod::Sha256,
        };
        let list = params.signed_by(&self.issuer).expect("it signs");
        list.pem().expect("it is DER")
    }

    /// A certificate with a common name and these alternative names; one with `://` is a URI, and one with
    /// `@` an address of mail.
    pub(crate) fn issue(&self, common: &str, names: &[&str]) -> Issued {
        let (uris, hosts): (Vec<&str>, Vec<&str>) =
            names.iter().partition(|name| name.contains("://"));
        let (mails, hosts): (Vec<&str>, Vec<&str>) =
            hosts.into_iter().partition(|name| name.contains('@'));
        let hosts: Vec<String> = hosts.into_iter().map(str::to_owned).collect();
        let mut params = CertificateParams::new(hosts).expect("names");
        for mail in mails {
            let mail = rcgen::SanType::Rfc822Name(mail.try_into().expect("ASCII"));
            params.subject_alt_names.push(mail);
        }
        params.distinguished_name = rcgen::DistinguishedName::new();
        params
            .distinguished_name
            .push(rcgen::DnType::CommonName, common);
        for uri in uris {
            let uri = rcgen::SanType::URI(uri.try_into().expect("ASCII"));
            params.subject_alt_names.push(uri);
        }
        let key = KeyPair::generate().expect("a key");
        let leaf = params.signed_by(&key, &self.issuer).expect("it is signed");
        Issued { leaf, key }
    }

    pub(crate) fn certificate(&self, called: &str, names: &[&str]) -> Certificate {
        let issued = self.issue(called, names);
        Certificate {
            name: object(called),
            declared: source(),
            not_after: i64::MAX,
            names: names.iter().map(|one| (*one).to_owned()).collect(),
            chain: issued.chain(),
            key: issued.key(),
        }
    }

    /// A certificate for these names as a document of its own.
    pub(crate) fn secret(&self, called: &str, names: &[&str]) -> String {
        let names: Vec<String> = names.iter().map(|one| (*one).to_owned()).collect();
        let key = KeyPair::generate().expect("a key");
        let params = CertificateParams::new(names).expect("names");
        let leaf = params.signed_by(&key, &self.issuer).expect("it is signed");
        let indented = |pem: String| pem.trim().replace('\n', "\n    ");
        format!(
            "---
apiVersion: v1
kind: Secret
metadata: {{ name: {called} }}
type: kubernetes.io/tls
stringData:
  tls.crt: |
    {}
  tls.key: |
    {}
",
            indented(leaf.pem()),
            indented(key.serialize_pem())
        )
    }

    /// What a server that ends TLS itself needs.
    pub(crate) fn acceptor(&self, names: &[&str]) -> tokio_rustls::TlsAcceptor {
        let certificate = self.certificate("server", names);
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_no_client_auth()
            .with_single_cert(certificate.chain, certificate.key)
            .expect("a certificate");
        tokio_rustls::TlsAcceptor::from(Arc::new(config))
    }

    /// A client's handshake, for `name` or without one.
    pub(crate) async fn handshake(
        &self,
        stream: TcpStream,
        name: Option<&str>,
        alpn: &[&str],
    ) -> std::io::Result<TlsStream<TcpStream>> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut config = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_root_certificates(self.roots())
            .with_no_client_auth();
        config.alpn_protocols = alpn.iter().map(|one| one.as_bytes().to_vec()).collect();
        config.enable_sni = name.is_some();
        let name = ServerName::try_from(name.unwrap_or("no-sni.example").to_owned());
        TlsConnector::from(Arc::new(config))
            .connect(name.expect("a name"), stream)
            .await
    }
}

/// A certificate with its key.
pub(crate) struct Issued {
    leaf: rcgen::Certificate,
    key: KeyPair,
}

impl Issued {
    pub(crate) fn chain(&self) -> Vec<CertificateDer<'static>> {
        vec![self.leaf.der().clone()]
    }

    pub(crate) fn key(&self) -> PrivateKeyDer<'static> {
        PrivateKeyDer::try_from(self.key.serialize_der()).expect("a key")
    }

    fn serial(&self) -> SerialNumber {
        let (_, leaf) = X509Certificate::from_der(self.leaf.der()).expect("a certificate");
        leaf.raw_serial().to_vec().into()
    }

    /// SHA-256 of the certificate and of its public key.
    pub(crate) fn hashes(&self) -> [Vec<u8>; 2] {
        let (_, leaf) = X509Certificate::from_der(self.leaf.der()).expect("a certificate");
        [self.leaf.der().as_ref(), leaf.public_key().raw]
            .map(|bytes| Sha256::digest(bytes).to_vec())
    }

    /// A `Secret` with it.
    pub(crate) fn secret(&self, called: &str) -> String {
        format!(
            "---
apiVersion: v1
kind: Secret
metadata: {{ name: {called} }}
type: kubernetes.io/tls
stringData:
  tls.crt: {}
  tls.key: {}
",
            quoted(&self.leaf.pem()),
            quoted(&self.key.serialize_pem())
        )
    }
}

/// A text with its line breaks, as YAML and JSON write it in one line.
pub(crate) fn quoted(text: &str) -> String {
    serde_json::to_string(text).expect("it is text")
}

struct Fixture {
    authority: Authority,
    at: std::net::SocketAddr,
    _router: Router,
}

pub(crate) fn https(called: &str, at: u16, hostname: Option<&str>, certificate: &str) -> Listener {
    Listener {
        protocol: ListenerProtocol::Https {
            certificates: vec![object(certificate)],
        },
        ..listener(called, at, hostname)
    }
}

/// Listeners for `*.wild.org`, `four.wild.org`, `second.org`, and with `catch_all` one for the rest.
async fn snapshot(authority: &Authority, at: u16, catch_all: bool) -> Snapshot {
    let up = echo("a").await;
    let mut snapshot = empty();
    for (called, names) in [
        ("main", &["first.org"][..]),
        ("second", &["second.org"]),
        ("wild", &["*.wild.org"]),
    ] {
        let certificate = authority.certificate(called, names);
        snapshot
            .certificates
            .insert(certificate.name.clone(), Arc::new(certificate));
    }
    let mut listeners = vec![
        https("second", at, Some("second.org"), "second"),
        https("wild", at, Some("*.wild.org"), "wild"),
        https("four", at, Some("four.wild.org"), "wild"),
    ];
    if catch_all {
        listeners.push(https("all", at, None, "main"));
    }
    let gateway = gateway("gw", None, listeners);
    snapshot.gateways.insert(gateway.name.clone(), gateway);
    let hosts = ["first.org", "second.org", "*.wild.org"];
    snapshot.routes = shared(vec![route(
        "r",
        &hosts,
        vec![rule(vec![prefix("/")], vec![to(up)])],
    )]);
    snapshot
}

impl Fixture {
    async fn new(catch_all: bool) -> Self {
        let authority = Authority::new();
        let at = free_port();
        let snapshot = snapshot(&authority, at, catch_all).await;
        Self {
            authority,
            at: ([127, 0, 0, 1], at).into(),
            _router: Router::start(&snapshot),
        }
    }

    async fn ask(&self, sni: &str, host: &str, alpn: &[&str]) -> Reply {
        let stream = TcpStream::connect(self.at).await.expect("it listens");
        let tls = self
            .authority
            .handshake(stream, Some(sni), alpn)
            .await
            .expect("it shakes hands");
        let http2 = tls.get_ref().1.alpn_protocol() == Some(b"h2");
        let io = TokioIo::new(tls);
        if http2 {
            let (mut sender, connection) =
                hyper::client::conn::http2::handshake(TokioExecutor::new(), io)
                    .await
                    .expect("a connection");
            tokio::spawn(connection);
            let request = get(&format!("https://{host}/"));
            return reply(sender.send_request(request).await.expect("an answer")).await;
        }
        let (mut sender, connection) = hyper::client::conn::http1::handshake(io)
            .await
            .expect("a connection");
        tokio::spawn(connection);
        let mut request = get("/");
        request
            .headers_mut()
            .insert("host", host.parse().expect("a value"));
        reply(sender.send_request(request).await.expect("an answer")).await
    }
}

#[tokio::test]
async fn proxy_serves_tls_by_name_and_refuses_misdirected_requests() {
    let fixture = Fixture::new(true).await;
    for (sni, host, status) in [
        ("first.org", "first.org", 200),
        ("first.org", "FIRST.org.:443", 200),
        ("first.org", "second.org", 421),
        ("first.org", "unknown.org", 404),
        ("second.org", "second.org", 200),
        ("second.org", "first.org", 421),
        ("second.org", "unknown.org", 421),
        ("three.wild.org", "five.wild.org", 200),
        ("three.wild.org", "four.wild.org", 421),
        ("four.wild.org", "four.wild.org", 200),
    ] {
        for alpn in [&["h2", "http/1.1"][..], &["http/1.1"], &[]] {
            let answer = fixture.ask(sni, host, alpn).await;
            assert_eq!(answer.status, status, "{sni} {host} {alpn:?}");
            if status == 200 {
                assert_eq!(answer.seen("x-forwarded-proto"), ["https"]);
            }
        }
    }
    let misdirected = fixture.ask("first.org", "second.org", &["h2"]).await;
    assert_eq!(misdirected.status, StatusCode::MISDIRECTED_REQUEST);
}

#[tokio::test]
async fn proxy_refuses_names_and_certificates_that_are_not_good() {
    let fixture = Fixture::new(false).await;
    for name in [
        Some("unknown.org"),
        Some("first.org"),
        Some("wild.org"),
        None,
    ] {
        let stream = TcpStream::connect(fixture.at).await.expect("it listens");
        let refused = fixture.authority.handshake(stream, name, &[]).await;
        let text = refused.expect_err("no certificate").to_string();
        assert!(text.contains("UnrecognisedName"), "{text}");
    }
    fixture._router.reason(Reason::NoCertificate).await;

    let authority = Authority::new();
    let at = free_port();
    let mut snapshot = snapshot(&authority, at, true).await;
    let mut certificate = authority.certificate("main", &["first.org"]);
    certificate.not_after = 1_000_000_000;
    snapshot
        .certificates
        .insert(object("main"), Arc::new(certificate));
    let router = Router::start(&snapshot);
    let stream = TcpStream::connect(("127.0.0.1", at))
        .await
        .expect("it listens");
    authority
        .handshake(stream, Some("first.org"), &[])
        .await
        .expect_err("it expired");
    let record = router.reason(Reason::CertificateExpired).await;
    let detail = record.detail.as_deref().expect("a reason");
    assert!(
        detail.contains("default/main") && detail.contains("2001-09-09T01:46:40Z"),
        "{detail}"
    );
    assert_eq!(record.host.as_deref(), Some("first.org"));
}

#[tokio::test]
async fn proxy_compile_names_keys_that_do_not_belong_and_doubled_listeners() {
    let authority = Authority::new();
    let mut snapshot = snapshot(&authority, 443, true).await;
    let mut mixed = authority.certificate("main", &["first.org"]);
    mixed.key = authority.certificate("x", &["x.org"]).key;
    snapshot
        .certificates
        .insert(object("main"), Arc::new(mixed));
    let mut twin = gateway("twin", None, vec![https("all", 443, None, "second")]);
    twin.listeners
        .push(listener("plain", 443, Some("plain.org")));
    snapshot.gateways.insert(twin.name.clone(), twin);
    let mistakes = compile(&snapshot, 1).expect_err("three mistakes");
    let text: Vec<String> = mistakes.iter().map(ToString::to_string).collect();
    assert_eq!(text.len(), 3, "{text:?}");
    for part in [
        "does not belong",
        "already listener `default/gw/all`",
        "is for listeners of another protocol already",
    ] {
        assert!(
            text.iter().any(|one| one.contains(part)),
            "{part}: {text:?}"
        );
    }
}
