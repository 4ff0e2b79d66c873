//! South: what a component declared to call outside of the platform, and DNS, without which it would know nobody.

use std::net::SocketAddr;

use anyhow::Result;

use super::{
    north::answered,
    row::{Case, Stage, Way},
    scene::{DNS_SERVICE, METADATA, PARTNER, PAYMENTS, STRANGER, Spot},
};
use crate::{
    http::resolve,
    world::{Addresses, Family},
};

pub(super) fn play(stage: &mut Stage<'_>) -> Result<()> {
    for family in Family::BOTH {
        by_name(stage, family)?;
        by_address(stage, family)?;
        dns(stage, family)?;
    }
    Ok(())
}

fn by_name(stage: &mut Stage<'_>, family: Family) -> Result<()> {
    const FAMILY: fn(Family) -> &'static str =
        |family| if family == Family::V4 { "-4" } else { "-6" };

    let case = |scenario, to, expected, because| Case {
        scenario,
        direction: "south",
        from: "shop/orders",
        to,
        family: Some(family),
        expected,
        because,
    };
    let way = |to: Addresses, port| {
        move |spot: Addresses| Way {
            from: spot.of(family),
            to: to.of(family),
            port,
        }
    };
    // The name is looked up as any program would: by the pod's own resolver, through the platform's DNS.
    stage.row(
        &case(
            "declared host by TLS",
            "api.payments.test",
            "200 payments",
            "router ok",
        ),
        |demo| {
            let way = way(PAYMENTS, 443)(demo.addresses(Spot::Orders));
            Ok(answered(demo.page(
                Spot::Orders,
                Some(way),
                &[FAMILY(family), "https://api.payments.test/"],
            )?))
        },
    )?;
    stage.row(
        &case(
            "declared address, another name in SNI",
            "stranger.test",
            "tls-refused",
            "router sni_not_declared",
        ),
        |demo| {
            let way = way(PAYMENTS, 443)(demo.addresses(Spot::Orders));
            let to = resolve("stranger.test", 443, way.to);
            Ok(answered(demo.page(
                Spot::Orders,
                Some(way),
                &["--resolve", &to, "https://stranger.test/"],
            )?))
        },
    )?;
    stage.row(
        &case(
            "declared name, a stranger's address",
            "api.payments.test",
            "200 payments",
            "router ok",
        ),
        |demo| {
            let way = way(STRANGER, 443)(demo.addresses(Spot::Orders));
            let to = resolve("api.payments.test", 443, way.to);
            Ok(answered(demo.page(
                Spot::Orders,
                Some(way),
                &["--resolve", &to, "https://api.payments.test/"],
            )?))
        },
    )?;
    stage.row(
        &case(
            "declared host by HTTP",
            "rates.payments.test",
            "200 payments",
            "router ok",
        ),
        |demo| {
            let way = way(PAYMENTS, 80)(demo.addresses(Spot::Orders));
            Ok(answered(demo.page(
                Spot::Orders,
                Some(way),
                &[FAMILY(family), "http://rates.payments.test/"],
            )?))
        },
    )?;
    stage.row(
        &case(
            "another name in Host",
            "stranger.test",
            "403",
            "router host_not_declared",
        ),
        |demo| {
            let way = way(PAYMENTS, 80)(demo.addresses(Spot::Orders));
            let to = resolve("stranger.test", 80, way.to);
            Ok(answered(demo.page(
                Spot::Orders,
                Some(way),
                &["--resolve", &to, "http://stranger.test/"],
            )?))
        },
    )?;
    let web = Case {
        from: "shop/web",
        ..case(
            "host declared by another component",
            "api.payments.test",
            "dropped",
            "kernel not_declared",
        )
    };
    stage.row(&web, |demo| {
        let way = way(PAYMENTS, 443)(demo.addresses(Spot::Web));
        Ok(demo
            .page(
                Spot::Web,
                Some(way),
                &[FAMILY(family), "https://api.payments.test/"],
            )?
            .1)
    })
}

fn by_address(stage: &mut Stage<'_>, family: Family) -> Result<()> {
    for (scenario, to, address, port, expected, because) in [
        (
            "declared network and port",
            "partner:5432",
            PARTNER,
            5432,
            "passed",
            "kernel policy spec.egress.south[2]",
        ),
        (
            "declared network, another port",
            "partner:5433",
            PARTNER,
            5433,
            "dropped",
            "kernel not_declared",
        ),
        (
            "nothing declared",
            "stranger:7000",
            STRANGER,
            7000,
            "dropped",
            "kernel not_declared",
        ),
        // The cell declares a host on port 80, so that only the address's own identity keeps this one out.
        (
            "metadata of the cloud",
            "metadata:80",
            METADATA,
            80,
            "dropped",
            "kernel not_declared",
        ),
    ] {
        let case = Case {
            scenario,
            direction: "south",
            from: "shop/orders",
            to,
            family: Some(family),
            expected,
            because,
        };
        stage.row(&case, |demo| {
            let way = Way {
                from: demo.addresses(Spot::Orders).of(family),
                to: address.of(family),
                port,
            };
            demo.echo(Spot::Orders, "tcp", SocketAddr::new(way.to, way.port), way)
        })?;
    }
    Ok(())
}

fn dns(stage: &mut Stage<'_>, family: Family) -> Result<()> {
    let server = SocketAddr::new(DNS_SERVICE.of(family), 53).to_string();
    let mut question = vec!["dns", "--server", &server, "--name", "api.payments.test"];
    if family == Family::V6 {
        question.push("--v6");
    }
    let expected = PAYMENTS.of(family).to_string();
    for (scenario, more) in [
        ("platform DNS by UDP", &[][..]),
        ("platform DNS by TCP", &["--tcp"][..]),
    ] {
        let case = Case {
            scenario,
            direction: "south",
            from: "shop/web",
            to: "dns (service)",
            family: Some(family),
            expected: &expected,
            because: "kernel policy",
        };
        stage.row(&case, |demo| {
            let mut answer = String::new();
            let way = Way {
                from: demo.addresses(Spot::Web).of(family),
                to: super::scene::DNS.of(family),
                port: 53,
            };
            let seen = demo.watched(way, |demo| {
                let outcome = demo.probe(Spot::Web, &[&question, more].concat())?;
                answer.clone_from(&outcome.answer);
                Ok(outcome)
            })?;
            Ok(if answer.is_empty() {
                seen
            } else {
                super::row::Seen {
                    actual: answer,
                    ..seen
                }
            })
        })?;
    }
    Ok(())
}
