//! Counters whose labels are known when the router starts, so that counting never looks one up.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Outcome {
    result: &'static str,
}

/// What became of answers that a rule wants tried again.
#[derive(Clone, Debug)]
pub(super) struct Retries {
    family: Family<Outcome, Counter>,
    /// The request was sent again.
    pub(super) sent: Counter,
    /// It was not: the backend's budget was used up.
    pub(super) budget: Counter,
    /// It was not: as many of the backend's retries were under way as may be.
    pub(super) overflow: Counter,
    /// It was not: its body was too large to be kept.
    pub(super) body: Counter,
}

impl Default for Retries {
    fn default() -> Self {
        let family = Family::default();
        Self {
            sent: counter(&family, "sent"),
            budget: counter(&family, "budget"),
            overflow: counter(&family, "overflow"),
            body: counter(&family, "body"),
            family,
        }
    }
}

impl Retries {
    pub(super) fn register(&self, registry: &mut Registry) {
        registry.register(
            "proxy_retries",
            "Answers that a rule wants tried again, by what became of it",
            self.family.clone(),
        );
    }
}

/// What became of copies to mirrors.
#[derive(Clone, Debug)]
pub(super) struct Mirrors {
    family: Family<Outcome, Counter>,
    /// The mirror answered.
    pub(super) sent: Counter,
    /// It did not.
    pub(super) failed: Counter,
    /// There was no copy: too many were under way, or the body was too large or never whole.
    pub(super) left_out: Counter,
}

impl Default for Mirrors {
    fn default() -> Self {
        let family = Family::default();
        Self {
            sent: counter(&family, "sent"),
            failed: counter(&family, "failed"),
            left_out: counter(&family, "left_out"),
            family,
        }
    }
}

impl Mirrors {
    pub(super) fn register(&self, registry: &mut Registry) {
        registry.register(
            "proxy_mirrors",
            "Copies of requests to mirrors, by what became of them",
            self.family.clone(),
        );
    }
}

fn counter(family: &Family<Outcome, Counter>, result: &'static str) -> Counter {
    family.get_or_create(&Outcome { result }).clone()
}
