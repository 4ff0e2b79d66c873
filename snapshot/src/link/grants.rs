//! Which references may cross namespaces, and what namespaces are like.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::document::labels::Labels;
use crate::document::reference_grant::GrantDraft;
use crate::document::selector::From;
use crate::document::{Kind, Table};
use crate::model::ObjectName;

/// The label that every namespace has in Kubernetes.
const NAME: &str = "kubernetes.io/metadata.name";

/// Grants by the namespace that they are of.
pub(super) struct Grants(BTreeMap<String, Vec<Arc<GrantDraft>>>);

impl Grants {
    pub(super) fn new(drafts: &Table<GrantDraft>) -> Self {
        let mut grants: BTreeMap<String, Vec<Arc<GrantDraft>>> = BTreeMap::new();
        for (name, (_, draft)) in drafts {
            let of = grants.entry(name.namespace().to_owned()).or_default();
            of.extend(draft.clone());
        }
        Self(grants)
    }

    /// Whether documents of a kind and namespace may refer to an object of group and kind (Gateway API,
    /// `ReferenceGrant`); inside of one namespace they always may.
    pub(super) fn permit(
        &self,
        (kind, namespace): (Kind, &str),
        (to_group, to_kind): (&str, &str),
        to: &ObjectName,
    ) -> bool {
        if to.namespace() == namespace {
            return true;
        }
        let grants = self.0.get(to.namespace());
        grants.into_iter().flatten().any(|grant| {
            let from = grant.from.iter().any(|from| {
                from.group == kind.group()
                    && from.kind == kind.as_str()
                    && from.namespace == namespace
            });
            from && grant.to.iter().any(|one| {
                one.group == to_group
                    && one.kind == to_kind
                    && one.name.as_ref().is_none_or(|name| name == to.name())
            })
        })
    }
}

/// What to say where a grant is missing.
pub(super) fn refusal(kind: &str, to: &ObjectName) -> String {
    format!(
        "`{kind}` {to} is of another namespace, and no `ReferenceGrant` there permits the reference"
    )
}

/// Labels of namespaces.
pub(super) struct Namespaces(BTreeMap<String, Labels>);

impl Namespaces {
    pub(super) fn new(drafts: &Table<Labels>) -> Self {
        let known = drafts.iter().filter_map(|(name, (_, labels))| {
            Some((name.name().to_owned(), Labels::clone(labels.as_ref()?)))
        });
        Self(known.collect())
    }

    /// Whether what is in `namespace` may refer to an object of namespace `own`. A namespace without document has the
    /// label that all have.
    pub(super) fn allow(&self, from: &From, own: &str, namespace: &str) -> bool {
        match from {
            From::Same => own == namespace,
            From::All => true,
            From::None => false,
            From::Selected(selector) => selector.selects(&self.labels(namespace)),
        }
    }

    /// Labels of a namespace.
    pub(super) fn labels(&self, namespace: &str) -> Labels {
        let own = self.0.get(namespace).cloned().unwrap_or_default();
        own.with([(NAME, namespace)])
    }
}
