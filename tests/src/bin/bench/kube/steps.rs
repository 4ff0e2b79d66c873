//! What a change costs inside the agent, step by step, without a cluster: where the time from write to serving goes.

use std::{
    hint::black_box,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Result, anyhow};
use cardinal_agent::compile::route;
use serde_json::Value;
use snapshot::{Linker, Read, SourceFile, read};

use super::documents::{self, SERVICES};
use crate::rows::{Bar, Row};

fn document(value: &Value) -> Result<Arc<Read>> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let meta = &value["metadata"];
    Ok(Arc::new(read(&SourceFile {
        path: format!(
            "{}/{}/{}",
            text(&value["kind"]),
            text(&meta["namespace"]),
            text(&meta["name"])
        ),
        bytes: serde_json::to_vec(value)?,
    })))
}

/// The median of each step with `routes` routes, one of which changes.
pub(crate) fn play(routes: u32, rounds: u32) -> Result<Vec<Row>> {
    let mut objects = vec![document(&serde_json::json!({
        "apiVersion": "gateway.networking.k8s.io/v1",
        "kind": "GatewayClass",
        "metadata": { "name": "cardinal" },
        "spec": { "controllerName": snapshot::CONTROLLER },
    }))?];
    objects.push(document(&documents::gateway(
        "cardinal",
        Some("127.0.0.1"),
    ))?);
    for number in 0..SERVICES {
        for object in documents::service(number, "127.0.0.1", 8080) {
            objects.push(document(&object)?);
        }
    }
    for number in 0..routes {
        objects.push(document(&documents::route(&["cardinal"], number, number))?);
    }
    let last = objects.len() - 1;
    let mut steps: Vec<(&str, Vec<f64>)> = Vec::new();
    let mut note = |name, took: Duration| {
        let took = took.as_secs_f64() * 1e3;
        match steps.iter_mut().find(|(other, _)| *other == name) {
            Some((_, all)) => all.push(took),
            None => steps.push((name, vec![took])),
        }
    };
    let mut linker = Linker::default();
    let mut known = linker.link(&objects).snapshot;
    let mut table = route::compile(&known, 1).map_err(|errors| anyhow!("{errors:?}"))?;
    for round in 0..rounds {
        let start = Instant::now();
        objects[last] = document(&documents::route(&["cardinal"], routes - 1, round))?;
        note("read", start.elapsed());
        let start = Instant::now();
        let taken = linker.link(&objects);
        note("link", start.elapsed());
        let start = Instant::now();
        let snapshot = taken.snapshot.sharing(&known);
        note("share", start.elapsed());
        let start = Instant::now();
        let generation = u64::from(round) + 2;
        let next = route::next(&snapshot, &[], generation, &table);
        let next = next.map_err(|errors| anyhow!("{errors:?}"))?;
        next.adopt(&table);
        note("compile", start.elapsed());
        let start = Instant::now();
        drop(std::mem::replace(&mut table, next));
        drop(std::mem::replace(&mut known, snapshot));
        drop(black_box(taken.report));
        note("forget", start.elapsed());
    }
    let rows = steps.iter().map(|(name, figures)| {
        let scenario = format!("{routes} routes, inside: {name}");
        Row::new(&scenario, figures, Bar::None, String::new()).of("milliseconds")
    });
    Ok(rows.collect())
}
