//! What the router remembers of backends that policies are about, read from the published table when somebody
//! asks. Labels are those of the active documents: what leaves them leaves the metrics.

use std::fmt;
use std::sync::Arc;

use arc_swap::ArcSwap;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::gauge::ConstGauge;

use crate::resilience::Clock;
use crate::route::backend::BackendState;
use crate::route::{Managed, RouteTable};

/// Reads places, health and who is left out.
#[derive(Debug)]
pub(super) struct BackendMetrics {
    pub(super) table: Arc<ArcSwap<RouteTable>>,
    pub(super) clock: Clock,
}

type OfBackend = fn(&BackendState) -> u32;

impl Collector for BackendMetrics {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let table = self.table.load();
        let series: [(&str, &str, OfBackend); 4] = [
            (
                "proxy_backend_requests",
                "Requests under way to a backend that a policy is about",
                |one| one.requests.taken(),
            ),
            (
                "proxy_backend_retries",
                "Retries under way to a backend that a policy is about",
                |one| one.retries.taken(),
            ),
            (
                "proxy_backend_connections",
                "Connections in use to a backend whose connections a policy limits",
                |one| one.connections.taken(),
            ),
            (
                "proxy_backend_pending",
                "Requests that wait for a connection to a backend",
                |one| one.connections.waiting(),
            ),
        ];
        for (name, help, value) in series {
            let mut family = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
            for backend in table.backends() {
                let value = i64::from(value(backend.state()));
                let labels = [("backend", &*backend.name)];
                ConstGauge::new(value).encode(family.encode_family(&labels)?)?;
            }
        }
        let now = self.clock.now();
        endpoints(
            (&table, &mut encoder),
            "proxy_backend_endpoint_healthy",
            "1 while the probes of a backend's endpoint are good",
            Managed::healthy,
        )?;
        endpoints(
            (&table, &mut encoder),
            "proxy_backend_endpoint_ejected",
            "1 while a backend's endpoint is left out for what became of requests",
            |managed, at| managed.ejected(at, now),
        )
    }
}

fn endpoints(
    (table, encoder): (&RouteTable, &mut DescriptorEncoder<'_>),
    name: &str,
    help: &str,
    value: impl Fn(&Managed, usize) -> bool,
) -> fmt::Result {
    let mut family = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
    for managed in table.managed() {
        let policy = managed.policy.id().to_string();
        for (at, endpoint) in managed.backend.endpoints.iter().enumerate() {
            let labels = [
                ("backend", &*managed.backend.name),
                ("policy", &*policy),
                ("endpoint", &*endpoint.name),
            ];
            let value = i64::from(value(managed, at));
            ConstGauge::new(value).encode(family.encode_family(&labels)?)?;
        }
    }
    Ok(())
}
