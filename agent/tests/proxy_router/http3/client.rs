//! Clients of HTTP/3: one of another implementation, and one that writes what it is told, byte by byte.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf, Bytes};
use h3::client::{RequestStream, SendRequest};
use h3_quinn::{BidiStream, OpenStreams};
use http::{HeaderMap, Request};
use quinn::crypto::rustls::QuicClientConfig;
use quinn::{Connection, ConnectionError, Endpoint, RecvStream, SendStream, VarInt};
use rustls::RootCertStore;

use crate::support::Reply;
use crate::tls::{Authority, Issued};

/// What must come, comes within this.
const SURELY: Duration = Duration::from_secs(60);

/// Waits for what must come.
pub(crate) async fn surely<T>(waited: impl Future<Output = T>) -> T {
    tokio::time::timeout(SURELY, waited)
        .await
        .expect("it comes in time")
}

/// What clients of an authority begin handshakes with.
pub(crate) fn settings(
    roots: RootCertStore,
    own: Option<&Issued>,
    alpn: &[u8],
) -> quinn::ClientConfig {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("versions")
        .with_root_certificates(roots);
    let mut config = match own {
        Some(own) => builder
            .with_client_auth_cert(own.chain(), own.key())
            .expect("a certificate"),
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![alpn.to_vec()];
    let config = QuicClientConfig::try_from(config).expect("TLS 1.3");
    quinn::ClientConfig::new(Arc::new(config))
}

pub(crate) fn endpoint() -> Endpoint {
    Endpoint::client("127.0.0.1:0".parse().expect("an address")).expect("a port")
}

/// A connection of QUIC for `name`.
pub(crate) async fn connect(
    endpoint: &Endpoint,
    settings: quinn::ClientConfig,
    at: SocketAddr,
    name: &str,
) -> Result<Connection, ConnectionError> {
    let connecting = endpoint.connect_with(settings, at, name);
    surely(connecting.expect("a handshake begins")).await
}

pub(crate) type Stream = RequestStream<BidiStream<Bytes>, Bytes>;

/// A connection of HTTP/3.
pub(crate) struct Client {
    pub(crate) endpoint: Endpoint,
    pub(crate) quic: Connection,
    send: SendRequest<OpenStreams, Bytes>,
    driver: tokio::task::JoinHandle<()>,
}

impl Client {
    pub(crate) async fn new(authority: &Authority, at: SocketAddr, name: &str) -> Self {
        let settings = settings(authority.roots(), None, b"h3");
        let client = Self::with(settings, at, name).await;
        client.expect("it shakes hands")
    }

    pub(crate) async fn with(
        settings: quinn::ClientConfig,
        at: SocketAddr,
        name: &str,
    ) -> Result<Self, ConnectionError> {
        let endpoint = endpoint();
        let quic = connect(&endpoint, settings, at, name).await?;
        let http = h3::client::new(h3_quinn::Connection::new(quic.clone()));
        let (mut driver, send) = http.await.expect("streams are granted");
        let driver = tokio::spawn(async move {
            std::future::poll_fn(|context| driver.poll_close(context)).await;
        });
        Ok(Self {
            endpoint,
            quic,
            send,
            driver,
        })
    }

    /// The head of a request; its body may follow.
    pub(crate) async fn begin(
        &self,
        request: Request<()>,
    ) -> Result<Stream, h3::error::StreamError> {
        surely(self.send.clone().send_request(request)).await
    }

    /// One request with a body, to the end of its answer.
    pub(crate) async fn ask(
        &self,
        request: Request<Bytes>,
    ) -> Result<Reply, h3::error::StreamError> {
        let (parts, body) = request.into_parts();
        let mut stream = self.begin(Request::from_parts(parts, ())).await?;
        if !body.is_empty() {
            surely(stream.send_data(body)).await?;
        }
        surely(stream.finish()).await?;
        let (reply, _) = answer(&mut stream).await?;
        Ok(reply)
    }

    pub(crate) async fn get(&self, uri: &str) -> Reply {
        let request = Request::get(uri).body(Bytes::new()).expect("a request");
        self.ask(request).await.expect("an answer")
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

/// The answer on a stream, with its trailers.
pub(crate) async fn answer(
    stream: &mut Stream,
) -> Result<(Reply, Option<HeaderMap>), h3::error::StreamError> {
    let (parts, ()) = surely(stream.recv_response()).await?.into_parts();
    let mut body = Vec::new();
    while let Some(mut data) = surely(stream.recv_data()).await? {
        body.extend_from_slice(&data.copy_to_bytes(data.remaining()));
    }
    let trailers = surely(stream.recv_trailers()).await?;
    let reply = Reply {
        status: parts.status,
        headers: parts.headers,
        body: body.into(),
    };
    Ok((reply, trailers))
}

/// A number as QUIC writes it.
pub(crate) fn number(number: usize) -> Vec<u8> {
    match number {
        0..0x40 => vec![number as u8],
        0x40..0x4000 => (number as u16 | 0x4000).to_be_bytes().to_vec(),
        _ => (number as u32 | 0x8000_0000).to_be_bytes().to_vec(),
    }
}

pub(crate) fn frame(kind: usize, payload: &[u8]) -> Vec<u8> {
    [&number(kind), &number(payload.len()), payload].concat()
}

/// Fields in full, as a frame.
pub(crate) fn head(fields: &[(&str, &str)]) -> Vec<u8> {
    let mut block = vec![0, 0];
    let text = |flags: u8, bits: u32, text: &str| {
        let most = (1 << bits) - 1;
        let mut out = Vec::new();
        if text.len() < most {
            out.push(flags | text.len() as u8);
        } else {
            out.push(flags | most as u8);
            let mut rest = text.len() - most;
            while rest >= 0x80 {
                out.push((rest & 0x7f) as u8 | 0x80);
                rest >>= 7;
            }
            out.push(rest as u8);
        }
        out.extend_from_slice(text.as_bytes());
        out
    };
    for (name, value) in fields {
        block.extend(text(0x20, 3, name));
        block.extend(text(0, 7, value));
    }
    frame(1, &block)
}

/// The head of a plain request for a host.
pub(crate) fn plain<'a>(method: &'a str, host: &'a str) -> [(&'a str, &'a str); 4] {
    [
        (":method", method),
        (":scheme", "https"),
        (":authority", host),
        (":path", "/"),
    ]
}

/// A connection on which nothing is said that the test does not say.
pub(crate) struct Raw {
    pub(crate) quic: Connection,
    _endpoint: Endpoint,
    _control: SendStream,
}

impl Raw {
    /// With settings that say nothing.
    pub(crate) async fn new(authority: &Authority, at: SocketAddr, name: &str) -> Self {
        Self::saying(authority, at, name, &[0, 4, 0]).await
    }

    /// `said`: on its first stream of one direction.
    pub(crate) async fn saying(
        authority: &Authority,
        at: SocketAddr,
        name: &str,
        said: &[u8],
    ) -> Self {
        let endpoint = endpoint();
        let settings = settings(authority.roots(), None, b"h3");
        let quic = connect(&endpoint, settings, at, name).await;
        let quic = quic.expect("it shakes hands");
        let mut control = surely(quic.open_uni()).await.expect("a stream");
        control.write_all(said).await.expect("it is taken");
        Self {
            quic,
            _endpoint: endpoint,
            _control: control,
        }
    }

    /// Bytes on a stream of requests, which may stay open.
    pub(crate) async fn say(&self, bytes: &[u8], ends: bool) -> (SendStream, RecvStream) {
        let (mut send, recv) = surely(self.quic.open_bi()).await.expect("a stream");
        send.write_all(bytes).await.expect("they are taken");
        if ends {
            send.finish().expect("it is open");
        }
        (send, recv)
    }

    /// The code that the connection is closed with.
    pub(crate) async fn closed(&self) -> u64 {
        match surely(self.quic.closed()).await {
            ConnectionError::ApplicationClosed(close) => VarInt::into_inner(close.error_code),
            other => panic!("{other}"),
        }
    }
}

/// The status of an answer whose head is one of the numbers that everybody knows, or in full.
pub(crate) async fn status(recv: &mut RecvStream) -> u16 {
    let mut begun = [0; 2];
    surely(recv.read_exact(&mut begun)).await.expect("a frame");
    assert_eq!(begun[0], 1, "fields");
    let length = match begun[1] >> 6 {
        0 => usize::from(begun[1]),
        _ => {
            let mut more = [0];
            surely(recv.read_exact(&mut more)).await.expect("a length");
            usize::from(begun[1] & 0x3f) << 8 | usize::from(more[0])
        }
    };
    let mut block = vec![0; length];
    surely(recv.read_exact(&mut block)).await.expect("fields");
    match block[2] {
        0xff if block[3] == 0 => 100,
        // Behind 63: 100, 204, 206, 302, 400, 403, 421, 425, 500.
        0xff => [100, 204, 206, 302, 400, 403, 421, 425, 500][usize::from(block[3])],
        known if known & 0xc0 == 0xc0 => [103, 200, 304, 404, 503][usize::from(known & 0x3f) - 24],
        // The name of a number, and three digits.
        _ => {
            let digits =
                &block[block.iter().position(|byte| *byte == 3).expect("a text") + 1..][..3];
            let digits = std::str::from_utf8(digits).expect("digits");
            digits.parse().expect("a status")
        }
    }
}
