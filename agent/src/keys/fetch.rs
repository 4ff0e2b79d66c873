//! One fetch of a key set: one GET over a connection of its own, of bounded time and size.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, StatusCode, header};
use http_body_util::Full;
use rustls_pki_types::ServerName;
use snapshot::model::{Key, RemoteKeys, UpstreamHost};

use crate::route::{RouteTable, TlsPeer};
use crate::upstream::once::{OnceError, once};
use crate::upstream::resolve::Resolver;
use crate::upstream::{self, Destination, Place, Settings, UpstreamError};

/// Envoy Gateway: the whole fetch.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Bytes of a key set: a hundred RSA keys with certificate chains are below.
const MAX_BYTES: usize = 1 << 20;

/// Why a fetch brought no key set.
#[derive(Debug, thiserror::Error)]
pub(super) enum FetchError {
    #[error("no connection")]
    Connect(#[source] UpstreamError),
    #[error("the given authorities cannot be used")]
    Authorities(#[source] rustls::Error),
    #[error("the request or its answer broke")]
    Http(#[source] OnceError),
    #[error("the request cannot be made")]
    Request(#[source] http::Error),
    #[error("expected status 200, got {0}; redirects are not followed")]
    Status(StatusCode),
    #[error("not finished within {TIMEOUT:?}")]
    Timeout,
    #[error("not a usable key set")]
    Keys(#[source] snapshot::KeySetError),
    #[error("none of its keys can be used")]
    Useless,
}

/// What fetches are made with.
pub(super) struct Network {
    settings: Settings,
    resolver: Resolver,
    mark: Option<u32>,
}

impl Network {
    pub(super) fn new(settings: Settings, mark: Option<u32>) -> Self {
        Self {
            settings,
            resolver: Resolver::default(),
            mark,
        }
    }

    pub(super) async fn fetch(
        &self,
        remote: &RemoteKeys,
        table: &RouteTable,
    ) -> Result<Vec<Key>, FetchError> {
        let bytes = tokio::time::timeout(TIMEOUT, self.get(remote, table))
            .await
            .map_err(|_| FetchError::Timeout)??;
        snapshot::fetched_keys(&bytes).map_err(FetchError::Keys)
    }

    async fn get(&self, remote: &RemoteKeys, table: &RouteTable) -> Result<Bytes, FetchError> {
        let uri = &remote.uri;
        let (place, name) = match &uri.host {
            UpstreamHost::Address(address) => (
                Place::Address((*address, uri.port.get()).into()),
                Some(ServerName::from(*address)),
            ),
            UpstreamHost::Name(name) => (
                Place::Name(name.clone(), uri.port.get()),
                ServerName::try_from(name.as_str().to_owned()).ok(),
            ),
        };
        let destination = Destination {
            place,
            // A checked host name is a server name.
            tls: name.filter(|_| uri.tls).map(TlsPeer::from),
            http2: false,
            mark: self.mark,
            host: None,
            outside: false,
            owner: None,
            terms: None,
        };
        let settings = match &remote.authorities {
            Some(authorities) => Settings {
                tls: Some(Arc::new(
                    trusting(authorities).map_err(FetchError::Authorities)?,
                )),
                ..self.settings.clone()
            },
            None => self.settings.clone(),
        };
        let connected = upstream::connect(&destination, &settings, &self.resolver, table)
            .await
            .map_err(FetchError::Connect)?;
        let request = Request::get(&uri.target)
            .header(header::HOST, &uri.authority)
            .header(header::ACCEPT, "application/jwk-set+json, application/json")
            .header(header::USER_AGENT, "cardinal-agent")
            .body(Full::default())
            .map_err(FetchError::Request)?;
        let (status, bytes) = once(connected.stream, request, MAX_BYTES)
            .await
            .map_err(FetchError::Http)?;
        if status != StatusCode::OK {
            return Err(FetchError::Status(status));
        }
        Ok(bytes)
    }
}

fn trusting(
    authorities: &[rustls_pki_types::CertificateDer<'static>],
) -> Result<rustls::ClientConfig, rustls::Error> {
    let mut roots = rustls::RootCertStore::empty();
    for one in authorities {
        roots.add(one.clone())?;
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    Ok(rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth())
}
