//! `Secret`: certificates, and what policies keep in one. No message here ever shows what a secret holds.

use std::collections::BTreeMap;
use std::sync::Arc;

use data_encoding::BASE64;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::prelude::{FromDer, X509Certificate};

use super::Meta;
use crate::model::Certificate;
use crate::reader::{Field, Object};

/// Certificates of a chain, at most.
const MAX_CHAIN: usize = 16;

/// What a `Secret` holds.
pub(crate) enum SecretDraft {
    Tls {
        certificate: Arc<Certificate>,
        /// What is beside it by key, each read where it is asked for.
        beside: BTreeMap<&'static str, Vec<u8>>,
    },
    /// Values by key, for policies that name the Secret. Never shown.
    Opaque(BTreeMap<String, Vec<u8>>),
}

#[derive(Clone, Copy)]
enum Kind {
    Tls,
    Opaque,
    /// For somebody else.
    Other,
}

/// Types of Secrets that Kubernetes has for its own, and that no document here asks for.
const OTHERS: [&str; 6] = [
    "kubernetes.io/service-account-token",
    "kubernetes.io/dockercfg",
    "kubernetes.io/dockerconfigjson",
    "kubernetes.io/basic-auth",
    "kubernetes.io/ssh-auth",
    "bootstrap.kubernetes.io/token",
];

/// Reads the fields of the document beside `metadata`.
pub(crate) fn read(object: &mut Object<'_>, meta: &Meta) -> Option<SecretDraft> {
    let kind = object.required("type").and_then(|field| {
        if field
            .value()
            .text()
            .is_some_and(|text| OTHERS.contains(&text))
        {
            return Some(Kind::Other);
        }
        field.choice(&[("kubernetes.io/tls", Kind::Tls), ("Opaque", Kind::Opaque)])
    });
    object.ignored(&["immutable"]);
    match kind {
        Some(Kind::Opaque) => opaque(object).map(SecretDraft::Opaque),
        Some(Kind::Other) => {
            object.any_others();
            Some(SecretDraft::Opaque(BTreeMap::new()))
        }
        // A wrong type is said above; what else is wrong is said as for a certificate.
        Some(Kind::Tls) | None => {
            let certificate = certificate(object, meta);
            let (certificate, beside) = kind.and(certificate)?;
            Some(SecretDraft::Tls {
                certificate: Arc::new(certificate),
                beside,
            })
        }
    }
}

fn opaque(object: &mut Object<'_>) -> Option<BTreeMap<String, Vec<u8>>> {
    let mut values = BTreeMap::new();
    let mut complete = true;
    for (key, field) in object
        .optional("data")
        .map(|f| f.entries())
        .unwrap_or_default()
    {
        match base64(&field) {
            Some(bytes) => {
                values.insert(key.to_owned(), bytes);
            }
            None => complete = false,
        }
    }
    // As in Kubernetes `stringData` wins.
    let plain = object.optional("stringData").map(|f| f.entries());
    for (key, field) in plain.unwrap_or_default() {
        match field.value().text() {
            Some(text) => {
                values.insert(key.to_owned(), text.as_bytes().to_vec());
            }
            None => {
                field.mistake("expected a text");
                complete = false;
            }
        }
    }
    complete.then_some(values)
}

pub(super) fn base64(field: &Field<'_>) -> Option<Vec<u8>> {
    let bytes = field.value().text().and_then(|text| {
        let compact: String = text.split_ascii_whitespace().collect();
        BASE64.decode(compact.as_bytes()).ok()
    });
    if bytes.is_none() {
        field.mistake("expected base64 with padding (RFC 4648, section 4)");
    }
    bytes
}

/// What issuers such as cert-manager add: the authority's certificate, and what it revoked.
const BESIDE: [&str; 2] = ["ca.crt", "ca.crl"];

/// The certificate, and what is beside it.
fn certificate(
    object: &mut Object<'_>,
    meta: &Meta,
) -> Option<(Certificate, BTreeMap<&'static str, Vec<u8>>)> {
    let mut data = object.optional("data").and_then(|field| field.object());
    let mut plain = object
        .optional("stringData")
        .and_then(|field| field.object());
    let mut value = |name: &'static str| -> Option<(Field<'_>, Vec<u8>)> {
        // As in Kubernetes `stringData` wins.
        let encoded = data.as_mut().and_then(|data| data.optional(name));
        let text = plain.as_mut().and_then(|plain| plain.optional(name));
        if let Some(field) = text {
            let Some(text) = field.value().text() else {
                field.mistake("expected a text in PEM form");
                return None;
            };
            return Some((field.clone(), text.as_bytes().to_vec()));
        }
        let Some(field) = encoded else {
            object.field().sink().mistake(
                object.at(&format!("data.{name}")),
                format_args!("is missing, and required here or in `stringData`"),
            );
            return None;
        };
        let bytes = base64(&field)?;
        Some((field, bytes))
    };
    let chain = value("tls.crt").and_then(|(field, bytes)| chain(&field, &bytes));
    let key = value("tls.key").and_then(|(field, bytes)| Some((key(&field, &bytes)?, field)));
    let mut beside = BTreeMap::new();
    let mut complete = true;
    for key in BESIDE {
        let encoded = data.as_mut().and_then(|data| data.optional(key));
        let text = plain.as_mut().and_then(|plain| plain.optional(key));
        let bytes = match (text, encoded) {
            (Some(field), _) => {
                let bytes = field.value().text().map(|text| text.as_bytes().to_vec());
                if bytes.is_none() {
                    field.mistake("expected a text in PEM form");
                }
                bytes
            }
            (None, Some(field)) => base64(&field),
            (None, None) => continue,
        };
        match bytes {
            Some(bytes) => {
                beside.insert(key, bytes);
            }
            None => complete = false,
        }
    }
    for object in [data, plain].into_iter().flatten() {
        object.finish();
    }
    let (chain, leaf) = chain?;
    let (key, key_field) = key?;
    // Bytes that no signer takes were refused with the key.
    let signer = rustls::crypto::aws_lc_rs::sign::any_supported_type(&key).ok()?;
    if signer
        .public_key()
        .is_none_or(|public| public.as_ref() != leaf.public_key)
    {
        key_field.mistake("the key does not belong to the first certificate of `tls.crt`");
        return None;
    }
    let certificate = Certificate {
        name: meta.name.clone(),
        declared: meta.declared.clone(),
        not_after: leaf.not_after,
        names: leaf.names,
        chain,
        key,
    };
    complete.then_some((certificate, beside))
}

struct Leaf {
    not_after: i64,
    names: Vec<String>,
    public_key: Vec<u8>,
}

fn chain(field: &Field<'_>, pem: &[u8]) -> Option<(Vec<CertificateDer<'static>>, Leaf)> {
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    let chain = match chain {
        Ok(chain) if chain.is_empty() => {
            field.mistake("expected at least one PEM block `CERTIFICATE`");
            return None;
        }
        Ok(chain) if chain.len() > MAX_CHAIN => {
            field.mistake(format_args!(
                "expected at most {MAX_CHAIN} certificates, got {}",
                chain.len()
            ));
            return None;
        }
        Ok(chain) => chain,
        Err(_) => {
            field.mistake("expected certificates in PEM form (RFC 7468), got a broken block");
            return None;
        }
    };
    let mut leaf = None;
    for (index, certificate) in chain.iter().enumerate() {
        let parsed = match X509Certificate::from_der(certificate) {
            Ok(([], parsed)) => parsed,
            _ => {
                field.mistake(format_args!(
                    "certificate {} of the chain is not an X.509 certificate",
                    index + 1
                ));
                return None;
            }
        };
        leaf.get_or_insert_with(|| Leaf {
            not_after: parsed.validity().not_after.timestamp(),
            names: names(&parsed),
            public_key: parsed.public_key().raw.to_vec(),
        });
    }
    let leaf = leaf?;
    if leaf.names.is_empty() {
        field.warning(
            "the certificate names no host (subject alternative name); clients will refuse it",
        );
    }
    Some((chain, leaf))
}

fn names(certificate: &X509Certificate<'_>) -> Vec<String> {
    let mut names = Vec::new();
    for extension in certificate.extensions() {
        let ParsedExtension::SubjectAlternativeName(alternative) = extension.parsed_extension()
        else {
            continue;
        };
        for name in &alternative.general_names {
            match name {
                GeneralName::DNSName(name) => names.push(name.to_ascii_lowercase()),
                GeneralName::IPAddress(bytes) => {
                    let v4 = <[u8; 4]>::try_from(*bytes).map(std::net::IpAddr::from);
                    let v6 = <[u8; 16]>::try_from(*bytes).map(std::net::IpAddr::from);
                    names.extend(v4.or(v6).map(|address| address.to_string()));
                }
                _ => {}
            }
        }
    }
    names
}

fn key(field: &Field<'_>, pem: &[u8]) -> Option<PrivateKeyDer<'static>> {
    let key = match PrivateKeyDer::from_pem_slice(pem) {
        Ok(key) => key,
        Err(_) => {
            field.mistake(
                "expected a private key in PEM form, not encrypted (PKCS #8, PKCS #1 or SEC1)",
            );
            return None;
        }
    };
    if rustls::crypto::aws_lc_rs::sign::any_supported_type(&key).is_err() {
        field.mistake(
            "expected an RSA key of at least 2048 bits, ECDSA on P-256, P-384 or P-521, or Ed25519",
        );
        return None;
    }
    Some(key)
}
