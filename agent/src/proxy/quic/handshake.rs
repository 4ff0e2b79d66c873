//! TLS of QUIC's handshakes (RFC 9001): as for TCP, the server name chooses a listener, and that a certificate and what the
//! client is asked for.
//!
//! A handshake over TCP is held until its settings are chosen. QUIC's begins with its settings; so these are made for each, and
//! choose when they are asked for a certificate, which comes before anything is asked of the client.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use quinn::crypto::rustls::QuicServerConfig;
use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::CryptoProvider;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ClientHello, NoServerSessionStorage, ProducesTickets, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::version::TLS13;
use rustls::{DigitallySignedStruct, DistinguishedName, Error, ServerConfig, SignatureScheme};
use rustls_pki_types::{CertificateDer, UnixTime};

use super::super::log::Reason;
use super::super::tls::{self, expired};
use crate::clock;
use crate::route::{Listener, RouteTable};

/// The protocol that is spoken (RFC 9114, section 3.1).
const ALPN: &[u8] = b"h3";

/// What handshakes of an address have in common.
pub(super) struct Handshakes {
    provider: Arc<CryptoProvider>,
}

impl Handshakes {
    pub(super) fn new() -> Self {
        Self {
            provider: tls::provider(),
        }
    }

    /// Settings by which nobody gets in, for an endpoint as such.
    pub(super) fn nobody(&self) -> Result<Arc<QuicServerConfig>, Error> {
        self.settings(&Arc::new(Handshake::default()), None)
    }

    /// Settings of one handshake, and who chooses in it.
    pub(super) fn begin(
        &self,
        table: Arc<RouteTable>,
        local: SocketAddr,
        tickets: Option<Arc<dyn ProducesTickets>>,
    ) -> Result<(Arc<QuicServerConfig>, Arc<Handshake>), Error> {
        let handshake = Arc::new(Handshake {
            state: Mutex::new(State {
                from: Some((table, local)),
                asked: Asked::default(),
                key: None,
            }),
            asks: OnceLock::new(),
        });
        Ok((self.settings(&handshake, tickets)?, handshake))
    }

    fn settings(
        &self,
        handshake: &Arc<Handshake>,
        tickets: Option<Arc<dyn ProducesTickets>>,
    ) -> Result<Arc<QuicServerConfig>, Error> {
        let mut settings = ServerConfig::builder_with_provider(Arc::clone(&self.provider))
            .with_protocol_versions(&[&TLS13])?
            .with_client_cert_verifier(Arc::clone(handshake) as _)
            .with_cert_resolver(Arc::clone(handshake) as _);
        settings.alpn_protocols = vec![ALPN.to_vec()];
        settings.session_storage = Arc::new(NoServerSessionStorage {});
        match tickets {
            Some(tickets) => settings.ticketer = tickets,
            None => settings.send_tls13_tickets = 0,
        }
        // Requests that could be sent again by whoever saw them are not taken (RFC 8470).
        settings.max_early_data_size = 0;
        let settings = QuicServerConfig::try_from(settings);
        let settings = settings.map_err(|error| Error::General(error.to_string()))?;
        Ok(Arc::new(settings))
    }
}

/// What a client asked for, and what came of it.
#[derive(Clone, Default)]
pub(super) struct Asked {
    /// Server name, lower case.
    pub(super) name: Option<String>,
    pub(super) listener: Option<Arc<Listener>>,
    /// Why it gets no certificate.
    pub(super) refused: Option<(Reason, String)>,
}

/// One handshake. What it chose is kept as long as it lasts: a client may have to ask twice (RFC 8446, section 4.1.4).
#[derive(Default)]
pub(super) struct Handshake {
    state: Mutex<State>,
    /// Who looks at the client's certificate; none: nobody asks for one.
    asks: OnceLock<Arc<dyn ClientCertVerifier>>,
}

#[derive(Default)]
struct State {
    /// What is chosen from; none: it was chosen, or there is nothing.
    from: Option<(Arc<RouteTable>, SocketAddr)>,
    asked: Asked,
    key: Option<Arc<CertifiedKey>>,
}

impl State {
    fn choose(&mut self, asks: &OnceLock<Arc<dyn ClientCertVerifier>>, name: Option<&str>) {
        let Some((table, local)) = self.from.take() else {
            return;
        };
        self.asked.name = name.map(str::to_ascii_lowercase);
        let name = self.asked.name.as_deref();
        let listener = table.bind(local).and_then(|bind| bind.named(name));
        // One of the others of the port may have HTTP/3 alone.
        let listener = listener.filter(|listener| listener.alt_svc.is_some());
        self.asked.listener = listener.cloned();
        let certificate = listener.and_then(|listener| listener.certificate(name));
        let (Some(listener), Some(certificate)) = (listener, certificate) else {
            let name = name.unwrap_or("none");
            let why = format!("no listener of HTTP/3 with a certificate for server name {name}");
            self.asked.refused = Some((Reason::NoCertificate, why));
            return;
        };
        if expired(certificate) {
            let why = format!(
                "certificate {} expired at {}",
                certificate.name,
                clock::rfc3339(certificate.not_after)
            );
            self.asked.refused = Some((Reason::CertificateExpired, why));
            return;
        }
        match listener.clients.as_ref().map(|clients| clients.asked()) {
            Some(Ok(verifier)) => {
                // Nobody else chooses.
                let _first = asks.set(Arc::clone(verifier));
            }
            Some(Err(why)) => {
                let why = format!("no client can be believed: {why}");
                self.asked.refused = Some((Reason::TlsHandshake, why));
                return;
            }
            None => {}
        }
        self.key = Some(Arc::clone(&certificate.key));
    }
}

impl Handshake {
    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        // It is put right as a whole, or left as it was.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What it came to. The connection holds on to it, so that it must hold nothing itself from here on.
    pub(super) fn over(&self) -> Asked {
        std::mem::take(&mut *self.state()).asked
    }
}

impl std::fmt::Debug for Handshake {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Handshake").finish_non_exhaustive()
    }
}

impl ResolvesServerCert for Handshake {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let mut state = self.state();
        state.choose(&self.asks, hello.server_name());
        state.key.clone()
    }
}

impl ClientCertVerifier for Handshake {
    fn offer_client_auth(&self) -> bool {
        self.asks.get().is_some_and(|one| one.offer_client_auth())
    }

    fn client_auth_mandatory(&self) -> bool {
        self.asks
            .get()
            .is_some_and(|one| one.client_auth_mandatory())
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.asks.get().map_or(&[], |one| one.root_hint_subjects())
    }

    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        others: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.asking()?.verify_client_cert(leaf, others, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.asking()?.verify_tls12_signature(message, leaf, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.asking()?.verify_tls13_signature(message, leaf, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        let asks = self.asks.get();
        asks.map_or_else(Vec::new, |one| one.supported_verify_schemes())
    }
}

impl Handshake {
    fn asking(&self) -> Result<&Arc<dyn ClientCertVerifier>, Error> {
        let nobody = || Error::General("a certificate that nobody asked for".into());
        self.asks.get().ok_or_else(nobody)
    }
}

/// The certificates that the client of a connection showed.
pub(super) fn certificates(quic: &quinn::Connection) -> Option<Vec<CertificateDer<'static>>> {
    let shown = quic.peer_identity()?;
    shown.downcast().ok().map(|shown| *shown)
}
