//! Routing keys: from a key to a placement to an endpoint.

use std::sync::{Arc, OnceLock};

use http::HeaderValue;
use snapshot::model::{self, ObjectName, PlacementUrl, RoutingTable, UpstreamHost};

use super::HashMap;
use super::hash::rendezvous;
use super::key::Key;
use crate::resilience::{Breaker, Health, Slots};
use crate::upstream::{RequestHost, RequestHostError};

/// A routing table, compiled.
#[derive(Debug)]
pub struct Placements {
    /// Its name.
    pub name: ObjectName,
    key: Key,
    /// By key, the position among the decisions: small entries, since there may be many keys.
    keys: HashMap<Box<str>, u32>,
    /// What keys lead to. The first is that of a key which is not in the table.
    decisions: Vec<Decision>,
    placements: HashMap<Arc<str>, Arc<Placement>>,
}

/// What a key leads to.
#[derive(Debug)]
struct Decision {
    name: Arc<str>,
    reason: RouteReason,
    /// None: the table has no endpoint for it.
    placement: Option<Arc<Placement>>,
}

/// A placement, compiled.
#[derive(Debug)]
pub struct Placement {
    /// Its table.
    pub table: ObjectName,
    /// Its name.
    pub name: Arc<str>,
    /// The name as a value of `X-Routed-To`.
    pub header: HeaderValue,
    /// What its document says.
    pub settings: model::Placement,
    /// Where it is served: one or more.
    pub endpoints: Vec<PlacementEndpoint>,
    state: OnceLock<Arc<PlacementState>>,
}

/// One endpoint of a placement.
#[derive(Debug)]
pub struct PlacementEndpoint {
    /// Base URL.
    pub url: PlacementUrl,
    /// Host sent there.
    pub host: RequestHost,
    health: OnceLock<Arc<Health>>,
}

/// What the node remembers of a placement.
#[derive(Debug, Default)]
pub struct PlacementState {
    /// Its breaker.
    pub breaker: Breaker,
    /// Requests under way.
    pub slots: Slots,
}

impl Placement {
    /// What the node remembers of it.
    pub fn state(&self) -> &PlacementState {
        self.state.get_or_init(Arc::default)
    }

    /// The endpoints that a key may use, in the table's order. With shuffle sharding two keys share
    /// all of them only by chance, so a key that breaks its endpoints breaks them for few others.
    pub fn shard(&self, key: &str) -> Vec<&PlacementEndpoint> {
        let size = match self.settings.shard_size {
            Some(size) if (size.get() as usize) < self.endpoints.len() => size.get() as usize,
            _ => return self.endpoints.iter().collect(),
        };
        let names = self
            .endpoints
            .iter()
            .map(|one| one.host.as_str().as_bytes());
        let mut chosen = rendezvous(key.as_bytes(), names, size);
        chosen.sort_unstable();
        chosen.into_iter().map(|at| &self.endpoints[at]).collect()
    }

    /// Whether some endpoint of a key is healthy.
    pub fn healthy(&self, key: &str) -> bool {
        match self.settings.shard_size {
            None => self.endpoints.iter().any(|one| one.health().healthy()),
            Some(_) => self.shard(key).iter().any(|one| one.health().healthy()),
        }
    }

    /// Takes over what is remembered of the placement of this name in the table before.
    fn adopt(&self, before: &Self) {
        // Nobody has asked this placement for its state yet: it is not published.
        let _ = self
            .state
            .set(Arc::clone(before.state.get_or_init(Arc::default)));
        for one in &self.endpoints {
            if let Some(same) = before.endpoints.iter().find(|old| old.url == one.url) {
                let _ = one.health.set(Arc::clone(same.health()));
            }
        }
    }
}

impl PlacementEndpoint {
    /// Host and port, for people.
    pub fn name(&self) -> &str {
        self.host.as_str()
    }

    /// What probes say of it.
    pub fn health(&self) -> &Arc<Health> {
        self.health.get_or_init(Arc::default)
    }
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
    pub name: &'a Arc<str>,
    /// Why this one.
    pub reason: RouteReason,
    /// The placement; none: the table has no endpoint for it.
    pub placement: Option<&'a Arc<Placement>>,
}

/// A table that cannot be compiled.
#[derive(Debug, thiserror::Error)]
pub enum PlacementsError {
    /// Not a header name.
    #[error("expected a header name, got `{0}`")]
    Header(String),
    /// A name that cannot stand in a header.
    #[error("placement `{0}` has a name that is no header value")]
    Name(String),
    /// An endpoint that no request can be for.
    #[error("placement `{placement}` has an endpoint without a host")]
    Host {
        /// Its name.
        placement: String,
        /// What is wrong with it.
        #[source]
        source: RequestHostError,
    },
}

impl Placements {
    /// Compiles a table of the snapshot.
    pub fn new(table: &RoutingTable) -> Result<Self, PlacementsError> {
        let key = Key::new(&table.key, &table.trust).map_err(PlacementsError::Header)?;
        let mut names: HashMap<&str, Arc<str>> = HashMap::default();
        let mut name =
            |text| -> Arc<str> { Arc::clone(names.entry(text).or_insert_with(|| text.into())) };
        let mut placements = HashMap::default();
        for (text, placement) in &table.placements {
            let host = |source| PlacementsError::Host {
                placement: text.clone(),
                source,
            };
            let endpoint = |url: &PlacementUrl| {
                Ok(PlacementEndpoint {
                    host: RequestHost::new(&authority(url)).map_err(host)?,
                    url: url.clone(),
                    health: OnceLock::new(),
                })
            };
            let compiled = Placement {
                table: table.name.clone(),
                name: name(text),
                header: HeaderValue::from_str(text)
                    .map_err(|_| PlacementsError::Name(text.clone()))?,
                endpoints: placement
                    .endpoints
                    .iter()
                    .map(endpoint)
                    .collect::<Result<_, _>>()?,
                settings: placement.clone(),
                state: OnceLock::new(),
            };
            placements.insert(name(text), Arc::new(compiled));
        }
        let mut decision = |text, reason| {
            let name = name(text);
            Decision {
                placement: placements.get(&name).cloned(),
                name,
                reason,
            }
        };
        let mut decisions = vec![decision(&table.default, RouteReason::Default)];
        let mut known: HashMap<&str, u32> = HashMap::default();
        let mut keys = HashMap::default();
        for (key, placement) in &table.keys {
            let at = *known.entry(placement).or_insert_with(|| {
                let reason = match table.tiers.contains(placement) {
                    true => RouteReason::Tier,
                    false => RouteReason::Dedicated,
                };
                decisions.push(decision(placement, reason));
                // One for each placement, of which a document has far fewer.
                (decisions.len() - 1) as u32
            });
            keys.insert(key.as_str().into(), at);
        }
        Ok(Self {
            name: table.name.clone(),
            key,
            keys,
            decisions,
            placements,
        })
    }

    /// Where the routing key of a request is.
    pub fn key(&self) -> &Key {
        &self.key
    }

    /// The placement of a key. Keys are exact; unknown ones go to the default placement.
    pub fn decide(&self, key: &str) -> Placed<'_> {
        let at = self.keys.get(key).map_or(0, |at| *at as usize);
        let decision = &self.decisions[at];
        Placed {
            name: &decision.name,
            reason: decision.reason,
            placement: decision.placement.as_ref(),
        }
    }

    /// The placement of a name.
    pub fn placement(&self, name: &str) -> Option<&Arc<Placement>> {
        self.placements.get(name)
    }

    /// The placement of unknown keys.
    pub fn default_placement(&self) -> Option<&Arc<Placement>> {
        self.decisions[0].placement.as_ref()
    }

    /// All placements, in no order.
    pub fn all(&self) -> impl Iterator<Item = &Arc<Placement>> {
        self.placements.values()
    }

    /// Takes over what the table of this name before remembers.
    pub(crate) fn adopt(&self, before: &Self) {
        for placement in self.placements.values() {
            if let Some(before) = before.placements.get(&placement.name) {
                placement.adopt(before);
            }
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
