//! Placements of routing tables: their breakers, what is under way, and how their endpoints are.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::{Status, plural, section, table};

/// A placement of a routing table.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, Eq)]
pub struct PlacementStatus {
    /// namespace/name of its table.
    pub table: String,
    /// Its name.
    pub placement: String,
    /// `closed`, `open` or `half_open`.
    pub circuit: String,
    /// Failures in a row.
    pub failures: u32,
    /// Requests under way.
    pub requests: u32,
    /// Requests that may be under way; absent: any number.
    pub concurrency_limit: Option<u32>,
    /// Its endpoints.
    pub endpoints: Vec<PlacementEndpointStatus>,
}

/// An endpoint of a placement.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, Eq)]
pub struct PlacementEndpointStatus {
    /// Host and port.
    pub endpoint: String,
    /// Whether its last probes were good; true before the first.
    pub healthy: bool,
}

impl Status {
    pub(super) fn write_placements(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        section(f, "placements", self.placements.len())?;
        let rows = self.placements.iter().map(|one| {
            let circuit = match one.circuit.as_str() {
                "closed" => "closed".to_owned(),
                other => format!(
                    "{} after {}",
                    other.to_uppercase(),
                    plural(one.failures, "failure")
                ),
            };
            let requests = match one.concurrency_limit {
                Some(limit) => format!("{} of {limit} requests", one.requests),
                None => plural(one.requests, "request"),
            };
            let endpoints = one.endpoints.iter().map(|one| {
                let health = if one.healthy { "healthy" } else { "UNHEALTHY" };
                format!("{} {health}", one.endpoint)
            });
            vec![
                format!("{} {}", one.table, one.placement),
                circuit,
                requests,
                endpoints.collect::<Vec<_>>().join(", "),
            ]
        });
        table(f, rows.collect())
    }
}
