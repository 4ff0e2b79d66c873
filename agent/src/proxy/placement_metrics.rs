//! What the router remembers of placements, read from the published table when somebody asks. Labels are
//! those of the active documents: what leaves them leaves the metrics.

use std::fmt;
use std::sync::Arc;

use arc_swap::ArcSwap;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::gauge::ConstGauge;

use crate::resilience::CircuitState;
use crate::route::{Placement, RouteTable};

/// Reads breakers, limits and health.
#[derive(Debug)]
pub(super) struct PlacementMetrics {
    pub(super) table: Arc<ArcSwap<RouteTable>>,
}

type Value = fn(&Placement) -> u32;

impl Collector for PlacementMetrics {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let table = self.table.load();
        let mut placements: Vec<(String, &Placement)> = table
            .placements()
            .flat_map(|one| one.all())
            .map(|one| (one.table.to_string(), &**one))
            .collect();
        placements.sort_by(|a, b| (&a.0, &a.1.name).cmp(&(&b.0, &b.1.name)));
        let series: [(&str, &str, Value); 3] = [
            (
                "proxy_placement_circuit_state",
                "Circuit breaker of a placement: 0 closed, 1 half open, 2 open",
                |one| match one.state().breaker.state().0 {
                    CircuitState::Closed => 0,
                    CircuitState::HalfOpen => 1,
                    CircuitState::Open => 2,
                },
            ),
            (
                "proxy_placement_failures",
                "Failures of a placement in a row",
                |one| one.state().breaker.state().1,
            ),
            (
                "proxy_placement_requests",
                "Requests under way to a placement",
                |one| one.state().slots.taken(),
            ),
        ];
        for (name, help, value) in series {
            let mut family = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
            for (table, placement) in &placements {
                let labels = [("table", &**table), ("placement", &*placement.name)];
                let value = i64::from(value(placement));
                ConstGauge::new(value).encode(family.encode_family(&labels)?)?;
            }
        }
        let mut family = encoder.encode_descriptor(
            "proxy_placement_endpoint_healthy",
            "1 while the probes of a placement's endpoint are good",
            None,
            MetricType::Gauge,
        )?;
        for (table, placement) in &placements {
            for endpoint in &placement.endpoints {
                let labels = [
                    ("table", &**table),
                    ("placement", &*placement.name),
                    ("endpoint", endpoint.name()),
                ];
                let healthy = i64::from(endpoint.health().healthy());
                ConstGauge::new(healthy).encode(family.encode_family(&labels)?)?;
            }
        }
        Ok(())
    }
}
