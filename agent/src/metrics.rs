//! Metrics of the agent itself; the router's are registered beside them. `docs/metrics.md` lists every series.

use std::sync::atomic::AtomicU64;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

/// Why a generation was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reload {
    /// The agent started.
    Start,
    /// Documents changed.
    Documents,
    /// Pods came or went.
    Pods,
}

impl Reload {
    /// The word in logs and labels.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Start => "start",
            Self::Documents => "documents",
            Self::Pods => "pods",
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReloadLabels {
    reason: &'static str,
    result: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct TableLabels {
    table: &'static str,
}

/// What the agent counts of its configuration.
#[derive(Default)]
pub struct Metrics {
    generation: Gauge<u64, AtomicU64>,
    reloads: Family<ReloadLabels, Counter>,
    last_reload: Gauge,
    refused: Gauge,
    refused_objects: Gauge,
    enforcing: Gauge,
    drift: Family<TableLabels, Gauge>,
    repairs: Family<TableLabels, Counter>,
}

impl Metrics {
    /// Registers every series; the registry brings the prefix `cardinal`.
    pub fn register(&self, registry: &mut Registry) {
        registry.register(
            "config_generation",
            "Active generation",
            self.generation.clone(),
        );
        registry.register(
            "config_reloads",
            "Attempts to activate a generation",
            self.reloads.clone(),
        );
        registry.register(
            "config_last_reload_timestamp_seconds",
            "When the active documents were taken over, seconds since 1970",
            self.last_reload.clone(),
        );
        registry.register(
            "config_refused",
            "1 while the documents are refused as a whole and older ones serve",
            self.refused.clone(),
        );
        registry.register(
            "config_refused_objects",
            "Objects of the cluster that have mistakes",
            self.refused_objects.clone(),
        );
        registry.register(
            "datapath_enforcing",
            "1 while cells are enforced in the kernel",
            self.enforcing.clone(),
        );
        registry.register(
            "datapath_drift",
            "Entries of a table that were not as the agent wrote them when it last looked",
            self.drift.clone(),
        );
        registry.register(
            "datapath_repairs",
            "Entries of a table that the agent put right after somebody else changed them",
            self.repairs.clone(),
        );
    }

    /// A generation is active.
    pub fn activated(&self, generation: u64, reason: Reload, now: i64) {
        self.generation.set(generation);
        self.reloads
            .get_or_create(&ReloadLabels {
                reason: reason.as_str(),
                result: "accepted",
            })
            .inc();
        if reason != Reload::Pods {
            self.last_reload.set(now);
            self.refused.set(0);
        }
    }

    /// Documents were refused.
    pub fn refused(&self) {
        self.reloads
            .get_or_create(&ReloadLabels {
                reason: Reload::Documents.as_str(),
                result: "refused",
            })
            .inc();
        self.refused.set(1);
    }

    /// So many objects have mistakes; the others are active.
    pub fn objects_refused(&self, count: usize) {
        self.refused_objects
            .set(i64::try_from(count).unwrap_or(i64::MAX));
    }

    /// The generation for other pods could not be activated.
    pub fn pods_failed(&self) {
        self.reloads
            .get_or_create(&ReloadLabels {
                reason: Reload::Pods.as_str(),
                result: "failed",
            })
            .inc();
    }

    /// A table of the kernel's was compared with what it was given.
    pub fn compared(&self, table: &'static str, drifted: usize, repaired: bool) {
        let labels = TableLabels { table };
        let count = i64::try_from(drifted).unwrap_or(i64::MAX);
        self.drift.get_or_create(&labels).set(count);
        let repairs = self.repairs.get_or_create(&labels);
        if repaired {
            repairs.inc_by(drifted as u64);
        }
    }

    /// Whether cells are enforced.
    pub fn enforcing(&self, enforcing: bool) {
        self.enforcing.set(enforcing.into());
    }
}
