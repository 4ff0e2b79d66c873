//! `tls`: versions, cipher suites and ALPN towards clients.

use super::super::Meta;
use super::super::gateway::ValidationDraft;
use super::{Alpn, ClientTls, Tls12Cipher, TlsVersions, settled, validation};
use crate::reader::{Field, Object};

/// Cipher suites by their names in OpenSSL, which Envoy uses.
const CIPHERS: [(&str, Tls12Cipher); 6] = [
    ("ECDHE-ECDSA-AES128-GCM-SHA256", Tls12Cipher::EcdsaAes128),
    ("ECDHE-ECDSA-AES256-GCM-SHA384", Tls12Cipher::EcdsaAes256),
    ("ECDHE-ECDSA-CHACHA20-POLY1305", Tls12Cipher::EcdsaChacha20),
    ("ECDHE-RSA-AES128-GCM-SHA256", Tls12Cipher::RsaAes128),
    ("ECDHE-RSA-AES256-GCM-SHA384", Tls12Cipher::RsaAes256),
    ("ECDHE-RSA-CHACHA20-POLY1305", Tls12Cipher::RsaChacha20),
];

/// Versions that the router speaks; `Auto` is the lowest and the highest of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Version {
    Tls12,
    Tls13,
}

pub(super) fn read(field: &Field<'_>, meta: &Meta) -> Option<(ClientTls, Option<ValidationDraft>)> {
    let mut object = field.object()?;
    object.unsupported(&[
        "session",
        "ecdhCurves",
        "signatureAlgorithms",
        "fingerprints",
    ]);
    let versions = versions(&mut object);
    let ciphers = object
        .optional("ciphers")
        .map(|field| each(&field.some_list(), &CIPHERS));
    let alpn = object.optional("alpnProtocols").map(|field| {
        let protocols = [("h2", Alpn::Http2), ("http/1.1", Alpn::Http1)];
        each(&field.list(), &protocols)
    });
    if let (Some(TlsVersions::Only13), Some(_)) = (versions, &ciphers) {
        object.field().sink().mistake(
            object.at("ciphers"),
            "chooses among suites of TLS 1.2, and `minVersion` is 1.3; expected none",
        );
        return None;
    }
    let validation = object
        .optional("clientValidation")
        .map(|field| validation::read(&field, meta));
    object.finish();
    let tls = ClientTls {
        versions: versions?,
        ciphers,
        alpn,
    };
    Some((tls, settled(validation)?))
}

/// The values of a list, each there once.
fn each<T: Copy + PartialEq>(items: &[Field<'_>], known: &[(&str, T)]) -> Vec<T> {
    let mut values = Vec::new();
    for item in items {
        match item.choice(known) {
            Some(value) if values.contains(&value) => item.mistake("is in the list already"),
            Some(value) => values.push(value),
            None => {}
        }
    }
    values
}

fn versions(object: &mut Object<'_>) -> Option<TlsVersions> {
    let version = |field: &Field<'_>, auto| {
        field.choice(&[
            ("Auto", auto),
            ("1.2", Version::Tls12),
            ("1.3", Version::Tls13),
        ])
    };
    let least = match object.optional("minVersion") {
        Some(field) => version(&field, Version::Tls12)?,
        None => Version::Tls12,
    };
    let most = match object.optional("maxVersion") {
        Some(field) => version(&field, Version::Tls13)?,
        None => Version::Tls13,
    };
    match (least, most) {
        (Version::Tls12, Version::Tls13) => Some(TlsVersions::Both),
        (Version::Tls12, Version::Tls12) => Some(TlsVersions::Only12),
        (Version::Tls13, Version::Tls13) => Some(TlsVersions::Only13),
        (Version::Tls13, Version::Tls12) => {
            object.field().sink().mistake(
                object.at("maxVersion"),
                "is below `minVersion`; no version would be left",
            );
            None
        }
    }
}
