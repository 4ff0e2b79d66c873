//! `ListenerSet` (Gateway API): listeners that another document adds to a gateway.

use super::gateway::{ListenerDraft, MAX_LISTENERS, listeners};
use super::{Meta, reference};
use crate::model::{ObjectName, Timestamp};
use crate::reader::{Field, Object};
use crate::report::Source;

/// A set whose gateway is not known.
pub(crate) struct ListenerSetDraft {
    pub(crate) created: Option<Timestamp>,
    pub(crate) parent: Source,
    pub(crate) gateway: ObjectName,
    pub(crate) listeners: Vec<ListenerDraft>,
}

/// Reads the `spec`.
pub(crate) fn read(spec: &mut Object<'_>, meta: &Meta) -> Option<ListenerSetDraft> {
    let parent = spec.required("parentRef");
    let gateway = parent.as_ref().and_then(|field| gateway(field, meta));
    let items = spec
        .required("listeners")
        .map(|field| field.some_limited_list(MAX_LISTENERS))
        .unwrap_or_default();
    let listeners = listeners(&items, meta);
    Some(ListenerSetDraft {
        created: meta.created,
        parent: parent?.source().clone(),
        gateway: gateway?,
        listeners,
    })
}

fn gateway(field: &Field<'_>, meta: &Meta) -> Option<ObjectName> {
    let mut object = field.object()?;
    if let Some(field) = object.optional("group") {
        field.choice(&[("gateway.networking.k8s.io", ())])?;
    }
    if let Some(field) = object.optional("kind") {
        field.choice(&[("Gateway", ())])?;
    }
    let gateway = reference(&mut object, meta);
    object.finish();
    gateway
}
