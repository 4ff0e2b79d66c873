//! What routing tables say of gateways.

use std::collections::BTreeMap;

use crate::document::Table;
use crate::model::{Gateway, ObjectName, RoutingTable};
use crate::reader::Sink;

/// Refuses trust in clients of a gateway or listener that is not there: it would be trust in nobody.
pub(super) fn trusted(
    tables: &Table<RoutingTable>,
    gateways: &BTreeMap<ObjectName, Gateway>,
    unread: impl Fn(&ObjectName) -> bool,
    sink: &Sink,
) {
    let tables = tables.values().filter_map(|(_, table)| table.as_ref());
    for trust in tables.flat_map(|table| &table.trust) {
        let name = &trust.gateway;
        let missing = match (gateways.get(name), &trust.listener) {
            (None, _) => (!unread(name)).then(|| format!("no `Gateway` {name}")),
            (Some(gateway), Some(listener)) => {
                let found = gateway.listeners.iter().any(|one| one.name == *listener);
                let missing = !found && !sink.tainted(&gateway.declared);
                missing.then(|| format!("`Gateway` {name} has no listener `{listener}`"))
            }
            (Some(_), None) => None,
        };
        if let Some(missing) = missing {
            sink.mistake(trust.declared.clone(), missing);
        }
    }
}
