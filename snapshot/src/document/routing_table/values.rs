//! Durations and base URLs of routing tables.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::num::NonZeroU16;
use std::time::Duration;

use crate::model::{Hostname, PlacementUrl, Port, UpstreamHost};
use crate::tree::shortened;

/// A duration above zero as Go writes it: numbers with units, such as `10s`, `1m30s` or `1.5h`.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    let expected = || {
        format!(
            "expected a duration with a unit such as `10s` or `200ms`, got `{}`",
            shortened(text)
        )
    };
    let positive = || format!("expected a duration above zero, got `{}`", shortened(text));
    let (negative, mut rest) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    let mut nanoseconds: f64 = 0.0;
    if rest.is_empty() {
        return Err(expected());
    }
    while !rest.is_empty() {
        let digits = rest
            .find(|c: char| !c.is_ascii_digit() && c != '.')
            .ok_or_else(expected)?;
        let number: f64 = rest[..digits].parse().map_err(|_| expected())?;
        rest = &rest[digits..];
        let end = rest
            .find(|c: char| c.is_ascii_digit() || c == '.')
            .unwrap_or(rest.len());
        let unit = match &rest[..end] {
            "ns" => 1.0,
            "us" | "µs" | "μs" => 1e3,
            "ms" => 1e6,
            "s" => 1e9,
            "m" => 60e9,
            "h" => 3600e9,
            _ => return Err(expected()),
        };
        nanoseconds += number * unit;
        rest = &rest[end..];
    }
    if negative || nanoseconds < 1.0 {
        return Err(positive());
    }
    // As in Go, whose durations have 63 bits.
    if nanoseconds >= 9.2e18 {
        return Err(expected());
    }
    Ok(Duration::from_nanos(nanoseconds as u64))
}

/// `http` or `https`, host and port, nothing behind.
pub(crate) fn url(text: &str) -> Result<PlacementUrl, String> {
    let expected = |why: &str| {
        format!(
            "expected a URL such as `http://cell-1:9001`, got `{}`: {why}",
            shortened(text)
        )
    };
    let (tls, rest) = match text.split_once("://") {
        Some(("http", rest)) => (false, rest),
        Some(("https", rest)) => (true, rest),
        _ => return Err(expected("it does not start with `http://` or `https://`")),
    };
    let authority = rest.strip_suffix('/').unwrap_or(rest);
    if authority.contains(['/', '?', '#', '@']) {
        return Err(expected("path, query and user are not accepted"));
    }
    let (host, port) = match authority.rsplit_once(':') {
        Some((host, port)) if !port.contains(']') => (host, Some(port)),
        _ => (authority, None),
    };
    let host = match host
        .strip_prefix('[')
        .and_then(|host| host.strip_suffix(']'))
    {
        Some(v6) => v6
            .parse::<Ipv6Addr>()
            .map(|address| UpstreamHost::Address(address.into()))
            .map_err(|_| expected("it has no valid address in brackets"))?,
        None => match host.parse::<Ipv4Addr>() {
            Ok(address) => UpstreamHost::Address(address.into()),
            Err(_) => Hostname::new(host)
                .map(UpstreamHost::Name)
                .map_err(|_| expected("it has no valid host"))?,
        },
    };
    let port: Port = match port {
        None if tls => const { NonZeroU16::new(443).expect("443 is not zero") },
        None => const { NonZeroU16::new(80).expect("80 is not zero") },
        Some(port) => port
            .bytes()
            .all(|byte| byte.is_ascii_digit())
            .then(|| port.parse().ok())
            .flatten()
            .ok_or_else(|| expected("it has no valid port"))?,
    };
    Ok(PlacementUrl { tls, host, port })
}

#[cfg(test)]
mod tests {
    use super::{duration, url};
    use std::time::Duration;

    #[test]
    fn durations_have_units_and_are_positive() {
        for (given, millis) in [
            ("10s", 10_000),
            ("200ms", 200),
            ("1m30s", 90_000),
            ("1.5h", 5_400_000),
        ] {
            assert_eq!(
                duration(given),
                Ok(Duration::from_millis(millis)),
                "{given}"
            );
        }
        for given in [
            "",
            "10",
            "abc",
            "0s",
            "-1s",
            "1x",
            "1..5s",
            "s",
            "1s1",
            "99999999999h",
            "1e3s",
            "-",
        ] {
            assert!(duration(given).is_err(), "{given}");
        }
    }

    #[test]
    fn urls_have_scheme_host_and_port_only() {
        for (given, tls, host, port) in [
            ("http://cell-1:9001", false, "cell-1", 9001),
            ("https://x", true, "x", 443),
            ("http://x/", false, "x", 80),
        ] {
            let url = url(given).expect(given);
            assert_eq!((url.tls, url.port.get()), (tls, port));
            assert!(format!("{:?}", url.host).contains(host), "{given}");
        }
        assert!(url("http://[::1]:9").is_ok());
        for given in [
            "",
            "x",
            "x:1",
            "ftp://x",
            "://x",
            "http://",
            "http://:1",
            "http://x:0",
            "http://x:+1",
            "http://x:65536",
            "http://a b",
            "http://u@x",
            "http://x/y",
            "http://x?y",
            "http://[::1",
            "http://::1",
            "/path",
            "HTTP://x:1:2",
        ] {
            assert!(url(given).is_err(), "{given}");
        }
    }
}
