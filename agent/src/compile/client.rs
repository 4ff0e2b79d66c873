//! Policies of listeners towards their clients, made ready for handshakes and requests.

use std::sync::Arc;

use http::HeaderName;
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::server::ResolvesServerCertUsingSni;
use rustls::{CipherSuite, ServerConfig, SupportedProtocolVersion};
use snapshot::model::{ClientIp, ClientPolicy, ClientTls, Tls12Cipher, TlsVersions};

use crate::route::client::ClientSettings;

/// Makes a policy ready, or says why it cannot be.
pub(super) fn settings(policy: &Arc<ClientPolicy>) -> Result<ClientSettings, String> {
    let header = match &policy.client_ip {
        Some(ClientIp::Header { name, .. }) => {
            let name = HeaderName::from_bytes(name.as_bytes());
            Some(name.map_err(|error| error.to_string())?)
        }
        _ => None,
    };
    let tls = match policy.tls == ClientTls::default() {
        true => None,
        false => Some(Arc::new(tls(&policy.tls)?)),
    };
    Ok(ClientSettings {
        policy: Arc::clone(policy),
        tls,
        header,
    })
}

fn tls(tls: &ClientTls) -> Result<ServerConfig, String> {
    let mut provider = aws_lc_rs::default_provider();
    if let Some(ciphers) = &tls.ciphers {
        let wanted: Vec<CipherSuite> = ciphers.iter().map(|one| suite(*one)).collect();
        provider.cipher_suites.retain(|one| {
            one.version() == &rustls::version::TLS13 || wanted.contains(&one.suite())
        });
    }
    let versions: &[&SupportedProtocolVersion] = match tls.versions {
        TlsVersions::Both => &[&rustls::version::TLS13, &rustls::version::TLS12],
        TlsVersions::Only12 => &[&rustls::version::TLS12],
        TlsVersions::Only13 => &[&rustls::version::TLS13],
    };
    let provider: Arc<CryptoProvider> = Arc::new(provider);
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(versions)
        .map_err(|error| format!("`tls` leaves nothing to speak: {error}"))?
        .with_no_client_auth()
        // The certificate is chosen by server name before each handshake.
        .with_cert_resolver(Arc::new(ResolvesServerCertUsingSni::new()));
    config.alpn_protocols = match &tls.alpn {
        Some(protocols) => protocols
            .iter()
            .map(|one| one.as_bytes().to_vec())
            .collect(),
        None => vec![b"h2".to_vec(), b"http/1.1".to_vec()],
    };
    Ok(config)
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
