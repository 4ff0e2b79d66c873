//! Routing keys: from a key to a placement to an endpoint.

use std::collections::HashMap;
use std::sync::Arc;

use http::{HeaderMap, HeaderName, HeaderValue};
use snapshot::model::{KeySource, ObjectName, PlacementUrl, RoutingTable, UpstreamHost};

/// A routing table, compiled.
#[derive(Debug)]
pub struct Placements {
    /// Its name.
    pub name: ObjectName,
    header: HeaderName,
    keys: HashMap<Box<str>, Arc<str>>,
    endpoints: HashMap<Arc<str>, Arc<PlacementEndpoint>>,
    tiers: Vec<Arc<str>>,
    default: Arc<str>,
}

/// Where a placement is served.
#[derive(Debug)]
pub struct PlacementEndpoint {
    /// Name of the placement as a value of `X-Routed-To`.
    pub header: HeaderValue,
    /// Base URL.
    pub url: PlacementUrl,
    /// Host sent there.
    pub authority: HeaderValue,
}

/// Why a placement was chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum RouteReason {
    /// The key has a placement of its own.
    Dedicated,
    /// The key leads to a tier.
    Tier,
    /// The key is not in the table.
    Default,
}

impl RouteReason {
    /// As in `X-Route-Reason`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Dedicated => "dedicated",
            Self::Tier => "tier",
            Self::Default => "default",
        }
    }
}

/// What a key leads to.
#[derive(Clone, Debug)]
pub struct Placed<'a> {
    /// Name of the placement.
    pub placement: &'a Arc<str>,
    /// Why this one.
    pub reason: RouteReason,
    /// Where it is served; none: the table has no endpoint for it.
    pub endpoint: Option<&'a Arc<PlacementEndpoint>>,
}

/// What is wrong with the routing key of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// Not there, or blank.
    #[error("routing key is missing")]
    Missing,
    /// There twice: which one counts is anybody's guess.
    #[error("routing key is there more than once")]
    Several,
    /// A comma would be two keys for whoever joins header lines.
    #[error("routing key contains a comma")]
    Comma,
    /// Not printable ASCII.
    #[error("routing key is not ASCII")]
    NotAscii,
    /// More than [`MAX_KEY`] bytes.
    #[error("routing key is longer than {MAX_KEY} bytes")]
    TooLong,
}

/// Longest routing key in bytes.
pub const MAX_KEY: usize = 256;

/// A table that cannot be compiled.
#[derive(Debug, thiserror::Error)]
pub enum PlacementsError {
    /// Not a header name.
    #[error("expected a header name, got `{0}`")]
    Header(String),
    /// A name or host that cannot stand in a header.
    #[error("placement `{0}` has a name or host that is no header value")]
    Value(String),
}

impl Placements {
    /// Compiles a table of the snapshot.
    pub fn new(table: &RoutingTable) -> Result<Self, PlacementsError> {
        let KeySource::Header(header) = &table.key;
        let header = HeaderName::from_bytes(header.as_bytes())
            .map_err(|_| PlacementsError::Header(header.clone()))?;
        let mut names: HashMap<&str, Arc<str>> = HashMap::new();
        let mut name =
            |text| -> Arc<str> { Arc::clone(names.entry(text).or_insert_with(|| text.into())) };
        let mut endpoints = HashMap::new();
        for (text, placement) in &table.placements {
            let invalid = |_| PlacementsError::Value(text.clone());
            let endpoint = PlacementEndpoint {
                header: HeaderValue::from_str(text).map_err(invalid)?,
                authority: HeaderValue::from_str(&authority(&placement.url)).map_err(invalid)?,
                url: placement.url.clone(),
            };
            endpoints.insert(name(text), Arc::new(endpoint));
        }
        Ok(Self {
            name: table.name.clone(),
            header,
            keys: table
                .keys
                .iter()
                .map(|(key, placement)| (key.as_str().into(), name(placement)))
                .collect(),
            endpoints,
            tiers: table.tiers.iter().map(|tier| name(tier)).collect(),
            default: name(&table.default),
        })
    }

    /// The routing key of a request.
    pub fn key<'a>(&self, headers: &'a HeaderMap) -> Result<&'a str, KeyError> {
        let mut values = headers.get_all(&self.header).iter();
        let value = values.next().ok_or(KeyError::Missing)?;
        if values.next().is_some() {
            return Err(KeyError::Several);
        }
        let key = value.to_str().map_err(|_| KeyError::NotAscii)?.trim();
        match key {
            "" => Err(KeyError::Missing),
            _ if key.len() > MAX_KEY => Err(KeyError::TooLong),
            _ if key.contains(',') => Err(KeyError::Comma),
            _ => Ok(key),
        }
    }

    /// The placement of a key. Keys are exact; unknown ones go to the default placement.
    pub fn decide(&self, key: &str) -> Placed<'_> {
        let found = self.keys.get(key);
        let placement = found.unwrap_or(&self.default);
        let reason = match found {
            None => RouteReason::Default,
            Some(placement) if self.tiers.contains(placement) => RouteReason::Tier,
            Some(_) => RouteReason::Dedicated,
        };
        Placed {
            placement,
            reason,
            endpoint: self.endpoints.get(placement),
        }
    }
}

/// `host[:port]`, without the port that the scheme implies.
fn authority(url: &PlacementUrl) -> String {
    let host = match &url.host {
        UpstreamHost::Address(std::net::IpAddr::V6(v6)) => format!("[{v6}]"),
        UpstreamHost::Address(address) => address.to_string(),
        UpstreamHost::Name(name) => name.to_string(),
    };
    let implied = if url.tls { 443 } else { 80 };
    if url.port.get() == implied {
        host
    } else {
        format!("{host}:{}", url.port)
    }
}
