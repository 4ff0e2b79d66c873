//! What `ClientTrafficPolicy` documents mean, and for which listeners they are.

use std::num::NonZeroU16;
use std::time::Duration;

use snapshot::model::{
    Authorities, CertificateDetails, ClientDemand, ClientIp, ClientPolicy, EscapedSlashes,
    Http1End, NameKind, NameMatch, RequestIds, StringMatch, TlsVersions, ToldCertificate,
    Transport, Underscores,
};
use snapshot::{Rejections, Snapshot, SourceFile, parse};

fn read(text: &str) -> Result<Snapshot, Rejections> {
    parse(&[SourceFile::new("test.yaml", text)])
}

/// A gateway `edge` with these listeners, and policies: name, moment, listener and `spec` of each.
fn world(listeners: &str, policies: &[(&str, &str, &str, &str)]) -> Result<Snapshot, Rejections> {
    world_with(listeners, policies, "", "")
}

/// The same with more of the gateway's `spec`, and more documents.
fn world_with(
    listeners: &str,
    policies: &[(&str, &str, &str, &str)],
    spec: &str,
    more: &str,
) -> Result<Snapshot, Rejections> {
    let mut text = format!(
        "
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {{ name: edge }}
spec:
  gatewayClassName: cardinal
  addresses: [{{ value: 192.0.2.10 }}]
  listeners: [{listeners}]
  {spec}
"
    );
    for (name, created, listener, spec) in policies {
        let section = match *listener {
            "" => String::new(),
            listener => format!(", sectionName: {listener}"),
        };
        let created = match *created {
            "" => String::new(),
            created => format!(", creationTimestamp: \"{created}\""),
        };
        text.push_str(&format!(
            "---
apiVersion: gateway.envoyproxy.io/v1alpha1
kind: ClientTrafficPolicy
metadata: {{ name: {name}{created} }}
spec:
  targetRefs: [{{ group: gateway.networking.k8s.io, kind: Gateway, name: edge{section} }}]
  {spec}
"
        ));
    }
    text.push_str(more);
    read(&text)
}

/// A secret `c` with a certificate, and a `ConfigMap` `ca` with its authority, which is itself.
fn certificate() -> String {
    let key = rcgen::KeyPair::generate().expect("a key");
    let mut params = rcgen::CertificateParams::new(vec!["a.example".to_owned()]).expect("a name");
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let pem = params.self_signed(&key).expect("it signs itself").pem();
    let key = key.serialize_pem();
    format!(
        "---
apiVersion: v1
kind: Secret
metadata: {{ name: c }}
type: kubernetes.io/tls
stringData: {{ tls.crt: {pem:?}, tls.key: {key:?} }}
---
apiVersion: v1
kind: ConfigMap
metadata: {{ name: ca }}
data: {{ ca.crt: {pem:?} }}
"
    )
}

/// Listeners `a` of HTTPS and `b` of HTTP.
const HTTPS: &str = "{ name: a, port: 443, protocol: HTTPS, tls: { certificateRefs: [{ name: c }] } }, { name: b, port: 80, protocol: HTTP }";

const HTTP: &str = "{ name: a, port: 80, protocol: HTTP }, { name: b, port: 81, protocol: HTTP }";

fn taken(result: Result<Snapshot, Rejections>) -> Snapshot {
    result.unwrap_or_else(|rejections| panic!("{rejections}"))
}

/// The health path of each listener's policy, which tells them apart here; `-` for none.
fn paths(snapshot: &Snapshot) -> Vec<&str> {
    let listeners = snapshot.gateways.values().flat_map(|one| &one.listeners);
    listeners
        .map(|one| {
            let path = one.policy.as_ref().and_then(|one| one.health_path.as_ref());
            path.map_or("-", |path| path.as_str())
        })
        .collect()
}

fn policy(spec: &str) -> ClientPolicy {
    let snapshot = taken(world(HTTP, &[("p", "", "", spec)]));
    let gateway = snapshot.gateways.values().next().expect("it is there");
    let client = gateway.listeners[0].policy.as_ref();
    ClientPolicy::clone(client.expect("it has a policy"))
}

#[test]
fn every_field_has_its_meaning() {
    let nothing = policy("enableProxyProtocol: false");
    assert!(!nothing.entrance.proxy_protocol && nothing.merge_slashes);
    assert_eq!(nothing.underscores, Underscores::Reject);
    assert_eq!(nothing.escaped_slashes, EscapedSlashes::Reject);
    assert_eq!(nothing.client_ip, None);
    assert_eq!(nothing.timeouts, Default::default());
    assert_eq!(nothing.http2, Default::default());
    assert_eq!(nothing.tls, Default::default());
    assert_eq!((nothing.max_age, nothing.max_stream), (None, None));
    assert_eq!(nothing.http1_end, Http1End::NextAnswer);
    let aged = policy("connection: { connectionLimit: { maxConnectionDuration: 1s } }");
    assert_eq!(aged.entrance.limit, None);

    let all = policy(
        "enableProxyProtocol: true
  clientIPDetection: { xForwardedFor: { numTrustedHops: 2 } }
  path: { escapedSlashesAction: KeepUnchanged, disableMergeSlashes: true }
  headers: { withUnderscoresAction: DropHeader }
  timeout:
    http: { requestReceivedTimeout: 1s, idleTimeout: 2s, streamIdleTimeout: 3s }
    tcp: { idleTimeout: 4s }
  tls: { minVersion: '1.2', maxVersion: '1.2', ciphers: [ECDHE-RSA-AES128-GCM-SHA256], alpnProtocols: [h2] }
  connection: { connectionLimit: { value: 5, closeDelay: 6s, maxRequestsPerConnection: 7, maxConnectionDuration: 12s, maxStreamDuration: 13s } }
  http1: { enableTrailers: true, preserveHeaderCase: false, disableSafeMaxConnectionDuration: true }
  tcpKeepalive: { probes: 8, idleTime: 9s, interval: 10s }
  http2: { initialStreamWindowSize: 1Mi, initialConnectionWindowSize: 2000000, maxConcurrentStreams: 11 }
  healthCheck: { path: /healthz }",
    );
    let seconds = Duration::from_secs;
    assert!(all.entrance.proxy_protocol && !all.merge_slashes);
    assert!(matches!(all.client_ip, Some(ClientIp::Hops(hops)) if hops.get() == 2));
    assert_eq!(all.escaped_slashes, EscapedSlashes::Keep);
    assert_eq!(all.underscores, Underscores::Drop);
    let timeouts = all.timeouts;
    assert_eq!(timeouts.request, Some(seconds(1)));
    assert_eq!(timeouts.idle, Some(seconds(2)));
    assert_eq!(timeouts.stream_idle, Some(seconds(3)));
    assert_eq!(timeouts.tcp_idle, Some(seconds(4)));
    assert_eq!(all.tls.versions, TlsVersions::Only12);
    assert_eq!(all.tls.ciphers.as_ref().map(Vec::len), Some(1));
    assert_eq!(all.tls.alpn.as_ref().map(Vec::len), Some(1));
    let limit = all.entrance.limit.expect("it has one");
    assert_eq!((limit.value.get(), limit.close_delay), (5, seconds(6)));
    assert_eq!(all.max_requests.map(|one| one.get()), Some(7));
    assert_eq!(
        (all.max_age, all.max_stream),
        (Some(seconds(12)), Some(seconds(13)))
    );
    assert_eq!(all.http1_end, Http1End::AtRest);
    let keepalive = all.entrance.keepalive.expect("it has one");
    assert_eq!(keepalive.probes.map(|one| one.get()), Some(8));
    assert_eq!(keepalive.idle, Some(seconds(9)));
    assert_eq!(keepalive.interval, Some(seconds(10)));
    assert_eq!(all.http2.stream_window, Some(1 << 20));
    assert_eq!(all.http2.connection_window, Some(2_000_000));
    assert_eq!(all.http2.max_streams.map(|one| one.get()), Some(11));
    assert_eq!(
        all.health_path.as_ref().map(|one| one.as_str()),
        Some("/healthz")
    );

    let none = policy("clientIPDetection: { xForwardedFor: { numTrustedHops: 0 } }");
    assert_eq!(none.client_ip, None, "no proxy is trusted");
    let header = policy("clientIPDetection: { customHeader: { name: X-Real, failClosed: true } }");
    let expected = ClientIp::Header {
        name: "x-real".to_owned(),
        fail_closed: true,
    };
    assert_eq!(header.client_ip, Some(expected));
    assert!(policy("proxyProtocol: {}").entrance.proxy_protocol);
    let direct = policy("clientIPDetection: { directSourceIP: {} }");
    assert_eq!(direct.client_ip, None);
}

#[test]
fn headers_are_as_written() {
    let nothing = policy("headers: {}");
    assert_eq!(nothing.request_id, RequestIds::PreserveOrGenerate);
    assert!(nothing.rate_headers && nothing.early == nothing.late);
    for (fields, expected) in [
        (
            "requestID: PreserveOrGenerate",
            RequestIds::PreserveOrGenerate,
        ),
        ("requestID: Preserve", RequestIds::Preserve),
        ("requestID: Generate", RequestIds::Generate),
        ("requestID: Disable", RequestIds::Disable),
        ("preserveXRequestID: true", RequestIds::PreserveOrGenerate),
        ("preserveXRequestID: false", RequestIds::Generate),
    ] {
        let found = policy(&format!("headers: {{ {fields} }}"));
        assert_eq!(found.request_id, expected, "{fields}");
    }
    let all = policy(
        "headers:
    enableEnvoyHeaders: false
    disableRateLimitHeaders: true
    xForwardedClientCert: { mode: Sanitize }
    earlyRequestHeaders: { set: [{ name: X-A, value: b }], remove: [X-C] }
    lateResponseHeaders: { add: [{ name: X-D, value: e }] }",
    );
    assert!(!all.rate_headers);
    let pair = |name: &str, value: &str| vec![(name.to_owned(), value.to_owned())];
    assert_eq!(all.early.edits.set, pair("x-a", "b"));
    assert_eq!(all.early.edits.remove, ["x-c"]);
    assert_eq!(all.late.edits.add, pair("x-d", "e"));
}

#[test]
fn what_upstreams_are_told_of_clients_is_as_written() {
    let usual = policy("headers: {}");
    assert_eq!(usual.told_certificate, ToldCertificate::Nothing);
    assert!(usual.tell_client && !usual.strip_host_dot && !usual.default_host);
    let details = CertificateDetails {
        subject: true,
        uris: true,
        ..CertificateDetails::default()
    };
    for (fields, expected) in [
        ("{}", ToldCertificate::Nothing),
        ("{ mode: Sanitize }", ToldCertificate::Nothing),
        ("{ mode: ForwardOnly }", ToldCertificate::AsSaid),
        (
            "{ mode: AlwaysForwardOnly }",
            ToldCertificate::AsAnybodySays,
        ),
        (
            "{ mode: AppendForward, certDetailsToAdd: [URI, Subject] }",
            ToldCertificate::Added(details),
        ),
        (
            "{ mode: SanitizeSet }",
            ToldCertificate::Own(CertificateDetails::default()),
        ),
    ] {
        let found = policy(&format!("headers: {{ xForwardedClientCert: {fields} }}"));
        assert_eq!(found.told_certificate, expected, "{fields}");
    }
    let all = policy(
        "headers: { host: { stripTrailingHostDot: true } }
  http1: { http10: { useDefaultHost: true } }
  clientIPDetection: { xForwardedFor: { numTrustedHops: 0, disableXForwardedForAppend: true } }",
    );
    assert!(!all.tell_client && all.strip_host_dot && all.default_host);
    assert_eq!(all.client_ip, None);
}

#[test]
fn names_of_headers_are_matched_in_lower_case_and_never_those_that_frame_a_message() {
    let found = policy(
        "headers: { earlyRequestHeaders: { removeOnMatch: [{ type: Prefix, value: X-A- }, { type: RegularExpression, value: '.*' }], addIfAbsent: [{ name: X-B, value: c }] } }",
    );
    assert_eq!(
        found.early.add_if_absent,
        [("x-b".to_owned(), "c".to_owned())]
    );
    for (name, goes) in [
        ("x-a-b", true),
        ("other", true),
        ("content-length", false),
        ("host", false),
        ("transfer-encoding", false),
    ] {
        assert_eq!(found.early.removes(name), goes, "{name}");
    }
}

#[test]
fn clients_are_asked_for_certificates_by_one_of_two_documents() {
    let tls = "{ name: a, port: 443, protocol: TLS, tls: { mode: Passthrough } }, { name: b, port: 80, protocol: HTTP }";
    let asked = |fields: &str| {
        format!(
            "tls: {{ clientValidation: {{ caCertificateRefs: [{{ kind: ConfigMap, name: ca }}]{fields} }} }}"
        )
    };
    let more = certificate();
    for (fields, demand) in [
        ("", ClientDemand::Required),
        (", optional: true", ClientDemand::IfGiven),
        (", mode: VerifyIfGiven", ClientDemand::IfGiven),
        (
            ", mode: RequireAndVerify, optional: true",
            ClientDemand::Required,
        ),
    ] {
        let read = world_with(HTTPS, &[("p", "", "", &asked(fields))], "", &more);
        let snapshot = taken(read);
        let gateway = snapshot.gateways.values().next().expect("it is there");
        let clients = gateway.listeners[0]
            .clients
            .as_ref()
            .expect("they are asked");
        assert_eq!(clients.demand, demand, "{fields}");
        assert!(matches!(clients.authorities, Authorities::These(_)));
        // Without TLS there are none.
        assert!(gateway.listeners[1].clients.is_none());
    }
    let missing = taken(world_with(
        HTTPS,
        &[("p", "", "", &asked("").replace("name: ca", "name: gone"))],
        "",
        &more,
    ));
    let gateway = missing.gateways.values().next().expect("it is there");
    let clients = gateway.listeners[0]
        .clients
        .as_ref()
        .expect("they are asked");
    assert!(matches!(clients.authorities, Authorities::Missing(_)));
    assert!(
        missing
            .warnings
            .iter()
            .any(|one| one.message.contains("no client gets through"))
    );
    let refused = world_with(tls, &[("p", "", "", &asked(""))], "", &more);
    let refused = refused.expect_err("nobody would be asked").to_string();
    assert!(refused.contains("is for listeners of HTTPS"), "{refused}");
    let frontend = "tls: { frontend: { default: { validation: { caCertificateRefs: [{ group: '', kind: ConfigMap, name: ca }] } } } }";
    let both = world_with(HTTPS, &[("p", "", "", &asked(""))], frontend, &more);
    let both = both.expect_err("two say it").to_string();
    assert!(
        both.contains("asks the clients of listener `a` as well"),
        "{both}"
    );
}

#[test]
fn which_certificates_are_good_is_as_written() {
    let asked = |fields: &str| {
        format!(
            "tls: {{ clientValidation: {{ caCertificateRefs: [{{ kind: ConfigMap, name: ca }}]{fields} }} }}"
        )
    };
    let found = |fields: &str, more: &str| {
        let more = certificate() + more;
        let snapshot = taken(world_with(
            HTTPS,
            &[("p", "", "", &asked(fields))],
            "",
            &more,
        ));
        let gateway = snapshot.gateways.values().next().expect("it is there");
        let clients = gateway.listeners[0].clients.clone();
        let warnings = snapshot.warnings.iter().map(ToString::to_string);
        (
            clients.expect("they are asked"),
            warnings.collect::<Vec<_>>(),
        )
    };
    let (all, _) = found("", "");
    assert!(all.accepted.is_every() && all.revocations.is_none());
    let (some, _) = found(
        ", certificateHashes: ['00:FF:00112233445566778899aabbccddeeff00112233445566778899aabbccdd'],
        spkiHashes: [AP8AESIzRFVmd4iZqrvM3e7/ABEiM0RVZneImaq7zN0=],
        subjectAltNames: { dnsNames: [{ value: A.test }], uris: [{ type: Prefix, value: 'spiffe://A/' }] }",
        "",
    );
    let hash: [u8; 32] = std::array::from_fn(|at| match at {
        0 => 0,
        1 => 0xff,
        at => 0x11 * u8::try_from((at - 2) % 16).expect("it is small"),
    });
    assert_eq!(some.accepted.certificates, [hash]);
    assert_eq!(some.accepted.keys, [hash]);
    let name = |kind, text| NameMatch { kind, text };
    let names = [
        name(NameKind::Dns, StringMatch::Exact("a.test".to_owned())),
        name(NameKind::Uri, StringMatch::Prefix("spiffe://A/".to_owned())),
    ];
    assert_eq!(some.accepted.names, names);
    // Lists of revoked certificates are found as authorities are, with a grant where they are elsewhere.
    let lists = ", crl: { refs: [{ kind: ConfigMap, name: revoked, namespace: pki }] }";
    let map = "---
apiVersion: v1
kind: ConfigMap
metadata: { name: revoked, namespace: pki }
data: { ca.crl: nothing }
";
    let grant = "---
apiVersion: gateway.networking.k8s.io/v1beta1
kind: ReferenceGrant
metadata: { name: lists, namespace: pki }
spec:
  from: [{ group: gateway.envoyproxy.io, kind: ClientTrafficPolicy, namespace: default }]
  to: [{ group: '', kind: ConfigMap }]
";
    let granted = format!("{map}{grant}");
    for (more, why) in [
        (
            &granted,
            "`ca.crl` of `ConfigMap` pki/revoked holds no PEM block `X509 CRL`",
        ),
        (&grant.to_owned(), "no `ConfigMap` pki/revoked"),
    ] {
        let (clients, warnings) = found(lists, more);
        assert_eq!(clients.authorities, Authorities::Missing(why.to_owned()));
        let said = warnings
            .iter()
            .any(|one| one.contains("spec.tls.clientValidation.crl.refs[0]") && one.contains(why));
        assert!(said, "{warnings:?}");
    }
    let more = certificate() + map;
    let refused = world_with(HTTPS, &[("p", "", "", &asked(lists))], "", &more);
    let refused = refused.expect_err("nobody allows it").to_string();
    assert!(refused.contains("ReferenceGrant"), "{refused}");
}

#[test]
fn http3_is_for_listeners_of_https_at_ports_without_udp() {
    let more = certificate();
    let https = "{ name: a, port: 443, protocol: HTTPS, tls: { certificateRefs: [{ name: c }] } }";
    let others = "{ name: b, port: 80, protocol: HTTP }, { name: c, port: 53, protocol: UDP }";
    let listeners = format!("{https}, {others}");
    for (spec, port) in [
        ("http3: {}", None),
        ("http3: { advertisedPort: 8443 }", NonZeroU16::new(8443)),
    ] {
        let snapshot = taken(world_with(&listeners, &[("p", "", "", spec)], "", &more));
        let gateway = snapshot.gateways.values().next().expect("it is there");
        let [a, b, c] = &gateway.listeners[..] else {
            panic!("three listeners");
        };
        let http3 = a.http3().expect("it has it");
        assert_eq!(http3.advertised_port, port);
        assert!(b.http3().is_none() && c.http3().is_none());
        let transports = |one: &snapshot::model::Listener| one.transports().collect::<Vec<_>>();
        assert_eq!(transports(a), [Transport::Tcp, Transport::Udp]);
        assert_eq!(transports(b), [Transport::Tcp]);
        assert_eq!(transports(c), [Transport::Udp]);
    }
    let both = listeners.replace("port: 53", "port: 443");
    let refused = world_with(&both, &[("p", "", "", "http3: {}")], "", &more);
    let refused = refused.expect_err("one port for two").to_string();
    assert!(
        refused.contains("UDP port 443 of listener `a` belongs to listener `c`"),
        "{refused}"
    );
    assert!(refused.contains("spec.http3"), "{refused}");
}

#[test]
fn the_most_specific_policy_is_taken_whole_and_the_older_of_two() {
    let (old, new) = ("2026-01-01T00:00:00Z", "2026-01-02T00:00:00Z");
    let health = |path: &str| format!("healthCheck: {{ path: {path} }}");
    let (one, two) = (health("/one"), health("/two"));
    let whole = taken(world(
        HTTP,
        &[
            ("p", "", "", &one),
            ("q", "", "b", "enableProxyProtocol: true"),
        ],
    ));
    assert_eq!(
        paths(&whole),
        ["/one", "-"],
        "nothing is left of the wider one"
    );
    assert!(whole.warnings.is_empty());
    for (first, second, winner) in [
        (old, new, "/one"),
        (new, old, "/two"),
        ("", "", "/one"),
        ("", new, "/two"),
    ] {
        let snapshot = taken(world(
            HTTP,
            &[("p", first, "a", &one), ("q", second, "a", &two)],
        ));
        assert_eq!(paths(&snapshot), [winner, "-"], "{first} {second}");
        assert_eq!(snapshot.warnings.len(), 1);
        assert!(snapshot.warnings[0].message.contains("has no effect here"));
    }
}

#[test]
fn listeners_of_a_port_agree_on_what_comes_before_they_are_told_apart() {
    let closed = "{ name: a, port: 443, protocol: TLS, hostname: a.example.com, tls: { mode: Passthrough } }, \
                  { name: b, port: 443, protocol: TLS, hostname: b.example.com, tls: { mode: Passthrough } }";
    let plain = "{ name: a, port: 80, protocol: HTTP, hostname: a.example.com }, \
                 { name: b, port: 80, protocol: HTTP, hostname: b.example.com }";
    let apart = "{ name: a, port: 80, protocol: HTTP }, { name: b, port: 80, protocol: UDP }";
    for (listeners, spec, fits) in [
        (closed, "timeout: { tcp: { idleTimeout: 1s } }", true),
        (closed, "tls: { minVersion: '1.3' }", true),
        (closed, "enableProxyProtocol: true", false),
        (
            closed,
            "connection: { connectionLimit: { value: 1 } }",
            false,
        ),
        (closed, "tcpKeepalive: {}", false),
        (plain, "timeout: { http: { idleTimeout: 1s } }", false),
        (apart, "enableProxyProtocol: true", true),
    ] {
        for listener in ["a", "b"] {
            let read = world(listeners, &[("p", "", listener, spec)]);
            assert_eq!(read.is_ok(), fits, "{spec} of {listener}");
            if let Err(refused) = read {
                assert!(refused.to_string().contains("share port"), "{refused}");
            }
        }
        taken(world(listeners, &[("p", "", "", spec)]));
    }
}

#[test]
fn what_the_router_does_alike_for_everybody_is_no_choice() {
    for (spec, said) in [
        ("http1: { enableTrailers: false }", "trailers pass"),
        (
            "http1: { preserveHeaderCase: true }",
            "names of headers are lower case",
        ),
        (
            "http2: { onInvalidMessage: TerminateConnection }",
            "expected `TerminateStream`",
        ),
        (
            "connection: { connectionLimit: { closeDelay: 1s } }",
            "expected `value` beside it",
        ),
        (
            "connection: { connectionLimit: { maxConnectionDuration: 0s } }",
            "expected a duration above zero",
        ),
    ] {
        let refused = world(HTTP, &[("p", "", "", spec)]).expect_err(spec);
        assert!(refused.to_string().contains(said), "{spec}: {refused}");
    }
}
