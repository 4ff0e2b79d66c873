//! Labels of an object, in little memory: every pod of a cluster has some, and most have those of others.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::lasting::common;

/// Labels, each key once.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Labels(
    /// In the order of their keys.
    Arc<[(Arc<str>, Arc<str>)]>,
);

impl Labels {
    /// The value of a label.
    pub(crate) fn get(&self, key: &str) -> Option<&str> {
        let found = self.0.binary_search_by(|(own, _)| (**own).cmp(key));
        found.ok().map(|at| &*self.0[at].1)
    }

    /// Whether there is such a label, with whatever value.
    pub(crate) fn has(&self, key: &str) -> bool {
        self.get(key).is_some()
    }

    /// All of them, by key.
    pub(crate) fn iter(&self) -> impl ExactSizeIterator<Item = (&str, &str)> {
        self.0.iter().map(|(key, value)| (&**key, &**value))
    }

    /// These and others. Those take the place of labels with the same keys.
    pub(crate) fn with<'a>(&'a self, others: impl IntoIterator<Item = (&'a str, &'a str)>) -> Self {
        self.iter().chain(others).collect()
    }
}

impl<K: AsRef<str>, V: AsRef<str>> FromIterator<(K, V)> for Labels {
    /// Of two labels with the same key the last counts.
    fn from_iter<I: IntoIterator<Item = (K, V)>>(labels: I) -> Self {
        let labels = labels.into_iter();
        let labels = labels.map(|(key, value)| (common(key.as_ref()), common(value.as_ref())));
        let sorted: BTreeMap<Arc<str>, Arc<str>> = labels.collect();
        Self(sorted.into_iter().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::Labels;

    #[test]
    fn labels_are_found_by_key_and_the_last_of_a_key_counts() {
        let labels: Labels = [("tier", "web"), ("app", "old"), ("app", "shop")]
            .into_iter()
            .collect();
        let all: Vec<_> = labels.iter().collect();
        assert_eq!(all, [("app", "shop"), ("tier", "web")]);
        assert_eq!((labels.get("app"), labels.get("ap")), (Some("shop"), None));
        let more = labels.with([("tier", "data"), ("zone", "a")]);
        let all: Vec<_> = more.iter().collect();
        assert_eq!(all, [("app", "shop"), ("tier", "data"), ("zone", "a")]);
        assert!(more.has("zone") && !labels.has("zone"));
    }
}
