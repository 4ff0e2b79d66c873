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
    pub(crate) holder: Holder,
    pub(crate) name: ObjectName,
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
    if let Some(field) = object.required("group") {
        field.choice(&[("", ())]);
    }
    let holder = object.required("kind").and_then(|field| {
        field.choice(&[("ConfigMap", Holder::ConfigMap), ("Secret", Holder::Secret)])
    });
    let name = reference(&mut object, meta);
    object.finish();
    let name = name?;
    if name.namespace() != meta.name.namespace() {
        field.mistake(format_args!(
            "certificates of another namespace need a `ReferenceGrant`, which is not supported yet; expected namespace {}",
            quoted(meta.name.namespace())
        ));
        return None;
    }
    Some(AuthorityRef {
        source: field.source().clone(),
        holder: holder?,
        name,
    })
}
