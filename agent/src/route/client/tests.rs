use std::num::NonZeroU32;

use http::HeaderValue;
use snapshot::model::{
    ClientHttp2, ClientTimeouts, ClientTls, Entrance, EscapedSlashes, Http1End, MessageEdits,
    RequestIds, ToldCertificate, Underscores,
};

use super::*;

fn settings(by: Option<ClientIp>) -> ClientSettings {
    let header = match &by {
        Some(ClientIp::Header { name, .. }) => Some(name.parse().expect("a header")),
        _ => None,
    };
    ClientSettings {
        policy: Arc::new(ClientPolicy {
            declared: snapshot::Source::new("test.yaml", 1, ""),
            entrance: Entrance::default(),
            client_ip: by,
            escaped_slashes: EscapedSlashes::default(),
            merge_slashes: true,
            underscores: Underscores::default(),
            request_id: RequestIds::default(),
            early: MessageEdits::default(),
            late: MessageEdits::default(),
            told_certificate: ToldCertificate::default(),
            tell_client: true,
            strip_host_dot: false,
            default_host: false,
            rate_headers: true,
            timeouts: ClientTimeouts::default(),
            tls: ClientTls::default(),
            max_requests: None,
            max_age: None,
            max_stream: None,
            http1_end: Http1End::default(),
            http2: ClientHttp2::default(),
            http3: None,
            health_path: None,
        }),
        tls: None,
        header,
        early: ListenerEdits::default(),
        late: ListenerEdits::default(),
    }
}

/// Address and way, `!` if refused, of a request from 10.0.0.1 with these lines of `X-Forwarded-For`.
fn told(by: &ClientIp, lines: &[&str]) -> String {
    let mut headers = HeaderMap::new();
    for line in lines {
        headers.append(FORWARDED_FOR, HeaderValue::from_str(line).expect("ASCII"));
    }
    let connection = "10.0.0.1".parse().expect("an address");
    let found = settings(Some(by.clone())).detect(&headers, connection);
    let found = found.expect("it fails open").expect("it is asked");
    format!("{} <{}>", found.address, found.way)
}

#[test]
fn an_entry_that_cannot_be_read_hides_none_behind_it() {
    let mut headers = HeaderMap::new();
    let line = HeaderValue::from_bytes(b"\xff, 2.2.2.2").expect("bytes above ASCII are a value");
    headers.append(FORWARDED_FOR, line);
    let by = ClientIp::Hops(NonZeroU32::MIN);
    let found = settings(Some(by)).detect(&headers, "10.0.0.1".parse().expect("an address"));
    let found = found.expect("it fails open").expect("it is asked");
    assert_eq!(found.address.to_string(), "2.2.2.2");
}

#[test]
fn hops_are_counted_from_the_right() {
    let hops = |count| ClientIp::Hops(NonZeroU32::new(count).expect("it is above zero"));
    for (count, lines, expected) in [
        (1, &["1.1.1.1, 2.2.2.2"][..], "2.2.2.2 <2.2.2.2>"),
        (2, &["1.1.1.1, 2.2.2.2"], "1.1.1.1 <1.1.1.1, 2.2.2.2>"),
        (
            2,
            &["1.1.1.1", "2.2.2.2,3.3.3.3"],
            "2.2.2.2 <2.2.2.2, 3.3.3.3>",
        ),
        (3, &["1.1.1.1, 2.2.2.2"], "10.0.0.1 <>"),
        (1, &[], "10.0.0.1 <>"),
        (1, &["1.1.1.1, evil"], "10.0.0.1 <>"),
        (2, &["1.1.1.1, evil"], "1.1.1.1 <1.1.1.1, evil>"),
        (1, &["[2001:db8::1]:443"], "2001:db8::1 <[2001:db8::1]:443>"),
        (1, &["::ffff:1.1.1.1"], "1.1.1.1 <::ffff:1.1.1.1>"),
        (1, &["1.1.1.1:99"], "1.1.1.1 <1.1.1.1:99>"),
        (1, &[""], "10.0.0.1 <>"),
    ] {
        assert_eq!(told(&hops(count), lines), expected, "{count} {lines:?}");
    }
}

#[test]
fn networks_are_trusted_from_the_connection_on() {
    let networks = |list: &[&str]| {
        let parsed = list.iter().map(|one| one.parse().expect("a network"));
        ClientIp::Trusted(parsed.collect())
    };
    let inside = networks(&["10.0.0.0/8", "192.0.2.0/24"]);
    for (lines, expected) in [
        (&["1.1.1.1"][..], "1.1.1.1 <1.1.1.1>"),
        (
            &["6.6.6.6, 1.1.1.1, 192.0.2.7"],
            "1.1.1.1 <1.1.1.1, 192.0.2.7>",
        ),
        (&["6.6.6.6", "10.1.1.1"], "6.6.6.6 <6.6.6.6, 10.1.1.1>"),
        (&["10.2.2.2, 10.1.1.1"], "10.2.2.2 <10.2.2.2, 10.1.1.1>"),
        (&["1.1.1.1, evil, 10.1.1.1"], "10.0.0.1 <>"),
        (&[], "10.0.0.1 <>"),
    ] {
        assert_eq!(told(&inside, lines), expected, "{lines:?}");
    }
    // The one who connects is no proxy of ours: his word counts nothing.
    let elsewhere = networks(&["192.0.2.0/24"]);
    assert_eq!(told(&elsewhere, &["1.1.1.1"]), "10.0.0.1 <>");
}

#[test]
fn a_header_tells_or_the_connection_does() {
    let connection = "10.0.0.1".parse().expect("an address");
    for (values, fail_closed, expected) in [
        (&["1.1.1.1"][..], true, Some("1.1.1.1 <1.1.1.1>")),
        (&[], true, None),
        (&["evil"], true, None),
        (&["1.1.1.1", "2.2.2.2"], true, None),
        (&[], false, Some("10.0.0.1 <>")),
        (&["1.1.1.1, 2.2.2.2"], false, Some("10.0.0.1 <>")),
    ] {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append("x-real-client", HeaderValue::from_static(value));
        }
        let by = ClientIp::Header {
            name: "x-real-client".into(),
            fail_closed,
        };
        let found = settings(Some(by)).detect(&headers, connection);
        let found = found.ok().flatten();
        let found = found.map(|one| format!("{} <{}>", one.address, one.way));
        assert_eq!(found.as_deref(), expected, "{values:?} {fail_closed}");
    }
    let nothing = settings(None).detect(&HeaderMap::new(), connection);
    assert_eq!(nothing, Ok(None));
}
