//! The header with which a proxy in front tells whose connection it passes on (HAProxy, `proxy-protocol.txt`, versions 1
//! and 2). It is asked for by a listener's policy, and then every connection must begin with one.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use tokio::net::TcpStream;

use super::prefixed::Prefixed;

/// Until the header is complete.
const PATIENCE: Duration = Duration::from_secs(5);

/// First bytes of version 2 (section 2.2).
const SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";

/// Longest line of version 1 with its end (section 2.1).
const MAX_LINE: usize = 107;

/// Bytes of version 2 before its addresses, and of addresses and values behind them at most. The specification has
/// room for 64 KiB; what proxies send has a few hundred bytes.
const HEAD: usize = 16;
const MAX_REST: usize = 4096;

/// What a header says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Told {
    /// Whose the connection is.
    Client(SocketAddr),
    /// The proxy's own, such as a health check, or of a kind that has no address here.
    Own,
}

/// Why there is no header.
#[derive(Debug, thiserror::Error)]
pub(super) enum NoHeader {
    /// The bytes are none.
    #[error("the connection does not begin with a PROXY header: {0}")]
    Malformed(&'static str),
    /// It did not come in time.
    #[error("no PROXY header within {PATIENCE:?}")]
    Late,
    /// The other side left.
    #[error("the connection broke before its PROXY header was complete")]
    Gone(#[source] std::io::Error),
}

/// Reads the header of a connection: whose it is, none being the other end's own. What follows it is given back later.
pub(super) async fn read(stream: &mut Prefixed<TcpStream>) -> Result<Option<SocketAddr>, NoHeader> {
    let header = async {
        loop {
            if let Some((told, length)) = parse(stream.ahead()).map_err(NoHeader::Malformed)? {
                stream.take_back(length);
                return Ok(match told {
                    Told::Client(address) => Some(address),
                    Told::Own => None,
                });
            }
            if stream.read_ahead().await.map_err(NoHeader::Gone)? == 0 {
                return Err(NoHeader::Gone(std::io::ErrorKind::UnexpectedEof.into()));
            }
        }
    };
    tokio::time::timeout(PATIENCE, header)
        .await
        .unwrap_or(Err(NoHeader::Late))
}

/// The header at the beginning of some bytes and its length; none as long as more have to come.
fn parse(bytes: &[u8]) -> Result<Option<(Told, usize)>, &'static str> {
    let common = bytes.len().min(SIGNATURE.len());
    if bytes[..common] == SIGNATURE[..common] {
        return binary(bytes);
    }
    let start = b"PROXY ";
    let common = bytes.len().min(start.len());
    if bytes[..common] != start[..common] {
        return Err("neither of its two versions");
    }
    let Some(end) = bytes.iter().take(MAX_LINE).position(|byte| *byte == b'\n') else {
        return match bytes.len() < MAX_LINE {
            true => Ok(None),
            false => Err("a line of more than 107 bytes"),
        };
    };
    let line = std::str::from_utf8(&bytes[..end]).map_err(|_| "a line that is not ASCII")?;
    let line = line.strip_suffix('\r').ok_or("a line without its end")?;
    Ok(Some((text(line)?, end + 1)))
}

/// Version 1.
fn text(line: &str) -> Result<Told, &'static str> {
    let mut words = line.split(' ').skip(1);
    let family = words.next();
    if family == Some("UNKNOWN") {
        // The rest of such a line says nothing.
        return Ok(Told::Own);
    }
    let mut next = || words.next().ok_or("a word is missing");
    let (source, target) = (next()?, next()?);
    let (source_port, target_port) = (next()?, next()?);
    if words.next().is_some() {
        return Err("a word too many");
    }
    let address = |text: &str| {
        text.parse::<IpAddr>()
            .map_err(|_| "an address that is none")
    };
    let (source, target) = (address(source)?, address(target)?);
    let fits = match family {
        Some("TCP4") => source.is_ipv4() && target.is_ipv4(),
        Some("TCP6") => source.is_ipv6() && target.is_ipv6(),
        _ => false,
    };
    if !fits {
        return Err("a family that is not that of its addresses");
    }
    let source_port = port(source_port).ok_or("a port that is none")?;
    port(target_port).ok_or("a port that is none")?;
    Ok(Told::Client(SocketAddr::new(
        source.to_canonical(),
        source_port,
    )))
}

/// Decimal without a sign and leading zeros.
fn port(text: &str) -> Option<u16> {
    let digits = text.bytes().all(|byte| byte.is_ascii_digit());
    let plain = digits && (text == "0" || !text.starts_with('0'));
    text.parse().ok().filter(|_| plain)
}

/// Version 2.
fn binary(bytes: &[u8]) -> Result<Option<(Told, usize)>, &'static str> {
    let Some(head) = bytes.get(..HEAD) else {
        return Ok(None);
    };
    let (command, family) = (head[12], head[13]);
    let length = usize::from(u16::from_be_bytes([head[14], head[15]]));
    if length > MAX_REST {
        return Err("more behind its addresses than is taken");
    }
    let Some(rest) = bytes.get(HEAD..HEAD + length) else {
        return Ok(None);
    };
    let told = match command {
        // "LOCAL": what follows is to be left unread.
        0x20 => Told::Own,
        0x21 => addressed(family, rest)?,
        _ => return Err("a version or command that is not known"),
    };
    Ok(Some((told, HEAD + length)))
}

/// The source of a connection that is passed on, by address family and protocol.
fn addressed(family: u8, rest: &[u8]) -> Result<Told, &'static str> {
    let short = "fewer bytes than its addresses have";
    match family {
        // TCP over IPv4: two addresses, two ports.
        0x11 => {
            let rest: &[u8; 12] = rest.first_chunk().ok_or(short)?;
            let [a, b, c, d, _, _, _, _, high, low, _, _] = *rest;
            let port = u16::from_be_bytes([high, low]);
            Ok(Told::Client(SocketAddr::new([a, b, c, d].into(), port)))
        }
        // TCP over IPv6.
        0x21 => {
            let rest: &[u8; 36] = rest.first_chunk().ok_or(short)?;
            let (source, _) = rest.split_first_chunk::<16>().ok_or(short)?;
            let port = u16::from_be_bytes([rest[32], rest[33]]);
            let source = IpAddr::from(*source).to_canonical();
            Ok(Told::Client(SocketAddr::new(source, port)))
        }
        // Unspecified, and Unix sockets: there is a client, and it has no address.
        0x00 | 0x31 => Ok(Told::Own),
        _ => Err("a family or protocol that is not TCP"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(text: &str) -> Told {
        Told::Client(text.parse().expect("table entry is an address"))
    }

    /// A header of version 2.
    fn v2(command: u8, family: u8, rest: &[u8]) -> Vec<u8> {
        let length = u16::try_from(rest.len()).expect("it is short");
        [
            SIGNATURE,
            &[command, family][..],
            &length.to_be_bytes(),
            rest,
        ]
        .concat()
    }

    const V4: [u8; 12] = [203, 0, 113, 7, 192, 0, 2, 1, 0x1f, 0x90, 0, 80];

    #[test]
    fn both_versions_tell_whose_a_connection_is() {
        let mut v6 = [0; 36];
        v6[..4].copy_from_slice(&[0x20, 1, 0x0d, 0xb8]);
        v6[15] = 9;
        v6[32..34].copy_from_slice(&[0x1f, 0x90]);
        let with_values = [&V4[..], &[4, 0, 2, 1, 2]].concat();
        for (bytes, expected) in [
            (
                b"PROXY TCP4 203.0.113.7 192.0.2.1 8080 80\r\n".to_vec(),
                client("203.0.113.7:8080"),
            ),
            (
                b"PROXY TCP6 2001:db8::9 2001:db8::1 8080 80\r\n".to_vec(),
                client("[2001:db8::9]:8080"),
            ),
            (
                b"PROXY TCP6 ::ffff:203.0.113.7 ::1 0 80\r\n".to_vec(),
                client("203.0.113.7:0"),
            ),
            (b"PROXY UNKNOWN\r\n".to_vec(), Told::Own),
            (b"PROXY UNKNOWN ffff::1 and more\r\n".to_vec(), Told::Own),
            (v2(0x21, 0x11, &V4), client("203.0.113.7:8080")),
            (v2(0x21, 0x11, &with_values), client("203.0.113.7:8080")),
            (v2(0x21, 0x21, &v6), client("[2001:db8::9]:8080")),
            (v2(0x21, 0x00, &[]), Told::Own),
            (v2(0x21, 0x31, &[0; 216]), Told::Own),
            (v2(0x20, 0x11, &V4), Told::Own),
            (v2(0x20, 0x00, &[]), Told::Own),
        ] {
            let length = bytes.len();
            let all = [&bytes[..], b"GET / HTTP/1.1"].concat();
            assert_eq!(parse(&all), Ok(Some((expected, length))), "{bytes:?}");
            for short in 0..length {
                assert_eq!(
                    parse(&bytes[..short]),
                    Ok(None),
                    "{short} bytes of {bytes:?}"
                );
            }
        }
    }

    #[test]
    fn what_is_no_header_is_none() {
        for bytes in [
            b"GET / HTTP/1.1\r\n\r\n".to_vec(),
            b"PROXY\tTCP4 1.1.1.1 2.2.2.2 1 2\r\n".to_vec(),
            b"PROXY TCP4 1.1.1.1 2.2.2.2 1 2\n".to_vec(),
            b"PROXY TCP4 1.1.1.1 2.2.2.2 1\r\n".to_vec(),
            b"PROXY TCP4 1.1.1.1 2.2.2.2 1 2 3\r\n".to_vec(),
            b"PROXY TCP4  1.1.1.1 2.2.2.2 1 2\r\n".to_vec(),
            b"PROXY TCP4 1.1.1.1 2.2.2.2 01 2\r\n".to_vec(),
            b"PROXY TCP4 1.1.1.1 2.2.2.2 +1 2\r\n".to_vec(),
            b"PROXY TCP4 1.1.1.1 2.2.2.2 65536 2\r\n".to_vec(),
            b"PROXY TCP4 1.1.1.01 2.2.2.2 1 2\r\n".to_vec(),
            b"PROXY TCP4 ::1 ::2 1 2\r\n".to_vec(),
            b"PROXY TCP6 1.1.1.1 2.2.2.2 1 2\r\n".to_vec(),
            b"PROXY UDP4 1.1.1.1 2.2.2.2 1 2\r\n".to_vec(),
            b"PROXY tcp4 1.1.1.1 2.2.2.2 1 2\r\n".to_vec(),
            b"PROXY TCP4 1.1.1.1 2.2.2.\xff 1 2\r\n".to_vec(),
            [b"PROXY UNKNOWN ", &[b'x'; 100][..]].concat(),
            v2(0x22, 0x11, &V4),
            v2(0x11, 0x11, &V4),
            v2(0x21, 0x12, &V4),
            v2(0x21, 0x11, &V4[..11]),
            v2(0x21, 0x21, &[0; 35]),
            v2(0x20, 0, &[0; 4097]),
        ] {
            assert!(parse(&bytes).is_err(), "{}", bytes.escape_ascii());
        }
    }

    #[test]
    fn any_bytes_have_an_answer() {
        // Headers with one byte changed, at every place and to every value.
        for good in [
            b"PROXY TCP4 1.1.1.1 2.2.2.2 1 2\r\n".to_vec(),
            v2(0x21, 0x11, &V4),
        ] {
            for at in 0..good.len() {
                for value in 0..=u8::MAX {
                    let mut bytes = good.clone();
                    bytes[at] = value;
                    if let Ok(Some((_, length))) = parse(&bytes) {
                        assert!(length <= bytes.len());
                    }
                }
            }
        }
    }
}
