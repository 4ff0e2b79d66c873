//! `spec.loadBalancer`.

use std::time::Duration;

use super::some;
use crate::document::duration::duration;
use crate::document::http_route::{header_name, header_value};
use crate::model::{Balance, ConsistentHash, HashCookie, HashKey};
use crate::reader::{Field, Object, quoted};

/// Entries of a table without `tableSize` (Envoy Gateway, `ConsistentHash.tableSize`).
const TABLE_SIZE: u32 = 65_537;
/// Most entries (Envoy, `MaglevLbConfig.table_size`).
const MAX_TABLE_SIZE: i64 = 5_000_011;
/// Headers or parameters that are listed at most.
const MAX_NAMES: usize = 16;
/// Attributes of a cookie that are listed at most.
const MAX_ATTRIBUTES: usize = 16;

#[derive(Clone, Copy)]
enum Kind {
    LeastRequest,
    RoundRobin,
    Random,
    ConsistentHash,
}

pub(super) fn read(field: &Field<'_>) -> Option<Balance> {
    let mut object = field.object()?;
    object.unsupported(&["endpointOverride", "zoneAware", "backendUtilization"]);
    let kind = object.required("type").and_then(|field| {
        field.choice(&[
            ("LeastRequest", Kind::LeastRequest),
            ("RoundRobin", Kind::RoundRobin),
            ("Random", Kind::Random),
            ("ConsistentHash", Kind::ConsistentHash),
        ])
    });
    let hash = object.optional("consistentHash");
    let slow = object.optional("slowStart");
    let at = object.at("consistentHash");
    object.finish();
    let kind = kind?;
    if let (Some(slow), Kind::Random | Kind::ConsistentHash) = (&slow, kind) {
        slow.mistake("is for `LeastRequest` and `RoundRobin` only");
        return None;
    }
    match (kind, hash) {
        (Kind::ConsistentHash, Some(hash)) => {
            return consistent_hash(&hash).map(Balance::ConsistentHash);
        }
        (Kind::ConsistentHash, None) => {
            field
                .sink()
                .mistake(at, "is missing, and required with `ConsistentHash`");
            return None;
        }
        (_, Some(hash)) => {
            hash.mistake("is for `ConsistentHash` only");
            return None;
        }
        (_, None) => {}
    }
    let slow_start = match slow {
        Some(field) => Some(window(&field)?),
        None => None,
    };
    Some(match kind {
        Kind::RoundRobin => Balance::RoundRobin { slow_start },
        Kind::Random => Balance::Random,
        _ => Balance::LeastRequest { slow_start },
    })
}

fn window(field: &Field<'_>) -> Option<Duration> {
    let mut object = field.object()?;
    let window = object.required("window").and_then(|field| some(&field));
    object.finish();
    window
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Key {
    SourceIp,
    Header,
    Headers,
    Cookie,
    QueryParams,
}

const KEYS: [(&str, Key, &str); 5] = [
    ("SourceIP", Key::SourceIp, ""),
    ("Header", Key::Header, "header"),
    ("Headers", Key::Headers, "headers"),
    ("Cookie", Key::Cookie, "cookie"),
    ("QueryParams", Key::QueryParams, "queryParams"),
];

fn consistent_hash(field: &Field<'_>) -> Option<ConsistentHash> {
    let mut object = field.object()?;
    let key = object
        .required("type")
        .and_then(|field| field.choice(&KEYS.map(|(name, key, _)| (name, key))));
    let table_size = match object.optional("tableSize") {
        Some(field) => table_size(&field),
        None => Some(TABLE_SIZE),
    };
    let mut own = None;
    let mut complete = true;
    for (name, of, part) in KEYS.into_iter().filter(|(_, _, part)| !part.is_empty()) {
        let found = object.optional(part);
        if key == Some(of) {
            if found.is_none() {
                let missing = format_args!("is missing, and required with `{name}`");
                field.sink().mistake(object.at(part), missing);
            }
            own = found;
        } else if let (Some(found), Some(_)) = (found, key) {
            found.mistake(format_args!("is for `{name}` only"));
            complete = false;
        }
    }
    object.finish();
    let key = match key? {
        Key::SourceIp => HashKey::SourceIp,
        Key::Header => HashKey::Headers(vec![named(&own?, header)?]),
        Key::Headers => HashKey::Headers(list(&own?, header)?),
        Key::Cookie => HashKey::Cookie(cookie(&own?)?),
        Key::QueryParams => HashKey::QueryParams(list(&own?, parameter)?),
    };
    Some(ConsistentHash {
        key,
        table_size: table_size.filter(|_| complete)?,
    })
}

/// Steps through a table of a size that is not prime would not reach all of it.
fn table_size(field: &Field<'_>) -> Option<u32> {
    let size = u32::try_from(field.integer(2..=MAX_TABLE_SIZE)?).ok()?;
    let prime = (2..)
        .take_while(|divisor| divisor * divisor <= size)
        .all(|divisor| size % divisor != 0);
    if !prime {
        field.expected("a prime number");
    }
    prime.then_some(size)
}

fn header(field: &Field<'_>) -> Option<String> {
    field.parse(header_name)
}

fn parameter(field: &Field<'_>) -> Option<String> {
    field.some_string().map(str::to_owned)
}

fn named(field: &Field<'_>, name: impl Fn(&Field<'_>) -> Option<String>) -> Option<String> {
    let mut object = field.object()?;
    let name = object.required("name").and_then(|field| name(&field));
    object.finish();
    name
}

fn list(
    field: &Field<'_>,
    name: impl Fn(&Field<'_>) -> Option<String> + Copy,
) -> Option<Vec<String>> {
    let mut names = Vec::new();
    for item in field.some_limited_list(MAX_NAMES) {
        let name = named(&item, name)?;
        if names.contains(&name) {
            item.mistake(format_args!("{} is in the list already", quoted(&name)));
        }
        names.push(name);
    }
    Some(names)
}

fn cookie(field: &Field<'_>) -> Option<HashCookie> {
    let mut object = field.object()?;
    let name = object.required("name").and_then(|field| field.parse(token));
    let ttl = object.optional("ttl").map(|field| field.parse(duration));
    let attributes = attributes(&mut object);
    object.finish();
    Some(HashCookie {
        name: name?,
        ttl: match ttl {
            Some(ttl) => Some(ttl?),
            None => None,
        },
        attributes: attributes?,
    })
}

fn attributes(object: &mut Object<'_>) -> Option<Vec<(String, String)>> {
    let Some(field) = object.optional("attributes") else {
        return Some(Vec::new());
    };
    let entries = field.entries();
    if entries.len() > MAX_ATTRIBUTES {
        field.mistake(format_args!("expected at most {MAX_ATTRIBUTES} attributes"));
        return None;
    }
    entries
        .into_iter()
        .map(|(name, value)| {
            let name = token(name).map_err(|error| value.mistake(error)).ok()?;
            if name.eq_ignore_ascii_case("max-age") {
                value.mistake("is what `ttl` says");
                return None;
            }
            let text = value.parse(|text| match header_value(text)? {
                text if text.contains(';') => Err("expected no `;` in it".to_owned()),
                text => Ok(text),
            })?;
            Some((name, text))
        })
        .collect()
}

/// The name of a cookie or of an attribute, a token (RFC 6265, section 4.1.1).
fn token(text: &str) -> Result<String, String> {
    match header_name(text) {
        Ok(_) => Ok(text.to_owned()),
        Err(_) => Err(format!(
            "expected letters, digits and marks of a token, got {}",
            quoted(text)
        )),
    }
}
