//! Clients that keep the endpoint which served them first (Gateway API, GEP-1619).
//!
//! Nothing is stored here: a client brings the digest of its endpoint, when its session began and
//! when it was last seen. What it brings is only ever compared with the endpoints of the rule, so
//! that a made-up session leads nowhere else.

use std::fmt::Write as _;

use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use sha2::{Digest, Sha256};
use snapshot::model::{Carrier, SessionPersistence};

use crate::route::{RouteRule, RouteTarget, TargetKind};
use crate::upstream::Destination;

/// Bytes of a digest that are told.
const DIGEST: usize = 12;

/// A client's session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Session {
    endpoint: String,
    /// Seconds since 1970.
    begun: u64,
    seen: u64,
}

impl Session {
    /// The session that a request brings, unless it is over.
    pub(super) fn of(settings: &SessionPersistence, headers: &HeaderMap, now: u64) -> Option<Self> {
        let value = match settings.carrier {
            Carrier::Cookie { .. } => cookie(headers, &settings.name)?,
            Carrier::Header => headers.get(settings.name.as_str())?.to_str().ok()?,
        };
        let mut parts = value.split('.');
        let session = Self {
            endpoint: parts.next()?.to_owned(),
            begun: parts.next()?.parse().ok()?,
            seen: parts.next()?.parse().ok()?,
        };
        let within = |from: u64, limit: Option<std::time::Duration>| {
            from <= now && limit.is_none_or(|limit| now - from < limit.as_secs().max(1))
        };
        (parts.next().is_none()
            && within(session.begun, settings.absolute)
            && within(session.seen, settings.idle))
        .then_some(session)
    }

    /// The target of the session's endpoint, if the rule still has it.
    pub(super) fn target<'a>(&self, rule: &'a RouteRule) -> Option<&'a RouteTarget> {
        rule.targets.iter().find(|target| match &target.kind {
            TargetKind::Upstreams(list) => list
                .iter()
                .any(|one| self.is_at(target, &one.upstream.to_string())),
            TargetKind::Endpoint { addresses, .. } => addresses
                .iter()
                .any(|one| self.is_at(target, &one.to_string())),
            TargetKind::Placements(_) | TargetKind::Unresolved(_) => false,
        })
    }

    /// Puts the session's endpoint first; the others serve if it takes no connection.
    pub(super) fn first(&self, target: &RouteTarget, destinations: &mut [Destination]) {
        let own = destinations
            .iter()
            .position(|one| self.is_at(target, &one.place.to_string()));
        if let Some(at) = own {
            destinations[..=at].rotate_right(1);
        }
    }

    fn is_at(&self, target: &RouteTarget, place: &str) -> bool {
        self.endpoint == digest(target, place)
    }
}

/// Tells the client which endpoint served it, unless it knows and nothing is to be kept up to date.
pub(super) fn tell(
    settings: &SessionPersistence,
    known: Option<&Session>,
    target: &RouteTarget,
    place: &str,
    tls: bool,
    now: u64,
    headers: &mut HeaderMap,
) {
    let endpoint = digest(target, place);
    let same = known.filter(|session| session.endpoint == endpoint);
    if same.is_some()
        && settings.idle.is_none()
        && matches!(settings.carrier, Carrier::Cookie { .. })
    {
        return;
    }
    let begun = same.map_or(now, |session| session.begun);
    let mut value = format!("{endpoint}.{begun}.{now}");
    let name = match settings.carrier {
        Carrier::Header => HeaderName::from_bytes(settings.name.as_bytes()),
        Carrier::Cookie { permanent } => {
            value = format!("{}={value}; Path=/; HttpOnly", settings.name);
            if tls {
                value.push_str("; Secure");
            }
            if let (true, Some(limit)) = (permanent, settings.absolute) {
                let left = (begun + limit.as_secs()).saturating_sub(now);
                value.push_str(&format!("; Max-Age={left}"));
            }
            Ok(header::SET_COOKIE)
        }
    };
    // Names are tokens and values are digits: both are header text.
    if let (Ok(name), Ok(value)) = (name, HeaderValue::from_str(&value)) {
        match settings.carrier {
            Carrier::Header => headers.insert(name, value).is_some(),
            Carrier::Cookie { .. } => headers.append(name, value),
        };
    }
}

fn digest(target: &RouteTarget, place: &str) -> String {
    let mut hash = Sha256::new();
    hash.update(target.backend.as_bytes());
    hash.update([0]);
    hash.update(place.as_bytes());
    let mut text = String::with_capacity(2 * DIGEST);
    for byte in &hash.finalize()[..DIGEST] {
        // Writing to a text does not fail.
        let _ = write!(text, "{byte:02x}");
    }
    text
}

pub(super) fn cookie<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers
        .get_all(header::COOKIE)
        .iter()
        .filter_map(|line| line.to_str().ok())
        .flat_map(|line| line.split(';'))
        .filter_map(|pair| pair.trim().split_once('='))
        .find(|(given, _)| *given == name)
        .map(|(_, value)| value)
}
