use http::{HeaderMap, HeaderName, HeaderValue};
use snapshot::model::{CertificateName, Cidr, KeySource, KeyTrust, ObjectName, SectionName};
use snapshot::path::CanonicalPath;

use super::{Key, KeyError, KeySubject, MAX_KEY};
use crate::route::trust::Names;

fn source() -> snapshot::Source {
    snapshot::Source::new("t", 1, "")
}

type Read = Result<&'static str, KeyError>;
/// Source, headers, target and what is read.
type Row = (
    KeySource,
    Vec<(&'static str, &'static str)>,
    &'static str,
    Read,
);

#[test]
fn a_certificate_gives_a_name_if_it_has_one_of_the_kind() {
    use KeyError::{Comma, Missing, Several};
    let names = |common: &[&str], hosts: &[&str], uris: &[&str]| {
        let owned = |list: &[&str]| list.iter().map(|one| (*one).to_owned()).collect();
        Names {
            common: owned(common),
            hosts: owned(hosts),
            uris: owned(uris),
            ..Names::default()
        }
    };
    let full = names(&["acme"], &["acme.example"], &["spiffe://x/acme"]);
    let twice = names(
        &["a", "b"],
        &["a.example", "b.example"],
        &["x://a", "x://b"],
    );
    let comma = names(&["a,b"], &[], &[]);
    let bare = names(&[], &[], &[]);
    let path = CanonicalPath::new("/").expect("a path");
    let headers = HeaderMap::new();
    for (name, certificate, want) in [
        (CertificateName::Common, Some(&full), Ok("acme")),
        (CertificateName::Dns, Some(&full), Ok("acme.example")),
        (CertificateName::Uri, Some(&full), Ok("spiffe://x/acme")),
        (CertificateName::Common, Some(&twice), Err(Several)),
        (CertificateName::Dns, Some(&twice), Err(Several)),
        (CertificateName::Uri, Some(&twice), Err(Several)),
        (CertificateName::Common, Some(&comma), Err(Comma)),
        (CertificateName::Uri, Some(&bare), Err(Missing)),
        (CertificateName::Uri, None, Err(Missing)),
    ] {
        let subject = KeySubject {
            headers: &headers,
            path: &path,
            query: None,
            host: "acme.example",
            sni: Some("acme.example"),
            tokens: Vec::new(),
            certificate,
            listener: None,
            client: [192, 0, 2, 1].into(),
        };
        let key = Key::new(&KeySource::Certificate(name), &[]).expect("it compiles");
        assert!(key.needs_certificate());
        assert_eq!(key.read(&subject).as_deref(), want.as_deref(), "{name:?}");
    }
}

#[test]
fn every_source_gives_one_value_or_none() {
    use KeyError::{Comma, Missing, NotAscii, Several, TooLong};
    let long: &'static str = "k".repeat(MAX_KEY + 1).leak();
    let longest: &'static str = &long[1..];
    let header = || KeySource::Header("x-key".to_owned());
    let cookie = || KeySource::Cookie("t".to_owned());
    let query = || KeySource::Query("t".to_owned());
    let of = |name: &'static str, values: &[&'static str]| -> Vec<_> {
        values.iter().map(|value| (name, *value)).collect()
    };
    let rows: Vec<Row> = vec![
        (header(), of("x-key", &["visa"]), "/", Ok("visa")),
        (header(), of("x-key", &["  vi sa "]), "/", Ok("vi sa")),
        (header(), of("x-key", &[]), "/", Err(Missing)),
        (header(), of("x-key", &["   "]), "/", Err(Missing)),
        (header(), of("x-key", &["a", "a"]), "/", Err(Several)),
        (header(), of("x-key", &["a,b"]), "/", Err(Comma)),
        (header(), of("x-key", &["ä"]), "/", Err(NotAscii)),
        (header(), of("x-key", &[longest]), "/", Ok(longest)),
        (header(), of("x-key", &[long]), "/", Err(TooLong)),
        (KeySource::Host, of("x", &[]), "/", Ok("acme.example")),
        (KeySource::Sni, of("x", &[]), "/", Ok("sni.example")),
        (
            KeySource::Claim("tenant".to_owned()),
            of("x", &[]),
            "/",
            Err(Missing),
        ),
        (KeySource::Path(0), of("x", &[]), "/visa/x", Ok("visa")),
        (KeySource::Path(1), of("x", &[]), "/a/vi%20sa", Ok("vi sa")),
        (KeySource::Path(1), of("x", &[]), "/a", Err(Missing)),
        (KeySource::Path(0), of("x", &[]), "/", Err(Missing)),
        (KeySource::Path(0), of("x", &[]), "/%C3%A4", Err(NotAscii)),
        (query(), of("x", &[]), "/?a=1&t=visa", Ok("visa")),
        (query(), of("x", &[]), "/?t=vi+s%61", Ok("vi sa")),
        (query(), of("x", &[]), "/?%74=visa", Ok("visa")),
        (query(), of("x", &[]), "/?t=a&%74=b", Err(Several)),
        (query(), of("x", &[]), "/?T=a", Err(Missing)),
        (query(), of("x", &[]), "/?t", Err(Missing)),
        (query(), of("x", &[]), "/?t=%2", Err(NotAscii)),
        (query(), of("x", &[]), "/?t=%2C", Err(Comma)),
        (query(), of("x", &[]), "/?t=%00", Err(NotAscii)),
        (cookie(), of("cookie", &["a=1; t=visa"]), "/", Ok("visa")),
        (cookie(), of("cookie", &["a=1", "t=visa"]), "/", Ok("visa")),
        (cookie(), of("cookie", &["t=a; t=b"]), "/", Err(Several)),
        (cookie(), of("cookie", &["t=a", "t=b"]), "/", Err(Several)),
        (cookie(), of("cookie", &["tt=a"]), "/", Err(Missing)),
    ];
    for (at, (source, pairs, target, want)) in rows.into_iter().enumerate() {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            let value = HeaderValue::from_bytes(value.as_bytes()).expect("a value");
            headers.append(HeaderName::from_static(name), value);
        }
        let (path, query) = match target.split_once('?') {
            Some((path, query)) => (path, Some(query)),
            None => (target, None),
        };
        let path = CanonicalPath::new(path).expect("a path");
        let subject = KeySubject {
            headers: &headers,
            path: &path,
            query,
            host: "acme.example",
            sni: Some("sni.example"),
            tokens: Vec::new(),
            certificate: None,
            listener: None,
            client: [192, 0, 2, 1].into(),
        };
        let key = Key::new(&source, &[]).expect("it compiles");
        assert_eq!(
            key.read(&subject).as_deref(),
            want.as_deref(),
            "row {at}: {source:?}"
        );
    }
}

#[test]
fn the_key_is_set_by_whom_the_listener_trusts() {
    let trust = |gateway: &str, listener: Option<&str>, networks: &[&str]| KeyTrust {
        declared: source(),
        gateway: ObjectName::new("ns", gateway).expect("a name"),
        listener: listener.map(|one| SectionName::new(one).expect("a name")),
        sources: networks
            .iter()
            .map(|one| one.parse::<Cidr>().expect("a network"))
            .collect(),
    };
    let rules = [
        trust("in", None, &[]),
        trust(
            "out",
            Some("partners"),
            &["203.0.113.0/24", "2001:db8::/32"],
        ),
    ];
    let key = Key::new(&KeySource::Header("x-key".to_owned()), &rules).expect("it compiles");
    let mut headers = HeaderMap::new();
    headers.insert("x-key", HeaderValue::from_static("visa"));
    let path = CanonicalPath::root();
    for (listener, client, trusted) in [
        (Some("ns/in/http"), "198.51.100.1", true),
        (Some("ns/in/other"), "198.51.100.1", true),
        (Some("ns/inner/http"), "198.51.100.1", false),
        (Some("ns/out/partners"), "203.0.113.9", true),
        (Some("ns/out/partners"), "2001:db8::1", true),
        (Some("ns/out/partners"), "198.51.100.1", false),
        (Some("ns/out/public"), "203.0.113.9", false),
        (None, "203.0.113.9", false),
    ] {
        let subject = KeySubject {
            headers: &headers,
            path: &path,
            query: None,
            host: "x",
            sni: None,
            tokens: Vec::new(),
            certificate: None,
            listener,
            client: client.parse().expect("an address"),
        };
        let want = if trusted {
            Ok("visa")
        } else {
            Err(KeyError::Untrusted)
        };
        assert_eq!(
            key.read(&subject).as_deref(),
            want.as_deref(),
            "{listener:?} {client}"
        );
    }
}
