//! What routing tables say of gateways.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::gateway::{Gateways, Place};
use crate::document::Table;
use crate::model::{KeyTrust, ObjectName, RoutingTable};
use crate::reader::Sink;
use crate::status::ParentKind;

/// Tables by name. Trust in clients of a gateway or listener that is not there is refused: it would be trust in nobody.
pub(super) fn link(
    tables: &Table<RoutingTable>,
    gateways: &Gateways,
    sink: &Sink,
) -> BTreeMap<ObjectName, Arc<RoutingTable>> {
    let mut linked = BTreeMap::new();
    for (name, (_, table)) in tables {
        let Some(table) = table else { continue };
        for trust in &table.trust {
            if let Some(missing) = missing(trust, gateways) {
                sink.mistake(trust.declared.clone(), missing);
            }
        }
        linked.insert(name.clone(), Arc::clone(table));
    }
    linked
}

fn missing(trust: &KeyTrust, gateways: &Gateways) -> Option<String> {
    let name = &trust.gateway;
    if gateways.place(ParentKind::Gateway, name) == Place::Absent {
        return Some(format!("no `Gateway` {name}"));
    }
    let listener = trust.listener.as_ref()?;
    let (_, entries) = gateways.listeners(ParentKind::Gateway, name)?;
    let found = entries.iter().any(|entry| entry.name == *listener);
    (!found).then(|| format!("`Gateway` {name} has no listener `{listener}`"))
}
