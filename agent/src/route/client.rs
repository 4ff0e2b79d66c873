//! How a listener treats its clients: a policy, ready for connections and requests.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, HeaderName};
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::server::ResolvesServerCertUsingSni;
use rustls::server::danger::ClientCertVerifier;
use rustls::version::{TLS12, TLS13};
use rustls::{CipherSuite, ServerConfig, SupportedProtocolVersion};
use snapshot::model::{Cidr, ClientIp, ClientPolicy, ClientTls, Tls12Cipher, TlsVersions};
use snapshot::path::PathRules;

mod edits;

pub use edits::ListenerEdits;

/// Where proxies write whom they speak for.
pub(crate) const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

/// What is spoken in handshakes with clients.
#[derive(Debug)]
pub(crate) struct Handshakes {
    provider: Arc<CryptoProvider>,
    versions: Vec<&'static SupportedProtocolVersion>,
    alpn: Vec<Vec<u8>>,
}

impl Handshakes {
    pub(crate) fn new(tls: &ClientTls) -> Self {
        let mut provider = aws_lc_rs::default_provider();
        if let Some(ciphers) = &tls.ciphers {
            let wanted: Vec<CipherSuite> = ciphers.iter().map(|one| suite(*one)).collect();
            provider
                .cipher_suites
                .retain(|one| one.version() == &TLS13 || wanted.contains(&one.suite()));
        }
        let usual = || vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        let named = tls.alpn.as_ref();
        Self {
            provider: Arc::new(provider),
            versions: match tls.versions {
                TlsVersions::Both => vec![&TLS13, &TLS12],
                TlsVersions::Only12 => vec![&TLS12],
                TlsVersions::Only13 => vec![&TLS13],
            },
            alpn: named.map_or_else(usual, |named| {
                named.iter().map(|one| one.as_bytes().to_vec()).collect()
            }),
        }
    }

    /// What signatures are checked with.
    pub(crate) fn provider(&self) -> &Arc<CryptoProvider> {
        &self.provider
    }

    /// Settings without a certificate, which is chosen by server name before each handshake. `asked`: whether clients have to
    /// have one of their own.
    pub(crate) fn settings(
        &self,
        asked: Arc<dyn ClientCertVerifier>,
    ) -> Result<ServerConfig, rustls::Error> {
        let mut settings = ServerConfig::builder_with_provider(Arc::clone(&self.provider))
            .with_protocol_versions(&self.versions)?
            .with_client_cert_verifier(asked)
            .with_cert_resolver(Arc::new(ResolvesServerCertUsingSni::new()));
        settings.alpn_protocols.clone_from(&self.alpn);
        Ok(settings)
    }
}

fn suite(cipher: Tls12Cipher) -> CipherSuite {
    match cipher {
        Tls12Cipher::EcdsaAes128 => CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
        Tls12Cipher::EcdsaAes256 => CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,
        Tls12Cipher::EcdsaChacha20 => CipherSuite::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256,
        Tls12Cipher::RsaAes128 => CipherSuite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
        Tls12Cipher::RsaAes256 => CipherSuite::TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384,
        Tls12Cipher::RsaChacha20 => CipherSuite::TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256,
    }
}

/// A policy and what is made of it once.
#[derive(Debug)]
pub struct ClientSettings {
    /// The policy.
    pub policy: Arc<ClientPolicy>,
    /// Versions, suites and ALPN of handshakes, without a certificate and without tickets; none: those of everybody.
    pub(crate) tls: Option<ServerConfig>,
    /// The header that tells the client's address, if one does.
    pub(crate) header: Option<HeaderName>,
    /// Edits of requests before anything is read from their headers.
    pub(crate) early: ListenerEdits,
    /// Edits of answers after all others.
    pub(crate) late: ListenerEdits,
}

/// Whose a request is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Detected {
    /// The client's address.
    pub address: IpAddr,
    /// What `X-Forwarded-For` may say of the way so far: the client first, then the proxies that are trusted. Empty if the
    /// connection is the client's own.
    pub way: String,
}

/// No header tells the client's address, and without it nobody is served.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the header that tells the client's address is missing or holds none")]
pub struct Undetected;

impl ClientSettings {
    /// How paths are read.
    pub fn path_rules(&self) -> PathRules {
        PathRules {
            keep_escaped_slashes: self.policy.escaped_slashes
                == snapshot::model::EscapedSlashes::Keep,
            merge_slashes: self.policy.merge_slashes,
        }
    }

    /// Whether requests have times of their own.
    pub fn is_timed(&self) -> bool {
        let timeouts = &self.policy.timeouts;
        timeouts.request.is_some() || timeouts.stream_idle.is_some()
    }

    /// How long a request or its answer may stand still.
    pub fn stream_idle(&self) -> Option<Duration> {
        self.policy.timeouts.stream_idle
    }

    /// Whose a request is that came by a connection of `connection`.
    ///
    /// # Errors
    ///
    /// When the policy asks for a header that does not tell.
    pub fn detect(
        &self,
        headers: &HeaderMap,
        connection: IpAddr,
    ) -> Result<Option<Detected>, Undetected> {
        let Some(by) = &self.policy.client_ip else {
            return Ok(None);
        };
        let own = Detected {
            address: connection,
            way: String::new(),
        };
        let found = match by {
            ClientIp::Hops(hops) => {
                let entries = forwarded(headers);
                let hops = usize::try_from(hops.get()).unwrap_or(usize::MAX);
                let at = entries.len().checked_sub(hops);
                at.and_then(|at| from(&entries, at))
            }
            ClientIp::Trusted(networks) => trusted(headers, networks, connection),
            ClientIp::Header { fail_closed, .. } => {
                let mut values = self.header.iter().flat_map(|name| headers.get_all(name));
                let told = match (values.next(), values.next()) {
                    (Some(value), None) => value.to_str().ok().and_then(address),
                    _ => None,
                };
                if told.is_none() && *fail_closed {
                    return Err(Undetected);
                }
                told.map(|address| Detected {
                    address,
                    way: address.to_string(),
                })
            }
        };
        Ok(Some(found.unwrap_or(own)))
    }
}

/// From right to left as long as proxies are trusted, beginning with the connection's other end.
fn trusted(headers: &HeaderMap, networks: &[Cidr], connection: IpAddr) -> Option<Detected> {
    let known = |address| {
        let address = Cidr::host(address);
        networks.iter().any(|network| network.contains(&address))
    };
    if !known(connection) {
        return None;
    }
    let entries = forwarded(headers);
    for at in (0..entries.len()).rev() {
        // Whatever is left of what is no address was not told by a proxy that is trusted.
        if !known(address(entries[at])?) {
            return from(&entries, at);
        }
    }
    from(&entries, 0)
}

/// The client is the one at a place, and the proxies are those behind it.
fn from(entries: &[&str], at: usize) -> Option<Detected> {
    Some(Detected {
        address: address(entries.get(at)?)?,
        way: entries[at..].join(", "),
    })
}

/// The addresses of all `X-Forwarded-For` lines in their order.
fn forwarded(headers: &HeaderMap) -> Vec<&str> {
    let lines = headers.get_all(&FORWARDED_FOR).iter();
    // An entry that cannot be read must not hide those that proxies wrote behind it.
    lines
        .flat_map(|line| line.as_bytes().split(|byte| *byte == b','))
        .map(|entry| std::str::from_utf8(entry).map_or("?", str::trim))
        .collect()
}

/// An address with or without a port, as proxies write them.
fn address(text: &str) -> Option<IpAddr> {
    let text = text.trim();
    let bare = text
        .strip_prefix('[')
        .and_then(|rest| rest.strip_suffix(']'))
        .unwrap_or(text);
    let parsed = bare.parse::<IpAddr>().ok();
    let parsed = parsed.or_else(|| Some(text.parse::<SocketAddr>().ok()?.ip()));
    parsed.map(|address| address.to_canonical())
}

#[cfg(test)]
mod tests;
