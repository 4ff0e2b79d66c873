//! Placements as the router knows them now.

use crate::route::RouteTable;
use crate::status::{PlacementEndpointStatus, PlacementStatus};

/// Placements of all tables, by table and name.
pub(super) fn rows(table: &RouteTable) -> Vec<PlacementStatus> {
    let placements = table.placements().flat_map(|one| one.all());
    let mut rows: Vec<_> = placements
        .map(|placement| {
            let (circuit, failures) = placement.state().breaker.state();
            let limit = placement.settings.concurrency_limit;
            PlacementStatus {
                table: placement.table.to_string(),
                placement: placement.name.to_string(),
                circuit: circuit.as_str().to_owned(),
                failures,
                requests: placement.state().slots.taken(),
                concurrency_limit: limit.map(std::num::NonZeroU32::get),
                endpoints: placement
                    .endpoints
                    .iter()
                    .map(|one| PlacementEndpointStatus {
                        endpoint: one.name().to_owned(),
                        healthy: one.health().healthy(),
                    })
                    .collect(),
            }
        })
        .collect();
    rows.sort_by(|a, b| (&a.table, &a.placement).cmp(&(&b.table, &b.placement)));
    rows
}
