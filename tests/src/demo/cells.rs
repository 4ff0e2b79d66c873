//! Inside a cell, between cells, and what tries to get around the rules.

use std::{net::SocketAddr, time::Duration};

use anyhow::Result;

use super::{
    north::answered,
    row::{Case, Stage, Way},
    scene::{INTERNAL, INTERNAL_HOST, LEDGER, ORDERS, ORDERS_SERVICE, Spot},
};
use crate::{http::resolve, world::Family};

/// Long enough for a packet to arrive on a veth pair, had it been let through.
const ARRIVAL: Duration = Duration::from_millis(300);

pub(super) fn play(stage: &mut Stage<'_>) -> Result<()> {
    for family in Family::BOTH {
        intra(stage, family)?;
        east(stage, family)?;
        west(stage, family)?;
        around(stage, family)?;
    }
    Ok(())
}

fn intra(stage: &mut Stage<'_>, family: Family) -> Result<()> {
    let case = |scenario, to| Case {
        scenario,
        direction: "intra",
        from: "shop/web",
        to,
        family: Some(family),
        expected: "passed",
        because: "kernel policy",
    };
    stage.row(&case("inside an open cell", "shop/orders:7000"), |demo| {
        let way = Way {
            from: demo.addresses(Spot::Web).of(family),
            to: ORDERS.of(family),
            port: 7000,
        };
        demo.echo(Spot::Web, "tcp", SocketAddr::new(way.to, way.port), way)
    })?;
    let service = Case {
        expected: "200 orders",
        ..case("service address at connect time", "shop/orders (service)")
    };
    stage.row(&service, |demo| {
        let way = Way {
            from: demo.addresses(Spot::Web).of(family),
            to: ORDERS.of(family),
            port: 8080,
        };
        let url = format!(
            "http://{}/",
            SocketAddr::new(ORDERS_SERVICE.of(family), 8080)
        );
        Ok(answered(demo.page(Spot::Web, Some(way), &[&url])?))
    })
}

fn east(stage: &mut Stage<'_>, family: Family) -> Result<()> {
    struct Try {
        scenario: &'static str,
        from: (Spot, &'static str),
        to: (Spot, &'static str, u16),
        expected: (&'static str, &'static str),
    }
    let dropped = ("dropped", "kernel not_declared");
    for Try {
        scenario,
        from,
        to,
        expected,
    } in [
        Try {
            scenario: "declared TCP endpoint",
            from: (Spot::Orders, "shop/orders"),
            to: (Spot::Ledger, "bank/ledger/feed", 7000),
            expected: ("passed", "kernel policy"),
        },
        Try {
            scenario: "TCP endpoint not declared by the caller",
            from: (Spot::Web, "shop/web"),
            to: (Spot::Ledger, "bank/ledger/feed", 7000),
            expected: dropped,
        },
        Try {
            scenario: "HTTP endpoint not declared by the caller",
            from: (Spot::Web, "shop/web"),
            to: (Spot::Ledger, "bank/ledger/api", 8080),
            expected: dropped,
        },
        Try {
            scenario: "back to a cell that only calls",
            from: (Spot::Ledger, "bank/ledger"),
            to: (Spot::Orders, "shop/orders:7000", 7000),
            expected: dropped,
        },
        Try {
            scenario: "another organization's cell",
            from: (Spot::Scanner, "globex scanner"),
            to: (Spot::Orders, "shop/orders/api", 8080),
            expected: dropped,
        },
    ] {
        let (expected, because) = expected;
        let case = Case {
            scenario,
            direction: "east",
            from: from.1,
            to: to.1,
            family: Some(family),
            expected,
            because,
        };
        stage.row(&case, |demo| {
            let way = Way {
                from: demo.addresses(from.0).of(family),
                to: demo.addresses(to.0).of(family),
                port: to.2,
            };
            demo.echo(from.0, "tcp", SocketAddr::new(way.to, way.port), way)
        })?;
    }
    let case = Case {
        scenario: "declared HTTP endpoint, steered to the gate",
        direction: "east",
        from: "shop/orders",
        to: "bank/ledger/api",
        family: Some(family),
        expected: "200 ledger",
        because: "router ok",
    };
    stage.row(&case, |demo| {
        let way = Way {
            from: ORDERS.of(family),
            to: LEDGER.of(family),
            port: 8080,
        };
        let url = format!("http://{}/v1/accounts", SocketAddr::new(way.to, way.port));
        Ok(answered(demo.page(Spot::Orders, Some(way), &[&url])?))
    })
}

fn west(stage: &mut Stage<'_>, family: Family) -> Result<()> {
    for (scenario, spot, from, expected, because) in [
        (
            "through the internal gateway",
            Spot::Orders,
            "shop/orders",
            "200 ledger",
            "router ok",
        ),
        (
            "internal gateway, nothing declared",
            Spot::Web,
            "shop/web",
            "dropped",
            "kernel not_declared",
        ),
    ] {
        let case = Case {
            scenario,
            direction: "west",
            from,
            to: "bank/ledger/api",
            family: Some(family),
            expected,
            because,
        };
        stage.row(&case, |demo| {
            let way = Way {
                from: demo.addresses(spot).of(family),
                to: INTERNAL.of(family),
                port: 80,
            };
            let to = resolve(INTERNAL_HOST, 80, way.to);
            let url = format!("http://{INTERNAL_HOST}/bank/ledger/v1/accounts");
            Ok(answered(demo.page(
                spot,
                Some(way),
                &["--resolve", &to, &url],
            )?))
        })?;
    }
    Ok(())
}

/// Packets that bypass sockets, and with them the hook at connect time.
fn around(stage: &mut Stage<'_>, family: Family) -> Result<()> {
    for (scenario, claimed, because) in [
        (
            "spoofed source address",
            Spot::Orders,
            "kernel source_spoofed",
        ),
        (
            "raw socket past the connect hook",
            Spot::Web,
            "kernel not_declared",
        ),
    ] {
        let case = Case {
            scenario,
            direction: "east",
            from: "shop/web",
            to: "bank/ledger:7001",
            family: Some(family),
            expected: "dropped",
            because,
        };
        stage.row(&case, |demo| {
            let way = Way {
                from: demo.addresses(claimed).of(family),
                to: LEDGER.of(family),
                port: 7001,
            };
            let (from, to) = (
                SocketAddr::new(way.from, 4444).to_string(),
                SocketAddr::new(way.to, way.port).to_string(),
            );
            let text = format!("{scenario} {}", family.name());
            let mut seen = demo.watched(way, |demo| {
                demo.probe(
                    Spot::Web,
                    &["raw", "--from", &from, "--to", &to, "--text", &text],
                )
            })?;
            if demo
                .server("ledger")?
                .wait_for(ARRIVAL, |line| line["text"] == text.as_str())
                .is_ok()
            {
                seen.actual = "delivered".to_owned();
            }
            Ok(seen)
        })?;
    }
    Ok(())
}
