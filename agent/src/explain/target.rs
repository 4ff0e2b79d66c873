//! What people write for the two ends of a connection.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use agent_common::Mark;
use serde::{Deserialize, Serialize};

/// Protocols that have a name here; every other is `ip-N`.
const PROTOCOLS: [(&str, u8); 8] = [
    ("icmp", 1),
    ("ipip", 4),
    ("tcp", 6),
    ("udp", 17),
    ("gre", 47),
    ("esp", 50),
    ("ah", 51),
    ("sctp", 132),
];

/// An IP protocol, whichever IP version carries it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Protocol(pub u8);

impl Protocol {
    /// The control messages of IPv4; they stand for those of IPv6 too.
    pub const ICMP: Self = Self(1);
    /// TCP.
    pub const TCP: Self = Self(6);
    /// UDP.
    pub const UDP: Self = Self(17);

    /// Whether connections of this protocol are told apart by ports.
    #[must_use]
    pub fn has_ports(self) -> bool {
        matches!(self, Self::TCP | Self::UDP)
    }

    fn named(text: &str) -> Option<Self> {
        let number = || text.strip_prefix("ip-")?.parse().ok();
        PROTOCOLS
            .iter()
            .find(|(name, _)| *name == text)
            .map(|(_, number)| *number)
            .or_else(number)
            .map(Self)
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match PROTOCOLS.iter().find(|(_, number)| *number == self.0) {
            Some((name, _)) => f.write_str(name),
            None => write!(f, "ip-{}", self.0),
        }
    }
}

/// One end of a connection, as it was written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Place {
    /// An address, whosever it is.
    Address(IpAddr),
    /// The router, as one of its gates.
    Router(Gate),
    /// A component or a host-side interface: `shop/web`, `acme/shop/prod/web`, `veth12`.
    Name(String),
}

/// What the router speaks to a pod as.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Gate {
    /// The external gateway.
    North,
    /// The internal gateway.
    West,
}

impl Gate {
    /// The mark of its packets.
    #[must_use]
    pub fn mark(self) -> u32 {
        match self {
            Self::North => Mark::NorthGate.raw(),
            Self::West => Mark::WestGate.raw(),
        }
    }
}

impl fmt::Display for Gate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::North => "north-gate",
            Self::West => "west-gate",
        })
    }
}

impl FromStr for Place {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let bare = text
            .strip_prefix('[')
            .and_then(|text| text.strip_suffix(']'))
            .unwrap_or(text);
        if let Ok(address) = bare.parse::<IpAddr>() {
            return Ok(Self::Address(address.to_canonical()));
        }
        match text {
            "north-gate" => return Ok(Self::Router(Gate::North)),
            "west-gate" => return Ok(Self::Router(Gate::West)),
            _ => {}
        }
        let plain = |part: &str| {
            !part.is_empty()
                && part
                    .chars()
                    .all(|c| c.is_alphanumeric() || matches!(c, '-' | '_' | '.' | '@'))
        };
        if text.split('/').all(plain) && text.split('/').count() <= 4 {
            return Ok(Self::Name(text.to_owned()));
        }
        Err(format!(
            "`{text}` is no address, component (`shop/web`, `acme/shop/prod/web`), interface, `north-gate` or `west-gate`"
        ))
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(address) => address.fmt(f),
            Self::Router(gate) => gate.fmt(f),
            Self::Name(name) => f.write_str(name),
        }
    }
}

/// Where a connection goes: `10.0.0.7:443/tcp`, `[fd00::7]:53/udp`, `bank/ledger:7000`, `shop/web/icmp`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Target {
    /// Whose it is.
    pub place: Place,
    /// What is spoken.
    pub protocol: Protocol,
    /// The port that is called; 0 for protocols without.
    pub port: u16,
}

impl FromStr for Target {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let named = text
            .rsplit_once('/')
            .and_then(|(rest, word)| Some((rest, Protocol::named(word)?)));
        let (rest, protocol) = match named {
            Some((rest, protocol)) => (rest, Some(protocol)),
            None => (text, None),
        };
        let (place, port) = split_port(rest)?;
        let protocol = match (protocol, port) {
            (Some(protocol), _) => protocol,
            (None, Some(_)) => Protocol::TCP,
            (None, None) => {
                return Err(format!(
                    "`{text}` says neither port nor protocol; expected such as `{rest}:443/tcp` or `{rest}/icmp`"
                ));
            }
        };
        let port = match (protocol.has_ports(), port) {
            (true, Some(port)) => port,
            (true, None) => {
                return Err(format!(
                    "{protocol} needs a port, such as `{rest}:443/{protocol}`"
                ));
            }
            (false, None) => 0,
            (false, Some(_)) => return Err(format!("{protocol} has no ports")),
        };
        let place: Place = place.parse()?;
        if let Place::Router(gate) = place {
            return Err(format!(
                "`{gate}` is who calls, not where a call goes; name the gateway's address"
            ));
        }
        Ok(Self {
            place,
            protocol,
            port,
        })
    }
}

fn split_port(text: &str) -> Result<(&str, Option<u16>), String> {
    if text.parse::<IpAddr>().is_ok() || text.ends_with(']') {
        // An IPv6 address without brackets has no port.
        return Ok((text, None));
    }
    match text.rsplit_once(':') {
        None => Ok((text, None)),
        Some((place, port)) => match port.parse() {
            Ok(port) if port > 0 => Ok((place, Some(port))),
            _ => Err(format!("`{port}` is no port from 1 to 65535")),
        },
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.place, self.protocol.has_ports()) {
            (Place::Address(IpAddr::V6(address)), true) => {
                write!(f, "[{address}]:{}/{}", self.port, self.protocol)
            }
            (place, true) => write!(f, "{place}:{}/{}", self.port, self.protocol),
            (place, false) => write!(f, "{place}/{}", self.protocol),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(text: &str) -> Target {
        text.parse()
            .unwrap_or_else(|error| panic!("{text}: {error}"))
    }

    #[test]
    fn targets_are_read_and_written_alike() {
        for (text, place, protocol, port) in [
            ("10.0.0.7:443/tcp", "10.0.0.7", 6, 443),
            ("[fd00::7]:53/udp", "fd00::7", 17, 53),
            ("bank/ledger:7000/tcp", "bank/ledger", 6, 7000),
            (
                "acme/bank/prod/ledger:7000/udp",
                "acme/bank/prod/ledger",
                17,
                7000,
            ),
            ("10.0.0.7/icmp", "10.0.0.7", 1, 0),
            ("fd00::7/icmp", "fd00::7", 1, 0),
            ("shop/web/icmp", "shop/web", 1, 0),
            ("veth12/gre", "veth12", 47, 0),
            ("veth12/ip-99", "veth12", 99, 0),
            ("10.0.0.7/sctp", "10.0.0.7", 132, 0),
        ] {
            let read = target(text);
            assert_eq!(read.place, place.parse().expect(place), "{text}");
            assert_eq!((read.protocol.0, read.port), (protocol, port), "{text}");
            assert_eq!(read.to_string(), text);
        }
        assert_eq!(target("10.0.0.7:443"), target("10.0.0.7:443/tcp"));
        assert_eq!(target("[fd00::7]/icmp"), target("fd00::7/icmp"));
        assert_eq!(target("::ffff:10.0.0.7/icmp"), target("10.0.0.7/icmp"));
        // Without a number behind it the last word is a name.
        assert_eq!(
            target("shop/ip-x:80").place,
            Place::Name("shop/ip-x".into())
        );
    }

    #[test]
    fn what_is_no_target_says_why() {
        for (text, part) in [
            ("10.0.0.7", "neither port nor protocol"),
            ("10.0.0.7/tcp", "tcp needs a port"),
            ("10.0.0.7:0/tcp", "no port from 1 to 65535"),
            ("10.0.0.7:70000/tcp", "no port from 1 to 65535"),
            ("10.0.0.7:x/tcp", "no port from 1 to 65535"),
            ("10.0.0.7:8/icmp", "icmp has no ports"),
            ("a/b/c/d/e:80/tcp", "is no address"),
            ("a//b:80/tcp", "is no address"),
            (":80/tcp", "is no address"),
            ("west-gate:80/tcp", "is who calls"),
            ("10.0.0.7:80/quic", "no port from 1 to 65535"),
            ("", "neither port nor protocol"),
        ] {
            let error = text.parse::<Target>().expect_err(text);
            assert!(error.contains(part), "{text}: {error}");
        }
    }

    #[test]
    fn places_are_addresses_gates_and_names() {
        for (text, place) in [
            ("10.0.0.7", Place::Address("10.0.0.7".parse().expect("v4"))),
            ("[fd00::7]", Place::Address("fd00::7".parse().expect("v6"))),
            ("fd00::7", Place::Address("fd00::7".parse().expect("v6"))),
            ("north-gate", Place::Router(Gate::North)),
            ("west-gate", Place::Router(Gate::West)),
            ("shop/web", Place::Name("shop/web".into())),
            ("veth12@if3", Place::Name("veth12@if3".into())),
        ] {
            assert_eq!(text.parse(), Ok(place), "{text}");
        }
        for text in ["", "a b", "a/", "10.0.0.0/24x!"] {
            assert!(text.parse::<Place>().is_err(), "{text}");
        }
    }
}
