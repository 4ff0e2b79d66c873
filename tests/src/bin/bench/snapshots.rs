//! Documents of many services and policies, as a snapshot.
//!
//! The two pods of a side are components of one cell. The client calls as many components of its cell as make the
//! wanted number of rules; the other services are of other cells, a thousand each.

use std::net::Ipv4Addr;

use anyhow::{Result, anyhow};
use serde_json::{Value, json};
use snapshot::{SourceFile, model::Snapshot};

use crate::{
    load::port,
    side::{CLIENT, SERVER, SERVICE},
    tables::filler_service,
};

/// Rules that one declared connection makes in the caller's table: its port, and echo of both families.
const RULES_EACH: u32 = 3;
/// Components of a cell that only fills.
const CELL: u32 = 1000;

/// The snapshot of `services` services and `rules` rules. `moved` is added to the address of the last service: two snapshots
/// with different ones differ in one service.
pub(crate) fn snapshot(services: u32, rules: u32, moved: u32) -> Result<Snapshot> {
    let called = (rules / RULES_EACH).min(services.saturating_sub(1));
    let mut files = vec![file("shop", own(called))?];
    let last = services.saturating_sub(1);
    let mut from = called + 1;
    while from <= last {
        let to = last.min(from + CELL - 1);
        let components = (from..=to)
            .map(|number| {
                let shift = if number == last { moved } else { 0 };
                filler(number, number + shift)
            })
            .collect();
        files.push(file(&format!("filler-{from}"), components)?);
        from = to + 1;
    }
    snapshot::parse(&files).map_err(|mistakes| anyhow!("the documents are refused: {mistakes}"))
}

/// The components of the pods, and those that the client calls.
fn own(called: u32) -> Vec<Value> {
    let connections: Vec<Value> = (1..=called)
        .map(component)
        .chain(["server".to_owned()])
        .map(|name| json!({ "component": name, "endpoint": "api" }))
        .collect();
    let client = json!({
        "name": "client",
        "type": "Task",
        "workloads": { "addresses": [CLIENT.v4, CLIENT.v6] },
        "connections": connections,
    });
    let server = json!({
        "name": "server",
        "workloads": { "addresses": [SERVER.v4, SERVER.v6] },
        "serviceAddresses": [SERVICE],
        "endpoints": [{ "name": "api", "type": "TCP", "port": port::RR }],
    });
    let mut components = vec![client, server];
    components.extend((1..=called).map(|number| filler(number, number)));
    components
}

fn component(number: u32) -> String {
    format!("filler-{number}")
}

fn filler(number: u32, service: u32) -> Value {
    // 10.128.0.0/9 is nobody's in a side's world.
    let workload = Ipv4Addr::from(0x0a80_0000 + number);
    json!({
        "name": component(number),
        "workloads": { "addresses": [workload] },
        "serviceAddresses": [filler_service(service)],
        "endpoints": [{ "name": "api", "type": "TCP", "port": 80 }],
    })
}

fn file(project: &str, components: Vec<Value>) -> Result<SourceFile> {
    let cell = json!({
        "apiVersion": "cardinal.dev/v1alpha1",
        "kind": "Cell",
        "metadata": { "name": project },
        "spec": {
            "organization": "acme",
            "project": project,
            "environment": "prod",
            "intra": "declared",
            "components": components,
        },
    });
    Ok(SourceFile {
        path: format!("{project}.json"),
        bytes: serde_json::to_vec(&cell)?,
    })
}
