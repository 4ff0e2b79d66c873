//! North: from the internet through the external gateway.

use std::net::SocketAddr;

use anyhow::Result;

use super::{
    row::{Case, Seen, Stage, Way},
    scene::{API_HOST, APP_HOST, Demo, EXTERNAL, Spot, WEB},
};
use crate::{
    http::{Page, resolve},
    world::Family,
};

/// Status and the name of who answered.
pub(super) fn answered((page, seen): (Page, Seen)) -> Seen {
    match page.json()["name"].as_str() {
        Some(name) => Seen {
            actual: format!("{} {name}", seen.actual),
            ..seen
        },
        None => seen,
    }
}

/// A request through the external gateway.
pub(super) fn request(
    demo: &Demo,
    family: Family,
    host: &str,
    path: &str,
    more: &[&str],
) -> Result<(Page, Seen)> {
    let to = resolve(host, 443, EXTERNAL.of(family));
    let url = format!("https://{host}{path}");
    demo.page(
        Spot::Client,
        None,
        &[&["--resolve", &to], more, &[&url]].concat(),
    )
}

pub(super) fn play(stage: &mut Stage<'_>) -> Result<()> {
    const BOOK: &str = "/shop/orders/api/v1/books/7";

    for family in Family::BOTH {
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
                "TLS by SNI: web application",
                "shop/web",
                "200 web",
                "router ok",
            ),
            |demo| Ok(answered(request(demo, family, APP_HOST, "/", &[])?)),
        )?;
        stage.row(
            &case(
                "TLS by SNI: unknown name",
                "unknown.test",
                "tls-refused",
                "router no_certificate",
            ),
            |demo| Ok(request(demo, family, "unknown.test", "/", &[])?.1),
        )?;
        stage.row(
            &case(
                "JWT with the right scope",
                "shop/orders/api",
                "200 orders sees /api/v1/books/7",
                "router ok",
            ),
            |demo| {
                let bearer = format!("Authorization: Bearer {}", demo.token("read:books")?);
                let (page, seen) = request(demo, family, API_HOST, BOOK, &["-H", &bearer])?;
                let answer = page.json();
                let (name, path) = (
                    answer["name"].as_str().unwrap_or("nobody"),
                    answer["path"].as_str().unwrap_or("nothing"),
                );
                Ok(Seen {
                    actual: format!("{} {name} sees {path}", seen.actual),
                    ..seen
                })
            },
        )?;
        stage.row(
            &case(
                "JWT missing",
                "shop/orders/api",
                "401",
                "router jwt_missing",
            ),
            |demo| Ok(request(demo, family, API_HOST, BOOK, &[])?.1),
        )?;
        stage.row(
            &case(
                "JWT with another scope",
                "shop/orders/api",
                "403",
                "router scope",
            ),
            |demo| {
                let bearer = format!("Authorization: Bearer {}", demo.token("read:films")?);
                Ok(request(demo, family, API_HOST, BOOK, &["-H", &bearer])?.1)
            },
        )?;
        stage.row(
            &case(
                "operation not declared",
                "shop/orders/api",
                "403",
                "router operation_not_declared",
            ),
            |demo| {
                let bearer = format!("Authorization: Bearer {}", demo.token("read:books")?);
                Ok(request(
                    demo,
                    family,
                    API_HOST,
                    BOOK,
                    &["-H", &bearer, "-X", "DELETE"],
                )?
                .1)
            },
        )?;
        stage.row(
            &case(
                "private endpoint",
                "shop/orders/admin",
                "404",
                "router no_route",
            ),
            |demo| {
                let bearer = format!("Authorization: Bearer {}", demo.token("read:books")?);
                Ok(request(
                    demo,
                    family,
                    API_HOST,
                    "/shop/orders/admin",
                    &["-H", &bearer],
                )?
                .1)
            },
        )?;
        stage.row(
            &case(
                "pod addressed from outside",
                "shop/web",
                "dropped",
                "kernel not_declared",
            ),
            |demo| {
                let way = Way {
                    from: demo.addresses(Spot::Client).of(family),
                    to: WEB.of(family),
                    port: 8080,
                };
                demo.echo(Spot::Client, "tcp", SocketAddr::new(way.to, way.port), way)
            },
        )?;
    }
    Ok(())
}
