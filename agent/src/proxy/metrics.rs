//! Counters of the router. Labels are bounded by the snapshot: listeners, and enums of ours.

use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use prometheus_client::encoding::{EncodeLabelSet, EncodeMetric, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use super::log::{AccessRecord, Reason};
use super::tallies::{Mirrors, Retries};

/// Upper bounds of the duration histogram in microseconds.
const BOUNDS: [u64; 14] = [
    100, 250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 1_000_000,
    5_000_000, 30_000_000,
];

/// All metrics of the router, shared by its cores.
#[derive(Clone, Debug, Default)]
pub struct Metrics {
    requests: Family<Labels, Counter>,
    duration: Durations,
    connections: Gauge,
    bytes_in: Counter,
    bytes_out: Counter,
    retries: Retries,
    mirrors: Mirrors,
    tokens: Family<TokenLabels, Counter>,
    dropped: Family<DroppedLabels, Counter>,
}

/// Why a datagram went nowhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Dropped {
    /// The listener has no route, or its client may not use it.
    NoRoute,
    /// The listener has as many sessions as it may have.
    Sessions,
    /// Too many of one client, or of all, waited.
    Queue,
    /// An answer that the kernel did not take.
    Answer,
}

impl Dropped {
    fn as_str(self) -> &'static str {
        match self {
            Self::NoRoute => "no_route",
            Self::Sessions => "sessions",
            Self::Queue => "queue",
            Self::Answer => "answer",
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct DroppedLabels {
    reason: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct TokenLabels {
    by: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Labels {
    listener: String,
    status: String,
    reason: String,
}

impl Metrics {
    /// Adds the router's metrics to a registry, under the registry's own prefix.
    pub fn register(&self, registry: &mut Registry) {
        registry.register(
            "proxy_requests",
            "Requests, and connections that were refused or tunnelled, by listener, status class and reason",
            self.requests.clone(),
        );
        registry.register(
            "proxy_request_duration_seconds",
            "From the head of the request to the end of the answer's body",
            self.duration.clone(),
        );
        registry.register(
            "proxy_connections",
            "Client connections, and sessions of datagrams, open now",
            self.connections.clone(),
        );
        registry.register(
            "proxy_request_body_bytes",
            "Bytes of request bodies",
            self.bytes_in.clone(),
        );
        registry.register(
            "proxy_response_body_bytes",
            "Bytes of response bodies",
            self.bytes_out.clone(),
        );
        self.retries.register(registry);
        self.mirrors.register(registry);
        registry.register(
            "proxy_tokens",
            "Good tokens, by whether the signature was checked or the core knew the token",
            self.tokens.clone(),
        );
        registry.register(
            "proxy_datagrams_dropped",
            "Datagrams of UDP listeners that went nowhere, by reason",
            self.dropped.clone(),
        );
    }

    pub(super) fn connections(&self) -> &Gauge {
        &self.connections
    }
}

/// Listener, class of the status, reason.
type Key = (Option<Arc<str>>, u16, Reason);

/// One core's view: it remembers the counters that it used, so that counting takes no lock.
#[derive(Debug)]
pub(super) struct CoreMetrics {
    pub(super) retries: Retries,
    pub(super) mirrors: Mirrors,
    shared: Metrics,
    known: RefCell<HashMap<Key, Counter>>,
    /// The counter of the last request.
    last: RefCell<Option<(Key, Counter)>>,
    tokens_verified: Counter,
    tokens_remembered: Counter,
}

impl CoreMetrics {
    pub(super) fn new(shared: Metrics) -> Self {
        let tokens = |by| shared.tokens.get_or_create(&TokenLabels { by }).clone();
        Self {
            retries: shared.retries.clone(),
            mirrors: shared.mirrors.clone(),
            tokens_verified: tokens("signature"),
            tokens_remembered: tokens("memory"),
            shared,
            known: RefCell::default(),
            last: RefCell::default(),
        }
    }

    pub(super) fn shared(&self) -> &Metrics {
        &self.shared
    }

    /// A token's signature was checked, and holds.
    pub(super) fn token_verified(&self) {
        self.tokens_verified.inc();
    }

    /// A datagram went nowhere. This takes the family's lock for reading, and so no other core waits for it.
    pub(super) fn dropped(&self, why: Dropped) {
        let reason = why.as_str();
        self.shared
            .dropped
            .get_or_create(&DroppedLabels { reason })
            .inc();
    }

    /// A token was known from before.
    pub(super) fn token_remembered(&self) {
        self.tokens_remembered.inc();
    }

    pub(super) fn count(&self, record: &AccessRecord) {
        self.requests(record);
        self.shared.duration.observe(record.duration_us);
        self.shared.bytes_in.inc_by(record.bytes_in);
        self.shared.bytes_out.inc_by(record.bytes_out);
    }

    /// Most requests go the way of the one before, whose counter is at hand.
    fn requests(&self, record: &AccessRecord) {
        let class = record.status / 100;
        if let Some(((listener, last_class, reason), counter)) = &*self.last.borrow()
            && (*last_class, *reason) == (class, record.reason)
            && listener.as_ref().map(Arc::as_ptr) == record.listener.as_ref().map(Arc::as_ptr)
        {
            counter.inc();
            return;
        }
        let key = (record.listener.clone(), class, record.reason);
        let mut known = self.known.borrow_mut();
        let counter = known.entry(key.clone()).or_insert_with(|| {
            let labels = Labels {
                listener: record.listener.as_deref().unwrap_or("none").to_owned(),
                status: if class == 0 {
                    "none".into()
                } else {
                    format!("{class}xx")
                },
                reason: record.reason.as_str().to_owned(),
            };
            self.shared.requests.get_or_create(&labels).clone()
        });
        counter.inc();
        self.last.replace(Some((key, counter.clone())));
    }
}

/// A histogram of atomics: the crate's own takes a lock for each observation.
#[derive(Clone, Debug, Default)]
struct Durations(Arc<DurationCells>);

#[derive(Debug, Default)]
struct DurationCells {
    buckets: [AtomicU64; BOUNDS.len() + 1],
    sum_us: AtomicU64,
}

impl Durations {
    fn observe(&self, micros: u64) {
        let at = BOUNDS.partition_point(|bound| *bound < micros);
        self.0.buckets[at].fetch_add(1, Ordering::Relaxed);
        self.0.sum_us.fetch_add(micros, Ordering::Relaxed);
    }
}

impl EncodeMetric for Durations {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> Result<(), std::fmt::Error> {
        let bounds = BOUNDS.iter().map(|bound| *bound as f64 / 1e6);
        let buckets: Vec<(f64, u64)> = bounds
            .chain([f64::INFINITY])
            .zip(
                self.0
                    .buckets
                    .iter()
                    .map(|cell| cell.load(Ordering::Relaxed)),
            )
            .collect();
        let count = buckets.iter().map(|(_, count)| count).sum();
        let sum = self.0.sum_us.load(Ordering::Relaxed) as f64 / 1e6;
        encoder.encode_histogram::<NoLabelSet>(sum, count, &buckets, None)
    }

    fn metric_type(&self) -> MetricType {
        MetricType::Histogram
    }
}
