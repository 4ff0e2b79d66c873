//! How a listener treats those who connect to it (Envoy Gateway, `ClientTrafficPolicy`).

use std::num::{NonZeroU32, NonZeroUsize};
use std::time::Duration;

use super::{Cidr, Declared, DocumentPath, FRAMING, HeaderEdits, Port, StringMatch};

/// A policy of a listener, as a whole. What it leaves out is as for listeners without one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientPolicy {
    /// Its document.
    pub declared: Declared,
    /// What belongs to connections before it is known which listener of the port they are for.
    pub entrance: Entrance,
    /// How the address of a request's client is found; none: it is the connection's.
    pub client_ip: Option<ClientIp>,
    /// What becomes of `%2F` and `%5C` in a path.
    pub escaped_slashes: EscapedSlashes,
    /// Whether slashes in a row are one.
    pub merge_slashes: bool,
    /// What becomes of headers with an underscore in their name.
    pub underscores: Underscores,
    /// Which request id a request has.
    pub request_id: RequestIds,
    /// Edits of a request's headers before anything is read from them.
    pub early: MessageEdits,
    /// Edits of the headers of every answer, after all others.
    pub late: MessageEdits,
    /// What upstreams are told of clients' certificates.
    pub told_certificate: ToldCertificate,
    /// Whether the client is put behind what `X-Forwarded-For` says of the way so far.
    pub tell_client: bool,
    /// Whether the dot behind a host's name goes no further.
    pub strip_host_dot: bool,
    /// Whether a request of HTTP/1.0 without a host is for the listener's only one.
    pub default_host: bool,
    /// Whether clients are told of rate limits.
    pub rate_headers: bool,
    /// How long is waited for what.
    pub timeouts: ClientTimeouts,
    /// TLS of listeners that terminate it.
    pub tls: ClientTls,
    /// Requests of a connection; with the last one it ends.
    pub max_requests: Option<NonZeroU32>,
    /// Age at which a connection gets no more requests, above zero.
    pub max_age: Option<Duration>,
    /// From the head of a request to the end of its answer, if one of them is a stream; above zero.
    pub max_stream: Option<Duration>,
    /// What becomes of a connection of HTTP/1.1 at that age.
    pub http1_end: Http1End,
    /// Limits of HTTP/2.
    pub http2: ClientHttp2,
    /// HTTP/3 of listeners of HTTPS; none: they have the versions over TCP alone.
    pub http3: Option<ClientHttp3>,
    /// A path whose requests are answered with 200 here.
    pub health_path: Option<DocumentPath>,
}

/// Edits of all messages of a listener. First goes what matches, then the edits are done, and then what is not there is set.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MessageEdits {
    /// Names of headers that go. Those of [`FRAMING`] stay.
    pub remove_matching: Vec<StringMatch>,
    /// Edits by name.
    pub edits: HeaderEdits,
    /// Headers that are set where there are none of their name.
    pub add_if_absent: Vec<(String, String)>,
}

impl MessageEdits {
    /// Whether a header goes because of how its name looks.
    pub fn removes(&self, name: &str) -> bool {
        !FRAMING.contains(&name) && self.remove_matching.iter().any(|one| one.fits(name))
    }
}

/// What upstreams are told of a client's certificate in `X-Forwarded-Client-Cert` (Envoy, `ForwardClientCertDetails`). A client
/// without a good one is told of by nobody, unless everybody is believed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum ToldCertificate {
    /// Nothing, whatever the client says.
    #[default]
    Nothing,
    /// What the client says.
    AsSaid,
    /// What the client says, whoever it is.
    AsAnybodySays,
    /// What the client says, and its certificate behind it.
    Added(CertificateDetails),
    /// Its certificate.
    Own(CertificateDetails),
}

impl ToldCertificate {
    /// What is told of the certificate itself, if it is.
    pub fn details(&self) -> Option<CertificateDetails> {
        match self {
            Self::Added(details) | Self::Own(details) => Some(*details),
            Self::Nothing | Self::AsSaid | Self::AsAnybodySays => None,
        }
    }
}

/// What is told of a certificate beside its SHA-256 and the name of the server's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CertificateDetails {
    /// All of it.
    pub certificate: bool,
    /// All of it and of those that came with it.
    pub chain: bool,
    /// Its subject (RFC 4514).
    pub subject: bool,
    /// Alternative names that are URIs.
    pub uris: bool,
    /// Alternative names that are DNS names.
    pub hosts: bool,
}

/// What becomes of a connection of HTTP/1.1 that has reached its age.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Http1End {
    /// It ends with the answer to its next request, which says so: a client cannot send one into its end.
    #[default]
    NextAnswer,
    /// It ends as soon as no request is under way.
    AtRest,
}

/// What listeners of one port have in common.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Entrance {
    /// Whether connections begin with a PROXY header (HAProxy, `proxy-protocol.txt`), which then tells whose they are.
    pub proxy_protocol: bool,
    /// Connections at a time.
    pub limit: Option<ConnectionLimit>,
    /// How silent connections are looked after; none: as the router does without a policy.
    pub keepalive: Option<Keepalive>,
}

/// Connections at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConnectionLimit {
    /// How many, counted over all cores.
    pub value: NonZeroUsize,
    /// How long one too many is kept before it is closed.
    pub close_delay: Duration,
}

/// Keep-alive probes of TCP (tcp(7)). What is absent is as the kernel has it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Keepalive {
    /// Probes without an answer until the connection counts as dead.
    pub probes: Option<NonZeroU32>,
    /// Silence before the first; a second or more.
    pub idle: Option<Duration>,
    /// Time between two; a second or more.
    pub interval: Option<Duration>,
}

/// How the address of a request's client is found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ClientIp {
    /// The address at this place of `X-Forwarded-For`, counted from the right from 1: so many proxies in front are trusted.
    Hops(NonZeroU32),
    /// The rightmost address of `X-Forwarded-For` that is in none of these networks, if the connection comes from one of
    /// them; the leftmost, if all are.
    Trusted(Vec<Cidr>),
    /// The address in a header.
    Header {
        /// Its name, lower case.
        name: String,
        /// Whether requests without it are refused.
        fail_closed: bool,
    },
}

/// What becomes of encoded slashes and backslashes in a path.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum EscapedSlashes {
    /// The request is refused.
    #[default]
    Reject,
    /// They stay, as a part of their segment.
    Keep,
    /// They are slashes.
    Unescape,
    /// The client is sent to the path where they are slashes.
    Redirect,
}

/// What becomes of headers with an underscore in their name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Underscores {
    /// The request is refused.
    #[default]
    Reject,
    /// They pass.
    Allow,
    /// They are taken away.
    Drop,
}

/// Which request id (`X-Request-ID`) a request has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RequestIds {
    /// The client's, or a new one.
    #[default]
    PreserveOrGenerate,
    /// The client's, or none.
    Preserve,
    /// A new one.
    Generate,
    /// None.
    Disable,
}

/// How long is waited for clients, each above zero; none: as the router does without a policy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ClientTimeouts {
    /// For the rest of a request, from its head until an answer begins.
    pub request: Option<Duration>,
    /// For the next request of a connection.
    pub idle: Option<Duration>,
    /// For the next part of a request or of its answer.
    pub stream_idle: Option<Duration>,
    /// For the next byte of a connection that is not HTTP.
    pub tcp_idle: Option<Duration>,
}

/// TLS towards clients.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClientTls {
    /// Versions that are spoken; never none of them.
    pub versions: TlsVersions,
    /// Cipher suites of TLS 1.2, never empty; none: all that the router has.
    pub ciphers: Option<Vec<Tls12Cipher>>,
    /// Protocols that are offered by ALPN (RFC 7301), the preferred first; none: as the listener's protocol has it.
    pub alpn: Option<Vec<Alpn>>,
}

/// Versions of TLS.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TlsVersions {
    /// 1.2 and 1.3.
    #[default]
    Both,
    /// 1.2 alone.
    Only12,
    /// 1.3 alone.
    Only13,
}

/// A cipher suite of TLS 1.2 (RFC 5289, RFC 7905).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Tls12Cipher {
    /// ECDHE-ECDSA-AES128-GCM-SHA256
    EcdsaAes128,
    /// ECDHE-ECDSA-AES256-GCM-SHA384
    EcdsaAes256,
    /// ECDHE-ECDSA-CHACHA20-POLY1305
    EcdsaChacha20,
    /// ECDHE-RSA-AES128-GCM-SHA256
    RsaAes128,
    /// ECDHE-RSA-AES256-GCM-SHA384
    RsaAes256,
    /// ECDHE-RSA-CHACHA20-POLY1305
    RsaChacha20,
}

/// A protocol that ALPN agrees on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Alpn {
    /// HTTP/1.1.
    Http1,
    /// HTTP/2.
    Http2,
}

impl Alpn {
    /// As it is registered with IANA.
    pub fn as_bytes(self) -> &'static [u8] {
        match self {
            Self::Http1 => b"http/1.1",
            Self::Http2 => b"h2",
        }
    }
}

/// Limits of HTTP/2 towards clients (RFC 9113, section 6.5.2); none: as the router has it without a policy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ClientHttp2 {
    /// Bytes that a client may send on a stream before it is told to go on.
    pub stream_window: Option<u32>,
    /// The same for all streams of a connection.
    pub connection_window: Option<u32>,
    /// Requests of a connection at a time.
    pub max_streams: Option<NonZeroU32>,
}

/// HTTP/3 towards clients (RFC 9114), beside the versions over TCP.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ClientHttp3 {
    /// The UDP port that answers over TCP name for it (RFC 7838, `Alt-Svc`); none: the listener's.
    pub advertised_port: Option<Port>,
}
