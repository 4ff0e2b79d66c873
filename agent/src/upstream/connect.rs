//! One connection to one destination.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use snapshot::model::{Hostname, METADATA};
use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpSocket, TcpStream, UnixStream};

use super::resolve::Resolver;
use super::{Destination, Place, Settings, UpstreamError};
use crate::route::RouteTable;
use crate::route::trust::TrustError;

/// Bundles of root certificates as distributions install them.
const BUNDLES: [&str; 4] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

/// Until a peer that acknowledges nothing, or takes nothing, counts as gone (tcp(7),
/// `TCP_USER_TIMEOUT`).
const VANISHED: Duration = Duration::from_secs(60);

/// Between signs of life that are asked of a silent peer.
const KEEPALIVE: Duration = Duration::from_secs(30);

/// Addresses of one name that are tried.
const TRIES: usize = 4;

/// Root certificates of the node; none if no bundle is installed.
pub fn system_roots() -> io::Result<Option<rustls::RootCertStore>> {
    for bundle in BUNDLES {
        let bytes = match std::fs::read(bundle) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error),
        };
        let mut roots = rustls::RootCertStore::empty();
        let certificates = CertificateDer::pem_slice_iter(&bytes).filter_map(Result::ok);
        // Bundles hold certificates that no longer conform; one of them must not spoil the others.
        let (added, _ignored) = roots.add_parsable_certificates(certificates);
        return Ok((added > 0).then_some(roots));
    }
    Ok(None)
}

/// A connection.
#[derive(Debug)]
pub enum Stream {
    /// Plain TCP.
    Tcp(TcpStream),
    /// TLS over TCP.
    Tls(Box<tokio_rustls::client::TlsStream<TcpStream>>),
    /// A Unix socket.
    Unix(UnixStream),
}

impl Stream {
    /// Ready if something may have come, also the end; else `context` hears of it.
    pub(super) fn poll_news(&self, context: &mut Context<'_>) -> Poll<()> {
        match self {
            Self::Tcp(stream) => stream.poll_read_ready(context).map(drop),
            Self::Unix(stream) => stream.poll_read_ready(context).map(drop),
            // What came may be read and not opened yet.
            Self::Tls(_) => Poll::Ready(()),
        }
    }
}

/// A connection, and where it ended.
pub(crate) struct Connected {
    pub(crate) stream: Stream,
    pub(crate) peer: Option<SocketAddr>,
}

/// Opens a connection; a name's addresses are tried in order.
pub(crate) async fn open(
    destination: &Destination,
    settings: &Settings,
    resolver: &Resolver,
    table: &RouteTable,
) -> Result<Connected, UpstreamError> {
    let terms = destination.terms.as_ref();
    let limit = terms
        .and_then(|terms| terms.connect)
        .unwrap_or(settings.timeouts.connect);
    let timed_out = || UpstreamError::ConnectTimeout {
        place: destination.place.to_string(),
        limit,
    };
    let failed = |source| UpstreamError::Connect {
        place: destination.place.to_string(),
        source,
    };
    let addresses = match &destination.place {
        Place::Address(address) => vec![reached(*address, settings)?],
        Place::Name(name, port) if destination.outside => {
            let addresses = resolver.resolve(name, *port, table.dns()).await?;
            let inside = "all its addresses are inside: of this node, its links or the platform";
            let addresses = permitted(name, addresses, |one| outside(one, table), inside)?;
            addresses.into_iter().take(TRIES).collect()
        }
        Place::Name(name, port) => {
            let addresses = resolve(name, *port, settings, resolver, table).await?;
            addresses.into_iter().take(TRIES).collect()
        }
        Place::Unix(path) => {
            let stream = tokio::time::timeout(limit, UnixStream::connect(path))
                .await
                .map_err(|_| timed_out())?
                .map_err(failed)?;
            return Ok(Connected {
                stream: Stream::Unix(stream),
                peer: None,
            });
        }
    };
    // All addresses share the limit, so that a name with many dead ones does not wait many times.
    let share = limit / u32::try_from(addresses.len()).unwrap_or(u32::MAX).max(1);
    let mut last = timed_out();
    for address in addresses {
        match tokio::time::timeout(share, one(address, destination, settings)).await {
            Ok(Ok(stream)) => {
                return Ok(Connected {
                    stream,
                    peer: Some(address),
                });
            }
            Ok(Err(error)) => last = error,
            Err(_) => last = timed_out(),
        }
    }
    Err(last)
}

/// Addresses of a backend's name, at least one: those that it may lead to.
pub(super) async fn resolve(
    name: &Hostname,
    port: u16,
    settings: &Settings,
    resolver: &Resolver,
    table: &RouteTable,
) -> Result<Vec<SocketAddr>, UpstreamError> {
    let addresses = resolver.resolve(name, port, table.dns()).await?;
    let own = "all its addresses are of the node's loopback, its links or the metadata service";
    permitted(name, addresses, |one| settings.reach.permits(one), own)
}

fn permitted(
    name: &Hostname,
    mut addresses: Vec<SocketAddr>,
    may: impl Fn(IpAddr) -> bool,
    otherwise: &str,
) -> Result<Vec<SocketAddr>, UpstreamError> {
    addresses.retain(|one| may(one.ip()));
    if addresses.is_empty() {
        return Err(UpstreamError::Resolve {
            name: name.to_string(),
            source: otherwise.into(),
        });
    }
    Ok(addresses)
}

/// A backend's address, if it may be led to.
pub(super) fn reached(
    address: SocketAddr,
    settings: &Settings,
) -> Result<SocketAddr, UpstreamError> {
    if settings.reach.permits(address.ip()) {
        return Ok(address);
    }
    let own =
        "in a cluster no backend is on the node's loopback, its links or the metadata service";
    Err(UpstreamError::Connect {
        place: address.to_string(),
        source: io::Error::new(io::ErrorKind::PermissionDenied, own),
    })
}

/// Whether an address is one that others than the programs of this node reach too; in whatever way it is written.
pub(super) fn off_node(address: IpAddr) -> bool {
    let address = address.to_canonical();
    !special(address) && !embedded(address).is_some_and(|v4| special(v4.into()))
}

/// Whether an address is somewhere else than on this node, its links and the platform; in whatever
/// way it is written.
fn outside(address: IpAddr, table: &RouteTable) -> bool {
    let address = address.to_canonical();
    let inside = |one: IpAddr| special(one) || table.inside(one);
    !inside(address) && !embedded(address).is_some_and(|v4| inside(v4.into()))
}

/// Addresses that never leave this node and its links, and those of metadata services.
fn special(address: IpAddr) -> bool {
    if METADATA.contains(&address) {
        return true;
    }
    match address {
        IpAddr::V4(v4) => {
            v4.is_loopback()
                || v4.is_link_local()
                || v4.is_multicast()
                || v4.is_broadcast()
                // "This network" (RFC 791, section 3.2).
                || v4.octets()[0] == 0
        }
        IpAddr::V6(v6) => {
            v6.is_loopback()
                || v6.is_unicast_link_local()
                || v6.is_unspecified()
                || v6.is_multicast()
        }
    }
}

/// The IPv4 address that a translator or tunnel takes out of an IPv6 address: the last four bytes
/// under NAT64's prefixes (RFC 6052, 8215) and of "compatible" addresses (RFC 4291, section 2.5.5.1),
/// the first behind the prefix of 6to4 (RFC 3056).
fn embedded(address: IpAddr) -> Option<Ipv4Addr> {
    let IpAddr::V6(v6) = address else {
        return None;
    };
    let of = |bytes: [u16; 2]| Ipv4Addr::from(u32::from(bytes[0]) << 16 | u32::from(bytes[1]));
    match v6.segments() {
        [0x64, 0xff9b, 0 | 1, _, _, _, a, b] | [0, 0, 0, 0, 0, 0, a, b] => Some(of([a, b])),
        [0x2002, a, b, ..] => Some(of([a, b])),
        _ => None,
    }
}

async fn one(
    address: SocketAddr,
    destination: &Destination,
    settings: &Settings,
) -> Result<Stream, UpstreamError> {
    let failed = |source| UpstreamError::Connect {
        place: place(&destination.place, address),
        source,
    };
    let stream = tcp(address, destination.mark).await.map_err(failed)?;
    // Whoever reaches an address of his own host has that address.
    if destination.outside
        && stream
            .local_addr()
            .is_ok_and(|own| own.ip() == address.ip())
    {
        return Err(failed(io::Error::other("the address is this node's own")));
    }
    let Some(peer) = &destination.tls else {
        return Ok(Stream::Tcp(stream));
    };
    let config = match &peer.trust {
        Some(trust) => trust.config(settings.roots.as_ref()),
        None => settings.tls.as_deref().ok_or(TrustError::NoRoots),
    };
    let mut config = config
        .map_err(|source| UpstreamError::Untrusted {
            place: destination.place.to_string(),
            source,
        })?
        .clone();
    if let Some(identity) = &peer.identity {
        config.client_auth_cert_resolver = Arc::clone(&identity.resolver);
    }
    if peer.http {
        let version: &[u8] = if destination.http2 {
            b"h2"
        } else {
            b"http/1.1"
        };
        config.alpn_protocols = vec![version.to_vec()];
    }
    let stream = tokio_rustls::TlsConnector::from(Arc::new(config))
        .connect(peer.name.clone(), stream)
        .await
        .map_err(failed)?;
    Ok(Stream::Tls(Box::new(stream)))
}

fn place(place: &Place, address: SocketAddr) -> String {
    match place {
        Place::Name(..) => format!("{place} ({address})"),
        _ => place.to_string(),
    }
}

/// A TCP connection with a mark, which the kernel's programs read as the gate that sends.
async fn tcp(address: SocketAddr, mark: Option<u32>) -> io::Result<TcpStream> {
    let socket = Socket::new(
        Domain::for_address(address),
        Type::STREAM.nonblocking().cloexec(),
        Some(Protocol::TCP),
    )?;
    socket.set_tcp_nodelay(true)?;
    // Requests share connections: one to a peer that vanished without a word must not take them for as
    // long as the kernel would retransmit.
    socket.set_tcp_user_timeout(Some(VANISHED))?;
    socket.set_tcp_keepalive(
        &TcpKeepalive::new()
            .with_time(KEEPALIVE)
            .with_interval(KEEPALIVE),
    )?;
    if let Some(mark) = mark {
        socket.set_mark(mark)?;
    }
    TcpSocket::from_std_stream(socket.into())
        .connect(address)
        .await
}

/// A connection to the first address of a name that takes one, and where it ended.
pub(crate) async fn tunnel(
    destination: &Destination,
    settings: &Settings,
    resolver: &Resolver,
    table: &RouteTable,
) -> Result<(Stream, String), UpstreamError> {
    let Connected { stream, peer } = open(destination, settings, resolver, table).await?;
    let socket = match &stream {
        Stream::Tcp(stream) => Some(stream),
        Stream::Tls(stream) => Some(stream.get_ref().0),
        Stream::Unix(_) => None,
    };
    if let Some(socket) = socket {
        // The two ends of a tunnel may make each other wait as long as they like.
        let patient = SockRef::from(socket).set_tcp_user_timeout(None);
        patient.map_err(|source| UpstreamError::Connect {
            place: destination.place.to_string(),
            source,
        })?;
    }
    let peer = peer.map_or_else(|| destination.place.to_string(), |peer| peer.to_string());
    Ok((stream, peer))
}

/// The wait that a caller of [`tunnel`] grants at most, whatever the settings.
pub(crate) const TUNNEL_LIMIT: Duration = Duration::from_secs(10);

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_read(context, buffer),
            Self::Tls(stream) => Pin::new(stream).poll_read(context, buffer),
            Self::Unix(stream) => Pin::new(stream).poll_read(context, buffer),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_write(context, bytes),
            Self::Tls(stream) => Pin::new(stream).poll_write(context, bytes),
            Self::Unix(stream) => Pin::new(stream).poll_write(context, bytes),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_write_vectored(context, slices),
            Self::Tls(stream) => Pin::new(stream).poll_write_vectored(context, slices),
            Self::Unix(stream) => Pin::new(stream).poll_write_vectored(context, slices),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Tcp(stream) => stream.is_write_vectored(),
            Self::Tls(stream) => stream.is_write_vectored(),
            Self::Unix(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_flush(context),
            Self::Tls(stream) => Pin::new(stream).poll_flush(context),
            Self::Unix(stream) => Pin::new(stream).poll_flush(context),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_shutdown(context),
            Self::Tls(stream) => Pin::new(stream).poll_shutdown(context),
            Self::Unix(stream) => Pin::new(stream).poll_shutdown(context),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use snapshot::model::{Cidr, Hostname};
    use socket2::SockRef;

    use super::{off_node, one, outside};
    use crate::route::{Inside, RouteTable};
    use crate::upstream::{Destination, Place, Reach, Settings, Timeouts};

    #[test]
    fn the_inside_is_inside_however_it_is_written() {
        let address = |text: &str| text.parse::<IpAddr>().expect("table entry is an address");
        let table = RouteTable {
            inside: Inside {
                hosts: ["10.1.0.5", "192.0.2.10", "fd00:1::5"].map(address).into(),
                networks: vec![Cidr::new(address("10.9.0.0"), 16).expect("a network")],
            },
            ..RouteTable::default()
        };
        for (text, expected) in [
            ("203.0.113.7", true),
            ("10.2.0.5", true),
            ("2001:db8::1", true),
            ("::ffff:203.0.113.7", true),
            ("64:ff9b::203.0.113.7", true),
            ("127.0.0.1", false),
            ("127.8.8.8", false),
            ("0.0.0.0", false),
            ("0.1.2.3", false),
            ("169.254.169.254", false),
            ("224.0.0.1", false),
            ("255.255.255.255", false),
            ("::", false),
            ("::1", false),
            ("fe80::1", false),
            ("ff02::1", false),
            ("fd00:ec2::254", false),
            // Of the platform.
            ("10.1.0.5", false),
            ("192.0.2.10", false),
            ("fd00:1::5", false),
            ("10.9.200.1", false),
            // IPv4 in other clothes.
            ("::ffff:10.1.0.5", false),
            ("::ffff:127.0.0.1", false),
            ("::127.0.0.1", false),
            ("64:ff9b::169.254.169.254", false),
            ("64:ff9b:1::10.1.0.5", false),
            ("2002:a01:5::", false),
            ("2002:7f00:1::1", false),
        ] {
            assert_eq!(outside(address(text), &table), expected, "{text}");
        }
    }

    #[test]
    fn what_only_the_node_reaches_is_told_however_it_is_written() {
        for (text, expected) in [
            ("203.0.113.7", true),
            ("10.2.0.5", true),
            ("2001:db8::1", true),
            ("64:ff9b::10.2.0.5", true),
            ("127.0.0.1", false),
            ("127.8.8.8", false),
            ("0.0.0.0", false),
            ("169.254.169.254", false),
            ("::", false),
            ("::1", false),
            ("fe80::1", false),
            ("fd00:ec2::254", false),
            ("::ffff:127.0.0.1", false),
            ("64:ff9b::169.254.169.254", false),
            ("2002:7f00:1::1", false),
        ] {
            let address = text.parse().expect("table entry is an address");
            assert_eq!(off_node(address), expected, "{text}");
        }
    }

    #[tokio::test]
    async fn a_name_that_leads_to_this_node_leads_nowhere() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0")
            .await
            .expect("a port");
        let at = listener.local_addr().expect("it is bound");
        let settings = Settings {
            timeouts: Timeouts::default(),
            tls: None,
            roots: None,
            reach: Reach::Anywhere,
        };
        for outside in [true, false] {
            let destination = Destination {
                place: Place::Name(Hostname::new("a.test").expect("a host"), at.port()),
                tls: None,
                http2: false,
                mark: None,
                host: None,
                outside,
                owner: None,
                terms: None,
            };
            let connected = one(at, &destination, &settings).await;
            if let Ok(super::Stream::Tcp(stream)) = &connected {
                let socket = SockRef::from(stream);
                assert_eq!(socket.tcp_user_timeout().ok(), Some(Some(super::VANISHED)));
                assert!(socket.keepalive().unwrap_or(false));
            }
            assert_eq!(connected.is_err(), outside, "{connected:?}");
        }
    }
}
