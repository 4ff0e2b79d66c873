//! From a verdict back to what was declared.

use std::net::SocketAddr;

use anyhow::{Context as _, Result};

use super::{
    row::{Case, Seen, Stage, Way},
    scene::{Demo, ORDERS, Spot},
};
use crate::world::Family;

pub(super) fn play(stage: &mut Stage<'_>) -> Result<()> {
    for family in Family::BOTH {
        let case = Case {
            scenario: "a rule's hit leads to its field",
            direction: "intra",
            from: "shop/web",
            to: "shop/orders:7000",
            family: Some(family),
            expected: "cell-shop.yaml spec.intra",
            because: "kernel policy spec.intra",
        };
        stage.row(&case, |demo| traced(demo, family))?;
    }
    Ok(())
}

/// Makes a connection; says where the event and the rule's counter lead.
fn traced(demo: &Demo, family: Family) -> Result<Seen> {
    let way = Way {
        from: demo.addresses(Spot::Web).of(family),
        to: ORDERS.of(family),
        port: 7000,
    };
    let before = decisions(demo)?;
    let since = demo.agent.next_event()?;
    let seen = demo.echo(Spot::Web, "tcp", SocketAddr::new(way.to, way.port), way)?;
    let event = demo
        .event(since, way, false)?
        .context("the kernel tells of no connection")?;
    let key = (event.document.clone(), event.field.clone());
    let [counted, counted_now] = [&before, &decisions(demo)?]
        .map(|all| all.iter().find(|row| row.0 == key).map(|row| row.1));
    let file = event.document.split(':').next().unwrap_or_default();
    Ok(Seen {
        actual: match (counted, counted_now) {
            (Some(before), Some(now)) if now > before => format!("{file} {}", event.field),
            counts => format!("{file} {}, and its count is {counts:?}", event.field),
        },
        ..seen
    })
}

/// How often each rule decided, by document and field.
fn decisions(demo: &Demo) -> Result<Vec<((String, String), u64)>> {
    let mut status = demo.agent.status()?;
    let rows: Vec<Rule> = serde_json::from_value(status["rules"].take())
        .context("the status has no rules as agreed")?;
    Ok(rows
        .into_iter()
        .map(|row| ((row.document, row.field), row.decisions))
        .collect())
}

#[derive(serde::Deserialize)]
struct Rule {
    document: String,
    field: String,
    decisions: u64,
}
