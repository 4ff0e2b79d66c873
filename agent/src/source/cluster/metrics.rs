//! How well the cluster is heard, as metrics.

use std::fmt;
use std::sync::Arc;

use kubernetes::Cluster;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric as _};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;

/// Reads them from the cluster when somebody asks.
#[derive(Clone)]
pub struct ClusterMetrics(pub Arc<Cluster>);

impl fmt::Debug for ClusterMetrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("ClusterMetrics")
            .field(&self.0.server())
            .finish()
    }
}

impl Collector for ClusterMetrics {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let health = self.0.health();
        let single = [
            (
                "kubernetes_complete",
                "1 once every kind that is served was listed since the start",
                f64::from(u8::from(health.complete)),
            ),
            (
                "kubernetes_staleness_seconds",
                "For how long the oldest part of what is known could not be confirmed; 0 is up to date",
                health.staleness().as_secs_f64(),
            ),
            (
                "kubernetes_writes_status",
                "1 while this agent is the one that writes status",
                f64::from(u8::from(health.writes)),
            ),
        ];
        for (name, help, value) in single {
            let gauge = ConstGauge::new(value);
            let family = encoder.encode_descriptor(name, help, None, gauge.metric_type())?;
            gauge.encode(family)?;
        }
        let gauge = ConstGauge::new(0_i64);
        let help = "Objects that are known";
        let mut family =
            encoder.encode_descriptor("kubernetes_objects", help, None, gauge.metric_type())?;
        for (kind, count) in health.kinds {
            let gauge = ConstGauge::new(i64::try_from(count).unwrap_or(i64::MAX));
            gauge.encode(family.encode_family(&[("kind", kind)])?)?;
        }
        let counter = ConstCounter::new(0_u64);
        let help = "Statuses that this agent wrote, or could not write";
        let mut family = encoder.encode_descriptor(
            "kubernetes_status_writes",
            help,
            None,
            counter.metric_type(),
        )?;
        for (result, count) in [("written", health.written), ("failed", health.unwritten)] {
            ConstCounter::new(count).encode(family.encode_family(&[("result", result)])?)?;
        }
        Ok(())
    }
}
