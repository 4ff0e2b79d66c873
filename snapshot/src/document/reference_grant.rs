//! `ReferenceGrant` (Gateway API): which documents of other namespaces may refer into its own.

use super::Meta;
use crate::model::Name;
use crate::reader::{Field, Object};

/// Gateway API: at most 16 of each.
const MAX_ITEMS: usize = 16;

/// Any of `from` may refer to any of `to`.
pub(crate) struct GrantDraft {
    pub(crate) from: Vec<Referrer>,
    pub(crate) to: Vec<Referent>,
}

/// Documents that refer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Referrer {
    pub(crate) group: String,
    pub(crate) kind: String,
    pub(crate) namespace: String,
}

/// Documents of the grant's namespace that are referred to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Referent {
    pub(crate) group: String,
    pub(crate) kind: String,
    /// None: all of the kind.
    pub(crate) name: Option<String>,
}

/// Reads the `spec`.
pub(crate) fn read(spec: &mut Object<'_>, _meta: &Meta) -> Option<GrantDraft> {
    let from = spec
        .required("from")
        .map(|field| field.some_limited_list(MAX_ITEMS));
    let to = spec
        .required("to")
        .map(|field| field.some_limited_list(MAX_ITEMS));
    Some(GrantDraft {
        from: from?.iter().filter_map(referrer).collect(),
        to: to?.iter().filter_map(referent).collect(),
    })
}

fn referrer(field: &Field<'_>) -> Option<Referrer> {
    let mut object = field.object()?;
    let group = word(&mut object, "group");
    let kind = word(&mut object, "kind");
    let namespace = object
        .required("namespace")
        .and_then(|field| field.parse(Name::new));
    object.finish();
    Some(Referrer {
        group: group?,
        kind: kind?,
        namespace: namespace?.to_string(),
    })
}

fn referent(field: &Field<'_>) -> Option<Referent> {
    let mut object = field.object()?;
    let group = word(&mut object, "group");
    let kind = word(&mut object, "kind");
    let name = object.optional("name").map(|field| field.string());
    object.finish();
    let name = match name {
        // An empty name is as if there were none (Gateway API).
        Some(name) => Some(name?.to_owned()).filter(|name| !name.is_empty()),
        None => None,
    };
    Some(Referent {
        group: group?,
        kind: kind?,
        name,
    })
}

fn word(object: &mut Object<'_>, name: &'static str) -> Option<String> {
    let field = object.required(name)?;
    field.string().map(str::to_owned)
}
