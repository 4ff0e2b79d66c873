//! Counters of key sets, by URI: as many as the documents name.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use snapshot::model::KeyUri;

use super::ProviderStatus;

#[derive(Clone, Debug, Default)]
pub(super) struct Metrics {
    fetches: Family<Fetched, Counter>,
    keys: Family<Uri, Gauge>,
    fetched_at: Family<Uri, Gauge>,
    /// URIs that are shown. Only the thread that fetches takes this lock.
    shown: Arc<Mutex<BTreeSet<String>>>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Fetched {
    uri: String,
    result: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Uri {
    uri: String,
}

impl Metrics {
    pub(super) fn register(&self, registry: &mut Registry) {
        registry.register(
            "jwks_fetches",
            "Fetches of key sets of token providers, by result",
            self.fetches.clone(),
        );
        registry.register(
            "jwks_keys",
            "Keys of a token provider in use; 0 while none may be used",
            self.keys.clone(),
        );
        registry.register(
            "jwks_last_success_timestamp_seconds",
            "When a key set was last fetched, seconds since 1970",
            self.fetched_at.clone(),
        );
    }

    pub(super) fn fetched(&self, uri: &KeyUri, good: bool) {
        let labels = Fetched {
            uri: uri.to_string(),
            result: if good { "fetched" } else { "failed" },
        };
        self.fetches.get_or_create(&labels).inc();
    }

    /// Shows these sets and forgets those that are no longer wanted.
    pub(super) fn show<'a>(&self, sets: impl Iterator<Item = &'a ProviderStatus>) {
        let mut shown = self.shown.lock().unwrap_or_else(PoisonError::into_inner);
        let mut now = BTreeSet::new();
        for one in sets {
            let uri = Uri {
                uri: one.uri.clone(),
            };
            let keys = i64::try_from(one.keys).unwrap_or(i64::MAX);
            self.keys.get_or_create(&uri).set(keys);
            let at = i64::try_from(one.fetched_at).unwrap_or(i64::MAX);
            self.fetched_at.get_or_create(&uri).set(at);
            now.insert(uri.uri);
        }
        for gone in shown.difference(&now) {
            let uri = Uri { uri: gone.clone() };
            self.keys.remove(&uri);
            self.fetched_at.remove(&uri);
            for result in ["fetched", "failed"] {
                let uri = gone.clone();
                self.fetches.remove(&Fetched { uri, result });
            }
        }
        *shown = now;
    }
}
