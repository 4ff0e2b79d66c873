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

impl Holder {
    fn kind(self) -> &'static str {
        match self {
            Self::ConfigMap => "ConfigMap",
            Self::Secret => "Secret",
        }
    }
}

/// A reference to such certificates.
pub(crate) struct AuthorityRef {
    pub(crate) source: Source,
    /// What holds them, or what is wrong with its group or kind.
    pub(crate) holder: Result<(Holder, ObjectName), String>,
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
    let (group, kind) = match usual {
        Some(_) => (object.optional("group"), object.optional("kind")),
        None => (object.required("group"), object.required("kind")),
    };
    let text = |field: Option<Field<'_>>, usual: Option<&'static str>| match field {
        Some(field) => field.string().map(str::to_owned),
        None => usual.map(str::to_owned),
    };
    let group = text(group, usual.map(|_| ""));
    let kind = text(kind, usual.map(Holder::kind));
    let name = reference(&mut object, meta);
    object.finish();
    let (group, kind, name) = (group?, kind?, name?);
    let holder = match (group.as_str(), kind.as_str()) {
        ("", "ConfigMap") => Ok((Holder::ConfigMap, name)),
        ("", "Secret") => Ok((Holder::Secret, name)),
        _ => Err(format!(
            "expected kind `ConfigMap` or `Secret` of group ``, got {} of {}",
            quoted(&kind),
            quoted(&group)
        )),
    };
    Some(AuthorityRef {
        source: field.source().clone(),
        holder,
    })
}
