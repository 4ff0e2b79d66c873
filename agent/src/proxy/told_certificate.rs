//! `X-Forwarded-Client-Cert`: what upstreams are told of a client's certificate (Envoy, HTTP header manipulation).
//!
//! Flows in: a certificate that was verified, and what the client says itself. Flows out: the value of the header, as the
//! listener's policy has it.

use std::fmt::Write as _;
use std::sync::Arc;

use data_encoding::{BASE64, HEXLOWER};
use http::header::{HeaderMap, HeaderName, HeaderValue};
use rustls::sign::CertifiedKey;
use rustls_pki_types::CertificateDer;
use sha2::{Digest, Sha256};
use snapshot::model::{CertificateDetails, ClientPolicy, ToldCertificate};
use x509_parser::prelude::{FromDer, X509Certificate};
use x509_parser::x509::X509Name;

use super::connection::Conn;
use crate::route::trust::{Names, names};
use crate::route::{ClientTrust, Listener};

pub(super) const HEADER: HeaderName = HeaderName::from_static("x-forwarded-client-cert");

/// Bytes of a line of Base64 (RFC 7468, section 2).
const LINE: usize = 64;

/// What the upstream of a request is told, if it is told anything.
pub(super) fn told(policy: &ClientPolicy, conn: &Conn, headers: &HeaderMap) -> Option<HeaderValue> {
    match &policy.told_certificate {
        ToldCertificate::Nothing => None,
        ToldCertificate::AsAnybodySays => said(headers, None),
        // Whoever has no good certificate is not believed about those of others.
        _ if conn.certificate.is_none() => None,
        ToldCertificate::AsSaid => said(headers, None),
        ToldCertificate::Added(_) => said(headers, conn.told.as_ref()),
        ToldCertificate::Own(_) => conn.told.clone(),
    }
}

/// All that is said, and `own` behind it.
fn said(headers: &HeaderMap, own: Option<&HeaderValue>) -> Option<HeaderValue> {
    let lines = headers.get_all(HEADER).iter().chain(own);
    let lines: Vec<&[u8]> = lines.map(HeaderValue::as_bytes).collect();
    if lines.is_empty() {
        return None;
    }
    HeaderValue::from_bytes(&lines.join(&b',')).ok()
}

/// Notes who the client of a connection is that a listener asks for a certificate. `chain` is what the client showed, and `server`
/// the certificate that it was shown.
pub(super) fn note(
    conn: &mut Conn,
    (listener, clients): (&Listener, &Arc<ClientTrust>),
    chain: Option<&[CertificateDer<'_>]>,
    server: &CertifiedKey,
) {
    conn.certificate = chain.and_then(|chain| clients.verified(chain));
    let policy = listener.policy.as_ref().map(|one| &one.policy);
    let details = policy.and_then(|policy| policy.told_certificate.details());
    if let (Some(details), Some(names), Some(chain)) = (details, &conn.certificate, chain) {
        conn.told = element(details, names, chain, server.end_entity_cert().ok());
    }
    conn.clients = Some(Arc::clone(clients));
}

/// What is told of a certificate that was verified. `names` are its own, and `server` is the one that its client was shown.
/// None: a part of it cannot be read, or is no text of a header.
fn element(
    details: CertificateDetails,
    names: &Names,
    chain: &[CertificateDer<'_>],
    server: Option<&CertificateDer<'_>>,
) -> Option<HeaderValue> {
    let leaf = chain.first()?;
    let mut parts = Vec::new();
    let server = server.and_then(self::names).unwrap_or_default();
    parts.extend(server.uris.first().map(|uri| pair("By", uri)));
    parts.push(pair("Hash", &HEXLOWER.encode(&Sha256::digest(leaf))));
    if details.certificate {
        parts.push(format!("Cert=\"{}\"", pem(leaf)));
    }
    if details.chain {
        let chain: String = chain.iter().map(pem).collect();
        parts.push(format!("Chain=\"{chain}\""));
    }
    if details.subject {
        let (_, leaf) = X509Certificate::from_der(leaf).ok()?;
        parts.push(format!("Subject=\"{}\"", subject(leaf.subject())?));
    }
    if details.uris {
        parts.extend(pairs("URI", &names.uris));
    }
    if details.hosts {
        parts.extend(pairs("DNS", &names.hosts));
    }
    HeaderValue::from_str(&parts.join(";")).ok()
}

/// One pair for each value; without a value the key alone.
fn pairs(key: &str, values: &[String]) -> Vec<String> {
    match values.is_empty() {
        true => vec![pair(key, "")],
        false => values.iter().map(|value| pair(key, value)).collect(),
    }
}

/// A value is quoted where it could be read as more than one.
fn pair(key: &str, value: &str) -> String {
    if !value.contains([',', ';', '=', '"', '\\', ' ']) {
        return format!("{key}={value}");
    }
    let value = value.replace('\\', "\\\\").replace('"', "\\\"");
    format!("{key}=\"{value}\"")
}

/// A certificate in PEM form, encoded as a part of a URL.
fn pem(certificate: &CertificateDer<'_>) -> String {
    const LABEL: &str = "CERTIFICATE-----%0A";
    let mut text = format!("-----BEGIN%20{LABEL}");
    let encoded = BASE64.encode(certificate);
    for (at, character) in encoded.chars().enumerate() {
        if at > 0 && at % LINE == 0 {
            text.push_str("%0A");
        }
        match character {
            '+' => text.push_str("%2B"),
            '/' => text.push_str("%2F"),
            '=' => text.push_str("%3D"),
            other => text.push(other),
        }
    }
    text + "%0A-----END%20" + LABEL
}

/// A name as RFC 4514 writes it, the most specific part first.
fn subject(name: &X509Name<'_>) -> Option<String> {
    let mut parts = Vec::new();
    for part in name.iter_rdn() {
        let mut values = Vec::new();
        for attribute in part.iter() {
            let id = attribute.attr_type().to_id_string();
            let kind = match KINDS.iter().find(|(known, _)| *known == id) {
                Some((_, name)) => name,
                None => id.as_str(),
            };
            values.push(format!("{kind}={}", escaped(attribute.as_str().ok()?)));
        }
        parts.push(values.join("+"));
    }
    parts.reverse();
    Some(parts.join(","))
}

/// Short names of attributes (RFC 4514, section 3; RFC 4519), by the identifier of each.
const KINDS: [(&str, &str); 11] = [
    ("2.5.4.3", "CN"),
    ("2.5.4.5", "serialNumber"),
    ("2.5.4.6", "C"),
    ("2.5.4.7", "L"),
    ("2.5.4.8", "ST"),
    ("2.5.4.9", "STREET"),
    ("2.5.4.10", "O"),
    ("2.5.4.11", "OU"),
    ("0.9.2342.19200300.100.1.1", "UID"),
    ("0.9.2342.19200300.100.1.25", "DC"),
    ("1.2.840.113549.1.9.1", "emailAddress"),
];

/// A value as RFC 4514, section 2.4, writes it: in ASCII, and on one line.
fn escaped(value: &str) -> String {
    let mut text = String::with_capacity(value.len());
    let last = value.len().saturating_sub(1);
    for (at, byte) in value.bytes().enumerate() {
        let special = match byte {
            b'"' | b'+' | b',' | b';' | b'<' | b'>' | b'\\' => true,
            b' ' => at == 0 || at == last,
            b'#' => at == 0,
            _ => false,
        };
        match byte {
            _ if special => {
                text.push('\\');
                text.push(char::from(byte));
            }
            b' '..=b'~' => text.push(char::from(byte)),
            // A text takes everything.
            other => _ = write!(text, "\\{other:02X}"),
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use rustls_pki_types::CertificateDer;

    use super::{escaped, pair, pem};

    #[test]
    fn values_are_read_as_one() {
        for (value, expected) in [
            ("spiffe://a/b", "URI=spiffe://a/b"),
            ("", "URI="),
            ("a;Hash=b", "URI=\"a;Hash=b\""),
            ("a\"b\\", "URI=\"a\\\"b\\\\\""),
        ] {
            assert_eq!(pair("URI", value), expected);
        }
    }

    #[test]
    fn names_are_written_in_ascii() {
        for (value, expected) in [
            ("Shop, Inc.", "Shop\\, Inc."),
            (" #a ", "\\ #a\\ "),
            ("#a", "\\#a"),
            ("a\"b", "a\\\"b"),
            ("\u{fc}\n", "\\C3\\BC\\0A"),
        ] {
            assert_eq!(escaped(value), expected);
        }
    }

    #[test]
    fn certificates_have_lines_of_64() {
        let text = pem(&CertificateDer::from(vec![0xfb; 50]));
        let lines: Vec<&str> = text.split("%0A").collect();
        let plain = |line: &str| {
            line.replace("%2B", "+")
                .replace("%3D", "=")
                .replace("%2F", "/")
        };
        let lengths: Vec<usize> = lines.iter().map(|line| plain(line).len()).collect();
        assert_eq!(lengths[1..3], [64, 4]);
        assert_eq!(lines[0], "-----BEGIN%20CERTIFICATE-----");
        assert_eq!(lines[3..], ["-----END%20CERTIFICATE-----", ""]);
        assert!(!text.contains(['+', '/', '=', ' ', '\n']));
    }
}
