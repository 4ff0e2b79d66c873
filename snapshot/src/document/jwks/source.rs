//! Where keys of a token provider come from: out of the document, or from a URI.

use std::sync::Arc;
use std::time::Duration;

use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;

use super::keys;
use crate::document::routing_table::values::{duration, url};
use crate::model::{KeyUri, ProviderKeys, RemoteKeys, UpstreamHost};
use crate::reader::{Field, Object};
use crate::tree::shortened;

/// Envoy Gateway, `remoteJWKS.cacheDuration`.
const CACHE: Duration = Duration::from_secs(300);

/// How long keys serve that cannot be fetched again: a day of repair for whoever runs the provider.
const MAX_STALE: Duration = Duration::from_secs(24 * 60 * 60);

/// Shorter ones would be a load on the provider rather than fresh.
const MIN_CACHE: Duration = Duration::from_secs(1);

/// Authorities of one provider, at most.
const MAX_AUTHORITIES: usize = 64;

/// Longest URI in bytes.
const MAX_URI: usize = 2048;

/// What the document may say of a fetch beside the URI.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum RemoteOptions {
    /// What Envoy Gateway has.
    Gateway,
    /// Also `caCertificates` and `maxStale`, which are ours.
    Ours,
}

/// Exactly one of `remoteJWKS` and `localJWKS`.
pub(crate) fn key_source(object: &mut Object<'_>, options: RemoteOptions) -> Option<ProviderKeys> {
    let remote = object.optional("remoteJWKS");
    let local = object.optional("localJWKS");
    match (remote, local) {
        (Some(field), None) => {
            remote_keys(&field, options).map(|keys| ProviderKeys::Remote(Arc::new(keys)))
        }
        (None, Some(field)) => local_keys(&field),
        (Some(field), Some(_)) => {
            field.mistake("expected exactly one of `remoteJWKS` and `localJWKS`, got both");
            None
        }
        (None, None) => {
            object.field().sink().mistake(
                object.at("localJWKS"),
                "is missing, and required here or as `remoteJWKS`",
            );
            None
        }
    }
}

fn local_keys(field: &Field<'_>) -> Option<ProviderKeys> {
    let mut source = field.object()?;
    let kind = match source.optional("type") {
        Some(field) => field.choice(&[("Inline", true), ("ValueRef", false)]),
        None => Some(true),
    };
    let reference = source.optional("valueRef");
    if let Some(field) = &reference {
        field.mistake("a key set out of a `ConfigMap` is not supported yet; put it into `inline`");
    }
    let inline = if kind == Some(true) && reference.is_none() {
        source.required("inline")
    } else {
        source.optional("inline")
    };
    source.finish();
    let inline = inline?;
    let keys = keys(inline.some_string()?, inline.source(), inline.sink())?;
    if keys.is_empty() {
        inline.mistake("expected at least one key that checks signatures");
        return None;
    }
    if kind == Some(false) && reference.is_none() {
        field.mistake("type `ValueRef` needs `valueRef`, and a key set out of a `ConfigMap` is not supported yet");
    }
    (kind? && reference.is_none()).then_some(ProviderKeys::Local(keys))
}

fn remote_keys(field: &Field<'_>, options: RemoteOptions) -> Option<RemoteKeys> {
    let mut object = field.object()?;
    let uri = object.required("uri").and_then(|field| field.parse(uri));
    let mut time = |name: &'static str, usual: Duration| match object.optional(name) {
        None => Some(usual),
        Some(field) => field.parse(|text| {
            let given = duration(text)?;
            if given < MIN_CACHE {
                return Err(format!("expected at least {MIN_CACHE:?}, got {given:?}"));
            }
            Ok(given)
        }),
    };
    let cache = time("cacheDuration", CACHE);
    let mut max_stale = Some(MAX_STALE);
    let mut authorities = Some(None);
    match options {
        RemoteOptions::Gateway => {}
        RemoteOptions::Ours => {
            max_stale = time("maxStale", MAX_STALE);
            if let Some(field) = object.optional("caCertificates") {
                authorities = certificates(&field).map(Some);
                if uri.as_ref().is_some_and(|uri| !uri.tls) {
                    field.mistake("is for `https` only; a plain connection has no certificate");
                }
            }
        }
    }
    object.unsupported(&["backendRef", "backendRefs", "backendSettings"]);
    object.finish();
    Some(RemoteKeys {
        uri: uri?,
        cache: cache?,
        max_stale: max_stale?,
        authorities: authorities?,
    })
}

fn certificates(field: &Field<'_>) -> Option<Arc<[CertificateDer<'static>]>> {
    let text = field.some_string()?;
    let read: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(text.as_bytes()).collect();
    match read {
        Ok(list) if (1..=MAX_AUTHORITIES).contains(&list.len()) => Some(list.into()),
        _ => {
            field.mistake(format_args!(
                "expected 1 to {MAX_AUTHORITIES} certificates in PEM form (RFC 7468)"
            ));
            None
        }
    }
}

/// An `http` or `https` URI (RFC 9110, section 4.2) with path and query, without user or fragment.
fn uri(text: &str) -> Result<KeyUri, String> {
    let expected = |why: &str| {
        format!(
            "expected a URI such as `https://idp.example.com/jwks.json`, got `{}`: {why}",
            shortened(text.split('?').next().unwrap_or_default())
        )
    };
    if text.len() > MAX_URI {
        return Err(expected("it is too long"));
    }
    if !text.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(expected("it has characters that need percent-encoding"));
    }
    if text.contains('#') {
        return Err(expected("a fragment is never sent"));
    }
    let scheme = text.find("://").map_or(0, |at| at + 3);
    let end = text[scheme..]
        .find(['/', '?'])
        .map_or(text.len(), |at| scheme + at);
    let (base, rest) = text.split_at(end);
    if base.contains('@') {
        // What stands before it may be a password.
        return Err("expected a URI without user information".into());
    }
    let base_url = url(base)?;
    let target = match rest {
        "" => "/".to_owned(),
        rest if rest.starts_with('?') => format!("/{rest}"),
        rest => rest.to_owned(),
    };
    let usual = if base_url.tls { 443 } else { 80 };
    let host = match &base_url.host {
        UpstreamHost::Address(std::net::IpAddr::V6(v6)) => format!("[{v6}]"),
        UpstreamHost::Address(v4) => v4.to_string(),
        UpstreamHost::Name(name) => name.to_string(),
    };
    let authority = if base_url.port.get() == usual {
        host
    } else {
        format!("{host}:{}", base_url.port)
    };
    Ok(KeyUri {
        tls: base_url.tls,
        host: base_url.host,
        port: base_url.port,
        authority,
        target,
    })
}

#[cfg(test)]
mod tests {
    use super::uri;

    #[test]
    fn uris_have_host_and_target_and_no_user() {
        for (given, tls, authority, target, shown) in [
            (
                "https://idp.example.com/jwks.json",
                true,
                "idp.example.com",
                "/jwks.json",
                "https://idp.example.com/jwks.json",
            ),
            (
                "http://127.0.0.1:8080/k?api-key=s3cret",
                false,
                "127.0.0.1:8080",
                "/k?api-key=s3cret",
                "http://127.0.0.1:8080/k",
            ),
            ("https://x", true, "x", "/", "https://x/"),
            (
                "https://[::1]:8443?a=b",
                true,
                "[::1]:8443",
                "/?a=b",
                "https://[::1]:8443/",
            ),
            ("http://x:80/a", false, "x", "/a", "http://x/a"),
        ] {
            let read = uri(given).expect(given);
            assert_eq!(
                (read.tls, read.authority.as_str(), read.target.as_str()),
                (tls, authority, target)
            );
            assert_eq!(read.to_string(), shown, "the query is not shown");
        }
        for given in [
            "",
            "idp.example.com/jwks",
            "ftp://x/y",
            "https://",
            "https:///jwks",
            "https://x/a b",
            "https://x/a#b",
            "https://x:0/",
            "https://x/\u{e4}",
        ] {
            assert!(uri(given).is_err(), "{given}");
        }
        let refused = uri("https://me:pa55@x/y").expect_err("it has a user");
        assert!(!refused.contains("pa55"), "{refused}");
        let refused = uri("ftp://x/y?token=pa55").expect_err("it is not HTTP");
        assert!(!refused.contains("pa55"), "{refused}");
    }
}
