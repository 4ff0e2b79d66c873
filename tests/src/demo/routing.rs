//! Routing keys and rewrites, as the backend and the client see them: who answered, `X-Routed-To`, `X-Route-Reason`.

use anyhow::Result;

use super::{
    north::request,
    row::{Case, Seen, Stage},
    scene::{CUSTOMERS_HOST, REWRITES_HOST},
};
use crate::world::Family;

pub(super) fn play(stage: &mut Stage<'_>) -> Result<()> {
    for family in Family::BOTH {
        for (scenario, key, expected) in [
            (
                "routing key of a dedicated placement",
                "visa",
                "200 visa: visa, dedicated",
            ),
            ("routing key of a tier", "acme", "200 tier1: tier1, tier"),
            ("unknown routing key", "nobody", "200 tier3: tier3, default"),
        ] {
            let case = Case {
                scenario,
                direction: "north",
                from: "client",
                to: "customers",
                family: Some(family),
                expected,
                because: "router ok",
            };
            stage.row(&case, |demo| {
                let key = format!("X-Routing-Key: {key}");
                // What a client claims of the decision must not survive.
                let (page, seen) = request(
                    demo,
                    family,
                    CUSTOMERS_HOST,
                    "/",
                    &["-H", &key, "-H", "X-Route-Reason: forged"],
                )?;
                let name = page.json()["name"].as_str().unwrap_or("nobody").to_owned();
                let (to, reason) = (page.header("x-routed-to"), page.header("x-route-reason"));
                Ok(Seen {
                    actual: format!("{} {name}: {to}, {reason}", seen.actual),
                    ..seen
                })
            })?;
        }
        let case = |scenario, to, expected, because| Case {
            scenario,
            direction: "north",
            from: "client",
            to,
            family: Some(family),
            expected,
            because,
        };
        stage.row(
            &case(
                "routing key missing",
                "customers",
                "400",
                "router routing_key_missing",
            ),
            |demo| Ok(request(demo, family, CUSTOMERS_HOST, "/", &[])?.1),
        )?;
        for (scenario, path, expected) in [
            ("prefix rewritten", "/old/a?b=1", "200 sees /new/a?b=1"),
            (
                "path rewritten by regex",
                "/items/42/details",
                "200 sees /details/42",
            ),
        ] {
            stage.row(
                &case(scenario, "catalogue", expected, "router ok"),
                |demo| {
                    let (page, seen) = request(demo, family, REWRITES_HOST, path, &[])?;
                    let answer = page.json();
                    let query = answer["query"]
                        .as_str()
                        .map(|query| format!("?{query}"))
                        .unwrap_or_default();
                    let path = answer["path"].as_str().unwrap_or("nothing");
                    Ok(Seen {
                        actual: format!("{} sees {path}{query}", seen.actual),
                        ..seen
                    })
                },
            )?;
        }
    }
    Ok(())
}
