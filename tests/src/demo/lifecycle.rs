//! Changes and crashes under traffic: a bad document, a good one, and an agent that is killed.

use std::{
    fs,
    net::SocketAddr,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};

use super::{
    north::{answered, request},
    row::{Case, Seen, Stage, Way},
    scene::{APP_HOST, CUSTOMERS_HOST, Demo, EXTERNAL, LEDGER, Spot},
};
use crate::{
    peer::{LoadReport, Outcome, Running},
    world::Family,
};

/// How long a change of the folder may take to be noticed and taken over.
pub(super) const CHANGE: Duration = Duration::from_secs(60);
/// How long a client may take to say how it went.
const WORD: Duration = Duration::from_secs(60);
/// Traffic before and after a change.
const WHILE: Duration = Duration::from_millis(300);

pub(super) fn play(stage: &mut Stage<'_>) -> Result<()> {
    let case = |scenario, direction, from, to, expected| Case {
        scenario,
        direction,
        from,
        to,
        family: None,
        expected,
        because: "",
    };
    let refused = Case {
        because: "spec.intra",
        ..case(
            "bad document under traffic",
            "node",
            "operator",
            "agent",
            "refused, no request failed",
        )
    };
    stage.row(&refused, bad_document)?;
    stage.row(
        &case(
            "changed document under traffic",
            "node",
            "operator",
            "agent",
            "taken over, no request failed",
        ),
        changed_document,
    )?;
    killed(stage)
}

/// Requests of an unknown customer until told to end.
pub(super) fn load(demo: &Demo) -> Result<Running> {
    let to = SocketAddr::new(EXTERNAL.of(Family::V4), 443).to_string();
    let ca = demo.ca().display().to_string();
    let command = demo.peer(
        Spot::Client,
        &[
            "load",
            "--to",
            &to,
            "--host",
            CUSTOMERS_HOST,
            "--header",
            "X-Routing-Key: nobody",
            "--ca",
            &ca,
        ],
    );
    let running = Running::start("peer load", command)?;
    std::thread::sleep(WHILE);
    Ok(running)
}

pub(super) fn end(mut load: Running) -> Result<LoadReport> {
    std::thread::sleep(WHILE);
    load.finish();
    let report: LoadReport = load.next(WORD)?;
    if report.requests < 10 {
        bail!(
            "only {} requests were sent: that proves nothing",
            report.requests
        );
    }
    Ok(report)
}

fn told(word: &str, report: &LoadReport) -> String {
    match report.failures.iter().next() {
        None => format!("{word}, no request failed"),
        Some((failure, _)) => format!(
            "{word}, {} of {} requests failed: {failure}",
            report.failed, report.requests
        ),
    }
}

fn bad_document(demo: &mut Demo) -> Result<Seen> {
    const BAD: &str = "apiVersion: cardinal.dev/v1alpha1\nkind: Cell\nmetadata: { name: bad }\nspec:\n  organization: acme\n  \
                       project: bad\n  environment: prod\n  intra: opne\n  \
                       components: [{ name: a, workloads: { addresses: [10.80.8.8] } }]\n";
    let file = demo.config().join("bad.yaml");
    let load = load(demo)?;
    let start = Instant::now();
    fs::write(&file, BAD)?;
    let status = demo
        .agent
        .wait_status(CHANGE, "refusing the bad document", |status| {
            status["config"]["last_attempt"] == "refused"
        })?;
    let latency_us = start.elapsed().as_micros().try_into().unwrap_or(u64::MAX);
    let mistakes = status["config"]["mistakes"]
        .as_array()
        .context("the status lists no mistakes")?;
    let reason = mistakes
        .iter()
        .filter_map(|mistake| mistake.as_str())
        .find(|mistake| mistake.contains("bad.yaml"))
        .unwrap_or_default()
        .to_owned();
    let report = end(load)?;
    fs::remove_file(&file)?;
    demo.agent.wait_status(
        CHANGE,
        "taking over the folder without the bad document",
        |status| status["config"]["last_attempt"] == "accepted",
    )?;
    Ok(Seen {
        actual: told("refused", &report),
        reason,
        latency_us,
    })
}

fn changed_document(demo: &mut Demo) -> Result<Seen> {
    let file = demo.config().join("routing.yaml");
    let text = fs::read_to_string(&file)?;
    let changed = text.replace("defaultPlacement: tier3", "defaultPlacement: tier1");
    if changed == text {
        bail!("routing.yaml has no default placement tier3");
    }
    let generation = demo.agent.status()?["config"]["generation"]
        .as_u64()
        .context("the status has no generation")?;
    let load = load(demo)?;
    let start = Instant::now();
    // Written beside and renamed, as an editor does: a reader never sees half of it.
    let new = demo.config().join(".routing.yaml.new");
    fs::write(&new, changed)?;
    fs::rename(&new, &file)?;
    let status = demo
        .agent
        .wait_status(CHANGE, "taking over the changed document", |status| {
            status["config"]["generation"]
                .as_u64()
                .is_some_and(|now| now > generation)
        })?;
    let latency_us = start.elapsed().as_micros().try_into().unwrap_or(u64::MAX);
    let report = end(load)?;
    let answered = |name| report.answers.get(name).copied().unwrap_or(0);
    let word = if answered("tier3") > 0 && answered("tier1") > 0 {
        "taken over"
    } else {
        "not taken over"
    };
    let reason = format!(
        "generation {generation} → {}; {} requests by tier3, then {} by tier1",
        status["config"]["generation"],
        answered("tier3"),
        answered("tier1")
    );
    Ok(Seen {
        actual: told(word, &report),
        reason,
        latency_us,
    })
}

fn killed(stage: &mut Stage<'_>) -> Result<()> {
    const DENIED: &str = "agent killed: denied stays denied";
    const LIVES: &str = "agent killed: established flows live";
    const TAKES_OVER: &str = "agent killed: a new one takes over";
    const JUDGES: &str = "new agent: denied is denied";

    if ![DENIED, LIVES, TAKES_OVER, JUDGES]
        .iter()
        .any(|scenario| stage.wants(scenario))
    {
        return Ok(());
    }
    let case = |scenario, from, to, family, expected, because| Case {
        scenario,
        direction: "east",
        from,
        to,
        family,
        expected,
        because,
    };
    // Without its connections there is nothing to watch, so a failure here is told by the rows that miss them.
    let mut held: Vec<(Family, Result<Running>)> = Family::BOTH
        .iter()
        .map(|&family| (family, hold(stage.demo, family)))
        .collect();
    let killed = stage.demo.agent.kill();
    for (family, connection) in &mut held {
        let family = *family;
        stage.row(
            &case(
                DENIED,
                "shop/web",
                "bank/ledger/feed",
                Some(family),
                "dropped",
                "",
            ),
            |demo| {
                if let Err(error) = &killed {
                    bail!("{error:#}");
                }
                let to = SocketAddr::new(LEDGER.of(family), 7000).to_string();
                let outcome = demo.probe(Spot::Web, &["tcp", "--to", &to])?;
                let actual = if outcome.outcome == "timeout" {
                    "dropped".to_owned()
                } else {
                    outcome.outcome
                };
                Ok(Seen {
                    actual,
                    reason: "nobody is there to tell".to_owned(),
                    latency_us: outcome.latency_us,
                })
            },
        )?;
        stage.row(
            &case(
                LIVES,
                "shop/orders",
                "bank/ledger/feed",
                Some(family),
                "passed",
                "",
            ),
            |_| still_answers(connection),
        )?;
    }
    let takes_over = Case {
        direction: "north",
        ..case(
            TAKES_OVER,
            "client",
            "shop/web",
            None,
            "200 web",
            "router ok",
        )
    };
    stage.row(&takes_over, |demo| {
        let start = demo.restart_agent()?;
        let seen = answered(request(demo, Family::V4, APP_HOST, "/", &[])?);
        Ok(Seen {
            latency_us: start.as_micros().try_into().unwrap_or(u64::MAX),
            ..seen
        })
    })?;
    for (family, connection) in &mut held {
        let family = *family;
        stage.row(
            &case(
                TAKES_OVER,
                "shop/orders",
                "bank/ledger/feed",
                Some(family),
                "passed",
                "",
            ),
            |_| still_answers(connection),
        )?;
        stage.row(
            &case(
                JUDGES,
                "shop/web",
                "bank/ledger/feed",
                Some(family),
                "dropped",
                "kernel not_declared",
            ),
            |demo| {
                let way = Way {
                    from: demo.addresses(Spot::Web).of(family),
                    to: LEDGER.of(family),
                    port: 7000,
                };
                demo.echo(Spot::Web, "tcp", SocketAddr::new(way.to, way.port), way)
            },
        )?;
    }
    Ok(())
}

/// An open connection of the declared caller.
pub(super) fn hold(demo: &Demo, family: Family) -> Result<Running> {
    let to = SocketAddr::new(LEDGER.of(family), 7000).to_string();
    let mut connection =
        Running::start("peer hold", demo.peer(Spot::Orders, &["hold", "--to", &to]))?;
    let outcome: Outcome = connection.next(WORD)?;
    if outcome.outcome != "connected" {
        bail!("the declared connection is not there: {}", outcome.outcome);
    }
    Ok(connection)
}

pub(super) fn still_answers(connection: &mut Result<Running>) -> Result<Seen> {
    let connection = match connection {
        Ok(connection) => connection,
        Err(error) => bail!("{error:#}"),
    };
    connection.say("still there?")?;
    let outcome: Outcome = connection.next(WORD)?;
    let actual = if outcome.outcome == "answer" {
        "passed".to_owned()
    } else {
        outcome.outcome
    };
    Ok(Seen {
        actual,
        reason: "the same connection".to_owned(),
        latency_us: outcome.latency_us,
    })
}
