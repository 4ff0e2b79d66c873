//! Which endpoint of a backend gets a request.
//!
//! Flows in: the endpoints that may have it, a source of chance, whose turn it is, and what of the request is
//! hashed. Flows out: the same endpoints, the chosen one first. The others follow in the order of the
//! document, for when it takes no connection.

use std::time::Duration;

use http::{HeaderName, HeaderValue};
use snapshot::model::{Balance, HashCookie, HashKey};

use super::backend::Backend;
use super::hash::stable;
use super::maglev::Maglev;

/// Least share of a new endpoint, in a hundred (Envoy, `min_weight_percent`).
const LEAST_SHARE: u128 = 10;

/// Draws of an endpoint until one that is new is taken all the same.
const DRAWS: usize = 8;

/// Hashes that are tried until one leads to an endpoint that may have requests.
const HASHES: u64 = 32;

/// A way to choose, compiled.
#[derive(Debug)]
pub enum Balancer {
    /// The one of two with fewer requests under way.
    LeastRequest(Option<Duration>),
    /// Each in turn.
    RoundRobin(Option<Duration>),
    /// Any.
    Random,
    /// By a hash of the request.
    Hash(Hashing),
}

/// What is hashed, and where it leads.
#[derive(Debug)]
pub struct Hashing {
    /// What of a request.
    pub key: Keyed,
    table: Option<Maglev>,
}

/// What of a request is hashed, compiled.
#[derive(Debug)]
pub enum Keyed {
    /// The client's address.
    SourceIp,
    /// Headers.
    Headers(Vec<HeaderName>),
    /// A cookie, and how it is given to clients that have none.
    Cookie(HashCookie),
    /// Parameters of the query.
    QueryParams(Vec<String>),
}

/// What choosing needs besides the endpoints.
pub struct Draw<R, T> {
    /// A number for each call.
    pub random: R,
    /// The next turn among so many.
    pub turn: T,
    /// Hash of the request, if it has what is hashed.
    pub hash: Option<u64>,
    /// The time.
    pub now: Duration,
}

impl Balancer {
    /// Compiles a policy's choice for a backend.
    pub fn new(balance: &Balance, backend: &Backend) -> Self {
        match balance {
            Balance::LeastRequest { slow_start } => Self::LeastRequest(*slow_start),
            Balance::RoundRobin { slow_start } => Self::RoundRobin(*slow_start),
            Balance::Random => Self::Random,
            Balance::ConsistentHash(hash) => {
                let endpoints = backend.endpoints.iter();
                let names: Vec<String> = endpoints.map(|one| one.name.to_string()).collect();
                Self::Hash(Hashing {
                    key: keyed(&hash.key),
                    table: Maglev::new(&names, hash.table_size),
                })
            }
        }
    }

    /// Puts the chosen one of some endpoints first. They are given by position in the backend, in order.
    pub fn choose(
        &self,
        backend: &Backend,
        usable: &mut [usize],
        mut draw: Draw<impl FnMut() -> u64, impl FnMut(usize) -> usize>,
    ) {
        let count = usable.len();
        if count < 2 {
            return;
        }
        let state = |at: usize| backend.endpoints[usable[at]].state();
        let now = draw.now;
        let first = match self {
            Self::Random => below(&mut draw.random, count),
            Self::RoundRobin(slow) => {
                let mut at = (draw.turn)(count);
                for _ in 1..DRAWS {
                    if grown(state(at).age(now), *slow, &mut draw.random) {
                        break;
                    }
                    at = (draw.turn)(count);
                }
                at
            }
            Self::LeastRequest(slow) => {
                let random = &mut draw.random;
                let mut one = || {
                    let mut at = below(random, count);
                    for _ in 1..DRAWS {
                        if grown(state(at).age(now), *slow, random) {
                            break;
                        }
                        at = below(random, count);
                    }
                    at
                };
                let (a, mut b) = (one(), one());
                if a == b && slow.is_none() {
                    b = (a + 1) % count;
                }
                match state(b).requests.taken() < state(a).requests.taken() {
                    true => b,
                    false => a,
                }
            }
            Self::Hash(hashing) => {
                let hash = draw.hash.unwrap_or_else(&mut draw.random);
                hashing.find(hash, usable)
            }
        };
        usable.rotate_left(first);
    }
}

impl Hashing {
    /// Position among some endpoints of the one that a hash leads to. Where that one is left out, the hash of
    /// the hash decides, so that its requests are spread and those of others stay.
    fn find(&self, hash: u64, usable: &[usize]) -> usize {
        let found = self.table.as_ref().and_then(|table| {
            (0..HASHES)
                .map(|step| match step {
                    0 => hash,
                    step => stable(&[&hash.to_le_bytes(), &step.to_le_bytes()]),
                })
                .find_map(|hash| usable.binary_search(&table.at(hash)).ok())
        });
        found.unwrap_or((hash % usable.len() as u64) as usize)
    }
}

fn keyed(key: &HashKey) -> Keyed {
    match key {
        HashKey::SourceIp => Keyed::SourceIp,
        HashKey::Headers(names) => Keyed::Headers(
            names
                .iter()
                // Names of the snapshot are header names.
                .filter_map(|name| HeaderName::from_bytes(name.as_bytes()).ok())
                .collect(),
        ),
        HashKey::Cookie(cookie) => Keyed::Cookie(cookie.clone()),
        HashKey::QueryParams(names) => Keyed::QueryParams(names.clone()),
    }
}

/// A cookie for a client that has none, unless the policy gives none.
pub fn new_cookie(cookie: &HashCookie, value: &str) -> Option<HeaderValue> {
    let ttl = cookie.ttl?;
    let mut text = format!("{}={value}", cookie.name);
    if !ttl.is_zero() {
        text.push_str(&format!("; Max-Age={}", ttl.as_secs().max(1)));
    }
    let given = &cookie.attributes;
    let has = |wanted| {
        given
            .iter()
            .any(|(name, _)| name.eq_ignore_ascii_case(wanted))
    };
    // Without a path a browser would bring it to a part of the site only.
    for (name, usual) in [("path", "; Path=/"), ("httponly", "; HttpOnly")] {
        if !has(name) {
            text.push_str(usual);
        }
    }
    for (name, value) in &cookie.attributes {
        text.push_str("; ");
        text.push_str(name);
        if !value.is_empty() {
            text.push('=');
            text.push_str(value);
        }
    }
    HeaderValue::from_str(&text).ok()
}

fn below(random: &mut impl FnMut() -> u64, count: usize) -> usize {
    (random() % count as u64) as usize
}

/// Whether an endpoint of an age is taken where it is drawn: while it is new, as often as it has grown.
fn grown(age: Duration, slow: Option<Duration>, random: &mut impl FnMut() -> u64) -> bool {
    let Some(window) = slow.filter(|window| age < *window) else {
        return true;
    };
    let share = age.as_millis() * 100 / window.as_millis().max(1);
    u128::from(random() % 100) < share.max(LEAST_SHARE)
}

#[cfg(test)]
mod tests;
