//! `tls.clientValidation`: what clients are asked for (Envoy Gateway, `ClientValidationContext`).

use data_encoding::{BASE64, HEXLOWER_PERMISSIVE};

use super::super::Meta;
use super::super::authorities::secret_references;
use super::super::gateway::{RevocationDraft, ValidationDraft};
use super::super::string_match::{lower_case_match, string_match};
use super::settled;
use crate::model::{AcceptedCertificates, ClientDemand, NameKind, NameMatch};
use crate::reader::{Field, Object};

/// Hashes and names of each list: each is looked at in a handshake.
const MAX_ITEMS: usize = 64;

pub(super) fn read(field: &Field<'_>, meta: &Meta) -> Option<ValidationDraft> {
    let mut object = field.object()?;
    object.refused(
        &["allowExpiredCertificate"],
        "a certificate that is out of date proves nothing",
    );
    let authorities = object
        .required("caCertificateRefs")
        .and_then(|field| secret_references(&field, meta));
    let optional = match object.optional("optional") {
        Some(field) => field.boolean(),
        None => Some(false),
    };
    let mode = object.optional("mode").map(|field| mode(&field));
    let certificates = hashes(&mut object, "certificateHashes", certificate_hash);
    let keys = hashes(&mut object, "spkiHashes", key_hash);
    let names = object
        .optional("subjectAltNames")
        .map(|field| names(&field));
    let revocations = object
        .optional("crl")
        .map(|field| revocations(&field, meta));
    object.finish();
    let demand = match (settled(mode)?, optional?) {
        (Some(demand), _) => demand,
        (None, true) => ClientDemand::IfGiven,
        (None, false) => ClientDemand::Required,
    };
    Some(ValidationDraft {
        source: field.source().clone(),
        authorities: authorities?,
        demand,
        accepted: AcceptedCertificates {
            certificates: certificates?,
            keys: keys?,
            names: settled(names)?.unwrap_or_default(),
        },
        revocations: settled(revocations)?,
    })
}

fn mode(field: &Field<'_>) -> Option<ClientDemand> {
    if matches!(field.value().text(), Some("Request" | "RequireAny")) {
        field.mistake(
            "a certificate that nobody checks tells nothing; expected `RequireAndVerify` or `VerifyIfGiven`",
        );
        return None;
    }
    field.choice(&[
        ("RequireAndVerify", ClientDemand::Required),
        ("VerifyIfGiven", ClientDemand::IfGiven),
    ])
}

type Hash = [u8; 32];

fn hashes(
    object: &mut Object<'_>,
    name: &'static str,
    hash: fn(&str) -> Result<Hash, &'static str>,
) -> Option<Vec<Hash>> {
    let Some(field) = object.optional(name) else {
        return Some(Vec::new());
    };
    every(&field, |item| item.parse(hash))
}

/// What is read of each item; none: one has mistakes, or there is none.
fn every<'a, T>(field: &Field<'a>, read: impl FnMut(&Field<'a>) -> Option<T>) -> Option<Vec<T>> {
    let items = field.some_limited_list(MAX_ITEMS);
    let read: Vec<T> = items.iter().filter_map(read).collect();
    (!items.is_empty() && read.len() == items.len()).then_some(read)
}

/// As `openssl x509 -fingerprint` and `sha256sum` show it.
fn certificate_hash(text: &str) -> Result<Hash, &'static str> {
    let digits = text.replace(':', "");
    let bytes = HEXLOWER_PERMISSIVE.decode(digits.as_bytes()).ok();
    let hash = bytes.and_then(|bytes| bytes.try_into().ok());
    hash.ok_or("expected a SHA-256 of 64 hexadecimal digits")
}

fn key_hash(text: &str) -> Result<Hash, &'static str> {
    let bytes = BASE64.decode(text.as_bytes()).ok();
    let hash = bytes.and_then(|bytes| bytes.try_into().ok());
    hash.ok_or("expected a SHA-256 in base64 with padding, of 44 characters")
}

fn names(field: &Field<'_>) -> Option<Vec<NameMatch>> {
    let mut object = field.object()?;
    object.unsupported(&["otherNames"]);
    let mut names = Vec::new();
    let mut sound = field.value().get("otherNames").is_none();
    for (list, kind) in [
        ("dnsNames", NameKind::Dns),
        ("emailAddresses", NameKind::Email),
        ("ipAddresses", NameKind::Address),
        ("uris", NameKind::Uri),
    ] {
        let Some(field) = object.optional(list) else {
            continue;
        };
        let read = every(&field, |item| {
            let text = match kind {
                // Addresses of IPv6 are written in lower case.
                NameKind::Dns | NameKind::Address => lower_case_match(item),
                NameKind::Email | NameKind::Uri => string_match(item),
            };
            Some(NameMatch { kind, text: text? })
        });
        match read {
            Some(read) => names.extend(read),
            None => sound = false,
        }
    }
    object.finish();
    if names.is_empty() && sound {
        field.mistake("expected a list of names: without one no certificate would be good");
        return None;
    }
    sound.then_some(names)
}

fn revocations(field: &Field<'_>, meta: &Meta) -> Option<RevocationDraft> {
    let mut object = field.object()?;
    let references = object
        .required("refs")
        .and_then(|field| secret_references(&field, meta));
    let leaf_only = match object.optional("onlyVerifyLeafCertificate") {
        Some(field) => field.boolean(),
        None => Some(false),
    };
    object.finish();
    Some(RevocationDraft {
        references: references?,
        leaf_only: leaf_only?,
    })
}
