//! One reading of a request, before anything is decided about it.
//!
//! Whatever two programs could read in two ways is refused with 400 here: several hosts, several
//! lengths, a path with an encoded slash, header names with underscores (which CGI-like servers fold
//! into dashes).

use std::sync::Arc;

use bytes::Bytes;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::request::Parts;
use http::uri::Authority;
use http::{Method, Version};
use snapshot::model::{EscapedSlashes, Underscores};
use snapshot::path::CanonicalPath;

use super::connection::MAX_HEADERS;
use super::log::Reason;
use super::request_id;
use super::respond::Refusal;
use super::seen::{Seen, kind};
use super::websocket::{self, Asked};
use crate::route::client::{ClientSettings, FORWARDED_FOR};

/// The placement that served.
pub(super) const ROUTED_TO: HeaderName = HeaderName::from_static("x-routed-to");
/// Why it.
pub(super) const ROUTE_REASON: HeaderName = HeaderName::from_static("x-route-reason");
/// Why not the placement that the key has.
pub(super) const FAILOVER_REASON: HeaderName = HeaderName::from_static("x-failover-reason");
/// Its circuit breaker.
pub(super) const CIRCUIT_STATE: HeaderName = HeaderName::from_static("x-circuit-state");

const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");

/// Longest host in bytes: that of a name in the DNS (RFC 1035, section 2.3.4), which addresses keep too.
/// Hosts are looked up label by label, so this also bounds how often.
const MAX_HOST: usize = 253;

/// A request that has one meaning.
#[derive(Debug)]
pub(super) struct Normal {
    /// Host in lower case, without port and trailing dot.
    pub(super) host: Arc<str>,
    /// Port of the authority, if it names one.
    pub(super) port: Option<u16>,
    /// Authority as the client sent it.
    pub(super) authority: HeaderValue,
    /// The one path.
    pub(super) path: CanonicalPath,
    /// Whether the client is to ask for this path instead of the one that it sent.
    pub(super) elsewhere: bool,
    /// How the client asks for a WebSocket, if it does.
    pub(super) websocket: Option<Asked>,
    /// Whether the client takes trailers, which gRPC servers insist on.
    pub(super) trailers: bool,
}

fn bad(detail: impl Into<String>) -> Refusal {
    Refusal::new(Reason::BadRequest, detail)
}

/// Reads a request, by the rules of its listener's policy if there is one. `seen`: what its head has.
pub(super) fn read(
    request: &Parts,
    seen: Seen,
    client: Option<&ClientSettings>,
) -> Result<Normal, Refusal> {
    let connect = websocket::connect(request);
    if request.method == Method::CONNECT && !connect {
        return Err(Refusal::new(
            Reason::MethodRefused,
            "CONNECT is not served: this is a gateway, not a forward proxy",
        ));
    }
    let (mut authority, host, port) = authority(request, seen)?;
    if client.is_some_and(|one| one.policy.strip_host_dot) {
        authority = without_dot(authority);
    }
    let (path, elsewhere) = path(request.uri.path(), client)?;
    let headers = &request.headers;
    if headers.len() > MAX_HEADERS {
        // HTTP/2 may send each cookie on a line of its own (RFC 9113, section 8.2.3).
        let cookies = headers.get_all(header::COOKIE).iter().count();
        if headers.len() - cookies > MAX_HEADERS {
            return Err(Refusal::new(
                Reason::HeadTooLarge,
                format!("more than {MAX_HEADERS} header lines"),
            ));
        }
    }
    if seen.any(Seen::CODING | Seen::REPEATED) {
        framing(headers)?;
    }
    let refuses = client.is_none_or(|one| one.policy.underscores == Underscores::Reject);
    if refuses && seen.any(Seen::UNDERSCORE) {
        let underscored = |name: &&HeaderName| name.as_str().contains('_');
        let name = headers.keys().find(underscored);
        let name = name.map_or("", HeaderName::as_str);
        return Err(bad(format!("header name `{name}` has an underscore")));
    }
    let upgrade = request.version == Version::HTTP_11
        && seen.any(Seen::CONNECTION)
        && seen.any(Seen::UPGRADE)
        && lists(headers, &header::CONNECTION, "upgrade")
        && lists(headers, &header::UPGRADE, "websocket");
    Ok(Normal {
        host,
        port,
        authority,
        path,
        elsewhere,
        websocket: match connect {
            true => Some(Asked::Connect),
            false => upgrade.then_some(Asked::Upgrade),
        },
        trailers: seen.any(Seen::TE) && lists(headers, &header::TE, "trailers"),
    })
}

/// The one path, and whether the client is to ask for it.
fn path(given: &str, client: Option<&ClientSettings>) -> Result<(CanonicalPath, bool), Refusal> {
    let Some(client) = client else {
        let path = CanonicalPath::new(given).map_err(|error| bad(error.to_string()))?;
        return Ok((path, false));
    };
    let unescaped = match client.policy.escaped_slashes {
        EscapedSlashes::Unescape | EscapedSlashes::Redirect => unescaped(given),
        EscapedSlashes::Reject | EscapedSlashes::Keep => None,
    };
    let elsewhere =
        unescaped.is_some() && client.policy.escaped_slashes == EscapedSlashes::Redirect;
    let path = CanonicalPath::with(unescaped.as_deref().unwrap_or(given), client.path_rules())
        .map_err(|error| bad(error.to_string()))?;
    Ok((path, elsewhere))
}

/// The path with slashes for `%2F` and `%5C`; none if it has none of them.
fn unescaped(path: &str) -> Option<String> {
    let mut changed = String::new();
    let mut rest = path;
    while let Some(at) = rest.find('%') {
        let code = rest.get(at + 1..at + 3);
        let slash = code
            .is_some_and(|code| code.eq_ignore_ascii_case("2F") || code.eq_ignore_ascii_case("5C"));
        let end = if slash { at } else { at + 1 };
        changed.push_str(&rest[..end]);
        if slash {
            changed.push('/');
        }
        rest = &rest[if slash { at + 3 } else { at + 1 }..];
    }
    changed.push_str(rest);
    (changed != path).then_some(changed)
}

/// Exactly one authority: of the target if it has one (RFC 9112, section 3.2.2; RFC 9113, section
/// 8.3.1), and then `Host` may only repeat it.
fn authority(request: &Parts, seen: Seen) -> Result<(HeaderValue, Arc<str>, Option<u16>), Refusal> {
    let headers = &request.headers;
    let twice = || headers.get_all(header::HOST).iter().count() > 1;
    if seen.any(Seen::REPEATED) && twice() {
        return Err(bad("more than one Host"));
    }
    let host = headers.get(header::HOST);
    let given = match (request.uri.authority(), host) {
        (Some(target), Some(host)) => {
            if !host
                .as_bytes()
                .eq_ignore_ascii_case(target.as_str().as_bytes())
            {
                return Err(bad("Host and the target's authority differ"));
            }
            host.clone()
        }
        (Some(target), None) => {
            HeaderValue::from_str(target.as_str()).map_err(|_| bad("authority is malformed"))?
        }
        (None, Some(host)) => host.clone(),
        (None, None) => return Err(bad("Host is missing")),
    };
    let (name, port) = split(given.as_bytes()).ok_or_else(|| bad("authority is malformed"))?;
    Ok((given, name, port))
}

/// An authority without the dot behind the host's name, which says that the name is whole.
fn without_dot(authority: HeaderValue) -> HeaderValue {
    let bytes = authority.as_bytes();
    let end = match bytes.iter().rposition(|byte| *byte == b':') {
        // The colons of an address are in brackets, and no dot is behind these.
        Some(colon) if !bytes.ends_with(b"]") => colon,
        _ => bytes.len(),
    };
    let (host, port) = bytes.split_at(end);
    match host.strip_suffix(b".") {
        // A part of a header's value is one.
        Some(host) => HeaderValue::from_bytes(&[host, port].concat()).unwrap_or(authority),
        None => authority,
    }
}

/// Host and port of an authority without user information.
fn split(authority: &[u8]) -> Option<(Arc<str>, Option<u16>)> {
    if let Some(host) = plain(authority) {
        return Some((host.into(), None));
    }
    if authority.contains(&b'@') {
        return None;
    }
    let authority = Authority::try_from(authority).ok()?;
    let port = match authority.port() {
        Some(port) => Some(port.as_u16()),
        // A colon without a number that is a port.
        None if authority.as_str().len() > authority.host().len() => return None,
        None => None,
    };
    let host = authority.host().to_ascii_lowercase();
    let host = host.strip_suffix('.').unwrap_or(&host);
    let bytes = host.as_bytes();
    let literal = host
        .strip_prefix('[')
        .and_then(|rest| rest.strip_suffix(']'))
        .is_some_and(|inside| inside.parse::<std::net::Ipv6Addr>().is_ok());
    let name = !bytes.is_empty()
        && bytes.len() <= MAX_HOST
        && !bytes.starts_with(b".")
        && bytes
            .iter()
            .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_'));
    (literal || name).then(|| (host.into(), port))
}

/// An authority that is a name in lower case and nothing else, as most are.
fn plain(authority: &[u8]) -> Option<&str> {
    /// Which bytes a name in lower case has.
    const NAME: [bool; 256] = {
        let mut all = [false; 256];
        let mut byte = 0;
        while byte < all.len() {
            all[byte] = matches!(byte as u8, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.');
            byte += 1;
        }
        all
    };
    let (first, last) = (authority.first()?, authority.last()?);
    let plain = authority.len() <= MAX_HOST
        && *first != b'.'
        && *last != b'.'
        && authority.iter().all(|byte| NAME[usize::from(*byte)]);
    // SAFETY: these bytes are ASCII.
    plain.then(|| unsafe { str::from_utf8_unchecked(authority) })
}

/// One length, told in one way. The codecs already refuse lengths that differ and codings that do not
/// end in `chunked`; a message with both a length and a coding is read as chunked (RFC 9112, section
/// 6.3) and refused here, which ends the connection.
fn framing(headers: &HeaderMap) -> Result<(), Refusal> {
    let mut codings = headers.get_all(header::TRANSFER_ENCODING).iter();
    if let Some(coding) = codings.next() {
        if codings.next().is_some() || !coding.as_bytes().eq_ignore_ascii_case(b"chunked") {
            return Err(bad("expected no transfer coding but `chunked`"));
        }
        if headers.contains_key(header::CONTENT_LENGTH) {
            return Err(bad("both Content-Length and Transfer-Encoding"));
        }
    }
    if headers.get_all(header::CONTENT_LENGTH).iter().count() > 1 {
        return Err(bad("more than one Content-Length"));
    }
    Ok(())
}

/// Whether a list field has a token, whatever its case.
fn lists(headers: &HeaderMap, name: &HeaderName, token: &str) -> bool {
    headers.get_all(name).iter().any(|value| {
        value.to_str().is_ok_and(|text| {
            text.split(',')
                .any(|one| one.trim().eq_ignore_ascii_case(token))
        })
    })
}

/// Takes away the fields that end at this hop.
pub(super) fn strip_hop_by_hop(headers: &mut HeaderMap) {
    if Seen::of(headers).any(Seen::HOP) {
        strip_seen_hop(headers);
    }
}

/// Takes away from an answer what ends at this hop.
pub(super) fn received(headers: &mut HeaderMap) {
    let seen = Seen::of(headers);
    if seen.any(Seen::CODING) {
        // The coding told where the body ends; a length besides it is not to be passed on (RFC 9112, section 6.3).
        headers.remove(header::CONTENT_LENGTH);
    }
    if seen.any(Seen::HOP) {
        strip_seen_hop(headers);
    }
    if seen.any(Seen::REQUEST_ID) {
        // The router says which request it is an answer to.
        headers.remove(request_id::HEADER);
    }
}

/// The same where it is known that there are some.
fn strip_seen_hop(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|text| text.split(','))
        .filter_map(|token| HeaderName::from_bytes(token.trim().as_bytes()).ok())
        // What frames and addresses the message is not the client's to take away.
        .filter(|name| *name != header::HOST && *name != header::CONTENT_LENGTH)
        .collect();
    for name in named {
        headers.remove(name);
    }
    remove(headers, |name| kind(name).any(Seen::HOP));
}

/// Takes away the fields whose names are unwanted. Most messages have none, and then nothing is hashed or collected: a
/// look at each name that is there costs less than looking for each that is not.
pub(super) fn remove(headers: &mut HeaderMap, unwanted: impl Fn(&HeaderName) -> bool) {
    if !headers.keys().any(&unwanted) {
        return;
    }
    let names: Vec<HeaderName> = headers
        .keys()
        .filter(|name| unwanted(name))
        .cloned()
        .collect();
    for name in names {
        headers.remove(name);
    }
}

/// Takes away what only the router may say.
pub(super) fn strip_ours(headers: &mut HeaderMap) {
    remove(headers, |name| kind(name).any(Seen::OURS));
}

/// Takes away from the trailers of a request what a client may not say of itself, or is asked for ahead of the body: some
/// servers put both together (RFC 9110, section 6.5.1).
pub(super) fn strip_trailers(trailers: &mut HeaderMap) {
    let way = Seen::WAY | Seen::FORWARDED_FOR | Seen::REQUEST_ID | Seen::OURS;
    let head = Seen::HOP | Seen::COOKIE | Seen::EXPECT | Seen::OVERRIDE | Seen::UNDERSCORE;
    remove(trailers, |name| kind(name).any(way | head));
}

/// Takes away from a request what ends here, and what a client must not pretend; where it was authorised, also what would
/// make the upstream read another method or path. `seen`: what its head has.
pub(super) fn strip(headers: &mut HeaderMap, seen: Seen, authorised: bool) {
    // What `Connection` names is none of the others' kinds: it is gone before they are looked for.
    if seen.any(Seen::HOP) {
        strip_seen_hop(headers);
    }
    if seen.any(Seen::OURS) {
        strip_ours(headers);
    }
    if authorised && seen.any(Seen::OVERRIDE) {
        remove(headers, |name| kind(name).any(Seen::OVERRIDE));
    }
    if seen.any(Seen::EXPECT) {
        // The wait for `100 Continue` is answered here, when the upstream asks for the body.
        headers.remove(header::EXPECT);
    }
}

/// Fields that say where a request came from: the way so far with its client behind it, and what is known. Takes away
/// whatever a client said under such names, client certificates and users included. `seen`: what its head has. Without a
/// client the way so far stays as it is.
pub(super) fn forwarded(
    headers: &mut HeaderMap,
    seen: Seen,
    client: Option<&HeaderValue>,
    tls: bool,
    normal: &Normal,
) -> impl Iterator<Item = (HeaderName, HeaderValue)> + use<> {
    let way = client.map(|client| match seen.any(Seen::FORWARDED_FOR) {
        true => {
            let way = after(headers, client);
            headers.remove(FORWARDED_FOR);
            way
        }
        false => client.clone(),
    });
    if seen.any(Seen::WAY) {
        remove(headers, |name| kind(name).any(Seen::WAY));
    }
    let scheme = HeaderValue::from_static(if tls { "https" } else { "http" });
    let way = way.map(|way| (FORWARDED_FOR, way));
    way.into_iter().chain([
        (FORWARDED_PROTO, scheme),
        (FORWARDED_HOST, normal.authority.clone()),
    ])
}

/// The way so far, and the client behind it.
fn after(headers: &HeaderMap, client: &HeaderValue) -> HeaderValue {
    let mut line = Vec::with_capacity(64);
    // What `Connection` named is gone by now.
    for value in headers.get_all(&FORWARDED_FOR) {
        line.extend_from_slice(value.as_bytes());
        line.extend_from_slice(b", ");
    }
    line.extend_from_slice(client.as_bytes());
    // Parts that were values joined by a comma are a value.
    HeaderValue::from_maybe_shared(Bytes::from(line)).unwrap_or_else(|_| client.clone())
}

#[cfg(test)]
mod tests {
    use http::{HeaderMap, HeaderValue, header};

    use super::{split, strip_hop_by_hop, unescaped, without_dot};

    #[test]
    fn dots_behind_names_go() {
        for (given, expected) in [
            ("a.test.", "a.test"),
            ("a.test.:80", "a.test:80"),
            ("a.test", "a.test"),
            ("a.test:80", "a.test:80"),
            ("[::1]", "[::1]"),
            ("[::1]:80", "[::1]:80"),
            ("192.0.2.1.", "192.0.2.1"),
        ] {
            assert_eq!(without_dot(HeaderValue::from_static(given)), expected);
        }
    }

    #[test]
    fn escaped_slashes_become_slashes() {
        for (given, expected) in [
            ("/a%2Fb", Some("/a/b")),
            ("/a%2fb%5C%5cc", Some("/a/b//c")),
            ("/%2F", Some("//")),
            ("/a%20b", None),
            ("/a%252Fb", None),
            ("/a%", None),
            ("/a%2", None),
            ("/%%2F", Some("/%/")),
            ("/a", None),
        ] {
            assert_eq!(unescaped(given).as_deref(), expected, "{given}");
        }
    }

    #[test]
    fn authorities_have_one_reading() {
        let some = |host: &str, port| Some((host.into(), port));
        for (given, expected) in [
            ("example.org", some("example.org", None)),
            ("Example.ORG:8080", some("example.org", Some(8080))),
            ("example.org.", some("example.org", None)),
            ("example.org.:80", some("example.org", Some(80))),
            ("[::1]:80", some("[::1]", Some(80))),
            ("127.0.0.1", some("127.0.0.1", None)),
            ("user@example.org", None),
            ("example.org:", None),
            ("example.org:99999", None),
            ("example.org:80:80", None),
            ("", None),
            (".", None),
            ("a b", None),
            ("a/b", None),
            ("a,b", None),
            ("[::1", None),
        ] {
            assert_eq!(split(given.as_bytes()), expected, "{given}");
        }
        let longest = "a.".repeat(126) + "a";
        assert_eq!(split(longest.as_bytes()), some(&longest, None));
        assert_eq!(split(format!("{longest}b").as_bytes()), None);
    }

    #[test]
    fn fields_of_one_hop_stop_here() {
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("connection", "X-Hop, close, content-length"),
            ("x-hop", "1"),
            ("te", "trailers"),
            ("keep-alive", "timeout=5"),
            ("proxy-connection", "keep-alive"),
            ("content-length", "3"),
            ("x-end", "1"),
        ] {
            headers.insert(name, HeaderValue::from_static(value));
        }
        strip_hop_by_hop(&mut headers);
        let mut left: Vec<_> = headers.keys().map(header::HeaderName::as_str).collect();
        left.sort_unstable();
        assert_eq!(left, ["content-length", "x-end"]);
    }
}
