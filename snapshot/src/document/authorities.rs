//! `caCertificateRefs`: where the certificates of authorities are (Gateway API).

use super::{Meta, reference};
use crate::model::ObjectName;
use crate::reader::{Field, quoted};
use crate::report::Source;

/// Gateway API: at most 8 references.
const MAX_REFERENCES: usize = 8;

/// What holds certificates of authorities, under the key `ca.crt`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Holder {
    ConfigMap,
    Secret,
}

/// A reference to such certificates.
pub(crate) struct AuthorityRef {
    pub(crate) source: Source,
    /// What holds them, or what is wrong with its group or kind.
    pub(crate) holder: Result<(Holder, ObjectName), String>,
}

/// Reads the list; at least one.
pub(crate) fn references(field: &Field<'_>, meta: &Meta) -> Option<Vec<AuthorityRef>> {
    let items = field.some_limited_list(MAX_REFERENCES);
    let count = items.len();
    let found: Vec<_> = items.iter().filter_map(|item| one(item, meta)).collect();
    (count > 0 && found.len() == count).then_some(found)
}

fn one(field: &Field<'_>, meta: &Meta) -> Option<AuthorityRef> {
    let mut object = field.object()?;
    let group = object.required("group").and_then(|field| field.string());
    let kind = object.required("kind").and_then(|field| field.string());
    let name = reference(&mut object, meta);
    object.finish();
    let (group, kind, name) = (group?, kind?, name?);
    let holder = match (group, kind) {
        ("", "ConfigMap") => Ok((Holder::ConfigMap, name)),
        ("", "Secret") => Ok((Holder::Secret, name)),
        _ => Err(format!(
            "expected kind `ConfigMap` or `Secret` of group ``, got {} of {}",
            quoted(kind),
            quoted(group)
        )),
    };
    Some(AuthorityRef {
        source: field.source().clone(),
        holder,
    })
}
