use super::*;

const MOST: usize = 60 * 1024;

fn block(fields: &[(&str, &str)]) -> BytesMut {
    let mut out = BytesMut::new();
    fields::begin(&mut out);
    for (name, value) in fields {
        fields::encode(name, value.as_bytes(), &mut out);
    }
    out
}

const PLAIN: [(&str, &str); 4] = [
    (":method", "GET"),
    (":scheme", "https"),
    (":authority", "a.example.com"),
    (":path", "/x?y=1"),
];

/// A plain request with other fields behind its own.
fn with(more: &[(&str, &str)]) -> BytesMut {
    block(&[&PLAIN, more].concat())
}

#[test]
fn a_request_is_what_its_fields_say() {
    let head = request(
        &with(&[
            ("accept", "*/*"),
            ("cookie", "a=1"),
            ("cookie", "b=2"),
            ("te", "trailers"),
            ("content-length", "17"),
        ]),
        MOST,
    )
    .expect("a request");
    assert_eq!(head.length, Some(17));
    assert_eq!(head.parts.method, Method::GET);
    assert_eq!(head.parts.version, Version::HTTP_3);
    assert_eq!(head.parts.uri, "https://a.example.com/x?y=1");
    assert_eq!(head.parts.headers.get_all("cookie").iter().count(), 2);
    assert_eq!(head.parts.headers["te"], "trailers");

    let by_host = [PLAIN[0], PLAIN[1], PLAIN[3], ("host", "b.example.com")];
    let head = request(&block(&by_host), MOST).expect("a request");
    assert_eq!(head.parts.uri, "/x?y=1");
    assert_eq!(head.parts.headers["host"], "b.example.com");

    let connect = [(":method", "CONNECT"), (":authority", "a.example.com:443")];
    let head = request(&block(&connect), MOST).expect("a request");
    assert_eq!(
        head.parts.uri.authority().map(Authority::as_str),
        Some("a.example.com:443")
    );
}

#[test]
fn what_is_malformed_is_no_request() {
    let mut rows: Vec<Vec<(&str, &str)>> = Vec::new();
    for (at, field) in PLAIN.iter().enumerate() {
        let mut fields = PLAIN.to_vec();
        fields.remove(at);
        rows.push(fields);
        let mut fields = PLAIN.to_vec();
        fields.push(*field);
        rows.push(fields);
    }
    for more in [
        ("connection", "close"),
        ("keep-alive", "5"),
        ("proxy-connection", "close"),
        ("transfer-encoding", "chunked"),
        ("upgrade", "websocket"),
        ("te", "gzip"),
        ("Accept", "*/*"),
        ("a b", "x"),
        ("", "x"),
        ("x", "a\nb"),
        ("x", "a\0b"),
        (":status", "200"),
        (":other", "x"),
        (":protocol", "websocket"),
        ("content-length", "-1"),
        ("content-length", "+1"),
        ("content-length", ""),
        ("content-length", "1, 1"),
        ("content-length", "99999999999999999999"),
    ] {
        rows.push([&PLAIN[..], &[more]].concat());
    }
    let behind = [("accept", "*/*"), PLAIN[3]];
    rows.push([&PLAIN[..3], &behind].concat());
    rows.push([&PLAIN[..], &[("content-length", "1"); 2]].concat());
    for (at, value) in [
        (0, "GE T"),
        (0, ""),
        (1, "ftp"),
        (1, ""),
        (2, ""),
        (2, "a b"),
        (3, ""),
        (3, "x"),
        (3, "https://a.example.com/"),
    ] {
        let mut fields = PLAIN.to_vec();
        fields[at].1 = value;
        rows.push(fields);
    }
    rows.push(vec![(":method", "CONNECT"), PLAIN[1], PLAIN[2], PLAIN[3]]);
    rows.push(vec![(":method", "CONNECT")]);
    for fields in rows {
        let read = request(&block(&fields), MOST);
        assert!(
            matches!(read, Err(Wrong::Message(_))),
            "{fields:?}: {:?}",
            read.map(|head| head.parts)
        );
    }
}

#[test]
fn what_is_too_much_and_what_cannot_be_read_are_told_apart() {
    let long = "v".repeat(MOST);
    assert!(matches!(
        request(&with(&[("x", &long)]), MOST),
        Err(Wrong::TooLarge)
    ));
    assert!(matches!(
        request(&[0, 0, 0x80], MOST),
        Err(Wrong::Connection(Code::DECOMPRESSION_FAILED, _))
    ));
}

#[test]
fn trailers_have_no_pseudo_header_fields() {
    let read = trailers(&block(&[("x-sum", "1"), ("x-sum", "2")]), MOST).expect("trailers");
    assert_eq!(read.get_all("x-sum").iter().count(), 2);
    for fields in [[PLAIN[3]], [(":status", "200")], [("connection", "x")]] {
        assert!(matches!(
            trailers(&block(&fields), MOST),
            Err(Wrong::Message(_))
        ));
    }
}
