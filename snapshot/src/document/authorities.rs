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
    several(field, meta, None)
}

/// The same where what holds them is a `Secret` if nothing else is said (Gateway API, `SecretObjectReference`).
pub(crate) fn secret_references(field: &Field<'_>, meta: &Meta) -> Option<Vec<AuthorityRef>> {
    several(field, meta, Some(Holder::Secret))
}

fn several(field: &Field<'_>, meta: &Meta, usual: Option<Holder>) -> Option<Vec<AuthorityRef>> {
    let items = field.some_limited_list(MAX_REFERENCES);
    let count = items.len();
    let read = items.iter();
    let found: Vec<_> = read.filter_map(|item| one(item, meta, usual)).collect();
    (count > 0 && found.len() == count).then_some(found)
}

fn one(field: &Field<'_>, meta: &Meta, usual: Option<Holder>) -> Option<AuthorityRef> {
    let mut object = field.object()?;
    let mut of = |name| match usual {
        Some(_) => object.optional(name),
        None => object.required(name),
    };
    if let Some(field) = of("group") {
        field.choice(&[("", ())]);
    }
    let holder = match of("kind") {
        Some(field) => {
            field.choice(&[("ConfigMap", Holder::ConfigMap), ("Secret", Holder::Secret)])
        }
        None => usual,
    };
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
